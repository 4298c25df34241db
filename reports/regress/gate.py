"""The gate: a run against a baseline, task by task and document by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..blocks import some
from ..errors import ReportError
from ..metrics import is_proportion
from ..statistics import (
    Alternative,
    Interval,
    holm,
    mcnemar,
    mcnemar_power,
    minimum_detectable,
    minimum_detectable_drop,
    paired_bootstrap,
    sign_flip_sides,
    standard_error,
)
from .collect import TIMINGS
from .likeness import Likeness, common_documents
from .ratios import Ratio, benchmark_ratios, timing_ratios
from .snapshot import Snapshot, TaskScores
from .thresholds import TaskRule, Thresholds

OK, REGRESSION, UNUSABLE = 0, 1, 2
_SHOWN = 8  # of names
_FEWEST, _MOST = 9999, 999_999  # permutations drawn: more where alpha is small or spread over many tests


@dataclass
class Comparison:
    """One task or group. Differences are run - baseline.

    Attributes:
        members: the tasks of a group.
        n: documents in both.
        before, after: mean scores.
        sign: -1 where lower is better, else 1.
        lost, won: documents that score worse, better.
        interval: 95%, paired bootstrap.
        p_drop, p_rise: one-sided: exact McNemar for 0/1 scores, else the paired permutation test.
        proportion: whether the metric is a share of documents.
        exact: whether all scores are 0 or 1.
        bounded: whether all scores lie between 0 and 1.
        stderr: of the difference, None for one document.
        p: adjusted by Holm over all gated tasks, of the side (or, for `both`, sides) that closes the gate.
        sees: smallest drop that the gate sees with the power asked for, at the level that Holm's first step leaves; None if it sees none.
        blind: why it sees none.
        limit_alarm: chance that `max_drop` alone fails an unchanged run; None without one, or where scores are not 0/1.
        verdict: `ok`, `regression`, `improvement`, `rise` (which fails where direction is `both`) or `not gated`.
        why: of the verdict.
    """

    name: str
    metric: str
    members: tuple[str, ...]
    rule: TaskRule
    gated: bool
    n: int
    before: float
    after: float
    difference: float
    interval: Interval
    sign: int
    lost: int
    won: int
    p_drop: float
    p_rise: float
    proportion: bool
    exact: bool
    bounded: bool
    stderr: float | None
    p: float = 1.0
    sees: float | None = None
    blind: str = ""
    limit_alarm: float | None = None
    verdict: str = "ok"
    why: str = ""

    @property
    def drop(self) -> float:
        """How much worse the run is; negative if it is better."""
        return -self.sign * self.difference


@dataclass
class Verdict:
    """What the gate found.

    Attributes:
        problems: why it cannot judge; the exit status is then 2.
        unlike: what differs between baseline and run beside the scores, though it was allowed to.
        uneven: tasks of which one side is the mean of more repeats: their p-values are approximate.
        notes: what a reader should know.
    """

    thresholds: Thresholds
    comparisons: list[Comparison] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    uneven: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Names of what closes the gate."""
        return [row.name for row in [*self.comparisons, *self.ratios] if row.verdict in ("regression", "rise")]

    @property
    def status(self) -> int:
        """Exit status: 0 ok, 1 regression, 2 unusable."""
        return UNUSABLE if self.problems else REGRESSION if self.failed else OK


def judge(baseline: Snapshot, run: Snapshot, thresholds: Thresholds, allow_unlike: bool = False, tasks: Sequence[str] = ()) -> Verdict:
    """Compare a run with a baseline.

    Args:
        baseline: as stored.
        run: as collected, by the metrics of the baseline.
        thresholds: when the gate closes.
        allow_unlike: compare whatever differs in settings or documents.
        tasks: only these tasks of the baseline; all if empty. Rules of others are left out.

    Raises:
        ReportError: a threshold names a task that there is not, or makes no sense for its metric.
    """
    thresholds.check_names([*baseline.tasks, *baseline.groups])
    wanted = [name for name in baseline.tasks if not tasks or name in tasks]
    groups = [group for group, members in baseline.groups.items() if set(members) <= set(wanted)]
    for group in baseline.groups:
        if group in thresholds.tasks and (wrong := _leaf_keys(thresholds.rule(group), thresholds.default)):
            raise ReportError(f"thresholds: {group} is a group, which {wrong[0]} is nothing for; set it for its tasks.")
    verdict = Verdict(thresholds, notes=list(run.notes))
    likeness = Likeness(("*",) if allow_unlike else thresholds.allow_unlike)
    draws = _draws(thresholds, len(wanted) + len(groups))
    shared = [name for name in wanted if name in run.tasks]
    _absent(baseline, run, wanted, shared, verdict)
    rows: list[Comparison] = []
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    for name in shared:
        one, two = baseline.tasks[name], run.tasks[name]
        if (one.metric, one.filter) != (two.metric, two.filter):
            verdict.problems.append(
                f"{name}: the baseline has {one.metric},{one.filter}, asked for is {two.metric},{two.filter}. Write the baseline anew "
                "with --update and the same --thresholds."
            )
            continue
        if one.higher_is_better != two.higher_is_better:
            says = [f"{'higher' if side.higher_is_better else 'lower'} is better" for side in (one, two)]
            verdict.problems.append(f"{name}: of {one.metric} {says[0]} by the baseline, {says[1]} by the run. Mend the task, or --update.")
            continue
        if one.repeats != two.repeats:
            verdict.uneven.append(f"{name} ({one.repeats} / {two.repeats})")
        likeness.settings(name, one.settings, two.settings)
        common = common_documents(name, one, two, likeness)
        if common:
            pairs[name] = ([one.documents[doc][1] for doc in common], [two.documents[doc][1] for doc in common])
            rows.append(_compare(name, (), [one], [pairs[name]], thresholds, thresholds.rule(name).gate is not False, draws))
        else:
            verdict.problems.append(f"{name}: baseline and run have no document in common.")
        verdict.ratios += timing_ratios(name, one, two, thresholds, likeness)
    for group, members in baseline.groups.items():
        kept = [name for name in members if name in pairs]
        parts = [baseline.tasks[name] for name in kept]
        asked = group in groups and group in thresholds.tasks and thresholds.tasks[group].gate is not False
        if len(kept) > 1 and _poolable(parts):
            rows.append(_compare(group, tuple(kept), parts, [pairs[name] for name in kept], thresholds, asked, draws))
        elif asked:
            verdict.problems.append(f"{group}: fewer than two of its tasks were compared, or by unlike metrics. Drop its threshold.")
    left_out = [name for name in thresholds.tasks if name not in wanted and name not in groups]
    if tasks and not run.benchmarks:
        left_out += thresholds.benchmarks
    else:
        verdict.ratios += benchmark_ratios(baseline, run, thresholds, likeness, verdict.problems)
    if left_out:
        verdict.notes.append(f"Rules of what was not asked for are left out: {some(left_out, _SHOWN)}.")
    _decide(rows, verdict)
    if not verdict.problems and not any(row.gated for row in rows) and all(ratio.limit is None for ratio in verdict.ratios):
        if rows or verdict.ratios:
            verdict.problems.append("Nothing is gated: figures are gated only where the thresholds give them a limit (docs/regress.md).")
        else:
            has = some(list(dict.fromkeys([*run.others, *run.benchmarks])), _SHOWN) or "none"
            had = some(list(baseline.benchmarks), _SHOWN)
            verdict.problems.append(f"Baseline and run have no figure in common: the baseline has {had}, the run has {has}.")
    verdict.comparisons = rows
    verdict.problems += likeness.refused()
    verdict.unlike = likeness.allowed()
    verdict.notes += likeness.notes()
    return verdict


def _absent(baseline: Snapshot, run: Snapshot, wanted: Sequence[str], shared: Sequence[str], verdict: Verdict) -> None:
    for name in wanted:
        if name in run.skipped:
            verdict.problems.append(f"{name}: {run.skipped[name]}, so it cannot be compared document by document.")
    missing = [name for name in wanted if name not in run.tasks and name not in run.skipped]
    if missing and not shared:
        has = some(list(dict.fromkeys(run.others)), _SHOWN) or "none"
        verdict.problems.append(f"Baseline and run have no task in common: the baseline has {some(wanted, _SHOWN)}, the run has {has}.")
    elif missing:
        verdict.problems.append(f"The run lacks {some(missing, _SHOWN)}. Evaluate them too, or name those to compare with --tasks.")
    if new := [name for name in dict.fromkeys(run.others) if name not in baseline.tasks]:
        verdict.notes.append(f"Not in the baseline, so not compared: {some(new, _SHOWN)}. --update writes a baseline that has them.")
    if run.benchmarks and not baseline.benchmarks:
        verdict.notes.append("The baseline has no benchmarks, so the run's were not compared.")


def _leaf_keys(rule: TaskRule, default: TaskRule) -> list[str]:
    return [name for name in ("metric", *TIMINGS) if getattr(rule, name) != getattr(default, name)]


def _draws(thresholds: Thresholds, tests: int) -> int:
    """Permutations for a smallest p-value of a tenth of what Holm's first step leaves, as far as time allows."""
    sides = 2 if thresholds.direction == "both" else 1
    return round(min(max(_FEWEST, 10 * sides * tests / thresholds.alpha), _MOST))


def _poolable(tasks: Sequence[TaskScores]) -> bool:
    """Documents of several tasks count alike where all are scored by one metric, or by shares of right answers."""
    metrics = {task.metric for task in tasks}
    return len({task.higher_is_better for task in tasks}) == 1 and (len(metrics) == 1 or all(map(is_proportion, metrics)))


def _compare(
    name: str,
    members: tuple[str, ...],
    tasks: Sequence[TaskScores],
    pairs: Sequence[tuple[list[float], list[float]]],
    thresholds: Thresholds,
    gated: bool,
    draws: int,
) -> Comparison:
    rule, sign = thresholds.rule(name), 1 if tasks[0].higher_is_better else -1
    old, new = [x for before, _ in pairs for x in before], [x for _, after in pairs for x in after]
    gaps = [sign * (b - a) for a, b in zip(old, new, strict=True)]
    n, lost, won = len(gaps), sum(gap < 0 for gap in gaps), sum(gap > 0 for gap in gaps)
    proportion = all(is_proportion(task.metric, (*old, *new)) for task in tasks)
    metrics = {f"{task.metric},{task.filter}": None for task in tasks}
    for key in ("tolerance", "max_drop", "must_see"):
        if proportion and (getattr(rule, key) or 0) >= 1:
            raise ReportError(
                f"thresholds: {key} of {name} is {getattr(rule, key):g}, which no drop of {tasks[0].metric} exceeds; 5 points are 0.05."
            )
    exact = all(x in (0.0, 1.0) for x in (*old, *new))
    if exact:
        p_drop, p_rise = mcnemar(lost, won, "less"), mcnemar(lost, won, "greater")
    else:
        p_drop, p_rise = sign_flip_sides(gaps, draws)
    row = Comparison(
        name, next(iter(metrics)) if len(metrics) == 1 else "right", members, rule, gated, n, sum(old) / n, sum(new) / n,
        sign * sum(gaps) / n, paired_bootstrap([sign * gap for gap in gaps]), sign, lost, won, p_drop, p_rise,
        proportion, exact, all(0 <= x <= 1 for x in (*old, *new)), standard_error(gaps),
    )  # fmt: skip
    if exact and rule.max_drop is not None:
        # The limit must be exceeded, the margin only reached: the next whole document.
        margin = (math.floor(rule.max_drop * n + 1e-9) + 1) / n
        row.limit_alarm = mcnemar_power(n, (lost + won) / n, 0.0, alpha=1.0, alternative="less", margin=margin)
    return row


def _decide(rows: list[Comparison], verdict: Verdict) -> None:
    thresholds = verdict.thresholds
    gated = [row for row in rows if row.gated]
    both = thresholds.direction == "both"
    level = thresholds.alpha / max(1, len(gated))
    alternative: Alternative = "two-sided" if both else "less"
    for row in rows:
        row.p = min(1.0, 2 * min(row.p_drop, row.p_rise)) if both else row.p_drop
        row.sees, row.blind = _sees(row, level if row.gated else thresholds.alpha, thresholds.power, alternative)
    rises = dict(zip([row.name for row in gated], holm([row.p_rise for row in gated]), strict=True))
    for row, p in zip(gated, holm([row.p for row in gated]), strict=True):
        row.p = p
    for row in rows:
        drop = row.drop
        if not row.gated:
            row.verdict = "not gated"
        elif row.rule.max_drop is not None and drop > row.rule.max_drop + 1e-12:
            row.verdict, row.why = "regression", f"the drop exceeds max_drop ({row.rule.max_drop:g})"
        elif row.p <= thresholds.alpha and drop > 0 and drop >= row.rule.tolerance - 1e-12:
            row.verdict, row.why = "regression", f"p = {row.p:.2g} is at most alpha ({thresholds.alpha:g})"
        elif both and row.p <= thresholds.alpha and drop < 0:
            row.verdict, row.why = "rise", f"p = {row.p:.2g} is at most alpha ({thresholds.alpha:g}), and direction is `both`"
        elif rises[row.name] <= thresholds.alpha:
            row.verdict, row.why = "improvement", "write the baseline anew with --update, so that the gate keeps it"
        elif row.p <= thresholds.alpha and drop > 0:
            row.why = f"the drop is real (p = {row.p:.2g}), but within the tolerance ({row.rule.tolerance:g})"
        must = row.rule.must_see
        # A drop or a gain that was seen needs no proof of sight; documents that it changed would even count as noise.
        if row.verdict == "ok" and must is not None and (row.sees is None or row.sees > must + 1e-12):
            sees = row.blind if row.sees is None else f"drops of {row.sees:.3g} or more"
            verdict.problems.append(
                f"{row.name}: must_see asks for drops of {must:g} to be seen with {thresholds.power:.0%} power; {row.n} documents, "
                f"{row.lost + row.won} of which differ, show {sees}. Evaluate more documents."
            )


def _sees(row: Comparison, alpha: float, power: float, alternative: Alternative) -> tuple[float | None, str]:
    tolerance, side = row.rule.tolerance, alpha / 2 if alternative == "two-sided" else alpha
    # Between 0 and 1 a drop may be a few documents that are lost whole: nothing of its size is harder to see.
    whole = minimum_detectable_drop(row.n, (row.lost + row.won) / row.n, alpha, power, alternative, tolerance) if row.bounded else 0.0
    if whole is None or 0.5**row.n > side:
        return None, "none (too few documents)"
    if row.exact:
        return whole, ""
    if (_MOST + 1) * side < 1:
        return None, f"none (alpha is too small for {_MOST:,} permutations)"
    if not row.stderr and not row.bounded:
        return None, "none that is known (the differences have no spread)"
    spread = row.stderr or 0.0
    # The observed drop must reach the tolerance too.
    reached = tolerance + minimum_detectable(spread, 0.5, power, "less")
    return max(whole, minimum_detectable(spread, alpha, power, alternative), reached), ""
