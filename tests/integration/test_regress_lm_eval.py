"""The gate on what the real `lm_eval` command line writes, with its dummy model and tasks made here, through the command `t2 regress`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GENERATE = """\
task: t2g_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GROUP = "group: t2g\ntask: [t2g_left, t2g_right]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"


def lm_eval(folder: Path, *arguments: str) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lm_eval", "--model", "dummy", "--include_path", "tasks", "--log_samples", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def regress(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "t2.harness.cli", "regress", "--baseline", "base.json", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    tasks = folder / "tasks"
    tasks.mkdir()
    choice = [{"question": f"{i} plus one?", "choices": [str(i + 1), str(i + 2)], "answer": i % 2} for i in range(40)]
    # The dummy model always says "lol".
    words = [{"question": f"Say {i}.", "answer": "lol" if i % 4 else "no"} for i in range(40)]
    for name, rows in (("choice", choice), ("words", words)):
        (tasks / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("t2g_left", "t2g_right"):
        (tasks / f"{name}.yaml").write_text(CHOICE.format(name=name, data=tasks / "choice.jsonl"))
    (tasks / "words.yaml").write_text(GENERATE.format(data=tasks / "words.jsonl"))
    (tasks / "group.yaml").write_text(GROUP)
    lm_eval(folder, "--tasks", "t2g,t2g_words", "--output_path", "out")
    assert regress(folder, "--update", "out") == (0, "Wrote base.json: 3 tasks, 120 documents\n")
    return folder


def test_the_same_run_passes(runs):
    status, said = regress(runs, "out")
    assert status == 0, said
    assert "t2 regress: ok, 3 gated" in said and "t2g (2 tasks together)" in said
    result = json.loads(next((runs / "out").rglob("results_*.json")).read_text())["results"]
    assert f"{result['t2g_left']['acc,none'] * 100:.2f}" in next(line for line in said.splitlines() if line.startswith("t2g_left"))


def test_a_part_of_the_documents_with_another_batch_size_is_unlike(runs):
    lm_eval(runs, "--tasks", "t2g_words", "--limit", "30", "--batch_size", "4", "--output_path", "part")
    status, said = regress(runs, "part", "--tasks", "t2g_words")
    assert status == 2
    assert "documents: 10 (30, 31, 32, 33, 34, 35, 36, 37 and 2 more) of t2g_words only in the baseline" in said
    assert "batch size: 1 in the baseline, 4 in the run" in said
    status, said = regress(runs, "part", "--tasks", "t2g_words", "--allow-unlike")
    assert status == 0 and "UNLIKE THINGS COMPARED" in said
    status, said = regress(runs, "part", "--allow-unlike")
    assert status == 2 and "The run lacks t2g_left, t2g_right" in said


def test_an_edited_run_fails(runs, tmp_path):
    source = next((runs / "out").rglob("results_*.json"))
    data = json.loads(source.read_text())
    samples = next(source.parent.glob("samples_t2g_words_*.jsonl"))
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    for line in [line for line in lines if line["exact_match"] == 1.0][:9]:
        line["exact_match"] = 0.0
    data["results"]["t2g_words"]["exact_match,none"] -= 9 / 40
    (tmp_path / source.name).write_text(json.dumps(data))
    (tmp_path / samples.name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, said = regress(runs, str(tmp_path / source.name), "--tasks", "t2g_words")
    assert status == 1 and "REGRESSION in t2g_words" in said and "-22.50" in said
