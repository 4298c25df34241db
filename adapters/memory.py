"""How much memory is free, for what is kept only where there is room for it, and how much was in use at most."""

import sys

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on `device`; the host's for any device but CUDA."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch keeps what was freed
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


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
