"""The sandbox's vocabulary: what is judged (`Job`), under which limits (`Limits`), with which outcome (`Verdict`)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from ..errors import T2Error

Status = Literal["passed", "failed", "timeout", "memory", "output_limit", "syntax_error", "infrastructure_error"]
Kind = Literal["bwrap", "process"]


class SandboxError(T2Error):
    """Scoring code is not possible or not trustworthy; never a score of 0."""


class SandboxUnavailable(SandboxError):
    """The sandbox cannot be started or its self-test fails on this machine."""


class MissingPackage(SandboxUnavailable):
    """A program or library of the system is not there; the message says how to get it."""


class UnusableTests(SandboxError):
    """The tests themselves cannot be judged: they do not compile, assert nothing, or pass arguments that cannot travel."""


class Cancelled(SandboxError):
    """Judging was given up because another job failed or the user interrupted the run."""


@dataclass(frozen=True)
class Limits:
    """What one candidate may use. CPU seconds are the limit that decides, so that a loaded machine scores like an idle one.

    Attributes:
        cpu_seconds: CPU time of each process of the candidate; whole seconds. All together may use twice as much.
        wall_seconds: From the moment both jails are up until the tests have ended. It ends sleepers and deadlocks; what is still
            computing then gets up to thirty times as long, and its CPU seconds decide.
        memory_bytes: Address space of each process of the candidate; all together may hold twice as much.
        processes: Processes and threads of the candidate together.
        file_bytes: Size of one file that the candidate writes.
        scratch_bytes: All of the candidate's private /tmp.
        output_bytes: What it prints to stdout and stderr together, before it is killed.
        message_bytes: One encoded call or reply between tests and candidate.
        startup_seconds: Until both jails are up; passing it is an infrastructure error.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 20.0
    memory_bytes: int = 1 << 30
    processes: int = 64
    file_bytes: int = 16 << 20
    scratch_bytes: int = 64 << 20
    output_bytes: int = 4 << 20
    message_bytes: int = 16 << 20
    startup_seconds: float = 60.0

    def scaled(self, reference_seconds: float) -> "Limits":
        """Limits for programs whose reference solution uses so many CPU seconds: at least these, and ten times what it needs."""
        cpu = max(self.cpu_seconds, math.ceil(10 * reference_seconds))
        return replace(self, cpu_seconds=cpu, wall_seconds=self.wall_seconds * cpu / self.cpu_seconds)

    def __post_init__(self) -> None:
        bad = [f"{name}={value!r}" for name, value in asdict(self).items() if value <= 0]
        if bad:
            raise SandboxError(f"Sandbox limits must be positive: {', '.join(bad)}.")


@dataclass(frozen=True)
class Job:
    """One candidate program and the tests that decide about it.

    Attributes:
        code: Untrusted source; it is run in a jail of its own.
        tests: Trusted source whose asserts decide, e.g. HumanEval's `check` with its call, or MBPP's assert lines.
        entry_point: The name, or names, that the tests take from the candidate even where a builtin is called the same.
            None: every name that the tests use but do not define.
        helpers: Trusted source run beside the tests; names that it defines are not taken from the candidate
            (HumanEval's prompts define helpers, and a candidate must not redefine them).
        reference: A program known to pass these tests. It is judged first, once for all jobs that share it: where it fails the
            machine (or the data) is broken and nothing is scored, and where it is slow the limits grow with it.
        label: What messages call it, e.g. "mbpp 367".
    """

    code: str
    tests: str
    entry_point: str | Sequence[str] | None = None
    helpers: str = ""
    reference: str | None = None
    label: str | None = field(default=None, compare=False)  # jobs of one reference are told by what they run


@dataclass(frozen=True)
class Verdict:
    """How one job ended.

    Attributes:
        status: The outcome; only `passed` scores.
        detail: One line for people; text from the candidate in it is shortened and escaped.
        seconds: Wall seconds from both jails being up to the end.
        cpu_seconds: CPU time of all of the candidate's processes; None where the jail ended without a count.
        limit: Which limit a `timeout` hit.
        test: Index of the assert (in source order) that failed, where one did.
        reason: Machine-readable cause of a `failed`: assertion, exception, load, missing_name, exit, protocol, incomplete; of a
            `memory`: killed.
    """

    status: Status
    detail: str = ""
    seconds: float = 0.0
    cpu_seconds: float | None = None
    limit: Literal["cpu", "wall"] | None = None
    test: int | None = None
    reason: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every assert held."""
        return self.status == "passed"

    def as_dict(self) -> dict[str, object]:
        """The fields that are set, as plain JSON values, for logged samples."""
        fields = asdict(self) | {"seconds": round(self.seconds, 4)}
        return {name: value for name, value in fields.items() if value not in (None, "")}

    def __str__(self) -> str:
        head = f"{self.status}({self.limit})" if self.limit else self.status
        return f"{head}: {self.detail}" if self.detail else head
