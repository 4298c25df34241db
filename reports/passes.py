"""The `t2` section of a result file: strategy, experts, and what each of the two passes cost."""

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
    """Both passes of one task, and how many requests each mixture answered."""

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
        contaminated: task -> number of evaluated documents that the few-shot mixture was chosen on.
    """

    strategy: str
    dispatch: str
    experts: dict[str, str]
    base: str
    passes: dict[str, TwoPass]
    sandbox: str | None
    calibrate: bool | None = None
    contaminated: dict[str, int] = field(default_factory=dict)


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
    return T2Info(
        strategy=str(data.get("strategy") or "unknown"),
        dispatch=str(data.get("dispatch") or ""),
        experts={str(name): str(sha) for name, sha in _object(data, "experts", "t2", path).items()},
        base=str(data.get("base") or ""),
        passes=passes,
        sandbox=None if sandbox is None else str(sandbox),
        calibrate=bool(calibrate) if calibrate is not None else None,
        contaminated={str(task): len(ids) for task, ids in _object(data, "contaminated", "t2", path).items() if isinstance(ids, list)},
    )


def _two_pass(entry: Any, where: str, path: Path) -> TwoPass:
    costs = [_cost(_object(entry, name, where, path), f"{where}.{name}", path) for name in ("pass1", "pass2")]
    chosen = _object(entry, "chosen", where, path)
    return TwoPass(costs[0], costs[1], {str(name): int(_amount(chosen, name, f"{where}.chosen", path)) for name in chosen})


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
    # `not 0 <= value < inf` also catches NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ReportError(f"{path}: `{where}.{name}` should be a number ≥ 0, not {value!r:.40}. Run the evaluation again.")
    return value
