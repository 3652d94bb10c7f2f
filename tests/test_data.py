"""Rows, prompts and the stream of them.

Every source gives the same rows, bad rows spoil nothing, errors name what is wrong.

Sources are written to disk here with json, pyarrow and datasets, as other programs would, and read back with
load_rows.

    python -m pytest tests/test_data.py
"""

import contextlib
import io
import json
import random

import numpy as np
import pytest
from PIL import Image

import common
import data
import qwen
from tasks import scenes

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
        "pad": ({"image": "a.png", "problem": "What is <|image_pad|>?"}, "placeholder"),
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
    assert 33 <= stream.skipped <= 44 and len(said) == 5
    assert all(any(f"row {i}" in line for i in bad) for line in said) and "number 1" in said[0]
    done, skipped = data.take_all(rows, encode, 0, 1, 0, 14, said.append)
    assert [i for i, _ in done] == [0, 12, 13] and skipped == 11


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damaged TIFF files
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_image_files_raise_nothing_but_badrow(kind):
    """Cut anywhere or with bytes changed: the row is good or bad; no run ends with a Pillow traceback."""
    rows = data.Rows([{"problem": "p", "solution": "s"}], "x")
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
            assert rows.open_image({"bytes": content, "path": None}, "7").mode == "RGB"
        except data.BadRow as error:
            assert str(error).startswith("row 7: broken image")
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


def test_image_modes_become_rgb():
    rows = data.Rows([{"problem": "p", "solution": "s"}], "x")
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        image = PICTURES[0].convert(mode)
        assert rows.open_image(image, "1").mode == "RGB"
    struct = {"bytes": png(PICTURES[0].convert("RGBA")), "path": "x"}
    assert rows.open_image(struct, "1").tobytes() == PICTURES[0].tobytes()


def test_a_source_with_no_usable_row_stops_with_a_sentence(tmp_path):
    records = [{"id": f"r{i}", "image": "gone.png", "problem": "p", "solution": "1"} for i in range(5)]
    rows = data.load_rows(write_json(tmp_path / "r.jsonl", records))
    with pytest.raises(
        SystemExit,
        match=r"^data: 5 rows .*cannot be used; the last: row r\d: image file .*gone\.png not found",
    ):
        data.Stream(rows, lambda row: row).take(2)


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
    (tmp_path / "rows.csv").write_text("problem,solution\na,1\n")
    for name in ("folder", "rows.csv"):
        with pytest.raises(
            SystemExit, match=f"^data: '.*{name}' is no .json, .jsonl or .parquet file, nor a folder"
        ):
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


FAMILIES = {"qwen2_vl": (1000, 1000), "qwen2_5_vl": "resized", "qwen3_vl": (1000, 1000)}


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
