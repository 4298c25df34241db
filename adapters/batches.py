"""Rows of tokens in batches of like length, halved where memory runs out."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from tqdm import tqdm

logger = logging.getLogger("t2.dispatch")

DEFAULT_BATCH = 16

T = TypeVar("T")


def in_batches(
    act: Callable[[list[list[int]]], Sequence[T]], rows: Sequence[list[int]], batch_size: int | None = None, progress: bool = False
) -> list[T]:
    """Run `act` on batches of rows of like length, longest first, and return the answers in the order of `rows`.

    Args:
        act: rows → an answer for each.
        rows: token ids.
        batch_size: rows at once; None tries 16. Halved when memory runs out.
        progress: show a progress bar.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    found: dict[int, T] = {}
    size, at = batch_size or DEFAULT_BATCH, 0
    bar = tqdm(total=len(rows), desc="Pass 1: choosing experts", disable=not progress)
    while at < len(order):
        batch = order[at : at + size]
        try:
            answers = act([rows[i] for i in batch])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, min(size, len(batch)) // 2)
            torch.cuda.empty_cache()
            logger.warning("Out of memory in pass 1; going on with batches of %d.", size)
            continue
        found.update(zip(batch, answers, strict=True))
        at += len(batch)
        bar.update(len(batch))
    bar.close()
    return [found[i] for i in range(len(rows))]
