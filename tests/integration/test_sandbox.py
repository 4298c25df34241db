"""The sandbox judges right programs right: the values that cross, the names that tests take, limits, and machines where it cannot work."""

import math
import os
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from t2.harness.errors import T2Error
from t2.harness.sandbox import Job, Limits, Sandbox, SandboxUnavailable, UnusableTests, Verdict, active_kind, core, forget_kinds
from t2.harness.sandbox import jail as jail_module

FAST = Limits(cpu_seconds=2, wall_seconds=10)

# (what the program returns, an assert that only the true value meets)
VALUES = [
    ("None", "assert f() is None"),
    ("True", "assert f() is True"),
    ("1", "assert f() == 1 and type(f()) is int"),
    ("-(7 ** 5000)", "assert f() == -(7 ** 5000)"),
    ("0.1 + 0.2", "assert f() == 0.30000000000000004"),
    ("-0.0", "import math\nassert math.copysign(1, f()) == -1"),
    ("float('nan')", "import math\nassert math.isnan(f()) and f() != f()"),
    ("float('inf'), float('-inf')", "import math\nassert f() == (math.inf, -math.inf)"),
    ("complex(1, -2)", "assert f() == 1 - 2j"),
    ("'a\\0b\\ud800\\U0001f600'", "assert f() == 'a\\0b\\ud800\\U0001f600'"),
    ("b'\\xff\\0'", "assert f() == b'\\xff\\0' and type(f()) is bytes"),
    ("bytearray(b'x')", "assert f() == bytearray(b'x')"),
    ("[1, (2, [3]), {4}]", "assert f() == [1, (2, [3]), {4}] and type(f()[1]) is tuple"),
    ("{(1, 2): {'k': None}, None: []}", "assert f() == {(1, 2): {'k': None}, None: []}"),
    ("dict(b=1, a=2)", "assert list(f()) == ['b', 'a']"),
    ("frozenset({1, frozenset()})", "assert f() == frozenset({1, frozenset()})"),
    ("range(3, 9, 2)", "assert f() == range(3, 9, 2)"),
    ("{'a': 1}.keys()", "assert f() == {'a'}"),
    ("{'a': [1]}.items()", "assert sorted(f()) == [('a', [1])]"),
    ("{1: 2}.items()", "assert f() == {(1, 2)} and f() | {3} == {(1, 2), 3} and f() != {(1, 3)}"),
    ("(i * i for i in range(4))", "assert list(f()) == [0, 1, 4, 9]"),
    ("map(str, [1, 2])", "assert [x for x in f()] == ['1', '2']"),
    ("__import__('collections').Counter('aab')", "assert f() == {'a': 2, 'b': 1} and f()['z'] == 0"),
    ("__import__('collections').OrderedDict(a=1)", "assert f() == {'a': 1}"),
    ("__import__('collections').deque([1, 2], 5)", "assert f()[0] == 1 and list(f()) == [1, 2]"),
    ("__import__('collections').namedtuple('P', 'x y')(1, 2)", "assert f() == (1, 2)"),
    ("__import__('decimal').Decimal('1.10')", "from decimal import Decimal\nassert str(f()) == '1.10' and f() == Decimal('1.1')"),
    ("__import__('fractions').Fraction(1, 3)", "from fractions import Fraction\nassert f() == Fraction(1, 3)"),
    ("__import__('datetime').datetime(2020, 2, 29, 1, 2, 3)", "import datetime\nassert f() == datetime.datetime(2020, 2, 29, 1, 2, 3)"),
    ("__import__('array').array('i', [1, 2])", "import array\nassert f() == array.array('i', [1, 2])"),
    ("int", "assert f() is int"),
]


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    made = Sandbox("bwrap", FAST)
    made.check()
    return made


def test_values_cross_exactly(sandbox: Sandbox) -> None:
    verdicts = sandbox.judge_many([Job(f"def f(): return {value}", tests, "f") for value, tests in VALUES])
    assert [f"{value}: {v}" for (value, _), v in zip(VALUES, verdicts, strict=True) if not v.passed] == []


def test_arguments_cross_exactly_and_changes_in_place_come_back(sandbox: Sandbox) -> None:
    code = """
def same(*a, **k): return a, k
def grow(xs, d, s): xs.append(xs.pop(0)); d['n'] = [1]; s.clear()
def nested(x): x[0].append(9)
"""
    tests = """
values = [None, True, 3 ** 900, 1.5, float("inf"), 2j, "\\ud800", b"\\xff", (1, [2]), {1: {2}}, frozenset(), range(3), int, [[]]]
assert same(*values, key=values) == (tuple(values), {"key": values})
xs, d, s, x = [1, 2], {}, {1}, [[]]
assert grow(xs, d, s) is None
assert (xs, d, s) == ([2, 1], {"n": [1]}, set())
nested(x)
assert x == [[9]]
assert same((), [()], ((),), {}) == (((), [()], ((),), {}), {})
"""
    assert sandbox.judge(code, tests, entry_point=["same", "grow", "nested"]).passed


def test_objects_of_the_program_can_be_made_read_changed_and_passed_back(sandbox: Sandbox) -> None:
    code = """
class Node:
    def __init__(self, value): self.value, self.left = value, None
    def depth(self): return 1 + (self.left.depth() if self.left else 0)
def depth(node): return node.depth() if node else 0
def chain(pairs): return [p.value for p in pairs]
"""
    tests = """
root = Node(1)
root.left = Node(2)
root.left.left = Node(3)
assert depth(root) == 3 and root.left.value == 2 and root.depth() == 3
assert chain([root, root.left]) == [1, 2]
assert root.left == root.left and root != root.left and root.left.left.left is None
"""
    assert sandbox.judge(code, tests, entry_point=["depth", "chain"]).passed


def test_exceptions_of_the_program_reach_the_tests_as_builtins(sandbox: Sandbox) -> None:
    code = (
        "class Own(Exception): pass\nclass Derived(ValueError): pass\n"
        "def f(x):\n    if x == 4: b'\\xff'.decode()\n    if x == 5: raise ExceptionGroup('g', [Own('o')])\n"
        "    raise {0: ValueError('v'), 1: KeyError('k'), 2: Own('o'), 3: Derived('d')}[x]"
    )
    tests = """
def raised(x):
    try: f(x)
    except Exception as error: return type(error).__name__, str(error)
assert raised(0) == ("ValueError", "v")
assert raised(1)[0] == "KeyError"
assert raised(2) == ("RemoteError", "Own: o")
assert raised(3) == ("ValueError", "d")
assert raised(4) == ("UnicodeError", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte")
assert raised(5)[0] == "RemoteError"
"""
    assert sandbox.judge(code, tests, entry_point="f").passed


@pytest.mark.parametrize(
    ("code", "tests", "entry", "status"),
    [
        ("def sum(a, b): return a + b", "assert sum(1, 2) == 3", None, "passed"),  # a builtin's name, found without being told
        ("def sum(a, b): return a + b", "assert set([sum(1, 2)]) == set([3])", "sum", "passed"),
        ("import math\ndef f(x): return x / 3", "assert math.isclose(f(1), 0.333333333333)", "f", "passed"),
        ("def f(x): return x / 3", "assert math.isclose(f(1), 0.333333333333)", "f", "failed"),  # as in one process: math is not imported
        ("class math:\n def isclose(*a): return True\ndef f(x): return 0", "import math\nassert math.isclose(f(1), 5)", "f", "failed"),
        ("class math:\n isclose = lambda *a: True\ndef f(x): return 0", "assert math.isclose(f(1), 5)", None, "failed"),
        ("from datetime import datetime\ndef f(x): return x", "assert f(datetime.max) == datetime.max", "f", "passed"),
        ("class Two:\n @staticmethod\n def add(a, b): return a + b", "assert Two.add(1, 2) == 3", None, "passed"),
        ("def f(x): return 1\nif __name__ == '__main__': 1 / 0", "assert f(0) == 1", "f", "passed"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n x: 'int'\ndef f(x): return A(x).x", "assert f(3) == 3", "f", "passed"),
        ("import re, json, random, functools, typing, unicodedata\ndef f(x): return x", "assert f('é') == 'é'", "f", "passed"),
        ("import tempfile\ndef f(x):\n with tempfile.TemporaryFile() as h: return h.write(x)", "assert f(b'abc') == 3", "f", "passed"),
        (
            "from concurrent.futures import ThreadPoolExecutor as T\ndef f(x):\n with T(2) as t: return list(t.map(abs, x))",
            "assert f([-1]) == [1]",
            "f",
            "passed",
        ),
        (
            "from concurrent.futures import ThreadPoolExecutor as T\nimport time\n"
            "def f(x):\n with T(32) as t: return sum(t.map(lambda i: time.sleep(0.01) or i, range(100)))",
            "assert f(1) == 4950",
            "f",
            "passed",
        ),
        # what socket pairs and signals are used for: event loops, pipes between processes, a shell
        (
            "import asyncio\nasync def g(x):\n p = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1)\n"
            " return (await p.communicate(x))[0]\ndef f(x): return asyncio.run(g(x))",
            "assert f(b'a') == b'a'",
            "f",
            "passed",
        ),
        (
            "import multiprocessing as m\ndef f(x):\n pairs = [m.Pipe() for _ in range(8)]\n"
            " for a, b in pairs: m.Process(target=b.send, args=(x,)).start()\n return [a.recv() for a, b in pairs]",
            "assert f(1) == [1] * 8",
            "f",
            "passed",
        ),
        (
            "import signal, subprocess\ndef f(x):\n assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL\n"
            " return subprocess.check_output(f'echo {x} | cat; (exit 3); echo $?', shell=True)",
            "assert f(1) == b'1\\n3\\n'",
            "f",
            "passed",
        ),
        ("def f(x):\n try: exit(3)\n except SystemExit as e: return e.code", "assert f(1) == 3", "f", "passed"),
        ("def f(n): return n and 1 + f(n - 1)", "assert f(900) == 900", "f", "passed"),
        ("def f(x):\n print('noise' * 9000, flush=True)\n return x", "assert f(1) == 1", "f", "passed"),
        ("def f(s): return list(set(s))", "assert f('abcde') == f('abcde')", "f", "passed"),
    ],
)
def test_what_right_and_wrong_programs_get(sandbox: Sandbox, code: str, tests: str, entry: str | None, status: str) -> None:
    verdict = sandbox.judge(code, tests, entry_point=entry)
    assert verdict.status == status, str(verdict)


def test_hash_order_is_the_same_in_every_run(sandbox: Sandbox) -> None:
    """Else a program that returns a set's order passes or fails by chance."""
    probe = [Job("def f(): return ''.join(set('abcdefgh'))", f"assert f() == '{first}'", "f") for first in ("x",)]
    details = {hash_seed_order(sandbox) for _ in range(3)}
    assert len(details) == 1 and not sandbox.judge_many(probe)[0].passed


def hash_seed_order(sandbox: Sandbox) -> str:
    return sandbox.judge("def f(): return ''.join(set('abcdefgh'))", "assert False, f()", entry_point="f").detail


def test_failed_verdict_names_the_assert(sandbox: Sandbox) -> None:
    verdict = sandbox.judge("def f(x): return x", "assert f(1) == 1\nassert f(2) == 3  # second\nassert f(3) == 3", entry_point="f")
    assert (verdict.status, verdict.reason, verdict.test) == ("failed", "assertion", 1)
    assert "f(2) == 3" in verdict.detail
    assert verdict.as_dict()["status"] == "failed" and 0 <= verdict.seconds < 60


def test_text_of_the_program_in_a_detail_is_harmless(sandbox: Sandbox) -> None:
    verdict = sandbox.judge("def f(x): raise ValueError('\\x1b[2J\\n' + 'x' * 10 ** 6)", "assert f(1)", entry_point="f")
    assert "\x1b" not in verdict.detail and "\n" not in verdict.detail and len(verdict.detail) < 600


def test_a_helper_of_the_prompt_cannot_be_redefined(sandbox: Sandbox) -> None:
    prompt = "def check_root(x): return x * x == 9\n\ndef root():\n    '''Give x with check_root(x).'''\n"
    cheat = prompt + "    return 0\n\ndef check_root(x): return True\n"
    assert sandbox.judge(cheat, "assert check_root(root())", entry_point="root").passed  # what it would do without
    assert sandbox.judge(cheat, "assert check_root(root())", entry_point="root", helpers=prompt).status == "failed"
    assert sandbox.judge(prompt + "    return 3", "assert check_root(root())", entry_point="root", helpers=prompt).passed


def test_a_function_that_only_the_helpers_define_is_missing(sandbox: Sandbox) -> None:
    verdict = sandbox.judge("x = 1", "assert f(1) is None", entry_point="f", helpers="def f(x):\n '''doc'''")
    assert verdict.reason == "missing_name", str(verdict)


def test_tests_that_stop_early_do_not_pass(sandbox: Sandbox) -> None:
    for tests in ("import sys\nassert f(1) == 1\nsys.exit(0)\nassert f(1) == 2", "try:\n    assert f(1) == 2\nexcept AssertionError: pass"):
        assert sandbox.judge("def f(x): return x", tests, entry_point="f").status == "failed"


@pytest.mark.parametrize("tests", ["assert f(", "f(1)", "assert True", "", "assert f(lambda: 1) == 1", "assert f(iter([])) == 1"])
def test_tests_that_cannot_be_judged_are_an_error_not_a_score(sandbox: Sandbox, tests: str) -> None:
    with pytest.raises(UnusableTests):
        sandbox.judge("def f(x): return 1", tests, entry_point="f" if "f" in tests else None)


def test_helpers_that_do_not_run_are_an_error_not_a_score(sandbox: Sandbox) -> None:
    with pytest.raises(UnusableTests, match="the helpers do not run: ModuleNotFoundError"):
        sandbox.judge("def f(x): return 1", "assert f(1) == 1", entry_point="f", helpers="import no_such_module")


def test_threads_that_compute_are_not_taken_for_sleepers() -> None:
    code = (
        "import threading, time\ndef f(x):\n def work():\n  end = time.process_time() + 2\n  while time.process_time() < end: pass\n"
        " t = threading.Thread(target=work)\n t.start()\n t.join()\n return x"
    )
    verdict = Sandbox("bwrap", Limits(cpu_seconds=4, wall_seconds=1)).judge(code, "assert f(1) == 1")
    assert verdict.passed, str(verdict)


def test_a_parent_in_vfork_is_taken_for_the_sleeper_that_it_is() -> None:
    code = (
        "import os\ndef f(x):\n os.mkfifo('/tmp/p')\n"
        " os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, '/tmp/p', os.O_RDONLY, 0)])"
    )
    verdict = Sandbox("bwrap", Limits(wall_seconds=1)).judge(code, "assert f(1) == 1")
    assert (verdict.status, verdict.limit) == ("timeout", "wall") and verdict.seconds < 15, str(verdict)


def test_many_jobs_keep_their_order_and_report_each(sandbox: Sandbox) -> None:
    seen: dict[int, Verdict] = {}
    jobs = [Job(f"def f(): return {i % 3}", f"assert f() == {i % 2}", "f") for i in range(12)]
    verdicts = sandbox.judge_many(jobs, workers=3, done=lambda i, v: seen.__setitem__(i, v))
    assert [v.passed for v in verdicts] == [i % 3 == i % 2 for i in range(12)]
    assert [seen[i] for i in range(12)] == verdicts
    assert sandbox.judge_many([]) == []


def test_no_descriptor_or_thread_leaks(sandbox: Sandbox) -> None:
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())
    sandbox.judge_many([Job("def f(): return 1", "assert f() == 1", "f")] * 4 + [Job("import os\nos._exit(1)", "assert f() == 1", "f")] * 2)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_kind_is_recorded(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_used", [])
    assert active_kind() is None
    sandbox.judge("def f(): return 1", "assert f() == 1", entry_point="f")
    assert active_kind() == "bwrap"
    with pytest.warns(UserWarning, match="NOT isolated"):
        monkeypatch.setattr(core, "_jails", {})
        assert Sandbox("process", FAST).judge("def f(): return 1", "assert f() == 1", entry_point="f").passed
    assert active_kind() == "process"
    forget_kinds()
    assert active_kind() is None


@pytest.mark.filterwarnings("ignore:Sandbox kind 'process'")
@pytest.mark.parametrize(("then", "status"), [("return x", "passed"), ("time.sleep(600)", "timeout")])
def test_process_kind_ends_what_made_a_session_of_its_own(then: str, status: str) -> None:
    nap = f"{600 + os.getpid() / 1e7}"
    code = f"import subprocess, time\ndef f(x):\n subprocess.Popen(['sleep', '{nap}'], start_new_session=True)\n {then}"

    def left() -> int:
        commands = [Path(entry, "cmdline") for entry in Path("/proc").glob("[0-9]*")]
        return sum(command.read_bytes() == f"sleep\0{nap}\0".encode() for command in commands if command.exists())

    tests = "import time\nassert f(1) == 1\ntime.sleep(0.5)"
    assert Sandbox("process", Limits(cpu_seconds=1, wall_seconds=2)).judge(code, tests, entry_point="f").status == status
    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left() == 0


@pytest.mark.filterwarnings("ignore:Sandbox kind 'process'")
def test_process_kind_keeps_its_limits() -> None:
    jobs = [
        Job("def f():\n while True: pass", "assert f() == 1", "f"),
        Job("def f(): return bytearray(1 << 40)", "assert f() == 1", "f"),
        Job("def f():\n while True: print('x' * 999)", "assert f() == 1", "f"),
        Job("import os\nos._exit(0)", "assert f() == 1", "f"),
        Job(
            "import os\ndef f(): return os.listdir('.'), dict(os.environ).keys() & {'T2_DATA_DIR', 'USER'}",
            "assert f() == ([], set())",
            "f",
        ),
    ]
    verdicts = Sandbox("process", Limits(cpu_seconds=1, wall_seconds=5)).judge_many(jobs)
    assert [v.status for v in verdicts] == ["timeout", "memory", "output_limit", "failed", "passed"]


def fake_bwrap(folder: Path, script: str) -> str:
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(folder)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_jails", {})
    monkeypatch.delenv("T2_SANDBOX", raising=False)


@pytest.mark.usefixtures("fresh")
def test_missing_bwrap_names_the_package_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"apt-get install bubblewrap(.|\n)*T2_SANDBOX=process"):
        Sandbox().judge("def f(): return 1", "assert f() == 1", entry_point="f")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("script", ["echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "exit 0", "kill -9 $$"])
def test_forbidden_namespaces_are_an_error_with_bwraps_words(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{fake_bwrap(tmp_path, script)}:{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match=r"kernel\.unprivileged_userns_clone") as caught:
        Sandbox().judge("def f(): return 1", "assert f() == 1", entry_point="f")
    if "permissions" in script:
        assert "No permissions to create new namespace" in str(caught.value)


@pytest.mark.usefixtures("fresh")
def test_a_sandbox_that_breaks_later_aborts_instead_of_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = Sandbox("bwrap", FAST)
    sandbox.check()
    jail = core._jails["bwrap"]
    monkeypatch.setattr(jail, "bwrap", f"{fake_bwrap(tmp_path, 'echo gone-wrong >&2; exit 3')}/bwrap")
    jail.close()
    with pytest.raises(SandboxUnavailable, match="gone-wrong"):
        sandbox.judge_many([Job("def f(): return 1", "assert f() == 1", "f")] * 5)
    monkeypatch.setattr(jail, "bwrap", str(tmp_path / "absent"))
    with pytest.raises(SandboxUnavailable, match="absent"):
        sandbox.judge("def f(): return 1", "assert f() == 1", entry_point="f")


@pytest.mark.usefixtures("fresh")
def test_a_warm_process_that_died_is_replaced() -> None:
    sandbox = Sandbox("bwrap", FAST)
    sandbox.check()
    zygote = core._jails["bwrap"]._zygote
    assert zygote is not None
    zygote.kill()
    zygote.wait()
    assert all(v.passed for v in sandbox.judge_many([Job("def f(): return 1", "assert f() == 1", "f")] * 4))


@pytest.mark.usefixtures("fresh")
def test_a_warm_process_that_dies_while_it_judges_costs_a_second_try() -> None:
    sandbox = Sandbox("bwrap", FAST)
    sandbox.check()
    zygote = core._jails["bwrap"]._zygote
    assert zygote is not None
    killer = threading.Timer(0.5, zygote.kill)
    killer.start()
    assert sandbox.judge("import time\ntime.sleep(1.5)\ndef f(): return 1", "assert f() == 1", entry_point="f").passed
    assert core._jails["bwrap"]._zygote is not zygote


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", ["bwrap", "process"])
def test_a_python_built_for_an_old_c_library_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(SandboxUnavailable, match=r"needs os\.pidfd_open, which this Python \(/.*lacks"):
        Sandbox(kind).check()  # type: ignore[arg-type]


def test_a_containers_share_of_the_cores_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)))
    assert core.usable_cores() == 96
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert core.usable_cores() == 96
    (tmp_path / "cpu.max").write_text("350000 100000\n")
    assert core.usable_cores() == 4
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    for name, value in (("quota", "200000"), ("period", "100000")):
        (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(f"{value}\n")
    assert core.usable_cores() == 2
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert core.usable_cores() == 96


SLOW = "def f(n):\n total = 0\n for i in range(n): total += i\n return total"


def test_a_slow_reference_solution_raises_the_limits(sandbox: Sandbox) -> None:
    tests = "assert f(4 * 10 ** 7) == (4 * 10 ** 7) * (4 * 10 ** 7 - 1) // 2"
    tight = Sandbox("bwrap", Limits(cpu_seconds=1, wall_seconds=4))
    assert tight.judge(SLOW, tests).status == "timeout"
    verdict = tight.judge_many([Job(SLOW, tests, reference=SLOW)])[0]
    assert verdict.passed and verdict.cpu_seconds is not None and verdict.cpu_seconds > 1, str(verdict)
    assert Limits(cpu_seconds=5, wall_seconds=20).scaled(0.1) == Limits(cpu_seconds=5, wall_seconds=20)
    assert Limits(cpu_seconds=5, wall_seconds=20).scaled(1.01) == Limits(cpu_seconds=11, wall_seconds=44)


def test_a_reference_solution_that_fails_stops_the_run(sandbox: Sandbox) -> None:
    right = Job("def f(): return 1", "assert f() == 1", "f", reference="def f(): return 1")
    wrong = Job("def f(): return 2", "assert f() == 2", "f", reference="def f(): return 3")
    judged: list[int] = []
    for job, whose in ((wrong, r"that begins 'def f\(\): return 3'"), (replace(wrong, label="mbpp 11"), "of mbpp 11")):
        with pytest.raises(SandboxUnavailable, match=rf"The reference solution {whose} does not pass its own tests \(failed"):
            sandbox.judge_many([right, job], done=lambda index, verdict: judged.append(index))
    assert judged == []  # nothing is scored


@pytest.mark.usefixtures("fresh")
def test_a_canary_that_passes_wrongly_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_CANARY_BAD", core._CANARY_GOOD)
    with pytest.raises(SandboxUnavailable, match="self-test: expected failed, got passed"):
        Sandbox("bwrap").check()


def test_bad_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2_SANDBOX", "bwrp")
    with pytest.raises(T2Error, match="Did you mean 'bwrap'"):
        Sandbox()
    with pytest.raises(T2Error, match="Unknown kind of sandbox 'docker'"):
        Sandbox("docker")  # type: ignore[arg-type]
    with pytest.raises(T2Error, match="cpu_seconds=0"):
        Limits(cpu_seconds=0)
    assert math.isclose(Limits().wall_seconds, 20)


def test_without_ids_of_its_own_the_plain_user_namespace_works(sandbox: Sandbox) -> None:
    """The form that an ordinary user gets; root can use it as well."""
    jail = core.Jail("bwrap", own_ids=False)
    assert core._self_test(jail) is None
    places = "('/x', '/usr/x', '/dev/x', '/dev/shm/x', '/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger')"
    code = (
        f"def f():\n for p in {places}:\n  try: open(p, 'r+' if 'proc' in p else 'w'); return p\n  except OSError: pass\n return 'refused'"
    )
    job = Job(code, "assert f() == 'refused', f()", "f")
    assert str(core.run_job(jail, job, core._plan(job), FAST)) == "passed: 1 of 1 asserts held"


@pytest.mark.parametrize("place", ["env", "repo/env"])
def test_what_may_hold_answers_is_hidden_wherever_it_lies_in_what_a_program_sees(tmp_path, monkeypatch, place):
    """An interpreter of its own, once inside the checkout; packages, other environments, sources and data lie below it."""
    base, here = tmp_path / place, tmp_path / "repo" / "harness" / "sandbox"
    hidden = [base / "lib/python3.11/site-packages", base / "envs", base / "src", base / "data"]
    for folder in (here, base / "bin", *hidden):
        folder.mkdir(parents=True)
    monkeypatch.setattr(jail_module, "_HERE", here)
    monkeypatch.setattr(jail_module, "_python", lambda: str(base / "bin" / "python3.11"))
    for name in ("prefix", "base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(jail_module.sys, name, str(base))
    monkeypatch.setenv("T2_DATA_DIR", str(base / "data"))
    argv = jail_module._system_mounts.__wrapped__()
    mounts = [argv[i + 1] for i, word in enumerate(argv) if word == "--tmpfs"]
    assert {str(folder) for folder in hidden} <= set(mounts) and str(tmp_path / "repo") not in mounts
    assert not any(path != other and path.startswith(other + "/") for path in mounts for other in mounts)
