"""Stage 1, find: the answer in a completion. In training one rule, in evaluation a list of them in order."""

import re

from tasks.grading.boxes import said_box
from tasks.grading.conclusion import CONCLUSIONS, MARKUP, is_cut_off
from tasks.grading.stages import note

OPENING = r"<\s{0,3}answer\s{0,3}>"  # <answer>, and in any case: <ANSWER>, < Answer >
OPENING_TAG = re.compile(OPENING, re.IGNORECASE)
CLOSING = r"<\s{0,3}/\s{0,3}answer\s{0,3}>"
# no tag inside: of nested tags the innermost pair is the answer, and the search stays linear on hostile input
OTHER_TAG = r"<(?!\s{0,3}/?\s{0,3}answer\s{0,3}>)"
ANSWER = re.compile(rf"{OPENING}([^<]*(?:{OTHER_TAG}[^<]*)*){CLOSING}", re.IGNORECASE)


def extract_answer(completion: str, strict: bool = True, task: str = "auto") -> str | None:
    """The content of the last <answer>...</answer>, stripped, wherever it stands; None if there is none.

    strict=True (training) accepts nothing else, so an unclosed tag is no answer. strict=False (evaluation,
    where models never saw the tags) falls back to the rules of LENIENT, in their order; for the task
    "grounding" to a box in plain text.

    >>> extract_answer("<think>3?</think> <answer> 4 </answer>")
    '4'
    >>> extract_answer("So there are 2 + 2 = 4 cubes.", strict=False)
    '4'
    """
    answer = last_tagged(completion)
    if answer is not None:
        note("find", f"the last <answer> tag: {answer}")
        return answer
    if strict:
        note("find", "no closed <answer> tag")
        return None
    if task == "grounding":
        answer = said_box(completion)
        note("find", f"the box that the text says last: {answer}")
        return answer
    text = behind_thinking(completion)
    for rule, find in LENIENT:
        answer = find(text)
        if answer is not None:  # "": it was looked at, and nothing was concluded
            note("find", f"{rule}: {answer}")
            return answer or None
    note("find", "no conclusion")
    return None


def last_tagged(text: str) -> str | None:
    """The content of the last <answer>...</answer>, of nested ones of the innermost pair, or None."""
    tagged = ANSWER.findall(text)
    return tagged[-1].strip() if tagged else None


def behind_thinking(text: str) -> str:
    """The text behind </think>; what stands before it where the completion was cut off just there."""
    before, _, behind = text.rpartition("</think>")
    return behind if MARKUP.sub("", behind).strip() else before


# what closes or cuts off an answer at the length limit: "</ans"
CUT_TAG = re.compile(r"(?:<(?:/\s?[a-z]{0,6}|a[nswer]{0,5})?>?|\\end\{answer\})\s*$", re.IGNORECASE)


def unclosed_tag(text: str) -> str | None:
    """What stands behind a last <answer> that nobody closed."""
    _, *behind = OPENING_TAG.split(text)
    answer = CUT_TAG.sub("", behind[-1][-4000:]).strip() if behind else ""
    return None if is_cut_off(answer) else answer or None


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces balance, or None."""
    starts = [match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]
    for start in reversed(starts[-8:]):  # a bound: every unbalanced start costs a walk to the end of the text
        depth = 1
        for i in range(start, len(text)):
            if text[i] == "{":
                depth += 1
            elif text[i] == "}":
                depth -= 1
                if depth == 0:
                    return text[start:i].strip()
    return None


# in the order in which they are asked: text -> answer, None: ask the next, "": nothing was concluded
LENIENT = (
    ("an <answer> tag that nobody closed", unclosed_tag),
    (r"the last \boxed", last_boxed),
    *CONCLUSIONS,
)
