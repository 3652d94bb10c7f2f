r"""Distillation: a text model that cannot see reasons about scenes in words; its right traces become rows.

R1-V's recipe for its cold start, in four stages. Each reads the files of the one before it, can be killed and
started again, and can be used alone:

 1) describe  scenes -> pairs of question and known answer, with the scene in words: items.jsonl, images/
 2) query     pairs -> what a teacher answers: answers.jsonl (one line a request, appended), errors.jsonl
 3) filter    answers -> kept.jsonl, rejected.jsonl with the reason, filter.json with the counts
 4) build     kept traces and images -> dataset/, parquet in the Hugging Face layout, which train_sft.py and
              load_dataset read

Where this differs from R1-V's distill_r1:
 1. an answer is right by the scorer that also pays the policy (grading.py); a second, different conclusion
    makes it wrong;
 2. traces that loop, quote their instructions or only make sense for a reader of text ("line 3 says ...") are
    dropped;
 3. the teacher is asked to speak of an image, and only the train split is asked: the val splits are questions
    and answers;
 4. a killed run loses nothing: every answer is on disk before the next request of its place starts.

    # all stages, a scripted teacher, a laptop, 30 seconds
    python distill.py configs/distill_tiny.py
    # DeepSeek-R1; the same command goes on
    DEEPSEEK_API_KEY=... python distill.py configs/distill.py --stage=query
    # a server of your own
    vllm serve Qwen/Qwen3-8B &
    python distill.py --stage=query --model=Qwen/Qwen3-8B --base_url=http://localhost:8000/v1
    # offline, one engine per GPU
    torchrun --nproc_per_node=8 distill.py --stage=query --teacher=vllm --model=Qwen/Qwen3-8B
    # R1-V's older route: a vision model rewrites pairs
    python distill.py --train=geoqa --route=rewrite --model=gpt-4o --base_url=https://api.openai.com/v1 \
      --api_key_env=OPENAI_API_KEY
"""

import asyncio
import base64
import collections
import errno
import fcntl
import json
import mimetypes
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

import data
from configurator import configure
from results import lines_of, write
from tasks import scenes, traces
from tasks.files import read_json

# fmt: off
# -----------------------------------------------------------------------------
# default config: CLEVR-like scenes, DeepSeek-R1; override with  distill.py configs/x.py --key=value
stage = "describe,query,filter,build"  # which of them, in this order
out_dir = "out/distill"
seed = 1234
# describe: a source is "scenes:clevr?rows=1000&layout=grid" (scenes.py), or "CLEVR_trainA_scenes.json" with
# "+CLEVR_trainA_questions.json" for its counting questions, or any rows of data.py (for route = 'rewrite')
train = "scenes:clevr?rows=1000"
val_a = ""                # validation in distribution; '' = none
val_b = ""                # validation out of distribution, as CoGenT's condition B
families = "count_all"    # questions asked of every scene: 'count_all,count,exist,query', ... of scenes.py;
                          # '' = those of the file only
image_root = ""           # folder of the images of scene files; default: images/<split>/ beside their folder
train_limit = 10000       # pairs, drawn at random; 0 = all
val_limit = 5000          # of each val split
# query
teacher = "api"           # 'api' = an OpenAI-compatible server, 'vllm' = in this process,
                          # 'script' = rules, for demos and tests only
route = "scene"           # 'scene' = the scene in words,
                          # 'rewrite' = image and known answer, to be made a chain of thought
model = "deepseek-reasoner"
base_url = "https://api.deepseek.com"  # or http://localhost:8000/v1 of `vllm serve`
api_key_env = "DEEPSEEK_API_KEY"       # NAME of the environment variable that holds the key; it is read there
                          # and written nowhere
guided = True             # tell the teacher how to look and how to end; False = the question alone
system = ""               # system message; R1's makers advise against one
max_tokens = 4096         # of thinking and answer together
temperature = 0.6
samples = 1               # answers to each pair, each a request of its own
extra_body = {}           # further fields of the request, as in {"top_p": 0.95}
concurrency = 16          # requests under way at a time
request_seconds = 900.0   # until a request counts as lost, retries included; some models think for minutes
retries = 10              # by the openai client, after 429, 5xx or a lost connection: when Retry-After says,
                          # or after 0.5 s, 1 s, 2 s, 4 s, 8 s, 8 s ...
backoff = 2.0             # seconds until a reply that is no answer is asked for again, then double that, not
                          # more often: it may cost
price_in = 0.0            # dollars per million tokens, for the estimate of the cost
price_out = 0.0
dtype = "bfloat16"        # vllm
max_model_len = 8192      # vllm: tokens of prompt and answer
vllm_gpu_memory = 0.9     # vllm: share of each GPU
script_miss = 0.3         # script: each small object is overlooked with this probability
script_broken = 0.1       # script: share of answers that are malformed
# filter
trace_limit = 2048        # tokens of a trace, longer ones are dropped
tokenizer = ""            # of which model these tokens are; '' = 4 characters each
keep_per_pair = 0         # right traces kept of each pair, shortest first; 0 = all, 1 = best of n
# build
push_to = ""              # hub id to upload the data set to (private); needs a login by `hf auth login`
# -----------------------------------------------------------------------------
# fmt: on

STAGES = ("describe", "query", "filter", "build")
TEACHERS = ("api", "vllm", "script")
ROUTES = ("scene", "rewrite")
PARQUET_ROWS = 100  # per row group: readers take whole groups into memory
VLLM_BATCH = 256  # requests that the engine is given at a time: they are on disk before the next ones

# Functions that carry out a stage read the knobs above; the smaller ones are handed what they need.


def read_lines(path: Path, reader: str, maker: str) -> list[dict]:
    """The records of a JSONL that the stage `maker` writes and the stage `reader` needs."""
    if not path.exists():
        raise SystemExit(f"{reader}: '{path}' does not exist; run --stage={maker} first, with this --out_dir")
    return lines_of(path)


def read_record(path: Path) -> dict:
    """The record of a JSON file that an earlier stage has written."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SystemExit(f"'{path}' is damaged ({error}); remove it, and run its stage again") from None


def write_lines(path: Path, records: list[dict]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write(path, "".join(lines))


# -----------------------------------------------------------------------------
# 1) describe
# -----------------------------------------------------------------------------


class Pair(NamedTuple):
    """A question about an image, with its known answer."""

    image: Path
    question: str
    answer: str
    task: str  # which verifier of grading.py compares answers with it
    options: list[str] | None
    description: str  # the scene in words; '' if there is no scene


def in_words(scene: dict, rng: random.Random) -> str:
    """The scene in words, its objects shuffled: or else their order would tell where things are."""
    heading, *lines = scenes.full_description(scene).split("\n")
    return "\n".join([heading, *rng.sample(lines, len(lines))])


def is_counting(question: str) -> bool:
    """R1-V's choice among CLEVR's questions; it lets in comparisons of numbers, whose answer is yes or no."""
    return "how many" in question.lower() or "number" in question.lower()


def from_file(scene: dict, index: int) -> dict:
    """A scene of CLEVR's files with what scenes.py keeps beside that; its images are all of one size."""
    condition_b = re.match(r"CLEVR_[a-z]+B_", scene["image_filename"])  # CLEVR_valB_000000.png
    return scene | {
        "layout": "free",
        "seed": scene.get("image_index", index),
        "width": 480,
        "height": 320,
        "split": "cogent_b" if condition_b else "clevr",
    }


def find_image(name: str, index: int, image_root: str, scene_file: Path) -> Path | None:
    """The image "CLEVR_trainA_000000.png" of a scene. None if it is missing, SystemExit if the first one is.

    It is in image_root, by default beside the scene file, or as in CLEVR: scenes/FILE, images/trainA/NAME.
    """
    beside = scene_file.parent
    split = name.partition("_")[2].partition("_")[0]
    places = [Path(image_root or beside, name), beside.parent / "images" / split / name]
    for place in places:
        if place.is_file():
            return place.resolve()
    if index == 0:
        raise SystemExit(
            f"describe: image {places[0]} not found, nor {places[1]}; name the folder with --image_root"
        )
    return None


def save_image(image, path: Path) -> None:
    """PNG, whole or not at all: the next run would take half a picture of a killed one for done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path.with_suffix(".tmp"), "PNG")
    path.with_suffix(".tmp").replace(path)


def read_questions(scene_file: str, question_file: str) -> dict[str, list[dict]]:
    """{image name: records} of a question file of CLEVR; nothing if the source names none."""
    by_image = collections.defaultdict(list)
    if not question_file:
        return by_image
    for path in (scene_file, question_file):
        if not Path(path).is_file():
            raise SystemExit(
                f"describe: '{path}' does not exist; name CLEVR's files as SCENES.json+QUESTIONS.json"
            )
    for question in filter(lambda record: isinstance(record, dict), read_json(Path(question_file))):
        by_image[question.get("image_filename")].append(question)
    return by_image


def scene_pairs(
    scene: dict, image: Path, given: list[dict], asked: list[str], seed: int, left_out: collections.Counter
) -> list[Pair]:
    """The pairs of one scene, each once.

    given: the questions of its file, of which the counting ones are taken. asked: families of scenes.py, one
    question of each.
    """
    found = []
    for record in given:
        if is_counting(record["question"]) and "answer" in record:
            found.append((record["question"], str(record["answer"])))
    unfit = 0
    for family in asked:
        try:
            made = scenes.ask(scene, scene["seed"], family)
            found.append((made["question"], made["answer"]))
        except ValueError:  # no two objects to compare, for example
            unfit += 1
    if unfit:
        left_out["questions that do not fit their scene"] += unfit
    words = in_words(scene, random.Random(f"{seed}-{image.name}"))
    pairs = []
    for question, answer in dict.fromkeys(found):
        task = "count" if answer.isdigit() else "text"
        pairs.append(Pair(image, question, answer, task, None, words))
    return pairs


def read_source(
    source: str,
    split: str,
    asked: list[str],
    image_root: str,
    folder: Path,
    seed: int,
    left_out: collections.Counter,
) -> Iterator[Pair]:
    """Yields the pairs of a source, and counts in `left_out` what gives none, by the reason.

    Images that are not files yet are drawn or copied to folder/images/. SystemExit if the source is missing.
    """
    scene_file, _, question_file = source.partition("+")
    questions = read_questions(scene_file, question_file)
    records = []
    if scene_file.endswith(".json") and Path(scene_file).is_file():
        records = read_json(Path(scene_file))
    # scenes of CLEVR's own files
    official = any(isinstance(record, dict) and "objects" in record for record in records)
    drawn = source.startswith("scenes:")
    if (official or drawn) and not asked and not question_file:
        raise SystemExit(
            f"describe: '{source}' gives no pairs; name --families, or questions as in "
            "SCENES.json+QUESTIONS.json"
        )
    rows = records if official else data.load_rows(source, "train" if split == "train" else "val")
    pictures = folder / "images" / f"{zlib.crc32(source.encode()):08x}"  # of this source only

    for i in tqdm(range(len(rows)), f"describe {split}"):
        picture = pictures / f"{i:06d}.png"
        try:
            if official:
                scene = from_file(rows[i], i)
                name = scene["image_filename"]
                image = find_image(name, i, image_root, Path(scene_file))
                if image is None:
                    left_out["scenes without their image"] += 1
                    continue
                yield from scene_pairs(scene, image, questions[name], asked, seed, left_out)
            elif drawn:
                scene = rows.records.scene(i)
                if not picture.exists():
                    save_image(rows[i]["images"][0], picture)
                yield from scene_pairs(scene, picture, [], asked, seed, left_out)
            else:
                row = rows[i]
                if len(row["images"]) != 1:
                    left_out["rows without exactly one image"] += 1
                    continue
                if not picture.exists():
                    save_image(row["images"][0], picture)
                yield Pair(picture, row["problem"], row["solution"], row["task"], row["options"], "")
        except data.BadRow:
            left_out["rows that are broken"] += 1
        except (KeyError, IndexError, TypeError, ValueError):
            left_out["scenes that are incomplete"] += 1


def describe(
    source: str, split: str, asked: list[str], image_root: str, folder: Path, limit: int, seed: int
) -> list[dict]:
    """The items of one split, `limit` of them drawn at random (0: all), in random order.

    An item: {"key", "split", "image", "question", "answer", "task", "options", "description"}.
    """
    folder = folder.resolve()
    left_out = collections.Counter()
    items = {}
    for pair in read_source(source, split, asked, image_root, folder, seed, left_out):
        image = pair.image
        if image.is_relative_to(folder):  # such a path survives a move of the folder
            image = image.relative_to(folder)
        content = "|".join([image.name, pair.question, pair.answer, pair.description])
        key = f"{split}/{image.stem}/{zlib.crc32(content.encode()):08x}"
        items[key] = {
            "key": key,
            "split": split,
            "image": str(image),
            "question": pair.question,
            "answer": pair.answer,
            "task": pair.task,
            "options": pair.options,
            "description": pair.description,
        }
    for what, count in left_out.items():
        print(f"describe: {split}: {count} {what}, left out")
    if not items:
        raise SystemExit(
            f"describe: '{source}' gives no pairs: all {left_out.total()} were left out, as said above"
        )
    chosen = random.Random(f"{seed}-{split}").sample(list(items.values()), len(items))
    return chosen[:limit] if limit else chosen


def describe_splits(asked: list[str], folder: Path) -> None:
    """The items of all splits, to items.jsonl."""
    sources = {"train": train, "valA": val_a, "valB": val_b}
    parts = {}
    for split, source in sources.items():
        if source:
            limit = train_limit if split == "train" else val_limit
            parts[split] = describe(source, split, asked, image_root, folder, limit, seed)
    write_lines(folder / "items.jsonl", [item for part in parts.values() for item in part])
    for split, part in parts.items():
        images = {item["image"] for item in part}
        frequent = collections.Counter(item["answer"] for item in part).most_common(6)
        shares = [f"{answer} ({100 * count / len(part):.0f} %)" for answer, count in frequent]
        print(
            f"describe: {split}: {len(part)} pairs of {len(images)} images; "
            f"most frequent answers {', '.join(shares)}"
        )


# -----------------------------------------------------------------------------
# 2) query: what the teacher is sent
# -----------------------------------------------------------------------------

# A backslash at the end of a line joins it to the next one: the teacher is sent the longer lines.
SCENE = """\
You are looking at an image. You cannot be shown it, so it is written out here, one object to a line.

{description}

Question about the image: {question}"""
GUIDED = """

Go through the objects before you answer, and reason as far as the question needs it. \
Speak as someone who looks at the image: of what
is seen in it, never of lines or of a text. \
Put the answer on a last line of its own, **The answer is:** and then a number, a word, or
yes or no."""
REWRITE = """\
Here is an image with a question about it, and the answer that is known to be right.

Question: {question}
Answer: {answer}

First put the question in such a way that it has one short answer which a program can check \
(a number, a word, a letter) and that this
answer is still {answer}; keep every fact that is needed, and do not give the answer away. \
Then solve your question from the image, step
by step, as someone would who does not know the answer, and never mention that you were given one. \
Write exactly this:

<problem> your question </problem>
<think> your reasoning </think>
<answer> {answer} </answer>"""


class Failed(Exception):
    """A request without an answer.

    hopeless: the server would refuse every other one, too. tokens: {"tokens_in", "tokens_out"}, which cost
    all the same. raw: the body of a reply that is no answer.
    """

    def __init__(self, reason: str, attempts: int, hopeless=False, tokens: dict | None = None, raw: str = ""):
        super().__init__(reason)
        self.hopeless = hopeless
        self.record = {"error": reason, "attempts": attempts} | (tokens or {})
        if raw:
            self.record["raw"] = raw


def build_messages(item: dict, route: str, guided: bool, system: str, out_dir: str) -> list[dict]:
    """What the teacher is sent about one pair, in the chat format of OpenAI."""
    messages = [{"role": "system", "content": system}] if system else []
    if route == "rewrite":
        try:
            image = base64.b64encode(Path(out_dir, item["image"]).read_bytes()).decode()
        except OSError as error:
            raise Failed(f"image {item['image']}: {error.strerror}", 0) from None
        kind = mimetypes.guess_type(item["image"])[0] or "image/png"
        content = [
            {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{image}"}},
            {"type": "text", "text": REWRITE.format(**item)},
        ]
    else:
        content = SCENE.format(**item)
        if guided:
            content += GUIDED
    messages.append({"role": "user", "content": content})
    return messages


# -----------------------------------------------------------------------------
# 2) query: what is kept on disk
# -----------------------------------------------------------------------------

TOKENS = ("tokens_in", "tokens_out")
RESERVE = 4 << 20  # bytes kept free for the answers that are under way when the disk fills up
IN_A_ROW = 20  # requests without any text after which the run stops; or `concurrency`, if that is more
GO_ON = "the same command goes on from here"
CANNOT_WRITE = f"out_dir: cannot write there, the disk may be full; make room, {GO_ON}"
REMEDIES = {
    "cut off before any text": "hidden reasoning counts too: raise max_tokens, and they are asked again",
    "refused": "answers.jsonl holds what the teacher says; another model may answer",
    "content filter": "answers.jsonl holds what the server says; another one may answer",
}


class Journal:
    """A JSONL that only grows.

    A line goes to the system in one write, so a kill can tear the last one at most; that is dropped here.
    """

    def __init__(self, path: Path, reserve):
        """reserve: an open file, closed when the disk is full, to make room for what is already paid for."""
        self.path = path
        self.reserve = reserve
        self.rest = None  # the journal that goes on where this one cannot
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # the system opens this lock when the process ends, killed or not
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(
                f"query: another process is writing {path}; wait for it, or set another --out_dir"
            ) from None
        lines = path.read_bytes().split(b"\n")
        torn = sum(map(bool, lines)) - len(lines_of(path))
        if torn:
            print(f"query: {path}: {torn} torn lines are left out (a kill? a full disk?)")
        if not is_json(lines[-1]):
            os.ftruncate(self.file, os.fstat(self.file).st_size - len(lines[-1]))
        elif not self.write(b"\n"):  # whole, but for the end of its line
            raise SystemExit(CANNOT_WRITE)

    def write(self, line: bytes) -> bool:
        """Whole, or not at all and False."""
        size = os.fstat(self.file).st_size
        try:
            whole = os.write(self.file, line) == len(line)
        except OSError:
            whole = False
        if not whole:
            os.ftruncate(self.file, size)
        return whole

    def add(self, record: dict) -> None:
        """SystemExit if it cannot be written, not even beside this file."""
        # halves of a surrogate pair are joined; a half alone is no reason to fail
        text = json.dumps(record, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
        line = text.decode("utf-16-le", "replace").encode() + b"\n"
        if self.rest:
            self.rest.add(record)
        elif not self.write(line):
            if self.reserve.closed:
                raise SystemExit(CANNOT_WRITE)
            self.reserve.close()
            self.rest = Journal(self.path.with_suffix(".rest.jsonl"), self.reserve)
            self.rest.add(record)


def is_json(line: bytes) -> bool:
    try:
        return bool(json.loads(line))
    except (ValueError, RecursionError):
        return False


def journaled(folder: Path, kind: str) -> list[dict]:
    """The records of all processes and earlier runs; kind: 'answers' or 'errors'."""
    records = []
    for path in sorted(folder.glob(f"{kind}.*jsonl")):
        records += [record for record in lines_of(path) if {"key", "sample"} <= record.keys()]
    return records


def answered(folder: Path) -> dict[tuple, dict]:
    """(key, sample) -> answer, of all processes and runs; of several the one with the most max_tokens."""
    records = sorted(journaled(folder, "answers"), key=lambda record: record.get("max_tokens") or 0)
    # an answer of an older version may hold parts or a dict where a text belongs
    return {(r["key"], r["sample"]): r | traces.read_message(r) for r in records}


def bill(records: list[dict]) -> str:
    """What answers and errors cost: "4,200 tokens in, 420 out ($0.00)"."""
    tokens_in, tokens_out = (sum(traces.number(r.get(name)) or 0 for r in records) for name in TOKENS)
    dollars = "no prices given"
    if price_in or price_out:
        dollars = f"${(tokens_in * price_in + tokens_out * price_out) / 1e6:.2f}"
    return f"{tokens_in:,} tokens in, {tokens_out:,} out ({dollars})"


class Logbook:
    """What becomes of this process's requests: two journals, a progress bar, counts for the last lines."""

    def __init__(self, folder: Path, rank: int, wanted: int, before: int):
        suffix = f".rank{rank}" if rank else ""
        try:
            # without a name: it goes with the process
            reserve = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            room = reserve.write(os.urandom(RESERVE))  # zeros take no room on some disks
        except OSError:
            room = 0
        if room < RESERVE:
            raise SystemExit(CANNOT_WRITE)
        self.answers = Journal(folder / f"answers{suffix}.jsonl", reserve)
        self.errors = Journal(folder / f"errors{suffix}.jsonl", reserve)
        self.tokens = collections.Counter()  # of answers and errors of this run
        self.uncounted = 0  # answers for which the server gives no token counts
        self.outcomes = collections.Counter()
        self.failures = 0
        self.failed_before = {(record["key"], record["sample"]) for record in journaled(folder, "errors")}
        self.in_a_row = 0  # requests that gave no text
        self.problem = ""  # of the last of them
        self.stop = ""  # why nothing more is asked
        self.bar = tqdm(disable=True)
        self.bar_options = {"total": wanted, "initial": before, "desc": "query", "disable": rank > 0}

    def start_bar(self) -> None:
        """Once the teacher is there: a sentence that ends the run should not hang behind a bar."""
        self.bar = tqdm(**self.bar_options)

    def add(self, journal: Journal, item: dict, sample: int, record: dict) -> None:
        journal.add({"key": item["key"], "sample": sample} | record)
        for name in TOKENS:
            self.tokens[name] += record.get(name) or 0
        if journal.rest:
            self.stop = CANNOT_WRITE

    def done(self, item: dict, sample: int, answer: dict) -> None:
        self.add(self.answers, item, sample, {"model": model, "max_tokens": max_tokens} | answer)
        what = traces.outcome(answer)
        self.outcomes[what] += 1
        self.uncounted += what != "content filter" and None in (answer["tokens_in"], answer["tokens_out"])
        if what in ("", "cut off"):
            self.in_a_row = 0
        else:
            self.in_vain(item, sample, what)
        self.bar.set_postfix_str(f"{bill([self.tokens])}, {self.failures} failed", refresh=False)
        self.bar.update()

    def spoilt(self, item: dict, sample: int, problem: Failed) -> None:
        """A reply that is no answer; the request goes on."""
        self.add(self.errors, item, sample, problem.record | {"time": time.time()})

    def failed(self, item: dict, sample: int, problem: Failed) -> None:
        self.spoilt(item, sample, problem)
        self.failures += 1
        self.in_vain(item, sample, str(problem))
        if problem.hopeless:
            self.give_up()

    def in_vain(self, item: dict, sample: int, problem: str) -> None:
        self.problem = problem
        self.in_a_row += (item["key"], sample) not in self.failed_before  # which says nothing about the rest

    def may_go_on(self) -> bool:
        """Asked before each request: do they still bring something? If not, self.stop says why."""
        if self.in_a_row >= max(IN_A_ROW, concurrency):
            self.give_up()
        return not self.stop

    def give_up(self) -> None:
        remedy = REMEDIES.get(self.problem) or what_to_check()
        self.stop = self.stop or f"query: stopped ({self.problem}); {remedy}; {GO_ON}"

    def close(self) -> None:
        self.bar.close()
        os.close(self.answers.file)
        os.close(self.errors.file)


def what_to_check() -> str:
    return f"check the connection, base_url, model, and the key in {api_key_env}"


def answer_settings(config: dict, folder: Path, querying: bool) -> dict:
    """What the answers in this folder are made with: by this run if it queries, or else by the one that did.

    SystemExit if this run would mix its answers with those of another teacher.
    """
    names = ("teacher", "model", "route", "guided", "system", "temperature", "script_miss", "script_broken")
    settings = {name: config[name] for name in names}
    if not (folder / "query.json").exists():
        return settings
    earlier = read_record(folder / "query.json")
    if not querying:
        return earlier
    changed = [name for name in names if earlier.get(name) != settings[name]]
    if changed and answered(folder):
        name = changed[0]
        raise SystemExit(
            f"{name}: '{folder}' holds answers with {name}={earlier.get(name)!r}, "
            f"now it is {settings[name]!r}; set it back, or take another --out_dir"
        )
    return settings


# -----------------------------------------------------------------------------
# 2) query: the teachers
# -----------------------------------------------------------------------------


def read_key() -> str:
    """The API key, from the environment; a server on this machine needs none."""
    key = os.environ.get(api_key_env, "").strip()
    if not key and urlsplit(base_url).hostname not in ("localhost", "127.0.0.1", "::1"):
        raise SystemExit(
            f"api_key_env: the environment variable {api_key_env} is not set; export {api_key_env}=<your key>"
        )
    if not key.isascii():
        raise SystemExit(f"api_key_env: the key in {api_key_env} has letters that no key has; copy it again")
    return key


# Of an error's text: a filter's refusal of this one request; what every request would meet; an unknown field.
FILTERED = re.compile(
    r"content[ _-]?(?:filter|policy|management|exists risk)|moderation|flagged|responsible_?ai"
    r"|data_inspection|safety",
    re.IGNORECASE,
)
HOPELESS = re.compile(r"insufficient_quota|invalid.api.key|api key not valid|model_not_found", re.IGNORECASE)
UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecognized|unknown|unexpected|not permitted|deprecated|must be 1\b|only 1\b",
    re.IGNORECASE,
)


def adapt(fields: dict, sent: dict, complaint: str) -> bool:
    """Takes a field that the server does not support out of `fields`, those of further requests, and says so.

    Returns whether the complaint is about such a field of what was `sent`.
    """
    for name in ("max_tokens", "temperature", "n"):
        named = name in sent and re.search(rf"(?<![\\\w]){name}(?!\w)", complaint)  # "\n" names no n
        if not named or not (name == "n" or UNSUPPORTED.search(complaint)):
            continue
        if name in fields:  # or else another worker has met it first
            value = fields.pop(name)
            instead = "without it"
            if name == "max_tokens":
                fields.setdefault("max_completion_tokens", value)
                instead = "with max_completion_tokens"
            tqdm.write(
                f"query: the server does not support {name}={value}, and is asked {instead} from here on"
            )
        return True
    return False


async def fetch(client, messages: list[dict], fields: dict, secret: str) -> tuple[int, str, int]:
    """(HTTP status, body, attempts) of a request; status 0 if there is no whole body within request_seconds.

    The openai client repeats what fails on the way. Raises Failed if that does not help.
    """
    import openai

    try:
        # of the whole reply: the client's own limit is for the time between two bytes
        async with asyncio.timeout(request_seconds):
            create = client.chat.completions.with_raw_response.create
            response = (await create(model=model, messages=messages, extra_body=fields)).http_response
    except TimeoutError:
        return 0, "", 1
    except openai.APIStatusError as error:
        response = error.response
    except openai.APIError as error:
        raise Failed(f"{error} ({type(error.__cause__).__name__})", retries + 1) from None
    body = response.content.decode("utf-8-sig", "replace")
    if secret:  # servers may quote what they were sent
        body = body.replace(secret, "***")
    return response.status_code, body, 1 + int(response.request.headers.get("x-stainless-retry-count", 0))


async def ask_server(client, messages: list[dict], fields: dict, spoilt: Callable, secret: str) -> dict:
    """One answer of the server.

    fields: of all requests; one that the server does not support is taken out, see adapt. A reply that is no
    answer may have been paid for: it goes to spoilt(problem), and is asked for again, twice.
    Raises Failed. Nothing that comes back holds the secret.
    """
    began = time.time()
    attempts = 0
    replies = 0
    while True:
        sent = dict(fields)
        status, body, tries = await fetch(client, messages, sent, secret)
        attempts += tries
        reply = traces.read_reply(body)
        facts = reply.tokens | {"attempts": attempts, "seconds": round(time.time() - began, 1)}
        ok = 200 <= status < 300
        code = reply.code if ok else status
        if ok and reply.answer:
            return reply.answer | facts
        if code in (0, 400, 422) and adapt(fields, sent, reply.error):
            continue
        if code in (0, 400, 403, 422, 451) and FILTERED.search(reply.error):
            refused = {"reasoning": "", "content": "", "refusal": reply.problem, "finish": "content_filter"}
            return refused | facts

        text = f"HTTP {status}: {reply.problem if ok or reply.error else traces.brief(body)}"
        if not status:
            text = f"no whole reply within request_seconds={request_seconds:g}"
        hopeless = code in (401, 402, 403, 404) or bool(HOPELESS.search(reply.error))
        problem = Failed(text, attempts, hopeless, reply.tokens, raw=body if ok else "")
        replies += 1
        if hopeless or status >= 300 or replies > min(retries, 2):
            raise problem
        spoilt(problem)
        await asyncio.sleep(backoff * replies)


async def ask_all(todo: list[tuple], ask: Callable, log: Logbook) -> None:
    """Runs ask(item, sample) for all of `todo`, as many at a time as `concurrency` says, until log.stop."""
    queue = iter(todo)  # one for all workers: each takes the next

    async def worker() -> None:
        for item, sample in queue:
            if not log.may_go_on():
                return
            try:
                log.done(item, sample, await ask(item, sample))
            except Failed as problem:
                log.failed(item, sample, problem)

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def check_server(client) -> None:
    """A misspelt address shows now and not after minutes of retries."""
    import openai

    try:
        async with asyncio.timeout(30):
            await client.with_options(max_retries=0).models.list()
    except (openai.APIConnectionError, TimeoutError) as error:
        raise SystemExit(
            f"base_url: no server answers at {base_url} ({error}); start it, or correct the address"
        ) from None
    except (openai.APIError, ValueError, AttributeError, TypeError):
        print(f"query: {base_url} does not list its models; going on, since it answers")


async def ask_over_http(todo: list[tuple], log: Logbook, key: str) -> None:
    """As query_server."""
    import openai

    fields = {"max_tokens": max_tokens, "temperature": temperature} | extra_body

    async def ask(item: dict, sample: int) -> dict:
        messages = build_messages(item, route, guided, system, out_dir)
        return await ask_server(client, messages, fields, partial(log.spoilt, item, sample), key)

    loop = asyncio.get_running_loop()

    def stop_asking() -> None:
        log.stop = f"query: interrupted; {GO_ON}"
        tqdm.write("query: waiting for what is under way, as it costs; another Ctrl-C ends at once")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_asking)
    timeout = openai.Timeout(request_seconds, connect=30)
    async with openai.AsyncOpenAI(
        base_url=base_url, api_key=key or "none", max_retries=retries, timeout=timeout
    ) as client:
        await check_server(client)
        log.start_bar()
        await ask_all(todo, ask, log)


def query_server(todo: list[tuple], log: Logbook, key: str) -> None:
    """Has a server answer (item, sample) of `todo`."""
    try:
        asyncio.run(ask_over_http(todo, log, key))
    except KeyboardInterrupt:
        log.stop = f"query: interrupted; {GO_ON}"


def query_vllm(todo: list[tuple], log: Logbook) -> None:
    """Has an engine in this process answer (item, sample) of `todo`."""
    try:
        from vllm import SamplingParams
    except ImportError as error:
        raise SystemExit(
            f"teacher: vLLM cannot be imported ({error}); run setup.sh, or ask a server with --teacher=api"
        ) from None
    import torch

    import common
    import sampling

    cuda = torch.cuda.is_available()
    try:
        llm = sampling.start_vllm(
            model, dtype, max_model_len, gpu_memory=vllm_gpu_memory, seed=seed, cuda=cuda
        )
    except (OSError, ValueError) as error:  # no such model, more tokens than it has places
        problem = " ".join(str(error).split())[:300]
        raise SystemExit(f"model: vLLM cannot load '{model}' ({problem})") from None
    fields = {"temperature": temperature, "max_tokens": max_tokens} | extra_body
    try:
        SamplingParams.from_optional(**fields)
    except (TypeError, ValueError) as error:
        raise SystemExit(f"extra_body: vLLM refuses these sampling parameters ({error})") from None
    log.start_bar()
    for start in range(0, len(todo), VLLM_BATCH):
        if not log.may_go_on():
            break
        chat_vllm(llm, todo[start : start + VLLM_BATCH], fields, log)
    common.finish(llm)


def chat_vllm(llm, batch: list[tuple], fields: dict, log: Logbook) -> None:
    """Answers of a batch; a pair that the engine refuses (too long, for example) spoils its own only."""
    from vllm import SamplingParams

    import sampling

    parameters = []
    for item, sample in batch:
        own_seed = sampling.sample_seed(seed, sample, zlib.crc32(item["key"].encode()))
        parameters.append(SamplingParams.from_optional(**({"seed": own_seed} | fields)))
    try:
        messages = [build_messages(item, route, guided, system, out_dir) for item, _ in batch]
        outputs = llm.chat(messages, parameters, use_tqdm=False)
    except (ValueError, Failed) as problem:
        if len(batch) == 1:
            item, sample = batch[0]
            log.failed(item, sample, Failed(str(problem)[:300], 1))
            return
        for request in batch:  # find out which
            chat_vllm(llm, [request], fields, log)
        return
    for (item, sample), output in zip(batch, outputs, strict=True):
        first, *others = [
            {"reasoning": None, "content": completion.text, "finish": completion.finish_reason}
            for completion in output.outputs
        ]
        facts = {
            "others": others,  # of n > 1 in extra_body
            "attempts": 1,
            "seconds": 0.0,
            "tokens_in": len(output.prompt_token_ids),
            "tokens_out": sum(len(completion.token_ids) for completion in output.outputs),
        }
        log.done(item, sample, first | facts)


def query_script(todo: list[tuple], log: Logbook) -> None:
    """Has the teacher made of rules answer (item, sample) of `todo`."""
    log.start_bar()
    for item, sample in todo:
        if not log.may_go_on():
            break
        rng = random.Random(f"{seed}-{item['key']}-{sample}")
        log.done(item, sample, traces.script_answer(item, rng, script_miss, script_broken))


def wanted_answers(folder: Path) -> list[tuple[dict, int]]:
    """[(item, sample)], in the order in which they are asked for: once for every train pair, then again."""
    items = read_lines(folder / "items.jsonl", "query", "describe")
    items = [item for item in items if item["split"] == "train"]
    if route == "scene" and not all(item["description"] for item in items):
        raise SystemExit(
            "route: these pairs have no scene in words; "
            "--route=rewrite makes chains of thought from image and answer"
        )
    return [(item, sample) for sample in range(samples) for item in items]


def query(folder: Path, settings: dict, started: float) -> None:
    """Asks the teacher for the answers that are missing. Under torchrun each process asks for its share.

    settings: of answer_settings, written to query.json. started: of the script, as of time.time().
    """
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    wanted = wanted_answers(folder)
    before = set()
    for name, answer in answered(folder).items():
        # what was cut off is asked for again once there is more room
        if answer.get("finish") != "length" or answer.get("max_tokens", max_tokens) >= max_tokens:
            before.add(name)
    todo = [(item, sample) for item, sample in wanted if (item["key"], sample) not in before]
    if rank == 0:
        who = "the script, which is for demos and tests only" if teacher == "script" else model
        print(f"query: {len(wanted)} requests to {who}, {len(wanted) - len(todo)} of them answered before")
    key = read_key() if teacher == "api" and todo else ""
    if teacher == "vllm":
        import common

        common.setup(seed)
        common.all_gather(None)  # nobody writes before all have read what is done
    if rank == 0:
        write(folder / "query.json", json.dumps(settings))
    log = Logbook(folder, rank, len(wanted), len(wanted) - len(todo))
    share = todo[rank::world]
    if not todo:
        log.start_bar()
    elif teacher == "script":
        query_script(share, log)
    elif teacher == "vllm":
        query_vllm(share, log)
    else:
        query_server(share, log, key)
    log.close()
    if rank == 0:
        report(folder, wanted, log, started)
    if log.stop:
        raise SystemExit(log.stop)
    if log.failures and not answered(folder):
        raise SystemExit(f"query: every request failed; errors.jsonl says why; {what_to_check()}")


def report(folder: Path, wanted: list[tuple], log: Logbook, started: float) -> None:
    """The last lines of the stage: how many are answered, what it cost, what came instead of answers."""
    every = answered(folder)
    there = sum((item["key"], sample) in every for item, sample in wanted)
    see = " (see errors.jsonl)" if log.failures else ""
    print(
        f"query: {there} of {len(wanted)} answered, {log.failures} failed in this run{see} | "
        f"this run {bill([log.tokens])}, "
        f"all runs {bill(journaled(folder, 'answers') + journaled(folder, 'errors'))} | "
        f"{time.time() - started:.0f} s"
    )
    for what, count in sorted(log.outcomes.items()):
        if what:
            print(f"query: {count} of these {what}" + (f"; {REMEDIES[what]}" if what in REMEDIES else ""))
    if log.uncounted:
        print(f"query: {log.uncounted} of these without token counts, which the bill lacks")


# -----------------------------------------------------------------------------
# 3) filter
# -----------------------------------------------------------------------------


def token_counter() -> Callable[[str], int]:
    """A function that counts the tokens of a text, with the knob's tokenizer or without one."""
    if not tokenizer:
        return lambda text: (len(text) + 3) // 4
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)
    return lambda text: len(encode(text, add_special_tokens=False).input_ids)


def filter_answers(folder: Path, settings: dict) -> None:
    """Sorts all answers into kept.jsonl and rejected.jsonl, by the rules of traces.py."""
    count_tokens = token_counter()
    items = {item["key"]: item for item in read_lines(folder / "items.jsonl", "filter", "describe")}
    answers = answered(folder)
    if not answers:
        raise SystemExit(f"filter: '{folder}' holds no answers; run --stage=query first")
    kept, rejected = [], []
    choices = []  # a server may send several to a request
    for name, answer in answers.items():
        choices += [(*name, choice) for choice in [answer, *answer.get("others", [])]]
    for key, sample, answer in tqdm(choices, "filter"):
        verdict = traces.Verdict(None, "its pair is gone", [])
        if key in items:
            verdict = traces.judge(items[key], answer, settings["route"], trace_limit, count_tokens)
        if verdict.row:
            kept.append({"key": key, "sample": sample} | verdict.row)
        else:
            row = {
                "key": key,
                "sample": sample,
                "reason": verdict.reason,
                "said": verdict.said,
                "answer": items[key]["answer"] if key in items else None,
                "reasoning": answer.get("reasoning"),
                "content": answer["content"],
            }
            rejected.append(row)
    kept, superfluous = traces.best_of(kept, keep_per_pair, count_tokens)
    for row, reason in superfluous:
        rejected.append(row | {"reason": reason})
    write_lines(folder / "kept.jsonl", kept)
    write_lines(folder / "rejected.jsonl", rejected)

    reasons = collections.Counter(row["reason"] for row in rejected)
    counts = {"kept": len(kept)} | dict(reasons.most_common())
    write(folder / "filter.json", json.dumps(counts, indent=1))
    pairs = {row["key"] for row in kept}
    print(f"filter: {len(kept)} of {len(choices)} traces kept, of {len(pairs)} pairs")
    for what, count in counts.items():
        print(f"  {what:<36}{count:>7}{100 * count / len(choices):>7.1f} %")


# -----------------------------------------------------------------------------
# 4) build
# -----------------------------------------------------------------------------


def parquet_schema():
    """Columns in the Hugging Face image layout, and in the file's metadata what `datasets` makes of them."""
    import pyarrow as pa

    text = {"dtype": "string", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "thinking": text, "problem": text, "solution": text}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("thinking", pa.string()),
            ("problem", pa.string()),
            ("solution", pa.string()),
        ]
    )
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path: Path, rows: list[dict], folder: Path) -> int:
    """One file of rows. Those whose image is gone are left out; returns how many are written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = parquet_schema()
    written = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        for start in tqdm(range(0, len(rows), PARQUET_ROWS), f"build {path.name}"):
            records = []
            for row in rows[start : start + PARQUET_ROWS]:
                image = folder / row["image"]
                if not image.is_file():
                    continue
                thinking = f"<think> {row['thinking']} </think>" if row.get("thinking") else None
                record = {
                    "image": {"bytes": image.read_bytes(), "path": f"{image.parent.name}_{image.name}"},
                    "thinking": thinking,
                    "problem": row["problem"],
                    "solution": f"<answer> {row['solution']} </answer>",
                }
                records.append(record)
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
            written += len(records)
    return written


CARD = """\
---
configs:
- config_name: default
  data_files:
{files}
task_categories:
- visual-question-answering
---

# Distilled reasoning about images

| split | rows | |
|---|---|---|
{splits}

Columns: `image`, `thinking` (a teacher's reasoning in `<think>` tags; empty in the val splits), \
`problem`, `solution` (in `<answer>` tags).

Teacher: {teacher}. It was given {given}. \
A trace was kept if and only if it ends in the known answer and is well formed:

| answers | |
|---|---|
{counts}

Sources: {sources}. \
Scenes and images of CLEVR are CC BY 4.0 (Johnson et al., 2017). Made with `distill.py`.
"""


def data_card(written: dict[str, int], settings: dict, counts: dict[str, int]) -> str:
    """README.md of the data set. written: rows of each split; counts: of filter.json."""
    files, splits = [], []
    for split, rows in written.items():
        files.append(f"  - split: {split}\n    path: data/{split}-*")
        kind = "distilled" if split == "train" else "questions and answers"
        splits.append(f"| {split} | {rows} | {kind} |")
    who = settings["model"]
    if settings["teacher"] == "script":
        who = "a script of rules, no model: for demos and tests only"
    told = settings["route"] == "scene"
    return CARD.format(
        files="\n".join(files),
        splits="\n".join(splits),
        teacher=who,
        given="each scene in words" if told else "the image and the known answer",
        counts="\n".join(f"| {what} | {count} |" for what, count in counts.items()),
        sources=", ".join(f"`{source}`" for source in (train, val_a, val_b) if source),
    )


def upload(target: Path) -> None:
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(push_to, repo_type="dataset", private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=push_to, folder_path=str(target), repo_type="dataset")
    except Exception as error:  # of the hub, of the network, of the login: a dozen classes
        problem = str(error).strip().splitlines()[0]
        raise SystemExit(
            f"push_to: the data set is in {target}/ but was not uploaded ({problem}); "
            "log in with `hf auth login`, then --stage=build again"
        ) from None
    print(f"build: pushed to https://huggingface.co/datasets/{push_to}")


def build(folder: Path, settings: dict) -> None:
    """Kept traces and val splits to dataset/, and to the hub if push_to names a place there."""
    rows = {"train": read_lines(folder / "kept.jsonl", "build", "filter")}
    if not rows["train"]:
        raise SystemExit(
            "build: not one trace was kept, so there is nothing to learn from; "
            f"'{folder}/filter.json' says why"
        )
    random.Random(seed).shuffle(rows["train"])
    for item in read_lines(folder / "items.jsonl", "build", "describe"):
        if item["split"] != "train":
            row = {"image": item["image"], "problem": item["question"], "solution": item["answer"]}
            rows.setdefault(item["split"], []).append(row)

    fresh = folder / "dataset.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    written = {}
    for split, part in rows.items():
        written[split] = write_parquet(fresh / "data" / f"{split}-00000-of-00001.parquet", part, folder)
        missing = len(part) - written[split]
        if missing:
            print(f"build: {split}: {missing} images are not there, their rows are left out")
    counts = {}
    if (folder / "filter.json").exists():
        counts = read_record(folder / "filter.json")
    write(fresh / "README.md", data_card(written, settings, counts))

    target = folder / "dataset"
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    print(f"build: {target}/ with {', '.join(f'{count} rows {split}' for split, count in written.items())}")
    if push_to:
        upload(target)


# -----------------------------------------------------------------------------
# the four stages in a row
# -----------------------------------------------------------------------------


def refuse_a_key(argv: list[str]) -> None:
    """SystemExit if --api_key_env is a key and not a name: before it is printed as a knob that changed."""
    for argument in argv:
        if re.match(r"--api_key_env=(?![A-Z][A-Z0-9_]*$)", argument):
            raise SystemExit(
                "api_key_env: the NAME of an environment variable in capitals, not the key itself; "
                "export MY_KEY=... first"
            )


def explain_full_disk(kind, error, trace) -> None:
    """sys.excepthook: a sentence, if the disk is full, and no traceback."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        print(CANNOT_WRITE, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def words_of(text: str) -> list[str]:
    """["describe", "query"] of "describe, query"."""
    return [word.strip() for word in text.split(",") if word.strip()]


def check_knobs(config: dict, stages: list[str], asked: list[str]) -> None:
    """SystemExit, before anything starts, if a knob has a value that it cannot have."""
    choices = (
        ("stage", stages, STAGES),
        ("families", asked, scenes.FAMILIES),
        ("teacher", [teacher], TEACHERS),
        ("route", [route], ROUTES),
    )
    for name, values, legal in choices:
        for value in values:
            if value not in legal:
                raise SystemExit(f"{name}: '{value}' is none of {', '.join(legal)}")
    for name in ("samples", "concurrency", "max_tokens", "trace_limit"):
        if config[name] < 1:
            raise SystemExit(f"{name}: {config[name]} is not 1 or more")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and (stages != ["query"] or teacher != "vllm"):
        raise SystemExit(
            "stage: torchrun is for --stage=query --teacher=vllm; run the other stages with python"
        )


if __name__ == "__main__":
    started = time.time()
    sys.excepthook = explain_full_disk
    refuse_a_key(sys.argv)
    config = configure(globals(), sys.argv[1:], __file__)
    stages = words_of(stage)
    asked = words_of(families)
    check_knobs(config, stages, asked)
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(
            f"out_dir: cannot make '{folder}' ({error.strerror}); name another folder with --out_dir"
        ) from None

    # 1) describe: anew at every start, since it is quick and comes out the same; images that are there stay
    if "describe" in stages:
        describe_splits(asked, folder)

    # 2) query: only what is missing, and only from the teacher that gave the answers which are there
    settings = answer_settings(config, folder, querying="query" in stages)
    if "query" in stages:
        query(folder, settings, started)

    # 3) filter: all answers that are there, also while another process is still asking
    if "filter" in stages:
        filter_answers(folder, settings)

    # 4) build: in a folder beside dataset/, which then takes its place
    if "build" in stages:
        build(folder, settings)
