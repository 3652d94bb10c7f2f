"""The study: does reinforcement learning with verifiable rewards beat imitation? All of docs/study.md from one command.

From one cold start, each arm sees 25,600 samples: supervised rows, or completions of GRPO. Every run has one CPU core to itself and is a
command of this repository (the arms are files in configs/study/); this script runs those that docs/study.jsonl does not hold yet.

    python -m experiments.study                          # everything that is missing: about 3 hours on 2 cores; killed, it goes on with the next run
    python -m experiments.study --arms=answers,grpo --seeds=0
    python -m experiments.study --stage=report           # the table and the figure again, from docs/study.jsonl

Stages: settings (a learning rate for each trainer, on validation scenes), run, report.
Writes out/study/ (checkpoints, logs), docs/study.jsonl (one line a run), docs/study.png, and the tables in docs/study.md.
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
from urllib.parse import parse_qsl

import numpy as np
from scipy.stats import t

import data
from configurator import configure
from report import INK, LOOK, PALETTE
from results import write

# fmt: off
# -----------------------------------------------------------------------------
# default config: the whole study; override with  study.py --key=value
stage = "settings,run,report"
arms = ""                 # 'answers,grpo'; '' = all
seeds = "0,1,2"
jobs = 2                  # runs side by side, one core each (2.5 GiB of memory each)
out_dir = "out/study"
record = "docs/study.jsonl"
# -----------------------------------------------------------------------------
# fmt: on

SFT = ["train_sft.py", "configs/tiny_sft.py", "configs/study/sft.py"]
GRPO = ["train_grpo.py", "configs/tiny.py", "configs/study/grpo.py"]
ARMS = {  # name: (title, command)
    "teacher": ("a) SFT, fallible teacher's chains", [*SFT, "configs/study/teacher.py"]),
    "filtered": ("a') SFT, those that end in the true count", [*SFT, "configs/study/filtered.py"]),
    "perfect": ("b) SFT, perfect chains", [*SFT, "configs/study/perfect.py"]),
    "answers": ("c) SFT, true counts without chains", [*SFT, "configs/study/answers.py"]),
    "expert": ("d) expert iteration, own right samples", [*SFT, "configs/study/expert.py"]),
    "perfect_slow": ("b') as b), at GRPO's learning rate", [*SFT, "configs/study/perfect.py"]),
    "expert_slow": ("d') as d), at GRPO's learning rate", [*SFT, "configs/study/expert.py"]),
    "grpo": ("e) GRPO, accuracy + format reward", GRPO),
    "no_format": ("f) GRPO, accuracy reward only", [*GRPO, "configs/study/no_format.py"]),
    "no_kl": ("g) GRPO without KL", [*GRPO, "configs/study/no_kl.py"]),
    "dr_grpo": ("h) Dr. GRPO", [*GRPO, "configs/study/dr_grpo.py"]),
    "group_4": ("i) GRPO, G = 4", [*GRPO, "configs/study/group_4.py"]),
    "group_16": ("i) GRPO, G = 16", [*GRPO, "configs/study/group_16.py"]),
}
SPLITS = {
    "clevr": "in distribution",
    "cogent_b": "CoGenT B",
    "superclevr": "vehicles",
    "more_objects": "9-12 objects",
    "color": "colour questions",
}
SAMPLES = 25_600
POINTS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the run, where the curve is measured
ROUNDS, PER_ROUND, DRAWS = 4, 800, 8  # expert iteration: rounds, scenes of each, completions a scene
RATES = {"train_sft.py": (5e-4, 1e-3, 2e-3), "train_grpo.py": (2e-4, 4e-4, 8e-4)}
CHOSEN_BY = {
    "train_sft.py": ("perfect", "answers"),
    "train_grpo.py": ("grpo",),
}  # arms whose validation accuracy chooses the rate


class Broken(Exception):
    """A command failed; the text says where its output is."""


def call(command: list[str], log: Path) -> float:
    """Run a script of this repository; CPU seconds of it and its children. Raises Broken if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with open(log, "a") as file:
        print(f"\n$ python {' '.join(command)}", file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env
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


# -----------------------------------------------------------------------------
# what a run is judged by
# -----------------------------------------------------------------------------


def listed(text: str) -> list[str]:
    """What the chain of thought lists, sorted: ["blue sphere", "red cube"]."""
    found = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
    return sorted(part.strip() for part in found[1].split(",")) if found else []


def faithfulness(result: dict) -> dict:
    """Does the chain of thought list the objects of the scene, by colour and shape? {"listed", "named"}, means over the rows.

    listed: all of them and no other.  named: |said and there| / max(|said|, |there|), both as multisets.
    """
    split, _, options = result["source"].removeprefix("scenes:").partition("?")
    records, right, overlap = data.SceneRecords(split, **dict(parse_qsl(options))), 0, 0.0
    for entry in result["results"]:
        said = listed(entry["outputs"][0]["text"])
        there = sorted(f"{o['color']} {o['shape']}" for o in records.scene(entry["index"])["objects"])
        right += said == there
        overlap += (collections.Counter(said) & collections.Counter(there)).total() / max(
            len(said), len(there)
        )
    n = len(result["results"])
    return {"listed": round(right / n, 4), "named": round(overlap / n, 4)}


def evaluate(checkpoints: list[Path], config: str, folder: Path, log: Path) -> list[dict]:
    """{split: {"accuracy", "n", "format", "length", "listed", "named"}} of each checkpoint, greedy."""
    call(["eval.py", config, f"--model={','.join(map(str, checkpoints))}", f"--out_dir={folder}"], log)
    tables = []
    for checkpoint in checkpoints:
        tables.append({})
        for split in SPLITS:
            found = sorted(folder.rglob(f"{split}.json"))
            result = next(
                r for r in (json.loads(path.read_text()) for path in found) if r["model"] == str(checkpoint)
            )
            tables[-1][split] = {k: round(result[k], 4) for k in ("accuracy", "n", "format", "length")}
            if split != "color":
                tables[-1][split] |= faithfulness(result)
    return tables


# -----------------------------------------------------------------------------
# runs
# -----------------------------------------------------------------------------


def keep_right(result: Path, source: str, folder: Path) -> tuple[Path, int]:
    """Right completions of an evaluation as rows of train_sft.py, equal ones of a scene once: (JSONL, how many)."""
    rows, lines = data.load_rows(source), []
    folder.mkdir(parents=True, exist_ok=True)
    for entry in json.loads(result.read_text())["results"]:
        thoughts = {
            o["text"].partition("<think>")[2].partition("</think>")[0].strip()
            for o in entry["outputs"]
            if o["accuracy"] and o["format"]
        }
        if thoughts:
            image = folder / f"{entry['index']}.png"
            rows[entry["index"]]["images"][0].save(image)
            lines += [
                {
                    "image": image.name,
                    "problem": entry["problem"],
                    "solution": entry["solution"],
                    "thinking": thinking,
                }
                for thinking in sorted(thoughts)
            ]
    write(folder / "rows.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder / "rows.jsonl", len(lines)


def train_expert(command: list[str], folder: Path, seed: int, log: Path) -> tuple[dict, list[Path]]:
    """Expert iteration (Anthony et al. 2017; with a language model STaR, Zelikman et al. 2022): sample, keep what is right, imitate."""
    policy, facts, checkpoints = cold(), {"sampling": 0.0, "training": 0.0, "kept": []}, []
    for r in range(ROUNDS):
        # the next 800 of the 3,200 scenes
        source = (
            f"scenes:clevr?rows={PER_ROUND}&seed=2&first={r * PER_ROUND}&layout=grid&objects=1-8&jitter=0.25"
        )
        draws = [
            f"--samples={DRAWS}",
            "--temperature=1.0",
            f"--seed={100 * seed + r}",
            "--max_completion_length=44",
        ]
        facts["sampling"] += call(
            [
                "eval.py",
                "configs/study/curve.py",
                f"--model={policy}",
                "--sources={'': ''}",
                *draws,
                f"--data_source={source}",
                f"--out_dir={folder}/draws-{r}",
            ],
            log,
        )
        rows, kept = keep_right(folder / f"draws-{r}/eval.json", source, folder / f"rows-{r}")
        facts["kept"].append(kept)
        facts["training"] += call(
            [
                *command,
                f"--model={policy}",
                f"--data_source={rows}",
                f"--seed={seed}",
                f"--out_dir={folder}/round-{r}",
            ],
            log,
        )
        policy = last_step(folder / f"round-{r}")
        if r == 0:
            checkpoints.append(folder / "round-0/step-000100")
        if r in (0, 1, 3):
            checkpoints.append(policy)
    return facts, checkpoints


def train(arm: str, folder: Path, seed: int, log: Path, *extra: str) -> tuple[dict, list[Path]]:
    """(CPU seconds by kind and other facts, the checkpoints of the curve)."""
    command = [
        *ARMS[arm][1],
        *extra,
        *([f"--data_source={out_dir}/distill/dataset"] if arm == "filtered" else []),
    ]
    if arm.startswith("expert"):
        return train_expert(command, folder, seed, log)
    seconds = call([*command, f"--seed={seed}", f"--out_dir={folder}/run"], log)
    steps = int(last_step(folder / "run").name.removeprefix("step-"))
    return {"training": seconds}, [folder / f"run/step-{int(steps * point):06d}" for point in POINTS]


def cold() -> Path:
    return last_step(Path(out_dir, "cold"))


def prepare(done: dict) -> str:
    """The tiny model, the shared cold start, the distilled rows: once, before the arms."""
    log = Path(out_dir, "prepare.log")
    if not Path(out_dir, "model/config.json").exists():
        call(["qwen.py", f"{out_dir}/model"], log)
    if not Path(out_dir, "cold/ready").exists():
        call(
            [
                "train_sft.py",
                "configs/tiny_sft.py",
                "configs/study/cold.py",
                f"--out_dir={out_dir}/cold",
                f"--model={out_dir}/model",
                "--resume=False",
            ],
            log,
        )
        write(Path(out_dir, "cold/ready"), "")
    if not Path(out_dir, "distill/dataset").exists():
        call(["distill.py", "configs/study/distill.py", f"--out_dir={out_dir}/distill"], log)
    if ("cold", 0) not in done:
        (curve,) = evaluate([cold()], "configs/study/curve.py", Path(out_dir, "cold/curve"), log)
        (test,) = evaluate([cold()], "configs/study/test.py", Path(out_dir, "cold/test"), log)
        finish({"arm": "cold", "seed": 0, "curve": {0: curve}, "test": test})
    return f"{cold()} is what all arms start from"


writing = threading.Lock()


def finish(line: dict) -> None:
    """Append one run to the record."""
    line |= {"date": datetime.date.today().isoformat()}
    with writing, open(record, "a") as file:
        file.write(json.dumps(line) + "\n")


def lines() -> list[dict]:
    path = Path(record)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def one_run(arm: str, seed: int, rate: float) -> str:
    """Train, measure the curve on validation scenes, the last checkpoint on the test scenes; and write that down."""
    folder = Path(out_dir, f"{arm}-s{seed}")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run: its CPU seconds are not known
    log = folder / "log.txt"
    facts, checkpoints = train(arm, folder, seed, log, f"--learning_rate={rate}", f"--model={cold()}")
    curve = evaluate(checkpoints, "configs/study/curve.py", folder / "curve", log)
    (test,) = evaluate(checkpoints[-1:], "configs/study/test.py", folder / "test", log)
    finish(
        {
            "arm": arm,
            "seed": seed,
            "learning_rate": rate,
            "seconds": facts,
            "test": test,
            "curve": {int(SAMPLES * p): c for p, c in zip(POINTS, curve, strict=True)},
        }
    )
    return f"{arm} seed {seed}: {test['clevr']['accuracy']:.1%} in distribution, {test['superclevr']['accuracy']:.1%} vehicles"


def one_setting(arm: str, rate: float) -> str:
    """Half of the budget at this learning rate, with a seed that no run of the study has; validation scenes only."""
    folder = Path(out_dir, "settings", f"{arm}-{rate:g}")
    shutil.rmtree(folder, ignore_errors=True)
    half = 400 if ARMS[arm][1][0] == "train_sft.py" else 100
    _, checkpoints = train(
        arm, folder, 9, folder / "log.txt", f"--learning_rate={rate}", f"--steps={half}", f"--model={cold()}"
    )
    (table,) = evaluate(checkpoints[-1:], "configs/study/curve.py", folder / "curve", folder / "log.txt")
    finish({"setting": arm, "learning_rate": rate, "validation": table})
    return f"settings: {arm} at {rate:g}: {table['clevr']['accuracy']:.1%} on validation scenes"


def chosen_rate(arm: str) -> float:
    """The rate with the best mean validation accuracy in distribution over the arms that choose for its trainer; of equals the smaller."""
    script = "train_grpo.py" if arm.endswith("_slow") else ARMS[arm][1][0]
    points = collections.defaultdict(list)
    for line in lines():
        if line.get("setting") in CHOSEN_BY[script]:
            points[line["learning_rate"]].append(line["validation"]["clevr"]["accuracy"])
    if set(points) != set(RATES[script]):
        raise SystemExit(f"study: no learning rate is chosen for {script} yet; run --stage=settings first")
    return max(sorted(points), key=lambda rate: sum(points[rate]) / len(points[rate]))


def work(tasks: list) -> None:
    """Run the tasks (function, arguments), `jobs` at a time, each bound to a core of its own; failures are told and left out."""
    todo, failed, cores = queue.SimpleQueue(), [], sorted(os.sched_getaffinity(0))
    for task in tasks:
        todo.put(task)

    def worker(core: int) -> None:
        os.sched_setaffinity(0, {core})  # of this thread; what it starts inherits that
        while not todo.empty():
            try:
                function, *arguments = todo.get_nowait()
            except queue.Empty:
                return
            started = time.time()
            try:
                print(
                    f"study: {function(*arguments)} ({time.time() - started:.0f} s, {todo.qsize()} to start)",
                    flush=True,
                )
            except Broken as problem:
                failed.append(str(problem))
                print(f"study: {problem}", flush=True)

    threads = [threading.Thread(target=worker, args=(core,)) for core in cores[: max(1, jobs)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(
            f"study: {len(failed)} of {len(tasks)} runs failed, the lines above say where; the same command tries them again"
        )


# -----------------------------------------------------------------------------
# report
# -----------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval) over seeds: t * sd / sqrt(n), with Student's t of n - 1 degrees of freedom."""
    n, mean = len(values), float(np.mean(values))
    return mean, float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.inf


def difference(a: list[float], b: list[float]) -> tuple[float, float]:
    """(mean of a - mean of b, half width of its 95 % interval), Welch 1947: no equal variances, no pairs.

    t * sqrt(va / na + vb / nb),  df = (va / na + vb / nb)^2 / ((va / na)^2 / (na - 1) + (vb / nb)^2 / (nb - 1))
    """
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    if va + vb == 0:  # every run the same, as at 0 %
        return float(np.mean(a) - np.mean(b)), 0.0
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return float(np.mean(a) - np.mean(b)), float(t.ppf(0.975, df) * np.sqrt(va + vb))


def spread(values: list[float]) -> str:
    mean, half = interval([100 * v for v in values])
    return f"{mean:.1f} ± {half:.1f}" if half < math.inf else f"{mean:.1f}"


def tables(runs: dict[str, list[dict]]) -> str:
    """Markdown: accuracy by split, differences to GRPO, and how the learning rates were chosen."""
    head = [*SPLITS.values(), "objects named rightly", "tokens", "CPU s"]
    out = ["| arm | runs | " + " | ".join(head) + " |", "|---|---|" + "---|" * len(head)]
    for arm in ["cold", *ARMS]:
        if arm not in runs:
            continue
        test = [r["test"] for r in runs[arm]]
        cells = [spread([one[s]["accuracy"] for one in test]) for s in SPLITS] + [
            spread([one["clevr"]["named"] for one in test])
        ]
        cells += [f"{np.mean([one['clevr']['length'] for one in test]):.0f}"]
        used = [
            r["seconds"]["training"] + r["seconds"].get("sampling", 0) for r in runs[arm] if "seconds" in r
        ]
        cells += [f"{np.mean(used):.0f}" if used else ""]
        out.append(
            f"| {ARMS[arm][0] if arm in ARMS else 'the cold start'} | {len(test)} | {' | '.join(cells)} |"
        )
    grpo, head = [r["test"] for r in runs.get("grpo", [])], [*SPLITS.values(), "objects named rightly"]
    if len(grpo) > 1:
        out += [
            "",
            "Difference to e), points, with its 95 % interval (Welch):",
            "",
            f"| arm | {' | '.join(head)} |",
            "|---|" + "---|" * len(head),
        ]
        for arm in ARMS:
            if arm != "grpo" and len(runs.get(arm, [])) > 1:
                test, cells = [r["test"] for r in runs[arm]], []
                for split, key in [(s, "accuracy") for s in SPLITS] + [("clevr", "named")]:
                    mean, half = difference(
                        [100 * one[split][key] for one in test], [100 * one[split][key] for one in grpo]
                    )
                    cells.append(
                        ("**{:+.1f}** ± {:.1f}" if abs(mean) > half else "{:+.1f} ± {:.1f}").format(
                            mean, half
                        )
                    )
                out.append(f"| {ARMS[arm][0]} | {' | '.join(cells)} |")
    settings = [line for line in lines() if "setting" in line]
    if settings:
        out += [
            "",
            "Validation accuracy after half of the budget, 100 scenes each, one seed; the choice is by the first column:",
            "",
            f"| arm | learning rate | {' | '.join(SPLITS.values())} |",
            "|---|---|" + "---|" * len(SPLITS),
        ]
        for line in sorted(settings, key=lambda line: (line["setting"], line["learning_rate"])):
            taken = " (taken)" if line["learning_rate"] == chosen_rate(line["setting"]) else ""
            cells = " | ".join(f"{100 * line['validation'][split]['accuracy']:.0f}" for split in SPLITS)
            out.append(f"| {ARMS[line['setting']][0]} | {line['learning_rate']:g}{taken} | {cells} |")
    return "\n".join(out)


def figure(runs: dict[str, list[dict]], path: Path) -> None:
    """Validation accuracy against samples: a panel for each split, supervised arms above, variants of GRPO below, all beside e)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = (
        ("teacher", "filtered", "perfect", "answers", "expert", "perfect_slow", "expert_slow"),
        ("no_format", "no_kl", "dr_grpo", "group_4", "group_16"),
    )
    with plt.rc_context(LOOK):
        fig, axes = plt.subplots(
            2, len(SPLITS), figsize=(13, 5.6), sharex=True, sharey=True, layout="constrained"
        )
        for row, (line, names) in enumerate(zip(axes, rows, strict=True)):
            for ax, split in zip(line, SPLITS, strict=True):
                for arm in ("grpo", *names):
                    if arm not in runs:
                        continue
                    curves = [r["curve"] for r in runs[arm]]
                    at = sorted(map(int, curves[0]))
                    values = np.array(
                        [[100 * c[str(x)][split]["accuracy"] for x in at] for c in curves]
                    )  # (runs, points)
                    start = (
                        100 * runs["cold"][0]["curve"]["0"][split]["accuracy"] if "cold" in runs else np.nan
                    )
                    color = INK if arm == "grpo" else PALETTE[names.index(arm.removesuffix("_slow"))]
                    x, y = np.array([0, *at]) / 1000, np.array([start, *values.mean(0)])
                    width, style = 2.2 if arm == "grpo" else 1.5, "--" if arm.endswith("_slow") else "-"
                    ax.plot(x, y, color=color, lw=width, ls=style, marker="o", ms=3, label=ARMS[arm][0])
                    ax.fill_between(
                        x, [start, *values.min(0)], [start, *values.max(0)], color=color, alpha=0.12, lw=0
                    )
                if row == 0:
                    ax.set_title(SPLITS[split], fontsize=9.5, color=INK)
                else:
                    ax.set_xlabel("thousand samples")
            line[0].set_ylabel("accuracy, %")
            line[0].set_ylim(-3, 103)
            handles, labels = line[0].get_legend_handles_labels()
            line[-1].legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=110)
        plt.close(fig)


if __name__ == "__main__":
    config = configure(globals(), sys.argv[1:], __file__)
    stages, wanted = stage.split(","), [a for a in arms.split(",") if a] or list(ARMS)
    for name, values, legal in (
        ("stage", stages, ("settings", "run", "report")),
        ("arms", wanted, tuple(ARMS)),
    ):
        for value in values:
            if value not in legal:
                raise SystemExit(f"{name}: '{value}' is none of {', '.join(legal)}")
    if not all(part.strip().isdigit() for part in seeds.split(",")):
        raise SystemExit(f"seeds: '{seeds}' is no list of numbers; write --seeds=0,1,2")
    numbers = [int(part) for part in seeds.split(",")]
    done = {(line["arm"], line["seed"]): line for line in lines() if "arm" in line}
    if {"settings", "run"} & set(stages):
        work([(prepare, done)])
    if "settings" in stages:
        tried = {(line["setting"], line["learning_rate"]) for line in lines() if "setting" in line}
        work(
            [
                (one_setting, arm, rate)
                for script in RATES
                for arm in CHOSEN_BY[script]
                for rate in RATES[script]
                if (arm, rate) not in tried
            ]
        )
    if "run" in stages:
        # all arms of a seed before the next seed: stopped at any time, the table compares like with like
        work(
            [
                (one_run, arm, seed, chosen_rate(arm))
                for seed in numbers
                for arm in wanted
                if (arm, seed) not in done
            ]
        )
    if "report" in stages:
        runs = collections.defaultdict(list)
        for line in lines():
            if "arm" in line:
                runs[line["arm"]].append(line)
        if not runs:
            raise SystemExit(f"report: '{record}' holds no run yet; run --stage=settings,run first")
        page = Path(record).with_suffix(".md")
        text = page.read_text() if page.exists() else "<!-- tables -->\n<!-- end of tables -->\n"
        text = re.sub(
            r"(<!-- tables -->\n).*?(<!-- end of tables -->)",
            lambda m: f"{m[1]}{tables(runs)}\n{m[2]}",
            text,
            flags=re.DOTALL,
        )
        write(page, text)
        figure(runs, page.with_suffix(".png"))
        print(f"report: {page}, {page.with_suffix('.png')}, {sum(map(len, runs.values()))} runs")
