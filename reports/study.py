"""The table of a study (`t2 study`): methods and seeds on one task each, against the base model on the same documents."""

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ReportError
from .markdown import escape, table
from .paper import study_figures
from .statistics import holm, mcnemar, wilson

_NAMES = {"base": "base model", "svf": "SVF", "lora": "LoRA", "dora": "DoRA", "ia3": "IA3"}
_TRAINED = {"svf": ("SVF", "reinforce"), "lora": ("LoRA", "ntp"), "dora": ("DoRA", "ntp"), "ia3": ("IA3", "ntp")}
"""Method → the paper's name of it, and the objective that it trains it by."""
_DAGGER = "† paper"
_P_FIRST = "p against the first"
_LIGHT_ITERATIONS = 10


def study_tables(rows: Sequence[Mapping[str, Any]], first: Mapping[str, str] | None = None) -> str:
    """Return a Markdown table for each task, with the columns that its rows have something for.

    The interval is Wilson's; the normalised score is score / base score, as in the paper; p is McNemar's exact test, corrected by Holm over
    each column, against the base and, for other runs than the first, against the first with the same seed. Documents that a few-shot search
    has seen are left out on both sides. Validation is before → after, the best of a run's validations. Seconds are those of training, or of
    a few-shot search. Where the paper has the task, its figures for Llama3-8B stand beside, marked †. A task whose base model has not been
    scored yet has a line that says so in the table's place.

    Args:
        rows: of `t2.baselines.study_rows.run_study`.
        first: task → the study's first run on it, made or not.

    Raises:
        ReportError: rows scored other documents than the base model, or asked otherwise, or one is damaged.
    """
    for row in rows:
        _check(row)
    if not rows:
        return "No row of this study has been made yet."
    tasks = dict.fromkeys(row["task"] for row in rows)
    return "\n\n".join(_table(task, [row for row in rows if row["task"] == task], (first or {}).get(task)) for task in tasks)


def _check(row: Mapping[str, Any]) -> None:
    """See that a row has what its table takes from it.

    Raises:
        ReportError: something is missing, or is something else.
    """
    name = f"{row.get('run') or row.get('strategy') or 'base'}, seed {row.get('seed')}, on {row.get('task')}"
    try:
        escape(row["task"] + row["metric"] + str(row["task_hash"]))
        n = sum(row["outcomes"].count(outcome) for outcome in "01")
        if not 0 < row["documents"] == n or n + row["outcomes"].count("-") != len(row["outcomes"]):
            raise ValueError(f"{row['documents']} documents, {n} of which are right or wrong")
        _line(row, row, {})
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ReportError(
            f"{name}: this row of a study is damaged ({type(error).__name__}: {error}). Delete it, and it is made again."
        ) from error


def _table(task: str, rows: Sequence[Mapping[str, Any]], first: str | None) -> str:
    base = next((r for r in rows if r["method"] == "base"), None)
    if base is None:
        return f"**{escape(task)}**: there is no row of the base model yet, which the scores of {len(rows)} others are compared with."
    others = [r for r in rows if r is not base]
    for row in others:
        whole = "-" not in base["outcomes"] + row["outcomes"]  # lm-eval's hash is of the documents that were scored, all or not
        if len(row["outcomes"]) != len(base["outcomes"]) or (whole and row["task_hash"] != base["task_hash"]):
            of = row["run"] and f"{row['run']}, seed {row['seed']}"
            raise ReportError(f"{of or row['method']}: scored on other documents of {task} than the base model, or by other prompts.")
    benchmark, figures = study_figures(task)
    runs: dict[str, list[str]] = {}  # method and objective → its runs: where there are several, they are told apart
    for row in others:
        if row["run"] not in (None, *runs.setdefault(_method(row), [])):
            runs[_method(row)].append(row["run"])
    several = any(len(names) > 1 for names in runs.values())
    lines = [_line(row, base, figures if row["run"] in (None, *runs[_method(row)][:1]) else {}) for row in others]
    lines = [_line(base, base, figures), *lines]
    references = {row["seed"]: row for row in others if first and row["run"] == first}
    against = "p against " + (escape(first or "") if several else next((escape(_name(row)) for row in references.values()), ""))
    for column, opponents in (
        ("p against base", [base] * len(others)),
        (against, [references.get(row["seed"]) if row["run"] not in (None, first) else None for row in others]),
    ):
        met = [(line, row, other) for line, row, other in zip(lines[1:], others, opponents, strict=True) if other]
        for (line, *_), p in zip(met, holm([_p(other["outcomes"], row["outcomes"]) for _, row, other in met]), strict=True):
            line[column] = f"{p:.2g}"
    if not several:
        lines = [line | {"Run": ""} for line in lines]
    order = [against if name == _P_FIRST else name for name in lines[0]]
    header = [name for name in order if any(line.get(name) for line in lines)]
    title = f"**{escape(task)}** ({escape(base['metric'])}, {base['documents']} documents)"
    if _DAGGER in header:
        title += f"; † the paper's figures: Llama3-8B-Instruct on {benchmark}"
    versions = [escape(str(row.get("task_version", "not kept"))) for row in [base, *others]]
    note = f"\n\nScored by several versions of the task, in the order of the rows: {', '.join(versions)}." if len({*versions}) > 1 else ""
    return f"{title}\n\n{table(header, [[line.get(name, '') for name in header] for line in lines])}{note}"


def _name(row: Mapping[str, Any]) -> str:
    return _NAMES.get(row["method"]) or str(row["method"])


def _method(row: Mapping[str, Any]) -> str:
    return ", ".join(part for part in (_name(row), row.get("objective")) if part)


def _p(base: str, run: str) -> float:
    lost = sum(a > b for a, b in _both(base, run))
    won = sum(a < b for a, b in _both(base, run))
    return mcnemar(lost, won)


def _both(base: str, run: str) -> list[tuple[str, str]]:
    """Return the outcomes of the documents that both have scored."""
    return [(a, b) for a, b in zip(base, run, strict=True) if "-" not in (a, b)]


def _line(row: Mapping[str, Any], base: Mapping[str, Any], figures: Mapping[str, str]) -> dict[str, str]:
    """Return column → cell; "" where the row has nothing for it."""
    right, n = row["outcomes"].count("1"), row["documents"]
    low, high = wilson(right / n, n)
    base_right = sum(a == "1" for a, _ in _both(base["outcomes"], row["outcomes"]))
    search = row.get("search")
    line = {
        "Method": escape(_method(row)),
        "Run": escape(row["run"] or ""),
        "Seed": "" if row["seed"] is None else str(row["seed"]),
        "Parameters": f"{row['parameters']:,}" if "parameters" in row else "",
        "Test, % [95%]": f"{100 * right / n:.2f} [{100 * low:.2f}, {100 * high:.2f}]",
        "Normalised": f"{right / base_right:.2f}" if base_right else "n/a",
        "p against base": "",
        _P_FIRST: "",
        _DAGGER: figures.get(_of_the_paper(row), ""),
        "Validation, %": "",
        "Samples": "",
        "Seconds": "",
        "CPU seconds": "",
        "Peak memory, GiB": "",
    }
    if "validation" in row:
        line |= {
            "Validation, %": f"{100 * row['validation']['before']:.1f} → {100 * row['validation']['after']:.1f}",
            "Samples": f"{row['samples']:,}",
            "Seconds": f"{row['seconds']:.0f}",
            "CPU seconds": f"{row['cpu_seconds']:.0f}",
            "Peak memory, GiB": f"{row['peak_memory_bytes'] / 2**30:.2f}",
        }
    if search:
        numbers = sum(len(alpha) if isinstance(alpha, list) else 1 for alpha in search["alpha"].values())
        line |= {
            "Parameters": f"{numbers:,}" if numbers else "none (base kept)",
            "Samples": f"{search['configuration']['shots']:,}",
            "Seconds": f"{search['cost']['seconds']:.0f}",
        }
    return line | _passes(row)


def _passes(row: Mapping[str, Any]) -> dict[str, str]:
    passes = row.get("passes") or {}
    first, second = (passes[which]["seconds"] if which in passes else 0.0 for which in ("pass1", "pass2"))
    line = {"Pass 1, s": f"{first:.1f}" if first else "", "Pass 2, s": f"{second:.1f}" if second else ""}
    return {**line, "Pass 1 / pass 2": f"{first / second:.3f}" if first and second else ""}


def _of_the_paper(row: Mapping[str, Any]) -> str:
    """Return the paper's name for what a row shows; "" where it has none."""
    if "search" in row:
        found = row["search"]["configuration"]
        return f"T² few-shot, {found['shots']} shots" + (", light" if found["iterations"] <= _LIGHT_ITERATIONS else "")
    if row.get("strategy"):
        how = row["settings"]["strategy"], row["settings"].get("model_args")
        return {("prompt", "generate"): "T² prompt", ("cls", None): "T² classifier"}.get((how[0], (how[1] or {}).get("dispatch")), "")
    name, objective = _TRAINED.get(row["method"], (row["method"], None))
    return name if row.get("objective") == objective else ""
