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
text       the same text but for case and blanks      "Red  cube." for red cube       "red cubes"
relaxed    a number within 5 %, the same text         "12.4" for 12                   "12" for 12%
anls       a similar text, 0 to 1                     "CocaCola" for Coca Cola: 0.89  "Coca" for Coca Cola
vqa        what several people have said, 0 to 1      one of ten: 0.3, four of ten: 1
auto       right by the rule that the look of the reference suggests

relaxed, anls and vqa are the metrics of tasks/metrics.py. A new task is one short function and one line in
VERIFIERS.
"""

import ast
import functools
import json
import logging
import math
import re
import signal
import sys
import threading
import time
from collections import Counter
from fractions import Fraction

from tasks.metrics import anls, relaxed, vqa

log = logging.getLogger(__name__)

# -----------------------------------------------------------------------------
# patterns that many functions share
# -----------------------------------------------------------------------------


def either(*patterns: str) -> str:
    """The pattern of a text that matches one of `patterns`."""
    return f"(?:{'|'.join(patterns)})"


# fmt: off
WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
]
# fmt: on
WORD = "|".join(WORDS)

# at most 30 digits: enough for any answer, and far from the length at which Python refuses to convert
DIGITS = either(
    r"\d{1,3}(?:,\d{3}){1,9}(?:\.\d{1,30})?",  # 1,234,567.8
    r"\d{1,30}(?:\.\d{0,30})?",  # 12, 12. and 12.5
    r"\.\d{1,30}",  # .5
)
NUMBER = rf"[-+]?{DIGITS}"

# regular expressions cannot count, so braces in braces are spelt out
FLAT_BRACES = r"\{[^{}]*\}"  # {x}
BRACES = rf"\{{(?:[^{{}}]|{FLAT_BRACES})*\}}"  # {x} and {x^{2}}
IN_BRACES = rf"(?:[^{{}}]|{BRACES})*"  # any text whose braces are such

LATEX_COMMAND = re.compile(r"\\[a-zA-Z]+")
FUNCTIONS = ("sin", "cos", "tan", "log")  # words of a formula, not of prose
OPTION_LETTERS = "ABCDEFGHIJ"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# -----------------------------------------------------------------------------
# reading the answer out of a completion
# -----------------------------------------------------------------------------

# no tag inside: of nested tags the innermost pair is the answer, and the search stays linear on hostile input
ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
# what closes or cuts off an answer at the length limit: "</ans"
CUT_TAG = re.compile(r"(?:</?[a-z]{0,6}>?|\\end\{answer\})\s*$")


def extract_answer(completion: str, strict: bool = True) -> str | None:
    """The content of the last <answer>...</answer>, stripped, wherever it stands; None if there is none.

    strict=True (training) accepts nothing else, so an unclosed tag is no answer. strict=False (evaluation,
    where models never saw the tags) falls back, in this order, to an unclosed last tag, the last
    \\boxed{...}, and a conclusion in plain words at the end of the text ("the answer is 5", "Answer: B",
    "there are 5 cubes", a final bare number).
    """
    tagged = ANSWER.findall(completion)
    if tagged:
        return tagged[-1].strip()
    if strict:
        return None
    if "<answer>" in completion:
        completion, _, unclosed = completion.rpartition("<answer>")
        unclosed = CUT_TAG.sub("", unclosed[-4000:]).strip()
        if unclosed:
            return unclosed
    boxed = last_boxed(completion)
    if boxed is not None:
        return boxed
    return conclusion(completion)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces balance, or None."""
    starts = [match.end() for match in re.finditer(r"\\boxed\s*\{", text)]
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


MARKUP = re.compile(r"</?(?:think|answer)>|<[a-z/]{0,6}\s*$|\*\*")
STATED_HERE = (  # "the answer is 5", "Option: B"
    r"\b(?:answer|option|choice)\b[^.\n:=]{0,40}?(?:\bis\b|:|=)"
    r"(?: therefore| thus| then)?[ \t:]*([^\s:][^\n]*)"
)
STATED_BELOW = r"\banswer(?: is)?\s*:?\s*\n\s*(?:\\\[\s*)?([^\n]+)"  # on the next line
STATED_IN_CHINESE = r"答案[是为]?[:：]?\s*([^\n]+)"
STATED = re.compile(either(STATED_HERE, STATED_IN_CHINESE, STATED_BELOW), re.IGNORECASE)
THERE_ARE = re.compile(
    rf"\bthere (?:are|is)(?: only| exactly| a total of)? ({NUMBER}|no|{WORD})\b", re.IGNORECASE
)
CONCLUDES = re.compile(r"(?:so|therefore|thus|hence|in conclusion|finally)\b", re.IGNORECASE)
FINAL_NUMBER = re.compile(rf"(?<![\w.,/^{{-])({NUMBER}|{WORD})\s*°?[.!]?$", re.IGNORECASE)


def conclusion(text: str) -> str | None:
    """An answer stated in words in the last 400 characters, or None; for evaluation only."""
    tail = MARKUP.sub(" ", text[-400:]).strip()
    lines = [line.strip() for line in tail.split("\n") if line.strip()]
    if never_ends(tail, lines):
        return None
    stated = STATED.findall(tail)
    if stated:
        said = "".join(stated[-1])  # one group for each wording; the others are empty
        return said.strip().rstrip(".").strip()
    last_line = lines[-1] if lines else ""
    sentence = re.split(r"\n|(?<=[.!?])\s", last_line)[-1]
    there = THERE_ARE.search(sentence)
    if there:
        return "0" if there[1].lower() == "no" else there[1]
    if CONCLUDES.match(sentence):
        said = last_value(sentence)
        if said:
            return said
    bare = FINAL_NUMBER.search(sentence)
    return bare[1] if bare else None


LOOP = re.compile(r"(.{1,60}?)\1{3,}.{0,60}$", re.DOTALL)  # the same 1 to 60 characters four times and more
LIST_ITEM = re.compile(r"\W{0,2}[A-Za-z0-9]{1,2}[.):]\s")  # "B. ", "(3) "


def never_ends(tail: str, lines: list[str]) -> bool:
    """Is it a loop or a list of options without end? What such a text ends with was not concluded."""
    if LOOP.search(tail):
        return True
    return len(lines) > 2 and all(LIST_ITEM.match(line) for line in lines[-2:])


SAYS = r"\b(?:is|are|equals|equal to|be)\b|[=:]"
SAID = re.compile(rf"(?:{SAYS})\s*((?:(?!{SAYS}).)+)$")  # what stands behind the last of these words
LEAD_WORDS = either(
    r"approximately|about|around|roughly|exactly|only|just|\\approx",
    r"therefore:?|thus:?|then:?|likely:?",
    r"(?:located )?at (?=the |\(|\\)",  # at (2, 3)
    # the point (2, 3), the function f
    r"(?:the )?(?:points?|coordinates?|interval|equation|line|function|value)(?= [^a-z]| [xyf]\b)",
)
LEAD = re.compile(rf"^(?:{LEAD_WORDS}\s*)+", re.IGNORECASE)


def last_value(sentence: str) -> str | None:
    """What a sentence says something is: "3.5" of "The length of NC is 3.5."; None if it does not say so."""
    said = SAID.search(sentence)
    if not said:
        return None
    value = LEAD.sub("", said[1].strip()).rstrip(".").strip()
    return value or None


# -----------------------------------------------------------------------------
# normal forms
# -----------------------------------------------------------------------------

# fmt: off
SIGNS = {
    "−": "-",
    "–": "-",
    "。": ".",
    "²": "^2",
    "³": "^3",
    "×": "*",
    "·": "*",
    "÷": "/",
    "掳": "°",  # a degree sign in the wrong encoding, as Geo170K has it
    "º": "°",
    "∞": "\\infty ",
    "≤": "\\leq ",
    "≥": "\\geq ",
    "∪": "\\cup ",
    "±": "\\pm ",
    "≈": "\\approx ",
    "∶": ":",
    "½": "\\frac{1}{2}",
}
# fmt: on
FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}  # the ASCII characters as Chinese texts have them
TYPOGRAPHY = str.maketrans(SIGNS | FULL_WIDTH)
QUOTES = " \"'`“”*;"

BOLD = re.compile(r"(?<![\w)}])\*\*(?=\S)([^*]+)\*\*(?![\w({\\])")  # **5**, but not 9**9**9
DELIMITERS = re.compile(
    either(
        r"\\[()\[\]]",  # \( \) \[ \]
        r"\\?\$(?=\S)",
        r"(?<=\S)\$",
        r"\\end\{answer\}",
        r"\\[,;! ]",  # thin spaces
        r"~",
        r"\\hline",
        r"\\q?quad",
    )
)
WRAPPER = re.compile(rf"\\(?:text(?:bf|rm|it)?|math(?:rm|bf|it)|boxed|mbox)\s*\{{({IN_BRACES})\}}")


def clean(text: str) -> str:
    """`text` without math delimiters, \\boxed, \\text, bold, full-width forms, final full stop, blanks."""
    text = text.translate(TYPOGRAPHY)
    text = BOLD.sub(r"\1", text)
    text = DELIMITERS.sub(" ", text)
    for _ in range(2):  # \boxed{\text{B}}
        text = WRAPPER.sub(r" \1 ", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


SIZING = re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr)(?![a-zA-Z])")
DEGREE_SIGNS = either(r"[°º掳∘˚]", r"\^\s*\{\s*\\circ\s*\}", r"\^?\s*\\circ(?![a-zA-Z])", r"\\degree")
DEGREE = re.compile(rf"{DEGREE_SIGNS}(?:\s*[TC]\b)?|\b[dD]egrees?\b")  # 49°T is a bearing
LOST_BACKSLASH = re.compile(
    r"(?<![a-zA-Z\\])(?:[dtc](?=frac))?(pi\b|frac\{|infty\b|(?:sin|cos|tan|log|ln)(?=[\s(\d]))"
)
ABOUT = re.compile(r"^(?:approximately|about|around|roughly|\\approx)\s+(?=\S)", re.IGNORECASE)
NEXT_LABEL = re.compile(r"(?<=[\]\w)}]) (?=[A-Z][a-z]{3,} ?:)")
POINT_NAME = re.compile(r"^[A-Z]'{0,2} ?(?=\([^()]*,[^()]*\)$)")
RATIO = re.compile(rf"({NUMBER}|[a-z])\s*:\s*({NUMBER}|[a-z])")


def repair(text: str) -> str:
    """`text` as LaTeX that the parser reads whole: it takes 2√{3} for 2 and trips over °, π and 9**9."""
    text = SIZING.sub(" ", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = clean(DEGREE.sub(" ", text))  # angles are in degrees
    text = text.replace("**", "^").replace("π", "\\pi ")
    text = text.lstrip(QUOTES).rstrip(QUOTES + "\\")
    text = repair_roots(text)
    text = LOST_BACKSLASH.sub(r"\\\1", text)
    text = ABOUT.sub("", text)
    text = repair_powers_of_ten(text)
    text = NEXT_LABEL.sub("; ", text)  # "Domain: [0, 1] Range: [2, 3]", once two lines
    text = repair_fractions(text)
    text = POINT_NAME.sub("", text)  # A(2, 3)
    if re.fullmatch(r"[^:]+:[^:]+", text):  # 3:4:5 is no fraction
        text = RATIO.sub(r"\\frac{\1}{\2}", text)
    return re.sub(r"\s+", " ", as_interval(text)).strip()


ROOT_SIGN = r"(?<![a-zA-Z\\])sqrt"  # without its backslash
ROOT_OF_BRACES = re.compile(rf"√\s*\{{|{ROOT_SIGN}\s*\{{|\\sqrt\s+\{{")
ROOT_OF_OTHERS = re.compile(
    either(
        rf"(?:√|{ROOT_SIGN})\s*\(([^()]*)\)",  # √(12)
        r"√\s*(\d+(?:\.\d+)?|[a-z])",  # √12
        r"\\sqrt\s*(\d)",  # \sqrt3
    )
)


def repair_roots(text: str) -> str:
    """\\sqrt{12} for √{12}, √(12), √12, sqrt{12} and sqrt(12)."""

    def with_braces(root: re.Match) -> str:
        return f"\\sqrt{{{root[1] or root[2] or root[3]}}}"

    return ROOT_OF_OTHERS.sub(with_braces, ROOT_OF_BRACES.sub(r"\\sqrt{", text))


LARGE = {"thousand": 1000, "million": 10**6, "billion": 10**9}


def repair_powers_of_ten(text: str) -> str:
    """2 \\times 10^3 for 2e3 and 2 x 10^3, 2000 for 2 thousand."""
    text = re.sub(r"(?<=\d)[eE]([-+]?\d{1,3})(?!\w)", r"\\times 10^{\1}", text)
    text = re.sub(r"(?<=\d) ?[xX] ?10\^", r"\\times 10^", text)
    return re.sub(rf"({NUMBER}) ({'|'.join(LARGE)})\b", scaled, text)


def scaled(match: re.Match) -> str:
    """1.9 million as 1900000."""
    value = number(match[1]) * LARGE[match[2]]
    return str(value) if value.denominator == 1 else match[0]


MIXED = re.compile(
    either(
        r"(?<![\w.}/])(\d{1,6}) ?\\frac\{(\d{1,6})\}\{(\d{1,6})\}",  # 1\frac{1}{2}
        r"(?<![\w.}/])(\d{1,6}) (\d{1,6})/(\d{1,6})(?!\d)",  # 1 1/2
    )
)


def repair_fractions(text: str) -> str:
    """\\frac{4}{5}\\pi for 4/5\\pi, \\frac{3}{2} for 1 1/2."""
    text = re.sub(r"(\d+)/(\d+) ?\\pi", r"\\frac{\1}{\2}\\pi", text)
    return MIXED.sub(mixed, text)


def mixed(match: re.Match) -> str:
    """1\\frac{1}{2} as \\frac{3}{2}; 3\\frac{7}{2} is a product and stays."""
    whole, top, bottom = [int(group) for group in match.groups() if group is not None]
    if top >= bottom:
        return match[0]
    return f"\\frac{{{whole * bottom + top}}}{{{bottom}}}"


FLIP = str.maketrans("<>lg", "><gl")  # also turns \leq into \geq
BOUND = r"(-?\\infty|[^<>=a-zA-Z,\\]{1,20})"  # \infty, 5, -2
VARIABLE = r"(?:[a-z]|[a-z]\([a-z]\))"  # x, f(x)
LESS = r"(<|\\leq?(?![a-z])|<=)"
ORDER = r"(<|>|\\[lg]eq?|<=|>=)"
BETWEEN = re.compile(rf"\s*{BOUND}\s*{LESS}\s*{VARIABLE}\s*{LESS}\s*{BOUND}\s*")
BOUND_FIRST = re.compile(rf"\s*{BOUND}\s*{ORDER}\s*({VARIABLE})\s*")
VARIABLE_FIRST = re.compile(rf"\s*{VARIABLE}\s*{ORDER}\s*{BOUND}\s*")


def as_interval(text: str) -> str:
    """ "[-4, 9]" for "-4 \\leq g(x) \\leq 9", "(3, \\infty)" for "x > 3"; any other text unchanged."""
    between = BETWEEN.fullmatch(text)
    if between:
        low, low_sign, high_sign, high = between.groups()
        opening = "(" if low_sign == "<" else "["
        closing = ")" if high_sign == "<" else "]"
        return f"{opening}{low.strip()}, {high.strip()}{closing}"
    turned = BOUND_FIRST.fullmatch(text)
    if turned:  # -2 < x is x > -2
        bound, sign, variable = turned.groups()
        text = f"{variable} {sign.translate(FLIP)} {bound}"
    bounded = VARIABLE_FIRST.fullmatch(text)
    if not bounded:
        return text
    sign, bound = bounded.groups()
    is_open = sign in "<>"
    if sign.startswith(("<", "\\l")):
        return f"(-\\infty, {bound.strip()}" + (")" if is_open else "]")
    return ("(" if is_open else "[") + f"{bound.strip()}, \\infty)"


# -----------------------------------------------------------------------------
# numbers and units
# -----------------------------------------------------------------------------

# unit -> its spellings; a unit may be left out, but two different units are two different answers
# fmt: off
UNITS = {
    "":         r"units?|square units?|cubic units?",
    "%":        r"\\?%|percent",
    "mm":       r"mm|millimet(?:er|re)s?|毫米",
    "cm":       r"cm|centimet(?:er|re)s?|厘米",
    "dm":       r"dm|decimet(?:er|re)s?|分米",
    "km":       r"km|kilomet(?:er|re)s?|千米|公里",
    "m":        r"m|met(?:er|re)s?|米",
    "in":       r"in|inch(?:es)?",
    "ft":       r"ft|foot|feet",
    "yd":       r"yd|yards?",
    "mile":     r"mi|miles?",
    "sea mile": r"nautical miles?|海里|n ?miles?",
    "g":        r"g|grams?|克",
    "kg":       r"kg|kilograms?|千克",
    "s":        r"s|sec|seconds?|秒",
    "min":      r"min|minutes?|分钟",
    "h":        r"h|hours?|hrs?|小时",
    "km/h":     r"kmh|kph",
    "amu":      r"amu|u(?=$)",
    "V":        r" ?V|volts?",
    "mV":       r"mV",
    "A":        r" A|amps?|amperes?",
    "mA":       r"mA",
    "ohm":      r"Ω|\\Omega|ohms?",
    "kohm":     r"k ?Ω|k\\Omega|kohms?",
    "W":        r"W|watts?",
    "kW":       r"kW",
    "N":        r"N|newtons?",
    "J":        r"J|joules?",
    "kJ":       r"kJ",
    "Hz":       r"Hz|hertz",
    "Pa":       r"Pa|pascals?",
    "kPa":      r"kPa",
    "MPa":      r"MPa",
    "K":        r" K|kelvins?",
    "mol":      r"mol|moles?",
    "L":        r" ?L|lit(?:er|re)s?",
    "mL":       r"mL|millilit(?:er|re)s?",
    "rad":      r"rad|radians?",
    "year":     r"years?",
    "month":    r"months?",
    "day":      r"days?|天",
    "week":     r"weeks?",
    "USD":      r"dollars?|USD",
    "euro":     r"euros?|€",
    "lb":       r"lbs?|pounds?",
    "kip":      r"kips?",
    "N·m":      r"N ?\*? ?m",
    "rpm":      r"rpm|rev ?/ ?min",
    "eV":       r"eV",
    "C":        r" C|coulombs?|[Cc]elsius",
    "uA":       r"[uµμ]A",
    "nA":       r"nA",
    "Mohm":     r"M ?Ω|M\\Omega",
    "mW":       r"mW",
    "MW":       r"MW",
    "kV":       r"kV",
    "uV":       r"[uµμ]V",
    "kHz":      r"kHz",
    "MHz":      r"MHz",
    "GHz":      r"GHz",
    "GPa":      r"GPa",
    "kN":       r"kN",
    "psi":      r"psi",
    "ksi":      r"ksi",
    "atm":      r"atm",
    "M":        r" M",
    "H":        r" H|henr(?:y|ies)",
    "mH":       r"mH",
    "F":        r" F|farads?",
    "uF":       r"[uµμ]F",
    "nF":       r"nF",
    "pF":       r"pF",
    "T":        r" T|teslas?",
    "ms":       r"ms|msecs?",
    "mg":       r"mg",
    "cal":      r"cal",
    "kcal":     r"kcal",
    "kWh":      r"kWh",
    "dB":       r"dB",
    "Btu":      r"Btu|BTU",
    "lbf":      r"lbf",
    "mph":      r"mph",
}
# fmt: on
ANY_UNIT = "|".join(f"(?:{spellings})" for spellings in UNITS.values())
ONE_UNIT = rf"(?:square |cubic |sq\.? |平方|立方)?({ANY_UNIT})(?: ?\^? ?\{{?[234]\}}?)?"
UNIT = re.compile(rf"{ONE_UNIT}(?: ?(?:/|per\b) ?{ONE_UNIT})?$")
BEFORE_UNIT = re.compile(r"(?:[\d.})]|\\pi)(?= ?[^\d\s])")


def split_unit(text: str) -> tuple[str, str]:
    """("12", "cm") for "12 cm". A unit stands behind a number, a bracket or π; the x of 2x is none."""
    for value in BEFORE_UNIT.finditer(text):
        for start in (value.end(), value.end() + 1):  # without and with a blank between them
            match = UNIT.match(text, start)
            if match:
                over, under = unit_name(match[1]), unit_name(match[2])
                return text[:start].strip(), f"{over}/{under}" if under else over
    return text, ""


def unit_name(spelling: str | None) -> str:
    """The key of UNITS: "cm" for "centimeters"."""
    if spelling:
        for name, spellings in UNITS.items():
            if re.fullmatch(spellings, spelling):
                return name
    return ""


LATEX_FRACTION = re.compile(rf"\\frac\s*\{{\s*({NUMBER})\s*\}}\s*\{{\s*({NUMBER})\s*\}}")
POWER_OF_TEN = re.compile(rf"({NUMBER}) ?(?:\\times|\\cdot|\*) ?10 ?\^ ?\{{? ?([-+]?\d{{1,2}}) ?\}}?")
PLAIN_NUMBER = re.compile(rf"([-+]?)\s*({NUMBER})(?:\s*/\s*({DIGITS}))?")  # - 3, 3/4


def number(text: str) -> Fraction | None:
    """The exact value of a number (1,000.5), a/b, \\frac{a}{b} or 2 * 10^3; None for anything else."""
    text = LATEX_FRACTION.sub(r"\1/\2", text.strip())
    if text.lower() in WORDS:
        return Fraction(WORDS.index(text.lower()))
    power = POWER_OF_TEN.fullmatch(text)
    if power:
        return from_digits(power[1]) * Fraction(10) ** int(power[2])
    match = PLAIN_NUMBER.fullmatch(text)
    if not match:
        return None
    sign, top, bottom = match.groups(default="1")
    if sign and top[0] in "+-":
        return None
    top, bottom = from_digits(top), from_digits(bottom)
    if bottom == 0:
        return None
    return -top / bottom if sign == "-" else top / bottom


def from_digits(digits: str) -> Fraction:
    """The value of a text that NUMBER matches: 1,000.5."""
    return Fraction(digits.replace(",", ""))


# words behind a number that are no mere noun: those that change its value ...
FACTOR = re.compile(r"\b(?:dozen|hundred|thousand|million|billion|times|pi|percent)\b")
# ... and those that take it back or go on to another one
HEDGE = re.compile(rf"\b(?:or|and|to|maybe|perhaps|not|than|half)\b|[-+*/=]|\d|\b(?:{WORD})\b")
NUMBER_OF_THINGS = re.compile(rf"({NUMBER})(?: times|((?: [a-z]{{3,}})+?)(?: in (?:total|all))?)")


def of_things(text: str) -> Fraction | None:
    """6 of "6 children", "24 small cubes in total" and "3 times", None for "6 million" or "6 or seven"."""
    match = NUMBER_OF_THINGS.fullmatch(text)
    if not match:
        return None
    count, noun = match.groups()
    if noun and (HEDGE.search(noun) or FACTOR.search(noun)):
        return None
    return number(count)


# -----------------------------------------------------------------------------
# is this answer that reference? the tasks count, choice and text
# -----------------------------------------------------------------------------

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


OPTION_LEAD = re.compile(
    r"^(?:the )?(?:correct |final |best )?(?:answer|option|choice)(?: is)?\s*:?\s+", re.IGNORECASE
)
OPTION_FRAME = re.compile(
    either(
        r"^(?:option|choice)\s+(?=\(?[a-z]\b)",  # option B
        r"(?<=[A-Za-z)]) is (?:the )?(?:correct|right|best)(?: \w+)?$",  # B is the right choice
    ),
    re.IGNORECASE,
)
LETTER_FIRST = re.compile(
    either(
        r"\(([A-Za-z])\)(.*)",  # (B) red
        r"([A-Z])[).:](.*)",  # B. red
        r"([a-z])[).:](?=\s)(.*)",  # b. red, but not i.e.
        r"([A-Za-z])$",  # B, but not "A cat": a letter before words is English
        r"([a-z])[).:]$",  # b)
    )
)
LETTER_LAST = re.compile(r".+ \(([A-J])\)")  # Early Renaissance (C)
OPTION = r"(?:option|choice) \(?"
LETTER_NAMED = re.compile(rf"(?:(?!\b{OPTION}[A-J]\b).)+ {OPTION}([A-J])\)?")  # 5 cm, which is option C
OTHER_LETTER = re.compile(
    either(
        r"\([A-J]\)(?!\w)",
        r"\b(?:or|and) [A-Z]\b",
        r"(?:^|\s)[A-J][.:]\s",
        r"^[\s,/&]*[A-Z]\b(?:$|[\s,/&]+[A-Z]\b)",  # directly behind the first: "B. D", "B: C, D"
    )
)
NEGATED = re.compile(
    r"\b(?:not|no|none|nor|or|and|cannot|fails?|never|neither|except|without|rather|instead|but|than|while"
    r"|whereas|closest|either|both|maybe|perhaps|unless|if)\b|n['’]t\b",
    re.IGNORECASE,
)


def option_letter(text: str) -> str | None:
    """The one option letter of a text: "B", "b)", "(B) red", "B. red", "option B"; None if not just one."""
    text = OPTION_LEAD.sub("", clean(text[:2000]))
    text = OPTION_FRAME.sub("", text)
    match = LETTER_FIRST.match(text) or LETTER_LAST.fullmatch(text)
    if not match and not NEGATED.search(text):
        match = LETTER_NAMED.fullmatch(text)
    if not match:
        return None
    letter, *rest = [group for group in match.groups() if group is not None]
    if rest and OTHER_LETTER.search(rest[0]):
        return None
    return letter.upper()


OPTION_MARK = re.compile(r"(?:^|(?<=\s))(?:\(([A-J])\)|([A-J])\s?([.:)]))\s*")  # (A), A., A: or A)


def read_options(problem: str) -> list[str]:
    """The options of a problem, in order: "A: 35°", "(A) red", "A. true", in one line or several.

    [] if there are none.
    """
    problem = problem[-6000:]
    runs = []  # of marks A, B, C ... in one style; every A starts another one
    for mark in OPTION_MARK.finditer(problem):
        letter = mark[1] or mark[2]
        style = mark[3]
        if letter == "A":
            runs.append([mark])
        elif runs:
            run = runs[-1]
            is_next = letter == OPTION_LETTERS[len(run) : len(run) + 1]
            if is_next and style == run[0][3]:
                run.append(mark)
    runs = [run for run in runs if len(run) > 1]
    if not runs:
        return []
    marks = runs[-1]  # the last run, because the question may have letters too
    ends = [mark.start() for mark in marks[1:]] + [len(problem)]
    return [problem[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]


PICTURE = r"(?i:the )?(?i:picture|figure|image|diagram|graph|point|piece|shape|path)"
PICTURED = re.compile(rf"{PICTURE} \(?([A-Z])\)?")  # the figure B
LETTER_WITH_TEXT = re.compile(r"(?:.*\b(?:answer|option|choice)(?: is|:)?\s+)?\(?([A-J])[).:]{1,2}\s*(.+)$")


def same_choice(answer: str, solution: str, row: dict | None = None) -> bool:
    """The same option, named by its letter, or by its text or value without the letter."""
    row = row or {}
    options = row.get("options") or read_options(row.get("problem") or "")
    offered = dict(zip(OPTION_LETTERS, options, strict=False))  # {"A": "red", ...}; empty if nothing is known
    letters = list(offered or ALPHABET)
    wanted, given = option_letter(solution), option_letter(answer)
    pictured = PICTURED.fullmatch(clean(answer[:100]))
    if pictured and given is None:
        given = answer = pictured[1]
    named = LETTER_WITH_TEXT.match(clean(answer[:1000]))
    if named and named[1] in offered and same_words(named[2], offered[named[1]]):
        given = named[1]  # "(E) P, Q and R": letters of the option's own text are no hedge
    if wanted is None:  # the reference is the text of an option
        answer = offered.get(given, answer)
        return same_words(answer, solution) or same_math(answer, solution)
    if given in letters:
        return given == wanted
    if wanted not in offered or len(answer) > 500:
        return False
    # an answer that is the value of several options has chosen none, unless they read the same
    text = offered[wanted]
    chosen = chosen_options(answer, options, row)
    return text in chosen and all(same_words(other, text) for other in chosen)


def chosen_options(answer: str, options: list[str], row: dict) -> list[str]:
    """The options that an answer without a letter means: by their text, else by their value.

    In this order, because cos(π/5) is not the option cos(9π/5), although they are equal.
    """
    alike = [option for option in options if same_words(answer, option)]
    if alike:
        return alike
    said = [option for option in options if names(answer, clean(option))]
    if len(said) == 1 and len(options) == len(set(options)):
        return said
    return [option for option in options if same_math(answer, option, row)]


def same_words(answer: str, option: str) -> bool:
    """Equal as texts but for case, articles and punctuation behind a word."""
    a, o = plain_words(answer), plain_words(option)
    if a == o:
        return a != ""
    return len(o) > 2 and without_markup(a) == without_markup(o) != ""


def plain_words(text: str) -> str:
    text = clean(text[:1000]).casefold()
    return re.sub(r"^(?:the|an?) |[\"'`“”‘’.,;:!?]+(?=\s|$)", "", text).strip()


def without_markup(text: str) -> str:
    """CH3COOH for CH_3COOH, Delta T for \\Delta T, without blanks except those between digits."""
    return re.sub(r"[_{}\\]|(?<!\d) +| +(?!\d)", "", text)


NEITHER = re.compile(r"(?:.* is )?neither(?: (?:even )?n?or odd| odd n?or even| even n?or odd)?")
VERBS = r"is|are|was|were|be|will|would|belongs? to|point(?:s|ing) to|shows?|depicts?|represents?|indicates?"
ENDS_IN_VERB = re.compile(rf"(?:^|:|\b(?:{VERBS})) ?$")


def names(answer: str, words: str) -> bool:
    """Does a short sentence say `words`, a reference of letters only? "Clara is the tallest" says Clara.

    Of yes, no, true and false the sentence begins with the right one ("No, because ..."). Neither "not" nor
    "or" may be in it.
    """
    answer = clean(answer[:400]).casefold().rstrip(".!")
    words = words.casefold()
    if words == "neither":  # "neither even nor odd"
        return NEITHER.fullmatch(answer) is not None
    if words in ("yes", "no", "true", "false"):
        begins = re.match(rf"{words}\s*(?:[,.;:]|$)", answer)
        hedged = re.search(r"\b(?:but|however|or)\b", answer)
        verdicts = re.findall(r"\b(?:yes|no|true|false)\b", answer)
        return bool(begins) and not hedged and set(verdicts) == {words}
    if not re.fullmatch(r"[a-z][a-z' -]{2,60}", words):
        return False
    if len(answer.split()) > 25 or re.search(r"[\n,;]|[.!?]\s|\bvs\b", answer):
        return False
    found = re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", answer)
    if not found:
        return False
    before, after = answer[: found.start()], answer[found.end() :]
    if NEGATED.search(before + after):
        return False
    before = re.sub(r"(?:(?:most )?likely )?(?:the |an? )?$", "", before)
    return ENDS_IN_VERB.search(before) is not None


def same_text(answer: str, solution: str, row: dict | None = None) -> bool:
    """Equal but for case, blanks, quotes, math delimiters and a final full stop; nothing fuzzy."""
    answer = clean(answer).strip("\"'`“”").casefold()
    solution = clean(solution).strip("\"'`“”").casefold()
    return answer == solution != ""


# -----------------------------------------------------------------------------
# the task math: as numbers, else as texts, lists and intervals, and only then as expressions
# -----------------------------------------------------------------------------

# a and s are what the answer and the solution come to, without their labels.

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


FILLER = re.compile(r"^(?:therefore|thus|hence|so|(?:yes|no)(?=.*[\d\\]))\s*,\s*", re.IGNORECASE)
THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
LONG_LABEL = re.compile(r"\b(?!sin|cos|tan|log)[A-Za-z]{3,} ?[:=]")  # "Center =", "domain:"
EQUALS = re.compile(r"(?<![<>!:\\])=")


def sides(text: str) -> tuple[str, str]:
    """("x", "5") for x = 5, ("x^2", "y + 1") for an equation, ("", "5") for whatever else comes to 5.

    That is the value itself, a calculation, a chain of equations or a sentence that ends in it.
    """
    text = FILLER.sub("", text)
    listed = THOUSANDS_COMMA.sub("", text) if "=" in text else text
    if len(top_level(listed)) > 1:
        return "", text
    if re.search("[A-Za-z]{3}", LATEX_COMMAND.sub(" ", text)):
        said = last_value(text)
        if said and is_prose(text[: -len(said)]):
            return "", said
    text = LONG_LABEL.sub(" ", text).strip()
    parts = [part.strip() for part in EQUALS.split(text)]
    left, right = parts[0], parts[-1]
    if len(parts) == 1:
        return "", text
    if len(parts) > 2:
        return "", right  # a chain
    if re.fullmatch("[a-zA-Z]", right) and not re.search("[a-zA-Z]", left):
        return right, left  # 5 = x
    if not re.search("[a-zA-Z]", re.sub(r"\\(?!angle|theta|alpha|beta)[a-zA-Z]+", "", left)):
        return "", right  # a calculation
    return left, right


def is_prose(text: str) -> bool:
    """Does the text hold words, and not just the functions of a formula?"""
    words = re.findall(r"(?<![\\a-zA-Z])[A-Za-z]{3,}", text)
    return any(word not in FUNCTIONS for word in words)


def is_label(left: str) -> bool:
    """Is this the name of a value (x, AB, f(x), S_1, \\angle A, or nothing), not an expression?"""
    return not re.search(r"[-+*/^<>|]|\d[a-zA-Z]|\\frac|\\sqrt", left)


# -----------------------------------------------------------------------------
# lists, intervals and decimals
# -----------------------------------------------------------------------------


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


PLUS_MINUS = re.compile(r"([^,]*?)\\pm ?([^,]+)")


def split_list(text: str) -> tuple[str, list[str]]:
    """("()", ["0", "1"]) for "(0, 1)", ("", ["1", "2"]) for "1 and 2", ("", [text]) for a single value."""
    text = re.sub(r"\\([{}])", r"\1", text.strip())
    inside = text[1:-1]
    if len(text) > 2 and text[0] in "([{" and text[-1] in ")]}" and balanced(inside):
        members = top_level(inside)
        if len(members) > 1:
            return text[0] + text[-1], members
    pair = PLUS_MINUS.fullmatch(text)
    if pair:
        return "", [f"{pair[1]}+{pair[2]}".strip("+"), f"{pair[1]}-{pair[2]}"]
    return "", top_level(text)


def balanced(text: str) -> bool:
    """Has every bracket a partner? Half-open intervals mix ( and ], so kinds are not compared."""
    depth = 0
    for char in text:
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth < 0:
                return False
    return depth == 0


BRACKET_OR_SEPARATOR = re.compile(r"[([{]|[)\]}]|[,;]|\band\b|\bor\b|\\cup\b")


def top_level(text: str) -> list[str]:
    """The parts between commas, semicolons, "and", "or" and unions that stand outside all brackets."""
    parts = []
    depth = start = 0
    for match in BRACKET_OR_SEPARATOR.finditer(text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part] or [text]


def rounds_to(value: Fraction, decimal: str) -> bool:
    """Does the value round to the decimal as written, 2.828 to "2.83"? An integer is exact: nothing does."""
    places = re.fullmatch(r"[-+]?[\d,]*\.(\d+)", decimal.strip())
    if not places:
        return False
    half_a_digit = Fraction(1, 2 * 10 ** len(places[1]))
    return abs(value - number(decimal)) <= half_a_digit * Fraction(1_000_001, 1_000_000)


def six_digits(value: Fraction, decimal: str, exact: Fraction) -> bool:
    """Has the decimal six digits or more, all of them right? 3.33 is not 10/3, 3.333333 is taken for it."""
    digits = re.sub(r"[^\d]", "", decimal).lstrip("0")
    is_close = abs(value - exact) <= abs(exact) / 10**5
    return len(digits) >= 6 and is_close and rounds_to(exact, decimal.strip())


# -----------------------------------------------------------------------------
# limits: whatever a completion holds, it gets a verdict, and soon
# -----------------------------------------------------------------------------

SECONDS = 2.0  # of CPU time for one completion, with all its parts, references and options
COMPARISON = 1.0  # of CPU time for one symbolic comparison
AGAIN = 0.05  # so much later the alarm rings once more, in case a library has swallowed it
deadline = math.inf  # in CPU time of the main thread: when the alarm rings
rang = False  # the attempt that runs now is out of time
timeouts = 0  # attempts of this process that took too long and counted as wrong
failures = Counter()  # {kind of error: attempts of this process that raised it and counted as wrong}


class TookTooLong(BaseException):
    """Raised by the alarm. No Exception: math_verify would turn that into an empty formula."""


def attempt(work, *args, seconds: float = SECONDS):
    """work(*args); None, which counts as wrong, if it raises an error or takes over `seconds` of CPU time.

    CPU time of this thread, not time on the wall: what is right stays right on a busy machine. Attempts nest,
    and the limit of the outer one holds for all within. The alarm is a signal, which only the main thread of
    a process gets (each of Scorer's has one); in other threads there is no limit, only tame input.
    """
    global rang, timeouts
    outer = deadline
    try:
        set_alarm(min(outer, time.thread_time() + seconds))
        result = work(*args)
        if rang:
            raise TookTooLong  # and somebody swallowed it: the result is not to be trusted
        return result
    except TookTooLong:
        set_alarm(math.inf)
        timeouts += 1
        forget_half_done()
        log_once(f"{shown(args)} took over {seconds:.2g} s of CPU time and counts as wrong")
    except Exception as error:  # of sympy anything; of our own code nothing that we know of
        set_alarm(math.inf)
        kind = type(error).__name__
        failures[kind] += 1
        forget_half_done()
        if failures[kind] == 1:
            log.warning(f"{shown(args)} failed with {kind}; such answers count as wrong")
    finally:
        rang = False
        set_alarm(outer)
    return None


def set_alarm(end: float) -> None:
    """Ring at this CPU time of the main thread, math.inf: not at all. Other threads: nothing happens."""
    global deadline
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGPROF) is not ring:
        signal.signal(signal.SIGPROF, ring)  # for good: without a handler a late signal would end the process
        signal.siginterrupt(signal.SIGPROF, False)  # system calls of other threads go on
    deadline = end
    left = 0 if end == math.inf else max(end - time.thread_time(), 0.001)
    signal.setitimer(signal.ITIMER_PROF, left, AGAIN)


def ring(signum, frame) -> None:
    """The alarm. The timer counts all threads of the process (torch has many): is it this one's time?"""
    global deadline, rang
    if deadline == math.inf:
        return  # too late, the work is done
    now = time.thread_time()
    if now < deadline:
        signal.setitimer(signal.ITIMER_PROF, max(deadline - now, 0.001), AGAIN)
        return
    rang = True
    deadline = now + AGAIN
    raise TookTooLong


def forget_half_done() -> None:
    """Empty the caches that an interrupted comparison may have left with half a result."""
    for cached in (parse_latex, verified, constant_ratio, real_value):
        cached.cache_clear()
    if "sympy" in sys.modules:
        from sympy.core.cache import clear_cache

        clear_cache()


def shown(args) -> str:
    """The texts that were compared, for a line of the log."""
    texts = [repr(arg[:200]) for arg in args if isinstance(arg, str)]
    return f"comparison of {' with '.join(texts)}"


# -----------------------------------------------------------------------------
# symbolic work: the only part that could take long, hence tame input
# -----------------------------------------------------------------------------

EXPONENT = rf"\^\s*({BRACES}|\([^()]*\)|[-+]?\s*(?:\d+|[a-zA-Z]|\\pi))"
ENDLESS = re.compile(r"!|\\(?:sum|prod|int|lim|binom|Gamma|zeta|approx)|\d{31}|\d\s+\d")


def is_tame(text: str) -> bool:
    """Is `text` short, and free of prose and of what could take forever (9^9^9, 2^99999, 10000!, sums)?"""
    if len(text) > 200 or ENDLESS.search(text):
        return False
    exponents = re.findall(EXPONENT, text)
    if len(exponents) != text.count("^"):  # a ^ within an exponent is not among them
        return False
    if re.search(EXPONENT + r"\s*[)}]*\s*\^", text):
        return False
    size = 1
    for exponent in exponents:
        for digits in re.findall(r"\d+", exponent):
            size *= max(int(digits[:9]), 1)
    if size > 9999:
        return False
    # letters are variables and would multiply and commute: "red cube" is no product, "3 or 4" no number
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]+", LATEX_COMMAND.sub(" ", text))
    return not any(word == "or" or len(word) > 2 and word not in FUNCTIONS for word in words)


def symbolic(work, *texts: str):
    """work(*texts) with math_verify and sympy; None, which counts as wrong, if it fails or is too slow."""
    if not all(text and is_tame(text) for text in texts):
        return None
    load_sympy()
    return attempt(work, *texts, seconds=COMPARISON)


@functools.cache
def load_sympy() -> None:
    """Import math_verify and use it once, at nobody's expense: seconds, and only when first needed."""
    outer, started = deadline, time.thread_time()
    set_alarm(math.inf)

    import math_verify

    # it warns that the limit of time is ours, which it is
    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    verified("\\sqrt{12}", "2\\sqrt{3}")
    set_alarm(outer + time.thread_time() - started)


@functools.lru_cache(maxsize=4096)
def parse_latex(text: str) -> list:
    """math_verify's reading of one formula, whole; [] if it cannot read it.

    Its other extractors would pick the first number out of such a text.
    """
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def constant(parsed: list) -> complex | None:
    """The value of an expression without variables, None if it is something else or not finite."""
    import sympy

    if not parsed or not isinstance(parsed[0], sympy.Expr) or parsed[0].free_symbols:
        return None
    value = complex(parsed[0].evalf())
    return value if math.isfinite(abs(value)) else None


# The caches hold finished verdicts only: an attempt that was given up raises, and is made anew the next time.


def same_expression(answer: str, solution: str) -> bool:
    """Symbolic equality by math_verify; False, and a line in the log, if it cannot decide."""
    return bool(symbolic(verified, answer, solution))


@functools.lru_cache(maxsize=4096)  # the G completions of one prompt repeat the same few answers
def verified(answer: str, solution: str) -> bool:
    from math_verify import verify

    gold, given = parse_latex(solution), parse_latex(answer)
    if not gold:
        log_once(f"math_verify cannot read the reference {solution!r}: only equal texts will be right")
    wanted_value, given_value = constant(gold), constant(given)
    if wanted_value is not None and given_value is not None:  # 50 times quicker than to simplify
        larger = max(abs(wanted_value), abs(given_value))
        if abs(wanted_value - given_value) > 1e-6 * larger:
            return False
    return bool(gold and given) and verify(gold, given, timeout_seconds=None)


def proportional(answer: str, solution: str) -> bool:
    """Is one expression a constant times the other? Then "answer = 0" and "solution = 0" are one equation."""
    return bool(symbolic(constant_ratio, answer, solution))


@functools.lru_cache(maxsize=4096)
def constant_ratio(answer: str, solution: str) -> bool:
    import sympy

    a, s = parse_latex(answer), parse_latex(solution)
    if not (a and s and isinstance(a[0], sympy.Expr) and isinstance(s[0], sympy.Expr)):
        return False
    ratio = sympy.simplify(a[0] / s[0])
    return not ratio.free_symbols and ratio.is_finite and ratio != 0


def nearly(text: str) -> float | None:
    """The value of a constant: 12.566 for "4\\pi", 12.57 for "12.57 units if ..."; None if it is none."""
    exact = number(text)
    if exact is not None:
        return float(exact)
    leading = re.match(rf"({NUMBER})(?= [a-z]{{2}})", text)
    if leading:
        return float(number(leading[1]))
    return symbolic(real_value, text)


@functools.lru_cache(maxsize=4096)
def real_value(text: str) -> float | None:
    value = constant(parse_latex(text))
    return value.real if value is not None and value.imag == 0 else None


@functools.lru_cache(maxsize=1024)
def log_once(message: str) -> None:
    """Log a warning the first time only: a training run meets the same reference thousands of times."""
    log.warning(message)


# -----------------------------------------------------------------------------
# boxes
# -----------------------------------------------------------------------------

CORNER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
BOX_IN_BRACKETS = re.compile(rf"[\[(]{CORNER},{CORNER}(?:\)\s*,\s*\(|,){CORNER},{CORNER}[\])]")
BARE_BOX = re.compile(rf"{CORNER},{CORNER},{CORNER},{CORNER}")


def read_box(text: str) -> list[float] | None:
    """The one box [x1, y1, x2, y2] of a text: JSON of any depth, a bare list, or Qwen2-VL's (x1,y1),(x2,y2).

    None if there is no box, or if there are different ones: listing many boxes must not pay.
    """
    text = re.sub(r"```(?:json)?|<\|box_(?:start|end)\|>", " ", text[:4000]).strip()
    try:
        found = boxes_in(json.loads(text))
    except (ValueError, OverflowError, RecursionError):  # no JSON that can be used: four numbers in brackets
        found = BOX_IN_BRACKETS.findall(text)
        bare = BARE_BOX.fullmatch(text)
        if bare:
            found.append(bare.groups())
    boxes = [[float(x) for x in box] for box in found]
    if not boxes or any(box != boxes[0] for box in boxes):
        return None
    return boxes[0]


def boxes_in(node) -> list[list]:
    """All lists of four numbers in a value that json.loads has read, none beyond any image (or NaN)."""
    if isinstance(node, dict):
        return [box for child in node.values() for box in boxes_in(child)]
    if not isinstance(node, list):
        return []
    if len(node) == 4 and all(type(x) in (int, float) and abs(x) < 1e9 for x in node):
        return [node]
    return [box for child in node for box in boxes_in(child)]


def scale_box(box: list[float], size: tuple[float, float], to: tuple[float, float]) -> list[float]:
    """The box of a frame of `size` (width, height) in a frame of size `to`."""
    x1, y1, x2, y2 = box
    return [
        x1 * to[0] / size[0],
        y1 * to[1] / size[1],
        x2 * to[0] / size[0],
        y2 * to[1] / size[1],
    ]


def iou(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2], as torchvision.ops.box_iou computes it."""
    width_a, height_a = a[2] - a[0], a[3] - a[1]
    width_b, height_b = b[2] - b[0], b[3] - b[1]
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if min(width, height, width_a, height_a, width_b, height_b) <= 0:
        return 0.0
    both = width * height
    return both / (width_a * height_a + width_b * height_b - both)


def box_overlap(answer: str, solution: str, row: dict | None = None) -> float:
    """IoU of the answer's box with the reference's; 0 without one box each.

    The reference is in pixels of the original image. A policy speaks in a frame of its own, row["box_frame"]:
    pixels of the resized image (Qwen2.5-VL) or thousandths (Qwen2-VL, Qwen3-VL); with row["image_size"] known
    its box is scaled back.
    """
    row = row or {}
    given, wanted = read_box(answer), read_box(solution)
    if given is None or wanted is None:
        return 0.0
    if row.get("box_frame") and row.get("image_size"):
        given = scale_box(given, row["box_frame"], row["image_size"])
    return iou(given, wanted)


def same_box(answer: str, solution: str, row: dict | None = None) -> bool:
    """IoU over 0.5, the usual criterion of RefCOCO."""
    return box_overlap(answer, solution, row) > 0.5


# -----------------------------------------------------------------------------
# the table of tasks
# -----------------------------------------------------------------------------


def same_auto(answer: str, solution: str, row: dict | None = None) -> bool:
    """The look of the reference decides: a letter is a choice, four numbers in brackets are a box, an integer
    is a count or math, anything else with digits or mathematical signs is math, the rest is text.
    """
    if re.fullmatch(r"\(?[A-Z]\)?\.?", solution.strip()):
        return same_choice(answer, solution, row)
    if re.fullmatch(rf"\s*\[(?:\s*{NUMBER}\s*,){{3}}\s*{NUMBER}\s*\]\s*", solution):
        return same_box(answer, solution, row)
    if re.fullmatch(r"[-+]?\d+", solution.strip()) and same_count(answer, solution):
        return True
    if re.search(r"[\d\\√π=^]", solution):
        return same_math(answer, solution)
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
    tagged = extract_answer(solution)  # data sets of the R1 family ship the reference inside tags
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
    for solution in references(row):
        best = max(best, float(is_right(answer, solution, row)))
        if best == 1:
            break  # the others could cost a symbolic comparison each
    return best
