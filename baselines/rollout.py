"""Sampling replies from the policy. Shapes: B replies, P prompt tokens (left-padded), T reply tokens (right-padded)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils import resolve_max_length
from peft.helpers import DoraCaching
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..harness.errors import T2Error
from .memory import freed_tensors_kept, return_free_pages


@dataclass
class Rollouts:
    """A batch of prompts with replies.

    Attributes:
        ids: token ids, int64 ``[B, P + T]``.
        mask: attention, int64 ``[B, P + T]``: 1 on prompt and reply tokens (the end-of-text token included), 0 on padding.
        reply_mask: float32 ``[B, T]``: 1 on reply tokens.
        texts: the replies, special tokens removed.
    """

    ids: Tensor
    mask: Tensor
    reply_mask: Tensor
    texts: list[str]

    def to(self, device: torch.device) -> "Rollouts":
        """Return the batch on `device`."""
        return Rollouts(self.ids.to(device), self.mask.to(device), self.reply_mask.to(device), self.texts)

    @property
    def reply_length(self) -> int:
        """T."""
        return self.reply_mask.shape[1]

    def rows(self, index: Tensor) -> "Rollouts":
        """Return the replies `index` ``[b]``, without the columns that are padding in all of them."""
        ids, mask, reply = self.ids[index], self.mask[index], self.reply_mask[index]
        prompt = ids.shape[1] - reply.shape[1]
        start = int(mask[:, :prompt].sum(1).max())
        length = max(int(reply.sum(1).max()), 1)
        keep = slice(prompt - start, prompt + length)
        return Rollouts(ids[:, keep], mask[:, keep], reply[:, :length], [self.texts[i] for i in index.tolist()])


def chat_template(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str] | None:
    """Return what renders messages by the tokenizer's chat template, as lm-eval's models do; None where it has none."""
    if tokenizer.chat_template is None:
        return None

    def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        from jinja2 import TemplateError

        how: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **how))  # type: ignore[arg-type]
        except TemplateError:  # it has no system turn
            kept = [message for message in messages if message["role"] != "system"]
            return str(tokenizer.apply_chat_template(kept, tokenize=False, **how))  # type: ignore[arg-type]

    return render


def chat_prompts(tokenizer: PreTrainedTokenizerBase, messages: Sequence[str]) -> list[str]:
    """Wrap each user message in the tokenizer's chat template; where it has none the message is the prompt."""
    render = chat_template(tokenizer)
    return list(messages) if render is None else [render([{"role": "user", "content": message}]) for message in messages]


def prompt_room(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> int:
    """Return how many tokens of a prompt the model can read beside a reply, as lm-eval counts them.

    Raises:
        T2Error: none.
    """
    limit = resolve_max_length(model.config, tokenizer)
    if max_new_tokens >= limit:
        raise T2Error(f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the {limit} tokens that the model reads: give less.")
    return limit - max_new_tokens


def whole_prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of prompts; those in a chat template carry its special tokens already.

    Raises:
        T2Error: one has none.
    """
    ids: list[list[int]] = tokenizer(list(prompts), add_special_tokens=tokenizer.chat_template is None)["input_ids"]  # type: ignore[assignment]
    if not all(ids):
        raise T2Error(
            "A prompt of the task is empty, and the tokenizer begins with no token of its own, so there is nothing to reply to: see the "
            "task's doc_to_text, or take a model with a chat template."
        )
    return ids


def prompt_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
    """Return the tokens of prompts, of a long one the last that the model can read beside a reply: lm-eval cuts alike."""
    room = prompt_room(model, tokenizer, max_new_tokens)
    return [row[-room:] for row in whole_prompt_ids(tokenizer, prompts)]


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float,
) -> Rollouts:
    """Sample one reply a prompt (greedy for `temperature` 0), all at a time.

    Sampling is from the full distribution: no top-k, no top-p, so that the log-probabilities of the gradient step are those of the policy
    that sampled.
    """
    device = next(model.parameters()).device
    rows = prompt_ids(model, tokenizer, prompts, max_new_tokens)
    width = max(map(len, rows))
    asked = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {"do_sample": False}
    stop = end_ids(model, tokenizer)
    how = {"max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": stop, **sampling}
    with freed_tensors_kept(_keys_bytes(model, len(rows), width + max_new_tokens)), _dora_norms_kept(model):
        ids = model.generate(input_ids=asked, attention_mask=mask, **how)  # type: ignore[operator]
    return_free_pages()
    reply = ids[:, width:]
    ends = torch.isin(reply, torch.tensor(stop, device=device))
    # a token belongs to the reply if no end-of-text came before it
    reply_mask = (ends.cumsum(1) - ends.long() == 0).float()
    texts = tokenizer.batch_decode([row[keep.bool()] for row, keep in zip(reply, reply_mask, strict=True)], skip_special_tokens=True)
    return Rollouts(ids, torch.cat([mask, reply_mask.long()], 1), reply_mask, list(texts))


def _keys_bytes(model: nn.Module, replies: int, length: int) -> int:
    """Return the size of one layer's keys or values, one of each for every head of the queries, after `length` tokens of each reply."""
    embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
    return replies * length * embeddings.shape[1] * embeddings.element_size()


@contextmanager
def _dora_norms_kept(model: nn.Module) -> Iterator[None]:
    """Within the block DoRA multiplies its matrices out and norms its weights once, not for every token."""
    with DoraCaching():
        yield
    mode = model.training
    model.train()  # lets PEFT forget them: the weights may change before they are used again
    model.train(mode)


def own_ends(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the model's generation settings name as ends of a reply, or else its tokenizer's.

    Raises:
        T2Error: neither the model nor its tokenizer has one.
    """
    end = getattr(model.generation_config, "eos_token_id", None)
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise T2Error("Neither the model's generation_config nor its tokenizer names an end-of-text token: replies have no end.")
    return list(end) if isinstance(end, (list, tuple)) else [int(end)]  # type: ignore[arg-type]


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a reply: the model's own and its tokenizer's end of text, at which lm-eval stops as well."""
    ends = own_ends(model, tokenizer)
    return ends if tokenizer.eos_token_id in (None, *ends) else [*ends, int(tokenizer.eos_token_id)]  # type: ignore[arg-type]


def reply_end(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that a reply is taught to end with: the tokenizer's end of text if the model names it too, else one that it does.

    A model that learns another never ends its replies outside lm-eval.
    """
    ends = own_ends(model, tokenizer)
    return tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]  # type: ignore[return-value]
