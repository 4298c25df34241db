"""Labels of rows: short, and distinct by what tells the rows apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import short_name
from .errors import ReportError

if TYPE_CHECKING:
    from .load import Run
    from .rows import Row

MODEL_KEYS = ("pretrained", "model", "path", "engine")
ADAPTER_KEYS = ("peft", "delta", "lora_local_path", "adapter")
# Where a run was computed, not what was computed: files that differ only in these belong to one row.
PLACE_KEYS = frozenset({"device", "batch_size", "max_batch_size", "num_concurrent", "parallelize", "device_map", "gpu_memory_utilization",
                        "tensor_parallel_size", "data_parallel_size", "mixture_cache_gib"})  # fmt: skip


def label_rows(rows: Sequence[Row]) -> None:
    """Set `label` of every row: the user's, else model and adapter, with what differs where two would read alike.

    Raises:
        ReportError: the user gave one label to rows that are not the same.
    """
    given: dict[str, Row] = {}
    for row in rows:
        if row.forced is None:
            continue
        other = given.setdefault(row.forced, row)
        if other is not row:
            raise ReportError(
                f"The label {row.forced!r} stands for two different runs: {other.first.raw.found.path} and "
                f"{row.first.raw.found.path} differ in {_difference(other, row)}. Give each its own --name FILE=LABEL."
            )
    for row in rows:
        row.label = row.forced or _describe(row)
    for twins in _twins(rows):
        details = [_details(row) for row in twins]
        differ = [key for key in dict.fromkeys(k for d in details for k in d) if len({d.get(key) for d in details}) > 1]
        for row, detail in zip(twins, details, strict=True):
            row.label = ", ".join([row.label, *(f"{key}={detail.get(key, 'none')}" for key in differ)])
    taken = set(given)
    for row in (row for row in rows if row.forced is None):
        label, i = row.label, 1
        while row.label in taken:
            row.label = f"{label} #{(i := i + 1)}"
        taken.add(row.label)


def method_args(run: Run) -> dict[str, str]:
    """Return a run's model arguments; of a mixture file that a few-shot search found for one task, the folder that has those of all."""
    return run.args | ({"mixture": str(Path(run.args.get("mixture", "")).parent)} if run.t2 and run.t2.search else {})


def _twins(rows: Sequence[Row]) -> list[list[Row]]:
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    return [[row for row in twins if row.forced is None] for twins in by_label.values() if len(twins) > 1]


def _describe(row: Row) -> str:
    run = row.first
    words = [run.model]
    if run.t2:
        words = ["t2-vllm" if run.model == "t2-vllm" else "t2", run.t2.method]
        if run.t2.dispatch and run.t2.strategy in ("prompt", "cls"):
            words.append(f"({run.t2.dispatch})")
    if row.model:
        words.append(short_name(row.model))
    words += [f"+ {short_name(adapter)}" for adapter in row.adapters]
    return " ".join(words)


def _details(row: Row) -> dict[str, str]:
    run = row.first
    hidden = {*MODEL_KEYS, *PLACE_KEYS, "strategy", "dispatch"} if run.t2 else set(PLACE_KEYS)
    details = {key: value for key, value in method_args(run).items() if key not in hidden} | run.settings
    if run.t2:
        details["calibrate"] = {None: "", True: "yes", False: "no"}[run.t2.calibrate]
        details["experts"] = " ".join(f"{name}:{sha[:8]}" for name, sha in sorted(run.t2.experts.items())) or "none"
        details["base"] = run.t2.base[:8]
        details["probe"] = run.t2.probe[:8] or "none"
    shots = sorted({task.n_shot for task in run.tasks.values() if task.n_shot})
    documents = sorted({task.n for name, task in run.tasks.items() if task.n and name not in run.groups})
    if run.info.get("dtype"):
        details["dtype"] = run.info["dtype"]
    return details | {"few-shot": "/".join(shots), "documents": "/".join(map(str, documents))}


def _difference(a: Row, b: Row) -> str:
    one, two = {"model": _describe(a), **_details(a)}, {"model": _describe(b), **_details(b)}
    keys = [key for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]
    return ", ".join(keys[:6]) or "nothing but their date: same tasks twice"
