"""Figures in the JSON files of pytest-benchmark (`pytest --benchmark-json FILE`)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ReportError


def benchmarks(path: Path) -> tuple[dict[str, float], dict[str, str]] | None:
    """Read the figures of a pytest-benchmark file.

    Every number that a test put into `extra_info` (ratios, throughputs; nested ones as `outer.inner`) is one, and its median `seconds`.

    Returns:
        `file.py::test: figure` -> number, and the machine; None if `path` is no such file.

    Raises:
        ReportError: a figure is NaN or infinite, two tests have one name, or there is none.
    """
    try:
        data = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None  # whoever reads result files says what is wrong with it
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list) or "results" in data:
        return None
    found: dict[str, float] = {}
    for i, bench in enumerate(data["benchmarks"]):
        if not isinstance(bench, dict) or not isinstance(bench.get("stats"), dict):
            raise ReportError(f"{path}: benchmark {i} has no `stats`. Run the benchmarks again with --benchmark-json.")
        name = str(bench.get("fullname") or bench.get("name") or i).rpartition("/")[2]
        figures = [*_numbers("", bench.get("extra_info")), ("seconds", bench["stats"].get("median"))]
        for figure, value in figures:
            place = f"{name}: {figure}"
            # JSON has whole numbers of any size, of which none is infinite.
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
                raise ReportError(f"{path}: {place} is {value!r:.40}, not a finite number. Run the benchmarks again.")
            if place in found:
                raise ReportError(f"{path}: {place} occurs twice; give the tests names of their own.")
            found[place] = float(value)
    if not found:
        raise ReportError(f"{path}: it holds no benchmark. Run them again with --benchmark-json.")
    return found, _machine(data.get("machine_info"))


def _machine(info: Any) -> dict[str, str]:
    info = info if isinstance(info, dict) else {}
    cpu = info.get("cpu") if isinstance(info.get("cpu"), dict) else {}
    named = {"CPU": cpu.get("brand_raw") or info.get("processor"), "Python": info.get("python_version")}
    return {name: str(value) for name, value in named.items() if value}


def _numbers(above: str, value: Any) -> Iterator[tuple[str, Any]]:
    for name, item in value.items() if isinstance(value, dict) else ():
        if isinstance(item, dict):
            yield from _numbers(f"{above}{name}.", item)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield f"{above}{name}", item
