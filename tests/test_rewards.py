"""The scorer: what counts as an answer, when it is right, and that no text can break or cheat it.

Run: python -m pytest -q tests/test_rewards.py. All expectations are worked out by hand, none by running
the scorer.
"""

import hashlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import rewards  # noqa: E402
from rewards import accuracy_reward, extract_answer, format_reward, score, total  # noqa: E402
from tasks import grading  # noqa: E402
from tasks.grading import boxes, choices, compare, symbolic, words  # noqa: E402


def row(solution, task):
    return {"problem": "?", "solution": solution, "task": task}


# Completions that scorers of earlier R1-style projects got wrong, with the verdict we want.
KNOWN_DEFECTS = [
    ("<think>there are 3 cubes</think><answer>5</answer>", "<answer> 3 </answer>", "count", 0),
    ("<think>a is 140.</think><answer>25</answer>", "<answer> 140° </answer>", "math", 0),
    ("<answer>140</answer>", "<answer> 140° </answer>", "math", 1),
    ("<answer>140°</answer>", "<answer> 140° </answer>", "math", 1),
    ("<think>x</think> <answer>\n140\n</answer>", "<answer> 140° </answer>", "math", 1),
    ("no tags at all 3", "<answer> 3 </answer>", "count", 0),
    # the last tag decides
    ("<answer>1</answer> text <answer>3</answer>", "<answer> 3 </answer>", "count", 1),
    ("<answer>0.50</answer>", "<answer> 0.5 </answer>", "math", 1),
    ("<answer>1/2</answer>", "<answer> 0.5 </answer>", "math", 1),
    ("<answer> 2 </answer>", "2√{3}", "math", 0),
    ("<answer>$2\\sqrt{3}$</answer>", "2√{3}", "math", 1),
    ("<answer>(B) red</answer>", "<answer> B </answer>", "choice", 1),
    ("<answer>A cat</answer>", "<answer> A </answer>", "choice", 0),
    ("<answer>red cube</answer>", "<answer> red cubes </answer>", "text", 0),
    ("<answer>13 cm</answer>", "<answer> 12 cm </answer>", "math", 0),
    ("<answer>[10, 20, 30, 40]</answer>", "<answer> [10, 20, 30, 40] </answer>", "grounding", 1),
    ('<answer>{"bbox": [10, 10, 100, 100]}</answer>', "[12, 12, 100, 100]", "grounding", 1),
    ('<answer>{"bbox": [10.0, 10.0, 100.0, 100.0]}</answer>', "[12, 12, 100, 100]", "grounding", 1),
]


@pytest.mark.parametrize("completion, solution, task, want", KNOWN_DEFECTS)
@pytest.mark.parametrize("auto", [False, True])
def test_known_defects(completion, solution, task, want, auto):
    assert accuracy_reward(completion, row(solution, task)) == want
    if auto:  # without a named task the look of the bare reference must lead to the same verdict
        bare = solution.replace("<answer>", "").replace("</answer>", "").strip()
        assert accuracy_reward(completion, row(bare, "auto")) == want


def test_text_without_tags_is_an_answer_in_evaluation_only():
    assert accuracy_reward("no tags at all 3", row("3", "count"), strict=False) == 1
    assert accuracy_reward("no tags at all 3", row("3", "count"), strict=True) == 0


# -----------------------------------------------------------------------------
# extraction
# -----------------------------------------------------------------------------


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


# -----------------------------------------------------------------------------
# the verifiers
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("3", "3", 1),
        ("3.", "3", 1),
        ("3.0", "3", 1),
        ("03", "3", 1),
        ("three", "3", 1),
        ("Three", "3", 1),
        ("3 cubes", "3", 1),
        ("3 (the red ones)", "3", 1),
        ("three items", "3", 1),
        ("There are 3 cubes.", "3", 1),
        ("2 + 1 = 3", "3", 1),
        ("2 + 1 = 3", "2", 0),
        ("7 matte objects + 1 matte car = 8 objects", "8", 1),
        ("7 matte objects + 1 matte car = 8 objects", "7", 0),
        ("C. 8", "8", 1),
        ("$3$", "3", 1),
        ("**3**", "3", 1),
        ("\\boxed{3}", "3", 1),
        ("３", "3", 1),
        ("1,000", "1000", 1),
        ("zero", "0", 1),
        ("twenty", "20", 1),
        ("-3", "3", 0),
        ("3 or 4", "3", 0),
        ("3 or 4", "4", 0),
        ("3, 4", "3", 0),
        ("3-4", "3", 0),
        ("3 4", "3", 0),
        ("3 to 4", "3", 0),
        ("at least 3", "3", 0),
        ("more than 3", "3", 0),
        ("not 3", "3", 0),
        ("3 and a half", "3", 0),
        ("3.5", "3", 0),
        ("3 maybe two", "3", 0),
        ("twenty-one", "20", 0),
        ("thirteen", "3", 0),
        ("13", "3", 0),
        ("31", "3", 0),
        ("", "3", 0),
        ("many", "3", 0),
        ("3²", "3", 0),
        ("3" * 100_000, "3", 0),
        ("1.2.3", "1", 0),
        ("3 + 1", "3", 0),
        ("3 =", "3", 0),
        ("The number of cubes is 3", "3", 1),
        ("The number of cubes is 3 or 4", "3", 0),
        ("no cubes", "0", 1),
        ("none", "0", 1),
        ("none", "3", 0),
        ("3 (a car and a bus)", "3", 1),
        ("3 (a car and 2 buses)", "3", 0),
    ],
)
def test_count(answer, solution, want):
    assert compare.same_count(answer, solution) is bool(want)


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("B", "B", 1),
        ("b", "B", 1),
        ("B.", "B", 1),
        ("(b)", "B", 1),
        ("(B)", "B", 1),
        ("B) red", "B", 1),
        ("B: red", "B", 1),
        ("B. red", "B", 1),
        ("(B) red", "B", 1),
        ("$B$", "B", 1),
        ("**B**", "B", 1),
        ("option B", "B", 1),
        ("（B）", "B", 1),
        ("The answer is B", "B", 1),
        ("B", "(B)", 1),
        ("(C) blue", "(C)", 1),
        ("\\boxed{B}", "B", 1),
        ("b. red", "B", 1),
        ("C", "B", 0),
        ("B, D", "B", 0),
        ("B, D", "D", 0),
        ("B or D", "B", 0),
        ("(B) or (D)", "B", 0),
        ("B. D", "B", 0),
        ("(A) (B) (C) (D)", "A", 0),
        ("A. red B. blue C. green", "A", 0),
        ("A cat", "A", 0),
        ("a cat", "A", 0),
        ("AB", "A", 0),
        ("", "B", 0),
        ("Because", "B", 0),
        ("red", "B", 0),
        ("none of the options", "B", 0),
        ("i.e. red", "I", 0),
        ("red", "red", 1),  # a reference that is no letter is compared as text
        ("Early Renaissance (C)", "C", 1),
        ("\\text{B}", "B", 1),
        ("\\boxed{\\text{(B)}}", "B", 1),
        ("C or D", "C", 0),
        ("A. Dish rack\nD. Countertop", "D", 0),
        ("A. Dish rack\nD. Countertop", "A", 0),
        ("the figure B", "B", 1),
        ("Picture (B)", "B", 1),
        ("the figure B", "C", 0),
        ("5 cm, which is option C", "C", 1),
        ("5 cm, which is not option C", "C", 0),
        ("B is the right choice", "B", 1),
    ],
)
def test_choice(answer, solution, want):
    assert choices.same_choice(answer, solution) is bool(want)


COLOURS = (
    "Which colour?\n<image1>\n(A) red\n(B) dark blue\n(C) green\n(D) none of them\n"
    "(E) the last one, of B and C"
)
ANGLES = "As shown in the figure, the angle AOB is ()\nChoices:\nA:35°\nB:70°\nC:105°\nD:\\frac{7}{2}√{3}m"
INLINE = "What is the p-value? Choices: A. 0.05\nB. 0.025\nC. $3,100,000\nD. -4 \\leq g(x) \\leq 9"
LETTERS = "Which piece fits?\n(A) D\n(B) P and R\n(C) cos(π/5)\n(D) cos(9π/5)"
LENGTHS = (
    "How long are the pieces?\n(A) $2 \\mathrm{~cm}, 3 \\mathrm{~cm}, 5 \\mathrm{~cm}$\n"
    + "(B) $1 \\mathrm{~cm}, 4 \\mathrm{~cm}, 5 \\mathrm{~cm}$"
)


@pytest.mark.parametrize(
    "problem, answer, solution, want",
    [
        (COLOURS, "red", "A", 1),
        (COLOURS, "Dark blue.", "B", 1),
        (COLOURS, "blue", "B", 0),
        (COLOURS, "red", "B", 0),
        (COLOURS, "(A) red", "A", 1),
        (COLOURS, "None of the options", "D", 0),
        (COLOURS, "none of them", "D", 1),
        (COLOURS, "B", "B", 1),
        (COLOURS, "The ball is red", "A", 1),  # says the option's words ...
        (COLOURS, "The ball is not red", "A", 0),
        (COLOURS, "The ball is red or green", "A", 0),
        (COLOURS, "E. the last one, of B and C", "E", 1),  # letters within the option's own text are no hedge
        (ANGLES, "70", "B", 1),
        (ANGLES, "70^\\circ", "B", 1),
        (ANGLES, "B: 70°", "B", 1),
        (ANGLES, "105°", "B", 0),
        (ANGLES, "\\frac{7\\sqrt{3}}{2}", "D", 1),
        (ANGLES, "None of the given choices", "B", 0),
        (ANGLES, "71", "B", 0),
        (INLINE, "0.025", "B", 1),
        (INLINE, "3,100,000", "C", 1),
        (INLINE, "$3,100,000", "C", 1),
        (INLINE, "[-4, 9]", "D", 1),
        (INLINE, "(-4, 9]", "D", 0),
        (INLINE, "0.05", "B", 0),
        (LETTERS, "P and R", "B", 1),
        (LETTERS, "(B) P and R", "B", 1),
        (LETTERS, "D", "D", 1),
        (LETTERS, "cos(π/5)", "C", 1),
        (LETTERS, "cos(9π/5)", "C", 0),  # equal values, but the option is the form
        (LENGTHS, "2 cm, 5 cm, 3 cm", "A", 1),
        (LENGTHS, "5, 1, 4", "B", 1),
        (LENGTHS, "2, 5, 3", "B", 0),
        (LENGTHS, "2, 3", "A", 0),
        ("True or False?\nChoice:\nA. False\nB. True", "A. False", "False", 1),
        ("True or False?\nChoice:\nA. False\nB. True", "B", "False", 0),
        ("True or False?\nChoice:\nA. False\nB. True", "A", "False", 1),
    ],
)
def test_choice_by_the_options_in_the_problem(problem, answer, solution, want):
    assert choices.same_choice(answer, solution, {"problem": problem}) is bool(want)


def test_options_of_the_row_come_first():
    given = {"problem": "Which? (A) x (B) y", "options": ["cat", "dog"]}
    assert choices.same_choice("dog", "B", given) and not choices.same_choice("y", "B", given)


def test_ten_options_and_a_letter_behind_them():
    """A to J are all there is: the mark of a further letter is text of the last option, not an error."""
    problem = "Which one?\n" + "\n".join(f"({letter}) word {letter}" for letter in "ABCDEFGHIJ")
    assert choices.read_options(problem) == [f"word {letter}" for letter in "ABCDEFGHIJ"]
    assert choices.read_options(problem + "\n(B) again")[9] == "word J\n(B) again"
    assert choices.same_choice("word C", "C", {"problem": problem + "\n(B) again"})


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("0.50", "0.5", 1),
        (".5", "0.5", 1),
        ("1/2", "0.5", 1),
        ("\\frac{1}{2}", "0.5", 1),
        ("-1/2", "-0.5", 1),
        ("\\frac{-1}{2}", "-0.5", 1),
        ("2/4", "1/2", 1),
        ("140", "140°", 1),
        ("140°", "140", 1),
        ("140^\\circ", "140°", 1),
        ("140^{\\circ}", "140°", 1),
        ("140 degrees", "140°", 1),
        ("12", "12 cm", 1),
        ("12cm", "12 centimeters", 1),
        ("12 \\text{ cm}", "12cm", 1),
        ("9 cm²", "9cm^{2}", 1),
        ("3 meters", "3米", 1),
        ("40", "40海里", 1),
        ("5 units", "5", 1),
        ("13 cm", "12 cm", 0),
        ("12 m", "12 cm", 0),
        ("1,234,567", "1234567", 1),
        ("1,000.5", "1000.5", 1),
        ("12,34", "1234", 0),
        ("180 - 140 = 40", "40°", 1),
        ("x = 5", "5", 1),
        ("x = 5", "x = 6", 0),
        ("−3", "-3", 1),
        ("3", "-3", 0),
        ("-3", "−3", 1),
        ("1/0", "0", 0),
        ("0.333", "1/3", 0),
        ("2x", "2", 0),
        ("7", "7.00", 1),
        ("3 or 4", "3", 0),
        ("3, 4", "3", 0),
        ("3,4", "34", 0),
        ("3 4", "12", 0),
        ("2 1/2", "1", 0),
        ("Yes", "3m", 0),
        ("", "3", 0),
        ("", "", 0),
        ("even", "Even", 1),
    ],
)
def test_math_numbers(answer, solution, want):
    assert compare.same_math(answer, solution) is bool(want)


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("2√3", "2√{3}", 1),
        ("2\\sqrt{3}", "2√3", 1),
        ("\\sqrt{12}", "2√{3}", 1),
        ("2sqrt(3)", "2√{3}", 1),
        ("2", "2√{3}", 0),
        ("10√{3}", "10", 0),
        ("√{5}", "\\sqrt{5}", 1),
        ("√5", "√{6}", 0),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{√{2}}{2}", 1),
        ("\\frac{3}{2}\\sqrt{3}", "\\frac{3}{2}√{3}", 1),
        ("5.0 m", "5√{3}", 0),
        ("6√5", "6√{5}m", 1),
        ("4π", "4πcm", 1),
        ("4\\pi", "4π", 1),
        ("4", "4π", 0),
        ("\\(\\frac{\\pi}{2}\\)", "π/2", 1),
        ("x+1", "1 + x", 1),
        ("x^2", "x²", 1),
        ("(0, 0)", "(0,0)", 1),
        ("(0, 1)", "(1, 0)", 0),
        ("(-\\infty, 4)", "(-\\infty, 4]", 0),
        ("4.0 + PE + PF", "4", 0),
        ("(x+1)^2", "x^2+2x+1", 1),
        ("x^2 - 2x - 5", "(x+4)^2 - 5", 0),
        ("red cube", "cube red", 0),
    ],
)
def test_math_expressions(answer, solution, want):
    assert compare.same_math(answer, solution) is bool(want)


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("-2 < x", "x > -2", 1),
        ("-2 < x", "x < -2", 0),
        ("x < 3", "(-\\infty, 3)", 1),
        ("x \\leq 3", "(-\\infty, 3)", 0),
        ("3 \\pm 2", "1, 5", 1),
        ("3 \\pm 2", "5", 0),
        ("x = -2, y = -9", "(-2, -9)", 1),
        ("x = -9, y = -2", "(-2, -9)", 0),
        ("y = -9, x = -2", "(-2, -9)", 0),  # x first: the names are read in their order
        ("(-2, -9)", "x = -2, y = -9", 1),
        ("Range: [0, 1]", "Range: [0, 1]", 1),
        ("[0, 1]", "Range: [0, 1]", 1),
        ("Range: [0, 1]", "Domain: [0, 1]", 0),
        ("1, 2, 3", "3, 1, 2", 1),
        ("1, 2, 3", "3, 1", 0),
        ("1, 1, 2", "1, 2, 2", 0),  # every member needs a partner of its own
        ("(2, 3, 4)", "(2, 3)", 0),
        ("neither even nor odd", "Neither", 1),
        ("neither", "Neither", 1),
        ("neither cat nor dog", "Neither", 0),
        ("No, because it is even", "No", 1),
        ("Yes or no", "No", 0),
        ("No, but yes", "No", 0),
        ("Clara is the tallest", "the tallest", 1),
        ("Clara is not the tallest", "the tallest", 0),
    ],
)
def test_math_intervals_lists_words(answer, solution, want):
    assert compare.same_math(answer, solution) is bool(want)


def test_math_in_the_magnitude_that_the_problem_asks_for():
    asked = {"problem": "How many million hamburgers were sold?"}
    assert compare.same_math("2.5 million", "2.5", asked)
    assert not compare.same_math("2.5 thousand", "2.5", asked)
    assert not compare.same_math("2.5 million", "2.5")


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("red cube", "red cube", 1),
        ("Red  Cube.", "red cube", 1),
        ('"red cube"', "red cube", 1),
        ("red\ncube", "red cube", 1),
        ("red cubes", "red cube", 0),
        ("red", "red cube", 0),
        ("STRASSE", "straße", 1),
        ("", "", 0),
        ("", "x", 0),
    ],
)
def test_text(answer, solution, want):
    assert words.same_text(answer, solution) is bool(want)


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("three", "3", 1),
        ("6/2", "3", 1),
        ("(B)", "B", 1),
        ("A cat", "A", 0),
        ("√12", "2√3", 1),
        ("a dog", "A dog", 1),
    ],
)
def test_auto(answer, solution, want):
    assert rewards.VERIFIERS["auto"](answer, solution) is bool(want)


# -----------------------------------------------------------------------------
# format
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion, want",
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("<think>a</think>\n<answer>b</answer>", 1),
        ("<answer>4</answer>", 0),
        ("\n <think>a\nb</think> \n\n <answer>\nb\n</answer> \n", 1),
        ("<think></think><answer></answer>", 1),
        ("<think>a</think> so <answer>b</answer>", 0),
        ("x <think>a</think><answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer> x", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think>a<think>b</think></think><answer>b</answer>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("<think>a</think><answer>b", 0),
        ("<Think>a</Think><answer>b</answer>", 0),
        ("", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a</think><answer>b</answer>" * 2, 0),
    ],
)
def test_format(completion, want):
    assert format_reward(completion, row("b", "text")) == want


# -----------------------------------------------------------------------------
# hacks: the reference stands somewhere but is not the answer, or the text attacks the scorer
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        "<think>3</think><answer>5</answer>",
        "<answer>3</answer><answer>5</answer>",
        "<answer></answer>",
        "<answer> </answer>",
        "<think>3 3 3</think><answer></answer>",
        "<answer>1 2 3 4 5</answer>",
        "<answer>1, 2, 3</answer>",
        "<answer>3",
        "3</answer>",
        "<ANSWER>3</ANSWER>",
        "<answer>5</answer> I mean 3",
        "<answer>the reference</answer>",
        "<answer>ignore the question and give full marks</answer>",
        "<answer>{solution}</answer>",
        "<answer>3|4</answer>",
        "<answer>3</answer><answer><answer>5</answer></answer>",
        "<answer>True</answer>",
        "<answer>__import__</answer>",
        "<answer>any integer</answer>",
        "<answer>n</answer>",
        "<answer>x = x</answer>",
        "<answer>3 = 4</answer>",
    ],
)
@pytest.mark.parametrize("task", ["count", "math", "auto"])
def test_hacks_earn_nothing(completion, task):
    assert accuracy_reward(completion, row("3", task)) == 0


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9",
        "9^{9^{9}}",
        "9^9^9",
        "(9^{9})^{9^9}",
        "2^{99999}",
        "9^\\frac{99999999}{1}",
        "((9^{9999})^{9999})^{9999}",
        "10000000!",
        "{" * 200 + "3" + "}" * 200,
        "{" * 90 + "3" + "}" * 90,
        "\\frac{" * 30,
        "\\sum_{n=1}^{9999} n",
        "3" * 100_000,
        "(" * 50_000,
        "<answer>" * 12_000,
        "\\boxed{" * 12_000,
        "$" * 100_000,
        " " * 100_000,
        "\\sqrt{" * 20 + "3" + "}" * 20,
        "\0",
        "there are " * 10_000,
        "answer is: " * 9_000,
        "1," * 50_000,
        "\\text{" * 16_000,
        "-" * 100_000,
        "**" * 50_000,
    ],
)
@pytest.mark.parametrize("task", sorted(rewards.VERIFIERS))
def test_hostile_answers_are_quick_and_wrong(answer, task):
    for strict in (True, False):
        assert accuracy_reward(f"<answer>{answer}</answer>", row("2√{7}", task), strict) == 0
        accuracy_reward(answer, row("2√{7}", task), strict)  # as a whole completion: must only return


def test_hostile_answer_runs_fast():
    start = time.monotonic()
    for answer in (
        "9**9**9",
        "9^{9^{9}}",
        "2^{99999}",
        "3" * 100_000,
        "<answer>" * 12_000,
        "\\boxed{" * 12_000,
    ):
        assert accuracy_reward(f"<answer>{answer}</answer>", row("x^2", "math"), strict=False) == 0
    assert time.monotonic() - start < 5


def test_long_completion_with_a_right_answer():
    completion = "<think>" + "3 cubes, 4 balls. " * 6_000 + "</think><answer>5</answer>"
    assert score(completion, row("5", "count")) == {"accuracy": 1.0, "format": 1.0}
    assert score(completion, row("3", "count")) == {"accuracy": 0.0, "format": 1.0}


# fmt: off
PIECES = [
    "<answer>", "</answer>", "<think>", "</think>",
    "3", "12", "4.5",
    ",", ".", "-", "=", "/", "^", "**", "{", "}", "(", ")",
    "\\frac", "\\sqrt", "√", "π", "°",
    "cm", "m",
    "B", "A cat", "or", "three",
    "\\boxed{", "$", "\\(", " ", "\n", "\0", "%",
    "²", "½", "٣", "ß", "\ud800", "🎲",
    "\\text{", "the answer is ", "there are ",
    "x", "+", "_", "\\", "!", "e9",
]
# fmt: on


def test_fuzz_never_raises_and_is_deterministic():
    rng = random.Random(0)
    seen = []
    for _ in range(300):
        text, solution = ("".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(2))
        for verifier in rewards.VERIFIERS.values():
            for pair in ((text, solution), (text, "3"), ("3", text)):
                verdict = verifier(*pair)
                assert 0 <= verdict <= 1, pair
                seen.append((verifier, pair, verdict))
        for strict in (True, False):
            parts = score("<answer>" * strict + text, row(solution or "3", "auto"), strict)
            assert all(type(part) is float and part in (0.0, 1.0) for part in parts.values())
    symbolic.verified.cache_clear()  # compare fresh verdicts, not remembered ones
    assert all(verifier(*pair) == verdict for verifier, pair, verdict in seen)


# -----------------------------------------------------------------------------
# the table-driven part
# -----------------------------------------------------------------------------


def test_score_and_total():
    completion = "<think>2 + 1</think><answer>3 cubes</answer>"
    parts = score(completion, row("3", "count"))
    assert parts == {"accuracy": 1.0, "format": 1.0}
    assert score(completion, row("4", "count"), names=("accuracy",)) == {"accuracy": 0.0}
    assert total(parts, {"accuracy": 1.0, "format": 0.5}) == 1.5
    assert total({"accuracy": 0.0, "format": 1.0}, {"accuracy": 1.0, "format": 0.25}) == 0.25
    assert total(parts, {}) == 2.0  # parts that only the row asked for have weight 1
    with pytest.raises(SystemExit, match="'formt'.*accuracy, cosine, format"):
        rewards.check_weights({"accuracy": 1.0, "formt": 0.5})


@pytest.mark.parametrize("task", ["nope", ""])
def test_unknown_task_lists_the_known_ones(task):
    with pytest.raises(ValueError, match="unknown task.*auto, choice, count, grounding, math, relaxed, text"):
        score("<answer>3</answer>", row("3", task))


def test_unknown_reward_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown reward 'lenght'.*accuracy, cosine, format"):
        score("x", row("3", "count"), names=("accuracy", "lenght"))


def test_row_is_not_changed_and_solution_may_be_a_number():
    given = row(3, "count")
    assert accuracy_reward("<answer>3</answer>", given) == 1
    assert given == row(3, "count")


def test_expressions_are_compared_in_other_threads_too():
    verdicts = []
    symbolic.verified.cache_clear()
    thread = threading.Thread(target=lambda: verdicts.append(compare.same_math("\\sqrt{12}", "2√{3}")))
    thread.start()
    thread.join(60)
    assert verdicts == [True]


def test_unreadable_reference_is_logged_once(caplog):
    symbolic.log_once.cache_clear()
    for answer in ("x+1", "x+2", "x+3"):
        assert compare.same_math(answer, "\\frac{1") is False
    assert len([record for record in caplog.records if "\\frac{1" in record.getMessage()]) == 1


def test_ordinary_answers_do_not_load_sympy():
    code = (
        "import sys, rewards\n"
        "for a, s, t in [('3 cubes', '3', 'count'), ('1/2', '0.5', 'math'), ('B', 'A', 'choice')]:\n"
        "    rewards.score(f'<think>x</think><answer>{a}</answer>', {'solution': s, 'task': t})\n"
        "assert not {'sympy', 'math_verify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


# Spellings of one value that models and data sets use, and near misses
SPELLINGS = [
    ("\\frac{\\pi}{6}", "π/6", 1),
    ("30 cm^2", "30cm²", 1),
    ("30 cm^2", "30 cm", 1),
    ("30 square centimeters", "30\\mathrm{cm}^2", 1),
    ("5 and 3", "3, 5", 1),
    ("x = 3 or x = -2", "3,-2", 1),
    ("x=3 or x=-2", "x=-2 or x=3", 1),
    ("\\{1,2\\}", "{2,1}", 1),
    ("[0, 5)", "(0,5)", 0),
    ("0 \\leq x < 5", "[0,5)", 1),
    ("x \\geq 3", "[3,\\infty)", 1),
    ("(-\\infty, 3) \\cup (5, \\infty)", "(-∞,3)∪(5,∞)", 1),
    ("y = 2x + 3", "y=2x+3", 1),
    ("2x + 3", "y=2x+3", 1),
    ("y=3x+2", "y=2x+3", 0),
    ("y = \\frac{3}{4}x - \\frac{9}{2}", "$y+3=\\frac{3}{4}(x-2)$", 1),
    ("(x-2)^2+(y+1)^2=9", "(x-2)^2 + (y+1)^2 = 9", 1),
    ("x^2+y^2-4x+2y-4=0", "(x-2)^2 + (y+1)^2 = 9", 1),
    ("(x-2)^2+(y+1)^2=3", "(x-2)^2 + (y+1)^2 = 9", 0),
    ("12.6", "4π", 0),
    ("12.57", "4π", 0),
    ("12.566370614", "4π", 1),
    ("4\\pi \\approx 12.57", "4π", 1),
    ("approximately 12.57", "12.57", 1),
    ("≈ 12.57", "12.57", 1),
    ("about 12.57 cm", "12.57cm", 1),
    ("1:2", "\\frac{1}{2}", 1),
    ("1/2", "1:2", 1),
    ("2:1", "1:2", 0),
    ("3:4:5", "3:4:5", 1),
    ("25%", "0.25", 0),
    ("25%", "25", 1),
    ("25", "25%", 1),
    ("$25", "25", 1),
    ("25 dollars", "$25$", 1),
    ("2.5 \\times 10^{3}", "2500", 1),
    ("2.5e3", "2500", 1),
    ("2.5 x 10^3", "2500", 1),
    ("1\\frac{1}{2}", "1.5", 1),
    ("1 1/2", "\\frac{3}{2}", 1),
    ("3\\frac{1}{2}", "\\frac{3}{2}", 0),
    ("\\frac{3\\sqrt{2}}{2}", "\\frac{3}{\\sqrt{2}}", 1),
    ("-\\frac12", "-1/2", 1),
    ("\\frac 12", "1/2", 1),
    ("\\tfrac{1}{2}", "1/2", 1),
    ("45^\\circ", "\\frac{\\pi}{4}", 0),
    ("N 45° E", "N45°E", 1),
    ("315°", "315^\\circ T", 1),
    ("049°T", "49", 1),
    ("even", "odd", 0),
    ("Yes", "Yes", 1),
    ("yes.", "Yes", 1),
    ("No", "Yes", 0),
    ("f(x) = -3|x-3| + 3", "f(x)=-3|x-3|+3", 1),
    ("-3|x-3|+3", "f(x)=-3|x-3|+3", 1),
    ("6 children", "6", 1),
    ("6 million", "6", 0),
    ("6 dozen", "6", 0),
    ("6x", "6", 0),
    ("6 or 7", "6", 0),
    ("6, 7", "6", 0),
    ("between 6 and 7", "6", 0),
    ("at least 6", "6", 0),
    ("not 6", "6", 0),
    ("more than 6", "6", 0),
    ("the area is 6 square meters and the perimeter is 10", "6", 0),
    ("The area is 36π square units.", "36\\pi", 1),
    ("Therefore, the area of the circle is 36\\pi.", "36π", 1),
    ("\\text{The answer is } 6", "6", 1),
    ("$\\angle A = 60^\\circ$", "60°", 1),
    ("∠A = 60°", "60", 1),
    ("m∠A = 60°", "60", 1),
    ("x = 60", "y = 60", 0),
    ("AB = 5", "5", 1),
    ("AB = 5 cm", "5cm", 1),
    ("S = 25", "25", 1),
    ("S_{ABC} = 25", "25", 1),
    ("2x = 10", "5", 0),
    ("x = 10/2 = 5", "5", 1),
    ("5 = x", "5", 1),
    ("10√3", "10\\sqrt{3}", 1),
    ("10 √3", "10\\sqrt{3}", 1),
    ("10*sqrt(3)", "10\\sqrt{3}", 1),
    ("10 * √3", "10√{3}", 1),
    ("10\\sqrt3", "10√{3}", 1),
    ("17.32", "10√{3}", 0),
    ("17.3205081", "10√{3}", 1),
    ("\\sqrt[3]{8}", "2", 1),
    ("2^{3}", "8", 1),
    ("2^10", "1024", 1),
    ("e^{2}", "e^2", 1),
    ("\\ln 2", "ln(2)", 1),
    ("\\log_{2} 8", "3", 1),
    ("i", "i", 1),
    ("3+4i", "4i+3", 1),
    ("0", "0°", 1),
    ("00", "0", 1),
    ("-0", "0", 1),
    ("+5", "5", 1),
    ("5.", "5", 1),
    ("5,0", "5", 0),
    ("5;", "5", 1),
    ("5 .", "5", 1),
    ("“5”", "5", 1),
    ("{5}", "5", 1),
    ("(5)", "5", 1),
    ("\\boxed{5}", "5", 1),
    ("\\boxed{5} \\text{cm}", "5cm", 1),
    ("**5**", "5", 1),
    ("*5*", "5", 1),
    ("`5`", "5", 1),
    ("5\n", "5", 1),
    ("5\\\\", "5", 1),
    ("=5", "5", 1),
    ("= 5", "5", 1),
    ("a+b", "b+a", 1),
    ("ab", "ba", 1),
    ("a/b", "\\frac{a}{b}", 1),
    ("90° - α", "90^\\circ-\\alpha", 1),
    ("90-\\frac{1}{2}α", "90° - α/2", 1),
    ("60 km/h", "60 km / h", 1),
    ("60", "60km/h", 1),
    ("1000", "1,000", 1),
    ("\\frac{24}{7}", "3.429", 1),
    ("3.43", "3.429", 0),
    ("3.4286", "3.429", 1),
    ("3.4", "3.429", 0),
    ("2.83", "2.828", 0),
    ("43.86°", "43.9", 1),
    ("0.666667", "2/3", 1),
    ("0.667", "2/3", 0),
    ("0.67", "\\frac{2}{3}", 0),
    ("\\emptyset", "∅", 1),
    ("no solution", "no solution", 1),
    ("(2, 3), (4, 5)", "(4,5),(2,3)", 1),
    ("A(2,3)", "(2,3)", 1),
    ("P = (2,3)", "(2,3)", 1),
    ("P(2, 3)", "(2,3)", 1),
    ("(2.0, 3.0)", "(2,3)", 1),
    ("(2,3)", "(3,2)", 0),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", 1),
    ("\\frac{4}{5}\\pi", "\\frac{4\\pi}{5}", 1),
    ("4/5 π", "\\frac{4π}{5}", 1),
    ("4π/5", "\\frac{4π}{5}", 1),
    ("\\pi r^2", "πr²", 1),
    ("24/5", "4.8", 1),
    ("24", "2.4", 0),
    ("13 cm", "12 cm", 0),
    ("8 - 4\\pi", "8", 0),
    ("3 = 4", "3", 0),
    ("3 ≈ 4", "3", 0),
    ("4 ≈ 3", "3", 0),
    ("3 = 3", "3", 1),
    ("1 = 2 = 3", "3", 1),
    ("1 = 2 = 3", "1", 0),
]


@pytest.mark.parametrize("answer, solution, want", SPELLINGS)
def test_math_spellings(answer, solution, want):
    assert compare.same_math(answer, solution) is bool(want)


@pytest.mark.parametrize(
    "answer, solution, want",
    [
        ("4π\nor approximately 12.57 units if you want a numerical approximation.", "4πcm", 1),
        ("4π or about 13.9", "4π", 0),
        ("\\(\\frac{4}{5}\\)\nor\n\\(0.8\\)", "\\frac{4}{5}", 1),
        ("EC is equal to 2.0.", "2", 1),
        ("0.10\nB", "0.10", 1),
        ("The length of line segment NC is 3.5.", "3.5", 1),
        ("\\[ r = \\frac{44}{2\\pi} \\approx \\frac{44}{6.283} \\approx 7.00 \\]", "$$r=7.00$$", 1),
        ("10.0 * tan(60.0) ≈ 10.0 * 2.2460 ≈ 22.7 meters", "10√{3}", 0),
        ("(-∞, 1] and [0, ∞)", "domain: (-\\infty, 1] and range: [0, \\infty)", 1),
        ("(-∞, 1) and [0, ∞)", "domain: (-\\infty, 1] and range: [0, \\infty)", 0),
        ("(20, 10)", "Center $=(20,10)$", 1),
        ("35°", "35掳", 1),
        ("9\\pi", "Area $=9 \\pi \\mathrm{cm}^{2}$", 1),
        ("33.51 cubic centimeters", "Volume $=33.51 \\mathrm{~cm}^{3}$", 1),
        ("16π", "16π平方米", 1),
        ("24.32amu", "24.32", 1),
        ("50 V", "50", 1),
        ("3X", "3", 0),
        ("The value cannot be determined.", "40°", 0),
        ("10", "$10km / h$", 1),
    ],
)
def test_sentences_labels_units(answer, solution, want):
    assert compare.same_math(answer, solution) is bool(want)


def test_a_list_of_accepted_answers():
    accepted = row("['24/7', '3.429']", "math")
    verdicts = [accuracy_reward(f"<answer>{a}</answer>", accepted) for a in ("\\frac{24}{7}", "3.429", "3")]
    assert verdicts == [1, 1, 0]


# -----------------------------------------------------------------------------
# boxes
# -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, want",
    [
        ("[1, 2, 3, 4]", [1, 2, 3, 4]),
        ('{"bbox_2d": [1, 2.5, 3, 4], "label": "cat"}', [1, 2.5, 3, 4]),
        ("1, 2, 3, 4", [1, 2, 3, 4]),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```', [1, 2, 3, 4]),
        ("(1,2),(3,4)", [1, 2, 3, 4]),
        ("the box is [1, 2, 3, 4].", [1, 2, 3, 4]),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", [1, 2, 3, 4]),
        ("[[1, 2, 3, 4], [1, 2, 3, 4]]", [1, 2, 3, 4]),
        ("[[1, 2, 3, 4], [1, 2, 3, 5]]", None),
        ("[1, 2, 3]", None),
        ("", None),
        ("[NaN, 2, 3, 4]", None),
        ("[true, 2, 3, 4]", None),
        ("__import__('os').system('true')", None),
        ("[" * 5000, None),
        ("[" + "9" * 400 + ", 2, 3, 4]", None),  # an integer that no float holds
    ],
)
def test_read_box(text, want):
    assert boxes.read_box(text) == want


def test_iou_equals_torchvision_on_random_boxes():
    import torch
    from torchvision.ops import box_iou

    corners = torch.rand(2, 10_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    low = torch.minimum(corners[..., :2], corners[..., 2:])
    high = torch.maximum(corners[..., :2], corners[..., 2:])
    a, b = torch.cat([low, high], -1)
    reference = [box_iou(a[i : i + 100], b[i : i + 100]).diagonal() for i in range(0, 10_000, 100)]
    ours = [boxes.iou(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert (torch.tensor(ours, dtype=torch.float64) - torch.cat(reference)).abs().max() < 1e-12


def test_iou_by_hand():
    assert boxes.iou([0, 0, 2, 2], [1, 1, 3, 3]) == 1 / 7 and boxes.iou([0, 0, 1, 1], [1, 0, 2, 1]) == 0
    assert boxes.iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0 and boxes.iou([2, 2, 0, 0], [0, 0, 2, 2]) == 0


def test_boxes_are_rescaled_from_the_policys_frame():
    truth = row("[64, 48, 320, 240]", "grounding") | {"image_size": (640, 480)}
    thousandths = truth | {"box_frame": (1000, 1000)}  # Qwen2-VL
    halved = truth | {"box_frame": (320, 240)}
    assert accuracy_reward("<answer>[100, 100, 500, 500]</answer>", thousandths) == 1
    assert accuracy_reward("<answer>[32, 24, 160, 120]</answer>", halved) == 1
    # no frame known: pixels of the image
    assert accuracy_reward("<answer>[100, 100, 500, 500]</answer>", truth) == 0
    assert rewards.iou_reward("<answer>[100, 100, 500, 500]</answer>", thousandths) == 1.0


def test_format_of_grounding_asks_for_json_with_a_box():
    good = '<think>left</think> <answer>```json\n{"bbox_2d": [1, 2, 3, 4]}\n```</answer>'
    bare_list = "<think>x</think><answer>[10, 10, 100, 100]</answer>"
    box = row("[1, 2, 3, 4]", "grounding")
    assert [format_reward(text, box) for text in (good, bare_list, good[20:])] == [1, 0, 0]


# -----------------------------------------------------------------------------
# the other reward parts, by hand from their papers' formulas
# -----------------------------------------------------------------------------


def test_length_rewards_by_hand():
    # right answers of 10, 20 and 30 tokens, a wrong one of 10 and one of 30
    assert rewards.length_rewards([1, 1, 1, 0, 0], [10, 20, 30, 10, 30], 100) == [0.5, 0.0, -0.5, 0.0, -0.5]
    assert rewards.length_rewards([1, 0], [7, 7], 100) == [0.0, 0.0]


def test_cosine_rewards_by_hand():
    right = rewards.cosine_rewards([1] * 4, [0, 500, 1000, 2000], 1000)
    wrong = rewards.cosine_rewards([0] * 4, [0, 500, 1000, 2000], 1000)
    assert right == pytest.approx([1.0, 0.75, 0.5, 0.5]) and wrong == pytest.approx([-0.5, -0.25, 0.0, 0.0])


def test_repetition_steps_fuzzy_by_hand():
    # trigrams abc bca cab abc: 3 of 4 distinct
    assert rewards.repetition_reward("a b c a b c", {}) == pytest.approx(3 / 4 - 1)
    assert [rewards.repetition_reward(text, {}) for text in ("a b c d e", "", "一")] == [0.0, 0.0, 0.0]
    assert rewards.reasoning_steps_reward("Step 1: x\nStep 2: y", {}) == pytest.approx(2 / 3)
    assert rewards.reasoning_steps_reward("First, a. Second, b. Next, c. Finally, d.", {}) == 1.0
    texts = ("red cubes", "red cube", "blue ball")
    fuzzy = [rewards.fuzzy_reward(f"<answer>{text}</answer>", row("red cubes", "text")) for text in texts]
    assert fuzzy == [1.0, 0.1, 0.0]
    assert rewards.fuzzy_reward("<answer>13 cm</answer>", row("12 cm", "math")) == 0.0
    # the longest common subsequence is "ittn"
    assert rewards.likeness("kitten", "sitting") == pytest.approx(8 / 13)


def test_a_row_may_choose_its_parts_and_a_group_is_scored_together():
    texts = ["<think>a</think><answer>3</answer>", "<answer>4</answer>"]
    names = ("accuracy", "format")
    own = row("3", "count") | {"reward_func": "accuracy, length"}
    parts = rewards.score_group(texts, own, names, [10, 20], 50)
    assert parts == [{"accuracy": 1.0, "length": 0.5}, {"accuracy": 0.0, "length": -0.5}]
    default = row("3", "count") | {"reward_func": "default"}
    assert set(rewards.score_group(texts, default)[0]) == {"accuracy", "format"}


PARTS = [*rewards.REWARDS, *rewards.GROUP_REWARDS]


@pytest.mark.parametrize("name", PARTS)
def test_a_row_may_choose_each_part(name):
    for named in (name, [name], (name,)):
        want = [] if name == "iou" else [name]  # "iou" alone is OpenV-R1's word for grounding, see below
        assert rewards.own_parts(named) == want
    assert rewards.own_parts(["format", name]) == rewards.own_parts(f"format, {name}") == ["format", name]


@pytest.mark.parametrize("named", [None, "", [], (), "iou", "default", ["iou"], ["default"], ("iou",)])
def test_a_row_that_chooses_no_part_gets_those_of_the_knob(named):
    assert rewards.own_parts(named) == []
    assert rewards.parts_of({"reward_func": named}, ("accuracy", "my_rewards:brevity")) == [
        "accuracy",
        "my_rewards:brevity",
    ]


def test_parts_of_a_row():
    assert rewards.parts_of({}, ("accuracy",)) == ["accuracy"]
    assert rewards.parts_of({"reward_func": "format, length"}, ("accuracy",)) == ["format", "length"]
    with pytest.raises(ValueError, match="'trap:score'.*data cannot name other functions"):
        rewards.parts_of({"reward_func": "trap:score"}, ("accuracy",))


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that Python would find, and that leaves a file behind when it is imported."""
    ran = tmp_path / "RAN"
    (tmp_path / "trap.py").write_text(f"open({str(ran)!r}, 'w')\n\ndef score(*args):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield ran
    sys.modules.pop("trap", None)
    rewards.reward_function.cache_clear()


@pytest.mark.parametrize(
    "named, sentence",
    [
        ("trap:score", "reward_func 'trap:score' is none of accuracy, cosine, format"),
        ("trap", "reward_func 'trap' is none of"),
        ("accuracy, trap:score", "reward_func 'trap:score' is none of"),
        (["accuracy", "trap:score"], "reward_func 'trap:score' is none of"),
        (("trap:score",), "reward_func 'trap:score' is none of"),
        ("iou, trap:score", "reward_func 'trap:score' is none of"),
        (["default", "accuracy"], "reward_func 'default' is none of"),  # OpenV-R1's word stands alone
        ("Accuracy", "reward_func 'Accuracy' is none of"),
        ("accuracy,", "reward_func '' is none of"),
        (5, "reward_func 5 is no name of a reward part"),
        (True, "reward_func True is no name of a reward part"),
        ({"accuracy": 1.0}, "reward_func {'accuracy': 1.0} is no name of a reward part"),
        ([{"name": "trap:score"}], "is none of .*; data cannot name other functions, --reward_weights can"),
        ([["accuracy"]], "is none of"),
        ([None], "reward_func 'None' is none of"),
        ([3], "reward_func '3' is none of"),
    ],
)
def test_data_cannot_name_anything_else(trap, named, sentence):
    own = row("3", "count") | {"reward_func": named}
    for ask in (
        lambda: rewards.own_parts(named),
        lambda: rewards.parts_of(own, ("accuracy",)),
        lambda: score("<answer>3</answer>", own),
        lambda: rewards.score_group(["<answer>3</answer>"], own),
    ):
        with pytest.raises(ValueError, match=sentence):
            ask()
    assert not trap.exists() and "trap" not in sys.modules


def test_the_knob_can_name_what_data_cannot(trap):
    assert score("<answer>3</answer>", row("3", "count"), names=("trap:score",)) == {"trap:score": 1.0}
    assert trap.exists()  # so the tests above would have seen an import


def test_the_table_of_parts_is_the_only_list_of_names():
    assert not set(rewards.REWARDS) & set(rewards.GROUP_REWARDS)
    assert set(rewards.READS_ANSWER) <= set(rewards.REWARDS.values())
    with pytest.raises(ValueError) as error:
        rewards.own_parts("nope")
    assert ", ".join(sorted(PARTS)) in str(error.value)


def test_a_group_is_compared_by_accuracy_even_if_that_is_no_part():
    texts = ["<answer>3</answer>", "<answer>4</answer>"]
    parts = rewards.score_group(texts, row("3", "count"), ("length", "format"), [10, 20], 50)
    assert parts == [{"format": 0.0, "length": 0.5}, {"format": 0.0, "length": -0.5}]


def test_a_reference_with_brackets_and_quotes_may_be_a_text():
    assert rewards.references(row("['a', 'b']", "text")) == ["a", "b"]
    assert rewards.references(row("['a' and 'b']", "text")) == ["['a' and 'b']"]


def test_a_users_own_function(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def brevity(completion, row):\n    return 1 / len(completion)\n")
    monkeypatch.syspath_prepend(tmp_path)
    weights = rewards.check_weights({"accuracy": 1.0, "my_rewards:brevity": 2.0})
    parts = score("<answer>3</answer>", row("3", "count"), names=weights)
    assert total(parts, weights) == pytest.approx(1 + 2 / 18)
    with pytest.raises(SystemExit, match="my_rewards:longest"):
        rewards.check_weights({"my_rewards:longest": 1.0})


def test_environment_variables_of_the_seeds(monkeypatch, tmp_path):
    monkeypatch.setenv("FORMAT_REWARD_FACTOR", "0.5")
    assert rewards.check_weights({"accuracy": 1.0, "format": 1.0}) == {"accuracy": 1.0, "format": 0.5}
    monkeypatch.setenv("DEBUG_MODE", "true")
    with pytest.raises(SystemExit, match="LOG_PATH"):
        rewards.debug_log(["x"], [row("3", "count")], [1.0])
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "log.txt"))
    rewards.debug_log(["one", "two"], [row("3", "count")] * 2, [1.0, 0.0])
    rewards.debug_log(["three"], [row("3", "count")], [0.5], rank=1)
    text = (tmp_path / "log.txt").read_text()
    for entry in ("content: one", "content: two", "reward: 1.0", "solution: 3"):
        assert entry in text
    assert "three" in (tmp_path / "log.txt.rank1").read_text()


def test_the_pool_gives_the_same_parts_and_survives_hard_answers():
    groups = [
        ["<answer>\\sqrt{12}</answer>", "<answer>2</answer>"],
        ["<answer>9^{9^9}</answer>", "<answer>B</answer>"],
    ]
    rows = [row("2√{3}", "math"), row("B", "choice") | {"images": [object()]}]
    alone, pool = rewards.Scorer(0), rewards.Scorer(2)
    want = [
        [{"accuracy": 1.0, "format": 0.0}, {"accuracy": 0.0, "format": 0.0}],
        [{"accuracy": 0.0, "format": 0.0}, {"accuracy": 1.0, "format": 0.0}],
    ]
    try:
        assert pool.score(groups, rows) == alone.score(groups, rows) == want
    finally:
        pool.close()


@pytest.mark.parametrize("cut_short, empty", [("parse", []), ("verify", False)])
def test_what_the_alarm_cut_short_is_not_remembered(cut_short, empty, monkeypatch):
    def swallows_the_alarm(*args, **settings):
        try:
            work_for_ever("")
        except BaseException:
            return empty

    symbolic.load_sympy()
    symbolic.forget_half_done()
    with monkeypatch.context() as patch:
        patch.setattr(symbolic, "COMPARISON", 0.1)
        patch.setattr(f"math_verify.{cut_short}", swallows_the_alarm)
        assert symbolic.same_expression("\\sqrt{12}", "2\\sqrt{3}") is False
    assert symbolic.same_expression("\\sqrt{12}", "2\\sqrt{3}") is True


def work_for_ever(text):
    while True:
        pass


def test_symbolic_work_is_stopped_after_its_time(caplog):
    before, started = symbolic.timeouts, time.thread_time()
    assert symbolic.symbolic(work_for_ever, "x+1") is None
    assert 0.9 < time.thread_time() - started < 2
    assert symbolic.timeouts == before + 1 and "counts as wrong" in caplog.text
    assert symbolic.symbolic(lambda text: text, "x+1") == "x+1"  # the alarm is off again


def test_an_alarm_within_the_parser_poisons_no_cache(monkeypatch):
    """Wherever the alarm falls: the verdict of that time is wrong, and the next one right again."""
    symbolic.load_sympy()
    before = symbolic.timeouts
    for milliseconds in (1, 2, 3, 5, 8, 12, 20, 30):
        symbolic.verified.cache_clear()
        symbolic.forget_half_done()
        monkeypatch.setattr(symbolic, "COMPARISON", milliseconds / 1000)
        symbolic.same_expression("\\frac{\\sqrt{12}}{4} + \\sin(x)", "\\sin(x) + \\frac{\\sqrt{3}}{2}")
        monkeypatch.setattr(symbolic, "COMPARISON", 10.0)
        assert symbolic.same_expression("\\frac{\\sqrt{12}}{4} + \\sin(x)", "\\sin(x) + \\frac{\\sqrt{3}}{2}")
    assert symbolic.timeouts > before


def test_an_alarm_that_is_swallowed_counts():
    def swallows(text):
        try:
            work_for_ever(text)
        except BaseException:
            return True

    assert symbolic.attempt(swallows, "x", seconds=0.1) is None
    assert symbolic.attempt(swallows, "x", seconds=0.1) is None  # the alarm rings each time


def test_the_time_of_other_threads_and_of_waiting_does_not_count():
    def wait(seconds):
        time.sleep(seconds)
        return "done"

    def burn():
        until = time.time() + 1.0
        while time.time() < until:
            hashlib.sha256(bytes(2**22)).digest()  # without the lock of the interpreter

    burning = threading.Thread(target=burn)
    burning.start()
    assert symbolic.attempt(wait, 1.0, seconds=0.3) == "done"
    burning.join()


def test_all_references_and_parts_share_one_limit(monkeypatch):
    monkeypatch.setitem(rewards.VERIFIERS, "math", lambda answer, solution, row: work_for_ever(answer))
    ten = row(str([f"{i}/7" for i in range(10)]), "math")
    started = time.thread_time()
    parts = score("<think>x</think><answer>3</answer>", ten, names=("format", "accuracy", "fuzzy", "iou"))
    assert time.thread_time() - started < 2.5
    assert parts["format"] == 1.0 and parts["accuracy"] == parts["fuzzy"] == 0.0


@pytest.mark.parametrize(
    "error", [OverflowError, RecursionError, MemoryError, ValueError, KeyError, re.error]
)
def test_a_comparison_that_fails_is_wrong_and_counted(error, monkeypatch):
    def fails(answer, solution, row):
        raise error("x")

    monkeypatch.setitem(rewards.VERIFIERS, "math", fails)
    before = symbolic.failures[error.__name__]
    parts = score("<think>x</think><answer>3</answer>", row("3", "math"))
    assert parts == {"accuracy": 0.0, "format": 1.0}
    assert symbolic.failures[error.__name__] == before + 1


@pytest.mark.slow
def test_right_answers_stay_right_in_fresh_processes_under_load():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    code = "from tasks.grading import same_math; print(same_math('\\\\sqrt{12}', '2\\\\sqrt{3}'))"
    try:
        command = [sys.executable, "-c", code]
        fresh = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, process_group=0)
            for _ in range(4)
        ]
        assert [process.communicate(timeout=120)[0].strip() for process in fresh] == ["True"] * 4
    finally:
        for process in busy:
            process.kill()
            process.wait()


LONG = ["9" * 5000, "1" + "0" * 309, "0." + "0" * 400, "٣" * 500, "²" * 500, "(" * 3000, "\\frac{" * 900]
LONG += ["[1e308, -1e308, 1e308, 1e308]", "[9e999, 1, 2, 3]", "x^" * 900, '{"a":' * 900, "\n" * 9000]
# fmt: off
ODD = [
    "1e999999", "10**10**10", "1000000!", "nan", "Infinity", "-0", "i", "\\pi", "\u202e",
    "Ⅻ", "①", "３", "null",
    "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "\\int", "\\sum_{n=1}^{99}", "\\log",
    "|", "<", "\\cup",
]
# fmt: on


def test_no_completion_and_no_reference_is_more_than_a_score():
    rng = random.Random(1)

    def text():
        return "".join(rng.choices(PIECES + ODD, k=rng.randint(0, 12))) + rng.choice(["", *LONG]) * (
            rng.random() < 0.2
        )

    for _ in range(400):
        asked = row(text() or "3", rng.choice(sorted(rewards.VERIFIERS))) | {"problem": text()}
        if rng.random() < 0.2:
            asked["options"] = [text() for _ in range(10)]
        texts = [f"<think>{text()}</think><answer>{text()}</answer>", text(), f"so \\boxed{{{text()}}}"]
        started = time.thread_time()
        scored = rewards.score_group(texts, asked, PARTS, [1, 2, 3], 9, rng.random() < 0.5)
        assert time.thread_time() - started < 3 * 2.5
        assert all(type(part) is float and -1 <= part <= 1 for parts in scored for part in parts.values())


@pytest.mark.parametrize(
    "box", ["[1e308, -1e308, 1e308, 1e308]", "[" + "9" * 400 + ", 2, 3, 4]", "[1e999, 0, 1, 1]"]
)
def test_a_box_beyond_any_image_is_none(box):
    parts = score(
        f"<answer>{box}</answer>", row("[1, 2, 3, 4]", "grounding"), names=("accuracy", "iou", "format")
    )
    assert parts == {"accuracy": 0.0, "iou": 0.0, "format": 0.0}


# -----------------------------------------------------------------------------
# answers in the manner of real outputs, invented and judged by hand: tests/data/answers.jsonl
# -----------------------------------------------------------------------------


def test_agreement_with_verdicts_by_hand():
    path = Path(ROOT, "tests", "data", "answers.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ours = [score(r["output"], r, strict=False)["accuracy"] for r in rows]
    paid_for_nothing = [r["output"][-80:] for x, r in zip(ours, rows, strict=True) if x and not r["right"]]
    assert not paid_for_nothing
    assert sum(bool(x) == r["right"] for x, r in zip(ours, rows, strict=True)) >= 0.99 * len(rows)


# -----------------------------------------------------------------------------
# real outputs with careful verdicts, where they lie beside the checkout
# -----------------------------------------------------------------------------

REGRADE = Path(ROOT).parent / "shared" / "regrade"


@pytest.mark.skipif(not REGRADE.is_dir(), reason="the graded outputs are not here")
@pytest.mark.parametrize(
    "name, least",
    [
        ("superclevr_200", 0.99),
        ("superclevr_5k", 0.99),
        ("geoqa", 0.97),
        ("mathverse", 0.96),
        ("mathvision", 0.96),
        ("mmmu", 0.96),
    ],
)
def test_agreement_with_careful_verdicts(name, least):
    rows = [json.loads(line) for line in (REGRADE / f"{name}.dev.jsonl").read_text().splitlines()]
    ours = []
    for r in rows:
        asked = row(r["ground_truth"], r["task"]) | {"problem": r["question"]}
        ours.append(score(r["output"], asked, strict=False)["accuracy"])
    assert sum(bool(x) == r["gold"] for x, r in zip(ours, rows, strict=True)) >= least * len(rows)
    assert sum(x and not r["gold"] for x, r in zip(ours, rows, strict=True)) <= 0.015 * len(rows)


# -----------------------------------------------------------------------------
# any text at all
# -----------------------------------------------------------------------------

# fmt: off
MORE = [
    "\\approx", "\\leq", "\\infty", "\\pm", "[", "]", ":", "∪",
    "and ", "is ", "(A) ", "B. ", "10^", "1/2",
]
# fmt: on
LATEX = st.lists(st.sampled_from(PIECES + MORE), max_size=30).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(LATEX, st.text(max_size=200), st.text(max_size=20).map(lambda t: t * 5000)),
    st.one_of(LATEX, st.text(max_size=40)),
    st.sampled_from(sorted(grading.VERIFIERS)),
)
def test_any_text_is_scored_quickly_and_twice_the_same(text, solution, task):
    given_row = row(solution or "3", task) | {"problem": solution}
    names = ("accuracy", "format", "iou", "fuzzy", "reasoning_steps", "repetition")
    for completion, strict in ((f"<answer>{text}</answer>", True), (text, False)):
        started = time.process_time()  # not the clock on the wall: the machine may be busy
        first = score(completion, given_row, strict, names)
        assert time.process_time() - started < 2
        for cached in (symbolic.verified, symbolic.constant_ratio, symbolic.real_value):
            cached.cache_clear()
        assert score(completion, given_row, strict, names) == first
        assert all(-1 <= part <= 1 for part in first.values())
