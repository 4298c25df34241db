"""HumanEval: programs from replies, judged by each document's `check`."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from ...harness.sandbox import Job
from .. import code_scoring

Doc = Mapping[str, Any]


def complete(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the programs of plain completions: the prompt continued by the reply."""
    return [[doc["prompt"] + reply for reply in replies] for replies, doc in zip(resps, docs, strict=True)]


def complete_block(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the programs of chat replies that continue an opened code block: up to where the block closes."""
    return complete([[reply.partition("```")[0] for reply in replies] for replies in resps], docs)


def judge(programs: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Run the programs in the sandbox; the filter step whose output is logged."""
    jobs = [[_job(program, doc) for program in group] for group, doc in zip(programs, docs, strict=True)]
    return code_scoring.judge(programs, jobs, "humaneval")


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `pass@1` and `extracted` of one document."""
    return code_scoring.score(results[0], "pass@1")


def _job(program: str, doc: Doc) -> Job:
    tests = f"{doc['test']}\ncheck({doc['entry_point']})"
    return Job(program, tests, doc["entry_point"], _helpers(doc))


def _helpers(doc: Doc) -> str:
    """The prompt, where it defines a function that the tests use (`poly` beside `find_zero`): a candidate must not redefine that."""
    try:
        tree = ast.parse(doc["prompt"])
    except SyntaxError:
        return ""
    others = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} - {doc["entry_point"]}
    used = {n.id for n in ast.walk(ast.parse(doc["test"])) if isinstance(n, ast.Name)}
    return doc["prompt"] if others & used else ""
