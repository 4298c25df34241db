"""How much memory is free, for what is kept only where there is room for it, and how much was in use at most."""

import sys
from pathlib import Path

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_FILES = (("memory.max", "memory.current", "memory.stat"),
          ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"))  # fmt: skip
"""Limit, use, and what is in use, of version 2 and of version 1."""


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on `device`; the host's, or its container's, for any device but CUDA."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch keeps what was freed
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *_left_to_container()])


def _left_to_container() -> list[int]:
    """Return the bytes that a container's limit leaves; none where there is no limit. What is cached of files makes room when it must."""
    left = []
    for names in _FILES:
        try:
            limit, used, told = ((_CGROUPS / name).read_text() for name in names)
            stat = dict(line.split() for line in told.splitlines())
            cached = stat.get("total_inactive_file") or stat.get("inactive_file") or 0  # of version 1 the total has that of groups within
            left.append(max(int(limit) - int(used) + int(cached), 0))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return left


def begin_peak(device: torch.device | str) -> None:
    """Have `peak_memory` count from now on; on a CUDA or XPU device only, for a process has one peak."""
    kind = torch.device(device).type
    if kind in ("cuda", "xpu") and getattr(torch, kind).is_initialized():
        getattr(torch, kind).reset_peak_memory_stats(device)


def peak_memory(device: torch.device | str) -> int | None:
    """Return the most bytes that were in use at once: PyTorch's on a CUDA or XPU device, this process's for a model on the CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if kind == "xpu":
        return torch.xpu.max_memory_allocated(device)
    if kind != "cpu" or sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
