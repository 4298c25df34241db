"""Timing and benchmarks: single figures, of which repeats tell the noise."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import NormalDist

from ..statistics import standard_error
from .collect import PASSES, TIMINGS
from .likeness import Likeness
from .snapshot import Snapshot, TaskScores
from .thresholds import BenchmarkRule, Thresholds

_SECONDS = re.compile(r"(?i)(?<![a-z])seconds?(?![a-z])")  # in the name of a figure that is of its machine


@dataclass
class Ratio:
    """One figure.

    Attributes:
        before, after: geometric means over repeats.
        growth: after / before, or its inverse where higher is better: above 1 is worse.
        limit: the growth that closes the gate; None if it is only shown.
        sees: smallest true growth that exceeds the limit with the power asked for; None without a limit or repeats.
        false_alarm: chance that an unchanged run exceeds the limit; None without a limit or repeats.
        verdict: `ok`, `regression` or `not gated`.
    """

    name: str
    before: float
    after: float
    growth: float
    repeats: tuple[int, int]
    limit: float | None
    sees: float | None
    false_alarm: float | None
    verdict: str


def timing_ratios(task: str, before: TaskScores, after: TaskScores, thresholds: Thresholds, likeness: Likeness) -> list[Ratio]:
    """Compare what a task cost."""
    rule = thresholds.rule(task)
    found, seconds = [], False
    for name in TIMINGS:
        one, two, limit = before.timing.get(name), after.timing.get(name), getattr(rule, name)
        if one and two:
            found.append(_ratio(f"{task}: {name}", one, two, limit, False, thresholds.power))
        elif limit is not None:
            likeness.add("timing", f"timing: {name} is gated, but {'the baseline' if not one else 'the run'} has none", task)
        seconds = seconds or (name != PASSES and limit is not None)
    likeness.machine(task, before.provenance, after.provenance, gated=seconds and bool(found))
    return found


def benchmark_ratios(baseline: Snapshot, run: Snapshot, thresholds: Thresholds, likeness: Likeness, problems: list[str]) -> list[Ratio]:
    """Compare the figures of benchmarks."""
    found, seconds, used = [], False, set()
    for name, before in baseline.benchmarks.items():
        pattern, rule = _rule(name, thresholds)
        used.add(pattern)
        after = run.benchmarks.get(name)
        if after is not None:
            found.append(_ratio(name, before, after, rule.max_change, rule.higher_is_better, thresholds.power))
        elif rule.max_change is not None:
            problems.append(f"The run lacks the benchmark figure {name}, which is gated. Give the benchmarks' JSON file too.")
        seconds = seconds or (rule.max_change is not None and bool(_SECONDS.search(name.partition(": ")[2])))
    for pattern in thresholds.benchmarks:
        if pattern not in used:
            problems.append(f"thresholds: no benchmark of the baseline fits {pattern!r} before another pattern does.")
    if found:
        likeness.machine("benchmarks", baseline.benchmark_machine, run.benchmark_machine, gated=seconds)
    return found


def _rule(name: str, thresholds: Thresholds) -> tuple[str, BenchmarkRule]:
    # Square brackets are pytest's parameters here, no pattern.
    hits = (p for p in thresholds.benchmarks if fnmatchcase(name, p.replace("[", "[[]")))
    pattern = next(hits, "")
    return pattern, thresholds.benchmarks.get(pattern, BenchmarkRule())


def _ratio(name: str, before: list[float], after: list[float], limit: float | None, higher_is_better: bool, power: float) -> Ratio:
    repeats = (len(before), len(after))
    if min(*before, *after) <= 0:  # no ratio: whatever is worse exceeds every limit
        one, two = sum(before) / len(before), sum(after) / len(after)
        worse = two < one if higher_is_better else two > one
        verdict = "not gated" if limit is None else "regression" if worse else "ok"
        return Ratio(name, one, two, math.nan, repeats, limit, None, None, verdict)
    logs = [[math.log(x) for x in values] for values in (before, after)]
    means = [math.fsum(values) / len(values) for values in logs]
    change = (means[1] - means[0]) * (-1 if higher_is_better else 1)
    errors = [standard_error(values) for values in logs]
    sees = alarm = None
    if limit is not None and errors[0] is not None and errors[1] is not None and (spread := math.hypot(*(e or 0.0 for e in errors))) > 0:
        sees = math.exp(math.log(limit) + NormalDist().inv_cdf(power) * spread)
        alarm = NormalDist().cdf(-math.log(limit) / spread)
    verdict = "not gated" if limit is None else "regression" if change > math.log(limit) + 1e-12 else "ok"
    return Ratio(name, math.exp(means[0]), math.exp(means[1]), math.exp(change), repeats, limit, sees, alarm, verdict)
