"""Logged samples (`lm_eval --log_samples`): streamed line by line, of which a few bytes a document are kept.

A line holds the document, the prompt, the model's whole reply; a report needs the score and which document it is of. About 24 bytes a
document stay in memory, so a million of them are 24 MB, however large the files.
"""

import hashlib
import json
import math
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .load import Run
from .metrics import Key

# lm-eval writes the results as NAME_<date>.json, each task's samples as samples_<task>_<date>.jsonl beside it.
DATE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Samples:
    """What is kept of one task's samples in one run.

    Attributes:
        ids: lm-eval's `doc_id` of each document, in the file's order.
        hashes: first 64 bits of its `doc_hash`; 0 where the file has none.
        values: its score by the metric that was asked for.
        categories: how many documents pass 1 put into which category; empty where there was no pass 1.
        problem: why the scores cannot be used, naming file and line; None if they can.
        missing: True if there is no file at all, which is no fault.
        pooled: True if the metric is made of all documents at once, as a perplexity is, so that none has a score of its own: no fault.
    """

    ids: array = field(default_factory=lambda: array("q"))
    hashes: array = field(default_factory=lambda: array("Q"))
    values: array = field(default_factory=lambda: array("d"))
    categories: Counter[str] = field(default_factory=Counter)
    problem: str | None = None
    missing: bool = False
    pooled: bool = False

    @property
    def usable(self) -> bool:
        """Whether there are scores, all of them sound."""
        return self.problem is None and len(self.ids) > 0


def samples_file(run: Run, task: str) -> Path | None:
    """Return the file of a task's samples beside a result file, None if there is none."""
    path = run.raw.found.path
    dated = DATE.search(path.name)
    # A file that was renamed has lost its date; then the only samples beside it are its own.
    names = [f"samples_{task}_{dated.group(1)}.jsonl"] if dated else []
    names.append(f"samples_{task}.jsonl")
    try:
        # A task's name is text from a file: with a slash in it, it names no file beside the results.
        return next((path.parent / name for name in names if "/" not in task and (path.parent / name).is_file()), None)
    except OSError:  # a name longer than file systems take
        return None


def read_samples(run: Run, task: str, key: Key) -> Samples:
    """Stream one task's samples.

    Args:
        run: whose result file lies beside them.
        task: a leaf task.
        key: metric and filter.

    Returns:
        What was found; a file that is cut short, or scores that are no numbers, are told in `problem`, never raised: the run's own
        score stands in its result file.
    """
    found = Samples()
    path = samples_file(run, task)
    if path is None:
        found.missing = True
        return found
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                problem = _take(found, line, key)
                if problem:
                    found.problem = f"{path}, line {number}: {problem}"
                if problem or found.pooled:
                    return found
    except OSError as error:
        found.problem = f"{path}: cannot be read ({error.strerror or error})"
        return found
    if not found.ids:
        found.problem = f"{path}: no sample has the metric {','.join(key)}"
    elif (twice := _repeated(found.ids)) is not None:
        found.problem = f"{path}: document {twice} occurs twice; the file was probably appended to by a second run"
    return found


def _take(found: Samples, line: bytes, key: Key) -> str | None:
    """Add one line; return what is wrong with it."""
    if not line.strip():
        return None
    try:
        sample = json.loads(line)
    except (ValueError, RecursionError):
        cut = not line.endswith(b"\n")
        return "JSON cut short; the run was probably stopped while writing it" if cut else "not JSON"
    if not isinstance(sample, dict) or "doc_id" not in sample:
        return "not a logged sample of lm-eval (no doc_id)"
    if str(sample.get("filter", "none")) != key[1] or key[0] not in sample:
        return None
    if isinstance(sample[key[0]], list | dict):
        found.pooled = True
        return None
    doc, value = sample["doc_id"], _number(sample[key[0]])
    if isinstance(doc, bool) or not isinstance(doc, int) or not -(2**63) <= doc < 2**63:
        return f"doc_id {doc!r:.40} is not a whole number"
    if value is None or not math.isfinite(value):
        return f"{key[0]} of document {doc} is {sample[key[0]]!r:.40}, not a finite number"
    found.ids.append(doc)
    found.hashes.append(_bits(sample.get("doc_hash")))
    found.values.append(value)
    facts = sample.get("t2")
    if isinstance(facts, dict) and isinstance(facts.get("category"), str):
        found.categories[facts["category"]] += 1
    return None


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:  # JSON has whole numbers of any size
        return None


def _bits(digest: Any) -> int:
    text = str(digest or "")
    if _SHA256.fullmatch(text):
        return int(text[:16], 16)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8]) if text else 0


def _repeated(ids: array) -> int | None:
    import numpy as np

    ordered = np.sort(np.frombuffer(ids, np.int64))
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    return int(again[0]) if len(again) else None
