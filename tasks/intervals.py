"""Statistics of an evaluation: intervals of accuracies and means, pass@k, the test of two checkpoints."""

import math
import statistics


def wilson(correct: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval (low, high) of a proportion p = correct / n, at 95 % confidence for z = 1.96.

        ( p + z^2/2n  -+  z * sqrt(p (1 - p) / n + z^2 / 4n^2) ) / (1 + z^2/n)

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22. Unlike
    p -+ z * sd it stays within [0, 1] and does not shrink to a point at 0 % and 100 %, where small sets end.
    """
    if n <= 0:
        return 0.0, 1.0  # nothing seen, nothing known
    p = correct / n
    zz = z * z / n
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    low = (p + zz / 2 - half) / (1 + zz)
    high = (p + zz / 2 + half) / (1 + zz)
    return max(0.0, low), min(1.0, high)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k completions is right, from n >= k completions of which `correct` are.

        1 - C(n - correct, k) / C(n, k)

    Chen et al. 2021, "Evaluating large language models trained on code", equation 1: unbiased, unlike
    1 - (1 - correct/n)^k.

    >>> pass_at_k(5, 2, 2)    # of the 10 pairs 3 hold none of the 2 right ones
    0.7
    """
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: are rows that only A has right as frequent as those only B has?

        p = min(1, 2 * sum_{i <= min(a, b)} C(a + b, i) / 2^(a + b))

    McNemar 1947, Psychometrika 12; the exact form is a sign test on the rows that flipped: those on which
    both agree say nothing.

    >>> mcnemar(1, 7)
    0.0703125
    """
    flipped = only_a + only_b
    tail = sum(math.comb(flipped, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**flipped)


def paired_interval(only_a: int, only_b: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval (low, high) of accuracy B - accuracy A on the same n rows.

        p = (only_b + 1) / (n + 2),  q = (only_a + 1) / (n + 2)
        p - q -+ z * sqrt((p + q - (p - q)^2) / (n + 2))

    Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", JEBS 37.
    """
    p = (only_b + 1) / (n + 2)
    q = (only_a + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def mean_interval(values: list[float], z: float = 1.96) -> tuple[float, list[float] | None]:
    """(mean, [low, high]) = mean -+ z * s / sqrt(n), s = standard deviation of the n values.

    One value alone has no interval: None.
    """
    average = sum(values) / len(values)
    if len(values) == 1:
        return average, None
    half = z * statistics.stdev(values) / math.sqrt(len(values))
    return average, [average - half, average + half]
