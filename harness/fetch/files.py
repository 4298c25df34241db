"""Writing so that a kill at any moment leaves either the old file or the new one, never half of it."""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...adapters.files import TMP_PREFIX, write_whole
from .errors import SourceError

log = logging.getLogger(__name__)


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all; makes missing folders. Call it only under a lock for `path`.

    What a killed run left behind under such a name is removed.

    Raises:
        SourceError: the disk is full or not writable.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f"{TMP_PREFIX}{path.name}.*"):
            leftover.unlink(missing_ok=True)
        write_whole(path, data)


def sync_folder(folder: Path) -> None:
    """Flush every file in `folder`, and the folder's own entries, to disk."""
    for path in [*folder.iterdir(), folder]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def replace_folder(new: Path, final: Path) -> None:
    """Put the finished folder `new` in the place of `final`; an old `final` is moved aside first, then deleted."""
    if final.exists():
        old = final.parent / f"{TMP_PREFIX}{final.name}.old{os.getpid()}"
        os.rename(final, old)
        os.rename(new, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(new, final)


@contextlib.contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder under `parent` that is gone afterwards. Call it only under `lock(parent, name)`.

    Leftovers of a killed run of the same name are removed first.
    """
    for leftover in parent.glob(f"{TMP_PREFIX}{name}.*"):
        log.warning("removing %s, left behind by a run that was killed", leftover)
        shutil.rmtree(leftover, ignore_errors=True)
    folder = parent / f"{TMP_PREFIX}{name}.{os.getpid()}"
    with writing(parent):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lock(parent: Path, name: str) -> Iterator[None]:
    """Hold the lock ``parent/.name.lock`` (advisory, ends with the process, however it ends); say so when waiting for it.

    Raises:
        SourceError: the folder can not be written to.
    """
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        file = open(parent / f".{name}.lock", "w")  # noqa: SIM115 (closed by the with below)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is fetching %s: waiting for it", name)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system that has no locks
            log.warning("%s cannot be locked (%s): see that no other t2 fetches %s there", parent, error.strerror, name)
        yield


_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file-size limit is reached",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "the disk is read-only",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
}


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk, a quota, a file-size limit or missing permission into a SourceError that says where and what to do.

    Libraries written in Rust (safetensors, tokenizers) raise exceptions of their own that end in ``(os error 28)``.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
            number = int(match[1])
        if number not in _REASONS:
            raise
        raise SourceError(full_message(folder, _REASONS[number])) from error


def full_message(folder: Path, why: str = "the disk is full") -> str:
    """Return the sentence for a disk that takes no more, with the free space and the setting that moves the cache."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e6
    return f"{why} at {folder} ({free:,.0f} MB free): make room, or set T2_CACHE to another folder"


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise a SourceError when `folder`'s disk has less than `size` bytes free: better before the download than in its middle."""
    if shutil.disk_usage(folder).free < size:
        raise SourceError(full_message(folder, f"{what} needs {size / 1e6:,.0f} MB, which do not fit"))
