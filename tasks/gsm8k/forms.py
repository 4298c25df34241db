"""GSM8K asked for the final number alone: the form for models too small to reason in steps."""

from collections.abc import Mapping
from typing import Any


def answer_prompt(doc: Mapping[str, Any]) -> str:
    """Return the user's message for one document."""
    return f"Solve the problem and write only the final number.\n\nProblem: {doc['question']}\n\nAnswer:"
