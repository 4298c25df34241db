"""Command lines that start a jailed worker: bubblewrap, or a plain process with resource limits by explicit choice.

As root the jail gets one user namespace per scoring process with a range of user ids that exist nowhere else, and each worker a
number of its own out of it: the kernel does not count processes of user id 0, so a fork bomb could not be stopped there, and user id
0 may write where files belong to root. As an ordinary user bubblewrap makes the user namespace.
"""

import contextlib
import functools
import glob
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from .verdict import Kind, Limits, SandboxUnavailable

Role = Literal["candidate", "judge"]
_HERE = Path(__file__).resolve().parent
_INSIDE = "/t2"
_IDS = 1 << 12
_ENV = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # noqa: S108 (the jail's own /tmp)
_NO_BWRAP = (
    "The sandbox for generated code needs bubblewrap, and there is no `bwrap` on the PATH. Install it (`apt-get install bubblewrap`), "
    "or set T2_SANDBOX=process to run generated code with resource limits only: no isolation from files and network, "
    "so only where that is acceptable."
)


class MissingBubblewrap(SandboxUnavailable):
    """There is no `bwrap`; its message says how to get it."""


class Jail:
    """How workers are started on this machine.

    Args:
        kind: `bwrap` or `process`.
        own_ids: bwrap as root only: a user namespace with unused ids (see the module's text) instead of bubblewrap's own.

    Raises:
        SandboxUnavailable: bubblewrap is missing, or the user namespace cannot be made.
    """

    def __init__(self, kind: Kind, own_ids: bool = False) -> None:
        self.kind: Kind = kind
        self.userns: int | None = None
        self._uids = itertools.cycle(range(1, _IDS))
        for _ in range(random.SystemRandom().randrange(_IDS)):  # two scoring processes rarely meet on a number
            next(self._uids)
        if kind == "bwrap":
            found = shutil.which("bwrap")
            if found is None:
                raise MissingBubblewrap(_NO_BWRAP)
            self.bwrap = found
            self.options = _bwrap_options(found)
            if own_ids:
                self.userns = _user_namespace()

    def command(self, role: Role, limits: Limits, fds: dict[str, int], scratch: str | None) -> tuple[list[str], dict[str, str], list[int]]:
        """Return (argv, environment, descriptors to pass) of a worker.

        Args:
            role: Which worker.
            limits: Its limits.
            fds: Descriptor numbers by the name that the worker's settings give them.
            scratch: Working directory of kind `process`; bwrap has its own /tmp.
        """
        settings: dict[str, Any] = {"limits": asdict(limits), "guard": self.kind == "process", **fds}
        if self.userns is not None:
            settings["uid"] = next(self._uids)
        elif not _counted_per_namespace() or self.kind == "process":
            settings["limits"]["processes"] += _tasks_of_user()
        where = _INSIDE if self.kind == "bwrap" else str(_HERE)
        boot = f"import sys; sys.path.append({where!r}); import {role}; sys.path.pop(); {role}.main()"
        worker = [_python(), "-P", "-s", "-S", "-B", "-c", boot, json.dumps(settings)]
        if self.kind == "process":
            return worker, _ENV | {"HOME": scratch or "/"}, list(fds.values())
        return self._wrap(limits, worker), _ENV, list(fds.values()) + ([self.userns] if self.userns is not None else [])

    def _wrap(self, limits: Limits, worker: list[str]) -> list[str]:
        argv = [self.bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        if self.userns is not None:
            argv += ["--userns", str(self.userns), "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            # Without --cap-drop a root caller keeps its capabilities over the new namespaces and could remount the system writable.
            argv += ["--unshare-user", "--cap-drop", "ALL"] + (["--disable-userns"] if "--disable-userns" in self.options else [])
        argv += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--clearenv"]
        for name, value in _ENV.items():
            argv += ["--setenv", name, value]
        argv += _system_mounts()
        # bubblewrap makes /proc/sys read-only only where it looks writable to its own user; an owner of those files could still write.
        argv += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--ro-bind-try", "/proc/sysrq-trigger", "/proc/sysrq-trigger"]
        argv += ["--dev", "/dev", "--perms", "1777"]
        # bubblewrap before 0.7 cannot bound a tmpfs: there /tmp is read-only rather than as large as the machine's memory.
        sized = "--size" in self.options
        argv += (["--size", str(limits.scratch_bytes)] if sized else []) + ["--tmpfs", "/tmp"]  # noqa: S108
        argv += [] if sized else ["--remount-ro", "/tmp"]  # noqa: S108
        return [*argv, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--", *worker]  # noqa: S108


@functools.cache
def _python() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _bwrap_options(bwrap: str) -> frozenset[str]:
    try:
        shown = subprocess.run([bwrap, "--help"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxUnavailable(f"{bwrap} does not run: {error}") from None
    return frozenset(word for word in shown.stdout.split() if word.startswith("--"))


@functools.cache
def _system_mounts() -> list[str]:
    """The interpreter, its standard library and the shared libraries, read-only; installed packages hidden (they may hold answers)."""
    argv: list[str] = []
    made = {"/"}

    def parents(path: str) -> None:
        for parent in reversed(Path(path).parents):
            if str(parent) not in made:
                made.add(str(parent))
                argv.extend(["--perms", "0755", "--dir", str(parent)])

    for top in ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin"):
        if os.path.islink(top):
            argv += ["--symlink", os.readlink(top), top]
        elif os.path.isdir(top):
            argv += ["--ro-bind", top, top]
            made.add(top)
    bound = [top for top in ("/usr", "/bin", "/lib", "/lib64") if top in made]
    wanted = [p for p in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/nix/store", "/gnu/store") if os.path.exists(p)]
    paths = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    for path in [*wanted, sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.dirname(_python()))]:
        path = os.path.realpath(path)
        if not any(path == b or path.startswith(b + "/") for b in bound):
            parents(path)
            argv += ["--ro-bind", path, path]
            bound.append(path)
    hidden = {paths["purelib"], paths["platlib"]}
    for base in (*bound, "/usr/local"):
        hidden.update(glob.glob(f"{base}/lib*/python3*/site-packages") + glob.glob(f"{base}/lib*/python3*/dist-packages"))
    for path in sorted({os.path.realpath(h) for h in hidden if os.path.isdir(h)}):
        if any(path.startswith(b + "/") for b in bound):
            argv += ["--tmpfs", path, "--remount-ro", path]
    return [*argv, "--ro-bind", str(_HERE), _INSIDE]


# In the new namespace no further ones may be made: in those a program would have capabilities again. Not permitted everywhere, hence
# best effort.
_UNSHARE = """
import ctypes, os, sys
failed = ctypes.CDLL(None, use_errno=True).unshare(0x10000000)
print(os.strerror(ctypes.get_errno()) if failed else "ok", flush=True)
sys.stdin.readline()
try:
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
except OSError:
    pass
print("closed", flush=True)
sys.stdin.read()
"""


def _user_namespace() -> int:
    """Descriptor of a user namespace that maps root and `_IDS` ids which no file or process of this machine has."""
    helper = subprocess.Popen([_python(), "-I", "-S", "-c", _UNSHARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert helper.stdin is not None and helper.stdout is not None  # noqa: S101 (for the type checker)
        said = helper.stdout.readline().strip()
        if said != "ok":
            raise SandboxUnavailable(f"user namespaces are not permitted here: {said or 'the helper died'}")
        for which in ("uid", "gid"):
            own = Path(f"/proc/self/{which}_map").read_text().split()
            first, count = max(zip(map(int, own[0::3]), map(int, own[2::3]), strict=True), key=lambda extent: extent[1])
            if count < 2 * _IDS:
                raise SandboxUnavailable(f"only {count} user ids are mapped here")
            start = min(1_879_048_192, first + count - _IDS - 1)
            Path(f"/proc/{helper.pid}/{which}_map").write_text(f"0 0 1\n1 {start} {_IDS}\n")
        helper.stdin.write("mapped\n")
        helper.stdin.flush()
        helper.stdout.readline()
        return os.open(f"/proc/{helper.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxUnavailable(f"cannot make a user namespace: {error}") from None
    finally:
        helper.kill()
        helper.communicate()


def is_init_root() -> bool:
    """Whether this process is user 0 of the machine itself, not only inside a container's user namespace."""
    return os.geteuid() == 0 and any(line.split()[:2] == ["0", "0"] for line in Path("/proc/self/uid_map").read_text().splitlines())


@functools.cache
def _counted_per_namespace() -> bool:
    """Since Linux 5.14 the process limit counts inside the user namespace; before, all processes of the user."""
    with contextlib.suppress(ValueError):
        return tuple(int(x) for x in os.uname().release.split("-")[0].split(".")[:2]) >= (5, 14)
    return False


def _tasks_of_user() -> int:
    total = 0
    for status in glob.glob("/proc/[0-9]*/status"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if os.stat(status).st_uid == os.getuid():
                text = Path(status).read_text()
                total += int(text.split("Threads:")[1].split()[0])
    return total


def judge_limits(limits: Limits) -> Limits:
    """Limits of the process that runs the tests: roomier, for the tests are trusted and the values they receive are bounded."""
    return replace(limits, cpu_seconds=2 * limits.cpu_seconds + 10, memory_bytes=max(2 * limits.memory_bytes, 2 << 30), processes=4)
