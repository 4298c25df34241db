"""`t2 regress`: gate a run against a baseline, or write one."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ReportError
from ..metrics import nearest
from ..output import write_atomic
from .collect import collect
from .gate import judge
from .render import FORMATS, title
from .snapshot import Snapshot, dump, read_baseline
from .thresholds import Thresholds, read_thresholds


def parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    p = argparse.ArgumentParser(
        prog="t2 regress",
        description="Compare a run with a baseline, document by document, and fail where it got worse by more than chance.",
        epilog="Exit status: 0 ok, 1 regression, 2 unusable (files that cannot be compared, or options that cannot be).",
    )
    p.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of lm_eval --output_path with --log_samples, a results_*.json in it, or a JSON file of pytest-benchmark; the same "
        "task in several of them is a repeat",
    )
    p.add_argument("--baseline", metavar="FILE", type=Path, required=True, help="the baseline to compare with, or to write")
    p.add_argument("--update", action="store_true", help="write the baseline from RUN instead of comparing")
    p.add_argument("--thresholds", metavar="FILE", type=Path, help="YAML of thresholds (docs/regress.md)")
    p.add_argument("--tasks", metavar="A,B", default="", help="only these tasks of the baseline")
    p.add_argument("--allow-unlike", action="store_true", help="compare even if settings or documents differ; the output says so loudly")
    p.add_argument("--format", choices=[*FORMATS], default="text", help="default: text")
    p.add_argument("-o", "--output", metavar="FILE", type=Path, help="write there instead of to standard output")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0 ok, 1 regression, 2 unusable.

    Raises:
        ReportError: a file or an option that cannot be used; the command line shows it and ends with 2.
    """
    args = parser().parse_args(argv)
    thresholds = read_thresholds(args.thresholds) if args.thresholds else Thresholds()
    tasks = [name for name in args.tasks.split(",") if name]
    if args.update:
        if args.allow_unlike or args.output is not None or args.format != "text":
            raise ReportError("--update writes the baseline and compares nothing: --allow-unlike, --format and --output do not go with it.")
        return _update(args.baseline, args.runs, thresholds, tasks)
    baseline = read_baseline(args.baseline)
    _check_tasks(tasks, baseline, "the baseline")

    def metric(task: str) -> str | None:
        stored = baseline.tasks[task]
        return thresholds.rule(task).metric or f"{stored.metric},{stored.filter}"

    run = collect(args.runs, metric, tasks or list(baseline.tasks))
    verdict = judge(baseline, run, thresholds, args.allow_unlike, tasks)
    shown = FORMATS[args.format](verdict)
    if args.output is None:
        sys.stdout.write(shown)
    else:
        write_atomic(args.output, shown.encode("utf-8", "replace"))
        print(f"{title(verdict)} (wrote {args.output})", file=sys.stderr)
    return verdict.status


def _update(path: Path, runs: Sequence[str], thresholds: Thresholds, tasks: Sequence[str]) -> int:
    found = collect(runs, lambda task: thresholds.rule(task).metric, tasks or None)
    _check_tasks(tasks, found, "the run")
    thresholds.check_names([*found.tasks, *found.groups, *found.skipped])
    notes = found.notes + [f"{name} is left out: {why}." for name, why in found.skipped.items()]
    if not found.tasks and not found.benchmarks:
        raise ReportError(f"No baseline was written: nothing to compare in {', '.join(runs)}. {' '.join(notes)}")
    try:
        before = read_baseline(path)
    except ReportError:  # there is none yet, or none that is worth keeping
        before = Snapshot()
    if gone := [name for name in [*before.tasks, *before.benchmarks] if name not in found.tasks and name not in found.benchmarks]:
        notes.append(f"The baseline that was there also had {', '.join(gone[:8])}{' and more' if len(gone) > 8 else ''}; it is replaced.")
    write_atomic(path, dump(found).encode())
    documents = sum(len(task.documents) for task in found.tasks.values())
    for note in notes:
        print(f"t2: {note}", file=sys.stderr)
    figures = f", {len(found.benchmarks)} benchmark figures" if found.benchmarks else ""
    print(f"Wrote {path}: {len(found.tasks)} tasks, {documents} documents{figures}", file=sys.stderr)
    return 0


def _check_tasks(tasks: Sequence[str], there: Snapshot, where: str) -> None:
    if unknown := [name for name in tasks if name not in there.tasks]:
        raise ReportError(f"--tasks: {where} has no task {unknown[0]!r}.{nearest(unknown[0], there.tasks)}")
