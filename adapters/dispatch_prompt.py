"""What pass 1 asks: the categories, the adaptation prompt of the paper's figure 3, and how its reply is read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OTHERS = "others"
"""The category that no expert serves: the base weights answer (the paper's text; its reference code keeps the last expert instead)."""

VERSION = 4
"""Raised whenever the wording below, how it is read, or what is scored of the names changes: older cached answers are not reused."""

_KNOWN = {
    "code": "Questions asking for programming solutions, functions, algorithms, or the meaning of a piece of code.",
    "math": "Questions involving mathematical calculations, equations, word problems with numbers, or proofs.",
    "reasoning": "Questions requiring logical thinking, common sense, or scientific knowledge to decide what is true.",
    OTHERS: "Questions that do not clearly fit into the above categories.",
}
_BOX = re.compile(r"\\+boxed\s*\{")
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit)\s*\{([^{}]*)\}")


@dataclass(frozen=True)
class Category:
    """One label that pass 1 may give, and the sentence that explains it to the model."""

    name: str
    description: str


def categories(experts: Mapping[str, Any]) -> tuple[Category, ...]:
    """Return the categories that `experts` can serve.

    In order: those of ``code``, ``math``, ``reasoning`` that have an expert, further experts by name, ``others``.

    Args:
        experts: expert name → anything with a ``card`` mapping; its ``description`` is the category's guideline. Without one, an expert
            with a name of the paper's has the paper's guideline.
    """
    names = [n for n in _KNOWN if n != OTHERS and n in experts] + sorted(n for n in experts if n not in _KNOWN)
    found = []
    for name in names:
        card = getattr(experts[name], "card", None) or {}
        described = card.get("description") or _KNOWN.get(name) or f"Questions about {name.replace('_', ' ')}."
        found.append(Category(name, " ".join(str(described).split())))
    return (*found, Category(OTHERS, _KNOWN[OTHERS]))


def instruction(options: Sequence[Category]) -> str:
    r"""Return the adaptation prompt up to the question, in the form of figure 3.

    The figure prints the headings and elides each guideline after its first words (``Code: Questions asking for programming
    solutions...``) and part of the first instruction; those endings are ours, and so is the number of categories when an expert is missing.
    """
    count = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}.get(len(options), str(len(options)))
    names = ", ".join(f"'{o.name}'" for o in options[:-1]) + f" or '{options[-1].name}'"
    guide = "\n".join(f"{i}. {o.name.capitalize()}: {o.description}" for i, o in enumerate(options, 1))
    return (
        f"Analyze the given question and classify it into one of {count} categories: {names}. Follow these guidelines:\n{guide}\n\n"
        "Instructions:\n"
        "- Consider the primary focus, skills, and knowledge required to answer the question.\n"
        "- If a question spans multiple categories, choose the most dominant one.\n"
        f"- Provide your final classification within \\boxed{{}} notation. Example: \\boxed{{{options[-2].name}}}\n\n"
        "Format your response as follows:\nClassification: \\boxed{category}"
    )


LEAD_IN = "Classification: \\boxed{"
"""What the assistant's turn starts with when categories are scored: only the name is left to say."""


def parse_reply(reply: str, options: Sequence[str]) -> str | None:
    r"""Return the category inside the last ``\boxed{…}`` of `reply`, or None when there is none or it names no single category.

    Tolerates case, quotes, ``\text{…}``, Markdown stars, a leading number, and words around the name (``the category is math``).
    """
    boxes = list(_BOX.finditer(reply))
    if not boxes:
        return None
    start = boxes[-1].end()
    depth, end = 1, len(reply)
    for i in range(start, len(reply)):
        depth += {"{": 1, "}": -1}.get(reply[i], 0)
        if depth == 0:
            end = i
            break
    inside = _MARKUP.sub(r"\1", reply[start:end]).lower()
    named = []
    for option in sorted(options, key=len, reverse=True):  # a name that holds another, as math-v2 holds math, is read first
        inside, found = re.subn(rf"(?<![a-z0-9_]){re.escape(option.lower())}(?![a-z0-9_])", " ", inside)
        named += [option] * bool(found)
    return named[0] if len(named) == 1 else None
