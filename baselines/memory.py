"""Memory of a training on a CPU."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_RETURNED, _KEPT = (2**17, 2**20), (2**26, 2**25)
"""Bytes, at the heap's free end and of a freed block, from which on they are the system's again; the second are glibc's own limits."""

_returning = False


def return_free_pages() -> None:
    """Give the heap's pages that nothing lies in any more back to the system, where this C library can.

    What is below the threshold of `return_freed_tensors` lies there: activations of a few tokens, and all keys and values of a rollout.
    """
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # musl has none
        trim(0)


def return_freed_tensors() -> bool:
    """Have tensors of a megabyte and more go back to the system when they are freed; return whether this C library can be told so.

    glibc gives back at once what it got by mmap, but raises the size from which it uses mmap, up to 32 MB, with every such block that is
    freed. Tensors below that come from the heap from then on, whose gaps no tensor of a slightly other size fills.
    """
    global _returning
    _returning = _set_thresholds(_RETURNED)
    return _returning


@contextmanager
def freed_tensors_kept() -> Iterator[None]:
    """Within the block, `return_freed_tensors` is off.

    For a rollout: each token makes every layer's keys and values anew, and would wait for their pages, zeroed by the system, each time.
    `return_free_pages` gives them back after it.
    """
    if not _returning:
        yield
        return
    _set_thresholds(_KEPT)
    try:
        yield
    finally:
        _set_thresholds(_RETURNED)


def _set_thresholds(sizes: tuple[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all([mallopt(_M_TRIM_THRESHOLD, sizes[0]), mallopt(_M_MMAP_THRESHOLD, sizes[1])])
