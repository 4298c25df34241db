"""The `t2` section of a result file: strategy, experts, and what each of the two passes cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ReportError

SCHEMA = 1


@dataclass(frozen=True)
class PassCost:
    """Cost of one pass: device-synchronised seconds, prompts (pass 2: requests), tokens read and written, switches."""

    seconds: float = 0.0
    prompts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    switches: int = 0

    def __add__(self, other: "PassCost") -> "PassCost":
        return PassCost(
            self.seconds + other.seconds,
            self.prompts + other.prompts,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.switches + other.switches,
        )


@dataclass(frozen=True)
class TwoPass:
    """Both passes of one task, and how many documents each mixture answered."""

    pass1: PassCost = PassCost()
    pass2: PassCost = PassCost()
    chosen: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "TwoPass") -> "TwoPass":
        names = [*self.chosen, *(name for name in other.chosen if name not in self.chosen)]
        chosen = {name: self.chosen.get(name, 0) + other.chosen.get(name, 0) for name in names}
        return TwoPass(self.pass1 + other.pass1, self.pass2 + other.pass2, chosen)


@dataclass(frozen=True)
class T2Info:
    """How a `t2` run answered.

    Attributes:
        calibrate: whether the dispatcher's scores were calibrated; None where none are taken.
        experts: name -> sha256 of the expert.
        base: fingerprint of the base weights.
        passes: leaf task -> costs.
        sandbox: `bwrap`, `process`, or None if no code ran.
        parameters: name -> trained numbers of the expert; empty in files that do not say.
        peak_memory: bytes; None in files that do not say.
        mixture: expert -> α of a mixture file, one number or one per layer; empty without one.
        contaminated: task -> ids of scored documents that the few-shot search had seen ("*": of any task; "?": not said which).
        probe: sha256 of the probe's weights; empty where none is used.
        search: the few-shot search that found the mixture, by its number of documents; empty without a mixture file.
    """

    strategy: str
    dispatch: str
    experts: dict[str, str]
    base: str
    passes: dict[str, TwoPass]
    sandbox: str | None
    calibrate: bool | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    peak_memory: int | None = None
    mixture: dict[str, tuple[float, ...]] = field(default_factory=dict)
    contaminated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    probe: str = ""
    search: str = ""

    @property
    def method(self) -> str:
        """What is compared: the few-shot search, whose α are each task's own, or the strategy."""
        return self.search or self.strategy

    @property
    def alphas(self) -> dict[str, tuple[float, ...]]:
        """Expert -> α (figure 7 of the paper), one number or one per layer; empty where the strategy has no fixed ones."""
        if self.mixture:
            return self.mixture
        kind, _, mixture = self.strategy.partition(":")
        parts = [part.strip().partition("=") for part in mixture.split("+")] if kind in ("mix", "expert") else []
        try:
            found = {name: (float(alpha or 1),) for name, _, alpha in parts}
        except ValueError:
            return {}
        return found if all(math.isfinite(alpha) for alphas in found.values() for alpha in alphas) else {}

    @property
    def used(self) -> set[str] | None:
        """Names of the experts that this strategy can use; None if not known."""
        if self.search and not self.mixture:
            return set()  # the search kept the base
        return set(self.alphas) - {"base"} if self.alphas else set(self.experts) or None


def trainable(runs: Sequence[T2Info]) -> int | None:
    """Return the trained numbers of the experts that the runs of one row can use, None if not known."""
    used = [run.used for run in runs]
    sizes = {name: size for run in runs for name, size in run.parameters.items()}
    names = set().union(*(some for some in used if some is not None))
    return sum(sizes[name] for name in names) if None not in used and names <= sizes.keys() else None


def parse_t2(data: Any, path: Path) -> T2Info:
    """Read the `t2` section of the result file at `path`.

    Raises:
        ReportError: written by a newer t2, or a field has the wrong type; names the field.
    """
    if not isinstance(data, dict):
        raise ReportError(f"{path}: the `t2` section is a {type(data).__name__}, not an object. Run the evaluation again.")
    schema = data.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ReportError(f"{path}: the `t2` section has schema {schema!r}, this t2 reads up to {SCHEMA}. Upgrade t2 to report on it.")
    passes = {str(task): _two_pass(entry, f"t2.passes.{task}", path) for task, entry in _object(data, "passes", "t2", path).items()}
    sandbox, calibrate = data.get("sandbox"), data.get("calibrate")
    mixture = _object(data, "mixture", "t2", path)
    return T2Info(
        strategy=str(data.get("strategy") or "unknown"),
        dispatch=str(data.get("dispatch") or ""),
        experts={str(name): str(sha) for name, sha in _object(data, "experts", "t2", path).items()},
        base=str(data.get("base") or ""),
        passes=passes,
        sandbox=None if sandbox is None else str(sandbox),
        calibrate=bool(calibrate) if calibrate is not None else None,
        parameters=_counts(_object(data, "parameters", "t2", path), "t2.parameters", path),
        peak_memory=None if data.get("peak_memory") is None else int(_amount(data, "peak_memory", "t2", path)),
        mixture=_alphas(mixture, path),
        contaminated=_contaminated(data.get("contaminated")),
        probe=str(data.get("probe") or ""),
        search=f"fewshot ({mixture.get('shots', '?')} shots)" if mixture else "",
    )


def _two_pass(entry: Any, where: str, path: Path) -> TwoPass:
    costs = [_cost(_object(entry, name, where, path), f"{where}.{name}", path) for name in ("pass1", "pass2")]
    chosen = _object(entry, "chosen", where, path)
    return TwoPass(costs[0], costs[1], _counts(chosen, f"{where}.chosen", path))


def _counts(data: dict[str, Any], where: str, path: Path) -> dict[str, int]:
    return {str(name): int(_amount(data, name, where, path)) for name in data}


def _alphas(mixture: dict[str, Any], path: Path) -> dict[str, tuple[float, ...]]:
    found = {}
    for name, value in _object(mixture, "alpha", "t2.mixture", path).items():
        alphas = value if isinstance(value, list) else [value]
        if not alphas or any(isinstance(a, bool) or not isinstance(a, int | float) or not abs(a) < 1e9 for a in alphas):
            raise ReportError(f"{path}: `t2.mixture.alpha.{name}` should be a number, or one per layer, not {value!r:.40}.")
        found[str(name)] = tuple(map(float, alphas))
    return found


def _contaminated(value: Any) -> dict[str, tuple[str, ...]]:
    # A mark that cannot be read is still a mark: it must never be lost to its form.
    marks = {str(task): each for task, each in value.items()} if isinstance(value, dict) else {"*": value}
    marks = {task: each for task, each in marks.items() if each is not False and each not in (None, "", [], {})}
    ids = {task: each if isinstance(each, list) else [each] for task, each in marks.items()}
    return {task: tuple("?" if each is True else str(each) for each in found) for task, found in ids.items()}


def _cost(entry: dict[str, Any], where: str, path: Path) -> PassCost:
    counts = {name: int(_amount(entry, name, where, path)) for name in ("prompts", "tokens_in", "tokens_out", "switches")}
    return PassCost(seconds=float(_amount(entry, "seconds", where, path)), **counts)


def _object(data: Any, name: str, where: str, path: Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ReportError(f"{path}: `{where}` should be an object, not {data!r:.40}. Run the evaluation again.")
    value = data.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ReportError(f"{path}: `{where}.{name}` should be an object, not {value!r:.40}. Run the evaluation again.")
    return value


def _amount(data: dict[str, Any], name: str, where: str, path: Path) -> int | float:
    value = data.get(name, 0)
    # `not 0 <= value < …` also catches NaN; whole numbers of any size are legal in JSON, but no float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise ReportError(f"{path}: `{where}.{name}` should be a number ≥ 0, not {value!r:.40}. Run the evaluation again.")
    return value
