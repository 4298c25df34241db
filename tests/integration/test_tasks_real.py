"""Tasks on the real data and through lm-eval's command line, as far as data and model are on this machine."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import t2.tasks
from t2.harness.fetch import cache_dir
from t2.harness.fetch.data import locate_local
from t2.tasks.answers import extract_math, math_correct
from t2.tasks.arc.forms import text_correct
from t2.tasks.math_verifier import _bare, _worker, same_value

OURS = Path(t2.tasks.__file__).parent
TASKS = [
    "math_algebra",
    "math500",
    "gsm8k",
    "arc_easy",
    "arc_challenge",
    "arc_easy_chat",
    "arc_challenge_chat",
    "arc_easy_text",
    "arc_challenge_text",
]


def rows(dataset: str, split: str = "test") -> list[dict]:
    found = locate_local(dataset, split)
    if found is None:
        pytest.skip(f"needs {dataset}/{split}: run `t2 fetch {dataset}`, or set T2_DATA_DIR")
    return [json.loads(line) for line in found.data.decode().split("\n") if line]


@pytest.mark.parametrize(
    ("train", "test", "field", "count"),
    [
        ("arc_easy", "arc_easy", "question", 7),
        ("arc_easy", "arc_challenge", "question", 2),
        ("arc_challenge", "arc_challenge", "question", 7),
        ("math", "math", "problem", 10),
        ("math", "math500", "problem", 1),
        ("mbpp", "mbpp", "text", 3),
    ],
)
def test_as_many_test_questions_are_in_a_train_split_as_the_docs_say(train, test, field, count):
    def plain(row):
        return re.sub(r"\W+", " ", row[field].lower()).strip()

    known = {plain(row) for row in rows(train, "train")}
    assert sum(plain(row) in known for row in rows(test)) == count


@pytest.mark.parametrize(
    "phrase",
    [
        "{solution}",
        "\\boxed{{{answer}}}",
        "We tried 17.\nThe final answer is ${answer}$. I hope it is correct.",
        "The answer is {answer}.",
        "7 + 1\n#### {answer}",
        "We first find 17, so it must be ${answer}$.",
        "The answer is ${answer}$.\n\nThis shows that the answer is correct.",
    ],
)
def test_every_reference_answer_of_math_is_right(phrase: str) -> None:
    docs = rows("math")
    assert len(docs) >= 5000
    wrong = [doc["answer"] for doc in docs if not math_correct(phrase.format(**doc), doc["answer"])]
    assert wrong == []


def test_answers_of_other_problems_are_wrong() -> None:
    docs = random.Random(0).sample(rows("math"), 150)
    answers = [doc["answer"] for doc in docs]
    pairs = [(gold, other) for gold, other in itertools.pairwise(answers) if gold != other]
    assert len(pairs) > 100
    assert [pair for pair in pairs if same_value(*pair)] == []


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("dataset", ["arc_easy", "arc_challenge"])
def test_of_arcs_options_the_right_one_alone_is_right(dataset: str, split: str) -> None:
    for doc in rows(dataset, split):
        right = [label for label, text in zip(doc["choices"]["label"], doc["choices"]["text"], strict=True) if text_correct(doc, text)]
        assert right == [doc["answerKey"]]


@pytest.mark.slow
def test_every_reference_answer_of_math_is_right_by_value_alone() -> None:
    """Without the comparison as text: what math-verify itself can do."""
    golds = sorted({doc["answer"] for doc in rows("math")})
    assert [gold for gold in golds if not _worker.ask(_bare(gold), _bare(gold.replace("\\dfrac", "\\frac")))] == []


@pytest.mark.slow
def test_shuffled_answers_of_math_are_wrong() -> None:
    golds = [doc["answer"] for doc in rows("math")]
    shuffled = random.Random(1).sample(golds, len(golds))
    equal = {(a, b) for a, b in zip(golds, shuffled, strict=True) if a != b and same_value(a, b)}
    # Some answers of other problems are the same number, written with another unit or in another order of LaTeX.
    assert [pair for pair in equal if sorted(re.findall(r"\d", pair[0])) != sorted(re.findall(r"\d", pair[1]))] == []
    assert len(equal) < 10


def test_extraction_of_every_math_solution_is_its_reference_answer() -> None:
    docs = rows("math")
    assert [doc["answer"] for doc in docs if extract_math(doc["solution"]) != doc["answer"].strip()] == []


def lm_eval(tmp_path: Path, *arguments: str) -> dict:
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--tasks",
        ",".join(TASKS),
        "--limit",
        "2",
        "--include_path",
        str(OURS),
        "--output_path",
        str(tmp_path),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = tmp_path.rglob("results_*.json")
    return json.loads(path.read_text())


def need_test_sets() -> None:
    for dataset in ("math", "math500", "gsm8k", "arc_easy", "arc_challenge"):
        rows(dataset)


def check(results: dict) -> None:
    assert set(results["results"]) >= set(TASKS)
    for name in TASKS:
        metrics = {key.split(",")[0] for key in results["results"][name]}
        primary = "math_verify" if name.startswith("math") else "exact_match" if name not in ("arc_easy", "arc_challenge") else "acc"
        assert primary in metrics
        assert ("extracted" in metrics) == (primary != "acc")
        assert results["n-samples"][name]["effective"] == 2
    assert results["n-shot"]["gsm8k"] == 5
    assert "used" in results["configs"]["gsm8k"]["fewshot_config"]["samples"][0]


def test_command_line_with_the_dummy_model(tmp_path: Path) -> None:
    need_test_sets()
    check(lm_eval(tmp_path, "--model", "dummy"))


@pytest.mark.slow
def test_command_line_with_the_default_model(tmp_path: Path) -> None:
    need_test_sets()
    model = cache_dir() / "models" / "smollm2-135m-instruct"
    if not (model / "model.safetensors").exists():
        pytest.skip("needs the default model: run `t2 fetch`")
    arguments = f"pretrained={model},dtype=bfloat16"
    check(lm_eval(tmp_path, "--model", "hf", "--model_args", arguments, "--batch_size", "8", "--gen_kwargs", "max_gen_toks=24"))


def test_dispatch_boxed_asks_for_as_many_prompts_of_each_label_and_its_targets_are_right() -> None:
    for name in ("humaneval", "math500", "arc_challenge"):
        rows(name)
    from lm_eval.tasks import TaskManager

    task = TaskManager().load(["dispatch_boxed"])["tasks"]["dispatch_boxed"]
    docs = list(task.test_docs())
    assert [doc["label"] for doc in docs] == ["code"] * 164 + ["math"] * 164 + ["reasoning"] * 164
    for doc in docs[::41]:
        assert task.doc_to_text(doc).endswith(doc["question"]) and "\\boxed{" in task.doc_to_text(doc)
        assert task.process_results(doc, [task.doc_to_target(doc)]) == {"exact_match": 1.0, "extracted": 1.0}
        assert task.process_results(doc, ["Classification: \\boxed{others}"]) == {"exact_match": 0.0, "extracted": 1.0}
        assert task.process_results(doc, [doc["label"]]) == {"exact_match": 0.0, "extracted": 0.0}
    assert docs[0]["question"].startswith("from typing") and docs[-1]["question"].splitlines()[-1].startswith("D.")
