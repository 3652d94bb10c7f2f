"""Every kind of file gives the records that stand in it, or one sentence with the line where it is damaged.

python -m pytest tests/test_files.py
"""

import gzip
import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
from helpers import picture, picture_bytes

import data
from tasks import files

RECORDS = [{"image": f"{i}.png", "problem": f"How many, {i}?", "solution": f"0{i}"} for i in range(3)]


pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(autouse=True)
def pictures(tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
SHEET = "".join(",".join(line) + "\n" for line in [RECORDS[0], *(record.values() for record in RECORDS)])
QUOTED = 'image,problem,solution\n0.png,"How many, 0?",00\n1.png,"How many, 1?",01\n2.png,"How many, 2?",02\n'
NAMES = {str(i): record for i, record in enumerate(RECORDS)}
COLUMNS = {column: {str(i): RECORDS[i][column] for i in range(3)} for column in RECORDS[0]}
TEXTS = {
    "rows.jsonl": LINES,
    "rows.ndjson": LINES,
    "ROWS.JSONL": LINES,
    "blank lines.jsonl": "\n" + LINES.replace("\n", "\r\n\r\n"),
    "bom.jsonl": "\ufeff" + LINES,
    "lines.json": LINES,
    "one list.jsonl": json.dumps(RECORDS),
    "one long list.jsonl": json.dumps(RECORDS, indent=2),
    "one after the other.json": "\n".join(json.dumps(record, indent=2) for record in RECORDS),
    "bom.json": "\ufeff" + json.dumps(RECORDS),
    "list in a dict.json": json.dumps({"info": {"split": "val"}, "questions": RECORDS}),
    "record by record.json": json.dumps(NAMES),
    "pandas.json": json.dumps(COLUMNS),
    "rows.csv": QUOTED,
    "ROWS.CSV": QUOTED,
    "bom.csv": "\ufeff" + QUOTED.replace("\n", "\r\n"),
    "semicolons.csv": SHEET.replace(", ", "@").replace(",", ";").replace("@", ", "),
    "rows.tsv": SHEET.replace(", ", "@").replace(",", "\t").replace("@", ", "),
}


def check(source, count: int = 3):
    rows = data.load_rows(str(source))
    assert len(rows) == count
    for i in range(count):
        row = rows[i]
        assert (row["problem"], row["solution"]) == (f"How many, {i}?", f"0{i}")
        assert [image.width for image in row["images"]] == [20 + i]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", TEXTS)
def test_text_files(name, packed, tmp_path):
    """The answer of record 1 is the text 01, wherever it stands."""
    content = TEXTS[name].encode()
    if packed:
        name, content = f"{name}.gz", gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    check(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.parquet", "ROWS.PARQUET", "rows.arrow", "rows.xlsx"])
def test_tables(name, tmp_path):
    import datasets

    table = datasets.Dataset.from_list(RECORDS)
    if name.endswith("xlsx"):
        pytest.importorskip("openpyxl")
        table.to_pandas().to_excel(tmp_path / name, index=False)
    elif name.endswith("arrow"):
        table.save_to_disk(tmp_path / "saved")
        os.rename(tmp_path / "saved" / "data-00000-of-00001.arrow", tmp_path / name)
    else:
        table.to_parquet(str(tmp_path / name))
    check(tmp_path / name)


def test_cells_of_a_sheet_are_the_texts_that_stand_there(tmp_path):
    cells = ["007", "1.50", "NA", "null", "None", "nan", "N/A", "true", "1e3", '"a, b"', '"a ""b"""', ""]
    (tmp_path / "cells.csv").write_text("problem,solution\n" + "".join(f"p,{cell}\n" for cell in cells))
    records = files.read_file(tmp_path / "cells.csv")
    wanted = ["007", "1.50", "NA", "null", "None", "nan", "N/A", "true", "1e3", "a, b", 'a "b"', None]
    assert list(records["solution"]) == wanted
    rows = data.load_rows(str(tmp_path / "cells.csv"))
    assert [rows[i]["solution"] for i in range(6)] == wanted[:6]
    with pytest.raises(data.BadRow, match="no answer"):
        rows[11]


def test_a_cell_may_be_large_and_hold_lines(tmp_path):
    """A picture of a megabyte in base64: Python's own csv module stops at 131,072 characters."""
    long = "x" * 1_000_000
    (tmp_path / "large.tsv").write_text(f'problem\tsolution\textra\n"a\nb"\t1\t{long}\n')
    record = files.read_file(tmp_path / "large.tsv")[0]
    assert (record["problem"], record["extra"]) == ("a\nb", long)


DAMAGED = {
    "cut.jsonl": ('{"a": 1}\n\n{"a": "b', r"is not valid JSON in UTF-8 \(line 3: Unterminated string"),
    "comma.jsonl": ('{"a": 1}\n{"a": 1},\n{"a": 1}', r"\(line 2: Expecting value: line 2 column 9"),
    "brace.jsonl": ('{"a": 1}\n{"a": 1\n{"a": 1}\n{"a": 1}', r"\(line 2: Expecting ',' delimiter: line 3"),
    "list.json": ('[{"a": 1},\n{"a": 1},\n{"a": }]', r"\(Expecting value: line 3 column 7"),
    "utf16.jsonl": (LINES.encode("utf-16"), "is not valid JSON in UTF-8 .*codec can't decode"),
    "cut.jsonl.gz": (gzip.compress(LINES.encode())[:-20], "is not valid JSON in UTF-8 .*end-of-stream"),
    "no.jsonl.gz": (LINES, "is not valid JSON in UTF-8 .*gzip"),
    "values.json": ("[1, 2]", "should hold one list of records"),
    "value.json": ("3", "should hold one list of records"),
    "wide.csv": ("a,b\n1,2\n1,2\n1,2,3\n", r"cannot be read \(.*Expected 2 fields in line 4, saw 3\)"),
    "first.csv": ("a,b\n1,2,3\n1,2\n", "has more cells in line 2 than columns in line 1"),
    "quote.csv": ('a,b\n1,2\n1,"2\n3,4\n', r"cannot be read \(.*EOF inside string starting at row 2\)"),
    "latin.csv": (b"a,b\n1,\xfc\n", "is not in UTF-8 .*; save it in UTF-8"),
    "utf16.tsv": ("a\tb\n1\t2\n".encode("utf-16"), "is not in UTF-8 .*; save it in UTF-8"),
    "no.xlsx": ("a,b\n", "cannot be read"),
    "no.parquet": ("a,b\n", r"cannot be read \(.*\); is the file complete\?"),
    "no.arrow": ("a,b\n", r"cannot be read \(.*\); is the file complete\?"),
    "no.tar": ("a,b\n", "is no whole, unpacked tar"),
    "empty.jsonl": ("", "holds no rows"),
    "empty.csv": ("", "holds no rows"),
    "header.tsv": ("a\tb\n", "holds no rows"),
    "rows.zip": ("", "is no .json, .jsonl, .ndjson, .csv, .tsv, .xlsx, .parquet, .arrow, .tar file, nor a"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence(name, tmp_path):
    content, words = DAMAGED[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match=f"^data: '.*{name}'.* {words}") as stopped:
        data.load_rows(str(tmp_path / name))
    assert "\n" not in str(stopped.value) and len(str(stopped.value)) < 500


def test_a_file_that_has_changed_is_read_again(tmp_path):
    """datasets keeps what it has read; here the new file has the time of the old one."""
    for name in ("a.csv", "a.tsv"):
        for answer in ("1", "20"):
            mark = "," if name == "a.csv" else "\t"
            (tmp_path / name).write_text(f"problem{mark}solution\np{mark}{answer}\n")
            os.utime(tmp_path / name, (1e9, 1e9))
            assert data.load_rows(str(tmp_path / name))[0]["solution"] == answer


def test_100_000_lines_take_seconds(tmp_path):
    record = {"problem": "How many items are there?", "thinking": "one and " * 20, "labels": {"a": [1, 2]}}
    lines = [json.dumps(record | {"solution": i}) for i in range(100_000)]
    (tmp_path / "large.jsonl").write_text("\n".join(lines))
    start = time.perf_counter()
    rows = data.load_rows(str(tmp_path / "large.jsonl"))
    assert rows[99_999]["solution"] == "99999" and time.perf_counter() - start < 10


# -----------------------------------------------------------------------------
# folders
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["metadata.csv", "metadata.jsonl", "train/metadata.csv", "anything.csv", "x/a.tsv"]
)
def test_a_folder_with_one_list(name, tmp_path):
    """Also an imagefolder: file_name is a path beside the metadata."""
    folder = tmp_path / "set" / name
    folder.parent.mkdir(parents=True)
    for number in range(3):
        picture(number).save(folder.parent / f"{number}.png")
    column = "file_name" if "metadata" in name else "image"
    text = LINES if name.endswith("jsonl") else TEXTS["rows" + folder.suffix]
    folder.write_text(text.replace('"image"', f'"{column}"').replace("image", column, 1))
    (tmp_path / "set" / "README.md").write_text("A set.")
    if "metadata" in name:
        (tmp_path / "set" / "notes.json").write_text('[{"problem": "another", "solution": "list"}]')
    check(tmp_path / "set")


def test_an_imagefolder_with_splits_and_several_pictures_to_a_row(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        for number in range(3):
            picture(number).save(folder / f"{number}.png")
        record = {"file_names": ["0.png", "2.png"], "problem": "p", "solution": split}
        (folder / "metadata.jsonl").write_text(json.dumps(record))
    row = data.load_rows(str(tmp_path / "set"), "test")[0]
    assert row["solution"] == "test" and [image.width for image in row["images"]] == [20, 22]
    with pytest.raises(SystemExit, match="has the splits test, train, not 'validation'"):
        data.load_rows(str(tmp_path / "set"), "validation")
    # a name before it is the name of the column, as in datasets
    (tmp_path / "set" / "test" / "metadata.jsonl").unlink()
    text = "image_file_name,problem,solution\n1.png,p,4\n"
    (tmp_path / "set" / "test" / "metadata.csv").write_text(text)
    row = data.load_rows(str(tmp_path / "set"), "test")[0]
    assert row["solution"] == "4" and [image.width for image in row["images"]] == [21]


def test_a_folder_with_a_file_for_each_split(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"clean_{split}.csv").write_text(f"problem,solution\np,{split}\n")
    assert data.load_rows(str(tmp_path), "val")[0]["solution"] == "val"
    (tmp_path / "other.jsonl").write_text('{"problem": "p", "solution": "1"}')
    assert data.load_rows(str(tmp_path))[0]["solution"] == "train"
    for split in ("train", "val"):
        (tmp_path / f"clean_{split}.csv").rename(tmp_path / f"{split}_clean.csv")
    with pytest.raises(
        SystemExit, match=r"several files of records \(other.jsonl, train_clean.csv, val_clean.csv\)"
    ):
        data.load_rows(str(tmp_path))
    for file in tmp_path.glob("*.*"):
        file.unlink()
    with pytest.raises(SystemExit, match="holds no .json, .* file and is none of save_to_disk"):
        data.load_rows(str(tmp_path))


def test_a_folder_of_arrow_files(tmp_path):
    """As the cache of datasets has them."""
    import datasets

    for split in ("train", "test"):
        table = datasets.Dataset.from_list([{"problem": "p", "solution": split}])
        table.save_to_disk(tmp_path / "saved" / split)
        (tmp_path / "set").mkdir(exist_ok=True)
        saved = tmp_path / "saved" / split / "data-00000-of-00001.arrow"
        os.rename(saved, tmp_path / "set" / f"parquet-{split}.arrow")
    rows = data.load_rows(str(tmp_path / "set"), "test")
    assert len(rows) == 1 and rows[0]["solution"] == "test"


# -----------------------------------------------------------------------------
# webdataset
# -----------------------------------------------------------------------------


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def as_json(**record) -> bytes:
    return json.dumps(record).encode()


MEMBERS = {
    "data/0.png": picture_bytes(0),
    "data/0.json": as_json(problem="How many, 0?", solution="00"),
    # another suffix, another order, other columns: datasets' own reader refuses each of these
    "data/1.json": as_json(question="How many, 1?", answer="01", image="1.jpg", more=[1]),
    "data/1.jpg": picture_bytes(1, "JPEG"),
    "data/2.question.txt": b"How many, 2?",
    "data/2.answer.txt": b"02",
    "data/2.PNG": picture_bytes(2),
    "README": b"no record",
}


def test_webdataset(tmp_path):
    write_tar(tmp_path / "rows.tar", {name: MEMBERS[name] for name in list(MEMBERS)[:2]})
    check(tmp_path / "rows.tar", 1)
    tar = files.TarRecords([write_tar(tmp_path / "mixed.tar", MEMBERS)])
    assert len(tar) == 3
    wanted = {"__key__": "data/1", "question": "How many, 1?", "answer": "01", "image": "1.jpg", "more": [1]}
    record = tar[1]
    assert record.pop("images") == [{"bytes": picture_bytes(1, "JPEG"), "path": "data/1.jpg"}]
    assert record == wanted
    assert tar[2]["question"] == "How many, 2?" and tar[2]["answer"] == "02"
    assert set(tar.column_names) == {
        "problem",
        "solution",
        "question",
        "answer",
        "image",
        "images",
        "more",
        "__key__",
    }


def test_webdataset_with_several_pictures_and_a_chat(tmp_path):
    turns = [{"from": "human", "value": "<image><image>How many?"}, {"from": "gpt", "value": "3"}]
    members = {
        "a.0.png": picture_bytes(0),
        "a.1.png": picture_bytes(1),
        "a.json": as_json(id="a", image=["a.0.png", "a.1.png"], conversations=turns),
    }
    row = data.load_rows(str(write_tar(tmp_path / "rows.tar", members)))[0]
    assert (row["id"], row["problem"], row["solution"]) == ("a", "How many?", "3")
    assert [image.width for image in row["images"]] == [20, 21]


def test_a_folder_of_tars(tmp_path):
    """Shards of two splits, with the same names in each."""
    for split, count in (("train", 2), ("test", 1)):
        for shard in range(count):
            members = {"0.png": picture_bytes(0), "0.json": as_json(problem="p", solution=f"{split} {shard}")}
            write_tar(tmp_path / "set" / f"{split}-{shard:06d}.tar", members)
    rows = data.load_rows(str(tmp_path / "set"))
    assert [rows[i]["solution"] for i in range(len(rows))] == ["train 0", "train 1"]
    assert data.load_rows(str(tmp_path / "set"), "test")[0]["solution"] == "test 0"


def test_a_damaged_record_in_a_tar_spoils_its_own_row(tmp_path):
    members = {"0.json": as_json(problem="p", solution="1"), "1.json": b'{"problem"', "2.txt": b"\xff"}
    rows = data.load_rows(str(write_tar(tmp_path / "rows.tar", members)))
    assert rows[0]["solution"] == "1"
    for i in (1, 2):
        with pytest.raises(data.BadRow, match="cannot be read"):
            rows[i]
    write_tar(tmp_path / "packed.tar.gz", members, "w:gz")
    with pytest.raises(SystemExit, match="is no whole, unpacked tar"):
        data.load_rows(str(tmp_path / "packed.tar.gz"))
