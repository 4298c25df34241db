"""Many prompts with one beginning: its keys and values are computed once and shared by every batch."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .errors import AdapterError

_ROOM = 64  # tokens that may follow what is read: a reply, or a category's name

# Letters in the shapes: b prompts in a batch, p tokens of the shared beginning, t tokens of the longest rest, v vocabulary.


class SharedPrefix:
    """The forward pass of texts that all begin with the same tokens.

    Args:
        model: a causal language model in eval mode.
        ids: the shared beginning, at least one token.
        pad_id: any token id; what it stands for is masked.
        share: False computes the beginning anew in every batch (the reference that tests compare with).

    Raises:
        AdapterError: the model keeps a state other than keys and values, which padding between two parts of a text would change.
    """

    def __init__(self, model: Any, ids: Sequence[int], pad_id: int, share: bool = True) -> None:
        self.model, self.ids, self.pad_id = model, list(ids), pad_id
        config = model.config.get_text_config(decoder=True)
        layers = DynamicCache(config=config).layers
        stateful = getattr(model, "_is_stateful", False) and not getattr(config, "layer_types", None)
        if stateful or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            raise AdapterError(
                f"{type(model).__name__} keeps a state besides keys and values (linear attention, state space), which dispatch=score and "
                "dispatch=generate cannot share among prompts. Use dispatch=probe, or name the expert: strategy=expert:NAME."
            )
        self._window = min((layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=None)
        self.share = share
        self.device = model.get_input_embeddings().weight.device
        self._states: list[tuple[Tensor, Tensor]] | None = None
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        takes = inspect.signature(base.forward).parameters
        self._trim = "logits_to_keep" in takes
        # else a distance counts the padding in it, as MPT's do; BLOOM counts by the mask
        self._places = "position_ids" in takes or config.model_type == "bloom"

    def last_logits(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, "Continuation"]:
        """Read the beginning and each of `rows`; return the logits after the last token ``[b, v]`` and what is needed to go on."""
        ids, mask = self.batch(rows)
        cache = self.cache(rows)
        seen = cache.get_seq_length()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self._forward(ids[:, seen:], mask, positions[:, seen:], cache, keep=1)
        return out[:, -1].float(), Continuation(self, cache, mask)

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return token ids and mask, both ``[b, p + t]``.

        The padding lies between the beginning and the rest; in front of both where an attention window is shorter than that, for windows
        count padding too, and where the model cannot be told the positions.
        """
        width, front = max(len(r) for r in rows), 0 if self._within(rows) else 1
        gaps = [[0] * (width - len(r)) for r in rows]
        mask = [front * gap + [1] * len(self.ids) + (1 - front) * gap + [1] * len(r) for gap, r in zip(gaps, rows, strict=True)]
        padding = [[self.pad_id] * len(gap) for gap in gaps]
        ids = [front * gap + self.ids + (1 - front) * gap + list(r) for gap, r in zip(padding, rows, strict=True)]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _within(self, rows: Sequence[Sequence[int]]) -> bool:
        return self._places and (self._window is None or len(self.ids) + max(len(r) for r in rows) + _ROOM <= self._window)

    def cache(self, rows: Sequence[Sequence[int]]) -> DynamicCache:
        """Return a cache that holds the beginning for each of `rows`; an empty one where nothing is shared."""
        cache, size = DynamicCache(), len(rows)
        if not (self.share and self._within(rows)):
            return cache
        if (states := self._states) is None:
            first = DynamicCache()
            ids = torch.tensor([self.ids], device=self.device)
            mask = torch.ones_like(ids)
            self._forward(ids, mask, mask.cumsum(-1) - 1, first, keep=1)
            states = self._states = [(layer.keys, layer.values) for layer in first.layers]  # type: ignore[assignment]
        for i, (keys, values) in enumerate(states):  # type: ignore[arg-type]
            cache.update(keys.expand(size, -1, -1, -1), values.expand(size, -1, -1, -1), i)  # type: ignore[union-attr]
        return cache

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, keep: int) -> Tensor:
        trim = {"logits_to_keep": keep} if self._trim else {}
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **trim)
        return out.logits[:, -keep:]


class Continuation:
    """A batch that has been read: what could come next is scored on its cache, which is cut back afterwards."""

    def __init__(self, prefix: SharedPrefix, cache: DynamicCache, mask: Tensor) -> None:
        self._prefix, self._cache, self._mask = prefix, cache, mask

    def log_probs(self, last: Tensor, option: Sequence[int]) -> Tensor:
        """Return log P of each token of `option` ``[b, len(option)]`` after the batch whose last logits ``[b, v]`` are `last`."""
        scores = [last.log_softmax(-1)[:, option[0]]]
        if len(option) > 1:
            size, read = self._mask.shape
            ids = torch.tensor([list(option[:-1])] * size, device=self._mask.device)
            mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
            positions = (mask.cumsum(-1) - 1)[:, read:]
            out = self._prefix._forward(ids, mask, positions, self._cache, keep=ids.shape[1]).float().log_softmax(-1)
            scores += [out[:, i, token] for i, token in enumerate(option[1:])]
            for layer in self._cache.layers:  # not Cache.crop: what its argument means changed between releases of transformers
                layer.keys, layer.values = layer.keys[..., :read, :], layer.values[..., :read, :]  # type: ignore[index]
        return torch.stack(scores, dim=1)
