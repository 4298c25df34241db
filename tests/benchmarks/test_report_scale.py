"""A report over many runs and many logged samples: seconds and memory of the real command, `t2 report RUNS -o DIR`.

    python -m pytest -m slow tests/benchmarks/test_report_scale.py -s

Lines are as long as lm-eval writes them (2.6 kB: document, prompt, reply twice). Each command runs in a process of its own, whose peak
memory is the kernel's figure.
"""

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

RUNS, SAMPLES, SECONDS, MEGABYTES = 50, 5_000, 30, 500
MANY, MANY_MEGABYTES = 1_000_000, 500
TASKS = ("gsm8k", "arc_easy")

QUESTION, REPLY = "A long question about trains and apples. " * 12, "Let us think step by step about it. " * 14


def write_run(folder: Path, name: str, tasks: dict[str, int], skill: float, seed: int) -> Path:
    """Write a result file and its samples: task -> documents."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    date = f"2026-01-01T00-00-{seed % 60:02}.{seed:06}"
    results, counts = {}, {}
    for task, n in tasks.items():
        right = 0
        with (folder / f"samples_{task}_{date}.jsonl").open("w") as file:
            for doc in range(n):
                score = float(draw.random() < skill)
                right += int(score)
                digest = hashlib.sha256(f"{task} {doc}".encode()).hexdigest()
                line = {
                    "doc_id": doc, "doc": {"question": QUESTION, "answer": str(doc)}, "target": str(doc),
                    "arguments": {"gen_args_0": {"arg_0": QUESTION, "arg_1": {"until": ["\n"]}}},
                    "resps": [[REPLY]], "filtered_resps": [REPLY],
                    "filter": "none", "metrics": ["acc"], "doc_hash": digest, "prompt_hash": digest, "target_hash": digest, "acc": score,
                    "t2": {"mixture": "math", "category": "math"},
                }  # fmt: skip
                file.write(json.dumps(line) + "\n")
        share = right / n
        results[task] = {"alias": task, "acc,none": share, "acc_stderr,none": (share * (1 - share) / (n - 1)) ** 0.5}
        counts[task] = {"original": n, "effective": n}
    data = {
        "results": results, "group_subtasks": {}, "n-samples": counts, "versions": dict.fromkeys(tasks, 1.0), "date": 1.7e9 + seed,
        "n-shot": dict.fromkeys(tasks, 0), "higher_is_better": {task: {"acc": True} for task in tasks}, "lm_eval_version": "0.4.13",
        "configs": {task: {"doc_to_text": "{{question}}"} for task in tasks}, "total_evaluation_time_seconds": "100",
        "config": {"model": "hf", "model_args": {"pretrained": "org/model", **({"peft": name} if seed else {})}},
    }  # fmt: skip
    path = folder / f"results_{date}.json"
    path.write_text(json.dumps(data))
    return path


def report(*arguments: str) -> tuple[float, float]:
    """Run `t2 report`; return its seconds and its peak memory in MB.

    VmHWM, not ru_maxrss: that one begins with the memory of the process that started it.
    """
    code = (
        "import sys; from t2.harness.cli import main; status = main(sys.argv[1:]);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))); sys.exit(status)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, "report", *arguments], capture_output=True, text=True, timeout=600)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    return seconds, int(done.stdout.split()[-1]) * 1024 / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads a process's peak memory from /proc")
def test_fifty_runs_of_five_thousand_samples(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    per_task = SAMPLES // len(TASKS)
    for i in range(RUNS):
        write_run(tmp_path / "runs" / f"{i:02}", f"adapter-{i}", dict.fromkeys(TASKS, per_task), 0.4 + 0.005 * i, i)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.jsonl")) / 1e6
    seconds, megabytes = benchmark.pedantic(report, (str(tmp_path / "runs"), "-o", str(tmp_path / "out")))
    benchmark.extra_info["megabytes"] = megabytes
    print(f"\n{RUNS} runs x {SAMPLES:,} samples ({size:.0f} MB of files): {seconds:.1f} s, {megabytes:.0f} MB")
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("org/model") >= RUNS and "**" in text.split("## Differences")[1]
    assert seconds < SECONDS
    assert megabytes < MEGABYTES


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads a process's peak memory from /proc")
def test_a_million_samples_are_streamed(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Two runs of half a million samples each: what is kept is a few bytes a sample, of some 2.6 GB of files."""
    small, half = MANY // 40, MANY // 2
    for name, n in (("small", small), ("large", half)):
        for i in range(2):
            write_run(tmp_path / name / f"{i}", f"adapter-{i}", {"gsm8k": n}, 0.4 + 0.1 * i, i)
    _, before = report(str(tmp_path / "small"), "-o", str(tmp_path / "out-small"))
    seconds, after = benchmark.pedantic(report, (str(tmp_path / "large"), "-o", str(tmp_path / "out-large")))
    per_sample = (after - before) * 1e6 / (2 * (half - small))
    benchmark.extra_info |= {"megabytes": after, "bytes a sample": per_sample}
    print(f"\n{2 * half:,} samples: {seconds:.1f} s, {after:.0f} MB; {2 * small:,}: {before:.0f} MB; {per_sample:.0f} bytes a sample")
    assert "500,000" in (tmp_path / "out-large" / "report.md").read_text()
    assert after < MANY_MEGABYTES
    assert per_sample < 200
