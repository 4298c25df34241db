"""What a report consists of, before it is Markdown or HTML. Text is plain here: each format escapes it in its own way, in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

DASH = "\u2013"


@dataclass(frozen=True)
class Span:
    """A piece of text with a look.

    Attributes:
        kind: ``figure`` for numbers that the report itself has formatted (brackets stay as they are in Markdown), ``strong``, or ``code``.
    """

    text: str
    kind: Literal["figure", "strong", "code"]


Text = str | Span | tuple[str | Span, ...]
"""A plain string may come from anywhere, so it is escaped to the last character."""


def figure(text: str) -> Span:
    """Return numbers as the report writes them, such as `12.5 [3.1, 20.0]`; never text from a file."""
    return Span(text, "figure")


def strong(text: str) -> Span:
    """Return bold text."""
    return Span(text, "strong")


def code(text: str) -> Span:
    """Return text in a fixed-width font."""
    return Span(text, "code")


def some(items: Sequence[Any], shown: int) -> str:
    """Return `a, b and 3 more`: the first `shown` items, and how many there are besides."""
    return ", ".join(map(str, items[:shown])) + (f" and {len(items) - shown} more" if len(items) > shown else "")


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: Text


@dataclass(frozen=True)
class Item:
    """A line of a list, with lines below it."""

    text: Text
    below: Sequence[Text] = ()


@dataclass(frozen=True)
class Bullets:
    """A list; nothing at all if it is empty."""

    items: Sequence[Item | Text]


@dataclass(frozen=True)
class Table:
    """Cells under titles.

    Attributes:
        rows: as many cells in each as there are titles.
        left: how many columns, from the first, are text (left-aligned); the others are numbers.
    """

    header: Sequence[Text]
    rows: Sequence[Sequence[Text]]
    left: int = 1


@dataclass(frozen=True)
class Alert:
    """A box with a title and lines."""

    kind: Literal["NOTE", "WARNING", "CAUTION"]
    title: str
    lines: Sequence[Text]


@dataclass(frozen=True)
class Picture:
    """A plot.

    Attributes:
        name: of its files, without ending.
        caption: one sentence that says what is to be seen.
    """

    name: str
    caption: str


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until asked for."""

    summary: str
    blocks: Sequence["Block"] = field(default_factory=tuple)


Block = Heading | Paragraph | Bullets | Table | Alert | Picture | Details


def spans(text: Text) -> tuple[str | Span, ...]:
    """Return the pieces of a text."""
    return text if isinstance(text, tuple) else (text,)


def plain(text: Text) -> str:
    """Return a text without its looks."""
    return "".join(part if isinstance(part, str) else part.text for part in spans(text))
