"""The expert bank: named experts over one model, whose weights hold one mixture of them at a time."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .errors import AdapterError
from .experts import Expert, layer_of, load_expert, shipped
from .memory import free_memory
from .mixture import BASE, Mixture
from .svf import Basis, cached_basis, check_fingerprint, renormalised_scale
from .svf.apply import adapted_weight, delta_weight, factored_linear
from .svf.layer import OFFLOADED, check_untied

logger = logging.getLogger("t2.experts")


UNKNOWN = Mixture((("?", 1.0),))
"""In force while weights are exchanged: should that end halfway, the next call changes them whatever it asks for."""


class Bank:
    """Experts that fit a model, and the one mixture that its weights hold now; a subclass knows where the weights are.

    Args:
        experts: name → expert.

    Raises:
        AdapterError: an expert that is called ``base``.
    """

    def __init__(self, experts: Mapping[str, Expert]) -> None:
        self.experts = dict(experts)
        self.current = Mixture.base()
        self.switches = 0
        if BASE in self.experts:
            raise AdapterError(f"An expert cannot be called {BASE!r}, which means the unadapted weights: give it another name.")

    @property
    def names(self) -> list[str]:
        """Names of the experts, sorted."""
        return sorted(self.experts)

    @property
    def answering(self) -> list[str]:
        """Names of the experts that answer prompts, sorted: all but classifiers."""
        return [name for name in self.names if not self.experts[name].is_classifier]

    def check(self, mixture: Mixture) -> None:
        """Raise `AdapterError` (nearest name suggested) if `mixture` names an expert that is not here."""
        for name in mixture.experts:
            if name not in self.experts:
                close = get_close_matches(name, self.names, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise AdapterError(f"Unknown expert {name!r}.{hint} Experts for this model: {', '.join(self.names) or 'none'}.")

    def apply(self, mixture: Mixture) -> bool:
        """Make the model's weights those of `mixture`; return True if they had to be switched.

        Raises:
            AdapterError: an unknown expert; the weights stay as they are.
        """
        self.check(mixture)
        if mixture == self.current:
            return False
        self._switch(mixture)
        self.current = mixture
        self.switches += 1
        return True

    def prepare(self, mixture: Mixture, quiet: bool = False) -> None:
        """Do beforehand what any mixture of these experts needs, so that no pass is timed with it."""

    @contextmanager
    def linear_mixing(self) -> Iterator[bool]:
        """Within the block, make mixtures without matrix products, for a search that tries hundreds; False where that cannot be."""
        yield False

    def with_experts(self, experts: Mapping[str, Expert]) -> Self:
        """Return a bank of other experts over the same model, whose weights are the base's.

        Raises:
            AdapterError: as for the class.
        """
        raise NotImplementedError

    def _switch(self, mixture: Mixture) -> None:
        raise NotImplementedError


MakeBank = TypeVar("MakeBank", bound=Bank)


def load_bank(make: Callable[[Mapping[str, Expert]], MakeBank], base_id: str | Path, paths: Mapping[str, Path] | None = None) -> MakeBank:
    """Load experts into a bank.

    Args:
        make: a bank of given experts over some model, e.g. ``partial(ExpertBank, model)``.
        base_id: the model's name, for messages.
        paths: name → folder. None: the shipped experts that were trained on this base; there may be none.

    Raises:
        AdapterError: see `load_expert` and the bank's class.
    """
    if paths is not None:
        return make({name: load_expert(path) for name, path in paths.items()})
    fitting: dict[str, Expert] = {}
    for name, path in shipped().items():
        expert = load_expert(path)
        try:
            make({name: expert})
        except AdapterError as error:
            logger.debug("Shipped expert %s is not for %s: %s", name, base_id, error)
        else:
            fitting[name] = expert
    return make(fitting)


class ExpertBank(Bank):
    """A bank over a transformers model, switched by exchanging whole weight tensors, so nothing drifts.

    The base tensors are never written to: `apply` puts freshly made W' tensors in their place and the very same base tensors back. The
    last `keep` mixtures stay in memory, each as large as the adapted matrices; where that is short, none does, and the base is put back
    before the next one is made.

    Args:
        model: a model of `nn.Linear` layers.
        experts: name → expert; every one is checked against the model's weights.
        keep: how many mixtures' weights to keep.

    Raises:
        AdapterError: an expert names a layer that the model lacks, that is offloaded, or that is an embedding too; it has another shape,
            or was trained on another base.
    """

    def __init__(self, model: nn.Module, experts: Mapping[str, Expert], keep: int = 2) -> None:
        super().__init__(experts)
        self.model = model
        self._layers: dict[str, nn.Linear] = {}
        self._base: dict[str, Tensor] = {}
        self._bases: dict[str, Basis] = {}
        self._kept: OrderedDict[Mixture, dict[str, Tensor]] = OrderedDict()
        self._differences: dict[str, Tensor] = {}
        self._keep = max(keep, 1)
        modules = dict(model.named_modules())
        for expert in self.experts.values():
            self._check(expert, modules)

    @classmethod
    def load(cls, model: nn.Module, base_id: str | Path, paths: Mapping[str, Path] | None = None) -> "ExpertBank":
        """Load experts for `model`, see `load_bank`."""
        return load_bank(lambda experts: cls(model, experts), base_id, paths)

    def with_experts(self, experts: Mapping[str, Expert]) -> "ExpertBank":
        """See `Bank`."""
        return ExpertBank(self.model, experts, self._keep)

    def prepare(self, mixture: Mixture, quiet: bool = False) -> None:
        """Compute the bases of the matrices that `mixture` adapts, or read them from disk."""
        layers = sorted({layer for name in mixture.experts for layer in self.experts[name].vectors})
        for layer in tqdm(layers, desc="Preparing the experts' matrices", delay=2, disable=quiet):
            self._basis(layer)

    def weights(self, mixture: Mixture) -> dict[str, Tensor]:
        """Return the weight of every matrix that some expert adapts, under `mixture`: name of the module → W' or W ``[m, n]``."""
        return self._base if mixture.is_base else {**self._base, **self._merged(mixture)}

    def _switch(self, mixture: Mixture) -> None:
        if not mixture.is_base and mixture not in self._kept and not self._room():
            self._kept.clear()
            self._put(self._base)
        self._put(self.weights(mixture))

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        self.current = UNKNOWN
        for name, layer in self._layers.items():
            layer.weight.data = weights[name]
        torch.clear_autocast_cache()  # under autocast the casts of weights are kept by parameter, whatever its data are now

    def _room(self) -> bool:
        """Return whether one more mixture can be made while another is in force."""
        size = sum(weight.nbytes for weight in self._base.values())
        return free_memory(next(iter(self._base.values())).device) > 1.25 * size  # a quarter for what is made on the way

    def scale(self, mixture: Mixture, name: str) -> Tensor:
        """Return z' = Σ α_k z_k ``[r]`` for the matrix `name`; an expert that does not adapt this matrix counts as z = 1."""
        basis = self._basis(name)
        total = torch.zeros_like(basis.sigma)
        for expert_name, alpha in mixture.at(layer_of(name)):
            expert = self.experts.get(expert_name)  # None: the base
            z = expert.vectors.get(name) if expert else None
            if expert is None or z is None:
                total += alpha
                continue
            z = z.to(total.device)
            total += alpha * (renormalised_scale(z, basis.sigma) if expert.svf_form == "renormalised" else z)
        return total

    @contextmanager
    def linear_mixing(self) -> Iterator[bool]:
        """Within the block, make mixtures from cached differences: W' = Σα·W + Σ_k α_k D_k, with D_k = W'_k - W of every expert.

        W' is linear in z, so this is the same mixture (to float32 rounding, before it is rounded to the base's dtype) for K multiply-adds
        a weight in place of matrix products: for a search that tries hundreds. It takes K times 4 bytes per adapted weight; where that is
        more than half of the free memory, mixtures are made as ever and the block gets False.
        """
        size = 4 * len(self.answering) * sum(weight.numel() for weight in self._base.values())
        device = next(iter(self._base.values())).device if self._base else torch.device("cpu")
        enough = 2 * size <= free_memory(device)
        if not enough:
            logger.warning(
                "Not enough memory for the experts' differences (%.1f GB); every mixture is made by matrix products.", size / 1e9
            )
        try:
            if enough:
                self._differences = {name: self._difference(name) for name in sorted(self._base)}
            yield enough
        finally:
            self._differences = {}
            self._kept.clear()

    @contextmanager
    def row_by_row(self, mixtures: Sequence[Mixture]) -> Iterator[None]:
        """Within the block, row i of every batch is answered under ``mixtures[i]``, whatever weights are in force outside of it.

        In the factored form, with z ``[rows, 1, r]``: more arithmetic than merged weights, but one forward pass for many mixtures, which is
        what counts where a pass takes as long for hundreds of rows as for ten (a GPU).

        Args:
            mixtures: one for each row.

        Raises:
            AdapterError: an unknown expert.
        """
        distinct = list(dict.fromkeys(mixtures))
        for mixture in distinct:
            self.check(mixture)
        place = {mixture: i for i, mixture in enumerate(distinct)}
        rows = torch.tensor([place[mixture] for mixture in mixtures])
        before = {layer: vars(layer).get("forward") for layer in self._layers.values()}
        try:
            for name, layer in self._layers.items():
                scales = self._scales(distinct, name)
                answer = partial(F.linear, weight=self._base[name], bias=layer.bias)
                if scales is not None:
                    z = scales[rows.to(scales.device)].unsqueeze(1)
                    answer = partial(factored_linear, weight=self._base[name], bias=layer.bias, basis=self._basis(name), z=z)
                layer.forward = answer  # type: ignore[assignment] - the argument may have another name, which no caller uses
            yield
        finally:
            for layer, forward in before.items():
                if forward is None:
                    vars(layer).pop("forward", None)
                else:
                    layer.forward = forward

    def _scales(self, mixtures: Sequence[Mixture], name: str) -> Tensor | None:
        """Return `scale` of several mixtures ``[mixtures, r]`` by one product: 1 for a mixture whose experts all leave the matrix as it is.

        None where all mixtures do.
        """
        adapting = [expert for expert in self.names if name in self.experts[expert].vectors]
        if not any(set(adapting) & set(mixture.experts) for mixture in mixtures):
            return None
        columns = {expert: i for i, expert in enumerate(adapting)}
        vectors = torch.stack(
            [self.scale(Mixture.single(expert), name) for expert in adapting] + [torch.ones_like(self._basis(name).sigma)]
        )
        alphas = torch.zeros(len(mixtures), len(vectors))
        for row, mixture in zip(alphas, mixtures, strict=True):
            adapted = bool(set(adapting) & set(mixture.experts))
            for expert, alpha in mixture.at(layer_of(name)) if adapted else ((BASE, 1.0),):
                row[columns.get(expert, -1)] += alpha
        return alphas.to(vectors.device) @ vectors

    @torch.no_grad()
    def _difference(self, name: str) -> Tensor:
        """Return D ``[K, m n]`` of a matrix, float32, experts in the order of `answering`."""
        weight, basis = self._base[name], self._basis(name)
        projection = basis.project(weight)
        scales = [self.scale(Mixture.single(expert), name) for expert in self.answering]
        return torch.stack([delta_weight(projection, basis, z).flatten() for z in scales])

    @torch.no_grad()
    def _mixed(self, mixture: Mixture, name: str) -> Tensor:
        """Return W' ``[m, n]`` of a matrix from the cached differences."""
        weight, pairs = self._base[name], dict(mixture.at(layer_of(name)))
        alpha = torch.tensor([pairs.get(expert, 0.0) for expert in self.answering], dtype=torch.float32, device=weight.device)
        total = math.fsum(pairs.values())
        mixed = torch.addmv(weight.float().flatten(), self._differences[name].T, alpha, beta=total)
        return mixed.view_as(weight).to(weight.dtype)

    def _merged(self, mixture: Mixture) -> dict[str, Tensor]:
        if mixture in self._kept:
            self._kept.move_to_end(mixture)
            return self._kept[mixture]
        while len(self._kept) >= self._keep:
            # the mixture in force may be dropped here: its tensors live on in the layers until they are replaced
            self._kept.popitem(last=False)
        adapted = sorted({name for expert in mixture.experts for name in self.experts[expert].vectors})
        if self._differences and set(mixture.experts) <= set(self.answering):
            merged = {name: self._mixed(mixture, name) for name in adapted}
        else:
            with torch.no_grad():
                merged = {name: self._adapted(mixture, name) for name in adapted}
        self._kept[mixture] = merged
        return merged

    def _adapted(self, mixture: Mixture, name: str) -> Tensor:
        return adapted_weight(self._base[name], self._basis(name), self.scale(mixture, name))

    def _basis(self, name: str) -> Basis:
        if name not in self._bases:
            self._bases[name] = cached_basis(self._base[name])
        return self._bases[name]

    def _check(self, expert: Expert, modules: Mapping[str, nn.Module]) -> None:
        layers: dict[str, nn.Linear] = {}
        for name, z in expert.vectors.items():
            layer = modules.get(name)
            if not isinstance(layer, nn.Linear):
                raise AdapterError(f"Expert {expert.name!r} adapts {name!r}, which this model does not have: it is for another model.")
            rank = min(layer.weight.shape)
            if z.numel() != rank:
                raise AdapterError(
                    f"Expert {expert.name!r} has {z.numel()} numbers for {name!r}, whose weight {tuple(layer.weight.shape)} takes {rank}: "
                    "it is for another model."
                )
            if layer.weight.is_meta:
                raise AdapterError(f"Expert {expert.name!r} adapts {name!r}, whose weight {OFFLOADED}")
            layers[name] = layer
        weights = {name: layer.weight for name, layer in layers.items()}
        check_untied(self.model, weights, f"Expert {expert.name!r}")
        if expert.base_fingerprint:
            check_fingerprint(weights, expert.base_fingerprint, f"Expert {expert.name!r}")
        for name, layer in layers.items():
            self._layers[name] = layer
            self._base.setdefault(name, layer.weight.data)
