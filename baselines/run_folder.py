"""A run's folder: config, checkpoint, metrics and the exported expert; every write is whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from ..harness.errors import T2Error


class RunFolder:
    """Files of one training run.

    ``config.yaml`` what was asked; ``state.pt`` the last finished step; ``metrics.jsonl`` one line an event; ``best/`` the best adapter so
    far; ``expert/`` the result, with its card.

    Args:
        path: of the folder; made if it is not there.
        config: as plain values. A folder that holds another configuration is refused.

    Raises:
        T2Error: the folder belongs to a run with other settings.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self._state = path / "state.pt"
        path.mkdir(parents=True, exist_ok=True)
        saved = path / "config.yaml"
        if saved.exists():
            old = yaml.safe_load(saved.read_text(encoding="utf-8")) or {}
            changed = sorted(k for k in {*old, *config} if old.get(k) != config.get(k))
            if changed:
                detail = ", ".join(f"{k}: {old.get(k)!r} there, {config.get(k)!r} asked" for k in changed)
                raise T2Error(f"{path} holds a run with other settings ({detail}). Give another name= or output=, or delete the folder.")
        else:
            _replace(saved, yaml.safe_dump(config, sort_keys=False).encode())

    def load_state(self) -> dict[str, Any] | None:
        """Return the last finished step's state, and drop metrics that were logged after it; None at the start of a run."""
        if not self._state.exists():
            self.metrics.unlink(missing_ok=True)
            return None
        state = torch.load(self._state, weights_only=True)
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


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
