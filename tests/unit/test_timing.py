"""Costs of the passes: seconds add up to what was measured, tokens and switches are counted once."""

import time

import pytest

from t2.harness.timing import Costs, Share, Stopwatch, shares


def test_seconds_of_a_shared_call_add_up_and_follow_the_generated_tokens():
    costs = Costs()
    costs.add("pass2", 10.0, 1, shares(["a", "a", "b"], [100, 100, 1], [1, 2, 5], generated=True))
    assert costs.task("a")["pass2"] == {
        "seconds": pytest.approx(3.75),
        "prompts": 2,
        "tokens_in": 200,
        "tokens_out": 3,
        "switches": 1,
    }
    assert costs.task("b")["pass2"]["seconds"] == pytest.approx(6.25)
    assert costs.task("b")["pass2"]["switches"] == 0
    assert costs.task("b")["pass1"] == {"seconds": 0.0, "prompts": 0, "tokens_in": 0, "tokens_out": 0, "switches": 0}


def test_scored_calls_follow_the_tokens_read():
    costs = Costs()
    costs.add("pass2", 4.0, 0, shares(["a", "b"], [30, 10], [0, 0], generated=False))
    assert [costs.task(t)["pass2"]["seconds"] for t in "ab"] == [3.0, 1.0]


def test_empty_answers_share_the_time_too():
    costs = Costs()
    costs.add("pass2", 4.0, 0, shares(["a", "b"], [5, 5], [0, 0], generated=True))
    assert [costs.task(t)["pass2"]["seconds"] for t in "ab"] == [2.0, 2.0]


def test_ranks_side_by_side_take_the_slowest_and_add_the_counts():
    one, two = Costs(), Costs()
    one.add("pass1", 2.0, 1, [Share("a", 5, 1, 1.0)])
    two.add("pass1", 3.0, 0, [Share("a", 7, 2, 1.0)])
    two.add("pass2", 1.0, 0, [Share("b", 1, 1, 1.0)])
    one.choose("a", "math"), two.choose("a", "math"), two.choose("a", "base")
    both = Costs.merged([one.tasks, two.tasks])
    assert both.task("a")["pass1"] == {"seconds": 3.0, "prompts": 2, "tokens_in": 12, "tokens_out": 3, "switches": 1}
    assert both.task("a")["chosen"] == {"base": 1, "math": 2}
    assert both.task("b")["pass2"]["seconds"] == 1.0
    assert one.task("a")["pass1"]["prompts"] == 1  # the parts stay as they were


def test_a_stopwatch_measures_its_block_also_when_it_fails():
    watch = Stopwatch("cpu")
    with pytest.raises(RuntimeError), watch.running():
        time.sleep(0.05)
        raise RuntimeError
    assert 0.05 <= watch.seconds < 1.0
