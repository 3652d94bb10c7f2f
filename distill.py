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
import fcntl
import json
import mimetypes
import os
import random
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

import data
from configurator import configure
from results import lines_of, write
from tasks import scenes, traces
from tasks.adapters import read_json

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
request_seconds = 900.0   # until a request counts as lost; a reasoning model thinks for minutes
retries = 6               # after 429, 5xx, a lost connection, a broken reply; not after other refusals
backoff = 2.0             # seconds before the first retry, doubled for each further one, times 0.5 to 1.5
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
    for question in read_json(Path(question_file)):
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
    official = bool(records) and "objects" in records[0]  # scenes of CLEVR's own files
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
    """A request that is given up. `hopeless`: the server would refuse every other one, too."""

    def __init__(self, reason: str, attempts: int, hopeless: bool = False):
        super().__init__(reason)
        self.attempts = attempts
        self.hopeless = hopeless


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


class Journal:
    """A JSONL that only grows.

    A line goes to the system in one write, so a kill can tear the last one at most; that is cut off here.
    """

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # the system opens this lock when the process ends, killed or not
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(
                f"query: another process is writing {path}; wait for it, or set another --out_dir"
            ) from None
        torn = path.read_bytes().rpartition(b"\n")[2]
        os.ftruncate(self.file, os.fstat(self.file).st_size - len(torn))

    def add(self, record: dict) -> None:
        # "replace": half a surrogate pair in an answer is no reason to fail
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            whole = os.write(self.file, line) == len(line)
        except OSError:
            whole = False
        if not whole:  # the torn line is cut off by the next run
            raise SystemExit(
                "query: cannot write to out_dir, the disk may be full; "
                "make room, the same command goes on from here"
            )


def answered(folder: Path) -> dict[tuple, dict]:
    """(key, sample) -> answer, of all processes and earlier runs."""
    answers = {}
    for path in sorted(folder.glob("answers.*jsonl")):
        for record in lines_of(path):
            if "key" in record:
                answers[record["key"], record["sample"]] = record
    return answers


def dollars(tokens_in: int, tokens_out: int) -> str:
    if not price_in and not price_out:
        return "no prices given"
    return f"${(tokens_in * price_in + tokens_out * price_out) / 1e6:.2f}"


class Logbook:
    """What becomes of this process's requests: two journals, a progress bar, counts for the last line."""

    def __init__(self, folder: Path, rank: int, wanted: int, before: int):
        suffix = f".rank{rank}" if rank else ""
        self.answers = Journal(folder / f"answers{suffix}.jsonl")
        self.errors = Journal(folder / f"errors{suffix}.jsonl")
        self.tokens_in = 0
        self.tokens_out = 0
        self.failures = 0
        self.bar = tqdm(disable=True)
        self.bar_options = {"total": wanted, "initial": before, "desc": "query", "disable": rank > 0}

    def start_bar(self) -> None:
        """Once the teacher is there: a sentence that ends the run should not hang behind a bar."""
        self.bar = tqdm(**self.bar_options)

    def done(self, item: dict, sample: int, answer: dict) -> None:
        self.answers.add({"key": item["key"], "sample": sample, "model": model} | answer)
        self.tokens_in += answer["tokens_in"]
        self.tokens_out += answer["tokens_out"]
        tokens = f"{self.tokens_in + self.tokens_out:,} tokens ({dollars(self.tokens_in, self.tokens_out)})"
        self.bar.set_postfix_str(f"{tokens}, {self.failures} failed", refresh=False)
        self.bar.update()

    def failed(self, item: dict, sample: int, problem: Failed) -> None:
        self.failures += 1
        error = {
            "key": item["key"],
            "sample": sample,
            "error": str(problem),
            "attempts": problem.attempts,
            "time": time.time(),
        }
        self.errors.add(error)


def answer_settings(config: dict, folder: Path, querying: bool) -> dict:
    """What the answers in this folder are made with: by this run if it queries, or else by the one that did.

    SystemExit if this run would mix its answers with those of another teacher.
    """
    names = ("teacher", "model", "route", "guided", "system", "temperature", "script_miss", "script_broken")
    settings = {name: config[name] for name in names}
    if not (folder / "query.json").exists():
        return settings
    earlier = json.loads((folder / "query.json").read_text())
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
    return key


def read_reply(reply) -> dict | None:
    """The answer in a chat completion, None if it is empty."""
    choice = reply.choices[0]
    usage = reply.usage
    # servers that separate the reasoning call it reasoning_content (DeepSeek) or reasoning (vLLM)
    reasoning = getattr(choice.message, "reasoning_content", None)
    reasoning = reasoning or getattr(choice.message, "reasoning", None)
    if not reasoning and not choice.message.content:
        return None
    return {
        "reasoning": reasoning,
        "content": choice.message.content or "",
        "finish": choice.finish_reason,
        "tokens_in": usage.prompt_tokens if usage else 0,
        "tokens_out": usage.completion_tokens if usage else 0,
    }


async def ask_server(
    client, request: dict, retries: int, backoff: float, seconds: float, secret: str = ""
) -> dict:
    """One answer of the server, after as many attempts as it takes.

    Raises Failed, whose text never holds the secret.
    """
    import openai

    def hide(text) -> str:
        text = str(text)
        if secret:  # servers may quote what they were sent
            text = text.replace(secret, "***")
        return text[:300]

    for attempt in range(1, retries + 2):
        pause = 0.0
        started = time.time()
        try:
            reply = await asyncio.wait_for(client.chat.completions.create(**request), seconds)
            answer = read_reply(reply)
            if answer:
                return answer | {"attempts": attempt, "seconds": round(time.time() - started, 1)}
            problem = "an empty answer"
        except openai.APIStatusError as error:
            code = error.status_code
            problem = f"HTTP {code}: {hide(error.message)}"
            # key, balance, address, model: as in every request
            if code in (401, 402, 403, 404) or "insufficient_quota" in str(error.body):
                raise Failed(problem, attempt, hopeless=True) from None
            if code < 500 and code not in (408, 409, 425, 429):
                raise Failed(problem, attempt) from None
            after = error.response.headers.get("retry-after", "")
            if re.fullmatch(r"\d{1,6}(\.\d+)?", after):
                pause = min(float(after), 300)
        except (TimeoutError, openai.APIError, ValueError, AttributeError, TypeError, IndexError) as error:
            # the last four: a reply that is cut short, no JSON, or no chat completion
            problem = f"{type(error).__name__}: {hide(error)}"
        if attempt <= retries:
            # random, or else all requests that failed together would come back together
            wait = min(120, backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
            await asyncio.sleep(max(pause, wait))
    raise Failed(problem, retries + 1)


async def ask_all(
    todo: list[tuple], ask: Callable, done: Callable, failed: Callable, concurrency: int
) -> str:
    """Runs ask(item, sample) for all of `todo`, at most `concurrency` at a time.

    Each answer goes to done(item, sample, answer), each Failed to failed(item, sample, problem).
    Returns why it stopped early, or ''.
    """
    queue = iter(todo)  # one for all workers: each takes the next
    stop = ""
    in_a_row = 0

    async def worker() -> None:
        nonlocal stop, in_a_row
        for item, sample in queue:
            try:
                done(item, sample, await ask(item, sample))
                in_a_row = 0
            except Failed as problem:
                failed(item, sample, problem)
                in_a_row += 1
                if problem.hopeless or in_a_row >= max(20, concurrency):
                    stop = str(problem)
            if stop:
                return

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return stop


async def check_server(client) -> None:
    """A misspelt address shows now and not after minutes of retries."""
    import openai

    try:
        await client.with_options(timeout=30).models.list()
    except openai.APIConnectionError as error:
        raise SystemExit(
            f"base_url: no server answers at {base_url} ({error}); start it, or correct the address"
        ) from None
    except (openai.APIError, ValueError, AttributeError, TypeError):
        print(f"query: {base_url} does not list its models; going on, since it answers")


async def ask_over_http(todo: list[tuple], log: Logbook, key: str) -> str:
    """As query_server."""
    import openai

    async def ask(item: dict, sample: int) -> dict:
        request = {
            "model": model,
            "messages": build_messages(item, route, guided, system, out_dir),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "extra_body": extra_body,
        }
        return await ask_server(client, request, retries, backoff, request_seconds, key)

    client = openai.AsyncOpenAI(
        base_url=base_url, api_key=key or "none", max_retries=0, timeout=request_seconds
    )
    async with client:
        await check_server(client)
        log.start_bar()
        return await ask_all(todo, ask, log.done, log.failed, concurrency)


def query_server(todo: list[tuple], log: Logbook, key: str) -> str:
    """Has a server answer (item, sample) of `todo`; returns why it stopped early, or ''."""
    try:
        return asyncio.run(ask_over_http(todo, log, key))
    except KeyboardInterrupt:
        return "interrupted"


def query_vllm(todo: list[tuple], log: Logbook) -> None:
    """Has an engine in this process answer (item, sample) of `todo`."""
    import torch
    from vllm import SamplingParams

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
        completion = output.outputs[0]
        answer = {
            "reasoning": None,
            "content": completion.text,
            "finish": completion.finish_reason,
            "attempts": 1,
            "seconds": 0.0,
            "tokens_in": len(output.prompt_token_ids),
            "tokens_out": len(completion.token_ids),
        }
        log.done(item, sample, answer)


def query_script(todo: list[tuple], log: Logbook) -> None:
    """Has the teacher made of rules answer (item, sample) of `todo`."""
    log.start_bar()
    for item, sample in todo:
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
    before = answered(folder)
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
    stop = ""
    if not todo:
        log.start_bar()
    elif teacher == "script":
        query_script(share, log)
    elif teacher == "vllm":
        query_vllm(share, log)
    else:
        stop = query_server(share, log, key)
    log.bar.close()
    if rank == 0:
        report(folder, wanted, log, started)
    if stop:
        raise SystemExit(
            f"query: stopped ({stop}). Check the connection, base_url, model, and the key in {api_key_env}; "
            "the same command goes on from here"
        )


def report(folder: Path, wanted: list[tuple], log: Logbook, started: float) -> None:
    """The last line of the stage: how many are answered, and what it cost."""
    every = answered(folder)
    there = sum((item["key"], sample) in every for item, sample in wanted)
    all_in = sum(answer["tokens_in"] for answer in every.values())
    all_out = sum(answer["tokens_out"] for answer in every.values())
    see = " (see errors.jsonl)" if log.failures else ""
    own_cost = dollars(log.tokens_in, log.tokens_out)
    print(
        f"query: {there} of {len(wanted)} answered, {log.failures} failed in this run{see} | "
        f"this run {log.tokens_in:,} tokens in, {log.tokens_out:,} out ({own_cost}), "
        f"all runs {all_in:,} in, {all_out:,} out ({dollars(all_in, all_out)}) | "
        f"{time.time() - started:.0f} s"
    )


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
    for (key, sample), answer in tqdm(answers.items(), "filter"):
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
    print(f"filter: {len(kept)} of {len(answers)} traces kept, of {len(pairs)} pairs")
    for what, count in counts.items():
        print(f"  {what:<36}{count:>7}{100 * count / len(answers):>7.1f} %")


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
        counts = json.loads((folder / "filter.json").read_text())
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
