"""The published data sets by name: where each one lies, and how one of its records becomes a row.

    data_source=geoqa                   downloads/geoqa (or $NANOR1V_DATA/geoqa) if it is there, else the hub
    data_source=geoqa@/data/GEOQA_R1V   a copy anywhere: parquet, a folder of save_to_disk, JSON and images
    data_source=refcoco/testA           another of its splits

A new data set is one entry of ADAPTERS. Columns that have usual names (data.COLUMNS) are found without help.
What is special about a record is a function of it: it returns the fields of the row that differ, and raises
ValueError if the record is of no use. Opening images and checking rows is data.py's work, reading
files, of any set, that of tasks/files.py.
"""

import ast
import json
import re
from collections.abc import Callable
from typing import NamedTuple


class Adapter(NamedTuple):
    get: str  # what to download, for a person; the hub's id where it is on the hub
    rows: int = 0  # of the published set (its first split), for a person too; 0 = nobody has counted
    task: str = "auto"  # chooses the verifier, unless a record says something else
    template: str | None = None  # prompt for template = "auto"; None: "think"
    row: Callable[[dict], dict] | None = None  # record -> fields of the row that COLUMNS does not find
    splits: tuple[str, ...] = ("train",)  # the first is the default; "a|b": the hub says a, some copies say b
    configs: tuple[str, ...] = ()  # the hub has the set in these parts; all are read
    hub: str = ""  # "" = files only
    files: tuple[str, ...] = ()  # the JSON files of the set; {name} and {split} are filled in
    shared: tuple[str, ...] = ()  # folders beside its own with files or images that several sets share
    select: Callable[[list], list] | None = None  # all records -> those that belong to the set


# -----------------------------------------------------------------------------
# one record -> fields of a row
# -----------------------------------------------------------------------------

# What a function below raises for a record that is not as it should be: no column, another type, text that
# does not parse. (MemoryError: Python's parser on very deep brackets.)
BAD_RECORD = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
LETTERS = "ABCDEFGHIJ"  # of the choices: ten at most in these sets
# What kind of number a reference of GeoQA is: the first pattern that it holds decides.
ANSWER_KINDS = {
    "degrees": r"°|掳|\\circ",
    "root or pi": r"√|π|sqrt|\\pi",
    "fraction": r"frac|\d/\d",
    "length": r"[a-zA-Z一-鿿]",
}


def first_column(record: dict, *columns: str):
    """The first of these columns that the record has. KeyError for the last one if it has none of them."""
    for column in columns[:-1]:
        if column in record:
            return record[column]
    return record[columns[-1]]


def bare(solution) -> str:
    """A solution without the <answer> tags that some published sets store around it; "" if it is absent."""
    if solution is None or solution != solution:  # NaN, which pandas writes where there is none
        return ""
    text = str(solution)
    # no tag inside: the search stays linear on a text of many opening tags
    tagged = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", text, re.DOTALL)
    if tagged:
        text = tagged[-1]
    return text.strip()


def reference_box(solution) -> list:
    """[x1, y1, x2, y2] of a reference: a list, or a text whose last [...] is the box, numbers as they stand.

    Raises ValueError if there is none, or one without an area. (grading.read_box reads what a policy has
    written: it knows more notations, makes all numbers floats, and accepts no list of different boxes.)
    """
    box = solution
    if not isinstance(solution, list | tuple):
        lists = re.findall(r"\[([^\[\]{}]*)\]", bare(solution))  # what stands between the brackets of each
        try:
            box = json.loads(f"[{lists[-1]}]") if lists else []
        except ValueError:  # words, or a number of 5,000 digits
            box = []
    # a coordinate is a number (JSON's true and NaN are none) and lies in some image
    numbers = len(box) == 4 and all(type(x) in (int, float) and abs(x) < 1e6 for x in box)
    if not numbers or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"no box ({str(solution)[:60]})")
    return list(box)


def counting(record: dict) -> dict:
    """CLEVR's and Super-CLEVR's relatives: the answer is the number of objects, and that is the category."""
    answer = first_column(record, "ground_truth", "answer", "solution")
    number = re.search(r"\d+", str(answer))
    if number:
        return {"task": "count", "labels": {"objects": number[0]}}
    return {"task": "text", "labels": {"objects": "none"}}  # some questions of the complex sets: yes or no


def geometry(record: dict) -> dict:
    """GeoQA: the reference keeps its unit (145°, 2√{3}cm); what kind of number it is makes the category."""
    text = bare(first_column(record, "ground_truth", "solution"))
    found = [kind for kind, pattern in ANSWER_KINDS.items() if re.search(pattern, text)]
    kind = found[0] if found else "number"
    return {"task": "math", "labels": {"answer": kind}}


def referring(record: dict) -> dict:
    """RefCOCO as VLM-R1 publishes it.

    `solution` is the box in pixels of the original image, `image` a path below COCO's folder.
    """
    box = reference_box(record["solution"])
    area = (box[2] - box[0]) * (box[3] - box[1])
    # COCO's limits
    if area < 32**2:
        size = "small"
    elif area < 96**2:
        size = "medium"
    else:
        size = "large"
    return {"solution": json.dumps(box), "task": "grounding", "labels": {"box": size}}


def ocean(record: dict) -> dict:
    """OpenV-R1's collections: rows with and without an image, and boxes where reward_func is "iou"."""
    if record["reward_func"] == "iou":
        return referring(record) | {"template": "box", "reward_func": "iou"}
    # every other value means its ladder of verifiers, which is what task "auto" does
    fields = {"task": "auto", "template": None, "reward_func": None}
    if not record.get("has_image", True):
        fields |= {"images": None, "template": "zero"}
    return fields


def mathvision(record: dict) -> dict:
    """MathVision: `image` is a path, `decoded_image` the image.

    `options` are texts, or just the letters where the choices are drawn in the image.
    """
    options = [str(text) for text in record["options"] if text is not None]
    only_letters = options == list(LETTERS[: len(options)])
    image = record.get("decoded_image")
    return {
        "images": record["image"] if image is None else image,
        "solution": record["answer"],
        "task": "choice" if options else "math",
        "options": None if only_letters else options,
        "labels": {
            "subject": record["subject"],
            "level": record["level"],
            "type": "choice" if options else "free",
        },
    }


def mathverse(record: dict) -> dict:
    """MathVerse, official or as xyliu6/mathverse_4k: the choices are lines "A:50°" of the question itself."""
    if "problem" not in record:
        record["problem_version"]  # the official files have it: without either it is another set
    question = record.get("problem") or record["question"]
    answer = bare(first_column(record, "answer", "solution"))
    options = mathverse_options(question)
    choice = answer in options or re.fullmatch(r"\(?[A-J]\)?", answer) is not None
    about = record.get("metadata") or {}
    return {
        "problem": question or "Answer the question that stands in the image.",
        "solution": answer,
        "id": record.get("sample_index"),
        "task": "choice" if choice else "math",
        "options": options or None,
        "labels": {
            "version": record.get("problem_version"),
            "type": "choice" if choice else "free",
            "subject": about.get("subject"),
        },
    }


def mathverse_options(question: str) -> list[str]:
    """Texts of the lines "A:50°", "B:60°" ... below the first "Choices:" (some questions have two)."""
    parts = re.split(r"Choices?:", question)
    if len(parts) == 1:
        return []
    lines = re.findall(r"(?m)^\s*([A-J])\s*[:.)]\s*(.*?)\s*$", parts[1])
    letters = [letter for letter, _ in lines]
    if letters != list(LETTERS[: len(lines)]):
        return []
    return [text for _, text in lines]


def olympiad(record: dict) -> dict:
    """OlympiadBench: `context` (given for some) goes before the question.

    `final_answer` is a list, empty for proofs: nothing to score.
    """
    if not record["final_answer"]:
        raise ValueError("no answer (a proof)")
    paragraphs = [record.get("context"), record["question"]]
    images = record.get("images") or None
    return {
        "problem": "\n\n".join(filter(None, paragraphs)),
        "id": record.get("question_id"),
        "solution": ",".join(record["final_answer"]),
        "images": images,
        "task": "math",
        "labels": {
            "subject": record.get("subfield"),
            "answer": record.get("answer_type"),
            "images": "with" if images else "without",
        },
    }


def mmmu(record: dict) -> dict:
    """MMMU: `options` is a Python list written as a string; <image 2> in a text is column image_2."""
    options = ast.literal_eval(record["options"])  # literals only, nothing is run
    if record["answer"] == "?":  # the test split keeps its answers
        raise ValueError("no answer")
    # validation_Basic_Medical_Science_12 -> Basic_Medical_Science
    subject = re.sub(r"^(dev|validation|test)_|_\d+$", "", record["id"])
    images = [record.get(f"image_{number}") for number in range(1, 8)]
    return {
        "images": [image for image in images if image is not None],
        "solution": record["answer"],
        "options": [str(text) for text in options] or None,
        "task": "choice" if options else "auto",
        "labels": {
            "subject": subject,
            "type": record.get("question_type"),
            "difficulty": record.get("topic_difficulty"),
        },
    }


def gsm8k(record: dict) -> dict:
    """GSM8K: the answer is the number after ####, before it a worked solution with <<3*4=12>> notes."""
    work, mark, answer = record["answer"].rpartition("####")
    if not mark:
        raise ValueError("no answer after ####")
    return {
        "solution": answer.strip().replace(",", ""),
        "task": "math",
        "thinking": re.sub("<<.*?>>", "", work).strip(),
    }


def math500(record: dict) -> dict:
    """MATH-500: `solution` is a whole derivation; the answer has a column of its own."""
    return {
        "solution": record["answer"],
        "id": record["unique_id"],
        "task": "math",
        "labels": {"subject": record["subject"], "level": record["level"]},
    }


SHORT = "Answer with a word or a short phrase."  # these metrics compare whole texts: a sentence is wrong


def chartqa(record: dict) -> dict:
    """ChartQA as lmms-lab publishes it: half of the questions are by people, half by a program."""
    return {
        "problem": f"{record['question']} {SHORT}",
        "solution": record["answer"],
        "labels": {"questions": record["type"].removesuffix("_test")},
    }


def docvqa(record: dict) -> dict:
    """DocVQA as lmms-lab publishes it; any of `answers` is right. The test split keeps its answers."""
    return {
        "id": record["questionId"],
        "problem": f"{record['question']} {SHORT}",
        "solution": accepted(record["answers"]),
        "labels": {"kind": " and ".join(record["question_types"] or [])},
    }


def infovqa(record: dict) -> dict:
    """InfographicVQA, a part of the same set: how the answer is found is the category."""
    return {
        "id": record["questionId"],
        "problem": f"{record['question']} {SHORT}",
        "solution": accepted(record["answers"]),
        "labels": {
            "answer": " and ".join(record["answer_type"] or []),
            "reasoning": " and ".join(record["operation/reasoning"] or []) or "none",
        },
    }


def accepted(answers: list[str] | None) -> list[str] | str:
    """The different answers of a document's question. ValueError if there are none."""
    different = list(dict.fromkeys(answer for answer in answers or [] if answer.strip()))
    if not different:
        raise ValueError("no answer")
    return different if len(different) > 1 else different[0]


def textvqa(record: dict) -> dict:
    """TextVQA as lmms-lab publishes it: the answers of ten people, which count as often as they occur."""
    answers = [answer for answer in record["answers"] or [] if answer.strip()]
    if not answers:
        raise ValueError("no answer")
    return {
        "id": record["question_id"],
        "problem": f"{record['question']} {SHORT}",
        "solution": answers,
    }


def mathvista(record: dict) -> dict:
    """MathVista: a choice among texts, or a number: whole, or with so many decimals as `precision` says.

    `image` is a path, `decoded_image` the image; of a choice `answer` is the text of the right one.
    """
    answer = record["answer"]
    if not answer:
        raise ValueError("no answer")  # the test split keeps its answers
    image = record.get("decoded_image")
    fields = {
        "id": record["pid"],
        "images": record["image"] if image is None else image,
        "labels": {
            "type": record["question_type"],
            "answer": record["answer_type"],
            "subject": record["metadata"]["task"],
        },
    }
    question = record["question"]
    if record["question_type"] == "multi_choice":
        options = list(record["choices"])
        only_letters = options == list(LETTERS[: len(options)])
        letter = LETTERS[options.index(answer)]
        options = None if only_letters else options
        return fields | {"problem": question, "solution": letter, "task": "choice", "options": options}
    if record["unit"]:
        question += f" (Unit: {record['unit']})"
    if record["answer_type"] == "float":
        places = int(record["precision"])
        question += f" Round to {places} decimal place{'s' * (places != 1)}."
        answer = f"{float(answer):.{places}f}"  # 0.6 of two places is not met by 0.64
    if record["answer_type"] == "list":
        question += " Answer with a list like [1, 2]."
    return fields | {"problem": question, "solution": answer, "task": "math", "options": None}


def ai2d(record: dict) -> dict:
    """AI2D as lmms-lab publishes it: `answer` counts the options from 0."""
    options = [str(text) for text in record["options"]]
    number = int(record["answer"])
    if not 0 <= number < len(options):
        raise ValueError(f"answer {number} of {len(options)} options")
    return {"solution": LETTERS[number], "options": options}


def last_how_many(records: list[dict]) -> list[dict]:
    """OpenV-R1's list of 5,000: the last questions with "How many" of Super-CLEVR's own file.

    A list that is one already is kept.
    """
    if not isinstance(records[0], dict) or "image_filename" not in records[0]:
        return records
    asked = [record for record in records if isinstance(record, dict)]
    return [record for record in asked if "How many" in str(record.get("question"))][-5000:]


# -----------------------------------------------------------------------------
# the table
# -----------------------------------------------------------------------------

SUBJECTS = (
    "Accounting",
    "Agriculture",
    "Architecture_and_Engineering",
    "Art",
    "Art_Theory",
    "Basic_Medical_Science",
    "Biology",
    "Chemistry",
    "Clinical_Medicine",
    "Computer_Science",
    "Design",
    "Diagnostics_and_Laboratory_Medicine",
    "Economics",
    "Electronics",
    "Energy_and_Power",
    "Finance",
    "Geography",
    "History",
    "Literature",
    "Manage",
    "Marketing",
    "Materials",
    "Math",
    "Mechanical_Engineering",
    "Music",
    "Pharmacy",
    "Physics",
    "Psychology",
    "Public_Health",
    "Sociology",
)
SUPERCLEVR = "images.zip of RyanWW/Super-CLEVR (into superclevr/images/)"


def on_hub(
    hub: str, rows: int, task: str = "auto", row=None, template=None, splits=("train",), configs=()
) -> Adapter:
    """A set of the Hugging Face hub."""
    return Adapter(
        get=hub, hub=hub, rows=rows, task=task, row=row, template=template, splits=splits, configs=configs
    )


def referring_set(rows: int, *splits: str) -> Adapter:
    """One of the three RefCOCO sets, as VLM-R1 publishes them."""
    return Adapter(
        get=(
            "rec_jsons_processed.zip of omlab/VLM-R1 (into rec_jsons_processed/) "
            "and COCO's train2014 images (into coco/)"
        ),
        rows=rows,
        task="grounding",
        template="box",
        row=referring,
        splits=splits,
        files=("{name}_{split}.json", "{name}_{split}.jsonl"),
        shared=("rec_jsons_processed", "coco"),
    )


ADAPTERS = {
    # training
    "clevr": on_hub("leonardPKU/clevr_cogen_a_train", 70000, "count", counting),
    "clevr_complex": on_hub("MMInstruction/Clevr_CoGenT_TrainA_70K_Complex", 70000, "count", counting),
    "clevr_r1": on_hub("MMInstruction/Clevr_CoGenT_TrainA_R1", 37800, "count", counting),
    "geoqa": on_hub("leonardPKU/GEOQA_R1V_Train_8K", 8000, "math", geometry),
    "openv_visual": on_hub("minglingfeng/Ocean_R1_collected_visual_data", 139000, row=ocean),
    "openv_text": on_hub("minglingfeng/Ocean_R1_collected_text_data", 44000, row=ocean, template="zero"),
    # counting
    "superclevr200": Adapter(
        get=f"superclevr_test200_counting_problems.jsonl of R1-V's src/eval/prompts and {SUPERCLEVR}",
        rows=200,
        task="count",
        template="superclevr",
        row=counting,
        splits=("test",),
        files=("*test200*.jsonl",),
        shared=("superclevr",),
    ),
    "superclevr5k": Adapter(
        get=f"superCLEVR_questions_30k.json and {SUPERCLEVR}",
        rows=5000,
        task="count",
        template="superclevr",
        row=counting,
        splits=("test",),
        files=("*test_5k*.jsonl", "superCLEVR_questions_30k.json"),
        shared=("superclevr",),
        select=last_how_many,
    ),
    "cogent_val_a": on_hub("MMInstruction/Clevr_CoGenT_ValA", 5000, "count", counting),
    "cogent_val_b": on_hub("MMInstruction/Clevr_CoGenT_ValB", 5000, "count", counting),
    # grounding
    "refcoco": referring_set(10834, "val", "testA", "testB", "train"),
    "refcocop": referring_set(10758, "val", "testA", "testB", "train"),
    "refcocog": referring_set(4896, "val", "test", "train"),
    "refgta": Adapter(
        get=(
            "rec_jsons_processed.zip of omlab/VLM-R1 (into rec_jsons_processed/) "
            "and RefGTA's images (into refgta/)"
        ),
        task="grounding",
        template="box",
        row=referring,
        splits=("test",),
        files=("refgta_subsample.json", "refgta*.json*"),
        shared=("rec_jsons_processed",),
    ),
    # mathematics and knowledge
    "geoqa_test": Adapter(
        get=(
            "geoqa_test_prompts.jsonl of R1-V's src/eval/prompts and Geo170K's images/test (into geoqa_test/)"
        ),
        rows=754,
        task="math",
        row=geometry,
        splits=("test",),
        files=("geoqa_test*.jsonl",),
    ),
    "mathvision": on_hub(
        "MathLLMs/MathVision", 3040, row=mathvision, template="solve", splits=("test", "testmini")
    ),
    "mathverse": on_hub(
        "xyliu6/mathverse_4k", 3940, row=mathverse, template="solve", splits=("train|testmini",)
    ),
    "olympiadbench": on_hub(
        "lmms-lab/OlympiadBench", 2130, "math", olympiad, template="solve", splits=("test_en", "test_cn")
    ),
    "mmmu": on_hub(
        "MMMU/MMMU", 900, row=mmmu, template="solve", splits=("validation", "dev"), configs=SUBJECTS
    ),
    "mathvista": on_hub("AI4Math/MathVista", 1000, row=mathvista, template="solve", splits=("testmini",)),
    "ai2d": on_hub("lmms-lab/ai2d", 3088, "choice", ai2d, template="solve", splits=("test",)),
    # charts, documents, scene text
    "chartqa": on_hub("lmms-lab/ChartQA", 2500, "relaxed", chartqa, splits=("test",)),
    "infovqa": on_hub(
        "lmms-lab/DocVQA", 2801, "anls", infovqa, splits=("validation|val",), configs=("InfographicVQA",)
    ),
    # after infovqa: the id of both alone is this one
    "docvqa": on_hub(
        "lmms-lab/DocVQA", 5349, "anls", docvqa, splits=("validation|val",), configs=("DocVQA",)
    ),
    "textvqa": on_hub("lmms-lab/textvqa", 5000, "vqa", textvqa, splits=("validation|val", "train")),
    # text only
    "gsm8k": on_hub(
        "openai/gsm8k", 1319, "math", gsm8k, template="zero", splits=("test", "train"), configs=("main",)
    ),
    "math500": on_hub("HuggingFaceH4/MATH-500", 500, "math", math500, template="zero", splits=("test",)),
}
HUBS = {adapter.hub: name for name, adapter in ADAPTERS.items() if adapter.hub}  # an id is as good as a name
# Second names of two sets, and what their ids were at first.
ADAPTERS["ocean_visual"] = ADAPTERS["openv_visual"]
ADAPTERS["ocean_text"] = ADAPTERS["openv_text"]
HUBS["minglingfeng/OpenV_R1_collected_visual_data"] = "openv_visual"
HUBS["minglingfeng/OpenV_R1_collected_text_data"] = "openv_text"
