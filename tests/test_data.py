"""Rows, prompts and the stream of them.

Every source gives the same rows, bad rows spoil nothing, errors name what is wrong.

Sources are written to disk here with json, pyarrow and datasets, as other programs would, and read back with
load_rows.

    python -m pytest tests/test_data.py
"""

import contextlib
import io
import json
import math
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import common
import data
import qwen
import rewards
from tasks import grading, pictures, scenes

QUESTION = "How many items are there in the image?"
BOX = "<|vision_start|><|image_pad|><|vision_end|>"


def picture(seed, width=56, height=56):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture(i, 56 + 28 * i) for i in range(3)]
ANSWERS = ["3", "7", "2"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, and nothing left in the user's cache of data sets."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()


@pytest.fixture
def processor(tiny_folder):
    return qwen.load_processor(tiny_folder())


def write_json(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    else:
        path.write_text(json.dumps(records))
    return str(path)


def save_pictures(folder, names=("a.png", "b.png", "c.png")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, PICTURES, strict=True):
        image.save(folder / name)
    return list(names)


def table(**more):
    """As published R1-V data sets are written: `image`, `problem`, `solution` with tags."""
    import datasets

    columns = {
        "image": PICTURES,
        "problem": [QUESTION] * 3,
        "solution": [f"<answer> {a} </answer>" for a in ANSWERS],
    } | more
    made = datasets.Dataset.from_dict({k: v for k, v in columns.items() if v is not None})
    return made.cast_column("image", datasets.Image()) if columns["image"] else made


# -----------------------------------------------------------------------------
# sources
# -----------------------------------------------------------------------------


def source_jsonl(folder):
    names = save_pictures(folder / "pictures")
    records = [
        {"image": f"pictures/{n}", "question": QUESTION, "answer": a}
        for n, a in zip(names, ANSWERS, strict=True)
    ]
    return write_json(folder / "rows.jsonl", records), {}


def source_json_list(folder):
    names = save_pictures(folder / "elsewhere")
    records = [{"image_path": n, "q": QUESTION, "a": int(a)} for n, a in zip(names, ANSWERS, strict=True)]
    return write_json(folder / "rows.json", records), {"image_root": str(folder / "elsewhere")}


def source_absolute_paths(folder):
    names = save_pictures(folder / "elsewhere")
    paths = [str(folder / "elsewhere" / n) for n in names]
    records = [
        {"images": [p], "problem": QUESTION, "solution": a} for p, a in zip(paths, ANSWERS, strict=True)
    ]
    return write_json(folder / "rows.json", records), {}


CLEVR_NAMES = [f"CLEVR_val_{i:06d}.png" for i in range(3)]


def source_clevr_questions(folder):
    save_pictures(folder / "CLEVR_v1.0" / "images" / "val", CLEVR_NAMES)
    questions = [
        {
            "image_index": i,
            "program": [],
            "question_index": 10 + i,
            "image_filename": n,
            "question_family_index": 0,
            "split": "val",
            "answer": ANSWERS[i],
            "question": QUESTION,
        }
        for i, n in enumerate(CLEVR_NAMES)
    ]
    info = {"split": "val", "license": "CC BY 4.0", "version": "1.0", "date": "2/14/2017"}
    path = folder / "CLEVR_v1.0" / "questions" / "CLEVR_val_questions.json"
    return write_json(path, {"info": info, "questions": questions}), {}


def source_clevr_scenes(folder):
    save_pictures(folder / "CLEVR_v1.0" / "images" / "val", CLEVR_NAMES)
    records = [
        {
            "image_index": i,
            "image_filename": n,
            "split": "val",
            "relationships": {},
            "directions": {},
            "objects": [{"shape": "cube", "color": "red"}] * int(ANSWERS[i]),
        }
        for i, n in enumerate(CLEVR_NAMES)
    ]
    path = folder / "CLEVR_v1.0" / "scenes" / "CLEVR_val_scenes.json"
    return write_json(path, {"info": {"split": "val"}, "scenes": records}), {}


def source_parquet_file(folder):
    table().to_parquet(folder / "part.parquet")
    return str(folder / "part.parquet"), {}


def source_parquet_by_hand(folder):
    """The layout itself, written by pyarrow without datasets: a struct of bytes and path."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"image": {"bytes": png(p), "path": None}, "problem": QUESTION, "solution": f"<answer> {a} </answer>"}
        for p, a in zip(PICTURES, ANSWERS, strict=True)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "hand.parquet")
    return str(folder / "hand.parquet"), {}


def source_parquet_folder(folder):
    (folder / "repo" / "data").mkdir(parents=True)
    for shard, rows in enumerate(([0, 1], [2])):
        table().select(rows).to_parquet(folder / "repo" / "data" / f"train-{shard:05d}-of-00002.parquet")
    table().select([2]).to_parquet(folder / "repo" / "data" / "test-00000-of-00001.parquet")
    return str(folder / "repo"), {}


def source_saved_dataset(folder):
    table().save_to_disk(str(folder / "saved"))
    return str(folder / "saved"), {}


def source_saved_dict(folder):
    import datasets

    datasets.DatasetDict({"train": table(), "test": table().select([2])}).save_to_disk(str(folder / "saved"))
    return str(folder / "saved"), {}


def source_parquet_with_paths(folder):
    """A table of paths beside a folder of images."""
    import datasets

    names = save_pictures(folder / "pictures")
    made = {"image": [f"pictures/{n}" for n in names], "question": [QUESTION] * 3, "answer": ANSWERS}
    datasets.Dataset.from_dict(made).to_parquet(folder / "paths.parquet")
    return str(folder / "paths.parquet"), {}


def source_list_of_images(folder):
    import datasets

    made = datasets.Dataset.from_dict(
        {"images": [[p] for p in PICTURES], "problem": [QUESTION] * 3, "solution": ANSWERS}
    )
    made.cast_column("images", datasets.List(datasets.Image())).to_parquet(folder / "list.parquet")
    return str(folder / "list.parquet"), {}


SOURCES = [
    source_jsonl,
    source_json_list,
    source_absolute_paths,
    source_clevr_questions,
    source_clevr_scenes,
    source_parquet_file,
    source_parquet_by_hand,
    source_parquet_with_paths,
    source_parquet_folder,
    source_saved_dataset,
    source_saved_dict,
    source_list_of_images,
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda f: f.__name__[7:])
def test_every_source_gives_the_same_rows(source, tmp_path):
    spec, options = source(tmp_path)
    rows = data.load_rows(spec, **options)
    assert len(rows) == 3
    for i in range(3):
        row = rows[i]
        assert {k: row[k] for k in ("problem", "solution", "task", "thinking")} == {
            "problem": QUESTION,
            "solution": ANSWERS[i],
            "task": "auto",
            "thinking": None,
        }
        (image,) = row["images"]
        assert image.mode == "RGB" and image.size == PICTURES[i].size
        assert image.tobytes() == PICTURES[i].tobytes()
    assert len({rows[i]["id"] for i in range(3)}) == 3


def test_sound_beside_the_rows_is_not_decoded(tmp_path):
    """datasets would look for torchcodec, which is not there, for a column that nothing reads."""
    import datasets

    sound = [{"bytes": b"RIFF....WAVEfmt ", "path": None}] * 3
    table(audio=sound).cast_column("audio", datasets.Audio()).save_to_disk(tmp_path / "saved")
    assert data.load_rows(str(tmp_path / "saved"))[2]["solution"] == "2"


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'\xef\xbb\xbf{"problem": "p", "solution": "s"}\n')
    assert data.load_rows(str(tmp_path / "r.jsonl"))[0]["problem"] == "p"


def test_splits(tmp_path):
    for source in (source_parquet_folder, source_saved_dict):
        spec, _ = source(tmp_path)
        rows = data.load_rows(spec, "test")
        assert len(rows) == 1 and rows[0]["solution"] == "2"


def test_ids_are_kept_or_made(tmp_path):
    records = [{"id": 10 + i, "problem": "p", "solution": "s"} for i in range(3)]
    rows = data.load_rows(write_json(tmp_path / "r.json", records))
    assert [rows[i]["id"] for i in range(3)] == ["10", "11", "12"]
    rows = data.load_rows(write_json(tmp_path / "x.json", [{"problem": "p", "solution": "s"}] * 3))
    # file and row: what a person needs to find it
    assert all(rows[i]["id"].endswith(f"x.json:{i}") for i in range(3))


def test_thinking_and_task(tmp_path):
    records = [
        {"problem": "1 + 1?", "solution": "2", "thinking": "one and one", "task": "math"},
        {"problem": "Sky?", "solution": "blue"},
    ]
    rows = data.load_rows(write_json(tmp_path / "r.jsonl", records), task="text")
    assert [(rows[i]["thinking"], rows[i]["task"]) for i in range(2)] == [
        ("one and one", "math"),
        (None, "text"),
    ]
    table(thinking=["a", None, "c"]).to_parquet(tmp_path / "t.parquet")
    assert [data.load_rows(str(tmp_path / "t.parquet"))[i]["thinking"] for i in range(3)] == ["a", None, "c"]


def test_several_images_and_text_only_rows_mixed(tmp_path):
    names = save_pictures(tmp_path)
    records = [
        {"images": names[:2], "problem": "a", "solution": "1"},
        {"images": [], "problem": "b", "solution": "2"},
        {"images": None, "problem": "c", "solution": "3"},
        {"problem": "d", "solution": "4"},
        {"images": names[2], "problem": "e", "solution": "5"},
    ]
    rows = data.load_rows(write_json(tmp_path / "r.jsonl", records))
    assert [[im.tobytes() for im in rows[i]["images"]] for i in range(5)] == [
        [PICTURES[0].tobytes(), PICTURES[1].tobytes()],
        [],
        [],
        [],
        [PICTURES[2].tobytes()],
    ]
    table(image=None).to_parquet(tmp_path / "text.parquet")
    assert data.load_rows(str(tmp_path / "text.parquet"))[1]["images"] == []


def test_text_only_row_first(tmp_path):
    (name, *_) = save_pictures(tmp_path)
    records = [
        {"problem": "a", "solution": "1"},
        {"image": name, "problem": "b", "solution": "2", "thinking": "two"},
    ]
    row = data.load_rows(write_json(tmp_path / "r.jsonl", records))[1]
    assert len(row["images"]) == 1 and row["thinking"] == "two"


def test_column_names_can_be_given(tmp_path):
    (name, *_) = save_pictures(tmp_path)
    record = {
        "photo": name,
        "problem": "not this",
        "prompt": "this",
        "solution": "no",
        "label": 4,
        "why": "because",
    }
    spec = write_json(tmp_path / "r.jsonl", [record])
    row = data.load_rows(spec, columns="images=photo,problem=prompt,solution=label,thinking=why")[0]
    assert (row["problem"], row["solution"], row["thinking"]) == ("this", "4", "because")
    assert len(row["images"]) == 1
    with pytest.raises(SystemExit, match="has no column 'labl' .*it has photo, problem, prompt"):
        data.load_rows(spec, columns="solution=labl")
    with pytest.raises(SystemExit, match="^columns: answer is none of images, problem, solution"):
        data.load_rows(spec, columns="answer=label")


def test_more_columns(tmp_path):
    """Options stand in the problem, labels are texts, a box is canonical JSON, reward_func comes along."""
    records = [
        {
            "problem": "Which?",
            "solution": "B",
            "options": ["cat", 7],
            "labels": {"level": 3, "x": None},
            "reward_func": ["format"],
        },
        {"problem": "Which?\n(A) cat (B) dog", "solution": "B", "options": {"A": "cat", "B": "dog"}},
        {"problem": "A cat or a dog?", "solution": "A", "options": ["cat", "dog"]},
        {
            "problem": "Where is it?",
            "solution": '<answer>{"bbox": [1,2, 30.5,40]}</answer>',
            "reward_func": "iou",
        },
        {"problem": "Where is it?", "solution": [1, 2, 3, 4], "task": "grounding"},
        {"problem": "p", "solution": "s"},
    ]
    rows = [data.load_rows(write_json(tmp_path / "r.jsonl", records))[i] for i in range(6)]
    assert [(r["problem"], r["options"]) for r in rows[:3]] == [
        ("Which?\n(A) cat\n(B) 7", ["cat", "7"]),
        ("Which?\n(A) cat (B) dog", ["cat", "dog"]),
        ("A cat or a dog?\n(A) cat\n(B) dog", ["cat", "dog"]),
    ]
    assert [r["labels"] for r in rows] == [{"level": "3"}, {}, {}, {}, {}, {}]
    assert [r["reward_func"] for r in rows] == [["format"], None, None, "iou", None, None]
    assert [(r["solution"], r["task"], r["template"]) for r in rows[3:]] == [
        ("[1, 2, 30.5, 40]", "grounding", "box"),
        ("[1, 2, 3, 4]", "grounding", None),
        ("s", "auto", None),
    ]
    records = [{"problem": "p", "solution": "here", "task": "grounding"}]
    with pytest.raises(data.BadRow, match=r"^row .*r\.jsonl:0: no box"):
        data.load_rows(write_json(tmp_path / "r.jsonl", records))[0]


def test_solutions_keep_what_matters(tmp_path):
    given = [
        0,
        "0",
        "<think> 4? </think> <answer> 5 </answer>",
        "<answer>4</answer> no <answer>6</answer>",
        "  yes ",
        2.5,
    ]
    rows = data.load_rows(write_json(tmp_path / "r.json", [{"problem": "p", "solution": s} for s in given]))
    assert [rows[i]["solution"] for i in range(6)] == ["0", "0", "5", "6", "yes", "2.5"]


@pytest.mark.parametrize("text", ["naïve 数える ٣", "a{b}c {problem} {}"])
def test_any_text_goes_through(tmp_path, text):
    path = tmp_path / "r.jsonl"
    line = json.dumps({"problem": text, "solution": "1"}, ensure_ascii=False)
    path.write_text(line + "\n\n", encoding="utf-8")
    row = data.load_rows(str(path))[0]
    assert row["problem"] == text
    assert data.build_prompt(row, "think")[0]["content"][0]["text"].startswith(text + "  Output")


@pytest.mark.parametrize("char", ["\u2028", "\u0085"])
def test_jsonl_lines_end_at_newlines_only(tmp_path, char):
    path = tmp_path / "r.jsonl"
    line = json.dumps({"problem": f"a{char}b", "solution": "1"}, ensure_ascii=False)
    path.write_text(line + "\n", encoding="utf-8")
    assert data.load_rows(str(path))[0]["problem"] == f"a{char}b"


# -----------------------------------------------------------------------------
# bad rows
# -----------------------------------------------------------------------------


def test_bad_rows_are_skipped_counted_and_named(tmp_path, processor):
    save_pictures(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(png(PICTURES[0])[:2000])
    (tmp_path / "text.png").write_text("not an image")
    picture(0, 4, 900).save(tmp_path / "thin.png")
    good = [
        {"id": f"good{i}", "image": n, "problem": QUESTION, "solution": "1"}
        for i, n in enumerate(("a.png", "b.png", "c.png"))
    ]
    bad = {
        "zero": ({"image": "empty.png"}, "broken image"),
        "cut": ({"image": "cut.png"}, "broken image"),
        "text": ({"image": "text.png"}, "broken image"),
        "gone": ({"image": "gone.png"}, r"image file .*gone\.png not found"),
        "number": ({"image": 5}, "broken image"),
        "thin": ({"image": "thin.png"}, "aspect ratio"),
        "noanswer": ({"image": "a.png", "solution": None}, "no answer"),
        "blank": ({"image": "a.png", "solution": "<answer> </answer>"}, "no answer"),
        "noproblem": ({"image": "a.png", "problem": ""}, "no problem"),
        "long": (
            {"image": "a.png", "problem": "why " * 300},
            "prompt of .* tokens, more than max_prompt_length=200",
        ),
        "pad": ({"image": "a.png", "problem": "What is <|image_pad|>?"}, "special token"),
    }
    records = [
        good[0],
        *({"id": i, "problem": QUESTION, "solution": "1"} | change for i, (change, _) in bad.items()),
        *good[1:],
    ]
    rows = data.load_rows(write_json(tmp_path / "r.jsonl", records))

    def encode(row):
        return data.encode_prompt(row, processor, max_prompt_length=200)

    for i, (_, why) in enumerate(bad.values()):
        with pytest.raises(data.BadRow, match=rf"^row {list(bad)[i]}\b.*{why}"):
            encode(rows[i + 1])
    said = []
    stream = data.Stream(rows, encode, say=said.append)
    ids = [p["row"]["id"] for _ in range(4) for p in stream.take(3)]
    # each epoch gives just the good ones
    assert sorted(ids[:3]) == sorted(ids[3:6]) == ["good0", "good1", "good2"]
    # 11 an epoch; the first five are named, the rest counted
    named = [line for line in said if "skipped" in line]
    assert 33 <= stream.skipped <= 44 and len(named) == 5
    assert all(any(f"row {i}" in line for i in bad) for line in named) and "number 1" in named[0]
    assert len(said) == 6 and "rows cannot be used" in said[5]
    done, skipped = data.take_all(rows, encode, 0, 1, 0, 14, said.append)
    assert [i for i, _ in done] == [0, 12, 13] and skipped == 11


def open_bytes(content):
    return pictures.open_picture({"bytes": content, "path": None}, lambda path: None, Path("."))


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damaged TIFF files
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_image_files_raise_nothing_but_badrow(kind):
    """Cut anywhere or with bytes changed: the row is good or bad; no run ends with a Pillow traceback."""
    whole = png(picture(0, 24, 24), kind)
    rng = random.Random(0)
    broken = [whole[:n] for n in range(0, len(whole), max(1, len(whole) // 60))]
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(rng.choice((1, 4, 16))):
            changed[rng.randrange(min(len(whole), rng.choice((64, 10**6))))] = rng.randrange(256)
        broken.append(bytes(changed))
    refused = 0
    for content in broken:
        try:
            assert open_bytes(content).mode == "RGB"
        except ValueError as error:
            # changed bytes of the header may say that it is larger than any image may be
            assert str(error).startswith(("broken image", "image of "))
            refused += 1
    assert refused > 30


def test_one_broken_image_in_a_parquet_file_spoils_only_its_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    contents = [png(PICTURES[0]), png(PICTURES[1])[:500], b"", png(PICTURES[2], "JPEG")]
    rows = [
        {"image": {"bytes": c, "path": f"{i}.png"}, "problem": QUESTION, "solution": "1"}
        for i, c in enumerate(contents)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    rows = data.load_rows(str(tmp_path / "x.parquet"))
    assert rows[0]["images"][0].size == PICTURES[0].size and rows[3]["images"][0].size == PICTURES[2].size
    for i in (1, 2):
        with pytest.raises(data.BadRow, match="broken image"):
            rows[i]


def test_a_source_with_no_usable_row_stops_with_a_sentence(tmp_path):
    records = [{"id": f"r{i}", "image": "gone.png", "problem": "p", "solution": "1"} for i in range(5)]
    rows = data.load_rows(write_json(tmp_path / "r.jsonl", records))
    with pytest.raises(
        SystemExit,
        match=r"^data: 5 rows .*cannot be used; the last: row r\d: image file .*gone\.png not found",
    ):
        data.Stream(rows, lambda row: row).take(2)


# -----------------------------------------------------------------------------
# odd values: what a row may hold, and what spoils it
# -----------------------------------------------------------------------------

NAN = float("nan")
DEEP = json.loads("[" * 300 + "]" * 300)


def one_row(**change):
    """The row of one record, written by hand or by pandas; what `change` does not name is good."""
    return data.Rows([{"id": "r7", "problem": QUESTION, "solution": "3"} | change], "x")[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"task": "riddle"}, "task 'riddle' is none of .*auto, choice, count, grounding, math, .*text"),
        ({"task": ["count"]}, "the task is a list where a text is meant"),
        ({"task": 3}, "the task is a int"),
        ({"reward_func": "bleu"}, "reward_func 'bleu' is none of accuracy, "),
        ({"reward_func": ["accuracy", "os:system"]}, "reward_func 'os:system' is none of"),
        ({"reward_func": {"accuracy": 1}}, "reward_func {'accuracy': 1} is no name"),
        ({"reward_func": 5}, "reward_func 5 is no name"),
        ({"reward_func": "iou, format"}, "no box"),
        ({"problem": NAN}, "has no problem"),
        ({"problem": " \n"}, "has no problem"),
        ({"problem": "<image>\n", "image": "a.png"}, "has no problem"),
        ({"problem": ["How many?", "Where?"]}, "the problem is a list where a text is meant"),
        ({"problem": 3}, "the problem is a int"),
        ({"problem": "a \ud800 b"}, "the problem holds a NUL or half a character"),
        ({"problem": "a \0 b"}, "the problem holds a NUL"),
        ({"solution": None}, "has no answer"),
        ({"solution": NAN}, "has no answer"),
        ({"solution": np.float32("nan")}, "has no answer"),
        ({"solution": "  "}, "has no answer"),
        ({"solution": []}, "has no answer"),
        ({"solution": float("inf")}, "the solution is infinite"),
        ({"solution": 10**5000}, "the solution is infinite or has more than 100 digits"),
        ({"solution": {"x": 1, "y": 2}}, "the solution is a dict where a text is meant"),
        ({"solution": [["a"]]}, "the solution is a list"),
        ({"solution": ["a", None]}, "one of the accepted answers is empty"),
        ({"solution": "\udfff"}, "the solution holds"),
        ({"thinking": ["a", "b"]}, "the thinking is a list where a text is meant"),
        ({"thinking": "\ud800"}, "the thinking holds"),
        ({"options": ["a", None, "c"]}, "an option before the last is missing"),
        ({"options": ["a", {"text": "b"}]}, "the option is a dict"),
        ({"options": [str(i) for i in range(27)]}, "27 options"),
        ({"options": ["a", "\ud800"]}, "the option holds"),
        ({"labels": {"x": "\ud800"}}, "the label holds"),
        ({"labels": {"x": 10**5000}}, "digits"),
        ({"id": "\ud800"}, "^row x:0: the id holds"),
        ({"images": [None, "a.png"]}, "image 1 of 2 is missing"),
        ({"images": ["a.png", NAN]}, "image 2 of 2 is missing"),
        ({"image": 5}, r"broken image \(a int"),
        ({"image": DEEP}, r"broken image \(a list"),
        ({"image": {"bytes": None, "path": None}}, r"broken image \(a NoneType"),
        ({"image": "a\0.png"}, r"image file .*a\\x00.png not found"),
        ({"image": "/"}, "image file / not found"),
        ({"image": "x" * 5000}, "image file .* not found"),
        ({"images": ["a.png"] * 17}, "17 images, more than 16"),
        ({"task": "grounding", "solution": [1, 2, NAN, 4]}, "no box"),
    ],
)
def test_odd_values_make_a_bad_row(change, why):
    with pytest.raises(data.BadRow, match=why) as error:
        one_row(**change)
    text = str(error.value)
    assert text.startswith("row x:0" if "id" in change else "row r7")
    assert text.isprintable() and len(text.encode()) < 1000  # a line that any log takes


def test_odd_values_that_are_good():
    """Numbers of numpy, values that pandas left out, another spelling of a task: as they are meant."""
    absent = {name: NAN for name in ("image", "thinking", "task", "options", "labels", "reward_func")}
    row = one_row(**absent, id=np.int64(5), solution=np.float64(2.5))
    assert (row["id"], row["solution"], row["task"], row["thinking"], row["options"]) == (
        "5",
        "2.5",
        "auto",
        None,
        None,
    )
    assert row["images"] == [] and row["labels"] == {} and row["reward_func"] is None
    assert one_row(task=" Count ")["task"] == "count"
    assert one_row(solution=True)["solution"] == "True"
    assert one_row(solution=["24/7", 3.4])["solution"] == "['24/7', 3.4]"  # several accepted answers
    assert one_row(solution=np.array([1, 2]))["solution"] == "[1, 2]"
    assert one_row(options={"A": "cat", "B": "dog", "C": None, "D": NAN})["options"] == ["cat", "dog"]
    assert one_row(solution="null")["solution"] == "null" and one_row(solution="nan")["solution"] == "nan"
    for parts in ("accuracy, length", ["format"], np.array(["format"])):
        assert one_row(reward_func=parts)["reward_func"] == (parts if isinstance(parts, str) else ["format"])
    assert one_row(reward_func=["iou"], solution="[1, 2, 3, 4]")["task"] == "grounding"


def test_a_record_that_is_none_spoils_only_itself(tmp_path):
    lines = ['{"problem": "p", "solution": "s"}', "null", "[1, 2]", '"text"', "{}", '{"solution": "s"}']
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    rows = data.load_rows(str(tmp_path / "r.jsonl"))
    assert len(rows) == 6 and rows[0]["solution"] == "s"
    for i, why in enumerate(
        ("is a NoneType", "is a list", "is a str", "has no problem", "has no problem"), 1
    ):
        with pytest.raises(data.BadRow, match=f"^row .*r.jsonl:{i} {why}"):
            rows[i]


def test_numbers_and_brackets_that_python_refuses_to_read(tmp_path):
    """More than 4,300 digits are a ValueError of int(), a thousand brackets a RecursionError of json."""
    path = tmp_path / "r.jsonl"
    path.write_text('{"problem": "p", "solution": 3}\n{"problem": "p", "solution": %s}\n' % ("9" * 5000))
    rows = data.load_rows(str(path))
    assert rows[0]["solution"] == "3"
    with pytest.raises(data.BadRow, match=r"^row .*r.jsonl:1: the solution is infinite"):
        rows[1]
    path.write_text('{"problem": "p", "solution": 3}\n{"problem": %s}\n' % ("[" * 100_000 + "]" * 100_000))
    with pytest.raises(
        SystemExit, match=r"^data: '.*r.jsonl' is not valid JSON in UTF-8 \(line 2: maximum recursion"
    ):
        data.load_rows(str(path))


def test_a_text_in_a_table_that_is_not_utf8(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([b"good", b"bad \xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(
        pyarrow.table({"problem": texts, "solution": ["1", "2"]}), tmp_path / "r.parquet"
    )
    rows = data.load_rows(str(tmp_path / "r.parquet"))
    assert rows[0]["problem"] == "good"
    with pytest.raises(data.BadRow, match=r"^row .*r.parquet:1 cannot be read \(.*utf-8"):
        rows[1]


def test_special_tokens_of_the_model_are_no_text(tiny_folder, processor):
    """<|im_end|> in a question would end the user's turn. The checkpoint's own file says which there are."""
    added = json.loads(Path(tiny_folder(), "tokenizer.json").read_text())["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|video_pad|>"} <= set(
        special
    )
    for token in special:
        for change in (
            {"problem": f"a {token} b"},
            {"thinking": f"a{token}"},
            {"solution": token},
            {"options": [token], "solution": "A"},
        ):
            with pytest.raises(data.BadRow, match="^row r7: the .* holds <.*, a special token of the model"):
                data.encode_prompt(one_row(**change), processor)
    row = one_row(problem="<think> <tool_call> <|", thinking="<think>a</think>")
    assert data.encode_prompt(row, processor)["row"]["problem"] == "<think> <tool_call> <|"


def test_columns_that_are_no_pairs():
    for columns, words in {
        "solution": "'solution' is no field=column pair, as in solution=label",
        "solution=": "'solution=' is no field=column pair",
        "=x": " is none of images",
    }.items():
        with pytest.raises(SystemExit, match=f"^columns: {words}"):
            data.Rows([{"problem": "p", "solution": "s", "x": 1}], "x", columns)
    with pytest.raises(SystemExit, match="^task: 'riddle' is none of .*auto, choice, count"):
        data.Rows([{"problem": "p", "solution": "s"}], "x", task="riddle")


TEXTS = [
    "3",
    "red",
    "B",
    "[1, 2, 30, 40]",
    "[NaN, 1, 2, 3]",
    "9" * 5000,
    "(" * 3000 + ")" * 3000,
    "\\frac{" * 99,
]
TEXTS += [
    "",
    " ",
    "\ud800",
    "<|im_end|>",
    "<image>",
    "['a', 'b']",
    "1/0",
    "9^9^9^9",
    "1e999",
    "nan",
    "{x}",
    "√" * 9,
]
VALUES = [
    None,
    NAN,
    math.inf,
    0,
    3,
    2.5,
    True,
    10**400,
    10**5000,
    np.int64(4),
    np.array([1.5, 2]),
    [],
    {},
    DEEP,
]
VALUES += [
    [1, 2, 30, 40],
    [30, 2, 1, 4],
    ["a", "b"],
    {"A": "x", "B": None},
    {"a": 1},
    b"",
    "accuracy, iou",
    ["length"],
]


def test_any_record_gives_a_bad_row_or_a_score(processor):
    """What comes out of the checks is scored without an error, whatever the completion."""
    rng = random.Random(0)

    def value():
        return rng.choice(TEXTS if rng.random() < 0.6 else VALUES)

    scored = 0
    for _ in range(4000):
        record = {"problem": rng.choice(["What?", value()]), "solution": value()}
        record["task"] = rng.choice([None, *grading.VERIFIERS, value()])
        record["reward_func"] = rng.choice([None, "fuzzy", "iou", ["cosine", "format"], value()])
        record["options"] = rng.choice([None, ["red", "blue"], [value(), value()], value()])
        record |= {name: rng.choice([None, value()]) for name in ("thinking", "labels", "id", "image")}
        try:
            row = data.encode_prompt(data.Rows([record], "x")[0], processor, max_prompt_length=4000)["row"]
        except SystemExit as problem:  # one row is not enough to know from where its answer counts
            assert "count from 0 or from 1" in str(problem)
            continue
        except data.BadRow as problem:
            assert str(problem).isprintable()
            continue
        texts = [f"<think>a</think> <answer>{rng.choice(TEXTS)}</answer>" for _ in range(2)] + [
            rng.choice(TEXTS)
        ]
        parts = rewards.score_group(
            texts, row, ("accuracy", "format"), [3, 4, 5], 9, strict=rng.random() < 0.5
        )
        assert all(math.isfinite(part) for scores in parts for part in scores.values())
        json.dumps(
            {name: part for name, part in row.items() if name not in ("images", "columns")},
            ensure_ascii=False,
        ).encode()
        scored += 1
    assert scored > 300


# -----------------------------------------------------------------------------
# images of all kinds, and where they stand
# -----------------------------------------------------------------------------


def huge_png(side):
    """A black image of side x side pixels, one bit each, as a PNG put together by hand: a few KB."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (1 + (side + 7) // 8)), 9)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_huge_image_is_refused_before_it_is_decoded(monkeypatch):
    content = huge_png(13_000)
    assert len(content) < 30_000
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self.size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning would be one line for each such row
        with pytest.raises(data.BadRow, match="^row r7: image of 13000 x 13000 pixels, more than 64 million"):
            one_row(image={"bytes": content, "path": None})
    with pytest.raises(data.BadRow, match="17 images, more than 16"):
        one_row(images=[content] * 17)
    assert not decoded
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 400)
    assert one_row(image=huge_png(20))["images"][0].size == (20, 20)
    with pytest.raises(data.BadRow, match="21 x 21"):
        one_row(image=huge_png(21))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_files_that_are_no_pictures(tmp_path, monkeypatch):
    """Nothing is run (Pillow hands EPS to ghostscript), nothing is read for ever."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, content in {
        "eps.png": EPS,
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "pdf.png": b"%PDF-1.7\n",
        "page.png": b"<!DOCTYPE html><html>404</html>",
        "empty.png": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(data.BadRow, match="^row r7: broken image"):
            one_row(image=str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "zero.png", "folder.png"):
        with pytest.raises(data.BadRow, match=f"^row r7: image file .*{name} not found"):
            one_row(image=str(tmp_path / name))


def test_animated_and_tiny_images(processor):
    frames = io.BytesIO()
    images = [Image.new("RGB", (30, 30), color) for color in ("red", "blue")]
    images[0].save(frames, "GIF", save_all=True, append_images=images[1:])
    (first,) = one_row(image=frames.getvalue())["images"]
    assert first.getpixel((5, 5))[0] > 200  # the red one
    row = one_row(image=png(Image.new("RGB", (1, 1))))
    assert row["images"][0].size == (1, 1)
    prompt = data.encode_prompt(row, processor)
    assert prompt["row"]["image_size"] == (1, 1) and prompt["row"]["images"][0].size == (56, 56)


def test_each_row_finds_its_images(tmp_path):
    """In the first of the usual columns that holds any; a list may be written as JSON."""
    a, b, c = save_pictures(tmp_path)
    records = [
        {"image": a},
        {"images": [b, c]},
        {"images": [], "image": a},
        {"images": json.dumps([b, c])},
        {"image": NAN},
    ]
    records = [{"problem": "p", "solution": "s"} | record for record in records]
    rows = data.load_rows(write_json(tmp_path / "r.jsonl", records))
    sizes = [[image.size for image in rows[i]["images"]] for i in range(5)]
    first, *others = [picture.size for picture in PICTURES]
    assert sizes == [[first], others, [first], others, []]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"img": "a.png"}, "pictures in the column 'img', .*--columns=images=img"),
        ({"photos": ["a/b.JPG"]}, "pictures in the column 'photos'"),
        ({"picture": {"bytes": png(PICTURES[0]), "path": None}}, "pictures in the column 'picture'"),
        ({"x": {"bytes": png(PICTURES[0], "JPEG"), "path": None}}, "pictures in the column 'x'"),
        ({"page": "here.png"}, "pictures in the column 'page'"),
        ({"video": "a.mp4"}, "video in the column 'video', .*video is not supported"),
        ({"videos": ["a.mkv"]}, "video in the column 'videos'"),
    ],
)
def test_pictures_that_nothing_reads_stop_the_run(tmp_path, record, words):
    PICTURES[0].save(tmp_path / "here.png")
    records = [{"problem": "p", "solution": "s"}, {"problem": "p", "solution": "s"} | record]
    with pytest.raises(SystemExit, match=f"^data: 'x' has {words}"):
        data.Rows(records, "x", folder=str(tmp_path))
    column = next(iter(record))
    assert len(data.Rows(records, "x", "images=", folder=str(tmp_path))[1]["images"]) == 0
    if "video" not in words:
        assert data.Rows(records, "x", f"images={column}").columns["images"] == column
    # among rows with images, such a one is skipped
    mixed = [{"problem": "p", "solution": "s", "image": png(PICTURES[0])}, records[1]]
    rows = data.Rows(mixed, "x", folder=str(tmp_path))
    assert len(rows[0]["images"]) == 1
    if column in ("x", "page"):  # no telling name: it may be anything
        assert rows[1]["images"] == []
    else:
        with pytest.raises(data.BadRow, match=f"^row x:1 has {words}"):
            rows[1]


@pytest.mark.parametrize(
    "record",
    [
        {"image": "here.png", "source": "scan.png", "image_id": "3.jpg", "video": "from.mp4"},
        {"source": "scan.png", "url": "https://a.b/c.png", "image_id": 17, "image_caption": "a cat"},
        {"video_id": "abc", "frames": 30, "images_used": [1, 2], "photo_credit": None},
        {"messages": [{"role": "user", "content": "a.png"}], "blob": b"\0\1"},
        {"labels": {"file": "a.png"}, "id": "a.png", "thinking": "a.png", "options": ["a.png", "b.png"]},
    ],
)
def test_metadata_does_not_stop_a_run(tmp_path, record):
    PICTURES[0].save(tmp_path / "here.png")
    rows = data.Rows([{"problem": "p", "solution": "b"} | record], "x", folder=str(tmp_path))
    assert len(rows[0]["images"]) == ("image" in record)


def test_images_stand_where_the_problem_marks_them(processor):
    pictures = [png(picture(0)), png(picture(1, 84, 56))]
    plain = one_row(images=pictures, problem="How many?")
    for problem in ("<image><image>How many?", " <image>\n<image>\nHow many?"):
        assert one_row(images=pictures, problem=problem)["problem"] == "How many?"  # they come first anyway
    row = one_row(images=pictures, problem="A: <image> B: <image> Which?", task="text", solution="A")
    text = processor.apply_chat_template(data.build_prompt(row, "bare"), tokenize=False)
    assert f"user\nA: {BOX} B: {BOX} Which?<|im_end|>" in text
    prompt = data.encode_prompt(row, processor)
    unmarked = data.encode_prompt(plain, processor)
    assert prompt["pixel_values"].equal(unmarked["pixel_values"])
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert prompt["input_ids"].count(pad) == unmarked["input_ids"].count(pad) == 10  # 2 x 2 and 3 x 2 tokens
    assert prompt["input_ids"].index(pad) > unmarked["input_ids"].index(pad)
    row = one_row(images=pictures, problem="Which?", options=["<image>", "<image>"], solution="A")
    text = processor.apply_chat_template(data.build_prompt(row, "bare"), tokenize=False)
    assert f"(A) {BOX}\n(B) {BOX}<|im_end|>" in text
    for problem, count in (("<image> How many?", 1), ("<image><image><image> a", 3)):
        with pytest.raises(data.BadRow, match=f"^row r7: {count} <image> in the problem for 2 images"):
            one_row(images=pictures, problem=problem)
    with pytest.raises(data.BadRow, match="1 <image> in the problem for 0 images"):
        one_row(problem="<image>How many?")


# -----------------------------------------------------------------------------
# sources that do not work
# -----------------------------------------------------------------------------


def test_missing_sources(tmp_path):
    for spec in (f"{tmp_path}/gone.jsonl", f"{tmp_path}/gone", "gone.json", "./gone"):
        with pytest.raises(
            SystemExit,
            match=f"^data: '{spec}' does not exist; name a file, a folder, a hub id or scenes:<split>$",
        ):
            data.load_rows(spec)
    with pytest.raises(
        SystemExit,
        match="^data: 'no-such/set' is no file or folder here and could not be loaded from .*download it",
    ):
        data.load_rows("no-such/set")


def test_folders_and_files_of_another_kind(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.doc").write_text("problem,solution\na,1\n")
    for name in ("folder", "rows.doc"):
        with pytest.raises(SystemExit, match=rf"^data: '.*{name}' (holds|is) no .*\.jsonl, .*\.parquet"):
            data.load_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"problem": "p", "solution": "1"}\n{"problem": "p", "solu', "is not valid JSON"),
        ("b.json", "[{]", "is not valid JSON"),
        ("c.json", "[1, 2]", "should hold one list of records"),
        ("d.json", '{"a": [{}], "b": [{}]}', "should hold one list of records"),
        ("e.json", "[]", "holds no rows"),
        ("f.jsonl", "\n", "holds no rows"),
        (
            "g.json",
            '[{"text": "p", "solution": "1"}]',
            r"has no column for the problem \(problem, .*\); it has text, solution. Name it",
        ),
        (
            "h.json",
            '[{"problem": "p", "image": "x"}]',
            "has no column for the solution .*--columns=solution=NAME",
        ),
    ],
)
def test_json_errors_name_the_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=f"^data: '[^']*{name}' {message}"):
        data.load_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda f: (f / "x.json").write_text("3") and f / "x.json", id="a number in .json"),
        pytest.param(
            lambda f: (f / "x.jsonl").write_text("3\n4\n") and f / "x.jsonl", id="numbers in .jsonl"
        ),
        pytest.param(lambda f: (f / "x.json").write_bytes(b"\xff\xfe[]") and f / "x.json", id="no UTF-8"),
        pytest.param(
            lambda f: (f / "x.parquet").write_bytes(b"PAR1 cut off") and f / "x.parquet", id="broken parquet"
        ),
        pytest.param(
            lambda f: (
                table().save_to_disk(f / "s")
                or (f / "s" / "data-00000-of-00001.arrow").write_bytes(b"")
                or f / "s"
            ),
            id="broken save_to_disk",
        ),
    ],
)
def test_files_with_other_contents(tmp_path, make):
    with pytest.raises(SystemExit, match="^data: '"):
        data.load_rows(str(make(tmp_path)))


def test_split_that_is_not_there(tmp_path):
    import datasets

    datasets.DatasetDict({"train": table()}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(SystemExit, match="test.*train"):
        data.load_rows(str(tmp_path / "saved"), "test")


@pytest.mark.parametrize(
    "spec",
    [
        "nosuch",
        "clevr?rows",
        "clevr?rows=many",
        "clevr?bogus=1",
        "clevr?layout=round",
        "clevr?family=riddle",
        "clevr?objects=8-2",
        "clevr?objects=x",
        "clevr?size=3",
        "clevr?miss=often",
    ],
)
def test_wrong_scene_specs(spec):
    with pytest.raises(
        SystemExit, match=r"^data: 'scenes:.*is no scene source \(.*\); example: scenes:clevr\?rows=1000"
    ):
        data.load_rows("scenes:" + spec)


# -----------------------------------------------------------------------------
# scenes
# -----------------------------------------------------------------------------


def test_scene_rows():
    rows = data.load_rows("scenes:clevr?rows=30&seed=2&layout=grid&objects=1-8")
    assert len(rows) == 30
    for i in range(30):
        scene = scenes.sample_scene(2_000_000 + i, "clevr", "grid", 1, 8)
        row = rows[i]
        count = len(scene["objects"])
        assert (row["problem"], row["solution"], row["task"]) == (QUESTION, str(count), "count")
        assert len(row["thinking"].split(", ")) == count
        assert row["images"][0].tobytes() == scenes.draw_scene(scene).tobytes()
    other = data.load_rows("scenes:clevr?rows=30&seed=3&layout=grid&objects=1-8")
    assert rows[4]["images"][0].tobytes() == rows[4]["images"][0].tobytes() != other[4]["images"][0].tobytes()
    wide = data.load_rows("scenes:superclevr?size=224x168&objects=4&layout=grid")
    assert wide[0]["images"][0].size == (224, 168)
    assert {data.load_rows("scenes:clevr?objects=4&layout=grid")[i]["solution"] for i in range(5)} == {"4"}


def test_a_teacher_that_misses_objects_agrees_with_itself():
    rows = data.load_rows("scenes:clevr?rows=60&layout=grid&objects=3-8&miss=0.6")
    truth = data.load_rows("scenes:clevr?rows=60&layout=grid&objects=3-8")
    wrong = 0
    for i in range(60):
        row, scene = rows[i], scenes.sample_scene(i, "clevr", "grid", 3, 8)
        listed, true = row["thinking"].split(", "), [f"{o['color']} {o['shape']}" for o in scene["objects"]]
        assert int(row["solution"]) == len(listed) and all(listed.count(x) <= true.count(x) for x in listed)
        assert int(truth[i]["solution"]) == len(true)
        large = sum(o["size"] == "large" for o in scene["objects"])
        assert len(listed) >= max(1, large)  # large ones are never overlooked
        wrong += len(listed) < len(true)
    assert 30 < wrong < 60


@pytest.mark.parametrize(
    "family", ["count", "exist", "compare_number", "query", "compare_attribute", "count_relation"]
)
def test_all_scene_questions_give_rows(family):
    rows = data.load_rows(f"scenes:clevr?rows=60&layout=grid&objects=3-8&family={family}")
    usable, skipped = data.take_all(rows, lambda row: row, 0, 1, 0, 60, lambda line: None)
    assert len(usable) > 30 and len(usable) + skipped == 60
    assert all(
        row["solution"] and row["task"] == ("count" if row["solution"].isdigit() else "text")
        for _, row in usable
    )


# -----------------------------------------------------------------------------
# stream
# -----------------------------------------------------------------------------


class Numbers(list):
    name = "numbers"


def test_two_ranks_cover_an_epoch_without_overlap():
    rows, epochs = Numbers(range(20)), []
    streams = [data.Stream(rows, lambda r: r, seed=3, rank=rank, world=2) for rank in range(2)]
    for _ in range(3):
        taken = [x for s in streams for _ in range(2) for x in s.take(5)]
        assert sorted(taken) == list(range(20))
        epochs.append(taken)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]  # every epoch in another order
    assert [s.epoch for s in streams] == [3.0, 3.0]
    assert data.Stream(rows, lambda r: r, seed=4).take(20) != data.Stream(rows, lambda r: r, seed=3).take(20)
    assert data.Stream(rows, lambda r: r, shuffle=False).take(20) == list(range(20))


def test_a_rest_of_rows_is_not_left_out_for_ever():
    streams = [data.Stream(Numbers(range(7)), lambda r: r, rank=rank, world=3) for rank in range(3)]
    epochs = [[x for s in streams for x in s.take(2)] for _ in range(20)]
    assert all(len(set(e)) == 6 for e in epochs) and {x for e in epochs for x in e} == set(range(7))


def test_more_processes_than_rows():
    with pytest.raises(SystemExit, match="^data: 2 rows for 3 processes"):
        data.Stream(Numbers(range(2)), lambda r: r, world=3)


def encode_some(x):
    if x % 3 == 0:
        raise data.BadRow(f"row {x}")
    return x


@pytest.mark.parametrize("taken", [0, 1, 4, 9])
def test_the_cursor_is_enough_to_go_on(taken):
    """A new stream with the cursor of the old one goes on as the old one does; bad rows do not shift it."""
    old = data.Stream(Numbers(range(23)), encode_some, seed=5, rank=1, world=2, say=lambda line: None)
    for _ in range(taken):
        old.take(3)
    new = data.Stream(Numbers(range(23)), encode_some, seed=5, rank=1, world=2, say=lambda line: None)
    new.cursor, new.skipped = old.cursor, old.skipped
    assert [new.take(3) for _ in range(6)] == [old.take(3) for _ in range(6)]
    assert (new.cursor, new.skipped) == (old.cursor, old.skipped)


def test_threads_change_nothing(processor):
    """Rows are drawn and encoded side by side; out comes what one thread gives, to the bit and in order."""
    # some of the rows are bad
    rows = data.load_rows("scenes:clevr?rows=40&layout=grid&objects=1-8&family=compare_attribute")
    order, wanted = list(range(40)), {}
    random.Random("2-0").shuffle(order)
    for index in order:
        with contextlib.suppress(data.BadRow):
            wanted[index] = data.encode_prompt(rows[index], processor)
    assert 20 < len(wanted) < 40
    stream = data.Stream(rows, lambda row: data.encode_prompt(row, processor), seed=2, say=lambda line: None)
    taken = stream.take(len(wanted) - 5) + stream.take(5)
    done, skipped = data.take_all(
        rows, lambda row: data.encode_prompt(row, processor), 0, 1, 0, 40, lambda line: None
    )
    assert [i for i, _ in done] == sorted(wanted) and skipped == 40 - len(wanted)
    pairs = list(zip(taken, wanted.values(), strict=True)) + [(prompt, wanted[i]) for i, prompt in done]
    for got, right in pairs:
        assert got["row"]["id"] == right["row"]["id"] and got["input_ids"] == right["input_ids"]
        assert got["pixel_values"].equal(right["pixel_values"])
        assert got["image_grid_thw"].equal(right["image_grid_thw"])


def test_the_cursor_stands_behind_the_last_row_needed():
    # 0, 3, 6, 9 are bad
    stream = data.Stream(Numbers(range(12)), encode_some, shuffle=False, say=lambda line: None)
    assert stream.take(3) == [1, 2, 4] and (stream.cursor, stream.skipped) == (5, 2)
    assert stream.take(1) == [5] and (stream.cursor, stream.skipped) == (6, 2)
    assert stream.take(2) == [7, 8] and (stream.cursor, stream.skipped) == (9, 3)


def test_skipped_rows_are_named_but_do_not_flood():
    """The first five, then one in a thousand; a large share is said once."""
    said = []
    stream = data.Stream(Numbers(range(3000)), encode_some, shuffle=False, say=said.append)
    for _ in range(10):
        stream.take(200)
    # 0, 3, 6 ... 2997 are bad, a third
    assert [line for line in said if "skipped" in line] == [
        f"data: skipped (number {k + 1}): row {3 * k}" for k in (0, 1, 2, 3, 4)
    ]
    shares = [line for line in said if "skipped" not in line]
    assert shares == ["data: 100 of the first 300 rows cannot be used; is that expected?"]
    said.clear()
    _, skipped = data.take_all(Numbers(range(3003)), encode_some, 0, 1, 0, 3003, said.append)
    assert skipped == 1001 and len(said) == 7
    assert said[-2:] == ["data: skipped (number 1001): row 3000", "data: 1001 of 3003 rows cannot be used"]
    said.clear()
    data.Stream(Numbers(range(1, 3000, 3)), encode_some, say=said.append).take(500)
    assert said == []


def test_an_error_in_a_row_is_not_hidden():
    def broken(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        data.Stream(Numbers(range(5)), broken).take(2)


# -----------------------------------------------------------------------------
# mixtures
# -----------------------------------------------------------------------------


def numbered(folder, name, n):
    records = [{"id": f"{name}{i}", "problem": "p", "solution": str(i)} for i in range(n)]
    return write_json(folder / f"{name}.jsonl", records)


def test_mixture_specs():
    """A colon and a number end a part; colons and commas of paths and scene specs stay."""
    for spec, parts in {
        "clevr:0.5,geoqa:0.5": [("clevr", 0.5), ("geoqa", 0.5)],
        "scenes:clevr?rows=10&objects=1-8:0.5,geoqa:0.5": [
            ("scenes:clevr?rows=10&objects=1-8", 0.5),
            ("geoqa", 0.5),
        ],
        "clevr@a/b:1,my.jsonl:2": [("clevr@a/b", 1), ("my.jsonl", 2)],
        "C:\\data\\r.jsonl:1, D:\\x y:.25": [("C:\\data\\r.jsonl", 1), ("D:\\x y", 0.25)],
        "a,b.jsonl:3,org/set:1": [("a,b.jsonl", 3), ("org/set", 1)],
        "clevr:1": [("clevr", 1)],
        "scenes:clevr?objects=4": [],
        "scenes:clevr": [],
        "C:\\rows.jsonl": [],
        "clevr,geoqa": [],
    }.items():
        assert data.mixture_parts(spec) == parts
    with pytest.raises(SystemExit, match="^data: 'a:1,b:0' gives a source no weight"):
        data.load_rows("a:1,b:0")
    with pytest.raises(
        SystemExit,
        match="^data: 'a.jsonl,b.jsonl' does not exist.*several sources want weights, as in clevr:1,geoqa:1$",
    ):
        data.load_rows("a.jsonl,b.jsonl")


def test_a_file_whose_name_ends_like_a_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows:1").mkdir()
    numbered(tmp_path / "rows:1", "a", 3)
    assert isinstance(data.load_rows("rows:1"), data.Rows)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(
    ("weights", "shares"),
    [((1, 1), (1 / 2, 1 / 2)), ((0.7, 0.3), (0.7, 0.3)), ((1, 9), (0.1, 0.9)), ((1, 2), (1 / 3, 2 / 3))],
)
def test_mixture_shares_and_epochs(tmp_path, world, weights, shares):
    """Every source gets its share of all draws, its rows come equally often, each epoch in another order."""
    spec = f"{numbered(tmp_path, 'a', 7)}:{weights[0]},{numbered(tmp_path, 'b', 50)}:{weights[1]}"
    rows = data.load_rows(spec)
    assert len(rows) == 57 and [rows[i]["id"] for i in (0, 6, 7, 56)] == ["a0", "a6", "b0", "b49"]
    streams = [
        data.Stream(rows, lambda row: row["id"], seed=1, rank=rank, world=world) for rank in range(world)
    ]
    drawn = [x for step in zip(*(s.take(900 // world) for s in streams), strict=True) for x in step]
    for name, size, share in (("a", 7, shares[0]), ("b", 50, shares[1])):
        ids = [x for x in drawn if x.startswith(name)]
        assert abs(len(ids) - 900 * share) <= 1
        counts = [ids.count(f"{name}{i}") for i in range(size)]
        assert max(counts) - min(counts) <= 1
        epochs = [tuple(ids[k * size : (k + 1) * size]) for k in range(len(ids) // size)]
        assert all(len(set(e)) == size for e in epochs)
        assert len(set(epochs)) > 0.9 * len(epochs)  # two of 90 random orders of 7 rows may be the same
        for k in range(100, 900, 100):  # the share holds all the way, not only at the end
            assert abs(sum(x.startswith(name) for x in drawn[:k]) - k * share) <= 10
    assert streams[0].epoch == 900 // world / (57 // world)
    for rank in range(world):  # every rank sees every source
        assert {x[0] for x in drawn[rank::world]} == {"a", "b"}


@pytest.mark.parametrize("taken", [0, 3, 20])
def test_a_mixture_goes_on_from_the_cursor(tmp_path, taken):
    rows = data.load_rows(f"{numbered(tmp_path, 'a', 5)}:1,{numbered(tmp_path, 'b', 11)}:2")
    old, new = (data.Stream(rows, lambda row: row["id"], seed=4, rank=1, world=2) for _ in range(2))
    for _ in range(taken):
        old.take(3)
    new.cursor = old.cursor
    assert [new.take(4) for _ in range(5)] == [old.take(4) for _ in range(5)]


def test_a_mixture_of_scenes_and_files(tmp_path):
    rows = data.load_rows(
        f"scenes:clevr?rows=10&objects=1-3&layout=grid:0.5,{numbered(tmp_path, 'a', 4)}:0.5"
    )
    taken = data.Stream(rows, lambda row: row).take(8)
    assert sorted(len(row["images"]) for row in taken) == [0] * 4 + [1] * 4
    ordered = data.Stream(rows, lambda row: row["id"], shuffle=False).take(6)
    assert ordered == ["clevr/0/0", "a0", "clevr/0/1", "a1", "clevr/0/2", "a2"]


def test_take_gives_as_many_as_asked():
    stream = data.Stream(Numbers(range(50)), lambda r: r, shuffle=False)
    assert [stream.take(2), stream.take(3), stream.take(1)] == [[0, 1], [2, 3, 4], [5]]


def test_evaluation_rows_are_shared_out_in_order():
    parts = [data.take_all(Numbers(range(30)), lambda r: r, rank, 3, 4, 21)[0] for rank in range(3)]
    assert sorted(x for part in parts for x in part) == [(i, i) for i in range(4, 21)]
    assert [i for i, _ in parts[1]] == [5, 8, 11, 14, 17, 20]


# -----------------------------------------------------------------------------
# prompts
# -----------------------------------------------------------------------------


def prompt_text(row, template):
    row = {"images": [], "problem": QUESTION, "solution": "3", "task": "auto"} | row
    return data.build_prompt(row, template)[-1]["content"][-1]["text"]


def test_template_wording():
    # R1-V, src/r1-v/src/open_r1/grpo.py: "{Question}  Output the thinking process in ..." with two spaces
    think = (
        f"{QUESTION}  Output the thinking process in <think> </think> "
        "and final answer (number) in <answer> </answer> tags."
    )
    direct = f"{QUESTION}  Output only the final answer (number) in <answer> </answer> tags."
    assert prompt_text({}, "think") == prompt_text({"task": "count", "solution": "x"}, "think") == think
    assert prompt_text({"solution": "-2.5"}, "think") == think
    for row in (
        {"solution": "red"},
        {"solution": "yes"},
        {"task": "text"},
        {"task": "choice", "solution": "B"},
    ):
        assert prompt_text(row, "think") == think.replace(" (number)", "")
        assert prompt_text(row, "direct") == direct.replace(" (number)", "")
    assert prompt_text({}, "direct") == direct
    assert prompt_text({}, "zero") == QUESTION
    with pytest.raises(SystemExit, match="^template: 'thinking' is none of auto, think, direct, box, zero"):
        prompt_text({}, "thinking")


def test_prompts_of_the_benchmarks():
    # R1-V, src/eval/test_qwen2vl_counting_superclevr.py
    superclevr = (
        f"{QUESTION} First output the thinking process in <think> </think> "
        "and final answer (number) in <answer> </answer> tags."
    )
    assert prompt_text({"task": "count"}, "superclevr") == superclevr
    solve = prompt_text({"task": "choice", "solution": "B"}, "solve")
    for words in ("step by step", "letter", QUESTION, "final answer in <answer> </answer>"):
        assert words in solve
    assert prompt_text({}, "bare") == QUESTION
    assert len(data.build_prompt({"images": [], "problem": "p", "task": "text"}, "bare")) == 1
    for template in data.TEMPLATES:
        assert data.TEMPLATES[template].format(problem="{x} {}").count("{x} {}") == 1


def test_template_auto():
    """The row's own template, else "think"; a template that is named wins over the row's."""
    assert prompt_text({}, "auto") == prompt_text({"template": None}, "auto") == prompt_text({}, "think")
    assert prompt_text({"template": "box"}, "auto") == prompt_text({}, "box")
    assert prompt_text({"template": "box"}, "direct") == prompt_text({}, "direct")
    row = {"images": [], "problem": "p", "solution": "s", "task": "auto", "template": "zero"}
    assert data.build_prompt(row)[0]["role"] == "system"


def test_messages_and_their_text(processor):
    row = {"images": PICTURES[:2], "problem": QUESTION, "solution": "3", "task": "count"}
    (user,) = data.build_prompt(row, "think")
    # images before text
    assert user["role"] == "user"
    assert [part["type"] for part in user["content"]] == ["image", "image", "text"]
    assert [m["role"] for m in data.build_prompt(row, "zero")] == ["system", "user"]
    text = processor.apply_chat_template(
        data.build_prompt(row, "direct"), tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{BOX}{BOX}{QUESTION}  "
        "Output only the final answer (number) in <answer> </answer> tags.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_prompt_is_never_cut(processor):
    row = {"id": "1", "images": [picture(0, 112, 112)], "problem": QUESTION, "solution": "3", "task": "count"}
    length = len(data.encode_prompt(row, processor)["input_ids"])
    assert len(data.encode_prompt(row, processor, max_prompt_length=length)["input_ids"]) == length
    with pytest.raises(
        data.BadRow, match=f"prompt of {length} tokens, more than max_prompt_length={length - 1}"
    ):
        data.encode_prompt(row, processor, max_prompt_length=length - 1)  # the 16 visual tokens count


@pytest.mark.parametrize("size", [(480, 320), (100, 75), (20, 20), (29, 57), (3000, 40), (1000, 1000)])
def test_images_fit_the_frame(size):
    image = data.fit_image(picture(0, *size), 28, 3136, 401408)
    assert image.width % 28 == image.height % 28 == 0 and 3136 <= image.width * image.height <= 401408
    # the aspect ratio is kept up to rounding each side to 28 pixels
    ratio = (size[0] / size[1]) / (image.width / image.height)
    assert 1 / 2 < ratio < 2 if min(size) < 56 else 0.8 < ratio < 1.25


def test_images_that_fit_are_not_touched(processor):
    image = picture(0, 112, 84)
    assert data.fit_image(image, 28, 3136, 401408) is image
    row = {
        "id": "1",
        "images": [image, picture(1, 100, 75)],
        "problem": QUESTION,
        "solution": "3",
        "task": "count",
    }
    prompt = data.encode_prompt(row, processor)
    assert prompt["row"]["images"][0] is image and prompt["row"]["images"][1].size == (112, 84)
    assert row["images"][1].size == (100, 75)  # the caller's row is left alone
    # sqrt(6272) = 79.2: two tokens a side
    assert data.fit_image(picture(0, 112, 112), 28, 3136, 6272).size == (56, 56)


FAMILIES = {
    "qwen2_vl": (1000, 1000),
    "qwen2_5_vl": "resized",
    "qwen3_vl": (1000, 1000),
    "qwen3_5": (1000, 1000),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_of_boxes(family, tiny_folder):
    """image_size is that of the first image before resizing; the frame is the family's or the knob's."""
    processor = qwen.load_processor(tiny_folder(family))
    row = {
        "id": "1",
        "images": [picture(0, 300, 170), picture(1, 60, 60)],
        "problem": "Where?",
        "solution": "[30, 17, 150, 85]",
        "task": "grounding",
        "thinking": None,
    }
    done = data.encode_prompt(row, processor, "box")["row"]
    resized = done["images"][0].size
    assert resized != (300, 170) == done["image_size"]
    assert done["box_frame"] == (resized if FAMILIES[family] == "resized" else FAMILIES[family])
    for knob, frame in {"resized": resized, "thousand": (1000, 1000), "original": (300, 170)}.items():
        assert data.encode_prompt(row, processor, box_frame=knob)["row"]["box_frame"] == frame
    with pytest.raises(
        SystemExit, match="^box_frame: 'pixels' is none of auto, resized, thousand, original$"
    ):
        data.encode_prompt(row, processor, box_frame="pixels")
    assert "box_frame" not in row
    assert "image_size" not in data.encode_prompt(row | {"images": []}, processor)["row"]


def test_boxes_in_other_frames():
    assert data.scale_box([30, 17, 150, 85], (300, 170), (1000, 1000)) == [100, 100, 500, 500]
    rng = random.Random(0)
    for _ in range(2000):
        size, frame = ((rng.randint(28, 4000), rng.randint(28, 4000)) for _ in range(2))
        box = [rng.randrange(size[0]), rng.randrange(size[1]), rng.randrange(size[0]), rng.randrange(size[1])]
        there = data.scale_box(box, size, frame)
        assert [round(x) for x in data.scale_box(there, frame, size)] == box
        # as the policy writes it, in whole numbers: off by half a unit of its frame at most
        back = data.scale_box([round(x) for x in there], frame, size)
        assert all(
            abs(a - b) <= 0.5 * size[i % 2] / frame[i % 2] + 1e-9
            for i, (a, b) in enumerate(zip(back, box, strict=True))
        )


def test_target_text_of_boxes(processor):
    row = {
        "id": "5",
        "images": [picture(0, 300, 170)],
        "problem": "Where?",
        "solution": "[30, 17, 150, 85]",
        "task": "grounding",
        "thinking": "left of the cube",
        "template": "box",
    }
    assert data.target_text(row, "answer") == '<answer> {"bbox_2d": [30, 17, 150, 85]} </answer>'
    prompt = data.encode_prompt(row, processor, box_frame="thousand")
    target = '<think> left of the cube </think> <answer> {"bbox_2d": [100, 100, 500, 500]} </answer>'
    assert data.target_text(prompt["row"]) == target
    # Qwen2.5-VL: pixels of the resized image
    encoded = data.encode_prompt(row, processor)["row"]
    width, height = encoded["box_frame"]
    scales = (width / 300, height / 170, width / 300, height / 170)
    box = [round(x * scale) for x, scale in zip([30, 17, 150, 85], scales, strict=True)]
    assert json.dumps(box) in data.target_text(encoded)


def test_target_text():
    row = {"id": "5", "solution": "3", "thinking": " red cube, blue ball "}
    assert data.target_text(row) == "<think> red cube, blue ball </think> <answer> 3 </answer>"
    assert data.target_text(row, "answer") == "<answer> 3 </answer>"
    # tags come along
    own_tags = row | {"thinking": "<think>mine</think>\n"}
    assert data.target_text(own_tags) == "<think>mine</think> <answer> 3 </answer>"
    with pytest.raises(data.BadRow, match="^row 5 has no thinking to imitate .*--target=answer"):
        data.target_text(row | {"thinking": None})
    assert data.target_text(row | {"thinking": None}, "answer") == "<answer> 3 </answer>"


def test_rows_end():
    """A loop over drawn scenes ends, although scene 8 could be drawn as well."""
    rows = data.load_rows("scenes:clevr?rows=8&layout=grid&objects=1-2")
    assert [row["id"] for row in rows] == [f"clevr/0/{i}" for i in range(8)]
    for index in (8, -1):
        with pytest.raises(IndexError):
            rows[index]


def test_every_template_is_a_legal_value_of_the_knob():
    """Knobs are checked before data is loaded, from a list of their own: it must not fall behind."""
    assert set(common.CHOICES["template"]) == {"auto"} | set(data.TEMPLATES)
