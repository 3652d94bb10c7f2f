"""Symbolic comparison by math_verify and sympy, and its limits."""

import functools
import logging
import math
import re
import signal
import sys
import threading
import time
from collections import Counter

from tasks.grading.patterns import BRACES, FUNCTIONS, LATEX_COMMAND
from tasks.grading.quantities import number

log = logging.getLogger(__name__)

# -----------------------------------------------------------------------------
# limits: whatever a completion holds, it gets a verdict, and soon
# -----------------------------------------------------------------------------

SECONDS = 2.0  # of CPU time for one completion, with all its parts, references and options
COMPARISON = 1.0  # of CPU time for one symbolic comparison
AGAIN = 0.05  # so much later the alarm rings once more, in case a library has swallowed it
deadline = math.inf  # in CPU time of the main thread: when the alarm rings
rang = False  # the attempt that runs now is out of time
timeouts = 0  # attempts of this process that took too long and counted as wrong
failures = Counter()  # {kind of error: attempts of this process that raised it and counted as wrong}


class TookTooLong(BaseException):
    """Raised by the alarm. No Exception: math_verify would turn that into an empty formula."""


def attempt(work, *args, seconds: float = SECONDS):
    """work(*args); None, which counts as wrong, if it raises an error or takes over `seconds` of CPU time.

    CPU time of this thread, not time on the wall: what is right stays right on a busy machine. Attempts nest,
    and the limit of the outer one holds for all within. The alarm is a signal, which only the main thread of
    a process gets (each of Scorer's has one); in other threads there is no limit, only tame input.
    """
    global rang, timeouts
    outer = deadline
    try:
        set_alarm(min(outer, time.thread_time() + seconds))
        result = work(*args)
        if rang:
            raise TookTooLong  # and somebody swallowed it: the result is not to be trusted
        return result
    except TookTooLong:
        set_alarm(math.inf)
        timeouts += 1
        forget_half_done()
        log_once(f"{shown(args)} took over {seconds:.2g} s of CPU time and counts as wrong")
    except Exception as error:  # of sympy anything; of our own code nothing that we know of
        set_alarm(math.inf)
        kind = type(error).__name__
        failures[kind] += 1
        forget_half_done()
        if failures[kind] == 1:
            log.warning(f"{shown(args)} failed with {kind}; such answers count as wrong")
    finally:
        rang = False
        set_alarm(outer)
    return None


def set_alarm(end: float) -> None:
    """Ring at this CPU time of the main thread, math.inf: not at all. Other threads: nothing happens."""
    global deadline
    if threading.current_thread() is not threading.main_thread():
        return
    # looked at by the outermost attempt only: asking for it takes longer than all the rest here
    if deadline == math.inf and signal.getsignal(signal.SIGPROF) is not ring:
        signal.signal(signal.SIGPROF, ring)  # for good: without a handler a late signal would end the process
        signal.siginterrupt(signal.SIGPROF, False)  # system calls of other threads go on
    deadline = end
    left = 0 if end == math.inf else max(end - time.thread_time(), 0.001)
    signal.setitimer(signal.ITIMER_PROF, left, AGAIN)


def ring(signum, frame) -> None:
    """The alarm. The timer counts all threads of the process (torch has many): is it this one's time?"""
    global deadline, rang
    if deadline == math.inf:
        return  # too late, the work is done
    now = time.thread_time()
    if now < deadline:
        signal.setitimer(signal.ITIMER_PROF, max(deadline - now, 0.001), AGAIN)
        return
    rang = True
    deadline = now + AGAIN
    raise TookTooLong


def forget_half_done() -> None:
    """Empty the caches that an interrupted comparison may have left with half a result."""
    for cached in (parse_latex, verified, constant_ratio, real_value):
        cached.cache_clear()
    if "sympy" in sys.modules:
        from sympy.core.cache import clear_cache

        clear_cache()


def shown(args) -> str:
    """The texts that were compared, for a line of the log."""
    texts = [repr(arg[:200]) for arg in args if isinstance(arg, str)]
    return f"comparison of {' with '.join(texts)}"


# -----------------------------------------------------------------------------
# symbolic work: the only part that could take long, hence tame input
# -----------------------------------------------------------------------------

EXPONENT = rf"\^\s*({BRACES}|\([^()]*\)|[-+]?\s*(?:\d+|[a-zA-Z]|\\pi))"
ENDLESS = re.compile(r"!|:.*:|\\(?:sum|prod|int|lim|binom|Gamma|zeta|approx)|\d{31}|\d\s+\d")


OTHER_SCRIPT = re.compile(r"[^\W\d_A-Za-z\u0080-\u024F\u0370-\u03FF\u2070-\u218F]")  # no Latin, Greek, ℝ or ⁴


def is_tame(text: str) -> bool:
    """Is `text` short, and free of prose and of what could take forever (9^9^9, 2^99999, 10000!, sums)?"""
    if len(text) > 200 or ENDLESS.search(text) or OTHER_SCRIPT.search(text):
        return False
    exponents = re.findall(EXPONENT, text)
    if len(exponents) != text.count("^"):  # a ^ within an exponent is not among them
        return False
    if re.search(EXPONENT + r"\s*[)}]*\s*\^", text):
        return False
    size = 1
    for exponent in exponents:
        for digits in re.findall(r"\d+", exponent):
            size *= max(int(digits[:9]), 1)
    if size > 9999:
        return False
    # letters are variables and would multiply and commute: "red cube" is no product, "3 or 4" no number
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]+", LATEX_COMMAND.sub(" ", text))
    return not any(word == "or" or len(word) > 2 and word not in FUNCTIONS for word in words)


def symbolic(work, *texts: str):
    """work(*texts) with math_verify and sympy; None, which counts as wrong, if it fails or is too slow."""
    if not all(text and is_tame(text) for text in texts):
        return None
    load_sympy()
    return attempt(work, *texts, seconds=COMPARISON)


@functools.cache
def load_sympy() -> None:
    """Import math_verify and use it once, at nobody's expense: seconds, and only when first needed."""
    outer, started = deadline, time.thread_time()
    set_alarm(math.inf)

    import math_verify

    # it warns that the limit of time is ours, which it is
    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    verified("\\sqrt{12}", "2\\sqrt{3}")
    set_alarm(outer + time.thread_time() - started)


@functools.lru_cache(maxsize=4096)
def parse_latex(text: str) -> list:
    """math_verify's reading of one formula, whole; [] if it cannot read it.

    Its other extractors would pick the first number out of such a text.
    """
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def constant(parsed: list) -> complex | None:
    """The value of an expression without variables, None if it is something else or not finite."""
    import sympy

    if not parsed or not isinstance(parsed[0], sympy.Expr) or parsed[0].free_symbols:
        return None
    value = complex(parsed[0].evalf())
    return value if math.isfinite(abs(value)) else None


# The caches hold finished verdicts only: an attempt that was given up raises, and is made anew the next time.


def same_expression(answer: str, solution: str) -> bool:
    """Symbolic equality by math_verify; False, and a line in the log, if it cannot decide."""
    return bool(symbolic(verified, answer, solution))


@functools.lru_cache(maxsize=4096)  # the G completions of one prompt repeat the same few answers
def verified(answer: str, solution: str) -> bool:
    from math_verify import verify

    gold, given = parse_latex(solution), parse_latex(answer)
    if not gold:
        log_once(f"math_verify cannot read the reference {solution!r}: only equal texts will be right")
    wanted_value, given_value = constant(gold), constant(given)
    if wanted_value is not None and given_value is not None:  # 50 times quicker than to simplify
        larger = max(abs(wanted_value), abs(given_value))
        if abs(wanted_value - given_value) > 1e-6 * larger:
            return False
    return bool(gold and given) and verify(gold, given, timeout_seconds=None)


def proportional(answer: str, solution: str) -> bool:
    """Is one expression a constant times the other? Then "answer = 0" and "solution = 0" are one equation."""
    return bool(symbolic(constant_ratio, answer, solution))


@functools.lru_cache(maxsize=4096)
def constant_ratio(answer: str, solution: str) -> bool:
    import sympy

    a, s = parse_latex(answer), parse_latex(solution)
    if not (a and s and isinstance(a[0], sympy.Expr) and isinstance(s[0], sympy.Expr)):
        return False
    ratio = sympy.simplify(a[0] / s[0])
    return not ratio.free_symbols and ratio.is_finite and ratio != 0


def nearly(text: str) -> float | None:
    """The value of a constant: 12.566 for "4\\pi"; None if it is none."""
    exact = number(text)
    return symbolic(real_value, text) if exact is None else float(exact)


@functools.lru_cache(maxsize=4096)
def real_value(text: str) -> float | None:
    value = constant(parse_latex(text))
    return value.real if value is not None and value.imag == 0 else None


@functools.lru_cache(maxsize=1024)
def log_once(message: str) -> None:
    """Log a warning the first time only: a training run meets the same reference thousands of times."""
    log.warning(message)
