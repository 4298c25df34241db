"""Which rows of MBPP and MBPP+ are trained on, and the paper's split of MBPP+: 300 rows for training and validation, the rest for testing.

As in the paper's reference code: EvalPlus's first 300 are shuffled by seed 16, then 200 train and 100 validate. The paper gives no split.
"""

import random
from typing import Any

from datasets import Dataset, DatasetDict

from ...harness.errors import T2Error
from ...harness.fetch import load_rows
from ...harness.sandbox import Sandbox

_TRAIN, _SEEN, _SEED = 200, 300, 16

# fmt: off
IN_PLUS = frozenset((
    602, 603, 604, 605, 606, 607, 608, 610, 611, 612, 614, 615, 616, 618, 619, 620, 622, 623, 624, 626, 628, 629, 630, 631, 632, 633,
    635, 637, 638, 639, 641, 643, 644, 720, 721, 722, 723, 724, 725, 726, 728, 730, 731, 732, 733, 734, 735, 736, 737, 739, 740, 741,
    742, 743, 744, 745, 748, 749, 750, 751, 752, 753, 754, 755, 757, 758, 759, 760, 762, 763, 764, 765, 766, 767, 769, 770, 771, 772,
    773, 775, 777, 778, 780, 781, 782, 784, 785, 786, 787, 788, 790, 791, 792, 793, 794, 796, 797, 798, 799, 800, 801, 803, 804, 805,
    806, 807, 808, 809,
))
# fmt: on
"""The 108 ids of MBPP's train split among MBPP+'s 378 (EvalPlus's MbppPlus-OriginFmt, v0.2.0): scored there, so not trained on."""


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
