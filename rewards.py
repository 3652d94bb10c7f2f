"""Rewards: how good is one completion? The same functions score training and evaluation.

A reward is a weighted sum of named parts, each a short function of a completion and its row; whether the
answer is right is decided in tasks/grading.py. The parts, and what each is worth, stand in the tables REWARDS
and GROUP_REWARDS below. Weights are a knob: reward_weights = {"accuracy": 1.0, "format": 0.5}.

>>> row = {"problem": "How many?", "solution": "3", "task": "count"}
>>> score("<think>2 + 1</think><answer>3 cubes</answer>", row)
{'accuracy': 1.0, 'format': 1.0}

A new reward is a function and a line in REWARDS, or f(completion, row) -> float in a file of your own, named
"module:function" in reward_weights.
"""

import ast
import atexit
import functools
import importlib
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

from tasks.grading import VERIFIERS, box_overlap, clean, extract_answer, read_box, same_expression

FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# -----------------------------------------------------------------------------
# the parts of one completion: f(completion, row), with `strict` where an answer is looked for
# -----------------------------------------------------------------------------


def accuracy_reward(completion: str, row: dict, strict: bool = True) -> float:
    """1.0 if the extracted answer matches row["solution"] by the rule of row["task"], else 0.0.

    A solution "['24/7', '3.429']" names several accepted answers. `strict` as in extract_answer. Raises
    ValueError for a task without a verifier.
    """
    task = row.get("task", "auto")
    if task not in VERIFIERS:
        raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(sorted(VERIFIERS))}")
    is_right = VERIFIERS[task]
    answer = extract_answer(completion, strict)
    if not answer:
        return 0.0
    return float(any(is_right(answer, solution, row) for solution in references(row)))


def references(row: dict) -> list[str]:
    """The accepted answers of a row, usually one."""
    solution = str(row["solution"])
    tagged = extract_answer(solution)  # data sets of the R1 family ship the reference inside tags
    if tagged is not None:
        solution = tagged
    if re.fullmatch(r"\s*\[\s*(['\"]).*\1\s*\]\s*", solution[:2000], re.DOTALL):
        try:
            return [str(s) for s in ast.literal_eval(solution.strip())]
        except (ValueError, SyntaxError):  # a text that happens to have brackets and quotes
            return [solution]
    return [solution]


def format_reward(completion: str, row: dict) -> float:
    """1.0 for "<think>...</think> <answer>...</answer>" and nothing else, R1-V's rule, else 0.0.

    Stricter than R1-V in one point: each tag occurs exactly once, or a chain of answers would be well formed.
    For grounding the answer must also be JSON, an object (or a list of them) that holds a box, as OpenV-R1
    asks for.
    """
    text = completion.strip()
    if any(text.count(tag) != 1 for tag in TAGS) or not FORMAT.fullmatch(text):
        return 0.0
    if row.get("task") != "grounding":
        return 1.0
    answer = re.sub(r"```(?:json)?", " ", extract_answer(text)).strip()
    is_json = "{" in answer and answer[-1] in "]}"
    return float(is_json and read_box(answer) is not None)


def iou_reward(completion: str, row: dict, strict: bool = True) -> float:
    """The IoU itself, 0 to 1: a denser signal for grounding than accuracy's IoU > 0.5."""
    answer = extract_answer(completion, strict)
    if not answer:
        return 0.0
    return max(box_overlap(answer, solution, row) for solution in references(row))


def fuzzy_reward(completion: str, row: dict, strict: bool = True) -> float:
    """Partial credit for texts, OpenV-R1's rule: 1.0 if right, 0.1 if over 0.6 alike, else 0."""
    if accuracy_reward(completion, row, strict):
        return 1.0
    answer = clean(extract_answer(completion, strict) or "").casefold()
    wanted = [clean(solution).casefold() for solution in references(row)]
    if not answer or len(answer) > 500:
        return 0.0
    if re.search(r"\d", "".join(wanted)):  # 13 cm is not nearly 12 cm
        return 0.0
    return 0.1 if any(likeness(answer, text[:500]) > 0.6 for text in wanted) else 0.0


def likeness(a: str, b: str) -> float:
    """Levenshtein's ratio, 0 to 1: 2 * LCS / (|a| + |b|), LCS = length of the longest common subsequence."""
    if not a and not b:
        return 1.0
    # common[j] = the LCS of what has been read of a with b[:j]
    common = [0] * (len(b) + 1)
    for x in a:
        last, common = common, [0]
        for j, y in enumerate(b):
            common.append(last[j] + 1 if x == y else max(last[j + 1], common[j]))
    return 2 * common[-1] / (len(a) + len(b))


STEP = re.compile(r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,", re.MULTILINE)


def reasoning_steps_reward(completion: str, row: dict) -> float:
    """min(1, steps / 3), steps = numbered or bulleted lines, First, Second, Next, Finally (open-r1)."""
    steps = len(STEP.findall(completion[:100_000]))
    return min(1.0, steps / 3)


def repetition_reward(completion: str, row: dict, n: int = 3) -> float:
    """-(1 - distinct n-grams / n-grams), 0 to -1 (arXiv:2502.03373, with a penalty of 1).

    Of words, or of characters where words are not spaced.
    """
    words = completion[:100_000].lower().split()
    if len(words) < n and len("".join(words)) > 30:
        words = list("".join(words))
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not grams:
        return 0.0
    return len(set(grams)) / len(grams) - 1.0


# fmt: off
REWARDS = {                                     # value        what it is
    "accuracy":        accuracy_reward,         # 0 or 1       the answer is right
    "format":          format_reward,           # 0 or 1       <think>...</think> <answer>...</answer>
    "iou":             iou_reward,              # 0 to 1       overlap of the answer's box and the reference's
    "fuzzy":           fuzzy_reward,            # 0, 0.1 or 1  partial credit for texts
    "reasoning_steps": reasoning_steps_reward,  # 0 to 1       numbered steps, three are enough
    "repetition":      repetition_reward,       # -1 to 0      share of repeated trigrams
}
# fmt: on
READS_ANSWER = (accuracy_reward, iou_reward, fuzzy_reward)  # those that know strict and lenient

# -----------------------------------------------------------------------------
# the parts of a whole group: f(accuracies, lengths in tokens, longest length possible), a list
# -----------------------------------------------------------------------------


def cosine_rewards(correct: list[float], lengths: list[int], max_length: int) -> list[float]:
    """Right answers earn more when short, wrong ones lose less when long (arXiv:2502.03373, sec. 3).

    r = end + (start - end) * (1 + cos(pi * t / T)) / 2, t = tokens, T = max_length; no wrap-around beyond T.
    Right from 1 to 0.5, wrong from -0.5 to 0.
    """
    values = []
    for is_right, length in zip(correct, lengths, strict=True):
        scale = (1 + math.cos(math.pi * min(length, max_length) / max_length)) / 2
        values.append(0.5 + 0.5 * scale if is_right >= 1 else -0.5 * scale)
    return values


def length_rewards(correct: list[float], lengths: list[int], max_length: int) -> list[float]:
    """Short within the group is better (Kimi k1.5, arXiv:2501.12599, sec. 2.3.3).

    0.5 - (t - min) / (max - min), t = tokens; for a wrong answer at most 0.
    """
    low, high = min(lengths), max(lengths)
    if low == high:
        return [0.0] * len(lengths)
    values = []
    for is_right, length in zip(correct, lengths, strict=True):
        value = 0.5 - (length - low) / (high - low)
        values.append(value if is_right >= 1 else min(0.0, value))
    return values


# fmt: off
GROUP_REWARDS = {                               # value        what it is
    "cosine":          cosine_rewards,          # -0.5 to 1    right and short is best, wrong and short worst
    "length":          length_rewards,          # -0.5 to 0.5  short within the group is better
}
# fmt: on

# -----------------------------------------------------------------------------
# which parts count
# -----------------------------------------------------------------------------


def known_names() -> str:
    """All parts of this file, for a message."""
    return ", ".join(sorted([*REWARDS, *GROUP_REWARDS]))


@functools.lru_cache
def reward_function(name: str):
    """The function behind a part's name: one of REWARDS, or the user's own f(completion, row) -> float.

    The user's own is named "module:function". Raises ValueError for a name that is neither.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"unknown reward {name!r}; known rewards: {known_names()}, or module:function")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward {name!r} cannot be loaded ({error}); module:function needs module.py beside the script"
        ) from error


def own_parts(named) -> list[str]:
    """The reward parts that a row of data names in `reward_func` ("accuracy, length" or a list); [] for none.

    Data may choose among the parts of this file and nothing else. A "module:function" belongs to the knob
    reward_weights: from a data set or a results file it would run code on the machine of whoever opens it.
    Raises ValueError for any other name.
    """
    if not named:
        return []
    names = named.replace(" ", "").split(",") if isinstance(named, str) else named
    if not isinstance(names, list | tuple):
        raise ValueError(f"reward_func {named!r} is no name of a reward part")
    if list(names) in (["iou"], ["default"]):
        return []  # OpenV-R1: these choose a task, which the data adapter has done already
    for name in names:
        is_known = isinstance(name, str) and (name in REWARDS or name in GROUP_REWARDS)
        if not is_known:
            raise ValueError(
                f"reward_func {str(name)!r} is none of {known_names()}; "
                "data cannot name other functions, --reward_weights can"
            )
    return list(names)


def parts_of(row: dict, names) -> list[str]:
    """The reward parts of a row: those it asks for itself, else `names`."""
    return own_parts(row.get("reward_func")) or list(names)


def check_weights(weights: dict) -> dict:
    """The weights, checked by name, times FORMAT_REWARD_FACTOR for format (the seeds' environment variable).

    Raises SystemExit for a part that does not exist: a misspelt weight would silently drop its reward.
    """
    try:
        for name in weights:
            if name not in GROUP_REWARDS:
                reward_function(name)
    except ValueError as error:
        raise SystemExit(f"reward_weights: {error}") from error
    checked = dict(weights)
    factor = os.environ.get("FORMAT_REWARD_FACTOR")
    if factor and "format" in checked:
        checked["format"] *= float(factor)
    return checked


# -----------------------------------------------------------------------------
# scoring
# -----------------------------------------------------------------------------


def score(completion: str, row: dict, strict: bool = True, names=("accuracy", "format")) -> dict[str, float]:
    """The named parts of the reward of one completion; `row` has "problem", "solution" and "task".

    Raises ValueError for an unknown reward name or an unknown task. The parts that compare a group are for
    score_group.
    """
    functions = {name: reward_function(name) for name in parts_of(row, names)}
    parts = {}
    for name, function in functions.items():
        if function in READS_ANSWER:
            parts[name] = float(function(completion, row, strict))
        else:
            parts[name] = float(function(completion, row))
    return parts


def score_group(
    texts: list[str],
    row: dict,
    names=("accuracy", "format"),
    lengths: list[int] | None = None,
    max_length: int = 0,
    strict: bool = True,
) -> list[dict[str, float]]:
    """score() of each completion of one prompt, and the parts that compare them.

    `lengths` and `max_length` are in tokens.
    """
    names = parts_of(row, names)
    row = {**row, "reward_func": None}
    single = [name for name in names if name not in GROUP_REWARDS]
    scored = [score(text, row, strict, single) for text in texts]
    if len(single) == len(names):
        return scored
    if "accuracy" in single:
        correct = [parts["accuracy"] for parts in scored]
    else:
        correct = [accuracy_reward(text, row, strict) for text in texts]
    for name in names:
        if name in GROUP_REWARDS:
            values = GROUP_REWARDS[name](correct, lengths, max_length)
            for parts, value in zip(scored, values, strict=True):
                parts[name] = value
    return scored


def total(parts: dict, weights: dict) -> float:
    """reward = sum over the parts of weight * part.

    A part that only the row asked for has weight 1, one that it lacks counts 0.
    """
    return float(sum(weights.get(name, 1.0) * part for name, part in parts.items()))


class Scorer:
    """score_group for many groups at once, in `workers` processes (0: in this one).

    Make it before CUDA and the engines start: the processes are forked, each has a main thread whose alarm
    limits symbolic work.
    """

    def __init__(self, workers: int = 0):
        self.pool = None
        if workers:
            fork = multiprocessing.get_context("fork")
            self.pool = ProcessPoolExecutor(workers, fork, initializer=warm_up, initargs=(os.getpid(),))
            atexit.register(self.close)
            self.pool.submit(int).result()  # forks all of them now, and not when the first completions come

    def run(self, function, *args):
        """Start function(*args) in a process of the pool, return at once; call the result for its value."""
        if self.pool is None:
            return functools.partial(function, *args)
        return self.pool.submit(function, *args).result

    def submit(
        self,
        groups: list[list[str]],
        rows: list[dict],
        names=("accuracy", "format"),
        lengths=None,
        max_length: int = 0,
        strict: bool = True,
    ):
        """Start scoring and return at once; call the result for its parts.

        They come as a list (one entry per group) of lists (one per completion).
        """
        lengths = lengths or [None] * len(groups)
        waiting = []
        for texts, row, tokens in zip(groups, rows, lengths, strict=True):
            # images need not travel
            light = {key: value for key, value in row.items() if key not in ("images", "thinking")}
            waiting.append(self.run(score_group, texts, light, tuple(names), tokens, max_length, strict))
        return lambda: [wait() for wait in waiting]

    def score(self, *args, **settings) -> list[list[dict[str, float]]]:
        """submit and wait."""
        return self.submit(*args, **settings)()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def warm_up(parent: int) -> bool:
    """Load sympy now, not at the first formula; leave Ctrl-C to the main process, and end with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    return same_expression("\\sqrt{12}", "2\\sqrt{3}")


def end_with(parent: int) -> None:
    """End this process when its parent is gone, even killed."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(0)


def debug_log(texts: list[str], rows: list[dict], totals: list[float], rank: int = 0) -> None:
    """With DEBUG_MODE=true appends every completion, its reward and reference to the file LOG_PATH.

    The seeds' switch; rank r > 0 writes to LOG_PATH.rankR. Raises SystemExit if LOG_PATH is not set.
    """
    if os.environ.get("DEBUG_MODE", "").lower() != "true":
        return
    path = os.environ.get("LOG_PATH")
    if not path:
        raise SystemExit(
            "DEBUG_MODE=true needs LOG_PATH, the file for the completions; set LOG_PATH or unset DEBUG_MODE"
        )
    if rank:
        path += f".rank{rank}"
    now = time.strftime("%d-%H-%M-%S")
    with open(path, "a", encoding="utf-8") as file:
        for text, row, value in zip(texts, rows, totals, strict=True):
            file.write(f"------------- {now} reward: {value} -------------\n")
            file.write(f"problem: {row['problem']}\ncontent: {text}\nsolution: {row['solution']}\n")
