"""How much memory is free: a container's limit counts."""

from types import SimpleNamespace

import pytest
import torch

from t2.adapters import memory

CPU = torch.device("cpu")
V2, V1 = ("memory.max", "memory.current", "memory.stat"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "names", "contents", "free"),
    [
        ("", V2, ("4000", "3000", "anon 2000\ninactive_file 500"), 1500),
        ("", V2, ("max", "3000", "inactive_file 500"), 5000),
        ("", V2, ("9000", "1000", "inactive_file 500"), 5000),
        ("", V2, ("4000", "4100", "inactive_file 0"), 0),
        ("memory", V1, ("4000", "3000", "inactive_file 1\ntotal_inactive_file 500"), 1500),
        ("memory", V1, ("9223372036854771712", "3000", "inactive_file 500"), 5000),
    ],
)
def test_a_containers_limit_counts_and_cached_files_do_not(groups, folder, names, contents, free):
    (groups / folder).mkdir(exist_ok=True)
    for name, content in zip(names, contents, strict=True):
        (groups / folder / name).write_text(content + "\n")
    assert memory.free_memory(CPU) == free


def test_without_a_limit_it_is_the_hosts(groups):
    assert memory.free_memory(CPU) == 5000
