"""The command `t2`. Each command imports what it needs when it runs, so that `t2 --help` is quick."""

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from .errors import T2Error, nearest


def _fetch(argv: Sequence[str]) -> int:
    from .fetch.command import main as fetch

    return fetch(argv)


def _doctor(argv: Sequence[str]) -> int:
    argparse.ArgumentParser(prog="t2 doctor", description="Tell what works here, and how to get what is missing.").parse_args(argv)
    from .doctor import main as doctor

    return doctor()


def _experts(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="t2 experts", description="List, show, check and transfer experts, and draw what they act on.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|check|transfer|spectrum")
    actions.add_parser("list", help="the experts shipped with t2")
    actions.add_parser("show", help="the card of one of them").add_argument("name", metavar="NAME")
    actions.add_parser("check", help="read an expert's folder and check it").add_argument("path", metavar="PATH", type=Path)
    transfer = actions.add_parser("transfer", help="put experts of one model on another, by the order of singular values")
    transfer.add_argument("--from", dest="source", required=True, metavar="EXPERTS", help="folder of an expert or of several, or shipped")
    transfer.add_argument("--to", required=True, metavar="MODEL", help="the other model, as for pretrained=")
    transfer.add_argument("--shuffle", type=int, metavar="SEED", help="the control: shuffle the numbers within each matrix")
    transfer.add_argument(
        "-o", "--output", type=Path, default=Path("experts"), metavar="FOLDER", help="of the new experts (default: experts)"
    )
    spectrum = actions.add_parser("spectrum", help="draw how much variance a model's singular values explain, per layer and module")
    spectrum.add_argument("--model", metavar="MODEL", help="a folder, or a name on the hub (default: t2's default model)")
    spectrum.add_argument("-o", "--output", metavar="FILE", type=Path, default=Path("spectrum.png"), help="picture (default: spectrum.png)")
    args = parser.parse_args(argv)
    if args.action == "spectrum":
        return _spectrum(args.model, args.output)
    if args.action == "transfer":
        return _transfer(args)
    from ..adapters.experts import load_expert, shipped

    known = shipped()
    if args.action == "list":
        for name, path in known.items():
            expert = load_expert(path)
            print(f"{name:12} {expert.parameters:>9,} numbers  {expert.card.get('description', '')}".rstrip())
        if not known:
            print("No experts are shipped with this version; train one with `t2 train`.", file=sys.stderr)
        return 0
    if args.action == "show" and args.name not in known:
        raise T2Error(f"Unknown expert {args.name!r}.{nearest(args.name, known)} An expert of your own: `t2 experts check PATH`.")
    path = known[args.name] if args.action == "show" else args.path
    expert = load_expert(path)
    print(f"{expert.name}: {expert.parameters:,} numbers in {len(expert.vectors)} matrices, {path}\nsha256 {expert.sha256}")
    _print_card(expert.card)
    return 0


def _spectrum(model: str | None, output: Path) -> int:
    from tqdm import tqdm

    from ..adapters.spectrum import explained_variance, layer_matrices, singular_values
    from ..reports.plots.canvas import check_target, save
    from ..reports.plots.spectrum import draw
    from .fetch import default_model
    from .plain_model import load_model

    check_target(output)  # before minutes of computing
    source = model or str(default_model())
    matrices = list(layer_matrices(load_model(source, "--model")))
    if not matrices:
        raise T2Error(f"--model {source}: it has no linear modules in numbered layers, so no expert can act on it.")
    spectra: dict[str, dict[int, Any]] = {}
    for kind, layer, weight in tqdm(matrices, desc="Singular values", delay=2):
        spectra.setdefault(kind, {})[layer] = singular_values(weight)
    save(draw({kind: {n: s.tolist() for n, s in layers.items()} for kind, layers in spectra.items()}, Path(source).name), output)
    print(f"{'module':24} {'layers':>6} {'rank':>6}  variance explained by the largest 10% and 50% of the singular values, mean")
    for kind, layers in spectra.items():
        shares = [[float(explained_variance(s)[max(1, round(part * len(s))) - 1]) for s in layers.values()] for part in (0.1, 0.5)]
        ranks = "/".join(str(n) for n in sorted({len(s) for s in layers.values()}))
        print(f"{kind:24} {len(layers):>6} {ranks:>6}  {sum(shares[0]) / len(layers):>6.1%} {sum(shares[1]) / len(layers):>6.1%}")
    print(f"Wrote {output}", file=sys.stderr)
    return 0


def _transfer(args: argparse.Namespace) -> int:
    from ..adapters.experts import load_expert
    from ..adapters.transfer import target_folder, transfer
    from .plain_model import load_model
    from .strategy import parse_experts

    experts = [replace(load_expert(path), name=name) for name, path in (parse_experts(args.source) or {}).items()]
    for expert in experts:  # all of them, before the first is written
        target_folder(expert, args.output, args.shuffle)
    model = load_model(args.to, "--to")
    for expert in experts:
        made = transfer(expert, model, args.to, args.output, args.shuffle)
        told = f", {len(made.dropped)} dropped" if made.dropped else ""
        told += f", {len(made.resized)} of another rank" if made.resized else ""
        print(f"{made.path}: {made.matched} matrices{told}")
    return 0


def _adapt(argv: Sequence[str]) -> int:
    from .fewshot.command import adapt_command

    return adapt_command(argv)


def _eval(argv: Sequence[str]) -> int:
    from .fewshot.command import eval_command

    return eval_command(argv)


def _print_card(card: Mapping[str, Any]) -> None:
    for key, value in card.items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _train(argv: Sequence[str]) -> int:
    from ..baselines.config import settings_help

    parser = argparse.ArgumentParser(
        prog="t2 train",
        description="Train an expert as a configuration says; the same command again resumes an interrupted run.",
        epilog="settings, with their defaults:\n" + settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = sorted(path.stem for path in (Path(__file__).parents[1] / "baselines" / "configs").glob("*.yaml"))
    parser.add_argument("config", metavar="CONFIG", help=f"a YAML file, or the name of one of t2's own: {', '.join(own)}")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="settings that replace the file's")
    args = parser.parse_args(argv)
    from ..baselines.train import main as train
    from ..baselines.train import run_folders
    from ..reports.errors import ReportError
    from ..reports.plots.canvas import save
    from ..reports.plots.curves import draw, events

    curves = {folder: folder for folder in run_folders(args.config, args.overrides)}
    try:
        made = train(args.config, args.overrides)
        curves[made.parents[1]] = made  # of a sweep the best
    finally:  # of a run that was stopped too
        for folder, run in curves.items() if int(os.environ.get("RANK", "0")) == 0 else ():
            with contextlib.suppress(ReportError, OSError):  # it is not begun, or the disk is full
                save(draw({run.name: events(run)}), folder / "curve.png")
    return 0


def _study(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="t2 study",
        description="Train and score every run of a study, and print its tables; the same command again goes on where it was stopped.",
    )
    own = sorted(path.stem for path in (Path(__file__).parents[1] / "baselines" / "studies").glob("*.yaml"))
    parser.add_argument("study", metavar="STUDY", help=f"a YAML file, or the name of one of t2's own: {', '.join(own)}")
    parser.add_argument("--made", action="store_true", help="print the tables of the rows that there are, and make none")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="adapters or strategies to make at a time (default: 1)")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {args.jobs}")
    from ..baselines.study import load_study, rows
    from ..baselines.study_rows import made, run_study
    from ..reports.output import show
    from ..reports.study import study_tables

    study = load_study(args.study)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else what it has begun would run on
    found = [one for row in rows(study) if (one := made(study, row))] if args.made else run_study(study, args.jobs)
    show(study_tables(found, {task: run for run, tasks in reversed(study.runs.items()) for task in tasks}) + "\n")
    return 0


def _probe(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="t2 probe",
        description="Train a probe for dispatch=probe from prompts of train splits: code, math, reasoning, and categories of your own.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="Hugging Face name or folder (default: the default model)")
    where = "folder to write; called `probe` and beside the experts it is found by itself"
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True, help=where)
    parser.add_argument("--prompts", metavar="NAME=FILE", action="append", default=[], help="prompts of an expert of yours, one a line")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts and their split (default: 0)")
    args = parser.parse_args(argv)
    extra = {}
    for pair in args.prompts:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise T2Error(f"--prompts {pair} is not of the form NAME=FILE, e.g. law=law-prompts.txt.")
        extra[name] = Path(path)
    from ..baselines.probe import train_probe

    _print_card(train_probe(args.model, args.output, extra, args.seed))
    print(f"Wrote {args.output}", file=sys.stderr)
    return 0


def _curves(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="t2 curves", description="Draw the learning curves of runs of `t2 train` into one picture.")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's folder, or that of a trained adapter")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=Path("curves.png"), help="picture (default: curves.png)")
    args = parser.parse_args(argv)
    from ..reports.plots.canvas import save
    from ..reports.plots.curves import draw, events

    labels = [str(run) for run in args.runs] if len({run.name for run in args.runs}) < len(args.runs) else [run.name for run in args.runs]
    save(draw(dict(zip(labels, map(events, args.runs), strict=True))), args.output)
    print(f"Wrote {args.output}", file=sys.stderr)
    return 0


def _report(argv: Sequence[str]) -> int:
    from ..reports.cli import main as report

    return report(list(argv))


def _regress(argv: Sequence[str]) -> int:
    try:
        from ..reports.regress.command import main as regress
    except ImportError:  # Python would end with 1, which is a regression
        traceback.print_exc()
        return 2
    return regress(argv)


def _score_code(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="t2 score-code",
        description="Judge generated programs in the sandbox and print pass@k. FILE_results.jsonl has every line with its verdict; the "
        "same command again goes on with an interrupted run.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="lm-eval's samples_*.jsonl (--log_samples), or human-eval's samples.jsonl")
    parser.add_argument("--task", metavar="NAME", help="whose samples they are, where neither file name nor task ids say it")
    parser.add_argument("--k", metavar="K,...", type=_ks, help="the k of pass@k (default: 1,10,100 as far as there are samples)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    from ..tasks.score_code import score_code

    return score_code(args.file, args.task, args.k, args.quiet)


def _ks(text: str) -> list[int]:
    ks = [int(part) for part in text.split(",")]
    if min(ks) < 1:
        raise argparse.ArgumentTypeError("every k is at least 1")
    return ks


class Command(NamedTuple):
    """A subcommand: one line of help, and what runs it."""

    help: str
    run: Callable[[Sequence[str]], int]


COMMANDS = {
    "fetch": Command("get the default model and the test sets", _fetch),
    "doctor": Command("tell what works here, and how to get what is missing", _doctor),
    "experts": Command("list | show NAME | check PATH | transfer | spectrum", _experts),
    "adapt": Command("--task T: few-shot search for the best mixture of experts", _adapt),
    "eval": Command("--strategy S --tasks T: lm_eval --model t2, few-shot search first if S is fewshot", _eval),
    "train": Command("CONFIG [key=value ...]: train an expert, or a baseline", _train),
    "study": Command("STUDY: methods x seeds, and strategies, scored on test sets", _study),
    "probe": Command("[MODEL] -o FOLDER: train the probe of dispatch=probe", _probe),
    "curves": Command("RUN ...: picture of learning curves", _curves),
    "score-code": Command("FILE: judge generated programs in the sandbox", _score_code),
    "report": Command("RUNS ...: tables from lm-eval result files", _report),
    "regress": Command("--baseline FILE RUN ...: fail where a run got worse than a baseline", _regress),
}

_FILES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST}


def _of_the_user(error: Exception) -> bool:
    """Return whether an exception is one to show as a message: ours, or a disk that takes no more, or a path that cannot be used.

    adapters and reports have errors of their own. They are looked up among the modules loaded so far, for only those can have raised.
    """
    kinds: list[type[Exception]] = [T2Error]
    root = __package__.rpartition(".")[0] if __package__ else "t2"
    for module, name in (("adapters.errors", "AdapterError"), ("reports.errors", "ReportError")):
        if loaded := sys.modules.get(f"{root}.{module}"):
            kinds.append(getattr(loaded, name))
    return isinstance(error, tuple(kinds)) or (isinstance(error, OSError) and error.errno in _FILES)


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:10} {command.help}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="t2",
        description="Self-adaptive language models (Transformer²) inside lm-evaluation-harness.",
        epilog="\n".join(
            [
                "commands:",
                *lines,
                "",
                "`t2 COMMAND --help` tells more. Evaluation itself is lm-eval's: lm_eval --model t2 --tasks math,humaneval",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"t2 {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `t2`; return the exit status: the command's, 2 for an error of the user's making, 130 for Ctrl-C.

    ``T2_TRACEBACK=1`` lets the traceback of such errors through.
    """
    log = logging.getLogger("t2")
    if not any(type(handler) is logging.StreamHandler for handler in log.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("t2: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        args = _parser().parse_args(argv)
        if args.command not in COMMANDS:
            raise T2Error(f"Unknown command {args.command!r}.{nearest(args.command, COMMANDS)}")
        status = COMMANDS[args.command].run(args.arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("t2: interrupted; nothing half-written was kept. The same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `t2 doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not _of_the_user(error):
            raise
        if os.environ.get("T2_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        else:
            print(f"t2: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
