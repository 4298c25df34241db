"""Equality of two MATH answers: by text, by a few rules of ours, else by math-verify in a process of its own.

math-verify's own time limit is a signal, which works in the main thread only and cannot stop C code. A process can be used from any
thread, and ended.
"""

import atexit
import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from ..harness.errors import T2Error
from .math_answers import THOUSANDS, plain_form

log = logging.getLogger(__name__)

LONGEST = 300  # characters; the longest reference answer of MATH has about 150, and a longer "answer" is a reply that went astray
WALL_SECONDS = 60.0  # for a worker that sleeps; the real limit is CPU time, so that a busy machine changes no score
_BASE = re.compile(r"_\{?(\d+)\}?$")
_NAME = re.compile(r"(?:\\?[A-Za-z]+)(?:_\{?\w+\}?|'|\(\w+\))*")
_HALF_OF_DAY = re.compile(r"([ap])\.?\s*m\.?$", re.I)
_ORDERED = re.compile(r"\([^()]*,[^()]*\)")
_SET = re.compile(r"\\\{[^()]*\\\}")
_NO_VARIABLE = re.compile(r"\\[A-Za-z]+|[A-Za-z]'?\([^()]*\)|[A-Za-z]{2,}|[_^](?:\{[^{}]*\}|\w)")
"""Commands, values of functions, words, subscripts and exponents."""


class VerifierError(T2Error):
    """math-verify cannot be run here."""


class _Undecided(Exception):
    """math-verify could not decide within its limits; an exception, because no cache keeps one."""


class _Worker:
    """One worker process and the lock that gives it one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, gold: str, answer: str) -> bool:
        """Return math-verify's verdict.

        Raises:
            _Undecided: it has come to its limits.
            VerifierError: it does not start, or something else has ended it twice: the machine's failure is no wrong answer.
        """
        status = 0
        with self.lock:
            for _ in range(2):
                line, status = self._exchange(gold, answer)
                if line:
                    return bool(json.loads(line))
        raise VerifierError(
            f"Answers of MATH cannot be checked: math-verify's process ended twice (exit status {status}) while it compared {answer!r} "
            f"with {gold!r}. A status of -9 is mostly the machine's want of memory: make room, then run again."
        )

    def _exchange(self, gold: str, answer: str) -> tuple[str, int]:
        """Ask once; return the line that answers, or an empty one and the exit status of a process that its limits have not ended."""
        process = self._running()
        late = threading.Event()
        guard = threading.Timer(WALL_SECONDS, lambda: (late.set(), process.kill()))
        guard.start()
        try:
            assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both are pipes
            process.stdin.write(json.dumps([gold, answer]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # Ctrl-C between question and answer: the next reader would get a stale line
            self.stop()
            raise
        finally:
            guard.cancel()
        if not line:
            self.stop()
            if late.is_set() or process.returncode == -signal.SIGPROF:
                raise _Undecided
        return line, process.returncode or 0

    def _running(self) -> subprocess.Popen[str]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        path = Path(__file__).with_name("math_worker.py")
        # -P: without it this folder heads the module path, and its folder `math` would be found by `import math`.
        command = [sys.executable, "-P", str(path)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
            )
            first = json.loads(process.stdout.readline() or "{}") if process.stdout else {}
        except (OSError, ValueError) as error:
            raise VerifierError(f"Answers of MATH cannot be checked: {' '.join(command)} does not start ({error}).") from error
        if not first.get("ready"):
            process.kill()
            reason = first.get("error", f"exit code {process.wait()}")
            cure = "Try: pip install 'math-verify[antlr4_13_2]'"
            raise VerifierError(f"Answers of MATH cannot be checked: math-verify does not load ({reason}). {cure}")
        self.process = process
        return process

    def stop(self) -> None:
        """End the process; the next question starts a new one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # a question that it has not read
                        pipe.close()
        self.process = None


_worker = _Worker()


def _forget() -> None:
    """After a fork: pipes and lock belong to the parent, and a child that used or closed them would mix up its answers."""
    global _worker
    _worker = _Worker()


atexit.register(lambda: _worker.stop())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _different(gold: str, answer: str) -> bool:
    """True where math-verify would call different answers equal.

    It drops a number's base and a.m. and p.m., takes a pair for a set, and an equation for its right side: right for ``x = 0``, for
    ``3 - 3 = 0`` and for ``a + b = 0``, but ``20x + 23y = 0``, variables with numbers, is no way to say 0. A base that the reference has
    may be missing, since the question has asked for it; not the other way round: ``12_{7}`` is 9, not 12.
    """
    asked, base = _BASE.search(gold), _BASE.search(answer)
    if base and base[1] != (asked[1] if asked else "10"):
        return True
    first, second = _HALF_OF_DAY.search(gold), _HALF_OF_DAY.search(answer)
    if first and second and first[1].lower() != second[1].lower():
        return True
    if any(_ORDERED.fullmatch(one) and _SET.fullmatch(other) for one, other in ((gold, answer), (answer, gold))):
        return True
    if "=" in gold or not answer.endswith("=0") or _NAME.fullmatch(answer[:-2]):
        return False
    rest = _NO_VARIABLE.sub(" ", answer[:-2])
    return re.search(r"[A-Za-z]", rest) is not None and re.search(r"\d", rest) is not None


@lru_cache(maxsize=8192)
def _verdict(gold: str, answer: str) -> bool:
    return _worker.ask(gold, answer)


def same_value(gold: str, answer: str) -> bool:
    """True if two answers are the same: as text without typesetting, else by value.

    Args:
        gold: the reference; never equal to anything if empty.
        answer: what was extracted from a reply.

    Raises:
        VerifierError: math-verify cannot be run here.
    """
    left, right = plain_form(gold), plain_form(answer)
    if not left or not right:
        return False
    if left == right:
        return True
    if len(answer) > LONGEST or _different(left, right):
        return False
    try:
        return _verdict(_bare(gold), _bare(answer))
    except _Undecided:
        log.warning("math-verify could not decide whether %r is %r within its limits; counted as different.", answer, gold)
        return False


def _bare(answer: str) -> str:
    r"""Return an answer that can stand between dollar signs: without its own, and without thousands marks like ``1,\!000``."""
    return re.sub(r"(?<!\\)\$", "", THOUSANDS.sub("", answer)).rstrip(". ")
