"""The report from files that the real `lm_eval` command line writes, with its dummy model and tasks made here."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from t2.reports.cli import main

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
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""
GENERATE = """\
task: t2r_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"]}}
filter_list:
  - name: strict-match
    filter: [{{function: regex, regex_pattern: "([0-9]+)"}}, {{function: take_first}}]
  - name: flexible-extract
    filter: [{{function: take_first}}]
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
ROLLING = """\
task: t2r_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
metadata: {{version: 1.0}}
"""
GROUP = """\
group: t2r_pair
task: [t2r_left, t2r_right]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
metadata: {version: 3.0}
"""


def lm_eval(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `lm_eval --model dummy`, offline, with a cache of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lm_eval", "--model", "dummy", "--include_path", str(folder / "tasks"), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    tasks = folder / "tasks"
    tasks.mkdir()
    number = random.Random(1)
    choice = [{"question": f"{i} plus one?", "choices": [str(i + 1), str(i + 2)], "answer": number.randrange(2)} for i in range(10)]
    # The dummy model always says "lol": 3 of 9 right.
    words = [{"question": f"Say {i}.", "answer": "lol" if i % 3 == 0 else "no"} for i in range(9)]
    for name, rows in (("choice", choice), ("words", words)):
        (tasks / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("t2r_left", "t2r_right"):
        (tasks / f"{name}.yaml").write_text(CHOICE.format(name=name, data=tasks / "choice.jsonl"))
    (tasks / "words.yaml").write_text(GENERATE.format(data=tasks / "words.jsonl"))
    (tasks / "rolling.yaml").write_text(ROLLING.format(data=tasks / "words.jsonl"))
    (tasks / "pair.yaml").write_text(GROUP)
    one = "pretrained=org/Tiny,x=1"
    started = [
        lm_eval(folder, "--tasks", "t2r_pair,t2r_words,t2r_rolling", "--output_path", "out/full", "--log_samples"),
        lm_eval(folder, "--tasks", "t2r_words", "--limit", "1", "--seed", "7", "--output_path", "out/one.json", "--model_args", one),
    ]
    try:
        for process in started:
            said, _ = process.communicate(timeout=600)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    return folder


def cells(text: str, title: str, label: str) -> list[str]:
    body = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in body.splitlines() if row.startswith("|")]
    return next(row[1:] for row in rows if row[0] == label)


def test_report_of_a_folder_of_real_runs(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert main(["out"]) == 0
    text = capsys.readouterr().out
    head = cells(text, "Leaderboard", "Method")
    assert head[0].startswith("t2r_pair (acc, %, n = 20")
    assert head[1].startswith("t2r_words (exact_match / flexible-extract, %, n = 1 to 9")
    assert head[2].startswith("t2r_rolling (bits_per_byte ↓")
    full = cells(text, "Leaderboard", "dummy")
    result = json.loads(next(Path("out/full").rglob("results_*.json")).read_text())
    pair = result["results"]["t2r_pair"]
    assert full[0].startswith(f"{pair['acc,none'] * 100:.2f} ± {pair['acc_stderr,none'] * 100:.2f} [")
    assert full[1] == "33.33 ± 16.67 [12.06, 64.58]"
    assert float(full[2]) == pytest.approx(result["results"]["t2r_rolling"]["bits_per_byte,none"], rel=1e-3)
    # One document has no standard error: lm-eval says N/A, Wilson still knows how little that is.
    assert cells(text, "Leaderboard", "dummy Tiny")[1] == "100.00 [20.65, 100.00]"
    assert "t2r_words: documents scored: 9 (dummy); 1 (dummy Tiny)" in text or "documents scored: 1 (dummy Tiny); 9 (dummy)" in text
    assert "t2r_words (1 of 9)" in text
    subtasks = text.split("<summary>Subtasks of groups</summary>")[1]
    assert "| t2r_left " in subtasks and "acc, %, n = 10" in subtasks
    assert cells(text, "Runs", "dummy Tiny")[:2] == ["dummy", "pretrained=org/Tiny, x=1"]
    assert "random 7, numpy 7, torch 7, fewshot 7" in text
    assert "lm-eval 0.4" in text and "torch 2" in text


def test_t2_section_added_to_a_real_file(runs, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(runs)
    data = json.loads(next(Path("out/full").rglob("results_*.json")).read_text())
    one = {"seconds": 1.0, "prompts": 10, "tokens_in": 50, "tokens_out": 0, "switches": 1}
    passes = {task: {"pass1": one, "pass2": one | {"seconds": 4.0}, "chosen": {"base": 10}} for task in ("t2r_left", "t2r_right")}
    data["t2"] = {"schema": 1, "strategy": "prompt", "dispatch": "score", "experts": {}, "base": "b", "passes": passes, "sandbox": None}
    data["config"]["model"] = "t2"
    path = tmp_path / "results_t2.json"
    path.write_text(json.dumps(data))
    assert main([str(path)]) == 0
    row = cells(capsys.readouterr().out, "Time of the two passes", "t2 prompt (score)")
    assert row[:5] == ["t2r_pair", "base 100%", "2.00", "8.00", "25.0%"]


def test_samples_file_of_a_real_run_is_refused_with_advice(runs, monkeypatch):
    monkeypatch.chdir(runs)
    samples = next(Path("out/full").rglob("samples_t2r_words_*.jsonl"))
    with pytest.raises(ValueError, match=r"logged samples, not results\. Give the results_"):
        main([str(samples)])
