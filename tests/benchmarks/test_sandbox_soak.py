"""1,000 candidates, a third of them hostile, again and again: the same verdicts every time, under load too, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2.harness.sandbox import Job, Limits, Sandbox
from t2.tasks import data
from t2.tasks.humaneval.scoring import job

from ..attacks.hostile import ALL
from ..attacks.test_attacks import jailed, none_left

REPETITIONS = 5
LIMITS = Limits(cpu_seconds=1, wall_seconds=3, memory_bytes=512 << 20, output_bytes=1 << 20)


def candidates() -> list[Job]:
    docs = [dict(row) for row in data.load("humaneval")["test"]]
    right = [job(doc["prompt"] + doc["canonical_solution"], doc) for doc in docs]
    wrong = [job(doc["prompt"] + "    return None\n", doc) for doc in docs]
    # Left out: those that may rightly end in one of several ways, by which limit is met first, or which of two processes is quicker.
    hostile = [
        Job(attack.code, attack.tests, "f")
        for attack in ALL
        if len(attack.expected) == 1 and "if os.fork(): os._exit(0)" not in attack.code
    ]
    return [group[i % len(group)] for i in range(334) for group in (right, wrong, hostile)][:1000]


def temporary_files() -> set[str]:
    return {str(path) for top in ("/tmp", "/dev/shm", "/var/tmp") for path in Path(top).glob("*")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_verdicts_repeat_and_nothing_is_left() -> None:
    jobs, sandbox = candidates(), Sandbox("bwrap", LIMITS)
    sandbox.check()
    before, files, mounts = jailed(), temporary_files(), Path("/proc/mounts").read_text()
    descriptors = len(os.listdir("/proc/self/fd"))
    runs = []
    for repetition in range(REPETITIONS):
        burners = []
        if repetition == REPETITIONS - 1:
            burners = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
        try:
            verdicts = sandbox.judge_many(jobs, progress=f"repetition {repetition + 1}{', loaded' if burners else ''}")
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        runs.append([(v.status, v.limit, v.reason, v.test) for v in verdicts])
    differing = {i: {run[i] for run in runs} for i in range(len(jobs)) if len({run[i] for run in runs}) > 1}
    print(f"{len(jobs)} candidates, {REPETITIONS} repetitions (the last under load), verdicts of {len(differing)} differ")
    assert {jobs[i].code[:200]: outcomes for i, outcomes in differing.items()} == {}
    assert sum(status == "passed" for status, *_ in runs[0]) == 334
    assert none_left(before) == set()
    assert temporary_files() - files == set()
    assert Path("/proc/mounts").read_text() == mounts
    assert len(os.listdir("/proc/self/fd")) == descriptors
