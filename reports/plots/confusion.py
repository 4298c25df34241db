"""Confusion of true domains with the categories that pass 1 chose, as the paper's figure 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .canvas import new, short, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3


def draw(matrices: Mapping[str, Mapping[str, Mapping[str, int]]], categories: Sequence[str]) -> Figure:
    """Return a panel per run: shares of each domain's documents, darker for more.

    Args:
        matrices: title -> true domain -> category -> documents.
        categories: the columns.
    """
    columns = min(_COLUMNS, len(matrices))
    lines = -(-len(matrices) // columns)
    tallest = max(len(matrix) for matrix in matrices.values())
    with style():
        figure = new(max(5, columns * (1.6 + 0.8 * len(categories))), lines * (1.5 + 0.6 * tallest))
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, (title, matrix) in zip(grid, matrices.items(), strict=False):
            totals = {domain: sum(counts.values()) for domain, counts in matrix.items()}
            shares = [[100 * counts.get(name, 0) / totals[domain] for name in categories] for domain, counts in matrix.items()]
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
            for y, line in enumerate(shares):
                for x, share in enumerate(line):
                    axes.text(x, y, f"{share:.0f}%", ha="center", va="center", color="white" if share > 60 else "black")
            axes.set_xticks(range(len(categories)), [short(name, 16) for name in categories])
            axes.set_yticks(range(len(matrix)), [f"{short(domain, 16)} (n={totals[domain]:,})" for domain in matrix])
            axes.set(title=short(title, 32), xlabel="category chosen by pass 1", ylabel="documents are about")
            axes.spines[:].set_visible(False)
        for axes in grid[len(matrices) :]:
            axes.set_visible(False)
    return figure
