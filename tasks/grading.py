"""Grading: what does a completion answer, and is that right? rewards.py pays for it.

Only the content of the last <answer>...</answer> is ever compared with the reference. A grader that reads the whole completion
pays for any number in the reasoning: "<think>there are 3 cubes</think><answer>5</answer>" earned 1.0 for a reference of 3 in
earlier R1-style code, and a policy finds that out quickly (it is cheaper to list many numbers than to count). The last tag, not
the first, because models draft answers; not any tag, because then listing all of them pays.

task       the answer is right if it is ...                   right                                wrong
count      one integer, the same                              "3 cubes", "three", "2 + 1 = 3"      "3 or 4", "at least 3"
choice     the same option, by letter or by its value         "(B) red", "b", "red"                "B, D"; "A cat" for A
math       the same number, expression, tuple, interval ...   "1/2" for 0.5, "2√3" for √{12}       "13 cm" for 12 cm, "3.3" for 10/3
grounding  one box, IoU > 0.5 with the reference              {"bbox_2d": [9, 9, 99, 99]}          two boxes
text       the same text but for case and blanks              "Red  cube." for red cube            "red cubes"
auto       right by the rule that the look of the reference suggests

A new task is one short function and one line in VERIFIERS.
"""

import functools
import json
import logging
import math
import re
import signal
import threading
from fractions import Fraction

log = logging.getLogger(__name__)

# no tag inside: of nested tags the innermost pair is the answer, and the search stays linear on hostile input
ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
# at most 30 digits: enough for any answer, and far from the length at which Python refuses to convert
DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,9}(?:\.\d{1,30})?|\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})"
NUMBER = rf"[-+]?{DIGITS}"
FACTOR = re.compile(
    r"\b(?:dozen|hundred|thousand|million|billion|times|pi|percent)\b"
)  # words that are no mere noun behind a number
LEAD = re.compile(
    r"(?i)^(?:(?:approximately|about|around|roughly|exactly|only|just|\\approx|therefore:?|thus:?|then:?|likely:?|"
    r"(?:located )?at (?=the |\(|\\)|(?:the )?(?:points?|coordinates?|interval|equation|line|function|value)"
    r"(?= [^a-z]| [xyf]\b))\s*)+"
)
HEDGE = re.compile(
    r"\b(?:or|and|to|maybe|perhaps|not|than|half)\b|[-+*/=]|\d|\b(?:" + "|".join(WORDS) + r")\b"
)


# ---------------------------------------------------------------------------
# reading the answer out of a completion


def extract_answer(completion: str, strict: bool = True) -> str | None:
    """The content of the last <answer>...</answer>, stripped, wherever it stands; None if there is none.

    strict=True (training) accepts nothing else, so an unclosed tag is no answer. strict=False (evaluation, where models
    never saw the tags) falls back, in this order, to an unclosed last tag, the last \\boxed{...}, and a conclusion in
    plain words at the end of the text ("the answer is 5", "Answer: B", "there are 5 cubes", a final bare number).
    """
    answer = None
    for match in ANSWER.finditer(completion):
        answer = match[1].strip()
    if answer is not None or strict:
        return answer
    if "<answer>" in completion:
        completion, _, rest = completion.rpartition("<answer>")
        rest = re.sub(r"(?:</?[a-z]{0,6}>?|\\end\{answer\})\s*$", "", rest[-4000:]).strip()
        if rest:  # cut off by the length limit, perhaps within the closing tag
            return rest
    boxed = last_boxed(completion)
    return boxed if boxed is not None else conclusion(completion)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces balance, or None."""
    starts = [m.end() for m in re.finditer(r"\\boxed\s*\{", text)]
    for start in starts[-8:][
        ::-1
    ]:  # a bound, because every unbalanced start costs a walk to the end of the text
        depth = 1
        for i in range(start, len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start:i].strip()
    return None


def conclusion(text: str) -> str | None:
    """An answer stated in words in the last 400 characters, or None; for evaluation only."""
    tail = re.sub(r"</?(?:think|answer)>|<[a-z/]{0,6}\s*$|\*\*", " ", text[-400:]).strip()
    lines = [line.strip() for line in tail.split("\n") if line.strip()]
    if (
        re.search(r"(.{1,60}?)\1{3,}.{0,60}$", tail, re.DOTALL)
        or (  # a loop, or a list of options that never ends:
            len(lines) > 2 and all(re.match(r"\W{0,2}[A-Za-z0-9]{1,2}[.):]\s", line) for line in lines[-2:])
        )
    ):  # whatever it happens to end with was not concluded
        return None
    stated = re.findall(
        r"\b(?:answer|option|choice)\b[^.\n:=]{0,40}?(?:\bis\b|:|=)(?: therefore| thus| then)?[ \t:]*([^\s:][^\n]*)|"
        r"答案[是为]?[:：]?\s*([^\n]+)|\banswer(?: is)?\s*:?\s*\n\s*(?:\\\[\s*)?([^\n]+)",
        tail,
        re.IGNORECASE,
    )
    if stated:
        return "".join(stated[-1]).strip().rstrip(".").strip()
    last = re.split(r"\n|(?<=[.!?])\s", lines[-1] if lines else "")[-1]
    there = re.search(
        rf"\bthere (?:are|is)(?: only| exactly| a total of)? ({NUMBER}|no|{'|'.join(WORDS)})\b",
        last,
        re.IGNORECASE,
    )
    if there:
        return "0" if there[1].lower() == "no" else there[1]
    if re.match(r"(?:so|therefore|thus|hence|in conclusion|finally)\b", last, re.IGNORECASE) and last_value(
        last
    ):
        return last_value(last)
    bare = re.search(rf"(?<![\w.,/^{{-])({NUMBER}|{'|'.join(WORDS)})\s*°?[.!]?$", last, re.IGNORECASE)
    return bare[1] if bare else None


def last_value(sentence: str) -> str | None:
    """What a sentence says something is: "3.5" of "The length of NC is 3.5."; None if it says nothing of the kind."""
    said = re.findall(
        r"(?:\b(?:is|are|equals|equal to|be)\b|[=:])\s*((?:(?!\b(?:is|are|equals|equal to|be)\b|[=:]).)+)$",
        sentence,
    )
    return LEAD.sub("", said[-1].strip()).rstrip(".").strip() or None if said else None


# ---------------------------------------------------------------------------
# normal forms

TYPOGRAPHY = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "。": ".",
        "²": "^2",
        "³": "^3",
        "×": "*",
        "·": "*",
        "÷": "/",
        "掳": "°",
        "º": "°",
        "∞": "\\infty ",
        "≤": "\\leq ",
        "≥": "\\geq ",
        "∪": "\\cup ",
        "±": "\\pm ",
        "≈": "\\approx ",
        "∶": ":",
        "½": "\\frac{1}{2}",
        **{0xFF01 + i: 0x21 + i for i in range(94)},
    }
)  # full-width forms


QUOTES = " \"'`“”*;"


def clean(text: str) -> str:
    """`text` without decoration: math delimiters, \\boxed, \\text, bold, final full stop, full-width forms, blanks."""
    text = text.translate(TYPOGRAPHY)
    text = re.sub(r"(?<![\w)}])\*\*(?=\S)([^*]+)\*\*(?![\w({\\])", r"\1", text)  # bold, but not 9**9**9
    text = re.sub(
        r"\\[()\[\]]|\\?\$(?=\S)|(?<=\S)\$|\\end\{answer\}|\\[,;! ]|~|\\hline|\\q?quad", " ", text
    )  # delimiters and spaces
    for _ in range(2):  # \boxed{\text{B}}
        text = re.sub(
            r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf|it)|boxed|mbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}",
            r" \1 ",
            text,
        )
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


def repair(text: str) -> str:
    """`text` as LaTeX that the parser reads whole: it takes 2√{3} for 2 and trips over °, π, sqrt(3) and 9**9."""
    text = re.sub(r"\\(?:left|right|displaystyle|bigl?|bigr)(?![a-zA-Z])", " ", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    degree = (
        r"(?:[°º掳∘˚]|\^\s*\{\s*\\circ\s*\}|\^?\s*\\circ(?![a-zA-Z])|\\degree)(?:\s*[TC]\b)?|\b[dD]egrees?\b"
    )
    text = clean(re.sub(degree, " ", text))  # angles are in degrees
    text = text.replace("**", "^").replace("π", "\\pi ").lstrip(QUOTES).rstrip(QUOTES + "\\")
    text = re.sub(r"√\s*\{|(?<![a-zA-Z\\])sqrt\s*\{|\\sqrt\s+\{", r"\\sqrt{", text)
    text = re.sub(
        r"(?:√|(?<![a-zA-Z\\])sqrt)\s*\(([^()]*)\)|√\s*(\d+(?:\.\d+)?|[a-z])|\\sqrt\s*(\d)",
        lambda m: f"\\sqrt{{{m[1] or m[2] or m[3]}}}",
        text,
    )
    text = re.sub(
        r"(?<![a-zA-Z\\])(?:[dtc](?=frac))?(pi\b|frac\{|infty\b|(?:sin|cos|tan|log|ln)(?=[\s(\d]))",
        r"\\\1",
        text,
    )
    text = re.sub(r"(?i)^(?:approximately|about|around|roughly|\\approx)\s+(?=\S)", "", text)
    text = re.sub(
        r"(?<=\d) ?[xX] ?10\^",
        r"\\times 10^",
        re.sub(r"(?<=\d)[eE]([-+]?\d{1,3})(?!\w)", r"\\times 10^{\1}", text),
    )
    text = re.sub(rf"({NUMBER}) (thousand|million|billion)\b", scaled, text)
    text = re.sub(
        r"(?<=[\]\w)}]) (?=[A-Z][a-z]{3,} ?:)", "; ", text
    )  # "Domain: [0, 1] Range: [2, 3]", once two lines
    text = re.sub(r"(\d+)/(\d+) ?\\pi", r"\\frac{\1}{\2}\\pi", text)
    text = re.sub(
        r"(?<![\w.}/])(\d{1,6}) ?\\frac\{(\d{1,6})\}\{(\d{1,6})\}|(?<![\w.}/])(\d{1,6}) (\d{1,6})/(\d{1,6})(?!\d)",
        mixed,
        text,
    )
    text = re.sub(r"^[A-Z]'{0,2} ?(?=\([^()]*,[^()]*\)$)", "", text)  # A(2, 3): the point's name
    text = (
        re.sub(rf"({NUMBER}|[a-z])\s*:\s*({NUMBER}|[a-z])", r"\\frac{\1}{\2}", text)
        if re.fullmatch(r"[^:]+:[^:]+", text)
        else text
    )
    return re.sub(r"\s+", " ", as_interval(text)).strip()


def scaled(match: re.Match) -> str:
    """1.9 million as 1900000."""
    value = number(match[1]) * {"thousand": 1000, "million": 10**6, "billion": 10**9}[match[2]]
    return str(value) if value.denominator == 1 else match[0]


def mixed(match: re.Match) -> str:
    """1\\frac{1}{2} as \\frac{3}{2}; 3\\frac{7}{2} is a product and stays."""
    whole, top, bottom = (int(g) for g in match.groups() if g is not None)
    return f"\\frac{{{whole * bottom + top}}}{{{bottom}}}" if top < bottom else match[0]


FLIP = str.maketrans("<>lg", "><gl")


def as_interval(text: str) -> str:
    """ "[-4, 9]" for "-4 \\leq g(x) \\leq 9", "(3, \\infty)" for "x > 3"; any other text unchanged."""
    low, op, bound = (
        r"(-?\\infty|[^<>=a-zA-Z,\\]{1,20})",
        r"(<|\\leq?(?![a-z])|<=)",
        r"(?:[a-z]|[a-z]\([a-z]\))",
    )
    if m := re.fullmatch(rf"\s*{low}\s*{op}\s*{bound}\s*{op}\s*{low}\s*", text):
        return f"{'(' if m[2] == '<' else '['}{m[1].strip()}, {m[4].strip()}{')' if m[3] == '<' else ']'}"
    if m := re.fullmatch(rf"\s*{low}\s*(<|>|\\[lg]eq?|<=|>=)\s*({bound})\s*", text):  # -2 < x is x > -2
        text = f"{m[3]} {m[2].translate(FLIP)} {m[1]}"
    if m := re.fullmatch(rf"\s*{bound}\s*(<|>|\\[lg]eq?|<=|>=)\s*{low}\s*", text):
        open_end, below = m[1] in "<>", m[1][0] == "<" or m[1].startswith("\\l")
        return (
            f"(-\\infty, {m[2].strip()}{')' if open_end else ']'}"
            if below
            else f"{'(' if open_end else '['}{m[2].strip()}, \\infty)"
        )
    return text


# unit -> its spellings; a unit may be left out, but two different units are two different answers
UNITS = {
    "": r"units?|square units?|cubic units?",
    "%": r"\\?%|percent",
    "mm": r"mm|millimet(?:er|re)s?|毫米",
    "cm": r"cm|centimet(?:er|re)s?|厘米",
    "dm": r"dm|decimet(?:er|re)s?|分米",
    "km": r"km|kilomet(?:er|re)s?|千米|公里",
    "m": r"m|met(?:er|re)s?|米",
    "in": r"in|inch(?:es)?",
    "ft": r"ft|foot|feet",
    "yd": r"yd|yards?",
    "mile": r"mi|miles?",
    "sea mile": r"nautical miles?|海里|n ?miles?",
    "g": r"g|grams?|克",
    "kg": r"kg|kilograms?|千克",
    "s": r"s|sec|seconds?|秒",
    "min": r"min|minutes?|分钟",
    "h": r"h|hours?|hrs?|小时",
    "km/h": r"kmh|kph",
    "amu": r"amu|u(?=$)",
    "V": r" ?V|volts?",
    "mV": r"mV",
    "A": r" A|amps?|amperes?",
    "mA": r"mA",
    "ohm": r"Ω|\\Omega|ohms?",
    "kohm": r"k ?Ω|k\\Omega|kohms?",
    "W": r"W|watts?",
    "kW": r"kW",
    "N": r"N|newtons?",
    "J": r"J|joules?",
    "kJ": r"kJ",
    "Hz": r"Hz|hertz",
    "Pa": r"Pa|pascals?",
    "kPa": r"kPa",
    "MPa": r"MPa",
    "K": r" K|kelvins?",
    "mol": r"mol|moles?",
    "L": r" ?L|lit(?:er|re)s?",
    "mL": r"mL|millilit(?:er|re)s?",
    "rad": r"rad|radians?",
    "year": r"years?",
    "month": r"months?",
    "day": r"days?|天",
    "week": r"weeks?",
    "USD": r"dollars?|USD",
    "euro": r"euros?|€",
    "lb": r"lbs?|pounds?",
    "kip": r"kips?",
    "N·m": r"N ?\*? ?m",
    "rpm": r"rpm|rev ?/ ?min",
    "eV": r"eV",
    "C": r" C|coulombs?|[Cc]elsius",
    "uA": r"[uµμ]A",
    "nA": r"nA",
    "Mohm": r"M ?Ω|M\\Omega",
    "mW": r"mW",
    "MW": r"MW",
    "kV": r"kV",
    "uV": r"[uµμ]V",
    "kHz": r"kHz",
    "MHz": r"MHz",
    "GHz": r"GHz",
    "GPa": r"GPa",
    "kN": r"kN",
    "psi": r"psi",
    "ksi": r"ksi",
    "atm": r"atm",
    "M": r" M",
    "H": r" H|henr(?:y|ies)",
    "mH": r"mH",
    "F": r" F|farads?",
    "uF": r"[uµμ]F",
    "nF": r"nF",
    "pF": r"pF",
    "T": r" T|teslas?",
    "ms": r"ms|msecs?",
    "mg": r"mg",
    "cal": r"cal",
    "kcal": r"kcal",
    "kWh": r"kWh",
    "dB": r"dB",
    "Btu": r"Btu|BTU",
    "lbf": r"lbf",
    "mph": r"mph",
}
ONE_UNIT = (
    r"(?:square |cubic |sq\.? |平方|立方)?(?P<NAME>"
    + "|".join(f"(?:{u})" for u in UNITS.values())
    + r")(?: ?\^? ?\{?[234]\}?)?"
)
UNIT = re.compile(
    ONE_UNIT.replace("NAME", "over") + r"(?: ?(?:/|per\b) ?" + ONE_UNIT.replace("NAME", "under") + ")?$"
)


def split_unit(text: str) -> tuple[str, str]:
    """("12", "cm") for "12 cm". A unit stands at the end, behind a number, a bracket or π: the x of 2x is no unit."""
    for start in (
        m.end() + blank for m in re.finditer(r"(?:[\d.})]|\\pi)(?= ?[^\d\s])", text) for blank in (0, 1)
    ):
        match = UNIT.match(text, start)
        if match:
            over, under = (
                next((name for name, u in UNITS.items() if part and re.fullmatch(u, part)), "")
                for part in match.groups()
            )
            return text[:start].strip(), f"{over}/{under}" if under else over
    return text, ""


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, a/b or \\frac{a}{b}, thousands separators allowed; None for anything else."""
    text = re.sub(rf"\\frac\s*\{{\s*({NUMBER})\s*\}}\s*\{{\s*({NUMBER})\s*\}}", r"\1/\2", text.strip())
    if text.lower() in WORDS:
        return Fraction(WORDS.index(text.lower()))
    power = re.fullmatch(rf"({NUMBER}) ?(?:\\times|\\cdot|\*) ?10 ?\^ ?\{{? ?([-+]?\d{{1,2}}) ?\}}?", text)
    if power:
        return Fraction(power[1].replace(",", "")) * Fraction(10) ** int(power[2])
    match = re.fullmatch(rf"([-+]?)\s*({NUMBER})(?:\s*/\s*({DIGITS}))?", text)
    if not match or match[1] and match[2][0] in "+-":
        return None
    top, bottom = (Fraction((part or "1").replace(",", "")) for part in match.group(2, 3))
    return (-top if match[1] == "-" else top) / bottom if bottom else None


def of_things(text: str) -> Fraction | None:
    """6 of "6 children", "24 small cubes in total" and "3 times", None for "6 million" or "6 or seven"."""
    noun = re.fullmatch(rf"({NUMBER})(?: times|((?: [a-z]{{3,}})+?)(?: in (?:total|all))?)", text)
    return (
        number(noun[1])
        if noun and not (noun[2] and (HEDGE.search(noun[2]) or FACTOR.search(noun[2])))
        else None
    )


# ---------------------------------------------------------------------------
# comparing an answer with the reference: one pure function per task, which never raises on any text. `row` is the data row,
# for the tasks that need more than the reference: the options of a choice, the frames of a box


def same_count(answer: str, solution: str, row: dict | None = None) -> bool:
    """One integer in digits or words up to twenty, perhaps followed by a noun; of an equation the right-hand side."""
    counted = []
    for text in (answer, solution):
        text = re.sub(r"^答案[是为]?:?", "", clean(text[-2000:]).lower().rsplit("=", 1)[-1].strip()).strip()
        text = re.sub(
            r"^(?:\(?[a-z][.):](?=\s)|.*\bthere (?:are|is)(?: only| exactly| just| a total of)?"
            r"|(?:the )?(?:final )?answer(?: is|:)|.*\b(?:total|count|answer):)\s+",
            "",
            text,
        )
        if re.match(r"the .* (?:is|are) ", text):  # "The number of cubes is 3"
            text = last_value(text) or text
        match = re.match(rf"({NUMBER}|no(?= [a-z])|none|{'|'.join(WORDS)})(?![\w.,-])(.*)", text)
        rest = re.sub(
            r"\([^()]*\)", lambda m: re.sub(r"\b(?:and|to)\b", " ", m[0]), match[2] if match else ""
        )  # "3 (a car and two ..."
        if not match or HEDGE.search(rest):  # a second number or "or" behind it: the answer has not decided
            return False
        counted.append(
            0
            if match[1] in ("no", "none")
            else WORDS.index(match[1])
            if match[1] in WORDS
            else Fraction(match[1].replace(",", ""))
        )
    return counted[0] == counted[1]


def option_letter(text: str) -> str | None:
    """The one option letter that `text` names: "B", "b)", "(B) red", "B. red", "option B"; None if none or several."""
    text = re.sub(
        r"(?i)^(?:the )?(?:correct |final |best )?(?:answer|option|choice)(?: is)?\s*:?\s+",
        "",
        clean(text[:2000]),
    )
    text = re.sub(
        r"(?i)^(?:option|choice)\s+(?=\(?[a-z]\b)|(?<=[A-Za-z)]) is (?:the )?(?:correct|right|best)(?: \w+)?$",
        "",
        text,
    )
    match = re.match(
        r"\(([A-Za-z])\)(.*)|([A-Z])[).:](.*)|([a-z])[).:](?=\s)(.*)|([A-Za-z])$|([a-z])[).:]$", text
    )
    if not match:  # a letter followed by words is English ("A cat"), not an option
        match = re.fullmatch(r".+ \(([A-J])\)()", text)  # "Early Renaissance (C)"
        if not match and not NEGATED.search(text):
            one = r"(?:option|choice) \(?"  # "5 cm, which is option C"
            match = re.fullmatch(rf"(?:(?!\b{one}[A-J]\b).)+ {one}([A-J])\)?()", text)
        if not match:
            return None
    letter, rest = ([group for group in match.groups() if group is not None] + [""])[:2]
    hedged = re.search(
        r"\([A-J]\)(?!\w)|\b(?:or|and) [A-Z]\b|(?:^|\s)[A-J][.:]\s|^[\s,/&]*[A-Z]\b(?:$|[\s,/&]+[A-Z]\b)",
        rest,
    )
    return None if hedged else letter.upper()


def read_options(problem: str) -> list[str]:
    """The options of a problem, in order: "A: 35°", "(A) red", "A. true", on lines of their own or in one line; [] if none."""
    problem, runs = problem[-6000:], []
    marks = re.finditer(r"(?:^|(?<=\s))(?:\(([A-J])\)|([A-J])\s?([.:)]))\s*", problem)
    for mark in (
        marks
    ):  # a run is A, B, C ... in one style; the last one counts, because the question may have letters too
        letter, style = mark[1] or mark[2], mark[3] or "()"
        if letter == "A":
            runs.append(([], style))
        if runs and letter == "ABCDEFGHIJ"[len(runs[-1][0])] and style == runs[-1][1]:
            runs[-1][0].append(mark)
    marks = next((run for run, _ in reversed(runs) if len(run) > 1), [])
    ends = [mark.start() for mark in marks[1:]] + [len(problem)]
    return [problem[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=False)]


def same_choice(answer: str, solution: str, row: dict | None = None) -> bool:
    """The same option, named by its letter, or by its text or value without the letter."""
    row = row or {}
    options = row.get("options") or read_options(row.get("problem") or "")
    letters = "ABCDEFGHIJ"[: len(options)] or "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    wanted, given = option_letter(solution), option_letter(answer)
    pictured = re.fullmatch(
        r"(?i:the )?(?i:picture|figure|image|diagram|graph|point|piece|shape|path) \(?([A-Z])\)?",
        clean(answer[:100]),
    )
    if pictured and given is None:
        given, answer = pictured[1], pictured[1]
    named = re.match(
        r"(?:.*\b(?:answer|option|choice)(?: is|:)?\s+)?\(?([A-J])[).:]{1,2}\s*(.+)$", clean(answer[:1000])
    )
    if named and named[1] in letters and options and same_words(named[2], options[letters.index(named[1])]):
        given = named[
            1
        ]  # "(E) P, Q and R": further letters are no hedge where they are the option's own text
    if wanted is None:  # the reference is the text of an option
        if given is not None and given in letters and options:
            answer = options[letters.index(given)]
        return same_words(answer, solution) or same_math(answer, solution)
    if given is not None and given in letters:
        return given == wanted
    if wanted not in letters or not options or len(answer) > 500:
        return False
    # By its text, else by its value: cos(π/5) is not the option cos(9π/5), although they are equal. An answer that is the value of
    # several options has chosen none, unless they read the same.
    said = [x for x in options if names(answer, clean(x))]
    chosen = (
        [x for x in options if same_words(answer, x)]
        or (said if len(said) == 1 and len(options) == len(set(options)) else [])
        or [x for x in options if same_math(answer, x, row)]
    )
    text = options[letters.index(wanted)]
    return text in chosen and all(same_words(x, text) for x in chosen)


def same_words(answer: str, option: str) -> bool:
    """Equal as texts but for case, articles and punctuation behind a word."""
    plain = [
        re.sub(r"^(?:the|an?) |[\"'`“”‘’.,;:!?]+(?=\s|$)", "", clean(text[:1000]).casefold()).strip()
        for text in (answer, option)
    ]
    # CH_3COOH, \\Delta T: markup and blanks do not matter, except between digits
    bare = [re.sub(r"[_{}\\]|(?<!\d) +| +(?!\d)", "", text) for text in plain]
    return plain[0] == plain[1] != "" or len(plain[1]) > 2 and bare[0] == bare[1] != ""


NEGATED = re.compile(
    r"(?i)\b(?:not|no|none|nor|or|and|cannot|fails?|never|neither|except|without|rather"
    r"|instead|but|than|while|whereas|closest|either|both|maybe|perhaps|unless|if)\b|n['’]t\b"
)


def names(answer: str, words: str) -> bool:
    """Does a short sentence say `words`, a reference of letters only ("the embryonic stage", "Clara is the tallest")? No "not", no "or"."""
    answer, words = clean(answer[:400]).casefold().rstrip(".!"), words.casefold()
    if words == "neither":  # "neither even nor odd"
        return (
            re.fullmatch(r"(?:.* is )?neither(?: (?:even )?n?or odd| odd n?or even| even n?or odd)?", answer)
            is not None
        )
    if words in ("yes", "no", "true", "false"):  # "No, because ..."
        return (
            re.match(rf"{words}\s*(?:[,.;:]|$)", answer) is not None
            and not re.search(r"\b(?:but|however|or)\b", answer)
            and set(re.findall(r"\b(?:yes|no|true|false)\b", answer)) == {words}
        )
    if (
        not re.fullmatch(r"[a-z][a-z' -]{2,60}", words)
        or len(answer.split()) > 25
        or re.search(r"[\n;]|[.!?]\s|\bvs\b", answer)
    ):
        return False
    found = re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", answer)
    if not found or "," in answer or NEGATED.search(answer[: found.start()] + answer[found.end() :]):
        return False
    before = re.sub(r"(?:(?:most )?likely )?(?:the |an? )?$", "", answer[: found.start()])
    verb = r"(?:is|are|was|were|be|will|would|belongs? to|point(?:s|ing) to|shows?|depicts?|represents?|indicates?)"
    return re.search(rf"(?:^|:|\b{verb}) ?$", before) is not None


def same_text(answer: str, solution: str, row: dict | None = None) -> bool:
    """Equal but for case, blanks, quotes, math delimiters and a final full stop; nothing fuzzy, no partial credit."""
    answer, solution = (clean(text).strip("\"'`“”").casefold() for text in (answer, solution))
    return answer == solution != ""


def same_math(answer: str, solution: str, row: dict | None = None) -> bool:
    """Equal as numbers (0.50 = 1/2, 140 = 140°, 12 = 12 cm), else as text, list, interval, equation or expression (2√3 = 2\\sqrt{3}).

    A decimal that rounds to a decimal reference is right (2.828 for 2.83), one with six or more right digits of an exact
    reference too. "4π or approximately 12.57" is 4π; "3 or 4" is nothing.
    """
    lines = [line for line in answer[-4000:].split("\n") if line.strip()]
    if len(lines) > 1 and re.fullmatch(
        r"\s*\(?[A-J]\)?\.?\s*", lines[-1]
    ):  # "0.10\nB": the letter of an option that nobody offered
        lines = lines[:-1]
    answer = " ".join(lines)
    if len(answer) > 500 and lines:
        answer = lines[-1]
    if (
        len(answer) > 500 or len(solution) > 500
    ):  # no final answer is that long; also bounds every regex below
        return False
    scale = re.search(
        r"(?i)\b(?:how many|in|of) (thousand|million|billion)s?\b", (row or {}).get("problem") or ""
    )
    if scale:  # "how many million hamburgers": 2.5 million is 2.5
        answer = re.sub(rf"(?i)(?<=\d) ?{scale[1]}s?\b", "", answer)
    if names(answer, clean(solution)):
        return True
    answer, solution = repair(answer), repair(solution)
    if same_value(answer, solution):
        return True
    # an exact value with its approximation, in this order or the other: one of them is right and they agree
    pieces = [
        p.strip(" ,;()") for p in re.split(r"\\approx|\bor\b|\bapproximately\b|\babout\b|\(approx\.?", answer)
    ]
    pieces = [p for p in pieces if p]
    if len(pieces) > 1:
        near = [nearly(split_unit(sides(p)[1])[0]) for p in pieces]
        agree = (
            all(v is not None and abs(v - near[0]) <= 0.02 * abs(near[0]) for v in near)
            if near[0] is not None
            else False
        )
        return agree and (same_value(pieces[0], solution) or same_value(pieces[-1], solution))
    return False


def same_value(answer: str, solution: str) -> bool:
    """Two repaired texts of one value each, perhaps with a label ("x =", "Area =", "The length is"), perhaps equations."""
    named = [[word.lower() for word in PART.findall(text)] for text in (answer, solution)]
    if len(named[0]) == len(named[1]) == 1 and named[0] != named[1]:
        return False  # "Range: [0, 1]" is not the domain [0, 1]
    if len(named[0]) <= 1 and len(named[1]) <= 1:
        answer, solution = (PART_LABEL.sub("", text) for text in (answer, solution))
    (left_a, a), (left_s, s) = sides(answer), sides(solution)
    a, s = as_interval(a), as_interval(s)
    if left_a and left_s and not (is_label(left_a) and is_label(left_s)):
        return answer.replace(" ", "") == solution.replace(" ", "") or proportional(
            f"{left_a}-({a})", f"{left_s}-({s})"
        )
    if left_a and not is_label(left_a) or left_s and not is_label(left_s):
        return False  # an equation is no value
    if len(left_a) == len(left_s) == 1 and left_a != left_s:  # x = 3 is not y = 3
        return False
    (a, unit_a), (s, unit_s) = split_unit(a), split_unit(s)
    if unit_a and unit_s and unit_a != unit_s:
        return False
    given, wanted = number(a), number(s)
    if (wanted is None) != (given is None) and not (
        unit_s if given is None else unit_a
    ):  # "6 children" for 6, 3 for "3 times"
        given, wanted = (
            given if given is not None else of_things(a),
            wanted if wanted is not None else of_things(s),
        )
    if wanted is not None and given is not None:  # decided here for most answers, without loading sympy
        return (
            given == wanted
            or rounds_to(given, s)
            or re.search("/|frac", s) is not None
            and six_digits(given, a, wanted)
        )
    if a.casefold().replace(" ", "") == s.casefold().replace(" ", "") != "":
        return True
    (kind_a, list_a), (kind_s, list_s) = split_list(a), split_list(s)
    for kind, parts, others in ((kind_s, list_a, list_s), (kind_a, list_s, list_a)):
        pairs = [sides(part) for part in parts]  # "x = -2, y = -9" for (-2, -9)
        if (
            kind == "()"
            and len(parts) == len(others)
            and [left for left, _ in pairs] in (["x", "y"], ["x", "y", "z"])
        ):
            return all(same_value(right, other) for (_, right), other in zip(pairs, others, strict=True))
    if len(list_a) != len(list_s) or kind_a != kind_s and {kind_a, kind_s} != {"", "{}"}:
        return False  # (0, 1] is not (0, 1), a pair is no number
    if len(list_s) > 1 or kind_s:
        if kind_s in ("", "{}"):
            return same_in_any_order(list_a, list_s)
        return all(same_value(x, y) for x, y in zip(list_a, list_s, strict=True))
    if re.search(r"\d\.\d\d", s) and given is None and wanted is not None and nearly(a) is not None:
        return rounds_to(
            Fraction(nearly(a)), s
        )  # 2√2 for 2.83, but not 2√3 for 3.5: one decimal is as likely exact
    if given is not None and "." in a and nearly(s) is not None:
        return six_digits(given, a, Fraction(nearly(s)))
    return same_expression(a, s)


# the words that tell the parts of an answer apart
PART = re.compile(r"(?i)\b(domain|range|increas|decreas|constant|maxim|minim|vertical|horizontal)")
PART_LABEL = re.compile(
    r"(?i)^(?:the )?(?:(?:function|graph|f) is )?(?:domain|range|(?:in|de)creasing|constant)(?: intervals?)?"
    r"(?: is| on| over| for| of f)?\s*:?\s*(?=[-(\[\\xy\d])"
)


def sides(text: str) -> tuple[str, str]:
    """("", "5") for a value, a calculation or a sentence that ends in 5; ("x", "5") for x = 5; ("x^2", "y + 1") for an equation."""
    text = re.sub(r"(?i)^(?:therefore|thus|hence|so|(?:yes|no)(?=.*[\d\\]))\s*,\s*", "", text)
    if len(top_level(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if "=" in text else text)) > 1:
        return "", text
    said = last_value(text) if re.search("[A-Za-z]{3}", re.sub(r"\\[a-zA-Z]+", " ", text)) else None
    if said:
        words = re.findall(r"(?<![\\a-zA-Z])[A-Za-z]{3,}", text[: -len(said)])
        if [w for w in words if w not in ("sin", "cos", "tan", "log")]:  # prose, not a formula
            return "", said
    text = re.sub(r"\b(?!sin|cos|tan|log)[A-Za-z]{3,} ?[:=]", " ", text).strip()  # "Center =", "domain:"
    parts = re.split(r"(?<![<>!:\\])=", text)
    if len(parts) == 1:
        return "", text
    left, right = parts[0].strip(), parts[-1].strip()
    if len(parts) == 2 and re.fullmatch("[a-zA-Z]", right) and not re.search("[a-zA-Z]", left):
        return right, left  # 5 = x
    if len(parts) > 2 or not re.search(
        "[a-zA-Z]", re.sub(r"\\(?!angle|theta|alpha|beta)[a-zA-Z]+", "", left)
    ):
        return "", right  # a chain or a calculation: what it comes to
    return left, right


def is_label(left: str) -> bool:
    """Is this the name of a value (x, AB, f(x), S_1, \\angle A), not an expression?"""
    return not re.search(r"[-+*/^<>|]|\d[a-zA-Z]|\\frac|\\sqrt", left)


def split_list(text: str) -> tuple[str, list[str]]:
    """("()", ["0", "1"]) for "(0, 1)", ("", ["1", "2"]) for "1 and 2", ("", [text]) for a single value."""
    text = text.strip()
    text = re.sub(r"\\([{}])", r"\1", text)
    inside, kind = top_level(text[1:-1]), ""
    if len(text) > 2 and text[0] in "([{" and text[-1] in ")]}" and len(inside) > 1 and balanced(text[1:-1]):
        return text[0] + text[-1], inside
    pair = re.fullmatch(r"([^,]*?)\\pm ?([^,]+)", text)
    if pair:
        return "", [f"{pair[1]}+{pair[2]}".strip("+"), f"{pair[1]}-{pair[2]}"]
    return kind, top_level(text)


def balanced(text: str) -> bool:
    """Does every bracket that closes in `text` open in it? Half-open intervals mix ( and ], so kinds are not compared."""
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


def top_level(text: str) -> list[str]:
    """The parts between commas, semicolons, "and", "or" and unions that stand outside all brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[([{]|[)\]}]|[,;]|\band\b|\bor\b|\\cup\b", text):
        token = match[0]
        depth += (token in "([{") - (token in ")]}")
        if depth == 0 and token not in "([{)]}":
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [part for part in [*parts, text[start:].strip()] if part] or [text]


def same_in_any_order(a: list[str], b: list[str]) -> bool:
    """Every member of `a` has a partner of its own in `b`."""
    rest = list(b)
    if len(a) != len(b) or len(a) > 12:
        return False
    for x in a:
        partner = next((y for y in rest if same_value(x, y)), None)
        if partner is None:
            return False
        rest.remove(partner)
    return True


def rounds_to(value: Fraction, decimal: str) -> bool:
    """Does the value round to the decimal as it is written (2.828 to "2.83")? An integer is exact and nothing rounds to it."""
    places = re.fullmatch(r"[-+]?[\d,]*\.(\d+)", decimal.strip())
    if not places:
        return False
    return abs(value - number(decimal)) <= Fraction(1, 2 * 10 ** len(places[1])) * Fraction(
        1_000_001, 1_000_000
    )


def six_digits(value: Fraction, decimal: str, exact: Fraction) -> bool:
    """Is the decimal right to all of its digits, and has it six or more? 3.33 is not 10/3, 3.333333 is taken for it."""
    digits = re.sub(r"[^\d]", "", decimal).lstrip("0")
    return len(digits) >= 6 and abs(value - exact) <= abs(exact) / 10**5 and rounds_to(exact, decimal.strip())


# ---------------------------------------------------------------------------
# symbolic work: the only part that could take long, hence tame input and a time limit

EXPONENT = r"\^\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\)|[-+]?\s*(?:\d+|[a-zA-Z]|\\pi))"
SECONDS = 1.0  # for one comparison
timeouts = 0  # comparisons of this process that took longer and counted as wrong


def is_tame(text: str) -> bool:
    """Is `text` short, and free of prose and of what sympy could work on forever (9^9^9, 2^99999, 10000!, sums)?"""
    exponents = re.findall(EXPONENT, text)
    digits = [int(d[:9]) for exponent in exponents for d in re.findall(r"\d+", exponent)]
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]+", re.sub(r"\\[a-zA-Z]+", " ", text))
    return (
        len(text) <= 200
        and len(exponents) == text.count("^")  # a ^ within an exponent would be missing here
        and not re.search(EXPONENT + r"\s*[)}]*\s*\^", text)
        and math.prod(max(d, 1) for d in digits) <= 9999
        and not re.search(r"!|\\(?:sum|prod|int|lim|binom|Gamma|zeta|approx)|\d{31}|\d\s+\d", text)
        # letters are variables and would multiply and commute: "red cube" is no product, "3 or 4" no number
        and not any(w in ("or", "and") or len(w) > 2 and w not in ("sin", "cos", "tan", "log") for w in words)
    )


class TookTooLong(Exception):
    """Raised by the alarm of `symbolic`."""


def symbolic(work, *texts: str):
    """work(*texts) with math_verify and sympy, None if it fails or takes longer than SECONDS; such answers count as wrong.

    The limit is an alarm signal, which only the main thread of a process can set; Scorer's processes have one each.
    """
    global timeouts
    if not all(text and is_tame(text) for text in texts):
        return None

    def ring(signum, frame):
        raise TookTooLong

    from math_verify.errors import TimeoutException  # loads sympy, about a second: only when needed

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the limit is ours, which it is

    alarm = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, ring) if alarm else None
    try:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
        return work(*texts)
    except (TookTooLong, TimeoutException):
        timeouts += 1
        log_once(
            f"symbolic comparison of {' with '.join(map(repr, texts))} took over {SECONDS:.0f} s and counts as wrong"
        )
    except (
        ArithmeticError,
        ValueError,
        TypeError,
        RecursionError,
        AttributeError,
        NotImplementedError,
        MemoryError,
    ) as error:
        log_once(
            f"symbolic comparison failed with {type(error).__name__}; such answers count as wrong"
        )  # what sympy lets through
    finally:
        if alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return None


@functools.lru_cache(maxsize=4096)
def parse_latex(text: str) -> list:
    """math_verify's reading of one formula, whole: its other extractors would pick the first number out of a text they cannot parse."""
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def constant(parsed: list) -> complex | None:
    """The value of an expression without variables, None if it is something else or not finite."""
    import sympy

    if not parsed or not isinstance(parsed[0], sympy.Expr) or parsed[0].free_symbols:
        return None
    value = complex(parsed[0].evalf())
    return value if math.isfinite(abs(value)) else None


@functools.lru_cache(maxsize=4096)  # the G completions of one prompt repeat the same few answers
def same_expression(answer: str, solution: str) -> bool:
    """Symbolic equality by math_verify; False, and a line in the log, if it cannot decide."""

    def work(answer, solution):
        from math_verify import verify

        gold, given = parse_latex(solution), parse_latex(answer)
        if not gold:
            log_once(f"math_verify cannot read the reference {solution!r}: only equal texts will be right")
        values = [constant(parsed) for parsed in (gold, given)]
        if None not in values and abs(values[0] - values[1]) > 1e-6 * max(
            map(abs, values)
        ):  # 50 times quicker than to simplify
            return False
        return bool(gold and given) and verify(gold, given, timeout_seconds=None)

    return bool(symbolic(work, answer, solution))


@functools.lru_cache(maxsize=4096)
def proportional(answer: str, solution: str) -> bool:
    """Is one expression a constant times the other? Then "answer = 0" and "solution = 0" are the same equation."""

    def work(answer, solution):
        import sympy

        a, s = parse_latex(answer), parse_latex(solution)
        if not (a and s and isinstance(a[0], sympy.Expr) and isinstance(s[0], sympy.Expr)):
            return False
        ratio = sympy.simplify(a[0] / s[0])
        return not ratio.free_symbols and ratio.is_finite and ratio != 0

    return bool(symbolic(work, answer, solution))


@functools.lru_cache(maxsize=4096)
def nearly(text: str) -> float | None:
    """The value of a constant expression as a float ("4\\pi" 12.566), None if it has none. Of "12.57 units if ..." the number."""
    exact = number(text)
    lead = re.match(rf"({NUMBER})(?= [a-z]{{2}})", text)
    if exact is not None or lead:
        return float(exact if exact is not None else number(lead[1]))

    def work(text):
        value = constant(parse_latex(text))
        return value.real if value is not None and not value.imag else None

    return symbolic(work, text)


@functools.lru_cache(maxsize=1024)
def log_once(message: str) -> None:
    """Log a warning the first time only: a training run meets the same reference thousands of times."""
    log.warning(message)


# ---------------------------------------------------------------------------
# boxes


def read_box(text: str) -> list[float] | None:
    """The one box [x1, y1, x2, y2] in a text: JSON in any nesting, a bare list, or Qwen2-VL's (x1,y1),(x2,y2).

    None if there is no box, or if there are different ones: listing many boxes must not pay.
    """
    text = re.sub(r"```(?:json)?|<\|box_(?:start|end)\|>", " ", text[:4000]).strip()
    found = []

    def walk(node):
        if (
            isinstance(node, list)
            and len(node) == 4
            and all(type(x) in (int, float) and math.isfinite(x) for x in node)
        ):
            found.append([float(x) for x in node])
        elif isinstance(node, list | dict):
            for child in node.values() if isinstance(node, dict) else node:
                walk(child)

    try:
        walk(json.loads(text))
    except (ValueError, RecursionError):  # no JSON: look for four numbers in brackets
        n = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
        for match in re.finditer(rf"[\[(]{n},{n}(?:\)\s*,\s*\(|,){n},{n}[\])]", text):
            found.append([float(x) for x in match.groups()])
        if bare := re.fullmatch(rf"{n},{n},{n},{n}", text):
            found.append([float(x) for x in bare.groups()])
    return found[0] if found and all(box == found[0] for box in found) else None


def scale_box(box: list[float], size: tuple[float, float], to: tuple[float, float]) -> list[float]:
    """The box of a frame of `size` (width, height) in a frame of size `to`."""
    return [
        box[0] * to[0] / size[0],
        box[1] * to[1] / size[1],
        box[2] * to[0] / size[0],
        box[3] * to[1] / size[1],
    ]


def iou(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2], as areas of real rectangles (torchvision.ops.box_iou)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0 or min(a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]) <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def box_overlap(answer: str, solution: str, row: dict | None = None) -> float:
    """IoU of the answer's box with the reference's; 0 without one box each.

    The reference is in pixels of the original image. A policy speaks in a frame of its own, row["box_frame"]: pixels of the resized
    image (Qwen2.5-VL) or thousandths (Qwen2-VL, Qwen3-VL); with row["image_size"] known its box is scaled back.
    """
    given, wanted, row = read_box(answer), read_box(solution), row or {}
    if given is None or wanted is None:
        return 0.0
    if row.get("box_frame") and row.get("image_size"):
        given = scale_box(given, row["box_frame"], row["image_size"])
    return iou(given, wanted)


def same_box(answer: str, solution: str, row: dict | None = None) -> bool:
    """IoU over 0.5, the usual criterion of RefCOCO."""
    return box_overlap(answer, solution, row) > 0.5


def same_auto(answer: str, solution: str, row: dict | None = None) -> bool:
    """By the look of the reference: a letter is a choice, a box grounding, an integer a count, anything else with digits math."""
    if re.fullmatch(r"\(?[A-Z]\)?\.?", solution.strip()):
        return same_choice(answer, solution, row)
    if re.fullmatch(rf"\s*\[(?:\s*{NUMBER}\s*,){{3}}\s*{NUMBER}\s*\]\s*", solution):
        return same_box(answer, solution, row)
    if re.fullmatch(r"[-+]?\d+", solution.strip()) and same_count(answer, solution):
        return True
    return (same_math if re.search(r"[\d\\√π=^]", solution) else same_text)(answer, solution)


VERIFIERS = {
    "count": same_count,
    "choice": same_choice,
    "math": same_math,
    "grounding": same_box,
    "text": same_text,
    "auto": same_auto,
}
