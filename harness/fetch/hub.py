"""The hub as a source, for data sets and for the default model's GGUF file; its local cache is used even when it does not answer."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from . import pins
from .catalog import DATASETS, Row
from .errors import SourceError
from .files import writing
from .network import hub_blocked
from .rows import normalise


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no details'}"


@contextlib.contextmanager
def _only_cached() -> Iterator[None]:
    """Let `datasets` look only into its own cache, as HF_HUB_OFFLINE=1 would have if set before the import."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _in_hf_cache(repo: str) -> bool:
    """Look for what `load_dataset` may have left, without importing `datasets`, which takes seconds."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()
    owner, _, name = repo.partition("/")
    return (cache / f"{owner}___{name.lower()}").is_dir()  # as `datasets` names it


def rows(dataset: str, split: str) -> tuple[list[Row], str]:
    """Return the rows of a split and a name for where they came from.

    Raises:
        SourceError: the hub does not answer and its local cache has no copy, or what it gave has other fields.
    """
    spec = DATASETS[dataset].hub
    blocked = hub_blocked()
    if blocked and not _in_hf_cache(spec.repo):
        raise SourceError(f"{spec.repo}: {blocked}")
    from datasets import load_dataset

    try:
        with _only_cached() if blocked else contextlib.nullcontext():
            parts = [load_dataset(spec.repo, config, split=split) for config in spec.configs]
        found = [normalise(dataset, row) for part in parts for row in part]
    except Exception as error:  # whatever its many layers raise: it is one source of several
        raise SourceError(f"{spec.repo}: {_reason(error)}") from error
    return found, f"hub cache, {spec.repo}" if blocked else f"hub, {spec.repo}"


def gguf(to: Path) -> str:
    """Copy the default model's GGUF file from the hub, or its local cache, to `to`; return a name for where it came from.

    The sha256 is the caller's to check.

    Raises:
        SourceError: the hub does not answer and its local cache has no copy.
    """
    from huggingface_hub import hf_hub_download

    blocked = hub_blocked()
    try:
        found = hf_hub_download(pins.GGUF_REPO, pins.GGUF_FILE, revision=pins.GGUF_REVISION, local_files_only=blocked is not None)
    except Exception as error:  # as above
        raise SourceError(f"{pins.GGUF_REPO}: {blocked or _reason(error)}") from error
    with writing(to.parent):
        shutil.copyfile(found, to)
    return f"{'hub cache' if blocked else 'hub'}, {pins.GGUF_REPO}"
