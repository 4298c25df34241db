"""`t2 doctor`: one screen on what works here, each missing thing with the command that gets it."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ..adapters.errors import AdapterError
from ..adapters.paths import cache_dir
from .errors import T2Error
from .fetch import datadir
from .fetch.catalog import DATASETS
from .fetch.data import locate_local
from .fetch.errors import SourceError
from .fetch.model import model_folder, problem
from .fetch.pins import BUILD_BYTES

State = Literal["ok", "missing", "optional"]
_MARK = {"ok": "ok", "missing": "MISSING", "optional": "-"}
_MAIN_DATA = ("math", "humaneval")


@dataclass(frozen=True)
class Check:
    """One line: `state` is ``ok``, ``missing`` (the main job can not run) or ``optional`` (it can); `fix` is the command to give."""

    name: str
    state: State
    detail: str
    fix: str = ""


def versions() -> Iterator[Check]:
    """Compare what is installed with what t2's own metadata asks for."""
    from packaging.requirements import Requirement

    yield Check("python", "ok", f"{platform.python_version()} ({sys.executable})")
    shown = ("torch", "transformers", "lm-eval", "peft")
    try:
        asked = [Requirement(line) for line in importlib.metadata.requires("t2") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Check("t2", "missing", "not installed, only on the path: lm_eval will not find it", "pip install -e . (in t2's checkout)")
        asked = [Requirement(name) for name in shown]
    for requirement in asked:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        plain = f"{requirement.name}{requirement.specifier}"
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(requirement.name, "missing", f"not installed, needs {plain}", f"pip install '{plain}'")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield Check(requirement.name, "missing", f"{found}, needs {plain}", f"pip install '{plain}'")
        elif requirement.name in shown:
            yield Check(requirement.name, "ok", found)


def plug_in() -> Iterator[Check]:
    """Ask lm-eval whether it knows `--model t2`."""
    importlib.import_module("lm_eval.models")  # fills the registry
    from lm_eval.api.registry import model_registry

    known = "t2" in model_registry
    fix = "" if known else "pip install --force-reinstall --no-deps -e . (in t2's checkout; its start-up hook registers the model)"
    yield Check("lm-eval plug-in", "ok" if known else "missing", "--model t2 is registered" if known else "lm-eval does not know t2", fix)


def model() -> Iterator[Check]:
    """Hash the default model's files."""
    folder = model_folder()
    if not folder.exists():
        yield Check("default model", "missing", f"not in {folder.parent}", "t2 fetch model")
    elif why := problem(folder, full=True):
        yield Check("default model", "missing", f"damaged: {why}", "t2 fetch model")
    else:
        yield Check("default model", "ok", f"SmolLM2-135M-Instruct (dense bfloat16) in {folder}")


def data() -> Iterator[Check]:
    """Say which splits of which data sets can be read without a network."""
    with suppress(SourceError):  # a T2_DATA_DIR that is no folder is told once
        datadir.find(_MAIN_DATA[0], "test")
    for name, entry in DATASETS.items():
        try:
            found = {split: locate_local(name, split) for split in entry.splits}
        except T2Error as error:
            yield Check(f"data: {name}", "missing", str(error).replace("\n", " "), "see the message")
            continue
        have = {split: "T2_DATA_DIR" if at.source == "T2_DATA_DIR" else "cache" for split, at in found.items() if at}
        lacking = [split for split, at in found.items() if not at]
        detail = ", ".join(f"{split} ({source})" for split, source in have.items()) or "nothing"
        if lacking:
            detail += f"; not {', '.join(lacking)}"
        state: State = "ok" if "test" in have else "missing" if name in _MAIN_DATA else "optional"
        yield Check(f"data: {name}", state, detail, f"t2 fetch {name}" if "test" not in have else "")


def experts() -> Iterator[Check]:
    """Read the shipped experts."""
    from ..adapters.experts import load_expert, shipped

    names, paths = [], shipped()
    for name, path in paths.items():
        try:
            load_expert(path)
        except AdapterError as error:
            yield Check("experts", "missing", str(error), "reinstall t2")
        else:
            names.append(name)
    if names:
        yield Check("experts", "ok", ", ".join(names))
    elif not paths:
        yield Check("experts", "missing", "none in this installation", "reinstall t2, or train: t2 train CONFIG")


def sandbox() -> Iterator[Check]:
    """Judge a right and a wrong program, as every scoring run does first."""
    from .sandbox import Sandbox, SandboxError, configured_kind

    try:
        Sandbox().check()
    except SandboxError as error:
        yield Check("sandbox", "missing", str(error))
    else:
        yield Check("sandbox", "ok", f"{configured_kind()} judges a right and a wrong program as it must")


def gpu() -> Iterator[Check]:
    """Look for a CUDA device."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield Check("GPU", "ok", f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB each")
    else:
        from .half_precision import is_slow, slowdown

        slow = ""
        if is_slow(torch.bfloat16):
            slow = f", bfloat16 {slowdown(torch.bfloat16):.1f} times as slowly as float32: give dtype=float32 with a model of your own"
        yield Check("GPU", "optional", f"none that torch can use; {os.cpu_count()} CPU cores do{slow}")


def vllm() -> Iterator[Check]:
    """Look for vLLM, without importing it (that takes many seconds), and for what keeps it from working."""
    from . import vllm_import

    if found := vllm_import.trouble():
        # beside companions of another build transformers' own models cannot be imported either
        state: State = "missing" if vllm_import.distribution() and vllm_import.broken_companions() else "optional"
        yield Check("vLLM", state, found[0], found[1])
        return
    name = str(vllm_import.distribution())
    yield Check("vLLM", "ok", f"{name} {importlib.metadata.version(name)}")
    if importlib.util.find_spec("ray") is None:
        yield Check("Ray", "optional", "not installed; t2-vllm's data_parallel_size needs it", "pip install ray")


def disk() -> Iterator[Check]:
    """Measure the free space where the cache is or will be."""
    folder = cache_dir()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        yield Check("disk", "missing", f"{folder} is a file, where the cache {cache_dir()} has to be a folder", "export T2_CACHE=FOLDER")
        return
    free = shutil.disk_usage(folder).free
    enough = free >= BUILD_BYTES or problem(model_folder()) is None
    fix = "" if enough else f"free {(BUILD_BYTES - free) / 1e6:,.0f} MB, or export T2_CACHE=FOLDER on another disk"
    yield Check("disk", "ok" if enough else "missing", f"{free / 1e9:,.1f} GB free for the cache {cache_dir()}", fix)


_SECTIONS: tuple[Callable[[], Iterator[Check]], ...] = (versions, plug_in, model, data, experts, sandbox, gpu, vllm, disk)


def checks() -> Iterator[Check]:
    """Run every check; one that fails in an unforeseen way becomes a line of its own and does not hide the others."""
    for section in _SECTIONS:
        try:
            yield from section()
        except T2Error as error:
            yield Check(section.__name__, "missing", str(error).replace("\n", " "), "see the message")
        except Exception as error:
            yield Check(
                section.__name__.replace("_", "-"), "missing", f"{type(error).__name__}: {error}".replace("\n", " "), "reinstall it"
            )


def main() -> int:
    """Print the checks; return 0 when `lm_eval --model t2 --tasks math,humaneval` can run here, else 1."""
    failed = 0
    for check in checks():
        print(f"{_MARK[check.state]:8} {check.name:20} {check.detail}", flush=True)
        if check.fix:
            print(f"{'':8} {'':20} get it: {check.fix}")
        failed += check.state == "missing"
    job = "lm_eval --model t2 --tasks math,humaneval"
    print(f"\n{'Ready' if not failed else f'Not ready ({failed} missing)'}: {job}")
    return 1 if failed else 0
