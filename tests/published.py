"""Tiny files in the exact layout in which every data set of adapters.py is published.

Names of files, names of columns and types are those of the originals.

    spec = published.write("mmmu", tmp_path)      # writes tmp_path/mmmu/..., returns "mmmu@tmp_path/mmmu"
    rows = data.load_rows(spec, "validation")

Layouts: the data set cards on the hub, and the scripts of R1-V, OpenV-R1 and VLM-R1 that read the files.
"""

import io
import json
from pathlib import Path

from PIL import Image, ImageDraw

BOX = [30, 20, 110, 90]  # where picture() draws its rectangle


def picture(i: int, size: tuple[int, int] = (150, 100)) -> Image.Image:
    """A grey image with one rectangle; every i has another grey."""
    image = Image.new("RGB", size, (100 + i % 100,) * 3)
    ImageDraw.Draw(image).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), fill=(200, 30, 30))
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def embedded(image: Image.Image | None, path: str | None = None) -> dict | None:
    """The hub's image layout: a struct of the file's bytes and its name."""
    return None if image is None else {"bytes": png(image), "path": path}


def write_parquet(
    path: Path, records: list[dict], images: tuple[str, ...] = (), image_lists: tuple[str, ...] = ()
) -> None:
    """Records as `datasets` pushes them to the hub: the file's metadata describes the image columns."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    features = {}
    if images or image_lists:
        plain = [{k: v for k, v in r.items() if k not in (*images, *image_lists)} for r in records]
        features = datasets.Features(datasets.Dataset.from_list(plain).features)
        features.update({column: datasets.Image() for column in images})
        features.update({column: datasets.List(datasets.Image()) for column in image_lists})
    datasets.Dataset.from_list(records, features=features or None).to_parquet(path)


def write_shards(folder: Path, split: str, records: list[dict], shards: int = 1, **columns) -> None:
    for k in range(shards):
        path = folder / f"{split}-{k:05d}-of-{shards:05d}.parquet"
        write_parquet(path, records[k::shards] or records[:1], **columns)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content)
    else:
        text = json.dumps(content)
    path.write_text(text, encoding="utf-8")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def cycle(examples: list[dict], rows: int) -> list[dict]:
    return [examples[i % len(examples)] for i in range(rows)]


# -----------------------------------------------------------------------------
# one writer per layout: writer(name, folder, rows)
# -----------------------------------------------------------------------------

COUNT = "How many items are there in the image?"
REC = "Please provide the bounding box coordinate of the region this sentence describes: "
CHOICES = (
    "As shown in the figure, AB parallel CD, then angle 2 is equal to ()\n"
    "Choices:\nA:50°\nB:60°\nC:65°\nD:90°"
)


def counting(name, folder, rows):
    records = [
        {"image": embedded(picture(i)), "problem": COUNT, "solution": f"<answer> {3 + i % 8} </answer>"}
        for i in range(rows)
    ]
    write_shards(folder / "data", "train", records, 2 if rows > 1 else 1, images=("image",))


def counting_complex(name, folder, rows):
    examples = [
        {
            "problem": "How many other things have the shape of the red block?",
            "solution": "<answer> 2 </answer>",
        },
        {"problem": "Is the number of small cubes greater than 2?", "solution": "<answer> no </answer>"},
    ]
    records = [{"image": embedded(picture(i))} | e for i, e in enumerate(cycle(examples, rows))]
    write_shards(folder / "data", "train", records, images=("image",))


def counting_thinking(name, folder, rows):
    records = [
        {
            "image": embedded(picture(i)),
            "thinking": "<think>\nA red block.\n</think>",
            "problem": COUNT,
            "solution": f"<answer> {1 + i % 8} </answer>",
        }
        for i in range(rows)
    ]
    write_shards(folder / "data", "train", records, images=("image",))


def geoqa(name, folder, rows):
    answers = ["145°", "2√{3}", "5.0cm", "\\frac{3}{4}"]
    records = [
        {
            "image": embedded(picture(i)),
            "problem": f"As shown in the figure, angle {i} is equal to ()",
            "solution": f"<answer> {answers[i % 4]} </answer>",
        }
        for i in range(rows)
    ]
    write_shards(folder / "data", "train", records, images=("image",))


def ocean_visual(name, folder, rows):
    examples = [
        {"problem": COUNT, "solution": "<answer> 4 </answer>", "has_image": True, "reward_func": "default"},
        {
            "problem": f"{REC}the red block",
            "solution": "<answer> [30,20,110,90] </answer>",
            "has_image": True,
            "reward_func": "iou",
        },
        {
            "problem": "Which letter marks the red block?",
            "solution": "<answer> B </answer>",
            "has_image": True,
            "reward_func": "default",
        },
    ]
    records = [{"image": embedded(picture(i))} | e for i, e in enumerate(cycle(examples, rows))]
    write_shards(folder / "data", "train", records, images=("image",))


def ocean_text(name, folder, rows):
    examples = [
        {"problem": "Compute $3 \\cdot 4$.", "solution": "<answer> 12 </answer>"},
        {"problem": "Simplify $\\sqrt{12}$.", "solution": "<answer> 2\\sqrt{3} </answer>"},
    ]
    records = [e | {"has_image": False, "reward_func": "default"} for e in cycle(examples, rows)]
    write_shards(folder / "data", "train", records)


def superclevr200(name, folder, rows):
    names = [f"superCLEVR_new_{25000 + i:06d}.png" for i in range(rows)]
    for i, file in enumerate(names):
        save(picture(i), folder / "images" / file)
    records = [
        {
            "image_path": f"./images/{n}",
            "question": "How many different items are there in the image?",
            "ground_truth": 3 + i % 8,
        }
        for i, n in enumerate(names)
    ]
    write_json(folder / "superclevr_test200_counting_problems.jsonl", records)


def superclevr5k(name, folder, rows):
    """Super-CLEVR's own file of questions, from which the list is made: other questions stand between."""
    questions = []
    for i in range(rows):
        file = f"superCLEVR_new_{27000 + i:06d}.png"
        save(picture(i), folder / "images" / file)
        for text, answer in (
            ("What is the color of the bus?", "red"),
            ("How many tiny bikes are there?", i % 3),
        ):
            questions.append(
                {
                    "split": "new",
                    "question": text,
                    "answer": answer,
                    "image": file[:-4],
                    "image_index": 27000 + i,
                    "image_filename": file,
                    "question_index": len(questions),
                    "question_family_index": 0,
                    "program": [],
                    "question_hash": "count",
                }
            )
    content = {"info": {"split": "new", "version": "1.0"}, "questions": questions}
    write_json(folder / "superCLEVR_questions_30k.json", content)


def geoqa_test(name, folder, rows):
    answers = ["140°", "65", "2√{3}", "5海里"]
    for i in range(rows):
        save(picture(i), folder / "Geo170K" / "images" / "test" / f"{i}.png")
    records = [
        {
            "image_path": f"./Geo170K/images/test/{i}.png",
            "question": f"As shown in the figure, angle {i} is equal to ()",
            "ground_truth": answers[i % 4],
        }
        for i in range(rows)
    ]
    write_json(folder / "geoqa_test_prompts.jsonl", records)


def refcoco(name, folder, rows):
    splits = ("val", "test", "train") if name == "refcocog" else ("val", "testA", "testB", "train")
    for split in splits:
        records = []
        for i in range(rows):
            file = f"train2014/COCO_train2014_{i:012d}.jpg"
            save(picture(i), folder / file)
            records.append(
                {
                    "image": file,
                    "problem": f"{REC}the red block ({split})",
                    "solution": BOX,
                    "normalized_solution": [BOX[0] / 150, BOX[1] / 100, BOX[2] / 150, BOX[3] / 100],
                }
            )
        write_json(folder / "rec_jsons_processed" / f"{name}_{split}.json", records)


def refgta(name, folder, rows):
    records = []
    for i in range(rows):
        save(picture(i), folder / "images" / f"{i}.png")
        records.append(
            {
                "image": f"{i}.png",
                "problem": f"{REC}the man beside the red block",
                "solution": [30.5, 20.0, 110.0, 90.25],
            }
        )
    write_json(folder / "refgta_subsample.json", records)


def mathvision(name, folder, rows):
    examples = [
        {
            "question": "How many bricks are missing in the wall?\n<image1>",
            "options": [],
            "answer": "6",
            "level": 1,
            "subject": "counting",
            "solution": None,
        },
        {
            "question": "Which picture shows the wall?\n<image1>",
            "options": ["A", "B", "C", "D", "E"],
            "answer": "D",
            "level": 2,
            "subject": "combinatorial geometry",
            "solution": None,
        },
        {
            "question": "Which colour is the cube with the question mark?\n<image1>",
            "options": ["red", "blue", "green"],
            "answer": "A",
            "level": 3,
            "subject": "logic",
            "solution": "It cannot be blue.",
        },
    ]
    for split, first in (("test", 1), ("testmini", 4)):
        records = [
            {
                "id": str(first + i),
                "image": f"images/{first + i}.jpg",
                "decoded_image": embedded(picture(i), f"{first + i}.jpg"),
            }
            | e
            for i, e in enumerate(cycle(examples, rows))
        ]
        write_shards(folder / "data", split, records, images=("decoded_image",))


def mathverse(name, folder, rows):
    """As xyliu6/mathverse_4k."""
    examples = [
        {"problem": CHOICES, "question": CHOICES, "solution": "C", "answer": "C"},
        {
            "problem": "Find the length of BC.",
            "question": "Find the length of BC.",
            "solution": "7",
            "answer": "7",
        },
    ]
    records = [{"image": embedded(picture(i))} | e for i, e in enumerate(cycle(examples, rows))]
    write_shards(folder / "data", "train", records, images=("image",))


def mathverse_official(name, folder, rows):
    """As AI4Math/MathVerse: a question that stands in the image only has no text."""
    examples = [
        {
            "question": CHOICES,
            "answer": "C",
            "question_type": "multi-choice",
            "problem_version": "Text Dominant",
        },
        {
            "question": "",
            "answer": "$7\\sqrt{2}$",
            "question_type": "free-form",
            "problem_version": "Vision Only",
        },
    ]
    records = [
        {
            "sample_index": str(i + 1),
            "problem_index": str(i // 2 + 1),
            "image": embedded(picture(i)),
            "metadata": {
                "split": "testmini",
                "source": "Geometry3K",
                "subject": "Plane Geometry",
                "subfield": "Length",
            },
            "query_wo": "Please directly answer the question.",
            "query_cot": "Please first conduct reasoning.",
            "question_for_eval": CHOICES,
        }
        | e
        for i, e in enumerate(cycle(examples, rows))
    ]
    write_parquet(folder / "testmini.parquet", records, images=("image",))
    text_only = [{k: v for k, v in r.items() if k != "image"} for r in records]
    write_parquet(folder / "testmini_text_only.parquet", text_only)


def olympiadbench(name, folder, rows):
    examples = [
        {
            "question": "Find all $x$.",
            "context": None,
            "images": [],
            "final_answer": ["1", "-1"],
            "is_multiple_answer": True,
            "answer_type": "Numerical",
            "subfield": "Algebra",
        },
        {
            "question": "What is the speed?",
            "context": "A block slides down a ramp.",
            "images": [embedded(picture(0))],
            "final_answer": ["$\\sqrt{2 g h}$"],
            "is_multiple_answer": False,
            "answer_type": "Expression",
            "subfield": "Mechanics",
        },
        {
            "question": "Prove it.",
            "context": None,
            "images": [],
            "final_answer": None,
            "is_multiple_answer": None,
            "answer_type": "Need_human_evaluate",
            "subfield": "Geometry",
        },
    ]
    for split in ("test_en", "test_cn"):
        records = [
            {
                "question_id": str(1606 + i),
                "solution": ["By symmetry."],
                "unit": None,
                "error": None,
                "source": f"OE_MM_maths_{split[5:]}_COMP",
            }
            | e
            for i, e in enumerate(cycle(examples, rows))
        ]
        write_shards(folder / "data", split, records, image_lists=("images",))


def mmmu(name, folder, rows):
    """Two of the thirty subjects; rows are counted per subject."""
    examples = [
        {
            "question": "<image 1> What is total revenue?",
            "options": "['$3,100,000', \"it's $2\", '$2,474,000']",
            "answer": "A",
            "question_type": "multiple-choice",
        },
        {
            "question": "Which of <image 1> and <image 2> shows the block?",
            "options": "['<image 1>', '<image 2>']",
            "answer": "B",
            "question_type": "multiple-choice",
        },
        {
            "question": "What is the ratio in <image 1>?",
            "options": "[]",
            "answer": "['24/7', '3.429']",
            "question_type": "open",
        },
    ]
    for subject in ("Accounting", "Diagnostics_and_Laboratory_Medicine"):
        for split in ("dev", "validation", "test"):
            records = []
            for i, e in enumerate(cycle(examples, rows)):
                record = {
                    "id": f"{split}_{subject}_{i + 1}",
                    "explanation": "",
                    "img_type": "['Tables']",
                    "subfield": "Any",
                    "topic_difficulty": "Medium",
                }
                record |= e
                there = 2 if "<image 2>" in e["question"] else 1
                for n in range(1, 8):
                    record[f"image_{n}"] = embedded(picture(i * 7 + n)) if n <= there else None
                if split == "test":
                    record["answer"] = "?"
                records.append(record)
            write_shards(folder / subject, split, records, images=tuple(f"image_{n}" for n in range(1, 8)))


def gsm8k(name, folder, rows):
    examples = [
        {
            "question": "Tom has 3 boxes of 4 pens. How many pens?",
            "answer": "He has 3*4=<<3*4=12>>12 pens.\n#### 12",
        },
        {"question": "A farm sells 2,125 eggs. How many?", "answer": "It sells them all.\n#### 2,125"},
    ]
    for config in ("main", "socratic"):
        asked = [e | {"question": f"{e['question']} ({config})"} for e in examples]
        for split in ("test", "train"):
            write_shards(folder / config, split, cycle(asked, rows))


def math500(name, folder, rows):
    examples = [
        {
            "problem": "Convert $(0,3)$ to polar coordinates.",
            "solution": "We have $r = 3$, so it is $\\boxed{(3,\\pi/2)}$.",
            "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
            "subject": "Precalculus",
            "level": 2,
        },
        {
            "problem": "Evaluate $2^3$.",
            "solution": "It is $\\boxed{8}$.",
            "answer": "8",
            "subject": "Algebra",
            "level": 1,
        },
    ]
    records = []
    for i, e in enumerate(cycle(examples, rows)):
        records.append(e | {"unique_id": f"test/{e['subject'].lower()}/{i}.json"})
    write_json(folder / "test.jsonl", records)


def mathvista(name, folder, rows):
    """As AI4Math/MathVista: of a choice the answer is a text, and the test split has none."""
    about = {"category": "general-vqa", "context": "bar chart", "grade": "daily life", "img_height": 100}
    about |= {"img_width": 150, "language": "english", "skills": ["statistical reasoning"]}
    about |= {"source": "PlotQA", "split": "testmini", "task": "figure question answering"}
    number = {"choices": None, "question_type": "free_form"}
    examples = [
        number
        | {"question": "How much is it?", "unit": "$", "precision": 1.0, "answer": "1.2"}
        | {"answer_type": "float"},
        number
        | {"question": "How many bars?", "unit": None, "precision": 1.0, "answer": "4"}
        | {"answer_type": "integer"},
        {"question": "Is it red?", "choices": ["Yes", "No"], "unit": None, "precision": None}
        | {"answer": "No", "question_type": "multi_choice", "answer_type": "text"},
        number
        | {"question": "What share?", "unit": None, "precision": 2.0, "answer": "0.6"}
        | {"answer_type": "float"},
        number
        | {"question": "Which two years?", "unit": None, "precision": None, "answer": "[2007, 2008]"}
        | {"answer_type": "list"},
    ]
    for split in ("testmini", "test"):
        records = []
        for i, e in enumerate(cycle(examples, rows)):
            record = {
                "pid": str(i + 1),
                "image": f"images/{i + 1}.jpg",
                "decoded_image": embedded(picture(i)),
            }
            record |= e | {"metadata": about, "query": f"Hint: ...\nQuestion: {e['question']}"}
            records.append(record | ({"answer": ""} if split == "test" else {}))
        write_shards(folder / "data", split, records, images=("decoded_image",))


def ai2d(name, folder, rows):
    examples = [
        {"question": "What does the red block show?", "options": ["root", "stem", "leaf"], "answer": "2"},
        {"question": "Which label is it?", "options": ["B", "A"], "answer": "0"},
    ]
    records = [e | {"image": embedded(picture(i))} for i, e in enumerate(cycle(examples, rows))]
    write_shards(folder / "data", "test", records, images=("image",))


def chartqa(name, folder, rows):
    examples = [
        {"type": "human_test", "question": "How many bars are red?", "answer": "14"},
        {"type": "augmented_test", "question": "Which is the highest?", "answer": "Chile"},
    ]
    records = [e | {"image": embedded(picture(i))} for i, e in enumerate(cycle(examples, rows))]
    write_shards(folder / "data", "test", records, images=("image",))


def docvqa(name, folder, rows):
    """Both parts of lmms-lab/DocVQA; the test split has no answers."""
    page = {"docId": 4720, "ucsf_document_id": "pybv0228", "ucsf_document_page_no": "81"}
    pages = [
        page
        | {"question": "What is the date?", "question_types": ["handwritten", "form"]}
        | {"answers": ["1/8/93", "1/8/93", "January 8, 1993"]},
        page | {"question": "Who signed?", "question_types": ["layout"], "answers": ["Ms. O'Neil"]},
    ]
    graphic = {"answer_type": ["single span"], "image_url": "https://example.org/1.jpg", "ocr": "{}"}
    graphics = [
        graphic
        | {"question": "Which share is red?", "answers": ["12%", "12"]}
        | {"operation/reasoning": ["counting"]},
        graphic | {"question": "What is the title?", "answers": ["Blocks"], "operation/reasoning": []},
    ]
    for config, examples in (("DocVQA", pages), ("InfographicVQA", graphics)):
        for split in ("validation", "test"):
            records = []
            for i, e in enumerate(cycle(examples, rows)):
                record = {"questionId": str(49153 + i)} | e
                record |= {"image": embedded(picture(i)), "data_split": split[:4]}
                records.append(record | ({"answers": None} if split == "test" else {}))
            write_shards(folder / config, split, records, images=("image",))


def textvqa(name, folder, rows):
    ten = ["nokia"] * 7 + ["nokia's", "Nokia", 'the "nokia"']
    records = []
    for i in range(rows):
        record = {"image_id": f"003a8ae2ef43b90{i}", "question_id": 34602 + i, "image": embedded(picture(i))}
        record |= {"question": "what is the brand of phone?", "question_tokens": ["what", "is"]}
        record |= {
            "image_width": 150,
            "image_height": 100,
            "flickr_original_url": "https://example.org/a.jpg",
        }
        record |= {"flickr_300k_url": "https://example.org/b.jpg", "answers": ten, "image_classes": ["Phone"]}
        records.append(record | {"set_name": "val", "ocr_tokens": ["NOKIA"]})
    write_shards(folder / "data", "validation", records, images=("image",))


WRITERS = {
    "clevr": counting,
    "clevr_complex": counting_complex,
    "clevr_r1": counting_thinking,
    "cogent_val_a": counting_complex,
    "cogent_val_b": counting_complex,
    "geoqa": geoqa,
    "openv_visual": ocean_visual,
    "ocean_visual": ocean_visual,
    "openv_text": ocean_text,
    "ocean_text": ocean_text,
    "superclevr200": superclevr200,
    "superclevr5k": superclevr5k,
    "geoqa_test": geoqa_test,
    "refcoco": refcoco,
    "refcocop": refcoco,
    "refcocog": refcoco,
    "refgta": refgta,
    "mathvision": mathvision,
    "mathverse": mathverse,
    "olympiadbench": olympiadbench,
    "mmmu": mmmu,
    "mathvista": mathvista,
    "ai2d": ai2d,
    "chartqa": chartqa,
    "docvqa": docvqa,
    "infovqa": docvqa,
    "textvqa": textvqa,
    "gsm8k": gsm8k,
    "math500": math500,
}


def write(name: str, folder, rows: int = 4) -> str:
    """Writes the set `name`, about `rows` rows a split, into folder/name and returns its source."""
    WRITERS[name](name, Path(folder, name), rows)
    return f"{name}@{folder}/{name}"
