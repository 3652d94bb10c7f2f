"""Pages to look at. Curves and a rollout browser of a run: OUT_DIR/curves.png and OUT_DIR/rollouts.html.

    python report.py out/tiny_grpo

Reads what train_grpo.py and train_sft.py write there: metrics.jsonl (needed), rollouts.jsonl, config.json, run.json.
The trainer calls it in the background: a half-written last line is skipped, and the outputs appear whole or not at all.
eval.py calls eval_page(): every question, image, output and verdict of an evaluation in one file.
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

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe-Ito: safe for the colour-blind
GREY, INK = "#6b7280", "#1f2937"
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


def parse(text: bytes) -> dict:
    """One JSON object; {} if it is not (yet) one. NaN and Infinity become None, since browsers' JSON has neither."""
    try:
        value = json.loads(text, parse_constant=lambda name: None)
    except ValueError:  # of JSON and of UTF-8
        return {}
    return value if isinstance(value, dict) else {}


def read_metrics(out_dir: Path) -> list[dict]:
    path = out_dir / "metrics.jsonl"
    rows = (
        [row for row in map(parse, path.read_bytes().splitlines()) if "step" in row] if path.is_file() else []
    )
    if not rows:
        raise SystemExit(
            f"report: '{path}' is missing or has no full line; give the out_dir of a run that made a step"
        )
    return rows


def describe(out_dir: Path) -> dict:
    """Name of the run and the line below it: model, commit, device, start. What the files do not say is left out."""
    files = out_dir / "config.json", out_dir / "run.json"
    config, run = (parse(file.read_bytes()) if file.is_file() else {} for file in files)
    facts = [
        config.get("model"),
        f"commit {run.get('commit', 'unknown')}",
        run.get("device"),
        run.get("started"),
    ]
    return {"name": out_dir.resolve().name, "facts": "  ·  ".join(str(fact) for fact in facts if fact)}


def pick_groups(path: Path) -> tuple[list[dict], int]:
    """Groups for the page, spread evenly over the steps, those with images first; and how many groups the run has."""
    at, offset = (
        {},
        0,
    )  # step -> [(has no image, place in the file, bytes in the page)]: a long run would fill memory
    with open(path, "rb") as file:
        for line in file:
            entry = parse(line)
            if "completions" in entry:  # a '<' takes 6 bytes in the page
                at.setdefault(entry["step"], []).append(
                    (not entry["images"], offset, len(line) + 5 * line.count(b"<"))
                )
            offset += len(line)
        # what is too much for one page is thinned out: first the groups of a step, then the steps
        for n_steps, per_step in (
            (60, 8),
            (60, 4),
            (60, 2),
            (40, 2),
            (25, 2),
            (12, 2),
            (6, 2),
            (3, 1),
            (1, 1),
        ):
            places = np.linspace(0, len(at) - 1, min(n_steps, len(at))).round().astype(int)
            picked = [group for i in places for group in sorted(at[sorted(at)[i]])[:per_step]]
            if sum(size for *_, size in picked) <= MAX_BYTES:
                break
        return [parse(file.readline()) for _, place, _ in picked if file.seek(place) >= 0], sum(
            map(len, at.values())
        )


def series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a key, from the records that have it: evaluations are rare, a skipped update has no loss."""
    points = [(r["step"], r[key]) for r in rows if isinstance(r.get(key), int | float)]
    return tuple(np.array(points, dtype=float).reshape(-1, 2).T)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over 5 % of the run; at its ends over the part of the window that exists: no value is made up."""
    ones = np.ones(len(values) // 20 | 1)  # odd, hence centred
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def panels(rows: list[dict]) -> list[tuple]:
    """(title, {key: label}, {key: label} on a second axis in %) of every panel that has data."""
    values = {k: series(rows, k)[1] for k in sorted({k for r in rows for k in r})}
    # a KL or clip fraction of 0 throughout is one that was switched off
    live = [k for k, v in values.items() if len(v) and (v.any() or k not in ("kl", "clip_fraction"))]
    parts = {k: k[7:] for k in live if k.startswith("reward_") and k != "reward_std"}
    scores = ": {:.1%} → {:.1%}".format(*values["eval_accuracy"][[0, -1]]) if "eval_accuracy" in live else ""
    table = [
        # under GRPO the value of the loss says nothing (its gradient does), so it is drawn for SFT only
        ("Loss", {} if parts else {"loss": "nats per response token"}, {}),
        ("Learning rate", {} if parts else {"lr": "of the step"}, {}),
        ("Rewards", parts, {}),
        (
            f"Held-out accuracy{scores}",
            {"eval_accuracy": "accuracy, 95% interval", "eval_format": "format"},
            {},
        ),
        ("Completion length", {"length": "tokens"}, {"finished": "finished (right axis)"}),
        ("KL to the reference", {"kl": "k3, per token"}, {"clip_fraction": "clipped (right axis)"}),
        (
            "Groups without spread",
            {"flat_groups": "share of groups", "reward_std": "reward std in a group"},
            {},
        ),
        ("Entropy", {"entropy": "nats per response token"}, {}),
        ("Seconds per step", {k: k[8:] for k in live if k.startswith("seconds_")}, {}),
        ("Gradient norm", {"grad_norm": "before clipping"}, {}),
        ("Sampler against trainer", {"mismatch": "mean |difference of log p|"}, {}),
    ]
    drawn = [
        (title, *({k: v for k, v in side.items() if k in live} for side in sides)) for title, *sides in table
    ]
    return [panel for panel in drawn if panel[1]]


def draw_lines(ax, rows: list[dict], labels: dict, colors) -> list:
    """Every step faintly, its moving mean on top. This and the next two return the handles for the legend."""
    handles, everything = [], np.concatenate([series(rows, key)[1] for key in labels])
    low, middle, high = np.quantile(everything, (0, 0.5, 1))
    for (key, label), color in zip(labels.items(), colors * len(labels), strict=False):
        steps, values = series(rows, key)
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        handles += ax.plot(steps, smooth(values), color=color, linewidth=1.8, label=label)
    if low > 0 and high > 20 * middle:
        ax.set_yscale("log")  # or one spike flattens all the rest
    elif low >= 0 and high <= 1 and any(key.startswith(("reward_", "finished", "flat")) for key in labels):
        ax.set_ylim(-0.03, 1.05)  # shares: the same scale in every run
    ax.yaxis.set_major_formatter("{x:.3g}")
    return handles


def draw_eval(ax, rows: list[dict], labels: dict) -> list:
    (steps, values), (_, sizes) = series(rows, "eval_accuracy"), series(rows, "eval_n")
    bars = np.abs(
        np.array([wilson(v * n, n) for v, n in zip(values, sizes, strict=True)]).T - values
    )  # below, above
    style = {"color": PALETTE[0], "markersize": 4, "capsize": 2.5, "linewidth": 1.6, "elinewidth": 1.1}
    handles = ax.plot(*series(rows, "eval_format"), "--", color=GREY, linewidth=1.2, label="format")
    ax.set_ylim(-0.03, 1.05)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    return [ax.errorbar(steps, values, bars, fmt="o-", label=labels["eval_accuracy"], **style), *handles]


def draw_seconds(ax, rows: list[dict], labels: dict) -> list:
    rows = [r for r in rows if any(key in r for key in labels)]  # the evaluation of step 0 has none
    times = {label: np.array([r.get(k) or 0.0 for r in rows]) for k, label in labels.items()}
    total, order = sum(times.values()), sorted(times, key=lambda name: -times[name].sum())
    layers = {name: times[name] for name in order[:4] if times[name].sum() > 0.02 * total.sum()}
    layers["other"] = total - sum(layers.values())
    ax.set(
        xmargin=0, ylim=(0, min(smooth(total).max(), 4 * np.median(total)) * 1.05)
    )  # a slow first step is cut off
    colors = [*PALETTE[: len(layers) - 1], "#c4c8cf"]
    return ax.stackplot(
        [r["step"] for r in rows], *map(smooth, layers.values()), labels=layers, colors=colors
    )


def curves(rows: list[dict], about: dict) -> bytes:
    """The figure as PNG. Without pyplot: Figure draws with Agg by itself, needs no display and starts faster."""
    from matplotlib import rc_context  # here, because eval.py uses this module without drawing
    from matplotlib.figure import Figure

    shown = panels(rows)
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    lines = math.ceil(len(shown) / columns)
    height = 2.25 * lines + 0.62  # inches; 0.62 for the heading
    with rc_context(LOOK):
        fig = Figure(figsize=(9.6, height), layout="constrained")
        fig.get_layout_engine().set(rect=(0.004, 0.01, 0.992, 1 - 0.62 / height), hspace=0.05, wspace=0.05)
        for i, (title, left, right) in enumerate(shown):
            ax = fig.add_subplot(lines, columns, i + 1)
            draw = draw_eval if "eval_accuracy" in left else draw_seconds if "Seconds" in title else None
            handles = draw(ax, rows, left) if draw else draw_lines(ax, rows, left, PALETTE)
            if right:
                twin = ax.twinx()
                handles += draw_lines(twin, rows, right, PALETTE[1:])
                twin.grid(False)
                twin.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g}%")
            ax.locator_params(axis="x", nbins=5, integer=True)
            ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=19)
            ax.set_xlabel("step" if i >= len(shown) - columns else "", color=GREY)
            # between title and axes it covers no curve; outside the layout, or a long one would narrow its column
            ax.legend(
                handles=handles, loc="lower left", bbox_to_anchor=(-0.025, 0.985), ncols=7
            ).set_in_layout(False)
        note = "  ·  faint: every step, line: mean over 5% of the run" if len(rows) >= 40 else ""
        fig.text(0.012, 1 - 0.1 / height, about["name"], fontsize=14, fontweight="bold", va="top", color=INK)
        fig.text(0.012, 1 - 0.38 / height, about["facts"] + note, fontsize=8.5, va="top", color=GREY)
        png = io.BytesIO()
        fig.savefig(png, dpi=130, format="png", facecolor="white")
    return png.getvalue()


HEAD = r"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
script-src 'unsafe-inline'"><title>nanoR1V</title><style>
:root { color-scheme: light dark; --good: light-dark(#0072b2, #56b4e9); --bad: light-dark(#d55e00, #f08a3c);
  --ink: light-dark(#1f2937, #e5e7eb); --dim: light-dark(#6b7280, #9ca3af); --line: light-dark(#e2e5ea, #33383f);
  --card: light-dark(#fff, #1c2026); --page: light-dark(#f6f7f9, #121519); --mark: light-dark(#fff1c2, #4d4115) }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 16px auto;
  padding: 0 12px; max-width: 1160px } h1 { margin: 0; font-size: 22px } .dim, th, label, .think { color: var(--dim) }
details, nav, article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px;
  margin: 10px 0 } summary, .text { cursor: pointer } img { border-radius: 6px; width: 100% }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 6px 18px; align-items: center }
#text { flex: 1; min-width: 150px } input, select, button { font: inherit; accent-color: var(--good) }
article { display: grid; grid: auto / 132px minmax(0, 1fr); gap: 14px; overflow-wrap: anywhere }
.pill { border: 1px solid var(--line); border-radius: 9px; padding: 0 8px; margin: 4px } small, th { font-size: 12px }
table { border-collapse: collapse; width: 100%; margin-top: 6px; font-variant-numeric: tabular-nums } td:first-child {
  border-left: 4px solid; color: var(--c) } td { border-top: 1px solid var(--line) } .answer { background: var(--mark) }
th, td { text-align: right; padding: 2px 8px; vertical-align: top; white-space: nowrap; font-weight: 400 }
th:last-child, td:last-child { text-align: left; width: 99% } .text { white-space: pre-wrap }
.text:not(.open) .long { overflow: hidden; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4 }
</style>"""
TOOLS = r"""<main id="list"></main><button id="more">more</button><script type="text/json" id="data">__DATA__</script><script>
const $ = id => document.getElementById(id), D = JSON.parse($("data").textContent), number = x => (+x).toFixed(2)
const make = (tag, cls, text, ...kids) => {  // text goes in as textContent: a completion is never read as HTML
  const e = document.createElement(tag); e.className = cls; e.textContent = text; e.append(...kids); return e }
const pieces = /(<think>[^]*?(?:<\/think>|(?=<answer>)|$)|<answer>[^]*?(?:<\/answer>|$)|\\boxed\{[^}]*\})/i
function textOf(s) {  // split() puts the matches at the odd places
  const kind = (s, i) => (i % 2 == 0 ? "" : /^<think/i.test(s) ? "think" : "answer") + (s.length > 400 ? " long" : "")
  const text = make("div", "text", "", ...s.split(pieces).map((s, i) => make("span", kind(s, i), s)))
  text.onclick = () => getSelection().isCollapsed && text.classList.toggle("open")  // long pieces start with 4 lines
  return text }
function list(hits, card, limit, again, what) {
  $("list").replaceChildren(...hits.slice(0, limit).map(card)); $("more").hidden = hits.length <= limit
  $("more").onclick = () => again(limit + 100); $("count").textContent = `${hits.length} match; ${what}` }
document.title = $("name").textContent = D.name; $("facts").textContent = D.facts
"""
PAGE = (
    HEAD
    + r"""<h1 id="name"></h1><div class="dim" id="facts"></div><details open><summary>Curves</summary><img id="curves">
</details><nav><input type="search" id="text" placeholder="find text or id"><select id="sort">
<option value="step 1">first steps first<option value="step -1">last steps first<option value="mean -1">highest reward
<option value="mean 1">lowest reward<option value="std -1">widest spread<option value="std 1">narrowest spread</select>
<label>steps <input type="range" id="from"> <input type="range" id="to"> <span id="range"></span></label>
<label><input type="checkbox" id="spread"> only groups with spread</label>
<label><input type="checkbox" id="wrong"> only wrong completions</label><small class="dim" id="count"></small></nav>
"""
    + TOOLS
    + r"""const sum = list => list.reduce((a, b) => a + b, 0), steps = [...new Set(D.groups.map(g => g.step))]
for (const g of D.groups) {
  g.r = g.completions.map(c => c.reward); g.mean = sum(g.r) / g.r.length
  g.std = Math.sqrt(sum(g.r.map(x => (x - g.mean) ** 2)) / (g.r.length - 1))  // n - 1, as the trainer
  g.text = [g.id, g.problem, g.solution, ...g.completions.map(c => c.text)].join("\n").toLowerCase() }
const sorted = D.groups.flatMap(g => g.r).sort((a, b) => a - b), low = sorted[0], high = sorted.at(-1)
const wrong = c => ("accuracy" in c.parts ? c.parts.accuracy : c.reward - high + 1) < 1
function completion(c, names) {
  const cells = [number(c.reward), ...names.map(n => number(c.parts[n])), (c.advantage > 0 ? "+" : "") +
    number(c.advantage), (c.finished ? "" : "cut off at ") + c.tokens].map(s => make("td", "", s))
  const row = make("tr", "", "", ...cells, make("td", "", "", textOf(c.text))), good = 100 * (c.reward - low) / (high - low || 1)
  row.style.setProperty("--c", `color-mix(in oklab, var(--good) ${good}%, var(--bad))`); return row }
function card(g) {
  const names = Object.keys(g.completions[0].parts), shown = g.completions.filter(c => !$("wrong").checked || wrong(c))
  const head = ["reward", ...names, "advantage", "tokens", "completion"].map(s => make("th", "", s))
  const pills = ["answer " + g.solution, "mean reward " + number(g.mean), "spread " + number(g.std)]
  const table = make("table", "", "", make("tr", "", "", ...head), ...shown.map(c => completion(c, names)))
  const images = g.images.map(src => Object.assign(make("img", "", ""), {src})), id = make("div", "", g.id)
  const right = make("div", "", "", make("b", "", g.problem), ...pills.map(s => make("small", "pill", s)), table)
  return make("article", "", "", make("div", "dim", "step " + g.step, ...images, id), right) }
function show(limit = 30) {
  const [key, sign] = $("sort").value.split(" "), [from, to] = ["from", "to"].map(id => steps[$(id).value])
  const hits = D.groups.filter(g => g.step >= from && g.step <= to && g.text.includes($("text").value.toLowerCase())
    && (g.std > 0 || !$("spread").checked) && (g.completions.some(wrong) || !$("wrong").checked))
  hits.sort((a, b) => sign * (a[key] - b[key]) || a.step - b.step)
  list(hits, card, limit, show, `the page has ${D.groups.length} of ${D.total} groups, evenly spread`)
  $("range").textContent = `${from} to ${to}` }
for (const id of ["from", "to"]) { $(id).max = steps.length - 1; $(id).value = id == "to" ? steps.length - 1 : 0 }
$("curves").src = D.curves
document.querySelector("nav").oninput = () => show(); show()
</script></html>
"""
)

EVAL_PAGE = (
    HEAD
    + r"""<style>article { grid: auto / 210px minmax(0, 1fr) } .problem, .options { white-space: pre-wrap }
.options { margin: 4px 0 } #tables td, #tables th { width: auto } #tables td:first-child, #tables th:first-child { text-align: left;
  color: inherit; border-left: none } td.given { min-width: 60px; max-width: 220px; white-space: pre-wrap } .yes { color: var(--good) }
.no { color: var(--bad) } article td { font-size: 13px }</style><h1 id="name"></h1><div class="dim" id="facts"></div>
<details open><summary>Figures</summary><div id="tables"></div></details><nav><input type="search" id="text"
placeholder="find text, id or label"><select id="bench"><option value="">all benchmarks</select><select id="model">
<option value="">all checkpoints</select><select id="verdict"><option value="">all outputs<option value="wrong">wrong
<option value="right">right<option value="lost">wrong even if lenient<option value="untagged">right, but not in a tag
<option value="disputed">ours and the published rule differ<option value="flipped">checkpoints differ
<option value="regraded">ours and the recorded verdict differ
<option value="cut">cut off</select><small class="dim" id="count"></small></nav>
"""
    + TOOLS
    + r"""const percent = x => x == null ? "–" : (100 * x).toFixed(1) + " %"
const tests = { "": () => true, wrong: o => o.accuracy < 1, right: o => o.accuracy == 1, lost: o => o.lenient < 1,
  untagged: o => o.lenient == 1 && o.accuracy < 1, disputed: o => o.published != null && o.published != o.lenient,
  regraded: o => o.recorded != null && o.recorded != o.lenient, flipped: () => true, cut: o => o.finished === false }
function table(head, rows) {
  const line = (tag, cells) => make("tr", "", "", ...cells.map(s => make(tag, "", s)))
  return make("table", "", "", line("th", [...head, ""]), ...rows.map(r => line("td", [...r, ""]))) }
const bars = t => percent(t.interval[0]) + " to " + percent(t.interval[1])
const figures = D.figures.map(f => [f.model, f.bench, f.n, percent(f.accuracy), bars(f), percent(f.lenient), percent(f.published),
  percent(f.format), f.skipped])
$("tables").append(table(["checkpoint", "benchmark", "rows", "accuracy", "95 % interval", "lenient", "published rule", "format",
  "skipped"], figures))
if (D.matrix) $("tables").append(table(["accuracy (change in points, p)", ...D.matrix.benchmarks], D.matrix.models.map((m, i) => [m,
  ...D.matrix.benchmarks.map(b => { const c = D.matrix.cells[m][b], points = (100 * c.difference).toFixed(1)
    return percent(c.accuracy) + (i ? ` (${c.difference < 0 ? "" : "+"}${points}, p ${c.p.toPrecision(2)})` : "") })])))
for (const f of D.figures) for (const [name, values] of Object.entries(f.categories)) {
  const rows = Object.entries(values).map(([v, t]) => [v, t.n, percent(t.accuracy), bars(t)])
  $("tables").append(make("details", "", "", make("summary", "", [f.model, f.bench, "by " + name].filter(s => s).join("  ·  ")),
    table([name, "rows", "accuracy", "95 % interval"], rows))) }
for (const [id, key] of [["bench", "bench"], ["model", "model"]]) {
  const names = [...new Set(D.figures.map(f => f[key]))]; $(id).hidden = names.length < 2
  $(id).append(...names.map(n => Object.assign(make("option", "", n), {value: n}))) }
for (const r of D.rows) {
  r.flipped = new Set(r.outputs.map(o => o.accuracy)).size > 1
  r.text = [r.id, r.problem, r.solution, ...(r.options || []), ...Object.values(r.labels || {}), ...r.outputs.map(o => o.text)].join("\n")
    .toLowerCase() }
const several = new Set(D.figures.map(f => f.model)).size > 1, published = D.figures.some(f => f.published != null)
const recorded = D.rows.some(r => r.outputs.some(o => o.recorded != null))
const mark = x => make("td", x == 1 ? "yes" : "no", x == null ? "" : x == 1 ? "✓" : "✗")
const fits = o => (!$("model").value || o.model == $("model").value) && tests[$("verdict").value](o)
function output(o) {
  const answer = make("td", "given", o.answer ?? "none"), cells = several ? [make("td", "", o.model)] : []
  cells.push(mark(o.accuracy), mark(o.lenient), ...(published ? [mark(o.published)] : []), ...(recorded ? [mark(o.recorded)] : []), answer,
    make("td", "", (o.finished === false ? "cut off at " : "") + (o.tokens ?? "")), make("td", "", "", textOf(o.text)))
  const row = make("tr", "", "", ...cells); row.style.setProperty("--c", `var(--${o.accuracy == 1 ? "good" : "bad"})`); return row }
function card(r) {
  const head = [...(several ? ["checkpoint"] : []), "tag", "lenient", ...(published ? ["rule"] : []), ...(recorded ? ["recorded"] : []),
    "answer", "tokens", "output"]
  const rows = make("table", "", "", make("tr", "", "", ...head.map(s => make("th", "", s))), ...r.outputs.filter(fits).map(output))
  const pills = ["reference " + r.solution, r.task, ...Object.entries(r.labels || {}).map(([k, v]) => k + " " + v)]
  const options = (r.options || []).map((o, i) => String.fromCharCode(65 + i) + ". " + o).join("\n")
  const images = r.images.map(src => Object.assign(make("img", "", ""), {src, loading: "lazy"}))
  return make("article", "", "", make("div", "dim", "", ...images, make("div", "", [r.bench, r.id].filter(s => s).join("  ·  "))),
    make("div", "", "", make("b", "problem", r.problem), make("div", "options", options),
      ...pills.map(s => make("small", "pill", s)), rows)) }
function show(limit = 30) {
  const hits = D.rows.filter(r => (!$("bench").value || r.bench == $("bench").value) && r.text.includes($("text").value.toLowerCase())
    && ($("verdict").value != "flipped" || r.flipped) && r.outputs.some(fits))
  list(hits, card, limit, show, `the page has ${D.rows.length} of ${D.total} rows`) }
document.querySelector("nav").oninput = () => show(); show()
</script></html>
"""
)


def eval_page(
    path: Path,
    name: str,
    facts: str,
    records: dict[str, dict[str, dict]],
    sources: dict,
    limit: int,
    matrix=None,
) -> None:
    """One page of an evaluation. records: {checkpoint: {benchmark: record}} as in the JSON; sources: {benchmark: rows}, for the images.

    Holds the first `limit` rows of each benchmark, fewer if there are many benchmarks, so that a browser can still open it.
    """
    first = next(iter(records.values()))
    limit, rows, figures = min(limit, max(20, 3000 // len(first))), [], []
    if limit <= 0:
        return
    for model, found in records.items():
        keys = ("n", "accuracy", "interval", "lenient", "published", "format", "skipped", "categories")
        figures += [
            {"model": model, "bench": bench} | {k: record.get(k) for k in keys}
            for bench, record in found.items()
        ]
    for bench in first:
        entries = {}  # rows of all checkpoints, since one may have skipped what another could read
        for model, found in records.items():
            for e in found.get(bench, {"results": []})["results"]:
                entries.setdefault(e["index"], (e, []))[1].extend({"model": model} | o for o in e["outputs"])
        for index, (e, outputs) in sorted(entries.items())[:limit]:
            row = {k: e.get(k) for k in ("id", "problem", "solution", "task", "options", "labels")} | {
                "bench": bench,
                "images": [],
            }
            if bench in sources:
                import data  # here, since pages of old files do without it

                with contextlib.suppress(
                    Exception
                ):  # a picture that has gone in the meantime is no reason to lose the page
                    row["images"] = [data.thumbnail(image, 240) for image in sources[bench][index]["images"]]
            rows.append(row | {"outputs": outputs})
    total = sum(record["n"] for record in first.values())
    content = {
        "name": name,
        "facts": facts,
        "figures": figures,
        "matrix": matrix,
        "rows": rows,
        "total": total,
    }
    write(path, fill(EVAL_PAGE, content))


def fill(page: str, content: dict) -> str:
    """The page with its data. In JSON '<' stands in strings only, and without it no text can end the script element."""
    return page.replace("__DATA__", json.dumps(content).replace("<", "\\u003c"))


def main(out_dir: Path) -> None:
    rows, about, rollouts = read_metrics(out_dir), describe(out_dir), out_dir / "rollouts.jsonl"
    files = {out_dir / "curves.png": curves(rows, about)}
    groups, total = pick_groups(rollouts) if rollouts.is_file() else ([], 0)
    if groups:
        image = "data:image/png;base64," + base64.b64encode(files[out_dir / "curves.png"]).decode()
        files[out_dir / "rollouts.html"] = fill(
            PAGE, about | {"curves": image, "groups": groups, "total": total}
        ).encode()
    for path, content in files.items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the pid: two reports may run at once
        temporary.write_bytes(content)
        os.replace(temporary, path)
    print(*files)


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
