"""The process that runs math-verify; started by `math_verifier` by file path, imports nothing of ours.

Reads JSON lines ``[gold, answer]`` and writes ``true`` or ``false``. Sympy will happily compute 9^9^9 in C code that no Python signal
can interrupt, so each question has a budget of CPU time after which the kernel ends this process: that is the caller's cue.
"""

import contextlib
import json
import os
import signal
import sys

CPU_SECONDS = 4.0
MEMORY_BYTES = 4 << 30


def main() -> None:
    """Announce readiness (or why not) in one JSON line, then answer until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        import logging

        from math_verify import parse, verify
    except Exception as error:
        out.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        out.flush()
        return
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    timer = getattr(signal, "setitimer", None)
    # One call each before the first question: the grammar's tables take a second to build.
    verify(parse("$\\frac{1}{2}$", parsing_timeout=0), parse("$0.5$", parsing_timeout=0), timeout_seconds=0)
    out.write(json.dumps({"ready": True}) + "\n")
    out.flush()
    for line in sys.stdin:
        gold, answer = json.loads(line)
        if timer:
            timer(signal.ITIMER_PROF, CPU_SECONDS)  # default action of SIGPROF: the process ends
        try:
            same = bool(verify(parse(f"${gold}$", parsing_timeout=0), parse(f"${answer}$", parsing_timeout=0), timeout_seconds=0))
        except (Exception, RecursionError, MemoryError):
            same = False
        if timer:
            timer(signal.ITIMER_PROF, 0.0)
        out.write(json.dumps(same) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
