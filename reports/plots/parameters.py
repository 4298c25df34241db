"""Score against trained parameters: what a method's size buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .canvas import MARKERS, colour, new, short, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3


@dataclass(frozen=True)
class Point:
    """One method on one task: trained parameters (0: the base model), score, 95% interval if known."""

    parameters: int
    score: float
    interval: tuple[float, float] | None


def draw(panels: Sequence[tuple[str, dict[str, Point]]]) -> Figure:
    """Return a panel per task; the dashed line is the base model, parameters are on a logarithmic axis that begins at 0.

    Args:
        panels: (title, label of a row -> its point).
    """
    labels = list(dict.fromkeys(label for _, points in panels for label in points))
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    with style():
        figure = new(max(4.2 * columns, 6), 3.2 * lines + 0.2 * len(labels))
        grid = figure.subplots(lines, columns, squeeze=False).flat
        smallest = min((p.parameters for _, points in panels for p in points.values() if p.parameters), default=1)
        for axes, (title, points) in zip(grid, panels, strict=False):
            for label, point in points.items():
                i = labels.index(label)
                low, high = point.interval or (point.score, point.score)
                error = [[max(0.0, point.score - low)], [max(0.0, high - point.score)]]
                look = {"color": colour(i), "marker": MARKERS[i // 8 % 8], "label": label, "capsize": 3}
                axes.errorbar([point.parameters], [point.score], yerr=error, linestyle="none", **look)
                if point.parameters == 0:
                    axes.axhline(point.score, color=colour(i), linestyle="--", linewidth=1)
            axes.set_xscale("symlog", linthresh=max(1, 10 ** (len(str(smallest)) - 1)))
            axes.margins(x=0.15)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.minorticks_off()
            axes.set(title=short(title), xlabel="trained parameters")
        for axes in list(figure.axes)[len(panels) :]:
            axes.set_visible(False)
        handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), [short(label, 80) for label in handles], loc="outside lower center", ncols=1, frameon=False)
    return figure
