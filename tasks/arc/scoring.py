"""Scores of one ARC document in the option-text form, for the task YAMLs of this folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from .forms import is_option, text_correct


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return `exact_match` (1.0 if the reply is the correct option) and `extracted` (1.0 if it is any of the options)."""
    reply = results[0]
    return {"exact_match": float(text_correct(doc, reply)), "extracted": float(is_option(doc, reply))}
