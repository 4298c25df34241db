"""Few-shot examples, loaded when the first one is drawn.

lm-eval fetches the few-shot split when it builds a task, even for zero shots; on a machine without a hub that would fail for GSM8K
and MATH, whose train splits are in no package. So a task's YAML gives a `samples` placeholder that says where its examples live::

    fewshot_config:
      sampler: !function t2.tasks.fewshot.TrainSampler
      samples: [{dataset: gsm8k, split: train}]

The rows, their order and the generator are lm-eval's, so with the train split at hand the examples drawn are lm-eval's own.
"""

import logging
from collections.abc import Mapping
from typing import Any

from lm_eval.api.samplers import ContextSampler, FirstNSampler

from ..harness.errors import T2Error
from ..harness.fetch import FetchError
from .data import subject_rows
from .gsm8k.worked import WORKED

log = logging.getLogger(__name__)

# Examples of our own for a default that needs shots (GSM8K: five) where the train split cannot be had. Test rows are no way
# out: they would show the model solutions of questions that it is scored on.
FALLBACK: dict[str, list[dict[str, Any]]] = {"gsm8k": WORKED}


class TrainSampler(ContextSampler):
    """Draws from a train split that is loaded on first use.

    What was used is written into the placeholder under ``used``; lm-eval saves it with the task's config in the results file.
    """

    def fewshot_docs(self) -> list[dict[str, Any]]:
        """Return the rows to draw from.

        Raises:
            T2Error: the split cannot be had and the task has no examples of its own.
        """
        if not self._loaded:
            source = dict(self.df[0])
            rows, used = _rows(source)
            self.df[0]["used"] = used  # the same object as in the task's config
            self.df, self._loaded = rows, True
        return list(self.df)

    def sample(self, n: int, *args: Any, **kwargs: Any) -> Any:
        """Draw `n` rows as lm-eval does.

        Raises:
            T2Error: fewer than `n` rows, or as `fewshot_docs`.
        """
        if n > 0 and n > len(self.fewshot_docs()):
            raise T2Error(f"{n} few-shot examples asked for, but only {len(self.df)} are here. Lower --num_fewshot, or set T2_DATA_DIR.")
        return super().sample(n, *args, **kwargs)


class OthersSampler(FirstNSampler):
    """The first examples, less the one of the document that is asked for; lm-eval names that where `split` is the test split."""

    def sample(self, n: int, eval_doc: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Return the first `n` examples, or one less."""
        return [row for row in super().sample(n) if eval_doc is None or row["task_id"] != eval_doc["task_id"]]


def _rows(source: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a placeholder and a line that says what they are."""
    name, split = source["dataset"], source["split"]
    try:
        rows = subject_rows(name, split, source.get("subject"))
        return rows, f"{len(rows)} rows of the {split} split"
    except FetchError as error:
        if name not in FALLBACK:
            raise T2Error(
                f"{name}: few-shot examples come from its {split} split, which cannot be had here. "
                f"Set T2_DATA_DIR to a folder that has it, or use --num_fewshot 0. {error}"
            ) from error
        used = f"{len(FALLBACK[name])} worked examples shipped with t2, not the {split} split"
        log.warning("%s: few-shot prompts use %s. Compare scores only with runs that say the same. %s", name, used, error)
        return FALLBACK[name], used
