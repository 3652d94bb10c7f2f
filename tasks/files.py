"""Files and the hub -> records: the columns of every data set as it has them, whatever it is stored in.

    .json .jsonl .ndjson    one list, or one record after the other; each also as .gz, as .csv and .tsv
    .csv .tsv .xlsx         a table of texts; an empty cell is absent
    .parquet .arrow         as datasets reads them
    .tar                    webdataset: 0001.jpg and 0001.json make one record
    a folder                of parquet files, of save_to_disk, of images beside metadata.csv or .jsonl, or
                            with one of the files above, or one for each split

Parquet, csv and what datasets reads otherwise stay on disk, memory-mapped: 70,000 images take no memory.
"""

import gzip
import itertools
import json
import math
import os
import re
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

from tasks.adapters import ADAPTERS, Adapter

LISTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xlsx")  # files that hold a whole set
SHARDS = (".parquet", ".arrow", ".tar")  # files of which several make a set
PICTURES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")  # members of a tar
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
    """(records, folder that their image paths start from) of a local file or folder.

    `splits`: names of the wanted one. SystemExit for what cannot be read.
    """
    if not path.is_dir():
        return read_file(path), path.parent
    named = named_files(path, name, splits, adapter) if adapter else []
    if named:
        return read_file(named[0]), named[0].parent
    table = read_tables(path, splits, adapter)
    if table is not None:
        return table, path
    file = find_list(path, splits, adapter)
    if file:
        return read_file(file), file.parent
    for kind in (".arrow", ".tar"):
        shards = files_below(path, kind)
        if shards:
            # train-000001.tar, parquet-train.arrow
            words = {file: re.split("[-_.]", file.name) for file in shards}
            names = {file: next(filter(SPLITS.__contains__, words[file]), "") for file in shards}
            shards = of_split(path, names, splits, adapter)
            return TarRecords(shards) if kind == ".tar" else load_table("arrow", shards), path
    raise SystemExit(
        f"data: '{path}' holds no {', '.join((*LISTS, *SHARDS))} file and is none of save_to_disk"
    )


def kind_of(path: Path) -> str:
    """The suffix in lower case without .gz: ".jsonl" of rows.JSONL.gz."""
    return os.path.splitext(path.name.lower().removesuffix(".gz"))[1]


def files_below(path: Path, *kinds: str) -> list[Path]:
    """The files of these kinds in a folder and in its folders."""
    there = itertools.chain(path.glob("*"), path.glob("*/*"))
    return sorted(file for file in there if kind_of(file) in kinds)


def read_file(path: Path):
    """The records of one file. SystemExit, which says where it is damaged, if it cannot be read."""
    kind = kind_of(path)
    if kind not in (*LISTS, *SHARDS):
        raise SystemExit(
            f"data: '{path}' is no {', '.join((*LISTS, *SHARDS))} file, "
            "nor a folder of those or of save_to_disk"
        )
    if kind == ".tar":
        return TarRecords([path])
    if kind in SHARDS:
        return load_table(kind[1:], [path])
    records = read_json(path) if kind in (".json", ".jsonl", ".ndjson") else read_sheet(path, kind)
    return named_as_images(records) if path.name.lower().startswith("metadata.") else records


def read_tables(path: Path, splits: list[str], adapter: Adapter | None):
    """The table of the parquet files or save_to_disk folders below a folder; None if there are none."""
    import datasets

    parquet = sorted(file for file in path.rglob("*") if kind_of(file) == ".parquet")
    parquet = of_configs(path, parquet, adapter)
    saved = [path] if is_saved(path) else sorted(folder for folder in path.glob("*/") if is_saved(folder))
    saved = of_configs(path, saved, adapter)
    if parquet:
        # train-00000-of-00004.parquet
        names = {file: re.split("[-.]", file.name)[0] for file in parquet}
        return load_table("parquet", of_split(path, names, splits, adapter))
    if not saved:
        return None
    if saved != [path]:
        saved = of_split(path, {folder: folder.name for folder in saved}, splits, adapter)
    try:
        return datasets.concatenate_datasets([read_saved(folder, path, splits) for folder in saved])
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise unreadable(path, error) from error


def load_table(kind: str, files: list[Path], **options):
    """The table that datasets makes of files of its kind "parquet", "arrow" or "csv"."""
    import datasets

    # datasets keeps what it has read in its cache, by the name and the time of the files: with their size as
    # the name of the table, a file that has been replaced by one of the same time is read again too
    size = str(sum(file.stat().st_size for file in files))
    paths = [str(file) for file in files]
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs as an error is raised here too
    try:
        return undecoded(datasets.load_dataset(kind, size, data_files=paths, split="train", **options))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:  # pyarrow's are ValueErrors
        raise unreadable(files[0] if len(files) == 1 else files[0].parent, error) from error


def unreadable(path: Path, error: Exception) -> SystemExit:
    """What to raise for a file that a library cannot read: its own first words, and a remedy."""
    while error.__cause__:  # datasets wraps the error of pandas or pyarrow, which names the line
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        return SystemExit(f"data: '{path}' is not in UTF-8 ({error}); save it in UTF-8")
    reason = (str(error) or type(error).__name__).splitlines()[0][:160]
    return SystemExit(f"data: '{path}' cannot be read ({reason}); is the file complete?")


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


def find_list(path: Path, splits: list[str], adapter: Adapter | None) -> Path | None:
    """The one file of LISTS in a folder, or in its folders; None if there is none.

    metadata.csv or metadata.jsonl, which datasets' imagefolder wants beside the images, comes before others.
    SystemExit if there is no telling which.
    """
    files = files_below(path, *LISTS)
    files = [file for file in files if not file.name.startswith(("dataset_", "state", "."))]
    metadata = [file for file in files if file.name.lower().startswith("metadata.")]
    files = metadata or files
    if len(files) > 1:
        # val.json, refcoco_val.json, val/metadata.csv
        names = {file: re.split("[_-]", file.name.split(".")[0])[-1] for file in files}
        if metadata:
            names = {file: file.parent.name for file in files}
        files = of_split(path, names, splits, adapter)
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise SystemExit(f"data: '{path}' holds several files of records ({names}); name one of them")
    return files[0] if files else None


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


def open_text(path: Path):
    """A text file in UTF-8, open for reading, also one packed by gzip; a byte order mark is left out."""
    unpack = gzip.open if path.suffix.lower() == ".gz" else open
    return unpack(path, "rt", encoding="utf-8-sig")


def read_json(path: Path) -> list[dict]:
    """Records of a JSON file; what is no record among them spoils its own row (data.Rows).

    The values of the file, whatever it is called: one record after the other, or one list of them, or a dict
    with one list in it (CLEVR's {"info": ..., "questions": [...]}) or with a record under each of its keys.
    """
    text, place, values = "", 0, []
    space = re.compile(r"\s*")
    try:
        with open_text(path) as file:
            text = file.read()
        place = space.match(text).end()
        while place < len(text):
            value, place = parse_json(text, place)
            values.append(value)
            place = space.match(text, place).end()
    except (ValueError, RecursionError, OSError, EOFError, zlib.error) as error:
        line = (
            text.count("\n", 0, place) + 1
        )  # where the damaged record starts; in a list json's own words say it
        where = f"line {line}: " if text and text[place] != "[" else ""
        raise SystemExit(f"data: '{path}' is not valid JSON in UTF-8 ({where}{error})") from error
    content = values
    if len(values) == 1 and isinstance(values[0], list):
        content = values[0]
    elif len(values) == 1 and kind_of(path) == ".json":
        content = records_of(values[0])
    if content is None or (content and not any(isinstance(record, dict) for record in content)):
        raise SystemExit(f"data: '{path}' should hold one list of records")
    return content


def records_of(whole) -> list | None:
    """The records in the only value of a JSON file; None if it is not known where they are."""
    if not isinstance(whole, dict):
        return None
    lists = [value for value in whole.values() if isinstance(value, list)]
    if lists:
        return lists[0] if len(lists) == 1 else None
    records = list(whole.values())
    if not records or not all(isinstance(record, dict) for record in records):
        return None
    if "0" in records[0]:  # pandas' to_json(): {"problem": {"0": "How many?", "1": ...}, "solution": ...}
        return [{name: column.get(row) for name, column in whole.items()} for row in records[0]]
    return records


def parse_json(text: str, place: int) -> tuple:
    """(value, place behind it) of the JSON that starts at `place` of a text.

    A whole number of over 4,300 digits, which Python refuses, is infinite.
    """
    try:
        return json.JSONDecoder().raw_decode(text, place)
    except json.JSONDecodeError:
        raise
    except ValueError:
        patient = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 400 else math.inf)
        return patient.raw_decode(text, place)


def read_sheet(path: Path, kind: str):
    """The table of a .csv, .tsv or .xlsx file: each cell a text as it stands there, None if it is empty.

    (By themselves pandas and datasets make 7 of 007, and nothing of the answers "None", "NA" and "null".)
    """
    import datasets
    import pandas

    texts = {"keep_default_na": False, "na_values": [""]}
    try:
        if kind == ".xlsx":
            table = pandas.read_excel(path, dtype=str, **texts)
            return datasets.Dataset.from_pandas(table, preserve_index=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            with open_text(path) as file:
                header = file.readline()
            # a spreadsheet of another language writes semicolons
            texts["sep"] = "\t" if kind == ".tsv" else max(",;\t", key=header.count)
            texts |= {"encoding": "utf-8-sig", "index_col": False}
            first = pandas.read_csv(path, nrows=1, dtype=str, **texts)
    except pandas.errors.EmptyDataError:
        return []
    except pandas.errors.ParserWarning as error:
        raise SystemExit(f"data: '{path}' has more cells in line 2 than columns in line 1") from error
    except ImportError as error:
        raise SystemExit(f"data: '{path}': {error}") from error
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise unreadable(path, error) from error
    if first.empty:
        return []
    features = datasets.Features({str(column): datasets.Value("string") for column in first.columns})
    return with_shared_pictures(load_table("csv", [path], features=features, chunksize=1000, **texts))


def with_shared_pictures(table):
    """The table of VLMEvalKit, whose `image` may be the `index` of the row that has the same picture."""
    if not {"index", "image"} <= set(table.column_names):
        return table
    rows = {index: i for i, index in enumerate(table["index"])}

    def look_up(batch: dict) -> dict:
        images = batch.get("image", [])
        return batch | {
            "image": [table[rows[image]]["image"] if image in rows else image for image in images]
        }

    return table.with_transform(look_up)


def named_as_images(records):
    """The records of an imagefolder's metadata, whose columns *file_name and *file_names name images.

    As datasets does it: file_names become "images", left_file_name "left". (file_name has its place in
    data.COLUMNS.)
    """
    columns = getattr(records, "column_names", None)
    columns = columns or {name: None for record in records if isinstance(record, dict) for name in record}
    names = {}
    for column in columns:
        kept = re.fullmatch(r"(?:(.+)_)?file_names?", str(column))
        if kept and column != "file_name":
            names[column] = kept[1] or "images"
    if not names:
        return records
    if hasattr(records, "rename_columns"):
        return records.rename_columns(names)
    return [
        {names.get(name, name): value for name, value in record.items()}
        if isinstance(record, dict)
        else record
        for record in records
    ]


class TarRecords:
    """The records of webdataset's tars: the members of one name, 0001.jpg, 0001.json and so on, are a record.

    The content of the .json gives its columns, every other text one by its suffix, and the pictures are
    "images". They are read from the tars when they are asked for. (datasets' own reader wants the same
    suffixes and the same columns in all of them.) SystemExit for a file that is no tar, or a packed one.
    """

    def __init__(self, paths: list[Path]):
        groups = {}  # (tar, name) -> {suffix: (first byte, number of bytes)}
        for path in paths:
            try:
                with tarfile.open(
                    path, "r:"
                ) as archive:  # ":" = not packed: members are found by their place
                    for member in archive:
                        folder, _, file = member.name.rpartition("/")
                        name, _, suffix = file.partition(".")
                        if member.isfile() and name and suffix:
                            group = groups.setdefault((path, f"{folder}/{name}"), {})
                            group[suffix.lower()] = (member.offset_data, member.size)
            except (tarfile.TarError, OSError) as error:
                raise SystemExit(f"data: '{path}' is no whole, unpacked tar ({error})") from error
        self.groups = list(groups.items())

    def __len__(self):
        return len(self.groups)

    @property
    def column_names(self) -> list[str]:
        """The columns of the first records."""
        columns = {}
        for i in range(min(20, len(self))):
            try:
                columns |= self[i]
            except ValueError:
                continue  # named when its turn comes
        return list(columns)

    def __getitem__(self, i: int) -> dict:
        """Record i. Raises ValueError for one whose texts are not in UTF-8 or no JSON."""
        (path, name), members = self.groups[i]
        record, images = {"__key__": name.strip("/")}, []
        with open(path, "rb") as archive:
            for suffix, (start, size) in members.items():
                archive.seek(start)
                content = archive.read(size)
                if suffix.split(".")[-1] in PICTURES:
                    images.append({"bytes": content, "path": f"{name}.{suffix}"})
                elif suffix == "json":
                    value = json.loads(content)
                    record |= value if isinstance(value, dict) else {"json": value}
                else:
                    record[suffix.removesuffix(".txt")] = content.decode()
        return record | ({"images": images} if images else {})


def undecoded(table):
    """The table with images (sound, video) as bytes: a broken one spoils its own row, not the whole batch."""
    import datasets

    for name, feature in table.features.items():
        if getattr(feature, "decode", False):
            table = table.cast_column(name, type(feature)(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return table
