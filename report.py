"""Pages to look at. Curves and a rollout browser of a run: OUT_DIR/curves.png and OUT_DIR/rollouts.html.

    python report.py out/tiny_grpo

Reads what train_grpo.py and train_sft.py write there: metrics.jsonl (needed), rollouts.jsonl, config.json,
run.json. The trainer calls it in the background: a half-written last line is skipped, and the outputs appear
whole or not at all. eval.py calls eval_page(): every question, image, output and verdict of an evaluation in
one file.
"""

import base64
import contextlib
import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from results import wilson, write

# Okabe-Ito: safe for the colour-blind
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#6b7280"
INK = "#1f2937"
LOOK = {
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#e9ebee",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "font.size": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 0.9,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 0.9,
    "legend.borderaxespad": 0.1,
}
MAX_BYTES = 7_000_000  # of the groups in the page; the curves come on top
# (steps, groups of each) in the page: the first that fits; groups are thinned out first, then the steps
FITS = ((60, 8), (60, 4), (60, 2), (40, 2), (25, 2), (12, 2), (6, 2), (3, 1), (1, 1))


def main(out_dir: Path) -> None:
    rows = read_metrics(out_dir)
    about = describe(out_dir)
    png = curves(rows, about)
    files = {out_dir / "curves.png": png}
    rollouts = out_dir / "rollouts.jsonl"
    groups, total = pick_groups(rollouts) if rollouts.is_file() else ([], 0)
    if groups:
        image = "data:image/png;base64," + base64.b64encode(png).decode()
        content = about | {"curves": image, "groups": groups, "total": total}
        page = fill(STYLE, ROLLOUTS_MARKUP, ROLLOUTS_PROGRAM, content)
        files[out_dir / "rollouts.html"] = page.encode()
    for path, content in files.items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the pid: two reports may run at once
        temporary.write_bytes(content)
        os.replace(temporary, path)
    print(*files)


# -----------------------------------------------------------------------------
# what a run has written
# -----------------------------------------------------------------------------


def parse(text: bytes) -> dict:
    """One JSON object; {} if it is not (yet) one. NaN and Infinity become None: browsers know neither."""
    try:
        value = json.loads(text, parse_constant=lambda name: None)
    except ValueError:  # of JSON and of UTF-8
        return {}
    return value if isinstance(value, dict) else {}


def read_metrics(out_dir: Path) -> list[dict]:
    """The records of metrics.jsonl. Raises SystemExit if there are none."""
    path = out_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    rows = [row for row in map(parse, lines) if "step" in row]
    if not rows:
        remedy = "give the out_dir of a run that made a step"
        raise SystemExit(f"report: '{path}' is missing or has no full line; {remedy}")
    return rows


def read_object(path: Path) -> dict:
    return parse(path.read_bytes()) if path.is_file() else {}


def describe(out_dir: Path) -> dict:
    """Name of the run and the line below it: model, commit, device, start; what is not known is left out."""
    config = read_object(out_dir / "config.json")
    run = read_object(out_dir / "run.json")
    commit = f"commit {run.get('commit', 'unknown')}"
    facts = [config.get("model"), commit, run.get("device"), run.get("started")]
    return {"name": out_dir.resolve().name, "facts": "  ·  ".join(str(fact) for fact in facts if fact)}


def pick_groups(path: Path) -> tuple[list[dict], int]:
    """Groups for the page, spread evenly over the steps, and how many groups the run has."""
    with open(path, "rb") as file:
        places = find_groups(file)
        groups = []
        for _, offset, _ in thin_out(places):
            file.seek(offset)
            groups.append(parse(file.readline()))
    return groups, sum(len(of_step) for of_step in places.values())


def find_groups(file) -> dict[int, list[tuple]]:
    """step -> [(has no image, offset in the file, bytes in the page)]: the groups could fill the memory."""
    places = {}
    offset = 0
    for line in file:
        group = parse(line)
        if "completions" in group:
            size = len(line) + 5 * line.count(b"<")  # a '<' takes 6 bytes in the page
            places.setdefault(group["step"], []).append((not group["images"], offset, size))
        offset += len(line)
    return places


def thin_out(places: dict[int, list[tuple]]) -> list[tuple]:
    """As many groups as fit into one page; of a step those with images first."""
    steps = sorted(places)
    for n_steps, per_step in FITS:
        chosen = np.linspace(0, len(steps) - 1, min(n_steps, len(steps))).round().astype(int)
        picked = []
        for i in chosen:
            picked += sorted(places[steps[i]])[:per_step]
        if sum(size for _, _, size in picked) <= MAX_BYTES:
            break
    return picked


# -----------------------------------------------------------------------------
# curves
# -----------------------------------------------------------------------------


def series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a key, from the records that have it: a skipped update, say, has no loss."""
    found = [row for row in rows if isinstance(row.get(key), int | float)]
    steps = np.array([row["step"] for row in found], dtype=float)
    values = np.array([row[key] for row in found], dtype=float)
    return steps, values


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over 5 % of the run; at its ends over the part of the window that exists."""
    window = np.ones(len(values) // 20 | 1)  # odd, hence centred
    inside = np.convolve(np.ones_like(values), window, "same")
    return np.convolve(values, window, "same") / inside


def panels(rows: list[dict]) -> list[tuple]:
    """(title, {key: label}, {key: label} on a second axis in %) of every panel that has data."""
    live = []
    for key in sorted({key for row in rows for key in row}):
        values = series(rows, key)[1]
        switched_off = key in ("kl", "clip_fraction") and not values.any()
        if len(values) and not switched_off:
            live.append(key)
    held_out_title = "Held-out accuracy"
    if "eval_accuracy" in live:
        accuracy = series(rows, "eval_accuracy")[1]
        held_out_title += f": {accuracy[0]:.1%} → {accuracy[-1]:.1%}"
    parts = {}
    seconds = {}
    for key in live:
        if key.startswith("reward_") and key != "reward_std":
            parts[key] = key.removeprefix("reward_")
        if key.startswith("seconds_"):
            seconds[key] = key.removeprefix("seconds_")
    # under GRPO the value of the loss says nothing (its gradient does), so it is drawn for SFT only
    loss = {} if parts else {"loss": "nats per response token"}
    lr = {} if parts else {"lr": "of the step"}
    held_out = {"eval_accuracy": "accuracy, 95% interval", "eval_format": "format"}
    finished = {"finished": "finished (right axis)"}
    clipped = {"clip_fraction": "clipped (right axis)"}
    spread = {"flat_groups": "share of groups", "reward_std": "reward std in a group"}
    # fmt: off
    table = [
        ("Loss",                    loss,                                       {}),
        ("Learning rate",           lr,                                         {}),
        ("Rewards",                 parts,                                      {}),
        (held_out_title,            held_out,                                   {}),
        ("Completion length",       {"length": "tokens"},                       finished),
        ("KL to the reference",     {"kl": "k3, per token"},                    clipped),
        ("Groups without spread",   spread,                                     {}),
        ("Entropy",                 {"entropy": "nats per response token"},     {}),
        ("Seconds per step",        seconds,                                    {}),
        ("Gradient norm",           {"grad_norm": "before clipping"},           {}),
        ("Sampler against trainer", {"mismatch": "mean |difference of log p|"}, {}),
    ]
    # fmt: on
    shown = []
    for title, left, right in table:
        left = {key: label for key, label in left.items() if key in live}
        right = {key: label for key, label in right.items() if key in live}
        if left:
            shown.append((title, left, right))
    return shown


def draw_lines(ax, rows: list[dict], labels: dict, colors) -> list:
    """Every step faintly, its moving mean on top. This and the next two return the handles for the legend."""
    handles = []
    for (key, label), color in zip(labels.items(), colors * len(labels), strict=False):
        steps, values = series(rows, key)
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        handles += ax.plot(steps, smooth(values), color=color, linewidth=1.8, label=label)
    everything = np.concatenate([series(rows, key)[1] for key in labels])
    low, middle, high = np.quantile(everything, (0, 0.5, 1))
    of_shares = any(key.startswith(("reward_", "finished", "flat")) for key in labels)
    if low > 0 and high > 20 * middle:
        ax.set_yscale("log")  # or one spike flattens all the rest
    elif of_shares and low >= 0 and high <= 1:
        ax.set_ylim(-0.03, 1.05)  # the same scale in every run
    ax.yaxis.set_major_formatter("{x:.3g}")
    return handles


def draw_eval(ax, rows: list[dict], labels: dict) -> list:
    steps, values = series(rows, "eval_accuracy")
    sizes = series(rows, "eval_n")[1]
    intervals = [wilson(share * n, n) for share, n in zip(values, sizes, strict=True)]
    bars = np.abs(np.transpose(intervals) - values)  # below, above
    dashes = ax.plot(*series(rows, "eval_format"), "--", color=GREY, linewidth=1.2, label="format")
    style = {"color": PALETTE[0], "markersize": 4, "capsize": 2.5, "linewidth": 1.6, "elinewidth": 1.1}
    dots = ax.errorbar(steps, values, bars, fmt="o-", label=labels["eval_accuracy"], **style)
    ax.set_ylim(-0.03, 1.05)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    return [dots, *dashes]


def draw_seconds(ax, rows: list[dict], labels: dict) -> list:
    """The four longest phases of a step in layers, the rest as one."""
    rows = [row for row in rows if any(key in row for key in labels)]  # the evaluation of step 0 has none
    times = {label: np.array([row.get(key) or 0.0 for row in rows]) for key, label in labels.items()}
    total = sum(times.values())
    longest_first = sorted(times, key=lambda label: -times[label].sum())
    layers = {}
    for label in longest_first[:4]:
        if times[label].sum() > 0.02 * total.sum():
            layers[label] = times[label]
    colors = [*PALETTE[: len(layers)], "#c4c8cf"]
    layers["other"] = total - sum(layers.values())
    top = min(smooth(total).max(), 4 * np.median(total))  # a slow first step is cut off
    ax.set(xmargin=0, ylim=(0, 1.05 * top))
    steps = [row["step"] for row in rows]
    return ax.stackplot(steps, *map(smooth, layers.values()), labels=layers, colors=colors)


def draw_panel(ax, rows: list[dict], title: str, left: dict, right: dict) -> None:
    if "eval_accuracy" in left:
        handles = draw_eval(ax, rows, left)
    elif title == "Seconds per step":
        handles = draw_seconds(ax, rows, left)
    else:
        handles = draw_lines(ax, rows, left, PALETTE)
    if right:
        twin = ax.twinx()
        handles += draw_lines(twin, rows, right, PALETTE[1:])
        twin.grid(False)
        twin.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g}%")
    ax.locator_params(axis="x", nbins=5, integer=True)
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=19)
    # between title and axes it covers no curve; outside the layout, or a long one would narrow its column
    legend = ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.025, 0.985), ncols=7)
    legend.set_in_layout(False)


def curves(rows: list[dict], about: dict) -> bytes:
    """The figure as PNG. Without pyplot: Figure draws with Agg alone, needs no display and starts faster."""
    from matplotlib import rc_context  # here, because eval.py uses this module without drawing
    from matplotlib.figure import Figure

    shown = panels(rows)
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    lines = math.ceil(len(shown) / columns)
    head = 0.62  # inches
    height = 2.25 * lines + head
    facts = about["facts"]
    if len(rows) >= 40:
        facts += "  ·  faint: every step, line: mean over 5% of the run"
    with rc_context(LOOK):
        fig = Figure(figsize=(9.6, height), layout="constrained")
        fig.get_layout_engine().set(rect=(0.004, 0.01, 0.992, 1 - head / height), hspace=0.05, wspace=0.05)
        for i, (title, left, right) in enumerate(shown):
            ax = fig.add_subplot(lines, columns, i + 1)
            draw_panel(ax, rows, title, left, right)
            lowest = i >= len(shown) - columns
            ax.set_xlabel("step" if lowest else "", color=GREY)
        fig.text(0.012, 1 - 0.1 / height, about["name"], fontsize=14, fontweight="bold", va="top", color=INK)
        fig.text(0.012, 1 - 0.38 / height, facts, fontsize=8.5, va="top", color=GREY)
        png = io.BytesIO()
        fig.savefig(png, dpi=130, format="png", facecolor="white")
    return png.getvalue()


# -----------------------------------------------------------------------------
# pages
# -----------------------------------------------------------------------------


def eval_page(
    path: Path,
    name: str,
    facts: str,
    records: dict[str, dict[str, dict]],
    sources: dict,
    limit: int,
    matrix=None,
) -> None:
    """One page of an evaluation.

    records: {checkpoint: {benchmark: record}} as in the JSON. sources: {benchmark: rows}, for the images.

    Holds the first `limit` rows of each benchmark, fewer if there are many benchmarks, so that a browser can
    still open it.
    """
    benchmarks = next(iter(records.values()))  # of the first checkpoint
    limit = min(limit, max(20, 3000 // len(benchmarks)))
    if limit <= 0:
        return
    rows = []
    for bench in benchmarks:
        rows += bench_rows(bench, records, sources.get(bench), limit)
    content = {
        "name": name,
        "facts": facts,
        "figures": figures(records),
        "matrix": matrix,
        "rows": rows,
        "total": sum(record["n"] for record in benchmarks.values()),
    }
    write(path, fill(STYLE + EVAL_STYLE, EVAL_MARKUP, EVAL_PROGRAM, content))


def figures(records: dict[str, dict[str, dict]]) -> list[dict]:
    """The figures of every checkpoint on every benchmark."""
    keys = ("n", "accuracy", "interval", "lenient", "published", "format", "skipped", "categories")
    found = []
    for model, benchmarks in records.items():
        for bench, record in benchmarks.items():
            found.append({"model": model, "bench": bench} | {key: record.get(key) for key in keys})
    return found


def bench_rows(bench: str, records: dict[str, dict[str, dict]], source, limit: int) -> list[dict]:
    """The first `limit` rows of a benchmark, each with its outputs from all checkpoints."""
    facts = ("id", "problem", "solution", "task", "options", "labels")
    rows = {}  # by index, from all checkpoints, since one may have skipped what another could read
    for model, benchmarks in records.items():
        if bench not in benchmarks:
            continue
        for entry in benchmarks[bench]["results"]:
            index = entry["index"]
            if index not in rows:
                row = {key: entry.get(key) for key in facts}
                rows[index] = row | {"bench": bench, "images": [], "outputs": []}
            for output in entry["outputs"]:
                rows[index]["outputs"].append({"model": model} | output)
    first = sorted(rows)[:limit]
    if source is not None:
        import data  # here, since pages of old files do without it

        for index in first:
            # a picture that has gone in the meantime is no reason to lose the page
            with contextlib.suppress(Exception):
                rows[index]["images"] = [data.thumbnail(image, 240) for image in source[index]["images"]]
    return [rows[index] for index in first]


def fill(style: str, markup: str, program: str, content: dict) -> str:
    """The page with its data."""
    # in JSON '<' stands in strings only, and without it no text can end the script element
    data = json.dumps(content).replace("<", "\\u003c")
    page = PAGE.replace("__STYLE__", style)
    page = page.replace("__MARKUP__", markup)
    page = page.replace("__PROGRAM__", TOOLS + program)
    return page.replace("__DATA__", data)  # last, since a text may hold one of the other names


# -----------------------------------------------------------------------------
# what the pages are made of: HTML, CSS and JavaScript, without anything from outside
# -----------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>nanoR1V</title>
<style>
__STYLE__
</style>
<h1 id="name"></h1>
<div class="dim" id="facts"></div>
__MARKUP__
<main id="list"></main>
<button id="more">more</button>
<script type="text/json" id="data">__DATA__</script>
<script>
__PROGRAM__
</script>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --good: light-dark(#0072b2, #56b4e9);
  --bad: light-dark(#d55e00, #f08a3c);
  --ink: light-dark(#1f2937, #e5e7eb);
  --dim: light-dark(#6b7280, #9ca3af);
  --line: light-dark(#e2e5ea, #33383f);
  --card: light-dark(#fff, #1c2026);
  --page: light-dark(#f6f7f9, #121519);
  --mark: light-dark(#fff1c2, #4d4115);
}
body {
  font: 14px/1.45 system-ui, sans-serif;
  color: var(--ink);
  background: var(--page);
  max-width: 1160px;
  margin: 16px auto;
  padding: 0 12px;
}
h1 { margin: 0; font-size: 22px }
small, th { font-size: 12px }
img { border-radius: 6px; width: 100% }
input, select, button { font: inherit; accent-color: var(--good) }
details, nav, article {
  background: var(--card);
  border: 1px solid var(--line);
  border-radius: 10px;
  padding: 10px 14px;
  margin: 10px 0;
}
.dim, th, label, .think { color: var(--dim) }
.answer { background: var(--mark) }

/* the controls stay in view */
nav {
  position: sticky;
  top: 0;
  z-index: 1;
  display: flex;
  flex-wrap: wrap;
  gap: 6px 18px;
  align-items: center;
}
#text { flex: 1; min-width: 150px }

/* a card: images on the left, problem and outputs on the right */
article { display: grid; grid: auto / 132px minmax(0, 1fr); gap: 14px; overflow-wrap: anywhere }
.pill { border: 1px solid var(--line); border-radius: 9px; padding: 0 8px; margin: 4px }
table { border-collapse: collapse; width: 100%; margin-top: 6px; font-variant-numeric: tabular-nums }
th, td {
  text-align: right;
  padding: 2px 8px;
  vertical-align: top;
  white-space: nowrap;
  font-weight: 400;
}
td { border-top: 1px solid var(--line) }
td:first-child { border-left: 4px solid; color: var(--c) }
th:last-child, td:last-child { text-align: left; width: 99% }

/* a text: long pieces show four lines until it is clicked */
summary, .text { cursor: pointer }
.text { white-space: pre-wrap }
.text:not(.open) .long {
  overflow: hidden;
  display: -webkit-box;
  -webkit-box-orient: vertical;
  -webkit-line-clamp: 4;
}
"""

# the start of both programs
TOOLS = r"""
const $ = id => document.getElementById(id);
const D = JSON.parse($("data").textContent);

// text goes in as textContent: a completion is never read as HTML
function make(tag, className, text, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  element.append(...children);
  return element;
}

// a row of a table; cells: texts, or finished elements
function tableRow(tag, cells) {
  return make("tr", "", "", ...cells.map(cell => cell instanceof Node ? cell : make(tag, "", cell)));
}

function imageOf(src) {
  const image = make("img", "", "");
  image.src = src;
  return image;
}

// the thinking dimmed, the answer marked; split() puts the matches at the odd places
const pieces = /(<think>[^]*?(?:<\/think>|(?=<answer>)|$)|<answer>[^]*?(?:<\/answer>|$)|\\boxed\{[^}]*\})/i;

function textOf(completion) {
  const text = make("div", "text", "");
  completion.split(pieces).forEach((piece, i) => {
    let kind = "";
    if (i % 2 == 1) kind = /^<think/i.test(piece) ? "think" : "answer";
    if (piece.length > 400) kind += " long";
    text.append(make("span", kind, piece));
  });
  text.onclick = () => {
    if (getSelection().isCollapsed) text.classList.toggle("open");
  };
  return text;
}

// the cards of the first hits; "more" shows again with a higher limit
function list(hits, card, limit, show, note) {
  $("list").replaceChildren(...hits.slice(0, limit).map(hit => card(hit)));
  $("more").hidden = hits.length <= limit;
  $("more").onclick = () => show(limit + 100);
  $("count").textContent = `${hits.length} match; ${note}`;
}

$("name").textContent = D.name;
$("facts").textContent = D.facts;
document.title = D.name;
"""

ROLLOUTS_MARKUP = """
<details open>
  <summary>Curves</summary>
  <img id="curves">
</details>
<nav>
  <input type="search" id="text" placeholder="find text or id">
  <select id="sort">
    <option value="step 1">first steps first
    <option value="step -1">last steps first
    <option value="mean -1">highest reward
    <option value="mean 1">lowest reward
    <option value="std -1">widest spread
    <option value="std 1">narrowest spread
  </select>
  <label>steps <input type="range" id="from"> <input type="range" id="to"> <span id="range"></span></label>
  <label><input type="checkbox" id="spread"> only groups with spread</label>
  <label><input type="checkbox" id="wrong"> only wrong completions</label>
  <small class="dim" id="count"></small>
</nav>
"""

ROLLOUTS_PROGRAM = r"""
const number = x => Number(x).toFixed(2);
const sum = list => list.reduce((a, b) => a + b, 0);
const steps = [...new Set(D.groups.map(group => group.step))];

for (const group of D.groups) {
  const rewards = group.completions.map(completion => completion.reward);
  const texts = group.completions.map(completion => completion.text);
  group.mean = sum(rewards) / rewards.length;
  const squares = sum(rewards.map(reward => (reward - group.mean) ** 2));
  group.std = Math.sqrt(squares / (rewards.length - 1));  // n - 1, as the trainer
  group.text = [group.id, group.problem, group.solution, ...texts].join("\n").toLowerCase();
}
const sorted = D.groups.flatMap(group => group.completions.map(c => c.reward)).sort((a, b) => a - b);
const low = sorted[0];
const high = sorted.at(-1);

// without a reward for accuracy: all but the highest reward
function wrong(completion) {
  if ("accuracy" in completion.parts) return completion.parts.accuracy < 1;
  return completion.reward < high;
}

function completionRow(completion, names) {
  const parts = names.map(name => number(completion.parts[name]));
  const advantage = (completion.advantage > 0 ? "+" : "") + number(completion.advantage);
  const tokens = (completion.finished ? "" : "cut off at ") + completion.tokens;
  const text = make("td", "", "", textOf(completion.text));
  const row = tableRow("td", [number(completion.reward), ...parts, advantage, tokens, text]);
  const good = 100 * (completion.reward - low) / (high - low || 1);
  row.style.setProperty("--c", `color-mix(in oklab, var(--good) ${good}%, var(--bad))`);
  return row;
}

function card(group) {
  const names = Object.keys(group.completions[0].parts);
  const shown = group.completions.filter(completion => !$("wrong").checked || wrong(completion));
  const table = make("table", "", "",
    tableRow("th", ["reward", ...names, "advantage", "tokens", "completion"]),
    ...shown.map(completion => completionRow(completion, names)));
  const pills = [
    "answer " + group.solution,
    "mean reward " + number(group.mean),
    "spread " + number(group.std),
  ].map(pill => make("small", "pill", pill));
  const id = make("div", "", group.id);
  const left = make("div", "dim", "step " + group.step, ...group.images.map(imageOf), id);
  const right = make("div", "", "", make("b", "", group.problem), ...pills, table);
  return make("article", "", "", left, right);
}

function show(limit = 30) {
  const words = $("text").value.toLowerCase();
  const from = steps[$("from").value];
  const to = steps[$("to").value];
  const hits = D.groups.filter(group =>
    group.step >= from && group.step <= to
    && group.text.includes(words)
    && (group.std > 0 || !$("spread").checked)
    && (group.completions.some(wrong) || !$("wrong").checked));
  const [key, sign] = $("sort").value.split(" ");
  hits.sort((a, b) => sign * (a[key] - b[key]) || a.step - b.step);
  list(hits, card, limit, show, `the page has ${D.groups.length} of ${D.total} groups, evenly spread`);
  $("range").textContent = `${from} to ${to}`;
}

$("from").max = steps.length - 1;
$("to").max = steps.length - 1;
$("from").value = 0;
$("to").value = steps.length - 1;
$("curves").src = D.curves;
document.querySelector("nav").oninput = () => show();
show();
"""

EVAL_STYLE = """
article { grid: auto / 210px minmax(0, 1fr) }
article td { font-size: 13px }
.problem, .options { white-space: pre-wrap }
.options { margin: 4px 0 }
#tables td, #tables th { width: auto }
#tables td:first-child, #tables th:first-child { text-align: left; color: inherit; border-left: none }
td.given { min-width: 60px; max-width: 220px; white-space: pre-wrap }
.yes { color: var(--good) }
.no { color: var(--bad) }
"""

EVAL_MARKUP = """
<details open>
  <summary>Figures</summary>
  <div id="tables"></div>
</details>
<nav>
  <input type="search" id="text" placeholder="find text, id or label">
  <select id="bench">
    <option value="">all benchmarks
  </select>
  <select id="model">
    <option value="">all checkpoints
  </select>
  <select id="verdict">
    <option value="">all outputs
    <option value="wrong">wrong
    <option value="right">right
    <option value="lost">wrong even if lenient
    <option value="untagged">right, but not in a tag
    <option value="disputed">ours and the published rule differ
    <option value="flipped">checkpoints differ
    <option value="regraded">ours and the recorded verdict differ
    <option value="cut">cut off
  </select>
  <small class="dim" id="count"></small>
</nav>
"""

EVAL_PROGRAM = r"""
const percent = share => share == null ? "–" : (100 * share).toFixed(1) + " %";
const interval = figure => percent(figure.interval[0]) + " to " + percent(figure.interval[1]);
const joined = facts => facts.filter(fact => fact).join("  ·  ");
const outputs = D.rows.flatMap(row => row.outputs);
const several = new Set(D.figures.map(figure => figure.model)).size > 1;
const published = D.figures.some(figure => figure.published != null);
const recorded = outputs.some(output => output.recorded != null);

// the tables: figures, checkpoints x benchmarks, categories

function table(head, rows) {
  const filled = rows.map(cells => tableRow("td", [...cells, ""]));
  return make("table", "", "", tableRow("th", [...head, ""]), ...filled);
}

function figuresTable() {
  const head = ["checkpoint", "benchmark", "rows", "accuracy", "95 % interval"];
  head.push("lenient", "published rule", "format", "skipped");
  const rows = D.figures.map(figure => {
    const accuracy = [percent(figure.accuracy), interval(figure)];
    const others = [figure.lenient, figure.published, figure.format].map(percent);
    return [figure.model, figure.bench, figure.n, ...accuracy, ...others, figure.skipped];
  });
  return table(head, rows);
}

function change(cell) {
  const points = (cell.difference < 0 ? "" : "+") + (100 * cell.difference).toFixed(1);
  return ` (${points}, p ${cell.p.toPrecision(2)})`;
}

function matrixTable(matrix) {
  const rows = matrix.models.map((model, i) => {
    const cells = matrix.benchmarks.map(bench => matrix.cells[model][bench]);
    return [model, ...cells.map(cell => percent(cell.accuracy) + (i > 0 ? change(cell) : ""))];
  });
  return table(["accuracy (change in points, p)", ...matrix.benchmarks], rows);
}

function categoryTable(figure, name) {
  const rows = Object.entries(figure.categories[name]).map(([value, found]) =>
    [value, found.n, percent(found.accuracy), interval(found)]);
  const summary = make("summary", "", joined([figure.model, figure.bench, "by " + name]));
  return make("details", "", "", summary, table([name, "rows", "accuracy", "95 % interval"], rows));
}

$("tables").append(figuresTable());
if (D.matrix) $("tables").append(matrixTable(D.matrix));
for (const figure of D.figures) {
  for (const name of Object.keys(figure.categories)) $("tables").append(categoryTable(figure, name));
}

// the rows

for (const row of D.rows) {
  const texts = row.outputs.map(output => output.text);
  const labels = Object.values(row.labels || {});
  const all = [row.id, row.problem, row.solution, ...(row.options || []), ...labels, ...texts];
  row.text = all.join("\n").toLowerCase();
  row.flipped = new Set(row.outputs.map(output => output.accuracy)).size > 1;
}

const verdicts = {
  "": output => true,
  wrong: output => output.accuracy < 1,
  right: output => output.accuracy == 1,
  lost: output => output.lenient < 1,
  untagged: output => output.lenient == 1 && output.accuracy < 1,
  disputed: output => output.published != null && output.published != output.lenient,
  regraded: output => output.recorded != null && output.recorded != output.lenient,
  flipped: output => true,  // a question about the row; see show
  cut: output => output.finished === false,
};

function fits(output) {
  const model = $("model").value;
  return (!model || output.model == model) && verdicts[$("verdict").value](output);
}

function mark(verdict) {
  if (verdict == null) return make("td", "no", "");
  return verdict == 1 ? make("td", "yes", "✓") : make("td", "no", "✗");
}

function outputRow(output) {
  const cells = [];
  if (several) cells.push(output.model);
  cells.push(mark(output.accuracy), mark(output.lenient));
  if (published) cells.push(mark(output.published));
  if (recorded) cells.push(mark(output.recorded));
  cells.push(make("td", "given", output.answer ?? "none"));
  cells.push((output.finished === false ? "cut off at " : "") + (output.tokens ?? ""));
  cells.push(make("td", "", "", textOf(output.text)));
  const row = tableRow("td", cells);
  row.style.setProperty("--c", output.accuracy == 1 ? "var(--good)" : "var(--bad)");
  return row;
}

function outputTable(row) {
  const head = ["tag", "lenient"];
  if (several) head.unshift("checkpoint");
  if (published) head.push("rule");
  if (recorded) head.push("recorded");
  head.push("answer", "tokens", "output");
  return make("table", "", "", tableRow("th", head), ...row.outputs.filter(fits).map(outputRow));
}

function card(row) {
  const images = row.images.map(imageOf);
  for (const image of images) image.loading = "lazy";
  const left = make("div", "dim", "", ...images, make("div", "", joined([row.bench, row.id])));
  const letters = (row.options || []).map((option, i) => String.fromCharCode(65 + i) + ". " + option);
  const labels = Object.entries(row.labels || {}).map(([name, value]) => name + " " + value);
  const pills = ["reference " + row.solution, row.task, ...labels].map(pill => make("small", "pill", pill));
  const right = make("div", "", "",
    make("b", "problem", row.problem),
    make("div", "options", letters.join("\n")),
    ...pills,
    outputTable(row));
  return make("article", "", "", left, right);
}

function show(limit = 30) {
  const words = $("text").value.toLowerCase();
  const bench = $("bench").value;
  const flipped = $("verdict").value == "flipped";
  const hits = D.rows.filter(row =>
    (!bench || row.bench == bench)
    && row.text.includes(words)
    && (!flipped || row.flipped)
    && row.outputs.some(fits));
  list(hits, card, limit, show, `the page has ${D.rows.length} of ${D.total} rows`);
}

for (const id of ["bench", "model"]) {
  const names = [...new Set(D.figures.map(figure => figure[id]))];
  $(id).hidden = names.length < 2;
  for (const name of names) {
    const option = make("option", "", name);
    option.value = name;
    $(id).append(option);
  }
}
document.querySelector("nav").oninput = () => show();
show();
"""

if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
