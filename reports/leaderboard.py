"""Methods x tasks: scores with intervals, normalised by the base row, and which of them stands out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .compare import Comparability, compare, differences, documents
from .load import Score
from .metrics import Key, extraction, find_score, is_proportion, primary
from .paired import Logged
from .rows import Row
from .statistics import Interval, interval95, is_share, mean


@dataclass
class Cell:
    """One score on the board.

    Attributes:
        interval: 95%, in the metric's units; None if neither n nor stderr is known.
        normalised: score / base row's score; None where there is none.
        zero_base: True if there is none because the base row scores 0 or less.
        extracted: share of answers that could be extracted, 0 to 1.
        best: True if it is the best of its column, by a paired test against every other row.
        contaminated: True if a few-shot search had seen documents that were scored.
    """

    score: Score
    n: int | None
    interval: Interval | None
    normalised: float | None = None
    zero_base: bool = False
    extracted: float | None = None
    best: bool = False
    contaminated: bool = False


@dataclass
class Column:
    """One task with the metric that all rows are scored by; `cells` in the order of the rows."""

    task: str
    key: Key
    proportion: bool
    higher_is_better: bool
    cells: list[Cell | None]

    @property
    def documents(self) -> str:
        """Documents scored: `n = 164`, `n = 4 to 164` where rows differ, empty if unknown."""
        counts = sorted({cell.n for cell in self.cells if cell and cell.n})
        return "" if not counts else f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"


@dataclass
class Board:
    """The whole leaderboard.

    Attributes:
        bases: for each row the row that it is normalised by.
        notes: what a reader must know about empty or odd cells.
    """

    rows: Sequence[Row]
    columns: list[Column]
    bases: Sequence[Row | None]
    comparability: Comparability
    notes: list[str] = field(default_factory=list)

    def average(self, row: int) -> tuple[float | None, int]:
        """Return the mean score of a row over percent columns, but for contaminated ones, and over how many columns it is."""
        cells = [cell for column in self.columns if column.proportion and (cell := column.cells[row])]
        values = [cell.score.value for cell in cells if math.isfinite(cell.score.value) and not cell.contaminated]
        return mean(values), len(values)

    def mean_normalised(self, row: int) -> tuple[float | None, int]:
        """Return the mean normalised score of a row, but for contaminated ones, and over how many columns it is."""
        cells = [cell for column in self.columns if (cell := column.cells[row])]
        values = [cell.normalised for cell in cells if cell.normalised is not None and not cell.contaminated]
        return mean(values), len(values)


def top_tasks(rows: Sequence[Row]) -> list[str]:
    """Name the leaderboard's tasks: scored, and not part of a scored group. A group takes the place of its first task."""
    scored = {name: None for row in rows for name in row.source if (task := row.task(name)) and task.scores}
    groups = {group: members for row in rows for group, members in row.groups.items() if group in scored}
    covered = _below(groups)
    order = list(scored)

    def place(name: str) -> int:
        leaves = [leaf for row in rows for leaf in row.leaves(name) if leaf in scored]
        return min((order.index(leaf) for leaf in leaves), default=order.index(name))

    return sorted((name for name in scored if name not in covered), key=place)


def subtasks(rows: Sequence[Row], tops: Sequence[str]) -> list[str]:
    """Name everything scored below the leaderboard's groups, group by group."""
    members = {group: names for row in rows for group, names in row.groups.items()}
    found: dict[str, None] = {}

    def descend(name: str, above: tuple[str, ...]) -> None:
        for member in members.get(name, ()):
            if member in above:
                continue
            if any((task := row.task(member)) and task.scores for row in rows):
                found[member] = None
            descend(member, (*above, member))

    for top in tops:
        descend(top, (top,))
    return list(found)


def _below(groups: Mapping[str, Sequence[str]]) -> set[str]:
    below: set[str] = set()
    todo = [member for members in groups.values() for member in members]
    while todo:
        name = todo.pop()
        if name not in below:
            below.add(name)
            todo += groups.get(name, ())
    return below


def choose_keys(rows: Sequence[Row], tasks: Sequence[str], metrics: Mapping[str, Key]) -> dict[str, Key]:
    """Return task -> metric and filter: the user's, else by the documented rule; tasks that no row has scored are left out."""
    keys = {task: metrics.get(task) or primary([r for row in rows if (r := row.task(task)) and r.scores]) for task in tasks}
    return {task: key for task, key in keys.items() if key is not None}


def build(rows: Sequence[Row], bases: Sequence[Row | None], keys: Mapping[str, Key], logged: Logged) -> Board:
    """Make the leaderboard.

    Args:
        rows: the methods.
        bases: as from `choose_bases`.
        keys: the columns, in order: task -> metric and filter.
        logged: the rows' samples.
    """
    board = Board(rows, [], bases, compare(rows, keys))
    for task, key in keys.items():
        reference = next((row for row in rows if logged.documents(row, task, key) is not None), None)
        if reference and (found := [text for row in rows if (text := logged.unlike(reference, row, task, key))]):
            more = f" (and {len(found) - 3} more rows)" if len(found) > 3 else ""
            board.comparability.hard.append(f"{task}: {'; '.join(found[:3])}{more}")
            board.comparability.unlike.add(task)
        if seen := [f"{row.label} ({', '.join(ids)})" for row in rows if (ids := row.contaminated(task))]:
            board.comparability.hard.append(f"{task}: contaminated, documents that the few-shot search used are scored: {'; '.join(seen)}")
            board.comparability.unlike.add(task)
        board.columns.append(column := _column(rows, task, key))
        _normalise(board, column, logged)
    return board


def _column(rows: Sequence[Row], task: str, key: Key) -> Column:
    scores = [find_score(row.task(task), key) for row in rows]
    proportion = is_proportion(key[0], [score.value for score in scores if score])
    column = Column(task, key, proportion, True, [])
    for row, score in zip(rows, scores, strict=True):
        result = row.task(task)
        if score is None:
            column.cells.append(None)
            continue
        column.higher_is_better = score.higher_is_better
        n, share = documents(row, task)[0], extraction(result, key)
        cell = Cell(score, n, interval95(score.value, score.stderr, n, proportion, _is_share(row, task, key, score.value, n)))
        cell.extracted = share.value if share and math.isfinite(share.value) else None
        cell.contaminated = bool(row.contaminated(task))
        column.cells.append(cell)
    return column


def _is_share(row: Row, task: str, key: Key, value: float, n: int | None) -> bool | None:
    """Return whether a group's score is the share of all its documents: its subtasks' are, weighed by their size; None: no group."""
    if (leaves := row.leaves(task)) == [task]:
        return None
    parts = [(find_score(row.task(leaf), key), documents(row, leaf)[0]) for leaf in leaves]
    if not is_share(value, n) or any(score is None or not size for score, size in parts):
        return is_share(value, n)
    right = math.fsum(score.value * size for score, size in parts if score and size)
    return all(is_share(score.value, size, score.stderr) for score, size in parts if score) and math.isclose(
        right, value * (n or 0), abs_tol=1e-6
    )


def _normalise(board: Board, column: Column, logged: Logged) -> None:
    zeros: dict[str, None] = {}
    for row, base, cell in zip(board.rows, board.bases, column.cells, strict=True):
        result = row.task(column.task)
        if cell is None:
            if result and result.scores:
                board.notes.append(f"{row.label} has {column.task}, but not by {','.join(column.key)}.")
            continue
        if not math.isfinite(cell.score.value):
            board.notes.append(f"{row.label}: the score of {column.task} is not a number in {row.source[column.task].raw.found.path}.")
            continue
        if base is None or not column.higher_is_better:
            continue
        reference = find_score(base.task(column.task), column.key)
        if reference is None or not math.isfinite(reference.value):
            board.notes.append(f"{column.task} of {row.label} is not normalised: the base row {base.label} has no score there.")
        elif base is not row and (why := _why_unlike(base, row, column, logged)):
            board.notes.append(f"{column.task} of {row.label} is not normalised, it is not comparable with {base.label}: {why}.")
        elif reference.value <= 0:
            zeros[base.label] = None
            cell.zero_base = True
        else:
            cell.normalised = cell.score.value / reference.value
    board.notes += [f"{column.task} is not normalised: the base row {label} scores 0 or less there." for label in zeros]


def _why_unlike(base: Row, row: Row, column: Column, logged: Logged) -> str:
    return "; ".join(differences([base, row], column.task)) or logged.unlike(base, row, column.task, column.key) or ""
