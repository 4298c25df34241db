"""Learning curves, as the paper's figures 4 and 9: reward and validation over steps, from the ``curve.jsonl`` of trained adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ReportError
from ..files import CURVES
from .canvas import colour, new, short, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUMBERS = {"validation": ("step", "accuracy"), "train": ("step", "reward")}


def events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a run: of its ``metrics.jsonl``, or of a trained adapter's ``curve.jsonl``.

    Args:
        path: the file, or a folder that holds one.

    Raises:
        ReportError: there is none, it cannot be read, or it has no validation.
    """
    file = path if path.is_file() else next((path / name for name in CURVES if (path / name).is_file()), None)
    if file is None:
        raise ReportError(f"{path} has neither {' nor '.join(CURVES)}: give a run's folder, or that of an adapter made by `t2 train`.")
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{file} cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            raise ReportError(
                f"{file}, line {number} is not JSON: the run was cut off there. `t2 train` mends it when it goes on."
            ) from None
        if not isinstance(event, dict):
            raise ReportError(f"{file}, line {number} is no event of `t2 train`.")
        for name in _NUMBERS.get(str(event.get("event")), ()):
            value = event.get(name, 0 if name == "reward" else None)  # `objective=ntp` has none
            # `not abs(value) < …` also catches NaN; whole numbers of any size are legal in JSON, but no float.
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
                raise ReportError(f"{file}, line {number}: `{name}` is {value!r:.40}, not a number; the run is damaged there.")
        found.append(event)
    if not any(event.get("event") == "validation" for event in found):
        raise ReportError(f"{file} has no validation yet.")
    return found


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the runs into one picture: validation accuracy and sampled reward over steps.

    The dashed line is the base model (the validation before the first step), the dot the checkpoint that was chosen.

    Args:
        runs: label → events.
    """
    with style():
        figure = new(10, 4 + 0.2 * len(runs))
        scores, rewards = figure.subplots(1, 2)
        for i, (label, run) in enumerate(runs.items()):
            valid = [(e["step"], 100 * e["accuracy"]) for e in run if e.get("event") == "validation"]
            sampled = [(e["step"], e["reward"]) for e in run if e.get("event") == "train" and "reward" in e]
            steps, accuracy = zip(*valid, strict=True)
            scores.plot(steps, accuracy, color=colour(i), label=short(label, 80))
            scores.axhline(accuracy[0], color=colour(i), linestyle="--", linewidth=1)
            chosen = accuracy.index(max(accuracy))
            scores.plot(steps[chosen], accuracy[chosen], "o", color=colour(i))
            if sampled:
                rewards.plot(*zip(*sampled, strict=True), color=colour(i))
        scores.set(xlabel="step", ylabel="validation accuracy (%)", title="dashed: base model; dot: chosen checkpoint")
        rewards.set(xlabel="step", ylabel="mean reward of the sampled replies")
        figure.legend(*scores.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure
