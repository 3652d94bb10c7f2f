"""The grader as a whole: defects of earlier ones, recorded outputs with careful verdicts."""

import json
import sys
from pathlib import Path

import pytest

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


def test_agreement_with_verdicts_by_hand():
    path = Path(ROOT, "tests", "data", "answers.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ours = [score(r["output"], r, strict=False)["accuracy"] for r in rows]
    paid_for_nothing = [r["output"][-80:] for x, r in zip(ours, rows, strict=True) if x and not r["right"]]
    assert not paid_for_nothing
    assert sum(bool(x) == r["right"] for x, r in zip(ours, rows, strict=True)) >= 0.99 * len(rows)


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
