"""Blocks as one HTML page that needs nothing else: no network, no other file, and no script but the few lines here.

All escaping for HTML is here. The page's own content security policy forbids every other script, so that a mistake in it would still
run nothing.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence

from .blocks import Alert, Block, Bullets, Details, Heading, Item, Paragraph, Picture, Span, Table, Text, plain, spans

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --note: #0969da; --warning: #9a6700; --caution: #cf222e; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1.5rem; }
h1, h2 { line-height: 1.2; margin: 2rem 0 .8rem; } h1 { margin-top: 0; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { border-bottom-width: 2px; white-space: normal; vertical-align: bottom; }
td.text, th.text { text-align: left; } td.text { white-space: normal; min-width: 6rem; max-width: 26rem; overflow-wrap: break-word; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid var(--note); }
th[aria-sort=ascending] button::after { content: " \\25b2"; } th[aria-sort=descending] button::after { content: " \\25bc"; }
tbody tr:hover { background: var(--soft); }
.alert { border-left: 4px solid var(--note); background: var(--soft); padding: .6rem 1rem; margin: 1rem 0; }
.alert p { margin: 0; font-weight: 600; } .alert ul { margin: .3rem 0 0; }
.warning { border-color: var(--warning); } .caution { border-color: var(--caution); }
li, p, figcaption { overflow-wrap: break-word; max-width: 60rem; } code { background: var(--soft); padding: 0 .25em; border-radius: 3px; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; background: #fff; } figcaption { font-size: .9rem; }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0; }
"""

# Sorts by the first number of each cell, and by its text where it has none; cells without a number go last.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const text = row => row.cells[column].textContent.trim();
    const figure = /^[+-]?[\\d.]+(?:e[+-]?\\d+)?/i;
    const number = row => { const found = text(row).replace(/,/g, "").match(figure); return found ? parseFloat(found[0]) : NaN; };
    const numeric = !head.classList.contains("text");
    const [first, second] = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    const way = head.getAttribute("aria-sort") === first ? second : first, sign = way === "ascending" ? 1 : -1;
    const unknown = row => numeric && isNaN(number(row));
    const order = (a, b) => numeric ? number(a) - number(b) : text(a).localeCompare(text(b));
    const rows = [...body.rows].sort((a, b) => unknown(a) - unknown(b) || (unknown(a) ? 0 : sign * order(a, b)));
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
    body.append(...rows);
  }));
}
"""


def render(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        blocks: its content.
        pictures: name of a `Picture` → SVG. They go in as images, in which a browser runs no script.
    """
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    own = f"style-src '{_hash(_STYLE)}'; script-src '{_hash(_SCRIPT)}'"
    policy = f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"
    head = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>',
        f"<style>{_STYLE}</style>\n</head>\n<body>",
    ]
    body = [_block(block, pictures) for block in blocks]
    return "\n".join([*head, *filter(None, body), f"<script>{_SCRIPT}</script>\n</body>\n</html>"]) + "\n"


def escape(text: str) -> str:
    """Return `text` so that a browser shows it as it is, between tags and inside quoted attributes."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates, legal in JSON, could not be written
    return html.escape(_CONTROL.sub(" ", text), quote=True)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _block(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{_inline(block.text)}</p>"
        case Bullets():
            return _list(block.items) if block.items else ""
        case Table():
            return _table(block)
        case Alert():
            return f'<div class="alert {block.kind.lower()}">\n<p>{escape(block.title)}</p>\n{_list(block.lines)}\n</div>'
        case Picture():
            data = base64.b64encode(pictures[block.name]).decode()
            caption = escape(block.caption)
            return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        case Details():
            inside = "\n".join(_block(each, pictures) for each in block.blocks)
            return f"<details>\n<summary>{escape(block.summary)}</summary>\n{inside}\n</details>"


def _inline(text: Text) -> str:
    return "".join(_span(part) for part in spans(text))


def _span(part: str | Span) -> str:
    if isinstance(part, str):
        return escape(part)
    tag = {"strong": "strong", "code": "code", "figure": ""}[part.kind]
    return f"<{tag}>{escape(part.text)}</{tag}>" if tag else escape(part.text)


def _list(items: Sequence[Item | Text]) -> str:
    lines = []
    for item in items:
        text, below = (item.text, item.below) if isinstance(item, Item) else (item, ())
        lines.append(f"<li>{_inline(text)}{_list(below) if below else ''}</li>")
    return "<ul>\n" + "\n".join(lines) + "\n</ul>"


def _table(block: Table) -> str:
    def cell(tag: str, i: int, content: str) -> str:
        kind = ' class="text"' if i < block.left else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    head = "".join(cell("th", i, f'<button type="button">{escape(plain(title))}</button>') for i, title in enumerate(block.header))
    rows = ["<tr>" + "".join(cell("td", i, _inline(text)) for i, text in enumerate(row)) + "</tr>" for row in block.rows]
    body = "\n".join(rows)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
