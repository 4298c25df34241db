"""What a mixture scores on the few-shot documents, judged by the task's own filter and metric."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...adapters.mixture import Mixture
from ...adapters.search import Outcome
from ..errors import T2Error, nearest
from ..two_pass import TwoPass
from .documents import Prepared


@dataclass(frozen=True)
class Metric:
    """A task's 0/1 metric, and the filter whose output it judges."""

    name: str
    filter: str

    def __str__(self) -> str:
        return f"{self.name},{self.filter}"


class Judge:
    """Scores mixtures on prepared documents.

    Under `t2` on a GPU, where a step of generation takes as long for hundreds of rows as for ten, a batch holds rows of several mixtures,
    as many as `batch_size` has room for. Elsewhere, and where a task samples or is multiple choice, the mixtures' weights are merged in
    turn.

    Args:
        lm: model `t2` or `t2-vllm` with a bank.
        prepared: the requests.
        metric: ``name`` or ``name,filter`` of lm-eval; None for the first metric, after the filter ``flexible-extract`` if the task has it,
            else its first.
        batch_size: rows a batch.

    Raises:
        T2Error: the tasks have no such filter.

    Attributes:
        documents: how many.
        tokens_out: tokens generated so far, as `Reply.tokens` counts them.
        at_once: mixtures that share a batch.
    """

    def __init__(self, lm: Any, prepared: Sequence[Prepared], metric: str | None = None, batch_size: int = 32) -> None:
        self._lm, self._prepared, self._batch_size = lm, prepared, batch_size
        wanted, _, wanted_filter = (metric or "").partition(",")
        self._metric, self.documents, self.tokens_out = wanted or None, sum(len(part.places) for part in prepared), 0
        self._filters = [_filter(part.task, wanted_filter or None) for part in prepared]
        together = _is_wide(lm.device) and all(_is_greedy(part) for part in prepared)
        self.at_once = max(batch_size // max(self.documents, 1), 1) if together else 1

    @property
    def metric(self) -> Metric:
        """What judges; its name is known once something was evaluated."""
        return Metric(self._metric or "?", self._filters[0].name)

    def outcomes(self, mixtures: Iterable[Mixture], merged: bool = False) -> Iterator[Outcome]:
        """Yield the outcome of each mixture as it comes; the base weights are back when the iterator is closed or done.

        Args:
            mixtures: to score.
            merged: one after the other in merged weights, as they will answer, also where a batch has room for several.

        Raises:
            T2Error: the metric is not 0 or 1 for each document, or there is none of that name.
        """
        rest, at_once = iter(mixtures), 1 if merged else self.at_once
        try:
            while group := list(itertools.islice(rest, at_once)):
                yield from [self._alone(group[0])] if at_once == 1 else self._together(group)
        finally:
            self._lm.apply_mixture(Mixture.base())

    def _alone(self, mixture: Mixture) -> Outcome:
        self._lm.apply_mixture(mixture)
        torch.manual_seed(0)  # a task that samples draws the same numbers for every mixture, and again in a resumed search
        return self._outcome(
            [self._choose(part.instances) if _is_choice(part) else self._generate(part.instances) for part in self._prepared]
        )

    def _together(self, mixtures: list[Mixture]) -> list[Outcome]:
        n = len(mixtures)
        answers = [self._generate([i for i in part.instances for _ in mixtures], mixtures * len(part.instances)) for part in self._prepared]
        return [self._outcome([part[k::n] for part in answers]) for k in range(n)]

    def _outcome(self, answered: list[list[tuple[Any, float, int]]]) -> Outcome:
        """Judge a mixture's answers to the instances of every part."""
        correct = [False] * self.documents
        likelihood, tokens = 0.0, 0
        for part, chosen, answers in zip(self._prepared, self._filters, answered, strict=True):
            for doc_id, right in enumerate(self._judge(part, chosen, [answer[0] for answer in answers])):
                correct[part.places[doc_id]] = right
                if not right:
                    continue
                own = [(a, i) for a, i in zip(answers, part.instances, strict=True) if i.doc_id == doc_id]
                best = self._own_answer(own)[0] if _is_choice(part) else own[0][0]
                if not math.isfinite(best[1]):  # of logits that are NaN any answer is the likeliest
                    correct[part.places[doc_id]] = False
                    continue
                likelihood, tokens = likelihood + best[1], tokens + best[2]
        return Outcome(tuple(correct), likelihood, tokens)

    def _generate(self, instances: list[Any], mixtures: list[Mixture] | None = None) -> list[tuple[Any, float, int]]:
        replies = self._lm.replies(instances, self._batch_size, mixtures)
        self.tokens_out += sum(reply.tokens for reply in replies)
        return [(reply.text, reply.log_likelihood, reply.tokens) for reply in replies]

    def _choose(self, instances: list[Any]) -> list[tuple[Any, float, int]]:
        # lm-eval's own method, below the two passes: the weights are in place
        below: Any = super(TwoPass, self._lm)
        found = below.loglikelihood(instances, disable_tqdm=True)
        lengths = [len(self._lm.tok_encode(i.args[1], add_special_tokens=False)) for i in instances]
        return [(answer, answer[0], max(n, 1)) for answer, n in zip(found, lengths, strict=True)]

    def _own_answer(self, options: list[tuple[tuple[Any, float, int], Any]]) -> tuple[tuple[Any, float, int], Any]:
        """Return the option that the model chose: the likeliest; under ``acc_norm`` lm-eval divides by the number of characters."""
        normed = self._metric == "acc_norm"
        return max(options, key=lambda o: o[0][1] / max(len(o[1].args[1].lstrip()), 1) if normed else o[0][1])

    def _judge(self, part: Prepared, chosen: Any, answers: list[Any]) -> list[bool]:
        for instance, answer in zip(part.instances, answers, strict=True):
            instance.resps, instance.filtered_resps = [answer], {}
        chosen.apply(part.instances)
        right = []
        for doc_id in range(len(part.places)):
            own = [instance for instance in part.instances if instance.doc_id == doc_id]
            scores = part.task.process_results(own[0].doc, [instance.filtered_resps[chosen.name] for instance in own])
            self._metric = self._metric or next(iter(scores))
            if self._metric not in scores:
                raise T2Error(f"Task {part.task.config.task!r} has no metric {self._metric!r}.{nearest(self._metric, scores)}")
            value = scores[self._metric]
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                others = ", ".join(name for name in scores if name != self._metric)
                raise T2Error(
                    f"The metric {self._metric!r} of task {part.task.config.task!r} gave {value!r}; few-shot search counts right answers "
                    f"and needs 0 or 1. Name another with --metric{': ' + others if others else ''}."
                )
            right.append(bool(value))
        return right


def _is_wide(device: torch.device) -> bool:
    """Return whether a forward pass takes about as long for hundreds of rows as for ten."""
    return device.type == "cuda"


def _is_choice(part: Prepared) -> bool:
    return part.task.OUTPUT_TYPE == "multiple_choice"


def _is_greedy(part: Prepared) -> bool:
    """Return whether each of the part's replies is the one that a single row decides: no sampling."""
    options = [instance.args[1] for instance in part.instances if not _is_choice(part)]
    return bool(options) and not any(o.get("do_sample") or o.get("temperature") for o in options)


def _filter(task: Any, name: str | None) -> Any:
    by_name = {ensemble.name: ensemble for ensemble in task._filters}
    chosen = name or ("flexible-extract" if "flexible-extract" in by_name else next(iter(by_name)))
    if chosen not in by_name:
        raise T2Error(f"Task {task.config.task!r} has no filter {chosen!r}.{nearest(chosen, by_name)}")
    return by_name[chosen]
