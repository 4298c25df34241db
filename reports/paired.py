"""Rows compared document by document, where both logged their samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .blocks import some
from .metrics import Key, find_score
from .rows import Row
from .samples import Samples, read_samples
from .statistics import Interval, clustered_standard_error, mcnemar, normal, sign_flip, standard_error

if TYPE_CHECKING:
    import numpy as np

_SHOWN = 8  # of ids that differ


@dataclass(frozen=True)
class Documents:
    """The scored documents of one leaf task in one row, sorted by id: ids, 64 bits of their hashes (0: unknown), scores, ``[n]`` each."""

    ids: np.ndarray[Any, Any]
    hashes: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """A paired comparison of row a with row b on the same documents.

    Attributes:
        n: documents.
        difference: mean score of a minus that of b, in the metric's units.
        interval: 95% of the difference; Agresti and Min's for 0/1 scores, else ±1.96 standard errors of the documents' differences, None
            where these do not spread.
        wins: documents where a scores higher.
        losses: documents where b does.
        p: two-sided, exact McNemar for 0/1 scores, else the paired permutation test of the mean difference.
        clustered: standard error of the difference of a group with its subtasks as clusters (MATH by subject); None for a single task.
    """

    n: int
    difference: float
    interval: Interval | None
    wins: int
    losses: int
    p: float
    clustered: float | None = None


class Logged:
    """The logged samples of rows, each file read at most once per metric."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, str, Key], Samples] = {}
        self._documents: dict[tuple[int, str, Key], dict[str, Documents] | None] = {}
        self._outcomes: dict[tuple[int, int, str, Key], Outcome | None] = {}
        self.problems: dict[str, None] = {}

    def documents(self, row: Row, task: str, key: Key) -> dict[str, Documents] | None:
        """Return leaf task → documents of a task or group; None unless all are logged and their mean is the score in the result file."""
        place = (id(row), task, key)
        if place not in self._documents:
            self._documents[place] = self._collect(row, task, key)
        return self._documents[place]

    def categories(self, row: Row, task: str, key: Key) -> Counter[str]:
        """Return into which categories pass 1 put how many documents of a leaf task."""
        return self._samples(row, task, key).categories if row.task(task) else Counter()

    def unlike(self, a: Row, b: Row, task: str, key: Key) -> str | None:
        """Say which documents of a task only one of two rows scored, or which differ under one id; None if none, or not known."""
        one, two = self.documents(a, task, key), self.documents(b, task, key)
        if one is None or two is None or a is b:
            return None
        found = []
        for leaf in dict.fromkeys([*one, *two]):
            where = f"{leaf}: " if leaf != task else ""
            if leaf not in one or leaf not in two:
                found.append(f"{where}only in {(a if leaf in one else b).label}")
            elif differing := _differing(one[leaf], two[leaf], a.label, b.label):
                found.append(where + differing)
        return "; ".join(found[:3]) + (f"; {len(found) - 3} more tasks" if len(found) > 3 else "") if found else None

    def test(self, a: Row, b: Row, task: str, key: Key) -> Outcome | None:
        """Compare two rows on a task or group; None where samples are missing, unsound, or of other documents."""
        place = (id(a), id(b), task, key)
        if place not in self._outcomes:
            one, two = self.documents(a, task, key), self.documents(b, task, key)
            known = one and two and self.unlike(a, b, task, key) is None
            self._outcomes[place] = _outcome(_joined(one), _joined(two), _clusters(one)) if one and two and known else None
        return self._outcomes[place]

    def _samples(self, row: Row, leaf: str, key: Key) -> Samples:
        run = row.source[leaf]
        place = (id(run), leaf, key)
        if place not in self._files:
            self._files[place] = read_samples(run, leaf, key)
        return self._files[place]

    def _collect(self, row: Row, task: str, key: Key) -> dict[str, Documents] | None:
        score = find_score(row.task(task), key)
        leaves = [leaf for leaf in row.leaves(task) if row.task(leaf)]
        if score is None or not leaves or (leaves == [task] and row.task(task) is None):
            return None
        kept = {leaf: self._samples(row, leaf, key) for leaf in leaves}
        for samples in kept.values():
            if samples.problem:
                self.problems[f"No paired test of {task} for {row.label}: {samples.problem}."] = None
        if not all(samples.usable for samples in kept.values()):
            return None
        found = {leaf: _sorted(samples) for leaf, samples in kept.items()}
        mean, count = float(_joined(found).mean()), sum(len(documents.ids) for documents in found.values())
        if not abs(mean - score.value) <= 1e-6 * max(1.0, abs(score.value)):
            self.problems[
                f"No paired test of {task} for {row.label}: its {count} logged samples average {mean:.6g}, the result file says "
                f"{score.value:.6g} (samples are missing, or the metric is no plain mean)."
            ] = None
            return None
        return found


def _sorted(samples: Samples) -> Documents:
    import numpy as np

    ids = np.frombuffer(samples.ids, np.int64)
    order = np.argsort(ids, kind="stable")
    return Documents(ids[order], np.frombuffer(samples.hashes, np.uint64)[order], np.frombuffer(samples.values, np.float64)[order])


def _joined(documents: dict[str, Documents]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.concatenate([documents[leaf].values for leaf in sorted(documents)])


def _clusters(documents: dict[str, Documents]) -> list[str]:
    """Return the leaf task of each of the documents in `_joined`."""
    return [leaf for leaf in sorted(documents) for _ in documents[leaf].ids]


def _differing(a: Documents, b: Documents, first: str, second: str) -> str | None:
    import numpy as np

    if not np.array_equal(a.ids, b.ids):
        parts = [(np.setdiff1d(a.ids, b.ids), f"only in {first}"), (np.setdiff1d(b.ids, a.ids), f"only in {second}")]
        return ", ".join(f"{_list(ids)} {where}" for ids, where in parts if len(ids))
    changed = a.ids[(a.hashes != b.hashes) & (a.hashes != 0) & (b.hashes != 0)]
    return f"{_list(changed)} differ in content between {first} and {second}" if len(changed) else None


def _list(ids: np.ndarray[Any, Any]) -> str:
    return f"document{'s' if len(ids) > 1 else ''} {some(ids.tolist(), _SHOWN)}"


def _outcome(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], clusters: Sequence[str]) -> Outcome:
    import numpy as np

    gaps = a - b
    n, wins, losses = len(gaps), int((gaps > 0).sum()), int((gaps < 0).sum())
    exact = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    difference, values = float(gaps.mean()), gaps.tolist()
    clustered = clustered_standard_error(values, clusters)
    if exact:
        return Outcome(n, difference, _agresti_min(wins, losses, n), wins, losses, mcnemar(losses, wins), clustered)
    spread = standard_error(values)
    interval = normal(difference, spread) if spread else None
    return Outcome(n, difference, interval, wins, losses, sign_flip(values), clustered)


def _agresti_min(wins: int, losses: int, n: int) -> Interval:
    """95% interval of a difference of paired proportions, with half a document added to each cell of the table (Agresti and Min 2005).

    It stays honest where few documents differ: none of 16 is not "0 ± 0".
    """
    won, lost, total = wins + 0.5, losses + 0.5, n + 2
    spread = ((won + lost - (won - lost) ** 2 / total) ** 0.5) / total
    return normal((won - lost) / total, spread, -1.0, 1.0)
