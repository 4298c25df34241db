"""One job from start to verdict: two jails, one watcher.

The parent never runs or parses anything of the candidate. It decides by the report of the judge, which bears a secret of this job, and
by the exit status of the two jails where there is no report.
"""

import contextlib
import json
import os
import secrets
import select
import selectors
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from .jail import Child, Jail, Role, judge_limits
from .plan import Plan
from .processes import LOOK_SECONDS, computes, usage_below
from .verdict import Cancelled, Job, Limits, SandboxUnavailable, Verdict

_KEEP = 4096  # bytes of a worker's output kept for error messages
_STRETCH = 30  # a program still computing at the wall limit gets this many times it, so that load does not decide; CPU seconds do
_IDLE_LOOKS = 3  # after which nothing computes: at one look both processes may be between turns
_LAST_WORDS = 0.5  # seconds for a worker to end by itself once its channel is closed, for its CPU time to be known
_KILL_SECONDS = 60.0


@dataclass
class _Worker:
    """A started worker: its keeper, the pipes of its output and of the keeper's report, and what came out."""

    child: Child
    output: int
    status: int
    scratch: str | None
    pid: int = -1
    tail: bytes = b""
    printed: int = 0
    code: int | None = None
    cpu_seconds: float | None = None
    killed: bool = False

    def drain(self) -> bool:
        """Read what is there; False at its end."""
        try:
            data = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return True
        self.printed += len(data)
        self.tail = (self.tail + data)[-_KEEP:]
        return bool(data)

    def reap(self, grace: float) -> None:
        """Wait up to `grace` seconds for the end, then kill everything that it has started; take the keeper's report.

        Raises:
            SandboxUnavailable: It cannot be killed.
        """
        if self.code is not None or self.killed:
            return
        if not _readable(self.child.pidfd, grace):
            self.killed = True
            self.child.kill()
            if not _readable(self.child.pidfd, _KILL_SECONDS):
                raise SandboxUnavailable(f"The sandbox's process {self.pid} cannot be killed. The run ends without a score.")
        with contextlib.suppress(BlockingIOError):
            if report := os.read(self.status, 256):
                self.code, self.cpu_seconds = json.loads(report)

    def close(self) -> None:
        """Kill what is left, free the descriptors and the scratch directory."""
        try:
            self.reap(0)
        finally:
            for fd in (self.output, self.status, self.child.pidfd):
                os.close(fd)
            if self.scratch:
                shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def signal(self) -> int | None:
        """The signal that ended it."""
        return -self.code if self.code is not None and self.code < 0 else None

    def said(self) -> str:
        """The end of its output, for a message."""
        for _ in range(16):  # what the pipe still holds (64 KiB at most)
            if not self.drain():
                break
        return clean(self.tail.decode(errors="replace").strip()[-600:]) or "it said nothing"


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(int(1000 * seconds)))


def clean(text: str, limit: int = 500) -> str:
    """Make text from a candidate safe to print: one line, no control characters, bounded."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[:limit] + "…"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time signals have no names
        return f"signal {number}"


def run_job(jail: Jail, job: Job, plan: Plan, limits: Limits, cancel: threading.Event | None = None) -> Verdict:
    """Judge one job; an `infrastructure_error` verdict where the machine, not the candidate, failed.

    Raises:
        Cancelled: `cancel` was set meanwhile.
        SandboxUnavailable: A worker cannot be killed.
    """
    secret = secrets.token_hex(16)
    fds = _Pipes()
    workers: list[_Worker] = []
    payload = {
        "nonce": secret,
        "candidate": job.code,
        "tests": job.tests,
        "helpers": job.helpers,
        "names": list(plan.names),
        "modules": list(plan.modules),
        "entry_points": list(plan.entry_points),
    }
    try:
        source = fds.keep(os.memfd_create("job"))
        with open(os.dup(source), "wb") as file:
            file.write(json.dumps(payload).encode())
            file.seek(0)
        calls_r, calls_w = fds.pipe()
        replies_r, replies_w = fds.pipe()
        report_r, report_w = fds.pipe()
        nothing = fds.keep(os.open(os.devnull, os.O_RDONLY))
        candidate = _start(jail, "candidate", limits, (nothing, calls_r, replies_w), fds)
        workers.append(candidate)
        judge = _start(jail, "judge", judge_limits(limits), (source, replies_r, calls_w, report_w), fds)
        workers.append(judge)
        fds.close(calls_r, calls_w, replies_r, replies_w, report_w, source, nothing)
        verdict = _Watch(candidate, judge, report_r, secret, plan, limits, cancel).verdict()
        if verdict.passed:  # the judge's end closes the candidate's channel, and that ends the candidate
            judge.reap(_LAST_WORDS)
            candidate.reap(_LAST_WORDS)
        return replace(verdict, cpu_seconds=candidate.cpu_seconds)
    except OSError as error:
        return Verdict("infrastructure_error", f"cannot start a jail: {error}")
    finally:
        fds.close_all()
        for worker in reversed(workers):
            worker.close()


class _Pipes:
    """Descriptors of one job, closed whatever happens."""

    def __init__(self) -> None:
        self.open: set[int] = set()

    def keep(self, fd: int) -> int:
        self.open.add(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        return self.keep(read), self.keep(write)

    def close(self, *fds: int) -> None:
        for fd in fds:
            self.open.discard(fd)
            os.close(fd)

    def close_all(self) -> None:
        self.close(*tuple(self.open))


def _start(jail: Jail, role: Role, limits: Limits, channel: tuple[int, ...], fds: _Pipes) -> _Worker:
    scratch = tempfile.mkdtemp(prefix="t2-sandbox-") if jail.kind == "process" else None
    out_r, out_w = fds.pipe()
    status_r, status_w = fds.pipe()
    os.set_blocking(out_r, False)
    os.set_blocking(status_r, False)
    try:
        child = jail.spawn(role, limits, (status_w, out_w, *channel), scratch)
    except OSError:
        if scratch:
            os.rmdir(scratch)
        raise
    fds.close(out_w, status_w)
    fds.open -= {out_r, status_r}  # the worker's from here on
    return _Worker(child, out_r, status_r, scratch, child.pid)


@dataclass
class _Watch:
    """Waits for the judge's report under the clock, and turns what happened into a verdict."""

    candidate: _Worker
    judge: _Worker
    report: int
    secret: str
    plan: Plan
    limits: Limits
    cancel: threading.Event | None
    pending: bytes = b""
    ready: float | None = None
    look: float = float("inf")
    idle: int = 0
    seen: dict[int, float] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def verdict(self) -> Verdict:
        with selectors.DefaultSelector() as selector:
            selector.register(self.report, selectors.EVENT_READ, None)
            for worker in (self.candidate, self.judge):
                selector.register(worker.output, selectors.EVENT_READ, worker)
            while True:
                for key, _ in selector.select(LOOK_SECONDS):
                    if key.data is None:
                        message = self._message()
                        if message is not None:
                            return self._decide(message)
                    elif not key.data.drain():
                        selector.unregister(key.fd)
                if self.candidate.printed > self.limits.output_bytes:
                    return self._end("output_limit", f"printed more than {self.limits.output_bytes} bytes")
                if self.cancel is not None and self.cancel.is_set():
                    raise Cancelled("judging was cancelled")
                late = self._late()
                if late is not None:
                    return late

    def _late(self) -> Verdict | None:
        now = time.monotonic()
        if self.ready is None:
            if now - self.began > self.limits.startup_seconds:
                return self._end("infrastructure_error", f"no jail after {self.limits.startup_seconds} s: {self.candidate.said()}")
            return None
        used = usage_below(self.candidate.pid)
        # The kernel's limits are for each process; here for all that it forked, those included that nobody has waited for.
        self.seen |= used.own
        seconds = max(used.cpu_seconds, sum(self.seen.values()))
        if seconds > 2 * self.limits.cpu_seconds:
            return self._end("timeout", f"used {seconds:.0f} s of CPU in several processes", limit="cpu")
        if used.memory_bytes > 2 * self.limits.memory_bytes:
            return self._end("memory", f"used {used.memory_bytes >> 20} MiB in several processes")
        if now > self.look:
            waited = now - self.ready
            computing = any(computes(pid, self.work) for pid in [*used.own, *usage_below(self.judge.pid).own])
            self.idle = 0 if computing else self.idle + 1
            if waited > _STRETCH * self.limits.wall_seconds or self.idle == _IDLE_LOOKS:
                return self._end("timeout", f"no result after {waited:.0f} s", limit="wall")
            self.look = now + (1.0 if computing else 0.0)
        return None

    def _message(self) -> dict[str, Any] | None:
        """The judge's result; `{}` when the report channel closed without one; None when there is more to wait for."""
        data = os.read(self.report, 1 << 16)
        if not data:
            return {}
        self.pending += data
        while b"\n" in self.pending:
            line, self.pending = self.pending.split(b"\n", 1)
            message = json.loads(line)
            if message.get("nonce") != self.secret:
                continue
            if message["outcome"] != "ready":
                return message
            self.ready = time.monotonic()
            self.look = self.ready + self.limits.wall_seconds
        return None

    def _end(self, status: Any, detail: str, **more: Any) -> Verdict:
        seconds = time.monotonic() - (self.ready or self.began)
        return Verdict(status, clean(detail), seconds, **more)

    def _decide(self, message: dict[str, Any]) -> Verdict:
        detail = str(message.get("detail", ""))
        outcome = message.get("outcome")
        if outcome in (None, "no_candidate"):
            return self._without_report(outcome)
        if outcome == "gone":
            return self._gone()
        while self.candidate.drain() and self._more():
            pass
        if self.candidate.printed > self.limits.output_bytes:
            return self._end("output_limit", f"printed more than {self.limits.output_bytes} bytes")
        if outcome == "completed":
            held = set(message.get("held", ()))
            if held and held >= self.plan.required:
                return self._end("passed", f"{len(held)} of {self.plan.asserts} asserts held")
            return self._end("failed", "the tests ended before all asserts had run", reason="incomplete")
        if outcome == "syntax":
            return self._end("syntax_error", detail)
        if outcome == "memory":
            return self._end("memory", detail)
        if outcome == "failed":
            return self._end("failed", detail, reason=message.get("reason"), test=message.get("test"))
        return self._end("infrastructure_error", detail or f"unknown report {outcome!r}", reason="tests" if outcome == "unusable" else None)

    def _more(self) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self.candidate.output, selectors.EVENT_READ)
            return bool(selector.select(0)) and self.candidate.printed <= self.limits.output_bytes

    def _without_report(self, outcome: str | None) -> Verdict:
        if self.ready is None:
            self.candidate.reap(1.0)
            self.judge.reap(1.0)
            who = self.candidate if outcome == "no_candidate" or self.candidate.code else self.judge
            return self._end("infrastructure_error", f"a worker did not start (exit status {who.code}): {who.said()}")
        # After the start only values of the candidate can have brought the judge to its limits.
        self.judge.reap(2.0)
        if self._out_of_time(self.judge, judge_limits(self.limits)):
            return self._end("timeout", "the tests never ended on what the program returned", limit="cpu")
        return self._end("infrastructure_error", f"the judge died (exit status {self.judge.code}): {self.judge.said()}", reason="judge")

    def _out_of_time(self, worker: _Worker, limits: Limits) -> bool:
        """Whether the kernel ended it for its CPU time: SIGXCPU at the limit, or SIGKILL a second later to one that blocks SIGXCPU."""
        elapsed = time.monotonic() - (self.ready or self.began)
        return worker.signal == signal.SIGXCPU or (worker.signal == signal.SIGKILL and elapsed >= limits.cpu_seconds + 1)

    def _gone(self) -> Verdict:
        """The candidate's process ended before the tests did."""
        self.candidate.reap(2.0)
        self.candidate.drain()
        if self.candidate.printed > self.limits.output_bytes:
            return self._end("output_limit", f"printed more than {self.limits.output_bytes} bytes")
        if self.candidate.killed:
            return self._end("failed", "the program closed its channel to the tests", reason="protocol")
        if self._out_of_time(self.candidate, self.limits):
            return self._end("timeout", f"used {self.limits.cpu_seconds} s of CPU", limit="cpu")
        if self.candidate.code is None:
            return self._end("infrastructure_error", "the candidate's keeper was killed", reason="keeper")
        number = self.candidate.signal
        if number == signal.SIGKILL:
            return self._end("memory", "killed (SIGKILL): most likely for memory, unless by itself", reason="killed")
        if number is not None:
            return self._end("failed", f"crashed by {_signal_name(number)}", reason="exit")
        return self._end("failed", f"the program ended itself (exit status {self.candidate.code}) during the tests", reason="exit")
