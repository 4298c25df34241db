"""What pass 1 made of the prompts: confusion of true domains with chosen categories (figure 6 of the paper), from logged samples."""

from collections import Counter
from collections.abc import Mapping

from .blocks import DASH, Table, Text, figure
from .leaderboard import Board
from .paired import Logged

Confusion = dict[str, Counter[str]]
"""True domain -> how many documents went into which category."""

# By the beginnings of tasks' names, where a task does not say it itself (`metadata: {t2_domain: …}`).
_DOMAINS = {"math": ("math", "gsm8k", "minerva_math", "hendrycks_math"), "code": ("humaneval", "mbpp"), "reasoning": ("arc_",)}


def domain(task: str, told: str | None) -> str | None:
    """Return what a task's documents are about, None if it is not known."""
    return told or next((name for name, starts in _DOMAINS.items() if task.startswith(starts)), None)


def confusions(board: Board, logged: Logged) -> dict[str, Confusion]:
    """Return row label -> confusion, for the rows whose logged samples tell their category."""
    found = {}
    for row in board.rows:
        matrix: Confusion = {}
        for column in board.columns:
            for leaf in row.leaves(column.task):
                result = row.task(leaf)
                about = domain(leaf, result.domain if result else None)
                if about and (categories := logged.categories(row, leaf, column.key)):
                    matrix.setdefault(about, Counter()).update(categories)
        if matrix:
            found[row.label] = dict(sorted(matrix.items()))
    return found


def categories(matrices: Mapping[str, Confusion]) -> list[str]:
    """Return all categories: the domains' first, `others` last."""
    names = {name for matrix in matrices.values() for counts in matrix.values() for name in counts}
    domains = {name for matrix in matrices.values() for name in matrix}
    return sorted(names | domains, key=lambda name: (name == "others", name not in domains, name))


def confusion_table(matrices: Mapping[str, Confusion]) -> Table:
    """Return a line per row and domain: share and number of documents in each category, and how many are right in all."""
    columns = categories(matrices)
    lines: list[list[Text]] = []
    for label, matrix in matrices.items():
        for about, counts in matrix.items():
            total = sum(counts.values())
            cells = [figure(f"{counts[name] / total:.1%} ({counts[name]:,})") if counts[name] else DASH for name in columns]
            lines.append([label, about, figure(f"{total:,}"), *cells])
    return Table(["Method", "Domain", "Documents", *columns], lines, left=2)
