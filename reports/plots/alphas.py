"""α weights of mixtures of experts, as the paper's figure 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .canvas import colour, new, short, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(mixtures: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Return a group of bars per mixture, a bar per expert; experts that a mixture does not have are at 0.

    Args:
        mixtures: label -> expert -> α; with several, one for each layer, the bar is their mean and a line goes from the least to the most.
    """
    experts = sorted({name for weights in mixtures.values() for name in weights})
    height = 0.8 / len(experts)
    with style():
        figure = new(8, 1.2 + len(mixtures) * max(0.35, 0.2 * len(experts)))
        axes = figure.subplots()
        for i, expert in enumerate(experts):
            alphas = [weights.get(expert, (0.0,)) for weights in mixtures.values()]
            means = [sum(each) / len(each) for each in alphas]
            pairs = list(zip(means, alphas, strict=True))
            spread = [[max(0.0, mean - min(each)) for mean, each in pairs], [max(0.0, max(each) - mean) for mean, each in pairs]]
            places = [row + (i - (len(experts) - 1) / 2) * height for row in range(len(mixtures))]
            bars = axes.barh(places, means, height * 0.9, color=colour(i), label=short(expert, 24))
            if any(map(any, spread)):
                axes.errorbar(means, places, xerr=spread, linestyle="none", color="black", linewidth=1)
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(mixtures)), [short(label) for label in mixtures])
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_xlabel("α")
        figure.legend(loc="outside upper center", ncols=min(len(experts), 6), frameon=False)
    return figure
