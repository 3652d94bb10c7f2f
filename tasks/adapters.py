"""The published data sets by name: where each one lies, and how one of its records becomes a row.

    data_source=geoqa                        downloads/geoqa (or $NANOR1V_DATA/geoqa) if it is there, else the hub
    data_source=geoqa@/data/GEOQA_R1V        a copy anywhere: parquet files, a folder of save_to_disk, JSON and images
    data_source=refcoco/testA                another of its splits

A new data set is one entry of ADAPTERS. Columns that have usual names (data.COLUMNS) are found without help; what is special
about a record is a function of it: it returns the fields of the row that differ, and raises ValueError if the record is of no use.
Opening images and checking rows is data.py's work; the reading of files, of any set, stands at the end of this file.
"""

import ast
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Adapter(NamedTuple):
    get: str  # what to download, for a person; the hub's id where it is on the hub
    rows: int = 0  # of the published set (its first split); 0 = nobody has counted
    task: str = "auto"  # chooses the verifier, unless a record says something else
    template: str | None = None  # prompt for template = "auto"; None: "think"
    row: Callable[[dict], dict] | None = (
        None  # record -> fields of the row that differ from what COLUMNS finds
    )
    splits: tuple[str, ...] = ("train",)  # the first is the default; "a|b": the hub says a, some copies say b
    configs: tuple[str, ...] = ()  # the hub has the set in these parts; all are read
    hub: str = ""  # "" = files only
    files: tuple[str, ...] = ()  # the JSON files of the set; {split} is filled in
    shared: tuple[
        str, ...
    ] = ()  # folders beside its own that hold its files or images: several sets share them
    select: Callable[[list], list] | None = None  # all records -> those that belong to the set


# -----------------------------------------------------------------------------
# one record -> fields of a row
# -----------------------------------------------------------------------------


def counting(record: dict) -> dict:
    """CLEVR's and Super-CLEVR's relatives: the answer is the number of objects, which is also the category."""
    answer = (
        record["ground_truth"]
        if "ground_truth" in record
        else record["answer"]
        if "answer" in record
        else record["solution"]
    )
    number = re.search(r"\d+", str(answer))  # some questions of the complex sets are answered by yes or no
    return (
        {"task": "count", "labels": {"objects": number[0]}}
        if number
        else {"task": "text", "labels": {"objects": "none"}}
    )


def geometry(record: dict) -> dict:
    """GeoQA: the reference keeps its unit (145°, 2√{3}cm); what kind of number it is makes the category."""
    text = bare(record["ground_truth"] if "ground_truth" in record else record["solution"])
    kinds = {
        r"°|掳|\\circ": "degrees",
        r"√|π|sqrt|\\pi": "root or pi",
        r"frac|\d/\d": "fraction",
        r"[a-zA-Z一-鿿]": "length",
    }
    kind = next((name for pattern, name in kinds.items() if re.search(pattern, text)), "number")
    return {"task": "math", "labels": {"answer": kind}}


def referring(record: dict) -> dict:
    """RefCOCO as VLM-R1 publishes it: `solution` is the box in pixels of the original image, `image` a path below COCO's folder."""
    box = read_box(record["solution"])
    area = (box[2] - box[0]) * (box[3] - box[1])
    size = "small" if area < 32**2 else "medium" if area < 96**2 else "large"  # COCO's limits
    return {"solution": json.dumps(box), "task": "grounding", "labels": {"box": size}}


def ocean(record: dict) -> dict:
    """OpenV-R1's collections: rows with and without an image side by side, and boxes where reward_func is "iou"."""
    if record["reward_func"] == "iou":
        return referring(record) | {"template": "box", "reward_func": "iou"}
    # every other value means its ladder of verifiers, which is what task "auto" does
    fields = {"task": "auto", "template": None, "reward_func": None}
    return fields if record.get("has_image", True) else fields | {"images": None, "template": "zero"}


def mathvision(record: dict) -> dict:
    """`options` are texts, or just the letters where the choices are drawn in the image; `image` is a path, `decoded_image` the image."""
    options = [str(text) for text in record["options"] if text is not None]
    image = record.get("decoded_image")
    return {
        "images": record["image"] if image is None else image,
        "solution": record["answer"],
        "task": "choice" if options else "math",
        "options": None if options == list("ABCDEFGHIJ"[: len(options)]) else options,
        "labels": {
            "subject": record["subject"],
            "level": record["level"],
            "type": "choice" if options else "free",
        },
    }


def mathverse(record: dict) -> dict:
    """MathVerse, official or as xyliu6/mathverse_4k: the choices are lines "A:50°" of the question itself, in a few rows listed twice."""
    question, answer = (
        record.get("problem") or record["question"],
        bare(record["answer"] if "answer" in record else record["solution"]),
    )
    listed = re.split(r"Choices?:", question)[1:2]
    lines = re.findall(r"(?m)^\s*([A-J])\s*[:.)]\s*(.*?)\s*$", listed[0]) if listed else []
    options = (
        [text for _, text in lines]
        if [letter for letter, _ in lines] == list("ABCDEFGHIJ"[: len(lines)])
        else []
    )
    choice = answer in options or bool(re.fullmatch(r"\(?[A-J]\)?", answer))
    about = record.get("metadata") or {}
    labels = {
        "version": record.get("problem_version"),
        "type": "choice" if choice else "free",
        "subject": about.get("subject"),
    }
    return {
        "problem": question or "Answer the question that stands in the image.",
        "solution": answer,
        "id": record.get("sample_index"),
        "task": "choice" if choice else "math",
        "options": options or None,
        "labels": labels,
    }


def olympiad(record: dict) -> dict:
    """`context` (given for some) goes before the question; `final_answer` is a list, empty for proofs: nothing to score."""
    if not record["final_answer"]:
        raise ValueError("no answer (a proof)")
    return {
        "problem": "\n\n".join(filter(None, (record.get("context"), record["question"]))),
        "id": record.get("question_id"),
        "solution": ",".join(record["final_answer"]),
        "images": record.get("images") or None,
        "task": "math",
        "labels": {
            "subject": record.get("subfield"),
            "answer": record.get("answer_type"),
            "images": "with" if record.get("images") else "without",
        },
    }


def mmmu(record: dict) -> dict:
    """`options` is a Python list written as a string; <image 2> in question or options is column image_2."""
    options = ast.literal_eval(record["options"])  # literals only, nothing is run
    if record["answer"] == "?":  # the test split keeps its answers
        raise ValueError("no answer")
    subject = re.sub(r"^(dev|validation|test)_|_\d+$", "", record["id"])
    return {
        "images": [image for n in range(1, 8) if (image := record.get(f"image_{n}")) is not None],
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
    """The answer is the number after ####; before it stands a worked solution with <<3*4=12>> notes."""
    work, mark, answer = record["answer"].rpartition("####")
    if not mark:
        raise ValueError("no answer after ####")
    return {
        "solution": answer.strip().replace(",", ""),
        "task": "math",
        "thinking": re.sub("<<.*?>>", "", work).strip(),
    }


def math500(record: dict) -> dict:
    """`solution` is a whole derivation; the answer has a column of its own."""
    return {
        "solution": record["answer"],
        "id": record["unique_id"],
        "task": "math",
        "labels": {"subject": record["subject"], "level": record["level"]},
    }


def last_how_many(records: list[dict]) -> list[dict]:
    """OpenV-R1's list of 5,000: the last questions with "How many" of Super-CLEVR's own file. A list that is one already is kept."""
    return (
        [r for r in records if "How many" in r["question"]][-5000:]
        if "image_filename" in records[0]
        else records
    )


def bare(solution) -> str:
    """A solution without the <answer> tags that some published sets store around it."""
    tagged = re.findall(r"<answer>(.*?)</answer>", str(solution), re.DOTALL)
    return (tagged[-1] if tagged else str(solution)).strip()


def read_box(solution) -> list:
    """[x1, y1, x2, y2] of a list or of a text that holds one; ValueError if there is none, or one without an area."""
    found = (
        re.findall(r"\[\s*([^\[\]]*)\s*\]", bare(solution))
        if isinstance(solution, str)
        else [json.dumps(solution)[1:-1]]
    )
    box = json.loads(f"[{found[-1]}]") if found else []
    if (
        len(box) != 4
        or not all(isinstance(x, int | float) for x in box)
        or box[0] >= box[2]
        or box[1] >= box[3]
    ):
        raise ValueError(f"no box ({str(solution)[:60]})")
    return box


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
REC = "rec_jsons_processed.zip of omlab/VLM-R1 (into rec_jsons_processed/) and COCO's train2014 images (into coco/)"
SUPERCLEVR = "images.zip of RyanWW/Super-CLEVR (into superclevr/images/)"


def on_hub(hub: str, rows: int = 0, task: str = "auto", row=None, **more) -> Adapter:
    return Adapter(hub, rows, task, more.pop("template", None), row, hub=hub, **more)


def rec(rows: int, *splits: str) -> Adapter:
    return Adapter(
        REC,
        rows,
        "grounding",
        "box",
        referring,
        splits,
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
        "superclevr_test200_counting_problems.jsonl of R1-V's src/eval/prompts and " + SUPERCLEVR,
        200,
        "count",
        "superclevr",
        counting,
        ("test",),
        files=("*test200*.jsonl",),
        shared=("superclevr",),
    ),
    "superclevr5k": Adapter(
        "superCLEVR_questions_30k.json and " + SUPERCLEVR,
        5000,
        "count",
        "superclevr",
        counting,
        ("test",),
        files=("*test_5k*.jsonl", "superCLEVR_questions_30k.json"),
        shared=("superclevr",),
        select=last_how_many,
    ),
    "cogent_val_a": on_hub("MMInstruction/Clevr_CoGenT_ValA", 5000, "count", counting),
    "cogent_val_b": on_hub("MMInstruction/Clevr_CoGenT_ValB", 5000, "count", counting),
    # grounding
    "refcoco": rec(10834, "val", "testA", "testB", "train"),
    "refcocop": rec(10758, "val", "testA", "testB", "train"),
    "refcocog": rec(4896, "val", "test", "train"),
    "refgta": Adapter(
        "rec_jsons_processed.zip of omlab/VLM-R1 (into rec_jsons_processed/) and RefGTA's images (into refgta/)",
        0,
        "grounding",
        "box",
        referring,
        ("test",),
        files=("refgta_subsample.json", "refgta*.json*"),
        shared=("rec_jsons_processed",),
    ),
    # mathematics and knowledge
    "geoqa_test": Adapter(
        "geoqa_test_prompts.jsonl of R1-V's src/eval/prompts and Geo170K's images/test (into geoqa_test/)",
        754,
        "math",
        None,
        geometry,
        ("test",),
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
ADAPTERS |= {"ocean_visual": ADAPTERS["openv_visual"], "ocean_text": ADAPTERS["openv_text"]}
HUBS = {
    adapter.hub: name for name, adapter in reversed(ADAPTERS.items()) if adapter.hub
}  # an id is as good as a name
HUBS |= {
    hub.replace("Ocean_R1", "OpenV_R1"): name for hub, name in HUBS.items()
}  # as two of them were called at first


# -----------------------------------------------------------------------------
# files and hub -> records
# -----------------------------------------------------------------------------

SPLITS = {"train", "test", "val", "validation", "dev"}  # file names that begin so are chosen by the split
KEPT = Path("processed_data/r1_data")  # where IS_LOCAL keeps hub sets, as in R1-V


def split_names(name: str, split: str) -> list[str]:
    """Under which names the split may lie, the hub's first. SystemExit if the set has no such split.

    "train" and "test" are what training and evaluation ask for when nobody has said anything: a set that has no such split gives its first.
    """
    groups = [group.split("|") for group in ADAPTERS[name].splits]
    chosen = [group for group in groups if split in group] or (
        groups if split in ("", "train", "test") else []
    )
    if not chosen:
        raise SystemExit(
            f"data: '{name}' has the splits {', '.join(group[0] for group in groups)}, not '{split}'"
        )
    return chosen[0]


def read_adapter(name: str, splits: list[str], place: str = "") -> tuple:
    """(records, folder of relative image paths, further such folders) of a published set: from `place`, a local copy or the hub."""
    adapter, home = ADAPTERS[name], Path(os.environ.get("NANOR1V_DATA") or "downloads")
    shared = [home / folder for folder in adapter.shared]
    if place and not Path(place).exists():
        raise SystemExit(f"data: '{place}', named as the copy of {name}, does not exist")
    # a shared folder counts only if files of this very set are in it
    there = [folder for folder in (home / name, *shared) if folder.exists()]
    copy = (
        Path(place)
        if place
        else next((f for f in there if named_files(f, name, splits, adapter)), home / name)
    )
    if copy.exists():
        records, folder = read_copy(copy, splits, name, adapter)
    elif adapter.hub:
        records, folder = read_hub(adapter.hub, splits, name, adapter), Path(".")
    else:
        raise SystemExit(
            f"data: '{name}' is not in {home / name}; download {adapter.get} there, or name your copy as {name}@FOLDER"
        )
    if adapter.select:
        records = adapter.select(records)
    return records, folder, (copy if copy.is_dir() else copy.parent, *shared, home / name)


def named_files(folder: Path, name: str, splits: list[str], adapter: Adapter) -> list[Path]:
    """The JSON files by which a set is known, at most two folders deep."""
    patterns = [pattern.format(name=name, split=split) for pattern in adapter.files for split in splits]
    return list(
        dict.fromkeys(
            p for pattern in patterns for up in ("", "*/", "*/*/") for p in sorted(folder.glob(up + pattern))
        )
    )


def read_copy(path: Path, splits: list[str], name: str = "", adapter: Adapter | None = None) -> tuple:
    """(records, folder) of a local file or folder: JSON, parquet files or what save_to_disk wrote. `splits`: names of the wanted one.

    Parquet and Arrow stay on disk, memory-mapped: 70,000 images take no memory.
    """
    import datasets

    known = SPLITS | {part for group in (adapter.splits if adapter else ()) for part in group.split("|")}

    def of_split(found: dict) -> list:
        """The paths whose name is that of the split; all of them if none is named like a split."""
        names = [s for s in dict.fromkeys(found.values()) if s in known or s in splits]
        if names and not set(names) & set(splits):
            raise SystemExit(f"data: '{path}' has the splits {', '.join(sorted(names))}, not '{splits[0]}'")
        wanted = next((s for s in splits if s in names), None)
        return [p for p, s in found.items() if wanted is None or s == wanted]

    def is_saved(folder):
        return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()

    if path.suffix in (".json", ".jsonl"):
        return read_json(path), path.parent
    if path.is_dir() and adapter and (named := named_files(path, name, splits, adapter)):
        return read_json(named[0]), named[0].parent
    parquet = (
        [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet")) if path.is_dir() else []
    )
    saved = (
        [path]
        if is_saved(path)
        else sorted(p for p in path.glob("*/") if is_saved(p))
        if path.is_dir()
        else []
    )
    texts = sorted(
        p
        for up in ("*", "*/*")
        for p in path.glob(f"{up}.json*")
        if not p.name.startswith(("dataset_", "state"))
    )
    configs = set(adapter.configs) if adapter else set()
    parquet, saved = (
        [p for p in found if configs & set(p.relative_to(path).parts)] or found for found in (parquet, saved)
    )
    try:
        if parquet:
            # train-00000-of-00004.parquet
            chosen = (
                of_split({p: p.name.split("-")[0].removesuffix(".parquet") for p in parquet})
                if path.is_dir()
                else parquet
            )
            table = datasets.load_dataset("parquet", data_files=[str(p) for p in chosen], split="train")
            return undecoded(table), path if path.is_dir() else path.parent
        if saved:
            tables = []
            for table in map(
                datasets.load_from_disk, of_split({p: p.name for p in saved}) if saved != [path] else saved
            ):
                if isinstance(table, datasets.DatasetDict):
                    if not set(splits) & set(table):
                        raise SystemExit(
                            f"data: '{path}' has the splits {', '.join(table)}, not '{splits[0]}'; name another split"
                        )
                    table = next(table[s] for s in splits if s in table)
                tables.append(undecoded(table))
            return datasets.concatenate_datasets(tables), path
    except (
        datasets.exceptions.DatasetsError,
        OSError,
        ValueError,
    ) as error:  # pyarrow's errors are ValueErrors
        raise SystemExit(
            f"data: '{path}' cannot be read ({str(error).splitlines()[0][:160]}); is the file complete?"
        ) from error
    if len(texts) > 1:  # val.json, refcoco_val.json
        texts = of_split({p: re.split("[_-]", p.stem)[-1] for p in texts})
    if len(texts) > 1:
        raise SystemExit(
            f"data: '{path}' holds several JSON files ({', '.join(p.name for p in texts[:4])}); name one of them"
        )
    if not texts:
        raise SystemExit(
            f"data: '{path}' is no .json, .jsonl or .parquet file, nor a folder of .parquet files or of save_to_disk"
        )
    return read_json(texts[0]), texts[0].parent


def read_hub(hub: str, splits: list[str], name: str = "", adapter: Adapter | None = None):
    """Records of a set on the Hugging Face hub. The variable IS_LOCAL (R1-V's) decides where from:

    true: the copy in ./processed_data/r1_data; false: the hub, and a copy is kept there; not set: the hub, whose own cache serves offline.
    """
    import datasets

    flag = os.environ.get("IS_LOCAL", "").strip().lower()
    if flag not in ("", "true", "1", "yes", "false", "0", "no"):
        raise SystemExit(f"IS_LOCAL: '{flag}' is none of true, 1, yes, false, 0, no")
    if flag in ("true", "1", "yes"):
        copy = next((p for p in (KEPT / hub, KEPT / hub.split("/")[-1]) if p.exists()), None)
        if copy is None:
            raise SystemExit(
                f"data: IS_LOCAL is {flag}, but {KEPT / hub} does not exist; write it with save_to_disk, or unset IS_LOCAL"
            )
        return read_copy(copy, splits, name, adapter)[0]
    tables = []
    try:
        for config in (adapter.configs if adapter else ()) or ("",):
            if flag:
                table, kept = datasets.load_dataset(hub, config or None), KEPT / hub / config
                if not kept.exists() and os.environ.get("RANK", "0") == "0":
                    table.save_to_disk(f"{kept}.part")
                    os.rename(f"{kept}.part", kept)  # a copy that is there is whole
                table = table[splits[0]]
            else:
                table = datasets.load_dataset(hub, config or None, split=splits[0])
            tables.append(undecoded(table))
        return datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0]
    except (ConnectionError, FileNotFoundError, ValueError, KeyError, OSError) as error:
        where = f"{name}@FOLDER" if name else "the folder"
        raise SystemExit(
            f"data: '{hub}' is no file or folder here and could not be loaded from the hub ({type(error).__name__}: "
            f"{(str(error) or ' ').splitlines()[0][:120]}); download it and name {where}"
        ) from error


def read_json(path: Path) -> list[dict]:
    """Records of a .jsonl or .json file: a list, or the one list inside a dict (CLEVR's {"info": ..., "questions": [...]})."""
    try:
        text = path.read_text(encoding="utf-8")
        if (
            path.suffix == ".jsonl"
        ):  # not splitlines(), which also cuts at characters that may stand in a JSON string
            content = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            content = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise SystemExit(f"data: '{path}' is not valid JSON in UTF-8 ({error})") from error
    lists = [v for v in content.values() if isinstance(v, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list) or not all(isinstance(r, dict) for r in lists[0]):
        raise SystemExit(f"data: '{path}' should hold one list of records")
    return lists[0]


def undecoded(table):
    """The table with images left as bytes: a broken one then spoils its own row and not the whole batch."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return table


def table_markdown() -> str:
    """The README's table."""
    lines = ["| name | rows | download | splits | task | prompt |", "|---|---|---|---|---|---|"]
    for name, a in ADAPTERS.items():
        if name.startswith("ocean"):  # second names
            continue
        get = f"[{a.hub}](https://huggingface.co/datasets/{a.hub})" if a.hub else a.get
        task = "by row" if a.task == "auto" else a.task
        lines.append(
            f"| `{name}` | {a.rows or ''} | {get} | {', '.join(a.splits)} | {task} | {a.template or 'think'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table_markdown())
