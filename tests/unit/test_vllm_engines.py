"""vLLM engines that fail: one message, and nothing is asked of them again. No vLLM is needed."""

import json
import sys
from types import SimpleNamespace

import pytest

from t2.adapters.errors import AdapterError
from t2.harness.errors import T2Error
from t2.harness.vllm_engines import EngineError, Engines, LocalEngine, RayEngines


class Fake(Engines):
    def __init__(self, fails=None, drops=True, says=None):
        self.fails, self.drops, self.says = fails, drops, says or {"value": 3}

    def _do(self, result):
        if self.fails is not None:
            raise self.fails
        return result

    def call(self, method, args):
        return self._do([json.dumps(self.says)] * 2)

    def drop_prefixes(self):
        return self._do(self.drops)

    def answer(self, rows, params, progress):
        return self._do([*rows])

    def config(self, name):
        raise NotImplementedError

    def close(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    "ask",
    [lambda e: e.ask("t2_apply", "x"), lambda e: e.forget_prefixes(), lambda e: e.generate([[1]], [None])],
    ids=["ask", "drop", "generate"],
)
def test_an_engine_that_fails_is_told_and_answers_no_more(ask):
    engines = Fake(RuntimeError("EngineCore died"))
    with pytest.raises(EngineError, match=r"vLLM's engine failed \(RuntimeError: EngineCore died\)"):
        ask(engines)
    engines.fails = None
    assert engines.failed
    with pytest.raises(EngineError, match="in an earlier call, and may hold any weights"):
        engines.generate([[1]], [None])


def test_an_engine_that_keeps_its_prefixes_answers_no_more():
    engines = Fake(drops=False)
    with pytest.raises(EngineError, match="did not drop its prefix cache"):
        engines.forget_prefixes()
    assert engines.failed


def test_what_a_worker_refuses_is_no_failure():
    engines = Fake(says={"error": "no such expert"})
    with pytest.raises(AdapterError, match="no such expert"):
        engines.ask("t2_apply", "x")
    assert not engines.failed and Fake().ask("t2_base") == 3


def test_an_interrupt_goes_on_up_and_leaves_the_engine_unused():
    engines = Fake(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engines.ask("t2_apply", "x")
    assert engines.failed


def test_what_was_moved_to_host_memory_is_dropped_too():
    asked = []
    llm = SimpleNamespace(reset_prefix_cache=lambda **options: asked.append(options) or True)
    LocalEngine(llm).forget_prefixes()
    assert asked == [{"reset_connector": True}]


@pytest.mark.parametrize(
    ("there", "arguments", "count", "says"),
    [
        ({"CPU": 2}, {}, 3, "data_parallel_size=3 engines need a CPU core each, and there are 2"),
        ({"CPU": 64, "GPU": 3}, {"tensor_parallel_size": 2}, 2, "data_parallel_size=2 engines need 2 GPUs each, and there are 3"),
        ({"CPU": 64, "GPU": 3}, {"pipeline_parallel_size": 2}, 2, "need 2 GPUs each"),
        ({"CPU": 64, "GPU": 4}, {"tensor_parallel_size": 2}, 2, None),
        ({"CPU": 9}, {}, 2, None),
    ],
)
def test_engines_for_which_there_is_no_room_are_refused_not_waited_for(monkeypatch, there, arguments, count, says):
    reserved = []

    def remote(**resources):
        reserved.append(resources)
        return lambda actor: SimpleNamespace(remote=lambda *_: SimpleNamespace(ready=SimpleNamespace(remote=lambda: None)))

    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: there, remote=remote, get=lambda refs: refs)
    monkeypatch.setitem(sys.modules, "ray", ray)
    if says:
        with pytest.raises(T2Error, match=says):
            RayEngines(arguments, count)
    else:
        RayEngines(arguments, count)
        assert reserved == [{"num_gpus": 2, "num_cpus": 1} if "GPU" in there else {"num_cpus": 4}]
