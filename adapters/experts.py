"""Experts on disk: a PEFT adapter folder (adapter_config.json, adapter_model.safetensors) with a card.json beside it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import AdapterError
from .files import write_whole

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "card.json"
ORIGIN = "origin.yaml"
"""In the folder of a training run: where it came from."""
_PREFIX, _SUFFIX = "base_model.model.", ".svf_z"


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a module is in, the first number in its name; None for one outside the layers."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(found.group(1)) if found else None


@dataclass(frozen=True)
class Expert:
    """One expert: a z per adapted matrix.

    Attributes:
        name: of the expert (its folder's).
        path: the folder.
        vectors: module name → z, float32 ``[r]`` (for ``renormalised``: the raw parameter p).
        svf_form: ``scale`` or ``renormalised``.
        base_fingerprint: of the base matrices it was trained on; None if it was not recorded.
        card: what its trainer wrote about it; empty for an adapter without a card.
        sha256: of its weights file.
    """

    name: str
    path: Path
    vectors: Mapping[str, Tensor]
    svf_form: Literal["scale", "renormalised"]
    base_fingerprint: str | None
    card: Mapping[str, Any]
    sha256: str

    @property
    def is_classifier(self) -> bool:
        """True if it was trained to label prompts (``t2 train dispatch``): it serves pass 1, and is no category of its own."""
        return trained_on(self.card) == "dispatch"

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(z.numel() for z in self.vectors.values())

    @property
    def depth(self) -> int:
        """How many layers the model has up to the last one that it adapts, that one included."""
        return 1 + max(layer_of(name) or 0 for name in self.vectors)


def shipped() -> dict[str, Path]:
    """Return name → folder of the experts inside this package."""
    root = Path(__file__).parent / "experts"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CONFIG}"))}


def find_experts(folder: str | Path) -> dict[str, Path]:
    """Return name → folder of the experts in `folder`: itself one, or a folder of such; hidden ones are what a kill has left of one.

    Raises:
        AdapterError: there is none, or it is the folder of a training run, whose checkpoint is no expert yet.
    """
    root = Path(folder).expanduser()
    if (root / CONFIG).is_file():
        return {root.resolve().name: root}
    if (root / ORIGIN).is_file():
        raise AdapterError(f"{root} is a training run. Its expert is in {root / 'expert'}, once the run has ended: name that folder.")
    found = {path.parent.name: path.parent for path in sorted(root.glob(f"[!.]*/{CONFIG}"))}
    if not found:
        raise AdapterError(f"No expert in {root}: neither it nor a folder in it has an {CONFIG}. Train one with `t2 train`.")
    return found


def load_expert(path: str | Path) -> Expert:
    """Read an expert and check it: every file there and whole, hashes as the card says, shapes plain, numbers finite.

    Raises:
        AdapterError: naming the file, what is wrong with it, and what to do.
    """
    path = Path(path).expanduser()
    config = _read_json(path / CONFIG)
    if config.get("peft_type") != "SVF":
        raise AdapterError(f"{path / CONFIG} is a {config.get('peft_type')!r} adapter; an expert is one of type 'SVF'.")
    card = _read_json(path / CARD) if (path / CARD).exists() else {}
    weights = path / WEIGHTS
    if not weights.is_file():
        raise AdapterError(f"{weights} is missing: the expert is incomplete; copy or train it again.")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    files = card.get("files") or {}
    if not isinstance(files, dict):
        raise AdapterError(f"{path / CARD} names {files!r} for its files' hashes. Copy the expert again, or train it again.")
    for name in (CONFIG, WEIGHTS):
        expected = files.get(name)
        found = hashlib.sha256((path / name).read_bytes()).hexdigest()
        if expected and expected != found:
            raise AdapterError(
                f"{path / name} is not the file that its card describes (sha256 {found}, card says {expected}): it was changed or damaged. "
                "Copy it again, or train it again."
            )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{weights} is not a whole safetensors file ({error}); copy or train it again.") from error
    vectors = {}
    for key, z in tensors.items():
        if not (key.startswith(_PREFIX) and key.endswith(_SUFFIX)):
            raise AdapterError(f"{weights} holds {key!r}, which is not a vector of an SVF expert.")
        if z.dim() != 1 or not z.dtype.is_floating_point:
            raise AdapterError(f"{weights}: {key} must be a vector of floating-point numbers; it is {z.dtype} {tuple(z.shape)}.")
        if not torch.isfinite(z).all():
            raise AdapterError(f"{weights}: {key} has NaN or infinite numbers; the expert is unusable, train it again.")
        vectors[key.removeprefix(_PREFIX).removesuffix(_SUFFIX)] = z.float()
    if not vectors:
        raise AdapterError(f"{weights} holds no vectors; the expert is unusable, train it again.")
    form = config.get("svf_form", "scale")
    if form not in ("scale", "renormalised"):
        raise AdapterError(f"{path / CONFIG}: svf_form must be scale or renormalised; got {form!r}.")
    return Expert(path.resolve().name, path, vectors, form, config.get("base_fingerprint"), card, sha256)


def trained_on(card: Mapping[str, Any], what: Literal["task", "dataset"] = "task") -> str | None:
    """Return the training task that a card names, if any, or the data set."""
    data = card.get("data")
    return data.get(what) if isinstance(data, Mapping) else None


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write card.json beside an adapter's files, with their hashes; atomic."""
    files = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)}
    write_whole(path / CARD, (json.dumps({**card, "files": files}, indent=2) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist: {path.parent} is not an expert's folder.") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as JSON ({error}); copy or train the expert again.") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path} must hold a JSON object; it holds {type(value).__name__}.")
    return value
