"""The model arguments of pass 1: which form, for every prompt or once a task, one expert or a soft mixture, and when to abstain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.dispatch_forms import Decision, check_form
from ..adapters.dispatch_prompt import OTHERS
from ..adapters.errors import AdapterError
from ..adapters.mixture import BASE, divides_one
from .errors import nearest
from .strategy import ModelArgumentError, parse_flag, parse_number

CHOOSERS = ("score", "generate")
"""Forms in which the model is asked: what a classifier expert is trained for."""


@dataclass(frozen=True)
class DispatchPlan:
    """What a user asks of pass 1.

    Attributes:
        form: name of a form, or the path of a Python file that registers one.
        shown: the form as results name it; for a file its name and hash.
        calibrate: whether scores are calibrated; None: for the base weights yes, for a classifier's no.
        votes: how many prompts of a task decide for the whole task; None: every prompt for itself.
        soft: whether experts are mixed by their categories' probabilities; False: the most probable one answers alone.
        step: α of soft mixtures are multiples of it, so that prompts can share weights; 0: α are the probabilities as they are.
        abstain: a category less probable than this means the base weights; None: never.
    """

    form: str = "score"
    shown: str = "score"
    calibrate: bool | None = None
    votes: int | None = None
    soft: bool = False
    step: float = 0.1
    abstain: float | None = None

    def __str__(self) -> str:
        parts = [self.shown if self.votes is None else f"task:{self.shown} votes={self.votes}"]
        if self.soft:
            parts.append(f"mix=soft mix_step={self.step:g}")
        if self.abstain is not None:
            parts.append(f"abstain={self.abstain:g}")
        return " ".join(parts)

    def settle(self, found: Decision) -> Decision:
        """Return the decision after abstaining and soft mixing.

        Raises:
            ModelArgumentError: the form gives no probabilities, and these need some.
        """
        if self.abstain is None and not self.soft:
            return found
        wanted = "mix=soft" if self.soft else f"abstain={self.abstain:g}"
        if found.scores is None:
            raise ModelArgumentError(f"{wanted} needs probabilities, which dispatch={self.form} does not give; use score or probe.")
        total = sum(found.scores.values())
        if not (abs(total - 1) <= 0.01 and min(found.scores.values()) >= 0):  # of NaN neither holds
            raise ModelArgumentError(
                f"{wanted} needs probabilities, but dispatch={self.form} gave {dict(found.scores)}, whose sum is {total:.4g}: have it give "
                "numbers from 0 to 1 that sum to 1 (a softmax of log-probabilities, say), or use score or probe."
            )
        if self.abstain is not None and max(found.scores.values()) < self.abstain:
            return replace(found, category=OTHERS, abstained=True)
        if not self.soft:
            return found
        shares = dict(zip(found.scores, _to_grid(list(found.scores.values()), self.step), strict=True))
        return replace(found, alphas={BASE if name == OTHERS else name: share for name, share in shares.items() if share})


def dispatch_plan(
    dispatch: Any = "score", calibrate: Any = None, votes: Any = None, mix: Any = "hard", mix_step: Any = None, abstain: Any = None
) -> DispatchPlan:
    """Check the arguments of pass 1.

    Args:
        dispatch: a form, ``task`` (which is ``task:score``) or ``task:<form>``.
        calibrate: ``true`` or ``false``, or None.
        votes: how many prompts of a task decide, under ``task`` (None: 10).
        mix: ``hard`` or ``soft``.
        mix_step: 0, or 1 / n for a whole n from 2, under ``soft`` (None: 0.1).
        abstain: from 0 to 1, or None.

    Raises:
        ModelArgumentError: a value that cannot be used.
    """
    text = str(dispatch).strip()
    form = text if text.endswith(".py") else text.lower()
    per_task = form == "task" or form.startswith("task:")
    form = (form.partition(":")[2] or "score") if per_task else form
    try:
        shown = check_form(form)
    except AdapterError as error:
        raise ModelArgumentError(str(error)) from None
    if (mixing := str(mix).strip().lower()) not in ("hard", "soft"):
        raise ModelArgumentError(f"Unknown mix {str(mix)!r}.{nearest(mixing, ('hard', 'soft'))}")
    if form == "generate" and (mixing == "soft" or abstain is not None):
        raise ModelArgumentError("dispatch=generate gives no probabilities, which mix=soft and abstain= need; use score or probe.")
    if votes is not None and not per_task:
        raise ModelArgumentError(f"votes={votes} goes with dispatch=task, where the first prompts decide; got dispatch={text}.")
    if mix_step is not None and mixing == "hard":
        raise ModelArgumentError(f"mix_step={mix_step} goes with mix=soft.")
    step = parse_number("mix_step", 0.1 if mix_step is None else mix_step, 0, 0.5)
    if step and not divides_one(step):
        raise ModelArgumentError(f"mix_step={mix_step} must be 0, or 1 / n for a whole n, such as 0.1 or 0.25.")
    return DispatchPlan(
        form=form,
        shown=shown,
        calibrate=None if calibrate is None else parse_flag("calibrate", calibrate),
        votes=int(parse_number("votes", 10 if votes is None else votes, 1, math.inf, whole=True)) if per_task else None,
        soft=mixing == "soft",
        step=step,
        abstain=None if abstain is None else parse_number("abstain", abstain, 0, 1),
    )


def folder_for(name: str, value: Any, wanted: bool, goes_with: str) -> Path | None:
    """Read an argument that names a folder.

    Raises:
        ModelArgumentError: there is no such folder, or it is not `wanted` because the argument `goes_with` others.
    """
    if value is None:
        return None
    if not wanted:
        raise ModelArgumentError(f"{name}={value} goes with {goes_with}.")
    path = Path(str(value)).expanduser()
    if not path.is_dir():
        raise ModelArgumentError(f"{name}={value}: there is no such folder.")
    return path


def _to_grid(chances: Sequence[float], step: float) -> list[float]:
    """Round probabilities to multiples of `step` that add up to 1 (as many steps as fit): the largest remainders go up."""
    if step == 0:
        return list(chances)
    steps = round(1 / step)
    exact = [chance * steps for chance in chances]
    whole = [math.floor(x) for x in exact]
    for i in sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])[: max(0, steps - sum(whole))]:
        whole[i] += 1
    return [round(n / steps, 12) for n in whole]
