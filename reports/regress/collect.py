"""From result files and their logged samples to a `Snapshot`."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from ... import __version__
from ..arguments import short_name
from ..blocks import some
from ..errors import ReportError
from ..files import find
from ..labels import MODEL_KEYS, PLACE_KEYS
from ..load import Run, TaskResult, leaves, load_all
from ..metrics import Key, find_score, nearest, pick, primary
from ..samples import DATE, read_samples, samples_file
from .benchmarks import benchmarks
from .likeness import one_machine
from .snapshot import REPEATS, Snapshot, TaskScores

_PROVENANCE = ("CPU", "GPU", "Python", "git")
_VERSIONS = ("lm-eval", "transformers", "torch", "dtype", "batch size", "device", "GPU", "model sha")
PASSES, TOKEN, PROGRAM = "pass1_per_pass2", "seconds_per_token", "seconds_per_program"
TIMINGS = (PASSES, TOKEN, PROGRAM)
SEEDS = "seeds"  # of a run, in which repeats may differ


def collect(arguments: Sequence[str | Path], metric: Callable[[str], str | None], tasks: Collection[str] | None = None) -> Snapshot:
    """Read the runs of one candidate.

    Of a folder the newest result of each task counts. A task that several arguments have is a repeat: its scores are averaged document by
    document, its timing kept apart.

    Args:
        arguments: result files, folders that hold some, or JSON files of pytest-benchmark.
        metric: task -> `METRIC` or `METRIC,FILTER`, or None for the report's own choice.
        tasks: leaf tasks, or groups of the runs, to read; None reads all.

    Raises:
        ReportError: a file cannot be used, repeats are not of one configuration, or samples are unsound.
    """
    found = Snapshot()
    machines: list[dict[str, str]] = []
    measured: dict[bytes, Path] = {}
    batches: list[list[Run]] = []
    parts: dict[str, list[tuple[Run, TaskScores]]] = {}
    for argument in arguments:
        path = Path(argument)
        if (figures := benchmarks(path)) is not None:
            first = measured.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
            if first is not path:
                found.notes.append(_copy(path, first))
                continue
            for name, value in figures[0].items():
                found.benchmarks.setdefault(name, []).append(value)
            machines.append(figures[1])
        else:
            batches.append(_runs(path, found.notes))
            found.groups |= {group: tuple(leaves(group, run.groups)) for run in batches[-1] for group in run.groups}
    found.benchmark_machine = one_machine(machines)
    wanted = None if tasks is None else {leaf for name in tasks for leaf in found.groups.get(name, (name,))}
    for runs in batches:
        chosen = _newest(runs, found.notes)
        found.notes += _older({task: run for task, run in chosen.items() if wanted is None or task in wanted}, runs)
        for task, run in chosen.items():
            if wanted is not None and task not in wanted:
                found.others.append(task)
                continue
            same = [other for other, _ in parts.get(task, ()) if other.raw.sha256 == run.raw.sha256]
            if same:
                found.notes.append(_copy(run.raw.found.path, same[0].raw.found.path))
                continue
            scores = _scores(run, task, metric(task))
            if isinstance(scores, str):
                found.skipped[task] = scores
            else:
                parts.setdefault(task, []).append((run, scores))
    found.tasks = {task: _averaged(task, repeats) for task, repeats in parts.items()}
    return found


def _runs(path: Path, notes: list[str]) -> list[Run]:
    runs, left_out = load_all(find([path]))
    notes += left_out
    if not runs:
        raise ReportError(f"{path}: no lm-eval scores there.{' ' + notes[-1] if notes else ''}")
    return runs


def _newest(runs: Sequence[Run], notes: list[str]) -> dict[str, Run]:
    chosen: dict[str, Run] = {}
    for run in sorted(runs, key=_date, reverse=True):
        for task in (name for name in run.tasks if name not in run.groups):
            if task in chosen:
                notes.append(f"{task}: {chosen[task].raw.found.path} is newer than {run.raw.found.path}, and counts.")
            else:
                chosen[task] = run
    return chosen


def _older(chosen: Mapping[str, Run], runs: Sequence[Run]) -> list[str]:
    """Tell what is not of a folder's newest file: a task that failed, or was not asked for, when it was last evaluated."""
    newest = max(runs, key=_date)
    older: dict[Path, list[str]] = {}
    for task, run in chosen.items():
        if run is not newest:
            older.setdefault(run.raw.found.path, []).append(task)
    days = {run.raw.found.path: run.day for run in runs}
    latest = f"{newest.raw.found.path} ({newest.day})"
    return [f"{some(tasks, 8)}: of the older {path} ({days[path]}), as {latest} lacks them." for path, tasks in older.items()]


def _copy(path: Path, first: Path) -> str:
    return f"{path} is a copy of {first} and was counted once."


def _date(run: Run) -> tuple[float, str]:
    """Start of a run, or else what its file's name says, which also parts runs of one start."""
    dated = DATE.search(run.raw.found.path.name)
    name = dated.group(1) if dated else ""
    try:
        named = datetime.strptime(name[:19], "%Y-%m-%dT%H-%M-%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        named = 0.0
    return run.date or named, name


def _scores(run: Run, task: str, wanted: str | None) -> TaskScores | str:
    result = run.tasks[task]
    key = _key(result, wanted)
    score = find_score(result, key)
    if key is None or score is None:
        return "it has no score"
    samples = read_samples(run, task, key)
    path = run.raw.found.path
    again = "Run the evaluation again."
    if samples.missing:
        raise ReportError(f"{path}: no logged samples of {task} beside it. The gate compares documents: run lm_eval with --log_samples.")
    if not math.isfinite(score.value):
        raise ReportError(f"{path}: {','.join(key)} of {task} is {score.value}. {again}")
    if samples.problem:
        raise ReportError(f"{samples.problem}. {again}")
    if samples.pooled:
        return f"its {','.join(key)} is no mean over documents"
    ids, values = samples.ids.tolist(), samples.values.tolist()
    if result.n is not None and len(ids) != result.n:
        file = samples_file(run, task)
        raise ReportError(f"{path}: {task} has {result.n} documents, but {file} has {len(ids)} samples: it is not whole. {again}")
    average = math.fsum(values) / len(values)
    if not abs(average - score.value) <= 1e-6 * max(1.0, abs(score.value)):
        return f"its {','.join(key)} ({score.value:.6g}) is not the mean of its documents ({average:.6g})"
    documents = {doc: (f"{bits:016x}" if bits else "", value) for doc, bits, value in zip(ids, samples.hashes, values, strict=True)}
    programs = _program_seconds(samples_file(run, task)) if run.t2 and run.t2.sandbox else []
    timing = _timing(run, task) | ({PROGRAM: [math.fsum(programs) / len(programs)]} if programs else {})
    settings = _settings(run, result) | ({"sandbox": run.t2.sandbox} if programs and run.t2 and run.t2.sandbox else {})
    provenance = {name: run.info[name] for name in _PROVENANCE if name in run.info} | {"date": run.day, "t2": __version__}
    return TaskScores(*key, score.higher_is_better, documents, settings, provenance, timing)


def _key(result: TaskResult, wanted: str | None) -> Key | None:
    if wanted is None:
        return primary([result])
    keys = [(score.metric, score.filter) for score in result.scores]
    if (key := pick(wanted, keys)) is None:
        raise ReportError(f"metric {wanted!r}: {result.name} has no such metric.{nearest(wanted, map(','.join, keys))}")
    return key


def _settings(run: Run, result: TaskResult) -> dict[str, str]:
    hidden = {*MODEL_KEYS, *PLACE_KEYS, "strategy", "dispatch", "calibrate", "experts"}
    if "dtype" in run.info:  # what it came to; vLLM's runs do not say
        hidden.add("dtype")
    if run.t2:  # which tells them by what they hold
        hidden |= {"mixture", "probe", "classifier"}
    model = next((run.args[key] for key in MODEL_KEYS if run.args.get(key)), "")
    found = {"model class": run.model, "model": short_name(model)} | {name: run.info.get(name, "") for name in _VERSIONS}
    found["arguments"] = ", ".join(f"{key}={_place(value)}" for key, value in sorted(run.args.items()) if key not in hidden)
    found |= {name: value for name, value in run.settings.items() if name != "limit"}
    config = run.raw.data.get("config")
    if isinstance(config, dict) and config.get("batch_sizes"):
        found["batch sizes"] = str(config["batch_sizes"])  # what "auto" came to
    if run.t2:
        found |= {"base weights": run.t2.base, "strategy": _place(run.t2.strategy), "dispatch": run.t2.dispatch, "probe": run.t2.probe}
        found |= {f"expert {name}": sha for name, sha in sorted(run.t2.experts.items())}
        found |= {"calibrate": "" if run.t2.calibrate is None else str(run.t2.calibrate)}
    found |= {"few-shot": result.n_shot or "", "task version": result.version or "", "prompts": (result.task_hash or "")[:16]}
    found |= {f"task's {name}": _digest(text) for name, text in result.definition.items()}
    return {name: value for name, value in found.items() if value}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _place(text: str) -> str:
    """Folders differ from machine to machine, and baselines are committed: what lies there is told by hashes."""
    return short_name(text) if text.startswith(("/", "~", ".")) else text


def _timing(run: Run, task: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    cost = run.t2.passes.get(task) if run.t2 else None
    if cost and cost.pass2.seconds > 0:
        if cost.pass1.seconds > 0:
            found[PASSES] = [cost.pass1.seconds / cost.pass2.seconds]
        if tokens := cost.pass2.tokens_out or cost.pass2.tokens_in:
            found[TOKEN] = [cost.pass2.seconds / tokens]
    return found


def _program_seconds(path: Path | None) -> list[float]:
    """Seconds of each verdict that t2's code tasks log: how long the sandbox took for a program."""
    found: list[float] = []
    if path is None:
        return found
    with path.open("rb") as lines:
        for line in lines:
            if b'\\"verdict\\"' not in line:
                return found  # a task that runs no code
            replies = json.loads(line).get("filtered_resps")
            replies = replies if isinstance(replies, list) else ()
            for text in chain.from_iterable(reply if isinstance(reply, list) else [reply] for reply in replies):
                if (seconds := _seconds(text)) is not None:
                    found.append(seconds)
    return found


def _seconds(text: Any) -> float | None:
    try:
        seconds = json.loads(text)["verdict"]["seconds"]
        return float(seconds) if math.isfinite(seconds) and seconds > 0 else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _averaged(task: str, repeats: Sequence[tuple[Run, TaskScores]]) -> TaskScores:
    run, first = repeats[0]
    for other, scores in repeats[1:]:
        where = f"{other.raw.found.path} and {run.raw.found.path} are taken for repeats of {task}, but"
        cure = "Give the files of one configuration, one folder for each repeat."
        names = [
            name
            for name in dict.fromkeys([*first.settings, *scores.settings])
            if name != SEEDS and first.settings.get(name) != scores.settings.get(name)
        ]
        if names:
            raise ReportError(f"{where} differ in {', '.join(names)}. {cure}")
        if {doc: digest for doc, (digest, _) in first.documents.items()} != {doc: digest for doc, (digest, _) in scores.documents.items()}:
            raise ReportError(f"{where} are of different documents. {cure}")
    n = len(repeats)
    documents = {
        doc: (digest, math.fsum(scores.documents[doc][1] for _, scores in repeats) / n) for doc, (digest, _) in first.documents.items()
    }
    timing = {name: list(chain.from_iterable(scores.timing.get(name, []) for _, scores in repeats)) for name in first.timing}
    provenance = first.provenance | one_machine([scores.provenance for _, scores in repeats]) | ({REPEATS: str(n)} if n > 1 else {})
    settings = first.settings
    if seeds := sorted({scores.settings[SEEDS] for _, scores in repeats if SEEDS in scores.settings}):
        settings = settings | {SEEDS: " / ".join(seeds)}
    return TaskScores(first.metric, first.filter, first.higher_is_better, documents, settings, provenance, timing)


def useful(groups: Mapping[str, tuple[str, ...]], tasks: Mapping[str, TaskScores]) -> dict[str, tuple[str, ...]]:
    """Groups that pool several whole tasks; two of the same tasks would be tested twice."""
    found: dict[tuple[str, ...], str] = {}
    for group, below in groups.items():
        if len(below) > 1 and all(leaf in tasks for leaf in below):
            found.setdefault(tuple(sorted(below)), group)
    return {group: below for below, group in found.items()}
