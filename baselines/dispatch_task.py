"""The dispatch task: which expert does a prompt need? For training a classifier expert (the paper's strategy B)."""

from typing import Any

from ..tasks.dispatch.items import correct, prompt, solution
from ..tasks.training import TrainTask, each
from .probe_prompts import labelled_prompts

_OF_EACH = 374  # MBPP's train split, the smallest: no document comes twice, in training and in validation


def _rows() -> list[dict[str, Any]]:
    """Return as many train-split prompts of each expert, labelled, in the forms in which lm-eval's tasks ask.

    The paper's reference code trains on test prompts here, and is judged on them.

    Raises:
        FetchError: a train split cannot be had.
    """
    return [{"question": question, "label": label} for label, question, _ in labelled_prompts(_OF_EACH, seed=0)]


DISPATCH = TrainTask("mbpp+gsm8k+math+arc", prompt, each(correct), max_new_tokens=16, solution=solution, rows=_rows)
