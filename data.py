"""Rows, prompts and model inputs: everything between a data set and the policy.

A row is a plain dict, whatever it was made from:

    {"id": "clevr/17", "images": [PIL.Image], "problem": "How many items are there in the image?", "solution": "3",
     "task": "count", "thinking": "red cube, blue sphere, green cube", "options": None, "labels": {"objects": "3"},
     "template": None, "reward_func": None}

`images` may be empty or hold several; `solution` is the bare answer without tags, a box is JSON in pixels of the original image;
`task` chooses the verifier (rewards.py); `thinking` (or None) is what SFT imitates; `options` are the texts of the choices A, B, C...,
which stand in the problem too; `labels` are categories for evaluation's tables; `template` is the prompt that template = "auto" takes;
`reward_func` names reward parts of this row alone. Rows come from a source, named by a knob:

    scenes:clevr?rows=9600&seed=0&layout=grid&objects=1-8    drawn while training (scenes.py)
    geoqa, mmmu, refcoco/testA, geoqa@/data/GEOQA            a published set by its name in adapters.py, and a copy of it
    rows.jsonl, rows.json, CLEVR_val_questions.json          records with image paths; CLEVR's own files as they are
    train.parquet, folder/of/parquets                        Hugging Face layout: `image` struct with bytes, `problem`, `solution`
    folder                                                   written by datasets.save_to_disk, or JSON beside its images
    leonardPKU/clevr_cogen_a_train                           a hub id
    clevr:0.5,geoqa:0.3,my.jsonl:0.2                         several sources by weight

A row that cannot be used (broken image, no answer, prompt too long) raises BadRow; Stream skips, counts and names it.
A prompt is never cut: cutting image tokens breaks the model, cutting text changes the question.
"""

import base64
import bisect
import io
import itertools
import json
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from rewards import own_parts
from tasks import scenes
from tasks.adapters import (
    ADAPTERS,
    HUBS,
    Adapter,
    bare,
    read_adapter,
    read_box,
    read_copy,
    read_hub,
    split_names,
)
from tasks.grading import scale_box

# One instruction per template. "(number)" is dropped for tasks whose answer is none: asking for a number there is a bug of R1-V.
TEMPLATES = {
    # R1-V's wording, two spaces included
    "think": "{problem}  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags.",
    "direct": "{problem}  Output only the final answer (number) in <answer> </answer> tags.",
    "box": "{problem}\nFirst output the thinking process in <think> </think> tags and then output the final answer in "
    "<answer> </answer> tags. Output the final answer in JSON format.",
    "zero": "{problem}",  # the instruction is the system message below, as in R1-Zero: for text-only rows
    "bare": "{problem}",  # no instruction at all: what an untrained model makes of the question
    # R1-V's SuperCLEVR script: one space, and "First"
    "superclevr": "{problem} First output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags.",
    # MathVision, MathVerse, OlympiadBench, MMMU
    "solve": "Solve the problem step by step. If it offers options, the answer is the letter of the right one.\n{problem}\n"
    "Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags.",
}
ZERO_SYSTEM = (
    "A user asks a question and the assistant solves it. The assistant first reasons about the question and then gives the answer: "
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


class BadRow(Exception):
    """A row that cannot be used; the message says why."""


# -----------------------------------------------------------------------------
# sources -> rows
# -----------------------------------------------------------------------------


class SceneRecords:
    """`rows` drawn scenes as records; scene i is the same for ever, so nothing has to be stored."""

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
        low, _, high = objects.partition("-")
        self.split, self.rows, self.seed, self.family, self.first = (
            split,
            int(rows),
            int(seed),
            family,
            int(first),
        )
        self.miss, self.jitter = float(miss), float(jitter)
        self.sample = {"layout": layout, "min_objects": int(low), "max_objects": int(high or low)}
        self.sample["size"] = tuple(int(x) for x in size.split("x")) if size else None
        scenes.sample_scene(0, split=split, **self.sample)  # ValueError now rather than in mid-run
        if family not in scenes.FAMILIES:
            raise ValueError(f"family '{family}' is none of {', '.join(scenes.FAMILIES)}")

    def __len__(self):
        return self.rows

    def scene(self, i: int) -> dict:
        """The scene graph of row i."""
        return scenes.sample_scene(self.seed * 1_000_000 + self.first + i, split=self.split, **self.sample)

    def __getitem__(self, i: int) -> dict:
        scene, i = self.scene(i), self.first + i
        try:
            qa = scenes.ask(scene, i, self.family)
        except ValueError as error:  # no two objects to compare, for example
            raise BadRow(f"row {self.split}/{self.seed}/{i}: {error}") from error
        answer = qa["answer"]
        if self.miss and self.family == "count_all":
            # the fallible teacher overlooks small objects; what it answers agrees with what it listed, not with the truth
            answer = str(len(scenes.described_objects(scene, self.miss)))
        image = scenes.draw_scene(scene)
        if self.jitter:  # brightness and white balance, each channel by up to +-jitter: an eye that knows one lamp only is no eye
            light, rng = [], random.Random(f"jitter-{self.seed}-{i}")
            brightness = rng.uniform(1 - self.jitter, 1 + self.jitter)
            for channel in image.split():
                gain = brightness * rng.uniform(1 - self.jitter / 2, 1 + self.jitter / 2)
                light.append(channel.point([min(255, round(v * gain)) for v in range(256)]))
            image = Image.merge("RGB", light)
        return {
            "id": f"{self.split}/{self.seed}/{i}",
            "images": [image],
            "problem": qa["question"],
            "solution": answer,
            "thinking": scenes.describe_scene(scene, self.miss),
            "task": "count" if answer.isdigit() else "text",
            "labels": {"objects": len(scene["objects"]), "question": self.family},
        }


class Rows:
    """A sequence of rows over any sequence of raw records; row i is read, decoded and checked when it is asked for."""

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
        self.records, self.name, self.task, self.folder = records, name, task, Path(folder)
        self.adapter = adapter or Adapter("")
        self.image_root = Path(image_root) if image_root else self.folder
        self.roots = [Path(root, below) for root in (folder, *roots) for below in ("", "images")]
        if image_root or not adapter:
            self.roots = [self.image_root]
        # A list of JSON records has the columns of all of them: the first row may be the one without an image.
        first = getattr(records, "column_names", None) or list(
            dict.fromkeys(key for record in records for key in record)
        )
        self.chosen = dict(pair.split("=", 1) for pair in columns.split(",") if pair)
        if set(self.chosen) - set(COLUMNS):
            raise SystemExit(
                f"columns: {sorted(set(self.chosen) - set(COLUMNS))[0]} is none of {', '.join(COLUMNS)}"
            )
        for key, column in self.chosen.items():
            if column not in first:
                raise SystemExit(
                    f"data: '{name}' has no column '{column}' (columns: {key}={column}); it has {', '.join(map(str, first))}"
                )
        self.columns = {
            key: self.chosen.get(key) or next((c for c in names if c in first), None)
            for key, names in COLUMNS.items()
        }
        self.count_scene = (
            self.columns["problem"] is None and "objects" in first
        )  # CLEVR's scene files: ask for the number of objects
        given = self.adapter_fields(first)
        for key in () if self.count_scene else ("problem", "solution"):
            if self.columns[key] is None and key not in given:
                raise SystemExit(
                    f"data: '{name}' has no column for the {key} ({', '.join(COLUMNS[key])}); "
                    f"it has {', '.join(map(str, first))}. Name it with --columns={key}=NAME"
                )

    def adapter_fields(self, columns) -> set[str]:
        """Fields that the adapter finds in the first good record. SystemExit if it looks for a column that the records do not have."""
        for i in range(min(100, len(self.records)) if self.adapter.row else 0):
            try:
                return set(self.adapter.row(self.records[i]))
            except KeyError as error:
                if error.args[0] not in columns:
                    raise SystemExit(
                        f"data: '{self.name}' has no column '{error.args[0]}', so it is another data set than its adapter "
                        f"expects ({self.adapter.get}); it has {', '.join(map(str, columns))}"
                    ) from error
            except (ValueError, TypeError, SyntaxError):
                continue
        return set()

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i: int) -> dict:
        record = self.records[i]
        get = {key: record.get(column) if column else None for key, column in self.columns.items()} | {
            "template": None
        }
        if self.count_scene:
            get |= {"problem": "How many items are there in the image?", "solution": len(record["objects"])}
        row_id = str(get["id"]) if get["id"] is not None else f"{self.name}:{i}"
        if self.adapter.row:
            try:
                get |= self.adapter.row(record) | {
                    key: record.get(column) for key, column in self.chosen.items()
                }
            except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError) as error:
                kind = (
                    "" if type(error) is ValueError else f"{type(error).__name__} "
                )  # ValueErrors are the adapter's own words
                raise BadRow(f"row {row_id}: {kind}{error}") from error
            row_id = str(get["id"]) if get["id"] is not None else row_id
        if get["problem"] in (None, ""):
            raise BadRow(f"row {row_id} has no problem")
        solution = bare(
            "" if get["solution"] is None else get["solution"]
        )  # published sets store "<answer> 3 </answer>"
        if not solution:
            raise BadRow(f"row {row_id} has no answer")
        try:
            own_parts(get["reward_func"])
        except ValueError as error:
            raise BadRow(f"row {row_id}: {error}") from error
        task = get["task"] or (self.task if self.task != "auto" else self.adapter.task)
        if task == "auto" and get["reward_func"] == "iou":
            task, get["template"] = "grounding", get["template"] or "box"
        if task == "grounding":
            try:
                solution = json.dumps(read_box(solution))
            except ValueError as error:
                raise BadRow(f"row {row_id}: {error}") from error
        images = get["images"] if isinstance(get["images"], list | tuple) else [get["images"]]
        images = [self.open_image(x, row_id) for x in images if x is not None and x != ""]
        options = list(get["options"].values()) if isinstance(get["options"], dict) else get["options"]
        options = [str(text) for text in options] if options and isinstance(options, list | tuple) else None
        labels = get["labels"] if isinstance(get["labels"], dict) else {}
        return {
            "id": row_id,
            "images": images,
            "problem": with_options(str(get["problem"]), options),
            "solution": solution,
            "task": task,
            "thinking": get["thinking"] or None,
            "options": options,
            "labels": {k: str(v) for k, v in labels.items() if v is not None},
            "template": get["template"] or self.adapter.template,
            "reward_func": get["reward_func"] or None,
        }

    def open_image(self, source, row_id: str) -> Image.Image:
        """PIL image (RGB) from a path, a {"bytes", "path"} struct, bytes or an image. Raises BadRow naming what is wrong."""
        try:
            if isinstance(source, Image.Image):
                return source.convert("RGB")
            if isinstance(source, dict):  # the Hugging Face image layout
                source = source["bytes"] if source.get("bytes") is not None else source.get("path")
            if isinstance(source, bytes):
                return Image.open(io.BytesIO(source)).convert("RGB")
            # Published lists start their paths at a folder of their authors: without it, or the next one, the file may be here.
            parts = Path(source).parts
            tails = [Path(*parts[k:]) for k in range(len(parts) if self.adapter.get else 1)]
            places = [root / tail for tail in tails for root in self.roots]
            # CLEVR keeps scenes/, questions/ and images/<split>/ side by side and stores bare file names
            for path in (*places, self.folder.parent / "images" / str(source).split("_")[-2:][0] / source):
                if path.is_file():
                    return Image.open(path).convert("RGB")
            raise BadRow(
                f"row {row_id}: image file {self.image_root / source} not found (--image_root is the folder the paths start from)"
            )
        except (
            OSError,
            UnidentifiedImageError,
            ValueError,
            TypeError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            # SyntaxError is what Pillow raises on some broken PNGs
            raise BadRow(f"row {row_id}: broken image ({type(error).__name__}: {str(error)[:80]})") from error


def with_options(problem: str, options: list[str] | None) -> str:
    """The problem with its choices below, unless they stand there already."""
    if not options or re.search(r"(?:^|\s)\(?A\s?[:.)]\s*" + re.escape(options[0].strip()), problem):
        return problem
    return problem + "".join(f"\n({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))


class Mixture:
    """Several sources by weight: Stream draws each in its share, and each runs through epochs of its own.

    Draw number d of all ranks together belongs to a source by a schedule: blocks in which each source has exactly its share, in
    seeded order. So after any number of draws the shares hold to within one block, and d alone says which row comes: the cursor is
    still all there is to save. As a sequence a mixture is its sources one after the other; its length, by which Stream counts
    epochs, is the number of their rows together, though a small source with a large weight comes round more often than that.
    """

    def __init__(self, name: str, sources: list[Rows], weights: list[float]):
        self.name, self.sources = name, sources
        shares = [w / sum(weights) for w in weights]
        # the shortest block with whole numbers in it; shares finer than a thousandth are rounded
        size = next(
            (n for n in range(1, 1000) if all(abs(s * n - round(s * n)) < 1e-9 for s in shares)), 1000
        )
        self.counts = [max(1, round(s * size)) for s in shares]
        self.starts = list(itertools.accumulate(map(len, sources), initial=0))
        self.block, self.orders = (None, []), {}

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
        if self.block[0] != (block, seed, shuffle):
            slots = [s for s, count in enumerate(self.counts) for _ in range(count)]
            if shuffle:
                random.Random(f"{seed}-block-{block}").shuffle(slots)
            self.block = ((block, seed, shuffle), slots)
        slots = self.block[1]
        source = slots[place]
        epoch, position = divmod(
            block * self.counts[source] + slots[:place].count(source), len(self.sources[source])
        )
        if self.orders.get(source, (None,))[0] != (epoch, seed, shuffle):
            order = list(range(len(self.sources[source])))
            if shuffle:
                random.Random(f"{seed}-{source}-{epoch}").shuffle(order)
            self.orders[source] = ((epoch, seed, shuffle), order)
        return self.starts[source] + self.orders[source][1][position]


def mixture_parts(spec: str) -> list[tuple[str, float]]:
    """[("clevr", 0.5), ("geoqa", 0.5)] of "clevr:0.5,geoqa:0.5"; [] of a single source.

    A part ends in a colon and a number: other colons and commas belong to paths (C:\\rows.jsonl, a,b.jsonl) or to scenes:clevr?rows=9.
    """
    if not re.fullmatch(r".+:\d*\.?\d+", spec):
        return []
    parts = [(name.strip(), float(weight)) for name, weight in re.findall(r"(.+?):(\d*\.?\d+)(?:,|$)", spec)]
    if any(weight <= 0 for _, weight in parts):
        raise SystemExit(f"data: '{spec}' gives a source no weight; leave that source out")
    return parts


def load_rows(
    spec: str, split: str = "train", columns: str = "", image_root: str = "", task: str = "auto"
) -> Rows | Mixture:
    """The rows of a source (see the module's docstring). Raises SystemExit with one sentence if it is missing or empty.

    columns: "solution=label,problem=text" where the names are not among COLUMNS; image_root: folder that relative image
    paths start from (default: the file's own); task: the task of rows that do not name one ("auto": by their solution).
    A name of adapters.py comes before a file of that name (./geoqa is the file), a file before a hub id.
    """
    if not Path(spec).exists() and (parts := mixture_parts(spec)):
        sources = [load_rows(part, split, columns, image_root, task) for part, _ in parts]
        return Mixture(spec, sources, [weight for _, weight in parts])
    head, _, place = spec.partition("@")
    name, _, own_split = (HUBS[head], "", "") if head in HUBS else head.partition("/")
    path, folder, roots = Path(spec), Path("."), ()
    adapter = None if own_split and path.exists() else ADAPTERS.get(name)
    if adapter:
        copy = place or (spec if head in HUBS and path.exists() else "")
        splits = split_names(name, own_split or split)
        records, folder, roots = read_adapter(name, splits, copy)
        name = (
            f"{name}/{splits[0]}" if len(adapter.splits) > 1 else name
        )  # its rows are called mmmu/validation:7 wherever the copy lies
    elif spec.startswith("scenes:"):
        name, _, query = spec[7:].partition("?")
        try:
            records = SceneRecords(name, **dict(parse_qsl(query, strict_parsing=bool(query))))
        except (TypeError, ValueError, KeyError) as error:
            example = "scenes:clevr?rows=1000&seed=0&layout=grid&objects=1-8"
            raise SystemExit(f"data: '{spec}' is no scene source ({error}); example: {example}") from error
    elif path.exists():
        records, folder = read_copy(path, [split])
    elif spec.count("/") == 1 and not path.suffix and not spec.startswith("."):
        records = read_hub(spec, [split])
    else:
        hint = "" if "," not in spec else "; several sources want weights, as in clevr:1,geoqa:1"
        raise SystemExit(
            f"data: '{spec}' does not exist; name a file, a folder, a hub id or scenes:<split>{hint}"
        )
    if len(records) == 0:
        raise SystemExit(f"data: '{spec}' holds no rows")
    label = name if adapter else spec if len(spec) < 40 else path.name
    return Rows(records, label, columns, image_root, str(folder), task, adapter, roots)


# -----------------------------------------------------------------------------
# rows -> prompts -> model inputs
# -----------------------------------------------------------------------------


def build_prompt(row: dict, template: str = "auto") -> list[dict]:
    """Chat messages of a row, images before text. `template` is a key of TEMPLATES; "auto": the row's own, else "think"."""
    if template == "auto":
        template = row.get("template") or "think"
    if template not in TEMPLATES:
        raise SystemExit(f"template: '{template}' is none of auto, {', '.join(TEMPLATES)}")
    text = TEMPLATES[template].format(problem=row["problem"])
    if row["task"] not in ("count", "math") and not (
        row["task"] == "auto" and re.fullmatch(r"[-\d.,]+", row["solution"])
    ):
        text = text.replace("final answer (number)", "final answer")
    user = {
        "role": "user",
        "content": [{"type": "image"} for _ in row["images"]] + [{"type": "text", "text": text}],
    }
    return [{"role": "system", "content": ZERO_SYSTEM}, user] if template == "zero" else [user]


def fit_image(image: Image.Image, factor: int, min_pixels: int, max_pixels: int) -> Image.Image:
    """The image in Qwen's frame: sides multiples of `factor` (28 px = one visual token), area within the limits, aspect kept.

    Done once, here, so that vLLM and the trainer see the same pixels whatever limits their processors carry.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    height, width = smart_resize(image.height, image.width, factor, min_pixels, max_pixels)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


MAX_IMAGES = (
    16  # per prompt; vLLM wants to know the limit when it starts, and it costs nothing to name a high one
)


def processor_limits(processor, max_pixels: int) -> dict:
    """Size limits under which neither transformers' processor nor vLLM's resizes what fit_image has resized: any multiple will do."""
    factor = processor.image_processor.patch_size * processor.image_processor.merge_size
    return {"shortest_edge": factor**2, "longest_edge": max(max_pixels, factor**2)}


def choose_box_frame(
    box_frame: str, processor, original: tuple[int, int], resized: tuple[int, int]
) -> tuple[int, int]:
    """Width and height of the frame in which a policy writes boxes: "resized" image, a "thousand" by a thousand, "original" image.

    "auto": what the family has learned. Qwen2.5-VL writes pixels of the image that it sees, Qwen2-VL and Qwen3-VL thousandths.
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
    """What the samplers and the trainer need of one row: a prompt.

    Returns {"row" (with its images resized; "image_size", which the first of them had before that, and "box_frame", both (width,
    height)), "token_ids" (one placeholder per image: vLLM expands it itself), "input_ids" (expanded), "pixel_values" (patches, values)
    or None, "image_grid_thw" (images, 3) or None}.
    Raises BadRow if it is longer than `max_prompt_length` tokens (visual ones included), has more than MAX_IMAGES images or one
    that cannot be resized.
    """
    ip, tokenizer = processor.image_processor, processor.tokenizer
    text = processor.apply_chat_template(
        build_prompt(row, template), tokenize=False, add_generation_prompt=True
    )
    token_ids = tokenizer(text, add_special_tokens=False).input_ids
    placeholder = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    if token_ids.count(placeholder) != len(row["images"]):
        raise BadRow(f"row {row['id']}: the text of the problem contains an image placeholder token")
    pixels = grid = None
    input_ids, row = token_ids, row | {"images": list(row["images"])}
    if len(row["images"]) > MAX_IMAGES:
        raise BadRow(f"row {row['id']}: {len(row['images'])} images, more than {MAX_IMAGES}")
    if row["images"]:
        row["image_size"] = row["images"][0].size
        try:
            row["images"] = [
                fit_image(im, ip.patch_size * ip.merge_size, min_pixels, max_pixels) for im in row["images"]
            ]
        except ValueError as error:  # aspect ratio over 200
            raise BadRow(f"row {row['id']}: {error}") from error
        row["box_frame"] = choose_box_frame(box_frame, processor, row["image_size"], row["images"][0].size)
        done = ip(images=row["images"], size=processor_limits(processor, max_pixels), return_tensors="pt")
        pixels, grid = done["pixel_values"], done["image_grid_thw"]
        counts = iter((grid.prod(-1) // ip.merge_size**2).tolist())  # visual tokens of each image
        input_ids = [i for t in token_ids for i in ([t] * next(counts) if t == placeholder else [t])]
    if len(input_ids) > max_prompt_length:
        raise BadRow(
            f"row {row['id']}: prompt of {len(input_ids)} tokens, more than max_prompt_length={max_prompt_length}"
        )
    return {
        "row": row,
        "token_ids": token_ids,
        "input_ids": input_ids,
        "pixel_values": pixels,
        "image_grid_thw": grid,
    }


def thumbnail(image: Image.Image, side: int = 160) -> str:
    """The image, at most `side` pixels wide and high, as a JPEG data URI: logs carry it, web pages show it."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def target_text(row: dict, target: str = "cot") -> str:
    """What SFT imitates: `cot` = thinking and answer, `answer` = the answer alone. Raises BadRow if the thinking is missing.

    A box is written in the frame of the policy, so give the row of the encoded prompt, which knows it.
    """
    answer = f"<answer> {row['solution']} </answer>"
    if row.get("task") == "grounding":
        box = json.loads(row["solution"])
        if row.get("box_frame"):
            box = [round(x) for x in scale_box(box, row["image_size"], row["box_frame"])]
        answer = f"<answer> {json.dumps({'bbox_2d': box})} </answer>"
    if target == "answer":
        return answer
    if not row["thinking"]:
        raise BadRow(
            f"row {row['id']} has no thinking to imitate (set --target=answer to train on answers alone)"
        )
    thinking = row["thinking"].strip()
    return f"{thinking if thinking.startswith('<think>') else f'<think> {thinking} </think>'} {answer}"


def reader_threads() -> ThreadPoolExecutor:
    """Threads that read, decode and encode rows: Pillow and torch let each other run, so images need no further processes."""
    share = (os.cpu_count() or 1) // int(
        os.environ.get("LOCAL_WORLD_SIZE", 1)
    )  # the other ranks of this machine want theirs
    return ThreadPoolExecutor(max(1, min(8, share)))


def try_encode(rows, encode, index: int):
    """The prompt of a row, or the BadRow that says why there is none."""
    try:
        return encode(rows[index])
    except BadRow as problem:
        return problem


class Stream:
    """Endless prompts of one rank, in a seeded order: every epoch a new permutation, strided over the ranks.

    `take(n)` gives the next n usable prompts and prepares the n after them in threads while the GPU works. `cursor`
    (rows looked at so far by this rank) is all there is to save: the same cursor gives the same next prompts.
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
        self.rows, self.encode, self.seed, self.rank, self.world, self.shuffle, self.say = (
            rows,
            encode,
            seed,
            rank,
            world,
            shuffle,
            say,
        )
        self.per_epoch = (
            len(rows) // world
        )  # of this rank; a rest of less than `world` rows is left for other epochs
        self.cursor, self.skipped = 0, 0
        self.order, self.pending, self.worker, self.readers = (
            (-1, []),
            (None, None),
            ThreadPoolExecutor(1),
            reader_threads(),
        )

    @property
    def epoch(self) -> float:
        return self.cursor / self.per_epoch

    def row_index(self, position: int) -> int:
        if isinstance(self.rows, Mixture):
            return self.rows.row_of_draw(position * self.world + self.rank, self.seed, self.shuffle)
        epoch, place = divmod(position, self.per_epoch)
        if self.order[0] != epoch:
            order = list(range(len(self.rows)))
            if self.shuffle:
                random.Random(f"{self.seed}-{epoch}").shuffle(order)
            self.order = (epoch, order)
        return self.order[1][place * self.world + self.rank]

    def collect(self, cursor: int, n: int) -> tuple[list[dict], int, list[str]]:
        prompts, problems, bad_run = [], [], 0
        while len(prompts) < n:
            # never more rows than prompts are missing: so the cursor stands behind the last row that was needed
            indices = [self.row_index(cursor + k) for k in range(n - len(prompts))]
            cursor += len(indices)
            for done in list(
                self.readers.map(lambda index: try_encode(self.rows, self.encode, index), indices)
            ):
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

    def take(self, n: int) -> list[dict]:
        """The next n prompts. Raises SystemExit if a whole epoch (or 1,000 rows on end) holds none that can be used."""
        prepared_for, future = self.pending
        if prepared_for != (self.cursor, n):
            future = self.worker.submit(self.collect, self.cursor, n)
        prompts, self.cursor, problems = future.result()
        for problem in problems:
            if (
                self.skipped < 5 or self.skipped % 1000 == 0
            ):  # name the first ones; the count is in every log line
                self.say(f"data: skipped (number {self.skipped + 1}): {problem}")
            self.skipped += 1
        self.pending = (self.cursor, n), self.worker.submit(self.collect, self.cursor, n)
        return prompts


def take_all(
    rows: Rows, encode, rank: int, world: int, first: int, last: int, say=print
) -> tuple[list[tuple[int, dict]], int]:
    """Evaluation: this rank's share of rows first:last in order, as [(index, prompt)], and how many could not be used."""
    prompts, skipped, indices = [], 0, range(first + rank, last, world)
    with reader_threads() as readers:
        encoded = readers.map(lambda index: try_encode(rows, encode, index), indices)
        for index, done in tqdm(
            zip(indices, encoded, strict=True),
            desc="read rows",
            disable=rank > 0,
            delay=2,
            leave=False,
            total=len(indices),
        ):
            if isinstance(done, BadRow):
                skipped += 1
                say(f"data: skipped: {done}")
            else:
                prompts.append((index, done))
    return prompts, skipped


def tiny_corpus() -> list[str]:
    """Text that the tiny model's tokenizer is trained on: the prompts, and the words of the scenes. Frequent words become one token."""
    question = {"problem": "How many items are there in the image?", "images": [], "task": "count"}
    lines = [
        build_prompt(question, template)[0]["content"][0]["text"]
        for template in ("think", "direct")
        for _ in range(10)
    ]
    for split in ("clevr", "cogent_b", "superclevr"):
        for i in range(60):
            scene = scenes.sample_scene(i, split=split, layout="grid", min_objects=1, max_objects=8)
            row = {"id": "", "solution": str(len(scene["objects"])), "thinking": scenes.describe_scene(scene)}
            lines += [target_text(row), "system\nYou are a helpful assistant.\nuser\nassistant\n"]
    return lines + [f" {n} {n}" for n in range(21)]
