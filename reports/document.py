"""The report as one Markdown text."""

import math
from collections.abc import Sequence

from .compare import limited
from .leaderboard import Board, Cell, Column
from .markdown import DASH, bullets, details, escape, table, warning
from .rows import Row
from .timing import partial, two_pass_table

_READ = (
    "Scores are in percent unless the column says otherwise: value ± standard error (as lm-eval gives it) "
    "[95% interval] (normalised score). Intervals are Wilson's for shares of documents, else ±1.96 standard errors. "
)
_BOLD = "Bold: the best of its column, and its interval overlaps no other row's; no bold means that the intervals do not separate the best."


def render(board: Board, minor: Board, notes: Sequence[str]) -> str:
    """Return the whole report.

    Args:
        board: the leaderboard.
        minor: the same rows on the subtasks of its groups; may have no columns.
        notes: what was dropped while reading.
    """
    rows, tasks = board.rows, [column.task for column in board.columns]
    parts = ["# Evaluation report", _warnings(board, tasks), "## Leaderboard", leaderboard_table(board), _legend(board)]
    if remarks := list(dict.fromkeys([*board.notes, *notes])):
        parts += ["Notes:", bullets(remarks)]
    timing = two_pass_table(rows, tasks)
    if timing:
        parts += ["## Time of the two passes", timing, _timing_legend(), bullets(partial(rows, tasks))]
    if minor.columns:
        parts.append(details("Subtasks of groups", subtask_table(minor)))
    parts += ["## Runs", runs_table(rows), details("Versions, machine, files", provenance(rows))]
    return "\n\n".join(part for part in parts if part) + "\n"


def leaderboard_table(board: Board) -> str:
    """Return methods x tasks with averages, where there are two tasks to average."""
    percent = [column for column in board.columns if column.proportion]
    ratios = sum(any(c and c.normalised is not None for c in column.cells) for column in board.columns)
    header, widths = ["Method"], []
    for column in board.columns:
        share = any(cell and cell.extracted is not None for cell in column.cells)
        widths.append(share)
        header += [_heading(column), *(["extracted, %"] if share else [])]
    header += ["Average, %"] if len(percent) > 1 else []
    header += ["Mean normalised"] if ratios > 1 else []
    lines = []
    for i, row in enumerate(board.rows):
        line = [escape(row.label) + (" (base)" if any(row is base for base in board.bases) else "")]
        for column, share in zip(board.columns, widths, strict=True):
            cell = column.cells[i]
            line.append(cell_text(cell, column.proportion))
            if share:
                line.append(DASH if cell is None or cell.extracted is None else f"{cell.extracted * 100:.1f}")
        if len(percent) > 1:
            line.append(_of(*board.average(i), len(percent), 100))
        if ratios > 1:
            line.append(_of(*board.mean_normalised(i), ratios, 1))
        lines.append(line)
    return table(header, lines)


def subtask_table(board: Board) -> str:
    """Return subtasks x methods: there are often more subtasks than a page is wide."""
    header = ["Task", "Metric", *(escape(row.label) for row in board.rows)]
    lines = []
    for column in board.columns:
        metric = _metric(column) + (f", {column.documents}" if column.documents else "")
        lines.append([escape(column.task), metric, *(cell_text(cell, column.proportion) for cell in column.cells)])
    return table(header, lines, left=2)


def cell_text(cell: Cell | None, proportion: bool) -> str:
    """Return `31.20 ± 4.63 [23.01, 40.92] (1.04)`; parts that are not known are left out."""
    if cell is None:
        return DASH
    if not math.isfinite(cell.score.value):
        return "not a number"

    def show(value: float) -> str:
        return f"{value * 100:.2f}" if proportion else f"{value:.4g}"

    value = f"**{show(cell.score.value)}**" if cell.best else show(cell.score.value)
    text = [value]
    if cell.score.stderr is not None:
        text.append(f"± {show(cell.score.stderr)}")
    if cell.interval:
        text.append(f"[{show(cell.interval[0])}, {show(cell.interval[1])}]")
    if cell.normalised is not None:
        text.append(f"({cell.normalised:.2f})")
    return " ".join(text)


def runs_table(rows: Sequence[Row]) -> str:
    """Return one line a row: what was run, when, and how."""
    header = (
        "Method", "Model", "Arguments", "Date (UTC)", "Limit", "Few-shot", "Chat template", "lm-eval", "Parameters", "Wall time (s)",
    )  # fmt: skip
    lines = []
    for row in rows:
        run = row.first
        shots = sorted({task.n_shot for name in row.source if (task := row.task(name)) and task.n_shot is not None})
        seconds = [each.seconds for each in row.runs]
        days = sorted(each.day for each in row.runs)
        cells = [
            row.label,
            run.model,
            ", ".join(f"{key}={value}" for key, value in run.args.items()) or "none",
            days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
            run.settings["limit"],
            "/".join(shots) or DASH,
            run.settings["chat template"],
            " / ".join(sorted({each.info.get("lm-eval", "") for each in row.runs} - {""})) or DASH,
            f"{int(run.info['parameters']):,}" if run.info.get("parameters", "").isdecimal() else DASH,
            DASH if None in seconds else f"{sum(s or 0 for s in seconds):.1f}",
        ]
        lines.append([escape(cell) for cell in cells])
    return table(header, lines, left=8)


def provenance(rows: Sequence[Row]) -> str:
    """Return versions, machine, experts and files of every row."""
    blocks = []
    for row in rows:
        lines = [f"- **{escape(row.label)}**"]
        for run in row.runs:
            lines.append(f"  - {escape(f'{run.raw.found.path.as_posix()}, sha256 {run.raw.sha256[:16]}, {run.day}')}")
            lines.append(f"  - {escape(', '.join(f'{key} {value}' for key, value in run.info.items()))}")
            names = ("seeds", "system instruction", "few-shot as multi-turn", "gen_kwargs")
            extra = [f"{name} {run.settings[name]}" for name in names if run.settings[name] not in ("no", "none")]
            lines.append(f"  - {escape(', '.join(extra))}")
            if run.t2:
                experts = ", ".join(f"{name} {sha[:16]}" for name, sha in run.t2.experts.items()) or "none"
                calibrated = "" if run.t2.calibrate is None else f"calibrate {run.t2.calibrate}, "
                t2 = f"strategy {run.t2.strategy}, dispatch {run.t2.dispatch or DASH}, {calibrated}base {run.t2.base[:16] or DASH}"
                lines.append(f"  - {escape(f'{t2}, experts {experts}, sandbox {run.t2.sandbox or DASH}')}")
        blocks.append("\n".join(line for line in dict.fromkeys(lines) if line.strip(" -")))
    return "\n".join(blocks)


def _warnings(board: Board, tasks: Sequence[str]) -> str:
    blocks = []
    if board.comparability.hard:
        blocks.append(warning("Not all of these scores can be compared", board.comparability.hard))
    if parts := limited(board.rows, tasks):
        blocks.append(warning("Scored on a part of the documents: not results to publish", parts, "CAUTION"))
    if board.comparability.soft:
        blocks.append(warning("Rows also differ in what can move single answers, or seconds", board.comparability.soft, "NOTE"))
    return "\n\n".join(blocks)


def _legend(board: Board) -> str:
    labels = list(dict.fromkeys(base.label for base in board.bases if base))
    if not labels:
        ratio = (
            "Nothing is normalised: no row has a base row of its own model beside it (a run with `strategy=base`, or by `hf` without "
            "adapter). Add one, or name a row with `--base`."
        )
    elif len(labels) == 1:
        ratio = f"Normalised score: score / score of {escape(labels[0])}."
    else:
        both = zip(board.rows, board.bases, strict=True)
        pairs = [f"{escape(row.label)} by {escape(base.label)}" for row, base in both if base and base is not row]
        ratio = "Normalised score: score / score of the base row of the same model" + (f": {', '.join(pairs)}." if pairs else ".")
    without = [escape(row.label) for row, base in zip(board.rows, board.bases, strict=True) if base is None]
    if labels and without:
        ratio += f" Not normalised, as no base row of the same model is beside them: {', '.join(without)}."
    return f"{_READ}{_BOLD}\n\n{ratio}"


def _timing_legend() -> str:
    return (
        "Pass 1 finds the mixture of experts for each prompt, pass 2 answers with it; device-synchronised seconds without model loading. "
        "Counts are pass 1 + pass 2. Tokens out/s is of pass 2. Chosen: share of requests that each mixture answered; a multiple-choice "
        "question makes one request per option in pass 2, one prompt in pass 1."
    )


def _heading(column: Column) -> str:
    parts = [_metric(column), *([column.documents] if column.documents else [])]
    return f"{escape(column.task)} ({', '.join(parts)})"


def _metric(column: Column) -> str:
    metric, filter_name = column.key
    name = metric if filter_name == "none" else f"{metric} / {filter_name}"
    return escape(name) + (", %" if column.proportion else "") + ("" if column.higher_is_better else " ↓")


def _of(value: float | None, count: int, total: int, scale: float) -> str:
    if value is None:
        return DASH
    return f"{value * scale:.2f}" + (f" ({count} of {total} tasks)" if count < total else "")
