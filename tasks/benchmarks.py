"""The benchmarks that R1-V and OpenV-R1 report, by name: rows, answer rule, limits, published figures. Their files: adapters.py.

    python eval.py --model=... --bench=superclevr200,mmmu
    python -m tasks.benchmarks                                   # the table of the README

eval.py reports two figures: ours (rewards.py) and, for comparison with published numbers, the rule that the original
evaluation script applied. These rules are written down here as they were, flaws included, so never train on them.
"""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from tasks.adapters import ADAPTERS

# -----------------------------------------------------------------------------
# published answer rules: rule(output, row) -> bool. They read row["solution"] only and never raise.
# -----------------------------------------------------------------------------


def superclevr_rule(output: str, row: dict) -> bool:
    """R1-V's SuperCLEVR script: the FIRST tag that holds nothing but digits equals the number of objects.

    Refuses "4 items" and "A. 8", and takes a draft in the reasoning for the answer.
    """
    match = re.search(r"<answer>\s*(\d{1,18})\s*</answer>", output)
    return match is not None and str(int(match[1])) == row["solution"].strip()


def geoqa_rule(output: str, row: dict) -> bool:
    """R1-V's GeoQA script: math_verify on the WHOLE output against the reference as it stands.

    Any number of the reasoning can win, 10√3 counts as 10, and references like 2√{3} are read as 2: about 1 verdict in 18
    is wrong, in both directions. The versions differ, too: published figures come from math_verify 0.5.
    """
    from math_verify import parse, verify  # loads sympy: a second
    from math_verify.errors import TimeoutException

    try:
        # 10,000 characters are 2,500 tokens, more than the script let a model write; the time limits keep the rest in bounds
        given, gold = (parse(text, parsing_timeout=2) for text in (output[:10000], row["solution"]))
        return bool(
            verify(given, gold, timeout_seconds=2)
        )  # in this order, as there, although math_verify wants (gold, answer)
    except (TimeoutException, ValueError, TypeError, RecursionError):
        return False


def rec_rule(output: str, row: dict) -> bool:
    """OpenV-R1's RefCOCO script: the first box of four integers in the first tag, IoU with the reference over 0.5.

    Decimals are no box, and coordinates are compared in original pixels although Qwen2.5-VL writes them in the resized frame.
    """
    tag = re.search(r"<answer>(.*?)</answer>", output, re.DOTALL)
    found = re.search(r"\[(\d{1,9}),\s*(\d{1,9}),\s*(\d{1,9}),\s*(\d{1,9})\]", tag[1]) if tag else None
    a = [int(x) for x in found.groups()] if found else [0, 0, 0, 0]
    try:
        b = [float(x) for x in json.loads(row["solution"])][:4]
        (x1, y1), (x2, y2) = (max(a[i], b[i]) for i in (0, 1)), (min(a[i], b[i]) for i in (2, 3))
    except (ValueError, TypeError, IndexError):
        return False
    overlap = (
        (x2 - x1) * (y2 - y1) if x2 - 1 > x1 and y2 - 1 > y1 else 0
    )  # x2 and y2 are the first pixels outside
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return union > 0 and overlap / union > 0.5


def ladder_rule(output: str, row: dict) -> bool:
    """OpenV-R1's scorer of MathVision, MathVerse, OlympiadBench and MMMU: the first test that says "right" wins.

    math_verify on whole texts; the last tag as a string; as a number; as an option letter found anywhere; as cleaned text. (Its
    partial credit for similar texts counts as wrong in evaluation, so similarity itself plays no part.) Flaws: those of geoqa_rule,
    an article counts as option A, and "None of the options" as the option that its words happen to contain.
    """
    gold = row["solution"]
    if geoqa_rule(output, row):
        return True
    last = [(re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL) or [text])[-1] for text in (output, gold)]
    given, wanted = (re.sub(r"\s*([-+*/=])\s*", r"\1", text.strip()) for text in last)
    if given == wanted:
        return True
    plain = [text.replace("\n", " ").strip().rstrip(".").lower() for text in last]
    if re.search(r"\d", gold):
        try:
            return float(plain[0]) == float(plain[1])
        except ValueError:
            return plain[0] == plain[1]
    if re.search(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", gold):
        letters = [guess_letter(text) for text in plain]
        return letters[0] is not None and letters[0] == letters[1]
    return plain[0] == plain[1]


HINTS = (
    "ANSWER",
    "CORRECT",
    "CHOOSE",
    "SELECT",
    "RIGHT",
    "THINK",
    "BELIEVE",
    "SHOULD",
    "答案",
    "选择",
    "正确",
    "认为",
    "应该",
)


def guess_letter(text: str) -> str | None:
    """The option letter that ladder_rule reads out of a text: of all letters that stand alone the one with the most points.

    A point for each hint within 20 characters, 2 in the last 30 % of the text, 1 before punctuation. The place of a letter is where it
    FIRST occurs, be it within a word: part of the published rule.
    """
    text = text.upper()
    letters = list(dict.fromkeys(re.findall(r"(?<![A-Z])[A-Z](?![A-Z])", text)))

    def points(letter):
        at = text.find(letter)
        near = text[max(0, at - 20) : at + 20]
        return (
            sum(hint in near for hint in HINTS)
            + 2 * (at > 0.7 * len(text))
            + (text[at + 1 : at + 2] in tuple(".,!:;。，"))
        )

    return max(letters, key=points) if letters else None  # the first of equals


# -----------------------------------------------------------------------------
# the table
# -----------------------------------------------------------------------------


class Benchmark(NamedTuple):
    source: str  # name in adapters.py, which knows the files and the prompt
    split: str
    tokens: int  # the original script's limit on the completion
    rule: Callable[[str, dict], bool] | None
    rows: int  # of the published file; 0 = nobody has counted
    published: str = ""  # accuracy in %, from the READMEs and logs of R1-V and OpenV-R1


BENCHMARKS = {
    "superclevr200": Benchmark(
        "superclevr200",
        "test",
        256,
        superclevr_rule,
        200,
        "Qwen2-VL-2B 48.0 → 82.5; with `--template=direct` 79 to 86 before any training",
    ),
    "superclevr5k": Benchmark(
        "superclevr5k",
        "test",
        256,
        superclevr_rule,
        5000,
        "Qwen2.5-VL-3B 64.1 → 93.4; always answering 1: 39.1",
    ),
    "cogent_val_a": Benchmark("cogent_val_a", "train", 256, superclevr_rule, 5000),
    "cogent_val_b": Benchmark(
        "cogent_val_b", "train", 256, superclevr_rule, 5000, "Qwen2-VL-2B 53 → 99 (counting, from a figure)"
    ),
    "geoqa_test": Benchmark(
        "geoqa_test",
        "test",
        1024,
        geoqa_rule,
        754,
        "Qwen2-VL-7B 30.6 → 38.7; Qwen2.5-VL-3B 35.4 → 47.5 (R1-V), 37.0 → 54.2 (OpenV-R1)",
    ),
    "refcoco_val": Benchmark(
        "refcoco",
        "val",
        512,
        rec_rule,
        10834,
        "Qwen2.5-VL-3B 90.1 after; mean of the three val sets 75.3 → 86.1",
    ),
    "refcoco_testA": Benchmark("refcoco", "testA", 512, rec_rule, 5657),
    "refcoco_testB": Benchmark("refcoco", "testB", 512, rec_rule, 5095),
    "refcocop_val": Benchmark("refcocop", "val", 512, rec_rule, 10758, "84.4 after"),
    "refcocop_testA": Benchmark("refcocop", "testA", 512, rec_rule, 5726),
    "refcocop_testB": Benchmark("refcocop", "testB", 512, rec_rule, 4889),
    "refcocog_val": Benchmark("refcocog", "val", 512, rec_rule, 4896, "83.7 after"),
    "refcocog_test": Benchmark("refcocog", "test", 512, rec_rule, 9602),
    "refgta": Benchmark("refgta", "test", 512, rec_rule, 0),
    "mathvision": Benchmark("mathvision", "test", 4096, ladder_rule, 3040, "Qwen2.5-VL-3B 14.4 → 19.1"),
    "mathverse": Benchmark("mathverse", "train", 2048, ladder_rule, 3940, "Qwen2.5-VL-3B 27.6 → 40.0"),
    "olympiadbench": Benchmark("olympiadbench", "test_en", 4096, ladder_rule, 0, "Qwen2.5-VL-3B 14.6 → 15.5"),
    "mmmu": Benchmark("mmmu", "validation", 4096, ladder_rule, 900, "Qwen2.5-VL-3B 40.5 → 47.9"),
    "gsm8k": Benchmark("gsm8k", "test", 1024, None, 1319),
    "math500": Benchmark("math500", "test", 2048, None, 500),
}


def choose(text: str) -> dict[str, str]:
    """{name: source} of "superclevr200,mmmu@/data/mmmu": an @ names a local copy, refcoco all of its splits, all everything.

    Raises SystemExit, one sentence, for a name that is not in the table.
    """
    chosen = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        wanted, _, path = word.partition("@")
        names = [n for n in BENCHMARKS if wanted == "all" or n == wanted or n.startswith(wanted + "_")]
        if not names:
            raise SystemExit(f"bench: '{wanted}' is none of {', '.join(BENCHMARKS)}")
        chosen |= {n: f"{BENCHMARKS[n].source}@{path}" if path else BENCHMARKS[n].source for n in names}
    return chosen


def table_markdown() -> str:
    """The README's table."""
    lines = [
        "| `--bench=` | rows | prompt, tokens | download | published before → after RL, % |",
        "|---|---|---|---|---|",
    ]
    before = ""
    for name, b in BENCHMARKS.items():
        a = ADAPTERS[b.source]
        get = f"[{a.hub}](https://huggingface.co/datasets/{a.hub})" if a.hub else a.get
        get, before = "the same" if get == before else get, get
        lines.append(
            f"| {name} | {b.rows or ''} | {a.template or 'think'}, {b.tokens} | {get} | {b.published} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table_markdown())
