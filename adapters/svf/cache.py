"""Bases on disk, keyed by the weight's hash: computed once per matrix, never trusted unless the hash matches."""

import hashlib
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import write_whole
from ..paths import cache_dir
from .basis import Basis, compute_basis

logger = logging.getLogger("t2.svf")

FORMAT = "1"
"""Part of every key: raise it when what is stored changes."""


def weight_hash(weight: Tensor) -> str:
    """Return the sha256 of a weight's shape and values; the same for the same values in bfloat16, float16 and float32."""
    data = weight.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(repr(tuple(data.shape)).encode())
    digest.update(data.numpy().data)
    return digest.hexdigest()


def cached_basis(weight: Tensor, folder: Path | None = None) -> Basis:
    """Return the basis of `weight` from the disk cache, computing and storing it if it is not there.

    Args:
        weight: ``[m, n]``, any floating dtype.
        folder: where bases are kept; ``<cache>/svf-basis`` by default. A folder that cannot be written costs a warning, no more.

    A file that is truncated, corrupt or of other content is said in a warning and rebuilt.
    """
    key = weight_hash(weight)
    path = _path(key, folder)
    if (stored := _stored(path, key, weight)) is not None:
        return stored
    basis = compute_basis(weight)
    try:
        _save(path, basis, key)
    except OSError as error:
        logger.warning("Could not store a basis at %s (%s); it will be computed again next time.", path, error)
    return basis


def stored_basis(weight: Tensor) -> Basis | None:
    """Return the basis of `weight` if it is in the disk cache, sound; computes and stores nothing."""
    key = weight_hash(weight)
    return _stored(_path(key), key, weight)


def _path(key: str, folder: Path | None = None) -> Path:
    return (folder or cache_dir() / "svf-basis") / key[:2] / f"{key}.safetensors"


def _stored(path: Path, key: str, weight: Tensor) -> Basis | None:
    try:
        if path.exists():
            return _load(path, key, weight).to(weight.device)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        logger.warning("Basis cache %s is unusable (%s); computing it again.", path, error)
    return None


def _content_hash(basis: Basis) -> str:
    digest = hashlib.sha256(basis.vectors.cpu().contiguous().numpy().data)
    digest.update(basis.sigma.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _load(path: Path, key: str, weight: Tensor) -> Basis:
    with safe_open(path, framework="pt") as f:
        meta = f.metadata() or {}
        if meta.get("format") != FORMAT or meta.get("weight") != key:
            raise ValueError("it is of another weight or format")
        basis = Basis(f.get_tensor("vectors"), f.get_tensor("sigma"), meta.get("side") == "left")
    rank = min(weight.shape)
    if basis.vectors.shape != (rank, rank) or basis.sigma.shape != (rank,):
        raise ValueError(f"its shape {tuple(basis.vectors.shape)} is not {(rank, rank)}")
    if _content_hash(basis) != meta.get("content"):
        raise ValueError("its content does not match its hash")
    return basis


def _save(path: Path, basis: Basis, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"format": FORMAT, "weight": key, "side": "left" if basis.left else "right", "content": _content_hash(basis)}
    tensors = {"vectors": basis.vectors.cpu().contiguous(), "sigma": basis.sigma.cpu().contiguous()}
    write_whole(path, save(tensors, metadata=meta))
