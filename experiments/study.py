"""The study of docs/study.md: does reinforcement learning with verifiable rewards beat imitation?

From one cold start, each arm sees 25,600 samples: supervised rows, or completions of GRPO. Every run has one
CPU core to itself and is a command of this repository (the arms are files in configs/study/); this script
makes the runs that docs/study.jsonl does not hold yet. In the root of the repository:

    # everything that is missing: about 3 hours on 2 cores; killed, it goes on with the next run
    python -m experiments.study
    python -m experiments.study --arms=answers,grpo --seeds=0
    # the tables and the figure again, from docs/study.jsonl
    python -m experiments.study --stage=report

Stages: settings (a learning rate for each trainer, on validation scenes), run, report.
Writes out/study/ (checkpoints, logs), docs/study.jsonl (one line a run), docs/study.png, and the tables in
docs/study.md.
"""

import collections
import datetime
import json
import math
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

import data
from configurator import configure
from report import INK, LOOK, PALETTE
from results import write

# fmt: off
# -----------------------------------------------------------------------------
# default config: the whole study; override with  python -m experiments.study --key=value
stage = "settings,run,report"
arms = ""                 # 'answers,grpo'; '' = all
seeds = "0,1,2"
jobs = 2                  # runs side by side, one core each (2.5 GiB of memory each)
out_dir = "out/study"
record = "docs/study.jsonl"
# -----------------------------------------------------------------------------
# fmt: on

ROOT = Path(__file__).resolve().parent.parent
SFT = ["train_sft.py", "configs/tiny_sft.py", "configs/study/sft.py"]
GRPO = ["train_grpo.py", "configs/tiny.py", "configs/study/grpo.py"]
# fmt: off
ARMS = {  # name: (title, command)
    "teacher":      ("a) SFT, fallible teacher's chains",          [*SFT, "configs/study/teacher.py"]),
    "filtered":     ("a') SFT, those that end in the true count",  [*SFT, "configs/study/filtered.py"]),
    "perfect":      ("b) SFT, perfect chains",                     [*SFT, "configs/study/perfect.py"]),
    "answers":      ("c) SFT, true counts without chains",         [*SFT, "configs/study/answers.py"]),
    "expert":       ("d) expert iteration, own right samples",     [*SFT, "configs/study/expert.py"]),
    "perfect_slow": ("b') as b), at GRPO's learning rate",         [*SFT, "configs/study/perfect.py"]),
    "expert_slow":  ("d') as d), at GRPO's learning rate",         [*SFT, "configs/study/expert.py"]),
    "grpo":         ("e) GRPO, accuracy + format reward",          GRPO),
    "no_format":    ("f) GRPO, accuracy reward only",              [*GRPO, "configs/study/no_format.py"]),
    "no_kl":        ("g) GRPO without KL",                         [*GRPO, "configs/study/no_kl.py"]),
    "dr_grpo":      ("h) Dr. GRPO",                                [*GRPO, "configs/study/dr_grpo.py"]),
    "group_4":      ("i) GRPO, G = 4",                             [*GRPO, "configs/study/group_4.py"]),
    "group_16":     ("i) GRPO, G = 16",                            [*GRPO, "configs/study/group_16.py"]),
}
SPLITS = {
    "clevr":        "in distribution",
    "cogent_b":     "CoGenT B",
    "superclevr":   "vehicles",
    "more_objects": "9-12 objects",
    "color":        "colour questions",
}
# fmt: on
SAMPLES = 25_600
POINTS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the run, where the curve is measured

# Expert iteration: rounds, scenes of each, completions a scene
ROUNDS = 4
PER_ROUND = 800
DRAWS = 8

# Learning rates that are tried, and the arms whose validation accuracy chooses among them
RATES = {"train_sft.py": (5e-4, 1e-3, 2e-3), "train_grpo.py": (2e-4, 4e-4, 8e-4)}
CHOSEN_BY = {"train_sft.py": ("perfect", "answers"), "train_grpo.py": ("grpo",)}


class Broken(Exception):
    """A command failed; the text says where its output is."""


def call(command: list[str], log: Path) -> float:
    """Run a script of this repository; CPU seconds of it and its children. Raises Broken if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with open(log, "a") as file:
        print(f"\n$ python {' '.join(command)}", file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise Broken(f"python {' '.join(command)}: failed, see the end of {log}")
    return usage.ru_utime + usage.ru_stime


def last_step(folder: Path) -> Path:
    """Its newest checkpoint."""
    found = sorted(folder.glob("step-*"))
    if not found:
        raise Broken(f"'{folder}' holds no checkpoint")
    return found[-1]


def cold() -> Path:
    """The checkpoint that all arms start from."""
    return last_step(Path(out_dir, "cold"))


# -----------------------------------------------------------------------------
# the record: one line for each run, and for each setting that was tried
# -----------------------------------------------------------------------------

writing = threading.Lock()


def finish(line: dict) -> None:
    """Append one run to the record."""
    import common  # here, because it brings torch, which the report does not need

    line = line | {"date": datetime.date.today().isoformat(), "commit": common.commit()}
    with writing, open(record, "a") as file:
        file.write(json.dumps(line) + "\n")


def recorded(kind: str) -> list[dict]:
    """The lines of the record of one kind: "arm" (runs) or "setting"."""
    path = Path(record)
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if kind in line]


def chosen_rate(arm: str) -> float:
    """The learning rate for an arm; of equals the smaller.

    It has the best validation accuracy in distribution, a mean over the arms that choose for its trainer.
    """
    script = "train_grpo.py" if arm.endswith("_slow") else ARMS[arm][1][0]
    accuracies = collections.defaultdict(list)
    for line in recorded("setting"):
        if line["setting"] in CHOSEN_BY[script]:
            accuracies[line["learning_rate"]].append(line["validation"]["clevr"]["accuracy"])
    if set(accuracies) != set(RATES[script]):
        raise SystemExit(f"study: no learning rate is chosen for {script} yet; run --stage=settings first")
    return max(sorted(accuracies), key=lambda rate: sum(accuracies[rate]) / len(accuracies[rate]))


# -----------------------------------------------------------------------------
# what a run is judged by
# -----------------------------------------------------------------------------


def listed(text: str) -> list[str]:
    """What the chain of thought lists, sorted: ["blue sphere", "red cube"]."""
    found = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
    if not found:
        return []
    return sorted(part.strip() for part in found[1].split(","))


def faithfulness(result: dict) -> dict:
    """Does the chain of thought list the objects of the scene, by colour and shape? Means over the rows.

    listed: all of them and no other.  named: |said and there| / max(|said|, |there|), both as multisets.
    """
    records = data.load_rows(result["source"]).records
    right, overlap = 0, 0.0
    for entry in result["results"]:
        said = listed(entry["outputs"][0]["text"])
        objects = records.scene(entry["index"])["objects"]
        there = sorted(f"{obj['color']} {obj['shape']}" for obj in objects)
        both = collections.Counter(said) & collections.Counter(there)
        right += said == there
        overlap += both.total() / max(len(said), len(there))
    rows = len(result["results"])
    return {"listed": round(right / rows, 4), "named": round(overlap / rows, 4)}


def find_result(folder: Path, split: str, checkpoint: Path) -> dict:
    """What eval.py wrote about a checkpoint; with several of them, each has a folder."""
    for path in sorted(folder.rglob(f"{split}.json")):
        result = json.loads(path.read_text())
        if result["model"] == str(checkpoint):
            return result
    raise Broken(f"'{folder}' holds no result of {checkpoint} for {split}")


def evaluate(checkpoints: list[Path], config: str, folder: Path, log: Path) -> list[dict]:
    """{split: {"accuracy", "n", "format", "length", "listed", "named"}} of each checkpoint, greedy."""
    models = ",".join(str(checkpoint) for checkpoint in checkpoints)
    call(["eval.py", config, f"--model={models}", f"--out_dir={folder}"], log)
    tables = []
    for checkpoint in checkpoints:
        table = {}
        for split in SPLITS:
            result = find_result(folder, split, checkpoint)
            table[split] = {key: round(result[key], 4) for key in ("accuracy", "n", "format", "length")}
            if split != "color":
                table[split] |= faithfulness(result)
        tables.append(table)
    return tables


# -----------------------------------------------------------------------------
# runs
# -----------------------------------------------------------------------------


def prepare(done: set) -> str:
    """The tiny model, the shared cold start, the distilled rows: once, before the arms."""
    log = Path(out_dir, "prepare.log")
    if not Path(out_dir, "model/config.json").exists():
        call(["qwen.py", f"{out_dir}/model"], log)
    if not Path(out_dir, "cold/ready").exists():
        command = ["train_sft.py", "configs/tiny_sft.py", "configs/study/cold.py"]
        call([*command, f"--out_dir={out_dir}/cold", f"--model={out_dir}/model", "--resume=False"], log)
        write(Path(out_dir, "cold/ready"), "")
    if not Path(out_dir, "distill/dataset").exists():
        call(["distill.py", "configs/study/distill.py", f"--out_dir={out_dir}/distill"], log)
    if ("cold", 0) not in done:
        (curve,) = evaluate([cold()], "configs/study/curve.py", Path(out_dir, "cold/curve"), log)
        (test,) = evaluate([cold()], "configs/study/test.py", Path(out_dir, "cold/test"), log)
        finish({"arm": "cold", "seed": 0, "curve": {0: curve}, "test": test})
    return f"{cold()} is what all arms start from"


def right_thoughts(entry: dict) -> list[str]:
    """The chains of thought of a row that end in the right answer, sorted, equal ones once."""
    thoughts = set()
    for output in entry["outputs"]:
        if output["accuracy"] and output["format"]:
            inside = output["text"].partition("<think>")[2].partition("</think>")[0]
            thoughts.add(inside.strip())
    return sorted(thoughts)


def keep_right(result: Path, source: str, folder: Path) -> tuple[Path, int]:
    """The right completions of an evaluation as rows of train_sft.py: (JSONL, how many)."""
    rows = data.load_rows(source)
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for entry in json.loads(result.read_text())["results"]:
        thoughts = right_thoughts(entry)
        if not thoughts:
            continue
        image = f"{entry['index']}.png"
        rows[entry["index"]]["images"][0].save(folder / image)
        question = {"image": image, "problem": entry["problem"], "solution": entry["solution"]}
        for thinking in thoughts:
            kept.append(json.dumps(question | {"thinking": thinking}) + "\n")
    write(folder / "rows.jsonl", "".join(kept))
    return folder / "rows.jsonl", len(kept)


def train_expert(command: list[str], folder: Path, seed: int, log: Path) -> tuple[dict, list[Path]]:
    """Expert iteration: sample, keep what is right, imitate (Anthony et al. 2017).

    With a language model, as here, it is STaR (Zelikman et al. 2022).
    """
    policy = cold()
    facts = {"sampling": 0.0, "training": 0.0, "kept": []}
    trained = []  # the policy after each round
    for r in range(ROUNDS):
        # the next 800 of the 3,200 scenes
        scenes = f"rows={PER_ROUND}&seed=2&first={r * PER_ROUND}&layout=grid&objects=1-8&jitter=0.25"
        source = f"scenes:clevr?{scenes}"
        sampling = [
            "eval.py",
            "configs/study/curve.py",
            f"--model={policy}",
            "--sources={'': ''}",
            f"--samples={DRAWS}",
            "--temperature=1.0",
            f"--seed={100 * seed + r}",
            "--max_completion_length=44",
            f"--data_source={source}",
            f"--out_dir={folder}/draws-{r}",
        ]
        facts["sampling"] += call(sampling, log)

        rows, kept = keep_right(folder / f"draws-{r}/eval.json", source, folder / f"rows-{r}")
        facts["kept"].append(kept)

        knobs = [f"--model={policy}", f"--data_source={rows}", f"--seed={seed}"]
        facts["training"] += call([*command, *knobs, f"--out_dir={folder}/round-{r}"], log)
        policy = last_step(folder / f"round-{r}")
        trained.append(policy)
    # at POINTS of the run: half of the first round, then the ends of rounds
    return facts, [folder / "round-0/step-000100", trained[0], trained[1], trained[3]]


def train(arm: str, folder: Path, seed: int, log: Path, *extra: str) -> tuple[dict, list[Path]]:
    """(CPU seconds by kind and other facts, the checkpoints of the curve)."""
    command = [*ARMS[arm][1], *extra]
    if arm == "filtered":
        command.append(f"--data_source={out_dir}/distill/dataset")
    if arm.startswith("expert"):
        return train_expert(command, folder, seed, log)
    seconds = call([*command, f"--seed={seed}", f"--out_dir={folder}/run"], log)
    steps = int(last_step(folder / "run").name.removeprefix("step-"))
    return {"training": seconds}, [folder / f"run/step-{int(steps * point):06d}" for point in POINTS]


def one_setting(arm: str, rate: float) -> str:
    """Half of the budget at this learning rate, with a seed that no run has; validation scenes only."""
    folder = Path(out_dir, "settings", f"{arm}-{rate:g}")
    log = folder / "log.txt"
    shutil.rmtree(folder, ignore_errors=True)
    half = 400 if ARMS[arm][1][0] == "train_sft.py" else 100
    knobs = [f"--learning_rate={rate}", f"--steps={half}", f"--model={cold()}"]
    _, checkpoints = train(arm, folder, 9, log, *knobs)
    (table,) = evaluate(checkpoints[-1:], "configs/study/curve.py", folder / "curve", log)
    finish({"setting": arm, "learning_rate": rate, "validation": table})
    return f"settings: {arm} at {rate:g}: {table['clevr']['accuracy']:.1%} on validation scenes"


def one_run(arm: str, seed: int, rate: float) -> str:
    """Train, measure the curve on validation scenes and the end on test scenes, and write that down."""
    folder = Path(out_dir, f"{arm}-s{seed}")
    log = folder / "log.txt"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run: its CPU seconds are not known
    facts, checkpoints = train(arm, folder, seed, log, f"--learning_rate={rate}", f"--model={cold()}")
    tables = evaluate(checkpoints, "configs/study/curve.py", folder / "curve", log)
    (test,) = evaluate(checkpoints[-1:], "configs/study/test.py", folder / "test", log)
    curve = {int(SAMPLES * point): table for point, table in zip(POINTS, tables, strict=True)}
    line = {"arm": arm, "seed": seed, "learning_rate": rate, "seconds": facts, "test": test, "curve": curve}
    finish(line)
    inside, outside = test["clevr"]["accuracy"], test["superclevr"]["accuracy"]
    return f"{arm} seed {seed}: {inside:.1%} in distribution, {outside:.1%} vehicles"


def missing_settings() -> list[tuple]:
    """Tasks for work(): the learning rates of each trainer that the record does not have."""
    tried = {(line["setting"], line["learning_rate"]) for line in recorded("setting")}
    tasks = []
    for script, rates in RATES.items():
        for arm in CHOSEN_BY[script]:
            tasks += [(one_setting, arm, rate) for rate in rates if (arm, rate) not in tried]
    return tasks


def missing_runs(wanted: list[str], numbers: list[int], done: set) -> list[tuple]:
    """Tasks for work(): all arms of a seed before the next seed, so that a table compares like with like."""
    tasks = []
    for seed in numbers:
        tasks += [(one_run, arm, seed, chosen_rate(arm)) for arm in wanted if (arm, seed) not in done]
    return tasks


def worker(core: int, todo: queue.SimpleQueue, finished: list) -> None:
    """Run tasks on one core until there are none; those that end well are added to `finished`."""
    os.sched_setaffinity(0, {core})  # of this thread; what it starts inherits that
    while True:
        try:
            function, *arguments = todo.get_nowait()
        except queue.Empty:
            return
        started = time.time()
        try:
            message = function(*arguments)
        except (Broken, SystemExit) as problem:
            print(f"study: {problem}", flush=True)
            continue
        finished.append(message)
        print(f"study: {message} ({time.time() - started:.0f} s, {todo.qsize()} to start)", flush=True)


def work(tasks: list[tuple]) -> None:
    """Run (function, arguments), `jobs` at a time, each on a core of its own. A failure stops no other."""
    todo, finished = queue.SimpleQueue(), []
    for task in tasks:
        todo.put(task)
    cores = sorted(os.sched_getaffinity(0))[: max(1, jobs)]
    threads = [threading.Thread(target=worker, args=(core, todo, finished)) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = len(tasks) - len(finished)
    if failed:
        raise SystemExit(
            f"study: {failed} of {len(tasks)} runs failed, the lines above say where; "
            "the same command tries them again"
        )


# -----------------------------------------------------------------------------
# statistics
# -----------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval) over seeds.

    t * sd / sqrt(n), with Student's t of n - 1 degrees of freedom
    """
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return mean, math.inf
    sd = np.std(values, ddof=1)
    return mean, float(student_t.ppf(0.975, n - 1) * sd / math.sqrt(n))


def difference(a: list[float], b: list[float]) -> tuple[float, float]:
    """(mean of a - mean of b, half width of its 95 % interval), Welch 1947: no equal variances, no pairs.

    t * sqrt(va + vb),  df = (va + vb)^2 / (va^2 / (na - 1) + vb^2 / (nb - 1))
    with the variances of the means, va = var(a) / na and vb = var(b) / nb
    """
    mean = float(np.mean(a) - np.mean(b))
    va = np.var(a, ddof=1) / len(a)
    vb = np.var(b, ddof=1) / len(b)
    if va + vb == 0:  # every run the same, as at 0 %
        return mean, 0.0
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return mean, float(student_t.ppf(0.975, df) * np.sqrt(va + vb))


def spread(shares: list[float]) -> str:
    """Mean and interval in %: "99.0 ± 0.5"; the mean alone if there is one run."""
    mean, half = interval([100 * share for share in shares])
    return f"{mean:.1f} ± {half:.1f}" if half < math.inf else f"{mean:.1f}"


# -----------------------------------------------------------------------------
# report
# -----------------------------------------------------------------------------

MEASURES = [*((split, "accuracy") for split in SPLITS), ("clevr", "named")]
MEASURE_TITLES = [*SPLITS.values(), "objects named rightly"]


def table_head(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]


def table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def measured(runs: list[dict], split: str, key: str) -> list[float]:
    """On test scenes, one value a run."""
    return [run["test"][split][key] for run in runs]


def accuracy_table(runs: dict[str, list[dict]]) -> list[str]:
    """Lines of Markdown: what the last checkpoints reach, and what they cost."""
    out = table_head(["arm", "runs", *MEASURE_TITLES, "tokens", "CPU s"])
    titles = {"cold": "the cold start"} | {arm: title for arm, (title, _) in ARMS.items()}
    for arm, title in titles.items():
        if arm not in runs:
            continue
        cells = [title, str(len(runs[arm]))]
        cells += [spread(measured(runs[arm], split, key)) for split, key in MEASURES]
        cells.append(f"{np.mean(measured(runs[arm], 'clevr', 'length')):.0f}")
        seconds = [run["seconds"] for run in runs[arm] if "seconds" in run]
        used = [one["training"] + one.get("sampling", 0) for one in seconds]
        cells.append(f"{np.mean(used):.0f}" if used else "")
        out.append(table_row(cells))
    return out


def difference_table(runs: dict[str, list[dict]]) -> list[str]:
    """Lines of Markdown: each arm against e), bold where the interval excludes 0."""
    out = ["", "Difference to e), points, with its 95 % interval (Welch):", ""]
    out += table_head(["arm", *MEASURE_TITLES])
    for arm, (title, _) in ARMS.items():
        if arm == "grpo" or len(runs.get(arm, [])) < 2:
            continue
        cells = [title]
        for split, key in MEASURES:
            values = [100 * value for value in measured(runs[arm], split, key)]
            grpo_values = [100 * value for value in measured(runs["grpo"], split, key)]
            mean, half = difference(values, grpo_values)
            shown = f"**{mean:+.1f}**" if abs(mean) > half else f"{mean:+.1f}"
            cells.append(f"{shown} ± {half:.1f}")
        out.append(table_row(cells))
    return out


def settings_table(settings: list[dict]) -> list[str]:
    """Lines of Markdown: how the learning rates were chosen."""
    out = [
        "",
        "Validation accuracy after half of the budget, 100 scenes each, one seed; "
        "the choice is by the first column:",
        "",
    ]
    out += table_head(["arm", "learning rate", *SPLITS.values()])
    for line in sorted(settings, key=lambda line: (line["setting"], line["learning_rate"])):
        arm, rate = line["setting"], line["learning_rate"]
        taken = " (taken)" if rate == chosen_rate(arm) else ""
        accuracies = [f"{100 * line['validation'][split]['accuracy']:.0f}" for split in SPLITS]
        out.append(table_row([ARMS[arm][0], f"{rate:g}{taken}", *accuracies]))
    return out


def tables(runs: dict[str, list[dict]]) -> str:
    """Markdown: accuracy by split, differences to GRPO, and how the learning rates were chosen."""
    out = accuracy_table(runs)
    if len(runs.get("grpo", [])) > 1:
        out += difference_table(runs)
    settings = recorded("setting")
    if settings:
        out += settings_table(settings)
    return "\n".join(out)


def draw_curve(ax, arm: str, color: str, curves: list[dict], start: float, split: str) -> None:
    """Validation accuracy of an arm in one split: the mean over its runs, and their range behind it."""
    samples = sorted(int(point) for point in curves[0])
    accuracies = [[100 * curve[str(point)][split]["accuracy"] for point in samples] for curve in curves]
    accuracies = np.array(accuracies)  # (runs, points)
    x = np.array([0, *samples]) / 1000
    mean = [start, *accuracies.mean(0)]
    low = [start, *accuracies.min(0)]
    high = [start, *accuracies.max(0)]
    width = 2.2 if arm == "grpo" else 1.5
    style = "--" if arm.endswith("_slow") else "-"
    ax.plot(x, mean, color=color, lw=width, ls=style, marker="o", ms=3, label=ARMS[arm][0])
    ax.fill_between(x, low, high, color=color, alpha=0.12, lw=0)


def figure(runs: dict[str, list[dict]], path: Path) -> None:
    """Validation accuracy against samples: imitation above, variants of GRPO below, all beside e)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = (
        ("teacher", "filtered", "perfect", "answers", "expert", "perfect_slow", "expert_slow"),
        ("no_format", "no_kl", "dr_grpo", "group_4", "group_16"),
    )
    with plt.rc_context(LOOK):
        fig, axes = plt.subplots(
            len(rows), len(SPLITS), figsize=(13, 5.6), sharex=True, sharey=True, layout="constrained"
        )
        for line, names in zip(axes, rows, strict=True):
            for ax, split in zip(line, SPLITS, strict=True):
                start = np.nan
                if "cold" in runs:
                    start = 100 * runs["cold"][0]["curve"]["0"][split]["accuracy"]
                for arm in ("grpo", *names):
                    if arm not in runs:
                        continue
                    color = INK if arm == "grpo" else PALETTE[names.index(arm.removesuffix("_slow"))]
                    draw_curve(ax, arm, color, [run["curve"] for run in runs[arm]], start, split)
            line[0].set_ylabel("accuracy, %")
            line[0].set_ylim(-3, 103)
            handles, labels = line[0].get_legend_handles_labels()
            line[-1].legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5))
        for column, title in enumerate(SPLITS.values()):
            axes[0][column].set_title(title, fontsize=9.5, color=INK)
            axes[-1][column].set_xlabel("thousand samples")
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=110)
        plt.close(fig)


def report() -> None:
    """The tables in the page beside the record, between their marks, and the figure."""
    runs = collections.defaultdict(list)
    for line in recorded("arm"):
        runs[line["arm"]].append(line)
    if not runs:
        raise SystemExit(f"report: '{record}' holds no run yet; run --stage=settings,run first")
    page = Path(record).with_suffix(".md")
    text = page.read_text() if page.exists() else "<!-- tables -->\n<!-- end of tables -->\n"
    new = tables(runs)
    text = re.sub(
        r"(<!-- tables -->\n).*?(<!-- end of tables -->)",
        lambda marks: f"{marks[1]}{new}\n{marks[2]}",
        text,
        flags=re.DOTALL,
    )
    write(page, text)
    figure(runs, page.with_suffix(".png"))
    total = sum(len(of_arm) for of_arm in runs.values())
    print(f"report: {page}, {page.with_suffix('.png')}, {total} runs")


# -----------------------------------------------------------------------------
# main
# -----------------------------------------------------------------------------


def check_names(knob: str, values: list[str], legal: tuple) -> None:
    for value in values:
        if value not in legal:
            raise SystemExit(f"{knob}: '{value}' is none of {', '.join(legal)}")


if __name__ == "__main__":
    configure(globals(), sys.argv[1:], __file__)
    stages = stage.split(",")
    check_names("stage", stages, ("settings", "run", "report"))
    wanted = [arm for arm in arms.split(",") if arm] or list(ARMS)
    check_names("arms", wanted, tuple(ARMS))
    if not all(part.strip().isdigit() for part in seeds.split(",")):
        raise SystemExit(f"seeds: '{seeds}' is no list of numbers; write --seeds=0,1,2")
    numbers = [int(part) for part in seeds.split(",")]

    os.chdir(ROOT)  # the paths of the config block, of configs/study/ and of the commands begin there
    done = {(line["arm"], line["seed"]) for line in recorded("arm")}
    if "settings" in stages or "run" in stages:
        work([(prepare, done)])
    if "settings" in stages:
        work(missing_settings())
    if "run" in stages:
        work(missing_runs(wanted, numbers, done))
    if "report" in stages:
        report()
