"""Build back end: setuptools', plus the start-up hook (`hook.py` as ``_t2_startup.py``, and a ``.pth`` line) in both kinds of wheel.

Being files of the wheel, both are listed in RECORD and go with ``pip uninstall``. In the editable wheel the hook also takes the place of
setuptools' finder, which imports pathlib and so adds 10 ms to every start of Python.
"""

import base64
import hashlib
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import prepare_metadata_for_build_editable, prepare_metadata_for_build_wheel

# Not setuptools' get_requires_for_…: they have nothing to add, and leave t2.egg-info in the checkout (see `build_sdist`).
__all__ = ["build_editable", "build_sdist", "build_wheel", "prepare_metadata_for_build_editable", "prepare_metadata_for_build_wheel"]

MODULE = "_t2_startup"
PTH = "t2_startup.pth"
# site prints a traceback for a .pth line that raises, so the line itself must not; `exec` because a .pth line is one line.
LINE = f"import sys; exec('try:\\n import {MODULE}\\n {MODULE}.install()\\nexcept Exception: pass')\n"
_ROOT_LINE = "ROOT: str | None = None"


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the wheel and add the hook; returns the file's name."""
    with _fresh_build_folder(), _quiet():
        name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    _rewrite(Path(wheel_directory, name), hook_source(None))
    return name


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the editable wheel, with the hook in the place of setuptools' finder; returns the file's name."""
    with _quiet():
        name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    _rewrite(Path(wheel_directory, name), hook_source(Path.cwd()))
    return name


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """Build the sdist and clear away setuptools' ``t2.egg-info``; returns the file's name.

    Python run in the checkout would read that folder as the metadata of t2, with the entry points of the day it was written.
    """
    name = build_meta.build_sdist(sdist_directory, config_settings)
    shutil.rmtree("t2.egg-info", ignore_errors=True)
    return name


def hook_source(root: Path | None) -> str:
    """Return the text of ``_t2_startup.py``.

    Raises:
        RuntimeError: `hook.py` no longer has the line that takes the root.
    """
    text = Path(__file__).with_name("hook.py").read_text(encoding="utf-8")
    if text.count(_ROOT_LINE) != 1:
        raise RuntimeError(f"hook.py must have the line {_ROOT_LINE!r} exactly once")
    return text if root is None else text.replace(_ROOT_LINE, f"ROOT: str | None = {str(root)!a}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out two long warnings: folders of task YAMLs are package data here, and what setuptools says of its own editable finder."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*is absent from the `packages` configuration")
        warnings.filterwarnings("ignore", message=r"(?s).*Editable installation\.")
        yield


@contextmanager
def _fresh_build_folder() -> Iterator[None]:
    """Build in a new folder: setuptools reuses ``build/lib``, where a module deleted from the tree lives on and gets into the wheel."""
    before = os.environ.get("DIST_EXTRA_CONFIG")
    with tempfile.TemporaryDirectory() as folder:
        extra = Path(folder, "extra.cfg")
        settings = f"\n[build]\nbuild_base = {folder}\n[egg_info]\negg_base = {folder}\n"
        extra.write_text((Path(before).read_text(encoding="utf-8") if before else "") + settings, encoding="utf-8")
        os.environ["DIST_EXTRA_CONFIG"] = str(extra)
        try:
            yield
        finally:
            os.environ.pop("DIST_EXTRA_CONFIG")
            if before is not None:
                os.environ["DIST_EXTRA_CONFIG"] = before


def _rewrite(wheel: Path, hook: str) -> None:
    """Replace `wheel` by one that has the hook, lacks setuptools' editable finder, and whose RECORD says so."""
    temporary = wheel.with_suffix(".partial")
    rows: list[str] = []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as new:

        def add(info: zipfile.ZipInfo | str, data: bytes) -> None:
            new.writestr(info, data, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            name = info if isinstance(info, str) else info.filename
            rows.append(f'"{name}",sha256={digest},{len(data)}' if "," in name else f"{name},sha256={digest},{len(data)}")

        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        for info in old.infolist():
            if info.filename != record and not info.filename.startswith("__editable__"):
                add(info, old.read(info))
        for name, text in ((f"{MODULE}.py", hook), (PTH, LINE)):
            # a fixed date: the same sources give the same wheel
            add(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text.encode())
        new.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    temporary.replace(wheel)
