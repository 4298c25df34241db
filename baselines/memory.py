"""Memory of a training on a CPU."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_THRESHOLD = 2**20  # bytes


def return_free_pages() -> None:
    """Give the heap's pages that nothing lies in any more back to the system, where this C library can.

    What is below the threshold of `return_freed_tensors` lies there: keys and values of short replies, activations of a few tokens.
    """
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # musl has none
        trim(0)


def return_freed_tensors() -> bool:
    """Have tensors of a megabyte and more go back to the system when they are freed; return whether this C library can be told so.

    glibc gives back at once what it got by mmap, but raises the size from which it uses mmap, up to 32 MB, with every such block that is
    freed. Tensors below that come from the heap from then on, whose gaps no tensor of a slightly other size fills: the keys and values of a
    rollout grow by one token a step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD))
