"""Rewards: how good is one completion? The same functions score training and evaluation.

Only the content of the last <answer>...</answer> is ever compared with the reference. A scorer that reads the whole
completion pays for any number in the reasoning: "<think>there are 3 cubes</think><answer>5</answer>" earned 1.0 for a
reference of 3 in earlier R1-style code, and a policy finds that out quickly (it is cheaper to list many numbers than to
count). The last tag, not the first, because models draft answers; not any tag, because then listing all of them pays.

task    the answer is right if it is ...                   right                              wrong
count   one integer, the same                              "3 cubes", "three", "2 + 1 = 3"    "3 or 4", "at least 3"
choice  one option letter, the same                        "(B) red", "b", "B."               "B, D"; "A cat" for A
math    the same number, else the same expression          "1/2" for 0.5, "2√3" for √{12}     "13 cm" for 12 cm
text    the same text but for case and blanks              "Red  cube." for red cube          "red cubes"
auto    right by the rule that the look of the reference suggests

>>> score("<think>2 + 1</think><answer>3 cubes</answer>", {"problem": "How many?", "solution": "3", "task": "count"})
{'accuracy': 1.0, 'format': 1.0}

A new task is one short function and one line in VERIFIERS; a new reward the same with REWARDS.
"""
import functools
import logging
import math
import re
import threading
from fractions import Fraction

log = logging.getLogger(__name__)

# no tag inside: of nested tags the innermost pair is the answer, and the search stays linear on hostile input
ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]
# at most 30 digits: enough for any answer, and far from the length at which Python refuses to convert
DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,9}(?:\.\d{1,30})?|\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})"
NUMBER = rf"[-+]?{DIGITS}"
HEDGE = re.compile(r"\b(?:or|and|to|maybe|perhaps|not|than|half)\b|[-+*/=]|\d|\b(?:" + "|".join(WORDS) + r")\b")

# unit -> its spellings; a unit may be left out, but two different units are two different answers
UNITS = {
    "": r"units?|square units?|cubic units?", "%": r"\\?%|percent", "mm": r"mm|millimet(?:er|re)s?",
    "cm": r"cm|centimet(?:er|re)s?|厘米", "dm": r"dm|decimet(?:er|re)s?", "km": r"km|kilomet(?:er|re)s?|千米",
    "m": r"m|met(?:er|re)s?|米", "in": r"in|inch(?:es)?", "ft": r"ft|foot|feet", "yd": r"yd|yards?",
    "mile": r"mi|miles?", "sea mile": r"nautical miles?|海里", "g": r"g|grams?", "kg": r"kg|kilograms?",
    "s": r"s|sec|seconds?", "min": r"min|minutes?", "h": r"h|hours?", "km/h": r"km ?/ ?h|kmh|kph", "m/s": r"m ?/ ?s",
}
UNIT = re.compile("(?:square |cubic )?(?:" + "|".join(f"(?P<u{i}>{u})" for i, u in enumerate(UNITS.values()))
                  + r")(?: ?\^?\{?[23]\}?)?$")


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
        if rest.strip():  # cut off by the length limit, perhaps within the closing tag
            return re.sub(r"</?[a-z]{0,6}>?\s*$", "", rest).strip()
    boxed = last_boxed(completion)
    return boxed if boxed is not None else conclusion(completion)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces balance, or None."""
    starts = [m.end() for m in re.finditer(r"\\boxed\s*\{", text)]
    for start in starts[-8:][::-1]:  # a bound, because every unbalanced start costs a walk to the end of the text
        depth = 1
        for i in range(start, len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start:i].strip()
    return None


def conclusion(text: str) -> str | None:
    """An answer stated in words in the last 300 characters, or None; for evaluation only."""
    tail = re.sub(r"</?(?:think|answer)>|<[a-z/]{0,6}\s*$|\*\*", " ", text[-300:]).strip()
    stated = re.findall(r"\banswer\s*(?:is\b|:|=)[ \t:]*([^\n]+)", tail, re.IGNORECASE)
    if stated:
        return stated[-1].strip().rstrip(".").strip()
    last = re.split(r"\n|(?<=[.!?])\s", tail)[-1]
    there = re.search(rf"\bthere (?:are|is)(?: only| a total of)? ({NUMBER}|{'|'.join(WORDS)})\b", last, re.IGNORECASE)
    bare = re.search(rf"(?<![\w.,/^{{-])({NUMBER}|{'|'.join(WORDS)})\s*°?[.!]?$", last, re.IGNORECASE)
    return there[1] if there else bare[1] if bare else None


# ---------------------------------------------------------------------------
# comparing an answer with the reference: one pure function per task, which never raises on any text

TYPOGRAPHY = str.maketrans({"−": "-", "–": "-", "。": ".", "²": "^2", "³": "^3", "×": "*", "·": "*", "÷": "/",
                            **{0xFF01 + i: 0x21 + i for i in range(94)}})  # full-width forms


def clean(text: str) -> str:
    """`text` without decoration: math delimiters, \\boxed, \\text, bold, final full stop, full-width forms, blanks."""
    text = text.translate(TYPOGRAPHY)
    text = re.sub(r"(?<![\w)}])\*\*(?=\S)([^*]+)\*\*(?![\w({\\])", r"\1", text)  # bold, but not 9**9**9
    text = re.sub(r"\\[()\[\]]|\$(?=\S)|(?<=\S)\$|\\[,;! ]|~", " ", text)  # $ and \( \) only delimit; \, only spaces
    text = re.sub(r"\\(?:text|mathrm|mathbf|boxed)\s*\{([^{}]*)\}", r" \1 ", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


def same_count(answer: str, solution: str) -> bool:
    """One integer in digits or words up to twenty, perhaps followed by a noun; of an equation the right-hand side."""
    counted = []
    for text in (answer, solution):
        text = re.sub(r"^(?:[a-z]\.|there (?:are|is)|(?:the )?(?:final )?answer(?: is|:)|(?:total|count):)\s+", "",
                      clean(text[:2000]).lower().rsplit("=", 1)[-1].strip())
        match = re.match(rf"({NUMBER}|{'|'.join(WORDS)})(?![\w.,-])(.*)", text)
        if not match or HEDGE.search(match[2]):  # a second number or "or" behind it: the answer has not decided
            return False
        counted.append(WORDS.index(match[1]) if match[1] in WORDS else Fraction(match[1].replace(",", "")))
    return counted[0] == counted[1]


def option_letter(text: str) -> str | None:
    """The one option letter that `text` names: "B", "b)", "(B) red", "B. red", "option B"; None if none or several."""
    text = re.sub(r"(?i)^(?:the )?(?:correct |final )?(?:answer|option|choice)(?: is)?\s*:?\s+", "", clean(text[:2000]))
    match = re.match(r"\(([A-Za-z])\)(.*)|([A-Z])[).:](.*)|([a-z])[).:](?=\s)(.*)|([A-Za-z])$|([a-z])[).:]$", text)
    if not match:  # a letter followed by words is English ("A cat"), not an option
        return None
    letter, rest = ([group for group in match.groups() if group is not None] + [""])[:2]
    hedged = re.search(r"\([A-Za-z]\)|\b(?:or|and) [A-Z]\b|\b[A-J][).:]\s|^[\s,/&]*[A-Z]\b(?:$|[\s,/&]+[A-Z]\b)", rest)
    return None if hedged else letter.upper()


def same_choice(answer: str, solution: str) -> bool:
    """The same option letter; if the reference is no letter, the same text."""
    letter = option_letter(solution)
    return same_text(answer, solution) if letter is None else option_letter(answer) == letter


def same_text(answer: str, solution: str) -> bool:
    """Equal but for case, blanks, quotes, math delimiters and a final full stop; nothing fuzzy, no partial credit."""
    answer, solution = (clean(text).strip("\"'`“”").casefold() for text in (answer, solution))
    return answer == solution != ""


def same_math(answer: str, solution: str) -> bool:
    """Equal as numbers (0.50 = 1/2, 140 = 140°, 12 = 12 cm), else as text, else as expressions (2√3 = 2\\sqrt{3})."""
    if len(answer) > 500 or len(solution) > 500:  # no final answer is that long; also bounds every regex below
        return False
    answer, answer_unit = split_unit(repair(answer))
    solution, solution_unit = split_unit(repair(solution))
    if answer_unit and solution_unit and answer_unit != solution_unit:
        return False
    wanted, given = number(solution.rsplit("=", 1)[-1]), number(answer.rsplit("=", 1)[-1])
    if wanted is not None and given is not None:  # decided here for most answers, without loading sympy
        return wanted == given
    return answer.casefold() == solution.casefold() != "" or same_expression(answer, solution)


def repair(text: str) -> str:
    """`text` as LaTeX that the parser reads whole: it takes 2√{3} for 2 and trips over °, π, sqrt(3) and 9**9."""
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])", " ", text).replace("\\dfrac", "\\frac")
    text = clean(re.sub(r"°|º|\^\s*\\circ|\^\s*\{\s*\\circ\s*\}|\b[dD]egrees?\b", " ", text))  # angles are in degrees
    text = text.replace("**", "^").replace("π", "\\pi ")
    text = re.sub(r"√\s*\{|(?<![a-zA-Z\\])sqrt\s*\{", r"\\sqrt{", text)
    text = re.sub(r"(?:√|(?<![a-zA-Z\\])sqrt)\s*\(([^()]*)\)|√\s*(\d+(?:\.\d+)?|[a-z])",
                  lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    return re.sub(r"(?<![a-zA-Z\\])(pi\b|frac\{)", r"\\\1", text).replace("  ", " ").strip()


def split_unit(text: str) -> tuple[str, str]:
    """("12", "cm") for "12 cm". A unit stands at the end, behind a number, a bracket or π: the x of 2x is no unit."""
    for start in (m.end() for m in re.finditer(r"(?:[\d.})]|\\pi) ?(?=[^\d\s])", text)):
        match = UNIT.match(text, start)
        if match:
            return text[:start].strip(), list(UNITS)[next(i for i in range(len(UNITS)) if match[f"u{i}"])]
    return text, ""


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, a/b or \\frac{a}{b}, thousands separators allowed; None for anything else."""
    text = re.sub(rf"\\frac\s*\{{\s*({NUMBER})\s*\}}\s*\{{\s*({NUMBER})\s*\}}", r"\1/\2", text.strip())
    match = re.fullmatch(rf"([-+]?)\s*({NUMBER})(?:\s*/\s*({DIGITS}))?", text)
    if not match or match[1] and match[2][0] in "+-":
        return None
    top, bottom = (Fraction((part or "1").replace(",", "")) for part in match.group(2, 3))
    return (-top if match[1] == "-" else top) / bottom if bottom else None


EXPONENT = r"\^\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\)|[-+]?\s*(?:\d+|[a-zA-Z]|\\pi))"


def is_tame(text: str) -> bool:
    """Is `text` short, and free of prose and of what sympy could work on forever (9^9^9, 2^99999, 10000!, sums)?"""
    exponents = re.findall(EXPONENT, text)
    digits = [int(d[:9]) for exponent in exponents for d in re.findall(r"\d+", exponent)]
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]+", re.sub(r"\\[a-zA-Z]+", " ", text))
    return (len(text) <= 200 and len(exponents) == text.count("^")  # a ^ within an exponent would be missing here
            and not re.search(EXPONENT + r"\s*[)}]*\s*\^", text) and math.prod(max(d, 1) for d in digits) <= 9999
            and not re.search(r"!|\\(?:sum|prod|int|lim|binom|Gamma|zeta)|\d{31}|\d\s+\d", text)
            # letters are variables and would multiply and commute: "red cube" is no product, "3 or 4" no number
            and not any(w in ("or", "and") or len(w) > 2 and w not in ("sin", "cos", "tan", "log") for w in words))


@functools.lru_cache(maxsize=4096)  # the G completions of one prompt repeat the same few answers
def same_expression(answer: str, solution: str) -> bool:
    """Symbolic equality by math_verify; False, and a line in the log, if it cannot decide."""
    if not answer or not solution or not is_tame(answer) or not is_tame(solution):
        return False
    from math_verify import LatexExtractionConfig, parse, verify  # loads sympy, about a second: only when needed
    from math_verify.errors import TimeoutException
    # math_verify limits time by SIGALRM, which exists in the main thread only; elsewhere is_tame() has to be enough
    seconds = 2 if threading.current_thread() is threading.main_thread() else None
    try:
        # one formula, read whole: the other extractors would pick the first number out of a text they cannot parse
        options = {"fallback_mode": "no_fallback", "parsing_timeout": seconds}
        gold, given = (parse(f"${text}$", [LatexExtractionConfig()], **options) for text in (solution, answer))
        if not gold:
            log_once(f"math_verify cannot read the reference {solution!r}: only equal texts will be right")
        return bool(gold and given) and verify(gold, given, timeout_seconds=seconds)
    except (TimeoutException, ValueError, TypeError, RecursionError) as error:  # what math_verify lets through
        log_once(f"math_verify failed with {type(error).__name__}; such answers count as wrong")
        return False


@functools.lru_cache(maxsize=1024)
def log_once(message: str) -> None:
    """Log a warning the first time only: a training run meets the same reference thousands of times."""
    log.warning(message)


def same_auto(answer: str, solution: str) -> bool:
    """By the look of the reference: a letter is a choice, an integer a count, anything else with digits math."""
    if re.fullmatch(r"\(?[A-Z]\)?\.?", solution.strip()):
        return same_choice(answer, solution)
    if re.fullmatch(r"[-+]?\d+", solution.strip()) and same_count(answer, solution):
        return True
    return (same_math if re.search(r"[\d\\√π=^]", solution) else same_text)(answer, solution)


VERIFIERS = {"count": same_count, "choice": same_choice, "math": same_math, "text": same_text, "auto": same_auto}


# ---------------------------------------------------------------------------
# rewards


def accuracy_reward(completion: str, row: dict, strict: bool = True) -> float:
    """1.0 if the extracted answer matches row["solution"] by the rule of row["task"], else 0.0.

    `strict` as in extract_answer. Raises ValueError for a task without a verifier.
    """
    task = row.get("task", "auto")
    if task not in VERIFIERS:
        raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(sorted(VERIFIERS))}")
    answer, solution = extract_answer(completion, strict), str(row["solution"])
    tagged = extract_answer(solution)  # data sets of the R1 family ship the reference inside tags
    return float(bool(answer) and VERIFIERS[task](answer, solution if tagged is None else tagged))


def format_reward(completion: str, row: dict) -> float:
    """1.0 for "<think>...</think> <answer>...</answer>" and nothing else, else 0.0; R1-V's rule (its grpo.py).

    Stricter than R1-V in one point: each tag occurs exactly once, or a chain of answers would be well formed.
    """
    text = completion.strip()
    return float(all(text.count(tag) == 1 for tag in TAGS) and FORMAT.fullmatch(text) is not None)


REWARDS = {"accuracy": accuracy_reward, "format": format_reward}


def score(completion: str, row: dict, strict: bool = True, names=("accuracy", "format")) -> dict[str, float]:
    """The named parts of the reward of one completion, each in 0..1; `row` has "problem", "solution" and "task".

    Raises ValueError for an unknown reward name or an unknown task.
    """
    for name in names:
        if name not in REWARDS:
            raise ValueError(f"unknown reward {name!r}; known rewards: {', '.join(sorted(REWARDS))}")
    # only accuracy looks for an answer, so only there is something to be strict about
    return {n: REWARDS[n](completion, row, strict) if n == "accuracy" else REWARDS[n](completion, row) for n in names}


def total(parts: dict, weights: dict) -> float:
    """reward = sum over the parts of weight * part; a part without a weight counts 0.

    Raises ValueError if a weight names no part, because a misspelt weight would silently drop its reward.
    """
    for name in weights:
        if name not in parts:
            raise ValueError(f"weight for an unknown reward part {name!r}; parts: {', '.join(sorted(parts))}")
    return float(sum(weight * parts[name] for name, weight in weights.items()))
