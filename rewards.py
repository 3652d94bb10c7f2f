"""Rewards: how good is one completion? The same functions score training and evaluation.

A reward is a weighted sum of named parts, each a short function of a completion and its row; whether the answer is right is
decided in grading.py. Weights are a knob: reward_weights = {"accuracy": 1.0, "format": 0.5}.

part              value            what it is
accuracy          0 or 1           the answer is right
format            0 or 1           <think>...</think> <answer>...</answer>, for grounding with JSON in it
iou               0 to 1           overlap of the answer's box with the reference's
fuzzy             0, 0.1 or 1      partial credit for texts
reasoning_steps   0 to 1           numbered steps, three are enough
repetition        -1 to 0          share of repeated trigrams
cosine            -0.5 to 1        right and short is best, wrong and short is worst
length            -0.5 to 0.5      short within the group is better
module:function   any              your own f(completion, row) -> float

>>> score("<think>2 + 1</think><answer>3 cubes</answer>", {"problem": "How many?", "solution": "3", "task": "count"})
{'accuracy': 1.0, 'format': 1.0}

A new reward is a function and a line in REWARDS, or a file of your own named "module:function" in reward_weights.
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

# reward parts: each takes a completion and its row and gives a float; `strict` only where an answer is looked for


def accuracy_reward(completion: str, row: dict, strict: bool = True) -> float:
    """1.0 if the extracted answer matches row["solution"] by the rule of row["task"], else 0.0.

    A solution "['24/7', '3.429']" names several accepted answers. `strict` as in extract_answer. Raises ValueError for a
    task without a verifier.
    """
    task = row.get("task", "auto")
    if task not in VERIFIERS:
        raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(sorted(VERIFIERS))}")
    answer = extract_answer(completion, strict)
    return float(bool(answer) and any(VERIFIERS[task](answer, solution, row) for solution in references(row)))


def references(row: dict) -> list[str]:
    """The accepted answers of a row, usually one."""
    solution = str(row["solution"])
    tagged = extract_answer(solution)  # data sets of the R1 family ship the reference inside tags
    solution = solution if tagged is None else tagged
    if re.fullmatch(r"\s*\[\s*(['\"]).*\1\s*\]\s*", solution[:2000], re.DOTALL):
        try:
            return [str(s) for s in ast.literal_eval(solution.strip())]
        except (ValueError, SyntaxError):  # a text that happens to have brackets and quotes
            return [solution]
    return [solution]


def format_reward(completion: str, row: dict) -> float:
    """1.0 for "<think>...</think> <answer>...</answer>" and nothing else, else 0.0; R1-V's rule (its grpo.py).

    Stricter than R1-V in one point: each tag occurs exactly once, or a chain of answers would be well formed. For grounding the
    answer must also be JSON, an object (or a list of them) that holds a box, as OpenV-R1 asks for.
    """
    text = completion.strip()
    well_formed = all(text.count(tag) == 1 for tag in TAGS) and FORMAT.fullmatch(text) is not None
    if not well_formed or row.get("task") != "grounding":
        return float(well_formed)
    answer = re.sub(r"```(?:json)?", " ", extract_answer(text))
    return float("{" in answer and answer.strip()[-1:] in "]}" and read_box(answer) is not None)


def iou_reward(completion: str, row: dict, strict: bool = True) -> float:
    """The IoU itself, 0 to 1: a denser signal for grounding than accuracy's IoU > 0.5."""
    answer = extract_answer(completion, strict)
    return max(box_overlap(answer, solution, row) for solution in references(row)) if answer else 0.0


def fuzzy_reward(completion: str, row: dict, strict: bool = True) -> float:
    """Partial credit for texts, OpenV-R1's rule: 1.0 if right, 0.1 if the texts are over 0.6 alike, else 0.

    Likeness is Levenshtein's ratio, 2 * LCS / (|a| + |b|), LCS = longest common subsequence.
    """
    if accuracy_reward(completion, row, strict):
        return 1.0
    answer = clean(extract_answer(completion, strict) or "").casefold()
    wanted = [clean(solution).casefold() for solution in references(row)]
    if not answer or len(answer) > 500 or re.search(r"\d", "".join(wanted)):  # 13 cm is not nearly 12 cm
        return 0.0
    return 0.1 if any(likeness(answer, text[:500]) > 0.6 for text in wanted) else 0.0


def likeness(a: str, b: str) -> float:
    """Levenshtein ratio, 0 to 1."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = row
        row = [0]
        for j, y in enumerate(b):
            row.append(last[j] + 1 if x == y else max(last[j + 1], row[j]))
    return 2 * row[-1] / (len(a) + len(b)) if a or b else 1.0


def reasoning_steps_reward(completion: str, row: dict) -> float:
    """min(1, steps / 3), steps = numbered or bulleted lines and First, Second, Next, Finally (open-r1's rule)."""
    return min(
        1.0,
        len(
            re.findall(
                r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,", completion[:100_000], re.MULTILINE
            )
        )
        / 3,
    )


def repetition_reward(completion: str, row: dict, n: int = 3) -> float:
    """-(1 - distinct n-grams / n-grams), 0 to -1 (arXiv:2502.03373, with a penalty of 1); of characters where words are not spaced."""
    words = completion[:100_000].lower().split()
    if len(words) < n:
        words = list("".join(words)) if len("".join(words)) > 30 else words
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


# These need the whole group and its lengths in tokens: (accuracies, lengths, longest length possible) -> rewards


def cosine_rewards(correct: list[float], lengths: list[int], max_length: int) -> list[float]:
    """Right answers earn more when short, wrong ones lose less when long: right 1 ... 0.5, wrong -0.5 ... 0 (arXiv:2502.03373, sec. 3).

    r = end + (start - end) * (1 + cos(pi * t / T)) / 2, t = tokens, T = max_length; no wrap-around beyond T.
    """
    scale = [(1 + math.cos(math.pi * min(t, max_length) / max_length)) / 2 for t in lengths]
    return [0.5 + 0.5 * s if c >= 1 else -0.5 * s for c, s in zip(correct, scale, strict=True)]


def length_rewards(correct: list[float], lengths: list[int], max_length: int) -> list[float]:
    """Kimi k1.5 (arXiv:2501.12599, sec. 2.3.3), within one group: 0.5 - (t - min) / (max - min); for a wrong answer at most 0."""
    low, high = min(lengths), max(lengths)
    if low == high:
        return [0.0] * len(lengths)
    value = [0.5 - (t - low) / (high - low) for t in lengths]
    return [v if c >= 1 else min(0.0, v) for c, v in zip(correct, value, strict=True)]


REWARDS = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "iou": iou_reward,
    "fuzzy": fuzzy_reward,
    "reasoning_steps": reasoning_steps_reward,
    "repetition": repetition_reward,
}
GROUP_REWARDS = {"cosine": cosine_rewards, "length": length_rewards}
READS_ANSWER = ("accuracy", "iou", "fuzzy")  # the parts that know strict and lenient


@functools.lru_cache
def reward_function(name: str):
    """The function behind a part's name: one of REWARDS, or the user's own f(completion, row) -> float by "module:function".

    Raises ValueError for a name that is neither.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(
            f"unknown reward {name!r}; known rewards: {', '.join(sorted([*REWARDS, *GROUP_REWARDS]))}, or module:function"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward {name!r} cannot be loaded ({error}); module:function needs module.py beside the script"
        ) from error


def own_parts(named) -> list[str]:
    """The reward parts that a row of data asks for in `reward_func`: "accuracy, length" or a list of names; [] for none.

    Data may choose among the parts of this file and nothing else. A "module:function" belongs to the knob reward_weights: from a data
    set or a results file it would run code on the machine of whoever opens it. Raises ValueError for any other name.
    """
    names = named.replace(" ", "").split(",") if isinstance(named, str) else named or []
    if not isinstance(names, list | tuple):
        raise ValueError(f"reward_func {named!r} is no name of a reward part")
    if list(names) in (["iou"], ["default"]):
        return []  # OpenV-R1: these choose a task, which the data adapter has done already
    for name in names:
        if name not in REWARDS and name not in GROUP_REWARDS:
            known = ", ".join(sorted([*REWARDS, *GROUP_REWARDS]))
            raise ValueError(
                f"reward_func {str(name)!r} is none of {known}; data cannot name other functions, --reward_weights can"
            )
    return list(names)


def parts_of(row: dict, names) -> list[str]:
    """The reward parts of a row: those it asks for itself, else `names`."""
    return own_parts(row.get("reward_func")) or list(names)


def score(completion: str, row: dict, strict: bool = True, names=("accuracy", "format")) -> dict[str, float]:
    """The named parts of the reward of one completion; `row` has "problem", "solution" and "task".

    Raises ValueError for an unknown reward name or an unknown task. The parts that compare a group are for score_group.
    """
    functions = {name: reward_function(name) for name in parts_of(row, names)}
    return {
        n: float(f(completion, row, strict) if n in READS_ANSWER else f(completion, row))
        for n, f in functions.items()
    }


def score_group(
    texts: list[str],
    row: dict,
    names=("accuracy", "format"),
    lengths: list[int] | None = None,
    max_length: int = 0,
    strict: bool = True,
) -> list[dict[str, float]]:
    """score() of each completion of one prompt, with the parts that compare them; `lengths` and `max_length` in tokens."""
    names = parts_of(row, names)
    group = [n for n in names if n in GROUP_REWARDS]
    row = {**row, "reward_func": None}
    parts = [score(text, row, strict, [n for n in names if n not in group]) for text in texts]
    if group:
        correct = [
            p["accuracy"] if "accuracy" in p else accuracy_reward(t, row, strict)
            for p, t in zip(parts, texts, strict=True)
        ]
        for name in group:
            for p, value in zip(parts, GROUP_REWARDS[name](correct, lengths, max_length), strict=True):
                p[name] = value
    return parts


def check_weights(weights: dict) -> dict:
    """The weights, checked by name, with the environment variable FORMAT_REWARD_FACTOR applied, as the seeds have it.

    Raises SystemExit for a part that does not exist: a misspelt weight would silently drop its reward.
    """
    try:
        for name in weights:
            if name not in GROUP_REWARDS:
                reward_function(name)
    except ValueError as error:
        raise SystemExit(f"reward_weights: {error}") from error
    factor = os.environ.get("FORMAT_REWARD_FACTOR")
    return (
        {**weights, "format": weights["format"] * float(factor)}
        if factor and "format" in weights
        else dict(weights)
    )


def total(parts: dict, weights: dict) -> float:
    """reward = sum over the parts of weight * part. A part that only the row asked for has weight 1, one that it lacks counts 0."""
    return float(sum(weights.get(name, 1.0) * part for name, part in parts.items()))


class Scorer:
    """score_group for many groups at once, in `workers` processes (0: in this one).

    Make it before CUDA and the engines start: the processes are forked, each has a main thread whose alarm limits symbolic work.
    """

    def __init__(self, workers: int = 0):
        self.pool = None
        if workers:
            self.pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("fork"), initializer=warm_up, initargs=(os.getpid(),)
            )
            atexit.register(self.close)
            self.pool.submit(
                int
            ).result()  # all of them are forked now, and not when the first completions come

    def run(self, function, *args):
        """Start function(*args) in a process of the pool and return at once; call the result for its value."""
        return (
            functools.partial(function, *args)
            if self.pool is None
            else self.pool.submit(function, *args).result
        )

    def submit(
        self,
        groups: list[list[str]],
        rows: list[dict],
        names=("accuracy", "format"),
        lengths=None,
        max_length: int = 0,
        strict: bool = True,
    ):
        """Start scoring and return at once; call the result for its list (one per group) of lists (one per completion) of parts."""
        lengths = lengths or [None] * len(groups)
        light = [
            {k: v for k, v in row.items() if k not in ("images", "thinking")} for row in rows
        ]  # images need not travel
        jobs = [
            (g, r, tuple(names), n, max_length, strict)
            for g, r, n in zip(groups, light, lengths, strict=True)
        ]
        waiting = [self.run(score_group, *job) for job in jobs]
        return lambda: [wait() for wait in waiting]

    def score(self, *args, **settings) -> list[list[dict[str, float]]]:
        """submit and wait."""
        return self.submit(*args, **settings)()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def warm_up(parent: int) -> bool:
    """Load sympy now rather than at the first formula; leave Ctrl-C to the main process, and end when that is gone, even killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch():
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    return same_expression("\\sqrt{12}", "2\\sqrt{3}")


def debug_log(texts: list[str], rows: list[dict], totals: list[float], rank: int = 0) -> None:
    """With DEBUG_MODE=true appends every completion, its reward and reference to the file LOG_PATH (rank r > 0: LOG_PATH.rankR).

    The seeds' switch. Raises SystemExit if LOG_PATH is not set.
    """
    if os.environ.get("DEBUG_MODE", "").lower() != "true":
        return
    if not os.environ.get("LOG_PATH"):
        raise SystemExit(
            "DEBUG_MODE=true needs LOG_PATH, the file for the completions; set LOG_PATH or unset DEBUG_MODE"
        )
    now = time.strftime("%d-%H-%M-%S")
    with open(os.environ["LOG_PATH"] + (f".rank{rank}" if rank else ""), "a", encoding="utf-8") as file:
        for text, row, value in zip(texts, rows, totals, strict=True):
            file.write(
                f"------------- {now} reward: {value} -------------\nproblem: {row['problem']}\ncontent: {text}\n"
                f"solution: {row['solution']}\n"
            )
