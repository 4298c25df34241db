"""What goes wrong while fetching, told source by source."""

from dataclasses import dataclass

from ..errors import T2Error


@dataclass(frozen=True)
class Attempt:
    """One source that was tried: its name and why it gave nothing."""

    source: str
    reason: str


class SourceError(T2Error):
    """One source could not deliver; the next one is tried."""


class FetchError(T2Error):
    """No source delivered. The message names each of them with its reason, then what to do.

    Args:
        what: what was wanted, e.g. ``the default model``.
        attempts: the sources in the order in which they were tried.
        advice: one sentence with the command or setting that mends it.
    """

    def __init__(self, what: str, attempts: list[Attempt], advice: str) -> None:
        lines = [f"Could not get {what}. Tried:"]
        lines += [f"  - {attempt.source}: {attempt.reason}" for attempt in attempts]
        super().__init__("\n".join([*lines, advice]))
