"""`Sandbox`: judge one program, or many in parallel; refuses to score on a machine where it does not work."""

import contextlib
import functools
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from tqdm import tqdm

from ..errors import nearest
from .jail import Jail, is_init_root
from .plan import Plan, plan_tests
from .processes import forget_processes
from .run import run_job
from .verdict import Cancelled, Job, Kind, Limits, MissingPackage, SandboxError, SandboxUnavailable, UnusableTests, Verdict

logger = logging.getLogger(__name__)

_CANARY_TESTS = "assert sum_all([2, 3]) == 5\nassert sum_all([]) == 0"
# `difflib` is not among what the warm process loads beforehand: the worker has to be able to read the library itself
_CANARY_GOOD = "import collections, difflib, json, math\ndef sum_all(xs):\n    return int(math.fsum(json.loads(json.dumps(xs))))\n"
_CANARY_BAD = "def sum_all(xs):\n    return 5\n"

_WEAK = "Sandbox kind 'process': generated code runs with resource limits only, NOT isolated from files, network or other processes."
_CURE = (
    " bubblewrap needs user namespaces: see the settings kernel.unprivileged_userns_clone, user.max_user_namespaces and "
    "kernel.apparmor_restrict_unprivileged_userns, or start the container with --security-opt seccomp=unconfined "
    "--security-opt systempaths=unconfined, or --privileged. "
    "Where that is not possible, T2_SANDBOX=process runs generated code with resource limits only."
)

_CGROUPS = Path("/sys/fs/cgroup")

_lock = threading.Lock()
_jails: dict[Kind, Jail] = {}
_used: list[Kind] = []


def configured_kind() -> Kind:
    """The kind that the environment variable T2_SANDBOX names; `bwrap` without it.

    Raises:
        SandboxError: It names no kind.
    """
    name = os.environ.get("T2_SANDBOX") or "bwrap"
    if name not in get_args(Kind):
        raise SandboxError(f"T2_SANDBOX={name!r} is no kind of sandbox.{nearest(name, get_args(Kind))}")
    return cast(Kind, name)


def active_kind() -> Kind | None:
    """The weakest kind that has judged since `forget_kinds`, for the results file; None when nothing was judged."""
    return "process" if "process" in _used else _used[0] if _used else None


def forget_kinds() -> None:
    """Start the record of `active_kind` anew: called where a run begins."""
    _used.clear()


class Sandbox:
    """Runs untrusted programs against trusted tests.

    Args:
        kind: `bwrap` (namespaces) or `process` (resource limits only; warns). None takes `configured_kind()`.
        limits: What each candidate may use.

    Raises:
        SandboxError: Unknown kind.
    """

    def __init__(self, kind: Kind | None = None, limits: Limits | None = None) -> None:
        if kind is not None and kind not in get_args(Kind):
            raise SandboxError(f"Unknown kind of sandbox {kind!r}.{nearest(str(kind), get_args(Kind))}")
        self.kind: Kind = kind or configured_kind()
        self.limits = limits or Limits()
        self._references: dict[Job, float] = {}  # CPU seconds of the reference solutions that have passed

    def check(self) -> None:
        """Make sure, once per process and kind, that a right program passes here and a wrong one fails.

        Raises:
            SandboxUnavailable: Says what is missing or forbidden, and what mends it.
        """
        self._jail()

    def judge(self, code: str, tests: str, *, entry_point: str | Sequence[str] | None = None, helpers: str = "") -> Verdict:
        """Judge one program; see `Job` for the arguments.

        Raises:
            SandboxUnavailable: The machine cannot judge; never scored as a failure.
            UnusableTests: The tests cannot be judged.
        """
        return self.judge_many([Job(code, tests, entry_point, helpers)])[0]

    def judge_many(
        self,
        jobs: Iterable[Job],
        workers: int | None = None,
        progress: bool | str = False,
        done: Callable[[int, Verdict], None] | None = None,
    ) -> list[Verdict]:
        """Judge many programs in parallel and return their verdicts in order; reference solutions first, where jobs have one.

        Args:
            jobs: What to judge.
            workers: Jobs at a time; None is the number of usable cores.
            progress: Show a bar; a text names it.
            done: Called with (index, verdict) as each ends, from worker threads.

        Raises:
            SandboxUnavailable: The machine cannot judge, or a reference solution does not pass; the remaining jobs are given up.
            UnusableTests: The tests of a job cannot be judged.
        """
        listed = list(jobs)
        if not listed:
            return []
        self.check()
        plans = [_plan(job) for job in listed]  # bad tests are found before anything has run
        self._judge_references(listed, workers, progress)
        limits = [self._limits(job) for job in listed]
        return self._pool(listed, plans, limits, workers, progress, done or (lambda index, verdict: None))

    def _limits(self, job: Job) -> Limits:
        key = _reference(job)
        return self.limits if key is None else self.limits.scaled(self._references[key])

    def _judge_references(self, jobs: Sequence[Job], workers: int | None, progress: bool | str) -> None:
        """The canary: what is known to be right must pass here and now, with ample time, before anything is scored."""
        keys = {key for job in jobs if (key := _reference(job)) is not None and key not in self._references}
        listed = sorted(keys, key=lambda job: job.tests)
        ample = replace(self.limits, cpu_seconds=10 * self.limits.cpu_seconds, wall_seconds=10 * self.limits.wall_seconds)

        def check(index: int, verdict: Verdict) -> None:
            if not verdict.passed:
                label, code = listed[index].label, listed[index].code
                whose = f"The reference solution of {label}" if label else f"The reference solution that begins {code.strip()[:80]!r}"
                raise SandboxUnavailable(
                    f"{whose} does not pass its own tests ({verdict}). Either this machine cannot judge programs now, or the "
                    "data are wrong. Nothing is scored."
                )
            self._references[listed[index]] = verdict.seconds if verdict.cpu_seconds is None else verdict.cpu_seconds

        named = f"{progress}, reference solutions" if isinstance(progress, str) else progress
        self._pool(listed, [_plan(job) for job in listed], [ample] * len(listed), workers, named, check)

    def _pool(
        self,
        jobs: Sequence[Job],
        plans: Sequence[Plan],
        limits: Sequence[Limits],
        workers: int | None,
        progress: bool | str,
        done: Callable[[int, Verdict], None],
    ) -> list[Verdict]:
        cancel = threading.Event()
        title = progress if isinstance(progress, str) else "sandbox"
        bar = tqdm(total=len(jobs), desc=title, unit="program", disable=not (progress and jobs))

        def one(index: int) -> Verdict:
            verdict = self._judge(jobs[index], plans[index], limits[index], cancel)
            bar.update()
            done(index, verdict)
            return verdict

        with ThreadPoolExecutor(workers or usable_cores(), thread_name_prefix="t2-sandbox") as pool:
            futures = [pool.submit(one, i) for i in range(len(jobs))]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = [f.exception() for f in futures if f.done() and f.exception()]
                if failed:
                    raise next((e for e in failed if e and not isinstance(e, Cancelled)), None) or failed[0]  # type: ignore[misc]
                return [f.result() for f in futures]
            finally:  # Ctrl-C comes here as well: running jails are killed, waiting jobs dropped
                cancel.set()
                pool.shutdown(wait=True, cancel_futures=True)
                bar.close()

    def _judge(self, job: Job, plan: Plan, limits: Limits, cancel: threading.Event) -> Verdict:
        jail = self._jail()
        verdict = run_job(jail, job, plan, limits, cancel)
        if verdict.reason == "tests":
            if job.reference is None:
                raise UnusableTests(f"Tests that cannot be judged: {verdict.detail}.")
            verdict = replace(verdict, status="failed", reason="exception")  # the reference solution can be judged by them
        if verdict.status == "infrastructure_error" or verdict.reason == "killed":  # maybe by the machine, for want of memory
            logger.warning("sandbox: %s; trying once more", verdict.detail)
            verdict = run_job(jail, job, plan, limits, cancel)
        if verdict.status == "infrastructure_error":
            broken = _self_test(jail)
            if broken or verdict.reason not in ("judge", "keeper"):
                raise SandboxUnavailable(f"The sandbox stopped working: {broken or verdict.detail}. The run ends without a score.")
            # Twice on a healthy machine: the candidate brings the judge or the keeper down. That must not score, nor abort the run.
            detail = f"the program broke what judges it: {verdict.detail}"
            verdict = Verdict("failed", detail, verdict.seconds, reason="exception")
        if self.kind not in _used:
            _used.append(self.kind)
        return verdict

    def _jail(self) -> Jail:
        with _lock:
            if self.kind not in _jails:
                _jails[self.kind] = _open_jail(self.kind)
            return _jails[self.kind]


def usable_cores() -> int:
    """Cores that this process may use, of those that its container has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *_quotas()])


def _quotas() -> list[int]:
    """A container's limit of CPU time, in cores, where it has one: of control groups of version 2, and of version 1."""
    found = []
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
            quota, period = (int(word) for name in names for word in (_CGROUPS / name).read_text().split())
            if quota > 0:
                found.append(math.ceil(quota / period))
    return found


def _reference(job: Job) -> Job | None:
    """The job that judges the reference solution; entry points as a tuple, so that it can be a key."""
    if job.reference is None:
        return None
    entry = job.entry_point
    return Job(job.reference, job.tests, entry if entry is None or isinstance(entry, str) else tuple(entry), job.helpers, label=job.label)


def _plan(job: Job) -> Plan:
    entry = job.entry_point
    try:
        return _cached_plan(job.tests, () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry))
    except ValueError as error:
        raise UnusableTests(f"Tests that cannot be judged: {error}.") from None


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    forget_processes()


os.register_at_fork(after_in_child=_after_fork)
_cached_plan = functools.lru_cache(maxsize=1024)(plan_tests)  # the same tests come with every candidate


def _open_jail(kind: Kind) -> Jail:
    """The strongest form of this kind that passes its self-test here."""
    reasons = []
    forms = [True, False] if kind == "bwrap" and os.geteuid() == 0 else [False]
    if kind == "bwrap" and is_init_root():
        forms = [True]  # the other form would leave candidates user 0, whose processes the kernel does not limit
    for own_ids in forms:
        try:
            jail = Jail(kind, own_ids=own_ids)
            broken = _self_test(jail)
        except MissingPackage:
            raise
        except SandboxUnavailable as error:
            broken = str(error)
        else:
            if broken is None:
                if kind == "process":
                    warnings.warn(_WEAK, stacklevel=3)
                    logger.warning(_WEAK)
                return jail
            jail.close()
        reasons.append(broken or "")
    raise SandboxUnavailable(
        f"The sandbox ({kind}) does not work on this machine: {'; '.join(dict.fromkeys(reasons))}." + (_CURE if kind == "bwrap" else "")
    )


def _self_test(jail: Jail) -> str | None:
    """None when a right program passes and a wrong one fails; else what happened instead."""
    for code, expected in ((_CANARY_GOOD, "passed"), (_CANARY_BAD, "failed")):
        job = Job(code, _CANARY_TESTS, "sum_all")
        verdict = run_job(jail, job, _plan(job), Limits())
        if verdict.status != expected:
            return verdict.detail if verdict.status == "infrastructure_error" else f"self-test: expected {expected}, got {verdict}"
    return None
