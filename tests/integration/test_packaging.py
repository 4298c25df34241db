"""Wheel, editable wheel and sdist: what is in them, and that installing and uninstalling leave a folder as it was."""

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import t2

ROOT = Path(t2.__file__).parent
FOLDERS = ["adapters", "harness", "tasks", "baselines", "reports"]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def package_files() -> set[str]:
    """Return the files of the tree that belong to the package, named as in a wheel."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {"t2/__init__.py"} | {f"t2/{path.relative_to(ROOT).as_posix()}" for path in files}


def build(kind: str, folder: Path, tree: Path = ROOT) -> Path:
    """Build with the back end of `tree`, as pip does: in a process of its own whose working directory is the tree."""
    code = f"import sys; sys.path.insert(0, 'harness/startup'); import build_backend as b; b.build_{kind}({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("editable", tmp_path_factory.mktemp("editable"))


def test_the_wheel_has_every_file_of_the_package_and_the_hook(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files() | {"_t2_startup.py", "t2_startup.pth"}


def test_the_editable_wheel_has_the_hook_and_nothing_else(editable: Path) -> None:
    archive = zipfile.ZipFile(editable)
    names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {"_t2_startup.py", "t2_startup.pth"}
    assert f"ROOT: str | None = {str(ROOT)!a}" in archive.read("_t2_startup.py").decode()


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_record_lists_every_file_with_its_hash(kind: str, request: pytest.FixtureRequest) -> None:
    archive = zipfile.ZipFile(request.getfixturevalue(kind))
    (record,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
    rows = {name: (digest, size) for name, digest, size in csv.reader(io.StringIO(archive.read(record).decode()))}
    assert set(rows) == set(archive.namelist())
    assert rows.pop(record) == ("", "")
    for name, row in rows.items():
        data = archive.read(name)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert row == (f"sha256={digest}", str(len(data))), name


def test_the_pth_is_one_line_of_ascii_that_sorts_last(wheel: Path) -> None:
    line = zipfile.ZipFile(wheel).read("t2_startup.pth").decode("ascii")
    assert line.startswith("import sys; ")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "t2_startup.pth" > "__editable__.t2-0.1.0.pth"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A fresh environment without pip, and with a file of somebody else's: pip removes a site folder that it leaves empty."""
    folder = tmp_path / "environment"
    venv.create(folder)
    (site_of(folder) / "other.py").touch()
    return folder


def site_of(environment: Path) -> Path:
    return next((environment / "lib").glob("python3*")) / "site-packages"


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_install_and_uninstall(kind: str, environment: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python, site = environment / "bin" / "python", site_of(environment)
    before, pip = contents(environment), (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "-q", "--no-deps", "--no-index", request.getfixturevalue(kind))
    code = "import sys; print('_t2_startup' in sys.modules, 't2' in sys.modules); import t2; print(t2.__file__)"
    where = ROOT if kind == "editable" else site / "t2"
    assert run(python, "-c", code, cwd=tmp_path).splitlines() == ["True False", str(where / "__init__.py")]
    files = "from importlib.resources import files; print((files('t2') / 'tasks' / 'math' / 'math.yaml').is_file())"
    assert run(python, "-c", files, cwd=tmp_path) == "True\n"
    points = "from importlib.metadata import entry_points as e; print([p.value for p in e(group='lm_eval.models', name='t2')])"
    assert run(python, "-c", points, cwd=tmp_path) == "['t2.harness.model:T2LM']\n"
    run(*pip, "uninstall", "-q", "-y", "t2")
    assert contents(environment) == before
    done = subprocess.run([python, "-c", "import sys; print('_t2_startup' in sys.modules)"], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_wheel_built_from_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    for name in ("sdist", "tree", "again"):
        (tmp_path / name).mkdir()
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    assert not (ROOT / "t2.egg-info").exists()
    again = build("wheel", tmp_path / "again", tree)
    mine, theirs = ({name: archive.read(name) for name in archive.namelist()} for archive in map(zipfile.ZipFile, (again, wheel)))
    assert mine.keys() == theirs.keys() and [name for name in mine if mine[name] != theirs[name]] == []


@pytest.mark.slow
@pytest.mark.network
def test_pip_installs_the_checkout_with_build_isolation(environment: Path, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "-e", ROOT)
    assert run(python, "-c", "import t2; print(t2.__file__)", cwd=tmp_path).strip() == os.fspath(ROOT / "__init__.py")
