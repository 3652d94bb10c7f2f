"""What a user's reward sees: all columns, the pictures, and lists where it is written as for TRL.

Also what is logged of parts, sources and tasks, and the held-out evaluation of both trainers.

Run: python -m pytest -q tests/test_row_rewards.py
"""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import GRPO, records, refuses, run
from PIL import Image
from teacher_server import Teacher

import common
import data
import heldout
import own_rewards
import rewards

ROOT = Path(__file__).resolve().parent.parent
SEEN = """
import asyncio, json, math, operator, os
from concurrent.futures import ThreadPoolExecutor

# f(completion, row)
def by_level(completion, row): return 1.0 if row["level"] == "hard" else 0.5
def by_level_get(completion, row): return 1.0 if row.get("level") == "hard" else 0.5
def misspelt(completion, row): return row["levle"]
def imitates(completion, row): return len(row["thinking"])
def record(completion, row): return len(row["columns"]["answer"])
def nested(completion, row): row["options"].clear(); row["labels"]["x"] = 1; return 0.5
def names(completion, row): return float("images" in row and "photo" in row.keys() and len(row) > 9)
async def later(completion, row): await asyncio.sleep(0.01); return 0.25

def width(completion, row): return row["images"][0].size[0]
def width_by_get(completion, row): return row.get("images")[0].size[0]
def width_by_itemgetter(completion, row): return operator.itemgetter("images")(row)[0].size[0]
def width_of_items(completion, row): return {k: v for k, v in row.items()}["images"][0].size[0]
def width_of_values(completion, row): return [v for v in row.values() if str(v)[:5] == "[<PIL"][0][0].size[0]
def width_of_dict(completion, row): return dict(row)["images"][0].size[0]
def width_of_stars(completion, row): return {**row}["images"][0].size[0]
def width_of_union(completion, row): return (row | {"x": 1})["images"][0].size[0]
def width_of_copy(completion, row): return row.copy()["images"][0].size[0]
def width_popped(completion, row): return row.pop("images")[0].size[0]
def width_by_arguments(completion, row): return (lambda images, **others: images[0].size[0])(**row)
def width_in_a_thread(completion, row):
    with ThreadPoolExecutor(1) as pool: return pool.submit(lambda: row["images"][0].size[0]).result()
def width_after_all(completion, row):
    try: return row["images"][0].size[0]
    except: return -1
async def width_later(completion, row): await asyncio.sleep(0); return row["images"][0].size[0]
def width_of_column(completion, row): return row["photo"].size[0]
def width_of_record(completion, row): return row["columns"]["photo"].size[0]

# f(completions, ...)
def accuracy_reward(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    rewards = [float(content == sol) for content, sol in zip(contents, solution)]
    if os.getenv("DEBUG_MODE") == "true":
        with open(os.getenv("LOG_PATH"), "a") as file: file.write(f"{contents} {solution} {rewards}")
    return rewards
def vlm(completions, solution, **kwargs):
    path = kwargs.get("image_path")[0]
    methods = kwargs.get("accu_reward_method")
    assert path == ["a.png"] and kwargs.get("problem")[0] == "What is it?" and methods == ["default"] * 2
    return [float(c[0]["content"] == s) for c, s in zip(completions, solution)]
def lengths(prompts, completions):
    return [len(prompt[-1]["content"]) + len(c[0]["content"]) for prompt, c in zip(prompts, completions)]
def plain(prompts, completions): return [len(p) + len(c) for p, c in zip(prompts, completions)]
def every(completions, log_metric, log_extra, **kwargs):
    log_metric("mean", 0.5); log_extra("seen", [1] * len(completions))
    return [len(completions)] * len(set(map(len, kwargs.values())) | {len(completions)}) * 2
def only_first(completions, **kwargs): return [1.0] + [None] * (len(completions) - 1)
def nowhere(completions, **kwargs): return [None] * len(completions)
def paths(completions, images, **kwargs): return [len(one[0]) for one in images]
async def awaited(completions, **kwargs): await asyncio.sleep(0.01); return [0.25] * len(completions)
def array(completions, **kwargs):
    import numpy
    return numpy.ones(len(completions))
def pictures(completions, images, **kwargs): return [one[0].size[0] for one in images]
def pictures_of_kwargs(completions, **kwargs): return [photo.size[0] for photo in kwargs["photo"]]
def pictures_after_all(completions, **kwargs):
    try: return [photo.size[0] for photo in kwargs["photo"]]
    except: return [-1] * len(completions)

def too_few(completions, **kwargs): return [1.0]
def a_number(completions, **kwargs): return 1.0
def a_nan(completions, **kwargs): return [1.0, math.nan]
def a_text(completions, **kwargs): return ["1", 1.0]
def wants_ids(completions, completion_ids, **kwargs): return [0.0] * len(completions)
def wants_state(completions, trainer_state, **kwargs): return [0.0] * len(completions)
def wants_column(completions, answers): return [0.0] * len(completions)
def misses_column(completions, **kwargs): return [float(x) for x in kwargs["answers"]]
"""
TEXTS = ["<answer>cat</answer>", "<answer>dog</answer>"]
CAT = "<answer>cat</answer>"


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    (tmp_path / "seen.py").write_text(SEEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rewards, "load_sympy", int)  # a second in each worker, and nobody needs it here
    rewards.reward_function.cache_clear()
    yield
    sys.modules.pop("seen", None)
    rewards.reward_function.cache_clear()


@pytest.fixture
def row(tmp_path):
    """Row of a file as a user has it: two pictures of 30 and 50 pixels, a level, a chain of thought."""
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (50, 20)).save(tmp_path / "b.png")
    photo = {"bytes": (tmp_path / "b.png").read_bytes(), "path": None}
    record = {"image": "a.png", "problem": "What is it?", "solution": CAT, "level": "hard", "answer": "A cat"}
    record |= {"thinking": "Whiskers.", "options": ["cat", "dog"], "prompt": "", "long": "x" * 20_000}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n")
    row = data.load_rows(str(tmp_path / "rows.jsonl"))[0]
    # a parquet file would hold a picture like this; JSON cannot
    return row | {"columns": row["columns"] | {"photo": photo}}


def parts_of(name: str, row: dict, workers: int) -> list[dict] | str:
    """The parts of two completions, or the sentence with which scoring ends; workers -1: in this process."""
    names = ("accuracy", f"seen:{name}")
    if workers < 0:
        try:
            return rewards.score_group(TEXTS, row, names)
        except SystemExit as end:
            return end.code
    scorer = rewards.Scorer(workers, names)
    try:
        return scorer.score([TEXTS], [row], names)[0]
    except SystemExit as end:
        return end.code
    finally:
        scorer.close()


def values_of(name: str, row: dict, workers: int) -> list:
    parts = parts_of(name, row, workers)
    assert isinstance(parts, list), parts
    assert [one["accuracy"] for one in parts] == [1.0, 0.0]
    return [one.get(f"seen:{name}") for one in parts]


@pytest.mark.parametrize("workers", [-1, 2])
@pytest.mark.parametrize(
    "name, value",
    [
        ("by_level", 1.0),
        ("by_level_get", 1.0),
        ("imitates", len("Whiskers.")),
        ("nested", 0.5),
        ("names", 1.0),
        ("later", 0.25),
    ],
)
def test_a_row_has_the_columns_of_the_data_set(row, name, value, workers):
    assert values_of(name, row, workers) == [value, value]


@pytest.mark.parametrize("workers", [-1, 0, 2])
@pytest.mark.parametrize("name", re.findall(r"def (width\w*)", SEEN))
def test_pictures_are_there_however_they_are_asked_for(row, name, workers):
    width = 50 if name in ("width_of_column", "width_of_record") else 30
    assert values_of(name, row, workers) == [width, width]


class Counted:
    """A picture that counts its journeys to another process."""

    sent = 0

    def __init__(self, size=(30, 20)):
        self.size = size

    def __reduce__(self):
        type(self).sent += 1
        return Counted, (self.size,)


def test_pictures_travel_only_to_functions_that_ask_for_them(row, monkeypatch):
    monkeypatch.setattr(Counted, "sent", 0)
    many = [row | {"images": [Counted()], "columns": {"photo": Counted(), "level": "hard"}} for _ in range(8)]
    own = ("seen:by_level", "seen:names", "seen:width")
    scorer = rewards.Scorer(2, own)

    def score(*names):
        return scorer.score([TEXTS] * 8, many, names)

    score("accuracy", "format")
    score("seen:by_level", "seen:names", "seen:accuracy_reward")
    assert Counted.sent == 0
    widths = [one["seen:width"] for group in score("seen:by_level", "seen:width") for one in group]
    assert widths == [30.0] * 16 and 16 <= Counted.sent <= 32  # each group is sent again, at most
    before = Counted.sent
    score("seen:width")
    assert Counted.sent == before + 16  # at once
    score("accuracy", "format")
    assert Counted.sent == before + 16
    scorer.close()


@pytest.mark.parametrize("workers", [-1, 2])
def test_a_missing_column_is_named_with_those_that_are_there(row, workers):
    sentence = parts_of("misspelt", row, workers)
    assert sentence.startswith("reward 'seen:misspelt' on row rows.jsonl:0: seen.py, line ")
    assert "KeyError: 'levle', the row has" in sentence and "\n" not in sentence
    assert all(name in sentence for name in ("level", "answer", "images", "photo", "problem"))


def test_our_fields_come_first_unless_they_are_empty():
    row = {"id": "x", "problem": "clean", "solution": "3", "task": "auto", "context": None, "labels": {}}
    columns = {"solution": "<answer> 3 </answer>", "context": "a paragraph", "labels": "easy", "source": 7}
    seen = own_rewards.fields_of(row | {"columns": columns})
    assert (seen["solution"], seen["context"], seen["labels"], seen["source"]) == (
        "3",
        "a paragraph",
        "easy",
        7,
    )
    assert seen["columns"]["solution"] == "<answer> 3 </answer>"


@pytest.mark.parametrize("workers", [-1, 1])
def test_a_column_of_paths_does_not_hide_the_pictures(row, workers):
    row["columns"]["images"] = ["a.png"]
    assert values_of("width", row, workers) == [30.0, 30.0]
    assert values_of("paths", row, workers) == [5.0, 5.0]  # lists have the column as it is


# -----------------------------------------------------------------------------
# functions for TRL, R1-V and VLM-R1
# -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [-1, 2])
@pytest.mark.parametrize(
    "name, values",
    [
        ("accuracy_reward", [1.0, 0.0]),  # the column has <answer> tags: it equals the whole completion
        ("vlm", [1.0, 0.0]),
        ("lengths", [31.0, 31.0]),  # "What is it?" has 11 characters, a completion 20; options are not in it
        ("every", [2.0, 2.0]),
        ("only_first", [1.0, None]),
        ("nowhere", [None, None]),
        ("awaited", [0.25, 0.25]),
        ("array", [1.0, 1.0]),
        ("pictures", [30.0, 30.0]),
        ("pictures_of_kwargs", [50.0, 50.0]),
        ("pictures_after_all", [50.0, 50.0]),
    ],
)
def test_functions_of_lists_run_unchanged(row, name, values, workers):
    row = row | {"problem": "What is it?"}
    assert values_of(name, row, workers) == values


@pytest.mark.parametrize("times", [1, 2000])  # a long text is no picture
def test_a_plain_prompt_means_plain_completions(row, times):
    row["columns"] |= {"prompt": "Name it." * times}
    assert values_of("plain", row, 1) == [8 * times + 20] * 2


def test_a_prompt_that_holds_pictures_comes_whole(row):
    parts = [{"type": "image", "image": row["columns"]["photo"]["bytes"]}, {"type": "text", "text": "?"}]
    row["columns"] |= {"prompt": [{"role": "user", "content": parts}]}
    assert values_of("lengths", row, 1) == [22.0, 22.0]  # two parts, 20 characters


def test_r1vs_switches_work_in_its_functions(row, tmp_path, monkeypatch):
    monkeypatch.setenv("DEBUG_MODE", "true")
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "log.txt"))
    values_of("accuracy_reward", row, 1)
    assert "[1.0, 0.0]" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("workers", [-1, 2])
@pytest.mark.parametrize(
    "name, did",
    [
        ("too_few", "returned [1.0] (list) for 2 completions"),
        ("a_number", "returned 1.0 (float) for 2 completions"),
        ("a_nan", "returned a list with nan (float) in it"),
        ("a_text", "returned a list with '1' (str) in it"),
        ("wants_ids", "it takes 'completion_ids', which are not sent to the processes that score"),
        ("wants_state", "it takes 'trainer_state', which there is in TRL alone"),
        ("wants_column", "it takes 'answers', which is not among"),
        ("misses_column", "KeyError: 'answers', it was given"),
    ],
)
def test_anything_else_is_one_sentence(row, name, did, workers):
    sentence = parts_of(name, row, workers)
    assert sentence.startswith(f"reward 'seen:{name}' on row rows.jsonl:0: ") and did in sentence
    assert "f(completions, **kwargs) -> a list" in sentence and "this step was not applied" in sentence
    assert "\n" not in sentence


# -----------------------------------------------------------------------------
# the page
# -----------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The examples of docs/rewards.md, each in the file that its first line names."""
    text = (ROOT / "docs" / "rewards.md").read_text()
    for block in re.findall(r"(?:^    .*\n|^\n)+", text, re.MULTILINE):
        code = re.sub(r"^    ", "", block.strip("\n"), flags=re.MULTILINE)
        name = re.match(r"# (my_\w+\.py)\n", code)
        if name:
            (tmp_path / name[1]).write_text(code + "\n")
    monkeypatch.chdir(tmp_path)  # where the judge keeps its memory
    yield
    for name in ("my_column", "my_picture", "my_judge"):
        sys.modules.pop(name, None)


def score_of_page(name: str, texts: list[str], row: dict) -> list:
    scorer = rewards.Scorer(1, (name,))
    try:
        return [parts.get(name) for parts in scorer.score([texts], [row], (name,))[0]]
    finally:
        scorer.close()


def answers(*texts: str) -> list[str]:
    return [f"<think> hm </think> <answer> {text} </answer>" for text in texts]


def test_the_pages_column(page):
    row = {"id": "x", "problem": "?", "solution": "10", "task": "math", "columns": {"tolerance": 0.5}}
    texts = [*answers("10.4", "9.5", "10.6", "ten"), "10"]
    assert score_of_page("my_column:within", texts, row) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_the_pages_picture(page):
    photo = Image.new("RGB", (400, 200), "white")
    photo.paste((250, 20, 10), (200, 100, 400, 200))  # red, below on the right
    row = {"id": "x", "problem": "?", "solution": "red", "task": "text", "image_size": photo.size}
    row |= {"images": [photo.resize((112, 56))], "columns": {"box": [210, 110, 390, 190]}}
    assert score_of_page("my_picture:colour_of_box", answers("red", "white"), row) == [1.0, 0.0]
    row["columns"]["box"] = [10, 10, 190, 90]
    assert score_of_page("my_picture:colour_of_box", answers("red", "white"), row) == [0.0, 1.0]


def test_the_pages_judge(page, monkeypatch):
    def verdict(question, ask):
        if "Answer: unsure" in question:
            return {"content": "I cannot say"}
        return {"content": "Yes." if "Answer: 3" in question else "no"}

    row = {"id": "set/7", "problem": "How many?", "solution": "3", "task": "count", "columns": {}}
    texts = ["3 cubes", "4", "unsure", *(f"3, I think {i}" for i in range(5))]
    wanted = [1.0, 0.0, None] + [1.0] * 5
    monkeypatch.setenv("JUDGE_MODEL", "judge")
    with Teacher(message=verdict, delay=0.4) as server:
        monkeypatch.setenv("JUDGE_URL", server.url)
        started = time.time()
        assert score_of_page("my_judge:judge", texts, row) == wanted
        assert time.time() - started < 8 * 0.4  # in parallel; one after another it would take longer
        assert len(server.asked) == 8
        assert score_of_page("my_judge:judge", texts, row) == wanted
        assert len(server.asked) == 8  # remembered, by another process
    with pytest.raises(SystemExit, match="APIConnectionError") as end:  # the server is gone
        score_of_page("my_judge:judge", ["5"], row)
    assert "reward 'my_judge:judge' on row set/7: my_judge.py, line" in end.value.code


# -----------------------------------------------------------------------------
# what is logged
# -----------------------------------------------------------------------------


def test_a_part_that_no_completion_has_is_not_on_the_line():
    record = {"step": 1, "reward": 1.0, "length": 9, "flat_groups": 0, "completions_per_s": 1, "epoch": 0}
    record |= {"tokens_per_s": 1, "memory_gib": 1, "skipped_rows": 0, "reward_std": 0.3}
    line = common.console_line(record | {"reward_format": 0.5}, {}, 10, 0)
    assert "reward 1.000 (format 0.500) |" in line


def of_ranks(monkeypatch, *others):
    """all_gather as if there were other ranks, which gave these."""
    monkeypatch.setattr(common, "all_gather", lambda value: [value, *others])


def test_accuracies_of_sources_and_tasks_over_all_ranks(monkeypatch):
    rows = [{"source": "geoqa", "task": "choice"}, {"source": "clevr", "task": "choice"}]
    kinds = common.Kinds()
    of_ranks(monkeypatch, {})
    assert kinds.accuracies(rows[:1], [{"accuracy": 1.0}]) == {}  # there is one source and one task
    # a second source, on another rank, and a completion without accuracy
    of_ranks(monkeypatch, {"source/clevr": (2.0, 3.0), "task/choice": (2.0, 3.0)})
    found = kinds.accuracies([rows[0], rows[1]], [{"accuracy": 0.0}, {"format": 1.0}])
    assert found == {"geoqa": (0.0, 1.0), "clevr": (pytest.approx(2 / 3), 3.0)}
    of_ranks(monkeypatch, {})
    assert kinds.accuracies(rows[:1], [{"accuracy": 1.0}]) == {"geoqa": (1.0, 1.0)}  # known by now


def test_held_out_rows_of_a_mixture_are_of_each_source(tmp_path):
    for name, count in (("a", 50), ("b", 4)):
        lines = [json.dumps({"problem": "?", "solution": str(i)}) + "\n" for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    mixture = data.load_rows(f"{tmp_path}/a.jsonl:0.5,{tmp_path}/b.jsonl:0.5")
    assert heldout.first_of_each(mixture, 20) == [*range(10), 50, 51, 52, 53]
    assert heldout.first_of_each(mixture, 1) == [0, 50]


def test_evaluation_judges_all_rows_alike_and_knows_other_metrics(monkeypatch, row):
    of_ranks(monkeypatch)
    rows = [row | {"source": source, "reward_func": ["format"]} for source in ("a", "a", "b")]
    prompts = [{"row": row, "opened": "<think>"} for row in rows]
    said = ["I see.</think> <answer>cat</answer>", "<answer>dog</answer>", "</think> <answer>cat</answer>"]
    completions = [[SimpleNamespace(text=text, ids=text.split())] for text in said]  # 3, 1 and 2 tokens

    def decode(prompt, completion):
        return prompt["opened"] + completion.text

    lines = []
    scorer = rewards.Scorer(0, ["seen:by_level"])
    arguments = (prompts, lambda *a: completions, decode, scorer, "seen:by_level", "step 2/4", lines.append)
    record = heldout.evaluate(*arguments)
    scorer.close()
    assert record == {
        "eval_n": 3,
        "eval_accuracy": pytest.approx(2 / 3),
        "eval_format": pytest.approx(2 / 3),
        "eval_length": 2.0,
        "eval_metric": 1.0,
        "eval_accuracy/a": 0.5,
        "eval_n/a": 2,
        "eval_accuracy/b": 1.0,
        "eval_n/b": 1,
    }
    assert lines[0].startswith("step 2/4 | held-out accuracy 66.7% (a 50.0%, b 100.0%) format 66.7% length 2")
    assert lines[0].endswith("seen:by_level 1 (3 rows)") and len(lines) == 1


@pytest.mark.parametrize("name, did", [("accuracies", "unknown reward"), ("seen:no", "no attribute 'no'")])
def test_a_metric_that_is_not_there_is_refused_at_the_start(name, did):
    with pytest.raises(SystemExit, match=f"eval_metric: .*{did}"):
        rewards.check_metric("eval_metric", name)
    rewards.check_metric("eval_metric", "")
    rewards.check_metric("eval_metric", "iou")


def test_a_task_is_a_metric_too():
    """By ANLS (arXiv:1907.00490) a text with one wrong letter of ten earns 0.9; by its own task nothing."""
    rewards.check_metric("eval_metric", "anls")
    rows = [{"id": "x", "problem": "?", "solution": "strawberry", "task": "choice"}] * 2
    scorer = rewards.Scorer(0)
    texts = [answers("strawberri"), answers("plum")]
    assert heldout.measure(texts, rows, "anls", scorer) == [pytest.approx(0.9), 0.0]
    assert heldout.measure(texts, rows, "accuracy", scorer) == [0.0, 0.0]


@pytest.mark.slow
def test_a_run_with_a_mixture_a_picture_and_a_list(tiny_folder, tmp_path):
    """Two processes; some rows ask for a part of their own; the template opens <think>."""
    model = tmp_path / "opens"
    shutil.copytree(tiny_folder(), model)
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<think>{% endif %}")
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    lines = []
    for i in range(8):
        line = {
            "image": "a.png",
            "problem": "How many?",
            "solution": str(i),
            "task": "count",
            "level": "hard",
        }
        lines.append(json.dumps(line | ({"reward_func": "repetition"} if i % 3 == 0 else {})) + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    mixture = f"{tmp_path}/rows.jsonl:0.5,scenes:clevr?rows=8&seed=3&layout=grid&objects=1-2:0.5"
    own = "'seen:width': 0.1, 'seen:pictures': 0.1, 'seen:only_first': 1.0"
    command = [
        *GRPO,
        f"--model={model}",
        f"--data_source={mixture}",
        f"--eval_source={mixture}",
        "--eval_rows=6",
        "--eval_interval=2",
        "--eval_metric=seen:by_level_get",
        "--max_completion_length=8",
        "--steps=2",
        "--rollout=hf",
        "--beta=0",
        "--reward_workers=1",
        f"--reward_weights={{'accuracy': 1.0, {own}}}",
        f"--out_dir={tmp_path}/out",
    ]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run(command, tmp_path / "log", ranks=2, env={"PYTHONPATH": path})
    first, one, two = records(tmp_path / "out")
    sources = {"rows.jsonl", "scenes:clevr?rows=8&seed=3&layout=grid&objects=1-2"}
    for line in (first, two):
        assert {key.split("/", 1)[1] for key in line if key.startswith("eval_accuracy/")} == sources
        assert [line[f"eval_n/{source}"] for source in sorted(sources)] == [3, 3] and line["eval_n"] == 6
        assert line["eval_metric"] == 0.75  # of six rows three have a level, and it is "hard"
    groups = records(tmp_path / "out", "rollouts.jsonl")
    done = [c for group in groups for c in group["completions"]]
    known = set()
    for step, line in enumerate((one, two), 1):
        parts = [c["parts"] for c in done][(step - 1) * 16 : step * 16]
        for name in ("accuracy", "repetition", "seen:width", "seen:pictures", "seen:only_first"):
            values = [of_one[name] for of_one in parts if name in of_one]
            assert line.get(f"reward_{name}") == (
                pytest.approx(sum(values) / len(values)) if values else None
            )
        means = {}  # of the completions to the rows of each source, unless these ask for other parts
        for group in groups:
            source = next(name for name in sources if ("rows.jsonl" in group["id"]) == (name == "rows.jsonl"))
            right = [c["parts"]["accuracy"] for c in group["completions"] if "accuracy" in c["parts"]]
            if group["step"] == step and right:
                means.setdefault(source, []).extend(right)
        known |= means.keys()  # as long as it is one, there is nothing to tell apart
        logged = {key.partition("/")[2]: line[key] for key in line if key.startswith("accuracy/")}
        assert logged == ({name: sum(v) / len(v) for name, v in means.items()} if len(known) > 1 else {})
    assert len(known) == 2
    width = {c["parts"]["seen:width"] for c in done if "seen:width" in c["parts"]}
    assert 56.0 in width and all(c["parts"].get("seen:only_first", 1.0) == 1.0 for c in done)
    assert all(c["text"].startswith("<think>") for c in done)


def test_refused_metric_ends_the_run_before_anything_is_loaded(tmp_path):
    refuses(
        [*GRPO, "--eval_metric=nowhere:f", f"--out_dir={tmp_path}"],
        tmp_path / "log",
        "eval_metric",
        "nowhere",
    )
