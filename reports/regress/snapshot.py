"""What a run has to show: scores per document, the settings they were made with, timing. A baseline is one that was stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ReportError

KIND, SCHEMA = "t2 regression baseline", 1
REPEATS = "repeats"  # in the provenance of means
_HASH = re.compile(r"([0-9a-f]{16})?")
_ID = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class TaskScores:
    """One task.

    Attributes:
        metric, filter: of the scores, as lm-eval names them.
        higher_is_better: False for perplexities and the like.
        documents: lm-eval's `doc_id` -> (first 16 hex digits of its `doc_hash`, empty if unknown; score).
        settings: what must be the same for scores to be comparable: versions, dtype, batch size, hashes of model and experts, prompts.
        provenance: machine, date, commit: told, not compared (but for seconds, which depend on the machine).
        timing: name -> one value for each repeat of the run.
    """

    metric: str
    filter: str
    higher_is_better: bool
    documents: dict[int, tuple[str, float]]
    settings: dict[str, str]
    provenance: dict[str, str] = field(default_factory=dict)
    timing: dict[str, list[float]] = field(default_factory=dict)

    @property
    def repeats(self) -> str:
        """How many runs the scores are means of."""
        return self.provenance.get(REPEATS, "1")


@dataclass
class Snapshot:
    """A run, or a baseline.

    Attributes:
        tasks: leaf task -> scores.
        groups: group -> its leaf tasks; of a baseline only those that pool several whole tasks.
        benchmarks: `file::test: figure` -> one value for each repeat.
        benchmark_machine: where they were measured.
        skipped: leaf task -> why it cannot be compared document by document.
        others: leaf tasks that were not asked for, and not read.
        notes: what was left out.
    """

    tasks: dict[str, TaskScores] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    benchmarks: dict[str, list[float]] = field(default_factory=dict)
    benchmark_machine: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def dump(snapshot: Snapshot) -> str:
    """Return a baseline file: JSON with one line a document, so that a diff of two shows which documents changed sides."""
    tasks = [f"  {_text(name)}: {_task(task)}" for name, task in sorted(snapshot.tasks.items())]
    parts = [
        f'"kind": {_text(KIND)}',
        f'"schema": {SCHEMA}',
        f'"groups": {_text({name: list(leaves) for name, leaves in sorted(snapshot.groups.items())})}',
        f'"benchmarks": {_lines({name: snapshot.benchmarks[name] for name in sorted(snapshot.benchmarks)}, 1)}',
        f'"benchmark_machine": {_lines(snapshot.benchmark_machine, 1)}',
        '"tasks": {\n' + ",\n".join(tasks) + "\n }" if tasks else '"tasks": {}',
    ]
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _task(task: TaskScores) -> str:
    documents = {str(doc): [digest, _short(score)] for doc, (digest, score) in sorted(task.documents.items())}
    parts = [
        f'"metric": {_text(task.metric)}, "filter": {_text(task.filter)}, "higher_is_better": {_text(task.higher_is_better)}',
        f'"settings": {_lines(task.settings, 3)}',
        f'"provenance": {_lines(task.provenance, 3)}',
        f'"timing": {_lines(task.timing, 3)}',
        f'"documents": {_lines(documents, 3)}',
    ]
    return "{\n   " + ",\n   ".join(parts) + "\n  }"


def _lines(values: Mapping[str, Any], depth: int) -> str:
    if not values:
        return "{}"
    inner = ",\n".join(f"{' ' * (depth + 1)}{_text(key)}: {_text(value)}" for key, value in values.items())
    return "{\n" + inner + "\n" + " " * depth + "}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _short(score: float) -> float | int:
    return int(score) if score == int(score) else score


def is_foreign(path: Path) -> bool:
    """Whether there is a file with something else in it than a baseline, even a damaged one."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        return True
    return bool(content.strip()) and KIND.encode() not in content


def read_baseline(path: Path) -> Snapshot:
    """Read a baseline file.

    Raises:
        ReportError: missing, cut short, not a baseline, of another schema, or a field of it is wrong; names the field.
    """
    how = f"`t2 regress --update --baseline {path} RUN` writes one"
    try:
        text = path.read_bytes().decode("utf-8")
        data = json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise ReportError(f"{path}: the baseline cannot be read ({error.strerror or error}). {how}.") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: the baseline is not whole JSON ({error}). Restore it from version control, or: {how}.") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        what = "an lm-eval result file" if isinstance(data, dict) and "results" in data else "another JSON"
        raise ReportError(f"{path}: this is {what}, not a baseline. `t2 regress --update --baseline FILE RUN` writes one.")
    if data.get("schema") != SCHEMA:
        raise ReportError(f"{path}: the baseline has schema {data.get('schema')!r}, this t2 reads {SCHEMA}. {how[0].upper()}{how[1:]}.")
    read = _Reader(path)
    tasks = {name: read.task(f"tasks.{name}", value) for name, value in read.mapping("tasks", data.get("tasks")).items()}
    groups = read.each("groups", data.get("groups"), read.names)
    benchmarks = read.each("benchmarks", data.get("benchmarks"), read.numbers)
    if not tasks and not benchmarks:
        raise ReportError(f"{path}: the baseline has neither tasks nor benchmarks. {how[0].upper()}{how[1:]}.")
    for group, leaves in groups.items():
        if unknown := [leaf for leaf in leaves if leaf not in tasks]:
            read.fail(f"groups.{group}", f"names of `tasks`, which {unknown[0]!r} is not")
    machine = read.each("benchmark_machine", data.get("benchmark_machine"), read.string)
    return Snapshot(tasks=tasks, groups=groups, benchmarks=benchmarks, benchmark_machine=machine)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is there twice, as after a merge, of which JSON keeps the last without a word."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.40} is there twice")
        found[name] = value
    return found


class _Reader:
    """Takes JSON values apart, and says of a wrong one where it stands."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, where: str, wanted: str) -> NoReturn:
        raise ReportError(f"{self.path}: `{where}` of the baseline should be {wanted}. Restore the file, or write it anew with --update.")

    def mapping(self, where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(where, f"an object, not {value!r:.40}")
        return value

    def each(self, where: str, value: Any, of: Callable[[str, Any], Any]) -> dict[str, Any]:
        return {name: of(f"{where}.{name}", item) for name, item in self.mapping(where, value).items()}

    def string(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(where, f"text, not {value!r:.40}")
        return value

    def number(self, where: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
        except OverflowError:  # JSON has whole numbers of any size
            number = math.nan
        if not math.isfinite(number):
            self.fail(where, f"a finite number, not {value!r:.40}")
        return number

    def numbers(self, where: str, value: Any) -> list[float]:
        if not isinstance(value, list) or not value:
            self.fail(where, f"a list of numbers, not {value!r:.40}")
        return [self.number(where, item) for item in value]

    def names(self, where: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            self.fail(where, f"a list of tasks, not {value!r:.40}")
        return tuple(self.string(where, item) for item in value)

    def document(self, where: str, value: Any) -> tuple[str, float]:
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str) or not _HASH.fullmatch(value[0]):
            self.fail(where, f'["16 hex digits", score], not {value!r:.60}')
        return value[0], self.number(where, value[1])

    def task(self, where: str, value: Any) -> TaskScores:
        data = self.mapping(where, value)
        documents = {}
        for doc, entry in self.mapping(f"{where}.documents", data.get("documents")).items():
            if not _ID.fullmatch(doc):
                self.fail(f"{where}.documents", f"keyed by document ids, which {doc!r:.40} is not")
            documents[int(doc)] = self.document(f"{where}.documents.{doc}", entry)
        if not documents:
            self.fail(f"{where}.documents", "at least one document")
        if not isinstance(data.get("higher_is_better"), bool):
            self.fail(f"{where}.higher_is_better", f"true or false, not {data.get('higher_is_better')!r:.40}")
        return TaskScores(
            metric=self.string(f"{where}.metric", data.get("metric")),
            filter=self.string(f"{where}.filter", data.get("filter")),
            higher_is_better=data["higher_is_better"],
            documents=documents,
            settings=self.each(f"{where}.settings", data.get("settings"), self.string),
            provenance=self.each(f"{where}.provenance", data.get("provenance"), self.string),
            timing=self.each(f"{where}.timing", data.get("timing"), self.numbers),
        )
