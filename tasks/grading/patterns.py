"""Patterns and words that several stages share."""

import re


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

LATEX_COMMAND = re.compile(r"\\[a-zA-Z]+")
FUNCTIONS = ("sin", "cos", "tan", "log")  # words of a formula, not of prose
OPTION_LETTERS = "ABCDEFGHIJ"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
