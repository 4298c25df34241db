"""The table of a study (`t2 study`): methods and seeds on one task each, against the base model on the same documents."""

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ReportError
from .markdown import escape, table
from .statistics import holm, mcnemar, wilson

_NAMES = {"base": "base model", "svf": "SVF", "lora": "LoRA", "dora": "DoRA", "ia3": "IA3"}
_HEADER = ["Method", "Seed", "Parameters", "Test, % [95%]", "Normalised", "p against base", "Validation, %", "Samples", "Seconds",
           "CPU seconds", "Peak memory, GiB"]  # fmt: skip


def study_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table for each task.

    The interval is Wilson's; the normalised score is score / base score, as in the paper; p is McNemar's exact test on the same documents,
    corrected by Holm over the rows of a table. Validation is before → after, the best of a run's validations.

    Args:
        rows: of `t2.baselines.study.run_study`.

    Raises:
        ReportError: a task has no row of the base model, or rows scored other documents than it.
    """
    return "\n\n".join(_table(task, [r for r in rows if r["task"] == task]) for task in dict.fromkeys(r["task"] for r in rows))


def _table(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    base = next((r for r in rows if r["run"] is None), None)
    if base is None:
        raise ReportError(f"{task} has no row of the base model, which its scores are compared with.")
    trained = [r for r in rows if r["run"] is not None]
    for row in trained:
        if len(row["outcomes"]) != len(base["outcomes"]) or row["task_hash"] != base["task_hash"]:
            raise ReportError(f"{row['run']}, seed {row['seed']}: scored on other documents of {task} than the base model.")
    p_values = holm([_p(base["outcomes"], row["outcomes"]) for row in trained])
    lines = [_line(base, base, None), *(_line(row, base, p) for row, p in zip(trained, p_values, strict=True))]
    title = f"**{escape(task)}** ({escape(base['metric'])}, {base['documents']} documents)"
    return f"{title}\n\n{table(_HEADER, lines)}"


def _p(base: str, run: str) -> float:
    lost = sum(a > b for a, b in zip(base, run, strict=True))
    won = sum(a < b for a, b in zip(base, run, strict=True))
    return mcnemar(lost, won)


def _line(row: Mapping[str, Any], base: Mapping[str, Any], p: float | None) -> list[str]:
    right, n = row["outcomes"].count("1"), row["documents"]
    low, high = wilson(right / n, n)
    score = f"{100 * right / n:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    if p is None:
        return [_NAMES["base"], "", "", score, "1.00", *[""] * (len(_HEADER) - 5)]
    method = f"{_NAMES[row['method']]}, {row['objective']}"
    normalised = f"{right / base['outcomes'].count('1'):.2f}" if base["outcomes"].count("1") else "n/a"
    validation = f"{100 * row['validation']['before']:.1f} → {100 * row['validation']['after']:.1f}"
    return [method, str(row["seed"]), f"{row['parameters']:,}", score, normalised, f"{p:.2g}", validation, f"{row['samples']:,}",
            f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}", f"{row['peak_memory_bytes'] / 2**30:.2f}"]  # fmt: skip
