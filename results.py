"""Result files of evaluations: grade outputs, figures, tables; grade old files again, compare two of them.

Used by eval.py; needs neither torch nor vLLM. An entry is one row with its outputs:

    {"index": 0, "id": "clevr/17", "problem": "...", "solution": "3", "task": "count",
     "outputs": [{"text": "...", "answer": "3", "accuracy": 1.0, "lenient": 1.0, "format": 1.0,
                  "tokens": 18, "finished": true}]}
"""

import itertools
import json
import re
import zlib
from collections import Counter
from pathlib import Path

import rewards
from tasks.adapters import ADAPTERS
from tasks.benchmarks import BENCHMARKS, RULE_SECONDS
from tasks.grading import task_of
from tasks.grading.clean import clean
from tasks.grading.find import extract_answer
from tasks.grading.symbolic import attempt
from tasks.intervals import mcnemar, mean_interval, paired_interval, pass_at_k, wilson
from tasks.outputs import (
    BadRecord,
    choose_columns,
    entry_of,
    flat,
    is_ours,
    read_records,
    refuse_other_set,
)

METRICS = ("accuracy", "lenient", "published")  # strict tag; any clear answer; the benchmark's own rule
# of a row, kept for grading again
FACTS = ("id", "source", "problem", "solution", "task", "options", "labels", "image_size", "box_frame")

# -----------------------------------------------------------------------------
# entries -> figures
# -----------------------------------------------------------------------------


def grade(entry: dict, rule=None) -> dict:
    """The entry with a verdict on each output: answer, accuracy, format, lenient, and with a rule published.

    rule(output, row) -> bool or 0 to 1 is that of the benchmark's original script (tasks/benchmarks.py).
    """
    row = {**entry, "reward_func": None}  # graded by these two parts, whatever the row was paid for
    for output in entry["outputs"]:
        text = output["text"]
        output["answer"] = extract_answer(text, strict=False, task=task_of(entry))
        output.update(rewards.score(text, row, names=("accuracy", "format")))
        output["lenient"] = rewards.accuracy_reward(text, entry, strict=False)
        if rule:
            output["published"] = float(attempt(rule, text, entry, seconds=RULE_SECONDS) or 0)
    return entry


def check_metric(name: str) -> None:
    """SystemExit, one sentence, for a metric that is neither one of METRICS, nor a task, nor a function."""
    if name in METRICS or name in rewards.VERIFIERS:
        return
    if ":" not in name:
        known = ", ".join([*METRICS, *sorted(rewards.VERIFIERS)])
        raise SystemExit(f"metric: '{name}' is none of {known}, and no module:function")
    try:
        rewards.reward_function(name)
    except ValueError as error:
        raise SystemExit(of_metric(str(error), name)) from error


AT_ONCE = 64  # rows: rewards.GIVE_UP is a limit on the time that so many take


def measure(entries: list[dict], rows: list[dict], metric: str, scorer) -> None:
    """Write what `metric` gives into each output of the entries; `rows`: theirs, as far as they are known.

    It is a task ("anls") or the user's own "module:function" (see rewards.py), which gives None where it does
    not apply. SystemExit, one sentence, if that function fails.
    """
    name = "accuracy" if metric in rewards.VERIFIERS else metric
    for start in range(0, len(entries), AT_ONCE):
        part = entries[start : start + AT_ONCE]
        asked = []
        for row in rows[start : start + AT_ONCE]:
            asked.append(row | {"reward_func": None} | ({"task": metric} if name != metric else {}))
        texts = [[output["text"] for output in entry["outputs"]] for entry in part]
        try:
            scored = scorer.score(texts, asked, (name,))
        except SystemExit as error:
            raise SystemExit(of_metric(str(error), metric)) from error
        for entry, of_entry in zip(part, scored, strict=True):
            for output, of_output in zip(entry["outputs"], of_entry, strict=True):
                output[metric] = of_output.get(name)


def of_metric(sentence: str, metric: str) -> str:
    """What rewards.py says of a function that failed as a reward, said of a metric."""
    sentence = sentence.replace(f"reward {metric!r}", f"metric {metric!r}").replace(
        "a reward is", "a metric is"
    )
    return sentence.replace(rewards.NOT_APPLIED, "the outputs are kept")


def mean(entries: list[dict], key: str) -> float | None:
    """Mean over all outputs that have the key; None if none has."""
    values = []
    for entry in entries:
        for output in entry["outputs"]:
            if output.get(key) is not None:
                values.append(output[key])
    return sum(values) / len(values) if values else None


def share(entries: list[dict], key: str) -> dict:
    """{key: accuracy, "n", "interval"}; the interval counts rows: k samples of one row are not k facts."""
    value = mean(entries, key)
    n = len(entries)
    return {key: value, "n": n, "interval": list(wilson(value * n, n))}


def categories(entries: list[dict]) -> dict:
    """{category: {value: share}} over the rows' sources, tasks and labels, and the count of counting rows."""
    groups = {}  # {category: {value: entries}}
    for entry in entries:
        values = {"source": entry["source"]} if entry.get("source") else {}
        values["task"] = entry["task"]
        if entry["task"] == "count" and entry["solution"].isdigit():
            values["count"] = entry["solution"]
        values.update(entry.get("labels") or {})
        for category, value in values.items():
            groups.setdefault(category, {}).setdefault(str(value), []).append(entry)

    found = {}
    for category, members in groups.items():
        if len(members) == 1:
            continue  # the same for all rows
        found[category] = {}
        for value in sorted(members, key=in_number_order):
            found[category][value] = share(members[value], "accuracy")
    return found


def in_number_order(text: str) -> list:
    """Sort key that puts "2" before "10": texts and numbers in turn."""
    parts = re.split(r"(\d+)", text)
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = [(len(part), part) for part in digits]  # no int(): a label may have 5,000 of them
    return parts


def summary(entries: list[dict], skipped: int = 0, of: int = 0, metric: str = "") -> dict:
    """All figures of a list of graded entries (at least one); `of`: rows of the whole set, 0 = unknown."""
    found = share(entries, "accuracy")
    found["of"] = of
    found["skipped"] = skipped
    found["lenient"] = mean(entries, "lenient")
    found["format"] = mean(entries, "format")
    found["length"] = mean(entries, "tokens")
    found["finished"] = mean(entries, "finished")
    published = mean(entries, "published")
    if published is not None:
        found["published"] = published
    if metric and metric not in METRICS:
        found["own_metric"] = {"name": metric} | interval_of_mean(entries, metric)
    samples = min(len(entry["outputs"]) for entry in entries)
    if samples > 1:
        found["majority"] = sum(majority(entry["outputs"]) for entry in entries) / len(entries)
        found["pass_at_k"] = pass_rates(entries, samples)
    found["categories"] = categories(entries)
    return found


def interval_of_mean(entries: list[dict], metric: str) -> dict:
    """{"mean", "interval", "n"} of a metric of any range over the rows to which it applies."""
    values = [mean([entry], metric) for entry in entries]
    values = [value for value in values if value is not None]
    average, interval = mean_interval(values) if values else (None, None)
    return {"mean": average, "interval": interval, "n": len(values)}


def majority(outputs: list[dict]) -> float:
    """1.0 if the most frequent tagged answer (of equals the first) is right: self-consistency.

    Wang et al. 2022, arXiv:2203.11171.
    """
    votes = Counter()
    accuracy = {}  # of the first output that gave an answer
    for output in outputs:
        answer = extract_answer(output["text"], strict=True)
        if answer:
            answer = clean(answer).casefold()
            votes[answer] += 1
            accuracy.setdefault(answer, output["accuracy"])
    if not votes:
        return 0.0
    winner, _ = votes.most_common(1)[0]
    return accuracy[winner]


def pass_rates(entries: list[dict], samples: int) -> dict[str, float]:
    """{k: mean pass@k of the rows} for k = 1, 2, 4, ... and `samples`, from so many outputs of each row."""
    correct = []  # right outputs of each row
    for entry in entries:
        correct.append(sum(output["accuracy"] > 0.5 for output in entry["outputs"][:samples]))
    powers = {2**i for i in range(samples.bit_length())}
    rates = {}
    for k in sorted(powers | {samples}):
        rates[str(k)] = sum(pass_at_k(samples, right, k) for right in correct) / len(entries)
    return rates


# -----------------------------------------------------------------------------
# tables on the console
# -----------------------------------------------------------------------------


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def print_table(table: dict[str, dict], with_categories: bool = False, say=print) -> None:
    """One line per benchmark, and under it one per category if asked for."""
    ks = []  # of pass@k; stays empty with one sample per row
    for found in table.values():
        for k in found.get("pass_at_k", {}):
            if k not in ks:
                ks.append(k)

    titles = ["lenient", "published", "format", "length", "skipped"]
    measured = next((found["own_metric"]["name"] for found in table.values() if "own_metric" in found), "")
    if measured:
        titles.append(measured.split(":")[-1][:9])
    if ks:
        titles.append(f"maj@{ks[-1]}")
        titles += [f"pass@{k}" for k in ks[1:]]
    say(table_line("source", "n", "accuracy", "95 % interval", titles))

    for name, found in table.items():
        cells = [percent(found.get(key)) for key in ("lenient", "published", "format")]
        cells.append("-" if found["length"] is None else f"{found['length']:.1f}")
        cells.append(found["skipped"])
        if measured:
            value = found.get("own_metric", {}).get("mean")
            cells.append("-" if value is None else f"{value:.4g}")
        if ks:
            cells.append(percent(found.get("majority")))
            rates = found.get("pass_at_k", {})
            cells += [percent(rates.get(k)) for k in ks[1:]]
        say(table_line(name, *share_cells(found), cells))
        for category, values in found["categories"].items():
            if with_categories or category in ("source", "task"):  # of a mixture
                for value, of_value in values.items():
                    value = Path(value).name if category == "source" else value
                    say(table_line(f"  {category} {value}"[:19], *share_cells(of_value), []))


def share_cells(found: dict) -> tuple:
    """n ("8 of 900" where that is not the whole set), accuracy and interval of a share, as in a table."""
    low, high = found["interval"]
    n = str(found["n"])
    if found.get("of") not in (None, 0, found["n"]):
        n += f" of {found['of']}"
    return n, percent(found["accuracy"]), f"{percent(low)} - {percent(high)}"


def table_line(name: str, n, accuracy: str, interval: str, cells: list) -> str:
    more = "".join(f"{cell:>10}" for cell in cells)
    return f"{name:<20}{n:>13}{accuracy:>10}{interval:>17}{more}"


# -----------------------------------------------------------------------------
# files of an evaluation
# -----------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    """Whole or not at all. SystemExit, one sentence, if the folder cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # errors: half a surrogate pair in an output is no reason to fail
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    except OSError as error:
        raise SystemExit(
            f"out_dir: cannot write '{path}' ({error.strerror}); name another folder with --out_dir"
        ) from error


def write_results(folder: Path, name: str, record: dict) -> None:
    """name.json in our layout, and name.seed.json in the one that R1-V and OpenV-R1 publish.

    That has the accuracy in % and one result per output.
    """
    write(folder / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False))
    key = "published" if record.get("published") is not None else "accuracy"
    flat = []
    for entry in record["results"]:
        for output in entry["outputs"]:
            result = {
                "question": entry["problem"],
                "ground_truth": entry["solution"],
                "model_output": output["text"],
                "extracted_answer": output["answer"],
                "is_correct": output[key] > 0.5,
            }
            flat.append(result)
    seed = {"accuracy": 100 * record[key], "results": flat}
    write(folder / f"{name}.seed.json", json.dumps(seed, indent=1, ensure_ascii=False))


def lines_of(path: Path) -> list[dict]:
    """The records of a JSONL; a line that is none (the last one of a killed run) is left out."""
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # of JSON and of UTF-8
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


class Progress:
    """Appends what a process has finished to name.part-RANK.jsonl: a killed run loses one batch at most."""

    def __init__(self, folder: Path, name: str, rank: int, knobs: dict):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.part-{rank}.jsonl"
        before = path.read_bytes() if path.exists() else b""
        # open for the whole benchmark
        self.file = open(path, "a", encoding="utf-8", errors="replace")  # noqa: SIM115
        if not lines_of(path):
            self.add([{"knobs": knobs}])
        elif not before.endswith(b"\n"):
            self.file.write("\n")  # after a torn last line

    def add(self, records: list[dict]) -> None:
        for record in records:
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()


def part_files(folder: Path, name: str) -> list[Path]:
    """The progress files of a source, by all processes."""
    found = sorted(folder.glob("*.part-*.jsonl"))
    return [path for path in found if path.name.rpartition(".part-")[0] == name]


def read_progress(folder: Path, name: str, knobs: dict) -> dict[int, dict]:
    """{index: entry, or {"index", "skipped": reason}} of what earlier runs of the evaluation have finished.

    Raises SystemExit, one sentence, if the files there are of an evaluation with other knobs: its numbers
    must not mix with ours.
    """
    done = {}
    whole = folder / f"{name}.json"
    if whole.exists():
        try:
            record = json.loads(whole.read_text(encoding="utf-8"))
            check_knobs(whole, record.get("knobs"), knobs)
            for entry in record["results"]:
                if "index" in entry:
                    done[entry["index"]] = entry
            for index, reason in record["skipped_rows"].items():
                done[int(index)] = {"index": int(index), "skipped": reason}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise SystemExit(
                f"out_dir: '{whole}' is damaged ({type(error).__name__}); remove it, or --resume=False to "
                "start over"
            ) from error
    for path in part_files(folder, name):
        records = lines_of(path)
        if records:
            check_knobs(path, records[0].get("knobs"), knobs)
        for entry in records:
            if "index" in entry:
                done[entry["index"]] = entry
    return done


def check_knobs(path: Path, before: dict | None, knobs: dict) -> None:
    """SystemExit if a file was written with other knobs than those of now."""
    now = json.loads(json.dumps(knobs))  # tuples become lists, as in the files
    changed = ""
    if before is None:
        changed = "of an older version"
    else:
        for key in now:
            if before.get(key) != now[key]:
                changed = f"with {key}={before.get(key)!r}, now it is {now[key]!r}"
                break
    if changed:
        raise SystemExit(
            f"out_dir: '{path}' holds an evaluation {changed}; "
            "use another --out_dir, or --resume=False to start over"
        )


def forget(folder: Path, name: str, parts_only: bool = False) -> None:
    """Remove the progress files of a source, and its results too unless parts_only."""
    paths = part_files(folder, name)
    if not parts_only:
        paths += [folder / f"{name}.json", folder / f"{name}.seed.json"]
    for path in paths:
        path.unlink(missing_ok=True)


def fingerprint(path: str) -> str:
    """Changes with the weights of a checkpoint folder: CRC of the sizes and ends of its weight files.

    Reads 1 MiB of each, which takes a moment even for 70 GB.
    """
    crc = 0
    for weights in sorted(Path(path).glob("*.safetensors")):
        size = weights.stat().st_size
        with open(weights, "rb") as file:
            file.seek(max(0, size - 2**20))
            crc = zlib.crc32(file.read(), (crc + size) & 0xFFFFFFFF)
    return f"{crc:08x}"


def short_names(paths: list[str]) -> dict[str, str]:
    """{path: name}: the last part of each path, or so many that no two names are the same.

    At least two parts of a run's checkpoint, as "step-000100" says little.
    """
    fewest = 2 if any(Path(path).name.startswith("step-") for path in paths) else 1
    for parts in range(fewest, 10):
        names = {}
        for path in paths:
            folders = [part for part in path.split("/") if part not in ("", ".", "..")]
            names[path] = "_".join(folders[-parts:])
        if len(set(names.values())) == len(names):
            break
    return names


# -----------------------------------------------------------------------------
# files of outputs, ours and of others
# -----------------------------------------------------------------------------

SHOWN = 10  # skipped records that are named; the rest is counted


def read_results(path: Path, task: str = "auto", say=print) -> dict:
    """{"name", "results": entries, "skipped"} of our files, or of those that tasks/outputs.py reads.

    Outputs keep the file's own verdict (of ours the lenient one) as "recorded", and a "gold" one if there is.
    Records that cannot be used are skipped, named and counted. Raises SystemExit, one sentence, if the file
    is missing or something else, or if no record of it can be used.
    """
    about, records = read_records(path)
    of_others = [flat(record) for record in records if isinstance(record, dict) and not is_ours(record)]
    few = len(of_others) <= sum(is_ours(record) for record in records)  # damaged ones between ours
    columns = None if few else choose_columns(path, of_others, say)
    entries = []
    reasons = []
    for index, record in enumerate(records):
        try:
            entry = entry_of(record, index, task, columns)
            rewards.own_parts(entry.get("reward_func"))
            entries.append(entry)
        except BadRecord as reason:
            reasons.append(f"file: skipped: record {index} of '{path.name}' {reason}")
        except ValueError as reason:
            asked = f"asks for what data may not name: {reason}"
            reasons.append(f"file: skipped: record {index} of '{path.name}' {asked}")
    for line in reasons[:SHOWN]:
        say(line)
    if len(reasons) > SHOWN:
        say(f"file: skipped: {len(reasons) - SHOWN} more records of '{path.name}'")
    if not entries:
        raise SystemExit(
            f"file: none of the {len(records)} records of '{path}' can be used; the lines above say why"
        )
    before = about.get("skipped")  # rows that the evaluation itself could not use
    skipped = len(reasons) + (before if type(before) is int and before > 0 else 0)
    name = about.get("name")
    return {"name": name if isinstance(name, str) else path.stem, "results": entries, "skipped": skipped}


# -----------------------------------------------------------------------------
# grade again
# -----------------------------------------------------------------------------


def regrade(
    path: Path, out_dir: Path, task: str, rule, say=print, bench: str = "", metric: str = "", scorer=None
) -> dict:
    """Grade a file of outputs again: prints recorded against new verdicts, writes out_dir/NAME.regraded.json.

    `bench`: the benchmark that it is of, if that is known; it says how many rows there should be, and what
    task those are of that say nothing themselves. `metric`: one beside METRICS, for measure(). Returns the
    record. Raises SystemExit, one sentence, if the file cannot be read, or is evidently of another set.
    """
    of = 0
    if bench:
        of = BENCHMARKS[bench].rows
        task = ADAPTERS[BENCHMARKS[bench].source].task if task == "auto" else task
    record = read_results(path, task, say)
    if bench:
        refuse_other_set(path, record["name"], record["results"], bench)
    entries = [grade(entry, rule) for entry in record["results"]]
    if metric and metric not in METRICS:
        measure(entries, entries, metric, scorer)
    found = summary(entries, record.get("skipped") or 0, of, metric)
    outputs = []
    for entry in entries:
        outputs += entry["outputs"]
    say(f"\n{path}: {len(outputs)} outputs")
    print_table({path.stem[:13]: found}, False, say)
    for old in ("recorded", "gold"):
        known = [output for output in outputs if output.get(old) is not None]
        if known:
            found[f"against_{old}"] = agreement(known, old, say)
    name = f"{path.stem}.regraded"
    target = out_dir / f"{name}.json"
    record = {"name": name, "source": str(path), **found, "results": entries}
    write(target, json.dumps(record, indent=1, ensure_ascii=False))
    say(f"\n'ours' is lenient, as an answer without tags counts there; every verdict in {target}")
    return record


def agreement(outputs: list[dict], old: str, say) -> dict:
    """Prints and returns how often the old verdict ("recorded" or "gold") and our lenient one agree."""
    # (theirs, ours)
    cells = Counter((output[old] > 0.5, output["lenient"] > 0.5) for output in outputs)
    agreed = (cells[True, True] + cells[False, False]) / len(outputs)
    say(f"\n{old:<14}{'ours right':>12}{'ours wrong':>12}     agreement {percent(agreed)}")
    say(f"{'  right':<14}{cells[True, True]:>12}{cells[True, False]:>12}")
    say(f"{'  wrong':<14}{cells[False, True]:>12}{cells[False, False]:>12}")
    return {
        "both_right": cells[True, True],
        "only_ours": cells[False, True],
        "only_theirs": cells[True, False],
        "both_wrong": cells[False, False],
    }


# -----------------------------------------------------------------------------
# compare
# -----------------------------------------------------------------------------


def read_graded(path: Path, task: str, rule, metric: str, scorer=None) -> list[dict]:
    """Entries of a result file, graded now if it does not hold the verdicts of `metric`."""
    entries = []
    missing = []
    for entry in read_results(path, task)["results"]:
        if any(not isinstance(output.get(metric), int | float) for output in entry["outputs"]):
            missing.append(entry if metric not in METRICS else grade(entry, rule))
        entries.append(entry)
    if missing and metric not in METRICS:
        measure(missing, missing, metric, scorer)
    return entries


def pairs(a: list[dict], b: list[dict]) -> list[tuple[dict, dict]]:
    """The rows that two lists of entries share, by question and reference, in the order of the first.

    Rows that ask the same ("How many objects are there?" is asked of every image) are paired by id if the
    files have ids in common, else in their order.
    """
    shared = {entry["id"] for entry in a} & {entry["id"] for entry in b}
    by_id = any(not name.startswith("#") for name in shared)  # '#3': the file has no ids
    first = keyed(a, by_id)
    second = keyed(b, by_id)
    return [(entry, second[key]) for key, entry in first.items() if key in second]


def keyed(entries: list[dict], by_id: bool) -> dict[tuple, dict]:
    """{(problem, solution, id if asked for, number among equals): entry}."""
    seen = Counter()
    found = {}
    for entry in entries:
        key = (entry["problem"], str(entry["solution"]), entry["id"] if by_id else "")
        seen[key] += 1
        found[(*key, seen[key])] = entry
    return found


def compare(a: list[dict], b: list[dict], metric: str) -> dict:
    """Paired comparison of two lists of graded entries: which rows flipped, McNemar's p, the difference.

    A row is right if more than half of its outputs are. Of a metric with values between (anls, vqa, a user's
    own) compare_values instead.
    """
    both = pairs(a, b)
    if not both:
        raise SystemExit("compare: the two files share no row (same question and same reference)")
    # a user's own metric does not apply to every row
    both = [pair for pair in both if None not in (mean([pair[0]], metric), mean([pair[1]], metric))]
    if not both:
        raise SystemExit(
            f"compare: the outputs have no '{metric}'; the metrics are {', '.join(METRICS)}, "
            "'published' only of --bench results"
        )
    unpaired = [len(a) - len(both), len(b) - len(both)]
    outputs = [output for entry in itertools.chain(*both) for output in entry["outputs"]]
    if any(output.get(metric) not in (0, 1, None) for output in outputs):
        return compare_values(both, metric) | {"unpaired": unpaired}
    cells = Counter()  # of (right in A, right in B)
    lost = []
    won = []
    for before, after in both:
        means = (mean([before], metric), mean([after], metric))
        right = (means[0] > 0.5, means[1] > 0.5)
        cells[right] += 1
        if right == (True, False):
            lost.append(flip(before, after, "wrong"))
        elif right == (False, True):
            won.append(flip(before, after, "right"))
    n = len(both)
    only_a = len(lost)
    only_b = len(won)
    both_right = cells[True, True]
    return {
        "n": n,
        "unpaired": unpaired,
        "metric": metric,
        "accuracy": [(both_right + only_a) / n, (both_right + only_b) / n],
        "both_right": both_right,
        "only_a": only_a,
        "only_b": only_b,
        "both_wrong": cells[False, False],
        "difference": (only_b - only_a) / n,
        "interval": list(paired_interval(only_a, only_b, n)),
        "p": mcnemar(only_a, only_b),
        "flipped": lost + won,
    }


def compare_values(both: list[tuple[dict, dict]], metric: str) -> dict:
    """compare() of a metric with values of any range: the mean difference of the rows, and a sign test.

    The interval is that of mean_interval over the rows' differences B - A. p is of the sign test: are rows
    that became higher as frequent as those that became lower? McNemar's exact test is the same test.
    """
    values = [(mean([before], metric), mean([after], metric)) for before, after in both]
    lower = [flip(*pair, "lower") for pair, (a, b) in zip(both, values, strict=True) if b < a]
    higher = [flip(*pair, "higher") for pair, (a, b) in zip(both, values, strict=True) if b > a]
    difference, interval = mean_interval([b - a for a, b in values])
    n = len(both)
    return {
        "n": n,
        "metric": metric,
        "means": [sum(a for a, _ in values) / n, sum(b for _, b in values) / n],
        "lower": len(lower),
        "higher": len(higher),
        "difference": difference,
        "interval": interval,
        "p": mcnemar(len(lower), len(higher)),
        "flipped": lower + higher,
    }


def flip(before: dict, after: dict, now: str) -> dict:
    """A row whose verdict changed, with the first answer of each side.

    now: 'right' or 'wrong', the verdict of B, or of other values 'higher' or 'lower'.
    """
    return {
        "id": before["id"],
        "problem": before["problem"],
        "solution": before["solution"],
        "now": now,
        "a": before["outputs"][0].get("answer"),
        "b": after["outputs"][0].get("answer"),
    }


def print_comparison(found: dict, paths: list[Path], say=print) -> None:
    n, metric = found["n"], found["metric"]
    only_in_a, only_in_b = found["unpaired"]
    say(f"\nA  {paths[0]}\nB  {paths[1]}")
    say(f"{n} rows in both ({only_in_a} only in A, {only_in_b} only in B), metric {metric}\n")
    if "means" in found:
        print_values(found, say)
    else:
        print_verdicts(found, say)
    for now in ("wrong", "right", "lower", "higher"):
        rows = [row for row in found["flipped"] if row["now"] == now]
        for row in rows[:10]:
            asked = f"{row['problem'][:50]!r}  reference {row['solution'][:40]!r}"
            given = f"A {str(row['a'])[:40]!r}  B {str(row['b'])[:40]!r}"
            say(f"  now {now}: {row['id']}  {asked}  {given}")
        if len(rows) > 10:
            say(f"  ... and {len(rows) - 10} more now {now}; --out_dir=FOLDER writes all to compare.json")


def print_verdicts(found: dict, say) -> None:
    say(f"{'':<10}{'B right':>9}{'B wrong':>9}")
    say(f"{'A right':<10}{found['both_right']:>9}{found['only_a']:>9}")
    say(f"{'A wrong':<10}{found['only_b']:>9}{found['both_wrong']:>9}\n")
    a, b = found["accuracy"]
    low, high = found["interval"]
    say(
        f"A {percent(a)}, B {percent(b)}, B - A {found['difference']:+.1%} "
        f"(95 % interval {low:+.1%} to {high:+.1%}), exact McNemar p = {found['p']:.3g}"
    )


def print_values(found: dict, say) -> None:
    a, b = found["means"]
    between = "one row alone has no interval"
    if found["interval"]:
        low, high = found["interval"]
        between = f"95 % interval {low:+.4g} to {high:+.4g}"
    say(f"higher in B: {found['higher']} rows, lower: {found['lower']}\n")
    say(f"A {a:.4g}, B {b:.4g}, B - A {found['difference']:+.4g} ({between}), sign test p = {found['p']:.3g}")


# -----------------------------------------------------------------------------
# several checkpoints
# -----------------------------------------------------------------------------


def matrix(records: dict[str, dict[str, dict]], metric: str = "accuracy") -> dict:
    """Forgetting: checkpoints x benchmarks, the difference to the first checkpoint, and McNemar's p for it.

    records: {checkpoint: {benchmark: record}}; a benchmark is left out unless every checkpoint has it.
    """
    models = list(records)
    first = records[models[0]]
    names = [name for name in first if all(name in records[model] for model in models)]
    cells = {}
    for model in models:
        cells[model] = {}
        for name in names:
            record = records[model][name]
            versus = compare(first[name]["results"], record["results"], metric)
            difference = record[metric] - first[name][metric]
            cells[model][name] = {"accuracy": record[metric], "difference": difference, "p": versus["p"]}
    return {"metric": metric, "models": models, "benchmarks": names, "cells": cells}


def print_matrix(found: dict, say=print) -> None:
    """A line per checkpoint, a column per benchmark: accuracy, and the points gained against the first."""
    width = max(len(model) for model in found["models"]) + 2
    titles = "".join(f"{name[:16]:>18}" for name in found["benchmarks"])
    say(f"\n{'':<{width}}{titles}")
    for number, model in enumerate(found["models"]):
        line = f"{model:<{width}}"
        for name in found["benchmarks"]:
            cell = found["cells"][model][name]
            text = percent(cell["accuracy"])
            if number > 0:
                text += f" ({100 * cell['difference']:+.1f})"
            line += f"{text:>18}"
        say(line)
