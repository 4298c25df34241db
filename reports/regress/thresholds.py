"""When the gate closes: a small YAML, typed, all its errors at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors import ReportError
from ..metrics import nearest


@dataclass(frozen=True)
class TaskRule:
    """For one task, or one group. Differences are in the metric's units: 0.05 is five points of accuracy.

    Attributes:
        gate: whether it can close the gate; else it is only shown. Groups pool documents that their tasks have already: shown, unless
            asked for.
        metric: `METRIC` or `METRIC,FILTER` to compare; None is the report's choice.
        tolerance: a drop smaller than this passes, however significant.
        max_drop: a drop larger than this fails, however uncertain.
        must_see: the gate is unusable if the drop that it sees with the power asked for is larger than this.
        pass1_per_pass2, seconds_per_token, seconds_per_program: by how much the figure may grow, as a factor (1.2 is 20%); None shows
            it only.
    """

    gate: bool | None = None
    metric: str | None = None
    tolerance: float = 0.0
    max_drop: float | None = None
    must_see: float | None = None
    pass1_per_pass2: float | None = None
    seconds_per_token: float | None = None
    seconds_per_program: float | None = None


@dataclass(frozen=True)
class BenchmarkRule:
    """For one figure of a benchmark.

    Attributes:
        max_change: by how much it may grow, or shrink where higher is better, as a factor; None shows it only.
        higher_is_better: True for throughputs and speed-ups.
    """

    max_change: float | None = None
    higher_is_better: bool = False


@dataclass(frozen=True)
class Thresholds:
    """All of them.

    Attributes:
        alpha: the chance that a run with nothing changed fails, over all gated tasks together.
        power: with which chance the gate sees what it says it sees.
        direction: `drop`, or `both`: a rise that is no chance fails too.
        allow_unlike: settings that may differ between baseline and run, by name (`torch`) or beginning (`expert*`).
        default: for every task without a rule of its own, and what such rules leave out.
        tasks: by task or group.
        benchmarks: by figure, `file.py::test: name`, or a pattern with `*`; the first that fits.
    """

    alpha: float = 0.05
    power: float = 0.8
    direction: Literal["drop", "both"] = "drop"
    allow_unlike: tuple[str, ...] = ()
    default: TaskRule = field(default_factory=TaskRule)
    tasks: Mapping[str, TaskRule] = field(default_factory=dict)
    benchmarks: Mapping[str, BenchmarkRule] = field(default_factory=dict)

    def rule(self, task: str) -> TaskRule:
        """Return the rule of a task or group."""
        return self.tasks.get(task, self.default)

    def check_names(self, tasks: Iterable[str]) -> None:
        """Refuse rules for tasks that there are not: a misspelt one would gate nothing.

        Raises:
            ReportError: names each, and the nearest task.
        """
        known = list(tasks)
        if wrong := [f"there is no task {name!r}.{nearest(name, known)}" for name in self.tasks if name not in known]:
            raise ReportError("thresholds: " + "\n- ".join(wrong if len(wrong) == 1 else [f"{len(wrong)} to mend:", *wrong]))


def read_thresholds(path: Path) -> Thresholds:
    """Read a thresholds file.

    Raises:
        ReportError: unreadable, no YAML, unknown keys (with the nearest that there is), wrong types or ranges; all of them at once.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ReportError(f"{path}: the thresholds cannot be read ({error.strerror or error}).") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise ReportError(f"{path}: not YAML ({' '.join(str(error).split())}).") from error
    read = _Reader()
    found = read.thresholds({} if data is None else data)
    if read.errors:
        raise ReportError("\n- ".join([f"{path}: {len(read.errors)} to mend:", *read.errors]))
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Reader:
    """Takes the YAML apart and collects what is wrong with it."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def thresholds(self, data: Any) -> Thresholds:
        given = self.keys("the file", data, [f.name for f in fields(Thresholds)])
        if (direction := given.get("direction", "drop")) not in ("drop", "both"):
            self.errors.append(f"direction: `drop` or `both`, not {direction!r}.")
        allowed = given.get("allow_unlike") or []
        if not isinstance(allowed, list) or not all(isinstance(name, str) for name in allowed):
            self.errors.append(f"allow_unlike: a list of settings such as [torch, transformers], not {allowed!r:.60}.")
            allowed = []
        figures = self.mapping("benchmarks", given.get("benchmarks"))
        default = self.task("default", given.get("default") or {}, TaskRule())
        return Thresholds(
            alpha=self.number("alpha", given.get("alpha", 0.05), 0, 0.5) or 0.05,
            power=self.number("power", given.get("power", 0.8), 0.5, 1) or 0.8,
            direction="both" if direction == "both" else "drop",
            allow_unlike=tuple(allowed),
            default=default,
            tasks={str(k): self.task(f"tasks.{k}", v, default) for k, v in self.mapping("tasks", given.get("tasks")).items()},
            benchmarks={str(k): self.benchmark(f"benchmarks.{k}", v) for k, v in figures.items()},
        )

    def task(self, where: str, data: Any, default: TaskRule) -> TaskRule:
        given = self.keys(where, data, [f.name for f in fields(TaskRule)])
        values: dict[str, Any] = {}
        for name, value in given.items():
            place = f"{where}.{name}"
            if name == "gate":
                values[name] = self.boolean(place, value)
            elif name == "metric":
                if value is not None and not isinstance(value, str):
                    self.errors.append(f"{place}: a metric's name, not {value!r:.40}.")
                values[name] = value
            elif name in ("tolerance", "max_drop", "must_see"):
                values[name] = self.number(place, value, 0 if name == "tolerance" else None, math.inf, closed=name == "tolerance")
            else:
                values[name] = self.number(place, value, 1, math.inf)
        if values.get("tolerance", 0) is None:
            values["tolerance"] = 0.0
        return replace(default, **values)

    def benchmark(self, where: str, data: Any) -> BenchmarkRule:
        given = self.keys(where, data, [f.name for f in fields(BenchmarkRule)])
        better = self.boolean(f"{where}.higher_is_better", given.get("higher_is_better", False))
        return BenchmarkRule(self.number(f"{where}.max_change", given.get("max_change"), 1, math.inf), bool(better))

    def keys(self, where: str, data: Any, known: list[str]) -> dict[str, Any]:
        given = self.mapping(where, data)
        for key in given:
            if key not in known:
                self.errors.append(f"{where}: unknown key {key!r}.{nearest(str(key), known)}")
        return {key: value for key, value in given.items() if key in known}

    def mapping(self, where: str, data: Any) -> dict[Any, Any]:
        if data is not None and not isinstance(data, dict):
            self.errors.append(f"{where}: `key: value` lines, not {data!r:.60}.")
        return data if isinstance(data, dict) else {}

    def boolean(self, where: str, value: Any) -> bool | None:
        if value is not None and not isinstance(value, bool):
            self.errors.append(f"{where}: true or false, not {value!r:.40}.")
        return value if isinstance(value, bool) else None

    def number(self, where: str, value: Any, low: float | None, high: float, closed: bool = False) -> float | None:
        if value is None:
            return None
        low = low or 0.0
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else math.nan
        if not (low <= number if closed else low < number) or not number < high:
            above = f"{'at least' if closed else 'above'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
            self.errors.append(f"{where}: a number {above}, not {value!r:.40}.{_plain(value)}")
            return None
        return number


def _plain(value: Any) -> str:
    """Say how to write a number that YAML takes for text, as it does 1e-3; "" if it is none."""
    try:
        number = Decimal(value) if isinstance(value, str) else Decimal("nan")
    except InvalidOperation:
        return ""
    return f" Write it as a plain number: {number:f}." if number.is_finite() and abs(number.adjusted()) < 20 else ""
