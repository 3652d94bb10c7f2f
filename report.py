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

from pages import EVAL_MARKUP, EVAL_PROGRAM, EVAL_STYLE, ROLLOUTS_MARKUP, ROLLOUTS_PROGRAM, STYLE, fill
from results import write
from tasks.intervals import wilson
from tasks.pictures import picture_list, thumbnail, unwrapped

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
PICTURE_SIDE = 1600  # pixels: a page of a document can be read
SMALL_SIDE = 240  # pixels, of a picture for which there is no room
PICTURE_BYTES = 48_000_000  # of the pictures of an evaluation's page, as they stand in it
MAX_BYTES = 7_000_000  # of the groups in the page; the curves come on top
OF_SHARES = ("reward_", "accuracy/", "eval_accuracy/", "finished", "flat")  # metrics from 0 to 1, mostly
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
    of_kinds = {}  # accuracy of each source and task
    held_out_of_kinds = {}
    for key in live:
        if key.startswith("accuracy/"):
            of_kinds[key] = key.removeprefix("accuracy/")
        if key.startswith("eval_accuracy/"):
            held_out_of_kinds[key] = key.removeprefix("eval_accuracy/")
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
        ("Accuracy by kind",        of_kinds,                                   {}),
        (held_out_title,            held_out,                                   {}),
        ("Held-out by kind",        held_out_of_kinds,                          {}),
        ("Held-out metric",         {"eval_metric": "mean"},                    {}),
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
    of_shares = any(key.startswith(OF_SHARES) for key in labels)
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
    place = {"loc": "lower left", "bbox_to_anchor": (-0.025, 0.985), "ncols": 7}
    if sum(len(handle.get_label()) + 4 for handle in handles) > 60:
        place = {"loc": "best"}  # too long for one line: among the curves
    legend = ax.legend(handles=handles, **place)
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

    Holds the first `limit` rows of each benchmark, fewer if there are many benchmarks, and PICTURE_BYTES of
    pictures, so that a browser can still open it.
    """
    benchmarks = next(iter(records.values()))  # of the first checkpoint
    limit = min(limit, max(20, 3000 // len(benchmarks)))
    if limit <= 0:
        return
    rows = []
    for bench in benchmarks:
        rows += bench_rows(bench, records, sources.get(bench), limit, PICTURE_BYTES // len(benchmarks))
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
    keys = ("n", "of", "accuracy", "interval", "lenient", "published", "format", "skipped", "own_metric")
    keys += ("categories",)
    found = []
    for model, benchmarks in records.items():
        for bench, record in benchmarks.items():
            found.append({"model": model, "bench": bench} | {key: record.get(key) for key in keys})
    return found


def bench_rows(
    bench: str, records: dict[str, dict[str, dict]], source, limit: int, picture_bytes: int
) -> list[dict]:
    """The first `limit` rows of a benchmark, each with its outputs from all checkpoints and its pictures."""
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
        for index in first:
            # a picture that has gone in the meantime is no reason to lose the page
            with contextlib.suppress(Exception):
                picture_bytes = add_pictures(rows[index], source, index, picture_bytes)
    return [rows[index] for index in first]


def add_pictures(row: dict, source, index: int, room: int) -> int:
    """Give a row of the page the pictures of that row of the source; returns the bytes of room that are left.

    They are whole while there is room, thumbnails with a link to their file from the first that does not fit.
    """
    of_source = source[index]
    images = of_source["images"]
    whole = [thumbnail(image, PICTURE_SIDE) for image in images] if room > 0 else []
    room -= sum(map(len, whole))
    if room > 0:
        row["images"] = whole
        row["notes"] = [f"{image.width} x {image.height} pixels" for image in images]
        return room
    row["images"] = [thumbnail(image, SMALL_SIDE) for image in images]
    row["notes"] = ["small, as the page has no room left for whole pictures"] * len(images)
    row["files"] = picture_files(source, of_source)
    return 0


def picture_files(source, row: dict) -> list[str]:
    """file:// links to the pictures of a row, "" for one that is in no file of its own."""
    links = []
    for picture in picture_list(source.image_source(row["columns"]), source.find_image):
        place = unwrapped(picture)
        file = source.find_image(place) if isinstance(place, str) else None
        links.append(file.resolve().as_uri() if file else "")
    return links


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
