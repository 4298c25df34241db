"""The documents of `dispatch_boxed` and how its replies are scored; `t2 train dispatch` trains on the same form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from ...adapters.dispatch_prompt import categories, instruction, parse_reply
from ...harness.fetch import load_rows

Doc = Mapping[str, Any]

OPTIONS = categories(dict.fromkeys(("code", "math", "reasoning")))
"""The categories that are asked for: those of the paper's three experts, and ``others``."""

_NAMES = [option.name for option in OPTIONS]
_OF_EACH = 164  # HumanEval's test set, the smallest


def _listed(doc: Doc) -> str:
    options = "\n".join(f"{label}. {text}" for label, text in zip(doc["choices"]["label"], doc["choices"]["text"], strict=True))
    return f"{doc['question']}\n{options}"


_TEST: dict[str, tuple[str, Callable[[Doc], str]]] = {
    "code": ("humaneval", lambda doc: doc["prompt"]),
    "math": ("math500", lambda doc: doc["problem"]),
    "reasoning": ("arc_challenge", _listed),
}


def load(**_: Any) -> DatasetDict:
    """Return the first test prompts of HumanEval, MATH-500 and ARC-Challenge, labelled; the task's `custom_dataset`.

    Raises:
        FetchError: no source has one of them.
    """
    docs = [
        {"question": question(row), "label": label}
        for label, (name, question) in _TEST.items()
        for row in list(load_rows(name, "test"))[:_OF_EACH]
    ]
    return DatasetDict({"test": Dataset.from_list(docs)})


def prompt(doc: Doc) -> str:
    """Return the user's message: the adaptation prompt of figure 3, and the question."""
    return f"{instruction(OPTIONS)}\n\nQuestion:\n{doc['question']}"


def solution(doc: Doc) -> str:
    """Return the reply that is asked for."""
    return f"Classification: \\boxed{{{doc['label']}}}"


def correct(doc: Doc, reply: str) -> bool:
    """True if the reply's box names the label, and nothing else."""
    return parse_reply(reply, _NAMES) == doc["label"]


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Return `exact_match` (1.0 if the box names the label) and `extracted` (1.0 if it names any one category)."""
    return {"exact_match": float(correct(doc, results[0])), "extracted": float(parse_reply(results[0], _NAMES) is not None)}
