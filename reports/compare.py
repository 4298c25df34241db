"""Which rows may be set side by side: same documents, shots, task version, prompts and scoring, chat template, sandbox."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .blocks import some
from .rows import Row

# Row-wide settings that change what is measured; the rest of the settings (seeds, limit) shows in documents or changes noise.
_HARD = ("chat template", "system instruction", "few-shot as multi-turn", "gen_kwargs")
_SOFT = ("lm-eval", "transformers", "torch", "dtype", "batch size", "device", "CPU", "GPU")


@dataclass
class Comparability:
    """What stands against comparing the rows.

    Attributes:
        hard: sentences on what makes scores unlike.
        soft: differences of versions, precision and machine, which can move single answers (and seconds).
        unlike: tasks whose column must not be ranked.
    """

    hard: list[str] = field(default_factory=list)
    soft: list[str] = field(default_factory=list)
    unlike: set[str] = field(default_factory=set)


def documents(row: Row, task: str) -> tuple[int | None, int | None]:
    """Return (scored, in the whole split) documents of a task or group; None where the file does not say."""
    result = row.task(task)
    if result is None:
        return None, None
    leaves = [leaf for name in row.leaves(task) if (leaf := row.task(name))]
    scored, whole = [leaf.n for leaf in leaves], [leaf.original for leaf in leaves]
    n = result.n or (sum(x for x in scored if x) if leaves and all(scored) else None)
    original = result.original or (sum(x for x in whole if x) if leaves and all(whole) else None)
    return n, original


def differences(rows: Sequence[Row], task: str) -> list[str]:
    """Say in which ways the rows that have `task` measured different things; empty if in none."""
    having = [row for row in rows if row.task(task)]
    if len(having) < 2:
        return []
    aspects = {
        "documents scored": [_number(documents(row, task)[0]) for row in having],
        "few-shot examples": [_leafwise(row, task, "n_shot") for row in having],
        "task version": [_leafwise(row, task, "version") for row in having],
        "subtasks": [", ".join(row.leaves(task)) for row in having],
    }
    found = [f"{name}: {spread}" for name, values in aspects.items() if (spread := _spread(having, values))]
    fields = sorted(_definition_fields(having, task))
    if fields:
        found.append(f"the task's definition differs in {', '.join(fields)} (same name, another task)")
    elif not found and _spread(having, [_leafwise(row, task, "task_hash") for row in having]):
        found.append("the prompts that were sent differ (task hash; other documents, few-shot examples or chat template)")
    return found


def compare(rows: Sequence[Row], tasks: Iterable[str]) -> Comparability:
    """Collect everything that stands against comparing `rows` on `tasks`."""
    result = Comparability()
    tasks = list(tasks)
    for task in tasks:
        found = differences(rows, task)
        result.hard += [f"{task}: {text}" for text in found]
        if found:
            result.unlike.add(task)
    for name in _HARD:
        spread = _spread(rows, [row.first.settings.get(name) for row in rows])
        if spread:
            result.hard.append(f"{name}: {spread}")
            result.unlike |= set(tasks)
    # Always said: with no sandbox a candidate can forge its verdict, whatever the other rows used.
    processes = [row.label for row in rows if any(run.t2 and run.t2.sandbox == "process" for run in row.runs)]
    if processes:
        result.hard.append(f'sandbox "process": code of {some(processes, 3)} had resource limits only; its scores could be forged')
    # A sandbox is the same for rows that ran no code, so only the kinds that occur are compared.
    kinds = [", ".join(sorted({run.t2.sandbox for run in row.runs if run.t2 and run.t2.sandbox})) or None for row in rows]
    if spread := _spread(rows, kinds):
        result.hard.append(f"sandbox kind: {spread}")
        coded = {leaf for row in rows for run in row.runs if run.t2 and run.t2.sandbox for leaf in run.tasks}
        result.unlike |= coded & set(tasks)
    for name in _SOFT:
        values = [" / ".join(sorted({run.info.get(name, "") for run in row.runs} - {""})) or None for row in rows]
        if spread := _spread(rows, values):
            result.soft.append(f"{name}: {spread}")
    return result


def limited(rows: Sequence[Row], tasks: Iterable[str]) -> list[str]:
    """Name the tasks of which some row scored only a part: `humaneval (4 of 164)`."""
    parts = []
    for task in tasks:
        counts = {documents(row, task) for row in rows}
        some = sorted((n, whole) for n, whole in counts if n and whole and n < whole)
        if some:
            parts.append(f"{task} ({', '.join(f'{n} of {whole}' for n, whole in some)})")
    return parts


def _leafwise(row: Row, task: str, attribute: str) -> str | None:
    """The attribute of a task, or of each task of a group where they differ; None if unknown for any."""
    values = [getattr(result, attribute) for name in row.leaves(task) if (result := row.task(name))]
    if not values or any(value is None for value in values):
        return None
    return values[0] if len(set(values)) == 1 else " ".join(values)


def _definition_fields(rows: Sequence[Row], task: str) -> set[str]:
    fields: set[str] = set()
    for leaf in dict.fromkeys(name for row in rows for name in row.leaves(task)):
        defined = [(row, result.definition) for row in rows if (result := row.task(leaf)) and result.definition]
        for row, definition in defined[1:]:
            first, reference = defined[0]
            # Releases of lm-eval dump different fields: then only fields that both have can be compared.
            same = row.source[leaf].info.get("lm-eval") == first.source[leaf].info.get("lm-eval")
            keys = {*definition, *reference} if same else {*definition} & {*reference}
            fields |= {key for key in keys if definition.get(key) != reference.get(key)}
    return fields


def _spread(rows: Sequence[Row], values: Sequence[str | None]) -> str:
    """Return `4 (a, b); 164 (c)` if the known values differ, else an empty string."""
    by_value: dict[str, list[str]] = {}
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            by_value.setdefault(value, []).append(row.label)
    return "; ".join(f"{value} ({some(labels, 3)})" for value, labels in by_value.items()) if len(by_value) > 1 else ""


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)
