"""Intervals for one score. Paired tests between rows are not here: they need the logged samples."""

import math

Interval = tuple[float, float]

Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution: two-sided 95%


def wilson(p: float, n: int, z: float = Z95) -> Interval:
    """Return Wilson's score interval for a proportion.

    Holds its coverage for small n and for p near 0 or 1, where value ± 1.96·stderr collapses to a point (0 of 20 right
    is not "0 ± 0": it is [0, 16.1]%).

    Args:
        p: share of ones among the documents, 0 to 1.
        n: documents; one is enough for Wilson (0 of 1 gives [0, 0.79]), none is not.
        z: quantile; two-sided 95% by default.

    Raises:
        ValueError: n < 1 or p outside [0, 1].
    """
    if n < 1 or not 0 <= p <= 1:
        raise ValueError(f"Wilson's interval needs n >= 1 and 0 <= p <= 1, got n={n}, p={p}")
    z2 = z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # Rounding may leave 1e-17 where the bound is exactly 0 or 1.
    return (0.0 if p == 0 else max(0.0, centre - half), 1.0 if p == 1 else min(1.0, centre + half))


def normal(value: float, stderr: float, low: float = -math.inf, high: float = math.inf, z: float = Z95) -> Interval:
    """Return value ± z·stderr, cut to the range [low, high] that the metric can take."""
    return (max(low, value - z * stderr), min(high, value + z * stderr))


def is_share(value: float, n: int | None) -> bool:
    """Whether `value` can be a mean of n zeros and ones, i.e. value·n is a whole number.

    Tells 0/1 metrics from means of fractions (F1, several samples per document) and from unweighted group means, for
    which Wilson's interval would be wrong. A stderr is no help: groups pool theirs.
    """
    if not n or not math.isfinite(value) or not 0 <= value <= 1:
        return False
    count = value * n
    return abs(count - round(count)) <= 1e-9 * max(n, 1)


def interval95(value: float, stderr: float | None, n: int | None, proportion: bool) -> Interval | None:
    """Return the 95% interval of a score: Wilson for 0/1 means of known n, else normal, else None.

    Args:
        value: the score in the metric's own units.
        stderr: lm-eval's standard error. It has none for n < 2 (a sample's spread needs two values), nor for perplexities
            unless they were bootstrapped.
        n: documents scored.
        proportion: True if the metric is a share of documents, so bounded by 0 and 1.
    """
    if not math.isfinite(value):
        return None
    if proportion and n and is_share(value, n):
        # Rounding first: 0.1 + 0.2 style noise must not push p outside [0, 1].
        return wilson(round(value * n) / n, n)
    # A zero stderr from fewer than two documents would claim certainty.
    if stderr is None or (n is not None and n < 2):
        return None
    return normal(value, stderr, 0.0, 1.0) if proportion and 0 <= value <= 1 else normal(value, stderr)


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two intervals share a point."""
    return a[0] <= b[1] and b[0] <= a[1]


def mean(values: list[float]) -> float | None:
    """Return the arithmetic mean, None of nothing."""
    return sum(values) / len(values) if values else None
