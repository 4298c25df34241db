"""The training tasks: only train splits, equal halves, and rewards that are the evaluation's checks."""

import pytest

from t2.tasks import training
from t2.tasks.arc import forms
from t2.tasks.mbpp.forms import chat_prompt, extract_code

ARC = {
    "question": "Which is wet?",
    "choices": {"text": ["A rock.", "The sea", "Dry sand", "Fire"], "label": ["A", "B", "C", "D"]},
    "answerKey": "B",
}


@pytest.fixture
def asked(monkeypatch):
    splits = []

    def rows(dataset, split):
        splits.append((dataset, split))
        return [{"id": i, "code": "x" * (i * 10), "answer": "<<" * (i % 5)} for i in range(100)]

    monkeypatch.setattr(training, "load_rows", rows)
    return splits


@pytest.mark.parametrize("name", sorted(training.TASKS))
def test_halves_are_disjoint_reproducible_and_of_the_train_split_alone(name, asked):
    task = training.train_task(name)
    a, b = training.split_halves(task, 0), training.split_halves(task, 0)
    assert a == b
    ids = [{row["id"] for row in part} for part in (a.train, a.validation)]
    assert not ids[0] & ids[1]
    assert abs(len(a.train) - len(a.validation)) <= 1
    assert training.split_halves(task, 1).sha256 != a.sha256
    assert {split for _, split in asked} == {"train"}


def test_long_mbpp_solutions_are_left_out(asked):
    split = training.split_halves(training.train_task("mbpp"), 0)
    assert max(len(row["code"]) for row in split.train + split.validation) == 400


@pytest.mark.parametrize(
    ("reply", "right", "option"),
    [
        ("The sea", True, True),
        ("- the  SEA.", True, True),
        ("A rock", False, True),
        ("the sea is wet", False, False),
        ("B", False, False),
        ("", False, False),
    ],
)
def test_arc_by_text(reply, right, option):
    task = training.train_task("arc_easy")
    assert task.correct([ARC], [reply]) == [right]
    assert forms.is_option(ARC, reply) == option
    assert forms.text_prompt(ARC).count("- ") == 4


@pytest.mark.parametrize(("reply", "right"), [("42", True), ("It is $42.", True), ("6 * 7 = 42", True), ("41", False), ("none", False)])
def test_gsm8k(reply, right):
    doc = {"question": "6 times 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}
    for name in ("gsm8k", "gsm8k_answer"):
        assert training.train_task(name).correct([doc], [reply]) == [right]


def test_mbpp_replies_are_judged_in_the_sandbox():
    tests = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
    doc = {"text": "Add.", "code": "def add(a, b): return a + b", "test_list": tests, "test_setup_code": ""}
    assert all(test in chat_prompt(doc) for test in doc["test_list"])
    good = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
    replies = [good, "def add(a, b): return a + b", "```\ndef add(a, b):\n    return 3\n```", "import os; os._exit(0)", ""]
    assert training.train_task("mbpp").correct([doc] * 5, replies) == [True, True, False, False, False]


def test_code_is_taken_from_an_unclosed_block():
    assert extract_code("```python\nx = 1\n") == "x = 1\n"
