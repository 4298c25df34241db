"""The classifier expert of strategy B (``cls``): which one serves pass 1, and with which experts it shares a bank."""

from pathlib import Path
from typing import TypeVar

from .bank import Bank
from .errors import AdapterError
from .experts import find_experts, load_expert, shipped, trained_on

SomeBank = TypeVar("SomeBank", bound=Bank)

SHIPPED = "dispatch"
"""Name of the classifier inside this package, where there is one."""

_CURE = "Train one with `t2 train dispatch` (`model=…` for another base model) and name its folder with classifier=<folder>."


def with_classifier(bank: SomeBank, folder: Path | None = None) -> tuple[SomeBank, str]:
    """Return a bank that has a classifier expert, and its name there.

    Args:
        bank: experts over the base model.
        folder: of the classifier; None: the one among the bank's experts, else the shipped one.

    Raises:
        AdapterError: there is none, several, one for another base model, or an expert that was trained for something else.
    """
    own = [name for name, expert in bank.experts.items() if expert.is_classifier]
    if folder is None and len(own) > 1:
        raise AdapterError(f"There are several classifiers, {', '.join(own)}: name the folder of one with classifier=<folder>.")
    if folder is None and own:
        return bank, own[0]
    inside = find_experts(folder) if folder is not None else {n: p for n, p in shipped().items() if n == SHIPPED}
    if len(inside) > 1:
        raise AdapterError(f"classifier={folder} holds {len(inside)} experts, {', '.join(inside)}: name the folder of one.")
    if not inside:
        raise AdapterError(f"There is no classifier expert. {_CURE}")
    ((name, path),) = inside.items()
    expert = load_expert(path)
    if (task := trained_on(expert.card)) not in (None, "dispatch"):
        raise AdapterError(f"{path} is no classifier: its card says that it was trained on {task}. {_CURE}")
    others = {other: e for other, e in bank.experts.items() if other not in own}
    if name in others:
        raise AdapterError(f"The classifier {path} has the name of an expert, {name!r}: rename its folder.")
    try:
        return bank.with_experts({**others, name: expert}), name
    except AdapterError as error:
        raise AdapterError(f"The classifier does not fit: {error} {_CURE}") from error
