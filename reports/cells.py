"""How scores and titles of columns read."""

import math

from .blocks import DASH, Text, figure, strong
from .leaderboard import Cell, Column

CONTAMINATED = " ‡ contaminated"


def cell_text(cell: Cell | None, column: Column) -> Text:
    """Return `31.20 ± 4.63 [23.01, 40.92] (1.04)`; parts that are not known are left out, a ratio to a base of 0 is `n/a`."""
    if cell is None:
        return DASH
    if not math.isfinite(cell.score.value):
        return "not a number"

    def show(value: float) -> str:
        return f"{value * 100:.2f}" if column.proportion else f"{value:.4g}"

    rest = []
    if cell.score.stderr is not None:
        rest.append(f"± {show(cell.score.stderr)}")
    if cell.interval:
        rest.append(f"[{show(cell.interval[0])}, {show(cell.interval[1])}]")
    if cell.normalised is not None or cell.zero_base:
        rest.append("(n/a)" if cell.normalised is None else f"({cell.normalised:.2f})")
    tail = "".join(f" {part}" for part in rest) + (CONTAMINATED if cell.contaminated else "")
    value = show(cell.score.value)
    return (strong(value), figure(tail)) if cell.best else figure(value + tail)


def heading(column: Column) -> str:
    """Return `math (math_verify, %, n = 500)`."""
    parts = [metric_name(column), *([column.documents] if column.documents else [])]
    return f"{column.task} ({', '.join(parts)})"


def metric_name(column: Column) -> str:
    """Return metric, filter, unit and direction."""
    metric, filter_name = column.key
    name = metric if filter_name == "none" else f"{metric} / {filter_name}"
    return name + (", %" if column.proportion else "") + ("" if column.higher_is_better else " ↓")
