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
    template     "box"                          the prompt that template = "auto" takes, or None
    reward_func  ["format"]                     reward parts of this row alone, or None

Rows come from a source, named by a knob:

    scenes:clevr?rows=9600&objects=1-8          drawn while training (tasks/scenes.py)
    geoqa, refcoco/testA, geoqa@/data/GEOQA     a published set by its name in tasks/adapters.py, or a copy
    rows.jsonl, CLEVR_val_questions.json        records with image paths; CLEVR's own files as they are
    train.parquet, folder/of/parquets           Hugging Face layout: `image` struct, `problem`, `solution`
    folder                                      written by datasets.save_to_disk, or JSON beside its images
    leonardPKU/clevr_cogen_a_train              a hub id
    clevr:0.5,geoqa:0.3,my.jsonl:0.2            several sources by weight

A row that is of no use (broken image, no answer, unknown task, prompt too long) raises BadRow; Stream skips
and counts it. All of a row is checked here, so that nothing behind (scorer, logs) meets what it cannot take.
A prompt is never cut: cutting image tokens breaks the model, cutting text changes the question.
"""

import base64
import bisect
import decimal
import io
import itertools
import json
import math
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl

from PIL import Image
from tqdm import tqdm

from rewards import own_parts
from tasks import scenes
from tasks.adapters import (
    ADAPTERS,
    BAD_RECORD,
    HUBS,
    Adapter,
    bare,
    read_adapter,
    read_copy,
    read_hub,
    reference_box,
    split_names,
)
from tasks.grading import VERIFIERS, scale_box

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
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Images in one prompt. vLLM wants to know the limit when it starts, and it costs nothing to name a high one.
MAX_IMAGES = 16
# Width * height of one image, checked before it is decoded: phones take 50 million pixels, and a file of 20
# KB can hold 169. Decoded, a pixel takes 4 bytes: 256 MB, in each of up to eight threads.
MAX_IMAGE_PIXELS = 64_000_000
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limits, a warning and an error: ours is lower and names the size
# What may be opened: still pictures that Pillow decodes by itself (for EPS it would run ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
Image.init()
FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is in newer versions of Pillow only
IMAGE_MARK = "<image>"  # in a problem: an image of the row belongs here
# By these a column that holds pictures or video is known.
PICTURE_NAME = re.compile("img|image|picture|photo|video|clip|frame", re.IGNORECASE)
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
VIDEO_FILES = (".mp4", ".webm", ".mov", ".avi", ".mkv")
PICTURE_BYTES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")


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


class SceneRecords:
    """`rows` drawn scenes as records; scene i is the same for ever, so nothing has to be stored.

    Raises ValueError for options that no scene can have.
    """

    column_names = ("id", "images", "problem", "solution", "thinking", "task", "labels")

    def __init__(
        self,
        split: str,
        rows: int = 1000,
        seed: int = 0,
        layout: str = "free",
        objects: str = "3-10",
        size: str = "",
        family: str = "count_all",
        miss: float = 0.0,
        jitter: float = 0.0,
        first: int = 0,
    ):
        # the options of a source arrive as text
        self.split = split
        self.rows = int(rows)
        self.seed = int(seed)
        self.family = family
        self.first = int(first)
        self.miss = float(miss)
        self.jitter = float(jitter)
        low, _, high = objects.partition("-")
        self.sample = {
            "layout": layout,
            "min_objects": int(low),
            "max_objects": int(high or low),
            "size": tuple(int(side) for side in size.split("x")) if size else None,
        }
        scenes.sample_scene(0, split=split, **self.sample)  # ValueError now rather than in mid-run
        if family not in scenes.FAMILIES:
            raise ValueError(f"family '{family}' is none of {', '.join(scenes.FAMILIES)}")

    def __len__(self):
        return self.rows

    def scene(self, i: int) -> dict:
        """The scene graph of row i."""
        return scenes.sample_scene(self.seed * 1_000_000 + self.first + i, split=self.split, **self.sample)

    def __getitem__(self, i: int) -> dict:
        number = self.first + i
        row_id = f"{self.split}/{self.seed}/{number}"
        scene = self.scene(i)
        try:
            asked = scenes.ask(scene, number, self.family)
        except ValueError as error:  # no two objects to compare, for example
            raise BadRow(f"row {row_id}: {error}") from error
        answer = asked["answer"]
        if self.miss and self.family == "count_all":
            # the teacher overlooks small objects: its answer agrees with its list, not with the truth
            answer = str(len(scenes.described_objects(scene, self.miss)))
        image = scenes.draw_scene(scene)
        if self.jitter:
            image = change_light(image, self.jitter, random.Random(f"jitter-{self.seed}-{number}"))
        return {
            "id": row_id,
            "images": [image],
            "problem": asked["question"],
            "solution": answer,
            "thinking": scenes.describe_scene(scene, self.miss),
            "task": "count" if answer.isdigit() else "text",
            "labels": {"objects": len(scene["objects"]), "question": self.family},
        }


def change_light(image: Image.Image, jitter: float, rng: random.Random) -> Image.Image:
    """The image under another lamp: brightness by up to +-jitter, each channel by up to half of that.

    An eye that knows one lamp only is no eye.
    """
    brightness = rng.uniform(1 - jitter, 1 + jitter)
    channels = []
    for channel in image.split():
        gain = brightness * rng.uniform(1 - jitter / 2, 1 + jitter / 2)
        table = [min(255, round(value * gain)) for value in range(256)]
        channels.append(channel.point(table))
    return Image.merge("RGB", channels)


class Rows:
    """A sequence of rows over any sequence of raw records; row i is read and checked when it is asked for.

    A field is taken from the column that the user has named, else from where the adapter of a published set
    finds it, else from the first of its usual COLUMNS that the records have.
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
        self.chosen = self.chosen_columns(columns, present)
        self.columns = {}  # field -> the column that holds it, or None
        for field, usual in COLUMNS.items():
            found = next((column for column in usual if column in present), None)
            self.columns[field] = self.chosen.get(field, found) or None
        # a row's images come from the first of these that holds any
        self.image_columns = [column for column in COLUMNS["images"] if column in present]
        if "images" in self.chosen:
            self.image_columns = [self.chosen["images"]]
        # CLEVR's scene files hold no questions: ask for the number of objects
        self.count_scene = self.columns["problem"] is None and "objects" in present
        given = self.adapter_fields(present)
        if not self.count_scene:
            self.require_columns(given, present)
        # columns that nothing reads; what an adapter or the user (--columns=images=...) leaves out is meant
        self.unread = []
        if not adapter and "images" not in self.chosen:
            read = {*self.columns.values(), *self.image_columns, "objects" if self.count_scene else ""}
            self.unread = [column for column in present if column not in read]
        self.refuse_unread_pictures()

    def chosen_columns(self, columns: str, present) -> dict[str, str]:
        """{"solution": "label"} of "solution=label"; "images=" chooses no column: the rows have no images.

        SystemExit for a pair that is none, an unknown field or a missing column.
        """
        chosen = {}
        for pair in filter(None, columns.split(",")):
            field, sign, column = (word.strip() for word in pair.partition("="))
            if not sign or (not column and field != "images"):
                raise SystemExit(f"columns: '{pair}' is no field=column pair, as in solution=label")
            if field not in COLUMNS:
                raise SystemExit(f"columns: {field} is none of {', '.join(COLUMNS)}")
            chosen[field] = column
        for field, column in chosen.items():
            if column and column not in present:
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

    def refuse_unread_pictures(self) -> None:
        """SystemExit if there is no image column, but pictures or video in a column that nothing reads."""
        if not self.unread or self.image_columns:
            return
        for i in range(min(20, len(self.records))):
            try:
                found = self.unread_pictures(self.record(i))
            except BadRow:
                continue  # named when its turn comes
            if found:
                raise SystemExit(f"data: '{self.name}' has {found}")

    def unread_pictures(self, record: dict) -> str:
        """What a record without images has in a column that nothing reads, and the remedy; "" if nothing."""
        if not self.unread or not is_empty(self.image_source(record)):
            return ""
        for column in self.unread:
            value = record.get(column)
            kind = picture_kind(value)
            if not kind:
                continue
            if not PICTURE_NAME.search(column) and (
                self.image_columns or (isinstance(value, str) and self.find_image(value) is None)
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

    def image_source(self, record: dict):
        """What a record has for images: in the first of the image columns that holds anything; else None."""
        values = (record.get(column) for column in self.image_columns)
        return next((value for value in values if not is_empty(value)), None)

    def require_columns(self, given: set[str], present) -> None:
        """SystemExit if problem or solution has no column and is not `given` by the adapter either."""
        for field in ("problem", "solution"):
            if self.columns[field] is None and field not in given:
                raise SystemExit(
                    f"data: '{self.name}' has no column for the {field} ({', '.join(COLUMNS[field])}); "
                    f"it has {', '.join(map(str, present))}. Name it with --columns={field}=NAME"
                )

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):  # drawn scenes never end, and neither would `for row in rows`
            raise IndexError(i)
        fields = self.read_fields(i)
        row_id = fields["id"]
        try:
            # a ValueError of these says in its own words what is wrong with the row
            reward_func = plain(fields["reward_func"])
            fields["reward_func"] = None if is_absent(reward_func) else reward_func or None
            parts = own_parts(fields["reward_func"])
            task, template = self.task_and_template(fields)
            solution = solution_text(fields["solution"], task)
            problem = text_of(fields["problem"], "problem")
            thinking = text_of(fields["thinking"], "thinking")
            options = option_texts(fields["options"])
            labels = label_texts(fields["labels"])
            if "iou" in parts:
                reference_box(solution)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"row {row_id}: {error}") from error
        if not problem.replace(IMAGE_MARK, "").strip():
            raise BadRow(f"row {row_id} has no problem")
        if not solution:
            raise BadRow(f"row {row_id} has no answer")
        images = self.open_images(fields["images"], row_id)
        problem = with_options(problem, options)
        marks = problem.count(IMAGE_MARK)
        if marks not in (0, len(images)):
            raise BadRow(f"row {row_id}: {marks} {IMAGE_MARK} in the problem for {len(images)} images")
        return {
            "id": row_id,
            "images": images,
            "problem": without_leading_marks(problem),
            "solution": solution,
            "task": task,
            "thinking": thinking or None,
            "options": options,
            "labels": labels,
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

    def read_fields(self, i: int) -> dict:
        """The fields of row i as its record has them, unchecked; only the id is ready. Raises BadRow."""
        place = f"{self.name}:{i}"
        record = self.record(i)
        fields = {field: record.get(column) if column else None for field, column in self.columns.items()}
        fields["id"] = row_name(fields["id"], place)
        fields["images"] = self.image_source(record)
        fields["template"] = None
        unread = self.unread_pictures(record)
        if unread:
            raise BadRow(f"row {fields['id']} has {unread}")
        if self.count_scene:
            objects = record.get("objects")
            fields["problem"] = "How many items are there in the image?"
            fields["solution"] = len(objects) if isinstance(objects, list) else None
        if self.adapter.row:
            try:
                fields |= self.adapter.row(record)
            except BAD_RECORD as error:
                # a plain ValueError is the adapter's own words, anything else needs its name to be understood
                kind = "" if type(error) is ValueError else f"{type(error).__name__} "
                raise BadRow(f"row {fields['id']}: {kind}{error}") from error
            fields |= {field: record.get(column) for field, column in self.chosen.items()}
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
            raise ValueError(f"task '{task}' is none of {', '.join(sorted(VERIFIERS))}")
        if task == "auto" and fields["reward_func"] in ("iou", ["iou"]):
            return "grounding", fields["template"] or "box"
        return task, fields["template"] or self.adapter.template

    def open_images(self, sources, row_id: str) -> list[Image.Image]:
        """The images of a row, whose record holds a list of them (or its JSON as a text), one or none.

        Raises BadRow for more than MAX_IMAGES, before any is opened, and for a gap in a list.
        """
        sources = plain(sources)
        if isinstance(sources, str) and sources.startswith("["):
            sources = json_list(sources)
        if is_empty(sources):
            return []
        if not isinstance(sources, list | tuple):
            sources = [sources]
        if len(sources) > MAX_IMAGES:
            raise BadRow(f"row {row_id}: {len(sources)} images, more than {MAX_IMAGES}")
        for number, source in enumerate(sources, 1):
            if is_empty(source):
                raise BadRow(f"row {row_id}: image {number} of {len(sources)} is missing")
        return [self.open_image(source, row_id) for source in sources]

    def open_image(self, source, row_id: str) -> Image.Image:
        """PIL image (RGB) from a path, a {"bytes", "path"} struct, bytes or an image.

        Of an animation it is the first. Raises BadRow naming what is wrong.
        """
        if isinstance(source, dict):  # the Hugging Face image layout
            source = source["bytes"] if source.get("bytes") is not None else source.get("path")
        if isinstance(source, bytes):
            file = io.BytesIO(source)
        elif isinstance(source, str | Path):
            file = self.find_image(source)
            if file is None:
                raise BadRow(
                    f"row {row_id}: image file {self.image_root / source} not found "
                    "(--image_root is the folder the paths start from)"
                )
        elif isinstance(source, Image.Image):
            return source.convert("RGB")
        else:
            kind = type(source).__name__
            raise BadRow(
                f"row {row_id}: broken image (a {kind} where a path or the bytes of a file are meant)"
            )
        try:
            with Image.open(file, formats=FORMATS) as image:  # reads the header alone
                if image.width * image.height <= MAX_IMAGE_PIXELS:
                    return image.convert("RGB")
                size = f"{image.width} x {image.height}"
        except Exception as error:  # damaged files make Pillow's decoders raise errors of any kind
            raise BadRow(f"row {row_id}: broken image ({type(error).__name__}: {str(error)[:80]})") from error
        raise BadRow(
            f"row {row_id}: image of {size} pixels, more than {MAX_IMAGE_PIXELS / 1e6:.0f} million; "
            "make a smaller copy of it"
        )

    def find_image(self, source: str | Path) -> Path | None:
        """Where the image file of that path is, None if it is in no place that the path may mean.

        A regular file, that is: a device or a pipe could be read for ever.
        """
        parts = Path(source).parts
        # Published lists start their paths at a folder of their authors:
        # without it, or without the next one, the file may be here.
        starts = range(len(parts)) if self.adapter.get else [0]
        tails = [Path(*parts[start:]) for start in starts]
        places = [root / tail for tail in tails for root in self.roots]
        # CLEVR keeps scenes/, questions/ and images/<split>/ side by side and stores bare file names:
        # CLEVR_val_000017.png is of the split val.
        words = str(source).split("_")
        split = words[-2] if len(words) > 1 else words[0]
        places.append(self.folder.parent / "images" / split / source)
        try:
            return next((place for place in places if place.is_file()), None)
        except (OSError, ValueError):  # no name that a file can have: too long, or with a NUL
            return None


def column_names(records):
    """The columns of a table; of JSON records those of all, as the first may be the one without an image."""
    named = getattr(records, "column_names", None)
    if named:
        return named
    columns = itertools.chain.from_iterable(record for record in records if isinstance(record, dict))
    return list(dict.fromkeys(columns))


def plain(value):
    """The value without numpy: a scalar as Python's own, an array as a list."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_absent(value) -> bool:
    """None, or the NaN that pandas writes where there is none."""
    return value is None or (isinstance(value, float | decimal.Decimal) and math.isnan(value))


def is_empty(value) -> bool:
    """Is nothing there: absent, or a text or list without content?"""
    value = plain(value)
    return is_absent(value) or (isinstance(value, str | list | tuple) and len(value) == 0)


def text_of(value, what: str, number: bool = False) -> str:
    """A text of a record, "" if it is absent; `number`: a number will do as well.

    Raises ValueError, which calls it `what`, for values of another kind, and for a text that no file or
    tokenizer takes.
    """
    value = plain(value)
    if is_absent(value):
        return ""
    if number and isinstance(value, int | float | decimal.Decimal):
        # no answer or name has more digits; Python refuses to write a whole number of 4,300
        if not abs(value) < 1e100:
            raise ValueError(f"the {what} is infinite or has more than 100 digits")
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"the {what} is a {type(value).__name__} where a text is meant")
    if re.search(r"[\0\ud800-\udfff]", value):
        raise ValueError(f"the {what} holds a NUL or half a character (a lone surrogate)")
    return value


def row_name(given, place: str) -> str:
    """The id that a record has, else its `place` in the source. BadRow if no file can hold it."""
    try:
        return place if is_empty(given) else text_of(str(given), "id")
    except (ValueError, RecursionError) as error:
        raise BadRow(f"row {place}: {error}") from error


def solution_text(solution, task: str) -> str:
    """The bare answer; "" if there is none. A list is several accepted answers, a point, or a box as JSON.

    Raises ValueError for what is no answer (text_of), or no box where the task is grounding.
    """
    solution = plain(solution)
    if is_empty(solution):
        return ""
    if task == "grounding":
        return json.dumps(reference_box(solution))
    if isinstance(solution, list | tuple):
        answers = [text_of(answer, "solution", number=True) for answer in solution]
        if "" in answers:
            raise ValueError("one of the accepted answers is empty")
        return str(solution)
    # published sets store "<answer> 3 </answer>"
    return bare(text_of(solution, "solution", number=True))


def option_texts(options) -> list[str] | None:
    """["cat", "dog"] of such a list or of {"A": "cat", "B": "dog"}; None if there are no options.

    Raises ValueError for a gap, for more options than letters, and for what is no text (text_of).
    """
    options = plain(options)
    if isinstance(options, dict):
        options = options.values()
    elif not isinstance(options, list | tuple):
        return None
    options = list(options)
    while options and is_absent(options[-1]):
        options.pop()  # parquet gives all rows the keys A to E, and null where there are fewer options
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options, more than there are letters")
    if any(map(is_absent, options)):
        raise ValueError("an option before the last is missing")
    return [text_of(text, "option", number=True) for text in options] or None


def label_texts(labels) -> dict[str, str]:
    """The labels that have a value, as texts. Raises ValueError for what cannot be written to a file."""
    if not isinstance(labels, dict):
        return {}
    there = {name: plain(value) for name, value in labels.items() if not is_absent(plain(value))}
    return {text_of(str(name), "label"): text_of(str(value), "label") for name, value in there.items()}


def json_list(text: str) -> list | str:
    """The list that a text like '["a.png", "b.png"]' holds; the text itself if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def picture_kind(value) -> str:
    """What a value holds, by the suffix of a path or the first bytes of a file: "pictures", "video" or ""."""
    value = plain(value)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, dict):  # the Hugging Face image layout
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image):
        return "pictures"
    if isinstance(value, bytes):
        if value.startswith(PICTURE_BYTES) or value[8:12] in (b"WEBP", b"avif", b"heic"):
            return "pictures"
        return "video" if value[4:8] == b"ftyp" and value[8:11] != b"M4A" else ""  # MP4, and not its sound
    if not isinstance(value, str) or "\n" in value:
        return ""
    if value.lower().endswith(VIDEO_FILES):
        return "video"
    is_picture = value.lower().endswith(PICTURE_FILES) or value.startswith("data:image/")
    return "pictures" if is_picture else ""


def with_options(problem: str, options: list[str] | None) -> str:
    """The problem with its choices below, unless they stand there already."""
    if not options:
        return problem
    first_choice = r"(?:^|\s)\(?A\s?[:.)]\s*" + re.escape(options[0].strip())
    if re.search(first_choice, problem):
        return problem
    return problem + "".join(f"\n({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))


def without_leading_marks(problem: str) -> str:
    """The problem without its image marks if all stand before the text, where images come anyway."""
    rest = re.sub(rf"^(?:\s*{IMAGE_MARK})+\s*", "", problem)
    return problem if IMAGE_MARK in rest else rest


def seeded_order(items, seed: str, shuffle: bool) -> list:
    """The items in an order that the seed alone decides; as they are if not `shuffle`."""
    order = list(items)
    if shuffle:
        random.Random(seed).shuffle(order)
    return order


class Mixture:
    """Several sources by weight: Stream draws each in its share, and each runs through epochs of its own.

    Draw number d of all ranks together belongs to a source by a schedule: blocks in which each source has
    exactly its share, in seeded order. So after any number of draws the shares hold to within one block, and
    d alone says which row comes: the cursor is still all there is to save.

    As a sequence a mixture is its sources one after the other. Its length, by which Stream counts epochs, is
    the number of their rows together, though a small source with a large weight comes round more often.
    """

    def __init__(self, name: str, sources: list[Rows], weights: list[float]):
        self.name = name
        self.sources = sources
        # where each source starts in the sequence, and where the last one ends
        self.starts = list(itertools.accumulate(map(len, sources), initial=0))
        shares = [weight / sum(weights) for weight in weights]
        size = block_size(shares)
        self.counts = [max(1, round(share * size)) for share in shares]  # draws of each source in a block
        # The orders in use, each a dict of one entry: what it depends on -> the order.
        self.block_slots = {}
        self.epoch_orders = [{} for _ in sources]

    def __len__(self):
        return self.starts[-1]

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        source = bisect.bisect_right(self.starts, i) - 1
        return self.sources[source][i - self.starts[source]]

    def row_of_draw(self, draw: int, seed: int, shuffle: bool) -> int:
        """Index of the row that draw number `draw` takes."""
        block, place = divmod(draw, sum(self.counts))
        slots = self.slots_of_block(block, seed, shuffle)
        source = slots[place]
        draws_before = block * self.counts[source] + slots[:place].count(source)  # of this source
        epoch, position = divmod(draws_before, len(self.sources[source]))
        order = self.order_of_epoch(source, epoch, seed, shuffle)
        return self.starts[source] + order[position]

    def slots_of_block(self, block: int, seed: int, shuffle: bool) -> list[int]:
        """The source of each draw of a block."""
        key = (block, seed, shuffle)
        slots = self.block_slots.get(key)
        if slots is None:
            slots = [source for source, count in enumerate(self.counts) for _ in range(count)]
            slots = seeded_order(slots, f"{seed}-block-{block}", shuffle)
            self.block_slots = {key: slots}
        return slots

    def order_of_epoch(self, source: int, epoch: int, seed: int, shuffle: bool) -> list[int]:
        """The rows of a source in the order in which one of its epochs takes them."""
        key = (epoch, seed, shuffle)
        order = self.epoch_orders[source].get(key)
        if order is None:
            order = seeded_order(range(len(self.sources[source])), f"{seed}-{source}-{epoch}", shuffle)
            self.epoch_orders[source] = {key: order}
        return order


def block_size(shares: list[float]) -> int:
    """Length of the shortest block in which every share is a whole number of draws, 1,000 at most."""
    for size in range(1, 1000):
        draws = [share * size for share in shares]
        if all(abs(number - round(number)) < 1e-9 for number in draws):
            return size
    return 1000


def mixture_parts(spec: str) -> list[tuple[str, float]]:
    """[("clevr", 0.5), ("geoqa", 0.5)] of "clevr:0.5,geoqa:0.5"; [] of a single source.

    A part ends in a colon and a number: other colons and commas belong to paths (C:\\rows.jsonl, a,b.jsonl)
    or to scenes:clevr?rows=9. Raises SystemExit if a weight is 0.
    """
    if not re.fullmatch(r".+:\d*\.?\d+", spec):
        return []
    found = re.findall(r"(.+?):(\d*\.?\d+)(?:,|$)", spec)
    parts = [(name.strip(), float(weight)) for name, weight in found]
    if any(weight <= 0 for _, weight in parts):
        raise SystemExit(f"data: '{spec}' gives a source no weight; leave that source out")
    return parts


def load_rows(
    spec: str, split: str = "train", columns: str = "", image_root: str = "", task: str = "auto"
) -> Rows | Mixture:
    """The rows of a source (see the module's docstring).

    columns     "solution=label,problem=text" where the names are not among COLUMNS; "images=": no images
    image_root  folder that relative image paths start from; default: the file's own
    task        the task of rows that do not name one; "auto": by their solution

    A name of tasks/adapters.py comes before a file of that name (./geoqa is the file), a file before a hub
    id. Raises SystemExit with one sentence if the source is missing or empty.
    """
    parts = [] if Path(spec).exists() else mixture_parts(spec)
    if parts:
        sources = [load_rows(part, split, columns, image_root, task) for part, _ in parts]
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
    return Rows(records, label, columns, image_root, str(folder), task, adapter, roots)


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


def scene_records(spec: str) -> SceneRecords:
    """The records of "scenes:clevr?rows=1000&layout=grid"."""
    split, _, query = spec.removeprefix("scenes:").partition("?")
    try:
        options = parse_qsl(query, strict_parsing=True) if query else []
        return SceneRecords(split, **dict(options))
    except (TypeError, ValueError, KeyError) as error:
        example = "scenes:clevr?rows=1000&seed=0&layout=grid&objects=1-8"
        raise SystemExit(f"data: '{spec}' is no scene source ({error}); example: {example}") from error


# -----------------------------------------------------------------------------
# rows -> prompts -> model inputs
# -----------------------------------------------------------------------------


def build_prompt(row: dict, template: str = "auto") -> list[dict]:
    """Chat messages of a row: images before text, or in it where the problem has an <image> for each.

    `template` is a key of TEMPLATES; "auto": the row's own, else "think".
    """
    if template == "auto":
        template = row.get("template") or "think"
    if template not in TEMPLATES:
        raise SystemExit(f"template: '{template}' is none of auto, {', '.join(TEMPLATES)}")
    text = TEMPLATES[template].format(problem=row["problem"])
    if not wants_number(row):
        text = text.replace("final answer (number)", "final answer")
    pieces = text.split(IMAGE_MARK)
    if len(pieces) != len(row["images"]) + 1:  # not marked, the usual case
        pieces = [""] * len(row["images"]) + [text]
    content = []
    for number, piece in enumerate(pieces):
        if number:
            content.append({"type": "image"})
        if piece:
            content.append({"type": "text", "text": piece})
    messages = [{"role": "user", "content": content}]
    if template == "zero":
        messages.insert(0, {"role": "system", "content": ZERO_SYSTEM})
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

    Raises BadRow if it is longer than `max_prompt_length` tokens (visual ones included), has more than
    MAX_IMAGES images or one that cannot be resized, or a text of it holds a special token of the tokenizer.
    """
    tokenizer, image_processor = processor.tokenizer, processor.image_processor
    refuse_special_tokens(row, tokenizer)
    messages = build_prompt(row, template)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
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
    }


def refuse_special_tokens(row: dict, tokenizer) -> None:
    """BadRow if a text of the row holds a special token, such as <|im_end|>: it would act and not be read.

    <think> and the like are added tokens but not special ones.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for field in ("problem", "solution", "thinking"):
        text = row.get(field) or ""
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


def thumbnail(image: Image.Image, side: int = 160) -> str:
    """The image, at most `side` pixels wide and high, as a JPEG data URI for logs and web pages."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def target_text(row: dict, target: str = "cot") -> str:
    """What SFT imitates: `cot` = thinking and answer, `answer` = the answer alone.

    A box is written in the frame of the policy, so give the row of the encoded prompt, which knows it.
    Raises BadRow if the thinking is missing.
    """
    answer = row["solution"]
    if row.get("task") == "grounding":
        box = json.loads(row["solution"])
        if row.get("box_frame"):
            box = [round(x) for x in scale_box(box, row["image_size"], row["box_frame"])]
        answer = json.dumps({"bbox_2d": box})
    answer = f"<answer> {answer} </answer>"
    if target == "answer":
        return answer
    if not row["thinking"]:
        raise BadRow(
            f"row {row['id']} has no thinking to imitate (set --target=answer to train on answers alone)"
        )
    thinking = row["thinking"].strip()
    if not thinking.startswith("<think>"):
        thinking = f"<think> {thinking} </think>"
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
    prompts.
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
        self.pending = None  # the future of the prompts that are being prepared
        self.pending_for = None  # the (cursor, n) that they are for
        self.worker = ThreadPoolExecutor(1)
        self.readers = reader_threads()

    @property
    def epoch(self) -> float:
        return self.cursor / self.per_epoch

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
