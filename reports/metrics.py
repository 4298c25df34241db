"""Which of a task's metrics is its score on the leaderboard, and in which units."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from .errors import ReportError
from .load import Score, TaskResult

# First that a task has wins. A checker that understands the answer goes before string comparison; normalised before
# raw likelihood, as leaderboards do; `extracted` says whether there was an answer, never whether it was right.
PRIMARY = ("math_verify", "pass@1", "pass_at_1", "exact_match", "acc_norm", "acc", "mc2", "f1", "em", "rougeL", "bleu")
FILTERS = ("flexible-extract", "none", "custom-extract", "strict-match")
EXTRACTED = "extracted"

# Bounded by 0 and 1, shown in percent. Anything else is shown as it is (bleu is in percent already).
PROPORTIONS = frozenset({
    "math_verify", "exact_match", "acc", "acc_norm", "acc_mutual_info", "acc_bytes", "mc1", "mc2", "f1", "em", "extracted", "contains",
    "prompt_level_strict_acc", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc",
})  # fmt: skip

Key = tuple[str, str]  # metric, filter


def is_proportion(metric: str, values: Iterable[float] = ()) -> bool:
    """Whether a metric is a share between 0 and 1: by its name, and by what is known of its values (squadv2's `f1` is in percent)."""
    named = metric in PROPORTIONS or metric.startswith(("pass@", "pass_at_"))
    return named and not any(value > 1 for value in values)


def find_score(task: TaskResult | None, key: Key | None) -> Score | None:
    """Return the task's score of that metric and filter, None if it has none."""
    if task is None or key is None:
        return None
    return next((score for score in task.scores if (score.metric, score.filter) == key), None)


def primary(tasks: Sequence[TaskResult]) -> Key | None:
    """Choose one metric and filter for a task that several runs report, the same for all of them.

    The first in PRIMARY, then in FILTERS order, among what all runs have; if they share none, among what any has.
    """
    sets = [{(s.metric, s.filter): i for i, s in enumerate(task.scores) if s.metric != EXTRACTED} for task in tasks if task.scores]
    if not sets:
        return None
    shared = [key for key in sets[0] if all(key in keys for keys in sets)]
    candidates = shared or list(dict.fromkeys(key for keys in sets for key in keys))
    return min(candidates, key=_rank) if candidates else None


def _rank(key: Key) -> tuple[int, int]:
    metric, filter_name = key
    return (
        PRIMARY.index(metric) if metric in PRIMARY else len(PRIMARY),
        FILTERS.index(filter_name) if filter_name in FILTERS else len(FILTERS),
    )


def extraction(task: TaskResult | None, key: Key | None) -> Score | None:
    """Return the share of answers that could be extracted: `extracted` of the same filter, else of the first."""
    if task is None:
        return None
    shares = [score for score in task.scores if score.metric == EXTRACTED]
    same = [score for score in shares if key is not None and score.filter == key[1]]
    return next(iter([*same, *shares]), None)


def pick(wanted: str, keys: Iterable[Key]) -> Key | None:
    """Return which of `keys` is meant by `METRIC` or `METRIC,FILTER`; None if none is.

    Of several filters the first in FILTERS order, then in the order of `keys`.
    """
    metric, comma, filter_name = wanted.partition(",")
    return min((key for key in keys if key[0] == metric and (not comma or key[1] == filter_name)), key=_rank, default=None)


def parse_choices(options: Iterable[str], tasks: Mapping[str, Sequence[TaskResult]]) -> dict[str, Key]:
    """Read `TASK=METRIC` or `TASK=METRIC,FILTER` options.

    Raises:
        ReportError: malformed, or a task or metric that no run has; all known ones are listed.
    """
    chosen: dict[str, Key] = {}
    for option in options:
        task, found, wanted = option.partition("=")
        if not found or not wanted:
            raise ReportError(f"--metric {option!r}: write TASK=METRIC or TASK=METRIC,FILTER, e.g. gsm8k=exact_match,strict-match.")
        if task not in tasks:
            raise ReportError(f"--metric {option!r}: no run has the task {task!r}.{nearest(task, tasks)}")
        keys = sorted(dict.fromkeys((s.metric, s.filter) for result in tasks[task] for s in result.scores), key=_rank)
        if (key := pick(wanted, keys)) is None:
            raise ReportError(f"--metric {option!r}: {task} has no such metric.{nearest(wanted, map(','.join, keys))}")
        chosen[task] = key
    return chosen


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'? Known: …``; a twin of harness.errors.nearest, as reports import nothing of ours."""
    options = list(known)
    close = difflib.get_close_matches(name, options, n=1)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" Known: {', '.join(options) or 'none'}."
