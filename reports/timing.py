"""The two-pass table: what pass 1 (finding the mixture) and pass 2 (answering) cost, as table 3 of the paper."""

from collections.abc import Sequence

from .blocks import DASH, Table, Text
from .paper import two_pass_seconds
from .passes import PassCost, TwoPass
from .rows import Row

HEADER = (
    "Method", "Task", "Chosen", "Pass 1 (s)", "Pass 2 (s)", "Pass 1 / pass 2",
    "Prompts", "Tokens in", "Tokens out", "Tokens out/s", "Switches",
)  # fmt: skip


def two_pass_table(rows: Sequence[Row], tasks: Sequence[str], paper: bool = False) -> Table | None:
    """Return the table over rows that record their passes, None if none does.

    Counts of both passes are written `pass 1 + pass 2` where pass 1 has any; `Tokens out/s` is of pass 2.

    Args:
        rows: the methods.
        tasks: the leaderboard's.
        paper: add the figures of the paper's table 3.
    """
    lines: list[list[Text]] = []
    for row in rows:
        for task in tasks:
            cost = row.two_pass(task)
            if cost is not None:
                lines.append([row.label, task, *_cells(cost)])
    if lines and paper:
        for label, task, one, two in two_pass_seconds(tasks):
            lines.append([label, task, DASH, f"{one:.2f}", f"{two:.2f}", f"{one / two:.1%}", *[DASH] * 5])
    return Table(HEADER, lines, left=3) if lines else None


def partial(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    """Say which group rows lack the passes of some of their tasks, so that their sums are too small."""
    notes = []
    for row in rows:
        for task in tasks:
            leaves = [leaf for leaf in row.leaves(task) if row.task(leaf)]
            missing = [leaf for leaf in leaves if row.two_pass(leaf) is None]
            if missing and len(missing) < len(leaves):
                notes.append(f"{task} of {row.label}: passes were not recorded for {', '.join(missing)}; the sums lack them.")
    return notes


def _cells(cost: TwoPass) -> list[str]:
    one, two = cost.pass1, cost.pass2
    return [
        chosen_shares(cost.chosen),
        f"{one.seconds:.2f}",
        f"{two.seconds:.2f}",
        f"{one.seconds / two.seconds:.1%}" if two.seconds > 0 else DASH,
        _both(one, two, "prompts"),
        _both(one, two, "tokens_in"),
        _both(one, two, "tokens_out"),
        f"{two.tokens_out / two.seconds:,.1f}" if two.seconds > 0 and two.tokens_out else DASH,
        str(one.switches + two.switches),
    ]


def _both(one: PassCost, two: PassCost, name: str) -> str:
    first, second = getattr(one, name), getattr(two, name)
    return f"{first:,} + {second:,}" if first else f"{second:,}"


def chosen_shares(chosen: dict[str, int]) -> str:
    """Return `math 80%, base 20%`, most frequent first; ties by name."""
    total = sum(chosen.values())
    if not total:
        return DASH
    ranked = sorted(chosen.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count / total:.0%}" for name, count in ranked if count)
