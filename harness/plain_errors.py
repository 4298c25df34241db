"""Errors of the user's making, uncaught, as one message instead of a traceback: lm-eval's command line is not ours to catch them in."""

import os
import sys
from types import TracebackType

from .errors import T2Error


def install() -> None:
    """Make the interpreter print an uncaught `T2Error` as its message; every other error is left to the hook that was there.

    ``T2_TRACEBACK=1`` shows tracebacks all the same. Calling it twice changes nothing.
    """
    if getattr(sys.excepthook, "_t2", False):
        return
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, T2Error) and os.environ.get("T2_TRACEBACK", "") in ("", "0"):
            print(f"t2: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    show._t2 = True  # type: ignore[attr-defined]
    sys.excepthook = show
