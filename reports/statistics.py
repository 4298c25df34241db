"""Statistics of scores: intervals, paired tests on the same documents, correction over tasks, and what a comparison can see.

Differences are run - baseline everywhere: negative is a drop. A document is *lost* if only the baseline has it right, *won* if
only the run has. Standard errors follow Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640).
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import NormalDist
from typing import Literal

Interval = tuple[float, float]
Alternative = Literal["two-sided", "less", "greater"]  # as in scipy, of the difference run - baseline: "less" is a drop

Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution: two-sided 95%


def wilson(p: float, n: int) -> Interval:
    """Return Wilson's 95% score interval for a proportion.

    Holds its coverage for small n and for p near 0 or 1, where value ± 1.96·stderr collapses to a point (0 of 20 right
    is not "0 ± 0": it is [0, 16.1]%).

    Args:
        p: share of ones among the documents, 0 to 1.
        n: documents; one is enough for Wilson (0 of 1 gives [0, 0.79]), none is not.

    Raises:
        ValueError: n < 1 or p outside [0, 1].
    """
    if n < 1 or not 0 <= p <= 1:
        raise ValueError(f"Wilson's interval needs n >= 1 and 0 <= p <= 1, got n={n}, p={p}")
    z2 = Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # Rounding may leave 1e-17 where the bound is exactly 0 or 1.
    return (0.0 if p == 0 else max(0.0, centre - half), 1.0 if p == 1 else min(1.0, centre + half))


def normal(value: float, stderr: float, low: float = -math.inf, high: float = math.inf) -> Interval:
    """Return value ± 1.96·stderr, cut to the range [low, high] that the metric can take."""
    return (max(low, value - Z95 * stderr), min(high, value + Z95 * stderr))


def is_share(value: float, n: int | None, stderr: float | None = None) -> bool:
    """Whether `value` can be a mean of n zeros and ones: value·n is a whole number, and `stderr`, if known, that of such a mean.

    Tells 0/1 metrics from means of fractions (F1, several samples per document), for which Wilson's interval would be wrong.

    Args:
        value: the mean.
        n: documents.
        stderr: of lm-eval, √(p(1 - p)/(n - 1)) for zeros and ones.
    """
    if not n or not math.isfinite(value) or not 0 <= value <= 1:
        return False
    count = value * n
    if abs(count - round(count)) > 1e-9 * max(n, 1):
        return False
    return stderr is None or n < 2 or math.isclose(stderr, math.sqrt(value * (1 - value) / (n - 1)), rel_tol=1e-3, abs_tol=1e-9)


def interval95(value: float, stderr: float | None, n: int | None, proportion: bool, share: bool | None = None) -> Interval | None:
    """Return the 95% interval of a score: Wilson for 0/1 means of known n, else normal, else None.

    Args:
        value: the score in the metric's own units.
        stderr: lm-eval's standard error. It has none for n < 2 (a sample's spread needs two values), nor for perplexities
            unless they were bootstrapped.
        n: documents scored.
        proportion: True if the metric is a share of documents, so bounded by 0 and 1.
        share: whether it is a mean of zeros and ones; None: `is_share` tells, which it cannot of a group, whose stderr is pooled.
    """
    if not math.isfinite(value):
        return None
    if proportion and n and (is_share(value, n, stderr) if share is None else share):
        # Rounding first: 0.1 + 0.2 style noise must not push p outside [0, 1].
        return wilson(round(value * n) / n, n)
    # A zero stderr from fewer than two documents would claim certainty.
    if stderr is None or (n is not None and n < 2):
        return None
    return normal(value, stderr, 0.0, 1.0) if proportion and 0 <= value <= 1 else normal(value, stderr)


def mean(values: list[float]) -> float | None:
    """Return the arithmetic mean, None of nothing."""
    return sum(values) / len(values) if values else None


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean by the central limit theorem, sd (n - 1) / √n; None for fewer than two values.

    Of differences of the same documents it is the paired standard error.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    return clustered_standard_error(values, range(len(values)))


def clustered_standard_error(values: Sequence[float], clusters: Iterable[Hashable]) -> float | None:
    """Return the standard error of a mean whose documents come in clusters (MATH's subjects, questions on one passage).

    √(C/(C - 1) · Σ_c (Σ_{i in c} (x_i - mean))²) / n: equation 4 of Miller with the small-sample factor for C clusters, so that
    clusters of one document give `standard_error`. Few clusters make it uncertain itself: MATH has seven.

    Args:
        values: one per document.
        clusters: cluster of each value.

    Returns:
        None for fewer than two clusters.

    Raises:
        ValueError: lengths differ, or a value is NaN or infinite.
    """
    _check_finite(values)
    if not values:
        return None
    centre = math.fsum(values) / len(values)
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums.setdefault(cluster, []).append(value - centre)
    if len(sums) < 2:
        return None
    spread = math.fsum(math.fsum(parts) ** 2 for parts in sums.values())
    return math.sqrt(spread * len(sums) / (len(sums) - 1)) / len(values)


def mcnemar(lost: int, won: int, alternative: Alternative = "two-sided") -> float:
    """Return the p-value of McNemar's exact test: would a fair coin split `lost` + `won` discordant documents so unevenly?

    Documents on which both agree say nothing about the difference and are not counted.

    Raises:
        ValueError: a negative count.
    """
    if lost < 0 or won < 0:
        raise ValueError(f"McNemar's test needs counts, got lost={lost}, won={won}")
    from scipy.special import bdtrc  # of scipy.stats, which takes four times as long to import, the part that is needed

    k = {"two-sided": max(lost, won), "less": lost, "greater": won}[alternative]
    tail = float(bdtrc(k - 1, lost + won, 0.5))  # P(X >= k)
    return min(1.0, 2 * tail) if alternative == "two-sided" else tail


def sign_flip(differences: Sequence[float], alternative: Alternative = "two-sided", resamples: int = 9999, seed: int = 0) -> float:
    """Return the p-value of the paired permutation test of a mean difference; see `sign_flip_sides`."""
    low, high = sign_flip_sides(differences, resamples, seed)
    return {"less": low, "greater": high, "two-sided": min(1.0, 2 * min(low, high))}[alternative]


def sign_flip_sides(differences: Sequence[float], resamples: int = 9999, seed: int = 0) -> tuple[float, float]:
    """Return the p-values for a drop and for a rise of the paired permutation test: McNemar's test for scores that are not 0/1.

    If nothing changed, baseline and run could be exchanged on every document, so each difference is as likely with the other sign.
    All signs are enumerated for up to 13 documents that differ; else `resamples` are drawn, and (hits + 1) / (resamples + 1) is
    returned, which keeps the test's level.

    Raises:
        ValueError: a difference is NaN or infinite.
    """
    import numpy as np

    _check_finite(differences)
    d = np.array([x for x in differences if x != 0], dtype=float)
    if not len(d):
        return 1.0, 1.0
    slack = 1e-9 * float(np.abs(d).sum())  # sums that tie on paper must tie here
    if exact := len(d) <= 13:
        signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
        sums = signs @ d
    else:
        rng = np.random.default_rng(seed)
        batch = max(1, 4_000_000 // len(d))  # bounds memory
        steps = [min(batch, resamples - i) for i in range(0, resamples, batch)]
        sums = np.concatenate([(1 - 2 * rng.integers(0, 2, (k, len(d)), dtype=np.int8)) @ d for k in steps])
    below, above = int((sums <= d.sum() + slack).sum()), int((sums >= d.sum() - slack).sum())
    return (below + (not exact)) / (len(sums) + (not exact)), (above + (not exact)) / (len(sums) + (not exact))


def paired_bootstrap(differences: Sequence[float], resamples: int = 9999, seed: int = 0, level: float = 0.95) -> Interval:
    """Return the percentile interval of a mean difference, documents resampled in pairs.

    If no document differs it is a point: then `minimum_detectable_drop` says what could have been seen.

    Raises:
        ValueError: no differences, or one is NaN or infinite.
    """
    import numpy as np

    _check_finite(differences)
    if not differences:
        raise ValueError("The bootstrap needs at least one document")
    d = np.asarray(differences, dtype=float)
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(d, return_counts=True)
    if len(distinct) <= 8:  # 0/1 scores: how often each value was drawn is all that matters, and costs no draw per document
        means = rng.multinomial(len(d), counts / len(d), resamples) @ distinct / len(d)
    else:
        batch = max(1, 4_000_000 // len(d))
        steps = [min(batch, resamples - i) for i in range(0, resamples, batch)]
        means = np.concatenate([d[rng.integers(0, len(d), (k, len(d)))].mean(axis=1) for k in steps])
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given: rejecting those ≤ α keeps the chance of any false alarm ≤ α."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = running
    return adjusted


def minimum_detectable(stderr: float, alpha: float = 0.05, power: float = 0.8, alternative: Alternative = "two-sided") -> float:
    """Return the difference that a z-test of level `alpha` sees with `power`, (z_α + z_power) · stderr.

    Args:
        stderr: of the difference: `standard_error(differences)` for scores of the same documents, √(a² + b²) of two separate
            standard errors for unpaired runs.
        alpha: level of the test.
        power: chance to see such a difference.
        alternative: two-sided spends half of `alpha` on each side.
    """
    normal_quantile = NormalDist().inv_cdf
    return (normal_quantile(1 - _one_side(alpha, alternative)) + normal_quantile(power)) * stderr


def mcnemar_power(
    n: int, discordance: float, drop: float, alpha: float = 0.05, alternative: Alternative = "two-sided", margin: float = 0.0
) -> float:
    """Return the exact chance that McNemar's test on `n` documents reports a true drop of `drop`.

    A document is won with probability discordance/2 and lost with discordance/2 + drop: answers that flip back and forth for no
    reason go on doing so, the drop comes on top. With drop 0 it is the share of false alarms on that side.

    Args:
        n: documents.
        discordance: share of documents, 0 to 1, on which two runs disagree with nothing changed.
        drop: true loss in accuracy, 0 to 1.
        alpha: level of the test.
        alternative: "less" (only drops are looked for) or "two-sided".
        margin: a drop is reported only if the observed one is also at least this, 0 to 1.
    """
    import numpy as np
    from scipy.stats import binom

    differ = min(1.0, discordance + drop)
    if n < 1 or differ <= 0:
        return 0.0
    side = _one_side(alpha, alternative)
    lost_share = (differ + drop) / (2 * differ)
    # Of m discordant documents the test reports k lost ones and more.
    m = np.arange(1 + min(n, math.ceil(n * differ + 12 * math.sqrt(n * differ) + 12)))
    k = binom.isf(side, m, 0.5) + 1
    if margin > 0:
        k = np.maximum(k, np.ceil((m + margin * n - 1e-9) / 2))
    return min(1.0, float(binom.pmf(m, n, differ) @ binom.sf(k - 1, m, lost_share)))


def minimum_detectable_drop(
    n: int,
    discordance: float,
    alpha: float = 0.05,
    power: float = 0.8,
    alternative: Alternative = "two-sided",
    margin: float = 0.0,
) -> float | None:
    """Return the smallest true drop, 0 to 1, that McNemar's exact test on `n` documents reports with `power`; None if none.

    See `mcnemar_power` for the arguments.
    """
    low, high = 0.0, 1.0
    if mcnemar_power(n, discordance, high, alpha, alternative, margin) < power:
        return None
    while high - low > 1e-5:
        middle = (low + high) / 2
        if mcnemar_power(n, discordance, middle, alpha, alternative, margin) >= power:
            high = middle
        else:
            low = middle
    return high


def _one_side(alpha: float, alternative: Alternative) -> float:
    return alpha / 2 if alternative == "two-sided" else alpha


def _check_finite(values: Sequence[float]) -> None:
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"Value {i} is {value}: leave documents without a score out, or fix what scored them")
