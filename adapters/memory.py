"""How much memory is free, for what is kept only where there is room for it."""

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on `device`; the host's for any device but CUDA."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
