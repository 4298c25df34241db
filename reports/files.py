"""Find lm-eval result files on disk and read them as JSON, with errors that name the file and the cure."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ReportError

# `--output_path DIR` writes DIR/<model>/results_<date>.json, `--output_path x.json` writes x_<date>.json.
_RESULTS = re.compile(r"results.*\.json")
_DATED = re.compile(r".+_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?\.json")
_HOW = "lm_eval writes one with `--output_path DIR` (DIR/<model>/results_<date>.json)"
CURVES = ("curve.jsonl", "metrics.jsonl")  # of a trained adapter, of a training run


@dataclass(frozen=True)
class Found:
    """One result file.

    Attributes:
        path: the file, as the user wrote it or found below the folder that the user wrote.
        named: True if the user named this very file, False if a folder was searched.
    """

    path: Path
    named: bool


@dataclass(frozen=True)
class RawResult:
    """A result file's content: where from, the JSON object, and the sha256 of its bytes in hex."""

    found: Found
    data: dict[str, Any]
    sha256: str


def find(arguments: Sequence[str | Path]) -> list[Found]:
    """List the result files that `arguments` (files, and folders searched recursively) stand for, each once.

    Raises:
        ReportError: nothing was named, a path does not exist, or a folder holds no result file.
    """
    if not arguments:
        raise ReportError(f"No runs given: name result files, or folders that hold them. {_HOW}.")
    found: dict[Path, Found] = {}
    for argument in arguments:
        path = Path(argument)
        hits = _in_folder(path) if path.is_dir() else [Found(path, named=True)]
        for hit in hits:
            if not hit.path.exists():
                raise ReportError(f"{hit.path}: no such file or folder. Give a result file or a folder that holds some. {_HOW}.")
            known = found.get(hit.path.resolve())
            if known is None or (hit.named and not known.named):
                found[hit.path.resolve()] = hit
    return list(found.values())


def walk(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and below it but folders; through links too, each real folder once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(place, name) for name in names)


def _in_folder(folder: Path) -> list[Found]:
    files = sorted(p for p in walk(folder) if (_RESULTS.fullmatch(p.name) or _DATED.fullmatch(p.name)) and p.is_file())
    if not files and any(p.name in CURVES for p in walk(folder)):
        return []  # a training run: it has curves to show, which is enough beside results
    if not files:
        samples = any(p.match("samples_*.jsonl") for p in walk(folder))
        extra = " It holds samples_*.jsonl only: the results_*.json written beside them is missing." if samples else ""
        raise ReportError(f"{folder}: no lm-eval result file in this folder or below it.{extra} {_HOW}.")
    return [Found(p, named=False) for p in files]


def read(found: Found) -> RawResult | None:
    """Read one result file.

    Returns:
        None for a file that a folder search met, that is valid JSON, but neither lm-eval's by content nor called `results*.json`.

    Raises:
        ReportError: unreadable, not JSON, cut short, or no lm-eval result.
    """
    path = found.path
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror or error}).") from error
    data = _parse(path, blob)
    if isinstance(data, dict) and isinstance(data.get("results"), dict):
        return RawResult(found, data, hashlib.sha256(blob).hexdigest())
    if isinstance(data, dict) and "doc_id" in data:
        raise ReportError(_samples_message(path))
    if not found.named and not _RESULTS.fullmatch(path.name):
        return None
    kind = "an object without `results`" if isinstance(data, dict) else f"a JSON {type(data).__name__}"
    raise ReportError(f"{path}: not an lm-eval result file ({kind}). {_HOW}.")


def _parse(path: Path, blob: bytes) -> Any:
    if not blob.strip():
        raise ReportError(f"{path}: the file is empty. Delete it, or run the evaluation again.")
    try:
        text = blob.decode("utf-8-sig")
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        if _is_samples(blob):
            raise ReportError(_samples_message(path)) from error
        cut = isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc.rstrip()) - 1
        if cut or (isinstance(error, json.JSONDecodeError) and error.msg.startswith("Unterminated string")):
            raise ReportError(
                f"{path}: JSON cut short after {len(blob)} bytes; the run was probably stopped while writing it. "
                "Delete the file and run that evaluation again."
            ) from error
        raise ReportError(f"{path}: not JSON ({error}). Give a results_*.json. {_HOW}.") from error


def _is_samples(blob: bytes) -> bool:
    try:
        first = json.loads(blob.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "doc_id" in first


def _samples_message(path: Path) -> str:
    return f"{path}: this holds logged samples, not results. Give the results_*.json that lies beside it, or the folder."
