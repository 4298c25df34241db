"""Answers of a transformers model and their log-likelihoods from one pass: the scores that chose the tokens are the scores, no second forward."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ...adapters.mixture import Mixture
from .reply import Reply


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
            with lm.bank.row_by_row([mixtures[i] for i in part]) if mixtures else nullcontext():
                found = _batch(lm, [requests[i].args[0] for i in part], requests[part[0]].args[1])
            for i, reply in zip(part, found, strict=True):
                replies[i] = reply
    return replies  # type: ignore[return-value]


def _batch(lm: Any, contexts: list[str], options: dict[str, Any]) -> list[Reply]:
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(options, lm.max_gen_toks))
    until = handle_stop_sequences(kwargs.pop("until", None), eos=lm.tok_decode(lm.eot_token_id, skip_special_tokens=False))
    room = kwargs.pop("max_gen_toks")
    ids, mask = lm.tok_batch_encode(contexts, left_truncate_len=lm.max_length - room, truncation=lm.truncation)
    ids, mask = ids.to(lm.device), mask.to(lm.device)
    noted = _LogLikelihoods()
    made = lm._model_generate(
        context=ids,
        attention_mask=mask,
        stop=until,
        max_length=kwargs.pop("max_length", ids.shape[1] + room),
        logits_processor=LogitsProcessorList([noted]),
        **kwargs,
    )
    scores = noted.finish(made[:, -1]).cpu()
    return [_reply(lm, row[ids.shape[1] :], scores[i], until) for i, row in enumerate(made.tolist())]


def _reply(lm: Any, tokens: list[int], scores: Tensor, until: list[str]) -> Reply:
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
    return Reply(cut, float(scores[:count].sum()), count)


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
