"""MBPP and MBPP+: programs from replies, judged by each document's three asserts, or by EvalPlus's tests."""

import ast
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...harness.errors import T2Error
from ...harness.sandbox import Job
from .. import code_scoring
from ..evalplus import straight_tests
from ..references import reference

Doc = Mapping[str, Any]
_BLOCK = re.compile(r"```\w*+\n?(.*?)\n?```", re.DOTALL)


def block(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Return the programs of chat replies: the first code block, the one that the prompt opened included; empty without one."""
    return [[_first_block(reply) for reply in replies] for replies in resps]


def _first_block(reply: str) -> str:
    # lm-eval puts only the fence before the reply, so that its pattern takes the first word of the code ("def") for the language.
    blocks = _BLOCK.findall(f"```python\n{reply}") + _BLOCK.findall(reply)
    return next((found for found in blocks if found.strip()), "")


def judge(programs: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """Run the programs in the sandbox; the filter step whose output is logged."""
    return code_scoring.judge(programs, docs, job, "mbpp")


def judge_plus(programs: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[list[str]]:
    """As `judge`, by EvalPlus's tests."""
    return code_scoring.judge(programs, docs, plus_job, "mbpp_plus")


def process_results(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `pass_at_1` and `extracted` of one document."""
    return code_scoring.score(results[0], "pass_at_{}", [1])


def process_results_64(doc: Doc, results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `pass_at_2` to `pass_at_64` and `extracted` of one document with 64 replies."""
    return code_scoring.score(results[0], "pass_at_{}", code_scoring.KS_64)


def job(program: str, doc: Doc) -> Job:
    """One program with a document's asserts, its set-up code before them.

    lm-eval leaves the set-up out, so that the one test document that has some (367) cannot be solved there.
    """
    return _job(program, doc, "\n".join([doc.get("test_setup_code") or "", *doc["test_list"][:3]]), "mbpp")


def plus_job(program: str, doc: Doc) -> Job:
    """One program with the tests of an MBPP+ document.

    Raises:
        UnusableTests: The document's tests are not of EvalPlus's form.
    """
    return _job(program, doc, straight_tests(doc["test"]), "mbpp_plus")


def _job(program: str, doc: Doc, tests: str, dataset: str) -> Job:
    known = reference(dataset, doc["task_id"], doc["code"])
    return Job(program, tests, _entry_points(doc["code"], tests) or None, reference=known, label=f"{dataset} {doc['task_id']}")


@lru_cache(maxsize=1024)
def _entry_points(solution: str, tests: str) -> tuple[str, ...]:
    """The names that the tests take from the reference solution: some are called as builtins are (`sum`), and then no other way tells."""
    tree = code_scoring.parse_tests(tests)
    try:
        defined = {n.name for n in ast.parse(solution).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    except code_scoring.UNPARSABLE:
        return ()
    own = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    return tuple(sorted((defined - own) & {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}))


def few_shot(_: object = None) -> list[dict[str, Any]]:
    """Return lm-eval's three examples (tasks 2, 3 and 4 of MBPP's prompt split), read as data from the installed lm-eval.

    Its module loads a metric from a hub and runs code when imported, so it is not imported.

    Raises:
        T2Error: This lm-eval keeps them elsewhere.
    """
    spec = importlib.util.find_spec("lm_eval")
    path = Path(spec.origin or "").parent / "tasks" / "mbpp" / "utils.py" if spec else Path("lm_eval")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "list_fewshot_samples")
        answer = next(n for n in function.body if isinstance(n, ast.Return) and n.value is not None)
        return ast.literal_eval(answer.value)  # type: ignore[arg-type]
    except (OSError, SyntaxError, StopIteration, ValueError) as error:
        raise T2Error(f"mbpp: lm-eval's few-shot examples are not in {path} ({error!r}). Use lm-eval 0.4.13, or --num_fewshot 0.") from None
