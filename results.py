"""Result files of evaluations: grade outputs, statistics, tables; grade old files again, compare two of them.

Used by eval.py; needs neither torch nor vLLM. An entry is one row with its outputs:

    {"index": 0, "id": "clevr/17", "problem": "...", "solution": "3", "task": "count",
     "outputs": [{"text": "...", "answer": "3", "accuracy": 1.0, "lenient": 1.0, "format": 1.0, "tokens": 18, "finished": true}]}
"""

import json
import math
import re
import zlib
from collections import Counter
from pathlib import Path

import rewards

METRICS = (
    "accuracy",
    "lenient",
    "published",
)  # strict tag; any clear answer; the rule of the benchmark's original script
FACTS = (
    "id",
    "problem",
    "solution",
    "task",
    "options",
    "labels",
    "image_size",
    "box_frame",
)  # of a row, kept for grading again

# -----------------------------------------------------------------------------
# statistics
# -----------------------------------------------------------------------------


def wilson(correct: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval (low, high) of a proportion p = correct / n, at 95 % confidence for z = 1.96.

        ( p + z^2/2n  -+  z * sqrt(p (1 - p) / n + z^2 / 4n^2) ) / (1 + z^2/n)

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22. Unlike p -+ z * sd
    it stays within [0, 1] and does not shrink to a point at 0 % and 100 %, where small test sets end up.
    """
    if n <= 0:
        return 0.0, 1.0  # nothing seen, nothing known
    p, zz = correct / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return max(0.0, (p + zz / 2 - half) / (1 + zz)), min(1.0, (p + zz / 2 + half) / (1 + zz))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k completions is right, from n >= k completions of which `correct` are.

        1 - C(n - correct, k) / C(n, k)

    Chen et al. 2021, "Evaluating large language models trained on code", equation 1: unbiased, unlike 1 - (1 - correct/n)^k.

    >>> pass_at_k(5, 2, 2)    # of the 10 pairs 3 hold none of the 2 right ones
    0.7
    """
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: are rows that only A has right as frequent as rows that only B has right?

        p = min(1, 2 * sum_{i <= min(a, b)} C(a + b, i) / 2^(a + b))

    McNemar 1947, Psychometrika 12; the exact form is a sign test on the rows that flipped: those on which both agree say nothing.

    >>> mcnemar(1, 7)
    0.0703125
    """
    flipped = only_a + only_b
    return min(1.0, 2 * sum(math.comb(flipped, i) for i in range(min(only_a, only_b) + 1)) / 2**flipped)


def paired_interval(only_a: int, only_b: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval (low, high) of accuracy B - accuracy A on the same n rows.

        p = (only_b + 1) / (n + 2),  q = (only_a + 1) / (n + 2),  p - q -+ z * sqrt((p + q - (p - q)^2) / (n + 2))

    Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data", JEBS 37.
    """
    p, q = (only_b + 1) / (n + 2), (only_a + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def majority(outputs: list[dict]) -> float:
    """1.0 if the most frequent tagged answer is right: self-consistency (Wang et al. 2022). Of equals the first one counts."""
    answers = [rewards.extract_answer(o["text"], strict=True) for o in outputs]
    votes = Counter(rewards.clean(a).casefold() for a in answers if a)
    winner = votes.most_common(1)[0][0] if votes else None
    right = (
        o["accuracy"]
        for a, o in zip(answers, outputs, strict=True)
        if a and rewards.clean(a).casefold() == winner
    )
    return next(right, 0.0)


# -----------------------------------------------------------------------------
# entries -> figures
# -----------------------------------------------------------------------------


def grade(entry: dict, rule=None) -> dict:
    """The entry with a verdict on each output: answer, accuracy, format, lenient, and published if the benchmark has a rule."""
    for o in entry["outputs"]:
        o["answer"] = rewards.extract_answer(o["text"], strict=False)
        o |= rewards.score(
            o["text"], {**entry, "reward_func": None}, names=("accuracy", "format")
        )  # whatever the row was paid for
        o["lenient"] = rewards.accuracy_reward(o["text"], entry, strict=False)
        if rule:
            o["published"] = float(rule(o["text"], entry))
    return entry


def mean(entries: list[dict], key: str) -> float | None:
    """Mean over all outputs that have the key; None if none has."""
    values = [o[key] for e in entries for o in e["outputs"] if o.get(key) is not None]
    return sum(values) / len(values) if values else None


def share(entries: list[dict], key: str) -> dict:
    """{key: accuracy, "n", "interval"}; the interval counts rows, not outputs: k samples of one row are not k facts."""
    value = mean(entries, key)
    return {key: value, "n": len(entries), "interval": list(wilson(value * len(entries), len(entries)))}


def categories(entries: list[dict]) -> dict:
    """{category: {value: share}} over the rows' labels, their task, and the true count of counting rows."""
    groups = {}
    for e in entries:
        count = {"count": e["solution"]} if e["task"] == "count" and e["solution"].isdigit() else {}
        for key, value in {"task": e["task"], **count, **(e.get("labels") or {})}.items():
            groups.setdefault(key, {}).setdefault(str(value), []).append(e)

    def order(value):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", value)]  # 2 before 10

    return {
        key: {v: share(values[v], "accuracy") for v in sorted(values, key=order)}
        for key, values in groups.items()
        if len(values) > 1
    }


def summary(entries: list[dict], skipped: int = 0) -> dict:
    """All figures of a list of graded entries (at least one)."""
    found = (
        share(entries, "accuracy")
        | {"skipped": skipped}
        | {k: mean(entries, k) for k in ("lenient", "format")}
    )
    found |= {"length": mean(entries, "tokens"), "finished": mean(entries, "finished")}
    if mean(entries, "published") is not None:
        found["published"] = mean(entries, "published")
    samples = min(len(e["outputs"]) for e in entries)
    if samples > 1:
        right = [sum(o["accuracy"] == 1 for o in e["outputs"][:samples]) for e in entries]
        found["majority"] = sum(majority(e["outputs"]) for e in entries) / len(entries)
        ks = sorted({2**i for i in range(samples.bit_length())} | {samples})
        found["pass_at_k"] = {str(k): sum(pass_at_k(samples, c, k) for c in right) / len(right) for k in ks}
    return found | {"categories": categories(entries)}


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def print_table(table: dict[str, dict], with_categories: bool = False, say=print) -> None:
    """One line per benchmark, and under it one per category if asked for."""
    ks = list(
        dict.fromkeys(k for t in table.values() for k in t.get("pass_at_k", {}))
    )  # empty for one sample per row
    more = [f"maj@{ks[-1]}", *(f"pass@{k}" for k in ks[1:])] if ks else []

    def left(name, t):
        return (
            f"{name:<20}{t['n']:>7}{percent(t['accuracy']):>10}{' - '.join(map(percent, t['interval'])):>17}"
        )

    titles = ["lenient", "published", "format", "length", "skipped", *more]
    say(
        f"{'source':<20}{'n':>7}{'accuracy':>10}{'95 % interval':>17}"
        + "".join(f"{title:>10}" for title in titles)
    )
    for name, t in table.items():
        cells = [percent(t.get(key)) for key in ("lenient", "published", "format")]
        cells += ["-" if t["length"] is None else f"{t['length']:.1f}", t["skipped"]]
        cells += (
            [percent(x) for x in (t.get("majority"), *(t.get("pass_at_k", {}).get(k) for k in ks[1:]))]
            if ks
            else []
        )
        say(left(name, t) + "".join(f"{cell:>10}" for cell in cells))
        for category, values in t["categories"].items() if with_categories else ():
            for value, v in values.items():
                say(left(f"  {category} {value}"[:19], v))


# -----------------------------------------------------------------------------
# files
# -----------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    """Whole or not at all. SystemExit, one sentence, if the folder cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(
            text, encoding="utf-8", errors="replace"
        )  # half a surrogate pair in an output is no reason to fail
        temporary.replace(path)
    except OSError as error:
        raise SystemExit(
            f"out_dir: cannot write '{path}' ({error.strerror}); name another folder with --out_dir"
        ) from error


def write_results(folder: Path, name: str, record: dict) -> None:
    """name.json in our layout, and name.seed.json in the layout that R1-V and OpenV-R1 publish (accuracy in %, one result per output)."""
    write(folder / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False))
    key = "published" if record.get("published") is not None else "accuracy"
    flat = [
        {
            "question": e["problem"],
            "ground_truth": e["solution"],
            "model_output": o["text"],
            "extracted_answer": o["answer"],
            "is_correct": o[key] == 1,
        }
        for e in record["results"]
        for o in e["outputs"]
    ]
    write(
        folder / f"{name}.seed.json",
        json.dumps({"accuracy": 100 * record[key], "results": flat}, indent=1, ensure_ascii=False),
    )


def lines_of(path: Path) -> list[dict]:
    """The records of a JSONL; a line that is none (the last one of a killed run) is left out."""
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            records.append(json.loads(line))
        except ValueError:  # of JSON and of UTF-8
            continue
    return [r for r in records if isinstance(r, dict)]


def read_progress(folder: Path, name: str, knobs: dict) -> dict[int, dict]:
    """{index: entry, or {"index", "skipped": reason}} of what earlier runs of the same evaluation have finished.

    Raises SystemExit, one sentence, if the files there are of an evaluation with other knobs: its numbers must not mix with ours.
    """
    done, now = {}, json.loads(json.dumps(knobs))  # tuples become lists, as in the files
    for path in [folder / f"{name}.json", *sorted(folder.glob("*.part-*.jsonl"))]:
        if not path.exists() or path.suffix == ".jsonl" and path.name.rpartition(".part-")[0] != name:
            continue
        records = [json.loads(path.read_text(encoding="utf-8"))] if path.suffix == ".json" else lines_of(path)
        before = records[0].get("knobs") if records else None
        for key in now:
            if records and (before is None or before.get(key) != now[key]):
                was = (
                    "of an older version"
                    if before is None
                    else f"with {key}={before.get(key)!r}, now it is {now[key]!r}"
                )
                raise SystemExit(
                    f"out_dir: '{path}' holds an evaluation {was}; use another --out_dir, or --resume=False to start over"
                )
        if path.suffix == ".json":
            records = records[0]["results"] + [
                {"index": int(i), "skipped": why} for i, why in records[0]["skipped_rows"].items()
            ]
        done |= {r["index"]: r for r in records if "index" in r}
    return done


class Progress:
    """Appends what a process has finished to name.part-RANK.jsonl, a batch at a time, so that a killed run loses one batch at most."""

    def __init__(self, folder: Path, name: str, rank: int, knobs: dict):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.part-{rank}.jsonl"
        text = self.path.read_bytes() if self.path.exists() else b""
        self.file = open(self.path, "a", encoding="utf-8", errors="replace")  # noqa: SIM115  (open for the whole benchmark)
        if not lines_of(self.path):
            self.add([{"knobs": knobs}])
        elif not text.endswith(b"\n"):
            self.file.write("\n")  # after a torn last line

    def add(self, records: list[dict]) -> None:
        self.file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
        self.file.flush()


def forget(folder: Path, name: str, parts_only: bool = False) -> None:
    """Remove the progress files of a source, and its results too unless parts_only."""
    parts = [p for p in folder.glob("*.part-*.jsonl") if p.name.rpartition(".part-")[0] == name]
    for path in parts if parts_only else [*parts, folder / f"{name}.json", folder / f"{name}.seed.json"]:
        path.unlink(missing_ok=True)


def fingerprint(path: str) -> str:
    """Changes with the weights of a checkpoint folder: CRC of its size and of the end of every weight file, a moment even for 70 GB."""
    crc = 0
    for file in sorted(Path(path).glob("*.safetensors")):
        with open(file, "rb") as f:
            f.seek(max(0, file.stat().st_size - 2**20))
            crc = zlib.crc32(f.read(), crc + file.stat().st_size & 0xFFFFFFFF)
    return f"{crc:08x}"


def short_names(paths: list[str]) -> dict[str, str]:
    """{path: name}: the last part of each path (of a run's checkpoint the last two), or so many that no two are the same."""
    for parts in range(1 + any(Path(p).name.startswith("step-") for p in paths), 10):
        names = {p: "_".join([x for x in p.split("/") if x not in ("", ".", "..")][-parts:]) for p in paths}
        if len(set(names.values())) == len(names):
            break
    return names


COLUMNS = {
    "id": ("id", "question_id", "sample_index"),
    "problem": ("problem", "question", "query"),
    "solution": ("ground_truth", "solution", "gt", "answer", "final_answer"),
    "text": ("model_output", "output", "response", "completion"),
    "recorded": ("is_correct", "correct", "verdict"),
}


def read_results(path: Path, task: str = "auto", say=print) -> dict:
    """{"name", "results": entries} of a file in our layout, in that of R1-V and OpenV-R1, or of a JSONL with one output per line.

    Outputs keep the file's own verdict (of ours the lenient one) as "recorded", and a "gold" one if there is. Records without an
    output or a reference are skipped and named. Raises SystemExit, one sentence, if the file is missing or something else.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        content = lines_of(path) if path.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise SystemExit(f"file: '{path}' cannot be read as JSON ({str(error)[:120]})") from error
    records = content.get("results") if isinstance(content, dict) else content
    if not isinstance(records, list) or not records or not all(isinstance(r, dict) for r in records):
        raise SystemExit(
            f"file: '{path}' holds no list of results (wanted: {{'accuracy', 'results': [...]}}, or JSONL)"
        )
    if isinstance(content, dict) and "outputs" in records[0]:
        entries = []
        for e in records:
            try:
                rewards.own_parts(e.get("reward_func"))
            except ValueError as error:
                say(f"file: skipped: record {e.get('id')} of '{path.name}': {error}")
                continue
            for o in e["outputs"]:
                o.setdefault("recorded", o.get("lenient", o.get("accuracy")))
            entries.append(e)
        if not entries:
            raise SystemExit(
                f"file: none of the {len(records)} records of '{path}' can be used; the lines above say why"
            )
        skipped = len(records) - len(entries) + (content.get("skipped") or 0)
        return {**content, "name": content.get("name", path.stem), "results": entries, "skipped": skipped}
    entries, skipped = [], 0
    for i, r in enumerate(records):
        get = {
            key: next((r[c] for c in names if r.get(c) is not None), None) for key, names in COLUMNS.items()
        }
        texts = get["text"] if isinstance(get["text"], list) else [get["text"]]
        if get["solution"] is None or not all(isinstance(t, str) for t in texts):
            skipped += 1
            say(
                f"file: skipped: record {i} of '{path.name}' has no {'output' if get['solution'] is not None else 'reference'}"
            )
            continue
        solution = get["solution"]
        box = (
            isinstance(solution, list)
            and len(solution) == 4
            and all(isinstance(x, int | float) for x in solution)
        )
        if isinstance(solution, list) and not box and len(solution) == 1:
            solution = solution[0]  # OlympiadBench
        if get["recorded"] is None and "extracted_answer" in r:  # R1-V's SuperCLEVR files have no verdict
            get["recorded"] = str(r["extracted_answer"]) == str(solution)
        verdicts = {
            k: float(v) for k, v in (("recorded", get["recorded"]), ("gold", r.get("gold"))) if v is not None
        }
        entries.append(
            {
                "index": i,
                "id": str(get["id"] if get["id"] is not None else f"#{i}"),
                "problem": str(get["problem"] or ""),
                "solution": json.dumps(solution) if isinstance(solution, list) else str(solution),
                "task": r.get("task") or ("grounding" if box else task),
                "options": r["options"] if isinstance(r.get("options"), list) else None,
                "labels": {},
                "outputs": [{"text": t, **verdicts} for t in texts],
            }
        )
    if not entries:
        raise SystemExit(
            f"file: none of the {len(records)} records of '{path}' has an output and a reference ({', '.join(records[0])})"
        )
    return {"name": path.stem, "results": entries, "skipped": skipped}


# -----------------------------------------------------------------------------
# grade again, compare
# -----------------------------------------------------------------------------


def regrade(path: Path, out_dir: Path, task: str, rule, say=print) -> dict:
    """Grade a file of outputs again: prints recorded against new verdicts, writes out_dir/NAME.regraded.json. Returns the record."""
    record = read_results(path, task, say)
    entries = [grade(e, rule) for e in record["results"]]
    found = summary(entries, record.get("skipped") or 0)
    outputs = [o for e in entries for o in e["outputs"]]
    say(f"\n{path}: {len(outputs)} outputs")
    print_table({path.stem[:13]: found}, False, say)
    for old in ("recorded", "gold"):
        known = [o for o in outputs if o.get(old) is not None]
        if known:
            cells = Counter((o[old] == 1, o["lenient"] == 1) for o in known)
            say(
                f"\n{old:<14}{'ours right':>12}{'ours wrong':>12}     agreement {percent((cells[1, 1] + cells[0, 0]) / len(known))}"
            )
            for verdict in (True, False):
                say(
                    f"{'  right' if verdict else '  wrong':<14}{cells[verdict, True]:>12}{cells[verdict, False]:>12}"
                )
            found[f"against_{old}"] = {
                "both_right": cells[1, 1],
                "only_ours": cells[0, 1],
                "only_theirs": cells[1, 0],
                "both_wrong": cells[0, 0],
            }
    record = {"name": f"{path.stem}.regraded", "source": str(path), **found, "results": entries}
    write(out_dir / f"{path.stem}.regraded.json", json.dumps(record, indent=1, ensure_ascii=False))
    say(
        f"\n'ours' is lenient, as an answer without tags counts there; every verdict in {out_dir / (path.stem + '.regraded.json')}"
    )
    return record


def read_graded(path: Path, task: str, rule, metric: str) -> list[dict]:
    """Entries of a result file, graded now if it does not hold the verdicts of `metric`."""
    entries = read_results(path, task)["results"]
    return [e if all(o.get(metric) is not None for o in e["outputs"]) else grade(e, rule) for e in entries]


def pairs(a: list[dict], b: list[dict]) -> list[tuple[dict, dict]]:
    """The rows that two lists of entries share, by question and reference; rows that ask the same twice are paired by id or in order."""

    def keyed(entries, unique):
        seen, result = Counter(), {}
        for e in entries:
            key = (e["problem"], str(e["solution"])) + ((e["id"],) if unique else ())
            seen[key] += 1
            result[key + (seen[key],)] = e
        return result

    # ids decide where both files have the same ones: "How many objects are there?" is asked of every image
    by_id = {
        i for i in {e["id"] for e in a} & {e["id"] for e in b} if not i.startswith("#")
    }  # '#3': the file has no ids
    first, second = (keyed(entries, bool(by_id)) for entries in (a, b))
    return [(e, second[key]) for key, e in first.items() if key in second]


def compare(a: list[dict], b: list[dict], metric: str) -> dict:
    """Paired comparison of two lists of graded entries: which rows flipped, McNemar's p, the difference with its interval.

    A row is right if more than half of its outputs are.
    """
    both = pairs(a, b)
    if not both:
        raise SystemExit("compare: the two files share no row (same question and same reference)")
    right = [tuple(mean([e], metric) for e in pair) for pair in both]
    if any(None in r for r in right):
        raise SystemExit(
            f"compare: an output has no '{metric}'; the metrics are {', '.join(METRICS)}, 'published' only of --bench results"
        )
    right = [(x > 0.5, y > 0.5) for x, y in right]
    lost, won = (
        [pair for pair, r in zip(both, right, strict=True) if r == want]
        for want in ((True, False), (False, True))
    )
    n = len(both)
    return {
        "n": n,
        "unpaired": [len(a) - n, len(b) - n],
        "metric": metric,
        "accuracy": [sum(r[i] for r in right) / n for i in (0, 1)],
        "both_right": right.count((True, True)),
        "only_a": len(lost),
        "only_b": len(won),
        "both_wrong": right.count((False, False)),
        "difference": (len(won) - len(lost)) / n,
        "interval": list(paired_interval(len(lost), len(won), n)),
        "p": mcnemar(len(lost), len(won)),
        "flipped": [
            {
                "id": x["id"],
                "problem": x["problem"],
                "solution": x["solution"],
                "now": now,
                "a": x["outputs"][0]["answer"],
                "b": y["outputs"][0]["answer"],
            }
            for now, rows in (("wrong", lost), ("right", won))
            for x, y in rows
        ],
    }


def print_comparison(found: dict, paths: list[Path], say=print) -> None:
    (low, high), (a, b) = found["interval"], map(percent, found["accuracy"])
    say(f"\nA  {paths[0]}\nB  {paths[1]}")
    say(
        f"{found['n']} rows in both ({found['unpaired'][0]} only in A, {found['unpaired'][1]} only in B), metric {found['metric']}\n"
    )
    say(f"{'':<10}{'B right':>9}{'B wrong':>9}\n{'A right':<10}{found['both_right']:>9}{found['only_a']:>9}")
    say(f"{'A wrong':<10}{found['only_b']:>9}{found['both_wrong']:>9}\n")
    say(
        f"A {a}, B {b}, B - A {found['difference']:+.1%} (95 % interval {low:+.1%} to {high:+.1%}), exact McNemar p = {found['p']:.3g}"
    )
    for now in ("wrong", "right"):
        rows = [f for f in found["flipped"] if f["now"] == now]
        for f in rows[:10]:
            given = f"A {str(f['a'])[:40]!r}  B {str(f['b'])[:40]!r}"
            say(f"  now {now}: {f['id']}  {f['problem'][:50]!r}  reference {f['solution'][:40]!r}  {given}")
        if len(rows) > 10:
            say(f"  ... and {len(rows) - 10} more now {now}; --out_dir=FOLDER writes all to compare.json")


def matrix(records: dict[str, dict[str, dict]], metric: str = "accuracy") -> dict:
    """Forgetting: checkpoints x benchmarks, with the difference to the first checkpoint on the same rows and McNemar's p."""
    models = list(records)
    cells, names = (
        {m: {} for m in models},
        [n for n in records[models[0]] if all(n in records[m] for m in models)],
    )
    for name in names:
        base = records[models[0]][name]
        for m in models:
            versus = compare(base["results"], records[m][name]["results"], metric)
            cells[m][name] = {
                "accuracy": records[m][name][metric],
                "difference": records[m][name][metric] - base[metric],
                "p": versus["p"],
            }
    return {"metric": metric, "models": models, "benchmarks": names, "cells": cells}


def print_matrix(found: dict, say=print) -> None:
    wide, names = max(map(len, found["models"])) + 2, found["benchmarks"]
    say(f"\n{'':<{wide}}" + "".join(f"{name[:16]:>18}" for name in names))
    for i, m in enumerate(found["models"]):
        cells = [found["cells"][m][name] for name in names]
        changes = [f" ({100 * c['difference']:+.1f})" if i else "" for c in cells]
        say(
            f"{m:<{wide}}"
            + "".join(
                f"{percent(c['accuracy']) + change:>18}" for c, change in zip(cells, changes, strict=True)
            )
        )
