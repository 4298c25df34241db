"""What t2 adds to lm-eval and PEFT, called by the start-up hook (`startup/hook.py`) just after one of their modules has been imported.

Up to 0.4.13 lm-eval reads no entry points, so ours are registered here; where it reads them itself (its registry has `load_plugins`), this
stands down. Our task folder takes its place between lm-eval's own and the user's ``--include_path``; ``T2_TASKS=0`` leaves it out.
Nothing here may keep `import lm_eval` or `import peft` from working: what goes wrong is logged, to the logger ``t2``.
"""

import importlib.metadata
import importlib.resources
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger("t2")
log.addHandler(logging.NullHandler())  # else logging prints warnings in programs that have not set logging up

# lm-eval's module whose import fills a registry -> (entry point group, name of that registry in lm_eval.api.registry)
COMPONENTS = {
    "lm_eval.models": [("lm_eval.models", "model_registry")],
    "lm_eval.filters": [("lm_eval.filters", "filter_registry")],
    "lm_eval.api.metrics": [("lm_eval.metrics", "metric_registry"), ("lm_eval.aggregations", "aggregation_registry")],
}


def add_components(module: ModuleType) -> None:
    """Register what t2's entry points declare for `module`'s registry, as placeholders that import nothing until they are asked for.

    Called after that very module because lm-eval fills a registry by importing it, and only while the registry is empty.
    """
    from lm_eval.api import registry

    if hasattr(registry, "load_plugins"):
        return
    try:
        declared = importlib.metadata.distribution("t2").entry_points
    except importlib.metadata.PackageNotFoundError:  # a bare checkout on the path
        return
    for group, name in COMPONENTS[module.__name__]:
        known = getattr(registry, name)
        for entry in declared.select(group=group):
            if entry.name in known:
                continue
            try:
                known.register(entry.name, target=entry.value)
            except Exception as error:
                log.warning("t2 could not register %s %r with lm-eval: %s", group, entry.name, error)


def task_folder() -> Path | None:
    """Return the folder of our task YAMLs, without importing it; None where it is switched off or missing."""
    if os.environ.get("T2_TASKS", "").strip().lower() in {"0", "false", "no", "off"}:
        return None
    folder = Path(str(importlib.resources.files("t2"))) / "tasks"
    return folder if folder.is_dir() else None


def add_tasks(module: ModuleType) -> None:
    """Make lm-eval's index of tasks take in our folder after its own, whenever it takes in its own.

    A later folder wins, and a user's own comes last. Where someone leaves out lm-eval's defaults, ours stay out too.
    """
    index = module.TaskIndex
    index.build = staticmethod(_with_our_tasks(index.build, Path(str(module.__file__)).parent))


def _with_our_tasks(build: Callable[..., dict[str, Any]], defaults: Path) -> Callable[..., dict[str, Any]]:
    def build_with_ours(paths: Iterable[Path], *args: Any, **options: Any) -> dict[str, Any]:
        roots = [Path(path) for path in paths]
        try:
            ours = task_folder()
            place = roots.index(defaults) + 1 if defaults in roots else 0
            own = build([ours], *args, **options) if ours is not None and place and ours not in roots else {}
        except Exception as error:
            log.warning("t2's own tasks are left out: %r", error)
            own = {}
        if not own:
            return build(roots, *args, **options)
        index = build(roots[:place], *args, **options)
        for name, entry in own.items():  # silently: that ours replace lm-eval's is what the package is for
            index[name] = _joined(index.get(name), entry)
        for root in roots[place:]:
            for name, entry in build([root], *args, **options).items():
                if name in index:
                    logging.getLogger("lm_eval.tasks._index").warning(
                        "Task '%s' from %s overrides existing task from %s", name, entry.yaml_path, index[name].yaml_path
                    )
                index[name] = entry
        return index

    return build_with_ours


def _joined(theirs: Any, ours: Any) -> Any:
    """Return the entry for a name: ours, except that a tag of both lists the tasks of both."""
    if theirs is not None and ours.kind.name == theirs.kind.name == "TAG":
        ours.tags |= theirs.tags
    return ours


def add_svf(module: ModuleType) -> None:
    """Register SVF with PEFT, unless it is `t2.adapters.svf` that imports PEFT: it registers by itself."""
    svf = sys.modules.get("t2.adapters.svf")
    if getattr(getattr(svf, "__spec__", None), "_initializing", False):
        return
    try:
        from ..adapters.svf import register

        register()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("t2."):
            return  # half removed
        log.warning("t2 could not add SVF to PEFT %s: %s", getattr(module, "__version__", "of unknown version"), error)
