"""Where adapters keep what they compute: the same cache root as the rest of t2, resolved without importing it."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return ``$T2_CACHE``, else ``$XDG_CACHE_HOME/t2``, else ``~/.cache/t2`` (not created)."""
    if root := os.environ.get("T2_CACHE"):
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "t2"
