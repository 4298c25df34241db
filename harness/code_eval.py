"""pass@k of generated programs, judged in the sandbox: the shape of Hugging Face's `code_eval`, without running code in this process."""

import logging
from collections import Counter
from collections.abc import Sequence
from math import comb

from .errors import T2Error
from .sandbox import Job, Sandbox, Verdict

logger = logging.getLogger(__name__)


def estimate_pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples, drawn without replacement from n of which c are right, is right.

    The unbiased estimator of the HumanEval paper (Chen et al. 2021, equation 1): 1 - C(n - c, k) / C(n, k).

    Raises:
        T2Error: Not 0 ≤ c ≤ n or not 1 ≤ k ≤ n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise T2Error(f"pass@{k} needs 1 <= k <= n samples and 0 <= right ones <= n; got n={n}, right={c}.")
    return 1.0 - comb(n - c, k) / comb(n, k)


def judge_predictions(jobs: Sequence[Sequence[Job]], sandbox: Sandbox | None = None, progress: bool | str = False) -> list[list[Verdict]]:
    """Judge several candidates for each of several documents, all in parallel, and return the verdicts in the same shape.

    Raises:
        SandboxUnavailable: The machine cannot judge.
        UnusableTests: The tests of a document cannot be judged.
    """
    flat = (sandbox or Sandbox()).judge_many([job for group in jobs for job in group], progress=progress)
    if flat:
        logger.info("sandbox: %s", ", ".join(f"{count} {status}" for status, count in Counter(v.status for v in flat).most_common()))
    rest = iter(flat)
    return [[next(rest) for _ in group] for group in jobs]


def pass_at_k(
    references: Sequence[str],
    predictions: Sequence[Sequence[str]],
    k: int | Sequence[int] = (1,),
    *,
    entry_points: Sequence[str | Sequence[str] | None] | None = None,
    sandbox: Sandbox | None = None,
    progress: bool | str = False,
) -> dict[str, float]:
    """Mean pass@k over documents, as ``{"pass@1": 0.25, …}``; usable as a metric of an lm-eval task.

    Args:
        references: Test program of each document.
        predictions: Candidate programs of each document.
        k: One or several k; as in `code_eval`, a k larger than some document's number of candidates is left out.
        entry_points: What each document's tests take from the candidate; see `t2.harness.sandbox.Job`.
        sandbox: None makes one with default limits.
        progress: Show a bar; a text names it.

    Raises:
        T2Error: References and predictions differ in number, or there are none.
        SandboxUnavailable: The machine cannot judge; never a score.
    """
    if len(references) != len(predictions) or not references or (entry_points and len(entry_points) != len(references)):
        raise T2Error(f"pass@k needs as many predictions as references, at least one; got {len(predictions)} and {len(references)}.")
    entries = entry_points or [None] * len(references)
    jobs = [[Job(c, tests, entry) for c in group] for tests, group, entry in zip(references, predictions, entries, strict=True)]
    verdicts = judge_predictions(jobs, sandbox, progress)
    fewest = min(len(group) for group in verdicts)
    wanted = [n for n in ([k] if isinstance(k, int) else k) if n <= fewest]
    return {f"pass@{n}": sum(estimate_pass_at_k(len(g), sum(v.passed for v in g), n) for g in verdicts) / len(verdicts) for n in wanted}
