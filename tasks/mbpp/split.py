"""The paper's split of MBPP: EvalPlus's first 300 rows for training and validation, the rest for testing.

As in the paper's reference code: the 300 are shuffled by seed 16, then 200 train and 100 validate. The paper's text gives no split.
"""

import random
from typing import Any

from datasets import Dataset, DatasetDict

from ...harness.errors import T2Error
from ...harness.fetch import load_rows
from ...harness.sandbox import Sandbox

_TRAIN, _SEEN, _SEED = 200, 300, 16


def rows() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of MBPP+ as `train`, `validation` and `test`.

    Raises:
        FetchError: No source has MBPP+.
        T2Error: It has too few rows to be split.
    """
    every = sorted(load_rows("mbpp_plus", "test"), key=lambda row: row["task_id"])  # EvalPlus's order
    if len(every) <= _SEEN:
        raise T2Error(f"mbpp_t2 needs more than {_SEEN} rows of MBPP+, and there are {len(every)}. Mend the file in T2_DATA_DIR.")
    seen = every[:_SEEN]
    random.Random(_SEED).shuffle(seen)  # noqa: S311 - a published split, not a secret
    return {"train": seen[:_TRAIN], "validation": seen[_TRAIN:], "test": every[_SEEN:]}


def load(**_: Any) -> DatasetDict:
    """Return the test part, after making sure that the sandbox works; see `t2.tasks.code_scoring.load` and `rows` for errors."""
    Sandbox().check()
    return DatasetDict({"test": Dataset.from_list(rows()["test"])})
