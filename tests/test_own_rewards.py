"""A user's own reward: whatever it does ends in one sentence with its name, the row and the contract.

Run: python -m pytest -q tests/test_own_rewards.py
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import common  # noqa: E402
import rewards  # noqa: E402

OWN = """
import ctypes, faulthandler, math, os, sys, time
import numpy
import torch

CONSTANT = 3

def half(completion, row): return 0.5
def boolean(completion, row): return True
def integer(completion, row): return 2
def numpy_scalar(completion, row): return numpy.float32(0.5)
def tensor_scalar(completion, row): return torch.tensor(0.5)
def optional(completion, row, scale=0.5): return scale

def nothing(completion, row): pass
def text(completion, row): return "0.5"
def numpy_text(completion, row): return numpy.str_("0.5")
def a_list(completion, row): return [0.5]
def a_tensor(completion, row): return torch.tensor([0.5])
def complex_tensor(completion, row): return torch.tensor(1j)
def nan(completion, row): return math.nan
def infinite(completion, row): return -math.inf
def huge(completion, row): return 10**400
def beyond_float32(completion, row): return 1e300
def divides(completion, row): return 1 / 0
def misses(completion, row): return row["difficulty"]
def deep(completion, row): return deep(completion, row)
def no_memory(completion, row): raise MemoryError
def leaves(completion, row): sys.exit(0)
def in_a_library(completion, row): return numpy.linalg.inv(numpy.zeros((2, 2)))

class Odd(BaseException):
    def __str__(self): raise ValueError("no words")
def odd(completion, row): raise Odd

def spoils(completion, row):
    row.clear()
    return 0.5

def ends(completion, row): os._exit(3)
def crashes(completion, row): faulthandler.disable(), ctypes.string_at(0)
def killed(completion, row): os.kill(os.getpid(), 9)
def sleeps(completion, row): time.sleep(60)
def turns(completion, row):
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass

def one(completion): return 1.0
def three(completion, row, step): return 1.0
"""
# {function: the line it stands in}
LINES = {line[4:].partition("(")[0]: number for number, line in enumerate(OWN.splitlines(), 1)}
ROW = {"id": "set/17", "problem": "?", "solution": "3", "task": "count"}
TEXTS = ["<answer>3</answer>", "<answer>4</answer>"]


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("x = 1\nraise RuntimeError('no licence')\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "torn.py").write_text("def f(completion, row):\n    return (\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rewards, "load_sympy", int)  # a second in each worker, and nobody needs it here
    rewards.reward_function.cache_clear()
    yield
    for name in ("own", "broken", "leaves", "torn"):
        sys.modules.pop(name, None)
    rewards.reward_function.cache_clear()


def outcome(name: str, workers: int, own=()):
    """What the scorer gives for two completions, or the sentence with which it ends the run."""
    weights = rewards.check_weights({"accuracy": 1.0, f"own:{name}": 1.0})
    scorer = rewards.Scorer(workers, own)
    try:
        return scorer.score([TEXTS], [ROW], tuple(weights))
    except SystemExit as end:
        return end.code
    finally:
        scorer.close()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "name, value",
    [
        ("half", 0.5),
        ("boolean", 1.0),
        ("integer", 2.0),
        ("numpy_scalar", 0.5),
        ("tensor_scalar", 0.5),
        ("optional", 0.5),
    ],
)
def test_finite_numbers_of_every_kind_are_taken(name, value, workers):
    of_own = [parts[f"own:{name}"] for parts in outcome(name, workers)[0]]
    assert of_own == [value, value] and all(type(part) is float for part in of_own)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "name, did",
    [
        ("nothing", "returned None (NoneType)"),
        ("text", "returned '0.5' (str)"),
        ("numpy_text", "(str_)"),
        ("a_list", "returned [0.5] (list)"),
        ("a_tensor", "returned tensor([0.5000]) (Tensor)"),
        ("complex_tensor", "(Tensor)"),
        ("nan", "returned nan (float)"),
        ("infinite", "returned -inf (float)"),
        ("huge", "(int)"),
        ("beyond_float32", "returned 1e+300 (float)"),
        ("divides", "own.py, line {line}: ZeroDivisionError: division by zero"),
        ("misses", "own.py, line {line}: KeyError: 'difficulty', the row has id, problem, solution, task"),
        ("deep", "own.py, line {line}: RecursionError"),
        ("no_memory", "own.py, line {line}: MemoryError"),
        ("leaves", "own.py, line {line}: it ended the process: SystemExit: 0"),
        ("in_a_library", "own.py, line {line}: LinAlgError: Singular matrix"),
        ("odd", "own.py, line {line}: Odd; a reward is"),
    ],
)
def test_anything_else_is_one_sentence(name, did, workers):
    sentence = outcome(name, workers)
    assert (
        sentence.startswith(f"reward 'own:{name}' on row set/17: ")
        and did.format(line=LINES[name]) in sentence
    )
    assert "f(completion, row) -> a finite number" in sentence and "this step was not applied" in sentence
    assert "\n" not in sentence and "<answer>3</answer>" in sentence


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "name, how", [("ends", "exit code 3"), ("crashes", "SIGSEGV"), ("killed", "SIGKILL")]
)
def test_a_reward_that_ends_its_process_is_named(name, how, workers):
    sentence = outcome(name, workers, (f"own:{name}",))
    assert sentence.startswith(f"reward 'own:{name}' on row set/17 ended its process ({how}")
    assert "f(completion, row) -> a finite number" in sentence


def test_a_process_that_is_killed_between_two_steps_is_one_sentence():
    scorer = rewards.Scorer(2)
    assert scorer.score([TEXTS], [ROW])[0][0]["accuracy"] == 1.0
    os.kill(next(iter(scorer.processes)).pid, signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(SystemExit, match="ended from outside .SIGKILL, probably for want of memory") as end:
        scorer.score([TEXTS], [ROW])
    assert "\n" not in end.value.code
    scorer.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["sleeps", "turns"])
def test_a_reward_that_takes_for_ever_is_named_and_given_up(name, workers, monkeypatch, capfd):
    monkeypatch.setattr(rewards, "STILL_WAITING", 0.2)
    monkeypatch.setattr(rewards, "GIVE_UP", 0.7)
    started = time.time()
    sentence = outcome(name, workers)
    assert time.time() - started < 15
    assert f"given up at reward 'own:{name}' on row set/17" in sentence and "finite number" in sentence
    assert f"s for reward 'own:{name}' on row set/17" in capfd.readouterr().err  # still waiting


def test_ctrl_c_ends_the_waiting():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    scorer = rewards.Scorer(1)
    threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.time()
    with pytest.raises(KeyboardInterrupt):
        scorer.score([TEXTS], [ROW], ("own:sleeps",))
    assert time.time() - started < 10 and scorer.pool is None


@pytest.mark.parametrize(
    "name, did",
    [
        ("own:one", "one(completion)"),
        ("own:three", "three(completion, row, step)"),
        ("own:CONSTANT", "no function but 3 (int)"),
        ("own:nope", "no attribute 'nope'"),
        ("nowhere:f", "No module named 'nowhere'"),
        ("broken:f", "broken.py, line 2: RuntimeError: no licence"),
        ("leaves:f", "leaves.py, line 2"),
        ("torn:f", "torn.py, line 2: SyntaxError"),
    ],
)
def test_what_cannot_be_called_is_refused_at_the_start(name, did):
    with pytest.raises(SystemExit) as end:
        rewards.check_weights({"accuracy": 1.0, name: 0.5})
    sentence = end.value.code
    assert sentence.startswith("reward_weights: ") and name in sentence and did in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_that_changes_its_row_changes_no_other_part(workers):
    assert [parts["accuracy"] for parts in outcome("spoils", workers)[0]] == [1.0, 0.0]


@pytest.mark.parametrize("weights", [{}, {1: 1.0}, {None: 0.5, "accuracy": 1.0}])
def test_weights_that_name_no_part_are_refused(weights):
    with pytest.raises(SystemExit, match="reward_weights: .* names no part of a reward; known rewards: acc"):
        rewards.check_weights(weights)


@pytest.mark.parametrize("weight", ["1", None, float("nan"), float("inf"), [1.0]])
def test_a_weight_is_a_finite_number(weight):
    with pytest.raises(SystemExit, match="reward_weights: the weight of 'format'"):
        rewards.check_weights({"accuracy": 1.0, "format": weight})


@pytest.mark.parametrize("factor", ["half", "nan", "1e999", "0,5"])
def test_the_factor_for_format_is_a_finite_number(factor, monkeypatch):
    monkeypatch.setenv("FORMAT_REWARD_FACTOR", factor)
    with pytest.raises(SystemExit, match="FORMAT_REWARD_FACTOR: '.*' is n"):
        rewards.check_weights({"accuracy": 1.0, "format": 1.0})


def test_the_log_of_completions_takes_any_text_and_names_what_it_cannot_write(tmp_path, monkeypatch):
    monkeypatch.setenv("DEBUG_MODE", "true")
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "log.txt"))
    rewards.debug_log(["half a pair \ud83d", "\0"], [ROW, ROW], [1.0, 0.0])
    assert "half a pair \\ud83d" in (tmp_path / "log.txt").read_text()
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "nowhere" / "log.txt"))
    with pytest.raises(SystemExit, match="LOG_PATH: '.*nowhere/log.txt' cannot be written"):
        rewards.debug_log(["x"], [ROW], [1.0])


def step_of(flat, accuracy, format):
    return {"flat_groups": flat, "reward": 0.5, "reward_accuracy": accuracy, "reward_format": format}


def warnings_of(steps):
    """What a run of these steps says."""
    said = []
    watch = common.FlatSteps()
    for step in steps:
        watch.add(step, lambda line, **how: said.append(line))
    return said


@pytest.mark.parametrize(
    "step, words",
    [
        (step_of(1, 0.5, 1.0), ("all rewards are equal", "temperature or group_size")),
        (step_of(1, 0.0, 1.0), ("all rewards are equal", "references and the task")),
        (step_of(0.5, 0.0, 1.0), ("no answer was right", "references and the task")),
        (step_of(1, 0.0, 0.0), ("all rewards are equal", "template")),
        ({"flat_groups": 1.0, "reward": 0.0}, ("all rewards are equal", "temperature or group_size")),
    ],
)
def test_twenty_steps_with_nothing_to_learn_are_one_warning(step, words):
    assert warnings_of([step] * 19) == []
    said = warnings_of([step] * 60)
    assert len(said) == 1 and all(word in said[0] for word in (*words, "20 steps", "rollouts.html"))


def test_a_step_that_teaches_something_starts_the_count_anew():
    nothing, something = step_of(1, 0.0, 1.0), step_of(0.9, 0.1, 1.0)
    assert warnings_of(([nothing] * 19 + [something]) * 5) == []
