"""The gate's verdict as text, Markdown (for a pull-request comment) and JUnit XML."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

from tabulate import tabulate

from ..blocks import some
from ..markdown import DASH, escape
from .gate import Comparison, Verdict
from .ratios import Ratio

_SCORES = ("Task", "Metric", "n", "Baseline", "Run", "Difference [95%]", "Lost", "Won", "p (Holm)", "Sees drops of", "Verdict")
_RATIOS = ("Figure", "Baseline", "Run", "Repeats", "Change", "Limit", "Sees changes of", "False alarms", "Verdict")
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(verdict: Verdict) -> str:
    """Return the verdict for a terminal."""
    parts = [title(verdict)]
    for heading, lines in _lists(verdict):
        parts.append("\n".join([f"{heading}:", *(f"  - {line}" for line in lines)]))
    for header, rows in _tables(verdict):
        parts.append(tabulate(rows, headers=header, tablefmt="simple", disable_numparse=True))
    parts += explanations(verdict)
    return "\n\n".join(_NO_XML.sub(" ", part) for part in parts) + "\n"


def one_line(value: str) -> str:
    """Return `value`, which may come from a file, without line breaks: it must not look like lines of the gate's own."""
    return " ".join(value.split())


def markdown(verdict: Verdict) -> str:
    """Return the verdict for GitHub."""
    parts = [f"### {escape(title(verdict))}"]
    kinds = {"Cannot judge": "CAUTION", "Compares unlike things, as it was told to": "WARNING"}
    for heading, lines in _lists(verdict):
        quote = "> " if heading in kinds else ""
        first = [f"> [!{kinds[heading]}]", f"> **{heading}**", ">"] if heading in kinds else [f"**{heading}**", ""]
        parts.append("\n".join([*first, *(f"{quote}- {escape(line)}" for line in lines)]))
    for header, rows in _tables(verdict):
        cells = [[escape(cell) if i == 0 or (header is _SCORES and i == 1) else cell for i, cell in enumerate(row)] for row in rows]
        align = ["left" if title in ("Task", "Metric", "Figure", "Verdict") else "right" for title in header]
        parts.append(tabulate(cells, headers=header, tablefmt="pipe", colalign=align, disable_numparse=True))
    parts += [escape(line) for line in explanations(verdict)]
    return "\n\n".join(parts) + "\n"


def junit(verdict: Verdict) -> str:
    """Return the verdict as JUnit XML: a test case for each task and figure, one for whether they can be compared at all."""
    suites = ET.Element("testsuites")
    suite = ET.SubElement(suites, "testsuite", name="t2 regress")
    counts = {"failure": 0, "error": 0, "skipped": 0}

    def case(name: str, kind: str, out: str, message: str = "", bad: str = "") -> None:
        node = ET.SubElement(suite, "testcase", classname=f"t2.regress.{kind}", name=_xml(name), time="0")
        if bad:
            counts[bad] += 1
            ET.SubElement(node, bad, message=_xml(message)).text = None if bad == "skipped" else _xml(out)
        ET.SubElement(node, "system-out").text = _xml(out)

    lines = [line for _, found in _lists(verdict) for line in found]
    case("comparable", "gate", "\n".join([title(verdict), *lines]), "; ".join(verdict.problems), "error" if verdict.problems else "")
    scores = [("score", row.name, row.verdict, _SCORES, _score_cells(row)) for row in verdict.comparisons]
    figures = [("figure", row.name, row.verdict, _RATIOS, _ratio_cells(row)) for row in verdict.ratios]
    for kind, name, found, header, cells in (*scores, *figures):
        bad = {"regression": "failure", "rise": "failure", "not gated": "skipped"}.get(found, "")
        message = f"{name}: {cells[-1]}" if bad == "failure" else found
        case(name, kind, "\n".join(f"{title}: {cell}" for title, cell in zip(header, cells, strict=True)), message, bad)
    suite.attrib |= {"tests": str(len(suite)), "failures": str(counts["failure"]), "errors": str(counts["error"])}
    suite.attrib |= {"skipped": str(counts["skipped"]), "time": "0"}
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites).decode() + "\n"  # ASCII, whatever the terminal's encoding


FORMATS: dict[str, Callable[[Verdict], str]] = {"text": text, "markdown": markdown, "junit": junit}


def title(verdict: Verdict) -> str:
    """Return one line that says it all."""
    unlike = ", UNLIKE THINGS COMPARED" if verdict.unlike else ""
    if verdict.problems:
        also = f"; what could be compared shows a regression in {', '.join(verdict.failed)}" if verdict.failed else ""
        return one_line(f"t2 regress: cannot judge{also}{unlike}")
    if verdict.failed:
        return one_line(f"t2 regress: REGRESSION in {', '.join(verdict.failed)}{unlike}")
    gated = sum(row.verdict != "not gated" for row in [*verdict.comparisons, *verdict.ratios])
    return f"t2 regress: ok, {gated} gated{unlike}"


def explanations(verdict: Verdict) -> list[str]:
    """Return the sentences below the tables: what was tested, and what the gate can see."""
    rules, found = verdict.thresholds, []
    gated = [row for row in verdict.comparisons if row.gated]
    if gated:
        seen = "; ".join(f"{row.name}: {_drop(row)}" for row in gated)
        found.append(f"This gate sees with {rules.power:.0%} power drops of: {seen}.")
        sided, change = ("two-sided", "drop or rise") if rules.direction == "both" else ("one-sided", "drop")
        most = "about" if verdict.uneven else "at most"
        found.append(
            f"The tests fail a run with nothing changed with a chance of {most} {rules.alpha:.2g}, all {len(gated)} gated together "
            f"({sided}, for a {change} on the same documents: exact McNemar for 0/1 scores, else by permutation; Holm's correction)."
        )
        if verdict.uneven:
            found.append(
                f"That chance is approximate, as baseline and run are of unequal numbers of repeats: {some(verdict.uneven, 4)}. Give as "
                "many to --update as to the gate."
            )
    for row in gated:
        if row.limit_alarm is not None:
            found.append(f"{row.name}: max_drop {row.rule.max_drop:g} on its own fails {row.limit_alarm:.1%} of unchanged runs.")
    if any(row.limit is not None and row.sees is None for row in verdict.ratios):
        found.append("Gated figures without repeats: their noise is not known. Give several runs to --update and to the gate.")
    return [one_line(line) for line in found]


def _lists(verdict: Verdict) -> list[tuple[str, list[str]]]:
    reasons = [f"{row.name}: {row.why}" for row in verdict.comparisons if row.why]
    lists = [
        ("Cannot judge", verdict.problems),
        ("Compares unlike things, as it was told to", verdict.unlike),
        ("Why", reasons),
        ("Notes", verdict.notes),
    ]
    return [(heading, [one_line(line) for line in lines]) for heading, lines in lists if lines]


def _tables(verdict: Verdict) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    tables = [(_SCORES, [_score_cells(row) for row in verdict.comparisons]), (_RATIOS, [_ratio_cells(row) for row in verdict.ratios])]
    return [(header, rows) for header, rows in tables if rows]


def _score_cells(row: Comparison) -> list[str]:
    low, high = row.interval
    name = one_line(f"{row.name} ({len(row.members)} tasks together)" if row.members else row.name)
    metric = one_line(row.metric + " (%)" * row.proportion + " (lower is better)" * (row.sign < 0))
    interval = f" [{_signed(low, row)}, {_signed(high, row)}]" if low < high else ""  # no document differs: no interval either
    difference = f"{_signed(row.difference, row)}{interval}"
    scores = [_number(row.before, row), _number(row.after, row)]
    return [name, metric, str(row.n), *scores, difference, str(row.lost), str(row.won), f"{row.p:.2g}", _drop(row), _shown(row.verdict)]


def _ratio_cells(row: Ratio) -> list[str]:
    limit = DASH if row.limit is None else f"x {row.limit:.3g}"
    sees = DASH if row.sees is None else f"x {row.sees:.3g}"
    alarm = DASH if row.false_alarm is None else f"{row.false_alarm:.1%}"
    change = DASH if math.isnan(row.growth) else f"x {row.growth:.3g}"
    repeats = f"{row.repeats[0]} / {row.repeats[1]}"
    return [one_line(row.name), f"{row.before:.4g}", f"{row.after:.4g}", repeats, change, limit, sees, alarm, _shown(row.verdict)]


def _shown(verdict: str) -> str:
    return {"regression": "REGRESSION", "rise": "RISE"}.get(verdict, verdict)


def _drop(row: Comparison) -> str:
    if row.sees is None:
        return row.blind
    return f"{row.sees * 100:.1f} points or more" if row.proportion else f"{row.sees:.3g} or more"


def _number(value: float, row: Comparison) -> str:
    return f"{value * 100:.2f}" if row.proportion else f"{value:.4g}"


def _signed(value: float, row: Comparison) -> str:
    shown = f"{value * 100:+.2f}" if row.proportion else f"{value:+.3g}"
    return shown.replace("+", "") if not float(shown) else shown


def _xml(value: str) -> str:
    return _NO_XML.sub("\ufffd", value)
