"""A user's own reward or metric: what it is given, and what its mistakes become.

Two kinds of functions, told apart by the names of their parameters; docs/rewards.md has examples:

    f(completion, row) -> number         one completion; row: the columns of the data set, and our fields
    f(completions, **kwargs) -> numbers  lists in, a list out, as functions for TRL, R1-V and VLM-R1 are
                                         written; called once for all completions of a prompt

A function runs in a process of its own (rewards.Scorer). Pictures and other heavy values stay behind in the
main process until a function looks at one: then the group is scored again with all that its row holds, and
from then on the pictures travel with every group.

Whatever goes wrong in a function is one sentence with its name, the row and the user's line.
"""

import asyncio
import datetime
import importlib
import inspect
import io
import numbers
import os
import traceback

from PIL import Image

from tasks.pictures import FORMATS

CONTRACT = (
    "a reward is f(completion, row) -> a finite number, or f(completions, **kwargs) -> a list of finite "
    "numbers, with None where it does not apply"
)
NOT_APPLIED = "this step was not applied"
HEAVY = 10_000  # characters or items: longer values stay behind, as pictures do
NOTE_BYTES = 300
note = None  # of this process, in shared memory: which reward of which row it is at


class GivesUp(BaseException):
    """Raised while scoring when its time is up; no Exception, which a user's reward may catch."""


class LeftBehind(BaseException):
    """Raised by a row whose value is in the main process; no Exception, which a user's reward may catch."""


class Broken(Exception):
    """Arguments: what a user's function did against CONTRACT, and the completion."""


def load(name: str):
    """The function that "module:function" names.

    Raises ValueError for a module that cannot be imported, and for something that can be called neither with
    (completion, row) nor with (completions=...).
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # the module is the user's: anything can happen in it
        raise ValueError(
            f"reward {name!r} cannot be loaded ({what_happened(error)}); "
            "module:function needs module.py beside the script"
        ) from error
    if not callable(found):
        raise ValueError(f"reward {name!r} is no function but {short(found)}; {CONTRACT}")
    if takes_lists(found):
        return found
    try:
        inspect.signature(found).bind("completion", {})
    except TypeError as error:
        wanted = inspect.signature(found)
        raise ValueError(f"reward {name!r} is {function}{wanted} ({error}); {CONTRACT}") from error
    except ValueError:  # of a function written in C nothing is known
        pass
    return found


def takes_lists(function) -> bool:
    """Is it written as for TRL, with lists of prompts and completions?"""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of a function written in C nothing is known
        return False
    return "completions" in parameters or "prompts" in parameters


def own_values(name: str, function, texts: list[str], row: dict, left=()) -> list[float | None]:
    """What the function gives for each completion of a row; None where it does not apply.

    `left`: names of columns and fields that have stayed in the main process (see lighten). Raises LeftBehind
    if the function looks at one of them; SystemExit, one sentence, if it raises, exits or breaks CONTRACT.
    """
    place = f"reward {name!r} on row {row.get('id')}"
    if note is not None:
        note.value = f"{os.getpid()} {place}".encode(errors="replace")[:NOTE_BYTES]
    try:
        if takes_lists(function):
            return list_values(function, texts, row, left)
        fields = fields_of(row, left)
        return [one_value(function, text, Row(fields, left)) for text in texts]
    except Broken as broken:
        problem, text = broken.args
        raise SystemExit(
            f"{place}: {problem}; {CONTRACT}; {NOT_APPLIED}. The completion: {text[:200]!r}"
        ) from broken
    finally:
        if note is not None:
            note.value = b""


def one_value(function, text: str, row: "Row") -> float:
    """f(completion, row), checked. Raises Broken."""
    value, problem = call(function, row, text, row)
    if not problem and finite(value) is None:
        problem = f"returned {short(value)}"
    if problem:
        raise Broken(problem, text)
    return finite(value)


def call(function, row: "Row", *args, **kwargs) -> tuple:
    """(What the function returns, "") or (None, what went wrong). Raises LeftBehind if it looked for that."""
    value, problem = None, ""
    try:
        value = function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
    except (GivesUp, KeyboardInterrupt):
        raise
    except BaseException as error:
        problem = what_happened(error)
        if kwargs and isinstance(error, KeyError):
            problem += f", it was given {listed(kwargs)}"
    if row.asked:  # even if the function has caught LeftBehind
        raise LeftBehind
    return value, problem


# -----------------------------------------------------------------------------
# f(completion, row)
# -----------------------------------------------------------------------------


class Row(dict):
    """What a function sees of its row: a copy, in which some values may have been `left` behind.

    To look at one of those raises LeftBehind, and so does what takes the row as a whole (items, copy, ...).
    """

    def __init__(self, fields: dict, left=()):
        super().__init__(dict.fromkeys(left, "(a picture or another heavy value)") | fields)
        self.left = {name for name in left if name not in fields}
        self.asked = False

    def ask(self):
        self.asked = True
        raise LeftBehind

    def __getitem__(self, name):
        if name in self.left:
            self.ask()
        return super().__getitem__(name)

    def __missing__(self, name):
        raise KeyError(Unquoted(f"{name!r}, the row has {listed(self)}"))

    def get(self, name, default=None):
        if name in self:
            return self[name]
        return default


def of_the_whole(method):
    """A dict's method for Row: asks if anything has been left behind."""

    def asking(row, *args):
        if row.left:
            row.ask()
        return method(row, *args)

    return asking


# with an __iter__ of its own, dict(row) and {**row} come by __getitem__
for method in ("__iter__", "__or__", "items", "values", "copy", "pop", "popitem", "setdefault"):
    setattr(Row, method, of_the_whole(getattr(dict, method)))


class Unquoted(str):
    """KeyError shows the repr of its argument."""

    __repr__ = str.__str__


def fields_of(row: dict, left=()) -> dict:
    """The columns of the data set under their own names; over them the fields of our row that hold something.

    "columns" is the record alone, as the data set has it.
    """
    columns = opened_columns(row)
    ours = {name: value for name, value in row.items() if value or name not in columns}
    ours["columns"] = columns
    if "columns" in left:
        del ours["columns"]
    # our pictures may have been left behind while a column of that name, with their paths, is here
    return {name: value for name, value in columns.items() if name not in left} | ours


def opened_columns(row: dict) -> dict:
    """The record of a row, with stored pictures opened, as the datasets library gives them."""
    return {name: opened(value) for name, value in (row.get("columns") or {}).items()}


def opened(value):
    """A PIL image where the value is {"bytes", "path"}, the Hugging Face layout, or a list of such."""
    if isinstance(value, list):
        return [opened(one) for one in value]
    if not isinstance(value, dict) or set(value) != {"bytes", "path"} or not value["bytes"]:
        return value
    try:
        return Image.open(io.BytesIO(value["bytes"]), formats=FORMATS)
    except (OSError, Image.DecompressionBombError):  # sound has this layout, too
        return value


def lighten(row: dict) -> tuple[dict, tuple[str, ...]]:
    """The row without its heavy values, and the names of what was left out."""
    columns = row.get("columns") or {}
    left = [name for name, value in columns.items() if is_heavy(value)]
    if isinstance(columns.get("prompt"), str) and "prompt" in left:
        left.remove("prompt")  # `arguments` must know that it is a text
    light = row | {"columns": {name: value for name, value in columns.items() if name not in left}}
    if left:
        left.append("columns")
    if row.get("images"):
        left.append("images")
        del light["images"]
    return light, tuple(left)


def is_heavy(value) -> bool:
    """Is it long, or bytes, a picture, a tensor or another object? Lists are judged by their first items."""
    if isinstance(value, dict):
        return any(map(is_heavy, value.values()))
    if isinstance(value, list | tuple):
        return len(value) > HEAVY or any(map(is_heavy, value[:20]))
    if isinstance(value, str):
        return len(value) > HEAVY
    is_scalar = isinstance(value, numbers.Number) or getattr(value, "shape", None) == ()
    is_time = isinstance(value, datetime.date | datetime.time | datetime.timedelta)
    return not (value is None or is_scalar or is_time)


# -----------------------------------------------------------------------------
# f(completions, **kwargs): functions for TRL, R1-V and VLM-R1
# -----------------------------------------------------------------------------

NOT_HERE = {  # what TRL hands to functions beside lists of texts and columns
    "completion_ids": "which are not sent to the processes that score; completions has the texts",
    "trainer_state": "which there is in TRL alone",
}


def list_values(function, texts: list[str], row: dict, left=()) -> list[float | None]:
    """The function called once for all completions of a row. Raises Broken."""
    seen = Row({}, left)
    given = arguments(texts, row, left, seen)
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        is_needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if is_needed and parameter.name not in given:
            why = NOT_HERE.get(parameter.name, f"which is not among {listed(given)}")
            raise Broken(f"it takes {parameter.name!r}, {why}", texts[0])
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        given = {parameter.name: given[parameter.name] for parameter in parameters if parameter.name in given}

    value, problem = call(function, seen, **given)
    values = value.tolist() if hasattr(value, "tolist") else value
    if not problem and (not isinstance(values, list | tuple) or len(values) != len(texts)):
        problem = f"returned {short(value)} for {len(texts)} completions"
    if problem:
        raise Broken(problem, texts[0])
    for one, text in zip(values, texts, strict=True):
        if one is not None and finite(one) is None:
            raise Broken(f"returned a list with {short(one)} in it", text)
    return [None if one is None else finite(one) for one in values]


def arguments(texts: list[str], row: dict, left: tuple, seen: Row) -> dict:
    """All keyword arguments: lists, one item for each completion.

    Columns as the data set has them, for R1-V's `solution` with its <answer> tags, and our fields where no
    column has their name. Completions are chat messages, as in TRL, R1-V and VLM-R1, or plain texts if the
    data set has plain prompts.
    """
    columns = opened_columns(row)
    prompt = columns.get("prompt")
    if not prompt:
        prompt = [*(row.get("context") or []), {"role": "user", "content": row["problem"]}]
    completions = texts
    if not isinstance(prompt, str):
        completions = [[{"role": "assistant", "content": text}] for text in texts]

    values = row | columns
    values.setdefault("image_path", picture_paths(columns))  # these two VLM-R1 adds itself
    values.setdefault("accu_reward_method", "default")
    given = {name: [value] * len(texts) for name, value in values.items()}
    given |= {name: Later(seen) for name in left if name not in columns}
    for name in ("columns", "prompt", "completion", "completion_ids"):
        given.pop(name, None)
    given["prompts"] = Later(seen) if "prompt" in left else [prompt] * len(texts)
    given["completions"] = completions
    return given | {"log_extra": ignore, "log_metric": ignore}


class Later(list):
    """Stands for a list of pictures or other heavy values that were left behind, and asks when it is used."""

    def __init__(self, row: Row):
        super().__init__()
        self.row = row

    def ask(self, *args):
        self.row.ask()

    __getitem__ = __iter__ = __len__ = __contains__ = __add__ = __eq__ = ask


def picture_paths(columns: dict) -> list[str]:
    """The paths of a record's pictures, as they stand there; [] if it holds the pictures themselves."""
    for name in ("image", "images"):
        paths = columns.get(name)
        paths = [paths] if isinstance(paths, str) else paths
        if isinstance(paths, list) and all(isinstance(path, str) for path in paths):
            return paths
    return []


def ignore(*args, **kwargs) -> None:
    """TRL's log_extra and log_metric: what they would log is not logged here."""


# -----------------------------------------------------------------------------
# words for what went wrong
# -----------------------------------------------------------------------------


def finite(value) -> float | None:
    """The value of a finite number: int, float, bool, a numpy scalar, a tensor of no dimension; else None."""
    is_scalar = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    if not is_scalar or isinstance(value, str):
        return None
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch: a complex one
        return None
    return value if abs(value) < 3e38 else None  # what float32 holds; NaN is not smaller


def what_happened(error: BaseException) -> str:
    """ "my_rewards.py, line 12: ZeroDivisionError: division by zero": the innermost line of a user's file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    where = f"{os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}: " if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{os.path.basename(error.filename)}, line {error.lineno}: "
    kind = "it ended the process: SystemExit" if isinstance(error, SystemExit) else type(error).__name__
    try:
        said = " ".join(str(error).split())[:300]
    except Exception:  # the user's class, the user's __str__
        said = ""
    return f"{where}{kind}: {said}" if said else f"{where}{kind}"


HERE = os.path.dirname(os.path.abspath(__file__))
OF_OTHERS = (__file__, os.path.join(HERE, "rewards.py"), os.path.join(HERE, "tasks"), "<frozen")
OF_OTHERS += (os.path.dirname(os.__file__),)


def is_users(file: str) -> bool:
    """Is this a source file neither of this project nor of Python or its packages?"""
    return not file.startswith(OF_OTHERS) and "site-packages" not in file


def short(value) -> str:
    """A value for a sentence: its kind, and what it looks like as far as that is short."""
    try:
        look = " ".join(repr(value).split())
    except Exception:  # the user's class, the user's __repr__
        look = ""
    look = look if len(look) <= 60 else look[:60] + "..."
    return f"{look} ({type(value).__name__})"


def listed(names) -> str:
    """The first of these names, for a sentence."""
    names = [str(name) for name in names.keys()]  # noqa: SIM118 (a Row asks when it is iterated)
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
