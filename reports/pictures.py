"""The report's plots: which there are, what each shows, and their files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .blocks import Picture
from .cells import metric_name
from .dispatch import categories
from .document import Content
from .leaderboard import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("parameters", "passes", "dispatch", "alphas", "curves")
_MOST_BARS = 40
_MOST_PANELS = 12


def draw_all(content: Content) -> dict[str, dict[str, bytes]]:
    """Draw every plot that the content has numbers for, and put it into the content.

    Returns:
        Name -> `png` and `svg`, the same bytes for the same content.
    """
    from .plots import alphas, confusion, curves, passes
    from .plots.canvas import drawn

    figures: dict[str, tuple[str, Figure]] = {}
    if found := _parameters(content.board):
        figures["parameters"] = ("Score against trained parameters, with 95% intervals; the dashed line is the base model.", found)
    if bars := _bars(content.board):
        figures["passes"] = ("How the seconds split into pass 1 and pass 2.", passes.draw(bars))
    if content.confusions:
        most = dict(list(content.confusions.items())[:_MOST_PANELS])
        more = f" The first {len(most)} of {len(content.confusions)} runs." if len(most) < len(content.confusions) else ""
        figures["dispatch"] = (f"What pass 1 chose for documents of each domain.{more}", confusion.draw(most, categories(most)))
    if weights := _weights(content.board):
        caption = "Weights α of the experts in each mixture; where each layer has its own, their mean, and a line from least to most."
        figures["alphas"] = (caption, alphas.draw(weights))
    if content.curves:
        figures["curves"] = ("Validation accuracy and sampled reward over the steps of training.", curves.draw(content.curves))
    content.pictures = {name: Picture(name, caption) for name, (caption, _) in figures.items()}
    return {name: {kind: drawn(figure, kind) for kind in ("png", "svg")} for name, (_, figure) in figures.items()}


def _parameters(board: Board) -> Figure | None:
    from .plots import parameters

    sizes = {row.label: size for row, base in zip(board.rows, board.bases, strict=True) if (size := row.trainable(base)) is not None}
    if not any(sizes.values()):
        return None
    panels = []
    for column in board.columns:
        scale = 100 if column.proportion else 1
        points = {}
        for row, cell in zip(board.rows, column.cells, strict=True):
            if cell and row.label in sizes and math.isfinite(cell.score.value):
                interval = (cell.interval[0] * scale, cell.interval[1] * scale) if cell.interval else None
                points[row.label] = parameters.Point(sizes[row.label], cell.score.value * scale, interval)
        if any(point.parameters for point in points.values()):
            panels.append((f"{column.task} ({metric_name(column)})", points))
    return parameters.draw(panels[:_MOST_PANELS]) if panels else None


def _bars(board: Board) -> list[tuple[str, float, float]]:
    """One bar per row and task with a pass 1; per row where that would be too many."""
    costs = [
        (row.label, column.task, cost)
        for row in board.rows
        for column in board.columns
        if (cost := row.two_pass(column.task)) and cost.pass1.seconds + cost.pass2.seconds
    ]
    passing = {label for label, _, cost in costs if cost.pass1.seconds}
    costs = [each for each in costs if each[0] in passing]
    if len(costs) <= _MOST_BARS:
        return [(f"{label}: {task}", cost.pass1.seconds, cost.pass2.seconds) for label, task, cost in costs]
    sums: dict[str, tuple[float, float]] = {}
    for label, _, cost in costs:
        one, two = sums.get(label, (0.0, 0.0))
        sums[label] = (one + cost.pass1.seconds, two + cost.pass2.seconds)
    return [(label, one, two) for label, (one, two) in list(sums.items())[:_MOST_BARS]]


def _weights(board: Board) -> dict[str, dict[str, tuple[float, ...]]]:
    """Rows that are mixtures; single experts say nothing."""
    found = {}
    for row in board.rows:
        if row.first.t2 and row.first.t2.search:
            found |= {f"{row.label}: {', '.join(run.tasks)}": run.t2.alphas for run in row.runs if run.t2}
        elif row.first.t2:
            found[row.label] = row.first.t2.alphas
    return {label: weights for label, weights in found.items() if len(weights) > 1 or any(alphas != (1.0,) for alphas in weights.values())}
