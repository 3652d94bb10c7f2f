"""python -m tasks.grading: which rule decided? What a user sees in the terminal."""

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import tasks.grading  # noqa: E402
from tasks.grading import stages  # noqa: E402
from tasks.grading.__main__ import explain  # noqa: E402

OURS = ("answer", "reference", "task", "find", "right:", "wrong:")  # lines that no rule of a task writes


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tasks.grading", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input=stdin, timeout=60)


def lines_of(*words: str, stdin: str = "") -> list[str]:
    done = run(*words, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def ours(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(OURS)]


def test_a_right_answer():
    lines = lines_of("3 cubes", "3", "--task=count")
    assert lines[:2] == ["answer     3 cubes", "reference  3"]
    assert lines[2].startswith("task       count: One integer")
    assert not any(line.startswith("find") for line in lines)  # what stands in the tag was given
    rule = lines[-2].removeprefix("rule       ").removesuffix(": yes")
    assert lines[-1] == f"right:     by the rule '{rule}'"


def test_a_wrong_completion():
    lines = lines_of("<think>4?</think> <answer>3 or 4</answer>", "4", "--task=count")
    assert lines[0] == "answer     <think>4?</think> <answer>3 or 4</answer>"
    assert lines[3] == "find       the last <answer> tag: 3 or 4"
    rule = lines[-2].removeprefix("rule       ").removesuffix(": no")
    assert lines[-1] == f"wrong:     by the rule '{rule}'"


def test_a_completion_without_tags():
    text = "By the picture,\nthere are 4 + 6 = 10 flocks."
    lines = lines_of("-", "10", "--lenient", stdin=text)
    assert lines[0] == "answer     By the picture, / there are 4 + 6 = 10 flocks."
    assert lines[3] == "find       'there are ...': 10"
    assert lines[-1].startswith("right:     by the rule '")


@pytest.mark.parametrize(
    "text, found",
    [
        ("<answer>5", "an <answer> tag that nobody closed: 5"),
        (r"so \boxed{5}", r"the last \boxed: 5"),
        ("The answer is 5.", "'the answer is ...': 5"),
        ("Thus AB = 5.", "a last sentence with 'so' or 'therefore': 5"),
        ("We count 5.", "the number or letter at the end: 5"),
        ("five cubes", "a short reply, as it is: five cubes"),
        ("It is hard to say", "no conclusion"),
        (r"\[ a = \sqrt{5", "cut off in mid-formula, which concludes nothing:"),
    ],
)
def test_the_rule_that_found_it_is_named(text, found):
    lines = explain(text, {"task": "count", "solution": "5"}, lenient=True)
    assert lines[3] == f"find       {found}"
    if lines[3].endswith((":", "no conclusion")):
        assert lines[-1] == "wrong:     there is no answer"
    else:
        assert lines[-1].startswith("right:     ")


def test_options_are_named_together_or_one_by_one(tmp_path):
    together = lines_of("B (blue)", "B", "--task=choice", "--options=red; blue")
    assert together[-1].startswith("right:")
    one_by_one = lines_of("B (blue)", "B", "--task=choice", "--options=red", "--options=blue")
    assert one_by_one == together
    assert lines_of("blue", "B", "--task=choice", "--options=blue;red")[-1].startswith("wrong:")
    in_the_problem = lines_of("blue", "B", "--task=choice", "--problem=Which?\nA. red\nB. blue")
    assert in_the_problem[-1].startswith("right:")


def test_an_answer_may_come_from_a_file_and_begin_with_a_minus(tmp_path):
    (tmp_path / "answer.txt").write_text("-5\n")
    from_file = lines_of(f"@{tmp_path}/answer.txt", "-5", "--task=math")
    assert from_file[-1].startswith("right:")
    assert lines_of("-5", "-5", "--task=math")[-1] == from_file[-1]


def test_soft_tasks_and_several_references():
    assert lines_of("CocaCola", "Coca Cola", "--task=anls")[-1] == "0.89:      by the rule of the task"
    lines = lines_of("3.429", "['24/7', '3.429']", "--task=math")
    assert "compare    with the reference 3.429" in lines
    assert lines[-1].startswith("right:")


def test_an_answer_without_end_stays_one_line():
    lines = explain("x" * 10_000, {"task": "text", "solution": "x"})
    assert max(map(len, lines)) < 200 and " ... " in lines[0]


@pytest.mark.parametrize(
    "words, says",
    [
        (["5", "5", "--task=sums"], "unknown task 'sums'; known tasks: anls, auto, choice,"),
        (["5"], "usage: python -m tasks.grading ANSWER REFERENCE --task=math"),
        (["5", "5", "5"], "usage:"),
        (["5", "5", "--tsk=math"], "'--tsk=math' is none of --task=, "),
        (["5", "5", "--task"], "'--task' is none of --task=, "),
        (["@/not/there", "5"], "'/not/there' cannot be read: "),
    ],
)
def test_mistakes_are_one_sentence(words, says):
    done = run(*words)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1


def test_the_examples_of_the_documentation():
    page = (ROOT / "docs" / "rewards.md").read_text()
    shown = re.findall(r"    (python -m tasks\.grading .*)\n\n((?:    .*\n)+)", page)
    last_lines = re.findall(r"    (python -m tasks\.grading .*)\n    (.*)", tasks.grading.__doc__)
    assert len(shown) == len(last_lines) == 3
    for (command, output), (same_command, last_line) in zip(shown, last_lines, strict=True):
        printed = lines_of(*shlex.split(command)[3:])
        assert ours(textwrap.dedent(output).splitlines()) == ours(printed)
        assert (same_command, last_line) == (command, printed[-1])


def test_nothing_is_noted_unless_somebody_asks():
    stages.note("find", "x")
    assert stages.by("x", True) is True and stages.by("x", False) is False
    assert stages.notes is None
    with stages.noted() as outer:
        stages.note("one", 1, "b")
        with stages.noted() as inner:
            stages.by("two", False)
        stages.by("three", True)
    assert outer == [("one", "1   |   b"), ("rule", "three: yes")]
    assert inner == [("rule", "two: no")]
    assert stages.notes is None
