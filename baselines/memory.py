"""Memory of a training on a CPU."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_RETURNED, _KEPT = (2**20, 2**17), (2**25, 2**26)
"""Bytes of a freed block, and at the heap's free end, from which on they are the system's again; the second are glibc's own limits."""

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
    _returning = _return_from(*_RETURNED)
    return _returning


@contextmanager
def freed_tensors_kept(size: int) -> Iterator[None]:
    """Within the block, `return_freed_tensors` is off for tensors of up to `size` bytes.

    For a rollout: each token makes every layer's keys and values anew, and would wait for their pages, zeroed by the system, each time.
    `return_free_pages` gives them back after it.
    """
    if not _returning or size <= _RETURNED[0]:
        yield
        return
    _return_from(min(size, _KEPT[0]), _KEPT[1])
    try:
        yield
    finally:
        _return_from(*_RETURNED)


def _return_from(block: int, end: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all([mallopt(_M_TRIM_THRESHOLD, end), mallopt(_M_MMAP_THRESHOLD, block)])
