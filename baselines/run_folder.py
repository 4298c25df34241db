"""A run's folder: config, origin, checkpoint, metrics and the exported expert; every write is whole or not there."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from ..harness.errors import T2Error

logger = logging.getLogger("t2.train")


class RunFolder:
    """Files of one training run.

    ``config.yaml`` what was asked; ``origin.yaml`` versions, git commit and data hashes at the start; ``state.pt`` the last finished step;
    ``metrics.jsonl`` one line an event; ``best/`` the best adapter so far; ``expert/`` the result, with its card.

    Args:
        path: of the folder; made if it is not there.
        config: as plain values. A folder that holds another configuration is refused.
        origin: what the results depend on besides: ``versions``, ``git_commit``, ``data_sha256``. Other data are refused, other versions
            warned of. None in all processes but the first, which leave the files alone.

    Raises:
        T2Error: the folder belongs to a run with other settings, of another version of t2, or on other data.
    """

    def __init__(self, path: Path, config: dict[str, Any], origin: dict[str, Any] | None) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self._state = path / "state.pt"
        if origin is None:
            return
        path.mkdir(parents=True, exist_ok=True)
        saved = _read(path / "config.yaml"), _read(path / "origin.yaml")
        if saved[0] is None:
            _replace(path / "origin.yaml", yaml.safe_dump(origin, sort_keys=False).encode())
            _replace(path / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        else:
            self._compare(saved[0], saved[1] or {}, config, origin)

    def _compare(self, old: dict[str, Any], began: dict[str, Any], config: dict[str, Any], origin: dict[str, Any]) -> None:
        cure = "Give another name= or output=, or delete the folder."
        if alien := sorted({*old} ^ {*config}):
            version = began.get("versions", {}).get("t2", "an unknown version")
            raise T2Error(f"{self.path} holds a run of t2 {version}, whose settings are not this version's ({', '.join(alien)}). {cure}")
        if changed := sorted(k for k in config if old[k] != config[k]):
            detail = ", ".join(f"{k}: {old[k]!r} there, {config[k]!r} asked" for k in changed)
            raise T2Error(f"{self.path} holds a run with other settings ({detail}). {cure}")
        if began.get("data_sha256") != origin["data_sha256"]:
            raise T2Error(f"{self.path} holds a run on other data ({began.get('data_sha256')} there, {origin['data_sha256']} here). {cure}")
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
        state = torch.load(self._state, weights_only=True)
        if first:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()[: state["metric_lines"]] if self.metrics.exists() else []
            _replace(self.metrics, "".join(line + "\n" for line in lines).encode())
        return state

    def save_state(self, state: dict[str, Any]) -> None:
        """Store the state of a finished step, with how many metric lines belong to it."""
        lines = len(self.metrics.read_text(encoding="utf-8").splitlines()) if self.metrics.exists() else 0
        temporary = self._state.with_suffix(".tmp")
        torch.save({**state, "metric_lines": lines}, temporary)
        os.replace(temporary, self._state)

    def log(self, event: dict[str, Any]) -> None:
        """Append one event to ``metrics.jsonl``."""
        with self.metrics.open("a", encoding="utf-8") as f:
            f.write(json.dumps(event) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Return all events so far."""
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def origin(self) -> dict[str, Any]:
        """Return what the run was begun with."""
        return _read(self.path / "origin.yaml") or {}


def _read(path: Path) -> dict[str, Any] | None:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
