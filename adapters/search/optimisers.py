"""Black-box optimisers over a box, asked for points and told their order: CEM (the paper), CMA-ES, random search.

Only the order of the scores counts for all three, so one interface serves them. Letters: d dimensions, N points a generation.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import AdapterError
from .space import AlphaSpace


class Optimiser(Protocol):
    """Asked for a generation of points, then told which were better."""

    def ask(self) -> np.ndarray:
        """Return points ``[N, d]``."""
        ...

    def tell(self, points: np.ndarray, ranks: Sequence[int]) -> None:
        """Take the points of the last `ask` with their ranks: 0 for the best, equal ranks for equal scores."""
        ...

    @property
    def spread(self) -> float:
        """The largest standard deviation that the next generation is drawn with, in units of α."""
        ...


class CEM:
    """Cross-entropy method with the numbers of the paper's reference code.

    A generation is drawn from independent normal distributions and clipped to the range; the next one has the mean and the standard
    deviation (of the population, ddof 0) of the elite. At the start the mean is 1/K and the standard deviation half of the range.
    From the second generation on the best point so far is a member again.

    Args:
        space: what is searched.
        seed: of the random numbers.
        population: N.
        elite_ratio: share of the generation that makes the next one; at least two points.

    Raises:
        AdapterError: fewer than 2 points, or a ratio that is not in (0, 1].
    """

    def __init__(self, space: AlphaSpace, seed: int, population: int = 32, elite_ratio: float = 0.2) -> None:
        if population < 2:
            raise AdapterError(f"A population needs at least 2 members; got {population}.")
        if not 0 < elite_ratio <= 1:
            raise AdapterError(f"The elite ratio must be in (0, 1]; got {elite_ratio:g}.")
        self._space, self._population = space, population
        self._elite = max(2, int(population * elite_ratio))  # one point has no spread: the search would end there
        self._random = np.random.default_rng(seed)
        self.mean = space.start
        self.std = np.full(space.dimensions, (space.high - space.low) / 2)
        self._best: np.ndarray | None = None

    def ask(self) -> np.ndarray:
        """See `Optimiser`."""
        drawn = self._random.normal(self.mean, self.std, (self._population, self._space.dimensions))
        points = np.clip(drawn, self._space.low, self._space.high)
        if self._best is not None:
            points[0] = self._best
        return points

    def tell(self, points: np.ndarray, ranks: Sequence[int]) -> None:
        """See `Optimiser`; of equal points the one drawn first is the better."""
        order = np.argsort(ranks, kind="stable")
        elite = points[order[: self._elite]]
        self.mean, self.std, self._best = elite.mean(0), elite.std(0), points[order[0]]

    @property
    def spread(self) -> float:
        """See `Optimiser`."""
        return float(self.std.max())


class RandomSearch:
    """Uniform draws from the range: what the other two have to beat."""

    def __init__(self, space: AlphaSpace, seed: int, population: int = 32) -> None:
        self._space, self._population, self._random = space, population, np.random.default_rng(seed)

    def ask(self) -> np.ndarray:
        """See `Optimiser`."""
        return self._random.uniform(self._space.low, self._space.high, (self._population, self._space.dimensions))

    def tell(self, points: np.ndarray, ranks: Sequence[int]) -> None:
        """See `Optimiser`: nothing is learned."""

    @property
    def spread(self) -> float:
        """See `Optimiser`: it never narrows."""
        return self._space.high - self._space.low


class CMA:
    """CMA-ES by the package `cmaes`, with the range as bounds and the same start as `CEM`.

    Raises:
        AdapterError: the package is missing.
    """

    def __init__(self, space: AlphaSpace, seed: int, population: int = 32) -> None:
        try:
            import cmaes
        except ImportError:
            raise AdapterError("optimizer=cma needs the package cmaes: pip install cmaes.") from None
        bounds = np.array([[space.low, space.high]] * space.dimensions)
        sigma = (space.high - space.low) / 2
        # cmaes refuses one dimension; a second one that nothing depends on makes it two
        self._extra = space.dimensions == 1
        start = np.concatenate([space.start, space.start]) if self._extra else space.start
        self._cma: Any = cmaes.CMA(
            start, sigma, bounds=np.concatenate([bounds, bounds]) if self._extra else bounds, seed=seed, population_size=population
        )
        self._asked = np.empty((0, len(start)))

    def ask(self) -> np.ndarray:
        """See `Optimiser`."""
        self._asked = np.stack([self._cma.ask() for _ in range(self._cma.population_size)])
        return self._asked[:, :1] if self._extra else self._asked

    def tell(self, points: np.ndarray, ranks: Sequence[int]) -> None:
        """See `Optimiser`."""
        self._cma.tell([(point, float(rank)) for point, rank in zip(self._asked, ranks, strict=True)])

    @property
    def spread(self) -> float:
        """See `Optimiser`."""
        return float(self._cma._sigma * np.sqrt(np.diag(self._cma._C)).max())


OPTIMISERS = ("cem", "cma", "random")


def make_optimiser(name: str, space: AlphaSpace, seed: int, population: int, elite_ratio: float) -> Optimiser:
    """Return the optimiser called `name`.

    Raises:
        AdapterError: no such optimiser, or numbers that it cannot work with.
    """
    if not 0 <= seed < 2**32:
        raise AdapterError(f"The seed of a search must be from 0 to 2^32 - 1; got {seed}.")
    if name == "cem":
        return CEM(space, seed, population, elite_ratio)
    if population < 2:
        raise AdapterError(f"A population needs at least 2 members; got {population}.")
    if name == "cma":
        return CMA(space, seed, population)
    if name == "random":
        return RandomSearch(space, seed, population)
    raise AdapterError(f"Unknown optimizer {name!r}; it is one of {', '.join(OPTIMISERS)}.")
