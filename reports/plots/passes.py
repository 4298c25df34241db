"""How the time of a run splits into the two passes, as stacked bars (the paper's table 3 as a picture)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .canvas import colour, new, short, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(bars: Sequence[tuple[str, float, float]]) -> Figure:
    """Return a bar per entry, in percent of both passes together, with the seconds written in it.

    Args:
        bars: (label, seconds of pass 1, seconds of pass 2).
    """
    with style():
        figure = new(8, 1.2 + 0.3 * len(bars))
        axes = figure.subplots()
        for i, (_, one, two) in enumerate(bars):
            share = 100 * one / (one + two) if one + two else 0.0
            axes.barh(i, share, color=colour(3), label="pass 1: find the mixture" if i == 0 else None)
            axes.barh(i, 100 - share, left=share, color=colour(5), label="pass 2: answer" if i == 0 else None)
            axes.text(99, i, f"{one:.1f} s + {two:.1f} s", va="center", ha="right", fontsize=8)
        axes.set_yticks(range(len(bars)), [short(label) for label, *_ in bars])
        axes.invert_yaxis()
        axes.set(xlim=(0, 100), xlabel="share of the seconds (%)")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
