"""Which differences on the leaderboard are more than chance: paired tests with Holm's correction."""

import math
from dataclasses import dataclass

from .compare import differences
from .leaderboard import Board, Cell, Column
from .paired import Logged, Outcome
from .rows import Row
from .statistics import holm

ALPHA = 0.05  # of a whole family of tests, after Holm's correction


@dataclass(frozen=True)
class Gain:
    """A row against its base row on one task; `p` is corrected over all gains of the board."""

    row: Row
    base: Row
    column: Column
    outcome: Outcome
    p: float


def mark_best(board: Board, logged: Logged) -> list[str]:
    """Mark the best cell of each column if paired tests tell it from every other one, Holm-corrected over the board.

    Returns:
        The tasks where that cannot be known, as some row has no usable samples.
    """
    found: list[tuple[Cell, list[float]]] = []
    untested = []
    for column in board.columns:
        cells = [(row, cell) for row, cell in zip(board.rows, column.cells, strict=True) if cell and math.isfinite(cell.score.value)]
        if len(cells) < 2 or column.task in board.comparability.unlike:
            continue
        best, top = (max if column.higher_is_better else min)(cells, key=lambda pair: pair[1].score.value)
        outcomes = [logged.test(best, row, column.task, column.key) for row, _ in cells if row is not best]
        if None in outcomes:
            untested.append(column.task)
        else:
            found.append((top, [outcome.p for outcome in outcomes if outcome]))
    adjusted = iter(holm([p for _, ps in found for p in ps]))
    for top, ps in found:
        top.best = max([next(adjusted) for _ in ps]) < ALPHA
    return untested


def gains(board: Board, logged: Logged) -> list[Gain]:
    """Compare every row with its base row on every task that both logged samples of, and neither was tuned on."""
    pairs = [(row, base) for row, base in zip(board.rows, board.bases, strict=True) if base and base is not row]
    tested = [
        (row, base, column, outcome)
        for column in board.columns
        for row, base in pairs
        if not (differences([base, row], column.task) or row.contaminated(column.task) or base.contaminated(column.task))
        and (outcome := logged.test(row, base, column.task, column.key))
    ]
    adjusted = holm([outcome.p for *_, outcome in tested])
    return [Gain(*each, p) for each, p in zip(tested, adjusted, strict=True)]
