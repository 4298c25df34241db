"""The singular values of a model's weight matrices, per layer and kind of module: how much room an expert has (figures 10 and 11)."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import AdapterError
from .svf.cache import stored_basis

_PLACE = re.compile(r"(?:^|\.)(\d+)\.(.+)$")  # model.layers.7.mlp.up_proj: layer 7, mlp.up_proj


def layer_matrices(model: nn.Module) -> Iterator[tuple[str, int, Tensor]]:
    """Yield (kind of module, layer, weight) of every linear module inside a numbered layer: not of embeddings and heads."""
    for name, module in model.named_modules():
        place = _PLACE.search(name)
        if place and isinstance(module, nn.Linear | Conv1D):
            yield place.group(2), int(place.group(1)), module.weight


def singular_values(weight: Tensor) -> Tensor:
    """Return σ, float64 ``[r]``, descending, of a weight ``[m, n]``, r = min(m, n).

    From the cache of bases if they are there, else by the eigenvalues of the smaller of W Wᵀ and Wᵀ W: several times quicker than an
    SVD, and exact enough for shares of variance. Nothing is stored: bases of a large model are as large as the model.

    Raises:
        AdapterError: `weight` is quantised, or has NaN or infinite entries.
    """
    if not weight.dtype.is_floating_point or weight.dim() != 2:
        raise AdapterError(f"A weight is {weight.dtype} of shape {tuple(weight.shape)}: load the model without quantisation.")
    w = weight.detach().double()
    if not torch.isfinite(w).all():
        raise AdapterError("A weight has NaN or infinite entries, so it has no singular values: the checkpoint is damaged.")
    if (stored := stored_basis(weight)) is not None:
        return stored.sigma.double()
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def explained_variance(sigma: Tensor) -> Tensor:
    """Return Σ_{i<k} σ_i² / Σ σ_i² for k = 1 … r, ``[r]``; zeros for a matrix of zeros."""
    variance = sigma.double() ** 2
    return variance.cumsum(0) / variance.sum().clamp_min(torch.finfo(torch.float64).tiny)
