"""Which base model an expert belongs to, told from the adapted weights themselves."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import AdapterError

_SMALLEST_FP16 = 2.0**-14
_SAMPLE = 4096


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


def model_fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that tell one model's weights from another's, in well under a second also for large ones.

    Up to 4096 evenly spread numbers of every tensor are hashed, rounded to bfloat16, so that a bfloat16 checkpoint has one fingerprint in
    bfloat16 and float32, and in float16 too unless one of them is below 2^-17, where float16 rounds it (none of the default model's is).
    Any training moves all numbers of a matrix, so a sample tells; an edit of a few numbers by hand may go unseen.
    """
    digest = hashlib.sha256()
    for name, tensor, flat in _tensors(model):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if flat is not None:
            sample = flat[:: max(1, flat.numel() // _SAMPLE)]
            digest.update(sample.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 of every byte of a model's weights; of what is offloaded only the shape."""
    digest = hashlib.sha256()
    for name, tensor, flat in _tensors(model):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        if flat is not None:
            digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield name, tensor, and its numbers in a row, those of this process where it is sharded; None where there are none here."""
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.device.type == "meta" or not tensor.numel():
            yield name, tensor, None
            continue
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        yield name, tensor, local.detach().reshape(-1)
