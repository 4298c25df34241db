"""`write_whole`: the old file or the new one."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from t2.adapters.files import write_whole
from t2.harness.fewshot.mixture_file import write_json


def test_the_file_is_replaced_and_may_be_read_as_any_other(tmp_path):
    target, other = tmp_path / "file", tmp_path / "other"
    write_whole(target, b"one")
    write_whole(target, b"two")
    other.touch()
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode == other.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_writers_with_one_process_id_do_not_meet(tmp_path):
    """As two containers with one cache, whose first process is 1 in both."""
    contents = [bytes([65 + n]) * 200_000 for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda n: write_whole(tmp_path / "file", contents[n % 4]), range(40)):
            assert (tmp_path / "file").read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_a_mixture_file_may_be_read_as_any_other(tmp_path):
    write_json(tmp_path / "mixture.json", {})
    (tmp_path / "other").touch()
    assert (tmp_path / "mixture.json").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_what_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, fails):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    target = tmp_path / "file"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        write_whole(tmp_path / "file" / "below", b"")
