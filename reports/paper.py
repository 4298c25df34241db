"""The paper's printed figures as rows beside one's own: `paper.json`, by table number."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .blocks import DASH, Text, figure
from .errors import ReportError
from .leaderboard import Column
from .metrics import nearest


@dataclass(frozen=True)
class PaperRow:
    """One method on one model, over tables.

    Attributes:
        scores: task of ours -> (score, score of the same table's base row), in percent.
    """

    label: str
    scores: dict[str, tuple[float, float]]


@cache
def _figures() -> dict[str, Any]:
    return json.loads((files(__package__ or "t2.reports") / "paper.json").read_text(encoding="utf-8"))


def paper_rows(model: str, tasks: Iterable[str]) -> list[PaperRow]:
    """Return the paper's rows for one of its models, as far as they are about tasks of the leaderboard.

    Args:
        model: its name in the paper, or a part that fits one only; case does not matter.
        tasks: the leaderboard's.

    Raises:
        ReportError: no model or several fit; all are listed.
    """
    scores = _figures()["scores"]
    known = list(dict.fromkeys(entry["model"] for entry in scores))
    hits = [name for name in known if model.strip() and model.strip().casefold() in name.casefold()]
    if len(hits) != 1:
        how = "several of the paper's models fit" if hits else "none of the paper's models fits"
        raise ReportError(f"--paper {model!r}: {how}.{nearest(model, hits or known)}")
    wanted = set(tasks)
    ours = {task: name for name, each in _figures()["tasks"].items() for task in each if task in wanted}
    mine = [entry for entry in scores if entry["model"] == hits[0]]
    base = {name: value for entry in mine if entry["method"] == "base" for name, value in entry["scores"].items()}
    rows = []
    for method in dict.fromkeys(entry["method"] for entry in mine):
        entries = [entry for entry in mine if entry["method"] == method]
        found = {task: value for entry in entries for task, name in ours.items() if (value := entry["scores"].get(name)) is not None}
        tables = sorted({entry["table"] for entry in entries if set(entry["scores"]) & {ours[task] for task in found}})
        if found:
            numbers = " and ".join(map(str, tables))
            label = f"† {hits[0]}, {method} (paper, table{'s' if len(tables) > 1 else ''} {numbers})"
            rows.append(PaperRow(label, {task: (value, base[ours[task]]) for task, value in found.items()}))
    return rows


_STUDIED = {
    "gsm8k_answer": "GSM8K", "mbpp_chat": "MBPP-Pro", "arc_easy_text": "ARC-Easy",
    "math500": "MATH", "humaneval_instruct": "HumanEval", "humaneval_chat": "HumanEval", "arc_challenge_text": "ARC-Challenge",
}  # fmt: skip


def study_figures(task: str) -> tuple[str, dict[str, str]]:
    """Return the benchmark of the paper that a study's task stands for, and method → "score (score / base)" of Llama3-8B-Instruct.

    Both are empty where the paper has nothing like it. Ratios are recomputed: the printed ones are not all right.
    """
    name = _STUDIED.get(task, "")
    entries = [entry for entry in _figures()["scores"] if entry["model"] == "Llama3-8B-Instruct" and name in entry["scores"]]
    scores = {entry["method"]: entry["scores"][name] for entry in entries}
    if "T² few-shot" in scores:
        scores["T² few-shot, 10 shots"] = scores.pop("T² few-shot")
    scores |= {entry["method"]: entry["score"] for entry in _figures()["few_shot"] if entry["task"] == name}
    return name, {method: f"{score:.2f} ({score / scores['base']:.2f})" for method, score in scores.items()}


def paper_line(row: PaperRow, columns: Sequence[Column], shares: Sequence[bool], width: int) -> list[Text]:
    """Return a row's cells for the leaderboard: scores under the tasks, nothing under the averages.

    Args:
        row: the paper's.
        columns: of the leaderboard.
        shares: for each whether a second column follows, which the paper has nothing for.
        width: cells in all.
    """
    line: list[Text] = [row.label]
    for column, share in zip(columns, shares, strict=True):
        value, base = row.scores.get(column.task, (None, 0.0))
        line.append(DASH if value is None or not column.proportion else figure(f"{value:.2f} ({value / base:.2f})"))
        line += [DASH] if share else []
    return line + [DASH] * (width - len(line))


def two_pass_seconds(tasks: Iterable[str]) -> list[tuple[str, str, float, float]]:
    """Return (label, task, seconds of pass 1, seconds of pass 2) of the paper's table 3 for tasks of the leaderboard."""
    wanted = list(tasks)
    return [
        (f"† {entry['method']} (paper, table {entry['table']})", task, entry["pass1"], entry["pass2"])
        for entry in _figures()["two_passes"]
        for task in _figures()["tasks"][entry["task"]]
        if task in wanted
    ]
