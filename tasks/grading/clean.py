"""Stage 2, clean: one spelling for what is written in many."""

import re

from tasks.grading.patterns import IN_BRACES, NUMBER, either
from tasks.grading.quantities import number

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
