"""Every hostile program ends with the right verdict, changes nothing outside, leaves nothing running, and harms no other."""

import contextlib
import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from t2.harness.sandbox import Job, Limits, Sandbox, SandboxUnavailable, Verdict

from .hostile import ALL, ESCAPE, Attack

GOOD = Job("def f(x):\n    return x + 1", "assert f(1) == 2\nassert f(41) == 42", "f")
OUTSIDE = [f"{folder}/t2-was-here" for folder in ("", "/dev/shm", "/var/tmp", *(f"/{name}" for name in os.listdir("/")))]


@dataclass
class Scene:
    """What the attacks want, and what came of them."""

    verdicts: dict[str, Verdict]
    good: list[Verdict]
    secret: Path
    token: str
    before: set[str]
    mounts: tuple[str, str]


LIMITS = Limits(cpu_seconds=1, wall_seconds=3, memory_bytes=512 << 20, output_bytes=1 << 20)


def jailed() -> set[str]:
    """Processes of this machine that are in another pid namespace than the test, or are bubblewrap's outer half."""
    own, found = os.readlink("/proc/self/ns/pid"), set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name == "bwrap" or os.readlink(f"/proc/{pid}/ns/pid") != own:
                found.add(f"{pid} {name}")
    return found


def none_left(before: set[str], seconds: float = 10) -> set[str]:
    """Wait until no jailed process is left but those of `before`; return what is."""
    deadline = time.monotonic() + seconds
    while (left := jailed() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.fixture(scope="module")
def listeners() -> Iterator[tuple[int, str]]:
    with socket.socket() as inet, socket.socket(socket.AF_UNIX) as unix:
        inet.bind(("127.0.0.1", 0))
        inet.listen(64)
        name = f"t2-test-{secrets.token_hex(8)}"
        unix.bind(f"\0{name}")
        unix.listen(64)
        yield inet.getsockname()[1], name


def armed(attack: Attack, secret: Path, token: str, listeners: tuple[int, str]) -> Attack:
    """Put this run's secrets into the placeholders of an attack."""
    values = {"@SECRET@": str(secret), "@TOKEN@": token, "@PORT@": str(listeners[0]), "@ABSTRACT@": listeners[1]}
    code, tests = attack.code, attack.tests
    for name, value in values.items():
        code, tests = code.replace(name, value), tests.replace(name, value)
    return replace(attack, code=code, tests=tests)


def job(attack: Attack) -> Job:
    return Job(attack.code, attack.tests, attack.entry)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, listeners: tuple[int, str]) -> Iterator[Scene]:
    token = secrets.token_hex(16)
    secret = tmp_path_factory.mktemp("home") / "secret-of-the-test.txt"
    secret.write_text(token)
    os.environ["T2_TEST_SECRET"] = token
    mounts = Path("/proc/mounts").read_text()
    jobs: list[Job] = []
    for attack in ALL:
        jobs += (
            [job(armed(attack, secret, token, listeners)), GOOD]
            if attack.name[0] in "aefmns"
            else [job(armed(attack, secret, token, listeners))]
        )
    sandbox = Sandbox("bwrap", LIMITS)
    sandbox.check()  # the warm process stays
    before = jailed()
    try:
        judged = sandbox.judge_many([*jobs, GOOD], workers=6)  # many only sleep
    finally:
        del os.environ["T2_TEST_SECRET"]
    hostile = [v for v, j in zip(judged, [*jobs, GOOD], strict=True) if j is not GOOD]
    good = [v for v, j in zip(judged, [*jobs, GOOD], strict=True) if j is GOOD]
    verdicts = {attack.name: v for attack, v in zip(ALL, hostile, strict=True)}
    yield Scene(verdicts, good, secret, token, before, (mounts, Path("/proc/mounts").read_text()))


def test_names_are_unique_and_many() -> None:
    assert len({attack.name for attack in ALL}) == len(ALL) >= 130


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_attack_ends_as_it_must(scene: Scene, attack: Attack) -> None:
    verdict = scene.verdicts[attack.name]
    assert verdict.status in attack.expected, str(verdict)


def test_nothing_is_left_running(scene: Scene) -> None:
    assert none_left(scene.before) == set()


def test_nothing_outside_has_changed(scene: Scene) -> None:
    assert scene.secret.read_text() == scene.token
    assert [path for path in OUTSIDE if os.path.lexists(path)] == []
    assert scene.mounts[0] == scene.mounts[1]


def test_programs_judged_between_attacks_are_unharmed(scene: Scene) -> None:
    assert len(scene.good) > 30
    assert [str(v) for v in scene.good if not v.passed] == []


@pytest.mark.parametrize("name", ["read a file of the user", "network", "abstract sockets", "see the processes that keep it"])
@pytest.mark.filterwarnings("ignore:Sandbox kind 'process'")
def test_the_attack_itself_works_where_there_is_no_isolation(name: str, tmp_path: Path, listeners: tuple[int, str]) -> None:
    """Else its failing in the jail would show nothing."""
    secret = tmp_path / "secret-of-the-test.txt"
    secret.write_text("token-of-the-test")
    attack = armed(next(a for a in ESCAPE if a.name == name), secret, "token-of-the-test", listeners)
    verdict = Sandbox("process", Limits(cpu_seconds=5, wall_seconds=20)).judge_many([job(attack)])[0]
    assert verdict.passed, str(verdict)


ORPHANS = """
import os, sys
def f(x):
    for _ in range(4):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 256)
                os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)"])
            os._exit(0)
    return x + 1
"""


def test_children_in_their_own_sessions_die_with_the_verdict() -> None:
    sandbox = Sandbox("bwrap")
    sandbox.check()
    before = jailed()
    verdict = sandbox.judge(ORPHANS, "import time\nassert f(1) == 2\ntime.sleep(0.5)", entry_point="f")
    assert verdict.passed  # the answers were right
    assert jailed() - before == set()  # at once: the verdict waits for the end of all


def test_jails_die_with_a_killed_parent() -> None:
    script = (
        "from t2.harness.sandbox import Limits, Sandbox\n"
        "Sandbox('bwrap', Limits(wall_seconds=300)).judge('import time\\ntime.sleep(300)', 'assert f(1)', entry_point='f')\n"
    )
    before = jailed()
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while len(jailed() - before) < 6 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(jailed() - before) >= 6  # bubblewrap, the warm process, two keepers, two workers
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert none_left(before) == set()


def test_a_forked_scoring_process_has_a_jail_of_its_own() -> None:
    """Two processes on one control socket would take one another's answers."""
    sandbox = Sandbox("bwrap")
    sandbox.check()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, str(sandbox.judge(GOOD.code, GOOD.tests).status).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.read() == "passed"
    os.waitpid(child, 0)
    assert sandbox.judge(GOOD.code, GOOD.tests).passed


# number of the call on x86_64 and on aarch64
CALLS = {
    "ptrace": (101, 117), "mount": (165, 40), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "keyctl": (250, 219),
    "io_uring_setup": (425, 425), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "kexec_load": (246, 104),
    "process_vm_readv": (310, 270), "socket": (41, 198), "personality": (135, 92), "clock_settime": (227, 112),
    "open_by_handle_at": (304, 265), "socketpair": (53, 199), "setsockopt": (54, 208),
}  # fmt: skip
PROBE = """
import ctypes
def f(numbers):
    libc, answers = ctypes.CDLL(None, use_errno=True), {}
    for name, number in numbers.items():
        ctypes.set_errno(0)
        result = libc.syscall(number, -1, 0, 0, 0, 0, 0)
        answers[name] = ctypes.get_errno() if result < 0 else 0
    return answers
"""


@pytest.mark.filterwarnings("ignore:Sandbox kind 'process'")
def test_system_calls_are_refused_by_the_filter() -> None:
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = {name: pair[column] for name, pair in CALLS.items()}
    wanted = dict.fromkeys(numbers, errno.EPERM) | {"clone3": errno.ENOSYS}
    tests = f"assert f({numbers | {'clone3': 435}}) == {wanted}, f({numbers})"
    verdict = Sandbox("bwrap").judge(PROBE, tests, entry_point="f")
    assert verdict.passed, str(verdict)
    numbers = {"personality": numbers["personality"]}
    assert Sandbox("process").judge(PROBE, f"assert f({numbers}) == {{'personality': 0}}", entry_point="f").passed  # else it showed nothing


def test_verdicts_do_not_depend_on_load() -> None:
    jobs = [
        GOOD,
        Job("def f(x):\n    while True: pass", "assert f(1) == 2", "f"),
        Job("def f(x):\n    sum(range(3_000_000)); return x + 1", "assert f(1) == 2", "f"),
        Job("import time\ndef f(x): time.sleep(600)", "assert f(1) == 2", "f"),
    ]
    sandbox = Sandbox("bwrap", Limits(cpu_seconds=1, wall_seconds=2))
    idle = [(v.status, v.limit) for v in sandbox.judge_many(jobs)]
    burners = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(6)]
    try:
        loaded = [(v.status, v.limit) for v in sandbox.judge_many(jobs, workers=4)]
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert idle == loaded == [("passed", None), ("timeout", "cpu"), ("passed", None), ("timeout", "wall")]


def test_a_candidate_cannot_abort_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attack may look like a broken machine: that would stop the scoring of everything else."""
    noise = [
        Job(f"import os\nos.write(2, b'bwrap: No permissions\\n')\nos._exit({code})", "assert f(1) == 2", "f")
        for code in (1, 127, 137, 255)
    ]
    try:
        statuses = {v.status for v in Sandbox("bwrap").judge_many(noise)}
    except SandboxUnavailable as error:
        pytest.fail(str(error))
    assert statuses <= {"failed", "memory"}
