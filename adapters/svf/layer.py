"""The layer that PEFT puts around an adapted `nn.Linear`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ..errors import AdapterError
from .apply import LEAST_Z, MaterialisedLinear, adapted_weight, factored_linear
from .basis import Basis, renormalised_scale
from .cache import cached_basis
from .config import SvfConfig, SvfForm

OFFLOADED = (
    "is offloaded to CPU or disk, where experts cannot scale it: give the model more GPUs (device_map, max_memory) or a smaller dtype, or "
    "answer with the base alone (strategy=base)."
)
"""What is wrong with a weight on the meta device, for messages."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _Adapted(NamedTuple):
    """A W' that was formed without gradients, and all that it was formed from."""

    names: list[str]
    weight: Tensor
    version: int
    places: list[tuple[int, int]]
    z: Tensor
    value: Tensor


def check_untied(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """See that no matrix of `weights` (name of the module → weight) is an embedding too, which merging would change with it.

    Raises:
        AdapterError: one is.
    """
    embeddings = {id(module.weight): name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    for name, weight in weights.items():
        if (tied := embeddings.get(id(weight))) is not None:
            raise AdapterError(
                f"{what} adapts {name!r}, whose weight is that of the embedding {tied!r} too, so that merging would change what the model "
                f"reads as well as what it says: leave {name.rpartition('.')[2]} out of target_modules."
            )


class _Scales(nn.ParameterDict):
    """z ``[r]`` of every adapter. A model that is cast leaves them in float32, where steps of 1e-3 around 1 are not rounded away."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(lambda z: fn(z).float() if z.is_meta else z.to(fn(z).device), recurse)


class SvfLayer(BaseTunerLayer):
    """State of SVF on one matrix: a z ``[r]`` per adapter, and the basis, which is found on first use.

    The basis lives outside the module's buffers: `model.to(dtype)` must not round it.
    """

    adapter_layer_names = ("svf_z",)

    def __init__(self, base_layer: nn.Module) -> None:
        self.base_layer = base_layer
        self.svf_z = _Scales()
        self.svf_form: dict[str, SvfForm] = {}
        self._disable_adapters = False
        self.merged_adapters = []
        self._pristine: Tensor | None = None
        self._basis: Basis | None = None
        self._adapted: _Adapted | None = None
        layer = self.get_base_layer()
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"SVF adapts nn.Linear layers; {type(layer).__name__} is not one. Choose other target_modules.")
        if layer.weight.dtype not in _DTYPES:
            raise ValueError(f"SVF adapts weights in float32, bfloat16 or float16; a {type(layer).__name__} has {layer.weight.dtype}.")
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def update_layer(self, adapter_name: str, config: SvfConfig, **kwargs: Any) -> None:
        """Add an adapter that leaves the weight as it is: z = 1 (for ``renormalised`` p = 0, where every m is 1/2)."""
        start = 1.0 if config.svf_form == "scale" else 0.0
        self.svf_z[adapter_name] = nn.Parameter(torch.full((min(self.in_features, self.out_features),), start))
        self.svf_form[adapter_name] = config.svf_form
        self._move_adapter_to_device_of_base_layer(adapter_name)
        # PEFT gives it the dtype of the base layer's weight
        if self.svf_z[adapter_name].device.type != "meta":
            self.svf_z[adapter_name].data = self.svf_z[adapter_name].data.float()
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def basis(self) -> Basis:
        """Return the basis of the base weight on its device, from memory, disk, or a computation, in this order.

        Raises:
            AdapterError: the weight is not here.
        """
        weight = self.base_weight()
        if weight.is_meta:
            raise AdapterError(f"A weight of shape {tuple(weight.shape)} that an SVF adapter scales {OFFLOADED}")
        if self._basis is None:
            self._basis = cached_basis(weight)
        self._basis = self._basis.to(weight.device)
        return self._basis

    def base_weight(self) -> Tensor:
        """Return the weight that z scales ``[out, in]``, also while an adapter is merged."""
        return self.get_base_layer().weight if self._pristine is None else self._pristine  # type: ignore[return-value]

    def scale(self, adapter_name: str) -> Tensor:
        """Return z ``[r]`` of an adapter, whichever form it is stored in."""
        z = self.svf_z[adapter_name].float()
        return renormalised_scale(z, self.basis().sigma) if self.svf_form[adapter_name] == "renormalised" else z

    def active_scale(self, names: list[str]) -> Tensor:
        """Return 1 + Σ(z_k - 1) ``[r]`` over the adapters `names`: what several active adapters mean in PEFT."""
        scales = [self.scale(name) for name in names]
        return scales[0] if len(scales) == 1 else 1 + torch.stack([z - 1 for z in scales]).sum(0)

    def adapted(self, names: list[str], decoding: bool = False) -> Tensor:
        """Return W' ``[out, in]`` in the base's dtype, without gradient; it is kept until a z changes.

        The numbers of z are compared, since those of `z.data` can change without a trace; within a generation (`decoding`: one new token
        a sequence) only where z lies and how often PyTorch saw it change, which spares a GPU one synchronisation a layer and token.
        """
        weight = self.base_weight()
        places = [(self.svf_z[name].data_ptr(), self.svf_z[name]._version) for name in names]
        with torch.no_grad():
            kept = self._adapted
            same = (
                kept is not None
                and (kept.names, kept.version) == (names, weight._version)
                and kept.weight is weight
                and (kept.value.device, kept.value.dtype) == (weight.device, weight.dtype)
            )
            if same:
                same = kept.places == places if decoding else torch.equal(kept.z, self.active_scale(names))  # type: ignore[union-attr]
            if not same:
                z = self.active_scale(names).clone()
                value = adapted_weight(weight, self.basis(), z)
                kept = self._adapted = _Adapted(list(names), weight, weight._version, places, z, value)
        return kept.value  # type: ignore[union-attr]


class Linear(nn.Module, SvfLayer):
    """`nn.Linear` under SVF."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: SvfConfig, **kwargs: Any) -> None:
        super().__init__()
        SvfLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write W' into the base layer; the base weight is kept, so `unmerge` is exact.

        Raises:
            ValueError: with `safe_merge`, if W' has NaN or infinite entries.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.svf_z]
        if not names:
            return
        base_layer = self.get_base_layer()
        weight = self.base_weight()
        with torch.no_grad():
            # z of adapters that are merged already is applied again from the base weight, so nothing accumulates
            merged = adapted_weight(weight.data, self.basis(), self.active_scale([*self.merged_adapters, *names]))
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken")
        if self._pristine is None:
            self._pristine = base_layer.weight.data  # type: ignore[assignment]
        base_layer.weight.data = merged  # type: ignore[union-attr]
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if self._pristine is not None:
            self.get_base_layer().weight.data = self._pristine  # type: ignore[union-attr]
            self._pristine = None
            self.merged_adapters = []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the layer, and with it the base weight that is kept while an adapter is merged."""
        super()._apply(fn, recurse)
        if self._pristine is not None:
            self._pristine = fn(self._pristine)
        self._adapted = None
        return self

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``[..., out]`` for x ``[..., in]``, by W', which is formed once and kept until a z changes.

        A z near 0 is trained through Q: the gradient that `MaterialisedLinear` takes from the output divides by it.
        """
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.svf_z]
        if self.merged or not names:
            return self.base_layer(x, *args, **kwargs)
        layer = self.get_base_layer()
        bias = layer.bias  # type: ignore[union-attr]
        if torch.is_grad_enabled() and any(self.svf_z[name].requires_grad for name in names):
            z = self.active_scale(names)
            if bool((z.detach().abs() < LEAST_Z).any()):
                return factored_linear(x, self.base_weight(), bias, self.basis(), z)  # type: ignore[arg-type]
            basis = self.basis()
            y = MaterialisedLinear.apply(x, z, self.adapted(names).to(x.dtype), basis.vectors, basis.left)
            return y if bias is None else y + bias  # type: ignore[return-value]
        return F.linear(x, self.adapted(names, decoding=x.dim() == 3 and x.shape[1] == 1).to(x.dtype), bias)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return "svf." + super().__repr__()
