"""The search: generations of candidates, each distinct one evaluated once, until the budget is spent or nothing new is left."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .optimisers import Optimiser
from .space import AlphaSpace, Candidate


@dataclass(frozen=True)
class Outcome:
    """What a mixture did on the few-shot documents.

    Attributes:
        correct: for each document, whether its answer was right.
        log_likelihood: natural logarithm, summed over the tokens of the right answers.
        tokens: how many tokens those are.
    """

    correct: tuple[bool, ...]
    log_likelihood: float = 0.0
    tokens: int = 0

    @property
    def right(self) -> int:
        """How many answers were right."""
        return sum(self.correct)

    @property
    def mean_log_likelihood(self) -> float:
        """Per token of the right answers, which breaks ties (section 3.2 C); minus infinity where none was right."""
        return self.log_likelihood / self.tokens if self.tokens else float("-inf")

    @property
    def key(self) -> tuple[int, float]:
        """What candidates are ordered by; larger is better. Differences below 1e-9 are rounding."""
        return (self.right, round(self.mean_log_likelihood, 9) if self.tokens else float("-inf"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `of` reads it back."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Outcome":
        """From `as_dict`."""
        return cls(tuple(bool(right) for right in data["correct"]), float(data["log_likelihood"]), int(data["tokens"]))


WORST = Outcome(())
"""Of a candidate whose α are all 0: it is never evaluated, and never better than another."""

NO_SIGNAL_AFTER = 3
"""Generations after which a search in which every mixture got the same number right is given up."""


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        best: the candidate with the best outcome, of equal ones the first; None where the base is kept: it gets more right, or there is
            no signal.
        outcome: of `best`, or of the base.
        signal: False if the base weights and every candidate got the same number of answers right: the documents say nothing about α.
        reason: why the search ended: ``budget``, ``converged`` or ``no signal``.
        evaluated: distinct candidates evaluated.
        asked: candidates asked for, repeats included.
        trace: one entry a generation: ``generation``, ``evaluated`` (so far), ``right`` (of the best so far), ``mean_log_likelihood``
            (of the best so far), ``mean_right`` (of this generation), ``spread``.
    """

    best: Candidate | None = None
    outcome: Outcome = WORST
    signal: bool = True
    reason: str = "budget"
    evaluated: int = 0
    asked: int = 0
    trace: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Search:
    """One search, deterministic in its optimiser's seed and its outcomes: run again with what `memo` holds it takes the same way.

    That is how an interrupted search resumes: no state but the outcomes is kept.

    Attributes:
        space: what is searched.
        optimiser: who proposes.
        evaluate: yields the outcome of each of the given candidates, in their order, as they come.
        base: outcome of the base weights.
        generations: at most so many.
        memo: outcomes known already; grows.
    """

    space: AlphaSpace
    optimiser: Optimiser
    evaluate: Callable[[list[Candidate]], Iterable[Outcome]]
    base: Outcome
    generations: int = 100
    memo: dict[Candidate, Outcome] = field(default_factory=dict)

    def run(self, told: Callable[[dict[str, Any]], None] = lambda entry: None) -> SearchResult:
        """Search; `told` is called after each generation with its entry of the trace."""
        found, seen = SearchResult(), dict[Candidate, Outcome]()
        for generation in range(1, self.generations + 1):
            points = self.optimiser.ask()
            candidates = [self.space.candidate(point) for point in points]
            new = [c for c in dict.fromkeys(candidates) if c not in seen]
            seen |= self._outcomes(new)
            outcomes = [seen[c] for c in candidates]
            found.asked += len(candidates)
            found.evaluated = len(seen)
            found.best = max(seen, key=lambda c: seen[c].key)
            found.outcome = seen[found.best]
            self.optimiser.tell(points, ranks([o.key for o in outcomes]))
            entry = self._entry(generation, found, outcomes)
            found.trace.append(entry)
            told(entry)
            if reason := self._finished(generation, new, seen):
                found.reason = reason
                break
        if self._flat(seen):
            found.best, found.outcome, found.signal, found.reason = None, self.base, False, "no signal"
        elif found.outcome.right < self.base.right:
            found.best, found.outcome = None, self.base
        return found

    def _outcomes(self, candidates: list[Candidate]) -> dict[Candidate, Outcome]:
        unknown = [c for c in candidates if c not in self.memo and any(c)]
        for candidate, outcome in zip(unknown, self.evaluate(unknown) if unknown else (), strict=True):
            self.memo[candidate] = outcome
        return {c: self.memo.get(c, WORST) for c in candidates}

    def _entry(self, generation: int, found: SearchResult, outcomes: list[Outcome]) -> dict[str, Any]:
        likelihood = found.outcome.mean_log_likelihood
        return {
            "generation": generation,
            "evaluated": found.evaluated,
            "right": found.outcome.right,
            "mean_log_likelihood": likelihood if np.isfinite(likelihood) else None,
            "mean_right": round(float(np.mean([o.right for o in outcomes])), 4),
            "spread": round(self.optimiser.spread, 6),
        }

    def _flat(self, seen: Mapping[Candidate, Outcome]) -> bool:
        return {self.base.right} | {outcome.right for outcome in seen.values() if outcome is not WORST} == {self.base.right}

    def _finished(self, generation: int, new: list[Candidate], seen: Mapping[Candidate, Outcome]) -> str | None:
        if generation >= NO_SIGNAL_AFTER and self._flat(seen):
            return "no signal"
        narrow = self.optimiser.spread < self.space.resolution / 2
        return "converged" if narrow or (generation > 1 and not new) else None


def ranks(keys: list[tuple[int, float]]) -> list[int]:
    """Return 0 for the largest key, 1 for the next distinct one, …: equal keys get equal ranks."""
    place = {key: rank for rank, key in enumerate(sorted(set(keys), reverse=True))}
    return [place[key] for key in keys]
