"""`t2 report RUNS…`: a Markdown leaderboard from lm-eval result files."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .base import choose_bases
from .document import render
from .errors import NoScores, ReportError
from .files import find, read
from .leaderboard import build, subtasks, top_tasks
from .load import Run, load
from .metrics import find_score, parse_choices
from .rows import make_rows


def parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    p = argparse.ArgumentParser(
        prog="t2 report",
        description="Make a Markdown report from lm-eval result files, of any model: leaderboard with intervals and normalised "
        "scores, time of the two passes, provenance.",
    )
    p.add_argument("runs", nargs="+", metavar="RUNS", help="result files (results_*.json), or folders that are searched for them")
    p.add_argument("-o", "--output", metavar="FILE", help="write the report there instead of to standard output; a folder gets report.md")
    p.add_argument(
        "--base",
        metavar="NAME",
        help="label of the row to normalise by (default: the same model with strategy=base, else hf without adapter)",
    )
    p.add_argument("--name", metavar="PATH=LABEL", action="append", default=[], help="label of a result file or folder; may be repeated")
    p.add_argument("--metric", metavar="TASK=METRIC[,FILTER]", action="append", default=[], help="metric to show of a task; repeatable")
    return p


def report(paths: Sequence[str | Path], base: str | None = None, names: Sequence[str] = (), metrics: Sequence[str] = ()) -> str:
    """Return the Markdown report of result files and folders; the same files give the same text.

    Args:
        paths: result files, or folders that are searched for them.
        base: label of the row to normalise by; None picks it by the rule of `choose_bases`.
        names: `PATH=LABEL` each.
        metrics: `TASK=METRIC[,FILTER]` each.

    Raises:
        ReportError: a file cannot be used, or an option names what is not there.
    """
    runs, notes = _load_all(paths)
    rows, dropped = make_rows(runs, [_name(name) for name in names])
    notes += dropped
    results = {task: [r for row in rows if (r := row.task(task))] for task in dict.fromkeys(t for row in rows for t in row.source)}
    chosen = parse_choices(metrics, results)
    tops = top_tasks(rows)
    bases = choose_bases(rows, base, tops)
    board = build(rows, bases, tops, chosen)
    # A group's subtasks are shown by the group's metric, so that they add up to it.
    inherited = {below: column.key for column in board.columns for below in subtasks(rows, [column.task])}
    usable = {task: key for task, key in inherited.items() if any(find_score(result, key) for result in results.get(task, ()))}
    return render(board, build(rows, bases, subtasks(rows, tops), usable | chosen), notes)


def _load_all(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    runs, notes = [], []
    for found in find(paths):
        raw = read(found)
        if raw is None:
            continue
        try:
            runs.append(load(raw))
        except NoScores as error:
            if found.named:
                raise
            # A search also meets runs that were never meant to score; they must not block the report, nor vanish silently.
            notes.append(str(error).replace(" Run the evaluation again, or leave this file out.", " Left out."))
    if not runs:
        reason = f" {notes[0]}" if notes else " The JSON files there are something else."
        raise ReportError(f"No lm-eval scores in {', '.join(map(str, paths))}.{reason}")
    return runs, notes


def main(argv: list[str]) -> int:
    """Run the command; return 0.

    Raises:
        ReportError: as `report`, or the output cannot be written.
    """
    args = parser().parse_args(argv)
    text = report(args.runs, args.base, args.name, args.metric)
    if args.output in (None, "-"):
        sys.stdout.write(text)
    else:
        path = _target(args.output)
        write_atomic(path, text)
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


def _target(output: str) -> Path:
    path = Path(output)
    return path / "report.md" if path.is_dir() or output.endswith(("/", os.sep)) else path


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a crash, sees the old file or the new one; makes missing folders.

    Raises:
        ReportError: no permission, disk full, or a folder of that name.
    """
    target = path.resolve()  # through links: the link stays, its file is replaced
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_text(text, encoding="utf-8")  # a device or pipe (/dev/stdout) cannot be replaced
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise ReportError(f"{path}: the report cannot be written ({error.strerror or error}). Choose another --output.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
