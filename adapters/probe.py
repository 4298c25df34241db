"""A probe on disk: a logistic classifier of prompts on the mean hidden state after an early layer (probe.safetensors and card.json)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .early_exit import decoder_layers
from .errors import AdapterError
from .experts import CARD, CONFIG
from .files import write_whole
from .svf import fingerprint

WEIGHTS = "probe.safetensors"
FOLDER = "probe"
"""Where a probe lies beside the experts that it chooses between."""


@dataclass(frozen=True)
class Probe:
    """P(category | prompt) = softmax(V x + b), x the prompt's mean hidden state after `layer` layers.

    Attributes:
        categories: names of the experts that it chooses between (k of them).
        layer: after how many decoder layers x is taken, at least 1.
        weight: V ``[k, h]`` float32, the scaling of x included.
        bias: b ``[k]`` float32.
        base_fingerprint: of the layers that compute x, see `layers_fingerprint`.
        sha256: of its weights file; empty before it is written.
    """

    categories: tuple[str, ...]
    layer: int
    weight: Tensor
    bias: Tensor
    base_fingerprint: str
    sha256: str = ""

    def probabilities(self, states: Tensor) -> Tensor:
        """Return ``[b, k]`` for mean hidden states ``[b, h]``."""
        return (states.float() @ self.weight.to(states.device).T + self.bias.to(states.device)).softmax(-1)

    def check(self, model: Any, experts: Sequence[str], where: str) -> None:
        """See that the probe is for this model and can choose each of `experts`.

        Raises:
            AdapterError: another base model, or an expert that the probe has no category for.
        """
        cure = "Train a probe for this model and these experts: `t2 probe --help`."
        if missing := sorted(set(experts) - set(self.categories)):
            raise AdapterError(f"The probe {where} chooses between {', '.join(self.categories)}, not {', '.join(missing)}. {cure}")
        fits = model.get_input_embeddings().weight.shape[1] == self.weight.shape[1] and self.layer <= len(decoder_layers(model))
        found = layers_fingerprint(model, self.layer) if fits else None
        if found != self.base_fingerprint:
            raise AdapterError(
                f"The probe {where} was trained on a base model whose first {self.layer} layers have the fingerprint "
                f"{self.base_fingerprint}; this model's is {found or 'none, it has other sizes'}. {cure}"
            )


def layers_fingerprint(model: Any, layer: int) -> str:
    """Return the fingerprint of the matrices in the first `layer` decoder layers, see `svf.fingerprint`."""
    blocks = list(decoder_layers(model))[:layer]
    return fingerprint({f"{i}.{name}": p for i, block in enumerate(blocks) for name, p in block.named_parameters() if p.dim() == 2})


def load_probe(folder: Path) -> Probe:
    """Read a probe and check it against its card.

    Raises:
        AdapterError: naming the file, what is wrong with it, and what to do.
    """
    cure = "Copy it again, or train it again with `t2 probe`."
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        data = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise AdapterError(f"{folder} is not the folder of a probe: {missing} is missing. Train one with `t2 probe`.") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / CARD} cannot be read as JSON ({error}). {cure}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if not isinstance(card, dict) or card.get("kind") != "probe":
        raise AdapterError(f"{folder / CARD} is not the card of a probe. {cure}")
    files = card.get("files")
    if not isinstance(files, dict) or files.get(WEIGHTS) != sha256:
        raise AdapterError(f"{folder / WEIGHTS} is not the file that its card describes (sha256 {sha256}): changed or damaged. {cure}")
    try:
        tensors = load(data)
        weight, bias = tensors["weight"].float(), tensors["bias"].float()
        categories, layer = tuple(map(str, card["categories"])), int(card["layer"])
        whole = weight.shape[:1] == bias.shape == (len(categories),) and weight.dim() == 2 and layer >= 1
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{folder} is not a whole probe ({type(error).__name__}: {error}). {cure}") from error
    if not whole or not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise AdapterError(f"{folder} is not a whole probe: its numbers are not finite, or not as many as its card says. {cure}")
    return Probe(categories, layer, weight, bias, str(card.get("base_fingerprint")), sha256)


def check_folder(folder: Path) -> None:
    """See, before a probe is trained, that `folder` can take one; make it if need be.

    Raises:
        AdapterError: an expert lies there, whose card the probe's would replace, or the folder cannot be written to.
    """
    if (folder / CONFIG).exists():
        raise AdapterError(f"{folder} is an expert's folder, whose {CARD} a probe's would replace: name another, {folder / 'probe'} say.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{CARD}.test", b"")
        (folder / f"{CARD}.test").unlink()
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written to ({error.strerror}): name another.") from None


def save_probe(probe: Probe, folder: Path, card: Mapping[str, Any]) -> None:
    """Write a probe and its card, each whole; the weights last, so that half a probe is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({"weight": probe.weight.contiguous(), "bias": probe.bias.contiguous()})
    told = {
        "kind": "probe",
        "categories": list(probe.categories),
        "layer": probe.layer,
        "base_fingerprint": probe.base_fingerprint,
        **card,
        "files": {WEIGHTS: hashlib.sha256(data).hexdigest()},
    }
    write_whole(folder / CARD, (json.dumps(told, indent=2) + "\n").encode())
    write_whole(folder / WEIGHTS, data)
