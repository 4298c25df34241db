"""The report as a list of blocks, from which Markdown and HTML are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .blocks import DASH, Alert, Block, Bullets, Details, Heading, Paragraph, Picture, Table, Text, code, figure, strong
from .cells import cell_text, heading, metric_name
from .compare import limited
from .dispatch import Confusion, confusion_table
from .leaderboard import Board
from .paper import PaperRow, paper_line
from .ranking import Gain
from .runs import provenance, runs_table
from .timing import partial, two_pass_table

TITLE = "Evaluation report"
_READ = (
    "Scores are in percent unless the column says otherwise: value ± standard error (as lm-eval gives it) "
    "[95% interval] (normalised score). Intervals are Wilson's for shares of documents, else ±1.96 standard errors. "
    "Bold: the best of its column, told from every other row by a paired test on the same documents (exact McNemar for right or wrong, "
    "else a permutation test), p < 0.05 after Holm's correction over all tests of the table. No bold does not mean equal."
)


@dataclass
class Content:
    """What a report shows.

    Attributes:
        board: the leaderboard.
        minor: the same rows on the subtasks of its groups; may have no columns.
        untested: tasks of the board without paired tests, for lack of usable samples.
        gains: rows against their base rows.
        notes: what was dropped or could not be used while reading.
        paper: rows of the paper's figures.
        confusions: row label -> what pass 1 made of which domain.
        curves: training run -> its events.
        pictures: name -> picture; those that were drawn.
    """

    board: Board
    minor: Board
    untested: Sequence[str] = ()
    gains: Sequence[Gain] = ()
    notes: Sequence[str] = ()
    paper: Sequence[PaperRow] = ()
    confusions: Mapping[str, Confusion] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)


def compose(content: Content) -> list[Block]:
    """Return the report."""
    board, rows = content.board, content.board.rows
    tasks = [column.task for column in board.columns]
    shown = {name: [picture] for name, picture in content.pictures.items()}
    blocks: list[Block] = [Heading(TITLE, 1), *_alerts(board, tasks)]
    blocks += [Heading("Leaderboard"), _leaderboard(board, content.paper), *_legend(content), *shown.get("parameters", [])]
    if remarks := list(dict.fromkeys([*board.notes, *content.notes])):
        blocks += [Paragraph("Notes:"), Bullets(remarks)]
    if content.gains:
        blocks += [Heading("Differences from the base row"), *_differences(content.gains)]
    if timing := two_pass_table(rows, tasks, bool(content.paper)):
        blocks += [Heading("Time of the two passes"), timing, Paragraph(_TIMING), Bullets(partial(rows, tasks)), *shown.get("passes", [])]
    if content.confusions:
        blocks += [Heading("Dispatch"), confusion_table(content.confusions), Paragraph(_DISPATCH), *shown.get("dispatch", [])]
    if "alphas" in shown:
        blocks += [Heading("Mixtures"), *shown["alphas"]]
    if "curves" in shown:
        blocks += [Heading("Learning curves"), *shown["curves"]]
    if content.minor.columns:
        blocks.append(Details("Subtasks of groups", [_subtasks(content.minor)]))
    blocks += [Heading("Runs"), runs_table(rows, board.bases), Details("Versions, machine, commands, files", [provenance(rows)])]
    return blocks


def _leaderboard(board: Board, paper: Sequence[PaperRow]) -> Table:
    """Return methods x tasks with averages, where there are two tasks to average."""
    percent = [column for column in board.columns if column.proportion]
    ratios = sum(any(c and c.normalised is not None for c in column.cells) for column in board.columns)
    shares = [any(cell and cell.extracted is not None for cell in column.cells) for column in board.columns]
    header: list[Text] = ["Method"]
    for column, share in zip(board.columns, shares, strict=True):
        header += [heading(column), *(["extracted, %"] if share else [])]
    header += ["Average, %"] if len(percent) > 1 else []
    header += ["Mean normalised"] if ratios > 1 else []
    lines: list[list[Text]] = []
    for i, row in enumerate(board.rows):
        line: list[Text] = [row.label + (" (base)" if any(row is base for base in board.bases) else "")]
        for column, share in zip(board.columns, shares, strict=True):
            cell = column.cells[i]
            line.append(cell_text(cell, column))
            if share:
                line.append(DASH if cell is None or cell.extracted is None else figure(f"{cell.extracted * 100:.1f}"))
        if len(percent) > 1:
            line.append(_of(*board.average(i), len(percent), 100))
        if ratios > 1:
            line.append(_of(*board.mean_normalised(i), ratios, 1))
        lines.append(line)
    lines += [paper_line(row, board.columns, shares, len(header)) for row in paper]
    return Table(header, lines)


def _subtasks(board: Board) -> Table:
    """Return subtasks x methods: there are often more subtasks than a page is wide."""
    lines: list[list[Text]] = []
    for column in board.columns:
        metric = metric_name(column) + (f", {column.documents}" if column.documents else "")
        lines.append([column.task, metric, *(cell_text(cell, column) for cell in column.cells)])
    return Table(["Task", "Metric", *(row.label for row in board.rows)], lines, left=2)


def _differences(gains: Sequence[Gain]) -> list[Block]:
    lines: list[list[Text]] = []
    grouped = any(gain.outcome.clustered is not None for gain in gains)
    for gain in gains:
        outcome, scale = gain.outcome, 100 if gain.column.proportion else 1
        between = f" [{outcome.interval[0] * scale:+.2f}, {outcome.interval[1] * scale:+.2f}]" if outcome.interval else ""
        better, worse = (outcome.wins, outcome.losses) if gain.column.higher_is_better else (outcome.losses, outcome.wins)
        lines.append([
            gain.row.label, gain.base.label, gain.column.task, figure(f"{outcome.n:,}"),
            figure(f"{outcome.difference * scale:+.2f}{between}"),
            *([figure(DASH if outcome.clustered is None else f"{outcome.clustered * scale:.2f}")] if grouped else []),
            figure(f"{better:,}"), figure(f"{worse:,}"), figure(f"{outcome.p:.3g}"),
            strong(f"{gain.p:.3g}") if gain.p < 0.05 else figure(f"{gain.p:.3g}"),
        ])  # fmt: skip
    header: list[Text] = ["Method", "Against", "Task", "Documents", figure("Difference [95%]")]
    header += ["Stderr by subtask"] if grouped else []
    table = Table([*header, "Better on", "Worse on", "p", "p (Holm)"], lines, left=3)
    note = _DIFFERENCES + (_CLUSTERED if grouped else "")
    return [table if len(lines) <= 40 else Details(f"{len(lines)} comparisons", [table]), Paragraph(note)]


def _alerts(board: Board, tasks: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    if board.comparability.hard:
        blocks.append(Alert("WARNING", "Not all of these scores can be compared", board.comparability.hard))
    if parts := limited(board.rows, tasks):
        blocks.append(Alert("CAUTION", "Scored on a part of the documents: not results to publish", parts))
    if board.comparability.soft:
        blocks.append(Alert("NOTE", "Rows also differ in what can move single answers, or seconds", board.comparability.soft))
    return blocks


def _legend(content: Content) -> list[Block]:
    board = content.board
    labels = list(dict.fromkeys(base.label for base in board.bases if base))
    ratio: Text
    if not labels:
        ratio = (
            "Nothing is normalised: no row has a base row of its own model beside it (a run with ", code("strategy=base"),
            ", or by ", code("hf"), " without adapter). Add one, or name a row with ", code("--base"), ".",
        )  # fmt: skip
    elif len(labels) == 1:
        ratio = f"Normalised score: score / score of {labels[0]}."
    else:
        both = zip(board.rows, board.bases, strict=True)
        pairs = [f"{row.label} by {base.label}" for row, base in both if base and base is not row]
        ratio = "Normalised score: score / score of the base row of the same model" + (f": {', '.join(pairs)}." if pairs else ".")
    without = [row.label for row, base in zip(board.rows, board.bases, strict=True) if base is None]
    if labels and without:
        ratio = f"{ratio} Not normalised, as no base row of the same model is beside them: {', '.join(without)}."
    blocks: list[Block] = [Paragraph(figure(_READ)), Paragraph(ratio)]
    if content.untested:
        tasks = ", ".join(content.untested)
        why = ", as some rows have no usable samples there ("
        blocks.append(Paragraph(("Nothing is bold in ", tasks, why, code("--log_samples"), ").")))
    if content.paper:
        blocks.append(Paragraph(_PAPER))
    return blocks


_TIMING = (
    "Pass 1 finds the mixture of experts for each prompt, pass 2 answers with it; device-synchronised seconds without model loading. "
    "Counts are pass 1 + pass 2. Tokens out/s is of pass 2. Chosen: share of documents that each mixture answered. Of a multiple-choice "
    "question pass 1 counts one prompt, pass 2 one request per option."
)
_DIFFERENCES = (
    "The same documents answered by both, where both logged their samples. Interval: Agresti and Min's for right or wrong, else ±1.96 "
    "standard errors of the documents' differences. p: exact McNemar test for right or wrong, else a paired permutation test; then Holm's "
    "correction over all lines of this table."
)
_CLUSTERED = (
    " Stderr by subtask: standard error of a group's difference if its subtasks are a sample of such subtasks (clustered), not only their "
    "documents; uncertain itself where they are few."
)
_DISPATCH = (
    "Rows: what the documents are about, by their task. Columns: the category that pass 1 chose (share of documents, and how many). "
    "From logged samples."
)
_PAPER = (
    "† Figures printed in the paper (arXiv 2501.06252), of other models, prompts, machines and versions of the tasks; not measured here, "
    "not tested, not in any average. Normalised scores are recomputed from the printed scores."
)


def _of(value: float | None, count: int, total: int, scale: float) -> Text:
    if value is None:
        return DASH
    return figure(f"{value * scale:.2f}" + (f" ({count} of {total} tasks)" if count < total else ""))
