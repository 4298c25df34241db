"""Learning curves, as the paper's figures 4 and 9: reward and validation over steps, from the ``curve.jsonl`` of trained adapters."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ReportError

FILES = ("curve.jsonl", "metrics.jsonl")


def events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a run: of its ``metrics.jsonl``, or of a trained adapter's ``curve.jsonl``.

    Args:
        path: the file, or a folder that holds one.

    Raises:
        ReportError: there is none, or it has no validation.
    """
    file = path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise ReportError(f"{path} has neither {' nor '.join(FILES)}: give a run's folder, or that of an adapter made by `t2 train`.")
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise ReportError(
                f"{file}, line {number} is not JSON: the run was cut off there. `t2 train` mends it when it goes on."
            ) from None
    if not any(event.get("event") == "validation" for event in found):
        raise ReportError(f"{file} has no validation yet.")
    return found


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]], target: Path) -> None:
    """Draw the runs into one picture: validation accuracy and sampled reward over steps.

    The dashed line is the base model (the validation before the first step), the dot the checkpoint that was chosen.

    Args:
        runs: label → events.
        target: file; its ending says the format.

    Raises:
        ReportError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10, 4), layout="constrained")
    scores, rewards = figure.subplots(1, 2)
    for colour, (label, run) in enumerate(runs.items()):
        valid = [(e["step"], 100 * e["accuracy"]) for e in run if e["event"] == "validation"]
        sampled = [(e["step"], e["reward"]) for e in run if e["event"] == "train" and "reward" in e]
        steps, accuracy = zip(*valid, strict=True)
        scores.plot(steps, accuracy, f"C{colour}", label=label)
        scores.axhline(accuracy[0], color=f"C{colour}", linestyle="--", linewidth=1)
        chosen = accuracy.index(max(accuracy))
        scores.plot(steps[chosen], accuracy[chosen], "o", color="red")
        if sampled:
            rewards.plot(*zip(*sampled, strict=True), color=f"C{colour}", label=label)
    scores.set(xlabel="step", ylabel="validation accuracy (%)", title="dashed: base model; dot: chosen checkpoint")
    rewards.set(xlabel="step", ylabel="mean reward of the sampled replies")
    scores.legend()
    try:
        figure.savefig(target, dpi=120)
    except (OSError, ValueError) as error:
        raise ReportError(f"{target} cannot be written ({error}).") from error
