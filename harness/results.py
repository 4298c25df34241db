"""The key ``t2`` in lm-eval's results and logged samples.

lm-eval has a seam for facts about a model (`LM.get_model_info`, merged into ``config``), none for the results' top level or for samples. So
`evaluate` is wrapped, when the first `t2` model is made and not before; for every other model the wrapper does nothing.
"""

import functools
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger("t2")


def install() -> None:
    """Wrap `lm_eval.evaluator.evaluate` and the naming of result folders; calling it twice changes nothing."""
    import lm_eval.evaluator as evaluator
    from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

    if not getattr(evaluator.evaluate, "_t2", False):
        evaluator.evaluate = _with_t2(evaluator.evaluate)
    if not getattr(GeneralConfigTracker.log_experiment_args, "_t2", False):
        GeneralConfigTracker.log_experiment_args = _named(GeneralConfigTracker.log_experiment_args)  # type: ignore[method-assign]


def _with_t2(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(evaluate)
    def evaluate_with_t2(*args: Any, **options: Any) -> Any:
        model = options.get("lm", args[0] if args else None)
        begin = getattr(model, "begin_run", None)  # lm-eval's cache wrapper passes attributes on
        if begin is None or not hasattr(model, "end_run"):
            return evaluate(*args, **options)
        asked = inspect.signature(evaluate).bind(*args, **options).arguments
        begin(tasks := _tasks(asked["task_dict"]), [asked.get("limit"), asked.get("samples")])
        _forget_sandbox()
        results = evaluate(*args, **options)
        facts = model.end_run()  # type: ignore[union-attr]
        if results is not None and facts is not None:
            facts["sandbox"] = _sandbox()
            facts["confusion"] = _confusion(facts["passes"], results.get("configs", {}))
            _mark_contaminated(model, facts, tasks, asked)
            results["t2"] = facts
            for task, samples in results.get("samples", {}).items():
                for sample in samples:
                    sample["t2"] = model.sample_facts(sample["arguments"], task)  # type: ignore[union-attr]
        return results

    evaluate_with_t2._t2 = True  # type: ignore[attr-defined]
    return evaluate_with_t2


def _tasks(found: Mapping[Any, Any]) -> dict[str, Any]:
    """Return name → task, of what lm-eval's `evaluate` takes: what its `TaskManager` loads, or tasks within groups as in older versions."""
    flat: dict[str, Any] = {}
    for name, task in found.get("tasks", found).items():
        flat |= _tasks(task) if isinstance(task, Mapping) else {name: task}
    return flat


def _confusion(passes: Mapping[str, Any], configs: Mapping[str, Any]) -> dict[str, dict[str, int]] | None:
    """Return expert that a task is for (``t2_domain`` in its metadata) → category that pass 1 chose → documents; None if there are none."""
    table: dict[str, Counter[str]] = {}
    for task, cost in passes.items():
        domain = ((configs.get(task) or {}).get("metadata") or {}).get("t2_domain")
        if domain and cost["categories"]:
            table.setdefault(str(domain), Counter()).update(cost["categories"])
    return {domain: dict(sorted(table[domain].items())) for domain in sorted(table)} or None


def _mark_contaminated(model: Any, facts: Any, tasks: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Mark the documents that few-shot search has seen, and say so; say too where a mixture was found on another task."""
    mixture = getattr(model, "mixture_file", None)
    if mixture is None:
        return
    from .fewshot.mixture_file import contaminated

    facts["contaminated"] = contaminated(mixture, tasks, asked.get("limit"), asked.get("samples"))
    for task, ids in facts["contaminated"].items():
        log.warning("%s: α was chosen on %d of the evaluated documents: marked contaminated. `t2 eval` leaves them out.", task, len(ids))
    known = {mixture.data["task"], *mixture.data.get("evaluated_documents", {})}  # the group, and its tasks
    if others := sorted(set(tasks) - known):
        log.warning("The mixture was found on task %s; here it answers %s.", mixture.data["task"], ", ".join(others))


def _named(log_args: Callable[..., Any]) -> Callable[..., Any]:
    """Name a run without ``pretrained`` by its mixture file's base, or the default model: lm-eval would make up a name for its folder."""
    from lm_eval.utils import simple_parse_args_string

    @functools.wraps(log_args)
    def log_experiment_args(self: Any, model_source: str, model_args: Any, *args: Any, **options: Any) -> Any:
        if model_source in ("t2", "t2-vllm"):
            given = simple_parse_args_string(model_args) if isinstance(model_args, str) else model_args or {}
            if given.get("pretrained") is None:
                model_args = {"pretrained": _base_name(given.get("mixture"))}
        return log_args(self, model_source, model_args, *args, **options)

    log_experiment_args._t2 = True  # type: ignore[attr-defined]
    return log_experiment_args


def _base_name(mixture: Any) -> str:
    """Return the base model of a run that names none: its mixture file's, else the default one."""
    from .fetch.model import model_folder
    from .fewshot.mixture_file import read_mixture

    named = read_mixture(str(mixture)).data["base"].get("pretrained") if mixture is not None else None
    return named or model_folder().name


def _sandbox() -> str | None:
    """Return what this run's generated code ran in: the sandbox knows, if a task of this process has loaded it."""
    sandbox: Any = sys.modules.get("t2.harness.sandbox")
    return sandbox.active_kind() if sandbox is not None else None


def _forget_sandbox() -> None:
    sandbox: Any = sys.modules.get("t2.harness.sandbox")
    if sandbox is not None:
        sandbox.forget_kinds()
