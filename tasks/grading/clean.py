"""Stage 2, clean: one spelling for what is written in many."""

import re

from tasks.grading.patterns import NUMBER, either
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
    "∠": "\\angle ",
    "½": "\\frac{1}{2}",
}
# fmt: on
FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}  # the ASCII characters as Chinese texts have them
TYPOGRAPHY = str.maketrans(SIGNS | FULL_WIDTH)
QUOTES = " \"'`“”*;"

BOLD = re.compile(r"(?<![\w)}])\*\*(?=\S)([^*]+)\*\*(?![\d({])")  # **5**, but not 9**9**9
STRAY_BOLD = re.compile(  # of bold around blanks, lines, bold: no power, as an operand is missing
    either(
        r"(?<![\w)}\]])(?<![\w)}\]] )\*\*",  # "** 5"
        r"\*\*(?! ?[-+\w({\\])",  # "5 **"
    )
)
EMPHASIS = re.compile(r"\*([^*]+)\*")  # *5*
DELIMITERS = re.compile(
    either(
        r"\\[()\[\]]",  # \( \) \[ \]
        r"\\\$|\$",  # $5$, $$5$$, $ 5 $; of money the amount is left
        r"\\(?:left|right)(?![a-zA-Z])(?: ?\.)?",  # \left( and \right.
        r"\\(?:[bB]igg?[lrm]?|displaystyle|textstyle)(?![a-zA-Z])",
        r"\\end\{answer\}",
        r"\\[,;:! ]",  # thin spaces
        r"~",
        r"\\hline",
        r"\\q?quad",
    )
)
PANDOC_POWER = re.compile(r"\^(\d)\^(?![\w({\\])")  # cm^2^
STYLES = either(
    r"text(?:bf|rm|it|sf|tt|normal)?",
    r"math(?:rm|bf|it|sf|tt)",
    r"f?boxed|[fm]box|operatorname|boldsymbol|bm|emph|underline",
)
# what unwrap() tells apart
BRACE = re.compile(
    either(
        rf"(?P<style>\\{STYLES}\s{{0,9}}\{{)",  # \boxed{
        r"\\.",  # \{ is a character, no bracket
        r"[{}]",
    )
)


def clean(text: str) -> str:
    """`text` without decoration, in one line: "5" for "$ 5 $", "**5**", "\\boxed{5}" and "\\text{5}."."""
    text = re.sub(r"\s+", " ", undecorated(text)).strip().rstrip(" .")
    emphasis = EMPHASIS.fullmatch(text)
    return emphasis[1].strip().rstrip(" .") if emphasis else text


def undecorated(text: str) -> str:
    """`text` without math delimiters, bold, \\boxed, \\text, full-width forms; its lines stay."""
    text = text.translate(TYPOGRAPHY)
    text = BOLD.sub(r"\1", text)
    text = unwrap(DELIMITERS.sub(" ", text))
    text = STRAY_BOLD.sub(" ", text)
    return PANDOC_POWER.sub(r"^\1", text)


BOX_BEHIND = re.compile(r"(?<=\S)[ \t]+(?=\$?\\boxed)")


def bare_lines(text: str) -> list[str]:
    """The lines of a text without decoration, none twice: ["15"] for "**15**", "$15$" and "\\boxed{15}".

    A box behind something else is a line of its own, as it says the answer again.
    """
    lines = {}
    for line in undecorated(BOX_BEHIND.sub("\n", text)).split("\n"):
        key = squeezed(clean(line))
        if key:
            lines.setdefault(key, line)
    return list(lines.values())


def squeezed(text: str) -> str:
    """Two texts are the same but for case and blanks if they agree in this. "1 2" is not "12"."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text.casefold())


def unwrap(text: str) -> str:
    """`text` without \\boxed{}, \\text{} and other styles, whatever is inside: " B " for "\\boxed{B}"."""
    if "\\" not in text:
        return text
    pieces = []
    closing = []  # of every open brace: what its partner becomes
    done = 0
    for match in BRACE.finditer(text):
        pieces.append(text[done : match.start()])
        done = match.end()
        if match["style"]:
            pieces.append(" ")
            closing.append(" ")
        elif match[0] == "{":
            pieces.append("{")
            closing.append("}")
        elif match[0] == "}":
            pieces.append(closing.pop() if closing else "}")
        else:
            pieces.append(match[0])
    return "".join(pieces) + text[done:]


DEGREE_SIGNS = either(r"[°º掳∘˚]", r"\^\s*\{\s*\\circ\s*\}", r"\^?\s*\\circ(?![a-zA-Z])", r"\\degree")
DEGREE = re.compile(rf"{DEGREE_SIGNS}(?:\s*[TC]\b)?|\b[dD]egrees?\b")  # 49°T is a bearing
LOST_BACKSLASH = re.compile(
    r"(?<![a-zA-Z\\])(?:[dtc](?=frac))?(pi\b|frac\{|infty\b|(?:sin|cos|tan|log|ln)(?=[\s(\d]))"
)
FILLER = re.compile(
    either(
        r"^(?:therefore|thus|hence|so)",
        r"^(?:based on|looking at|according to|judging by|reading|from) [^,=\d]{1,60}",  # Based on the chart,
    )
    + r"\s{0,3},\s*",
    re.IGNORECASE,
)
ABOUT = re.compile(r"^(?:approximately|about|around|roughly|\\approx|in(?= \d{4}$))\s+(?=\S)", re.IGNORECASE)
POINT_NAME = re.compile(r"^[A-Z]'{0,2} ?(?=\([^()]*,[^()]*\)$)")
TERM = rf"({NUMBER}|(?<![A-Za-z\\])[a-z](?![A-Za-z]))"
RATIO = re.compile(rf"{TERM}\s*:\s*{TERM}")  # 3:4 and a:b, but not "Area: 60"


def repair(text: str) -> str:
    """`text` as LaTeX that the parser reads whole: it takes 2√{3} for 2 and trips over °, π and 9**9."""
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = clean(DEGREE.sub(" ", text))  # angles are in degrees
    text = text.replace("**", "^").replace("π", "\\pi ")
    text = text.lstrip(QUOTES).rstrip(QUOTES + "\\")
    text = repair_roots(text)
    text = LOST_BACKSLASH.sub(r"\\\1", text)
    text = ABOUT.sub("", FILLER.sub("", text))
    text = repair_powers_of_ten(text)
    text = repair_fractions(text)
    text = POINT_NAME.sub("", text)  # A(2, 3)
    if text.count(":") == 1:  # 3:4:5 is no fraction
        text = RATIO.sub(r"\\frac{\1}{\2}", text)
    return re.sub(r"\s+", " ", text).strip()


ROOT_SIGN = r"(?<![a-zA-Z\\])sqrt"  # without its backslash
ROOT_OF_BRACES = re.compile(rf"(?:√|{ROOT_SIGN})\s*\{{")
ROOT_OF_OTHERS = re.compile(
    either(
        rf"(?:√|{ROOT_SIGN})\s*\(([^()]*)\)",  # √(12)
        r"√\s*(\d+(?:\.\d+)?|[a-z])",  # √12
    )
)


def repair_roots(text: str) -> str:
    """\\sqrt{12} for √{12}, √(12), √12, sqrt{12} and sqrt(12)."""

    def with_braces(root: re.Match) -> str:
        return f"\\sqrt{{{root[1] or root[2]}}}"

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
