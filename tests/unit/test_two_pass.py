"""The two passes over a host class that answers with the weights in force: order, grouping, restoring, counting, caching, ranks."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM

from t2.adapters.dispatch_forms import Decision
from t2.adapters.mixture import Mixture
from t2.harness.errors import T2Error
from t2.harness.results import _confusion, _with_t2
from t2.harness.strategy import parse_strategy
from t2.harness.task_vote import follow, verdict
from t2.harness.two_pass import TwoPass


class Host(LM):
    """Answers each request with the weights in force and its text; remembers every call."""

    device = "cpu"

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.calls, self.fail = Mixture.base(), [], False

    def _say(self, kind: str, requests: list[Instance]) -> list[Any]:
        self.calls.append((kind, str(self.weights), len(requests)))
        if self.fail:
            raise KeyboardInterrupt
        return [f"{self.weights}|{r.args[0]}" for r in requests]

    def generate_until(self, requests, disable_tqdm=False):
        return self._say("generate_until", requests)

    def loglikelihood(self, requests, disable_tqdm=False):
        return self._say("loglikelihood", requests)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        return self._say("loglikelihood_rolling", requests)


class Adapting(TwoPass, Host):
    """Dispatches a context to the category that is its first word."""

    def __init__(self, strategy: str = "prompt", base: str = "b1", votes: int | None = None) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.base, self.switched = base, 0
        plan = parse_strategy(strategy)
        self.two_pass_setup(replace(plan, first=Mixture.single("z_c")) if plan.kind == "cls" else plan, votes)

    def apply_mixture(self, mixture: Mixture) -> bool:
        changed = mixture != self.weights
        self.switched += changed
        self.weights = mixture
        return changed

    def dispatch(self, contexts: Sequence[str]) -> list[Decision]:
        assert self.weights == self.strategy.first
        self.asked += contexts
        found = [Decision(c.split()[0], len(c), scores={c.split()[0]: 1.0}) for c in contexts]
        return [replace(d, category="others", readable=False) if d.category == "mumble" else d for d in found]

    def count_tokens(self, texts: Sequence[str], whole: bool = False) -> list[int]:
        return [len(t) for t in texts]

    def longest_context(self, options: Mapping[str, Any]) -> int:
        return 100

    def longest_answer(self, options: Mapping[str, Any]) -> int:
        return options.get("max_gen_toks", 50)

    def run_facts(self) -> dict[str, Any]:
        return {"experts": {}, "base": self.base, "dispatch": "score", "calibrate": True, "probe": None}

    def cache_facts(self) -> dict[str, Any]:
        return {**self.run_facts(), "strategy": str(self.strategy)}


def generate(*contexts: str, task: str = "t") -> list[Instance]:
    return [Instance("generate_until", {}, (c, {"until": ["\n"]}), 0, (task, i, 1)) for i, c in enumerate(contexts)]


def score(*pairs: tuple[str, str], task: str = "mc") -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i % 2, (task, i // 2, 1)) for i, pair in enumerate(pairs)]


def test_answers_come_back_in_order_each_with_its_own_weights():
    lm = Adapting()
    contexts = ["math 1", "others 2", "code 3", "math 4", "math 1", "code 5", "others 6"]
    answers = lm.generate_until(generate(*contexts))
    assert answers == [f"{'base' if c.startswith('others') else c.split()[0]}|{c}" for c in contexts]
    assert lm.calls == [("generate_until", "base", 2), ("generate_until", "code", 2), ("generate_until", "math", 3)]
    assert lm.weights.is_base


def test_each_distinct_context_is_dispatched_once_also_over_calls():
    lm = Adapting()
    lm.generate_until(generate("math 1", "math 1", "code 2"))
    lm.loglikelihood(score(("math 1", " a"), ("math 1", " b"), ("code 3", " a"), ("code 3", " b")))
    assert lm.asked == ["math 1", "code 2", "code 3"]
    lm.begin_run()
    lm.generate_until(generate("math 1"))
    assert lm.asked[3:] == ["math 1"]


def test_the_peak_of_a_gpus_memory_is_of_this_evaluation(monkeypatch):
    lm, reset = Adapting(), []
    monkeypatch.setattr(lm, "device", "cuda", raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    lm.begin_run()
    assert reset == ["cuda"]


def test_no_prompt_means_the_base_weights():
    lm = Adapting()
    assert lm.loglikelihood(score(("", "math x"), ("math 1", " y"))) == ["base|", "math|math 1"]
    assert lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("math text",), 0, ("r", 0, 1))]) == ["base|math text"]
    assert lm.asked == ["math 1"]
    assert Adapting("expert:code").loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("x",), 0)]) == ["code|x"]


@pytest.mark.parametrize(("strategy", "name"), [("base", "base"), ("expert:math", "math"), ("mix:a=0.5+b=0.5", "a=0.5+b=0.5")])
def test_fixed_strategies_make_one_call_and_no_first_pass(strategy, name):
    lm = Adapting(strategy)
    assert lm.generate_until(generate("code 1", "math 2")) == [f"{name}|code 1", f"{name}|math 2"]
    assert (lm.calls, lm.asked, lm.weights) == ([("generate_until", name, 2)], [], Mixture.base())
    assert lm.switched == (0 if name == "base" else 2)
    assert lm.sample_facts([("code 1", {})], "t") == {"mixture": name}


def test_the_base_comes_back_after_an_error():
    lm = Adapting()
    lm.fail = True
    with pytest.raises(KeyboardInterrupt):
        lm.generate_until(generate("math 1"))
    assert lm.weights.is_base
    lm.fail = False
    assert lm.generate_until(generate("math 1")) == ["math|math 1"]


def test_nothing_asked_is_nothing_done():
    lm = Adapting()
    assert lm.generate_until([]) == [] and lm.asked == [] and lm.costs.tasks == {}


def test_costs_are_kept_per_task_and_pass():
    lm = Adapting()
    lm.generate_until(generate("math 1", "code 22", task="a") + generate("math 1", "others 3", task="b"))
    lm.loglikelihood(score(("code 22", " x"), ("code 22", " yz")))
    a, b, mc = (lm.costs.task(t) for t in ("a", "b", "mc"))
    assert {k: a["pass1"][k] for k in ("prompts", "tokens_in", "switches")} == {"prompts": 2, "tokens_in": 13, "switches": 0}
    assert b["pass1"]["prompts"] == 1  # "math 1" was dispatched for a
    assert (a["chosen"], b["chosen"], mc["chosen"]) == ({"math": 1, "code": 1}, {"math": 1, "base": 1}, {"code": 1})
    assert a["pass2"]["prompts"] == 2 and a["pass2"]["tokens_in"] == 13 and a["pass2"]["tokens_out"] == len("math|math 1code|code 22")
    assert mc["pass2"]["prompts"] == 2 and mc["pass2"]["tokens_in"] == len("code 22 xcode 22 yz") and mc["pass2"]["tokens_out"] == 0
    assert sum(t[p]["switches"] for t in (a, b, mc) for p in ("pass1", "pass2")) == lm.switched == 5
    assert mc["pass1"] == {"seconds": 0.0, "prompts": 0, "tokens_in": 0, "tokens_out": 0, "switches": 0}
    assert all(t["pass2"]["seconds"] > 0 for t in (a, b, mc))


def test_an_answer_counts_no_more_tokens_than_it_may_have():
    lm = Adapting()  # answers "math|math 1": bytes that are no text, say, which are more tokens once they are
    lm.generate_until([Instance("generate_until", {}, ("math 1", {"max_gen_toks": 3}), 0, ("t", 0, 1)), *generate("math 1")])
    assert lm.costs.task("t")["pass2"]["tokens_out"] == 3 + len("math|math 1")


@pytest.mark.parametrize(("settled", "readable", "abstained"), [("math", True, False), ("others", False, True)])
def test_a_voter_that_was_no_help_follows_its_task(settled, readable, abstained):
    own = Decision("others", 3, readable=False, abstained=True, reply="?")
    found = follow(own, Decision(settled, 0))
    assert (found.category, found.readable, found.abstained, found.reply) == (settled, readable, abstained, "?")


def test_samples_say_which_weights_answered():
    lm = Adapting()
    lm.loglikelihood(score(("math 1", " a"), ("math 1", " b"), ("math 2", " a"), ("code 2", " a")))
    assert lm.sample_facts([("math 1", " a"), ("math 1", " b")], "mc") == {"mixture": "math", "category": "math", "scores": {"math": 1.0}}
    assert lm.sample_facts([("math 2", " a"), ("code 2", " a")], "mc")["mixture"] == ["math", "code"]
    assert lm.sample_facts([("rolling text",)], "r") == {"mixture": "base"}
    assert lm.sample_facts([("never seen", {})], "t") == {"mixture": None}


def test_cached_answers_are_kept_apart_and_their_mixtures_are_remembered(tmp_path):
    path = str(tmp_path / "answers.db")
    asked = [("math 1", " a"), ("code 2", " b")]
    first = Adapting()
    cached = CachingLM(first, path)
    assert cached.loglikelihood(score(*asked)) == ["math|math 1", "code|code 2"]
    cached.dbdict.close()

    again = Adapting()
    cached = CachingLM(again, path)
    assert cached.loglikelihood(score(*asked)) == ["math|math 1", "code|code 2"]
    assert (again.calls, again.asked) == ([], [])  # all from the cache
    assert again.sample_facts(asked[:1], "mc") == {"mixture": "math", "category": "math", "scores": {"math": 1.0}}
    assert cached.loglikelihood(score(("math 1", " new"))) == ["math|math 1"]
    assert again.asked == []  # a new continuation of a known context is not dispatched again
    cached.dbdict.close()

    for other, answer in ((Adapting("base"), "base|math 1"), (Adapting("expert:x"), "x|math 1"), (Adapting(base="b2"), "math|math 1")):
        cached = CachingLM(other, path)
        assert cached.loglikelihood(score(asked[0])) == [answer]
        assert len(other.calls) == 1  # answered, not looked up
        cached.dbdict.close()
    cached = CachingLM(Host(), path)  # lm-eval's own table is not touched by ours
    assert cached.loglikelihood(score(asked[0])) == ["base|math 1"]
    cached.dbdict.close()


def test_a_classifiers_weights_serve_pass_one_only():
    lm = Adapting("cls")
    assert lm.generate_until(generate("math 1", "others 2")) == ["math|math 1", "base|others 2"]
    assert lm.calls == [("generate_until", "base", 1), ("generate_until", "math", 1)] and lm.weights.is_base
    assert (lm.switched, lm.costs.task("t")["pass1"]["switches"], lm.costs.task("t")["pass2"]["switches"]) == (4, 1, 3)


def test_the_first_prompts_of_a_task_decide_for_all_of_it():
    lm = Adapting(votes=3)
    texts = ["math 1", "code 2", "math 3", "code 4", "code 5", "math 6"]
    assert lm.generate_until(generate(*texts, task="a") + generate("code x", "others y", task="b")) == [
        *(f"math|{t}" for t in texts),
        "code|code x",
        "code|others y",
    ]
    assert lm.asked == ["math 1", "code 2", "math 3", "code x", "others y"]
    assert lm.generate_until(generate("code 7", task="a")) == ["math|code 7"] and len(lm.asked) == 5  # no pass 1 any more
    cost = lm.costs.task("a")
    assert (cost["pass1"]["prompts"], cost["pass1"]["tokens_in"], cost["categories"]) == (3, 18, {"math": 6})  # document 0 came twice
    assert lm.sample_facts([("code 2", {})], "a") == {"mixture": "math", "category": "math", "scores": {"code": 1.0}}
    assert lm.sample_facts([("code 5", {})], "a") == {"mixture": "math", "category": "math"}
    lm.begin_run()
    assert lm.generate_until(generate("code 7", task="a")) == ["code|code 7"]


def test_a_context_of_two_tasks_gets_each_tasks_decision():
    lm = Adapting(votes=1)
    assert lm.generate_until(generate("math 1", task="a") + generate("code 2", "math 1", task="b")) == [
        "math|math 1",
        "code|code 2",
        "code|math 1",
    ]
    assert lm.asked == ["math 1", "code 2"]
    assert [lm.sample_facts([("math 1", {})], task)["mixture"] for task in "ab"] == ["math", "code"]


def test_equal_votes_go_to_the_more_probable_and_soft_votes_are_averaged():
    one, two = Decision("a", 1, scores={"a": 0.6, "b": 0.4}), Decision("b", 1, scores={"a": 0.1, "b": 0.9})
    assert verdict([one, two]).category == verdict([two, one]).category == "b"
    assert verdict([one, one, two]).mixture == Mixture.single("a")
    assert verdict([Decision("others", 1), Decision("others", 1), one]).mixture == Mixture.base()
    soft = [replace(one, alphas={"a": 0.5, "base": 0.5}), replace(one, alphas={"a": 1.0}), Decision("others", 1, abstained=True)]
    assert verdict(soft).mixture == Mixture.of({"a": 0.5, "base": 0.5})


def test_an_interrupted_run_goes_on_with_what_its_task_decided(tmp_path):
    path = str(tmp_path / "answers.db")
    task = score(("math 1", " a"), ("math 2", " b"), ("code 3", " c"))
    interrupted(path, task, task[:2])
    again, answers = interrupted(path, task, task)
    assert answers == ["math|math 1", "math|math 2", "math|code 3"]
    assert again.asked == [] and again.sample_facts([("code 3", " c")], "mc")["mixture"] == "math"


def interrupted(path: str, task: list[Instance], asked: list[Instance], limit: int | None = None, votes: int = 2, docs: Sequence = ()):
    """A run of `task`, with votes and an answer cache, that ends after `asked`: the model, the answers."""
    lm = Adapting(votes=votes)
    cached = CachingLM(lm, path)
    lm.begin_run({"mc": SimpleNamespace(instances=task, eval_docs=docs)}, [limit, None])
    answers = cached.loglikelihood(asked)
    cached.dbdict.close()
    return lm, answers


def test_a_run_of_other_documents_or_prompts_does_not_decide_for_the_task(tmp_path):
    path = str(tmp_path / "answers.db")
    task = score(("math 1", " a"), ("code 2", " b"), ("code 3", " c"))
    interrupted(path, task[:1], task[:1])  # one vote of two
    whole, answers = interrupted(path, task, task)
    assert whole.asked == ["math 1", "code 2"] and answers == ["math|math 1", "math|code 2", "math|code 3"]
    other = score(("code 1 in other words", " a"), ("code 2 in other words", " b"))
    assert interrupted(path, other, other)[1] == ["code|code 1 in other words", "code|code 2 in other words"]


def test_answers_under_one_verdict_do_not_serve_a_run_that_decides_otherwise(tmp_path):
    path = str(tmp_path / "answers.db")
    task = score(("code 1", " a"), ("math 22", " b"), ("math 33", " c"))
    assert interrupted(path, task[:1], task[:1], limit=1, votes=3)[1] == ["code|code 1"]
    assert interrupted(path, task, task, votes=3)[1] == ["math|code 1", "math|math 22", "math|math 33"]
    again, answers = interrupted(path, task[:1], task[:1], limit=1, votes=3)
    assert answers == ["code|code 1"] and again.asked == []


def test_answers_of_other_documents_do_not_serve_a_run_that_they_decide_otherwise(tmp_path):
    path = str(tmp_path / "answers.db")
    before, after = score(("math 1", " a"), ("code 2", " b")), score(("code 2", " b"), ("math 1", " a"), ("code 3", " c"))
    assert interrupted(path, before, before, votes=1, docs=[{"q": 1}, {"q": 2}])[1] == ["math|math 1", "math|code 2"]
    found = interrupted(path, after, after, votes=1, docs=[{"q": 2}, {"q": 1}, {"q": 3}])[1]
    assert found == ["code|code 2", "code|math 1", "code|code 3"]


def test_a_new_strategy_leaves_the_cached_answers_of_the_one_before(tmp_path):
    lm = Adapting("base")
    cached = CachingLM(lm, str(tmp_path / "answers.db"))
    assert cached.loglikelihood(score(("math 1", " a"))) == ["base|math 1"]
    lm.two_pass_setup(parse_strategy("prompt"))
    assert cached.loglikelihood(score(("math 1", " a"))) == ["math|math 1"]
    cached.dbdict.close()


def test_several_processes_are_refused_an_answer_cache():
    lm = Adapting()
    lm._world_size = 2
    with pytest.raises(T2Error, match=r"--use_cache does not go with 2 processes.*Leave --use_cache out"):
        lm.set_cache_hook(SimpleNamespace(dbdict={}))
    lm.set_cache_hook(SimpleNamespace(dbdict=None))


def test_what_lm_eval_repeats_to_even_out_processes_is_not_counted():
    lm = Adapting()
    once, thrice = generate("math 1")[0], Instance("generate_until", {}, ("math 22", {}), 0, ("t", 1, 3))
    assert len(lm.generate_until([thrice] * 3 + [once] * 4)) == 7
    cost = lm.costs.task("t")["pass2"]
    assert (cost["prompts"], cost["tokens_in"], cost["tokens_out"]) == (4, 3 * 7 + 6, 3 * len("math|math 22") + len("math|math 1"))


def test_results_know_tasks_within_groups():
    asked, found = [], {"results": {}, "samples": {}}
    model = SimpleNamespace(begin_run=lambda *given: asked.append(given), end_run=lambda: {"passes": {}}, sample_facts=None)
    evaluate = _with_t2(lambda lm, task_dict, limit=None: found)
    for tasks in ({object(): {"a": 1, object(): {"b": 2}}, "c": 3}, {"tasks": {"a": 1, "b": 2, "c": 3}, "groups": {}}):
        assert evaluate(lm=model, task_dict=tasks, limit=4) is found and "t2" in found
    assert asked == [({"a": 1, "b": 2, "c": 3}, [4, None])] * 2


def test_documents_are_counted_by_category_for_the_confusion_matrix():
    lm = Adapting()
    lm.generate_until(generate("math 1", "mumble 2", "code 3", task="gsm"))
    lm.loglikelihood(score(("math 4", " a"), ("math 4", " b"), ("code 5", " a"), ("", " b"), task="arc"))
    gsm, arc = lm.costs.task("gsm"), lm.costs.task("arc")
    assert (gsm["categories"], gsm["unreadable"]) == ({"math": 1, "others": 1, "code": 1}, 1)
    assert (arc["categories"], arc["unreadable"]) == ({"math": 1, "code": 1}, 0)
    configs = {"gsm": {"metadata": {"t2_domain": "math"}}, "arc": {"metadata": {"version": 1}}}
    assert _confusion(lm.costs.tasks, configs) == {"math": {"code": 1, "math": 1, "others": 1}}
    configs["arc"]["metadata"]["t2_domain"] = "math"
    assert _confusion(lm.costs.tasks, configs) == {"math": {"code": 2, "math": 2, "others": 1}}
    assert _confusion(lm.costs.tasks, {}) is None and _confusion(Adapting("base").costs.tasks, configs) is None


RANKS = """
import os, runpy, sys
import torch.distributed as dist
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=2)
names = runpy.run_path(sys.argv[1])
lm = names["Adapting"]()
lm._rank, lm._world_size = rank, 2
def gather(obj, dst=0):
    parts = [None, None] if rank == dst else None
    dist.gather_object(obj, parts, dst=dst)
    return parts
lm.gather_object = gather
answers = lm.generate_until(names["generate"](*(["math 1", "math 2"] if rank == 0 else ["code 1", "others 2"])))
facts = lm.end_run()
if rank == 0:
    assert facts["passes"]["t"]["chosen"] == {"base": 1, "code": 1, "math": 2}, facts
    assert facts["passes"]["t"]["pass2"]["prompts"] == 4, facts
    assert lm.sample_facts([("code 1", {})], "t")["mixture"] == "code"
    assert facts["passes"]["t"]["categories"] == {"code": 1, "math": 2, "others": 1}, facts
else:
    assert facts is None
first = [c[:2] for c in lm.calls]
lm.two_pass_setup(lm.strategy, votes=3)
lm.calls.clear()
lm.generate_until(names["generate"](*(["code 1", "math 2", "code 9"] if rank == 0 else ["math 1", "math 3", "others 2"])))
assert [c[1] for c in lm.calls] == ["math"], lm.calls
assert len(lm.asked) == 4, lm.asked
print(first, answers)
dist.destroy_process_group()
"""


def test_data_parallel_processes_go_through_the_same_mixtures(tmp_path):
    runs = [
        subprocess.Popen([sys.executable, "-c", RANKS, __file__, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    out = [run.communicate(timeout=300)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    calls = "[('generate_until', 'base'), ('generate_until', 'code'), ('generate_until', 'math')]"
    assert out[0] == f"{calls} ['math|math 1', 'math|math 2']"
    assert out[1] == f"{calls} ['code|code 1', 'base|others 2']"
