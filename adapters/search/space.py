"""What is searched: one α per expert or one per expert and layer, free or normalised (appendix A.4 of the paper)."""

from dataclasses import dataclass

import numpy as np

from ..errors import AdapterError
from ..mixture import Mixture, divides_one

Candidate = tuple[int, ...]
"""α in steps of the resolution: what is evaluated once, however often it is asked for."""


@dataclass(frozen=True)
class AlphaSpace:
    """The α of K experts, as points of a box for the optimiser and as mixtures for the model.

    Letters: K experts, L layers, d = K, or K · L with an α per layer.

    Attributes:
        experts: their names, sorted.
        layers: L for an α per layer, None for one α per expert.
        normalised: the α of a layer (or of the model) are divided by their sum; False leaves them free.
        low, high: range of the numbers searched.
        resolution: α are rounded to it before they are evaluated, so that the mixture that was scored is the one that is written down.

    Raises:
        AdapterError: an empty range, a resolution that does not divide 1, no experts.
    """

    experts: tuple[str, ...]
    layers: int | None = None
    normalised: bool = True
    low: float = 0.0
    high: float = 1.0
    resolution: float = 0.01

    def __post_init__(self) -> None:
        if not self.experts:
            raise AdapterError("There are no experts to mix.")
        if not self.low < self.high or not np.isfinite([self.low, self.high]).all():
            raise AdapterError(f"The range of α must be two finite numbers, the smaller one first; got {self.low:g}, {self.high:g}.")
        if self.normalised and self.low < 0:
            raise AdapterError(f"Normalised α are divided by their sum, so their range must start at 0 or more; got {self.low:g}.")
        if not divides_one(self.resolution):
            raise AdapterError(f"The resolution of α must be 1 / n for a whole n, such as 0.01; got {self.resolution:g}.")

    @property
    def dimensions(self) -> int:
        """How many numbers are searched, d."""
        return len(self.experts) * (self.layers or 1)

    @property
    def start(self) -> np.ndarray:
        """``[d]``: 1/K each, as the paper's reference code starts, brought into the range."""
        return np.full(self.dimensions, min(max(1 / len(self.experts), self.low), self.high))

    def candidate(self, point: np.ndarray) -> Candidate:
        """Return the candidate at `point` ``[d]``; a layer whose normalised α are all 0 gets 1/K each."""
        alpha = np.clip(point, self.low, self.high).reshape(self.layers or 1, len(self.experts))
        if self.normalised:
            total = alpha.sum(1, keepdims=True)
            alpha = np.where(total > 0, alpha / np.where(total > 0, total, 1), 1 / len(self.experts))
            return tuple(int(step) for row in alpha for step in _whole(row / self.resolution))
        return tuple(int(step) for step in np.rint(alpha / self.resolution).astype(int).ravel())

    def alphas(self, candidate: Candidate) -> dict[str, float | list[float]]:
        """Return name → α, or name → α of each layer; normalised α sum to 1."""
        digits = max(0, int(np.ceil(-np.log10(self.resolution)))) + 3
        table = np.array(candidate).reshape(self.layers or 1, len(self.experts)) * self.resolution
        columns = {name: [round(float(alpha), digits) for alpha in table[:, k]] for k, name in enumerate(self.experts)}
        return {name: column if self.layers else column[0] for name, column in columns.items()}

    def mixture(self, candidate: Candidate) -> Mixture | None:
        """Return the candidate as a mixture; None where every α is 0, which would make every adapted weight 0."""
        return mixture_of(self.alphas(candidate))


def _whole(shares: np.ndarray) -> np.ndarray:
    """Round numbers ``[K]`` whose sum is whole to whole numbers of the same sum, by the largest remainders."""
    floors = np.floor(shares + 1e-9)
    missing = round(float(shares.sum() - floors.sum()))
    for k in np.argsort(floors - shares, kind="stable")[:missing]:
        floors[k] += 1
    return floors.astype(int)


def mixture_of(alphas: dict[str, float | list[float]]) -> Mixture | None:
    """Return the mixture of name → α, or name → α of each layer; None where all are 0.

    Raises:
        AdapterError: an α that is not a finite number, or lists of different lengths.
    """
    for name, alpha in alphas.items():
        for number in alpha if isinstance(alpha, list) and alpha else [alpha]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise AdapterError(f"The α of {name!r} must be a number, or a list of numbers; got {alpha}.")
    if all(not np.any(alpha) for alpha in alphas.values()):
        return None
    lists = {name: alpha for name, alpha in alphas.items() if isinstance(alpha, list)}
    if not lists:
        return Mixture.of({name: float(alpha) for name, alpha in alphas.items()})  # type: ignore[arg-type]
    if len(lists) < len(alphas):
        raise AdapterError(f"α are numbers, or one list for each expert; got both: {alphas}.")
    return Mixture.per_layer(lists)
