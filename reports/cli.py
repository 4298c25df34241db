"""`t2 report RUNS…`: a leaderboard from lm-eval result files, as Markdown, as a page, with plots."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import markdown
from .base import choose_bases
from .dispatch import confusions
from .document import Content, compose
from .errors import ReportError
from .files import CURVES, find, walk
from .leaderboard import build, choose_keys, subtasks, top_tasks
from .load import Run, load_all
from .metrics import find_score, parse_choices
from .output import show, write
from .paired import Logged
from .paper import paper_rows
from .plots.curves import events
from .ranking import gains, mark_best
from .rows import make_rows


def parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    p = argparse.ArgumentParser(
        prog="t2 report",
        description="Make a report from lm-eval result files, of any model: leaderboard with intervals, normalised scores and paired "
        "tests, time of the two passes, dispatch, plots, provenance.",
    )
    p.add_argument("runs", nargs="+", metavar="RUNS", help="result files (results_*.json), or folders that are searched for them")
    p.add_argument(
        "-o",
        "--output",
        metavar="DIR|FILE",
        help="folder for report.md, report.html and plots/; or one file: FILE.html the page, any other the Markdown (default: Markdown on "
        "standard output)",
    )
    p.add_argument(
        "--base",
        metavar="NAME",
        help="label of the row to normalise by (default: the same model with strategy=base, else hf without adapter)",
    )
    p.add_argument("--name", metavar="PATH=LABEL", action="append", default=[], help="label of a result file or folder; may be repeated")
    p.add_argument("--metric", metavar="TASK=METRIC[,FILTER]", action="append", default=[], help="metric to show of a task; repeatable")
    p.add_argument("--paper", metavar="MODEL", help="add the paper's figures for one of its models, marked; a part of its name will do")
    return p


@dataclass
class Options:
    """What the command line may say besides the runs.

    Attributes:
        base: label of the row to normalise by; None picks it by the rule of `choose_bases`.
        names: `PATH=LABEL` each.
        metrics: `TASK=METRIC[,FILTER]` each.
        paper: model of the paper whose figures are added.
    """

    base: str | None = None
    names: Sequence[str] = ()
    metrics: Sequence[str] = ()
    paper: str | None = None


def report(
    paths: Sequence[str | Path],
    base: str | None = None,
    names: Sequence[str] = (),
    metrics: Sequence[str] = (),
    paper: str | None = None,
) -> str:
    """Return the Markdown report of result files and folders, without plots; the same files give the same text.

    Args:
        paths: result files, or folders that are searched for them.
        base: as in `Options`, like the others.
        names: see there.
        metrics: see there.
        paper: see there.

    Raises:
        ReportError: a file cannot be used, or an option names what is not there.
    """
    return markdown.render(compose(collect(paths, Options(base, names, metrics, paper))))


def collect(paths: Sequence[str | Path], options: Options) -> Content:
    """Read everything and decide what the report shows.

    Raises:
        ReportError: a file cannot be used, or an option names what is not there.
    """
    runs, notes = _load(paths)
    rows, dropped = make_rows(runs, [_name(name) for name in options.names])
    results = {task: [r for row in rows if (r := row.task(task))] for task in dict.fromkeys(t for row in rows for t in row.source)}
    chosen = parse_choices(options.metrics, results)
    tops = top_tasks(rows)
    keys = choose_keys(rows, tops, chosen)
    paper = paper_rows(options.paper, keys) if options.paper is not None else []
    logged = Logged()
    bases = choose_bases(rows, options.base, tops)
    board = build(rows, bases, keys, logged)
    untested = mark_best(board, logged)
    # A group's subtasks are shown by the group's metric, so that they add up to it.
    inherited = {below: key for task, key in keys.items() for below in subtasks(rows, [task])}
    usable = {task: key for task, key in inherited.items() if any(find_score(result, key) for result in results.get(task, ()))}
    minor = build(rows, bases, choose_keys(rows, subtasks(rows, tops), usable | chosen), logged)
    mark_best(minor, logged)
    found = gains(board, logged)
    matrices = confusions(board, logged)
    curves, unread = _curves(paths)
    return Content(board, minor, untested, found, [*notes, *dropped, *logged.problems, *unread], paper, matrices, curves)


def _curves(paths: Sequence[str | Path]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Return the learning curves of training runs in the folders given, by folder, and notes on those that cannot be read."""
    found, notes = {}, []
    for folder in map(Path, paths):
        for file in sorted((path for path in walk(folder) if path.name in CURVES), key=lambda path: (len(path.parts), path)):
            try:
                if (curve := events(file)) not in found.values():  # a run's expert, in a folder below, has a copy
                    found[file.parent.as_posix()] = curve
            except ReportError as error:
                notes.append(str(error))
    return found, notes


def _load(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    files = find(paths)
    if not files:
        raise ReportError(f"{', '.join(map(str, paths))}: learning curves, but no lm-eval result file. Draw them with `t2 curves`.")
    runs, notes = load_all(files)
    if not runs:
        reason = f" {notes[0]}" if notes else " The JSON files there are something else."
        raise ReportError(f"No lm-eval scores in {', '.join(map(str, paths))}.{reason}")
    return runs, notes


def main(argv: list[str]) -> int:
    """Run the command; return 0.

    Raises:
        ReportError: as `collect`, or the output cannot be written.
    """
    args = parser().parse_args(argv)
    content = collect(args.runs, Options(args.base, args.name, args.metric, args.paper))
    if args.output in (None, "-"):
        show(markdown.render(compose(content)))
    else:
        for path in write(content, args.output):
            print(f"Wrote {path}", file=sys.stderr)
    return 0


def _name(option: str) -> tuple[Path, str]:
    # Both halves may hold "=": the path is the longest beginning that exists.
    for i in reversed([i for i, char in enumerate(option) if char == "="]):
        path, label = option[:i], option[i + 1 :].strip()
        if path and Path(path).exists():
            if not label:
                raise ReportError(f"--name {option!r}: the label is empty. Write PATH=LABEL.")
            return Path(path), label
    raise ReportError(f"--name {option!r}: write PATH=LABEL, where PATH is a result file or folder that exists.")
