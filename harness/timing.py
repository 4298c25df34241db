"""What the two passes cost, per task: the numbers under the key ``t2`` of lm-eval's results."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import torch


class PassCost(TypedDict):
    """One pass over one task's prompts.

    Attributes:
        seconds: wall-clock, the device synchronised before and after. One call of the model serves several tasks at once; its seconds are
            then split among them (see `shares`), so that they add up to what was measured.
        prompts: prompts in pass 1: distinct contexts; in pass 2: requests, of which a multiple-choice question has one per option.
        tokens_in: tokens read. Pass 1: without the instruction that all prompts share. Pass 2: context and, if scored, continuation.
        tokens_out: tokens of the replies (pass 1) or answers (pass 2), after cutting at stop sequences and without thoughts; 0 where
            nothing is generated.
        switches: changes of the model's weights, each counted for the first task that it served; the way back to the base weights for
            the last one.
    """

    seconds: float
    prompts: int
    tokens_in: int
    tokens_out: int
    switches: int


class TaskCost(TypedDict):
    """Both passes over one task.

    Attributes:
        pass1, pass2: what they cost.
        chosen: mixture → documents that it answered.
        categories: category → documents that pass 1 gave it; empty where none ran.
        unreadable: documents among those of ``others`` because a reply named no category.
    """

    pass1: PassCost
    pass2: PassCost
    chosen: dict[str, int]
    categories: dict[str, int]
    unreadable: int


class T2Results(TypedDict):
    """The key ``t2`` of lm-eval's results.

    Attributes:
        schema: of this dict; raised when a field changes its meaning.
        strategy: as in the model arguments.
        dispatch: form of pass 1 and its settings; None where no pass 1 runs.
        calibrate: whether scores were calibrated; None where no scores are taken.
        experts: name → sha256 of its weights file.
        parameters: name → how many trained numbers the expert has.
        base: fingerprint of the base model's weights.
        probe: sha256 of the probe's weights file; None where none is used.
        passes: task → costs.
        confusion: expert that tasks are for (``t2_domain`` in their metadata) → category → documents; None where no pass 1 ran or no
            task says.
        mixture: of a mixture file (`MixtureFile.facts`); None without one.
        contaminated: task → ids of evaluated documents that the mixture's α were chosen on; empty for a clean score.
        sandbox: what generated code has run in since the evaluation began; None where none ran.
        peak_memory: bytes, in this evaluation on the device of the model, or of this process ever where that is the CPU; None where it
            cannot be told.
    """

    schema: int
    strategy: str
    dispatch: str | None
    calibrate: bool | None
    experts: dict[str, str]
    parameters: dict[str, int]
    base: str
    probe: str | None
    passes: dict[str, TaskCost]
    confusion: dict[str, dict[str, int]] | None
    mixture: dict[str, Any] | None
    contaminated: dict[str, list[int]]
    sandbox: str | None
    peak_memory: int | None


SCHEMA = 1
Pass = Literal["pass1", "pass2"]


@dataclass
class Share:
    """What one prompt adds to its task: tokens, and its weight in splitting the seconds."""

    task: str
    tokens_in: int
    tokens_out: int
    weight: float


def shares(tasks: Sequence[str], tokens_in: Sequence[int], tokens_out: Sequence[int], generated: bool) -> list[Share]:
    """Return each prompt's share in the seconds of a call.

    In proportion to the tokens generated (at least one each) where the model generates, to the tokens read where it only scores: an
    estimate where one call serves several tasks, and exact where it serves one.
    """
    weights = [max(n, 1) for n in (tokens_out if generated else tokens_in)]
    return [Share(t, i, o, w) for t, i, o, w in zip(tasks, tokens_in, tokens_out, weights, strict=True)]


@dataclass
class Costs:
    """Adds up what the passes cost."""

    tasks: dict[str, TaskCost] = field(default_factory=dict)

    def task(self, name: str) -> TaskCost:
        """Return the costs of a task, zero at first."""
        return self.tasks.setdefault(name, TaskCost(pass1=_nothing(), pass2=_nothing(), chosen={}, categories={}, unreadable=0))

    def add(self, which: Pass, seconds: float, switches: int, prompts: Sequence[Share]) -> None:
        """Add one measured call; its switches count for the task of the first of `prompts`."""
        total = sum(p.weight for p in prompts)
        for p in prompts:
            cost = self.task(p.task)[which]
            cost["seconds"] += seconds * (p.weight / total if total else 1 / len(prompts))
            cost["prompts"] += 1
            cost["tokens_in"] += p.tokens_in
            cost["tokens_out"] += p.tokens_out
        if prompts:
            self.task(prompts[0].task)[which]["switches"] += switches

    def choose(self, task: str, mixture: str) -> None:
        """Count one request of `task` answered by `mixture`."""
        chosen = self.task(task)["chosen"]
        chosen[mixture] = chosen.get(mixture, 0) + 1

    def label(self, task: str, category: str, readable: bool) -> None:
        """Count one document of `task` that pass 1 gave a category."""
        cost = self.task(task)
        cost["categories"][category] = cost["categories"].get(category, 0) + 1
        cost["unreadable"] += not readable

    @classmethod
    def merged(cls, ranks: Sequence[Mapping[str, TaskCost]]) -> "Costs":
        """Join the costs of processes that ran side by side: counts add up, seconds are the slowest process's."""
        joined = cls()
        for tasks in ranks:
            for name, cost in tasks.items():
                total = joined.task(name)
                for which in ("pass1", "pass2"):
                    one, all_ = cost[which], total[which]
                    all_["seconds"] = max(all_["seconds"], one["seconds"])
                    for key in ("prompts", "tokens_in", "tokens_out", "switches"):
                        all_[key] += one[key]
                for key in ("chosen", "categories"):
                    total[key] = dict(sorted((Counter(total[key]) + Counter(cost[key])).items()))
                total["unreadable"] += cost["unreadable"]
        return joined


class Stopwatch:
    """Seconds between start and end of a ``with`` block, with the device's queue of work done at both."""

    def __init__(self, device: Any) -> None:
        self._wait = _waiter(torch.device(device))
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator["Stopwatch"]:
        """Measure the block."""
        self._wait()
        start = time.perf_counter()
        try:
            yield self
        finally:
            self._wait()
            self.seconds = time.perf_counter() - start


def _waiter(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    if device.type == "xpu":
        return lambda: torch.xpu.synchronize(device)
    return lambda: None


def _nothing() -> PassCost:
    return PassCost(seconds=0.0, prompts=0, tokens_in=0, tokens_out=0, switches=0)
