"""Pass 1 on vLLM engines: `score` and `generate` ask them, every other form runs in a worker, on the base model as transformers has it."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters.dispatch import MAX_REPLY, Asker, box_closed
from ..adapters.dispatch_forms import Decision, Form, Setup
from ..adapters.dispatch_probe import SHIPPED
from ..adapters.probe import load_probe
from .vllm_engines import Engines


def make_form(name: str, setup: Setup, engines: Engines) -> Form:
    """Return a form of pass 1.

    Raises:
        AdapterError: see `t2.adapters.dispatch_forms.make_form`.
    """
    return EngineAsker(name, setup, engines) if name in ("score", "generate") else WorkerForm(name, setup, engines)


class EngineAsker(Asker):
    """Asks vLLM engines. The instruction that all prompts share is computed once: they keep it in their prefix caches.

    Args:
        name: ``score`` or ``generate``.
        setup: without a model.
        engines: whose weights are the base's, or the classifier's.
    """

    def __init__(self, name: Any, setup: Setup, engines: Engines) -> None:
        fixed = (setup.tokenizer, setup.experts, name, setup.calibrate, setup.max_length, setup.classifier)
        super().__init__(*fixed, setup.template_args)
        self._engines = engines

    def decide(self, contexts: Sequence[str], batch_size: int | None = None, progress: bool = False) -> list[Decision]:
        """See `Asker`; vLLM makes its own batches."""
        return super().decide(contexts, max(len(contexts), 1), progress)

    def _log_probs(self, rows: list[list[int]]) -> Tensor:
        firsts = sorted({name[0] for name in self._names})
        found = self._next(rows, firsts)
        scores = torch.tensor([[each[name[0]] for name in self._names] for each in found])
        for place, name in enumerate(self._names):
            for k in range(1, len(name)):
                going_on = self._next([[*row, *name[:k]] for row in rows], [name[k]])
                scores[:, place] += torch.tensor([each[name[k]] for each in going_on])
        return scores

    def _next(self, rows: list[list[int]], tokens: list[int]) -> list[dict[int, float]]:
        """Return, for each row, token → its log-probability as the next one: one decoded position."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        params = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=tokens, detokenize=False)
        found = self._engines.generate([[*self._start, *row] for row in rows], [params] * len(rows))
        return [{token: p.logprob for token, p in output.outputs[0].logprobs[0].items()} for output in found]

    def _replies(self, rows: list[list[int]]) -> list[str]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        params = SamplingParams(temperature=0, max_tokens=MAX_REPLY, stop=["}"], include_stop_str_in_output=True)
        texts = [""] * len(rows)
        spoken: list[list[int]] = [[] for _ in rows]
        open_ = list(range(len(rows)))
        while open_:  # a brace that closes no box ends a request, but not the reply
            asked = [[*self._start, *rows[i], *spoken[i]] for i in open_]
            limits = [_limited(params, MAX_REPLY - len(spoken[i])) for i in open_]
            outputs = [output.outputs[0] for output in self._engines.generate(asked, limits)]
            for i, output in zip(open_, outputs, strict=True):
                spoken[i] += output.token_ids
                texts[i] = self.tokenizer.decode(spoken[i], skip_special_tokens=True)
            open_ = [
                i
                for i, output in zip(open_, outputs, strict=True)
                if output.stop_reason == "}" and not box_closed(texts[i]) and len(spoken[i]) < MAX_REPLY
            ]
        return texts


class WorkerForm:
    """A form that is no question to the model: it runs in the first worker, on the base model there.

    Args:
        name: of the form, or the path of a Python file that registers one.
        setup: without a model.
        engines: they have loaded the base and the experts.

    Raises:
        AdapterError: what the form refuses.
    """

    def __init__(self, name: str, setup: Setup, engines: Engines) -> None:
        self._engines = engines
        told = {
            "experts": {name: str(expert.path) for name, expert in setup.experts.items()},
            "max_length": setup.max_length,
            "calibrate": setup.calibrate,
            "classifier": setup.classifier,
            "template_args": dict(setup.template_args),
            "probe": str(setup.probe) if setup.probe else None,
            "tokenizer": setup.tokenizer.name_or_path,
        }
        engines.ask("t2_form", name, json.dumps(told))
        if name == "probe":
            self.probe = load_probe(setup.probe or SHIPPED)

    def decide(self, contexts: Sequence[str], batch_size: int | None = None, progress: bool = False) -> list[Decision]:
        """See `Form`."""
        return [Decision(**told) for told in self._engines.ask("t2_decide", json.dumps(list(contexts)), batch_size or 0)]


def _limited(params: Any, tokens: int) -> Any:
    limited = params.clone()
    limited.max_tokens = tokens
    return limited
