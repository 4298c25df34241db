"""What the benchmarks share: a ratio of two things measured in one run, held to a bound, in pytest-benchmark's JSON and in a table."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tabulate import tabulate


class Hold(Protocol):
    def __call__(self, what: str, ratio: float, bound: float, name: str | None = None) -> None: ...


@pytest.fixture
def hold(benchmark: BenchmarkFixture) -> Hold:
    """Record what a ratio is of, and hold it to its bound; a test with several gives all but one a name of their own."""

    def held(what: str, ratio: float, bound: float, name: str | None = None) -> None:
        figures = {"what": what, "ratio": ratio, "bound": bound}
        benchmark.extra_info.update({name: figures} if name else figures)
        assert ratio <= bound, f"{what}: {ratio:.3f}, more than {bound}"

    return held


@pytest.fixture
def compare(benchmark: BenchmarkFixture, hold: Hold) -> Callable[..., None]:
    """Time two functions in turn, so that what else the machine does falls on both, and hold the ratio of their fastest rounds."""

    def compared(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], bound: float, rounds: int = 5) -> None:
        best = {ours: float("inf"), theirs: float("inf")}

        def timed(function: Callable[[], Any]) -> None:
            start = time.perf_counter()
            function()
            best[function] = min(best[function], time.perf_counter() - start)

        benchmark.pedantic(timed, (ours,), setup=lambda: timed(theirs), rounds=rounds, warmup_rounds=1)
        hold(f"{what} ({best[ours]:.3g} s / {best[theirs]:.3g} s)", best[ours] / best[theirs], bound)

    return compared


def _held(info: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for figures in (info, *info.values()):
        if isinstance(figures, dict) and {"what", "ratio", "bound"} <= figures.keys():
            yield figures


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [(f["what"], f["ratio"], f["bound"]) for bench in getattr(session, "benchmarks", ()) for f in _held(bench.extra_info)]
    if rows:
        table = [(what, f"{ratio:.3g}", f"{bound:g}", "" if ratio <= bound else "FAILED") for what, ratio, bound in rows]
        terminalreporter.section("ratios")
        terminalreporter.write_line(tabulate(table, ["what", "ratio", "at most", ""], tablefmt="github", disable_numparse=True))
