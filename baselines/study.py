"""What ``t2 study`` compares: methods, seeds and strategies, each scored by lm-eval on full test sets."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..harness.errors import T2Error, nearest
from .config import load_config, read_yaml

_ELSEWHERE = {"seed": "seeds", "output": "output"}
"""Settings of a run → what of the study gives them."""
_OF_ALL = {"model": "pretrained", "dtype": "dtype"}
"""Settings that go to every row → model argument."""
_ASKS_OTHERWISE = {"num_fewshot", "system_instruction", "fewshot_as_multiturn", "gen_kwargs", "limit", "samples", "apply_chat_template"}
"""Options of `t2 eval` that change what is asked, or of what."""


@dataclass(frozen=True)
class Study:
    """What is compared, on each task with the base model and with each other.

    Attributes:
        name: of the study; also its folder under `output`.
        runs: configuration of `t2 train` → lm-eval tasks whose test sets score it.
        seeds: every run is trained once with each.
        strategies: label → options of `t2 eval`, ``strategy`` among them; ``tasks``, where only some score it.
        tasks: those that score the strategies.
        settings: replace those of every configuration; ``model`` and ``dtype`` go to the strategies too.
        lm: lm-eval's model that scores: ``t2``, or ``t2-vllm``, which is several times faster where replies are long.
        batch_size: of lm-eval, or task → that of its rows, and ``default``: that of the others; vLLM makes its own.
        limit: documents of each test set; None for all.
        output: folder of studies.
    """

    name: str
    runs: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    strategies: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    lm: str = "t2"
    batch_size: int | dict[str, int] = 32
    limit: int | None = None
    output: str = "runs"

    @property
    def folder(self) -> Path:
        """Where runs, results and rows lie."""
        return Path(self.output) / self.name


@dataclass(frozen=True)
class Row:
    """One line of a task's table: the base model, a trained adapter (`run`, `seed`), or a strategy."""

    task: str
    run: str | None = None
    seed: int | None = None
    strategy: str | None = None

    @property
    def is_base(self) -> bool:
        """Whether it is the base model's."""
        return self.run is None and self.strategy is None

    @property
    def label(self) -> str:
        """Name of the row's files."""
        what = self.strategy or ("base" if self.run is None else f"{self.run}-seed{self.seed}")
        return re.sub(r"[^\w.+-]", "_", f"{what}-{self.task}")  # a run may be named by its file's path


def load_study(path: str | Path) -> Study:
    """Read a study from a YAML file, or one of t2's own by name.

    Raises:
        T2Error: no such file, unknown or missing keys, an unknown configuration; all errors at once.
    """
    path, values = read_yaml(path, "studies", "study")
    known = {f.name for f in fields(Study)}
    errors = [f"unknown key {key!r}.{nearest(str(key), known)}" for key in values if key not in known]
    for key in ("name", "output"):
        if not isinstance(values.get(key, "runs"), str):
            errors.append(f"{key} must be text; got {values[key]!r}")
    if not values.get("name"):
        errors.append("name is required")
    runs, strategies = values.get("runs", {}), values.get("strategies", {})
    if not (runs or strategies):
        errors.append("runs or strategies are required")
    if isinstance(runs, dict):
        values["runs"] = {run: [tasks] if isinstance(tasks, str) else tasks for run, tasks in runs.items()}
    if not isinstance(runs, dict) or not all(_names(tasks) for tasks in values["runs"].values()):
        errors.append("runs must map configurations to lm-eval tasks")
    if not isinstance(strategies, dict) or not all(_is_strategy(options) for options in strategies.values()):
        errors.append("strategies must map labels to options of t2 eval: strategy, and model_args, if any, as a mapping")
    elif "base" in strategies:
        errors.append("the base model has a row of its own: give the strategy 'base' another label")
    if (strategies or values.get("tasks", []) != []) and not _names(values.get("tasks")):
        errors.append("strategies need tasks, a list of lm-eval's")
    elif isinstance(strategies, dict):
        for label, own in ((label, o["tasks"]) for label, o in strategies.items() if isinstance(o, dict) and "tasks" in o):
            if not _names(own) or not set(own) <= set(values["tasks"]):
                errors.append(f"tasks of strategy {label!r} must be some of {values['tasks']}; got {own!r}")
    if values.get("lm", "t2") not in ("t2", "t2-vllm"):
        errors.append(f"lm is {values['lm']!r}; it can be t2 or t2-vllm")
    settings = values.get("settings", {})
    if not isinstance(settings, dict):
        errors.append("settings must be a mapping")
    else:
        errors += [f"settings: {key} is the study's own {own}" for key, own in _ELSEWHERE.items() if key in settings]
        if not runs:
            errors += [f"settings: without runs only model and dtype are of use; got {key!r}" for key in settings if key not in _OF_ALL]
        if isinstance(strategies, dict):
            errors += list(_told_twice(settings, strategies))
    seeds = values.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        errors.append(f"seeds must be a list of whole numbers; got {seeds!r}")
    sizes = values.get("batch_size", 1)
    sizes = {f"batch_size of {task}": size for task, size in sizes.items()} if isinstance(sizes, dict) else {"batch_size": sizes}
    for key, number in {**sizes, **({"limit": limit} if (limit := values.get("limit")) is not None else {})}.items():
        if type(number) is not int or number < 1:
            errors.append(f"{key} must be a positive whole number; got {number!r}")
    if errors:
        raise T2Error(f"{path}: " + "; ".join(errors))
    study = Study(**values)
    if isinstance(study.batch_size, dict):
        tasks = {row.task for row in rows(study)}
        if alien := [task for task in study.batch_size if task not in tasks | {"default"}]:
            raise T2Error(f"{path}: batch_size: {alien[0]!r} is no task of this study.{nearest(str(alien[0]), tasks)}")
        if "default" not in study.batch_size and not tasks <= {*study.batch_size}:
            raise T2Error(f"{path}: batch_size: give all tasks one, or a default.")
    named: dict[str, str] = {}
    for run, seed in itertools.product(study.runs, study.seeds):
        config = load_config(run, overrides(study, seed))  # every error now, not after hours
        name = config.name
        if (other := named.setdefault(name, run)) != run:
            raise T2Error(
                f"{path}: {other} and {run} have the same name, {name!r}, and would train in one folder: give each one of its own."
            )
        if study.lm == "t2-vllm" and config.method != "svf" and not study.settings.get("dtype"):
            raise T2Error(
                f"{path}: {run} is merged into the model for t2-vllm, which then might be scored in another precision than the base model: "
                "say in settings which, dtype: float32 or dtype: bfloat16."
            )
    names = Counter(row.label for row in rows(study))
    if twice := [name for name, count in names.items() if count > 1]:
        raise T2Error(f"{path}: two rows would both be {twice[0]!r}: a seed is listed twice, or a name is like another.")
    return study


def _told_twice(settings: dict[str, Any], strategies: dict[str, Any]) -> Iterator[str]:
    """Yield what a strategy says that is the study's to say, so that all rows are scored alike."""
    for label, options in strategies.items():
        if not _is_strategy(options):
            continue
        for key in sorted(set(options) & _ASKS_OTHERWISE):
            yield f"strategy {label!r}: {key} would ask it otherwise than the base model"
        for key, argument in _OF_ALL.items():
            if argument in options.get("model_args", {}) and key in settings:
                yield f"strategy {label!r}: {argument} is in settings, as {key}, too; leave one out"


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _is_strategy(options: Any) -> bool:
    return isinstance(options, dict) and isinstance(options.get("strategy"), str) and isinstance(options.get("model_args", {}), dict)


def rows(study: Study) -> Iterator[Row]:
    """Yield the rows, one task's table after the other: the base model, all runs of one seed after the other, the strategies."""
    for task in dict.fromkeys([*itertools.chain.from_iterable(study.runs.values()), *study.tasks]):
        yield Row(task)
        for seed in study.seeds:
            for run in (run for run, scored_by in study.runs.items() if task in scored_by):
                yield Row(task, run, seed)
        for strategy, options in study.strategies.items():
            if task in options.get("tasks", study.tasks):
                yield Row(task, strategy=strategy)


def overrides(study: Study, seed: int) -> list[str]:
    """Return what the study sets in a configuration of `t2 train`, as ``key=value``."""
    settings = {**study.settings, "seed": seed, "output": str(study.folder / f"seed{seed}")}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
