"""The card of a trained expert: what it is, what it was trained on, and how much it gained."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from .. import __version__
from ..adapters.experts import CONFIG, WEIGHTS, load_expert, write_card

if TYPE_CHECKING:
    from .train import Trainer


def export_expert(trainer: Trainer) -> Path:
    """Write the best checkpoint as ``<run>/expert/<name>`` with its card and curve, check that it loads, and return the folder."""
    config, run = trainer.config, trainer.folder.path
    target = run / "expert" / config.name
    temporary = run / "expert.tmp" / config.name
    shutil.rmtree(temporary.parent, ignore_errors=True)
    temporary.mkdir(parents=True)
    adapter = json.loads((run / "best" / CONFIG).read_text(encoding="utf-8"))
    # names only: where the base lay on this machine is nobody's business
    adapter["base_model_name_or_path"] = model_name(trainer)
    adapter["target_modules"] = sorted(adapter["target_modules"])
    (temporary / CONFIG).write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(load_file(run / "best" / WEIGHTS), temporary / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(trainer.folder.metrics, temporary / "curve.jsonl")
    write_card(temporary, card(trainer))
    load_expert(temporary)
    shutil.rmtree(target.parent, ignore_errors=True)
    os.replace(temporary.parent, target.parent)
    return target


def model_name(trainer: Trainer) -> str:
    """Return the base model's public name: as given, or the default model's."""
    return trainer.config.model or "SmolLM2-135M-Instruct (t2's default model, Q4_1 weights made dense)"


def card(trainer: Trainer) -> dict[str, Any]:
    """Return the card: expert, base, data with hashes, settings, validation before and after, cost, versions."""
    config = trainer.config
    validations = [e for e in trainer.folder.events() if e["event"] == "validation"]
    trained = [e for e in trainer.folder.events() if e["event"] == "train"]
    before = validations[0]
    after = next(e for e in validations if e["step"] == trainer.best["step"])
    return {
        "name": config.name,
        "description": config.description,
        "method": "svf",
        "objective": "reinforce",
        "base_model": model_name(trainer),
        "base_fingerprint": trainer.model.peft_config["default"].base_fingerprint,  # type: ignore[union-attr]
        "parameters": sum(p.numel() for p in trainer.parameters),
        "data": {
            "task": config.task,
            "dataset": trainer.task.dataset,
            "split": "train, halved by seed into train and validation",
            "train_documents": len(trainer.split.train),
            "validation_documents": len(trainer.split.validation),
            "sha256": trainer.split.sha256,
        },
        "seed": config.seed,
        "steps": trainer.step,
        "best_step": trainer.best["step"],
        "samples": len(trained) * config.prompts_per_step * config.samples_per_prompt,
        "validation": {
            "metric": "accuracy, greedy",
            "documents": before["n"],
            "before": before["accuracy"],
            "after": after["accuracy"],
            "stderr_before": _stderr(before),
            "stderr_after": _stderr(after),
            "note": "the best of the run's validations, so 'after' is biased upwards; test scores are in the project's docs",
        },
        "training_reward": {"first": trained[0]["reward"], "last": trained[-1]["reward"]} if trained else {},
        "settings": {k: v for k, v in dataclasses.asdict(config).items() if k not in ("name", "description", "output", "model")},
        "seconds": round(trainer.seconds, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {next(trainer.model.parameters()).device.type}",
        "versions": {"t2": __version__, **{name: version(name) for name in ("torch", "transformers", "peft")}},
    }


def _stderr(event: dict[str, Any]) -> float:
    """Standard error of a share: sqrt(p (1 - p) / n)."""
    return math.sqrt(event["accuracy"] * (1 - event["accuracy"]) / event["n"])
