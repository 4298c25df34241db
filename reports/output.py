"""Where a report goes."""

import contextlib
import os
from pathlib import Path

from .errors import ReportError


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one; makes missing folders.

    Raises:
        ReportError: no permission, disk full, or a folder of that name.
    """
    target = path.resolve()  # through links: the link stays, its file is replaced
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(data)  # a device or pipe (/dev/stdout) cannot be replaced
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise ReportError(f"{path}: the report cannot be written ({error.strerror or error}). Choose another --output.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
