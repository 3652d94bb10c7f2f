"""Metrics of charts, documents and scene text, each from its paper: a value from 0 to 1.

    relaxed(answer, reference)    ChartQA                numbers within 5 %, texts exactly
    anls(answer, reference)       DocVQA, InfographicVQA likeness of two texts, of several references the best
    vqa(answer, ten answers)      VQAv2, TextVQA         how many of ten people have answered the same

They are tasks (VERIFIERS of tasks/grading.py): accuracy, as reward and in evaluation, is then this value,
read from the last answer tag as for every other task. Chosen by --task=anls or a column "task", or by
--metric=anls beside another accuracy. Pure functions; whatever the texts are, they return a number.
"""

import re
from fractions import Fraction

from rapidfuzz.distance import Levenshtein

LONGEST = 4000  # characters of an answer that are read: the distance of two texts costs their product


def plain(text: str) -> str:
    """Lower case, one blank between words, none around them."""
    return " ".join(text[:LONGEST].lower().split())


# -----------------------------------------------------------------------------
# relaxed: ChartQA
# -----------------------------------------------------------------------------

TOLERANCE = Fraction(5, 100)
# 12, -1,234.5, .5, $3 and 12%; at most 30 digits
NUMBER = re.compile(r"\$?([-+]?)\$?(\d{1,3}(?:,\d{3}){1,9}|\d{0,30})((?:\.\d{0,30})?)\s*(%?)")


def relaxed(answer: str, reference: str, row: dict | None = None) -> float:
    """1.0 for a number a within 5 % of the reference r, and for the same text; else 0.0.

        |a - r| <= 0.05 |r|

    Masry et al. 2022, "ChartQA", arXiv:2203.10244, section 5.1, which takes it from Methani et al. 2020. A
    reference of 0 is met by 0 alone. A percent sign divides by a hundred on either side, as in the scripts
    of Pix2Struct, Qwen-VL and lmms-eval: 12% is 0.12, and 12 is wrong for it. A year is a number, too: 1950
    is within 5 % of 2010, a known weakness. Ours: 1,234 and $12 are numbers, case and blanks do not count.
    """
    given, wanted = value(answer), value(reference)
    if given is not None and wanted is not None:
        return float(abs(given - wanted) <= TOLERANCE * abs(wanted))
    said = plain(answer).rstrip(".")
    return float(said == plain(reference).rstrip(".") != "")


def value(text: str) -> Fraction | None:
    """The number that a text is, exactly; None if it is more or something else."""
    match = NUMBER.fullmatch(text[:100].strip().replace("−", "-"))
    if not match or not re.search(r"\d", match[0]):
        return None
    sign, whole, decimals, percent = match.groups()
    number = Fraction((whole.replace(",", "") or "0") + decimals.rstrip("."))
    if sign == "-":
        number = -number
    return number / 100 if percent else number


# -----------------------------------------------------------------------------
# anls: DocVQA, InfographicVQA, ST-VQA
# -----------------------------------------------------------------------------

TAU = 0.5


def anls(answer: str, reference: str, row: dict | None = None) -> float:
    """Average normalized Levenshtein similarity of one answer a to one reference r; the best one counts.

        NL = Levenshtein(a, r) / max(|a|, |r|)
        s = 1 - NL if NL < 0.5, else 0

    Biten et al. 2019, "Scene text visual question answering", arXiv:1907.00490 (ICCV; 1905.13648), equation
    1. Case and the number of blanks do not count, blanks themselves do. At NL = 0.5 exactly the scripts of
    the competitions give 0.5 (benchmarks.docvqa_rule), the paper 0.
    """
    distance = Levenshtein.normalized_distance(plain(answer), plain(reference))
    return 1 - distance if distance < TAU else 0.0


# -----------------------------------------------------------------------------
# vqa: VQA, VQAv2, TextVQA
# -----------------------------------------------------------------------------

ENOUGH = 3  # people who agree with a right answer


def vqa(answer: str, references: list[str], row: dict | None = None) -> float:
    """Soft accuracy against what several people have answered, usually ten.

        the mean over the people i of min(1, number of the others whose answer is this one / 3)

    Antol et al. 2015, "VQA", arXiv:1505.00468, and its evaluation page (visualqa.org/evaluation), where the
    answers are brought to one form first: vqa_form. One of ten alike gives 0.3, two 0.6, three 0.9, four 1.
    Fewer than four references cannot agree by three without one: there any that is met gives 1.
    """
    said = vqa_form(answer)
    same = [vqa_form(reference) == said for reference in references]
    if len(same) <= ENOUGH:
        return float(any(same))
    shares = [min(1, (sum(same) - is_same) / ENOUGH) for is_same in same]
    return sum(shares) / len(shares)


MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = {word: str(number) for number, word in enumerate(DIGITS)} | {"none": "0"}
THOUSANDS = re.compile(r"\d,\d")
NO_DECIMAL_POINT = re.compile(r"\.(?!\d)")
# as the evaluation script lists them: "hell", "ill" and "were" are words of their own
FULL_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""


def missing_apostrophe() -> dict[str, str]:
    """{"dont": "don't"}: every full form with one of its apostrophes left out."""
    table = {}
    for full in FULL_FORMS.split():
        for place in [match.start() for match in re.finditer("'", full)]:
            table[full[:place] + full[place + 1 :]] = full
    return table


CONTRACTIONS = missing_apostrophe()


def vqa_form(text: str) -> str:
    """The form in which VQA compares answers; visualqa.org/evaluation, the marks as its script treats them.

    Lower case; no period but in a decimal; none, zero, one ... ten as digits; no a, an, the; dont as don't;
    punctuation but for apostrophe and colon becomes a blank. A mark is left out instead if it stands beside
    a blank somewhere, and every mark is where a comma parts two digits: 100,978 is 100978.
    """
    text = re.sub(r"[\n\t]", " ", text[:LONGEST]).strip().lower()
    form = text
    for mark in MARKS:
        left_out = f"{mark} " in text or f" {mark}" in text or THOUSANDS.search(text)
        form = form.replace(mark, "" if left_out else " ")
    form = NO_DECIMAL_POINT.sub("", form)
    words = [WORDS.get(word, word) for word in form.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))
