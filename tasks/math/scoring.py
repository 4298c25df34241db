"""Scores of one MATH document, for the task YAMLs of this folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..answers import extract_math, math_correct


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return `math_verify` (1.0 if the reply's answer is the reference answer) and `extracted` (1.0 if it has an answer).

    Raises:
        VerifierError: math-verify cannot run here.
    """
    reply = results[0]
    return {"math_verify": float(math_correct(reply, doc["answer"])), "extracted": float(extract_math(reply) is not None)}
