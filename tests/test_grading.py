"""The grader as a whole: defects of earlier ones, recorded outputs with careful verdicts."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)
import rewards  # noqa: E402
from rewards import accuracy_reward, score  # noqa: E402


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


def test_a_list_of_accepted_answers():
    accepted = row("['24/7', '3.429']", "math")
    verdicts = [accuracy_reward(f"<answer>{a}</answer>", accepted) for a in ("\\frac{24}{7}", "3.429", "3")]
    assert verdicts == [1, 1, 0]


def test_a_reference_with_brackets_and_quotes_may_be_a_text():
    assert rewards.references(row("['a', 'b']", "text")) == ["a", "b"]
    assert rewards.references(row("['a' and 'b']", "text")) == ["['a' and 'b']"]


# -----------------------------------------------------------------------------
# what must hold for every completion
# -----------------------------------------------------------------------------

COLOURS = ["red", "blue", "green", "yellow"]
CHOICE = {"task": "choice", "problem": "Which?\nA. red\nB. blue\nC. green\nD. yellow"}
TIMES = ["half", "quarter", "quarter to", "quarter past"]
LENGTHS = ["35°", "3.5 cm", "$\\frac{1}{2}$", "12 cm"]
BOXES = ["[10, 20, 110, 220]", "[200, 20, 310, 220]", "[10, 300, 110, 420]"]

# a problem, and references to it of which no answer can be right for two
PROBLEMS = [
    ({"task": "count"}, ["0", "1", "2", "3", "4", "12", "13", "70", "71"]),
    ({"task": "auto"}, ["0", "2", "3", "4", "23", "32", "100", "102", "-3"]),
    ({"task": "math"}, ["0.1", "0.2", "2.5", "2.65", "13.37", "13.59", "0", "2", "25", "\\frac{9}{4}"]),
    ({"task": "math"}, ["2\\sqrt{3}", "3", "2", "\\pi", "3.5", "150cm", "153cm", "x + 1", "x"]),
    ({"task": "math"}, ["(0, 1)", "[0, 1)", "(1, 0)", "0", "1", "(0, 2)", "1, 2", "1, 3"]),
    ({"task": "math"}, ["red", "blue", "cube", "yes", "no", "odd", "even"]),
    ({"task": "text"}, ["red", "blue", "the Severn", "cube", "yes", "no", "red cube"]),
    ({"task": "auto"}, ["red", "blue", "cube", "yes", "no", "3", "A", "B"]),
    (CHOICE, ["A", "B", "C", "D", "A, B", "B, C", "A, B, C"]),
    (CHOICE, COLOURS),
    ({"task": "choice", "problem": "When?", "options": TIMES}, TIMES),
    ({"task": "choice", "problem": "When?", "options": TIMES}, ["A", "B", "C", "D"]),
    ({"task": "choice", "problem": "How long?", "options": LENGTHS}, ["A", "B", "C", "D", "A, C"]),
    ({"task": "choice", "problem": "Which?"}, ["A", "B", "C", "D", "A\nC"]),
    ({"task": "grounding", "problem": "Where?"}, BOXES),
    ({"task": "auto", "problem": "Where?"}, BOXES),
]
# fmt: off
TEMPTING = [
    " ", " or ", " and ", " is ", "is ", ", ", "; ", "/", " / ", "\n", " = ", "=", " not ", " but ", "-", "+",
    ".", "(", ")", "[", "]", "{", "}", "$", "**", "\\boxed{", "\\text{", "\\approx ", " approximately ",
    "about ", "the answer is ", "answer: ", "maybe ", "either ", "both ", "all of ", "none of ", "option ",
    "no, ", "yes, ", "A", "B", "C", "(B)", "C. ", "D) ", "1", "2", "3", "0", ".0", "°", " cm", "%", "x = ",
    "y = ",
    "there are ", "</answer>", "<answer>", "</Answer><ANSWER>", "two ", "three", "the ", "a ", "left: ", "?",
    '{"bbox_2d": ', "\\pm ", "\\frac{1}{2}", "\\sqrt{3}", "(red)", "red", "blue", " (", ": ", " to ", " | ",
    "\\cup ", " vs ", "~", " was ", "looks ", "points to ", " (= ", " (", "it isn't ", "it's ",
    "not ", "，", "和", " e ", " is the ", " in ", "so ", "statements ", "true ", "mm", "made of ", "says ",
]
# fmt: on


@st.composite
def temptations(draw):
    """(row without solution, references, completion): the references between pieces that tempt a grader."""
    asked, wanted = draw(st.sampled_from(PROBLEMS))
    piece = st.one_of(st.sampled_from(wanted), st.sampled_from(wanted), st.sampled_from(TEMPTING))
    pieces = draw(st.lists(piece, min_size=1, max_size=7))
    return asked, wanted, f"<answer>{draw(st.sampled_from(['', ' '])).join(pieces)}</answer>"


@settings(max_examples=900, deadline=None)
@given(temptations())
def test_no_completion_is_right_for_two_references(tempting):
    asked, wanted, completion = tempting
    right = [s for s in wanted if score(completion, {"problem": "?", **asked, "solution": s})["accuracy"]]
    assert len(right) <= 1, (completion, right)


# answers that try to say two things, for texts, numbers and letters
SAID_TWICE = """
is red is blue|The cube is red and the ball is blue|The cube is red. The ball is blue.
It is red, it is blue.|It is red|is blue|It looks red but is blue|The cube looks red is blue
It says red reads blue|It points north faces south|Yes, no|No it is yes|Yes, it is no|Yes it is red
No, it is false|I doubt it is red|It is false that it is red|red is the cube|red has the most blue
red is the tallest|The red one is the blue one|red is the answer is blue|Not red is blue|Yes red|in red
made of red named blue|The answer is red: blue|red: blue|yes: no|true is the answer|yes; true
No dog is there|It was 3 or 4|It was 3 was 4|4 is 3|There are 3 are 4|3 = 4|3 = 4 = 3|2x = 3 = 4|4 = 2x
3 (= 4)|3 (4)|3 (or 4)|4: 3|Area: 3 Area: 4|x = 3 = y = 4|3 × 1 = 3, so 4|3 cm = 4 mm|3.6 = 4
4 = 3.6 = 3|Area: 3\\boxed{4}|in 3 or 4|was 3, was 4|It isn't A, B, C|not A but B, not C|A, not A|A or B
A o B|(B) is red|red is B|A, red, B|The blue one is (A), red|A and B are not right|A? B|A... B
A is red is B|The arrow points to A. red, B. blue|B shows A, red
3 It is red|= 3 It is red|(= 3) It is made of red|Three are red|I can see 3 is red
No: A|only A or B
"""


@pytest.mark.parametrize(
    "answer", [part for line in SAID_TWICE.strip().split("\n") for part in line.split("|")]
)
def test_what_says_two_things_is_not_paid_twice(answer):
    words = [
        "red",
        "blue",
        "green",
        "cube",
        "ball",
        "yes",
        "no",
        "true",
        "false",
        "north",
        "south",
        "tallest",
    ]
    numbers = ["3", "4", "7", "9", "12", "3.6", "2x"]
    letters = ["A", "B", "C", "AB", "BC", "ABC"]
    for asked, wanted in [
        ({"task": "text"}, words + numbers[:2]),
        ({"task": "math", "problem": "Find 2x."}, words + numbers),
        ({"task": "auto", "problem": "Find 2x."}, words + numbers),
        ({"task": "count"}, numbers),
        (CHOICE, letters),
        (CHOICE, COLOURS),
    ]:
        completion = f"<answer>{answer}</answer>"
        right = [s for s in wanted if score(completion, {"problem": "?", **asked, "solution": s})["accuracy"]]
        assert len(right) <= 1, (asked["task"], right)


PAYING = [  # an answer, its row's task, a reference: right and wrong ones
    ("5", "count", "5"),
    ("5", "count", "6"),
    ("5 cubes", "count", "5"),
    ("3 or 4", "count", "3"),
    ("\\frac{1}{2}", "math", "0.5"),
    ("2\\sqrt{3}", "math", "2√{3}"),
    ("2\\sqrt{3}", "math", "3√{2}"),
    ("12 cm", "math", "12"),
    ("13 cm", "math", "12cm"),
    ("x = 5", "math", "5"),
    ("(0, 1]", "math", "(0, 1]"),
    ("(0, 1]", "math", "[0, 1)"),
    ("70 or 71", "math", "70"),
    ("red", "text", "red"),
    ("red cubes", "text", "red cube"),
    ("red", "math", "red"),
    ("B", "choice", "B"),
    ("(B) blue", "choice", "B"),
    ("blue", "choice", "B"),
    ("B", "choice", "blue"),
    ("red", "choice", "B"),
    ("A, B", "choice", "B"),
    ("5", "auto", "5"),
    ("-5", "auto", "5"),
]
DECORATIONS = [
    " {} ", "\n{}\n", "\t{}", "{}.", "**{}**", "$ {} $", "${}$", "\\( {} \\)", "\\[{}\\]", "\\boxed{{{}}}",
]  # fmt: skip
TAGS = [
    "<answer>{}</answer>",
    "<ANSWER>{}</Answer>",
    "<think>3?</think>\n< answer >{}</ answer> ",
    "{0}<answer>{0}</answer>",
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PAYING), st.lists(st.sampled_from(DECORATIONS), max_size=3), st.sampled_from(TAGS))
def test_decoration_changes_no_verdict(paying, decorations, tags):
    answer, task, solution = paying
    asked = {**CHOICE, "task": task, "solution": solution}
    plain = score(f"<answer>{answer}</answer>", asked)["accuracy"]
    decorated = answer
    for decoration in decorations:
        decorated = decoration.format(decorated)
    assert score(tags.format(decorated), asked)["accuracy"] == plain, (decorated, plain)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PAYING), st.lists(st.sampled_from(DECORATIONS[:7]), max_size=2))
def test_decoration_of_the_reference_changes_no_verdict(paying, decorations):
    answer, task, solution = paying
    plain = score(f"<answer>{answer}</answer>", {**CHOICE, "task": task, "solution": solution})["accuracy"]
    for decoration in decorations:
        solution = decoration.format(solution)
    asked = {**CHOICE, "task": task, "solution": solution}
    assert score(f"<answer>{answer}</answer>", asked)["accuracy"] == plain, (solution, plain)


@settings(max_examples=150, deadline=None)
@given(
    st.permutations(COLOURS),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["{0}", "({0})", "{0}. {1}", "{1}", "{0} ({1})", "The answer is {0}: {1}."]),
)
def test_the_order_of_the_options_does_not_matter(options, given_at, right_at, wording):
    answer = wording.format("ABCD"[given_at], options[given_at])
    asked = {"task": "choice", "problem": "Which?", "options": options}
    for solution in ("ABCD"[right_at], options[right_at]):
        verdict = score(f"<answer>{answer}</answer>", {**asked, "solution": solution})["accuracy"]
        assert verdict == (given_at == right_at), (answer, solution)


def test_agreement_with_verdicts_by_hand():
    path = Path(ROOT, "tests", "data", "answers.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ours = [score(r["output"], r, strict=False)["accuracy"] for r in rows]
    paid_for_nothing = [r["output"][-80:] for x, r in zip(ours, rows, strict=True) if x and not r["right"]]
    assert not paid_for_nothing
    assert sum(bool(x) == r["right"] for x, r in zip(ours, rows, strict=True)) >= 0.99 * len(rows)


def test_spellings_hacks_and_hedges_by_hand():
    """Boxes, letters, formulas, units, sentences, chains in the manner of many models; half of them wrong."""
    path = Path(ROOT, "tests", "data", "spellings.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wrong = []
    for r in rows:
        if bool(score(r["output"], r, r["strict"])["accuracy"]) != r["right"]:
            wrong.append((r["id"], r["solution"], r["output"][-60:]))
    assert not wrong


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
