"""`t2 regress`: gate a run against a baseline, or write one."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..errors import ReportError
from ..metrics import nearest
from ..output import show, write_atomic
from .collect import collect, useful
from .gate import OK, UNUSABLE, Verdict, judge
from .render import FORMATS, one_line, title
from .snapshot import Snapshot, dump, is_foreign, read_baseline
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
    p.add_argument("--tasks", metavar="A,B", default="", help="only these tasks or groups of the baseline")
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
    try:
        return _update(args) if args.update else _gate(args)
    except (ReportError, BrokenPipeError):  # BrokenPipeError: `t2 regress … | head`
        raise
    except Exception:  # Python would end with 1, which is a regression
        traceback.print_exc()
        return UNUSABLE


def _gate(args: argparse.Namespace) -> int:
    inputs = [Path(path).resolve() for path in (args.baseline, args.thresholds, *args.runs) if path is not None]
    if args.output is not None and args.output.is_file() and args.output.resolve() in inputs:
        raise ReportError(f"--output: {args.output} is one of the inputs, and would be replaced. Choose another --output.")
    try:
        verdict = _verdict(args)
    except Exception as error:
        if args.output is not None or args.format != "text":  # what an earlier run wrote there must not stay
            problem = str(error) if isinstance(error, ReportError) else f"{type(error).__name__}: {error}"
            _show(Verdict(Thresholds(), problems=[problem]), args)
        raise
    _show(verdict, args)
    return verdict.status


def _verdict(args: argparse.Namespace) -> Verdict:
    thresholds = read_thresholds(args.thresholds) if args.thresholds else Thresholds()
    baseline = read_baseline(args.baseline)
    names = _names(args)
    _check_tasks(names, [*baseline.tasks, *baseline.groups], "the baseline")
    tasks = [leaf for name in names for leaf in baseline.groups.get(name, (name,))]

    def metric(task: str) -> str | None:
        stored = baseline.tasks.get(task)  # None below a task that has become a group
        return thresholds.rule(task).metric or (stored and f"{stored.metric},{stored.filter}")

    run = collect(args.runs, metric, tasks or list(baseline.tasks))
    return judge(baseline, run, thresholds, args.allow_unlike, tasks)


def _show(verdict: Verdict, args: argparse.Namespace) -> None:
    shown = FORMATS[args.format](verdict)
    if args.output is None:
        show(shown)
    else:
        write_atomic(args.output, shown.encode("utf-8", "replace"))
        print(f"{title(verdict)} (wrote {args.output})", file=sys.stderr)


def _update(args: argparse.Namespace) -> int:
    if args.allow_unlike or args.output is not None or args.format != "text":
        raise ReportError("--update writes the baseline and compares nothing: --allow-unlike, --format and --output do not go with it.")
    thresholds = read_thresholds(args.thresholds) if args.thresholds else Thresholds()
    tasks, path = _names(args), args.baseline
    if is_foreign(path):
        raise ReportError(f"{path}: this is no baseline, and --update would replace it. Choose another --baseline, or delete the file.")
    found = collect(args.runs, lambda task: thresholds.rule(task).metric, tasks or None)
    _check_tasks(tasks, [*found.tasks, *found.groups, *found.skipped, *found.others], "the run")
    if skipped := [name for name in tasks if name in found.skipped]:
        raise ReportError(f"--tasks: {skipped[0]}: {found.skipped[skipped[0]]}, so it cannot be compared document by document.")
    found.groups = useful(found.groups, found.tasks)
    thresholds.check_names([*found.tasks, *found.groups, *found.skipped])
    notes = found.notes + [f"{name} is left out: {why}." for name, why in found.skipped.items()]
    if not found.tasks and not found.benchmarks:
        raise ReportError(f"No baseline was written: nothing to compare in {', '.join(args.runs)}. {' '.join(notes)}")
    try:
        before = read_baseline(path)
    except ReportError:  # there is none yet, or none that is worth keeping
        before = Snapshot()
    if gone := [name for name in [*before.tasks, *before.benchmarks] if name not in found.tasks and name not in found.benchmarks]:
        notes.append(f"The baseline that was there also had {', '.join(gone[:8])}{' and more' if len(gone) > 8 else ''}; it is replaced.")
    write_atomic(path, dump(found).encode(), "--baseline")
    documents = sum(len(task.documents) for task in found.tasks.values())
    for note in notes:
        print(f"t2: {one_line(note)}", file=sys.stderr)
    figures = f", {len(found.benchmarks)} benchmark figures" if found.benchmarks else ""
    print(f"Wrote {path}: {len(found.tasks)} tasks, {documents} documents{figures}", file=sys.stderr)
    return OK


def _names(args: argparse.Namespace) -> list[str]:
    return [name for name in args.tasks.split(",") if name]


def _check_tasks(names: Sequence[str], known: Sequence[str], where: str) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ReportError(f"--tasks: {where} has no task {unknown[0]!r}.{nearest(unknown[0], known)}")
