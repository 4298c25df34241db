"""The jail's warm process: forks every worker, so that Python and its library are loaded once, and gives each namespaces of its own.

    parent (scoring process) ── control socket ──> zygote ── fork ──> keeper ── fork ──> worker (candidate or judge)

The zygote is process 1 of bubblewrap's jail and has the capabilities to make namespaces. A keeper is process 1 of a new pid namespace:
when it ends, whatever way, the kernel ends all that the worker has started, and the parent holds a descriptor of it. The worker has a
private /tmp, an empty /proc, no capabilities, no further privileges, a seccomp filter, and no descriptor but its own.

Nothing here has read anything untrusted before `_worker` gives its rights up. Standard library only; runs as a top-level module.
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import resource
import signal
import site
import socket
import sys
from typing import Any, NoReturn

import candidate
import judge

# What programs of HumanEval and MBPP import, and the workers themselves: loaded once, here.
_PRELOAD = (
    "abc array ast base64 bisect calendar cmath collections collections.abc copy dataclasses datetime decimal enum fractions functools "
    "hashlib heapq inspect io itertools json math numbers operator queue random re statistics string struct textwrap threading time "
    "traceback typing unicodedata"
)
_NEWNS, _NEWIPC, _NEWNET, _NEWUSER, _NEWPID = 0x20000, 0x8000000, 0x40000000, 0x10000000, 0x20000000
_NOSUID_NODEV, _READ_ONLY, _REC_PRIVATE = 2 | 4, 1, 0x4000 | 0x40000
_INSIDE_ID = 1000  # of a worker where only one user id can be mapped
_libc = ctypes.CDLL(None, use_errno=True)
_keepers: set[int] = set()


def main() -> NoReturn:
    """Fork a worker for every request on the control socket, until the parent closes it or is gone."""
    settings = json.loads(sys.argv[1])
    if settings["isolated"]:
        _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: with bubblewrap's outer process this one goes, and with it the namespace
    sys.argv = ["worker"]
    site.setquit()  # `exit` and `quit`, which -S leaves out
    control = socket.socket(fileno=settings["control_fd"])
    for name in _PRELOAD.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, _reap)
    if not settings["isolated"]:
        _libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what a keeper leaves behind comes here, for `_reap` to end
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if settings["isolated"] else None
    gc.collect()
    gc.freeze()  # forks share these pages until they write to them
    control.send(b"ready")
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1 << 16, 8)
        if not data:
            os._exit(0)
        try:
            pidfd = _spawn(settings | json.loads(data), fds, control, home)
        except OSError as error:
            control.send(f"cannot start a worker: {error}".encode())
        else:
            socket.send_fds(control, [b"started"], [pidfd])
            os.close(pidfd)
        finally:
            for fd in fds:
                os.close(fd)


def _reap(*_: object) -> None:
    """Take what has ended, and end what a keeper has left: in kind `process` whatever made a session of its own, in a jail nothing."""
    with contextlib.suppress(OSError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            _keepers.discard(pid)
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            for orphan in {int(pid) for pid in file.read().split()} - _keepers:
                os.kill(orphan, signal.SIGKILL)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _spawn(settings: dict[str, Any], fds: list[int], control: socket.socket, home: int | None) -> int:
    """Fork a keeper and return a descriptor of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # no keeper is reaped before there is a descriptor of it
    try:
        if home is not None:
            _checked(_libc.unshare(_NEWPID), "new pid namespace")
        try:
            pid = os.fork()
            if pid == 0:
                _keeper(settings, fds, control)
            _keepers.add(pid)
        finally:
            if home is not None:
                _checked(_libc.setns(home, _NEWPID), "own pid namespace")
        return os.pidfd_open(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _keeper(settings: dict[str, Any], fds: list[int], control: socket.socket) -> NoReturn:
    """Set the namespaces up, fork the worker, report (exit code, CPU seconds) of it on the first descriptor, and end."""
    status, output, *channel = fds
    try:
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        os.setsid()
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # should memory run out, these go first
            file.write("1000")
        if settings["isolated"]:
            _namespaces(settings)
        else:
            _libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans come here, so that their CPU time counts
            _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        worker = os.fork()
        if worker == 0:
            _worker(settings, output, channel)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 gets only the signals that it has handlers for
        for fd in (output, *channel):
            os.close(fd)
        seconds = 0.0
        while True:
            pid, code, usage = os.wait4(-1, 0)
            seconds += usage.ru_utime + usage.ru_stime
            if pid == worker:
                break
        os.write(status, json.dumps([os.waitstatus_to_exitcode(code), seconds]).encode())
        if not settings["isolated"]:
            os.killpg(0, signal.SIGKILL)
        os._exit(0)
    except BaseException as error:  # nobody above could use it: the parent reads these words
        os.write(output, f"{error}".encode())
    finally:
        os._exit(1)


def _namespaces(settings: dict[str, Any]) -> None:
    if not settings.get("uid"):  # one user id is all there is: a user namespace for each worker, for the kernel to count its processes
        outer = os.getuid(), os.getgid()
        _checked(_libc.unshare(_NEWUSER), "new user namespace")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{_INSIDE_ID} {outer[0]} 1"), ("gid_map", f"{_INSIDE_ID} {outer[1]} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _checked(_libc.unshare(_NEWNS | _NEWIPC | _NEWNET), "new namespaces")
    _checked(_libc.mount(b"none", b"/", None, _REC_PRIVATE, None), "private mounts")
    room = f"mode=1777,size={settings['limits']['scratch_bytes']},nr_inodes=4096".encode()
    _checked(_libc.mount(b"tmpfs", b"/tmp", b"tmpfs", _NOSUID_NODEV, room), "private /tmp")
    for empty in (b"/proc", b"/dev/pts"):
        _checked(_libc.mount(b"tmpfs", empty, b"tmpfs", _NOSUID_NODEV | _READ_ONLY, b"mode=555,size=4k"), f"empty {empty.decode()}")


def _worker(settings: dict[str, Any], output: int, channel: list[int]) -> NoReturn:
    """Keep nothing but the descriptors 0 to 5, give up all rights, and become candidate or judge."""
    try:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (channel[0], output, output, *channel[1:])]
        for number, fd in enumerate(high):
            os.dup2(fd, number)
        os.closerange(len(high), 1 << 20)
        if not settings["isolated"]:
            _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        os.environ["HOME"] = settings["scratch"]
        os.chdir(settings["scratch"])
        _confine(settings)
        (candidate if settings["role"] == "candidate" else judge).main(settings["limits"]["message_bytes"])
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def _confine(settings: dict[str, Any]) -> None:
    limits = settings["limits"]
    for which, value in (
        (resource.RLIMIT_CORE, 1),  # no file is so small, and unlike 0 it starts no program for core dumps either: core(5)
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
    ):
        hard = resource.getrlimit(which)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # SIGXCPU ends the process with a status that names the cause; to one that blocks it SIGKILL comes a second later.
        resource.setrlimit(which, (bound, bound + 1 if which == resource.RLIMIT_CPU and bound == value else bound))
    if settings.get("uid"):
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    if settings["isolated"]:
        _checked(_libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()), "drop capabilities")
    _libc.prctl(4, 0)  # PR_SET_DUMPABLE: no /proc/<pid>/mem for others of this user
    _checked(_libc.prctl(38, 1, 0, 0, 0), "no new privileges")
    if settings["seccomp"]:
        _filter(bytes.fromhex(settings["seccomp"]))


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter(program: bytes) -> None:
    instructions = _Program(len(program) // 8, program)
    _checked(_libc.prctl(22, 2, ctypes.byref(instructions), 0, 0), "seccomp filter")  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
