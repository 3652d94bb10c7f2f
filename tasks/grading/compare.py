"""Stage 4, compare: is it the same count, text, number, list, expression?"""

import re
from fractions import Fraction

from tasks.grading.clean import as_interval, clean, repair
from tasks.grading.find import last_value
from tasks.grading.patterns import NUMBER, WORD, WORDS, either
from tasks.grading.quantities import HEDGE, from_digits, number, of_things, rounds_to, six_digits, split_unit
from tasks.grading.split import is_label, sides, split_list
from tasks.grading.symbolic import nearly, proportional, same_expression
from tasks.grading.words import names

# A verifier is a pure function and never raises, whatever the texts are. `row` is the data row, for tasks
# that need more than the reference: the options of a choice, the frames of a box.

COUNT_LEADS = either(
    r"\(?[a-z][.):](?=\s)",  # the letter of an option, "b) 3"
    r".*\bthere (?:are|is)(?: only| exactly| just| a total of)?",
    r"(?:the )?(?:final )?answer(?: is|:)",
    r".*\b(?:total|count|answer):",
)
COUNT_LEAD = re.compile(rf"^{COUNT_LEADS}\s+")
ASIDE = re.compile(r"\([^()]*\)")
COUNT = re.compile(rf"({NUMBER}|no(?= [a-z])|none|{WORD})(?![\w.,-])(.*)")


def same_count(answer: str, solution: str, row: dict | None = None) -> bool:
    """One integer in digits or words up to twenty, perhaps with a noun; of an equation the right side."""
    given = read_count(answer)
    return given is not None and given == read_count(solution)


def read_count(text: str) -> Fraction | None:
    """The one number of things that a text names, None if it names none or has not decided ("3 or 4")."""
    text = clean(text[-2000:]).lower().rsplit("=", 1)[-1].strip()
    text = re.sub(r"^答案[是为]?:?", "", text).strip()
    text = COUNT_LEAD.sub("", text)
    if re.match(r"the .* (?:is|are) ", text):  # "The number of cubes is 3"
        text = last_value(text) or text
    match = COUNT.match(text)
    if not match:
        return None
    count, rest = match.groups()
    # "3 (a car and a cube)": an aside may say "and" and "to"
    rest = ASIDE.sub(lambda aside: re.sub(r"\b(?:and|to)\b", " ", aside[0]), rest)
    if HEDGE.search(rest):
        return None
    if count in ("no", "none"):
        return Fraction(0)
    if count in WORDS:
        return Fraction(WORDS.index(count))
    return from_digits(count)


# -----------------------------------------------------------------------------
# math
# -----------------------------------------------------------------------------

MAGNITUDE = re.compile(r"\b(?:how many|in|of) (thousand|million|billion)s?\b", re.IGNORECASE)


def same_math(answer: str, solution: str, row: dict | None = None) -> bool:
    """Equal as numbers (0.50 = 1/2, 140 = 140°, 12 = 12 cm), texts, lists, intervals, equations, expressions.

    A decimal that rounds to a decimal reference is right (2.828 for 2.83), one with six or more right digits
    of an exact reference too. "4π or approximately 12.57" is 4π; "3 or 4" is nothing.
    """
    answer = final_lines(answer)
    # no final answer is longer; this also bounds every regular expression below
    if len(answer) > 500 or len(solution) > 500:
        return False
    asked_in = MAGNITUDE.search((row or {}).get("problem") or "")
    if asked_in:  # "how many million hamburgers": 2.5 million is 2.5
        answer = re.sub(rf"(?i)(?<=\d) ?{asked_in[1]}s?\b", "", answer)
    if names(answer, clean(solution)):
        return True
    answer, solution = repair(answer), repair(solution)
    return same_value(answer, solution) or same_twice(answer, solution)


def final_lines(answer: str) -> str:
    """The answer in one line; only its last line where the whole is too long for an answer."""
    lines = [line for line in answer[-4000:].split("\n") if line.strip()]
    if len(lines) > 1 and re.fullmatch(r"\s*\(?[A-J]\)?\.?\s*", lines[-1]):
        lines = lines[:-1]  # "0.10\nB": the letter of an option that nobody offered
    whole = " ".join(lines)
    return lines[-1] if len(whole) > 500 else whole


SAID_AGAIN = re.compile(r"\\approx|\bor\b|\bapproximately\b|\babout\b|\(approx\.?")


def same_twice(answer: str, solution: str) -> bool:
    """Does the answer give an exact value and its approximation, which agree and of which one is right?"""
    pieces = [piece.strip(" ,;()") for piece in SAID_AGAIN.split(answer)]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) < 2:
        return False
    values = [nearly(split_unit(sides(piece)[1])[0]) for piece in pieces]
    if None in values:
        return False
    first = values[0]
    if any(abs(value - first) > 0.02 * abs(first) for value in values):
        return False
    return same_value(pieces[0], solution) or same_value(pieces[-1], solution)


# the words that tell the parts of an answer apart
PART = re.compile(r"\b(domain|range|increas|decreas|constant|maxim|minim|vertical|horizontal)", re.IGNORECASE)
PART_LABEL = re.compile(
    r"^(?:the )?(?:(?:function|graph|f) is )?(?:domain|range|(?:in|de)creasing|constant)(?: intervals?)?"
    r"(?: is| on| over| for| of f)?\s*:?\s*(?=[-(\[\\xy\d])",
    re.IGNORECASE,
)


def same_value(answer: str, solution: str) -> bool:
    """Two repaired texts: a value each, perhaps with a label ("x =", "The length is"), or two equations."""
    parts_a = [word.lower() for word in PART.findall(answer)]
    parts_s = [word.lower() for word in PART.findall(solution)]
    if len(parts_a) == len(parts_s) == 1 and parts_a != parts_s:
        return False  # "Range: [0, 1]" is not the domain [0, 1]
    if len(parts_a) <= 1 and len(parts_s) <= 1:
        answer, solution = PART_LABEL.sub("", answer), PART_LABEL.sub("", solution)
    left_a, a = sides(answer)
    left_s, s = sides(solution)
    a, s = as_interval(a), as_interval(s)
    if not (is_label(left_a) and is_label(left_s)):
        if not left_a or not left_s:
            return False  # an equation is no value
        if answer.replace(" ", "") == solution.replace(" ", ""):
            return True
        return proportional(f"{left_a}-({a})", f"{left_s}-({s})")
    if len(left_a) == len(left_s) == 1 and left_a != left_s:
        return False  # x = 3 is not y = 3
    return same_quantity(a, s)


def same_quantity(a: str, s: str) -> bool:
    """Two values without their labels: numbers with units, lists, intervals or expressions."""
    a, unit_a = split_unit(a)
    s, unit_s = split_unit(s)
    if unit_a and unit_s and unit_a != unit_s:
        return False
    given, wanted = number(a), number(s)
    if given is None and wanted is not None and not unit_s:  # "6 children" for 6
        given = of_things(a)
    elif wanted is None and given is not None and not unit_a:  # 3 for "3 times"
        wanted = of_things(s)
    if given is not None and wanted is not None:  # decided here for most answers, without loading sympy
        if given == wanted or rounds_to(given, s):
            return True
        return re.search("/|frac", s) is not None and six_digits(given, a, wanted)
    if a.casefold().replace(" ", "") == s.casefold().replace(" ", "") != "":
        return True
    kind_a, list_a = split_list(a)
    kind_s, list_s = split_list(s)
    if len(list_a) > 1 or len(list_s) > 1:
        return same_list(kind_a, list_a, kind_s, list_s)
    if wanted is not None and re.search(r"\d\.\d\d", s):
        value = nearly(a)  # 2√2 for 2.83, but not 2√3 for 3.5: one decimal is as likely exact
        if value is not None:
            return rounds_to(Fraction(value), s)
    if given is not None and "." in a:
        exact = nearly(s)
        if exact is not None:
            return six_digits(given, a, Fraction(exact))
    return same_expression(a, s)


def same_list(kind_a: str, list_a: list[str], kind_s: str, list_s: list[str]) -> bool:
    """Lists in any order, points and intervals in theirs; kinds and members as from split_list."""
    if len(list_a) != len(list_s):
        return False  # a pair is no number
    if kind_s == "()" and coordinates(list_a):
        return same_in_order(coordinates(list_a), list_s)
    if kind_a == "()" and coordinates(list_s):
        return same_in_order(coordinates(list_s), list_a)
    if kind_a != kind_s and {kind_a, kind_s} != {"", "{}"}:
        return False  # (0, 1] is not (0, 1)
    if kind_s in ("", "{}"):
        return same_in_any_order(list_a, list_s)
    return same_in_order(list_a, list_s)


def coordinates(members: list[str]) -> list[str] | None:
    """["-2", "-9"] for ["x = -2", "y = -9"]; None for members that are not x, y and perhaps z."""
    pairs = [sides(member) for member in members]
    if [left for left, _ in pairs] not in (["x", "y"], ["x", "y", "z"]):
        return None
    return [right for _, right in pairs]


def same_in_order(a: list[str], b: list[str]) -> bool:
    """Every member of `a` equals the one at its place in `b`."""
    return all(same_value(x, y) for x, y in zip(a, b, strict=True))


def same_in_any_order(a: list[str], b: list[str]) -> bool:
    """Every member of `a` has a partner of its own in `b`."""
    if len(a) != len(b) or len(a) > 12:
        return False
    rest = list(b)
    for x in a:
        partner = next((y for y in rest if same_value(x, y)), None)
        if partner is None:
            return False
        rest.remove(partner)
    return True
