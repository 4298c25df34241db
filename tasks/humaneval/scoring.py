"""HumanEval and HumanEval+: programs from replies, judged by each document's `check`."""

import ast
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ...harness.sandbox import Job
from .. import code_scoring
from ..evalplus import straight_tests
from ..mbpp.forms import extract_code
from ..references import reference

Doc = Mapping[str, Any]
_FUTURE = re.compile(r"(?:(?:\s*#[^\n]*\n)*+\s*from __future__ import [^\n]*\n)*")


def complete(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the programs of plain completions: the prompt continued by the reply."""
    return [[doc["prompt"] + reply for reply in replies] for replies, doc in zip(resps, docs, strict=True)]


def complete_block(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the programs of chat replies that continue an opened code block: up to where the block closes."""
    return complete([[reply.partition("```")[0] for reply in replies] for replies in resps], docs)


def whole_functions(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the programs of chat replies that hold the whole function: what stands before it in the prompt, and the first code block."""
    return [
        [_joined(doc["prompt"].partition(f"def {doc['entry_point']}(")[0], extract_code(reply)) for reply in replies]
        for replies, doc in zip(resps, docs, strict=True)
    ]


def _joined(head: str, code: str) -> str:
    """Both, with what `code` imports from `__future__` first: Python takes it nowhere else."""
    future = _FUTURE.match(code)[0]  # type: ignore[index] (it matches nothing, too)
    return future + head + code[len(future) :]


def judge(programs: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Run the programs in the sandbox; the filter step whose output is logged."""
    return code_scoring.judge(programs, docs, job, "humaneval")


def judge_plus(programs: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """As `judge`, by EvalPlus's tests."""
    return code_scoring.judge(programs, docs, plus_job, "humaneval_plus")


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `pass@1` and `extracted` of one document."""
    return code_scoring.score(results[0], "pass@{}", [1], doc["prompt"])


def process_results_64(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `pass@2` to `pass@64` and `extracted` of one document with 64 replies."""
    return code_scoring.score(results[0], "pass@{}", code_scoring.KS_64, doc["prompt"])


def job(program: str, doc: Doc) -> Job:
    """One program with a document's `check`."""
    return _job(program, doc, doc["test"], "humaneval")


def plus_job(program: str, doc: Doc) -> Job:
    """One program with the `check` of a HumanEval+ document.

    Raises:
        UnusableTests: The document's tests are not of EvalPlus's form.
    """
    return _job(program, doc, straight_tests(doc["test"]), "humaneval_plus")


def _job(program: str, doc: Doc, test: str, dataset: str) -> Job:
    entry = doc["entry_point"]
    known = reference(dataset, doc["task_id"], doc["prompt"] + doc["canonical_solution"])
    return Job(program, f"{test}\ncheck({entry})", entry, _helpers(doc["prompt"], test, entry), known, doc["task_id"])


@lru_cache(maxsize=1024)
def _helpers(prompt: str, test: str, entry_point: str) -> str:
    """The prompt, where it defines a function that the tests use (`poly` beside `find_zero`): a candidate must not redefine that."""
    try:
        tree = ast.parse(prompt)
    except code_scoring.UNPARSABLE:
        return ""
    others = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} - {entry_point}
    used = {n.id for n in ast.walk(code_scoring.parse_tests(test)) if isinstance(n, ast.Name)} if others else set()
    return prompt if others & used else ""
