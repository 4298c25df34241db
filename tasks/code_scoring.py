"""What the tasks of HumanEval and MBPP share: candidates judged in the sandbox, all documents at once, and scored by pass@k.

The judging is a filter step: lm-eval gives a filter all replies of a task together, so programs run in parallel behind one progress bar,
and what the filter returns (program and verdict, as JSON, since lm-eval logs anything but text by its repr) is what `--log_samples`
writes. A broken sandbox raises there and ends the run.
"""

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import DatasetDict

from ..harness.code_eval import estimate_pass_at_k, judge_predictions
from ..harness.sandbox import Job, Sandbox, UnusableTests
from . import data

# lm-eval's humaneval_64 has these.
KS_64 = (2, 8, 16, 32, 64)

# What `ast.parse` raises: ValueError of a null byte, the last two of what nests too deep.
UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)

# Reasons of a failed verdict that mean that there was no program to test, only text.
_NOTHING_TO_RUN = ("missing_name",)


def load(t2_dataset: str, **rest: Any) -> DatasetDict:
    """Return the task's rows, after making sure that the sandbox works: not after hours of generation.

    Raises:
        SandboxUnavailable: It does not; the message says what mends it.
        FetchError: No source has the rows.
    """
    Sandbox().check()
    return data.load(t2_dataset, **rest)


def parse_tests(tests: str) -> ast.Module:
    """Return the syntax tree of a document's tests.

    Raises:
        UnusableTests: They have none.
    """
    try:
        return ast.parse(tests)
    except UNPARSABLE as error:
        raise UnusableTests(f"Tests that cannot be judged: the tests do not parse: {error}.") from None


def judge(
    programs: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]], job: Callable[[str, Mapping[str, Any]], Job], name: str
) -> list[list[str]]:
    """Judge every program and return, per document and program, ``{"program": text, "verdict": fields}`` as JSON for the log.

    Args:
        programs: The programs of each document.
        docs: The documents.
        job: Makes the job of a program and its document.
        name: For the progress bar.
    """
    jobs = [[job(program, doc) for program in group] for group, doc in zip(programs, docs, strict=True)]
    verdicts = judge_predictions(jobs, progress=f"{name}: run in the sandbox")
    return [
        [json.dumps({"program": p, "verdict": v.as_dict()}) for p, v in zip(group, judged, strict=True)]
        for group, judged in zip(programs, verdicts, strict=True)
    ]


def score(logged: Sequence[str], metric: str, ks: Sequence[int], prompt: str = "") -> dict[str, float]:
    """Return ``{metric: pass@k, …, "extracted": share}`` of one document.

    Args:
        logged: What `judge` returned for the document.
        metric: lm-eval's name for it, with `{}` for the k.
        ks: Every k of pass@k.
        prompt: What replies continue; a program that is this and no more is empty.
    """
    judged = [json.loads(text) for text in logged]
    passed = sum(one["verdict"]["status"] == "passed" for one in judged)
    found = sum(_extracted(one, prompt) for one in judged)
    return {metric.format(k): estimate_pass_at_k(len(judged), passed, k) for k in ks} | {"extracted": found / len(judged)}


def _extracted(one: Mapping[str, Any], prompt: str) -> bool:
    verdict = one["verdict"]
    empty = not one["program"].removeprefix(prompt).strip()
    return not empty and verdict["status"] != "syntax_error" and verdict.get("reason") not in _NOTHING_TO_RUN
