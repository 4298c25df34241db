r"""Pass 1 of the paper's strategies A and B: the model says which expert a prompt needs, with its base or a classifier's weights.

Two forms. ``generate``: the model replies to the adaptation prompt and the category is read from ``\boxed{…}``, as in the paper.
``score`` (the default): the probability of each category's name in that place, as far as it takes to tell it from the other names: one
token where all begin differently. One prefill, no decoding; the closing brace is part of a name, so that one can begin another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from .batches import in_batches
from .dispatch_forms import Decision, Setup, register
from .dispatch_prompt import LEAD_IN, OTHERS, categories, parse_reply
from .dispatch_text import ChatFrame, adaptation_prompt, encode, encode_after, first_token, shorten
from .errors import AdapterError
from .prefix import SharedPrefix

MAX_QUESTION = 1024
"""Tokens of a question that pass 1 reads at most; longer ones lose their middle."""
MAX_REPLY = 64
"""Tokens that a reply may have under ``generate``."""

# Inputs without content, whose scores show how much a model likes a label whatever is asked (Zhao et al. 2021, arXiv 2102.09690, section 5)
_CONTENT_FREE = ("N/A", "", "[MASK]")


class Asker:
    """Labels prompts with the experts' categories by asking the model; a subclass says how this model is asked.

    Args:
        tokenizer: of the model.
        experts: name → expert; their names, in the paper's order, and ``others`` are the categories.
        form: ``score`` or ``generate``.
        calibrate: divide, under ``score``, each category's probability by what inputs without content give it (contextual calibration).
        max_length: tokens that fit into the model.
        classifier: ask as classifier experts are trained: instructions in the user's turn.
        template_args: see `Setup`.

    Raises:
        AdapterError: no experts, one called ``others``, or a `max_length` that leaves no room for a question.
    """

    def __init__(
        self,
        tokenizer: Any,
        experts: Mapping[str, Any],
        form: Literal["score", "generate"] = "score",
        calibrate: bool = True,
        max_length: int = 2048,
        classifier: bool = False,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        if not experts:
            raise AdapterError("There is no expert to choose between: dispatch needs at least one.")
        if OTHERS in experts:
            raise AdapterError(f"An expert cannot be called {OTHERS!r}, the category of what no expert serves: give it another name.")
        self.tokenizer, self.form, self.calibrate = tokenizer, form, calibrate
        self.options = [c.name for c in categories(experts)]
        self.unreadable = 0
        self._frame = ChatFrame(tokenizer, template_args)
        before, after = adaptation_prompt(tokenizer, categories(experts), not classifier, template_args)
        self._after = self._encode(after + (LEAD_IN if form == "score" else ""))
        self._names = told_apart([encode_after(tokenizer, LEAD_IN, name + "}") for name in self.options])
        self._start = self._encode(before)
        if not getattr(tokenizer, "chat_template", None) and (bos := first_token(tokenizer)) is not None:
            self._start = [bos, *self._start]
        answer = MAX_REPLY if form == "generate" else max(map(len, self._names))
        self._room = min(MAX_QUESTION, max_length - len(self._start) - len(self._after) - answer)
        if self._room < 16:
            raise AdapterError(
                f"max_length={max_length} leaves no room for a question beside the {len(self._start) + len(self._after)} tokens of the "
                "adaptation prompt: give a larger max_length, or a strategy without pass 1 (base, expert:<name>, mix:…)."
            )
        self._bias: Tensor | None = None

    def decide(self, contexts: Sequence[str], batch_size: int | None = None, progress: bool = False) -> list[Decision]:
        """Return a decision for each context, in order.

        Args:
            contexts: prompts as the model will get them in pass 2; see `ChatFrame.question` for what is read of them.
            batch_size: prompts at once; None tries 16. Halved when memory runs out.
            progress: show a progress bar.
        """
        rows = [[*shorten(self._encode(self._frame.question(c)), self._room), *self._after] for c in contexts]
        with torch.inference_mode():
            if self.form == "generate":
                return in_batches(self._generate, rows, batch_size, progress)
            if self.calibrate and self._bias is None:
                free = [[*self._encode(text), *self._after] for text in _CONTENT_FREE]
                self._bias = self._log_probs(free).softmax(-1).mean(0).log()
            return in_batches(self._score, rows, batch_size, progress)

    def _log_probs(self, rows: list[list[int]]) -> Tensor:
        """Return the log-probability of each category's name, as far as `told_apart`, after each row ``[rows, categories]`` float32."""
        raise NotImplementedError

    def _replies(self, rows: list[list[int]]) -> list[str]:
        """Return what the model says after each row, greedily, at most `MAX_REPLY` tokens, up to the end of its first box."""
        raise NotImplementedError

    def _score(self, rows: list[list[int]]) -> list[Decision]:
        scores = self._log_probs(rows)
        if self._bias is not None:
            scores = scores - self._bias
        chances = scores.softmax(-1).tolist()
        best = scores.argmax(-1).tolist()
        return [
            Decision(self.options[i], len(row), scores=dict(zip(self.options, chance, strict=True)))
            for row, chance, i in zip(rows, chances, best, strict=True)
        ]

    def _generate(self, rows: list[list[int]]) -> list[Decision]:
        decisions = []
        for row, reply in zip(rows, self._replies(rows), strict=True):
            category = parse_reply(reply, self.options)
            self.unreadable += category is None
            spoken = min(len(self._encode(reply)), MAX_REPLY)  # bytes that are no text count as several once they are text
            decisions.append(Decision(category or OTHERS, len(row), spoken, reply=reply, readable=category is not None))
        return decisions

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)


def told_apart(names: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut token sequences, none of which begins another, after the first token at which each differs from all others."""
    same = [max((_common(a, b) for j, b in enumerate(names) if j != i), default=0) for i, a in enumerate(names)]
    return [list(name[: n + 1]) for name, n in zip(names, same, strict=True)]


def box_closed(reply: str) -> bool:
    """Return whether a reply's first box has been closed: what follows cannot be needed."""
    return "boxed{" in reply and "}" in reply.split("boxed{", 1)[1]


class Dispatcher(Asker):
    """Asks a transformers model; the caller sees to it that it holds its base weights, or the classifier's.

    Args:
        model: a causal language model in eval mode.
        share: see `SharedPrefix`.
        others: see `Asker`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        experts: Mapping[str, Any],
        form: Literal["score", "generate"] = "score",
        calibrate: bool = True,
        max_length: int = 2048,
        share: bool = True,
        classifier: bool = False,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tokenizer, experts, form, calibrate, max_length, classifier, template_args)
        self.model = model
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self._prefix = SharedPrefix(model, self._start, pad, share)

    def _log_probs(self, rows: list[list[int]]) -> Tensor:
        last, going_on = self._prefix.last_logits(rows)
        return torch.stack([going_on.log_probs(last, name).sum(-1) for name in self._names], dim=1)

    def _replies(self, rows: list[list[int]]) -> list[str]:
        ids, mask = self._prefix.batch(rows)
        tokenizer = self.tokenizer
        with _own_settings_aside(self.model) as own:
            ends = own.eos_token_id
            found = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=self._prefix.cache(rows),
                generation_config=GenerationConfig(
                    max_new_tokens=MAX_REPLY,
                    do_sample=False,
                    eos_token_id=tokenizer.eos_token_id if ends is None else ends,
                    pad_token_id=self._prefix.pad_id,
                ),
                stopping_criteria=StoppingCriteriaList([_Boxed(tokenizer, ids.shape[1])]),
            )[:, ids.shape[1] :]
        return [tokenizer.decode(reply, skip_special_tokens=True) for reply in found]


@register("score")
def _score_form(setup: Setup) -> Dispatcher:
    return _dispatcher(setup, "score")


@register("generate")
def _generate_form(setup: Setup) -> Dispatcher:
    return _dispatcher(setup, "generate")


def _dispatcher(setup: Setup, form: Literal["score", "generate"]) -> Dispatcher:
    told = {"classifier": setup.classifier, "template_args": setup.template_args}
    return Dispatcher(setup.model, setup.tokenizer, setup.experts, form, setup.calibrate, setup.max_length, **told)


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[GenerationConfig]:
    """Yield the model's own generation settings, which `generate` would take for all that is not given, a repetition penalty say."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield own
    finally:
        model.generation_config = own


class _Boxed(StoppingCriteria):
    """Ends a reply once a box has been closed: what follows cannot be needed."""

    def __init__(self, tokenizer: Any, start: int) -> None:
        self._tokenizer, self._start = tokenizer, start

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        texts = self._tokenizer.batch_decode(input_ids[:, self._start :], skip_special_tokens=True)
        return torch.tensor([box_closed(text) for text in texts], device=input_ids.device)


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
