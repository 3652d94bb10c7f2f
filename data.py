"""Rows, prompts and model inputs: everything between a data set and the policy.

A row is a plain dict, whatever it was made from:

    {"id": "clevr/17", "images": [PIL.Image], "problem": "How many items are there in the image?", "solution": "3",
     "task": "count", "thinking": "red cube, blue sphere, green cube"}

`images` may be empty or hold several; `solution` is the bare answer without tags; `task` chooses the verifier
(rewards.py); `thinking` (or None) is what SFT imitates. Rows come from a source, named by a knob:

    scenes:clevr?rows=9600&seed=0&layout=grid&objects=1-8    drawn while training (scenes.py)
    rows.jsonl, rows.json, CLEVR_val_questions.json          records with image paths; CLEVR's own files as they are
    train.parquet, folder/of/parquets                        Hugging Face layout: `image` struct with bytes, `problem`, `solution`
    folder                                                   written by datasets.save_to_disk
    leonardPKU/clevr_cogen_a_train                           a hub id

A row that cannot be used (broken image, no answer, prompt too long) raises BadRow; Stream skips, counts and names it.
A prompt is never cut: cutting image tokens breaks the model, cutting text changes the question.
"""

import base64
import io
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

import scenes

# One instruction per template. "(number)" is dropped for tasks whose answer is none: asking for a number there is a bug of R1-V.
TEMPLATES = {
    # R1-V's wording, two spaces included
    "think": "{problem}  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags.",
    "direct": "{problem}  Output only the final answer (number) in <answer> </answer> tags.",
    "box": "{problem}\nFirst output the thinking process in <think> </think> tags and then output the final answer in "
    "<answer> </answer> tags. Output the final answer in JSON format.",
    "zero": "{problem}",  # the instruction is the system message below, as in R1-Zero: for text-only rows
}
ZERO_SYSTEM = (
    "A user asks a question and the assistant solves it. The assistant first reasons about the question and then gives the answer: "
    "the reasoning stands in <think> </think> tags and the answer in <answer> </answer> tags."
)
# Names under which published data sets keep the same thing, in the order of preference.
COLUMNS = {
    "images": ("images", "image_filename", "image", "image_path", "img_filename"),
    "problem": ("problem", "question", "q"),
    "solution": ("solution", "answer", "ground_truth", "a"),
    "thinking": ("thinking",),
    "task": ("task",),
    "id": ("id",),
}


class BadRow(Exception):
    """A row that cannot be used; the message says why."""


# -----------------------------------------------------------------------------
# sources -> rows
# -----------------------------------------------------------------------------


class SceneRecords:
    """`rows` drawn scenes as records; scene i is the same for ever, so nothing has to be stored."""

    column_names = ("id", "images", "problem", "solution", "thinking", "task")

    def __init__(self, split: str, rows: int = 1000, seed: int = 0, layout: str = "free", objects: str = "3-10", size: str = "",
                 family: str = "count_all", miss: float = 0.0, jitter: float = 0.0):  # fmt: skip
        low, _, high = objects.partition("-")
        self.split, self.rows, self.seed, self.family = split, int(rows), int(seed), family
        self.miss, self.jitter = float(miss), float(jitter)
        self.sample = {"layout": layout, "min_objects": int(low), "max_objects": int(high or low)}
        self.sample["size"] = tuple(int(x) for x in size.split("x")) if size else None
        scenes.sample_scene(0, split=split, **self.sample)  # ValueError now rather than in mid-run
        if family not in scenes.FAMILIES:
            raise ValueError(f"family '{family}' is none of {', '.join(scenes.FAMILIES)}")

    def __len__(self):
        return self.rows

    def __getitem__(self, i: int) -> dict:
        scene = scenes.sample_scene(self.seed * 1_000_000 + i, split=self.split, **self.sample)
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
        return {"id": f"{self.split}/{self.seed}/{i}", "images": [image], "problem": qa["question"], "solution": answer,
                "thinking": scenes.describe_scene(scene, self.miss), "task": "count" if answer.isdigit() else "text"}  # fmt: skip


class Rows:
    """A sequence of rows over any sequence of raw records; row i is read, decoded and checked when it is asked for."""

    def __init__(self, records, name: str, columns: str = "", image_root: str = "", folder: str = ".", task: str = "auto"):
        self.records, self.name, self.task, self.folder = records, name, task, Path(folder)
        self.image_root = Path(image_root) if image_root else self.folder
        # A list of JSON records has the columns of all of them: the first row may be the one without an image.
        first = getattr(records, "column_names", None) or list(dict.fromkeys(key for record in records for key in record))
        chosen = dict(pair.split("=", 1) for pair in columns.split(",") if pair)
        if set(chosen) - set(COLUMNS):
            raise SystemExit(f"columns: {sorted(set(chosen) - set(COLUMNS))[0]} is none of {', '.join(COLUMNS)}")
        for key, column in chosen.items():
            if column not in first:
                raise SystemExit(f"data: '{name}' has no column '{column}' (columns: {key}={column}); it has {', '.join(map(str, first))}")
        self.columns = {key: chosen.get(key) or next((c for c in names if c in first), None) for key, names in COLUMNS.items()}
        self.count_scene = self.columns["problem"] is None and "objects" in first  # CLEVR's scene files: ask for the number of objects
        for key in () if self.count_scene else ("problem", "solution"):
            if self.columns[key] is None:
                raise SystemExit(f"data: '{name}' has no column for the {key} ({', '.join(COLUMNS[key])}); "
                                 f"it has {', '.join(map(str, first))}. Name it with --columns={key}=NAME")  # fmt: skip

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i: int) -> dict:
        record = self.records[i]
        get = {key: record.get(column) if column else None for key, column in self.columns.items()}
        if self.count_scene:
            get |= {"problem": "How many items are there in the image?", "solution": len(record["objects"])}
        row_id = str(get["id"]) if get["id"] is not None else f"{self.name}:{i}"
        if get["problem"] in (None, ""):
            raise BadRow(f"row {row_id} has no problem")
        solution = str("" if get["solution"] is None else get["solution"])
        tagged = re.findall(r"<answer>(.*?)</answer>", solution, re.DOTALL)  # published sets store "<answer> 3 </answer>"
        solution = (tagged[-1] if tagged else solution).strip()
        if not solution:
            raise BadRow(f"row {row_id} has no answer")
        images = get["images"] if isinstance(get["images"], list | tuple) else [get["images"]]
        images = [self.open_image(x, row_id) for x in images if x is not None and x != ""]
        return {"id": row_id, "images": images, "problem": str(get["problem"]), "solution": solution, "task": get["task"] or self.task,
                "thinking": get["thinking"] or None}  # fmt: skip

    def open_image(self, source, row_id: str) -> Image.Image:
        """PIL image (RGB) from a path, a {"bytes", "path"} struct, bytes or an image. Raises BadRow naming what is wrong."""
        try:
            if isinstance(source, Image.Image):
                return source.convert("RGB")
            if isinstance(source, dict):  # the Hugging Face image layout
                source = source["bytes"] if source.get("bytes") is not None else source.get("path")
            if isinstance(source, bytes):
                return Image.open(io.BytesIO(source)).convert("RGB")
            # CLEVR keeps scenes/, questions/ and images/<split>/ side by side and stores bare file names
            for path in (self.image_root / source, self.folder.parent / "images" / str(source).split("_")[-2:][0] / source):
                if path.is_file():
                    return Image.open(path).convert("RGB")
            raise BadRow(f"row {row_id}: image file {self.image_root / source} not found (--image_root is the folder the paths start from)")
        except (OSError, UnidentifiedImageError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
            # SyntaxError is what Pillow raises on some broken PNGs
            raise BadRow(f"row {row_id}: broken image ({type(error).__name__}: {str(error)[:80]})") from error


def load_rows(spec: str, split: str = "train", columns: str = "", image_root: str = "", task: str = "auto") -> Rows:
    """The rows of a source (see the module's docstring). Raises SystemExit with one sentence if it is missing or empty.

    columns: "solution=label,problem=text" where the names are not among COLUMNS; image_root: folder that relative image
    paths start from (default: the file's own); task: the task of rows that do not name one ("auto": by their solution).
    """
    path, folder = Path(spec), "."
    if spec.startswith("scenes:"):
        name, _, query = spec[7:].partition("?")
        try:
            records = SceneRecords(name, **dict(parse_qsl(query, strict_parsing=bool(query))))
        except (TypeError, ValueError, KeyError) as error:
            example = "scenes:clevr?rows=1000&seed=0&layout=grid&objects=1-8"
            raise SystemExit(f"data: '{spec}' is no scene source ({error}); example: {example}") from error
    elif path.suffix in (".json", ".jsonl") and path.exists():
        records, folder = read_json(path), path.parent
    elif path.exists():
        import datasets

        parquet = [str(path)] if path.suffix == ".parquet" else sorted(str(p) for p in path.rglob("*.parquet")) if path.is_dir() else []
        # train-00000-of-00004.parquet: files that name splits are chosen by the split, others are all taken
        named = {p: Path(p).name.split("-")[0].removesuffix(".parquet") for p in parquet}
        splits = set(named.values()) & {"train", "test", "val", "validation", "dev"} if path.is_dir() else set()
        try:
            if parquet:
                if splits and split not in splits:
                    raise SystemExit(f"data: '{spec}' has the splits {', '.join(sorted(splits))}, not '{split}'")
                chosen = [p for p in parquet if named[p] == split] if splits else parquet
                table = datasets.load_dataset("parquet", data_files=chosen, split="train")
            elif path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
                table = datasets.load_from_disk(spec)
                if isinstance(table, datasets.DatasetDict):
                    if split not in table:
                        raise SystemExit(f"data: '{spec}' has the splits {', '.join(table)}, not '{split}'; name another split")
                    table = table[split]
            else:
                raise SystemExit(f"data: '{spec}' is no .json, .jsonl or .parquet file, nor a folder of .parquet files or of save_to_disk")
            records, folder = undecoded(table), path if path.is_dir() else path.parent
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise SystemExit(f"data: '{spec}' cannot be read ({str(error).splitlines()[0][:160]}); is the file complete?") from error
    elif spec.count("/") == 1 and not path.suffix and not spec.startswith("."):
        import datasets

        try:
            records = undecoded(datasets.load_dataset(spec, split=split))
        except (ConnectionError, FileNotFoundError, ValueError, OSError) as error:
            raise SystemExit(f"data: '{spec}' is no file or folder here and could not be loaded from the hub ({type(error).__name__}: "
                             f"{str(error).splitlines()[0][:120]}); download it and name the folder") from error  # fmt: skip
    else:
        raise SystemExit(f"data: '{spec}' does not exist; name a file, a folder, a hub id or scenes:<split>")
    if len(records) == 0:
        raise SystemExit(f"data: '{spec}' holds no rows")
    return Rows(records, spec if len(spec) < 40 else path.name, columns, image_root, str(folder), task)


def read_json(path: Path) -> list[dict]:
    """Records of a .jsonl or .json file: a list, or the one list inside a dict (CLEVR's {"info": ..., "questions": [...]})."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":  # not splitlines(), which also cuts at characters that may stand in a JSON string
            content = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            content = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise SystemExit(f"data: '{path}' is not valid JSON in UTF-8 ({error})") from error
    lists = [v for v in content.values() if isinstance(v, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list) or not all(isinstance(r, dict) for r in lists[0]):
        raise SystemExit(f"data: '{path}' should hold one list of records")
    return lists[0]


def undecoded(table):
    """The table with images left as bytes: a broken one then spoils its own row and not the whole batch."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return table


# -----------------------------------------------------------------------------
# rows -> prompts -> model inputs
# -----------------------------------------------------------------------------


def build_prompt(row: dict, template: str) -> list[dict]:
    """Chat messages of a row, images before text. `template` is a key of TEMPLATES."""
    if template not in TEMPLATES:
        raise SystemExit(f"template: '{template}' is none of {', '.join(TEMPLATES)}")
    text = TEMPLATES[template].format(problem=row["problem"])
    if row["task"] not in ("count", "math") and not (row["task"] == "auto" and re.fullmatch(r"[-\d.,]+", row["solution"])):
        text = text.replace("final answer (number)", "final answer")
    user = {"role": "user", "content": [{"type": "image"} for _ in row["images"]] + [{"type": "text", "text": text}]}
    return [{"role": "system", "content": ZERO_SYSTEM}, user] if template == "zero" else [user]


def fit_image(image: Image.Image, factor: int, min_pixels: int, max_pixels: int) -> Image.Image:
    """The image in Qwen's frame: sides multiples of `factor` (28 px = one visual token), area within the limits, aspect kept.

    Done once, here, so that vLLM and the trainer see the same pixels whatever limits their processors carry.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    height, width = smart_resize(image.height, image.width, factor, min_pixels, max_pixels)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


MAX_IMAGES = 16  # per prompt; vLLM wants to know the limit when it starts, and it costs nothing to name a high one


def processor_limits(processor, max_pixels: int) -> dict:
    """Size limits under which neither transformers' processor nor vLLM's resizes what fit_image has resized: any multiple will do."""
    factor = processor.image_processor.patch_size * processor.image_processor.merge_size
    return {"shortest_edge": factor**2, "longest_edge": max(max_pixels, factor**2)}


def encode_prompt(row: dict, processor, template: str = "think", max_prompt_length: int = 1024, min_pixels: int = 3136,
                  max_pixels: int = 401408) -> dict:  # fmt: skip
    """What the samplers and the trainer need of one row: a prompt.

    Returns {"row" (with its images resized), "token_ids" (one placeholder per image: vLLM expands it itself), "input_ids"
    (expanded), "pixel_values" (patches, values) or None, "image_grid_thw" (images, 3) or None}.
    Raises BadRow if it is longer than `max_prompt_length` tokens (visual ones included), has more than MAX_IMAGES images or one
    that cannot be resized.
    """
    ip, tokenizer = processor.image_processor, processor.tokenizer
    text = processor.apply_chat_template(build_prompt(row, template), tokenize=False, add_generation_prompt=True)
    token_ids = tokenizer(text, add_special_tokens=False).input_ids
    placeholder = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    if token_ids.count(placeholder) != len(row["images"]):
        raise BadRow(f"row {row['id']}: the text of the problem contains an image placeholder token")
    pixels = grid = None
    input_ids, row = token_ids, row | {"images": list(row["images"])}
    if len(row["images"]) > MAX_IMAGES:
        raise BadRow(f"row {row['id']}: {len(row['images'])} images, more than {MAX_IMAGES}")
    if row["images"]:
        try:
            row["images"] = [fit_image(im, ip.patch_size * ip.merge_size, min_pixels, max_pixels) for im in row["images"]]
        except ValueError as error:  # aspect ratio over 200
            raise BadRow(f"row {row['id']}: {error}") from error
        done = ip(images=row["images"], size=processor_limits(processor, max_pixels), return_tensors="pt")
        pixels, grid = done["pixel_values"], done["image_grid_thw"]
        counts = iter((grid.prod(-1) // ip.merge_size**2).tolist())  # visual tokens of each image
        input_ids = [i for t in token_ids for i in ([t] * next(counts) if t == placeholder else [t])]
    if len(input_ids) > max_prompt_length:
        raise BadRow(f"row {row['id']}: prompt of {len(input_ids)} tokens, more than max_prompt_length={max_prompt_length}")
    return {"row": row, "token_ids": token_ids, "input_ids": input_ids, "pixel_values": pixels, "image_grid_thw": grid}


def thumbnail(image: Image.Image, side: int = 160) -> str:
    """The image, at most `side` pixels wide and high, as a JPEG data URI: logs carry it, web pages show it."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def target_text(row: dict, target: str = "cot") -> str:
    """What SFT imitates: `cot` = thinking and answer, `answer` = the answer alone. Raises BadRow if the thinking is missing."""
    answer = f"<answer> {row['solution']} </answer>"
    if target == "answer":
        return answer
    if not row["thinking"]:
        raise BadRow(f"row {row['id']} has no thinking to imitate (set --target=answer to train on answers alone)")
    thinking = row["thinking"].strip()
    return f"{thinking if thinking.startswith('<think>') else f'<think> {thinking} </think>'} {answer}"


class Stream:
    """Endless prompts of one rank, in a seeded order: every epoch a new permutation, strided over the ranks.

    `take(n)` gives the next n usable prompts and prepares the n after them in a thread while the GPU works. `cursor`
    (rows looked at so far by this rank) is all there is to save: the same cursor gives the same next prompts.
    """

    def __init__(self, rows: Rows, encode, seed: int = 0, rank: int = 0, world: int = 1, shuffle: bool = True, say=print):
        if len(rows) < world:
            raise SystemExit(f"data: {len(rows)} rows for {world} processes; every process needs at least one")
        self.rows, self.encode, self.seed, self.rank, self.world, self.shuffle, self.say = rows, encode, seed, rank, world, shuffle, say
        self.per_epoch = len(rows) // world  # of this rank; a rest of less than `world` rows is left for other epochs
        self.cursor, self.skipped = 0, 0
        self.order, self.pending, self.worker = (-1, []), (None, None), ThreadPoolExecutor(1)

    @property
    def epoch(self) -> float:
        return self.cursor / self.per_epoch

    def row_index(self, position: int) -> int:
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
            index, cursor = self.row_index(cursor), cursor + 1
            try:
                prompts.append(self.encode(self.rows[index]))
                bad_run = 0
            except BadRow as problem:
                problems.append(str(problem))
                bad_run += 1
                if bad_run >= min(1000, self.per_epoch):
                    raise SystemExit(f"data: {bad_run} rows on end of '{self.rows.name}' cannot be used; the last: {problem}") from problem
        return prompts, cursor, problems

    def take(self, n: int) -> list[dict]:
        """The next n prompts. Raises SystemExit if a whole epoch (or 1,000 rows on end) holds none that can be used."""
        prepared_for, future = self.pending
        if prepared_for != (self.cursor, n):
            future = self.worker.submit(self.collect, self.cursor, n)
        prompts, self.cursor, problems = future.result()
        for problem in problems:
            if self.skipped < 5 or self.skipped % 1000 == 0:  # name the first ones; the count is in every log line
                self.say(f"data: skipped (number {self.skipped + 1}): {problem}")
            self.skipped += 1
        self.pending = (self.cursor, n), self.worker.submit(self.collect, self.cursor, n)
        return prompts


def take_all(rows: Rows, encode, rank: int, world: int, first: int, last: int, say=print) -> tuple[list[tuple[int, dict]], int]:
    """Evaluation: this rank's share of rows first:last in order, as [(index, prompt)], and how many could not be used."""
    prompts, skipped = [], 0
    for index in tqdm(range(first + rank, last, world), desc="read rows", disable=rank > 0, delay=2, leave=False):
        try:
            prompts.append((index, encode(rows[index])))
        except BadRow as problem:
            skipped += 1
            say(f"data: skipped: {problem}")
    return prompts, skipped


def tiny_corpus() -> list[str]:
    """Text that the tiny model's tokenizer is trained on: the prompts, and the words of the scenes. Frequent words become one token."""
    question = {"problem": "How many items are there in the image?", "images": [], "task": "count"}
    lines = [build_prompt(question, template)[0]["content"][0]["text"] for template in ("think", "direct") for _ in range(10)]
    for split in ("clevr", "cogent_b", "superclevr"):
        for i in range(60):
            scene = scenes.sample_scene(i, split=split, layout="grid", min_objects=1, max_objects=8)
            row = {"id": "", "solution": str(len(scene["objects"])), "thinking": scenes.describe_scene(scene)}
            lines += [target_text(row), "system\nYou are a helpful assistant.\nuser\nassistant\n"]
    return lines + [f" {n} {n}" for n in range(21)]
