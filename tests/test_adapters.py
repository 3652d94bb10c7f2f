"""The published data sets: files in their exact layout (published.py) give the rows that a person would note.

python -m pytest tests/test_adapters.py
"""

import contextlib
import json
import os
import shutil

import published
import pytest

import data
import qwen
from tasks import adapters

NAMES = [
    "clevr",
    "clevr_complex",
    "clevr_r1",
    "geoqa",
    "openv_visual",
    "ocean_visual",
    "openv_text",
    "ocean_text",
    "superclevr200",
    "superclevr5k",
    "cogent_val_a",
    "cogent_val_b",
    "geoqa_test",
    "refcoco",
    "refcocop",
    "refcocog",
    "refgta",
    "mathvision",
    "mathverse",
    "olympiadbench",
    "mmmu",
    "mathvista",
    "ai2d",
    "chartqa",
    "docvqa",
    "infovqa",
    "textvqa",
    "gsm8k",
    "math500",
]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, nothing in the user's cache, and a working folder without downloads."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("NANOR1V_DATA", "IS_LOCAL", "RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    datasets.disable_progress_bars()


# -----------------------------------------------------------------------------
# what the rows are
# -----------------------------------------------------------------------------

REC = "Please provide the bounding box coordinate of the region this sentence describes: "
ANGLE = "As shown in the figure, angle {} is equal to ()"
OTHER = "How many other things have the shape of the red block?"
MORE = "Is the number of small cubes greater than 2?"
COUNT = "How many items are there in the image?"
CHOICES = (
    "As shown in the figure, AB parallel CD, then angle 2 is equal to ()\n"
    "Choices:\nA:50°\nB:60°\nC:65°\nD:90°"
)


FIGURE = {"subject": "figure question answering"}
SHORT = "Answer with a word or a short phrase."


def objects(n):
    return {"labels": {"objects": str(n)}}


def referred(text, split):
    return [
        {
            "id": f"{text}/{split}:0",
            "problem": f"{REC}the red block ({split})",
            "solution": "[30, 20, 110, 90]",
            "task": "grounding",
            "template": "box",
            "labels": {"box": "medium"},
        }
    ]


# name -> (split asked for, number of rows, the first rows; what is not given has the value of BLANK)
BLANK = {
    "task": "auto",
    "thinking": None,
    "options": None,
    "labels": {},
    "template": None,
    "reward_func": None,
    "images": 1,
}
COMPLEX = [
    {"problem": OTHER, "solution": "2", "task": "count", **objects(2)},
    {"problem": MORE, "solution": "no", "task": "text", **objects("none")},
]
OCEAN = [
    {"problem": COUNT, "solution": "4"},
    {
        "problem": REC + "the red block",
        "solution": "[30, 20, 110, 90]",
        "task": "grounding",
        "template": "box",
        "reward_func": "iou",
        "labels": {"box": "medium"},
    },
    {"problem": "Which letter marks the red block?", "solution": "B"},
]
OCEAN_TEXT = [
    {"problem": "Compute $3 \\cdot 4$.", "solution": "12", "template": "zero", "images": 0},
    {"problem": "Simplify $\\sqrt{12}$.", "solution": "2\\sqrt{3}", "template": "zero", "images": 0},
]
EXPECTED = {
    # train-00000-of-00002 holds records 0 and 2 of the writer's four, train-00001-of-00002 records 1 and 3
    "clevr": (
        "train",
        4,
        [
            {"id": f"clevr:{i}", "problem": COUNT, "solution": s, "task": "count", **objects(s)}
            for i, s in enumerate("3546")
        ],
    ),
    "clevr_complex": ("train", 4, COMPLEX),
    "clevr_r1": (
        "train",
        4,
        [
            {
                "problem": COUNT,
                "solution": "1",
                "thinking": "<think>\nA red block.\n</think>",
                "task": "count",
                **objects(1),
            }
        ],
    ),
    "cogent_val_a": ("test", 4, COMPLEX),
    "cogent_val_b": ("train", 4, COMPLEX),
    "geoqa": (
        "train",
        4,
        [
            {"problem": ANGLE.format(i), "solution": s, "task": "math", "labels": {"answer": kind}}
            for i, (s, kind) in enumerate(
                {
                    "145°": "degrees",
                    "2√{3}": "root or pi",
                    "5.0cm": "length",
                    "\\frac{3}{4}": "fraction",
                }.items()
            )
        ],
    ),
    "openv_visual": ("train", 4, OCEAN),
    "ocean_visual": ("train", 4, OCEAN),
    "openv_text": ("train", 4, OCEAN_TEXT),
    "ocean_text": ("train", 4, OCEAN_TEXT),
    "superclevr200": (
        "test",
        4,
        [
            {
                "problem": "How many different items are there in the image?",
                "solution": s,
                "task": "count",
                "template": "superclevr",
                **objects(s),
            }
            for s in "345"
        ],
    ),
    "superclevr5k": (
        "test",
        4,
        [
            {
                "id": f"superclevr5k:{i}",
                "problem": "How many tiny bikes are there?",
                "solution": s,
                "task": "count",
                "template": "superclevr",
                **objects(s),
            }
            for i, s in enumerate("012")
        ],
    ),
    "geoqa_test": (
        "test",
        4,
        [
            {"problem": ANGLE.format(i), "solution": s, "task": "math", "labels": {"answer": kind}}
            for i, (s, kind) in enumerate(
                {"140°": "degrees", "65": "number", "2√{3}": "root or pi", "5海里": "length"}.items()
            )
        ],
    ),
    "refcoco": ("testA", 4, referred("refcoco", "testA")),
    # it has no split of that name: evaluation gets the first one
    "refcocop": ("test", 4, referred("refcocop", "val")),
    "refcocog": ("test", 4, referred("refcocog", "test")),
    "refgta": (
        "test",
        4,
        [
            {
                "problem": REC + "the man beside the red block",
                "solution": "[30.5, 20.0, 110.0, 90.25]",
                "task": "grounding",
                "template": "box",
                "labels": {"box": "medium"},
            }
        ],
    ),
    "mathvision": (
        "testmini",
        4,
        [
            {
                "id": "4",
                "problem": "How many bricks are missing in the wall?\n<image1>",
                "solution": "6",
                "task": "math",
                "template": "solve",
                "labels": {"subject": "counting", "level": "1", "type": "free"},
            },
            {
                "id": "5",
                "problem": "Which picture shows the wall?\n<image1>",
                "solution": "D",
                "task": "choice",
                "template": "solve",
                "labels": {"subject": "combinatorial geometry", "level": "2", "type": "choice"},
            },
            {
                "id": "6",
                "problem": "Which colour is the cube with the question mark?\n<image1>\n"
                "(A) red\n(B) blue\n(C) green",
                "solution": "A",
                "task": "choice",
                "options": ["red", "blue", "green"],
                "template": "solve",
                "labels": {"subject": "logic", "level": "3", "type": "choice"},
            },
        ],
    ),
    "mathverse": (
        "train",
        4,
        [
            {
                "problem": CHOICES,
                "solution": "C",
                "task": "choice",
                "options": ["50°", "60°", "65°", "90°"],
                "template": "solve",
                "labels": {"type": "choice"},
            },
            {
                "problem": "Find the length of BC.",
                "solution": "7",
                "task": "math",
                "template": "solve",
                "labels": {"type": "free"},
            },
        ],
    ),
    "olympiadbench": (
        "test_en",
        4,
        [
            {
                "id": "1606",
                "problem": "Find all $x$.",
                "solution": "1,-1",
                "task": "math",
                "template": "solve",
                "images": 0,
                "labels": {"subject": "Algebra", "answer": "Numerical", "images": "without"},
            },
            {
                "id": "1607",
                "problem": "A block slides down a ramp.\n\nWhat is the speed?",
                "solution": "$\\sqrt{2 g h}$",
                "task": "math",
                "template": "solve",
                "labels": {"subject": "Mechanics", "answer": "Expression", "images": "with"},
            },
        ],
    ),
    "mmmu": (
        "validation",
        8,
        [
            {
                "id": "validation_Accounting_1",
                "solution": "A",
                "task": "choice",
                "options": ["$3,100,000", "it's $2", "$2,474,000"],
                "problem": "<image 1> What is total revenue?\n(A) $3,100,000\n(B) it's $2\n(C) $2,474,000",
                "template": "solve",
                "labels": {"subject": "Accounting", "type": "multiple-choice", "difficulty": "Medium"},
            },
            {
                "id": "validation_Accounting_2",
                "solution": "B",
                "task": "choice",
                "options": ["<image 1>", "<image 2>"],
                "images": 2,
                "problem": "Which of <image 1> and <image 2> shows the block?\n(A) <image 1>\n(B) <image 2>",
                "template": "solve",
                "labels": {"subject": "Accounting", "type": "multiple-choice", "difficulty": "Medium"},
            },
            {
                "id": "validation_Accounting_3",
                "problem": "What is the ratio in <image 1>?",
                "solution": "['24/7', '3.429']",
                "template": "solve",
                "labels": {"subject": "Accounting", "type": "open", "difficulty": "Medium"},
            },
        ],
    ),
    "mathvista": (
        "test",  # its answers are not published: evaluation gets testmini
        5,
        [
            {
                "id": "1",
                "problem": "How much is it? (Unit: $) Round to 1 decimal place.",
                "solution": "1.2",
                "task": "math",
                "template": "solve",
                "labels": FIGURE | {"type": "free_form", "answer": "float"},
            },
            {
                "id": "2",
                "problem": "How many bars?",
                "solution": "4",
                "task": "math",
                "template": "solve",
                "labels": FIGURE | {"type": "free_form", "answer": "integer"},
            },
            {
                "id": "3",
                "problem": "Is it red?\n(A) Yes\n(B) No",
                "solution": "B",
                "task": "choice",
                "options": ["Yes", "No"],
                "template": "solve",
                "labels": FIGURE | {"type": "multi_choice", "answer": "text"},
            },
            {
                "id": "4",
                "problem": "What share? Round to 2 decimal places.",
                "solution": "0.60",
                "task": "math",
                "template": "solve",
                "labels": FIGURE | {"type": "free_form", "answer": "float"},
            },
            {
                "id": "5",
                "problem": "Which two years? Answer with a list like [1, 2].",
                "solution": "[2007, 2008]",
                "task": "math",
                "template": "solve",
                "labels": FIGURE | {"type": "free_form", "answer": "list"},
            },
        ],
    ),
    "ai2d": (
        "test",
        4,
        [
            {
                "problem": "What does the red block show?\n(A) root\n(B) stem\n(C) leaf",
                "solution": "C",
                "task": "choice",
                "options": ["root", "stem", "leaf"],
                "template": "solve",
            },
            {
                "problem": "Which label is it?\n(A) B\n(B) A",
                "solution": "A",
                "task": "choice",
                "options": ["B", "A"],
                "template": "solve",
            },
        ],
    ),
    "chartqa": (
        "test",
        4,
        [
            {
                "problem": f"How many bars are red? {SHORT}",
                "solution": "14",
                "task": "relaxed",
                "labels": {"questions": "human"},
            },
            {
                "problem": f"Which is the highest? {SHORT}",
                "solution": "Chile",
                "task": "relaxed",
                "labels": {"questions": "augmented"},
            },
        ],
    ),
    "docvqa": (
        "test",
        4,
        [
            {
                "id": "49153",
                "problem": f"What is the date? {SHORT}",
                "solution": "['1/8/93', 'January 8, 1993']",
                "task": "anls",
                "labels": {"kind": "handwritten and form"},
            },
            {
                "id": "49154",
                "problem": f"Who signed? {SHORT}",
                "solution": "Ms. O'Neil",
                "task": "anls",
                "labels": {"kind": "layout"},
            },
        ],
    ),
    "infovqa": (
        "validation",
        4,
        [
            {
                "id": "49153",
                "problem": f"Which share is red? {SHORT}",
                "solution": "['12%', '12']",
                "task": "anls",
                "labels": {"answer": "single span", "reasoning": "counting"},
            },
            {
                "id": "49154",
                "problem": f"What is the title? {SHORT}",
                "solution": "Blocks",
                "task": "anls",
                "labels": {"answer": "single span", "reasoning": "none"},
            },
        ],
    ),
    "textvqa": (
        "test",
        4,
        [
            {
                "id": "34602",
                "problem": f"what is the brand of phone? {SHORT}",
                "solution": str(["nokia"] * 7 + ["nokia's", "Nokia", 'the "nokia"']),
                "task": "vqa",
            }
        ],
    ),
    "gsm8k": (
        "test",
        4,
        [
            {
                "problem": "Tom has 3 boxes of 4 pens. How many pens? (main)",
                "solution": "12",
                "task": "math",
                "thinking": "He has 3*4=12 pens.",
                "template": "zero",
                "images": 0,
            },
            {
                "problem": "A farm sells 2,125 eggs. How many? (main)",
                "solution": "2125",
                "task": "math",
                "thinking": "It sells them all.",
                "template": "zero",
                "images": 0,
            },
        ],
    ),
    "math500": (
        "test",
        4,
        [
            {
                "id": "test/precalculus/0.json",
                "problem": "Convert $(0,3)$ to polar coordinates.",
                "task": "math",
                "solution": "\\left( 3, \\frac{\\pi}{2} \\right)",
                "template": "zero",
                "images": 0,
                "labels": {"subject": "Precalculus", "level": "2"},
            }
        ],
    ),
}


def without_images(row):
    return {k: v for k, v in row.items() if k not in ("images", "columns", "source", "context")}


def check(rows, name, expected):
    for i, wanted in enumerate(expected):
        row = rows[i]
        wanted = BLANK | {"id": row["id"]} | wanted
        assert set(row) == {*wanted, "columns", "source", "context"} and row["columns"] == rows.records[i]
        assert row["id"].startswith(name) == (row["id"] == f"{rows.name}:{i}")
        assert without_images(row) == without_images(wanted)
        assert len(row["images"]) == wanted["images"]
        assert all(im.size == (150, 100) and im.mode == "RGB" for im in row["images"])


def test_every_name_is_there():
    assert sorted(adapters.ADAPTERS) == sorted(NAMES) == sorted(published.WRITERS) == sorted(EXPECTED)
    assert adapters.HUBS["lmms-lab/DocVQA"] == "docvqa", (
        "of the two sets in it the one that it is named after"
    )


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_every_data_set(name, tmp_path):
    split, count, expected = EXPECTED[name]
    spec = published.write(name, tmp_path, count if name == "mathvista" else 4)
    rows = data.load_rows(spec, split)
    assert len(rows) == count
    check(rows, name, expected)
    assert len({rows[i]["id"] for i in range(len(expected))}) == len(expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_makes_prompts_and_targets(name, tmp_path, processor):
    """The prompt of template = "auto" holds problem, options and instruction, and fits the adapter's task."""
    rows = data.load_rows(published.write(name, tmp_path), EXPECTED[name][0])
    template = adapters.ADAPTERS[name].template
    done, skipped = data.take_all(
        rows, lambda row: data.encode_prompt(row, processor), 0, 1, 0, 3, lambda line: None
    )
    assert len(done) == 3 - (name == "olympiadbench") and len(done) + skipped == 3
    for i, prompt in done:
        row, messages = rows[i], data.build_prompt(rows[i])
        text = messages[-1]["content"][-1]["text"]
        assert row["problem"] in text and all(option in text for option in row["options"] or [])
        zero = row["template"] == "zero"
        assert (messages[0]["role"] == "system") == zero and (text == row["problem"]) == zero
        number = row["task"] in ("count", "math") or row["solution"] == "4"
        assert ("(number)" in text) == (number and row["template"] not in ("zero", "box"))
        assert ("JSON" in text) == (row["task"] == "grounding")
        assert template in (None, row["template"]) and len(messages[-1]["content"]) == 1 + len(row["images"])
        assert data.target_text(prompt["row"], "answer").startswith("<answer> ")


@pytest.fixture
def processor(tiny_folder):
    return qwen.load_processor(tiny_folder())


def test_official_mathverse(tmp_path):
    """AI4Math's file beside its text-only one; a question that stands in the image is asked for in words."""
    published.mathverse_official("mathverse", tmp_path / "mv", 4)
    rows = data.load_rows(f"mathverse@{tmp_path}/mv", "testmini")
    labels = {"version": "Text Dominant", "type": "choice", "subject": "Plane Geometry"}
    assert len(rows) == 4 and len(rows[0]["images"]) == 1
    check(
        rows,
        "mathverse",
        [
            {
                "id": "1",
                "problem": CHOICES,
                "solution": "C",
                "task": "choice",
                "options": ["50°", "60°", "65°", "90°"],
                "template": "solve",
                "labels": labels,
            },
            {
                "id": "2",
                "problem": "Answer the question that stands in the image.",
                "solution": "$7\\sqrt{2}$",
                "task": "math",
                "template": "solve",
                "labels": labels | {"version": "Vision Only", "type": "free"},
            },
        ],
    )


def test_the_list_of_5000_is_the_last_how_many_questions():
    questions = [
        {"question": q, "answer": i, "image_filename": "x.png"}
        for i in range(6000)
        for q in ("How many cars?", "What color?")
    ]
    chosen = adapters.last_how_many(questions)
    assert len(chosen) == 5000 and [chosen[0]["answer"], chosen[-1]["answer"]] == [1000, 5999]
    ready = [{"image_path": "x.png", "question": "How many cars?", "ground_truth": 3}]
    assert adapters.last_how_many(ready) is ready


# -----------------------------------------------------------------------------
# copies in other forms
# -----------------------------------------------------------------------------


def as_parquet_file(table, folder):
    table.to_parquet(folder / "whatever.parquet")


def as_saved(table, folder):
    table.save_to_disk(str(folder))


def as_saved_dict(table, folder):
    import datasets

    datasets.DatasetDict({"train": table, "other": table.select([0])}).save_to_disk(str(folder))


def as_saved_splits(table, folder):
    table.save_to_disk(str(folder / "train"))
    table.select([0]).save_to_disk(str(folder / "test"))


def as_jsonl(table, folder, name="train.jsonl", **more):
    import datasets

    (folder / "images").mkdir()
    records = []
    for i, record in enumerate(table.cast_column("image", datasets.Image(decode=False))):
        (folder / "images" / f"{i}.png").write_bytes(record["image"]["bytes"])
        records.append(record | {"image": f"images/{i}.png"})
    published.write_json(folder / name, records)
    if name == "train.jsonl":
        published.write_json(folder / "test.jsonl", records[:1])


def as_json_with_other_paths(table, folder):
    as_jsonl(table, folder, "rows.json")
    text = (folder / "rows.json").read_text()
    (folder / "rows.json").write_text(text.replace('"images/', '"./authors/folder/images/'))


def as_imagefolder(table, folder):
    """datasets' imagefolder: metadata.jsonl beside the images."""
    as_jsonl(table, folder, "metadata.jsonl")
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace('"image":', '"file_name":'))


FORMS = [
    as_parquet_file,
    as_saved,
    as_saved_dict,
    as_saved_splits,
    as_jsonl,
    as_json_with_other_paths,
    as_imagefolder,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__[3:])
def test_a_copy_in_any_form_gives_the_same_rows(form, tmp_path, monkeypatch):
    import datasets

    spec = published.write("geoqa", tmp_path)
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "geoqa/data/*.parquet"), split="train")
    (tmp_path / "form" / "geoqa").mkdir(parents=True)
    form(table, tmp_path / "form" / "geoqa")
    monkeypatch.setenv("NANOR1V_DATA", str(tmp_path / "form"))
    for name in (f"geoqa@{tmp_path}/form/geoqa", "geoqa"):
        rows = data.load_rows(name)
        assert len(rows) == 4
        for i in range(4):
            a, b = rows[i], data.load_rows(spec)[i]
            assert a["images"][0].tobytes() == b["images"][0].tobytes()
            assert without_images(a) == without_images(b)


def test_subjects_saved_one_by_one(tmp_path):
    import datasets

    published.write("mmmu", tmp_path)
    for subject in ("Accounting", "Diagnostics_and_Laboratory_Medicine"):
        files = {
            s: str(tmp_path / f"mmmu/{subject}/{s}-00000-of-00001.parquet") for s in ("dev", "validation")
        }
        datasets.load_dataset("parquet", data_files=files).save_to_disk(str(tmp_path / "saved" / subject))
    rows = data.load_rows(f"mmmu@{tmp_path}/saved", "dev")
    assert [rows[i]["id"] for i in (0, 7)] == [
        "dev_Accounting_1",
        "dev_Diagnostics_and_Laboratory_Medicine_4",
    ]


def test_a_folder_above_may_have_the_name_of_a_part(tmp_path):
    """gsm8k is read from its part main/, not from socratic/, also in a folder main/socratic."""
    rows = data.load_rows(published.write("gsm8k", tmp_path / "main" / "socratic"), "test")
    assert len(rows) == 4 and all("(main)" in rows[i]["problem"] for i in range(4))


def test_default_place_and_shared_folders(tmp_path, monkeypatch):
    """downloads/<name>; RefCOCO's sets share lists and COCO's images, both Super-CLEVR lists their images."""
    published.write("refcocop", tmp_path)
    os.makedirs("downloads/coco")
    shutil.move(tmp_path / "refcocop" / "rec_jsons_processed", "downloads/rec_jsons_processed")
    shutil.move(tmp_path / "refcocop" / "train2014", "downloads/coco/train2014")
    check(data.load_rows("refcocop/testB"), "refcocop", referred("refcocop", "testB"))
    check(data.load_rows("refcocop", "train"), "refcocop", referred("refcocop", "train"))
    with pytest.raises(
        SystemExit,
        match="^data: 'refcoco' is not in downloads/refcoco; "
        "download rec_jsons_processed.zip of omlab/VLM-R1",
    ):
        data.load_rows("refcoco")

    published.write("superclevr5k", tmp_path)
    published.write("superclevr200", tmp_path)
    shutil.move(tmp_path / "superclevr5k", "downloads/superclevr")
    for file in (tmp_path / "superclevr200" / "images").iterdir():
        shutil.move(file, "downloads/superclevr/images")
    shutil.move(tmp_path / "superclevr200", "downloads/superclevr200")
    check(data.load_rows("superclevr5k"), "superclevr5k", EXPECTED["superclevr5k"][2])
    check(data.load_rows("superclevr200"), "superclevr200", EXPECTED["superclevr200"][2])

    monkeypatch.setenv("NANOR1V_DATA", str(tmp_path))
    published.write("gsm8k", tmp_path)
    assert data.load_rows("gsm8k", "train")[0]["solution"] == "12"


def test_image_root_is_where_coco_lies(tmp_path):
    spec = published.write("refcocog", tmp_path)
    os.makedirs("elsewhere")
    shutil.move(tmp_path / "refcocog" / "train2014", "elsewhere/train2014")
    with pytest.raises(data.BadRow, match="COCO_train2014_000000000000.jpg not found .*--image_root"):
        data.load_rows(spec, "val")[0]
    assert data.load_rows(spec, "val", image_root="elsewhere")[0]["images"][0].size == (150, 100)
    assert data.load_rows(spec, "val", image_root="elsewhere/train2014")[0]["images"][0].size == (150, 100)


def test_columns_and_task_can_be_set_for_a_known_set(tmp_path):
    spec = published.write("math500", tmp_path)
    row = data.load_rows(spec, columns="solution=subject")[0]
    assert (row["solution"], row["id"]) == ("Precalculus", "test/precalculus/0.json")
    # the record knows better
    assert data.load_rows(published.write("openv_text", tmp_path), task="text")[0]["task"] == "auto"


# -----------------------------------------------------------------------------
# what goes wrong
# -----------------------------------------------------------------------------


def test_missing_sets(tmp_path):
    with pytest.raises(
        SystemExit,
        match="^data: 'superclevr200' is not in downloads/superclevr200; "
        "download superclevr_test200_.*jsonl of R1-V's .* there, or name your copy as superclevr200@FOLDER$",
    ):
        data.load_rows("superclevr200", "test")
    with pytest.raises(
        SystemExit, match="^data: 'nowhere/at/all', named as the copy of mmmu, does not exist$"
    ):
        data.load_rows("mmmu@nowhere/at/all")
    with pytest.raises(
        SystemExit,
        match="^data: 'MMMU/MMMU' .*could not be loaded from the hub .*; download it and name mmmu@FOLDER$",
    ):
        data.load_rows("mmmu")
    with pytest.raises(
        SystemExit, match="^data: 'refcoco' has the splits val, testA, testB, train, not 'testC'$"
    ):
        data.load_rows("refcoco/testC")
    with pytest.raises(
        SystemExit, match="^data: 'olympiadbench' has the splits test_en, test_cn, not 'validation'$"
    ):
        data.load_rows(published.write("olympiadbench", tmp_path), "validation")


def test_another_data_set_under_the_name(tmp_path):
    published.write_json(tmp_path / "x.jsonl", [{"question": "q", "answer": "1"}] * 3)
    for name, column in (
        ("mmmu", "options"),
        ("olympiadbench", "final_answer"),
        ("openv_visual", "reward_func"),
    ):
        with pytest.raises(
            SystemExit,
            match=f"^data: '{name}.*' has no column '{column}', so it is another .* has question, answer",
        ):
            data.load_rows(f"{name}@{tmp_path}/x.jsonl")


def test_a_folder_with_several_lists(tmp_path):
    for name in ("a.json", "b.json"):
        published.write_json(tmp_path / name, [{"problem": "p", "solution": "s"}])
    with pytest.raises(
        SystemExit, match=r"holds several files of records \(a.json, b.json\); name one of them$"
    ):
        data.load_rows(str(tmp_path))


BAD = {
    "options": ("mmmu", {"options": "__import__('os').makedirs('ran')"}, "malformed"),
    "no list": ("mmmu", {"options": "['a', "}, "SyntaxError"),
    "proof": ("olympiadbench", {"final_answer": []}, r"no answer \(a proof\)"),
    "no mark": ("gsm8k", {"answer": "It is 4."}, "no answer after ####"),
    "three numbers": ("refgta", {"solution": [1, 2, 3]}, "no box"),
    "no area": ("refgta", {"solution": [10, 10, 10, 20]}, "no box"),
    "words": ("openv_visual", {"reward_func": "iou", "solution": "<answer> left </answer>"}, "no box"),
    "code": (
        "openv_visual",
        {"reward_func": "iou", "solution": "[__import__('os').makedirs('ran'), 1, 2, 3]"},
        "Expecting value|no box",
    ),
    "empty tag": ("geoqa", {"solution": "<answer> </answer>"}, "no answer"),
    # Python's parser gives up on brackets this deep with a MemoryError
    "deep": ("mmmu", {"options": "[" * 5000 + "]" * 5000}, "MemoryError|SyntaxError|RecursionError"),
    "left out by pandas": ("mathverse", {"answer": float("nan"), "question": "q"}, "no answer"),
    "null": ("mathverse", {"answer": None}, "no answer"),
    "another type": ("gsm8k", {"answer": 4}, "AttributeError"),
    "no record": ("gsm8k", None, "is a NoneType"),
}


NUMBERS_THAT_ARE_NO_BOX = [
    "[NaN, 1, 2, 3]",
    "[1, 2, Infinity, 4]",
    "[1, 2, 1e999, 4]",
    "[30, 2, 1, 4]",  # right of its right side
    "[1, 40, 30, 4]",
    "[1, 2, 1, 4]",  # no width
    "[true, true, 3, 4]",
    "[1, 2, 3]",
    "[1, 2, 3, 4, 5]",
    "[1, 2, 3, 4e9]",  # in no image
    "[1, 2, 3, " + "9" * 5000 + "]",
    "[1, 2, 3, " + "9" * 400 + "]",
    "[1, 2, 3, [4]]",
    "[" * 5000 + "]" * 5000,
    "[" + " " * 20_000 + "x",  # a search that tries every blank again takes minutes
]


@pytest.mark.parametrize("text", NUMBERS_THAT_ARE_NO_BOX, ids=lambda text: text[:24])
def test_numbers_that_are_no_box(text):
    with pytest.raises(ValueError, match=r"^no box \("):
        adapters.reference_box(text)
    with contextlib.suppress(ValueError, RecursionError):
        given = json.loads(text)
        with pytest.raises(ValueError, match=r"^no box \("):
            adapters.reference_box(given)


def test_a_solution_of_many_opening_tags_is_read_at_once():
    """100,000 of them; a search that goes to the end from each takes minutes."""
    assert adapters.bare("<answer>" * 100_000 + " 3 </answer>") == "3"
    assert adapters.bare("<answer>" * 100_000).startswith("<answer>")


def test_numbers_of_a_box_stay_as_they_stand():
    for given in (
        [1, 2.5, 3, 4],
        (1, 2.5, 3, 4),
        "a <answer>[9, 9] [1, 2.5, 3, 4]</answer>",
        {"bbox": [1, 2.5, 3, 4]},
    ):
        assert json.dumps(adapters.reference_box(given)) == "[1, 2.5, 3, 4]"


@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_bad_rows(case, tmp_path):
    name, change, why = BAD[case]
    good = {
        "id": "validation_Art_1",
        "question": "q",
        "problem": "p",
        "solution": [1, 2, 30, 40],
        "answer": "A #### 1",
        "options": "['a']",
        "final_answer": ["1"],
        "reward_func": "iou",
        "has_image": True,
    }
    published.write_json(tmp_path / "x.jsonl", [good, None if change is None else good | change])
    rows = data.load_rows(f"{name}@{tmp_path}/x.jsonl")
    assert rows[0]["solution"]
    with pytest.raises(data.BadRow, match=f"^row .*({why})"):
        rows[1]
    assert not os.path.exists("ran")


# -----------------------------------------------------------------------------
# the hub and IS_LOCAL
# -----------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """load_dataset as if the hub held geoqa and mmmu; returns the list of calls."""
    import datasets

    calls, real = [], datasets.load_dataset
    published.write("geoqa", tmp_path)
    published.write("mmmu", tmp_path)

    def fake(path, name=None, split=None, **more):
        if path == "parquet":
            return real(path, name, split=split, **more)
        calls.append((path, name, split))
        if path not in adapters.HUBS or name not in (
            None,
            "Accounting",
            "Diagnostics_and_Laboratory_Medicine",
        ):
            raise FileNotFoundError(f"{path} is not on the hub")
        folder = tmp_path / adapters.HUBS[path] / (name or "data")
        splits = {s: str(folder / f"{s}-*.parquet") for s in (("dev", "validation") if name else ("train",))}
        made = real("parquet", data_files=splits)
        return made[split] if split else made

    monkeypatch.setattr(datasets, "load_dataset", fake)
    two = adapters.ADAPTERS["mmmu"]._replace(configs=("Accounting", "Diagnostics_and_Laboratory_Medicine"))
    monkeypatch.setitem(adapters.ADAPTERS, "mmmu", two)
    return calls


GEOQA = "leonardPKU/GEOQA_R1V_Train_8K"


def test_names_and_ids_load_the_same_hub_set(hub):
    for spec in ("geoqa", GEOQA):
        row = data.load_rows(spec)[1]
        assert (row["id"], row["solution"], row["task"]) == ("geoqa:1", "2√{3}", "math")
        assert len(row["images"]) == 1
    assert hub == [(GEOQA, None, "train")] * 2 and not os.path.exists("processed_data")
    assert len(data.load_rows("mmmu", "validation")) == 8
    assert hub[2:] == [
        ("MMMU/MMMU", s, "validation") for s in ("Accounting", "Diagnostics_and_Laboratory_Medicine")
    ]


@pytest.mark.parametrize("word", ["False", "0", "no"])
def test_is_local_false_keeps_a_copy(hub, monkeypatch, word):
    """R1-V took "False" for true; here it means: from the hub, and kept for the machine that has none."""
    monkeypatch.setenv("IS_LOCAL", word)
    for name, split, count in (("geoqa", "train", 4), ("mmmu", "validation", 8), ("mmmu", "dev", 8)):
        assert len(data.load_rows(name, split)) == count
    assert os.path.exists(f"processed_data/r1_data/{GEOQA}/dataset_dict.json")
    calls = len(hub)
    for word in ("True", "1", "yes"):
        monkeypatch.setenv("IS_LOCAL", word)
        assert data.load_rows("geoqa")[1]["solution"] == data.load_rows(GEOQA)[1]["solution"] == "2√{3}"
        assert data.load_rows("mmmu", "dev")[7]["id"] == "dev_Diagnostics_and_Laboratory_Medicine_4"
    assert len(hub) == calls  # nothing was asked of the hub


def test_is_local_reads_a_folder_by_the_last_part_of_the_id(hub, tmp_path, monkeypatch):
    import datasets

    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "geoqa/data/*.parquet"), split="train")
    table.save_to_disk("processed_data/r1_data/GEOQA_R1V_Train_8K")
    monkeypatch.setenv("IS_LOCAL", "true")
    assert len(data.load_rows(GEOQA)) == 4 and not hub
    with pytest.raises(
        SystemExit,
        match="^data: IS_LOCAL is true, but processed_data/r1_data/some/set does not exist; write it with",
    ):
        data.load_rows("some/set")
    monkeypatch.setenv("IS_LOCAL", "maybe")
    with pytest.raises(SystemExit, match="^IS_LOCAL: 'maybe' is none of true, 1, yes, false, 0, no$"):
        data.load_rows(GEOQA)


def test_only_rank_0_keeps_a_copy(hub, monkeypatch):
    monkeypatch.setenv("IS_LOCAL", "no")
    monkeypatch.setenv("RANK", "1")
    assert len(data.load_rows("geoqa")) == 4 and not os.path.exists("processed_data")


def test_a_copy_in_downloads_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOR1V_DATA", str(tmp_path))
    assert len(data.load_rows("geoqa")) == 4 and not hub
