"""Where the report goes: one file, or a folder with Markdown, page and plots."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from . import markdown, page
from .document import TITLE, Content, compose
from .errors import ReportError
from .pictures import NAMES, draw_all

REPORT, PAGE = "report.md", "report.html"


def write(content: Content, output: str) -> list[Path]:
    """Write the report.

    Args:
        content: what it shows.
        output: a folder (one that exists, or a name without ending, or that ends in `/`) gets report.md, report.html and
            plots/NAME.png and .svg; a file ending in `.html` the page; any other file the Markdown, without plots.

    Returns:
        The files to look at.

    Raises:
        ReportError: no permission, disk full, a folder of a file's name, or a file there that is no report.
    """
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)) or not (path.suffix or path.exists()):
        return _folder(content, path)
    _refuse_others(path)
    if path.suffix.lower() in (".html", ".htm"):
        pictures = {name: files["svg"] for name, files in draw_all(content).items()}
        write_atomic(path, page.render(compose(content), pictures).encode())
    else:
        write_atomic(path, markdown.render(compose(content)).encode())
    return [path]


def show(text: str) -> None:
    """Write to standard output; letters that its encoding lacks are shown as `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def _refuse_others(*paths: Path) -> None:
    """Refuse to replace what is no report: a result file, say, named after `-o` by mistake."""
    for path in paths:
        try:
            if not path.is_file():
                continue
            with path.open("rb") as file:
                head = file.read(2048)
        except OSError as error:
            raise ReportError(f"{path}: cannot be read ({error.strerror or error}). Choose another --output.") from error
        if head.strip() and not (head.startswith((b"# ", b"<!doctype html>")) and TITLE.encode() in head):
            raise ReportError(f"{path}: this is no report, and would be replaced by one. Choose another --output, or delete the file.")


def _folder(content: Content, folder: Path) -> list[Path]:
    _refuse_others(folder / REPORT, folder / PAGE)
    plots: Mapping[str, Mapping[str, bytes]] = draw_all(content)
    blocks = compose(content)
    for name in NAMES:
        for kind in ("png", "svg"):
            path = folder / markdown.PLOTS / f"{name}.{kind}"
            if name in plots:
                write_atomic(path, plots[name][kind])
            else:  # a report made there earlier may have had this plot; beside this one it would be wrong
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
    write_atomic(folder / PAGE, page.render(blocks, {name: files["svg"] for name, files in plots.items()}).encode())
    write_atomic(folder / REPORT, markdown.render(blocks).encode())
    return [folder / REPORT, folder / PAGE]


def write_atomic(path: Path, data: bytes, option: str = "--output") -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one; makes missing folders.

    Args:
        path: file, link to one, device or pipe.
        data: all of it.
        option: of the command line, that named `path`.

    Raises:
        ReportError: no permission, disk full, or a folder of that name.
    """
    try:
        target = path.resolve()  # through links: the link stays, its file is replaced
    except RuntimeError as error:  # links in a circle
        raise ReportError(f"{path}: cannot be written ({error}). Choose another {option}.") from error
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(data)  # a device or pipe (/dev/stdout) cannot be replaced
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error.strerror or error}). Choose another {option}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
