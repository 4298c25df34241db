"""Whether baseline and run can be compared: settings, machine, documents."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from ..blocks import some
from .snapshot import TaskScores

DOCUMENTS, MACHINE = "documents", "machine"
_MACHINE = ("CPU", "GPU", "Python")
_SHOWN = 8  # of ids


class Likeness:
    """Collects what differs, each thing once with the tasks that it concerns.

    Args:
        allowed: patterns of names that may differ.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed
        self._found: dict[tuple[str, str], list[str]] = {}
        self._notes: dict[str, list[str]] = {}

    def settings(self, task: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Compare what a task was run with."""
        other_release = before.get("lm-eval") != after.get("lm-eval")
        for name in dict.fromkeys([*before, *after]):
            one, two = before.get(name), after.get(name)
            # Releases of lm-eval dump different fields of a task: then only fields that both have can be compared.
            if one == two or (other_release and name.startswith("task's ") and None in (one, two)):
                continue
            self.add(name, f"{name}: {_shown(one)} in the baseline, {_shown(two)} in the run", task)

    def machine(self, task: str, before: Mapping[str, str], after: Mapping[str, str], gated: bool) -> None:
        """Compare where a task was run: it can flip single answers, and closes the gate only where seconds can."""
        for name in _MACHINE:
            if before.get(name) != after.get(name):
                text = f"{MACHINE}: {name} was {_shown(before.get(name))} in the baseline, is {_shown(after.get(name))} in the run"
                if gated:
                    self.add(MACHINE, f"{text}, so seconds cannot be compared", task)
                else:
                    self._notes.setdefault(text, []).append(task)

    def add(self, name: str, text: str, task: str) -> None:
        """Note a difference."""
        self._found.setdefault((name, text), []).append(task)

    def refused(self) -> list[str]:
        """Differences that make baseline and run unlike."""
        found = [f"{text} ({some(tasks, 4)})" for (name, text), tasks in self._found.items() if not self._may(name)]
        if found:
            names = dict.fromkeys(name for name, _ in self._found if not self._may(name))
            found.append(
                "This would compare unlike things. Run with the baseline's settings, write a new baseline with --update, or compare all "
                f"the same: --allow-unlike, or allow_unlike: [{', '.join(names)}] in the thresholds."
            )
        return found

    def allowed(self) -> list[str]:
        """Differences that were allowed."""
        return [f"{text} ({some(tasks, 4)})" for (name, text), tasks in self._found.items() if self._may(name)]

    def notes(self) -> list[str]:
        """Differences that do not matter for what is gated."""
        return [f"{text} ({some(tasks, 4)})" for text, tasks in self._notes.items()]

    def _may(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._allowed)


def one_machine(repeats: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return where repeats were measured; what they do not share is told of each, so that it equals no single machine's."""
    known = [name for name in _MACHINE if any(name in repeat for repeat in repeats)]
    found = {name: sorted(repeat.get(name, "not recorded") for repeat in repeats) for name in known}
    return {name: values[0] if values[0] == values[-1] else " / ".join(values) for name, values in found.items()}


def common_documents(task: str, before: TaskScores, after: TaskScores, likeness: Likeness) -> list[int]:
    """Return the ids of the documents that both have, in order; tells `likeness` which others there are."""
    one, two = before.documents, after.documents
    changed = [doc for doc in one if doc in two and one[doc][0] != two[doc][0] and one[doc][0] and two[doc][0]]
    for ids, text in (
        ([doc for doc in one if doc not in two], "only in the baseline"),
        ([doc for doc in two if doc not in one], "only in the run"),
        (changed, "with other content under the same id"),
    ):
        if ids:
            likeness.add(DOCUMENTS, f"{DOCUMENTS}: {_ids(ids)} of {task} {text}", task)
    return sorted((one.keys() & two.keys()) - set(changed))


def _ids(ids: Collection[int]) -> str:
    return f"{len(ids)} ({some(sorted(ids), _SHOWN)})"


def _shown(value: str | None) -> str:
    if value is None:
        return "not recorded"
    return value if len(value) <= 60 else f"{value[:57]}..."
