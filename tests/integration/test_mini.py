"""`t2_mini` in lm-eval: its own answers score 100% through its own scorers, and the command line runs it without any data set."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from t2.harness.fetch import FetchError, load_rows
from t2.harness.fetch.model import model_folder, problem
from t2.harness.sandbox import Sandbox
from t2.tasks.humaneval.scoring import job
from t2.tasks.mini import items
from t2.tasks.score_code import score_code

OURS = Path(__file__).resolve().parents[2] / "tasks" / "mini"
SCORES = {
    "t2_mini_math": "exact_match,none",
    "t2_mini_code": "pass@1,create_test",
    "t2_mini_reasoning": "acc,none",
    "t2_mini_dispatch": "acc,none",
}


class Knows(LM):
    """Answers from the document, as `reply` says."""

    def __init__(self, reply: Callable[[str, dict[str, Any]], str]) -> None:
        super().__init__()
        self.reply = reply

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self.reply(str(r.task_name), r.doc) for r in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(0.0 if r.args[1].strip() == self.reply(str(r.task_name), r.doc) else -9.0, False) for r in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def gold(task: str, doc: dict[str, Any]) -> str:
    if task == "t2_mini_reasoning":
        return doc["choices"]["ABCD".index(doc["key"])]
    return doc[{"t2_mini_math": "expression", "t2_mini_code": "canonical_solution", "t2_mini_dispatch": "domain"}[task]] + (
        f" = {doc['answer']}" if task == "t2_mini_math" else ""
    )


def evaluate(reply: Callable[[str, dict[str, Any]], str], tasks: list[str]) -> dict[str, Any]:
    manager = TaskManager(include_path=str(OURS), include_defaults=False)
    return simple_evaluate(Knows(reply), tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=0)  # type: ignore[return-value]


def test_every_item_is_solved_by_its_own_answer() -> None:
    results = evaluate(gold, ["t2_mini"])
    assert results["group_subtasks"]["t2_mini"] == list(SCORES)
    for task, metric in SCORES.items():
        assert results["results"][task][metric] == 1.0, task
        assert results["n-samples"][task]["effective"] == len(items.rows(task.removeprefix("t2_mini_")))
    assert all(results["results"][task]["extracted" + metric[metric.index(",") :]] == 1.0 for task, metric in list(SCORES.items())[:2])
    json.dumps(results["samples"])  # as --log_samples writes it


def test_prompts_end_where_the_answer_begins() -> None:
    samples = evaluate(gold, ["t2_mini_math", "t2_mini_dispatch", "t2_mini_reasoning"])["samples"]
    prompts = {task: [s["arguments"][0][0] for s in found] for task, found in samples.items()}
    question = items.rows("math")[0]["question"]
    assert prompts["t2_mini_math"][0].endswith(f"Answer: 2 * 3 = 6\n\nQuestion: {question}\nAnswer:")
    assert all(p.count("Question:") == 4 for p in prompts["t2_mini_math"])
    assert prompts["t2_mini_dispatch"][0].endswith(f"{items.rows('dispatch')[0]['prompt']}\nSubject:")
    assert prompts["t2_mini_reasoning"][0] == f"Question: {items.rows('reasoning')[0]['question']}\nAnswer:"


def test_wrong_replies_to_math_and_code_score_nothing() -> None:
    wrong = {"t2_mini_math": "-1", "t2_mini_code": "    return None\n"}
    results = evaluate(lambda task, doc: wrong[task], ["t2_mini_math", "t2_mini_code"])["results"]
    assert results["t2_mini_math"]["exact_match,none"] == 0.0
    # `second_best` is to return None for hopeless input: that is not all it is tested on
    assert results["t2_mini_code"]["pass@1,create_test"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("body", ["return 0", "return 1", "return ''", "return []", "return {}", "return True", "return False", "FIRST"])
def test_lazy_functions_do_not_pass(body: str) -> None:
    docs = [items.humaneval_row(item) for item in items.rows("code")]
    first = [re.search(r"\((\w+)", doc["prompt"])[1] for doc in docs]  # type: ignore[index]
    jobs = [job(f"{d['prompt']}    {body.replace('FIRST', f'return {name}')}\n", d) for d, name in zip(docs, first, strict=True)]
    assert [d["task_id"] for d, v in zip(docs, Sandbox().judge_many(jobs), strict=True) if v.passed] == []


@pytest.mark.parametrize(
    ("dataset", "field", "name"),
    [
        ("gsm8k", "question", "math"), ("math", "problem", "math"), ("arc_easy", "question", "reasoning"),
        ("arc_challenge", "question", "reasoning"), ("mbpp", "text", "code"), ("humaneval", "prompt", "code"),
    ],
)  # fmt: skip
def test_no_item_repeats_a_public_data_set(dataset: str, field: str, name: str) -> None:
    """No eight words in a row are a test set's (seven of a template, as in "what is the sum of all whole numbers", can be anybody's)."""
    try:
        public = load_rows(dataset, "test")
    except FetchError as error:
        pytest.skip(f"needs the test split of {dataset}: set T2_DATA_DIR or run t2 fetch ({error})")
    key = {"math": "question", "code": "prompt", "reasoning": "question"}[name]

    def grams(text: str) -> set[str]:
        found = re.findall(r"\w+", text.lower())
        return {" ".join(found[i : i + 8]) for i in range(len(found) - 7)}

    theirs = {gram for row in public for gram in grams(row[field])}
    texts = [item[key] for item in items.rows(name)] + [item["prompt"] for item in items.rows("dispatch")]
    assert {text: shared for text in texts if (shared := grams(text) & theirs)} == {}


def lm_eval(output: Path, *arguments: str) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k not in ("T2_DATA_DIR", "T2_TASKS")} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lm_eval", "--tasks", "t2_mini", "--output_path", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = output.rglob("results_*.json")
    return json.loads(path.read_text())


def test_the_command_line_runs_it_without_data(tmp_path: Path) -> None:
    results = lm_eval(tmp_path, "--model", "dummy", "--limit", "2")
    assert all(metric in results["results"][task] for task, metric in SCORES.items())
    assert all(results["n-samples"][task]["effective"] == 2 for task in SCORES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("model", "arguments"), [("t2", "strategy=base"), ("hf", f"pretrained={model_folder()}")])
def test_the_default_model_is_neither_lost_nor_finished(model: str, arguments: str, tmp_path: Path) -> None:
    if problem(model_folder()):
        pytest.skip("the default model is not in the cache: run t2 fetch")
    results = lm_eval(tmp_path, "--model", model, "--model_args", arguments, "--batch_size", "16")["results"]
    scores = {task: results[task][metric] for task, metric in SCORES.items()}
    print(scores)
    assert all(0.1 <= score <= 0.9 for score in scores.values()), scores


def test_logged_programs_can_be_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = [items.humaneval_row(item) for item in items.rows("code")[:3]]
    replies = [docs[0]["canonical_solution"], "    return None\n", docs[2]["canonical_solution"]]
    file = tmp_path / "samples_t2_mini_code.jsonl"
    file.write_text("".join(json.dumps({"doc": d, "resps": [[r]]}) + "\n" for d, r in zip(docs, replies, strict=True)))
    assert score_code(file, "humaneval", [1], quiet=True) == 0
    assert "3 problems, 3 samples, 2 passed\npass@1: 0.666667" in capsys.readouterr().out
