"""Answers of model `t2` and their log-likelihoods from one pass: the scores that chose the tokens are the scores, no second forward."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...adapters.mixture import Mixture
from ..errors import T2Error
from .reply import Reply

STEPS = 32
"""Tokens between two looks at which rows have ended: those leave the batch, which would else be as slow as its longest reply is long."""

_WITHOUT_LENGTH = {"bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty",
                   "no_repeat_ngram_size", "max_length", "use_cache", "output_attentions", "output_hidden_states",
                   "transformers_version", "_from_model_config"}  # fmt: skip
"""What a checkpoint's generation settings may name if its replies are to be made piece by piece."""


class _LogLikelihoods(LogitsProcessor):
    """Notes each token's log-probability while a batch is generated, without keeping the scores of more than one step."""

    def __init__(self) -> None:
        self._scores: Tensor | None = None
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self._settle(input_ids[:, -1])
        self._scores = scores.float()
        return scores

    def _settle(self, chosen: Tensor) -> None:
        if self._scores is not None:
            picked = self._scores.gather(1, chosen.unsqueeze(1)).squeeze(1)
            self._steps.append(picked - self._scores.logsumexp(1))
            self._scores = None

    def finish(self, chosen: Tensor) -> Tensor:
        """Return ``[rows, steps]``, given the last token of each row."""
        self._settle(chosen)
        return torch.stack(self._steps, 1)


def generate(lm: Any, requests: Sequence[Any], batch_size: int, mixtures: Sequence[Mixture] | None = None) -> list[Reply]:
    """Answer `requests` as lm-eval's Hugging Face class does; see `Adaptive.replies`."""
    replies: list[Reply | None] = [None] * len(requests)
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(repr(request.args[1]), []).append(i)
    for members in groups.values():
        members.sort(key=lambda i: -len(requests[i].args[0]))
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            own = [mixtures[i] for i in part] if mixtures else None
            found = _batch(lm, [requests[i].args[0] for i in part], requests[part[0]].args[1], own)
            for i, reply in zip(part, found, strict=True):
                replies[i] = reply
    return replies  # type: ignore[return-value]


def _batch(lm: Any, contexts: list[str], options: dict[str, Any], mixtures: list[Mixture] | None) -> list[Reply]:
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(options, lm.max_gen_toks))
    until = handle_stop_sequences(kwargs.pop("until", None), eos=lm.tok_decode(lm.eot_token_id, skip_special_tokens=False))
    room = kwargs.pop("max_gen_toks")
    if room >= lm.max_length:
        raise T2Error(f"max_gen_toks={room} leaves no room for a prompt in the {lm.max_length} tokens that the model can read: give less.")
    ids, mask = lm.tok_batch_encode(contexts, left_truncate_len=lm.max_length - room, truncation=lm.truncation)
    ids, mask = ids.to(lm.device), mask.to(lm.device)
    longest = kwargs.pop("max_length", ids.shape[1] + room)
    steps = STEPS if _rows_can_leave(lm, kwargs) else longest
    rows, cache = list(range(len(contexts))), None  # those that have not ended, and their keys and values
    tokens: list[list[int]] = [[] for _ in rows]
    scores: list[list[float]] = [[] for _ in rows]
    while True:
        noted, start = _LogLikelihoods(), ids.shape[1]
        with lm.bank.row_by_row([mixtures[i] for i in rows]) if mixtures else nullcontext():
            made = lm._model_generate(
                context=ids,
                attention_mask=mask,
                stop=until,
                max_length=min(start + steps, longest),
                past_key_values=cache,
                logits_processor=LogitsProcessorList([noted]),
                return_dict_in_generate=True,
                **kwargs,
            )
        ids, cache = made.sequences, made.past_key_values
        for i, said, scored in zip(rows, ids[:, start:].tolist(), noted.finish(ids[:, -1]).tolist(), strict=True):
            tokens[i] += said
            scores[i] += scored
        if ids.shape[1] < start + steps or ids.shape[1] >= longest:
            break
        left = [k for k, i in enumerate(rows) if not _ended(lm, tokens[i], until)]
        if not left:
            break
        if len(left) < len(rows):
            keep = torch.tensor(left)  # on the CPU: layers may be on several devices
            ids, mask, rows = ids[keep], mask[keep], [rows[k] for k in left]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(rows), ids.shape[1] - start)], 1)
    return [_reply(lm, *row, until) for row in zip(tokens, scores, strict=True)]


def _rows_can_leave(lm: Any, options: dict[str, Any]) -> bool:
    """Return whether a reply is the same if it is made piece by piece, in batches that shrink.

    Not where all rows draw random numbers at once, nor under options that look at a reply's length so far, nor with caches whose rows
    cannot be selected (linear attention).
    """
    layers = DynamicCache(config=lm.model.config.get_text_config(decoder=True)).layers
    return (
        not options["do_sample"]
        and options.keys() <= {"do_sample", "temperature"}
        and lm.model.generation_config.to_diff_dict().keys() <= _WITHOUT_LENGTH
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    )


def _ended(lm: Any, tokens: list[int], until: list[str]) -> bool:
    if not set(_ends(lm)).isdisjoint(tokens):
        return True
    if lm.think_end_token is not None:  # a thought may hold a stop sequence, and goes on
        return False
    text = lm.tok_decode(tokens, skip_special_tokens=False)
    return any(stop and stop in text for stop in until)


def _reply(lm: Any, tokens: list[int], scores: list[float], until: list[str]) -> Reply:
    from lm_eval.models.utils import postprocess_generated_text

    think = lm.think_end_token
    said = tokens
    if isinstance(think, int) and think in tokens:
        said = tokens[len(tokens) - tokens[::-1].index(think) :]
    text = lm.tok_decode(said)
    if isinstance(think, int):
        text = text.lstrip()
    cut = postprocess_generated_text(text, until, think if isinstance(think, str) else None)
    ends = set(_ends(lm))
    count = next((n for n, token in enumerate(tokens, 1) if token in ends), len(tokens))
    if think is None and cut != text:  # else stop sequences inside the thoughts would have to be told apart
        count = min(count, _tokens_until(lm, tokens, until))
    return Reply(cut, sum(scores[:count]), count)


def _tokens_until(lm: Any, tokens: list[int], until: list[str]) -> int:
    """Return the smallest number of tokens whose text holds a stop sequence."""
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if any(stop and stop in lm.tok_decode(tokens[:middle]) for stop in until):
            high = middle
        else:
            low = middle + 1
    return low


def _ends(lm: Any) -> list[int]:
    ends: Any = lm.model.generation_config.eos_token_id
    return [lm.eot_token_id, *(ends if isinstance(ends, list) else [ends])]
