"""The training tasks: only train splits, equal halves, and rewards that are the evaluation's checks."""

import datetime
import random

import pytest

from t2.harness.errors import T2Error
from t2.tasks import training
from t2.tasks.arc import forms
from t2.tasks.mbpp import forms as mbpp
from t2.tasks.mbpp import split
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
        return [{"id": i, "task_id": 640 + i, "code": "x" * (i * 10), "answer": "<<" * (i % 5)} for i in range(100)]

    monkeypatch.setattr(training, "load_rows", rows)
    return splits


@pytest.mark.parametrize("name", sorted(name for name, task in training.TASKS.items() if not task.published))
def test_halves_are_disjoint_reproducible_and_of_the_train_split_alone(name, asked):
    task = training.train_task(name)
    a, b = training.split_halves(task, 0), training.split_halves(task, 0)
    assert a == b
    ids = [{row["id"] for row in part} for part in (a.train, a.validation)]
    assert not ids[0] & ids[1]
    assert abs(len(a.train) - len(a.validation)) <= 1
    assert training.split_halves(task, 1).sha256 != a.sha256
    assert {split for _, split in asked} == {"train"}


def test_long_mbpp_solutions_and_what_mbpp_plus_scores_are_left_out(asked):
    halves = training.split_halves(training.train_task("mbpp"), 0)
    rows = halves.train + halves.validation
    assert max(len(row["code"]) for row in rows) == 400
    assert {row["task_id"] for row in rows} == {*range(640, 681)} - {641, 643, 644}


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


@pytest.mark.parametrize(
    ("gold", "others"),
    [
        ("+1", ["-1"]),
        ("charge of -3.", ["charge of +3."]),
        ("Rr", ["rr", "RR"]),
        ("128 millimeters", ["1.28 millimeters"]),
    ],
)
def test_an_option_that_differs_in_case_or_punctuation_alone_is_wrong(gold, others):
    doc = {"choices": {"text": ["nothing", gold, *others], "label": list("ABCD")[: 2 + len(others)]}, "answerKey": "B"}
    assert [forms.text_correct(doc, reply) for reply in (gold, f" {gold.rstrip('.')}\n", f"- {gold.rstrip('.')}.")] == [True] * 3
    assert not any(forms.text_correct(doc, reply) for reply in [*others, f"- {others[0]}", "nothing"])
    assert all(forms.is_option(doc, text) for text in doc["choices"]["text"])


@pytest.mark.parametrize(("reply", "right"), [("42", True), ("It is $42.", True), ("6 * 7 = 42", True), ("41", False), ("none", False)])
def test_gsm8k(reply, right):
    doc = {"question": "6 times 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}
    for name in ("gsm8k", "gsm8k_answer"):
        assert training.train_task(name).correct([doc], [reply]) == [right]


def test_mbpp_replies_are_judged_in_the_sandbox():
    tests = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
    doc = {"task_id": 1, "text": "Add.", "code": "def add(a, b): return a + b", "test_list": tests, "test_setup_code": ""}
    assert all(test in chat_prompt(doc) for test in doc["test_list"])
    good = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
    replies = [good, "def add(a, b): return a + b", "```\ndef add(a, b):\n    return 3\n```", "import os; os._exit(0)", ""]
    assert training.train_task("mbpp").correct([doc] * 5, replies) == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("```python\nx = 1\n", "x = 1\n"),
        ("```Python\nx = 1\n```\nThis sets x.", "x = 1\n"),
        ("```python3\nx = 1\n```\nThis sets x.", "x = 1\n"),
        ("``` python title='a.py'\nx = 1\n```\nThis sets x.", "x = 1\n"),
        ("Here:\r\n```python\r\nx = 1\r\n```\r\nThis sets x.", "x = 1\n"),
        ("1. Here:\n   ```python\n   if x:\n       x = 1\n   ```\nDone", "if x:\n    x = 1\n"),
        ("```bash\npip install x\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("```bash\npip install x\n```\n```\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```\nIn use:\n```python\nprint(x)\n```", "x = 1\n"),
        ("```js\nx = 1\n```", "x = 1\n"),
        ("As ```x``` is one:\n```python\nx = 1\n```", "x = 1\n"),
        ("x = 1", "x = 1"),
    ],
)
def test_code_is_taken_from_the_block_that_holds_it(reply, code):
    assert extract_code(reply) == code


def test_mbpp_t2_trains_on_the_papers_split_whatever_the_seed(monkeypatch):
    rows = [{"task_id": i} for i in range(378)]
    monkeypatch.setattr(split, "load_rows", lambda dataset, part: rows[::-1])
    one, other = (training.split_halves(training.train_task("mbpp_t2"), seed) for seed in (0, 1))
    assert one == other
    ids = [[row["task_id"] for row in part] for part in (one.train, one.validation, split.rows()["test"])]
    assert [len(part) for part in ids] == [200, 100, 78]
    assert sorted(ids[0] + ids[1]) == list(range(300)) and ids[2] == list(range(300, 378))
    expected = list(range(300))  # as the paper's reference code shuffles them
    random.seed(16)
    random.shuffle(expected)
    assert ids[0] == expected[:200]


def test_too_few_rows_for_the_papers_split_are_an_error(monkeypatch):
    monkeypatch.setattr(split, "load_rows", lambda dataset, part: [{"task_id": i} for i in range(300)])
    with pytest.raises(T2Error, match="more than 300 rows of MBPP"):
        split.rows()


def test_mbpp_plus_documents_are_judged_by_evalpluss_tests(monkeypatch):
    judged = []
    monkeypatch.setattr(mbpp.Sandbox, "judge_many", lambda self, jobs: judged.extend(jobs) or [])
    doc = {"task_id": 2, "prompt": "Add.", "code": "def add(a, b): return a + b", "test_list": ["assert add(1, 2) == 3"]}
    doc["test"] = (
        "inputs = [[7, 8]]\nresults = [15]\nfor i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(add(*inp), exp, 0)"
    )
    mbpp.correct([doc], ["```python\nx = 1\n```"])
    assert "add(*[7, 8])" in judged[0].tests and judged[0].reference == doc["code"]
    assert chat_prompt(doc).startswith("Add.\nYour code should pass these tests:\nassert add(1, 2) == 3\n")


def test_documents_that_are_no_json_are_told(monkeypatch):
    monkeypatch.setattr(training, "load_rows", lambda *_: [{"at": datetime.date(2024, 1, i + 1)} for i in range(4)])
    task = training.TrainTask("dated", str, lambda docs, replies: [], max_new_tokens=1)
    with pytest.raises(T2Error, match=r"dated has documents with more than text, numbers and lists \(Object of type date .* process_docs"):
        training.split_halves(task, 0)
