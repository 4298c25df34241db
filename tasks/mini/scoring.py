"""Scores of `t2_mini_math` and `t2_mini_code`."""

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from .. import code_scoring
from ..answers import extract_number
from ..humaneval.scoring import job

Doc = Mapping[str, Any]


def math(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Return `exact_match` (1.0 if the last number of the reply has the value of the answer) and `extracted` (1.0 if it has a number)."""
    number = extract_number(results[0])
    return {"exact_match": float(_equal(number, doc["answer"])), "extracted": float(number is not None)}


def _equal(number: str | None, answer: str) -> bool:
    try:
        return number is not None and Decimal(number) == Decimal(answer)
    except InvalidOperation:  # 1.2.3
        return False


def judge(programs: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Run the programs in the sandbox; the filter step whose output is logged."""
    return code_scoring.judge(programs, docs, job, "t2_mini_code")
