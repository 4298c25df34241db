"""What all plots share: size, colours, and files that are the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ReportError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, told apart by the colour-blind too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
FORMATS = ("png", "svg", "pdf")
MARKERS = "osD^vPX*"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "t2",  # else ids in the file are random
    "svg.fonttype": "path",  # needs no font where it is read, and holds no text
    "text.parse_math": False,  # names with $ are names
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 9,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the house style, whatever the user's matplotlibrc says; without warnings of letters that the font lacks."""
    import matplotlib  # slow to import

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def short(name: str, most: int = 48) -> str:
    """Return a name on one line that leaves room for the plot."""
    name = " ".join(name.split())
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def new(width: float, height: float) -> Figure:
    """Return an empty figure of `width` x `height` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def colour(i: int) -> str:
    """Return the colour of series `i`."""
    return COLOURS[i % len(COLOURS)]


def drawn(figure: Figure, kind: str) -> bytes:
    """Return the figure as a file of `kind` (`png`, `svg`, …), without date or version in it."""
    empty = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    file = io.BytesIO()
    with style():
        figure.savefig(file, format=kind, dpi=120, metadata=empty.get(kind))
    return file.getvalue()


def check_target(target: Path) -> str:
    """Return the format that a file's ending names.

    Raises:
        ReportError: it names none that can be drawn.
    """
    kind = target.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise ReportError(f"{target}: its ending names no format that can be drawn. Known: {', '.join(FORMATS)}.")
    return kind


def save(figure: Figure, target: Path) -> None:
    """Write the figure to `target`, whose ending says the format; whole or not at all.

    Raises:
        ReportError: the file cannot be written, or its ending names no format.
    """
    from ..output import write_atomic

    write_atomic(target, drawn(figure, check_target(target)))
