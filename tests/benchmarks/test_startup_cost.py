"""What the installed hook adds to every start of Python, and to every import after it."""

import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from t2.harness.startup import hook

REPEATS = 15


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Path, Path]:
    """Two site folders: with the installed hook and its .pth line, and with neither."""
    installed, with_hook, without = Path(sysconfig.get_paths()["purelib"]), tmp_path / "with", tmp_path / "without"
    with_hook.mkdir()
    without.mkdir()
    for name in ("_t2_startup.py", "t2_startup.pth"):
        (with_hook / name).write_text((installed / name).read_text())
    return with_hook, without


def seconds(site: Path) -> float:
    """Return what reading `site` costs a fresh interpreter."""
    code = f"import site, time; start = time.perf_counter(); site.addsitedir({str(site)!r}); print(time.perf_counter() - start)"
    return float(subprocess.check_output([sys.executable, "-I", "-S", "-c", code], text=True, timeout=60))


def test_start_up_grows_by_less_than_two_milliseconds(sites: tuple[Path, Path]) -> None:
    with_hook, without = sites
    pairs = [(seconds(with_hook), seconds(without)) for _ in range(REPEATS)]  # interleaved, so a busy moment hits both
    grown = min(pair[0] for pair in pairs) - min(pair[1] for pair in pairs)
    print(f"start-up grows by {grown * 1e3:.3f} ms (best of {REPEATS})")
    assert grown < 2e-3


def test_the_editable_install_has_no_finder_but_the_hook() -> None:
    """Setuptools' finder for editable installs adds about 10 ms to every start; the back end leaves it out."""
    assert sorted(Path(sysconfig.get_paths()["purelib"]).glob("__editable__*t2*")) == []


def test_an_import_asks_the_hook_in_less_than_two_microseconds() -> None:
    finder, calls = hook.Finder(None), 100_000
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            finder.find_spec("some.module")
        best = min(best, time.perf_counter() - start)
    print(f"each import asks the hook for {best / calls * 1e9:.0f} ns")
    assert best / calls < 2e-6
