"""Result files of other evaluators, trainers and scripts: files -> records -> entries.

    read_records     the records of a file as they are: JSON, JSON lines, csv, tsv, xlsx, parquet, a log
    choose_columns   which column is the question, the reference, the output: by its name, then by evidence
    entry_of         a record as results.py grades it: {"id", "problem", "solution", ..., "outputs": [...]}

A file may end in .gz. Nothing in it is imported or run; a pickle, which can do both, is never opened.
"""

import csv
import gzip
import io
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from tasks.adapters import ADAPTERS
from tasks.answers import as_letter, in_dict, index_base, is_derivation, read_options, split_solution
from tasks.benchmarks import BENCHMARKS
from tasks.grading import VERIFIERS
from tasks.grading.boxes import read_box
from tasks.grading.choices import option_letter

# our name of a field, and the names that it has elsewhere; of several in one record the first counts
COLUMNS = {
    "id": ("id", "question_id", "sample_index", "index", "doc_id"),
    "problem": (
        *("problem", "question", "query", "prompt", "input", "origin_prompt", "messages"),
        *("instruction", "arguments"),
    ),
    "solution": (
        *("ground_truth", "gt", "gts", "gold", "target", "solution", "label", "labels", "reference"),
        *("references", "gold_answer", "correct_answer", "answer", "answers", "final_answer"),
    ),
    "text": (
        *("resps", "filtered_resps", "model_output", "output", "outputs", "response", "completion"),
        *("origin_prediction", "predict", "model_response", "raw_response", "generated_text", "generation"),
        *("model_answer", "prediction", "predictions", "pred", "text"),
    ),
    "recorded": (
        *("is_correct", "correct", "verdict", "hit", "exact_match", "acc", "relaxed_overall", "anls"),
        *("accuracy", "score", "reward"),
    ),
}
METRICS = {"relaxed_overall": "relaxed", "anls": "anls"}  # a verdict's name that tells the task
NESTED = ("doc", "question", "problem")  # a record may have the row of the data set in one of these
LABELS = ("category", "l2-category", "subject", "level", "difficulty", "split", "task", "problem_type")

# a verdict that others write in words
VERDICTS = {"true": 1.0, "yes": 1.0, "correct": 1.0, "right": 1.0}
VERDICTS |= {"false": 0.0, "no": 0.0, "incorrect": 0.0, "wrong": 0.0}
# of one of our outputs: 0 to 1
SHARES = ("accuracy", "lenient", "published", "recorded", "gold", "format", "finished")


class BadRecord(Exception):
    """A record of a result file that cannot be used, and why."""


# -----------------------------------------------------------------------------
# file -> records
# -----------------------------------------------------------------------------


def read_records(path: Path) -> tuple[dict, list]:
    """(facts about the whole evaluation, its records) of a file, whatever it is stored in.

    Raises SystemExit, one sentence, if the file is missing, broken, a pickle, or without a list of records.
    """
    name = path.name.lower().removesuffix(".gz")
    kind = "JSON"
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        if name.endswith((".pkl", ".pickle")) or re.match(rb"\x80[\x02-\x05]", content):
            raise SystemExit(
                f"file: '{path}' is a pickle, which can run code when it is opened, so it stays closed; let "
                "VLMEvalKit write another format (PRED_FORMAT=tsv, json or xlsx)"
            )
        if name.endswith(".xlsx") or content.startswith(b"PK\x03\x04"):
            kind = "an Excel file"
            return {}, tidy(sheet_records(content))
        if name.endswith(".parquet") or content.startswith(b"PAR1"):
            kind = "a parquet file"
            return {}, tidy(parquet_records(content))
        # Excel writes UTF-16 where it says "Unicode text"
        encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        text = content.decode(encoding, "replace")
        if name.endswith((".csv", ".tsv")):
            kind = "a table"
            return {}, tidy(table_records(text))
        if LOG_MARK.match(text):
            return {}, log_records(text)
        about, records = records_of(tidy(json_content(text, name.endswith(".jsonl"))))
        records = of_one_filter(records)
    except Exception as error:  # of five readers, each with its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise SystemExit(f"file: '{path}' cannot be read as {kind} ({reason}); is it complete?") from error
    if not any(isinstance(record, dict) for record in records):
        raise SystemExit(
            f"file: '{path}' holds no list of results (wanted: a record per row, in a list, in "
            "{'results': [...]}, or line by line)"
        )
    return about, records


def json_content(text: str, is_lines: bool):
    """The value of a JSON text; of JSON lines, whatever the file is called, their list.

    A line that is no JSON is None in the list: the last one of a killed run, say. Raises ValueError.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [json_line(line) for line in text.split("\n") if line.strip()]
        if not lines or not (is_lines or isinstance(lines[0], dict)):
            raise error
        return lines


def json_line(line: str):
    """The value of a line, None if it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def records_of(content) -> tuple[dict, list]:
    """(facts, records) of a JSON value: a list, one in a dict, or a dict of records as OpenCompass has it."""
    if isinstance(content, list):
        # the first line of our own unfinished results holds the knobs
        is_knobs = bool(content) and isinstance(content[0], dict) and set(content[0]) == {"knobs"}
        return {}, content[is_knobs:]
    if not isinstance(content, dict):
        return {}, []
    if has_output(content):
        return {}, by_columns(content) or [content]  # a file of one line
    if listed(content.get("results")):
        return content, listed(content["results"])
    # "logs", "detailed_results", "details": the longest list
    return content, max(map(listed, [content, *content.values()]), key=len)


def has_output(record: dict) -> bool:
    return any(column in record for column in COLUMNS["text"])


def listed(value) -> list:
    """The records of a list, or of a dict by number or name: {"0": record, "1": record}; [] of others."""
    if isinstance(value, dict):
        records = {key: record for key, record in value.items() if isinstance(record, dict)}
        return [record for key, record in records.items() if key.isdecimal() or has_output(record)]
    return value if isinstance(value, list) else []


def by_columns(table: dict) -> list[dict]:
    """The records of a table that is written by columns: lists, or pandas' {"question": {"0": ...}}."""
    columns = [list(value.values()) if isinstance(value, dict) else value for value in table.values()]
    if not all(isinstance(column, list) for column in columns) or len({*map(len, columns)}) > 1:
        return []
    return [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]


def of_one_filter(records: list) -> list:
    """lmms-eval writes every row once for each of its filters, with the same outputs: those of the first."""
    filters = [record.get("filter") if isinstance(record, dict) else None for record in records]
    first = next((name for name in filters if isinstance(name, str)), None)
    return [record for record, name in zip(records, filters, strict=True) if name in (None, first)]


def table_records(text: str) -> list[dict]:
    """The records of a csv or tsv; the sign between the columns is the one that its first line has most."""
    csv.field_size_limit(2**31 - 1)  # VLMEvalKit's tables hold images
    header = text.partition("\n")[0]
    delimiter = max("\t,;", key=header.count)
    records = []
    for record in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter):
        record.pop(None, None)  # cells beyond the last column
        records.append(record)
    return records


def sheet_records(content: bytes) -> list[dict]:
    """The records of an Excel file's first sheet, whose first line names the columns."""
    import openpyxl  # here, as few need it

    sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True).worksheets[0]
    lines = sheet.iter_rows(values_only=True)
    header = [str(name) for name in next(lines, ())]
    return [dict(zip(header, line, strict=False)) for line in lines]


def parquet_records(content: bytes) -> list[dict]:
    import pyarrow.parquet  # here, as few need it

    return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()


LOG_MARK = re.compile(r"^(?:\[\w+\])?\[(prompt|output|ground_truth|score)\] ", re.MULTILINE)


def log_records(text: str) -> list[dict]:
    """The records of EasyR1's generations.log: "[prompt] ...", "[output] ..." and so on in turn."""
    parts = LOG_MARK.split(text)
    records = []
    for name, value in zip(parts[1::2], parts[2::2], strict=True):
        if name == "prompt":
            records.append({})
        if records:
            records[-1][name] = value.rstrip("\n")
    return records


def tidy(node):
    """A JSON value with None for NaN (as pandas writes an empty cell), "?" for half of a surrogate pair."""
    if isinstance(node, dict):
        return {tidy(key): tidy(value) for key, value in node.items()}
    if isinstance(node, list):
        return [tidy(value) for value in node]
    if isinstance(node, str):
        return node.encode("utf-8", "replace").decode()
    if isinstance(node, float) and not math.isfinite(node):
        return None
    return node


# -----------------------------------------------------------------------------
# which column is what
# -----------------------------------------------------------------------------


class Columns(NamedTuple):
    names: dict[str, list[str]]  # as COLUMNS, those that have a value somewhere in the file
    verdicts: dict[str, tuple[float, float]]  # {column: (wrong, right)}, those that can be a verdict
    base: int | None  # the number of the first option, where references count options; None: they do not


def choose_columns(path: Path, records: list[dict], say) -> Columns:
    """What the columns of these flat records are.

    Raises SystemExit, one sentence, if outputs or references are missing, or if references are indexes of
    options and nothing shows whether they count from 0 or from 1.
    """
    filled = {name: None for record in records for name, value in record.items() if is_there(value)}
    names = {}
    for what, known in COLUMNS.items():
        names[what] = [name for name in known if name in filled]
    references, outputs = names["solution"], names["text"]
    if "gold" in references and len(references) > 1:
        golds = [record["gold"] for record in records if is_there(record.get("gold"))]
        if all(isinstance(gold, int) for gold in golds):  # or bool
            references.remove("gold")  # a verdict of people; OpenCompass calls the reference so
    if "answer" in references and len(references) > 1:
        is_output = look_like_outputs(records, "answer")
        if not outputs or (is_output and not look_like_outputs(records, outputs[0])):
            references.remove("answer")
            outputs.insert(0, "answer")
        elif any(is_derivation(record.get("solution"), record.get("answer")) for record in records):
            references.remove("answer")  # a worked solution, and its result beside it
            references.insert(references.index("solution"), "answer")
    there = f"columns with values: {', '.join(list(filled)[:20])}"
    if not outputs:
        raise SystemExit(
            f"file: '{path}' has no outputs of a model ({there}); they belong into a column output, response "
            "or prediction"
        )
    if not references:
        raise SystemExit(
            f"file: '{path}' has outputs ({outputs[0]}) but no references to grade them by ({there}); add "
            "the right answers as a column solution"
        )
    verdicts = choose_verdicts(path, records, names["recorded"], say)
    return Columns(names, verdicts, choose_base(path, records, references))


def look_like_outputs(records: list[dict], column: str) -> bool:
    """Are most of the texts in a column long, or with reasoning in tags?"""
    texts = [record[column] for record in records if isinstance(record.get(column), str)]
    long = [text for text in texts if "think>" in text or len(text) > 80]
    return len(long) > len(texts) / 2


def choose_verdicts(path: Path, records: list[dict], names: list[str], say) -> dict[str, tuple[float, float]]:
    """{column: (wrong, right)} of those of these columns whose values can be verdicts."""
    found = {}
    refused = ""
    for name in names:
        values = [record[name] for record in records if is_there(record.get(name))]
        numbers = [number for number in map(number_of, values) if number is not None]
        if len(numbers) <= len(values) / 2:
            continue  # of another kind
        low, high = min(numbers), max(numbers)
        if low >= 0 and high <= 1:
            found[name] = (0, 1)
        elif set(numbers) <= {-1, 1}:
            found[name] = (-1, 1)
        elif low >= 0 and 10 < high <= 100:  # percent; marks up to 5 or 10 are no verdict
            found[name] = (0, 100)
        else:
            refused = f"{name} lies between {low:g} and {high:g}, which is no verdict, so it is left out"
    if refused and not found:
        say(f"file: '{path.name}': {refused}")
    return found


def choose_base(path: Path, records: list[dict], references: list[str]) -> int | None:
    """What number the first option has where references are indexes of options, 0 or 1; None if none is."""
    choices = []
    for record in records[:1000]:
        try:
            options, labels = read_options(options_in(record))
        except ValueError:
            continue  # its own row will say so
        if options:
            choices.append((str(first_of(record, references)).strip(), options, labels))
    try:
        return index_base(choices)
    except ValueError as error:
        raise SystemExit(f"file: '{path}': {error}; write them as letters") from error


def number_of(value) -> float | None:
    """The number that a verdict is: 1 of true, "CORRECT" and [1]; EasyR1 has {"overall", "accuracy"}."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("accuracy", value.get("overall"))
    try:
        if isinstance(value, str):
            value = VERDICTS.get(value.strip().lower(), value)
        if not isinstance(value, int | float | str):
            return None
        number = float(value)
    except (ValueError, OverflowError):  # a word; 10^400
        return None
    return number if math.isfinite(number) else None


def is_there(value) -> bool:
    """Neither null nor empty."""
    return value is not None and value != "" and value != [] and value != {}


# -----------------------------------------------------------------------------
# one record
# -----------------------------------------------------------------------------


def entry_of(record, index: int, task: str, columns: Columns | None) -> dict:
    """A record of ours or, with the columns of its file, of others as an entry, every field of its type.

    Raises BadRecord.
    """
    if not isinstance(record, dict):
        raise BadRecord("is no JSON object")
    if is_ours(record):
        entry = read_ours(record)
    elif columns is None:  # between records of ours
        raise BadRecord("has no output")
    else:
        entry = read_theirs(flat(record), columns)
    options = entry.get("options")
    if isinstance(options, list):
        entry["options"] = [plain_text(option, "option") for option in options]
    else:
        entry["options"] = None
    for key in ("image_size", "box_frame"):
        if entry.get(key) is not None and not is_size(entry[key]):
            raise BadRecord(f"has a {key} that is no width and height: {brief(entry[key])}")
    name = entry["id"]
    solution = entry["solution"]
    if solution in (None, ""):
        raise BadRecord("has no reference")
    if isinstance(solution, list):
        is_box = len(solution) == 4 and all(type(x) in (int, float) for x in solution)
        one = len(solution) == 1  # OlympiadBench
        solution = solution[0] if one else json.dumps(solution, ensure_ascii=False)
        task = "grounding" if is_box else task
    guess = entry.pop("guess", None)
    of_record = entry.get("task") or (guess if guess and task == "auto" else task)
    if not isinstance(of_record, str) or of_record not in VERIFIERS:
        raise BadRecord(f"has a task {brief(of_record)} that is none of {', '.join(VERIFIERS)}")
    labels = entry.get("labels")
    of_run = entry.get("index")
    return entry | {
        "index": of_run if type(of_run) is int else index,
        "id": f"#{index}" if name is None else plain_text(name, "id"),
        "problem": plain_text(entry.get("problem") or "", "problem"),
        "solution": plain_text(solution, "reference"),
        "task": of_record,
        "labels": labels if isinstance(labels, dict) else {},
    }


def is_ours(record) -> bool:
    """Is it a record in our layout? vLLM's own has texts as its outputs."""
    outputs = record.get("outputs") if isinstance(record, dict) else None
    are_texts = isinstance(outputs, list) and any(isinstance(output, str) for output in outputs)
    return outputs is not None and not are_texts


def read_ours(record: dict) -> dict:
    """A record in our layout with its outputs checked. Raises BadRecord."""
    outputs = record["outputs"]
    if not isinstance(outputs, list) or not outputs:
        raise BadRecord("has no output")
    checked = []
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("text"), str):
            raise BadRecord("has no output, or one without a text")
        output = dict(output)
        for key in SHARES:
            if output.get(key) is not None:
                output[key] = verdict(output[key], key)
        if output.get("tokens") is not None and not is_count(output["tokens"]):
            raise BadRecord(f"has {brief(output['tokens'])} tokens")
        output.setdefault("recorded", output.get("lenient", output.get("accuracy")))
        checked.append(output)
    return {"id": None, "solution": None} | record | {"outputs": checked}


def flat(record: dict) -> dict:
    """The record with the row of the data set that it may hold; its own fields go first."""
    for column in NESTED:
        row = record.get(column)
        if isinstance(row, dict):
            own = {name: value for name, value in record.items() if name != column and is_there(value)}
            record = row | own
    return record


def read_theirs(record: dict, columns: Columns) -> dict:
    """A flat record of others, with one output or a list of them, in our layout. Raises BadRecord."""
    texts = texts_of(first_of(record, columns.names["text"]))
    if not texts:
        raise BadRecord("has no output")
    solution = in_dict(first_of(record, columns.names["solution"]))
    verdicts = {}
    given = next((name for name in columns.verdicts if is_there(record.get(name))), None)
    if given:
        verdicts["recorded"] = verdict(record[given], "verdict", *columns.verdicts[given])
    elif not columns.verdicts and "extracted_answer" in record:  # R1-V's SuperCLEVR files have no verdict
        verdicts["recorded"] = float(str(record["extracted_answer"]) == str(solution))
    if "gold" not in columns.names["solution"] and is_there(record.get("gold")):
        verdicts["gold"] = verdict(record["gold"], "gold")
    try:
        options, letters = read_options(options_in(record))
        if isinstance(solution, str):
            solution = split_solution(without_marks(solution))[0]
        if options and isinstance(solution, str | int):
            solution = as_letter(str(solution), options, letters, columns.base)
    except ValueError as error:
        raise BadRecord(f"cannot be graded: {error}") from error
    labels = {name: str(record[name]) for name in LABELS if isinstance(record.get(name), str | int)}
    task = record.get("task")
    if not isinstance(task, str) or task not in VERIFIERS:
        task = None  # elsewhere other things are called so
    guess = next((METRICS[name] for name in columns.verdicts if name in METRICS), None)
    if options and solution in options:
        guess = "choice"  # the text of an option is answered by its letter, too
    return {
        "id": first_of(record, columns.names["id"]),
        "problem": question_of(first_of(record, columns.names["problem"])),
        "solution": solution,
        "task": task,
        "guess": guess,
        "options": options,
        "labels": labels,
        "outputs": [{"text": text, **verdicts} for text in texts],
    }


def first_of(record: dict, columns: list[str]):
    """The first value that a record has under any of these names; "" or None if it has none."""
    found = None
    for column in columns:
        value = record.get(column)
        if is_there(value):
            return value
        if value == "":
            found = ""
    return found


def texts_of(value) -> list[str]:
    """The outputs of a record: a text, a list of them, lmms-eval's list of lists, or chat messages."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        content = value.get("content", value.get("text"))
        return texts_of(content) if content is not None else []
    if not isinstance(value, list):
        return []
    if value and all(isinstance(turn, dict) and "role" in turn for turn in value):
        return texts_of(value[-1])  # TRL's completion is a list of messages
    found = []
    for part in value:
        found += texts_of(part)
    return found


def question_of(value):
    """The question within a prompt: a text, chat messages, or lmms-eval's list of arguments."""
    if isinstance(value, list):
        asked = []
        for turn in value:
            if isinstance(turn, str):
                asked.append(turn)
                break  # what comes behind are settings
            if isinstance(turn, dict) and str(turn.get("role")).lower() in ("user", "human"):
                asked = texts_of(turn.get("content", turn.get("prompt")))
        value = "\n".join(asked)
    return without_marks(value) if isinstance(value, str) else value


def without_marks(text: str) -> str:
    """The text without places of images and a model's special tokens."""
    return re.sub(r"<image>\n?|<\|\w+\|>", "", text).strip()


def options_in(record: dict):
    """The options of a choice, as the record has them: a list, a dict, or the columns A, B, C ..."""
    for column in ("options", "choices"):
        if is_there(record.get(column)):
            return record[column]
    if not is_there(record.get("A")) or not is_there(record.get("B")):
        return None
    return [record[letter] for letter in "ABCDEFGHIJ" if is_there(record.get(letter))]


def plain_text(value, what: str) -> str:
    """A text or a number as a text. Raises BadRecord for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise BadRecord(f"has a {what} that is no text: {brief(value)}")


def verdict(value, what: str, low: float = 0, high: float = 1) -> float:
    """0.0 to 1.0 of a number between low and high, a bool or a word. Raises BadRecord for anything else."""
    number = number_of(value)
    if number is None or not low <= number <= high:
        raise BadRecord(f"has as {what} {brief(value)}, which is not between {low} and {high}")
    return (number - low) / (high - low)


def is_size(value) -> bool:
    """Is this [width, height], both above 0?"""
    return isinstance(value, list) and len(value) == 2 and all(is_count(x) and x > 0 for x in value)


def is_count(value) -> bool:
    """A number that can count tokens or pixels."""
    return type(value) in (int, float) and 0 <= value < 1e9


def brief(value) -> str:
    """A value as a message shows it."""
    look = repr(value)
    return look if len(look) <= 40 else look[:40] + "..."


# -----------------------------------------------------------------------------
# is it the set that it is said to be?
# -----------------------------------------------------------------------------


def refuse_other_set(path: Path, name: str, entries: list[dict], bench: str) -> None:
    """SystemExit, one sentence, if a file called `name` inside is evidently not of the benchmark `bench`.

    Evident is another benchmark's name, or that of five rows and more not one has a reference of the set's
    kind: a number where things are counted, a box, the letter of an option.
    """
    task = "choice" if bench == "mmmu" else ADAPTERS[BENCHMARKS[bench].source].task
    fits = [is_reference(entry, task) for entry in entries]
    reason = ""
    if name in BENCHMARKS and name != bench:
        reason = f"its results are of {name}"
    elif len(fits) >= 5 and not any(fits):
        first = brief(entries[0]["solution"])
        reason = f"{bench} has {KINDS[task]} as references, and none of these is one, such as {first}"
    if reason:
        raise SystemExit(f"file: '{path}' is not of {bench}: {reason}; name its set with --bench, or none")


KINDS = {"count": "whole numbers", "grounding": "boxes", "choice": "options"}


def is_reference(entry: dict, task: str) -> bool:
    """Can the reference of an entry be one of a set with this task? True where a task allows anything."""
    solution = entry["solution"].strip()
    if task == "count":
        return solution.isdecimal()
    if task == "grounding":
        return read_box(solution) is not None
    if task == "choice":
        return bool(entry["options"]) or option_letter(solution) is not None
    return True
