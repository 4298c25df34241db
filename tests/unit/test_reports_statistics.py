"""Intervals against scipy."""

import math

import pytest
from scipy.stats import binomtest, norm

from t2.reports.statistics import Z95, interval95, is_share, mean, normal, wilson


@pytest.mark.parametrize("n", [1, 2, 9, 20, 164, 5000])
def test_wilson_equals_scipy(n):
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_quantile_is_the_normal_one():
    assert pytest.approx(norm.ppf(0.975), abs=1e-12) == Z95


def test_wilson_is_no_point_where_the_standard_error_is_zero():
    assert wilson(0.0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
    assert wilson(1.0, 20)[1] == 1.0


@pytest.mark.parametrize(("p", "n"), [(0.5, 0), (1.1, 4), (-0.1, 4)])
def test_wilson_refuses_what_is_no_proportion(p, n):
    with pytest.raises(ValueError, match="needs n >= 1"):
        wilson(p, n)


def test_share_needs_a_whole_count():
    assert is_share(1 / 3, 9)
    assert is_share(0.1 + 0.2, 10)
    assert not is_share(0.5, 9)
    assert not is_share(0.5, None)
    assert not is_share(math.nan, 4)
    assert not is_share(2.0, 4)
    assert is_share(0.5, 20, math.sqrt(0.5 * 0.5 / 19)) and is_share(1.0, 20, 0.0)
    assert not is_share(0.5, 20, 0.02), "twenty means of five samples each may make a whole number by chance"


def test_interval_kinds():
    assert interval95(0.25, None, 4, proportion=True) == wilson(0.25, 4)
    assert interval95(0.3, 0.1, 4, proportion=True) == normal(0.3, 0.1, 0, 1), "a mean of fractions is not binomial"
    assert interval95(0.01, 0.1, None, proportion=True)[0] == 0.0, "cut to what the metric can be"
    assert interval95(0.5, 0.02, 20, proportion=True) == normal(0.5, 0.02)
    assert interval95(0.5, 0.02, 20, proportion=True, share=True) == wilson(0.5, 20)
    assert interval95(12.0, 1.0, 50, proportion=False) == (12 - Z95, 12 + Z95)


def test_interval_guards():
    assert interval95(7.0, 0.0, 1, proportion=False) is None, "one document has no spread"
    assert interval95(7.0, None, 50, proportion=False) is None
    assert interval95(math.nan, 0.1, 10, proportion=True) is None


def test_mean():
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5
