"""What counts as the answer of a completion. All expectations are worked out by hand."""

import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
from rewards import accuracy_reward, extract_answer  # noqa: E402


def row(solution, task):
    return {"problem": "?", "solution": solution, "task": task}


def test_text_without_tags_is_an_answer_in_evaluation_only():
    assert accuracy_reward("no tags at all 3", row("3", "count"), strict=False) == 1
    assert accuracy_reward("no tags at all 3", row("3", "count"), strict=True) == 0


@pytest.mark.parametrize(
    "completion, strict, lenient",
    [
        ("<answer> 5 </answer>", "5", "5"),
        ("<answer>3</answer><answer>4</answer>", "4", "4"),
        ("<answer>\n(B)\nred\n</answer>", "(B)\nred", "(B)\nred"),
        ("<answer></answer>", "", ""),
        ("<answer>7</answer> the answer is 8, \\boxed{9}", "7", "7"),  # a tag beats everything else
        ("<think><answer>3</answer></think>", "3", "3"),  # wherever it stands; format pays nothing for it
        ("<answer>1<answer>2</answer>3</answer>", "2", "2"),  # nested: the innermost pair
        ("<answer>3</answer> <answer>5", "3", "3"),  # the second was never finished
        ("</answer>5<answer>", None, "5"),  # an empty last tag: what stands before it
        ("<answer>5", None, "5"),
        ("<answer>5</ans", None, "5"),
        ("There are 4 cubes.\n</think>\n<answer>\n", None, "4"),
        ("so \\boxed{\\frac{1}{2}} or \\boxed{x^{2}}.", None, "x^{2}"),
        ("\\boxed{5", None, None),
        ("\\boxed{1} and \\boxed{5", None, "1"),
        ("Therefore, the answer is 80.", None, "80"),
        ("... 3 of 4.\n**Final Answer:** B", None, "B"),
        ("I count them: there are 4 big cubes to the left", None, "4"),
        ("there are seven of them", None, "seven"),
        ("It is hard to say.", None, None),
        ("", None, None),
        ("room a12", None, None),
        ("no closing tag of <think> 3", None, "3"),
        ("We add them.\nTherefore, the radius equals 12.", None, "12"),
        ("Thus DE = 3.5.", None, "3.5"),
        ("So it is not known", None, "not known"),  # said in words, and wrong
        ("There are no cubes.", None, "0"),
        ("3 and then 4 " * 20, None, None),  # a loop has not concluded
        ("Which?\nA. 3\nB. 4\nC. 5", None, None),  # nor has a list of options
    ],
)
def test_extract_answer(completion, strict, lenient):
    assert extract_answer(completion) == strict
    assert extract_answer(completion, strict=False) == lenient
