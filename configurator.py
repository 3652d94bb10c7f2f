"""Override the knobs of a script: `train.py configs/a.py configs/b.py --seed=2`, left to right, the last one wins.

A knob is a lower_case literal assigned between the two ruler lines of the script's config block. We read the
names from the source, since globals() also holds imports and functions. Every problem ends the run with one sentence.
"""

import ast
import difflib
import os
import re
import runpy
from contextlib import suppress
from pathlib import Path


def find_block(source: str) -> tuple[str, dict]:
    """The text of the config block of the script at path `source`, and its knobs as {name: default}, in block order."""
    lines, defaults = Path(source).read_text(encoding="utf-8").split("\n"), {}
    rulers = [i for i, line in enumerate(lines, 1) if re.fullmatch(r"# ?-{60,}\s*", line)]
    # boxed headings use rulers too, so the block is the first stretch between two rulers in which a knob is assigned
    for top, bottom in zip(rulers, rulers[1:], strict=False):
        for node in ast.parse("\n".join(lines)).body:
            name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else ""
            if name.islower() and name[0] != "_" and top < node.lineno < bottom:
                with suppress(
                    ValueError
                ):  # a computed value is not a knob; overriding it fails loudly as unknown
                    defaults[name] = ast.literal_eval(node.value)
        if defaults:
            return "\n".join(lines[top : bottom - 1]), defaults
    raise SystemExit(
        f"{source} has no config block: no knob is assigned between two '# ---...' rulers of 60 dashes"
    )


def fit(value, default):
    """`value` in the type of `default` (int is promoted to float); ValueError naming the expected type otherwise."""
    plain = default is None  # then the type is free, as long as the value can be written to config.json
    number = type(value) in (int, float)  # not isinstance: bool is an int in Python, not to us
    if (
        number and not -1e308 < value < 1e308
    ):  # nan and inf pass every type check and poison the run much later
        raise ValueError("a finite number")
    if isinstance(default, float) and number:
        return float(value)
    if isinstance(value, list | tuple) and (plain or isinstance(default, list | tuple)):
        kinds = default or [
            None
        ]  # the length is free: surplus elements are checked against the last default element
        return type(value if plain else default)(
            fit(v, kinds[min(i, len(kinds) - 1)]) for i, v in enumerate(value)
        )
    if isinstance(value, dict) and (plain or isinstance(default, dict)):
        return {str(k): fit(v, (default or {}).get(k)) for k, v in value.items()}
    if type(value) is type(default) or plain and type(value) in (bool, int, float, str):
        return value
    kind = "bool (True or False)" if isinstance(default, bool) else type(default).__name__
    raise ValueError("plain data" if plain else f"of type {kind}")


def configure(namespace: dict, argv: list[str], source: str, rank: int | None = None) -> dict:
    """Apply config files and --key=value from `argv` to `namespace`; returns all knobs as a dict in block order.

    Called first under the main guard: `config = configure(globals(), sys.argv[1:], __file__)`. Only rank 0 (`rank`, or
    else environment variable RANK) prints, and only what changed. Raises SystemExit, one sentence, on any bad input.
    """
    block, defaults = find_block(source)
    config, origin, talk = dict(defaults), {}, int(os.environ.get("RANK", 0) if rank is None else rank) == 0
    if "--help" in argv or "-h" in argv:  # the block with its comments is the manual
        raise SystemExit(print(block) if talk else None)  # print returns None, which is exit code 0
    for arg in argv:
        key, equals, text = arg.partition("=")  # at the first '=' only: --name=a=b is the string 'a=b'
        if arg.startswith("--") and equals:
            where, values = (
                "command line",
                {key[2:]: text},
            )  # a string knob keeps the text, so --name=123 is '123'
            if not isinstance(defaults.get(key[2:]), str):
                with suppress(
                    ValueError, SyntaxError, TypeError, MemoryError, RecursionError
                ):  # no literal: keep text
                    values[key[2:]] = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        elif arg.startswith("-"):
            raise SystemExit(
                f"cannot read '{arg}': knobs are set as --key=value, with two dashes and an equals sign"
            )
        elif not arg.endswith(".py") or not Path(arg).is_file():
            raise SystemExit(f"config file '{arg}' is not an existing .py file (looked in {Path.cwd()})")
        else:
            try:
                where, values = arg, runpy.run_path(arg)
            except (SyntaxError, NameError) as error:
                raise SystemExit(f"config file {arg} does not run: {type(error).__name__}: {error}") from None
            names = [n for n in ast.walk(ast.parse(Path(arg).read_bytes())) if isinstance(n, ast.Name)]
            stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}  # not what it imports or defines
            values = {k: v for k, v in values.items() if k in stored and k[0] != "_"}
        for name, value in values.items():
            if name not in defaults:
                close = "".join(f"did you mean '{k}'? " for k in difflib.get_close_matches(name, defaults, 1))
                raise SystemExit(f"unknown knob '{name}' in {where}; {close}--help lists every knob")
            try:
                config[name], origin[name] = fit(value, defaults[name]), where
            except ValueError as error:
                raise SystemExit(f"knob '{name}' must be {error}, got {value!r} in {where}") from None
    namespace.update(config)
    for name in [n for n in defaults if talk and config[n] != defaults[n]]:
        print(f"{name}: {defaults[name]!r} -> {config[name]!r} ({origin[name]})")
    return config
