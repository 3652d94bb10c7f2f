"""Distillation: a text model that cannot see is told a scene in words and reasons about it; the right traces become training rows.

R1-V's recipe for its cold start, in four stages. Each reads the files of the one before it, can be killed and started again, and
can be used alone:

 1) describe  scenes -> pairs of question and known answer, with the scene in words: items.jsonl, images/
 2) query     pairs -> what a teacher answers: answers.jsonl (one line a request, appended), errors.jsonl
 3) filter    answers -> kept.jsonl, rejected.jsonl with the reason, filter.json with the counts
 4) build     kept traces and images -> dataset/, parquet in the Hugging Face layout, which train_sft.py and load_dataset read

Where this differs from R1-V's distill_r1:
 1. an answer is right by the scorer that also pays the policy (grading.py); a second, different conclusion makes it wrong;
 2. traces that loop, quote their instructions or only make sense for a reader of text ("line 3 says ...") are dropped;
 3. the teacher is asked to speak of an image, and only the train split is asked: the val splits are questions and answers;
 4. a killed run loses nothing: every answer is on disk before the next request of its place starts.

    python distill.py configs/distill_tiny.py                                   # all stages, a scripted teacher, a laptop, 30 seconds
    DEEPSEEK_API_KEY=... python distill.py configs/distill.py --stage=query     # DeepSeek-R1; the same command goes on
    vllm serve Qwen/Qwen3-8B & python distill.py --stage=query --model=Qwen/Qwen3-8B --base_url=http://localhost:8000/v1
    torchrun --nproc_per_node=8 distill.py --stage=query --teacher=vllm --model=Qwen/Qwen3-8B      # offline, one engine per GPU
    python distill.py --train=geoqa --route=rewrite --model=gpt-4o --base_url=https://api.openai.com/v1 --api_key_env=OPENAI_API_KEY
                                                                                # R1-V's older route: a vision model rewrites pairs
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
from pathlib import Path
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
# describe: a source is "scenes:clevr?rows=1000&layout=grid" (scenes.py), "CLEVR_trainA_scenes.json" with "+CLEVR_trainA_questions.json"
# for its counting questions, or any rows that data.py reads (for route = 'rewrite')
train = "scenes:clevr?rows=1000"
val_a = ""                # validation in distribution; '' = none
val_b = ""                # validation out of distribution, as CoGenT's condition B
families = "count_all"    # questions asked of every scene: 'count_all,count,exist,query', ... of scenes.py; '' = those of the file only
image_root = ""           # folder of the images of scene files; default: images/<split>/ beside the folder of the file
train_limit = 10000       # pairs, drawn at random; 0 = all
val_limit = 5000          # of each val split
# query
teacher = "api"           # 'api' = an OpenAI-compatible server, 'vllm' = in this process, 'script' = rules, for demos and tests only
route = "scene"           # 'scene' = the scene in words, 'rewrite' = image and known answer, to be made a chain of thought
model = "deepseek-reasoner"
base_url = "https://api.deepseek.com"  # or http://localhost:8000/v1 of `vllm serve`
api_key_env = "DEEPSEEK_API_KEY"       # NAME of the environment variable that holds the key; it is read there and written nowhere
guided = True             # tell the teacher how to look and how to end; False = the question alone
system = ""               # system message; R1's makers advise against one
max_tokens = 4096         # of thinking and answer together
temperature = 0.6
samples = 1               # answers to each pair, each a request of its own
extra_body = {}           # further fields of the request, as in {"top_p": 0.95}
concurrency = 16          # requests under way at a time
request_seconds = 900.0   # until a request counts as lost; a reasoning model thinks for minutes
retries = 6               # after 429, 5xx, a lost connection, a broken reply; not after other refusals
backoff = 2.0             # seconds before the first retry, doubled for each further one, times 0.5 to 1.5 at random
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

STAGES, TEACHERS = ("describe", "query", "filter", "build"), ("api", "vllm", "script")
PARQUET_ROWS = 100  # per row group: readers take whole groups into memory

# -----------------------------------------------------------------------------
# 1) describe
# -----------------------------------------------------------------------------


def in_words(scene: dict, rng: random.Random) -> str:
    """The scene in words, its objects shuffled: or else their order would tell where things are."""
    heading, *lines = scenes.full_description(scene).split("\n")
    return "\n".join([heading, *rng.sample(lines, len(lines))])


def is_counting(question: str) -> bool:
    """R1-V's choice among CLEVR's questions; it lets in comparisons of numbers, whose answer is yes or no."""
    return "how many" in question.lower() or "number" in question.lower()


def scene_pairs(scene: dict, asked: list[str], given: list[dict]) -> tuple[list[tuple[str, str]], int]:
    """(question, answer) of a scene, those that the file gives and one of each family asked; and how many families did not fit it."""
    pairs, unfit = (
        [(q["question"], str(q["answer"])) for q in given if is_counting(q["question"]) and "answer" in q],
        0,
    )
    for family in asked:
        try:
            made = scenes.ask(scene, scene["seed"], family)
            pairs.append((made["question"], made["answer"]))
        except ValueError:  # no two objects to compare, for example
            unfit += 1
    return list(dict.fromkeys(pairs)), unfit


def from_file(scene: dict, index: int) -> dict:
    """A scene of CLEVR's files with what scenes.py keeps beside that; the official images are all of one size."""
    split = (
        "cogent_b" if re.match(r"CLEVR_[a-z]+B_", scene["image_filename"]) else "clevr"
    )  # CLEVR_valB_000000.png
    return scene | {
        "layout": "free",
        "seed": scene.get("image_index", index),
        "width": 480,
        "height": 320,
        "split": split,
    }


def save_image(image, path: Path) -> None:
    """PNG, whole or not at all: a killed run must not leave half a picture that the next one takes for done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path.with_suffix(".tmp"), "PNG")
    path.with_suffix(".tmp").replace(path)


def read_source(source: str, split: str, asked: list[str], image_root: str, folder: Path, seed: int):
    """Yields (image path, question, answer, task, options, scene in words), or a string: why something is left out.

    Images that are not files yet are drawn or copied to folder/images/. Raises SystemExit if there is no such source.
    """
    first, _, question_file = source.partition("+")
    for path in filter(None, (first if question_file else "", question_file)):
        if not Path(path).is_file():
            raise SystemExit(
                f"describe: '{path}' does not exist; name CLEVR's files as SCENES.json+QUESTIONS.json"
            )
    drawn, records = (
        source.startswith("scenes:"),
        read_json(Path(first)) if first.endswith(".json") and Path(first).is_file() else [],
    )
    from_scenes = drawn or bool(records) and "objects" in records[0]
    if from_scenes and not asked and not question_file:
        raise SystemExit(
            f"describe: '{source}' gives no pairs; name --families, or questions as in SCENES.json+QUESTIONS.json"
        )
    rows = (
        records
        if from_scenes and not drawn
        else data.load_rows(source, "train" if split == "train" else "val")
    )
    given, pictures = (
        collections.defaultdict(list),
        folder / "images" / f"{zlib.crc32(source.encode()):08x}",
    )  # of this source only
    for question in read_json(Path(question_file)) if question_file else []:
        given[question.get("image_filename")].append(question)
    for i in tqdm(range(len(rows)), f"describe {split}"):
        path = pictures / f"{i:06d}.png"
        try:
            if not from_scenes:
                row = rows[i]
                if len(row["images"]) != 1:
                    yield "rows without exactly one image"
                    continue
            elif drawn:
                scene = rows.records.scene(i)
            else:
                scene, name, beside = from_file(rows[i], i), rows[i]["image_filename"], Path(first).parent
                places = [
                    Path(image_root or beside, name),
                    beside.parent / "images" / name.partition("_")[2].partition("_")[0] / name,
                ]
                path = next((p.resolve() for p in places if p.is_file()), None)
                if path is None:
                    if i == 0:
                        raise SystemExit(
                            f"describe: image {places[0]} not found, nor {places[1]}; name the folder with --image_root"
                        )
                    yield "scenes without their image"
                    continue
            if (drawn or not from_scenes) and not path.exists():
                save_image(rows[i]["images"][0], path)
            if not from_scenes:
                yield path, row["problem"], row["solution"], row["task"], row["options"], ""
                continue
            pairs, unfit = scene_pairs(scene, asked, given[scene.get("image_filename")])
            yield from ["questions that do not fit their scene"] * unfit
            words = in_words(scene, random.Random(f"{seed}-{path.name}"))
            for question, answer in pairs:
                yield path, question, answer, "count" if answer.isdigit() else "text", None, words
        except (data.BadRow, KeyError, IndexError, TypeError, ValueError) as problem:
            yield "rows that are broken" if isinstance(problem, data.BadRow) else "scenes that are incomplete"


def describe(
    source: str, split: str, asked: list[str], image_root: str, folder: Path, limit: int, seed: int
) -> list[dict]:
    """The items of one split: {"key", "split", "image", "question", "answer", "task", "options", "description"}."""
    items, left_out, folder = {}, collections.Counter(), folder.resolve()
    for found in read_source(source, split, asked, image_root, folder, seed):
        if isinstance(found, str):
            left_out[found] += 1
            continue
        path, question, answer, task, options, words = found
        path = (
            path.relative_to(folder) if path.is_relative_to(folder) else path
        )  # such a path survives a move of the folder
        key = f"{split}/{path.stem}/{zlib.crc32('|'.join([path.name, question, answer, words]).encode()):08x}"
        items[key] = {
            "key": key,
            "split": split,
            "image": str(path),
            "question": question,
            "answer": answer,
            "task": task,
            "options": options,
            "description": words,
        }
    for what, count in left_out.items():
        print(f"describe: {split}: {count} {what}, left out")
    if not items:
        raise SystemExit(
            f"describe: '{source}' gives no pairs: all {sum(left_out.values())} were left out, as said above"
        )
    chosen = random.Random(f"{seed}-{split}").sample(list(items.values()), len(items))
    return chosen[:limit] if limit else chosen


# -----------------------------------------------------------------------------
# 2) query
# -----------------------------------------------------------------------------

SCENE = """You are looking at an image. You cannot be shown it, so it is written out here, one object to a line.

{description}

Question about the image: {question}"""
GUIDED = """

Go through the objects before you answer, and reason as far as the question needs it. Speak as someone who looks at the image: of what
is seen in it, never of lines or of a text. Put the answer on a last line of its own, **The answer is:** and then a number, a word, or
yes or no."""
REWRITE = """Here is an image with a question about it, and the answer that is known to be right.

Question: {question}
Answer: {answer}

First put the question in such a way that it has one short answer which a program can check (a number, a word, a letter) and that this
answer is still {answer}; keep every fact that is needed, and do not give the answer away. Then solve your question from the image, step
by step, as someone would who does not know the answer, and never mention that you were given one. Write exactly this:

<problem> your question </problem>
<think> your reasoning </think>
<answer> {answer} </answer>"""


class Failed(Exception):
    """A request that is given up. `hopeless`: the server would refuse every other one, too."""

    def __init__(self, reason: str, attempts: int, hopeless: bool = False):
        super().__init__(reason)
        self.attempts, self.hopeless = attempts, hopeless


def build_messages(item: dict, route: str, guided: bool, system: str, out_dir: str) -> list[dict]:
    """What the teacher is sent about one pair, in the chat format of OpenAI."""
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
        content = SCENE.format(**item) + (GUIDED if guided else "")
    return ([{"role": "system", "content": system}] if system else []) + [
        {"role": "user", "content": content}
    ]


async def ask_server(
    client, request: dict, retries: int, backoff: float, seconds: float, secret: str = ""
) -> dict:
    """One answer of the server, after as many attempts as it takes. Raises Failed, whose text never holds the secret."""

    def hide(text) -> str:  # servers may quote what they were sent
        return (str(text).replace(secret, "***") if secret else str(text))[:300]

    import openai

    for attempt in range(1, retries + 2):
        pause = 0.0
        try:
            started = time.time()
            reply = await asyncio.wait_for(client.chat.completions.create(**request), seconds)
            choice, usage = reply.choices[0], reply.usage
            # servers that separate the reasoning call it reasoning_content (DeepSeek) or reasoning (vLLM)
            reasoning = getattr(choice.message, "reasoning_content", None) or getattr(
                choice.message, "reasoning", None
            )
            if reasoning or choice.message.content:
                return {
                    "reasoning": reasoning,
                    "content": choice.message.content or "",
                    "finish": choice.finish_reason,
                    "tokens_in": usage.prompt_tokens if usage else 0,
                    "tokens_out": usage.completion_tokens if usage else 0,
                    "attempts": attempt,
                    "seconds": round(time.time() - started, 1),
                }
            problem = "an empty answer"
        except openai.APIStatusError as error:
            problem, code = f"HTTP {error.status_code}: {hide(error.message)}", error.status_code
            if code in (401, 402, 403, 404) or "insufficient_quota" in str(
                error.body
            ):  # key, balance, address, model: as in every request
                raise Failed(problem, attempt, hopeless=True) from None
            if code < 500 and code not in (408, 409, 425, 429):
                raise Failed(problem, attempt) from None
            after = error.response.headers.get("retry-after", "")
            pause = min(float(after), 300) if re.fullmatch(r"\d{1,6}(\.\d+)?", after) else 0.0
        except (TimeoutError, openai.APIError, ValueError, AttributeError, TypeError, IndexError) as error:  # noqa: UP041
            # the last four: a reply that is cut short, no JSON, or no chat completion
            problem = f"{type(error).__name__}: {hide(error)}"
        if attempt <= retries:  # random, or else all requests that failed together would come back together
            await asyncio.sleep(max(pause, min(120, backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)))
    raise Failed(problem, retries + 1)


async def ask_all(todo: list[tuple], ask, done, failed, concurrency: int) -> str:
    """Runs ask(item, sample) for all of `todo`, at most `concurrency` at a time; returns why it stopped early, or ''."""
    queue, stop, in_a_row = iter(todo), "", 0

    async def worker():
        nonlocal stop, in_a_row
        for item, sample in queue:  # one iterator for all workers: each takes the next
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


class Journal:
    """A JSONL that only grows. A line goes to the system in one write, so a kill can tear the last one at most; that is cut off here."""

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(
                self.file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system opens it when this process ends, killed or not
        except OSError:
            raise SystemExit(
                f"query: another process is writing {path}; wait for it, or set another --out_dir"
            ) from None
        torn = path.read_bytes().rpartition(b"\n")[2]
        os.ftruncate(self.file, os.fstat(self.file).st_size - len(torn))

    def add(self, record: dict) -> None:
        line = (
            json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        )  # "replace": half a surrogate pair
        try:
            whole = os.write(self.file, line) == len(line)
        except OSError:
            whole = False
        if not whole:  # the torn line is cut off by the next run
            raise SystemExit(
                "query: cannot write to out_dir, the disk may be full; make room, the same command goes on from here"
            )


def answered(folder: Path) -> dict[tuple, dict]:
    """(key, sample) -> answer, of all processes and earlier runs."""
    return {
        (r["key"], r["sample"]): r
        for path in sorted(folder.glob("answers.*jsonl"))
        for r in lines_of(path)
        if "key" in r
    }


# -----------------------------------------------------------------------------
# 3) filter: traces.py.  4) build
# -----------------------------------------------------------------------------


def write_parquet(path: Path, rows: list[dict], folder: Path) -> int:
    """One file in the Hugging Face image layout. Rows whose image is gone are left out; returns how many are written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
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
                records.append(
                    {
                        "image": {"bytes": image.read_bytes(), "path": f"{image.parent.name}_{image.name}"},
                        "thinking": thinking,
                        "problem": row["problem"],
                        "solution": f"<answer> {row['solution']} </answer>",
                    }
                )
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
            written += len(records)
    return written


CARD = """---
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

Columns: `image`, `thinking` (a teacher's reasoning in `<think>` tags; empty in the val splits), `problem`, `solution` (in `<answer>` tags).

Teacher: {teacher}. It was given {given}. A trace was kept if and only if it ends in the known answer and is well formed:

| answers | |
|---|---|
{counts}

Sources: {sources}. Scenes and images of CLEVR are CC BY 4.0 (Johnson et al., 2017). Made with `distill.py`.
"""


if __name__ == "__main__":
    if any(
        re.match(r"--api_key_env=(?![A-Z][A-Z0-9_]*$)", argument) for argument in sys.argv
    ):  # before configure prints what changed
        raise SystemExit(
            "api_key_env: the NAME of an environment variable in capitals, not the key itself; export MY_KEY=... first"
        )
    config = configure(globals(), sys.argv[1:], __file__)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    say = print if rank == 0 else lambda *a, **k: None
    stages, asked, folder = (
        [part.strip() for part in text.split(",") if part.strip()] for text in (stage, families, out_dir)
    )
    folder, started = Path(out_dir), time.time()
    for name, values, legal in (
        ("stage", stages, STAGES),
        ("families", asked, scenes.FAMILIES),
        ("teacher", [teacher], TEACHERS),
        ("route", [route], ("scene", "rewrite")),
    ):
        for value in values:
            if value not in legal:
                raise SystemExit(f"{name}: '{value}' is none of {', '.join(legal)}")
    for name in ("samples", "concurrency", "max_tokens", "trace_limit"):
        if config[name] < 1:
            raise SystemExit(f"{name}: {config[name]} is not 1 or more")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(
            f"out_dir: cannot make '{folder}' ({error.strerror}); name another folder with --out_dir"
        ) from None
    if world > 1 and (stages != ["query"] or teacher != "vllm"):
        raise SystemExit(
            "stage: torchrun is for --stage=query --teacher=vllm; run the other stages with python"
        )

    def read_lines(name: str, before: str) -> list[dict]:
        if not (folder / name).exists():
            raise SystemExit(
                f"{stage.split(',')[0]}: '{folder / name}' does not exist; run --stage={before} first, with this --out_dir"
            )
        return lines_of(folder / name)

    def write_lines(name: str, records: list[dict]) -> None:
        write(folder / name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))

    def dollars(tokens_in: int, tokens_out: int) -> str:
        return (
            f"${(tokens_in * price_in + tokens_out * price_out) / 1e6:.2f}"
            if price_in or price_out
            else "no prices given"
        )

    # -------------------------------------------------------------------------
    # 1) describe: done anew at every start, since it is quick and comes out the same; images that are there are not drawn again
    # -------------------------------------------------------------------------
    if "describe" in stages:
        sources = (("train", train, train_limit), ("valA", val_a, val_limit), ("valB", val_b, val_limit))
        parts = {
            split: describe(source, split, asked, image_root, folder, limit, seed)
            for split, source, limit in sources
            if source
        }
        write_lines("items.jsonl", sum(parts.values(), []))
        for split, part in parts.items():
            common_answers = collections.Counter(item["answer"] for item in part).most_common(6)
            print(
                f"describe: {split}: {len(part)} pairs of {len({item['image'] for item in part})} images; most frequent answers "
                f"{', '.join(f'{answer} ({100 * n / len(part):.0f} %)' for answer, n in common_answers)}"
            )

    # -------------------------------------------------------------------------
    # 2) query: only what is missing
    # -------------------------------------------------------------------------
    settings = {
        k: config[k]
        for k in (
            "teacher",
            "model",
            "route",
            "guided",
            "system",
            "temperature",
            "script_miss",
            "script_broken",
        )
    }
    if (folder / "query.json").exists():  # what the answers in this folder were made with
        earlier = json.loads((folder / "query.json").read_text())
        changed = [k for k in settings if earlier.get(k) != settings[k]]
        if (
            "query" in stages and changed and answered(folder)
        ):  # a silent mixture of two teachers helps nobody
            raise SystemExit(
                f"{changed[0]}: '{folder}' holds answers with {changed[0]}={earlier.get(changed[0])!r}, now it is "
                f"{settings[changed[0]]!r}; set it back, or take another --out_dir"
            )
        settings = settings if "query" in stages else earlier
    if "query" in stages:
        items, before = (
            [item for item in read_lines("items.jsonl", "describe") if item["split"] == "train"],
            answered(folder),
        )
        if route == "scene" and not all(item["description"] for item in items):
            raise SystemExit(
                "route: these pairs have no scene in words; --route=rewrite makes chains of thought from image and answer"
            )
        todo = [(item, k) for k in range(samples) for item in items if (item["key"], k) not in before]
        wanted, tokens, trouble, stop = samples * len(items), [0, 0], 0, ""
        say(
            f"query: {wanted} requests to {model if teacher != 'script' else 'the script, which is for demos and tests only'}, "
            f"{wanted - len(todo)} of them answered before"
        )
        secret = os.environ.get(api_key_env, "").strip() if teacher == "api" else ""
        if (
            todo
            and teacher == "api"
            and not secret
            and urlsplit(base_url).hostname not in ("localhost", "127.0.0.1", "::1")
        ):
            raise SystemExit(
                f"api_key_env: the environment variable {api_key_env} is not set; export {api_key_env}=<your key>"
            )
        if teacher == "vllm":
            import common
            import sampling

            rank, world, device = common.setup(seed)
            common.all_gather(None)  # nobody writes before all have read what is done
        if rank == 0:
            write(folder / "query.json", json.dumps(settings))
        suffix = f".rank{rank}" if rank else ""
        answers, errors = (
            Journal(folder / f"answers{suffix}.jsonl"),
            Journal(folder / f"errors{suffix}.jsonl"),
        )

        bar = tqdm(disable=True)

        def start_bar() -> (
            tqdm
        ):  # once the teacher is there: a sentence that ends the run should not hang behind a bar
            return tqdm(total=wanted, initial=wanted - len(todo), desc="query", disable=rank > 0)

        def done(item: dict, sample: int, answer: dict) -> None:
            answers.add({"key": item["key"], "sample": sample, "model": model} | answer)
            tokens[:] = tokens[0] + answer["tokens_in"], tokens[1] + answer["tokens_out"]
            bar.set_postfix_str(
                f"{sum(tokens):,} tokens ({dollars(*tokens)}), {trouble} failed", refresh=False
            )
            bar.update()

        def failed(item: dict, sample: int, problem: Failed) -> None:
            global trouble
            trouble += 1
            errors.add(
                {
                    "key": item["key"],
                    "sample": sample,
                    "error": str(problem),
                    "attempts": problem.attempts,
                    "time": time.time(),
                }
            )

        if teacher == "script" or not todo:
            bar = start_bar()
            for item, sample in todo:
                done(
                    item,
                    sample,
                    traces.script_answer(
                        item, random.Random(f"{seed}-{item['key']}-{sample}"), script_miss, script_broken
                    ),
                )
        elif teacher == "vllm":
            from vllm import SamplingParams

            try:
                llm = sampling.start_vllm(
                    model,
                    dtype,
                    max_model_len,
                    gpu_memory=vllm_gpu_memory,
                    seed=seed,
                    cuda=device.type == "cuda",
                )
            except (OSError, ValueError) as error:  # no such model, more tokens than it has places
                raise SystemExit(
                    f"model: vLLM cannot load '{model}' ({' '.join(str(error).split())[:300]})"
                ) from None

            knobs = {"temperature": temperature, "max_tokens": max_tokens} | extra_body
            try:
                SamplingParams.from_optional(**knobs)
            except (TypeError, ValueError) as error:
                raise SystemExit(f"extra_body: vLLM refuses these sampling parameters ({error})") from None

            def chat(batch: list[tuple]) -> None:
                """Answers of a batch; a pair that the engine refuses (too long, for example) spoils its own only."""
                seeds = [
                    sampling.sample_seed(seed, sample, zlib.crc32(item["key"].encode()))
                    for item, sample in batch
                ]
                try:
                    messages = [build_messages(item, route, guided, system, out_dir) for item, _ in batch]
                    outputs = llm.chat(
                        messages,
                        [SamplingParams.from_optional(**{"seed": s} | knobs) for s in seeds],
                        use_tqdm=False,
                    )
                except (ValueError, Failed) as problem:
                    if len(batch) == 1:
                        return failed(*batch[0], Failed(str(problem)[:300], 1))
                    for pair in batch:  # find out which
                        chat([pair])
                    return
                for pair, output in zip(batch, outputs, strict=True):
                    o = output.outputs[0]
                    done(
                        *pair,
                        {
                            "reasoning": None,
                            "content": o.text,
                            "finish": o.finish_reason,
                            "attempts": 1,
                            "seconds": 0.0,
                            "tokens_in": len(output.prompt_token_ids),
                            "tokens_out": len(o.token_ids),
                        },
                    )

            mine, bar = todo[rank::world], start_bar()
            for i in range(0, len(mine), 256):
                chat(mine[i : i + 256])
            common.finish(llm)
        else:
            import openai

            async def query_all() -> str:
                global bar
                connection = {
                    "base_url": base_url,
                    "api_key": secret or "none",
                    "max_retries": 0,
                    "timeout": request_seconds,
                }
                async with openai.AsyncOpenAI(**connection) as client:
                    try:  # a misspelt address shows now and not after minutes of retries
                        await client.with_options(timeout=30).models.list()
                    except openai.APIConnectionError as error:
                        raise SystemExit(
                            f"base_url: no server answers at {base_url} ({error}); start it, or correct the address"
                        ) from None
                    except (openai.APIError, ValueError, AttributeError, TypeError):
                        say(f"query: {base_url} does not list its models; going on, since it answers")

                    bar = start_bar()

                    async def ask(item: dict, sample: int) -> dict:
                        request = {
                            "model": model,
                            "messages": build_messages(item, route, guided, system, out_dir),
                            "max_tokens": max_tokens,
                            "temperature": temperature,
                            "extra_body": extra_body,
                        }
                        return await ask_server(client, request, retries, backoff, request_seconds, secret)

                    return await ask_all(todo, ask, done, failed, concurrency)

            try:
                stop = asyncio.run(query_all())
            except KeyboardInterrupt:
                stop = "interrupted"
        bar.close()
        every = answered(folder)
        there = sum((item["key"], k) in every for k in range(samples) for item in items)
        total = [sum(a[name] for a in every.values()) for name in ("tokens_in", "tokens_out")]
        say(
            f"query: {there} of {wanted} answered, {trouble} failed in this run{' (see errors.jsonl)' if trouble else ''} | "
            f"this run {tokens[0]:,} tokens in, {tokens[1]:,} out ({dollars(*tokens)}), all runs {total[0]:,} in, {total[1]:,} out "
            f"({dollars(*total)}) | {time.time() - started:.0f} s"
        )
        if stop:
            raise SystemExit(
                f"query: stopped ({stop}). Check the connection, base_url, model, and the key in {api_key_env}; "
                "the same command goes on from here"
            )

    # -------------------------------------------------------------------------
    # 3) filter
    # -------------------------------------------------------------------------
    if "filter" in stages:
        if tokenizer:
            from transformers import AutoTokenizer

            counter = AutoTokenizer.from_pretrained(tokenizer)

        def count_tokens(text: str) -> int:
            return (
                len(counter(text, add_special_tokens=False).input_ids) if tokenizer else (len(text) + 3) // 4
            )

        items = {item["key"]: item for item in read_lines("items.jsonl", "describe")}
        every, kept, rejected = answered(folder), [], []
        if not every:
            raise SystemExit(f"filter: '{folder}' holds no answers; run --stage=query first")
        for (key, sample), answer in tqdm(every.items(), "filter"):
            row, reason, said = None, "its pair is gone", []
            if key in items:
                row, reason, said = traces.judge(
                    items[key], answer, settings["route"], trace_limit, count_tokens
                )
            kept += [{"key": key, "sample": sample} | row] if row else []
            rejected += (
                [
                    {
                        "key": key,
                        "sample": sample,
                        "reason": reason,
                        "said": said,
                        "answer": items.get(key, {}).get("answer"),
                        "reasoning": answer.get("reasoning"),
                        "content": answer["content"],
                    }
                ]
                if not row
                else []
            )
        kept, superfluous = traces.best_of(kept, keep_per_pair, count_tokens)
        rejected += [row | {"reason": reason} for row, reason in superfluous]
        write_lines("kept.jsonl", kept)
        write_lines("rejected.jsonl", rejected)
        counts = {"kept": len(kept)} | dict(collections.Counter(r["reason"] for r in rejected).most_common())
        write(folder / "filter.json", json.dumps(counts, indent=1))
        print(
            f"filter: {len(kept)} of {len(every)} traces kept, of {len({row['key'] for row in kept})} pairs"
        )
        for what, count in counts.items():
            print(f"  {what:<36}{count:>7}{100 * count / len(every):>7.1f} %")

    # -------------------------------------------------------------------------
    # 4) build: in a folder beside it, which then takes its place
    # -------------------------------------------------------------------------
    if "build" in stages:
        rows = {"train": read_lines("kept.jsonl", "filter")}
        if not rows["train"]:
            raise SystemExit(
                f"build: not one trace was kept, so there is nothing to learn from; '{folder}/filter.json' says why"
            )
        random.Random(seed).shuffle(rows["train"])
        for item in read_lines("items.jsonl", "describe"):
            if item["split"] != "train":
                row = {"image": item["image"], "problem": item["question"], "solution": item["answer"]}
                rows.setdefault(item["split"], []).append(row)
        target, fresh = folder / "dataset", folder / "dataset.tmp"
        shutil.rmtree(fresh, ignore_errors=True)
        written = {
            split: write_parquet(fresh / "data" / f"{split}-00000-of-00001.parquet", part, folder)
            for split, part in rows.items()
        }
        for split, part in rows.items():
            if written[split] < len(part):
                print(
                    f"build: {split}: {len(part) - written[split]} images are not there, their rows are left out"
                )
        counts = json.loads((folder / "filter.json").read_text()) if (folder / "filter.json").exists() else {}
        write(
            fresh / "README.md",
            CARD.format(
                files="\n".join(f"  - split: {split}\n    path: data/{split}-*" for split in written),
                splits="\n".join(
                    f"| {s} | {n} | {'distilled' if s == 'train' else 'questions and answers'} |"
                    for s, n in written.items()
                ),
                teacher=settings["model"]
                if settings["teacher"] != "script"
                else "a script of rules, no model: for demos and tests only",
                given="each scene in words"
                if settings["route"] == "scene"
                else "the image and the known answer",
                counts="\n".join(f"| {k} | {v} |" for k, v in counts.items()),
                sources=", ".join(f"`{s}`" for s in (train, val_a, val_b) if s),
            ),
        )
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
        print(f"build: {target}/ with {', '.join(f'{n} rows {split}' for split, n in written.items())}")
        if push_to:
            from huggingface_hub import HfApi

            try:
                HfApi().create_repo(push_to, repo_type="dataset", private=True, exist_ok=True)
                HfApi().upload_folder(repo_id=push_to, folder_path=str(target), repo_type="dataset")
            except Exception as error:  # of the hub, of the network, of the login: a dozen classes
                raise SystemExit(
                    f"push_to: the data set is in {target}/ but was not uploaded ({str(error).strip().splitlines()[0]}); "
                    "log in with `hf auth login`, then --stage=build again"
                ) from None
            print(f"build: pushed to https://huggingface.co/datasets/{push_to}")
