"""The published data sets by name: where each one lies, and how one of its records becomes a row.

    data_source=geoqa                   downloads/geoqa (or $NANOR1V_DATA/geoqa) if it is there, else the hub
    data_source=geoqa@/data/GEOQA_R1V   a copy anywhere: parquet, a folder of save_to_disk, JSON and images
    data_source=refcoco/testA           another of its splits

A new data set is one entry of ADAPTERS. Columns that have usual names (data.COLUMNS) are found without help.
What is special about a record is a function of it: it returns the fields of the row that differ, and raises
ValueError if the record is of no use. Opening images and checking rows is data.py's work; the reading of
files, of any set, stands at the end of this file.
"""

import ast
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
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


# -----------------------------------------------------------------------------
# files and hub -> records
# -----------------------------------------------------------------------------

SPLITS = {"train", "test", "val", "validation", "dev"}  # file names that begin so are chosen by the split
KEPT = Path("processed_data/r1_data")  # where IS_LOCAL keeps hub sets, as in R1-V


def split_names(name: str, split: str) -> list[str]:
    """Under which names the split may lie, the hub's first. SystemExit if the set has no such split.

    "train" and "test" are what training and evaluation ask for when nobody has said anything: a set that has
    no such split gives its first.
    """
    groups = [group.split("|") for group in ADAPTERS[name].splits]
    for group in groups:
        if split in group:
            return group
    if split in ("", "train", "test"):
        return groups[0]
    known = ", ".join(group[0] for group in groups)
    raise SystemExit(f"data: '{name}' has the splits {known}, not '{split}'")


def read_adapter(name: str, splits: list[str], place: str = "") -> tuple:
    """(records, folder of relative image paths, further such folders) of a published set.

    They come from `place`, a copy of it, else from the folder of downloads, else from the hub.
    """
    if place and not Path(place).exists():
        raise SystemExit(f"data: '{place}', named as the copy of {name}, does not exist")
    adapter = ADAPTERS[name]
    downloads = Path(os.environ.get("NANOR1V_DATA") or "downloads")
    home = downloads / name
    shared = [downloads / folder for folder in adapter.shared]
    copy = Path(place) if place else find_download(home, shared, name, splits, adapter)
    if copy.exists():
        records, folder = read_copy(copy, splits, name, adapter)
    elif adapter.hub:
        records, folder = read_hub(adapter.hub, splits, name, adapter), Path(".")
    else:
        raise SystemExit(
            f"data: '{name}' is not in {home}; download {adapter.get} there, "
            f"or name your copy as {name}@FOLDER"
        )
    if adapter.select:
        records = adapter.select(records)
    copy_folder = copy if copy.is_dir() else copy.parent
    return records, folder, (copy_folder, *shared, home)


def find_download(home: Path, shared: list[Path], name: str, splits: list[str], adapter: Adapter) -> Path:
    """The downloaded folder with the files of the set, its own if they are in none."""
    for folder in (home, *shared):
        # a shared folder counts only if files of this very set are in it
        if folder.exists() and named_files(folder, name, splits, adapter):
            return folder
    return home


def named_files(folder: Path, name: str, splits: list[str], adapter: Adapter) -> list[Path]:
    """The JSON files by which a set is known, at most two folders deep; the best match first."""
    found = []
    for pattern in adapter.files:
        for split in splits:
            file = pattern.format(name=name, split=split)
            for depth in ("", "*/", "*/*/"):
                found += sorted(folder.glob(depth + file))
    return found


def read_copy(path: Path, splits: list[str], name: str = "", adapter: Adapter | None = None) -> tuple:
    """(records, folder) of a local file or folder: JSON, parquet files or what save_to_disk wrote.

    `splits`: names of the wanted one. Parquet and Arrow stay on disk, memory-mapped: 70,000 images take no
    memory.
    """
    if path.suffix in (".json", ".jsonl"):
        return read_json(path), path.parent
    if adapter and path.is_dir():
        named = named_files(path, name, splits, adapter)
        if named:
            return read_json(named[0]), named[0].parent
    table = read_tables(path, splits, adapter)
    if table is not None:
        return table, path if path.is_dir() else path.parent
    file = find_json(path, splits, adapter)
    return read_json(file), file.parent


def read_tables(path: Path, splits: list[str], adapter: Adapter | None):
    """The table of the parquet files or save_to_disk folders at a path; None if there are none."""
    import datasets

    parquet = [path] if path.suffix == ".parquet" else []
    saved = [path] if is_saved(path) else []
    if path.is_dir():
        parquet = parquet or sorted(path.rglob("*.parquet"))
        saved = saved or sorted(folder for folder in path.glob("*/") if is_saved(folder))
    parquet = of_configs(path, parquet, adapter)
    saved = of_configs(path, saved, adapter)
    try:
        if parquet:
            if path.is_dir():
                # train-00000-of-00004.parquet
                names = {file: file.name.split("-")[0].removesuffix(".parquet") for file in parquet}
                parquet = of_split(path, names, splits, adapter)
            files = [str(file) for file in parquet]
            return undecoded(datasets.load_dataset("parquet", data_files=files, split="train"))
        if saved:
            if saved != [path]:
                saved = of_split(path, {folder: folder.name for folder in saved}, splits, adapter)
            return datasets.concatenate_datasets([read_saved(folder, path, splits) for folder in saved])
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        # pyarrow's errors are ValueErrors
        reason = str(error).splitlines()[0][:160]
        raise SystemExit(f"data: '{path}' cannot be read ({reason}); is the file complete?") from error
    return None


def is_saved(folder: Path) -> bool:
    """Has datasets.save_to_disk written this folder?"""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def read_saved(folder: Path, path: Path, splits: list[str]):
    """The table in a folder of save_to_disk below `path`: the wanted one if it holds one for each split."""
    import datasets

    table = datasets.load_from_disk(folder)
    if isinstance(table, datasets.DatasetDict):
        split = next((split for split in splits if split in table), None)
        if split is None:
            raise SystemExit(
                f"data: '{path}' has the splits {', '.join(table)}, not '{splits[0]}'; name another split"
            )
        table = table[split]
    return undecoded(table)


def of_configs(path: Path, found: list[Path], adapter: Adapter | None) -> list[Path]:
    """The files or folders below `path` that are of the set's parts; all of them if none is."""
    configs = set(adapter.configs) if adapter else set()
    chosen = [place for place in found if configs & set(place.relative_to(path).parts)]
    return chosen or found


def of_split(path: Path, names: dict[Path, str], splits: list[str], adapter: Adapter | None) -> list[Path]:
    """The files or folders of `names` (place -> name) that are called like the wanted split.

    All of them if none is called like any split. SystemExit, which names `path`, if there are others only.
    """
    known = SPLITS | set(splits)
    for group in adapter.splits if adapter else ():
        known |= set(group.split("|"))
    there = known & set(names.values())
    if not there:
        return list(names)
    wanted = next((split for split in splits if split in there), None)
    if wanted is None:
        raise SystemExit(f"data: '{path}' has the splits {', '.join(sorted(there))}, not '{splits[0]}'")
    return [place for place, name in names.items() if name == wanted]


def find_json(path: Path, splits: list[str], adapter: Adapter | None) -> Path:
    """The one JSON file of a folder, or of its folders. SystemExit if there is none, or no telling which."""
    files = sorted([*path.glob("*.json*"), *path.glob("*/*.json*")])
    files = [file for file in files if not file.name.startswith(("dataset_", "state"))]
    if len(files) > 1:
        # val.json, refcoco_val.json
        names = {file: re.split("[_-]", file.stem)[-1] for file in files}
        files = of_split(path, names, splits, adapter)
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise SystemExit(f"data: '{path}' holds several JSON files ({names}); name one of them")
    if not files:
        raise SystemExit(
            f"data: '{path}' is no .json, .jsonl or .parquet file, "
            "nor a folder of .parquet files or of save_to_disk"
        )
    return files[0]


def read_hub(hub: str, splits: list[str], name: str = "", adapter: Adapter | None = None):
    """Records of a set on the Hugging Face hub. The variable IS_LOCAL (R1-V's) decides where from.

    true     the copy in ./processed_data/r1_data
    false    the hub, and a copy is kept there
    not set  the hub, whose own cache serves offline
    """
    flag = os.environ.get("IS_LOCAL", "").strip().lower()
    if flag not in ("", "true", "1", "yes", "false", "0", "no"):
        raise SystemExit(f"IS_LOCAL: '{flag}' is none of true, 1, yes, false, 0, no")
    if flag in ("true", "1", "yes"):
        for copy in (KEPT / hub, KEPT / hub.split("/")[-1]):
            if copy.exists():
                return read_copy(copy, splits, name, adapter)[0]
        raise SystemExit(
            f"data: IS_LOCAL is {flag}, but {KEPT / hub} does not exist; "
            "write it with save_to_disk, or unset IS_LOCAL"
        )
    import common

    reachable = common.hub_is_there()  # asked before datasets is imported, which takes note of it
    import datasets

    configs = adapter.configs if adapter and adapter.configs else ("",)
    try:
        tables = [load_config(hub, config, splits[0], keep=flag != "") for config in configs]
        return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)
    except (ConnectionError, FileNotFoundError, ValueError, KeyError, OSError) as error:
        reason = (str(error) or " ").splitlines()[0][:120]
        where = f"{name}@FOLDER" if name else "the folder"
        if not reachable:
            reason = "it is not in the cache, and the hub cannot be reached"
        raise SystemExit(
            f"data: '{hub}' is no file or folder here and could not be loaded from the hub "
            f"({type(error).__name__}: {reason}); download it and name {where}"
        ) from error


def load_config(hub: str, config: str, split: str, keep: bool):
    """The table of one part of a hub set ("" = it has no parts); `keep` writes a copy of all its splits."""
    import datasets

    if not keep:
        return undecoded(datasets.load_dataset(hub, config or None, split=split))
    tables = datasets.load_dataset(hub, config or None)
    kept = KEPT / hub / config
    if not kept.exists() and os.environ.get("RANK", "0") == "0":
        tables.save_to_disk(f"{kept}.part")
        os.rename(f"{kept}.part", kept)  # a copy that is there is whole
    return undecoded(tables[split])


def read_json(path: Path) -> list[dict]:
    """Records of a .jsonl or .json file; what is no record among them spoils its own row (data.Rows).

    A .json file is a list, or a dict with one list in it (CLEVR's {"info": ..., "questions": [...]}).
    """
    line = ""  # where an error is
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            content = []
            # not splitlines(), which also cuts at characters that may stand in a JSON string
            for number, record in enumerate(text.split("\n"), 1):
                line = f"line {number}: "
                if record.strip():
                    content.append(parse_json(record))
        else:
            content = parse_json(text)
    except (ValueError, RecursionError, OSError) as error:
        raise SystemExit(f"data: '{path}' is not valid JSON in UTF-8 ({line}{error})") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list) or (content and not any(isinstance(record, dict) for record in content)):
        raise SystemExit(f"data: '{path}' should hold one list of records")
    return content


def parse_json(text: str):
    """The value of a JSON text; a whole number of over 4,300 digits, which Python refuses, is infinite."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 400 else math.inf)


def undecoded(table):
    """The table with images (sound, video) as bytes: a broken one spoils its own row, not the whole batch."""
    import datasets

    for name, feature in table.features.items():
        if getattr(feature, "decode", False):
            table = table.cast_column(name, type(feature)(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return table
