"""How slow half precision is on this CPU: without instructions for it, several times as slow as float32."""

import functools
import logging
import time

import torch
import torch.nn.functional as F

log = logging.getLogger("t2")

SLOW = 3.0
"""From so many times the seconds of float32 on, half precision is avoided; without instructions for it, it takes more."""


@functools.cache
def slowdown(dtype: torch.dtype) -> float:
    """Return the seconds of a matrix product on the CPU in `dtype`, over those in float32; measured once, in a few hundredths of a second.

    Of the default model's size: 64 tokens, 576 by 576 weights; the best of ten each, taken in turn.
    """
    best = {dtype: float("inf"), torch.float32: float("inf")}
    pairs = {kind: (torch.ones(64, 576, dtype=kind), torch.ones(576, 576, dtype=kind)) for kind in best}
    with torch.inference_mode():
        for _ in range(10):
            for kind, (tokens, weight) in pairs.items():
                start = time.perf_counter()
                F.linear(tokens, weight)
                best[kind] = min(best[kind], time.perf_counter() - start)
    return best[dtype] / best[torch.float32]


def is_slow(dtype: torch.dtype) -> bool:
    """Return whether a model of `dtype` on the CPU would be much faster in float32."""
    return dtype in (torch.bfloat16, torch.float16) and slowdown(dtype) >= SLOW


def tell_if_slow(device: torch.device | str, dtype: torch.dtype) -> None:
    """Warn where a model of `dtype` on `device` would be much faster in float32."""
    if torch.device(device).type == "cpu" and is_slow(dtype):
        times, name = slowdown(dtype), str(dtype).removeprefix("torch.")
        log.warning("This CPU takes %.1f times as long for a matrix product in %s as in float32: dtype=float32 is faster.", times, name)


def for_default_model() -> dict[str, str]:
    """Return the ``dtype`` that the default model, whose own is bfloat16, is loaded in on the CPU; nothing where it is its own."""
    if not is_slow(torch.bfloat16):
        return {}
    times = slowdown(torch.bfloat16)
    log.info("The default model is loaded in float32: in bfloat16 this CPU takes %.1f times as long for a matrix product.", times)
    return {"dtype": "float32"}
