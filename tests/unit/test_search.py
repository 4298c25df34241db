"""The search over α alone: spaces, optimisers, memo, resumption. No model."""

import numpy as np
import pytest

from t2.adapters.errors import AdapterError
from t2.adapters.mixture import Mixture
from t2.adapters.search import CEM, AlphaSpace, Outcome, Search, make_optimiser
from t2.adapters.search.space import mixture_of

NAMES = ("code", "math", "reasoning")
BEST = np.array([0.2, 0.7, 0.1])


def scored(candidates, documents=10):
    """More documents right the nearer α is to BEST; the log-likelihood tells the rest."""
    for candidate in candidates:
        distance = float(np.abs(np.array(candidate) / 100 - BEST).sum())
        right = max(0, round(documents * (1 - distance)))
        yield Outcome(tuple(i < right for i in range(documents)), -distance * right, right)


def search(optimiser="cem", seed=0, base=2, generations=100, memo=None, evaluate=scored, **space):
    room = AlphaSpace(NAMES, **space)
    made = make_optimiser(optimiser, room, seed, 32, 0.2)
    return Search(room, made, evaluate, Outcome(tuple(i < base for i in range(10))), generations, {} if memo is None else memo)


@pytest.mark.parametrize("optimiser", ["cem", "cma"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_right_alpha_is_found_and_the_search_converges(optimiser, normalised, seed):
    if optimiser == "cma":
        pytest.importorskip("cmaes", reason="needs cmaes: pip install cmaes")
    found = search(optimiser, seed, normalised=normalised).run()
    assert found.outcome.right == 10 and found.reason == "converged" and len(found.trace) < 100
    assert np.abs(np.array(found.best) / 100 - BEST).max() <= 0.03
    assert found.evaluated < found.asked


def test_cem_starts_as_the_reference_code_and_takes_the_elites_moments():
    room = AlphaSpace(NAMES, normalised=False)
    cem = CEM(room, seed=3)
    assert np.allclose(cem.mean, 1 / 3) and np.allclose(cem.std, 0.5)
    points = cem.ask()
    drawn = np.random.default_rng(3).normal(1 / 3, 0.5, (32, 3))
    assert np.array_equal(points, np.clip(drawn, 0, 1))
    order = np.arange(32)[::-1]
    cem.tell(points, [int(r) for r in order])
    elite = points[[31, 30, 29, 28, 27, 26]]  # int(32 · 0.2) = 6
    assert np.allclose(cem.mean, elite.mean(0)) and np.allclose(cem.std, elite.std(0))
    assert np.array_equal(cem.ask()[0], points[31])  # the best member again


def test_a_small_population_does_not_end_at_once():
    room = AlphaSpace(NAMES)
    found = Search(room, CEM(room, 0, population=8), scored, Outcome((False,) * 10)).run()
    assert len(found.trace) > 3


def test_ties_go_to_the_likelier_answers_and_then_to_the_first():
    def tied(candidates):
        for candidate in candidates:
            yield Outcome((True, False), -abs(candidate[0] - 42) / 100, 1)

    found = search(evaluate=tied, base=0).run()
    assert found.outcome.right == 1 and abs(found.best[0] - 42) <= 2


def test_more_right_beats_any_likelihood():
    assert Outcome((True, True), -50.0, 2).key > Outcome((True, False), -0.1, 1).key > Outcome((False, False)).key


def test_every_distinct_candidate_is_evaluated_once():
    asked = []

    def noting(candidates):
        asked.extend(candidates)
        return scored(candidates)

    found = search(evaluate=noting).run()
    assert len(asked) == len(set(asked)) == found.evaluated


@pytest.mark.parametrize("optimiser", ["cem", "cma", "random"])
def test_an_interrupted_search_resumes_to_the_same_end(optimiser):
    if optimiser == "cma":
        pytest.importorskip("cmaes", reason="needs cmaes: pip install cmaes")
    whole = search(optimiser, generations=12).run()
    memo, left = {}, 77

    def broken(candidates):
        nonlocal left
        for outcome in scored(candidates):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            yield outcome

    with pytest.raises(KeyboardInterrupt):
        search(optimiser, generations=12, memo=memo, evaluate=broken).run()
    assert len(memo) == 77
    fresh = []

    def noting(candidates):
        fresh.extend(candidates)
        return scored(candidates)

    resumed = search(optimiser, generations=12, memo=memo, evaluate=noting).run()
    assert (resumed.best, resumed.trace) == (whole.best, whole.trace)
    assert len(fresh) == whole.evaluated - 77


@pytest.mark.parametrize("right", [0, 4])
def test_no_signal_keeps_the_base_and_stops_early(right):
    def flat(candidates):
        return [Outcome(tuple(i < right for i in range(10)), -1.0 * sum(c) * right, right) for c in candidates]

    found = search(evaluate=flat, base=right).run()
    assert (found.best, found.signal, found.reason, len(found.trace)) == (None, False, "no signal", 3)


def test_a_base_that_gets_more_right_than_every_mixture_is_kept():
    def few(candidates):
        return [Outcome(tuple(i < c[0] % 3 for i in range(10)), -1.0, 1) for c in candidates]

    found = search(evaluate=few, base=5).run()
    assert (found.best, found.signal, found.outcome.right) == (None, True, 5) and found.reason != "no signal"
    assert search(evaluate=few, base=2).run().best is not None  # as many right is enough


def test_equal_candidates_that_beat_the_base_are_a_signal():
    def flat(candidates):
        return [Outcome((True,) * 5 + (False,) * 5, -1.0, 5) for _ in candidates]

    found = search(evaluate=flat, base=2).run()
    assert found.signal and found.best is not None and found.outcome.right == 5


def test_normalised_alphas_sum_to_one_exactly():
    room = AlphaSpace(NAMES)
    random = np.random.default_rng(0)
    for point in [np.zeros(3), np.ones(3), *random.uniform(0, 1, (200, 3))]:
        assert sum(room.candidate(point)) == 100
    assert room.alphas(room.candidate(np.array([1, 1, 1]))) == {"code": 0.34, "math": 0.33, "reasoning": 0.33}


def test_alphas_by_layer_become_a_mixture_by_layer():
    room = AlphaSpace(("a", "b"), layers=2, normalised=False)
    assert room.dimensions == 4
    mixture = room.mixture(room.candidate(np.array([0.1, 0.2, 0.3, 0.8])))
    assert mixture is not None and mixture.at(0) == (("a", 0.1), ("b", 0.2)) and mixture.at(1) == (("a", 0.3), ("b", 0.8))
    assert mixture.at(None) == (("a", 0.2), ("b", 0.5))
    assert str(mixture) != str(Mixture.per_layer({"a": [0.3, 0.1], "b": [0.8, 0.2]}))  # same means, other layers
    with pytest.raises(AdapterError, match="for another model"):
        mixture.at(2)


def test_alphas_that_are_all_zero_are_never_evaluated():
    room = AlphaSpace(NAMES, normalised=False)
    zero = room.candidate(np.zeros(3))
    assert room.mixture(zero) is None

    def refusing(candidates):
        assert zero not in candidates
        return scored(candidates)

    assert search(evaluate=refusing, normalised=False).run().best != zero


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"low": 1, "high": 0}, "the smaller one first"),
        ({"low": float("nan")}, "finite"),
        ({"low": -1}, "must start at 0 or more"),
        ({"resolution": 0.03}, "1 / n"),
        ({"resolution": 0}, "1 / n"),
        ({"resolution": 1e-320}, "1 / n"),
    ],
)
def test_bad_spaces(space, says):
    with pytest.raises(AdapterError, match=says):
        AlphaSpace(NAMES, **space)


@pytest.mark.parametrize("alpha", [None, [], True, "0.5", [0.5, None]])
def test_what_is_no_alpha_is_refused(alpha):
    with pytest.raises(AdapterError, match="The α of 'math' must be a number, or a list of numbers"):
        mixture_of({"math": alpha})


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("name", ["cem", "cma", "random"])
def test_a_seed_that_is_none_is_refused(name, seed):
    with pytest.raises(AdapterError, match=rf"seed of a search must be from 0 to .*; got {seed}"):
        make_optimiser(name, AlphaSpace(NAMES), seed, 8, 0.5)


@pytest.mark.parametrize(
    ("name", "population", "elite", "says"),
    [("cmm", 32, 0.2, "one of cem, cma, random"), ("cem", 1, 0.2, "at least 2"), ("random", 1, 0.2, "at least 2"), ("cem", 8, 0, "elite")],
)
def test_bad_optimisers(name, population, elite, says):
    with pytest.raises(AdapterError, match=says):
        make_optimiser(name, AlphaSpace(NAMES), 0, population, elite)
