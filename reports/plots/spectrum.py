"""Explained variance of singular values per layer and module, as the paper's figures 10 and 11."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .canvas import new, short, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3


def draw(spectra: Mapping[str, Mapping[int, Sequence[float]]], title: str) -> Figure:
    """Return a panel per kind of module: share of variance that the largest singular values explain, a line per layer.

    Args:
        spectra: module -> layer -> singular values σ ``[r]``, descending. Explained variance of the first k is Σ_{i<k} σ_i² / Σ σ_i².
        title: of the picture.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    layers = sorted({layer for each in spectra.values() for layer in each})
    columns = min(_COLUMNS, len(spectra))
    lines = -(-len(spectra) // columns)
    with style():
        figure = new(4 * columns + 0.8, 3 * lines + 0.4)
        grid = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
        colours = colormaps["viridis"]
        scale = Normalize(layers[0], max(layers[-1], layers[0] + 1))
        for axes, (module, each) in zip(grid, spectra.items(), strict=False):
            for layer, sigma in sorted(each.items()):
                variance = np.asarray(sigma, dtype=np.float64) ** 2
                explained = np.concatenate([[0.0], np.cumsum(variance) / variance.sum()]) if variance.any() else np.zeros(len(variance) + 1)
                axes.plot(100 * np.arange(len(explained)) / len(variance), 100 * explained, color=colours(scale(layer)), linewidth=1)
            axes.set(title=short(module, 32), xlim=(0, 100), ylim=(0, 101))
        for axes in grid[len(spectra) :]:
            axes.set_visible(False)
        figure.supxlabel("largest singular values (% of all)")
        figure.supylabel("explained variance (%)")
        figure.suptitle(short(title, 80))
        figure.colorbar(ScalarMappable(scale, colours), ax=grid, label="layer")
    return figure
