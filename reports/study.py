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
_P_BASE, _P_SVF = "p against base", "p against SVF"
_LIGHT_ITERATIONS = 10


def study_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table for each task, with the columns that its rows have something for.

    The interval is Wilson's; the normalised score is score / base score, as in the paper; p is McNemar's exact test, corrected by Holm over
    each column, against the base and, for other runs, against SVF with the same seed (its first run, where there are several). Documents
    that a few-shot search has seen are left out on both sides. Validation is before → after, the best of a run's validations. Seconds are
    those of training, or of a few-shot search. Where the paper has the task, its figures for Llama3-8B stand beside, marked †. A task whose
    base model has not been scored yet has a line that says so in the table's place.

    Args:
        rows: of `t2.baselines.study_rows.run_study`.

    Raises:
        ReportError: rows scored other documents than the base model, or asked otherwise.
    """
    return "\n\n".join(_table(task, [r for r in rows if r["task"] == task]) for task in dict.fromkeys(r["task"] for r in rows))


def _table(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
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
    lines = [_line(row, base, figures) for row in [base, *others]]
    svf = list(dict.fromkeys(row["run"] for row in others if row["method"] == "svf" and row["run"]))
    for column, opponents in ((_P_BASE, [base] * len(others)), (_P_SVF, [_of(svf, row, others) for row in others])):
        met = [(line, row, other) for line, row, other in zip(lines[1:], others, opponents, strict=True) if other]
        for (line, *_), p in zip(met, holm([_p(other["outcomes"], row["outcomes"]) for _, row, other in met]), strict=True):
            line[column] = f"{p:.2g}"
    if len(svf) > 1:
        lines = [{f"p against {escape(svf[0])}" if name == _P_SVF else name: cell for name, cell in line.items()} for line in lines]
    if len({(line["Method"], line["Seed"]) for line in lines}) == len(lines):  # else configurations of one method are told apart
        lines = [line | {"Run": ""} for line in lines]
    header = [name for name in lines[0] if any(line[name] for line in lines)]
    title = f"**{escape(task)}** ({escape(base['metric'])}, {base['documents']} documents)"
    if _DAGGER in header:
        title += f"; † the paper's figures: Llama3-8B-Instruct on {benchmark}"
    versions = [str(row.get("task_version", "not kept")) for row in [base, *others]]
    note = f"\n\nScored by several versions of the task, in the order of the rows: {', '.join(versions)}." if len({*versions}) > 1 else ""
    return f"{title}\n\n{table(header, [[line[name] for name in header] for line in lines])}{note}"


def _of(runs: Sequence[str], row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the first of `runs` with the seed of another run's; None where there is none."""
    if not runs or row["run"] in (None, runs[0]):
        return None
    return next((other for other in rows if (other["run"], other["seed"]) == (runs[0], row["seed"])), None)


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
    method = ", ".join(part for part in (_NAMES.get(row["method"], row["method"]), row.get("objective")) if part)
    line = {
        "Method": method,
        "Run": row["run"] or "",
        "Seed": "" if row["seed"] is None else str(row["seed"]),
        "Parameters": f"{row['parameters']:,}" if "parameters" in row else "",
        "Test, % [95%]": f"{100 * right / n:.2f} [{100 * low:.2f}, {100 * high:.2f}]",
        "Normalised": f"{right / base_right:.2f}" if base_right else "n/a",
        _P_BASE: "",
        _P_SVF: "",
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
