"""Where t2 keeps what it fetched."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache root: ``$T2_CACHE``, else ``$XDG_CACHE_HOME/t2``, else ``~/.cache/t2``. Not created here."""
    if chosen := os.environ.get("T2_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache").absolute() / "t2"
