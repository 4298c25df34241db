"""GitHub-flavoured Markdown: escaping, tables, alerts."""

import re
from collections.abc import Sequence

from tabulate import tabulate

DASH = "\u2013"
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "$": "&#36;"}
_SPECIAL = re.compile(r"[\\`*\[\]~]")
# An underscore emphasises only at the edge of a word: math_algebra stays readable.
_EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_LINK = re.compile(r"(?i)\b(https?|ftp)://|\bwww\.")
# Mentions notify people, addresses become links; pass@1 is neither.
_MENTION = re.compile(r"@(?!(?<=[A-Za-z]@)\d+(?![\w.]))")
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


def bullets(lines: Sequence[str]) -> str:
    """Return a list of one line each, escaped."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def warning(title: str, lines: Sequence[str], kind: str = "WARNING") -> str:
    """Return a GitHub alert with a bold title and escaped bullets."""
    return "\n".join([f"> [!{kind}]", f"> **{title}**", ">", *(f"> - {escape(line)}" for line in lines)])


def details(summary: str, body: str) -> str:
    """Return a block that is collapsed on GitHub; the blank lines let Markdown inside work."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"
