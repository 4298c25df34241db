"""One process or several (`accelerate launch`): who does what, and how results come together."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from ..adapters.memory import begin_peak, peak_memory

T = TypeVar("T")


class Processes:
    """The processes of this run; of a plain start there is one.

    Work is dealt out by chunk, chunk i to process i mod n, and every chunk has its own seed: so what is sampled does not depend on n.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        gpu = torch.cuda.is_available()
        of_rank = PartialState(cpu=not gpu).device if self.count > 1 else None
        self.device: torch.device = torch.device(of_rank or ("cuda" if gpu else "cpu"))
        begin_peak(self.device)  # another run of this process may have used more

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def mine(self, chunks: Sequence[T]) -> list[T]:
        """Return this process's chunks."""
        return list(chunks[self.rank :: self.count])

    def together(self, results: list[T]) -> list[T]:
        """Return the results of all processes' chunks, in the order of the chunks, to every process."""
        if self.count == 1:
            return results
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, results)
        return [parts[i % self.count][i // self.count] for i in range(sum(map(len, parts)))]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up the gradients of all processes, in place."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def peak_memory(self) -> int:
        """Return the most memory held, in bytes: of the GPU since this run's start if there is one, else by this process, resident."""
        return peak_memory(self.device) or 0

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.count > 1:
            dist.barrier()


def first_only(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method of an object with `processes` do nothing but in the first process."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.processes.first:
            method(self, *args, **kwargs)

    return wrapped
