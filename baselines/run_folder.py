"""A run's folder: config, origin, checkpoint, metrics and the exported expert; every write is whole or not there."""

import fcntl
import io
import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from ..adapters.experts import ORIGIN
from ..adapters.files import TMP_PREFIX, write_whole
from ..harness.errors import T2Error

logger = logging.getLogger("t2.train")

_CHANGEABLE = ("tokens_per_pass", "generation_batch_size", "gradient_checkpointing", "vllm_gpu_memory_utilization")
"""Settings that say how much is done at a time: a run that is out of memory may go on with others."""

CURE = "Give another name= or output=, or delete the folder."
"""What to do about a folder that this run cannot go on in."""


class RunFolder:
    """Files of one training run.

    ``config.yaml`` what was asked; ``origin.yaml`` versions, git commit, machine and data hashes at the start; ``state.pt`` the last
    finished step; ``metrics.jsonl`` one line an event; ``best/`` the best adapter so far; ``expert/`` the result, with its card.

    Args:
        path: of the folder; made if it is not there. It is locked until `release`.
        config: as plain values. A folder that holds another configuration is refused; only what is done at a time may differ.
        origin: what the results depend on besides: ``versions``, ``git_commit``, ``machine``, ``data_sha256``. Other data are refused,
            other versions warned of. None in all processes but the first, which leave the files alone.

    Raises:
        T2Error: the folder belongs to a sweep, or to a run with other settings, of another version of t2, or on other data, or is in use,
            or a file in it is damaged.
    """

    def __init__(self, path: Path, config: dict[str, Any], origin: dict[str, Any] | None) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self._state = path / "state.pt"
        self._config, self._origin = config, origin
        self._lock: IO[str] | None = None
        if origin is None:
            return
        self._lock = hold(path)
        if (saved := _read(path / "config.yaml")) is None and (path / "expert").exists():
            raise T2Error(f"{path} holds the best adapter of a sweep, which a single run would replace. {CURE}")
        if saved is not None:
            self._compare(saved, _read(path / ORIGIN) or {}, config, origin)

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.close()

    def begin(self) -> None:
        """Write what the run is begun with, once model and data are there: a wrong name leaves no folder that refuses the right one."""
        if self._origin is None:
            return
        if not (self.path / "config.yaml").exists():
            write_whole(self.path / ORIGIN, yaml.safe_dump(self._origin, sort_keys=False).encode())
        write_whole(self.path / "config.yaml", yaml.safe_dump(self._config, sort_keys=False).encode())

    def _compare(self, old: dict[str, Any], began: dict[str, Any], config: dict[str, Any], origin: dict[str, Any]) -> None:
        if alien := sorted({*old} ^ {*config}):
            version = began.get("versions", {}).get("t2", "an unknown version")
            raise T2Error(f"{self.path} holds a run of t2 {version}, whose settings are not this version's ({', '.join(alien)}). {CURE}")
        if changed := sorted(k for k in config if old[k] != config[k] and k not in _CHANGEABLE):
            detail = ", ".join(f"{k}: {old[k]!r} there, {config[k]!r} asked" for k in changed)
            raise T2Error(f"{self.path} holds a run with other settings ({detail}). {CURE}")
        if began.get("data_sha256") != origin["data_sha256"]:
            raise T2Error(f"{self.path} holds a run on other data ({began.get('data_sha256')} there, {origin['data_sha256']} here). {CURE}")
        if (versions := began.get("versions")) != origin["versions"]:
            logger.warning("%s was begun with %s and goes on with %s: the numbers may differ.", self.path, versions, origin["versions"])

    def load_state(self, first: bool) -> dict[str, Any] | None:
        """Return the last finished step's state, None at the start of a run.

        Args:
            first: whether this is the process that writes: it drops metrics that were logged after that step.
        """
        if not self._state.exists():
            if first:
                self.metrics.unlink(missing_ok=True)
            return None
        try:
            state = torch.load(self._state, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
                raise
            raise T2Error(f"{self._state} cannot be read ({type(error).__name__}: {str(error)[:200]}). {CURE}") from error
        if first:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()[: state["metric_lines"]] if self.metrics.exists() else []
            write_whole(self.metrics, "".join(line + "\n" for line in lines).encode())
        return state

    def save_state(self, state: dict[str, Any]) -> None:
        """Store the state of a finished step, with how many metric lines belong to it."""
        lines = len(self.metrics.read_text(encoding="utf-8").splitlines()) if self.metrics.exists() else 0
        content = io.BytesIO()
        torch.save({**state, "metric_lines": lines}, content)
        write_whole(self._state, content.getvalue())

    def log(self, event: dict[str, Any]) -> None:
        """Append one event to ``metrics.jsonl``."""
        with self.metrics.open("a", encoding="utf-8") as f:
            f.write(json.dumps(event) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Return all events so far."""
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def origin(self) -> dict[str, Any]:
        """Return what the run was begun with."""
        return _read(self.path / ORIGIN) or {}


def hold(folder: Path) -> IO[str]:
    """Make `folder` and lock it for this process, until the returned file is closed; clear away what a killed one was writing there.

    Raises:
        T2Error: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise T2Error(f"{folder} is in use by another t2. Wait until it has ended, or give another name= or output=.") from None
    except OSError as error:  # a file system that has no locks
        logger.warning("%s cannot be locked (%s): see that no other t2 uses it.", folder, error.strerror)
        return file
    for leftover in folder.glob(f"{TMP_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return file


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise T2Error(f"{path} cannot be read ({error}). {CURE}") from error
    if not isinstance(found, dict):
        raise T2Error(f"{path} must be a mapping; it is {type(found).__name__}. {CURE}")
    return found
