"""Arguments of pass 1: read as meant, wrong ones told; abstaining and soft mixing in exact numbers."""

import re
from pathlib import Path

import pytest

from t2.adapters.dispatch_forms import Decision
from t2.adapters.mixture import Mixture
from t2.harness.dispatch_args import dispatch_plan, folder_for
from t2.harness.strategy import ModelArgumentError

SCORES = {"code": 0.61, "math": 0.26, "reasoning": 0.0, "others": 0.13}


def test_forms_are_read_and_named_in_results():
    assert str(dispatch_plan()) == "score" == str(dispatch_plan(" Score "))
    assert str(dispatch_plan("generate")) == "generate"
    assert (dispatch_plan("task").form, dispatch_plan("task").votes) == ("score", 10)
    assert str(dispatch_plan("task:probe", votes="3")) == "task:probe votes=3"
    assert (
        dispatch_plan("score").votes is None and dispatch_plan().calibrate is None and dispatch_plan(calibrate="False").calibrate is False
    )
    assert str(dispatch_plan("probe", mix="soft", abstain=0.5)) == "probe mix=soft mix_step=0.1 abstain=0.5"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dispatch": "generat"}, "Unknown dispatch 'generat'. Did you mean 'generate'?"),
        ({"dispatch": "task:prob"}, "Unknown dispatch 'prob'. Did you mean 'probe'?"),
        ({"dispatch": "nowhere.py"}, "dispatch=nowhere.py cannot be read: No such file"),
        ({"dispatch": "task", "votes": 0}, "votes=0 must be a whole number, at least 1"),
        ({"dispatch": "task", "votes": 2.5}, "votes=2.5 must be a whole number"),
        ({"dispatch": "task", "votes": "inf"}, "votes=inf must be a whole number"),
        ({"votes": 3}, "votes=3 goes with dispatch=task"),
        ({"mix": "sof"}, "Unknown mix 'sof'. Did you mean 'soft'?"),
        ({"mix": "soft", "mix_step": 0.6}, "mix_step=0.6 must be a number from 0 to 0.5"),
        ({"mix": "soft", "mix_step": 0.3}, "mix_step=0.3 must be 0, or 1 / n for a whole n"),
        ({"mix": "soft", "mix_step": 1e-320}, "mix_step=1e-320 must be 0, or 1 / n"),
        ({"mix_step": 0.1}, "mix_step=0.1 goes with mix=soft"),
        ({"abstain": "nan"}, "abstain=nan must be a number from 0 to 1"),
        ({"abstain": "half"}, "abstain=half must be a number from 0 to 1"),
        ({"dispatch": "generate", "abstain": 0.5}, "dispatch=generate gives no probabilities"),
        ({"dispatch": "task:generate", "mix": "soft"}, "dispatch=generate gives no probabilities"),
        ({"calibrate": "perhaps"}, "calibrate=perhaps must be true or false"),
    ],
)
def test_wrong_values_are_told(given, says):
    with pytest.raises(ModelArgumentError, match=re.escape(says)):
        dispatch_plan(**given)


def test_folders_go_with_their_strategy(tmp_path):
    assert folder_for("probe", None, False, "x") is None and folder_for("probe", str(tmp_path), True, "x") == tmp_path
    with pytest.raises(ModelArgumentError, match="classifier=runs goes with strategy=cls"):
        folder_for("classifier", "runs", False, "strategy=cls")
    with pytest.raises(ModelArgumentError, match="there is no such folder"):
        folder_for("probe", tmp_path / "none", True, "x")


def test_soft_mixtures_are_probabilities_in_steps_that_add_up_to_one():
    found = Decision("code", 5, scores=SCORES)
    assert dispatch_plan(mix="soft").settle(found).mixture == Mixture.of({"code": 0.6, "math": 0.3, "base": 0.1})
    assert dispatch_plan(mix="soft", mix_step=0).settle(found).mixture == Mixture.of({"code": 0.61, "math": 0.26, "base": 0.13})
    assert dispatch_plan(mix="soft", mix_step=0.5).settle(found).mixture == Mixture.of({"code": 0.5, "math": 0.5})
    for sure, mixture in (("code", Mixture.single("code")), ("others", Mixture.base())):
        certain = Decision(sure, 5, scores={**dict.fromkeys(SCORES, 0.001), sure: 0.997})
        assert dispatch_plan(mix="soft").settle(certain).mixture == mixture
    assert dispatch_plan(mix="soft").settle(found).category == "code"


def test_abstaining_means_the_base_weights_and_is_said():
    found = Decision("code", 5, scores=SCORES)
    assert dispatch_plan(abstain=0.61).settle(found) == found == dispatch_plan().settle(found)
    given_up = dispatch_plan(abstain=0.62).settle(found)
    assert (given_up.category, given_up.abstained, given_up.mixture, given_up.scores) == ("others", True, Mixture.base(), SCORES)
    assert dispatch_plan(abstain=0.62, mix="soft").settle(found).mixture == Mixture.base()


def test_a_form_without_probabilities_cannot_abstain():
    own = Path(__file__).parents[1] / "examples" / "keywords.py"
    for plan in (dispatch_plan(str(own), abstain=0.5), dispatch_plan(str(own), mix="soft")):
        with pytest.raises(ModelArgumentError, match="needs probabilities"):
            plan.settle(Decision("code", 1))


@pytest.mark.parametrize(
    ("scores", "total"),
    [
        ({"code": -0.5, "math": -1.2}, "-1.7"),
        ({"code": 3, "math": 1}, "4"),
        ({"code": 1.4, "math": -0.4}, "1"),
        ({"code": float("nan"), "math": 1.0}, "nan"),
        ({"code": 1.0, "math": float("nan")}, "nan"),
        ({"code": float("inf")}, "inf"),
        ({}, "0"),
    ],
)
@pytest.mark.parametrize("asked", [{"mix": "soft"}, {"abstain": 0.5}])
def test_scores_that_are_no_probabilities_are_told(scores, total, asked):
    with pytest.raises(ModelArgumentError, match=rf"needs probabilities, but dispatch=probe gave {{.*}}, whose sum is {total}: have it"):
        dispatch_plan("probe", **asked).settle(Decision("code", 5, scores=scores))
    assert dispatch_plan("probe").settle(Decision("code", 5, scores=scores)).category == "code"
