"""Errors of the user's making: shown as one message, never as a traceback at the command line."""

import difflib
from collections.abc import Iterable


class T2Error(Exception):
    """Base of every error that says what is wrong, with which value, and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'? Known: a, b, x.`` for an unknown `name`; the first sentence only when something is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(options) or 'none'}."
