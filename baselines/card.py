"""The card of a trained expert: what it is, what it was trained on, and how much it gained."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from safetensors.torch import load_file, save_file

from ..adapters.experts import CARD, CONFIG, WEIGHTS, load_expert, write_card
from ..harness.fetch.files import replace_folder

if TYPE_CHECKING:
    from .config import TrainConfig
    from .run import Run


def export_expert(run: Run) -> Path:
    """Write the best checkpoint as ``<run>/expert/<name>`` with its card and curve, check that it loads, and return the folder."""
    config, folder = run.config, run.folder.path
    target = folder / "expert" / config.name
    if not run.processes.first:
        return target
    temporary = folder / "expert.tmp" / config.name
    shutil.rmtree(temporary.parent, ignore_errors=True)
    temporary.mkdir(parents=True)
    adapter = json.loads((folder / "best" / CONFIG).read_text(encoding="utf-8"))
    # as the user named it, not where a cache of this machine has it
    adapter["base_model_name_or_path"] = model_name(run)
    if isinstance(adapter["target_modules"], list):
        adapter["target_modules"].sort()
    (temporary / CONFIG).write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(load_file(folder / "best" / WEIGHTS), temporary / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(run.folder.metrics, temporary / "curve.jsonl")
    write_card(temporary, card(run))
    if config.method == "svf":
        load_expert(temporary)
    else:
        PeftConfig.from_pretrained(str(temporary))
    replace_folder(temporary.parent, target.parent)
    return target


def export_best(made: Mapping[str, Path], config: TrainConfig, diverged: Sequence[str] = ()) -> Path:
    """Copy the sweep's best adapter by validation to ``<output>/<name>/expert/<name>``, all validations on its card; return the folder."""
    target = Path(config.output) / config.name / "expert" / config.name
    if int(os.environ.get("RANK", "0")) > 0:
        return target
    cards = {label: json.loads((path / CARD).read_text(encoding="utf-8")) for label, path in made.items()}
    scores = {label: card["validation"]["after"] for label, card in cards.items()}
    best = max(scores, key=lambda label: scores[label])
    temporary = target.parent.with_name("expert.tmp") / config.name
    shutil.rmtree(temporary.parent, ignore_errors=True)
    shutil.copytree(made[best], temporary)
    write_card(temporary, {**cards[best], "sweep": {"chosen": best, "validation": scores, "diverged": list(diverged)}})
    replace_folder(temporary.parent, target.parent)
    return target


def model_name(run: Run) -> str:
    """Return the base model's name: as given, a folder too, or the default model's."""
    return run.config.model or "SmolLM2-135M-Instruct (t2's default model, Q4_1 weights made dense)"


def card(run: Run) -> dict[str, Any]:
    """Return the card: adapter, base, data with hashes, settings, validation before and after, cost, versions."""
    config = run.config
    validations = [e for e in run.folder.events() if e["event"] == "validation"]
    trained = [e for e in run.folder.events() if e["event"] == "train"]
    before = validations[0]
    after = next(e for e in validations if e["step"] == run.best["step"])
    rewarded = (
        {"training_reward": {"first": trained[0]["reward"], "last": trained[-1]["reward"]}} if trained and "reward" in trained[0] else {}
    )
    origin = {**run.origin(), **run.folder.origin()}  # what an older t2 did not keep is told as it is now
    return {
        "name": config.name,
        "description": config.description,
        "method": config.method,
        "objective": config.objective,
        "base_model": model_name(run),
        "base_fingerprint": getattr(run.model.peft_config["default"], "base_fingerprint", None),
        "parameters": sum(p.numel() for p in run.parameters),
        "data": {
            "task": config.task,
            "dataset": run.task.dataset,
            "split": "the task's published train and validation"
            if run.task.published
            else "train, halved by seed into train and validation",
            "train_documents": len(run.split.train),
            "validation_documents": len(run.split.validation),
            "sha256": run.split.sha256,
        },
        "seed": config.seed,
        "steps": run.step,
        "best_step": run.best["step"],
        "samples": len(trained) * config.batch,
        "validation": {
            "metric": "accuracy, greedy",
            "documents": before["n"],
            "before": before["accuracy"],
            "after": after["accuracy"],
            "stderr_before": _stderr(before),
            "stderr_after": _stderr(after),
            "note": "the best of the run's validations, so 'after' is biased upwards; test scores are in the project's docs",
        },
        **rewarded,
        "settings": {k: v for k, v in dataclasses.asdict(config).items() if k not in ("name", "description", "output", "model")},
        "seconds": round(run.seconds, 1),
        "cpu_seconds": round(run.cpu_seconds, 1),
        "peak_memory_bytes": run.peak_memory,
        "processes": run.processes.count,
        **{key: origin[key] for key in ("machine", "versions", "git_commit")},
    }


def _stderr(event: dict[str, Any]) -> float:
    """Standard error of a share: sqrt(p (1 - p) / n)."""
    return math.sqrt(event["accuracy"] * (1 - event["accuracy"]) / event["n"])
