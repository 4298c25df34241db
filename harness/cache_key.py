"""``--use_cache`` that knows which model answered (lm-eval #4063): one table per set of facts inside lm-eval's cache file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def facts_key(facts: Mapping[str, Any]) -> str:
    """Return the hash of what answers depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def settings(config: Any) -> dict[str, Any]:
    """Return what a configuration of transformers says, but not where it was read and by which release."""
    told = {} if config is None else config.to_dict()
    return {name: value for name, value in told.items() if name not in ("_name_or_path", "transformers_version")}


def files_stamp(folder: str | None) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of a folder's files, in nanoseconds; none of what is no folder here."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file()) if folder and Path(folder).is_dir() else []
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def open_table(store: Any, facts: Mapping[str, Any]) -> None:
    """Point lm-eval's answer cache at the table that belongs to `facts`, made if it is not there.

    lm-eval looks answers up by request alone, in one `SqliteDict`; what it holds of it are its methods, and those ask for `tablename`
    each time. So no function of lm-eval has to be replaced, and answers of other models in the same file stay where they are.
    """
    name = f"t2_{facts_key(facts)[:32]}"
    if store.tablename != name:
        with type(store)(store.filename, tablename=name, autocommit=True):
            pass  # opening makes the table
        store.tablename = name


def table_entry(context: str) -> str:
    """Return the key under which the decision of pass 1 about `context` is kept beside the answers."""
    return "t2_pass1_" + hashlib.sha256(context.encode("utf-8", "surrogatepass")).hexdigest()
