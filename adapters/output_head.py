"""The output head reads contiguous rows."""

from typing import Any

from torch import Tensor, nn


def read_contiguous_rows(model: Any) -> None:
    """Make the output head of a causal language model copy its input where that is a view of some positions, ``[b, kept, hidden]``.

    transformers' ``logits_to_keep`` hands the head such a view. For bfloat16 on a CPU, PyTorch (2.13) then multiplies sample by sample
    and copies the head's weight ``[vocabulary, hidden]`` once for each of the b samples, which costs more time and memory than all layers.
    """
    head = model.get_output_embeddings()
    if isinstance(head, nn.Module):
        head.register_forward_pre_hook(_contiguous)


def _contiguous(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (arguments[0].contiguous(), *arguments[1:])
