"""Experts of one model put on another (section 4.4 and table 5 of the paper): z by the order of singular values.

Number i of a vector belongs to the i-th largest singular value of its matrix, in any model. Rules, where the models differ:

- matrices are matched by name; the target's matrices that have no counterpart stay unadapted, surplus ones of the source are dropped;
- a target of larger rank has z = 1 on the singular values past the source's, one of smaller rank drops the source's last numbers.

The shuffled control permutes the numbers within each matrix: what it gains is not due to the order.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import AdapterError
from .experts import WEIGHTS, Expert, load_expert, write_card
from .svf import SvfConfig, fingerprint


@dataclass(frozen=True)
class Transferred:
    """What became of an expert.

    Attributes:
        path: the new expert's folder.
        matched: matrices that both models have.
        dropped: names of the source's matrices that the target lacks.
        resized: names of the matrices whose rank differs.
    """

    path: Path
    matched: int
    dropped: tuple[str, ...]
    resized: tuple[str, ...]


def target_folder(expert: Expert, folder: Path, shuffle: int | None = None) -> Path:
    """Return the folder that `transfer` makes.

    Raises:
        AdapterError: it is there already, or the seed is none.
    """
    if shuffle is not None and not -(2**63) <= shuffle < 2**64:
        raise AdapterError(f"--shuffle {shuffle}: a seed is a whole number of 64 bits at most.")
    path = folder / f"{expert.name}_{'transferred' if shuffle is None else f'shuffled{shuffle}'}"
    if path.exists():
        raise AdapterError(f"{path} is there already: delete it, or choose another --output.")
    return path


def transfer(expert: Expert, target: nn.Module, target_name: str, folder: Path, shuffle: int | None = None) -> Transferred:
    """Write `expert` as an expert of `target`, into ``folder/<name>_transferred``, or ``…_shuffled<seed>``; atomic.

    Args:
        expert: of the source model.
        target: the other model, its base weights in place.
        target_name: for the card.
        folder: where expert folders are kept.
        shuffle: seed of the shuffled control; None keeps the order.

    Raises:
        AdapterError: no matrix in common, ranks that differ for a ``renormalised`` expert, or a folder that exists or cannot be written.
    """
    path = target_folder(expert, folder, shuffle)
    layers = {name: module for name, module in target.named_modules() if isinstance(module, nn.Linear)}
    matched = [name for name in sorted(expert.vectors) if name in layers]
    if not matched:
        raise AdapterError(
            f"Expert {expert.name!r} adapts {sorted(expert.vectors)[0]!r} and the like; {target_name} has no matrix of these names, so "
            "there is nothing to transfer to."
        )
    random = None if shuffle is None else torch.Generator().manual_seed(shuffle)
    vectors, resized = {}, []
    for name in matched:
        z, rank = expert.vectors[name], min(layers[name].weight.shape)
        if z.numel() != rank:
            resized.append(name)
            if expert.svf_form == "renormalised":
                raise AdapterError(
                    f"{name} has rank {rank} in {target_name}, {z.numel()} for expert {expert.name!r}, whose numbers are of the form "
                    "renormalised: they mean something only together. Transfer experts of the form scale, or to a model of the same ranks."
                )
            z = by_order(z, rank)
        vectors[name] = z if random is None else z[torch.randperm(rank, generator=random)]
    base = fingerprint({name: layers[name].weight for name in matched})
    dropped = tuple(name for name in sorted(expert.vectors) if name not in layers)
    card = {
        "name": path.name,
        "description": expert.card.get("description", ""),
        "base_model": target_name,
        **({"data": expert.card["data"]} if "data" in expert.card else {}),  # a classifier stays one
        "transferred": {
            "from": expert.name,
            "sha256": expert.sha256,
            "from_base_fingerprint": expert.base_fingerprint,
            "rule": "by singular-value order" if shuffle is None else f"shuffled within each matrix, seed {shuffle}",
            "matrices": len(matched),
            "dropped": len(dropped),
            "resized": len(resized),
        },
    }
    _write(path, vectors, SvfConfig(target_modules=matched, svf_form=expert.svf_form, base_fingerprint=base, inference_mode=True), card)
    return Transferred(path, len(matched), dropped, tuple(resized))


def by_order(z: Tensor, rank: int) -> Tensor:
    """Return z ``[rank]`` of z ``[r]``: index i onto index i, 1 past the end."""
    found = torch.ones(rank, dtype=z.dtype)
    found[: z.numel()] = z[:rank]
    return found


def _write(path: Path, vectors: dict[str, Tensor], config: SvfConfig, card: dict[str, object]) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        config.task_type = "CAUSAL_LM"  # type: ignore[assignment]
        config.save_pretrained(str(temporary))
        save_file({f"base_model.model.{name}.svf_z": z.contiguous() for name, z in vectors.items()}, temporary / WEIGHTS)
        write_card(temporary, card)
        load_expert(temporary)
        temporary.chmod(0o755)
        os.replace(temporary, path)
    except OSError as error:
        raise AdapterError(f"{path} cannot be written ({error.strerror or error}): make room or choose another --output.") from None
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
