"""``dispatch=task``: the first prompts of a task decide for all of it, and no other prompt of it goes through pass 1."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..adapters.dispatch_forms import Decision
from ..adapters.dispatch_prompt import OTHERS
from ..adapters.mixture import BASE


def verdict(votes: Sequence[Decision]) -> Decision:
    """Return what a task's votes (at least one) decide: the most frequent category; among equals the one with more probability in all.

    Votes that are soft mixtures give the mean of their α.
    """
    counts = Counter(vote.category for vote in votes)
    weight = {name: sum((vote.scores or {}).get(name, 0.0) for vote in votes) for name in counts}
    category = max(counts, key=lambda name: (counts[name], weight[name]))
    alphas: dict[str, float] = {}
    for vote in votes:
        for name, alpha in _alphas(vote).items():
            alphas[name] = alphas.get(name, 0.0) + alpha / len(votes)
    soft = any(vote.alphas is not None for vote in votes)
    return Decision(category, 0, alphas={name: round(alpha, 6) for name, alpha in alphas.items()} if soft else None)


def _alphas(vote: Decision) -> Mapping[str, float]:
    return vote.alphas if vote.alphas is not None else dict(vote.mixture.weights) or {BASE: 1.0}


def follow(own: Decision | None, task: Decision) -> Decision:
    """Return a prompt's decision: its task's, with what pass 1 said of itself if it voted; why it was `others` only where the task is."""
    if own is None:
        return task
    others = task.category == OTHERS
    return replace(own, category=task.category, alphas=task.alphas, readable=own.readable or not others, abstained=own.abstained and others)


def pooled(ranks: Iterable[Mapping[str, list[Decision]]]) -> dict[str, list[Decision]]:
    """Join the votes of several processes."""
    joined: dict[str, list[Decision]] = {}
    for votes in ranks:
        for task, some in votes.items():
            joined.setdefault(task, []).extend(some)
    return joined


def to_json(decision: Decision) -> str:
    """Return a decision as text for the answer cache."""
    return json.dumps(asdict(decision))


def from_json(text: Any) -> Decision:
    """Read what `to_json` wrote."""
    return Decision(**json.loads(text))


def to_keep(settled: Decision, voters: Sequence[str]) -> str:
    """Return a task's verdict as text for the answer cache, with the contexts that decided it."""
    return json.dumps({"voters": _hash(voters), **asdict(settled)})


def recalled(text: Any, voters: Sequence[str]) -> Decision | None:
    """Read what `to_keep` wrote; None if nothing was kept, or others than `voters` decided: another ``--limit``, or other prompts."""
    kept = json.loads(text) if text is not None else {}
    return Decision(**kept) if kept.pop("voters", None) == _hash(voters) else None


def _hash(voters: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(voters)).encode()).hexdigest()
