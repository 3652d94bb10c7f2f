"""Benchmarks by name: rows, answer rule, limits, published figures of R1-V and OpenV-R1.

    python eval.py --model=... --bench=superclevr200,mmmu
    python -m tasks.benchmarks                                   # the table of docs/benchmarks.md

Their files: adapters.py. eval.py reports two figures: ours (rewards.py) and, for comparison with published
numbers, the rule that the original evaluation script applied. These rules are written down here as they were,
flaws included, so never train on them.
"""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from tasks.adapters import ADAPTERS
from tasks.grading import references
from tasks.grading.symbolic import attempt, load_sympy
from tasks.metrics import plain

# -----------------------------------------------------------------------------
# published answer rules: rule(output, row) -> bool, or 0 to 1; they read row["solution"] only, never raise
# -----------------------------------------------------------------------------

RULE_SECONDS = 6.0  # of CPU time for one output


def superclevr_rule(output: str, row: dict) -> bool:
    """R1-V's SuperCLEVR script: the FIRST tag that holds nothing but digits equals the number of objects.

    Refuses "4 items" and "A. 8", and takes a draft in the reasoning for the answer.
    """
    match = re.search(r"<answer>\s*(\d{1,18})\s*</answer>", output)
    return match is not None and str(int(match[1])) == row["solution"].strip()


def geoqa_rule(output: str, row: dict) -> bool:
    """R1-V's GeoQA script: math_verify on the WHOLE output against the reference as it stands.

    Any number of the reasoning can win, 10√3 counts as 10, and references like 2√{3} are read as 2: about 1
    verdict in 18 is wrong, in both directions. The versions differ, too: published figures come from
    math_verify 0.5.
    """
    # 10,000 characters are 2,500 tokens, more than the script let a model write
    texts = (output[:10000], row["solution"][:10000])
    if any(NEVER_ENDS.search(text) for text in texts):
        return False
    load_sympy()
    return bool(attempt(verified_whole, *texts, seconds=RULE_SECONDS))


# 9^9^9, 2**99999, 9999!: one multiplication that fills the memory, and no alarm interrupts it
RAISED = r"(?:\^|\*\*)[\s{(+-]{0,9}\d"
NEVER_ENDS = re.compile(
    rf"{RAISED}\d{{0,30}}[\s}})]{{0,9}}{RAISED}|{RAISED}\d{{4}}|\d{{4}}[\s}})]{{0,9}}!|!\s?!"
)


def verified_whole(output: str, solution: str) -> bool:
    from math_verify import parse, verify

    # no clock of math_verify's own: on a busy machine it takes what is right for unreadable
    given = parse(output, parsing_timeout=None)
    reference = parse(solution, parsing_timeout=None)
    # in this order, as there, although math_verify wants (reference, answer)
    return verify(given, reference, timeout_seconds=None)


def rec_rule(output: str, row: dict) -> bool:
    """OpenV-R1's RefCOCO script (test_rec_r1.py of VLM-R1): the first box in the FIRST tag, IoU over 0.5.

    A box is four whole numbers in brackets, so decimals and points are none, and a box without a tag does not
    count: an untrained model, which nobody asks for tags there, gets 0. Coordinates are compared in original
    pixels although Qwen2.5-VL writes them in the resized frame.
    """
    tags = in_tags(output)
    found = re.search(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]", tags[0]) if tags else None
    try:
        given = [int(number) for number in found.groups()] if found else [0, 0, 0, 0]
        reference = [float(number) for number in json.loads(row["solution"])]
        left = max(given[0], reference[0])
        top = max(given[1], reference[1])
        right = min(given[2], reference[2])  # right and bottom are the first pixels outside
        bottom = min(given[3], reference[3])
        overlap = 0
        if right - 1 > left and bottom - 1 > top:
            overlap = (right - left) * (bottom - top)
        union = area(given) + area(reference) - overlap
    # a number of 5,000 digits, a reference that is no box
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return False
    return union > 0 and overlap / union > 0.5


def area(box: list) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def ladder_rule(output: str, row: dict) -> bool:
    """OpenV-R1's scorer of MathVision, MathVerse, OlympiadBench and MMMU: the first test to say "right" wins.

    math_verify on whole texts; the last tag as a string; as a number; as an option letter found anywhere; as
    cleaned text. (Its partial credit for similar texts counts as wrong in evaluation, so similarity itself
    plays no part.) Flaws: those of geoqa_rule, an article counts as option A, and "None of the options" as
    the option that its words happen to contain.
    """
    reference = row["solution"]
    if geoqa_rule(output, row):
        return True
    tags = [last_tag(output), last_tag(reference)]
    given, wanted = (re.sub(r"(?:(?<!\s)\s+)?([-+*/=])\s*", r"\1", text.strip()) for text in tags)
    if given == wanted:
        return True
    given, wanted = (text.replace("\n", " ").strip().rstrip(".").lower() for text in tags)
    if re.search(r"\d", reference):
        try:
            return float(given) == float(wanted)
        except ValueError:
            return given == wanted
    if re.search(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", reference):
        letter = guess_letter(given)
        return letter is not None and letter == guess_letter(wanted)
    return given == wanted


def docvqa_rule(output: str, row: dict) -> float:
    """The scripts of the DocVQA and InfographicVQA competitions (and of lmms-eval): ANLS of the whole output.

    Here of the last tag if there is one, as those models answer without. Two things differ from the paper's
    formula: a similarity of exactly 0.5 counts, and the distance of the texts with single blanks is divided
    by the length that they have as they stand.
    """
    given = last_tag(output)[:4000]
    best = 0.0
    for reference in references(row):
        distance = Levenshtein.distance(plain(given), plain(reference))
        longest = max(len(given), len(reference))
        best = max(best, 1 - distance / longest if longest else 1.0)
    return best if best >= 0.5 else 0.0


def last_tag(text: str) -> str:
    """What stands in the last answer tag, the whole text if there is none."""
    tags = in_tags(text)
    return tags[-1] if tags else text


def in_tags(text: str) -> list[str]:
    """What stands in the answer tags of a text."""
    closed = text[: text.rfind("</answer>") + len("</answer>")]  # the rest would be read once per open tag
    return re.findall(r"<answer>(.*?)</answer>", closed, re.DOTALL)


HINTS = ("ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "THINK", "BELIEVE", "SHOULD")
HINTS += ("答案", "选择", "正确", "认为", "应该")


def guess_letter(text: str) -> str | None:
    """The option letter that ladder_rule reads out of a text: the one with most points that stands alone."""
    text = text.upper()
    letters = list(dict.fromkeys(re.findall(r"(?<![A-Z])[A-Z](?![A-Z])", text)))
    if not letters:
        return None
    return max(letters, key=lambda letter: letter_points(letter, text))  # the first of equals


def letter_points(letter: str, text: str) -> int:
    """A point for each hint within 20 characters, 2 in the last 30 % of the text, 1 before punctuation.

    The place of a letter is where it FIRST occurs, be it within a word: part of the published rule.
    """
    place = text.find(letter)
    near = text[max(0, place - 20) : place + 20]
    points = sum(hint in near for hint in HINTS)
    if place > 0.7 * len(text):
        points += 2
    if text[place + 1 : place + 2] in tuple(".,!:;。，"):
        points += 1
    return points


# -----------------------------------------------------------------------------
# the table
# -----------------------------------------------------------------------------


class Benchmark(NamedTuple):
    source: str  # name in adapters.py, which knows the files and the prompt
    split: str
    tokens: int  # the original script's limit on the completion
    rule: Callable[[str, dict], bool | float] | None
    rows: int  # of the published file; 0 = nobody has counted
    published: str = ""  # accuracy in %, from the READMEs and logs of R1-V and OpenV-R1


# fmt: off
BENCHMARKS = {
    "superclevr200":  Benchmark("superclevr200", "test",        256, superclevr_rule,   200,
        "Qwen2-VL-2B 48.0 → 82.5; with `--template=direct` 79 to 86 before any training"),
    "superclevr5k":   Benchmark("superclevr5k",  "test",        256, superclevr_rule,  5000,
        "Qwen2.5-VL-3B 64.1 → 93.4; always answering 1: 39.1"),
    "cogent_val_a":   Benchmark("cogent_val_a",  "train",       256, superclevr_rule,  5000),
    "cogent_val_b":   Benchmark("cogent_val_b",  "train",       256, superclevr_rule,  5000,
        "Qwen2-VL-2B 53 → 99 (counting, from a figure)"),
    "geoqa_test":     Benchmark("geoqa_test",    "test",       1024, geoqa_rule,        754,
        "Qwen2-VL-7B 30.6 → 38.7; Qwen2.5-VL-3B 35.4 → 47.5 (R1-V), 37.0 → 54.2 (OpenV-R1)"),
    "refcoco_val":    Benchmark("refcoco",       "val",         512, rec_rule,        10834,
        "Qwen2.5-VL-3B 90.1 after; mean of the three val sets 75.3 → 86.1"),
    "refcoco_testA":  Benchmark("refcoco",       "testA",       512, rec_rule,         5657),
    "refcoco_testB":  Benchmark("refcoco",       "testB",       512, rec_rule,         5095),
    "refcocop_val":   Benchmark("refcocop",      "val",         512, rec_rule,        10758, "84.4 after"),
    "refcocop_testA": Benchmark("refcocop",      "testA",       512, rec_rule,         5726),
    "refcocop_testB": Benchmark("refcocop",      "testB",       512, rec_rule,         4889),
    "refcocog_val":   Benchmark("refcocog",      "val",         512, rec_rule,         4896, "83.7 after"),
    "refcocog_test":  Benchmark("refcocog",      "test",        512, rec_rule,         9602),
    "refgta":         Benchmark("refgta",        "test",        512, rec_rule,            0),
    "mathvision":     Benchmark("mathvision",    "test",       4096, ladder_rule,      3040,
        "Qwen2.5-VL-3B 14.4 → 19.1"),
    "mathverse":      Benchmark("mathverse",     "train",      2048, ladder_rule,      3940,
        "Qwen2.5-VL-3B 27.6 → 40.0"),
    "olympiadbench":  Benchmark("olympiadbench", "test_en",    4096, ladder_rule,         0,
        "Qwen2.5-VL-3B 14.6 → 15.5"),
    "mmmu":           Benchmark("mmmu",          "validation", 4096, ladder_rule,       900,
        "Qwen2.5-VL-3B 40.5 → 47.9"),
    "mathvista":      Benchmark("mathvista",     "testmini",   2048, None,             1000),
    "ai2d":           Benchmark("ai2d",          "test",       1024, None,             3088),
    "chartqa":        Benchmark("chartqa",       "test",       1024, None,             2500),
    "docvqa":         Benchmark("docvqa",        "validation",  512, docvqa_rule,      5349),
    "infovqa":        Benchmark("infovqa",       "validation",  512, docvqa_rule,      2801),
    "textvqa":        Benchmark("textvqa",       "validation",  512, None,             5000),
    "gsm8k":          Benchmark("gsm8k",         "test",       1024, None,             1319),
    "math500":        Benchmark("math500",       "test",       2048, None,              500),
}
# fmt: on


def choose(text: str) -> dict[str, str]:
    """{name: source} of "superclevr200,mmmu@/data/mmmu".

    An @ names a local copy, "refcoco" means all of its splits, "all" everything. Raises SystemExit, one
    sentence, for a name that is not in the table.
    """
    chosen = {}
    for word in text.split(","):
        word = word.strip()
        if not word:
            continue
        wanted, _, path = word.partition("@")
        names = [name for name in BENCHMARKS if wanted in ("all", name) or name.startswith(f"{wanted}_")]
        if not names:
            raise SystemExit(f"bench: '{wanted}' is none of {', '.join(BENCHMARKS)}")
        for name in names:
            source = BENCHMARKS[name].source
            chosen[name] = f"{source}@{path}" if path else source
    return chosen


# of sets whose rows have different ones
METRICS = dict.fromkeys(("mathvision", "mathverse", "mathvista"), "choice, math") | {"mmmu": "choice, auto"}


def table_markdown() -> str:
    """The table of docs/benchmarks.md."""
    lines = [
        "| `--bench=` | rows | metric | prompt, tokens | download | published before → after RL, % |",
        "|---|---|---|---|---|---|",
    ]
    last_get = ""
    for name, benchmark in BENCHMARKS.items():
        adapter = ADAPTERS[benchmark.source]
        get = adapter.get
        if adapter.hub:
            get = f"[{adapter.hub}](https://huggingface.co/datasets/{adapter.hub})"
        cells = [
            name,
            str(benchmark.rows or ""),
            METRICS.get(name) or adapter.task,
            f"{adapter.template or 'think'}, {benchmark.tokens}",
            "the same" if get == last_get else get,
            benchmark.published,
        ]
        last_get = get
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table_markdown())
