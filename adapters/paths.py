"""Where t2 keeps what it fetches and computes."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache root, absolute: ``$T2_CACHE``, else ``$XDG_CACHE_HOME/t2``, else ``~/.cache/t2``. Not created here."""
    if root := os.environ.get("T2_CACHE"):
        return Path(root).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "t2"
