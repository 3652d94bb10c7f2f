"""Stage 3, split: what an answer says that says it twice, or that repeats what the problem asks for."""

import re
from dataclasses import dataclass
from fractions import Fraction

from tasks.grading.clean import FILLER, clean, squeezed
from tasks.grading.conclusion import LEAD
from tasks.grading.patterns import NUMBER
from tasks.grading.quantities import (
    FACTOR,
    HEDGE,
    is_rounded,
    number,
    rounds_to,
    same_in_both_units,
    split_unit,
)
from tasks.grading.split import EQUALS, is_label, parts, sides
from tasks.grading.symbolic import nearly

# -----------------------------------------------------------------------------
# what the problem asks for, said again
# -----------------------------------------------------------------------------

ASKS = re.compile(  # the words before what is asked: "find the value of", "what is"
    r"\b(?:find|calculate|compute|determine|evaluate|simplify|what is|what are|what's|values? of|ratio)"
    r"(?: (?:the|exact|numerical|values?|sum|ratio|of|product|length|measure|expression|is|for)){0,6}:? ?$",
    re.IGNORECASE,
)
GAP = re.compile(r"(?: is| are| equals?| is equal to)? ?=? ?(?:\( ?\)|_{2,}|\?|[.:]?$)")  # AB + BC = ( )
NOT_MORE = re.compile(r" ?(?:[?.,;:!](?!\d)|$)| [A-Za-z]{2,}")  # behind it: the end, or a word
NOT_LESS = re.compile(r"(?:^|[ ,;:])$")  # before it


def without_asked(text: str, problem: str) -> str:
    """ "1" for "m - n = 1" and "1 = m - n" where the problem asks for m - n; any other text as it is."""
    if "=" not in text or not problem:
        return text
    bare = FILLER.sub("", clean(text[:600]))
    left, *right = EQUALS.split(bare)
    if right and not is_label(left) and is_asked(left, problem):
        return right[-1]
    if len(right) == 1 and not is_label(right[0]) and is_asked(right[0], problem):
        return left
    return text


def is_asked(expression: str, problem: str) -> bool:
    """Does the problem ask for the value of the expression? "If x + 1 = 3, find x" does not ask for x + 1."""
    wanted = one_spelling(expression)
    text = one_spelling(NAMED_SUM.sub(signed_sum, clean(problem[-4000:])))
    start = text.find(wanted) if 0 < len(wanted) <= 100 else -1
    while start >= 0:
        before, after = text[max(start - 120, 0) : start], text[start + len(wanted) :][:120]
        if ASKS.search(before) and (NOT_MORE.match(after) or GAP.match(after)):
            return True
        if NOT_LESS.search(before) and GAP.match(after):
            return True
        start = text.find(wanted, start + 1)
    return False


# "the sum of angle 1 and angle 2", asked for in words
NAMED_SUM = re.compile(
    r"(?:the )?(sum|difference|product) (?:of|between) (?:the )?(?:(angle)s )?"
    r"([^,.?;]{1,30}?) and ([^,.?;]{1,30}?)(?=[,.?;]|$)"
)
SIGN = {"sum": "+", "difference": "-", "product": "*"}


def signed_sum(named: re.Match) -> str:
    """angle 1 + angle 2, asked for."""
    kind = f"{named[2]} " if named[2] else ""  # "angles 1 and 2"
    return f"{kind}{named[3]} {SIGN[named[1]]} {kind}{named[4]}"


def one_spelling(text: str) -> str:
    """A formula in one spelling: no blanks around signs, AD/DB for \\frac{AD}{DB}, x^2 for x^{2}."""
    text = re.sub(r"\\[dtc]?frac ?\{(\w+)\}\{(\w+)\}", r"\1/\2", text.strip())
    text = re.sub(r"\{ ?(\w) ?\}", r"\1", text)
    text = re.sub(r"\\angle ?", "angle ", text)
    return re.sub(r" ?([-+*/^=<>{}|]) ?", r"\1", text)


# -----------------------------------------------------------------------------
# one value that is said more than once
# -----------------------------------------------------------------------------


SAYS = re.compile(r"(?<![<>!:\\])=|\b(?:is|are|was|were|equals)\b")
ASIDE = re.compile(r"([^()=]{1,40}) \((?:=|or|i\.e\.,?)? ?([^()=]{1,40})\)\.?")  # 1/2 (= 0.5), 12 cm (120 mm)


def aside_as_equation(text: str) -> str:
    """ "1/2 = 0.5" for "1/2 (= 0.5)" and "1/2 (0.5)"; any other text as it is."""
    aside = ASIDE.fullmatch(clean(text)) if "(" in text and len(text) < 100 else None
    is_amount = aside and all(number(split_unit(side.strip())[0]) is not None for side in aside.groups())
    return f"{aside[1]} = {aside[2]}" if is_amount else text


def contradicts(text: str) -> bool:
    """Does a text call different numbers the same: "pq = 6 = 7", "4 is 5", but not "x = 2.66 = 2.7"?"""
    stated = SAYS.split(clean(text[:600])) if SAYS.search(text) else []
    amounts = [split_unit(LEAD.sub("", side.strip(" ."))) for side in stated[-20:]]
    amounts = [(value, unit) for value, unit in amounts if number(value) is not None]
    return any(not may_be_same(*one, *other) for one, other in zip(amounts, amounts[1:], strict=False))


def may_be_same(written_one: str, unit_one: str, written_other: str, unit_other: str) -> bool:
    """Do two numbers with their units say one value: 2.66 and 2.7, 12 cm and 120 mm, 50 % and 0.5?"""
    one, other = number(written_one), number(written_other)
    if unit_one and unit_other and unit_one != unit_other:
        return same_in_both_units(one, unit_one, other, unit_other) is not False
    if (unit_one == "%") != (unit_other == "%"):
        return one / other in (1, 100, Fraction(1, 100)) if other else not one
    return one == other or is_rounded(one, written_other) or is_rounded(other, written_one)


LEADING_NUMBER = re.compile(rf"({NUMBER})( [a-z]{{2}}.*)")  # 12.57 units if you want a number


@dataclass
class Said:
    """A text that says one value: "h = 12.57 cm"."""

    text: str
    value: Fraction  # 12.57
    written: str  # "12.57", or "" for a form like 4\pi
    unit: str  # "cm", a key of UNITS, or ""
    spelling: str  # " centimeters", the unit as it is written


def said(text: str) -> Said | None:
    """The one value of a text, None if it has none or several."""
    left, right = sides(text)
    if not is_label(left):
        return None  # an equation is no value
    stated, unit = split_unit(right)
    leading = LEADING_NUMBER.fullmatch(stated)
    if leading and not HEDGE.search(leading[2]) and not FACTOR.search(leading[2]):
        stated = leading[1]
    exact = number(stated)
    value = nearly(stated) if exact is None else exact
    if value is None:
        return None
    is_plain = re.fullmatch(NUMBER, stated) is not None
    return Said(text, Fraction(value), stated if is_plain else "", unit, right[len(stated) :] if unit else "")


APPROXIMATELY = r"\\approx(?![a-z])|\b(?:approximately|about|approx)\b\.?"
IN_OTHER_UNIT = re.compile(r"=|\(|,|\bor\b|\bi\.e\.")
SAID_AGAIN = re.compile(rf"{APPROXIMATELY}|\bor\b")


def readings(texts: list[str]) -> list[str]:
    """What an answer says, given line by line and then, of several lines, as a whole.

    That is one text, or a value in two spellings ("4\\pi \\approx 12.57"), or nothing where lines disagree.
    The reference has no say in it: an answer that can be read in two ways would be paid for two references.
    """
    if not texts:
        return []
    *lines, whole = texts
    names = [sides(line)[0] for line in lines]
    if names in (["x", "y"], ["x", "y", "z"]):
        return [", ".join(lines)]
    if lines and say_the_same(lines):
        return [max(zip(names, lines, strict=True))[1]]  # the one with a name, as it says more
    stated = all_said(lines)
    if stated and len(set(names) - {""}) < 2:
        agreed = agreeing(stated, approximate=False)
        is_calculated = any("=" in line and not name for line, name in zip(lines, names, strict=True))
        # "5 + 3 = 8" and "8 + 2 = 10" do not agree either, but are steps to the last
        return [whole] if not agreed and is_calculated else agreed
    in_two_units = converted(whole)
    if in_two_units:
        return in_two_units
    pieces = [piece.strip(" ,;()") for piece in SAID_AGAIN.split(whole)]
    pieces = [piece for piece in pieces if piece]
    stated = all_said(pieces)
    approximate = re.search(APPROXIMATELY, whole) is not None
    return (agreeing(stated, approximate) if stated else []) or [whole]


def converted(text: str) -> list[str]:
    """["12 cm", "120 mm"] for "12 cm = 120 mm"; [] if a text does not say one value in two units."""
    pieces = [piece.strip(" ()") for piece in IN_OTHER_UNIT.split(text) if piece.strip(" ()")]
    pieces = pieces[1:] if pieces and is_label(pieces[0]) and not re.search(r"\d", pieces[0]) else pieces
    amounts = [split_unit(piece) for piece in pieces]
    if len(pieces) != 2 or "^" in text or any(number(value) is None or not unit for value, unit in amounts):
        return []
    (one, unit_one), (other, unit_other) = amounts
    is_same = unit_one != unit_other and same_in_both_units(number(one), unit_one, number(other), unit_other)
    return pieces if is_same else []


def all_said(texts: list[str]) -> list[Said]:
    """The values of 2 to 5 texts, none if one has none: each may cost a symbolic parse."""
    stated = []
    for text in texts if 1 < len(texts) < 6 else []:
        value = said(text)
        if value is None:
            return []
        stated.append(value)
    return stated


def say_the_same(lines: list[str]) -> bool:
    """Do the lines say one text, perhaps under one name: "The form is y = 2x + 1." above "2x+1"?"""
    labelled = [parts(line) for line in lines]
    if any(len(pairs) > 1 for pairs in labelled):
        return False
    labels = {label for pairs in labelled for label, _ in pairs} - {""}
    named = [sides(pairs[0][1]) for pairs in labelled]
    names = {name for name, _ in named} - {""}
    texts = {squeezed(text) for _, text in named}
    return len(texts) == 1 and len(labels) < 2 and len(names) < 2 and all(map(is_label, names))


def agreeing(stated: list[Said], approximate: bool) -> list[str]:
    """Those texts that count if all say the same value, none if they do not.

    Both of "4π or 12.57"; of "1/3 or 0.3", a coarse rounding, the exact form only; of "22.7 ≈ 23" the last.
    """
    first, last = stated[0], stated[-1]
    units = {one.unit for one in stated if one.unit}
    if len(units) > 1 or not all(about_same(one, first) or about_same(one, last) for one in stated):
        return []
    if same_to_three_digits(first, last):
        spelling = first.spelling or last.spelling
        texts = [one.text if one.unit else one.text + spelling for one in (first, last)]
        return list(dict.fromkeys(texts))
    if not about_same(first, last):
        return []
    if not (first.written and last.written):
        return [last.text if first.written else first.text]
    return [last.text] if approximate else []


def same_to_three_digits(x: Said, y: Said) -> bool:
    """Are the values equal, or is one the other rounded, with an error that could not be told?"""
    equal = abs(x.value - y.value) <= abs(x.value) / 10**9
    return equal or rounds_to(x.value, y.written) or rounds_to(y.value, x.written)


def about_same(x: Said, y: Said) -> bool:
    """Are the values equal, or is one the other rounded, however coarsely (1/3 and 0.3, 22.7 and 23)?"""
    return same_to_three_digits(x, y) or is_rounded(x.value, y.written) or is_rounded(y.value, x.written)
