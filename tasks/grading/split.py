"""Stage 3, split: an equation into its sides, a list into its members."""

import re

from tasks.grading.find import last_value
from tasks.grading.patterns import FUNCTIONS, LATEX_COMMAND

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
