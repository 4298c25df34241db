"""Blocks as GitHub-flavoured Markdown. All escaping for it is here."""

import re
from collections.abc import Sequence

from tabulate import tabulate

from .blocks import DASH as DASH
from .blocks import Alert, Block, Bullets, Details, Heading, Item, Paragraph, Picture, Span, Table, Text, spans

PLOTS = "plots"  # folder beside the report
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;"}
_SPECIAL = re.compile(r"[\\`*\[\]~]")
# An underscore emphasises only at the edge of a word: math_algebra stays readable.
_EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_LINK = re.compile(r"(?i)\b(https?|ftp)://|\bwww\.")
# Mentions notify people, addresses become links; pass@1 is neither.
_MENTION = re.compile(r"@(?!(?<=[A-Za-z]@)\d+(?![\w.]))")
# What opens a heading or a list at the start of a line.
_OPENING = re.compile(r"^(?:(?=[#+=-])|(\d{1,9})(?=[.)](?: |$)))")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


def escape(text: str) -> str:
    """Return `text` so that GitHub shows it as it is, in a table cell too: no markup, HTML, mention, link or line break."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates, legal in JSON, could not be written
    text = _CONTROL.sub(" ", text).strip()
    text = "".join(_ENTITIES.get(char, char) for char in text)
    text = _SPECIAL.sub(lambda match: "\\" + match.group(0), text)
    text = _LINK.sub(lambda match: match.group(0).replace(":", "&#58;").replace(".", "&#46;"), text)
    text = _MENTION.sub("&#64;", text)
    return _EDGE_UNDERSCORE.sub(r"\_", text)


def render(blocks: Sequence[Block]) -> str:
    """Return the blocks as one text; pictures are links to ``plots/NAME.png``."""
    return "\n\n".join(text for block in blocks if (text := _block(block))) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escape(block.text)}"
        case Paragraph():
            return inline(block.text)
        case Bullets():
            return "\n".join(line for item in block.items for line in _item(item))
        case Table():
            return _table(block)
        case Alert():
            lines = [f"> [!{block.kind}]", f"> **{escape(block.title)}**", ">", *(f"> - {inline(line)}" for line in block.lines)]
            return "\n".join(lines)
        case Picture():
            return f"![{escape(block.caption)}]({PLOTS}/{block.name}.png)"
        case Details():
            # The blank lines let Markdown inside work.
            return f"<details>\n<summary>{escape(block.summary)}</summary>\n\n{render(block.blocks).rstrip()}\n\n</details>"


def inline(text: Text) -> str:
    """Return a text with its bold and code."""
    parts = spans(text)
    line = "".join(_span(part) for part in parts).strip()
    return _OPENING.sub(r"\1\\", line) if isinstance(parts[0], str) else line


def _span(part: str | Span) -> str:
    if isinstance(part, str):
        # Spaces around a piece belong to the sentence, those inside have no meaning.
        return f"{' ' * part.startswith(' ')}{escape(part)}{' ' * (part.endswith(' ') and bool(part.strip()))}"
    if part.kind == "figure":
        return part.text
    # In a table a pipe ends the cell, even inside code, and GitHub knows no entity there.
    return f"**{escape(part.text)}**" if part.kind == "strong" else f"<code>{escape(part.text)}</code>"


def _item(item: Item | Text) -> list[str]:
    if not isinstance(item, Item):
        return [f"- {inline(item)}"]
    return [f"- {inline(item.text)}", *(f"  - {inline(text)}" for text in item.below)]


def _table(block: Table) -> str:
    return table([inline(cell) for cell in block.header], [[inline(cell) for cell in row] for row in block.rows], block.left)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a pipe table; cells are Markdown already (escape what comes from files).

    Args:
        header: column titles.
        rows: cells, as many in each row as there are titles.
        left: how many columns, from the first, are text (left-aligned); the others are numbers.
    """
    align = ["left" if i < left else "right" for i in range(len(header))]
    # numparse off: tabulate would turn the label "1e5" into 100000.
    body = [list(row) for row in rows]
    return tabulate(body, headers=list(header), tablefmt="pipe", colalign=align if rows else None, disable_numparse=True)
