"""The jail: bubblewrap around a warm process that forks the workers, or that process alone by explicit choice.

As root the jail gets one user namespace with a range of user ids that exist nowhere else, and each worker a number of its own out of it:
the kernel does not count processes of user id 0, so a fork bomb could not be stopped there, and user id 0 may write where files belong
to root. As an ordinary user bubblewrap makes the user namespace, and each worker gets one more inside it.
"""

import atexit
import contextlib
import functools
import glob
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...adapters.paths import cache_dir
from .seccomp import filter_program
from .verdict import Kind, Limits, MissingPackage, SandboxUnavailable

Role = Literal["candidate", "judge"]
_HERE = Path(__file__).resolve().parent
_INSIDE = "/t2"
_IDS = 1 << 12
# One malloc arena: each reserves 64 MiB of address space, and glibc would make more of them on machines with more cores.
_ENV = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}  # noqa: S108
_NO_BWRAP = (
    "The sandbox for generated code needs bubblewrap, and there is no `bwrap` on the PATH. Install it (`apt-get install bubblewrap`), "
    "or set T2_SANDBOX=process to run generated code with resource limits only: no isolation from files and network, "
    "so only where that is acceptable."
)
_OLD_PYTHON = (
    "The sandbox for generated code needs {missing}, which this Python ({python}) lacks: it was built for an old C library. Take another "
    "one, the system's say, or a newer build (`uv python install --reinstall`)."
)
_REPLY_SECONDS = 60.0


@dataclass
class Child:
    """A started worker, by the process that keeps it.

    Attributes:
        pidfd: Descriptor of the keeper; readable when it, and in a jail everything that the worker has started, has ended.
        group: Whether `kill` has to reach a process group (no pid namespace).
    """

    pidfd: int
    group: bool

    @property
    def pid(self) -> int:
        """Process id as this process sees it; -1 when it is gone."""
        for line in Path(f"/proc/self/fdinfo/{self.pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
        return -1

    def kill(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.group and (pid := self.pid) > 0:
                os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Jail:
    """Starts workers; its warm process starts with the first, and again where it has died.

    Args:
        kind: `bwrap` or `process`.
        own_ids: bwrap as root only: a user namespace with unused ids (see the module's text) instead of bubblewrap's own.

    Raises:
        MissingPackage: There is no bubblewrap or no libseccomp.
        SandboxUnavailable: The user namespace cannot be made.
    """

    def __init__(self, kind: Kind, own_ids: bool = False) -> None:
        self.kind: Kind = kind
        self.userns: int | None = None
        if missing := [name for name, there in _needed().items() if not there]:
            raise MissingPackage(_OLD_PYTHON.format(python=_python(), missing=" and ".join(missing)))
        self._uids = _user_ids()
        self._lock = threading.Lock()
        self._zygote: subprocess.Popen[bytes] | None = None
        if kind == "bwrap":
            found = shutil.which("bwrap")
            if found is None:
                raise MissingPackage(_NO_BWRAP)
            self.bwrap = found
            self._seccomp = filter_program().hex()
            if own_ids:
                self.userns = _user_namespace()
        _open_jails.add(self)

    def spawn(self, role: Role, limits: Limits, fds: Sequence[int], scratch: str | None) -> Child:
        """Start a worker.

        Args:
            role: What it becomes.
            limits: Its limits.
            fds: Descriptors that it gets: for the keeper's report, for output, and the worker's 0, 3, 4, (5).
            scratch: Working directory of kind `process`; in a jail /tmp is private.

        Raises:
            OSError: The jail or the worker does not start; the text says why.
        """
        request: dict[str, Any] = {"role": role, "limits": asdict(limits), "scratch": scratch or "/tmp"}  # noqa: S108 (the jail's own)
        if self.userns is not None:
            request["uid"] = next(self._uids)
        elif not _counted_per_namespace() or self.kind == "process":
            request["limits"]["processes"] += _tasks_of_user()
        data = json.dumps(request).encode()
        with self._lock:
            fresh = self._zygote is None
            if fresh:
                self._open()
            try:
                reply, received = self._ask(data, fds)
            except OSError:
                if fresh:
                    raise
                self._open()  # it has died since the last worker, which is no fault of this one
                reply, received = self._ask(data, fds)
        if not received:
            raise OSError(reply.decode(errors="replace"))
        return Child(received[0], self.kind == "process")

    def _ask(self, request: bytes, fds: Sequence[int]) -> tuple[bytes, list[int]]:
        """Send a request to the warm process; return its reply, and the worker's descriptor where it started one."""
        try:
            socket.send_fds(self._control, [request], list(fds))
            reply, received, _, _ = socket.recv_fds(self._control, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise OSError(f"{error}; {self._close()}") from None
        if not reply:
            raise OSError(f"its warm process ended: {self._close()}")
        return reply, received

    def close(self) -> None:
        """End the warm process, and with it all workers."""
        with self._lock:
            if self._zygote is not None:
                self._close()

    def _open(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_REPLY_SECONDS)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the warm process)
        with theirs:
            passed = [theirs.fileno()] + ([self.userns] if self.userns is not None else [])
            try:
                self._zygote = subprocess.Popen(
                    self._command(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=self._words,
                    stderr=self._words,
                    env=_ENV,
                    pass_fds=passed,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError:
                self._control.close()
                self._words.close()
                raise
        try:
            ready = self._control.recv(64)
        except OSError as error:
            ready, said = b"", f"{error}; "
        else:
            said = ""
        if not ready:
            raise OSError(said + self._close())

    def _close(self) -> str:
        """Forget the warm process; return how it ended."""
        zygote = self._zygote
        assert zygote is not None  # noqa: S101 (for the type checker)
        self._zygote = None
        self._control.close()  # the sign for it to end
        try:
            zygote.wait(2)
        except subprocess.TimeoutExpired:
            zygote.kill()
            zygote.wait()
        self._words.seek(0)
        words = self._words.read()[-600:].decode(errors="replace").strip()
        self._words.close()
        return f"exit status {zygote.returncode}: {words or 'it said nothing'}"

    def forget(self) -> None:
        """In a forked child of this process: leave the warm process to the parent."""
        if self._zygote is not None:
            self._control.close()
            self._zygote.returncode = 0  # not ours to wait for
            self._zygote = None
        self._lock, self._uids = threading.Lock(), _user_ids()

    def _command(self, control: int) -> list[str]:
        settings = {"control_fd": control, "isolated": self.kind == "bwrap", "seccomp": self._seccomp if self.kind == "bwrap" else ""}
        where = _INSIDE if self.kind == "bwrap" else str(_HERE)
        boot = f"import sys; sys.path.append({where!r}); import zygote; sys.path.pop(); zygote.main()"
        python = [_python(), "-P", "-s", "-S", "-B", "-c", boot, json.dumps(settings)]
        if self.kind == "process":
            return python
        argv = [self.bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"]
        if self.userns is not None:
            argv += ["--userns", str(self.userns), "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            # Other ids would make a second namespace, without rights over the first. SETFCAP: to map user 0 in a worker's namespace.
            argv += ["--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "CAP_SETFCAP"]
        argv += ["--cap-add", "CAP_SYS_ADMIN", "--hostname", "sandbox", "--clearenv"]
        for name, value in _ENV.items():
            argv += ["--setenv", name, value]
        argv += [*_system_mounts(), "--proc", "/proc", "--dev", "/dev", "--dir", "/tmp"]  # noqa: S108
        return [*argv, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--as-pid-1", "--", *python]


def _needed() -> dict[str, bool]:
    """What not every build of Python has, though its version does."""
    return {f"{module.__name__}.{name}": hasattr(module, name) for module, name in
            ((os, "memfd_create"), (os, "pidfd_open"), (signal, "pidfd_send_signal"))}  # fmt: skip


def _user_ids() -> Iterator[int]:
    """Numbers for workers, from a random one on: two scoring processes rarely meet on one."""
    start = random.SystemRandom().randrange(_IDS - 1)
    return (1 + (start + i) % (_IDS - 1) for i in itertools.count())


_open_jails: "weakref.WeakSet[Jail]" = weakref.WeakSet()


def _forget_all() -> None:
    for jail in list(_open_jails):
        jail.forget()


@atexit.register
def _close_all() -> None:
    for jail in list(_open_jails):
        jail.close()


os.register_at_fork(after_in_child=_forget_all)


@functools.cache
def _python() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _system_mounts() -> list[str]:
    """The interpreter, its standard library and the shared libraries, read-only.

    What may hold answers is hidden: packages, environments, sources, data.
    """
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
        hidden.update((f"{base}/src", f"{base}/envs", f"{base}/pkgs"))
    hidden.update((str(_HERE.parents[1]), os.environ.get("T2_DATA_DIR") or "", str(cache_dir())))
    if sys.prefix != sys.base_prefix:
        hidden.add(sys.prefix)
    needed = (*bound, _python(), os.path.realpath(paths["stdlib"]))
    for path in _outermost(
        path
        for path in {os.path.realpath(h) for h in hidden if h and os.path.isdir(h)}
        if _below(path, bound) and not any(_below(own, [path]) for own in needed)
    ):
        argv += ["--tmpfs", path, "--remount-ro", path]
    return [*argv, "--ro-bind", str(_HERE), _INSIDE]


def _below(path: str, tops: Iterable[str]) -> bool:
    return any(path.startswith(top + "/") for top in tops)


def _outermost(paths: Iterable[str]) -> list[str]:
    found: list[str] = []
    for path in sorted(paths):
        if not _below(path, found):
            found.append(path)
    return found


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
            start = min(1_879_048_192, first + count - _IDS - 16)  # 65534 is nobody, whom files may belong to
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
    return replace(limits, cpu_seconds=10 * limits.cpu_seconds + 10, memory_bytes=max(2 * limits.memory_bytes, 2 << 30), processes=4)
