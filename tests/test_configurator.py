"""The configurator: files and --key=value from left to right, checked against the defaults in the block.

Run: python -m pytest -q tests/test_configurator.py
"""

import json
from pathlib import Path

import pytest

from configurator import configure

RULER = "# " + "-" * 77
BLOCK = """# default config: a toy
learning_rate = 1e-3      # Adam step size
max_iters = 100
name = 'run'
flag = True
betas = (0.9, 0.95)
layers = [1, 2]
weights = {'accuracy': 1.0}
opt = None
beta = 0.04
NOT_A_KNOB = 1
_private = 2
computed = 2 * 3"""
SCRIPT = f'''"""a docstring"""
# {"-" * 70}
# a boxed heading, which is not the config block
# {"-" * 70}
import os
from math import pi
# fmt: off
{RULER}
{BLOCK}
{RULER}
# fmt: on
after = 2
def helper(): pass
'''
KNOBS = ["learning_rate", "max_iters", "name", "flag", "betas", "layers", "weights", "opt", "beta"]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call(*argv, rank=..., a="text of a.py") configures the toy script; call.namespace has its globals."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(SCRIPT)

    def run(*argv, rank=0, **files):
        for name, text in files.items():
            Path(name + ".py").write_text(text)
        run.namespace = {"untouched": 1}
        return configure(run.namespace, list(argv), "script.py", rank)

    return run


def refusal(call, *argv, **files):
    """The sentence with which the call ends the run; one line, exit code 1 (as SystemExit(str) gives)."""
    with pytest.raises(SystemExit) as stop:
        call(*argv, **files)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def test_defaults_in_block_order(call, capsys):
    config = call()
    assert list(config) == KNOBS
    assert config["betas"] == (0.9, 0.95) and config["opt"] is None and config["flag"] is True
    assert call.namespace == {"untouched": 1, **config}
    assert capsys.readouterr().out == ""
    assert json.loads(json.dumps(config))["betas"] == [0.9, 0.95]


# -----------------------------------------------------------------------------
# what a configurator built on executing files and argv is known to get wrong, one test each
# -----------------------------------------------------------------------------


def test_typo_in_a_file_is_refused_with_a_suggestion(call):
    message = refusal(call, "x.py", x="learning_rat = 1e-3")
    assert "'learning_rat' in x.py" in message and "did you mean 'learning_rate'?" in message


def test_wrong_type_in_a_file_is_refused(call):
    message = refusal(call, "x.py", x="max_iters = 'many'")
    assert message == "knob 'max_iters' must be of type int, got 'many' in x.py"


def test_int_is_promoted_to_float(call):
    value = call("--learning_rate=1")["learning_rate"]
    assert value == 1.0 and type(value) is float
    assert type(call("x.py", x="beta = 0")["beta"]) is float


def test_string_knob_keeps_the_text(call):
    assert call("--name=123")["name"] == "123"
    assert call("--name=a=b")["name"] == "a=b"
    assert call("--name=None")["name"] == "None"
    assert call("--name=")["name"] == ""
    assert "type str" in refusal(call, "x.py", x="name = None")


@pytest.mark.parametrize("text, value", [("True", True), ("False", False), ("true", True), ("false", False)])
def test_bool_spellings(call, text, value):
    assert call("--flag=" + text)["flag"] is value


@pytest.mark.parametrize("text", ["0", "1", "yes", "TRUE", "off", "", "None", "1.0"])
def test_bool_misspellings_name_the_legal_values(call, text):
    message = refusal(call, "--flag=" + text)
    assert "'flag'" in message and "True or False" in message and "command line" in message


def test_tuples_are_applied_and_logged(call, capsys):
    config = call("--betas=(0.8,1)")
    assert config["betas"] == (0.8, 1.0) and type(config["betas"]) is tuple
    assert capsys.readouterr().out == "betas: (0.9, 0.95) -> (0.8, 1.0) (command line)\n"
    assert call("--betas=[0.8,0.9,0.7]")["betas"] == (0.8, 0.9, 0.7)
    assert call("--layers=(3,)")["layers"] == [3]
    assert call("--layers=[]")["layers"] == []
    assert "'betas'" in refusal(call, "--betas=(0.8,'x')")
    assert "'betas'" in refusal(call, "--betas=0.8")


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3),
        ("out/last", "out/last"),
        ("None", None),
        ("(1,'a')", (1, "a")),
        ("false", False),
        ("{'a': [1]}", {"a": [1]}),
    ],
)
def test_none_default_takes_any_plain_value(call, text, value):
    assert call("--opt=" + text)["opt"] == value


def test_none_default_refuses_what_json_cannot_hold(call):
    assert "'opt'" in refusal(call, "x.py", x="import os\nopt = os")
    assert "'opt'" in refusal(call, "--opt=1+2j")


def test_unknown_flag_and_missing_file(call):
    assert "unknown knob 'nope' in command line" in refusal(call, "--nope=1")
    assert "'nope.py'" in refusal(call, "nope.py")


# -----------------------------------------------------------------------------
# order, files, output
# -----------------------------------------------------------------------------


def test_last_wins_over_two_files_and_flags(call, capsys):
    files = {"a": "beta = 0.1\nmax_iters = 1", "b": "beta = 0.2"}
    config = call("a.py", "b.py", "--max_iters=7", **files)
    assert (config["beta"], config["max_iters"]) == (0.2, 7)
    capsys.readouterr()
    assert call("--beta=0.3", "b.py", "a.py")["beta"] == 0.1
    assert capsys.readouterr().out == "max_iters: 100 -> 1 (a.py)\nbeta: 0.04 -> 0.1 (a.py)\n"
    assert call("a.py", "--beta=0.04", "--max_iters=100")["beta"] == 0.04
    assert capsys.readouterr().out == ""  # back at the defaults: nothing changed, nothing printed


COMPUTING = """
import os
from math import pi, sqrt
_per_gpu = 4
max_iters = _per_gpu * 8
def double(z):
    beta_twice = 2 * z
    return beta_twice
beta = double(0.01)
"""


def test_file_may_import_compute_and_use_private_names(call):
    config = call("x.py", x=COMPUTING)
    assert config["max_iters"] == 32 and config["beta"] == 0.02 and list(config) == KNOBS


def test_only_rank_zero_prints(call, capsys, monkeypatch):
    call("--beta=0.0", rank=1)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "3")
    call("--beta=0.0", rank=None)
    assert capsys.readouterr().out == ""
    call("--beta=0", rank=0)
    assert capsys.readouterr().out == "beta: 0.04 -> 0.0 (command line)\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_the_config_block(call, capsys, flag):
    with pytest.raises(SystemExit) as stop:
        call("--beta=1", flag)
    assert not stop.value.code
    assert capsys.readouterr().out == BLOCK + "\n"


@pytest.mark.parametrize("argv", [["--beta", "0.1"], ["-beta=0.1"], ["--beta"], ["-b"]])
def test_other_flag_styles_get_a_hint(call, argv):
    assert "--key=value" in refusal(call, *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--learning_rate=1e999"],
        ["--learning_rate=nan"],
        ["--learning_rate=-1e999"],
        ["--betas=(1e999,)"],
        ["--opt=1e999"],
        ["--learning_rate=True"],
        ["--max_iters=True"],
        ["--max_iters=1.0"],
        ["--max_iters=1e3"],
        ["--max_iters="],
        ["--beta=0,1"],
        ["--weights=1"],
        ["--weights={'a': 1e999}"],
        ["--opt=[1e999]"],
    ],
)
def test_bad_values_name_the_knob(call, argv):
    assert f"knob '{argv[0][2:].split('=')[0]}' must be" in refusal(call, *argv)


def test_nan_from_a_file_is_refused(call):
    assert "finite" in refusal(call, "x.py", x="beta = float('nan')")


@pytest.mark.parametrize("name", ["os", "pi", "helper", "after", "NOT_A_KNOB", "_private", "computed"])
def test_what_is_not_a_knob_cannot_be_set(call, name):
    assert f"unknown knob '{name}'" in refusal(call, f"--{name}=1")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("beta = true", "NameError"),
        ("beta = = 1", "SyntaxError"),
        ("beta = 1 / 0", "ZeroDivisionError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("open('/no/such/file')", "FileNotFoundError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("def f(): f()\nf()", "RecursionError"),
        ("beta = 1\0", "null bytes"),
    ],
)
def test_file_that_does_not_run_is_one_sentence(call, text, error):
    sentence = refusal(call, "x.py", x=text)
    assert sentence.startswith("config file x.py does not run: ") and error in sentence


def test_a_folder_is_no_config_file(call):
    Path("x.py").mkdir()
    assert "'x.py' is not an existing .py file" in refusal(call, "x.py")


@pytest.mark.parametrize(
    ("script", "config", "owner"),
    [
        ("train_grpo.py", "tiny_sft.py", "train_sft.py"),
        ("train_sft.py", "tiny.py", "train_grpo.py"),
        ("train_sft.py", "ablate_two_updates.py", "train_grpo.py"),
        ("eval.py", "tiny.py", "train_grpo.py"),
        ("train_grpo.py", "tiny_eval.py", "eval.py"),
        ("eval.py", "distill.py", "distill.py"),
    ],
)
def test_a_config_of_another_script_is_recognised(script, config, owner):
    root = Path(__file__).parent.parent
    sentence = refusal(
        lambda *argv: configure({}, list(argv), str(root / script)), f"{root}/configs/{config}"
    )
    assert sentence.endswith(f"this is a config of {owner}: run {owner} {root}/configs/{config}")


def test_a_knob_of_another_script_is_recognised():
    script = str(Path(__file__).parent.parent / "train_sft.py")
    with pytest.raises(SystemExit, match="'group_size' in command line; it is a knob of train_grpo.py"):
        configure({}, ["--group_size=8"], script)


def test_script_without_a_block(tmp_path):
    script = tmp_path / "bare.py"
    script.write_text("beta = 1\n")
    with pytest.raises(SystemExit, match="no config block"):
        configure({}, [], str(script))


def test_dict_knob(call):
    assert call("--weights={'accuracy': 1, 'format': 0.5}")["weights"] == {"accuracy": 1.0, "format": 0.5}
