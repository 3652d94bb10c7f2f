"""Rewards: how good is one completion? The same functions score training and evaluation.

A reward is a weighted sum of named parts, each a short function of a completion and its row; whether the
answer is right is decided in tasks/grading.py. The parts, and what each is worth, stand in the tables REWARDS
and GROUP_REWARDS below. Weights are a knob: reward_weights = {"accuracy": 1.0, "format": 0.5}.

>>> row = {"problem": "How many?", "solution": "3", "task": "count"}
>>> score("<think>2 + 1</think><answer>3 cubes</answer>", row)
{'accuracy': 1.0, 'format': 1.0}

A new reward is a function and a line in REWARDS, or one in a file of your own (own_rewards.py), named
"module:function" in reward_weights.
"""

import atexit
import functools
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import own_rewards
from own_rewards import (
    CONTRACT,
    NOT_APPLIED,
    NOTE_BYTES,
    GivesUp,
    LeftBehind,
    finite,
    lighten,
    own_values,
    short,
)
from tasks.grading import VERIFIERS, references, task_of, verdict
from tasks.grading.boxes import box_overlap, read_box
from tasks.grading.clean import clean
from tasks.grading.find import extract_answer
from tasks.grading.symbolic import attempt, load_sympy

FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# -----------------------------------------------------------------------------
# the parts of one completion: f(completion, row), with `strict` where an answer is looked for
# -----------------------------------------------------------------------------


def accuracy_reward(completion: str, row: dict, strict: bool = True) -> float:
    """How right the extracted answer is by the rule of row["task"]: 1.0 or 0.0; of soft tasks 0 to 1.

    A solution "['24/7', '3.429']" names several accepted answers, of which the best counts. `strict` as in
    extract_answer. Raises ValueError for a task without a verifier.
    """
    verifier_of(row)
    answer = answer_of(completion, row, strict)
    if not answer:
        return 0.0
    return attempt(verdict, answer, row) or 0.0


def answer_of(completion: str, row: dict, strict: bool) -> str:
    """What the completion answers, "" if nothing; the row's task tells what to look for in plain text."""
    return extract_answer(completion, strict, "auto" if strict else task_of(row)) or ""


def verifier_of(row: dict):
    """The rule of the row's task. Raises ValueError for a task without one."""
    task = row.get("task", "auto")
    if task not in VERIFIERS:
        raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(sorted(VERIFIERS))}")
    return VERIFIERS[task]


def format_reward(completion: str, row: dict) -> float:
    """1.0 for "<think>...</think> <answer>...</answer>" and nothing else, R1-V's rule, else 0.0.

    Stricter than R1-V in one point: each tag occurs exactly once, or a chain of answers would be well formed.
    For grounding the answer must also be JSON, an object (or a list of them) that holds a box, as OpenV-R1
    asks for.
    """
    text = completion.strip()
    in_any_case = text.lower()
    if any(in_any_case.count(tag) != 1 for tag in TAGS) or not FORMAT.fullmatch(text):
        return 0.0
    if row.get("task") != "grounding":
        return 1.0
    answer = re.sub(r"```(?:json)?", " ", extract_answer(text)).strip()
    is_json = "{" in answer and answer[-1] in "]}"
    return float(is_json and read_box(answer) is not None)


def iou_reward(completion: str, row: dict, strict: bool = True) -> float:
    """The IoU itself, 0 to 1: a denser signal for grounding than accuracy's IoU > 0.5."""
    answer = answer_of(completion, row, strict)
    if not answer:
        return 0.0

    def overlap(answer):
        return max(box_overlap(answer, solution, row) for solution in references(row))

    return attempt(overlap, answer) or 0.0


def fuzzy_reward(completion: str, row: dict, strict: bool = True) -> float:
    """Partial credit for texts, OpenV-R1's rule: 1.0 if right, 0.1 if over 0.6 alike, else 0."""
    right = accuracy_reward(completion, row, strict)
    if right:
        return right
    answer = clean(answer_of(completion, row, strict)).casefold()
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
    "accuracy":        accuracy_reward,         # 0 or 1       the answer is right; of soft tasks 0 to 1
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
        values.append(0.5 + 0.5 * scale if is_right > 0.5 else -0.5 * scale)
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
        values.append(value if is_right > 0.5 else min(0.0, value))
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
    """The function behind a part's name: one of REWARDS, or the user's own, named "module:function".

    Raises ValueError for a name that is neither, and for a function that cannot be loaded.
    """
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        raise ValueError(f"unknown reward {name!r}; known rewards: {known_names()}, or module:function")
    return own_rewards.load(name)


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

    Raises SystemExit for a part that does not exist (a misspelt weight would silently drop its reward), one
    that cannot be called, and a weight that is no number.
    """
    if not weights or not all(isinstance(name, str) for name in weights):
        raise SystemExit(
            f"reward_weights: {weights} names no part of a reward; known rewards: {known_names()}"
        )
    checked = {}
    try:
        for name, weight in weights.items():
            checked[name] = finite(weight)
            if checked[name] is None:
                raise ValueError(f"the weight of {name!r} is {short(weight)}; a finite number is wanted")
            if name not in GROUP_REWARDS:
                reward_function(name)
    except ValueError as error:
        raise SystemExit(f"reward_weights: {error}") from error
    factor = os.environ.get("FORMAT_REWARD_FACTOR")
    if factor and "format" in checked:
        try:
            checked["format"] *= float(factor)
        except ValueError as error:
            raise SystemExit(
                f"FORMAT_REWARD_FACTOR: {factor!r} is no number; set one, or unset it"
            ) from error
        if finite(checked["format"]) is None:
            raise SystemExit(f"FORMAT_REWARD_FACTOR: {factor!r} is not finite; set a number, or unset it")
    return checked


def check_metric(knob: str, name: str) -> None:
    """SystemExit, which names the knob, unless `name` is "", a task, a part or a user's function."""
    try:
        if name and name not in VERIFIERS:
            reward_function(name)
    except ValueError as error:
        raise SystemExit(f"{knob}: {error}") from error


# -----------------------------------------------------------------------------
# scoring
# -----------------------------------------------------------------------------


def score(completion: str, row: dict, strict: bool = True, names=("accuracy", "format")) -> dict[str, float]:
    """The named parts of the reward of one completion; `row` has "problem", "solution" and "task".

    Raises ValueError for an unknown reward name or an unknown task. The parts that compare a group are for
    score_group.
    """
    functions = {name: reward_function(name) for name in parts_of(row, names)}
    if accuracy_reward in functions.values() or fuzzy_reward in functions.values():
        verifier_of(row)  # the row's fault ends here, the completion's counts as wrong
    parts = dict.fromkeys((name for name in functions if name in REWARDS), 0.0)
    attempt(score_built_in, parts, functions, completion, row, strict)
    for name, function in functions.items():
        if name not in REWARDS:
            add_part([parts], name, own_values(name, function, [completion], row))
    return parts


def add_part(scored: list[dict], name: str, values: list) -> None:
    """Write one part into the parts of each completion, but for None: there it does not apply."""
    for parts, value in zip(scored, values, strict=True):
        if value is not None:
            parts[name] = value


def score_built_in(parts: dict, functions: dict, completion: str, row: dict, strict: bool) -> None:
    """Writes the parts of this file into `parts`; one that fails or that time is short for stays at 0."""
    for name, function in functions.items():
        if function in READS_ANSWER:
            parts[name] = attempt(function, completion, row, strict) or 0.0
        elif name in REWARDS:
            parts[name] = attempt(function, completion, row) or 0.0


def score_group(
    texts: list[str],
    row: dict,
    names=("accuracy", "format"),
    lengths: list[int] | None = None,
    max_length: int = 0,
    strict: bool = True,
    left=(),
) -> list[dict[str, float]]:
    """score() of each completion of one prompt, and the parts that compare them.

    `lengths` and `max_length` are in tokens. `left`: what the row lacks for users' functions (own_values).
    """
    names = parts_of(row, names)
    own = [name for name in names if ":" in name]
    single = [name for name in names if name not in GROUP_REWARDS and name not in own]
    built_in = {**row, "reward_func": None}
    scored = [score(text, built_in, strict, single) for text in texts]
    if any(name in GROUP_REWARDS for name in names):
        if "accuracy" in single:
            correct = [parts["accuracy"] for parts in scored]
        else:
            correct = [score(text, built_in, strict, ("accuracy",))["accuracy"] for text in texts]
    for name in names:
        if name in GROUP_REWARDS:
            add_part(scored, name, GROUP_REWARDS[name](correct, lengths, max_length))
    for name in own:  # last: what a function does to its row changes no other part
        add_part(scored, name, own_values(name, reward_function(name), texts, row, left))
    return [{name: parts[name] for name in names if name in parts} for parts in scored]


def score_or_ask(*args) -> list[dict[str, float]] | None:
    """score_group; None if a user's function looked at what was left behind."""
    try:
        return score_group(*args)
    except LeftBehind:
        return None


def total(parts: dict, weights: dict) -> float:
    """reward = sum over the parts of weight * part.

    A part that only the row asked for has weight 1, one that it lacks counts 0.
    """
    return float(sum(weights.get(name, 1.0) * part for name, part in parts.items()))


STILL_WAITING = 60  # seconds between two lines about a scoring that takes long
GIVE_UP = 600  # seconds for the scoring of one step: the other processes of a run wait for half an hour


class Scorer:
    """score_group for many groups at once, in `workers` processes (0: in this one).

    Make it before CUDA and the engines start: the processes are forked, each has a main thread whose alarm
    limits symbolic work. Everything that a user's reward can do ends in one sentence (SystemExit). `names`:
    of the parts; a user's own gets a process even if workers is 0, or os._exit and a crash in C would end the
    run without a word.
    """

    def __init__(self, workers: int = 0, names=()):
        workers = max(workers, any(":" in name for name in names))
        self.pool = None
        self.sends_all = False  # has a user's function asked for what is left behind?
        self.notes = [multiprocessing.RawArray("c", NOTE_BYTES + 1) for _ in range(workers or 1)]
        own_rewards.note = None if workers else self.notes[0]
        if workers:
            fork = multiprocessing.get_context("fork")
            before = set(multiprocessing.active_children())
            setting = (os.getpid(), self.notes, fork.Value("i", 0))
            self.pool = ProcessPoolExecutor(workers, fork, initializer=warm_up, initargs=setting)
            atexit.register(self.close)
            first = self.pool.submit(int)  # forks all of them now, and not when the first completions come
            self.processes = set(multiprocessing.active_children()) - before
            self.wait(first)

    def run(self, function, *args):
        """Start function(*args) in a process of the pool, return at once; call the result for its value."""
        if self.pool is None:
            return functools.partial(function, *args)
        try:
            future = self.pool.submit(function, *args)
        except BrokenProcessPool as error:  # it has died since the last step
            raise SystemExit(self.who_died()) from error
        return functools.partial(self.wait, future)

    def wait(self, future):
        """What the future comes to. SystemExit, one sentence, if a process of the pool has died."""
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise SystemExit(self.who_died()) from error

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

        They come as a list (one entry per group) of lists (one per completion). The call raises SystemExit,
        one sentence, if a user's reward breaks CONTRACT, ends its process or takes over GIVE_UP seconds.
        """
        names = tuple(names)
        lengths = lengths or [None] * len(groups)
        waiting = []
        for texts, row, tokens in zip(groups, rows, lengths, strict=True):
            waiting.append(self.start_group(texts, row, names, tokens, max_length, strict))
        return functools.partial(self.collect, waiting)

    def start_group(self, texts: list[str], row: dict, names: tuple, *settings):
        """Start score_group with as much of the row as its functions need; call the result for the parts.

        In the place of the parts the call may return another one to wait for.
        """
        sent, left = row, ()
        if not any(":" in name for name in names):  # the parts of this file need neither pictures nor columns
            heavy = ("images", "thinking", "context", "columns")
            sent = {field: value for field, value in row.items() if field not in heavy}
        elif not self.sends_all:
            sent, left = lighten(row)
        wait = self.run(score_or_ask, texts, sent, names, *settings, left)

        def parts_or_again():
            parts = wait()
            if parts is None:
                self.sends_all = True
                return self.start_group(texts, row, names, *settings)
            return parts

        return parts_or_again

    def collect(self, waiting: list) -> list:
        """The values of what run() has started, with a line each minute, and an end."""
        started = time.time()

        def look(signum, frame):
            waited = time.time() - started
            places = "; ".join(self.under_way().values())
            if places and waited >= GIVE_UP:
                raise GivesUp(places)
            line = f"scoring: still waiting after {waited:.0f} s for {places or 'the parts of rewards.py'}\n"
            os.write(2, line.encode())  # print could be at work just now, and is not re-entrant

        is_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGALRM, look) if is_main else None
        done = False
        try:
            if is_main:
                signal.setitimer(signal.ITIMER_REAL, min(STILL_WAITING, GIVE_UP), STILL_WAITING)
            values = [wait() for wait in waiting]
            # groups that were started again, with their pictures: all of them by now
            values = [value() if callable(value) else value for value in values]
            done = True
            return values
        except GivesUp as late:
            took = f"scoring took over {GIVE_UP} s and was given up at {late}"
            raise SystemExit(f"{took}; {CONTRACT}, in time; {NOT_APPLIED}") from None
        finally:
            if is_main:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
            if not done:
                self.kill()  # a process that sleeps for ever would keep this one from ending

    def score(self, *args, **settings) -> list[list[dict[str, float]]]:
        """submit and wait."""
        return self.submit(*args, **settings)()

    def under_way(self) -> dict[int, str]:
        """{process id: "reward 'my:own' on row 17"} of the users' rewards that run now."""
        found = {}
        for one in self.notes:
            process, _, place = one.value.decode(errors="replace").partition(" ")
            if place:
                found[int(process)] = place
        return found

    def who_died(self) -> str:
        """A sentence about a broken pool; the others of its processes have been ended by SIGTERM."""
        self.pool.shutdown()
        places = self.under_way()
        for process in self.processes:
            code = process.exitcode
            if code in (None, -signal.SIGTERM):
                continue
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            if process.pid in places:
                return f"{places[process.pid]} ended its process ({how}); {CONTRACT}; {NOT_APPLIED}"
            if code == -signal.SIGKILL:
                how += ", probably for want of memory: use fewer reward_workers"
            return f"scoring: one of its processes was ended from outside ({how}); {NOT_APPLIED}"
        return f"scoring: one of its processes was ended from outside; {NOT_APPLIED}"

    def kill(self) -> None:
        """End the processes of the pool at once, whatever they do."""
        if self.pool is not None:
            for process in self.processes:
                process.kill()
            self.close()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def warm_up(parent: int, notes: list, count) -> None:
    """Load sympy now, not at the first formula; leave Ctrl-C to the main process, and end with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgrp()  # torchrun sends SIGTERM to a process's whole group, and the last step needs its rewards
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    with count.get_lock():
        own_rewards.note = notes[count.value]
        count.value += 1
    load_sympy()


def end_with(parent: int) -> None:
    """End this process when its parent is gone, even killed."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(0)


def debug_log(texts: list[str], rows: list[dict], totals: list[float], rank: int = 0) -> None:
    """With DEBUG_MODE=true appends every completion, its reward and reference to the file LOG_PATH.

    The seeds' switch; rank r > 0 writes to LOG_PATH.rankR. Raises SystemExit if LOG_PATH is not set or cannot
    be written.
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
    try:
        # errors: half a surrogate pair in a text is no reason to fail
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            for text, row, value in zip(texts, rows, totals, strict=True):
                file.write(f"------------- {now} reward: {value} -------------\n")
                file.write(f"problem: {row['problem']}\ncontent: {text}\nsolution: {row['solution']}\n")
    except OSError as error:
        raise SystemExit(
            f"LOG_PATH: '{path}' cannot be written ({error.strerror}); name another file"
        ) from error
