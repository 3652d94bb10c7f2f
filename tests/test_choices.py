"""Options: which one an answer names. All expectations are worked out by hand."""

import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
from tasks.grading import choices  # noqa: E402


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
