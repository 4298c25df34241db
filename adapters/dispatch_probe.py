"""Pass 1 by a probe: one mean hidden state of an early layer, and nothing of the model after that layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .batches import in_batches
from .dispatch_forms import Decision, Setup, register
from .dispatch_prompt import OTHERS
from .dispatch_text import ChatFrame, encode, first_token, shorten
from .early_exit import mean_states
from .probe import FOLDER, load_probe

MAX_TOKENS = 256
"""Tokens of a question that the probe reads at most; longer ones lose their middle."""
BATCH = 64
"""Prompts at once, at least: so few layers need little memory."""

SHIPPED = Path(__file__).parent / "experts" / FOLDER


class Reader:
    """What the probe reads of a context: the question (`ChatFrame.question`), without any instruction, at most `MAX_TOKENS` of it."""

    def __init__(self, tokenizer: Any, template_args: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._frame = tokenizer, ChatFrame(tokenizer, template_args)
        first = first_token(tokenizer)
        self._start = [] if first is None else [first]
        self._nothing = [tokenizer.eos_token_id or 0]  # what an empty question is read as

    def tokens(self, context: str) -> list[int]:
        """Return the token ids that stand for `context`, at least one."""
        ids = shorten(encode(self._tokenizer, self._frame.question(context)), MAX_TOKENS)
        return [*self._start, *ids] or self._nothing


@register("probe")
class ProbeDispatcher:
    """Labels prompts by a probe; what it says of categories that no expert serves counts for ``others``.

    Raises:
        AdapterError: no probe, or one for another base model or for other experts.
    """

    def __init__(self, setup: Setup) -> None:
        self._model = setup.model
        folder = setup.probe or SHIPPED
        self.probe = load_probe(folder)
        self.probe.check(setup.model, list(setup.experts), str(folder))
        self._reader = Reader(setup.tokenizer, setup.template_args)
        self._places = {name: self.probe.categories.index(name) for name in setup.experts}

    def decide(self, contexts: Sequence[str], batch_size: int | None = None, progress: bool = False) -> list[Decision]:
        """Return a decision for each context, in order; see `Form`."""
        rows = [self._reader.tokens(context) for context in contexts]
        with torch.inference_mode():
            return in_batches(self._label, rows, max(batch_size or 0, BATCH), progress)

    def _label(self, rows: list[list[int]]) -> list[Decision]:
        states = mean_states(self._model, rows, [self.probe.layer])[:, 0]
        decisions = []
        for row, chances in zip(rows, self.probe.probabilities(states).tolist(), strict=True):
            scores = {name: chances[place] for name, place in self._places.items()}
            scores[OTHERS] = max(0.0, 1 - sum(scores.values())) if len(scores) < len(chances) else 0.0
            decisions.append(Decision(max(scores, key=scores.__getitem__), len(row), scores=scores))
        return decisions
