"""Rows, prompts and model inputs: everything between a data set and the policy.

A row is a plain dict, whatever it was made from:

    id           "clevr/17"
    images       [PIL.Image]                    may be empty or hold several
    problem      "How many items are there in the image?"; <image> in it: where a picture belongs in the text
    solution     "3"                            the bare answer; a box is JSON in pixels of the original image
    task         "count"                        chooses the verifier (rewards.py)
    thinking     "red cube, blue sphere, ..."   what SFT imitates, or None
    options      ["cat", "dog"]                 the choices A, B, ..., which stand in the problem too, or None
    labels       {"objects": "3"}               categories for evaluation's tables
    context      [{"role", "content"}]          the chat before the problem, with <image> marks, or None
    template     "box"                          the prompt that template = "auto" takes, or None
    reward_func  ["format"]                     reward parts of this row alone, or None
    columns      {"label": 3, ...}              the record as the data set has it
    source       "my.jsonl"                     the data set

Rows come from a source, named by a knob:

    scenes:clevr?rows=9600&objects=1-8          drawn while training (tasks/scenes.py)
    geoqa, refcoco/testA, geoqa@/data/GEOQA     a published set by its name in tasks/adapters.py, or a copy
    rows.jsonl, CLEVR_val_questions.json        records with image paths; CLEVR's own files as they are;
                                                chats and other trainers' layouts (tasks/layouts.py)
    train.parquet, folder/of/parquets           Hugging Face layout: `image` struct, `problem`, `solution`
    folder                                      written by datasets.save_to_disk, or JSON beside its images
    leonardPKU/clevr_cogen_a_train              a hub id
    clevr:0.5,geoqa:0.3,my.jsonl:0.2            several sources by weight

A row that is of no use (broken image, no answer, unknown task, prompt too long) raises BadRow; Stream skips
and counts it. All of a row is checked here, so that nothing behind (scorer, logs) meets what it cannot take.
A prompt is never cut: cutting image tokens breaks the model, cutting text changes the question.

    python data.py my.jsonl     what the file is taken for, and which of its rows cannot be used
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from rewards import accuracy_reward, own_parts, references
from tasks import layouts, scenes
from tasks.adapters import ADAPTERS, BAD_RECORD, HUBS, Adapter, reference_box
from tasks.answers import (
    as_letter,
    index_base,
    is_absent,
    is_derivation,
    is_empty,
    label_texts,
    plain,
    read_options,
    read_solution,
    text_of,
    whole_number,
    with_options,
)
from tasks.drawn import SceneRecords, scene_records
from tasks.files import read_adapter, read_copy, read_hub, split_names
from tasks.grading import VERIFIERS
from tasks.grading.boxes import scale_box
from tasks.layouts import IMAGE_MARK
from tasks.mixtures import Mixture, mixture_parts, seeded_order
from tasks.pictures import (
    MAX_IMAGES,
    PICTURE_NAME,
    file_in_text,
    find_file,
    is_address,
    not_fetched,
    open_picture,
    picture_kind,
    picture_list,
)
from tasks.pictures import thumbnail as thumbnail

# One instruction per template; these are the legal values of the knob `template`, beside "auto".
# "(number)" is dropped for tasks whose answer is none: asking for a number there is a bug of R1-V.
TEMPLATES = {
    # R1-V's wording, two spaces included
    "think": (
        "{problem}  Output the thinking process in <think> </think> "
        "and final answer (number) in <answer> </answer> tags."
    ),
    "direct": "{problem}  Output only the final answer (number) in <answer> </answer> tags.",
    "box": (
        "{problem}\n"
        "First output the thinking process in <think> </think> tags "
        "and then output the final answer in <answer> </answer> tags. "
        "Output the final answer in JSON format."
    ),
    "zero": "{problem}",  # the instruction is the system message below, as in R1-Zero: for text-only rows
    "bare": "{problem}",  # no instruction at all: what an untrained model makes of the question
    # R1-V's SuperCLEVR script: one space, and "First"
    "superclevr": (
        "{problem} First output the thinking process in <think> </think> "
        "and final answer (number) in <answer> </answer> tags."
    ),
    # MathVision, MathVerse, OlympiadBench, MMMU
    "solve": (
        "Solve the problem step by step. If it offers options, the answer is the letter of the right one.\n"
        "{problem}\n"
        "Output the thinking process in <think> </think> "
        "and final answer (number) in <answer> </answer> tags."
    ),
}
ZERO_SYSTEM = (
    "A user asks a question and the assistant solves it. "
    "The assistant first reasons about the question and then gives the answer: "
    "the reasoning stands in <think> </think> tags and the answer in <answer> </answer> tags."
)
# Names under which published data sets keep the same thing, in the order of preference.
COLUMNS = {
    "images": ("images", "image_filename", "image", "image_path", "img_filename", "file_name"),
    "problem": ("problem", "question", "q"),
    "solution": ("solution", "answer", "ground_truth", "a"),
    "thinking": ("thinking",),
    "task": ("task",),
    "id": ("id",),
    "options": ("options", "choices"),
    "labels": ("labels",),
    "reward_func": ("reward_func",),
}
# What some chat templates begin the completion with. A closed pair asks the model not to think.
OPENED = re.compile(r"<think>\s*(?:</think>\s*)?\Z")
FIRST = 20  # rows that are looked at to learn what a data set is


class BadRow(Exception):
    """A row that cannot be used; the message, one printable line, says why."""

    def __init__(self, message: str):
        # it may quote the row: a long one is cut, and what a terminal or a log cannot take is escaped
        if len(message) > 600:
            message = f"{message[:300]} ... {message[-300:]}"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


# -----------------------------------------------------------------------------
# sources -> rows
# -----------------------------------------------------------------------------


class Rows:
    """A sequence of rows over any sequence of raw records; row i is read and checked when it is asked for.

    A field is taken from the column that the user has named, else from where the adapter of a published set
    or the recognised layout finds it, else from the first of its usual COLUMNS that the records have.
    """

    def __init__(
        self,
        records,
        name: str,
        columns: str = "",
        image_root: str = "",
        folder: str = ".",
        task: str = "auto",
        adapter: Adapter | None = None,
        roots: tuple = (),
    ):
        if task not in VERIFIERS:
            raise SystemExit(f"task: '{task}' is none of {', '.join(sorted(VERIFIERS))}")
        self.records = records
        self.name = name
        self.task = task
        self.adapter = adapter or Adapter(get="")
        self.folder = Path(folder)
        self.image_root = Path(image_root) if image_root else self.folder
        self.roots = [self.image_root]  # folders that relative image paths may start from
        if adapter and not image_root:
            self.roots = []
            for root in (folder, *roots):
                self.roots += [Path(root), Path(root, "images")]

        present = column_names(records)
        first = self.first_records()
        self.index_base = None  # of references that are numbers of options: 0, 1, or None where they are none
        self.chosen = self.chosen_columns(columns, present, first)
        self.columns = {}  # field -> the column that holds it, or None
        for field, usual in COLUMNS.items():
            found = next((column for column in usual if column in present), None)
            self.columns[field] = self.chosen.get(field, found) or None
        # a row's images come from the first of these that holds any
        self.image_columns = [column for column in COLUMNS["images"] if column in present]
        if "images" in self.chosen:
            self.image_columns = [self.chosen["images"]]
        self.layout = None
        if not adapter and not {"problem", "solution"} <= self.chosen.keys():
            self.layout = layouts.recognise(list(present), first)
        # CLEVR's scene files hold no questions: ask for the number of objects
        self.count_scene = self.columns["problem"] is None and "objects" in present and not self.layout
        if not self.layout and not self.count_scene:
            self.require_columns(self.adapter_fields(present), present)
        self.short_answers = self.find_short_answers(present, first)

        # columns that nothing reads; what an adapter or the user (--columns=images=...) leaves out is meant
        self.unread = []
        if not adapter and "images" not in self.chosen:
            read = {*self.columns.values(), *self.image_columns, "objects" if self.count_scene else ""}
            read |= {self.short_answers, *(self.layout.columns if self.layout else ())}
            self.unread = [column for column in present if column not in read]
        self.first = []  # (record, fields) of the first rows, without those that cannot be read
        for i, record in enumerate(first):
            with contextlib.suppress(BadRow):  # named when its turn comes
                self.first.append((record, self.fields_of(record, f"{self.name}:{i}")))
        self.refuse_unread_pictures()
        self.refuse_addresses()
        if self.index_base is None and not adapter:
            self.index_base = self.find_index_base()

    def first_records(self) -> list[dict]:
        """The first records that are some; none of drawn scenes, of which everything is known."""
        first = []
        if not isinstance(self.records, SceneRecords):
            for i in range(min(FIRST, len(self.records))):
                with contextlib.suppress(BadRow):  # named when its turn comes
                    first.append(self.record(i))
        return first

    def chosen_columns(self, columns: str, present, first: list[dict]) -> dict[str, str]:
        """{"solution": "label"} of "solution=label"; "images=" chooses no column: the rows have no images.

        A column in a column is "reward_model.ground_truth"; "solution=answer+1" says that the answers count
        the options from 1. SystemExit for a pair that is none, an unknown field or a missing column.
        """
        chosen = {}
        for pair in filter(None, columns.split(",")):
            field, sign, column = (word.strip() for word in pair.partition("="))
            if not sign or (not column and field in ("problem", "solution")):
                raise SystemExit(f"columns: '{pair}' is no field=column pair, as in solution=label")
            if field not in COLUMNS:
                raise SystemExit(f"columns: {field} is none of {', '.join(COLUMNS)}")
            counted = re.fullmatch(r"(.+)\+([01])", column)
            if field == "solution" and counted and column not in present:
                column = counted[1]
                self.index_base = int(counted[2])
            chosen[field] = column
        for field, column in chosen.items():
            there = column in present or any(layouts.column_value(r, column) is not None for r in first)
            if column and not there:
                raise SystemExit(
                    f"data: '{self.name}' has no column '{column}' (columns: {field}={column}); "
                    f"it has {', '.join(map(str, present))}"
                )
        return chosen

    def adapter_fields(self, present) -> set[str]:
        """Fields that the adapter finds in the first good record.

        SystemExit if it looks for a column that the records do not have.
        """
        if not self.adapter.row:
            return set()
        for i in range(min(100, len(self.records))):
            try:
                return set(self.adapter.row(self.records[i]))
            except KeyError as error:
                if error.args[0] not in present:
                    raise SystemExit(
                        f"data: '{self.name}' has no column '{error.args[0]}', "
                        f"so it is another data set than its adapter expects ({self.adapter.get}); "
                        f"it has {', '.join(map(str, present))}"
                    ) from error
                # else this record alone lacks it
            except BAD_RECORD:
                continue  # a bad record says nothing about the columns: the next one may be good
        return set()

    def require_columns(self, given: set[str], present) -> None:
        """SystemExit if problem or solution has no column and is not `given` by the adapter either."""
        for field in ("problem", "solution"):
            if self.columns[field] is None and field not in given:
                raise SystemExit(
                    f"data: '{self.name}' has no column for the {field} ({', '.join(COLUMNS[field])}); "
                    f"it has {', '.join(map(str, present))}. Name it with --columns={field}=NAME"
                )

    def find_short_answers(self, present, first: list[dict]) -> str | None:
        """The column with the answers alone, if at least half of the solutions beside it are derivations.

        Of such a row the answer that the derivation marks (\\boxed and the like) is the reference, else that
        column's, and the derivation is the thinking.
        """
        if self.adapter.get or "solution" in self.chosen or self.columns["solution"] != "solution":
            return None
        short = next((column for column in ("answer", "ground_truth") if column in present), None)
        pairs = [(record.get("solution"), record.get(short)) for record in first]
        pairs = [pair for pair in pairs if not is_empty(pair[0]) and not is_empty(pair[1])]
        derived = sum(is_derivation(*pair) for pair in pairs)
        return short if pairs and derived * 2 >= len(pairs) else None

    def find_index_base(self) -> int | None:
        """Whether numbers as references of choices count the options from 0 or from 1 (answers.index_base).

        SystemExit if the first 1,000 rows do not show it.
        """
        answers = []
        for i in range(min(1000, len(self))):
            if i == FIRST and not any(whole_number(answer) is not None for answer, *_ in answers):
                break
            try:
                fields = self.fields_of(self.record(i), "")
                options, labels = read_options(fields["options"])
                answer, _ = read_solution(fields["solution"], "auto", fields["short"])
            except (BadRow, ValueError, RecursionError):
                continue
            if options:
                answers.append((answer, options, labels))
        try:
            return index_base(answers)
        except ValueError as error:
            column = self.columns["solution"] or "answer"
            raise SystemExit(
                f"data: '{self.name}': {error}; say it with --columns=solution={column}+0 (or {column}+1)"
            ) from error

    def refuse_unread_pictures(self) -> None:
        """SystemExit if there is no image column, but pictures or video in a column that nothing reads."""
        if self.image_columns:
            return
        for record, fields in self.first:
            found = self.unread_pictures(record, fields["images"])
            if found:
                raise SystemExit(f"data: '{self.name}' has {found}")

    def unread_pictures(self, record: dict, images) -> str:
        """What a record without images has in a column that nothing reads, and the remedy; "" if nothing."""
        if not self.unread or not is_empty(images):
            return ""
        for column in self.unread:
            value = record.get(column)
            kind = picture_kind(value)
            if not kind:
                continue
            is_path = isinstance(value, str) and file_in_text(value) is None
            if not PICTURE_NAME.search(column) and (
                self.image_columns or (is_path and self.find_image(value) is None)
            ):
                continue  # without a telling name, a remark: beside an image column, or of a file not here
            remedy = f"name it with --columns=images={column}"
            if kind == "video":
                remedy = "video is not supported: leave these rows out"
            return (
                f"{kind} in the column '{column}', which is not read; {remedy} "
                "(--columns=images= goes without)"
            )
        return ""

    def refuse_addresses(self) -> None:
        """SystemExit if the pictures of all of the first rows are addresses, which are not fetched."""
        addresses = []
        for _, fields in self.first:
            with contextlib.suppress(ValueError):  # a list with a gap: named when its turn comes
                sources = picture_list(fields["images"], self.find_image)
                if not all(map(is_address, sources)):
                    return
                addresses += sources
        if addresses:
            raise SystemExit(f"data: '{self.name}': {not_fetched(addresses[0])}")

    def image_source(self, record: dict):
        """What a record has for images: in the first of the image columns that holds anything; else None."""
        values = (layouts.column_value(record, column) for column in self.image_columns)
        return next((value for value in values if not is_empty(value)), None)

    def find_image(self, source: str | Path) -> Path | None:
        """Where the image file of that path is, None if it is in no place that the path may mean."""
        return find_file(source, self.roots, self.folder, published=bool(self.adapter.get))

    def description(self) -> str:
        """For a person, in one line: what the source was taken for, and what became of its first rows."""
        used = dict.fromkeys([*self.columns.values(), *self.image_columns])
        kind = "columns " + ", ".join(column for column in used if column)
        if isinstance(self.records, SceneRecords):
            kind = "drawn scenes"
        elif self.adapter.get:
            kind = "published set"
        elif self.layout:
            kind = self.layout.name
        parts = [f"data: {self.name}: {kind}"]
        if self.first:
            pictures = sum(not is_empty(fields["images"]) for _, fields in self.first)
            parts.append(f"{pictures} of the first {len(self.first)} rows have pictures")
        if self.index_base is not None:
            parts.append(f"answers count the options from {self.index_base}")
        line = ", ".join(parts)
        reason = ""
        for i in range(min(FIRST, len(self))):
            try:
                row = self[i]
            except BadRow as problem:
                reason = reason or str(problem)
                continue
            which = "the first" if i == 0 else f"the first that can be used, row {i}"
            return f"{line}; {which}: '{brief(row['problem'])}' -> '{brief(row['solution'])}'"
        return f"{line}; none of them can be used: {reason}"

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):  # drawn scenes never end, and neither would `for row in rows`
            raise IndexError(i)
        record = self.record(i)
        fields = self.fields_of(record, f"{self.name}:{i}")
        row_id = fields["id"]
        unread = self.unread_pictures(record, fields["images"])
        if unread:
            raise BadRow(f"row {row_id} has {unread}")
        try:
            # a ValueError of these says in its own words what is wrong with the row
            row = self.checked(fields)
            if not row["problem"].replace(IMAGE_MARK, "").strip():
                raise BadRow(f"row {row_id} has no problem")
            if not row["solution"]:
                raise BadRow(f"row {row_id} has no answer")
            if not self.adapter.get:  # the rows of a benchmark are all counted
                refuse_unanswerable(row)
            sources = picture_list(fields["images"], self.find_image)
            images = [open_picture(source, self.find_image, self.image_root) for source in sources]
        except (ValueError, RecursionError) as error:
            raise BadRow(f"row {row_id}: {error}") from error
        context = row["context"] or []
        problem = with_options(row["problem"], row["options"])
        marks = sum(text.count(IMAGE_MARK) for text in (problem, *(turn["content"] for turn in context)))
        if marks not in (0, len(images)):
            raise BadRow(f"row {row_id}: {marks} {IMAGE_MARK} in the problem for {len(images)} images")
        # of a chat each mark says in which turn its image belongs
        row["problem"] = problem if context else without_leading_marks(problem)
        return {"id": row_id, "images": images} | row | {"columns": record, "source": self.name}

    def checked(self, fields: dict) -> dict:
        """The fields of a row but for its id and images, checked. Raises ValueError in words."""
        reward_func = plain(fields["reward_func"])
        fields["reward_func"] = None if is_absent(reward_func) else reward_func or None
        parts = own_parts(fields["reward_func"])
        task, template = self.task_and_template(fields)
        solution, reasoning = read_solution(fields["solution"], task, fields["short"])
        published = bool(self.adapter.get)
        options, labels = read_options(fields["options"], published)
        if options and solution and task in ("auto", "choice") and not published:
            solution = as_letter(solution, options, labels, self.index_base)
            task = "choice"
        if "iou" in parts:
            reference_box(solution)
        return {
            "problem": text_of(fields["problem"], "problem"),
            "solution": solution,
            "task": task,
            "thinking": text_of(fields["thinking"], "thinking") or reasoning or None,
            "options": options,
            "labels": label_texts(fields["labels"]),
            "context": context_turns(fields["context"]),
            "template": template,
            "reward_func": fields["reward_func"],
        }

    def record(self, i: int) -> dict:
        """Record i as the source has it. Raises BadRow for what is none."""
        try:
            record = self.records[i]
        except ValueError as error:  # a text in a table that is not UTF-8, for example
            raise BadRow(f"row {self.name}:{i} cannot be read ({error})") from error
        if not isinstance(record, dict):
            raise BadRow(f"row {self.name}:{i} is a {type(record).__name__} and no record with columns")
        return record

    def fields_of(self, record: dict, place: str) -> dict:
        """The fields of a row as its record has them, unchecked; only the id is ready. Raises BadRow.

        `place` is its id if the record has none. The field "short" is the answer beside a derivation.
        """
        fields = {}
        for field, column in self.columns.items():
            fields[field] = layouts.column_value(record, column) if column else None
        fields["id"] = row_name(fields["id"], place)
        fields["images"] = self.image_source(record)
        fields["template"] = fields["context"] = None
        fields["short"] = record.get(self.short_answers)
        if self.count_scene:
            objects = record.get("objects")
            fields["problem"] = "How many items are there in the image?"
            fields["solution"] = len(objects) if isinstance(objects, list) else None
        found = self.layout.row if self.layout else self.adapter.row
        if found:
            try:
                fields |= found(record)
            except BAD_RECORD as error:
                # a plain ValueError is the adapter's own words, anything else needs its name to be understood
                kind = "" if type(error) is ValueError else f"{type(error).__name__} "
                raise BadRow(f"row {fields['id']}: {kind}{error}") from error
            for field, column in self.chosen.items():
                fields[field] = layouts.column_value(record, column)
            fields["id"] = row_name(fields["id"], place)
        return fields

    def task_and_template(self, fields: dict) -> tuple[str, str | None]:
        """The verifier and the prompt of a row: its own, else those of the knob or the published set.

        Raises ValueError for a task that nobody can verify.
        """
        task = text_of(fields["task"], "task").strip().lower()
        if not task:
            task = self.adapter.task if self.task == "auto" else self.task
        if task not in VERIFIERS:
            raise ValueError(
                f"task '{task}' is none of {', '.join(sorted(VERIFIERS))} "
                "(--columns=task= leaves the column out)"
            )
        if task == "auto" and fields["reward_func"] in ("iou", ["iou"]):
            return "grounding", fields["template"] or "box"
        return task, fields["template"] or self.adapter.template


def column_names(records):
    """The columns of a table; of JSON records those of all, as the first may be the one without an image."""
    named = getattr(records, "column_names", None)
    if named:
        return named
    columns = itertools.chain.from_iterable(record for record in records if isinstance(record, dict))
    return list(dict.fromkeys(columns))


def row_name(given, place: str) -> str:
    """The id that a record has, else its `place` in the source. BadRow if no file can hold it."""
    try:
        return place if is_empty(given) else text_of(str(given), "id")
    except (ValueError, RecursionError) as error:
        raise BadRow(f"row {place}: {error}") from error


def refuse_unanswerable(row: dict) -> None:
    """ValueError for a reference that not even itself would answer, such as "many" where the task is count.

    A long one may be a derivation or a description, for SFT alone, and is left alone. Verifiers compare equal
    texts first, so this takes about 0.1 ms.
    """
    accepted = references(row)
    if any(len(answer) > 500 for answer in accepted):
        return
    if not any(accuracy_reward(f"<answer>{answer}</answer>", row) for answer in accepted):
        raise ValueError(f"no answer could meet the reference '{row['solution'][:80]}' (task {row['task']})")


def context_turns(context) -> list[dict] | None:
    """The turns of a chat before the problem, checked as the problem is. Raises ValueError."""
    turns = [{"role": turn["role"], "content": text_of(turn["content"], "context")} for turn in context or ()]
    return turns or None


def brief(text: str, length: int = 60) -> str:
    """The text in one line, cut where it is longer."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 4] + " ..."


def without_leading_marks(problem: str) -> str:
    """The problem without its image marks if all stand before the text, where images come anyway."""
    rest = re.sub(rf"^(?:\s*{IMAGE_MARK})+\s*", "", problem)
    return problem if IMAGE_MARK in rest else rest


def load_rows(
    spec: str,
    split: str = "train",
    columns: str = "",
    image_root: str = "",
    task: str = "auto",
    say: Callable = lambda line: None,
) -> Rows | Mixture:
    """The rows of a source (see the module's docstring).

    columns     "solution=label,problem=text" where the names are not among COLUMNS; "images=": no images;
                "solution=reward_model.ground_truth" is a column in a column, "solution=answer+1" an answer
                that counts the options from 1
    image_root  folder that relative image paths start from; default: the file's own
    task        the task of rows that do not name one; "auto": by their solution
    say         is given one line for each source: what it was taken for

    A name of tasks/adapters.py comes before a file of that name (./geoqa is the file), a file before a hub
    id. Raises SystemExit with one sentence if the source is missing or empty.
    """
    parts = [] if Path(spec).exists() else mixture_parts(spec)
    if parts:
        sources = [load_rows(part, split, columns, image_root, task, say) for part, _ in parts]
        return Mixture(spec, sources, [weight for _, weight in parts])

    name, own_split, copy = published_set(spec)
    adapter = ADAPTERS.get(name)
    if adapter:
        splits = split_names(name, own_split or split)
        records, folder, roots = read_adapter(name, splits, copy)
        # rows are called mmmu/validation:7 wherever the copy lies
        label = f"{name}/{splits[0]}" if len(adapter.splits) > 1 else name
    else:
        records, folder = read_source(spec, split)
        roots = ()
        label = spec if len(spec) < 40 else Path(spec).name
    if len(records) == 0:
        raise SystemExit(f"data: '{spec}' holds no rows")
    rows = Rows(records, label, columns, image_root, str(folder), task, adapter, roots)
    say(rows.description())
    return rows


def published_set(spec: str) -> tuple[str, str, str]:
    """Name in ADAPTERS, split and local copy that a source names, "" for each that it does not.

    "refcoco/testA" -> ("refcoco", "testA", ""), "geoqa@/data/GEOQA" -> ("geoqa", "", "/data/GEOQA"),
    "MMMU/MMMU" -> ("mmmu", "", ""), "rows.jsonl" -> ("", "", "").
    """
    head, _, copy = spec.partition("@")
    there = Path(spec).exists()
    if head in HUBS:
        if there and not copy:
            copy = spec
        return HUBS[head], "", copy
    name, _, split = head.partition("/")
    if name not in ADAPTERS or (split and there):  # clevr/rows.jsonl is a file
        return "", "", ""
    return name, split, copy


def read_source(spec: str, split: str) -> tuple:
    """(records, folder that relative image paths start from) of a source that is no published set."""
    path = Path(spec)
    if spec.startswith("scenes:"):
        return scene_records(spec), Path(".")
    if path.exists():
        return read_copy(path, [split])
    if spec.count("/") == 1 and not path.suffix and not spec.startswith("."):
        return read_hub(spec, [split]), Path(".")
    hint = "; several sources want weights, as in clevr:1,geoqa:1" if "," in spec else ""
    raise SystemExit(
        f"data: '{spec}' does not exist; name a file, a folder, a hub id or scenes:<split>{hint}"
    )


# -----------------------------------------------------------------------------
# rows -> prompts -> model inputs
# -----------------------------------------------------------------------------


def build_prompt(row: dict, template: str = "auto") -> list[dict]:
    """Chat messages of a row: its context, then the problem in its template.

    Images stand before the first question, or in the texts where they have an <image> for each.

    `template` is a key of TEMPLATES; "auto": the row's own, else "think".
    """
    if template == "auto":
        template = row.get("template") or "think"
    if template not in TEMPLATES:
        raise SystemExit(f"template: '{template}' is none of auto, {', '.join(TEMPLATES)}")
    text = TEMPLATES[template].format(problem=row["problem"])
    if not wants_number(row):
        text = text.replace("final answer (number)", "final answer")
    turns = [*(row.get("context") or ()), {"role": "user", "content": text}]
    marked = sum(turn["content"].count(IMAGE_MARK) for turn in turns) == len(row["images"])
    unplaced = 0 if marked else len(row["images"])  # not marked, the usual case: before the first question
    messages = []
    for turn in turns:
        pieces = turn["content"].split(IMAGE_MARK) if marked else [turn["content"]]
        if turn["role"] == "user":
            pieces = [""] * unplaced + pieces
            unplaced = 0
        content = []
        for number, piece in enumerate(pieces):
            if number:
                content.append({"type": "image"})
            if piece:
                content.append({"type": "text", "text": piece})
        if turn["role"] != "user" and len(pieces) == 1:
            content = turn["content"]
        messages.append({"role": turn["role"], "content": content})
    if template == "zero":
        system = ZERO_SYSTEM
        if messages[0]["role"] == "system":
            system = f"{messages.pop(0)['content']}\n{ZERO_SYSTEM}"
        messages.insert(0, {"role": "system", "content": system})
    return messages


def wants_number(row: dict) -> bool:
    """Is the answer a number, by the task or, where it is "auto", by the look of the solution?"""
    if row["task"] == "auto":
        return re.fullmatch(r"[-\d.,]+", row["solution"]) is not None
    return row["task"] in ("count", "math")


def fit_image(image: Image.Image, factor: int, min_pixels: int, max_pixels: int) -> Image.Image:
    """The image in Qwen's frame: sides multiples of `factor`, area within the limits, aspect kept.

    `factor` is the side of one visual token, 28 pixels in Qwen2-VL. Done once, here, so that vLLM and the
    trainer see the same pixels whatever limits their processors carry. Raises ValueError if one side is more
    than 200 times the other.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    height, width = smart_resize(image.height, image.width, factor, min_pixels, max_pixels)
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def processor_limits(processor, max_pixels: int) -> dict:
    """Size limits under which neither transformers' processor nor vLLM's resizes what fit_image has resized.

    Any multiple will do.
    """
    factor = processor.image_processor.patch_size * processor.image_processor.merge_size
    return {"shortest_edge": factor**2, "longest_edge": max(max_pixels, factor**2)}


def choose_box_frame(
    box_frame: str, processor, original: tuple[int, int], resized: tuple[int, int]
) -> tuple[int, int]:
    """Width and height of the frame in which a policy writes boxes.

    The "resized" image, a "thousand" by a thousand, the "original" image, or "auto": what the family has
    learned. Qwen2.5-VL writes pixels of the image that it sees, Qwen2-VL and Qwen3-VL thousandths.
    """
    if box_frame == "auto":
        box_frame = "resized" if "2_5" in type(processor).__name__ else "thousand"
    frames = {"resized": resized, "thousand": (1000, 1000), "original": original}
    if box_frame not in frames:
        raise SystemExit(f"box_frame: '{box_frame}' is none of auto, {', '.join(frames)}")
    return frames[box_frame]


def encode_prompt(
    row: dict,
    processor,
    template: str = "auto",
    max_prompt_length: int = 1024,
    min_pixels: int = 3136,
    max_pixels: int = 401408,
    box_frame: str = "auto",
) -> dict:
    """What the samplers and the trainer need of one row: a prompt, as a dict.

    row             the row with its images resized; "image_size", which the first of them had before that,
                    and "box_frame", both (width, height)
    token_ids       one placeholder per image: vLLM expands it itself
    input_ids       expanded: one placeholder per visual token
    pixel_values    (patches, values), or None without images
    image_grid_thw  (images, 3): patches of each image in time, height and width, or None
    opened          how the chat template itself begins the completion: "<think>\\n", or "" where it does not

    Raises BadRow if it is longer than `max_prompt_length` tokens (visual ones included), has more than
    MAX_IMAGES images or one that cannot be resized, or a text of it holds a special token of the tokenizer.
    """
    tokenizer, image_processor = processor.tokenizer, processor.image_processor
    refuse_special_tokens(row, tokenizer)
    messages = build_prompt(row, template)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    opened = OPENED.search(text)
    token_ids = tokenizer(text, add_special_tokens=False).input_ids
    placeholder = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    images = list(row["images"])
    if token_ids.count(placeholder) != len(images):
        raise BadRow(
            f"row {row['id']}: the chat template makes no placeholder of each of {len(images)} images"
        )
    if len(images) > MAX_IMAGES:
        raise BadRow(f"row {row['id']}: {len(images)} images, more than {MAX_IMAGES}")

    row = row | {"images": images}  # a copy: the caller's row is left alone
    input_ids, pixels, grid = token_ids, None, None
    if images:
        factor = image_processor.patch_size * image_processor.merge_size
        try:
            row["images"] = [fit_image(image, factor, min_pixels, max_pixels) for image in images]
        except ValueError as error:
            raise BadRow(f"row {row['id']}: {error}") from error
        row["image_size"] = images[0].size
        row["box_frame"] = choose_box_frame(box_frame, processor, images[0].size, row["images"][0].size)
        limits = processor_limits(processor, max_pixels)
        done = image_processor(images=row["images"], size=limits, return_tensors="pt")
        pixels, grid = done["pixel_values"], done["image_grid_thw"]
        visual_tokens = grid.prod(-1) // image_processor.merge_size**2  # (images,)
        input_ids = expand_placeholders(token_ids, placeholder, visual_tokens.tolist())
    if len(input_ids) > max_prompt_length:
        raise BadRow(
            f"row {row['id']}: prompt of {len(input_ids)} tokens, "
            f"more than max_prompt_length={max_prompt_length}"
        )
    return {
        "row": row,
        "token_ids": token_ids,
        "input_ids": input_ids,
        "pixel_values": pixels,
        "image_grid_thw": grid,
        "opened": opened[0] if opened else "",
    }


def refuse_special_tokens(row: dict, tokenizer) -> None:
    """BadRow if a text of the row holds a special token, such as <|im_end|>: it would act and not be read.

    <think> and the like are added tokens but not special ones.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = [(field, row.get(field) or "") for field in ("problem", "solution", "thinking")]
    texts += [("context", turn["content"]) for turn in row.get("context") or ()]
    for field, text in texts:
        found = next((token for token in special if token in text), None)
        if found:
            raise BadRow(f"row {row['id']}: the {field} holds {found}, a special token of the model")


def expand_placeholders(token_ids: list[int], placeholder: int, counts: list[int]) -> list[int]:
    """The tokens with the placeholder of image k repeated counts[k] times."""
    counts = iter(counts)
    expanded = []
    for token in token_ids:
        repeats = next(counts) if token == placeholder else 1
        expanded += [token] * repeats
    return expanded


def target_text(row: dict, target: str = "cot", opened: str = "") -> str:
    """What SFT imitates: `cot` = thinking and answer, `answer` = the answer alone.

    `opened` is what the chat template has begun the completion with (encode_prompt): the target goes on from
    there, and an answer alone closes the tag first. A box is written in the frame of the policy, so give the
    row of the encoded prompt, which knows it. Raises BadRow if the thinking is missing or has no place.
    """
    accepted = references(row)
    answer = max(accepted, key=accepted.count)  # the first of the most frequent
    if row.get("task") == "grounding":
        box = json.loads(row["solution"])
        if row.get("box_frame"):
            box = [round(x) for x in scale_box(box, row["image_size"], row["box_frame"])]
        answer = json.dumps({"bbox_2d": box})
    answer = f"<answer> {answer} </answer>"
    is_open = opened and "</think>" not in opened
    if target == "answer":
        return f"</think> {answer}" if is_open else answer
    if not row["thinking"]:
        raise BadRow(
            f"row {row['id']} has no thinking to imitate (set --target=answer to train on answers alone)"
        )
    if opened and not is_open:
        raise BadRow(
            f"row {row['id']}: the chat template closes the thinking before the completion begins; "
            "set --target=answer, or take a template that leaves it open"
        )
    thinking = row["thinking"].strip()
    if not thinking.startswith("<think>"):
        thinking = f"<think> {thinking} </think>"
    if is_open:
        thinking = thinking.removeprefix("<think>").lstrip()
    return f"{thinking} {answer}"


def reader_threads() -> ThreadPoolExecutor:
    """Threads that read, decode and encode rows.

    Pillow and torch let each other run, so images need no further processes.
    """
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # the others of this machine want their share
    share = (os.cpu_count() or 1) // ranks_here
    return ThreadPoolExecutor(max(1, min(8, share)))


def try_encode(rows, encode, index: int):
    """The prompt of a row, or the BadRow that says why there is none."""
    try:
        return encode(rows[index])
    except BadRow as problem:
        return problem


class Stream:
    """Endless prompts of one rank, in a seeded order: every epoch a new permutation, strided over the ranks.

    `take(n)` gives the next n usable prompts and prepares the n after them in threads while the GPU works.
    `cursor` (rows looked at so far by this rank) is all there is to save: the same cursor gives the same next
    prompts. On another number of ranks than the run has started with, see go_on_for.
    """

    def __init__(
        self,
        rows: Rows | Mixture,
        encode,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        say=print,
    ):
        if len(rows) < world:
            raise SystemExit(
                f"data: {len(rows)} rows for {world} processes; every process needs at least one"
            )
        self.rows = rows
        self.encode = encode
        self.seed = seed
        self.rank = rank
        self.world = world
        self.shuffle = shuffle
        self.say = say
        # rows of this rank in an epoch; a rest of less than `world` rows is left for other epochs
        self.per_epoch = len(rows) // world
        self.cursor = 0
        self.skipped = 0
        self.warned = False  # that a large share was skipped
        self.order = []  # of the rows, in the epoch that the last row was of
        self.order_epoch = -1
        self.lanes = {}  # streams of the processes that the run has started with: see go_on_for
        self.pending = None  # the future of the prompts that are being prepared
        self.pending_for = None  # the (cursor, n) that they are for
        self.worker = ThreadPoolExecutor(1)
        self.readers = reader_threads()

    @property
    def epoch(self) -> float:
        if self.lanes:
            return next(iter(self.lanes.values())).epoch
        return self.cursor / self.per_epoch

    def places(self) -> dict[int, tuple[int, int]]:
        """{rank: (cursor, skipped)}: all there is to save, for the ranks that the run has started with."""
        streams = self.lanes or {self.rank: self}
        return {rank: (stream.cursor, stream.skipped) for rank, stream in streams.items()}

    def go_on_for(self, cursors: list[int], skipped: list[int]) -> None:
        """From now on take the prompts that len(cursors) ranks would have taken, from these places on.

        So a run that has started on 2 processes sees the same batches and the same epochs on 1 or 4, also
        where rows are skipped. Prompt k of a step was prompt k // 2 of rank k % 2; the streams of those ranks
        live on as lanes. A rank reads all of the lanes that it needs a prompt of: which rows are skipped
        decides what comes next.
        """
        before = len(cursors)
        stride = math.gcd(before, self.world)  # ranks and lanes that leave the same rest go together
        for lane in range(self.rank % stride, before, stride):
            stream = Stream(self.rows, self.encode, self.seed, lane, before, self.shuffle, self.say)
            stream.cursor, stream.skipped = cursors[lane], skipped[lane]
            stream.worker, stream.readers = self.worker, self.readers
            self.lanes[lane] = stream
        self.count_skipped()

    def count_skipped(self) -> None:
        """Of several ranks that read the same lanes one counts what they skip."""
        lanes = self.lanes.values() if self.rank == min(self.lanes) else ()
        self.skipped = sum(stream.skipped for stream in lanes)

    def row_index(self, position: int) -> int:
        """Index of the row that this rank looks at as its number `position`."""
        if isinstance(self.rows, Mixture):
            return self.rows.row_of_draw(position * self.world + self.rank, self.seed, self.shuffle)
        epoch, place = divmod(position, self.per_epoch)
        if self.order_epoch != epoch:
            self.order = seeded_order(range(len(self.rows)), f"{self.seed}-{epoch}", self.shuffle)
            self.order_epoch = epoch
        return self.order[place * self.world + self.rank]

    def collect(self, cursor: int, n: int) -> tuple[list[dict], int, list[str]]:
        """n usable prompts from `cursor` on, the cursor behind them, and why other rows were skipped."""
        prompts, problems = [], []
        bad_run = 0
        while len(prompts) < n:
            # never more rows than prompts are missing: so the cursor stands behind the last row needed
            missing = n - len(prompts)
            indices = [self.row_index(cursor + k) for k in range(missing)]
            cursor += missing
            encoded = self.readers.map(lambda index: try_encode(self.rows, self.encode, index), indices)
            for done in list(encoded):
                if not isinstance(done, BadRow):
                    prompts.append(done)
                    bad_run = 0
                    continue
                problems.append(str(done))
                bad_run += 1
                if bad_run >= min(1000, self.per_epoch):
                    raise SystemExit(
                        f"data: {bad_run} rows on end of '{self.rows.name}' cannot be used; the last: {done}"
                    ) from done
        return prompts, cursor, problems

    def prepare(self, n: int) -> None:
        """Start to collect the next n prompts."""
        self.pending_for = (self.cursor, n)
        self.pending = self.worker.submit(self.collect, self.cursor, n)

    def take(self, n: int) -> list[dict]:
        """The next n prompts.

        Raises SystemExit if a whole epoch (or 1,000 rows on end) holds none that can be used.
        """
        if self.lanes:
            return self.take_from_lanes(n)
        if self.pending_for != (self.cursor, n):  # the first call, another n, or a cursor from a checkpoint
            self.prepare(n)
        prompts, self.cursor, problems = self.pending.result()
        for problem in problems:
            self.skipped += 1
            say_skipped(problem, self.skipped, self.say)
        if self.skipped > 5 and self.skipped >= 0.1 * self.cursor and not self.warned:
            self.warned = True
            self.say(
                f"data: {self.skipped} of the first {self.cursor} rows cannot be used; is that expected?"
            )
        self.prepare(n)
        return prompts

    def take_from_lanes(self, n: int) -> list[dict]:
        """The next n prompts: this rank's share of what all lanes give, in the order of a step."""
        prompts = {}  # place in the step: prompt
        for lane, stream in self.lanes.items():
            share = n * self.world // stream.world
            for p, prompt in enumerate(stream.take(share)):
                prompts[p * stream.world + lane] = prompt
        self.count_skipped()
        return [prompts[p * self.world + self.rank] for p in range(n)]


def say_skipped(problem, number: int, say) -> None:
    """Name a row that cannot be used, the `number`-th: the first ones, and then one in a thousand."""
    if number <= 5 or number % 1000 == 1:
        say(f"data: skipped (number {number}): {problem}")


def take_all(
    rows: Rows, encode, rank: int, world: int, first: int, last: int, say=print
) -> tuple[list[tuple[int, dict]], int]:
    """Evaluation: this rank's share of rows first:last in order, and how many of them could not be used.

    The prompts come as [(index of the row, prompt)].
    """
    prompts, skipped = [], 0
    indices = range(first + rank, last, world)
    with reader_threads() as readers:
        encoded = readers.map(lambda index: try_encode(rows, encode, index), indices)
        pairs = zip(indices, encoded, strict=True)
        bar = tqdm(pairs, desc="read rows", total=len(indices), delay=2, leave=False, disable=rank > 0)
        for index, done in bar:
            if isinstance(done, BadRow):
                skipped += 1
                say_skipped(done, skipped, say)
            else:
                prompts.append((index, done))
    if skipped > 5:
        say(f"data: {skipped} of {len(indices)} rows cannot be used")
    return prompts, skipped


def tiny_corpus() -> list[str]:
    """Text that the tiny model's tokenizer is trained on: the prompts, and the words of the scenes.

    Frequent words become one token.
    """
    question = {"problem": "How many items are there in the image?", "images": [], "task": "count"}
    lines = []
    for template in ("think", "direct"):
        prompt = build_prompt(question, template)[0]["content"][0]["text"]
        lines += [prompt] * 10
    for split in ("clevr", "cogent_b", "superclevr"):
        for i in range(60):
            scene = scenes.sample_scene(i, split=split, layout="grid", min_objects=1, max_objects=8)
            count = str(len(scene["objects"]))
            row = {"id": "", "solution": count, "thinking": scenes.describe_scene(scene)}
            lines += [target_text(row), "system\nYou are a helpful assistant.\nuser\nassistant\n"]
    lines += [f" {number} {number}" for number in range(21)]
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="what a source is taken for, and which rows cannot be used")
    parser.add_argument("source", help="a file, a folder, a hub id, the name of a published set")
    parser.add_argument("--split", default="train")
    for knob in ("columns", "image_root"):
        parser.add_argument(f"--{knob}", default="", help="as in training")
    parser.add_argument("--task", default="auto", help="as in training")
    asked = parser.parse_args()
    rows = load_rows(asked.source, asked.split, asked.columns, asked.image_root, asked.task, print)
    usable, _ = take_all(rows, lambda row: None, 0, 1, 0, len(rows))
    print(f"data: {len(usable):,} of {len(rows):,} rows can be used")
