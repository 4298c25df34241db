"""The dispatch task: which expert does a prompt need? For training a classifier expert (the paper's strategy B)."""

from collections.abc import Mapping
from typing import Any

from ..adapters.dispatch_prompt import categories, instruction, parse_reply
from ..harness.fetch import load_rows
from ..tasks.training import TrainTask, each

OPTIONS = categories(dict.fromkeys(("code", "math", "reasoning")))
_NAMES = [option.name for option in OPTIONS]


def _rows() -> list[dict[str, Any]]:
    """Return as many train-split prompts of each expert's task, labelled: MBPP is code, GSM8K math, ARC-Easy reasoning.

    The paper's reference code uses test prompts here (PAPER.md, trap 4).

    Raises:
        FetchError: a train split cannot be had.
    """
    by_label = {
        "code": [row["text"] for row in load_rows("mbpp", "train")],
        "math": [row["question"] for row in load_rows("gsm8k", "train")],
        "reasoning": [_listed(row) for row in load_rows("arc_easy", "train")],
    }
    n = min(map(len, by_label.values()))
    return [{"question": question, "label": label} for label, questions in by_label.items() for question in questions[:n]]


def _listed(row: Mapping[str, Any]) -> str:
    options = "\n".join(f"{label}. {text}" for label, text in zip(row["choices"]["label"], row["choices"]["text"], strict=True))
    return f"{row['question']}\n{options}"


def _prompt(doc: Mapping[str, Any]) -> str:
    """Return the user's message: the adaptation prompt of figure 3, and the question."""
    return f"{instruction(OPTIONS)}\n\nQuestion:\n{doc['question']}"


def _solution(doc: Mapping[str, Any]) -> str:
    """Return the reply that is asked for."""
    return f"Classification: \\boxed{{{doc['label']}}}"


def _correct(doc: Mapping[str, Any], reply: str) -> bool:
    """True if the reply's box names the label, and nothing else."""
    return parse_reply(reply, _NAMES) == doc["label"]


DISPATCH = TrainTask("mbpp+gsm8k+arc_easy", _prompt, each(_correct), max_new_tokens=16, solution=_solution, rows=_rows)
