"""Statistics of comparisons against scipy and statsmodels, and power against simulation."""

import math
import time

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from t2.reports.statistics import (
    clustered_standard_error,
    holm,
    mcnemar,
    mcnemar_power,
    minimum_detectable,
    minimum_detectable_drop,
    paired_bootstrap,
    sign_flip,
    sign_flip_sides,
    standard_error,
)

SIDES = ("two-sided", "less", "greater")
NEAR = {"rel": 1e-9, "abs": 1e-12}


def test_standard_error_equals_scipy():
    values = np.random.default_rng(0).normal(size=137).tolist()
    assert standard_error(values) == pytest.approx(stats.sem(values), **NEAR)
    assert standard_error([1.0]) is None and standard_error([]) is None
    with pytest.raises(ValueError, match="Value 1 is nan"):
        standard_error([1.0, math.nan])


def test_clustered_standard_error_equals_statsmodels():
    ols = pytest.importorskip("statsmodels.api", reason="statsmodels (extra dev) is the reference").OLS
    rng = np.random.default_rng(1)
    clusters = rng.integers(0, 7, 300)
    values = (rng.normal(size=7)[clusters] + rng.normal(size=300) > 0).astype(float)
    fit = ols(values, np.ones(300)).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    expected = fit.bse[0] * math.sqrt(7 / 6)  # its own factor counts fitted parameters too: (n - 1)/(n - k) is 1 here
    assert clustered_standard_error(values.tolist(), clusters.tolist()) == pytest.approx(expected, **NEAR)
    corrected = ols(values, np.ones(300)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert clustered_standard_error(values.tolist(), clusters.tolist()) == pytest.approx(corrected.bse[0], **NEAR)
    assert expected > 2 * standard_error(values.tolist()), "documents of a subject go together"
    assert clustered_standard_error([1.0, 0.0], ["a", "a"]) is None
    with pytest.raises(ValueError):
        clustered_standard_error([1.0, 0.0], ["a"])


@pytest.mark.parametrize("alternative", SIDES)
@pytest.mark.parametrize(("lost", "won"), [(0, 0), (5, 0), (0, 5), (7, 3), (3, 7), (6, 6), (48, 31), (400, 250), (90_000, 89_000)])
def test_mcnemar_equals_the_binomial_test(lost, won, alternative):
    mine = mcnemar(lost, won, alternative)
    if lost + won == 0:
        assert mine == 1.0
        return
    # "less" is a drop: more documents lost than a fair coin would lose.
    side = {"less": "greater", "greater": "less"}.get(alternative, alternative)
    assert mine == pytest.approx(binomtest(lost, lost + won, alternative=side).pvalue, **NEAR)


def test_mcnemar_equals_statsmodels():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables", reason="statsmodels (extra dev) is the reference")
    for lost, won in [(7, 3), (31, 48), (6, 6), (12, 0)]:
        assert mcnemar(lost, won) == pytest.approx(contingency.mcnemar([[20, lost], [won, 9]], exact=True).pvalue, **NEAR)
    with pytest.raises(ValueError, match="lost=-1"):
        mcnemar(-1, 2)


@pytest.mark.parametrize("alternative", SIDES)
def test_sign_flip_equals_scipy_where_all_signs_are_enumerated(alternative):
    d = np.random.default_rng(3).normal(-0.3, 1, 12).round(1).tolist()
    expected = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=alternative)
    assert sign_flip(d, alternative) == pytest.approx(expected.pvalue, **NEAR)
    assert sign_flip([*d, 0.0, 0.0], alternative) == sign_flip(d, alternative), "documents that agree say nothing"


@pytest.mark.parametrize("alternative", SIDES)
def test_sign_flip_is_mcnemar_on_zeros_and_ones(alternative):
    assert sign_flip([-1.0] * 9 + [1.0] * 3 + [0.0] * 50, alternative) == pytest.approx(mcnemar(9, 3, alternative), **NEAR)
    drawn = sign_flip([-1.0] * 30 + [1.0] * 18, alternative)
    assert drawn == pytest.approx(mcnemar(30, 18, alternative), abs=0.02)
    assert sign_flip([0.0, 0.0], alternative) == 1.0


@pytest.mark.parametrize("n", [9, 40])
def test_both_sides_of_sign_flip_come_from_one_draw(n):
    d = np.random.default_rng(5).normal(-0.2, 1, n).tolist()
    assert sign_flip_sides(d) == (sign_flip(d, "less"), sign_flip(d, "greater"))
    assert sign_flip_sides([-1.0] * 64, resamples=99_999) == (1 / 100_000, 1.0)


def test_bootstrap_equals_scipy_with_the_same_draws():
    d = np.random.default_rng(4).normal(0.1, 1, 80)
    expected = stats.bootstrap((d,), np.mean, n_resamples=999, method="percentile", rng=np.random.default_rng(7)).confidence_interval
    assert paired_bootstrap(d.tolist(), resamples=999, seed=7) == pytest.approx((expected.low, expected.high), **NEAR)


def test_bootstrap_of_zeros_and_ones_draws_counts_and_means_the_same():
    d = [-1.0] * 12 + [0.0] * 180 + [1.0] * 8
    expected = stats.bootstrap((np.array(d),), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0))
    low, high = paired_bootstrap(d)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.006)
    assert paired_bootstrap(d) == (low, high), "the same seed gives the same interval"
    assert paired_bootstrap([0.0] * 9) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        paired_bootstrap([])


def test_holm_equals_statsmodels():
    multipletests = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels (extra dev) is the reference").multipletests
    p = [0.03, 0.001, 0.2, 0.03, 0.9, 0.012]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), **NEAR)
    assert holm([]) == []


@pytest.mark.parametrize("alternative", ["two-sided", "less"])
def test_minimum_detectable_equals_statsmodels(alternative):
    power = pytest.importorskip("statsmodels.stats.power", reason="statsmodels (extra dev) is the reference").NormalIndPower()
    stderr = 0.5 / math.sqrt(164)  # sd 0.5 each
    seen = minimum_detectable(math.hypot(stderr, stderr), alternative=alternative)
    side = "larger" if alternative == "less" else alternative
    # Their two-sided power counts alarms on the wrong side too.
    near = 1e-9 if alternative == "less" else 1e-5
    assert power.power(seen / 0.5, 164, 0.05, 1, alternative=side) == pytest.approx(0.8, abs=near)


def plain_power(n, lost_share, won_share, critical):
    """All outcomes (m discordant, k lost), summed with scipy."""
    m = np.arange(n + 1)
    tails = [stats.binom.sf(critical(i) - 1, i, lost_share / (lost_share + won_share)) for i in m]
    return float(stats.binom.pmf(m, n, lost_share + won_share) @ tails)


@pytest.mark.parametrize("alternative", ["two-sided", "less"])
@pytest.mark.parametrize(
    ("n", "discordance", "drop", "margin"), [(64, 0.1, 0.1, 0), (64, 0, 0.2, 0), (300, 0.2, 0.05, 0.03), (40, 0.8, 0.5, 0)]
)
def test_power_equals_the_sum_over_all_outcomes(n, discordance, drop, margin, alternative):
    side = 0.025 if alternative == "two-sided" else 0.05

    def critical(m):
        k = np.arange(m + 1)
        reported = (stats.binom.sf(k - 1, m, 0.5) <= side) & (2 * k - m >= margin * n - 1e-9)
        return int(k[reported][0]) if reported.any() else m + 1

    differ = min(1, discordance + drop)
    expected = plain_power(n, (differ + drop) / 2, (differ - drop) / 2, critical)
    assert mcnemar_power(n, discordance, drop, alternative=alternative, margin=margin) == pytest.approx(expected, **NEAR)


@pytest.mark.parametrize(("alpha", "alternative"), [(0.0625, "less"), (0.5, "less"), (0.125, "two-sided")])
def test_power_counts_what_the_test_reports_at_the_very_level(alpha, alternative):
    reported = [(m, k) for m in range(7) for k in range(m + 1) if mcnemar(k, m - k, alternative) <= alpha and 2 * k >= m]
    expected = sum(stats.binom.pmf(m, 6, 0.2) * stats.binom.pmf(k, m, 0.75) for m, k in reported)
    assert mcnemar_power(6, 0.1, 0.1, alpha, alternative) == pytest.approx(expected, **NEAR)


def test_gate_keeps_its_false_alarm_rate_and_its_power_in_simulation():
    rng = np.random.default_rng(20250107)
    runs, cache = 20_000, {}

    def alarms(n, discordance, drop):
        shares = [discordance / 2 + drop, discordance / 2, 1 - discordance - drop]
        hits = 0
        for lost, won, _ in rng.multinomial(n, shares, runs).tolist():
            if (lost, won) not in cache:
                cache[lost, won] = mcnemar(lost, won, "less") <= 0.05
            hits += cache[lost, won]
        return hits / runs

    for n, discordance in [(60, 0.1), (164, 0.05), (500, 0.1), (1319, 0.15)]:
        noise = 4 * math.sqrt(0.05 * 0.95 / runs)
        false = alarms(n, discordance, 0.0)
        assert false <= 0.05, (n, discordance, false)
        assert false == pytest.approx(mcnemar_power(n, discordance, 0.0, alternative="less"), abs=noise)
        seen = minimum_detectable_drop(n, discordance, alternative="less")
        assert seen is not None
        assert alarms(n, discordance, seen) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / runs)), (n, discordance, seen)


def test_a_tolerance_misses_what_the_paired_test_sees():
    # vllm #34333: a tolerance of 8 points catches a drop of 5 once in 200 runs.
    tolerance = mcnemar_power(1319, 0.1, 0.05, alpha=1.0, alternative="less", margin=0.08)
    assert tolerance < 0.005
    assert mcnemar_power(1319, 0.1, 0.05, alternative="less") > 0.99


def test_minimum_detectable_drop_of_few_documents():
    assert minimum_detectable_drop(4, 0.1, alternative="less") is None, "4 of 4 lost is p = 0.0625"
    # Without noise five lost documents are enough (0.5 ** 5 < 0.05).
    seen = minimum_detectable_drop(64, 0.0, alternative="less")
    assert stats.binom.sf(4, 64, seen) == pytest.approx(0.8, abs=1e-3)


def test_power_is_quick_on_many_documents():
    start = time.process_time()
    minimum_detectable_drop(14_042, 0.3, alternative="less")  # MMLU
    assert time.process_time() - start < 5
