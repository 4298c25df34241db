"""The installed hook with the real lm-eval and PEFT, in interpreters of their own, as a user has them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval.tasks
import pytest

import t2

ROOT = Path(t2.__file__).parent
SITE = Path(sysconfig.get_paths()["purelib"])


def python(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHONPATH": "", **env}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=settings, timeout=600)


def test_the_model_is_registered_without_importing_torch(tmp_path: Path) -> None:
    code = """
import sys
from lm_eval.api.registry import model_registry, get_model
get_model("dummy")
print(model_registry._objs["t2"], "hf" in model_registry, "torch" in sys.modules)"""
    done = python("-c", code, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("t2.harness.model:T2LM True False", "")


def test_peft_knows_svf_and_looking_for_it_does_not_import_it(tmp_path: Path) -> None:
    code = """
import importlib.util, sys
importlib.util.find_spec("peft"), importlib.util.find_spec("lm_eval.models")
print("peft" in sys.modules, "t2" in sys.modules)
import peft
print(peft.PeftType("SVF").value, peft.PEFT_TYPE_TO_CONFIG_MAPPING["SVF"].__name__)"""
    done = python("-c", code, cwd=tmp_path)
    assert (done.stdout.split(), done.stderr) == (["False", "False", "SVF", "SvfConfig"], "")


def test_spawned_processes_have_the_hook_and_objects_travel(tmp_path: Path) -> None:
    script = tmp_path / "spawn.py"
    script.write_text("""
import multiprocessing, sys
def hooks(_): return [type(finder).__module__ for finder in sys.meta_path].count("_t2_startup"), "t2" in sys.modules
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool: print(pool.map(hooks, [0]))
""")
    done = python(str(script), cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("[(1, False)]", "")


@pytest.mark.parametrize(("flags", "count"), [(["-S"], "0"), (["-I"], "1"), (["-E", "-s", "-B"], "1"), (["-W", "error"], "1")])
def test_interpreter_flags(tmp_path: Path, flags: list[str], count: str) -> None:
    done = python(*flags, "-c", "import sys; print(sum(type(f).__module__ == '_t2_startup' for f in sys.meta_path))", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, count, "")


@pytest.fixture(scope="module")
def indexes() -> SimpleNamespace:
    """lm-eval's index of tasks with ours and without, and ours alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("T2_TASKS", raising=False)
        both = lm_eval.tasks.TaskManager()
        patch.setenv("T2_TASKS", "0")
        theirs = lm_eval.tasks.TaskManager()
        ours = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(ROOT / "tasks"))
    return SimpleNamespace(both=both.task_index, theirs=theirs.task_index, ours=ours.task_index)


def test_every_task_of_ours_is_found_in_our_folder(indexes: SimpleNamespace) -> None:
    assert {"math", "gsm8k", "arc_easy", "arc_challenge", "humaneval", "mbpp"} <= set(indexes.ours)
    elsewhere = {name for name, entry in indexes.ours.items() if entry.yaml_path and indexes.both[name].yaml_path != entry.yaml_path}
    assert elsewhere == set()


def test_nothing_of_lm_eval_is_lost(indexes: SimpleNamespace) -> None:
    assert set(indexes.both) == set(indexes.theirs) | set(indexes.ours)
    lost = {
        name: entry.tags - indexes.both[name].tags
        for name, entry in indexes.theirs.items()
        if entry.kind.name == "TAG" and not entry.tags <= indexes.both[name].tags
    }
    assert lost == {}


def test_what_we_override_stays_of_its_kind(indexes: SimpleNamespace) -> None:
    """A group of lm-eval's that lists a task of ours must get a task."""
    shared = set(indexes.ours) & set(indexes.theirs)
    assert {"gsm8k", "arc_easy", "arc_challenge", "humaneval", "mbpp"} <= shared

    def shape(entry: Any) -> str:
        return "task" if "TASK" in entry.kind.name else entry.kind.name

    assert {name: shape(indexes.ours[name]) for name in shared} == {name: shape(indexes.theirs[name]) for name in shared}


@pytest.mark.parametrize("command", [["-m", "lm_eval"], [str(Path(sys.executable).with_name("lm_eval"))]], ids=["module", "script"])
def test_the_command_line_lists_math_quietly(tmp_path: Path, command: list[str]) -> None:
    done = python(*command, "ls", "groups", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| *math *\|.*tasks/math/math\.yaml *\|", done.stdout, re.MULTILINE)
    assert "overrides existing" not in done.stdout + done.stderr


BROKEN = {
    "t2 gone": lambda package: shutil.rmtree(package),
    "harness gone": lambda package: shutil.rmtree(package / "harness"),
    "adapters and tasks gone": lambda package: [shutil.rmtree(package / name) for name in ("adapters", "tasks")],
    "plug-in cut short": lambda package: (package / "harness" / "plugin.py").write_text("def add_components(module:\n"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A site folder with t2 as a wheel leaves it, before the one with everything else."""
    site = tmp_path / "site"
    for folder in ("adapters", "harness", "tasks"):
        shutil.copytree(ROOT / folder, site / "t2" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", site / "t2")
    shutil.copy(ROOT / "harness" / "startup" / "hook.py", site / "_t2_startup.py")
    shutil.copy(SITE / "t2_startup.pth", site)
    return site


def with_site(site: Path, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code where `site` is a site folder and the one of this environment only a folder on the path (its .pth lines are not read)."""
    return python("-S", "-c", f"import site, sys; sys.path.append({str(SITE)!r}); site.addsitedir({str(site)!r})\n{code}", cwd=cwd)


@pytest.mark.parametrize("how", BROKEN)
def test_half_removed_lm_eval_and_peft_work_and_are_silent(copy: Path, tmp_path: Path, how: str) -> None:
    BROKEN[how](copy / "t2")
    done = with_site(copy, "pass", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    code = """
import lm_eval.models, lm_eval.filters, lm_eval.tasks._index as index, pathlib
from lm_eval.api.registry import get_model
get_model("dummy")
print(len(index.TaskIndex.build([pathlib.Path(index.__file__).parent / "gsm8k"])) > 0)"""
    done = with_site(copy, code, tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")


def test_whole_in_the_copy_it_does_act(copy: Path, tmp_path: Path) -> None:
    """The counterpart of the tests above: in that very place the whole package is at work."""
    code = "import lm_eval.tasks._index as index; print(index.TaskIndex.build.__module__)"
    assert with_site(copy, code, tmp_path).stdout.strip() == "t2.harness.plugin"


def test_peft_without_our_adapters_is_silent_and_without_svf(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "t2" / "adapters")
    done = with_site(copy, "import peft; print('SVF' in peft.PeftType.__members__)", tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "False", "")


def test_a_broken_adapter_is_a_warning_for_who_listens_and_silence_for_others(copy: Path, tmp_path: Path) -> None:
    (copy / "t2" / "adapters" / "svf" / "register.py").write_text("def register(): raise RuntimeError('too new')\n")
    code = "import logging; logging.basicConfig(format='%(name)s %(message)s') if {} else None; import peft; print(peft.__version__)"
    quiet, told = (with_site(copy, code.format(listens), tmp_path) for listens in (False, True))
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert told.stderr.startswith("t2 t2 could not add SVF to PEFT ")
    assert told.stderr.strip().endswith("too new")
