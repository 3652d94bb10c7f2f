"""Stage 3, split: an equation into its sides, a text into its labelled parts, a list into its members."""

import re

from tasks.grading.conclusion import last_value
from tasks.grading.patterns import FUNCTIONS, LATEX_COMMAND, either

# -----------------------------------------------------------------------------
# an equation: its name and its value
# -----------------------------------------------------------------------------

THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
EQUALS = re.compile(r"(?<![<>!:\\])=")


def sides(text: str) -> tuple[str, str]:
    """("x", "5") for x = 5, ("x^2", "y + 1") for an equation, ("", "5") for whatever else comes to 5.

    That is the value itself, a calculation, a chain of equations or a sentence that ends in it.
    """
    listed = THOUSANDS_COMMA.sub("", text) if "=" in text else text
    if len(top_level(listed)) > 1:
        return "", text
    if re.search("[A-Za-z]{3}", LATEX_COMMAND.sub(" ", text)):
        said = last_value(text)
        if said and is_prose(text[: -len(said)]):
            return "", said
    parts = [part.strip() for part in EQUALS.split(text)]
    left, right = parts[0], parts[-1]
    if len(parts) == 1:
        return "", text
    if len(parts) > 2:
        return "", right  # a chain
    if re.fullmatch("[a-zA-Z]{1,3}", right) and not re.search("[a-zA-Z]", left):
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
# labelled parts
# -----------------------------------------------------------------------------

# words that tell the parts of an answer apart, and what may stand around them
PART = r"(?P<part>domain|range|increas|decreas|constant|maxim|minim|vertical|horizontal)[a-z]{0,6}"
BEFORE_PART = r"(?:\b(?:and|the|an?|function|graph|f|is|it|has|local|relative|absolute|for|on|with|where) )*"
BEHIND_PART = r"(?: (?:is|are|at|on|over|for|of|in|when|if|the|f|function|intervals?|values?|asymptotes?)\b)*"
NAME = rf"(?:^|(?<=[,;] )|\band )(?:the )?(?P<name>(?!(?:{'|'.join(FUNCTIONS)})\b)[A-Za-z]{{3,20}}) ?[:=]"
LABEL = re.compile(
    either(
        rf"(?P<open>\()?{BEFORE_PART}\b{PART}{BEHIND_PART} ?[:=]?(?(open)\))",  # the domain is, (range)
        NAME,  # Center =
    ),
    re.IGNORECASE,
)
# "(1, 2) is the vertex" for "vertex: (1, 2)"
IS_THE = re.compile(
    r"([(\[][^()\[\]]{1,60}[)\]]|[^\s,;()\[\]]{1,60}) is the ([A-Za-z]{3,20})(?=$|[,;]| and )"
)
A_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3}")
BETWEEN_PARTS = re.compile(r"^(?:[ ,;]|and\b)+|(?:[ ,;.]|\band)+$")


def parts(text: str) -> list[tuple[str, str]]:
    """[("domain", "[0, 1]"), ("range", "[2, 3]")] for "domain: [0, 1], range: [2, 3]"; [("", text)] without.

    The labels stand before the values or behind them ("[0, 1] for domain and [2, 3] for range"), or are
    different names ("a = 3, b = 4"). A single label that is no word of PART does not matter.
    """
    text = IS_THE.sub(r"\2: \1", text) if " is the " in text else text
    labels = list(LABEL.finditer(text)) if A_WORD.search(text) else []
    if not labels:
        return named(text)
    keys = [(label["part"] or label["name"]).lower() for label in labels]
    starts = [0] + [label.end() for label in labels]
    ends = [label.start() for label in labels] + [len(text)]
    between = [BETWEEN_PARTS.sub("", text[i:j]) for i, j in zip(starts, ends, strict=True)]
    if not between[0] and all(between[1:]):
        values = between[1:]
    elif not between[-1] and all(between[:-1]):
        values = between[:-1]
    elif len(labels) == 1:
        values = [between[1] if between[1] and is_prose(between[0]) else text]  # "In this graph the range is"
    else:
        return named(text)
    if len(labels) == 1:
        return [((labels[0]["part"] or "").lower(), values[0])]
    found = {}
    for key, value in zip(keys, values, strict=True):  # "increasing on (0, 1), increasing on (2, 3)"
        found[key] = f"{found[key]}, {value}" if key in found else value
    return list(found.items())


def named(text: str) -> list[tuple[str, str]]:
    """[("x", "3"), ("y", "4")] for "x = 3, y = 4"; [("", text)] where a name is missing or is there twice."""
    if text.count("=") > 1:
        pairs = [sides(member) for member in top_level(text)]
        names = [left for left, _ in pairs]
        if len(names) > 1 and all(names) and len(set(names)) == len(names) and all(map(is_label, names)):
            return pairs
    return [("", text)]


# -----------------------------------------------------------------------------
# lists
# -----------------------------------------------------------------------------

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


# -----------------------------------------------------------------------------
# inequalities
# -----------------------------------------------------------------------------

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
