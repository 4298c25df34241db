"""From runs (files) to rows (methods): merge files of one configuration, drop superseded ones, give labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .blocks import some
from .errors import ReportError
from .labels import ADAPTER_KEYS, MODEL_KEYS, PLACE_KEYS, label_rows, method_args
from .load import Run, TaskResult, leaves
from .passes import TwoPass, trainable


@dataclass
class Row:
    """One method: the runs of one configuration, on any number of tasks.

    Attributes:
        source: task -> the run whose result for it is shown.
    """

    runs: list[Run]
    forced: str | None = None
    label: str = ""
    source: dict[str, Run] = field(default_factory=dict)

    @property
    def first(self) -> Run:
        """The newest run; configuration is the same in all."""
        return self.runs[0]

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Group -> members, of all runs."""
        return {group: members for run in self.runs for group, members in run.groups.items()}

    def task(self, name: str) -> TaskResult | None:
        """The row's result for a task or group."""
        run = self.source.get(name)
        return run.tasks.get(name) if run else None

    def leaves(self, name: str) -> list[str]:
        """The tasks below a group, itself for a plain task."""
        return leaves(name, self.groups)

    def two_pass(self, name: str) -> TwoPass | None:
        """The costs of a task, summed over the tasks of a group."""
        found = []
        for leaf in self.leaves(name):
            run = self.source.get(leaf) or self.source.get(name)
            if run and run.t2 and leaf in run.t2.passes:
                found.append(run.t2.passes[leaf])
        return sum(found[1:], found[0]) if found else None

    def contaminated(self, name: str) -> list[str]:
        """Ids of scored documents of a task or group that a few-shot search had seen."""
        seen: dict[str, None] = {}
        for leaf in self.leaves(name):
            run = self.source.get(leaf) or self.source.get(name)
            if run and run.t2:
                marks = run.t2.contaminated
                seen |= dict.fromkeys(doc for place in (leaf, name, "*") for doc in marks.get(place, ()))
        return list(seen)

    @property
    def peak_memory(self) -> int | None:
        """Bytes, the most of any run; None where no file says."""
        return max((run.t2.peak_memory for run in self.runs if run.t2 and run.t2.peak_memory), default=None)

    def trainable(self, base: "Row | None") -> int | None:
        """Trained parameters: of the experts, as t2 records them; of an adapter, as many as the model has more than its base row.

        0 for a base row, and for others of the same weights; None if not known.
        """
        t2, its = self.first.t2, base.first.t2 if base else None
        if t2 and t2.method != "base":
            return trainable([run.t2 for run in self.runs if run.t2])
        if not self.adapters:
            # `strategy=base` also runs models that an adapter was merged into; the fingerprint tells.
            return 0 if base is self or (t2 and its and t2.base and t2.base == its.base) else None
        sizes = [row.first.info.get("parameters", "") for row in (self, base) if row]
        if len(sizes) < 2 or not all(size.isdecimal() for size in sizes):
            return None
        return int(sizes[0]) - int(sizes[1]) or None

    @property
    def model(self) -> str | None:
        """Name or path of the base model, None where the file does not say (t2's default model)."""
        return next((self.first.args[key] for key in MODEL_KEYS if self.first.args.get(key)), None)

    @property
    def adapters(self) -> list[str]:
        """Adapter paths among the model arguments."""
        return [self.first.args[key] for key in ADAPTER_KEYS if self.first.args.get(key) not in (None, "", "None")]


def make_rows(runs: Sequence[Run], names: Sequence[tuple[Path, str]] = ()) -> tuple[list[Row], list[str]]:
    """Group runs into rows.

    Files of one configuration (model, arguments, seeds, limit, chat template, strategy, experts) on different tasks make one
    row. Where a folder holds several results of one configuration for one task, the newest counts. A file that the
    user named is never dropped: it gets a row of its own, unless it is a copy of another.

    Args:
        runs: in the order of the command line.
        names: (file or folder, label) pairs.

    Returns:
        The rows in the order of their first run, labelled, and notes on what was dropped.

    Raises:
        ReportError: one label for different configurations, or a path among `names` that matches no run.
    """
    forced = _forced(runs, names)
    rows: list[Row] = []
    notes: list[str] = []
    copies: dict[str, Run] = {}
    order = {id(run): i for i, run in enumerate(runs)}
    # Named files first among the newest: a folder's copy of one is then the one dropped.
    for run in sorted(runs, key=lambda r: (-r.date, not r.raw.found.named, order[id(r)])):
        path = run.raw.found.path
        if run.raw.sha256 in copies:
            notes.append(f"{path} is a copy of {copies[run.raw.sha256].raw.found.path} and was left out.")
            continue
        copies[run.raw.sha256] = run
        label = forced.get(id(run))
        for row in rows:
            if row.forced == label and _identity(row.first) == _identity(run):
                dropped = _merge(row, run)
                if dropped is not None:
                    notes += dropped
                    break
        else:
            rows.append(Row([run], label, source=dict.fromkeys(run.tasks, run)))
    rows.sort(key=lambda row: min(order[id(run)] for run in row.runs))
    label_rows(rows)
    return rows, notes


def _merge(row: Row, run: Run) -> list[str] | None:
    """Add what `run`, the older one, has and `row` lacks; return notes, or None if they cannot share a row."""
    shared = [name for name in run.tasks if name in row.source]
    path = run.raw.found.path
    if shared and (run.raw.found.named or any(_conflict(row.source[name], run, name) for name in shared)):
        return None
    # A group's score from one file over subtasks from another would not add up.
    if any(group not in row.source and set(members) & set(shared) for group, members in run.groups.items()):
        return None
    new = [name for name in run.tasks if name not in row.source]
    row.source |= dict.fromkeys(new, run)
    if new:
        row.runs.append(run)
    return [f"{path} ({run.day}): older result for {some(shared, 5)}; {row.source[shared[0]].raw.found.path} counts."] if shared else []


def _conflict(one: Run, other: Run, name: str) -> bool:
    a, b = one.tasks[name], other.tasks[name]
    if one.args.get("mixture") != other.args.get("mixture"):
        return True
    hashes = a.task_hash and b.task_hash and a.task_hash != b.task_hash  # it is there with `--log_samples` only
    return bool(hashes) or (a.n, a.n_shot, a.version, a.definition) != (b.n, b.n_shot, b.version, b.definition)


def _identity(run: Run) -> tuple[object, ...]:
    args = {key: value for key, value in method_args(run).items() if key not in PLACE_KEYS}
    t2 = run.t2 and (run.t2.method, run.t2.dispatch, run.t2.calibrate, sorted(run.t2.experts.items()), run.t2.base, run.t2.probe)
    return (run.model, sorted(args.items()), sorted(run.settings.items()), run.info.get("dtype"), t2)


def _forced(runs: Sequence[Run], names: Sequence[tuple[Path, str]]) -> dict[int, str]:
    forced: dict[int, str] = {}
    for path, label in sorted(names, key=lambda pair: len(pair[0].resolve().parts)):  # a file's label wins over its folder's
        place = path.resolve()
        hits = [run for run in runs if run.raw.found.path.resolve() == place or place in run.raw.found.path.resolve().parents]
        if not hits:
            known = ", ".join(str(run.raw.found.path) for run in runs)
            raise ReportError(f"--name {path}={label}: no run given has this path. Known: {known}.")
        forced |= {id(run): label for run in hits}
    return forced
