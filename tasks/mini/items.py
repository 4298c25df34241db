"""The items of `t2_mini`, written for this project: read from the package itself, so they need no data set and no network.

One JSON object a line in ``math.jsonl``, ``code.jsonl``, ``reasoning.jsonl`` and ``dispatch.jsonl``, each with an `id` and a `level` from
1 (easiest) to 5. Tests hold every answer to a second statement of it: an expression, a reference solution, or a sentence.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ...harness.errors import T2Error, nearest
from ...harness.sandbox import Sandbox

NAMES = ("math", "code", "reasoning", "dispatch")


def rows(name: str) -> list[dict[str, Any]]:
    """Return the items of one of `NAMES`, as they are in its file; those of ``dispatch`` are prompts with their true `domain`.

    Raises:
        T2Error: no such name.
    """
    if name not in NAMES:
        raise T2Error(f"t2_mini has no items called {name!r}.{nearest(name, NAMES)}")
    text = Path(__file__).with_name(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def load(t2_items: str, **_: Any) -> DatasetDict:
    """Return the items of a task as its test split; the `custom_dataset` of every task here.

    Args:
        t2_items: one of `NAMES`.
        _: metadata and model arguments, which lm-eval passes along.

    Raises:
        T2Error: no such name.
        SandboxUnavailable: items that are programs, and the sandbox does not work: said before anything is generated.
    """
    items = rows(t2_items)
    if t2_items == "code":
        Sandbox().check()
        items = [humaneval_row(item) for item in items]
    return DatasetDict({"test": Dataset.from_list(items)})


def humaneval_row(item: dict[str, Any]) -> dict[str, Any]:
    """Return a code item with HumanEval's fields, so that HumanEval's scorer judges it, here and in `t2 score-code --task humaneval`."""
    tests = "".join(f"    {test}\n" for test in item["tests"])
    return {
        "task_id": item["id"],
        "prompt": item["prompt"],
        "canonical_solution": item["solution"],
        "test": f"def check({item['entry_point']}):\n{tests}",
        "entry_point": item["entry_point"],
        "level": item["level"],
        "topic": item["topic"],
    }
