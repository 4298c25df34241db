"""Arguments of `t2 adapt` and `t2 eval`."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import T2Error
from .adapt import adapt
from .documents import SOURCES, known_tasks
from .mixture_file import MixtureFile, read_mixture
from .options import FORMS, AdaptOptions

log = logging.getLogger("t2")

LIGHT = {"shots": 3, "iterations": 10}
"""The paper's light budget."""


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    search = parser.add_argument_group("search")
    search.add_argument("--shots", type=int, metavar="N", help="few-shot documents (default: 10; the paper has 3, 5, 10, 20)")
    search.add_argument("--budget", choices=("full", "light"), default="full", help="light: 3 shots and 10 iterations, where not given")
    search.add_argument("--form", metavar="FORM,...", default=FORMS[0], help=f"what α are, of {', '.join(FORMS)} (default: {FORMS[0]})")
    search.add_argument("--select", type=int, default=0, metavar="N", help="with several forms: documents held out to choose one")
    search.add_argument("--optimizer", default="cem", metavar="NAME", help="cem (the paper), cma (needs the package cmaes), random")
    search.add_argument("--iterations", type=int, metavar="N", help="generations at most (default: 100)")
    search.add_argument("--population", type=int, default=32, metavar="N", help="mixtures a generation (default: 32)")
    search.add_argument("--elite_ratio", type=float, default=0.2, metavar="X", help="share that makes the next generation (default: 0.2)")
    search.add_argument("--range", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="of the numbers searched (0 1)")
    search.add_argument("--resolution", type=float, default=0.01, metavar="X", help="α are rounded to it (default: 0.01)")
    search.add_argument("--search_seed", type=int, default=0, metavar="N", help="of the documents and the search (default: 0)")
    search.add_argument("--source", choices=SOURCES, help="split of the documents (default: the first of these that the task has)")
    search.add_argument("--metric", metavar="NAME[,FILTER]", help="the 0/1 metric that counts right answers")


def _shared_arguments(parser: argparse.ArgumentParser) -> None:
    shared = parser.add_argument_group("as for lm_eval")
    shared.add_argument("--model", "-M", choices=("t2", "t2-vllm"), default="t2", help="who answers (default: t2)")
    model_args = "of the model: pretrained, experts, dtype, …; or JSON"
    shared.add_argument("--model_args", "-a", nargs="+", action="extend", default=[], metavar="KEY=VALUE,...", help=model_args)
    shared.add_argument("--num_fewshot", "-f", type=int, metavar="N", help="examples in each prompt")
    shared.add_argument("--gen_kwargs", nargs="+", action="extend", default=[], metavar="KEY=VALUE,...", help="of generation; or JSON")
    template = "wrap prompts in the chat template"
    shared.add_argument("--apply_chat_template", nargs="?", const=True, metavar="NAME", help=template)
    shared.add_argument("--system_instruction", metavar="TEXT", help="system prompt")
    shared.add_argument("--batch_size", "-b", metavar="N", help="rows a batch (default: 32; t2-vllm: auto)")
    shared.add_argument("--device", metavar="NAME", help="cuda, cpu, …")
    shared.add_argument("--include_path", metavar="FOLDER", help="of more tasks")


def _options(args: argparse.Namespace, evaluation: Any, task: str, output: Path) -> AdaptOptions:
    """Return the options of a search for an evaluation that lm-eval has read its own options of."""
    budget = LIGHT if args.budget == "light" else {"shots": 10, "iterations": 100}
    model_args = {name: value for name, value in evaluation.model_args.items() if name != "batch_size"}
    if args.device:
        model_args["device"] = args.device
    return AdaptOptions(
        task=task,
        output=output,
        shots=budget["shots"] if args.shots is None else args.shots,
        iterations=budget["iterations"] if args.iterations is None else args.iterations,
        forms=tuple(form.strip() for form in args.form.split(",")),
        select=args.select,
        optimizer=args.optimizer,
        population=args.population,
        elite_ratio=args.elite_ratio,
        low=args.range[0],
        high=args.range[1],
        resolution=args.resolution,
        seed=args.search_seed,
        source=args.source,
        metric=args.metric,
        model=args.model,
        model_args=model_args,
        batch_size=int(args.batch_size) if (args.batch_size or "").isdecimal() else 32,
        num_fewshot=evaluation.num_fewshot,
        gen_kwargs=evaluation.gen_kwargs or None,
        apply_chat_template=bool(evaluation.apply_chat_template),
        system_instruction=evaluation.system_instruction,
        fewshot_as_multiturn=evaluation.fewshot_as_multiturn is not False,
        fewshot_seed=evaluation.seed[3] if evaluation.seed else None,
        include_path=evaluation.include_path,
    )


def adapt_command(argv: Sequence[str]) -> int:
    """Run `t2 adapt`; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="t2 adapt",
        description="Few-shot adaptation: search for the mixture of experts that does best on a few documents of a task, and write it "
        "to a file for `lm_eval --model t2 --model_args mixture=FILE`. The same command resumes an interrupted search.",
        allow_abbrev=False,
    )
    parser.add_argument("--task", required=True, metavar="NAME", help="lm-eval's task or group, of generated text or multiple choice")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="mixture file (default: mixtures/TASK.json)")
    _search_arguments(parser)
    _shared_arguments(parser)
    parser.set_defaults(limit=None)
    args = parser.parse_args(argv)
    evaluation = _evaluation(_words(args, [args.task], {}, None))
    made = read_mixture(adapt(_options(args, evaluation, args.task, args.output or _default_file(Path("mixtures"), args.task))))
    print(_summary(made))
    return 0


def eval_command(argv: Sequence[str]) -> int:
    """Run `t2 eval`; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="t2 eval",
        description="`lm_eval --model t2`, or `t2-vllm`, by strategy. With --strategy fewshot, `t2 adapt` comes first for each task, and "
        "documents that the search has seen are left out of the score. Options that are not listed here are lm_eval's.",
        allow_abbrev=False,
    )
    parser.add_argument("--strategy", required=True, metavar="NAME", help="fewshot, or what the model argument strategy takes")
    parser.add_argument("--tasks", "-t", required=True, nargs="+", metavar="NAME,...", help="lm-eval's tasks")
    parser.add_argument(
        "--mixtures", type=Path, default=Path("mixtures"), metavar="FOLDER", help="of the mixture files (default: mixtures)"
    )
    parser.add_argument("--limit", "-L", type=float, metavar="N", help="evaluate the first N documents, or a share below 1")
    _search_arguments(parser)
    _shared_arguments(parser)
    args, rest = parser.parse_known_args(argv)
    tasks = [task for word in args.tasks for task in word.split(",")]
    if args.strategy != "fewshot":
        words = [*_words(args, tasks, {"strategy": args.strategy}, None), *rest]
        _parsed(words)
        _lm_eval(words)
        return 0
    evaluation = _evaluation([*_words(args, tasks, {}, None), *rest])
    known_tasks(tasks, args.include_path)  # all of them, before the first is searched for hours
    for task in tasks:
        made = read_mixture(adapt(_options(args, evaluation, task, _default_file(args.mixtures, task))))
        print(_summary(made))
        _lm_eval([*_words(args, [task], {"mixture": str(made.path)}, rest_of(made, args.limit)), *rest])
    return 0


def rest_of(mixture: MixtureFile, limit: float | None) -> dict[str, list[int]] | None:
    """Return lm-eval's argument ``samples``: the documents that the search has not seen; None where it saw none that are evaluated.

    Args:
        mixture: of the task that is evaluated.
        limit: as lm-eval's; it counts documents before any is left out.

    Raises:
        T2Error: nothing is left to evaluate.
    """
    seen: dict[str, set[int]] = {}
    for document in mixture.data["documents"]:
        if document["split"] == "evaluated":
            seen.setdefault(document["task"], set()).add(document["id"])
    if not seen:
        return None
    left = {}
    for task, total in mixture.data["evaluated_documents"].items():
        count = total if limit is None else min(total, -(-total * limit // 1) if limit < 1 else limit)
        left[task] = [i for i in range(int(count)) if i not in seen.get(task, ())]
        if not left[task]:
            raise T2Error(f"Nothing of {task} is left to evaluate once the documents of the search are left out: raise --limit.")
    return left


def _default_file(folder: Path, task: str) -> Path:
    return folder / f"{task.replace('/', '_')}.json"


def _summary(made: MixtureFile) -> str:
    scores = made.data["scores"]
    best = scores["confirmed" if made.data["alpha"] else "base"]
    cost = made.data["cost"]
    return (
        f"{made.path}: {made.mixture}; {best['right']} of {best['of']} few-shot documents right, the base model {scores['base']['right']}; "
        f"{sum(search['evaluated'] for search in made.data['searches'].values())} mixtures evaluated in {cost['seconds']:.0f} s"
    )


def _words(args: argparse.Namespace, tasks: Sequence[str], weights: Mapping[str, str], samples: dict[str, list[int]] | None) -> list[str]:
    """Return the words of lm-eval's command line for what its options and ours have in common; `weights` are model arguments too."""
    words = ["--model", args.model, "--tasks", ",".join(tasks)]
    for option, values in (("--model_args", [*args.model_args, json.dumps(weights)]), ("--gen_kwargs", args.gen_kwargs)):
        for value in values:  # each by itself, for lm-eval lets nothing follow JSON
            words += [option, value]
    words += ["--batch_size", args.batch_size or ("auto" if args.model == "t2-vllm" else "32")]
    for name in ("num_fewshot", "system_instruction", "device", "include_path"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    if args.apply_chat_template:
        words += ["--apply_chat_template", *([] if args.apply_chat_template is True else [args.apply_chat_template])]
    if samples is not None:
        words += ["--samples", json.dumps(samples)]
    elif args.limit is not None:
        words += ["--limit", str(args.limit)]
    return words


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """Within the block, let lm-eval find these words: it reads `sys.argv`."""
    before, sys.argv = sys.argv, ["lm_eval", "run", *words]
    try:
        yield
    finally:
        sys.argv = before


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return lm-eval's options as its parser reads them.

    Raises:
        T2Error: JSON that is none.
        SystemExit: a word that lm-eval does not know.
    """
    from lm_eval._cli import HarnessCLI

    try:
        with _command_line(words):
            return HarnessCLI().parse_args()
    except ValueError as error:
        raise T2Error(f"lm_eval: {error}") from error


def _evaluation(words: Sequence[str]) -> Any:
    """Return what lm-eval's command line makes of its options, without running it: a search is to have the same, and no wrong ones.

    Raises:
        T2Error: lm-eval refuses them, or they say which documents or weights to use.
        SystemExit: a word that lm-eval does not know.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    read = _parsed(words)
    for name in ("samples", "config", "cache_requests"):  # the last knows nothing of samples: answers would be scored as other documents'
        if getattr(read, name) is not None:
            raise T2Error(f"--{name} does not go with a few-shot search, which says itself which documents and weights to use.")
    try:
        return EvaluatorConfig.from_cli(read)
    except ValueError as error:
        raise T2Error(f"lm_eval: {error}") from error


def _lm_eval(words: Sequence[str]) -> None:
    """Run lm-eval's command line in this process."""
    from lm_eval.__main__ import cli_evaluate

    with _command_line(words):
        cli_evaluate()
