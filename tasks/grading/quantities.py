"""Stage 3, split: numbers, units, and when a decimal is another number rounded."""

import re
from fractions import Fraction

from tasks.grading.patterns import DIGITS, NUMBER, WORD, WORDS

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
# unit -> (what it is a multiple of, how many of them); for a value that is said in two units
MULTIPLES = {
    "mm": ("mm", 1),
    "cm": ("mm", 10),
    "dm": ("mm", 100),
    "m": ("mm", 1000),
    "km": ("mm", 10**6),
    "in": ("in", 1),
    "ft": ("in", 12),
    "yd": ("in", 36),
    "mile": ("in", 63360),
    "mg": ("mg", 1),
    "g": ("mg", 1000),
    "kg": ("mg", 10**6),
    "s": ("s", 1),
    "min": ("s", 60),
    "h": ("s", 3600),
    "day": ("s", 86400),
    "week": ("s", 604800),
    "mL": ("mL", 1),
    "L": ("mL", 1000),
}
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


def same_in_both_units(one: Fraction, unit_one: str, other: Fraction, unit_other: str) -> bool | None:
    """Is a value in one unit the other in its unit: 12 cm and 120 mm, not 12 cm and 13 mm? None: unknown."""
    base_one, times_one = MULTIPLES.get(unit_one, ("", 0))
    base_other, times_other = MULTIPLES.get(unit_other, ("", 0))
    if base_one != base_other or not base_one:
        return None
    return one * times_one == other * times_other


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


ROUNDING = Fraction(5, 1000)  # of the value: what rounding to three digits may change at most (100.5 to 101)
SLACK = Fraction(1, 1_000_000)  # of half a digit, for values from floating point


def rounds_to(value: Fraction, decimal: str) -> bool:
    """Is the decimal, as written, this value rounded: "2.83" for 2.828, "43.9" for 43.86, "0.33" for 1/3?

    Not "2.2" for 20/9, not "0.1" for 0.14, not "0.01" for 0.0149: one decimal, or one digit, is as likely
    exact, and such a value is off by more than rounding to three digits can do (0.5 %). An integer is always
    exact.
    """
    if not re.search(r"\.\d", decimal) or not is_rounded(value, decimal):
        return False
    digits = re.sub(r"\D", "", decimal).lstrip("0")
    if re.search(r"\.\d\d", decimal) and len(digits) > 1:
        return True
    return abs(value - number(decimal)) <= ROUNDING * abs(number(decimal))


def is_rounded(value: Fraction, written: str) -> bool:
    """Is the number, as written, this value rounded half up to so many places: "2.2" for 20/9, "14" for 13.6?

    A tie has one rounding only, else 2.825 would be right for 2.82 and for 2.83.
    """
    digits = re.fullmatch(r"[-+]?[\d,]*\.?(\d*)", written.strip())
    rounded = number(written)
    if not digits or rounded is None:
        return False
    if rounded < 0:
        value, rounded = -value, -rounded
    half = Fraction(1, 2 * 10 ** len(digits[1]))
    return rounded - half * (1 + SLACK) <= value < rounded + half * (1 - SLACK)


def six_digits(value: Fraction, decimal: str, exact: Fraction) -> bool:
    """Has the decimal six digits or more, all of them right? 3.33 is not 10/3, 3.333333 is taken for it."""
    digits = re.sub(r"[^\d]", "", decimal).lstrip("0")
    is_close = abs(value - exact) <= abs(exact) / 10**5
    return len(digits) >= 6 and is_close and rounds_to(exact, decimal.strip())
