"""Override the knobs of a script: `train.py configs/a.py configs/b.py --seed=2`, from left to right.

The last one wins. A knob is a lower_case literal assigned between the two ruler lines of the script's config
block. We read the names from the source, since globals() also holds imports and functions. Every problem ends
the run with one sentence.
"""

import ast
import difflib
import os
import re
import runpy
from pathlib import Path

SCRIPTS = ("train_grpo.py", "train_sft.py", "eval.py", "distill.py")


def configure(namespace: dict, argv: list[str], source: str, rank: int | None = None) -> dict:
    """Apply config files and --key=value from `argv` to `namespace`; returns all knobs in block order.

    Called first under the main guard: `config = configure(globals(), sys.argv[1:], __file__)`. Only rank 0
    (`rank`, or else the environment variable RANK) prints, and only what changed.
    Raises SystemExit, one sentence, on any bad input.
    """
    if rank is None:
        rank = int(os.environ.get("RANK", 0))
    block, defaults = find_block(source)
    if "--help" in argv or "-h" in argv:
        if rank == 0:
            print(block)  # with its comments it is the manual
        raise SystemExit

    config = dict(defaults)
    origin = {}  # knob -> where it was set last
    for arg in argv:
        where, values = read_argument(arg, defaults)
        for name, value in values.items():
            if name not in defaults:
                advice = other_script(name, where, values, source) or suggestion(name, defaults)
                raise SystemExit(f"unknown knob '{name}' in {where}; {advice}")
            try:
                config[name] = fit(value, defaults[name])
            except ValueError as error:
                raise SystemExit(f"knob '{name}' must be {error}, got {value!r} in {where}") from None
            origin[name] = where
    namespace.update(config)
    if rank == 0:
        for name, default in defaults.items():
            if config[name] != default:
                print(f"{name}: {default!r} -> {config[name]!r} ({origin[name]})")
    return config


def find_block(source: str) -> tuple[str, dict]:
    """The text of the config block of the script at path `source`, and its knobs {name: default} in order."""
    text = Path(source).read_text(encoding="utf-8")
    lines = text.split("\n")
    assignments = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    rulers = [number for number, line in enumerate(lines, 1) if re.fullmatch(r"# ?-{60,}\s*", line)]
    # headings use rulers too: the block is the first stretch between two rulers in which a knob is assigned
    for top, bottom in zip(rulers, rulers[1:], strict=False):
        defaults = {}
        for node in assignments:
            name = getattr(node.targets[0], "id", "")
            if top < node.lineno < bottom and name.islower() and not name.startswith("_"):
                try:
                    defaults[name] = ast.literal_eval(node.value)
                except ValueError:
                    continue  # a computed value is not a knob; overriding it fails loudly as unknown
        if defaults:
            return "\n".join(lines[top : bottom - 1]), defaults
    raise SystemExit(
        f"{source} has no config block: no knob is assigned between two '# ---...' rulers of 60 dashes"
    )


def read_argument(arg: str, defaults: dict) -> tuple[str, dict]:
    """Where an argument sets knobs, for the messages, and to what: {name: value}, not checked yet."""
    name, equals, text = arg.partition("=")  # at the first '=' only: --name=a=b is the string 'a=b'
    if arg.startswith("--") and equals:
        name = name[2:]
        return "command line", {name: read_value(text, defaults.get(name))}
    if arg.startswith("-"):
        hint = "knobs are set as --key=value, with two dashes and an equals sign"
        raise SystemExit(f"cannot read '{arg}': {hint}")
    if not arg.endswith(".py") or not Path(arg).is_file():
        raise SystemExit(f"config file '{arg}' is not an existing .py file (looked in {Path.cwd()})")
    return arg, run_file(arg)


def read_value(text: str, default):
    """The literal that `text` spells; the text itself if it spells none, or if the knob is a string."""
    if isinstance(default, str):
        return text  # --name=123 is '123'
    if text in ("true", "false"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def run_file(path: str) -> dict:
    """{name: value} of what a config file assigns; not what it imports, defines or marks as private."""
    try:
        values = runpy.run_path(path)
    except BaseException as error:  # it is a program, which may fail in any way
        if isinstance(error, KeyboardInterrupt):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())  # in one line
        raise SystemExit(f"config file {path} does not run: {what}") from None
    assigned = set()
    for node in ast.walk(ast.parse(Path(path).read_bytes())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assigned.add(node.id)
    return {k: v for k, v in values.items() if k in assigned and not k.startswith("_")}


def other_script(name: str, where: str, values: dict, source: str) -> str:
    """The advice to run the script beside `source` that knows this knob, and of those most of the values."""
    best = ""
    most = 0
    for script in SCRIPTS:
        path = Path(source).with_name(script)
        knobs = find_block(str(path))[1] if path.exists() else {}
        known = len(knobs.keys() & values.keys())
        if name in knobs and known > most:
            best, most = path.name, known
    if best and where.endswith(".py"):
        return f"this is a config of {best}: run {best} {where}"
    return f"it is a knob of {best}" if best else ""


def suggestion(name: str, defaults: dict) -> str:
    close = difflib.get_close_matches(name, defaults, 1)
    if close:
        return f"did you mean '{close[0]}'? --help lists every knob"
    return "--help lists every knob"


def fit(value, default):
    """`value` in the type of `default` (int is promoted to float).

    A knob whose default is None takes any plain data, which is what config.json can hold. Raises ValueError
    that names the expected type.
    """
    is_number = type(value) in (int, float)  # not isinstance: bool is an int in Python, not to us
    if is_number and not -1e308 < value < 1e308:
        raise ValueError("a finite number")  # nan and inf would poison the run much later
    if isinstance(value, list | tuple) and (default is None or isinstance(default, list | tuple)):
        return fit_sequence(value, default)
    if isinstance(value, dict) and (default is None or isinstance(default, dict)):
        kinds = default or {}
        return {str(key): fit(item, kinds.get(key)) for key, item in value.items()}
    if default is None:
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise ValueError("plain data")
    if isinstance(default, float) and is_number:
        return float(value)
    if type(value) is type(default):
        return value
    kind = "bool (True or False)" if isinstance(default, bool) else type(default).__name__
    raise ValueError(f"of type {kind}")


def fit_sequence(value, default):
    """The length is free: surplus elements are checked against the last element of the default."""
    fitted = []
    for i, item in enumerate(value):
        kind = default[min(i, len(default) - 1)] if default else None
        fitted.append(fit(item, kind))
    kind = value if default is None else default
    return tuple(fitted) if isinstance(kind, tuple) else fitted
