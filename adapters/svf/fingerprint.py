"""Which base model an expert belongs to, told from the adapted weights themselves."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import AdapterError

_SMALLEST_FP16 = 2.0**-14


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that tell one set of base matrices from another.

    Args:
        weights: module name → weight ``[m, n]``.

    A bfloat16 checkpoint has the same fingerprint when it is loaded as bfloat16, float16 or float32: values are rounded to bfloat16,
    and those too small for float16's normal range count as zero.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().to(torch.bfloat16)
        value = torch.where(value.abs() < _SMALLEST_FP16, torch.zeros_like(value), value).cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.view(torch.int16).numpy().data)
    return digest.hexdigest()[:16]


def check_fingerprint(weights: Mapping[str, Tensor], expected: str, what: str) -> None:
    """Compare the fingerprint of `weights` with `expected`; weights on the meta device cannot be told and pass.

    Raises:
        AdapterError: they differ.
    """
    if any(w.device.type == "meta" for w in weights.values()):
        return
    found = fingerprint(weights)
    if found != expected:
        raise AdapterError(
            f"{what} was trained on a base model with fingerprint {expected}, but this model's is {found}: an expert scales the singular "
            "values of the weights it was trained on. Load that base model (its name is in the expert's card), or train an expert for this "
            "one with `t2 train`."
        )
