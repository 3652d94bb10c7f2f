"""Grading: what does a completion answer, and is that right? rewards.py pays for it.

Only the content of the last <answer>...</answer> is ever compared with the reference. A grader that reads the
whole completion pays for any number in the reasoning: "<think>there are 3 cubes</think><answer>5</answer>"
earned 1.0 for a reference of 3 in earlier R1-style code, and a policy finds that out quickly (it is cheaper
to list many numbers than to count). The last tag, not the first, because models draft answers; not any tag,
because then listing all of them pays.

task       the answer is right if it is ...           right                           wrong
count      one integer, the same                      "3 cubes", "2 + 1 = 3"          "3 or 4", "at least 3"
choice     the same option, by letter or by its text  "(B) red", "b", "red"           "B, D"; "A cat" for A
math       the same number, expression, interval ...  "1/2" for 0.5, "2√3" for √{12}  "13 cm" for 12 cm
grounding  one box, IoU > 0.5 with the reference      {"bbox_2d": [9, 9, 99, 99]}     two boxes
text       the same text, perhaps in a sentence       "Red  cube." for red cube       "red cubes"
relaxed    a number within 5 %, the same text         "12.4" for 12                   "12" for 12%
anls       a similar text, 0 to 1                     "CocaCola" for Coca Cola: 0.89  "Coca" for Coca Cola
vqa        what several people have said, 0 to 1      one of ten: 0.3, four of ten: 1
auto       right by the rule that the look of the reference suggests

relaxed, anls and vqa are the metrics of tasks/metrics.py. A new task is one short function and one line in
VERIFIERS.

The stages, a file each, in their order: find.py (evaluation falls back on conclusion.py), clean.py, split.py,
then by kind compare.py, words.py, choices.py, boxes.py. Which of their rules decided about an answer:

    python -m tasks.grading "3 cubes" 3 --task=count
    right:     by the rule 'the same number of things'
    python -m tasks.grading "So there are 4 + 6 = 10 flocks." 4 --task=count --lenient
    wrong:     by the rule 'the same number of things'
    python -m tasks.grading "quarter to" quarter --task=choice --options="half;quarter;quarter to"
    wrong:     by the rule 'the same options'
"""

import ast
import re

from tasks.grading.boxes import same_box
from tasks.grading.choices import same_choice
from tasks.grading.compare import same_count, same_math
from tasks.grading.find import extract_answer, last_tagged  # noqa: F401
from tasks.grading.patterns import NUMBER
from tasks.grading.stages import note
from tasks.grading.words import same_text
from tasks.metrics import anls, relaxed, vqa

BOX = re.compile(rf"\s*\[(?:\s*{NUMBER}\s*,){{3}}\s*{NUMBER}\s*\]\s*")


def task_of(row: dict) -> str:
    """The task of a row; "grounding" for one of the task "auto" whose reference is a box."""
    task = row.get("task", "auto")
    if task == "auto" and any(BOX.fullmatch(solution) for solution in references(row)):
        return "grounding"
    return task


def same_auto(answer: str, solution: str, row: dict | None = None) -> bool:
    """By the rule that the look of the reference suggests.

    A letter is a choice, four numbers in brackets are a box, an integer is a count or math, anything else
    with digits or mathematical signs is math, the rest is text.
    """
    if re.fullmatch(r"\(?[A-Z]\)?\.?", solution.strip()):
        return same_choice(answer, solution, row)
    if BOX.fullmatch(solution):
        return same_box(answer, solution, row)
    if re.fullmatch(r"[-+]?\d+", solution.strip()) and same_count(answer, solution, row):
        return True
    if re.search(r"[\d\\√π=^]", solution):
        return same_math(answer, solution, row)
    return same_text(answer, solution)


VERIFIERS = {
    "count": same_count,
    "choice": same_choice,
    "math": same_math,
    "grounding": same_box,
    "text": same_text,
    "relaxed": relaxed,
    "anls": anls,
    "vqa": vqa,
    "auto": same_auto,
}
TAKES_ALL = (vqa,)  # verifiers that compare with all accepted answers at once; of the others the best counts


def references(row: dict) -> list[str]:
    """The accepted answers of a row, usually one: a solution "['24/7', '3.429']" is a list of them."""
    solution = str(row["solution"])
    tagged = last_tagged(solution)  # data sets of the R1 family ship the reference inside tags
    if tagged is not None:
        solution = tagged
    solution = solution.strip()
    if len(solution) < 100_000 and re.match(r"\[\s*['\"]", solution) and re.search(r"['\"]\s*\]$", solution):
        try:
            return [str(text) for text in ast.literal_eval(solution)]
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # a text with brackets and quotes
            return [solution]
    return [solution]


def verdict(answer: str, row: dict) -> float:
    """How right an answer is by the rule of row["task"], 0 to 1: of several references by the best.

    Raises KeyError for a task without a verifier.
    """
    is_right = VERIFIERS[row.get("task", "auto")]
    if is_right in TAKES_ALL:
        return float(is_right(answer, references(row), row))
    best = 0.0
    accepted = references(row)
    for solution in accepted:
        if len(accepted) > 1:
            note("compare", f"with the reference {solution}")
        best = max(best, float(is_right(answer, solution, row)))
        if best == 1:
            break  # the others could cost a symbolic comparison each
    return best
