"""The benchmark data sets: splits, sizes, and the sha256 of their rows in t2's own form.

The rows are the published ones with the field names of the hub sets that lm-eval's tasks use. They are written one JSON object a line
(`encode`), so that every source must give the same bytes: a source whose rows differ is refused.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import T2Error, nearest

Row = dict[str, Any]

MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")


@dataclass(frozen=True)
class Split:
    """Number of rows, and sha256 of `encode(rows)`; None where no published copy could be hashed: then that of the copy first fetched."""

    rows: int
    sha256: str | None


@dataclass(frozen=True)
class Hub:
    """Where the hub has it: repository and the configurations whose rows are joined in this order."""

    repo: str
    configs: tuple[str | None, ...] = (None,)


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        name: ours.
        hub: where the hub has it.
        splits: by name.
        plus: one of EvalPlus's, which no package of the index carries; `t2 fetch` gets it when asked to.
    """

    name: str
    hub: Hub
    splits: dict[str, Split] = field(default_factory=dict)
    plus: bool = False


DATASETS: dict[str, Dataset] = {
    entry.name: entry
    for entry in (
        Dataset(
            "gsm8k",
            Hub("openai/gsm8k", ("main",)),
            {
                "train": Split(7473, "6043ef64147b59871f4fd3adf669c306fe0a4c27e5a5c4bfb761f3f084895a13"),
                "test": Split(1319, "752adc99f23132275139f1f7be57126b08735a55daf0c56859ee6df70abafbac"),
            },
        ),
        Dataset(
            "math",
            Hub("EleutherAI/hendrycks_math", MATH_SUBJECTS),
            {
                "train": Split(7500, "29c9a076be0f4da5e63c6cd2733af2ae13c321e3a926d27d0e9fd090ed629d7d"),
                "test": Split(5000, "c59262d7c370cb9aac355b71c0023780b88cf944fed11944cb6cc2aedaee41b9"),
            },
        ),
        Dataset(
            "math500",
            Hub("HuggingFaceH4/MATH-500"),
            {"test": Split(500, "c9152c5c80b9009a529b65ac3a7182dd5afc67403b08fdc5a82ec80a16fcb063")},
        ),
        Dataset(
            "humaneval",
            Hub("openai/openai_humaneval", ("openai_humaneval",)),
            {"test": Split(164, "b2adeeae8b383b6f0c615746a397f25c8abe44da4afb29cd10e6c4bbf0463fd3")},
        ),
        Dataset(
            "mbpp",
            Hub("google-research-datasets/mbpp", ("full",)),
            {
                "train": Split(374, "d8752f39355326355c984a677db9d77aab62c9f32121cb6c5c8b8de306905c58"),
                "validation": Split(90, "aeded3158024aafbdfcb71210c4b679a4586b3c4b441e60dc3c51ef3369ea812"),
                "test": Split(500, "8478a56b5daea733256fff11a2998234cd6e100cd20894093ea41c8d89459fda"),
            },
        ),
        Dataset("humaneval_plus", Hub("evalplus/humanevalplus"), {"test": Split(164, None)}, plus=True),
        Dataset("mbpp_plus", Hub("evalplus/mbppplus"), {"test": Split(378, None)}, plus=True),
        Dataset(
            "arc_easy",
            Hub("allenai/ai2_arc", ("ARC-Easy",)),
            {
                "train": Split(2251, "b76954a1770fd1d3702eec2faedbb6400e3ab06986aa233d749f5d2ec51060b8"),
                "validation": Split(570, "a09e9d5fc6f7541651fd64c269cdb8829a9a9edc168cfbbaad67c29c90ae3e77"),
                "test": Split(2376, "6ce8fb7b4baa1a5d6f2f1b92a3055787cf04759819c3f03195cda787822f7f12"),
            },
        ),
        Dataset(
            "arc_challenge",
            Hub("allenai/ai2_arc", ("ARC-Challenge",)),
            {
                "train": Split(1119, "c7aed06b794e8f706063bf2066c25fc52fe2634baa168d34a8d7d44fc0950835"),
                "validation": Split(299, "a1d06791471444beab6cb392034c89682be86096bd1bee2ad0c2cd44451d19ed"),
                "test": Split(1172, "a03a11a8fee86f6d0607f426e7b3b7a9180a4894170e934da75596e93c4b51f1"),
            },
        ),
    )
}


def lookup(dataset: str, split: str) -> Split:
    """Return the entry of `dataset`/`split`.

    Raises:
        T2Error: there is no such data set or split; names the nearest.
    """
    if dataset not in DATASETS:
        raise T2Error(f"Unknown data set {dataset!r}.{nearest(dataset, DATASETS)}")
    splits = DATASETS[dataset].splits
    if split not in splits:
        raise T2Error(f"Data set {dataset!r} has no split {split!r}.{nearest(split, splits)}")
    return splits[split]


def encode(rows: Iterable[Row]) -> bytes:
    """Return rows as JSON lines (UTF-8, fields in their order): what is cached and what the pinned sha256 is taken of."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def digest(data: bytes) -> str:
    """Return the hex sha256."""
    return hashlib.sha256(data).hexdigest()


def mismatch(dataset: str, split: str, data: bytes, kept: str | None = None) -> str | None:
    """Return how encoded rows differ from the published ones (both hashes), or None when they are the same.

    Args:
        dataset: name of the data set.
        split: one of its splits.
        data: the encoded rows.
        kept: the sha256 noted when they were fetched; counts where none is pinned.
    """
    expected = lookup(dataset, split)
    rows, sha256 = data.count(b"\n"), expected.sha256 or kept
    if sha256 is None:
        return None if rows == expected.rows else f"{dataset}/{split} has {rows:,} rows, expected {expected.rows:,}"
    if (found := digest(data)) == sha256:
        return None
    return f"{dataset}/{split} has {rows:,} rows with sha256 {found}, expected {expected.rows:,} rows with {sha256}"
