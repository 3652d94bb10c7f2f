"""Stage 4, compare: is it the same count, number, list, expression?"""

import re
from fractions import Fraction

from tasks.grading.clean import QUOTES, bare_lines, clean, repair, squeezed
from tasks.grading.conclusion import last_value
from tasks.grading.patterns import NUMBER, WORD, WORDS, either
from tasks.grading.quantities import HEDGE, from_digits, number, of_things, rounds_to, six_digits, split_unit
from tasks.grading.readings import aside_as_equation, contradicts, readings, without_asked
from tasks.grading.split import as_interval, is_label, parts, sides, split_list
from tasks.grading.stages import by, note
from tasks.grading.symbolic import nearly, proportional, same_expression
from tasks.grading.words import names, only_words, same_words

# A verifier is a pure function and never raises, whatever the texts are. `row` is the data row, for tasks
# that need more than the reference: the options of a choice, the frames of a box.

# -----------------------------------------------------------------------------
# count
# -----------------------------------------------------------------------------

COUNT_LEADS = either(
    r"\(?[a-z][.):](?=\s)",  # the letter of an option, "b) 3"
    r".*\bthere (?:are|is|were|was)(?: only| exactly| just| a total of)?",
    r"(?:i|we) (?:can )?(?:see|count|counted)(?: only| exactly| just| a total of)?",
    r"(?:the|this) \w+ (?:shows|contains|has)(?: only| exactly| just| a total of)?",
    r"(?:the )?(?:final )?answer(?: is|:)",
    r".*\b(?:total|count|answer):",
)
COUNT_LEAD = re.compile(rf"^{COUNT_LEADS}\s+")
ASIDE = re.compile(r"\([^()]*\)")
COUNT = re.compile(rf"({NUMBER}|no(?= [a-z])|none|{WORD})(?![\w.,-])(.*)")


def same_count(answer: str, solution: str, row: dict | None = None) -> bool:
    """One integer in digits or words up to twenty, perhaps with a noun; of an equation the right side."""
    given, wanted = count_of(answer), count_of(solution)
    note("split", *("no number" if count is None else count for count in (given, wanted)))
    return by("the same number of things", given is not None and given == wanted)


def count_of(text: str) -> Fraction | None:
    """The number that a text names, in one line or in each: 3 for "3" above "\\boxed{3}"; None: in doubt."""
    text = text[-2000:]
    count = read_count(text)
    if count is not None:
        return count
    lines = bare_lines(text)
    counts = {read_count(line) for line in lines} if len(lines) < 10 else {}
    return counts.pop() if len(counts) == 1 else None


def read_count(text: str) -> Fraction | None:
    """The one number of things that a text names, None if it names none or has not decided ("3 or 4")."""
    text = aside_as_equation(clean(text).lower())
    if contradicts(text):
        return None
    text = text.rsplit("=", 1)[-1].strip(QUOTES)
    text = re.sub(r"^答案[是为]?:?", "", text).strip()
    text = COUNT_LEAD.sub("", text)
    if re.match(r"(?:it|they|the .*) (?:is|are|was|were) ", text):  # "The number of cubes is 3"
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

LONGEST = 500  # no final answer is longer; this also bounds every regular expression below


def same_math(answer: str, solution: str, row: dict | None = None) -> bool:
    """Equal as numbers (0.50 = 1/2, 140 = 140°, 12 = 12 cm), texts, lists, intervals, equations, expressions.

    A decimal that rounds to a decimal reference is right (2.828 for 2.83), one with six or more right digits
    of an exact reference too. "4π or approximately 12.57" is 4π; "3 or 4" is nothing. "m - n = 1" is 1 where
    the problem asks for m - n.
    """
    problem = str((row or {}).get("problem") or "")
    given, wanted = final_lines(in_asked_magnitude(answer, problem)), final_lines(solution)
    if sum(map(len, given)) > LONGEST or sum(map(len, wanted)) > LONGEST:
        return by("too long for an answer", False)
    if names(" ".join(given), clean(solution)):
        return by("a sentence that says the reference", True)
    if only_words(clean(solution)):  # they have no value that could stand at the end of any sentence
        said = [names(line, clean(solution)) or same_words(line, solution) for line in given]
        return by("every line says the same words", said != [] and all(said))
    given = [aside_as_equation(line) for line in given]
    if any(map(contradicts, given)):
        return by("it says one number", False)
    given, wanted = repaired(given, problem), repaired(wanted, problem)
    note("clean", given[-1] if given else "", wanted[-1] if wanted else "")
    given, wanted = readings(given), readings(wanted)
    note("read", " / ".join(given), " / ".join(wanted))
    if not given:
        return by("it says one thing", False)
    return any(same_value(one, other) for one in given for other in wanted)


def repaired(lines: list[str], problem: str) -> list[str]:
    """The lines for the parser, and behind them, of several, all of them in one."""
    texts = lines + [" ".join(lines)] if len(lines) > 1 else lines
    return [repair(without_asked(text, problem)) for text in texts]


def final_lines(answer: str) -> list[str]:
    """The lines of an answer, each once; only the last where all together are too long for an answer."""
    answer = answer[-4000:]
    lines = bare_lines(answer) if "\n" in answer or "boxed" in answer else [answer]
    if len(lines) > 1 and re.fullmatch(r"\s*\(?[A-J]\)?\.?\s*", lines[-1]):
        lines = lines[:-1]  # "0.10\nB": the letter of an option that nobody offered
    return lines[-1:] if sum(map(len, lines)) > LONGEST else lines


MAGNITUDE = re.compile(r"\b(?:how many|in|of) (thousand|million|billion)s?\b", re.IGNORECASE)


def in_asked_magnitude(answer: str, problem: str) -> str:
    """ "2.5" for "2.5 million" where the problem asks "how many million hamburgers"."""
    asked = MAGNITUDE.search(problem)
    return re.sub(rf"(?i)(?<=\d) ?{asked[1]}s?\b", "", answer) if asked else answer


def same_value(answer: str, solution: str) -> bool:
    """Two repaired texts: a value each, perhaps labelled ("x =", "The length is"), or parts, or equations."""
    parts_a, parts_s = parts(answer), parts(solution)
    if len(parts_a) > 1 or len(parts_s) > 1:
        return by("label by label", same_parts(parts_a, parts_s))
    label_a, a = parts_a[0]
    label_s, s = parts_s[0]
    if label_a and label_s and label_a != label_s:
        return by(f"the {label_a} is not the {label_s}", False)
    left_a, a = sides(a)
    left_s, s = sides(s)
    if not (is_label(left_a) and is_label(left_s)):
        return same_equation(left_a, a, left_s, s)
    if len(left_a) == len(left_s) == 1 and left_a != left_s:
        return by(f"{left_a} is not {left_s}", False)
    return same_quantity(as_interval(a), as_interval(s))


def same_parts(parts_a: list[tuple[str, str]], parts_s: list[tuple[str, str]]) -> bool:
    """Labelled parts against such parts by the labels, against a bare list ("[0, 1], [2, 3]") in order."""
    if len(parts_a) > 1 and len(parts_s) > 1:
        given, wanted = dict(parts_a), dict(parts_s)
        return given.keys() == wanted.keys() and all(same_value(given[key], wanted[key]) for key in wanted)
    labelled, (bare,) = (parts_a, parts_s) if len(parts_a) > 1 else (parts_s, parts_a)
    kind, members = split_list(bare[1])
    labels = [label for label, _ in labelled]
    if kind not in ("", "{}") and not (kind == "()" and labels in (["x", "y"], ["x", "y", "z"])):
        return False
    values = [value for _, value in labelled]
    return same_in_order(values, members) if labelled is parts_a else same_in_order(members, values)


def same_equation(left_a: str, a: str, left_s: str, s: str) -> bool:
    """Two equations, of which one says the other: x + 1 = 3 and 2x + 2 = 6."""
    if not left_a or not left_s:
        return by("an equation is no value", False)
    if squeezed(f"{left_a}={a}") == squeezed(f"{left_s}={s}"):
        return by("the same text", True)
    return by("equivalent equations", proportional(f"{left_a}-({a})", f"{left_s}-({s})"))


def same_quantity(a: str, s: str) -> bool:
    """Two values without their labels: numbers with units, lists, intervals or expressions."""
    a, unit_a = split_unit(a)
    s, unit_s = split_unit(s)
    note("split", f"{a}, unit {unit_a or 'none'}", f"{s}, unit {unit_s or 'none'}")
    if unit_a and unit_s and unit_a != unit_s:
        return by(f"{unit_a} is not {unit_s}", False)
    given, wanted = number(a), number(s)
    if given is None and wanted is not None and not unit_s:  # "6 children" for 6
        given = of_things(a)
    elif wanted is None and given is not None and not unit_a:  # 3 for "3 times"
        wanted = of_things(s)
    if given is not None and wanted is not None:  # decided here for most answers, without loading sympy
        if given == wanted or rounds_to(given, s):
            return by("the same number, perhaps rounded", True)
        is_fraction = re.search("/|frac", s) is not None
        return by("six right digits of a fraction", is_fraction and six_digits(given, a, wanted))
    if squeezed(a) == squeezed(s) != "":
        return by("the same text", True)
    kind_a, list_a = split_list(a)
    kind_s, list_s = split_list(s)
    if len(list_a) > 1 or len(list_s) > 1:
        return by("member by member", same_list(kind_a, list_a, kind_s, list_s))
    if wanted is not None and "." in s:
        value = nearly(a)  # 2√2 for 2.83
        if value is not None:
            return by("the value rounded", rounds_to(Fraction(value), s))
    if given is not None and "." in a:
        exact = nearly(s)
        if exact is not None:
            return by("six right digits of the exact value", six_digits(given, a, Fraction(exact)))
    return by("the same expression, by math_verify", same_expression(a, s))


def same_list(kind_a: str, list_a: list[str], kind_s: str, list_s: list[str]) -> bool:
    """Lists in any order, points and intervals in theirs; kinds and members as from split_list."""
    if kind_a != kind_s and {kind_a, kind_s} != {"", "{}"}:
        return False  # (0, 1] is not (0, 1)
    if kind_s in ("", "{}"):
        return same_in_any_order(list_a, list_s)
    return same_in_order(list_a, list_s)


def same_in_order(a: list[str], b: list[str]) -> bool:
    """Every member of `a` equals the one at its place in `b`."""
    return len(a) == len(b) and all(same_value(x, y) for x, y in zip(a, b, strict=True))


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
