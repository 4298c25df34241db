"""Benchmark data that the user already has: the folder ``T2_DATA_DIR``."""

import gzip
import json
import os
import zlib
from pathlib import Path

from ..errors import T2Error
from .catalog import Row, encode
from .errors import SourceError
from .rows import MBPP_SPLITS, normalise

_ARC = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}
_FILES = {
    "math500": "math/math500.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl",
    "humaneval_plus": "humaneval/HumanEvalPlus-OriginFmt.jsonl",
    "mbpp": "mbpp/mbpp.jsonl",
    "mbpp_plus": "mbpp/MbppPlus-OriginFmt.jsonl",
}
_ARC_SPLITS = {"train": "Train", "validation": "Dev", "test": "Test"}


def relative_path(dataset: str, split: str) -> str:
    """Return where ``T2_DATA_DIR`` has a split; the same file with ``.gz`` appended does as well."""
    if dataset in _ARC:
        return f"arc/{_ARC[dataset]}/{_ARC[dataset]}-{_ARC_SPLITS[split]}.jsonl"
    return _FILES.get(dataset, f"{dataset}/{split}.jsonl")


def find(dataset: str, split: str) -> Path | None:
    """Return the file of a split in ``T2_DATA_DIR``, or None when the variable is not set.

    Raises:
        SourceError: the folder does not have this file.
        T2Error: ``T2_DATA_DIR`` is no folder.
    """
    if not (root := os.environ.get("T2_DATA_DIR")):
        return None
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise T2Error(f"T2_DATA_DIR={root} is not a folder. Unset it, or set it to a folder laid out as docs/data.md says.")
    path = folder / relative_path(dataset, split)
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise SourceError(f"{path} does not exist")


def read(path: Path, dataset: str, split: str) -> list[Row]:
    """Return the rows of a file in ``T2_DATA_DIR``.

    Raises:
        T2Error: the file is unreadable, a line is no JSON or lacks a field (names file and line), or there is no row.
    """
    rows = []
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise T2Error(f"{path}: can not be read ({error}). Put a whole copy there, or unset T2_DATA_DIR.") from error
    for number, line in enumerate(data.split(b"\n"), start=1):  # not splitlines: it cuts at characters that JSON allows in text
        if not line.strip():
            continue
        try:
            row = normalise(dataset, json.loads(line))
            encode([row])
        except (ValueError, RecursionError) as error:
            raise T2Error(f"{path}, line {number}: {error}. Expected a row of {dataset} as docs/data.md describes it.") from error
        if dataset != "mbpp" or row["task_id"] in MBPP_SPLITS[split]:
            rows.append(row)
    if not rows:
        raise T2Error(f"{path} has no rows of {dataset}/{split}.")
    return rows
