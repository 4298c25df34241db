"""vLLM engines that fail: one message, and nothing is asked of them again. No vLLM is needed."""

import json

import pytest

from t2.adapters.errors import AdapterError
from t2.harness.vllm_engines import EngineError, Engines


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
