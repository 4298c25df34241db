"""Hidden states of early layers, and no computation after the last of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import AdapterError

# Letters in the shapes: b prompts in a batch, t tokens of the longest, l layers asked for, h hidden size.


class _Done(Exception):
    """Leaves the forward pass; no error."""


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the model's decoder layers, in order.

    Raises:
        AdapterError: it has no list of as many layers as its configuration says.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not found:
        raise AdapterError(f"{type(model).__name__} has no list of {count} decoder layers, which a probe needs: choose another dispatch.")
    return found[0]


def mean_states(model: Any, rows: Sequence[Sequence[int]], layers: Sequence[int], pad_id: int = 0) -> Tensor:
    """Return each row's mean hidden state after each of `layers` ``[b, l, h]`` float32; what comes after the last one is not computed.

    Args:
        model: a causal language model in eval mode.
        rows: token ids, at least one a row. Attention is causal, so padding on the right changes nothing to their left.
        layers: after how many layers, ascending, each at least 1.
        pad_id: any token id.
    """
    device = model.get_input_embeddings().weight.device
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(width, device=device) < lengths[:, None]
    means: list[Tensor] = []

    def take(module: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        inside = mask.to(states.device).unsqueeze(-1)
        total = states.float().masked_fill(~inside, 0).sum(1)
        means.append((total / lengths.to(states.device)[:, None]).to(device))
        if len(means) == len(layers):
            raise _Done

    blocks = decoder_layers(model)
    hooks = [blocks[i - 1].register_forward_hook(take) for i in layers]
    try:
        model(input_ids=ids, use_cache=False)
    except _Done:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(means, dim=1)
