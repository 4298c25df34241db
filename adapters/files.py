"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path

TMP_PREFIX = ".tmp-"
"""How names of temporary files begin; a killed process may leave one behind."""


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, in a folder that exists: whatever happens at whatever moment, the old file is there or the new one.

    Raises:
        OSError: it cannot be written; the old file stays, the temporary one is removed.
    """
    temporary = path.with_name(f"{TMP_PREFIX}{path.name}.{secrets.token_hex(8)}")  # containers that share a cache share process ids too
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
