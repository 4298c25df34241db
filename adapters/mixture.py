"""Mixtures of experts: z' = Σ α_k z_k (section 3.2 of the paper)."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import AdapterError

BASE = "base"
"""In a mixture: the unadapted weights (z = 1), as if they were an expert."""


def divides_one(step: float) -> bool:
    """Return whether 1 is a whole number of steps (10^9 at most), so that α in steps can sum to 1."""
    return 1e-9 <= step <= 1 and abs(round(1 / step) * step - 1) <= 1e-9


@dataclass(frozen=True)
class Mixture:
    """Which experts, with which α; no expert at all is the base model.

    Attributes:
        weights: (expert, α) pairs, sorted by name, no α of 0. The name ``base`` stands for z = 1.
        layers: with an α per layer, each expert's α for layer 0, 1, …, in the order of `weights`, which then hold their means; else empty.

    α that sum to 1 interpolate between experts. The sum is not forced: z' = Σ α_k z_k as the paper writes it, so a single expert at
    α = 0.5 halves every singular value.
    """

    weights: tuple[tuple[str, float], ...] = ()
    layers: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def base(cls) -> "Mixture":
        """The unadapted model."""
        return cls()

    @classmethod
    def single(cls, name: str) -> "Mixture":
        """One expert at α = 1."""
        return cls(((name, 1.0),))

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> "Mixture":
        """From name → α.

        Raises:
            AdapterError: an α that is not a finite number, none that is not 0, or ``base`` alone at another α than 1.
        """
        for name, alpha in weights.items():
            if not math.isfinite(alpha):
                raise AdapterError(f"The α of {name!r} must be a finite number; got {alpha}.")
        pairs = tuple(sorted((name, float(alpha)) for name, alpha in weights.items() if alpha != 0))
        if not pairs:
            raise AdapterError("A mixture needs an expert whose α is not 0; for the unadapted model use strategy=base.")
        if len(pairs) == 1 and pairs[0][0] == BASE:
            if pairs[0][1] != 1:
                raise AdapterError(f"The base weights alone cannot have α = {pairs[0][1]:g}; for the unadapted model use strategy=base.")
            return cls()
        return cls(pairs)

    @classmethod
    def per_layer(cls, weights: Mapping[str, Sequence[float]]) -> "Mixture":
        """From name → an α for each layer of the model (appendix A.4 of the paper).

        Raises:
            AdapterError: an α that is not a finite number, experts with different numbers of layers, or no α that is not 0.
        """
        rows = {name: tuple(float(alpha) for alpha in weights[name]) for name in sorted(weights) if any(weights[name])}
        if not rows or any(not math.isfinite(alpha) for row in rows.values() for alpha in row):
            raise AdapterError(f"α per layer must be finite numbers, and not all 0; got {dict(weights)}.")
        if len({len(row) for row in rows.values()}) > 1:
            raise AdapterError(f"α per layer: one for each layer of every expert; got { ({n: len(r) for n, r in rows.items()}) }.")
        return cls(tuple((name, math.fsum(row) / len(row)) for name, row in rows.items()), tuple(rows.values()))

    def at(self, layer: int | None) -> tuple[tuple[str, float], ...]:
        """Return the (expert, α) pairs for a matrix of `layer`; None for a matrix outside the layers, which gets the means.

        Raises:
            AdapterError: α is per layer and there is none for this one.
        """
        if not self.layers or layer is None:
            return self.weights
        if layer >= len(self.layers[0]):
            raise AdapterError(
                f"The mixture has α for {len(self.layers[0])} layers; the model has a layer {layer}: it is for another model."
            )
        return tuple((name, row[layer]) for (name, _), row in zip(self.weights, self.layers, strict=True))

    @classmethod
    def parse(cls, text: str) -> "Mixture":
        """Read ``math=0.5+code=0.5``; a name without α counts 1.

        Raises:
            AdapterError: the text is not of this form, or names an expert twice.
        """
        weights: dict[str, float] = {}
        for part in text.split("+"):
            name, equals, alpha = part.strip().partition("=")
            try:
                value = float(alpha) if equals else 1.0
            except ValueError:
                raise AdapterError(f"In the mixture {text!r}, {alpha!r} is not a number; write e.g. math=0.5+code=0.5.") from None
            if not name or name in weights:
                raise AdapterError(f"The mixture {text!r} {'names ' + repr(name) + ' twice' if name else 'has a part without a name'}.")
            weights[name] = value
        return cls.of(weights)

    @property
    def experts(self) -> list[str]:
        """Names of its experts, without ``base``."""
        return [name for name, _ in self.weights if name != BASE]

    @property
    def is_base(self) -> bool:
        """True for the unadapted model."""
        return not self.weights

    def __str__(self) -> str:
        if self.is_base:
            return "base"
        if len(self.weights) == 1 and self.weights[0][1] == 1 and not self.layers:
            return self.weights[0][0]
        text = "+".join(f"{name}={alpha:g}" for name, alpha in self.weights)
        if not self.layers:
            return text
        return f"{text} on average, by layer {hashlib.sha256(repr(self.layers).encode()).hexdigest()[:8]}"
