"""Data sets for lm-eval's `custom_dataset`: our sources (T2_DATA_DIR, cache, hub, package index) with the hub's row fields.

A task loads its test split only. Few-shot rows come later and only if shots are asked for (`fewshot.TrainSampler`), so that a
zero-shot run never waits for a train split that it does not need.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict

from ..harness.errors import T2Error
from ..harness.fetch import load_rows
from .answers import extract_number

Row = Mapping[str, Any]

_CURE = "Mend the file in T2_DATA_DIR, or unset the variable."

# A reference that no reply can match would be a silent zero; `load_rows` has checked that the fields are there.
_HAS_REFERENCE: dict[str, Callable[[Row], bool]] = {
    "gsm8k": lambda row: "#### " in row["answer"] and extract_number(row["answer"].rpartition("#### ")[2]) is not None,
    "math": lambda row: bool(row["answer"].strip()),
    "math500": lambda row: bool(row["answer"].strip()),
}


def subject_rows(name: str, split: str, subject: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of one split, of one MATH subject if given.

    Raises:
        FetchError: no source has the split.
        T2Error: no rows, or unknown data set or split.
    """
    rows = [dict(row) for row in load_rows(name, split) if subject is None or row["type"] == subject]
    if not rows:
        of_type = f" of type {subject!r}" if subject else ""
        raise T2Error(f"{name}, split {split}: no rows{of_type}. {_CURE}")
    return rows


def dataset_dict(name: str, splits: Sequence[str] = ("test",), subject: str | None = None) -> DatasetDict:
    """Return the named splits as lm-eval wants them.

    Raises:
        FetchError: no source has a split.
        T2Error: no rows, or rows of the test split without a reference answer (the first five are named).
    """
    parts = {split: subject_rows(name, split, subject) for split in splits}
    check = _HAS_REFERENCE.get(name, lambda row: True)
    faulty = [i for i, row in enumerate(parts.get("test", [])) if not check(row)]
    if faulty:
        more = f" and {len(faulty) - 5} more" if len(faulty) > 5 else ""
        listed = ", ".join(str(i) for i in faulty[:5])
        raise T2Error(f"{name}, split test: no reference answer in row {listed}{more} (counted from 0). {_CURE}")
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in parts.items()})


def load(t2_dataset: str, t2_subject: str | None = None, **_: Any) -> DatasetDict:
    """Return a task's test split; the `custom_dataset` of every task here. Errors as `dataset_dict`.

    lm-eval passes the task's `dataset_kwargs` together with its `metadata`, into which it mixes `--model_args` and `--metadata`;
    a name in both would be a TypeError, so ours begin with ``t2_`` and the rest is ignored.

    Args:
        t2_dataset: name for `load_rows`.
        t2_subject: keep only the rows whose ``type`` it is (MATH).
        _: version, config_source, model arguments.
    """
    return dataset_dict(t2_dataset, ("test",), t2_subject)
