"""Curves and a rollout browser of a run: OUT_DIR/curves.png and OUT_DIR/rollouts.html.

    python report.py out/tiny_grpo

Reads what train_grpo.py and train_sft.py write to OUT_DIR: metrics.jsonl (needed), rollouts.jsonl, config.json and run.json
(each used if there). The trainer calls it in the background at every checkpoint, so the inputs may end in half a line, which
is skipped, and the outputs appear all at once, never half-written. The page is one file: mail it, or open it from disk.
"""

import base64
import html
import io
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito: told apart by colour-blind readers
GREY = "#6b7280"
MAX_STEPS, PER_STEP, MAX_BYTES = 60, 8, 6_500_000  # of the page's groups; the curves come on top


def wilson(correct: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval (low, high) of a proportion, 95 % for z = 1.96, from `correct` successes in n trials.

        (p + z^2/2n  +-  z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n),   p = correct / n

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22(158). Unlike p +- 1.96 * sd it
    stays within [0, 1] and does not shrink to a point at 0 % and 100 %, where small test sets end up.
    """
    if n <= 0:
        return 0.0, 1.0  # nothing seen, nothing known
    p, zz = correct / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    low, high = (p + zz / 2 - half) / (1 + zz), (p + zz / 2 + half) / (1 + zz)
    return max(0.0, low), min(1.0, high)


# -----------------------------------------------------------------------------
# reading and writing
# -----------------------------------------------------------------------------


def parse(text: bytes) -> dict | None:
    """One JSON object, or None if `text` is not (yet) one. NaN and Infinity become None: browsers' JSON has neither."""
    try:
        value = json.loads(text, parse_constant=lambda name: None)
    except ValueError:  # JSON and UTF-8 errors both
        return None
    return value if isinstance(value, dict) else None


def read_metrics(out_dir: Path) -> list[dict]:
    path = out_dir / "metrics.jsonl"
    if not path.is_file():
        raise SystemExit(f"report: there is no '{path}'; give the out_dir of a run of train_grpo.py or train_sft.py")
    rows = [row for row in map(parse, path.read_bytes().splitlines()) if row and "step" in row]
    if not rows:
        raise SystemExit(f"report: '{path}' holds no complete line yet; run this again after the first step")
    return rows


def describe(out_dir: Path) -> dict:
    """Name of the run and the line below it: model, commit, device. Whatever is not known is left out."""
    config, run = ((parse(p.read_bytes()) if p.is_file() else None) or {} for p in (out_dir / "config.json", out_dir / "run.json"))
    commit = str(run.get("commit", "unknown"))
    facts = [config.get("model"), commit != "unknown" and f"commit {commit[:12]}", run.get("device"), run.get("started")]
    return {"name": out_dir.resolve().name, "facts": "  ·  ".join(str(f) for f in facts if f)}


def write_atomic(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the pid: two reports may run at once
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# -----------------------------------------------------------------------------
# curves.png
# -----------------------------------------------------------------------------


def series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one key, from the records that have it (evaluations are rare, a skipped update has no loss)."""
    points = [(r["step"], r[key]) for r in rows if isinstance(r.get(key), int | float) and math.isfinite(r[key])]
    return tuple(np.array(points, dtype=float).reshape(-1, 2).T)


def window(n: int) -> int:
    return min(n // 12, 50) | 1  # odd, so that the mean is centred; grows with the run


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean; at the ends over the part of the window that exists, so that no value is made up."""
    ones = np.ones(window(len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def panels(rows: list[dict]) -> list[tuple]:
    """(title, {key: label} on the left axis, {key: label} on a right axis in %) of every panel that has data."""
    seen = {k for r in rows for k in r}
    parts = {k: k[7:] for k in sorted(seen) if k.startswith("reward_") and k != "reward_std"}
    accuracy = series(rows, "eval_accuracy")[1]
    scores = f": {accuracy[0]:.1%} → {accuracy[-1]:.1%}" if len(accuracy) > 1 else ""
    table = [
        ("Rewards", parts or {"reward": "reward"}, {}),
        (f"Held-out accuracy{scores}", {"eval_accuracy": "accuracy, 95 % interval", "eval_format": "format"}, {}),
        ("Completion length", {"length": "tokens"}, {"finished": "finished"}),
        ("KL to the reference", {"kl": "k3 estimate, per token"}, {"clip_fraction": "clipped"}),
        ("Groups without spread", {"flat_groups": "share of groups", "reward_std": "reward std in a group"}, {}),
        ("Entropy", {"entropy": "nats per response token"}, {}),
        ("Seconds per step", {k: k[8:] for k in sorted(seen) if k.startswith("seconds_")}, {}),
        ("Gradient norm", {"grad_norm": "L2, before clipping"}, {}),
        ("Sampler vs. trainer", {"mismatch": "mean |difference of log p|"}, {}),
    ]
    if not seen & {"reward", "eval_accuracy"}:  # SFT; under GRPO the value of the loss says nothing (its gradient does)
        table += [("Loss", {"loss": "nats per response token"}, {}), ("Learning rate", {"lr": "of the optimizer step"}, {})]
        table.sort(key=lambda panel: panel[0] != "Loss")

    def drawable(keys):  # a KL or clip fraction of 0 throughout means 'switched off', not 'measured as 0'
        drawn = {k: label for k, label in keys.items() if len(series(rows, k)[1])}
        return {k: label for k, label in drawn.items() if k not in ("kl", "clip_fraction") or series(rows, k)[1].any()}

    return [(t, drawable(a), drawable(b)) for t, a, b in table if drawable(a)]


def draw_lines(ax, rows: list[dict], labels: dict, colors) -> list:
    """Every step faintly and its moving mean on top. Returns the handles for the legend."""
    handles, everything = [], []
    for (key, label), color in zip(labels.items(), colors, strict=False):
        steps, values = series(rows, key)
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        handles += ax.plot(steps, smooth(values), color=color, linewidth=1.8, label=label)
        everything.extend(values)
    everything = np.array(everything)
    if set(labels) & {"finished", "flat_groups"} or (everything.min() >= 0 and 0.5 < everything.max() <= 1):
        ax.set_ylim(-0.03, max(1.05, everything.max() * 1.05))  # shares: the same scale in every run
    elif everything.min() > 0 and everything.max() > 20 * np.median(everything):
        ax.set_yscale("log")  # else one spike flattens all the rest
    return handles


def draw_eval(ax, rows: list[dict], labels: dict) -> list:
    handles = []
    if "eval_format" in labels:
        handles += ax.plot(*series(rows, "eval_format"), "--", color=GREY, linewidth=1.2, label="format", zorder=1)
    if "eval_accuracy" in labels:
        steps, values = series(rows, "eval_accuracy")
        sizes = dict(zip(*series(rows, "eval_n"), strict=True))
        ends = np.array([wilson(v * sizes[s], sizes[s]) if s in sizes else (v, v) for s, v in zip(steps, values, strict=True)])
        bars = np.abs(ends.T - values)  # distances below and above, not positions
        handles.insert(0, ax.errorbar(steps, values, bars, fmt="o-", color=PALETTE[0], markersize=4, capsize=2.5,
                                      linewidth=1.6, elinewidth=1.1, label=labels["eval_accuracy"]))  # fmt: skip
    ax.set_ylim(-0.03, 1.05)
    return handles


def draw_seconds(ax, rows: list[dict], labels: dict) -> list:
    rows = [r for r in rows if any(r.get(k) for k in labels)]  # the step-0 evaluation has no times
    steps = [r["step"] for r in rows]
    times = {label: np.array([r.get(k) or 0.0 for r in rows]) for k, label in labels.items()}
    total = sum(times.values())
    order = sorted(times, key=lambda name: -times[name].sum())
    large = [name for name in order if times[name].sum() > 0.02 * total.sum()][: len(PALETTE)]
    layers = {name: smooth(times[name]) for name in large} | {"other": smooth(sum((times[n] for n in order if n not in large), 0 * total))}
    ax.margins(x=0)
    ax.set_ylim(0, min(smooth(total).max(), 4 * np.median(total)) * 1.05)  # a slow first step (compilation) may leave the top
    return ax.stackplot(steps, layers.values(), labels=layers, colors=[*PALETTE[: len(large)], "#c4c8cf"], alpha=0.9, linewidth=0)


def curves(rows: list[dict], about: dict) -> bytes:
    """The figure as PNG. Pyplot stays out: Figure draws with Agg by itself, needs no display and starts faster."""
    from matplotlib import rc_context  # here, because eval.py imports this module for wilson() alone
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    shown = panels(rows)
    if not shown:
        raise SystemExit(f"report: metrics.jsonl of '{about['name']}' holds no known curve; it should come from train_grpo.py or train_sft.py")
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    lines = -(-len(shown) // columns)
    style = {"font.size": 8.5, "axes.edgecolor": "#9ca3af", "xtick.color": GREY, "ytick.color": GREY, "axes.spines.top": False}
    with rc_context(style | {"axes.grid": True, "grid.color": "#e9ebee", "axes.axisbelow": True, "xtick.major.size": 2, "ytick.major.size": 2}):
        height = 2.25 * lines + 0.62
        fig = Figure(figsize=(9.6, height), layout="constrained")
        fig.get_layout_engine().set(rect=(0.004, 0.01, 0.992, 1 - 0.62 / height), hspace=0.06, wspace=0.05)
        for i, (title, left, right) in enumerate(shown):
            ax = fig.add_subplot(lines, columns, i + 1)
            ax.spines["right"].set_visible(False)
            draw = draw_eval if "Held-out" in title else draw_seconds if "Seconds" in title else None
            handles = draw(ax, rows, left) if draw else draw_lines(ax, rows, left, PALETTE)
            if right:
                twin = ax.twinx()
                twin.grid(False)
                handles += draw_lines(twin, rows, right, PALETTE[1:])
                twin.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
            if "Held-out" in title:
                ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color="#1f2937", pad=19)
            # the legend stands between title and axes: nowhere else is it sure to cover no curve
            ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.025, 0.985), ncols=7, frameon=False, fontsize=8, labelcolor="#374151",
                      handlelength=0.9, handletextpad=0.4, columnspacing=0.9, borderaxespad=0.1)  # fmt: skip
            if i >= len(shown) - columns:
                ax.set_xlabel("step", color=GREY)
        fig.text(0.012, 1 - 0.1 / height, about["name"], fontsize=14, fontweight="bold", va="top", color="#111827")
        k = window(len(rows))
        note = f"faint: every step, line: mean over {k} steps" if k > 1 else ""
        fig.text(0.012, 1 - 0.38 / height, "  ·  ".join(filter(None, (about["facts"], note))), fontsize=8.5, va="top", color=GREY)
        png = io.BytesIO()
        fig.savefig(png, dpi=130, format="png", facecolor="white")
    return png.getvalue()
