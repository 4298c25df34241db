"""What the plug-in does to lm-eval's registries and to its index of tasks: lm-eval's own classes, fresh copies of them."""

import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lm_eval
import pytest
from lm_eval.api import registry

from t2.harness import plugin

TASK = "task: {name}\ndataset_path: json\noutput_type: generate_until\n"


def write(folder: Path, **tasks: str) -> Path:
    """Write one YAML for each task: name="tag", or name="" for a task without one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tag in tasks.items():
        (folder / f"{name}.yaml").write_text(TASK.format(name=name) + (f"tag: {tag}\n" if tag else ""))
    return folder


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our task folder, for these tests a made one."""
    monkeypatch.delenv("T2_TASKS", raising=False)
    folder = write(tmp_path / "t2" / "tasks", shared="", math="")
    monkeypatch.setattr(plugin.importlib.resources, "files", lambda package: tmp_path / package)
    return folder


@pytest.fixture
def defaults(tmp_path: Path) -> Path:
    """lm-eval's own task folder, likewise."""
    return write(tmp_path / "lm_eval" / "tasks", shared="", theirs="")


@pytest.fixture
def build(defaults: Path) -> Callable[..., dict[str, Any]]:
    """`TaskIndex.build` of a fresh copy of lm-eval's module, patched by the plug-in as the installed hook has the real one patched."""
    source = Path(lm_eval.__file__).parent / "tasks" / "_index.py"
    spec = importlib.util.spec_from_file_location("lm_eval.tasks._index", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__file__ = str(defaults / "_index.py")
    plugin.add_tasks(module)
    return module.TaskIndex().build


def folders(index: dict[str, Any]) -> dict[str, str]:
    return {name: entry.yaml_path.parent.parent.name for name, entry in index.items() if entry.yaml_path}


def test_ours_win_over_the_defaults_and_a_user_wins_over_ours(
    build: Callable[..., dict[str, Any]], defaults: Path, ours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert folders(build([defaults])) == {"shared": "t2", "theirs": "lm_eval", "math": "t2"}
        assert caplog.messages == []
        user = write(tmp_path / "user" / "tasks", math="", other="")
        assert folders(build([defaults, user])) == {"shared": "t2", "theirs": "lm_eval", "math": "user", "other": "user"}
    assert caplog.messages == [f"Task 'math' from {user / 'math.yaml'} overrides existing task from {ours / 'math.yaml'}"]


@pytest.mark.parametrize("value", ["0", "false", " OFF "])
def test_switched_off(
    build: Callable[..., dict[str, Any]], defaults: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("T2_TASKS", value)
    assert folders(build([defaults])) == {"shared": "lm_eval", "theirs": "lm_eval"}


def test_without_the_defaults_ours_stay_out(build: Callable[..., dict[str, Any]], ours: Path, tmp_path: Path) -> None:
    assert folders(build([write(tmp_path / "user" / "tasks", other="")])) == {"other": "user"}


def test_our_folder_included_by_hand_is_not_taken_twice(
    build: Callable[..., dict[str, Any]], defaults: Path, ours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert folders(build([defaults, ours]))["shared"] == "t2"
    assert [message for message in caplog.messages if "shared" in message] != []  # lm-eval's own word on an include path, said once
    assert len(caplog.messages) == 1


def test_a_missing_folder_of_ours_changes_nothing(build: Callable[..., dict[str, Any]], defaults: Path, ours: Path) -> None:
    ours.rename(ours.with_name("moved"))
    assert folders(build([defaults])) == {"shared": "lm_eval", "theirs": "lm_eval"}


def test_a_broken_yaml_of_ours_costs_that_task_alone(build: Callable[..., dict[str, Any]], defaults: Path, ours: Path) -> None:
    (ours / "math.yaml").write_text("task: [\n")
    assert folders(build([defaults])) == {"shared": "t2", "theirs": "lm_eval"}


def test_an_error_of_ours_leaves_lm_eval_its_own_tasks(
    build: Callable[..., dict[str, Any]], defaults: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(package: str) -> Path:
        raise OSError("no such disk")

    monkeypatch.delenv("T2_TASKS", raising=False)
    monkeypatch.setattr(plugin.importlib.resources, "files", fail)
    assert folders(build([defaults])) == {"shared": "lm_eval", "theirs": "lm_eval"}
    assert "no such disk" in caplog.text


def test_a_tag_of_both_lists_the_tasks_of_both(build: Callable[..., dict[str, Any]], defaults: Path, ours: Path) -> None:
    write(defaults, shared="easy", theirs="easy")
    write(ours, shared="", math="easy")
    assert build([defaults])["easy"].tags == {"shared", "theirs", "math"}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> registry.Registry:
    """An empty model registry in the place of lm-eval's, in a lm-eval that reads no entry points."""
    empty: registry.Registry = registry.Registry("model")
    monkeypatch.setattr(registry, "model_registry", empty)
    monkeypatch.delattr(registry, "load_plugins", raising=False)
    return empty


def declare(monkeypatch: pytest.MonkeyPatch, **models: str) -> None:
    entries = [importlib.metadata.EntryPoint(name, value, "lm_eval.models") for name, value in models.items()]
    found = SimpleNamespace(entry_points=importlib.metadata.EntryPoints(entries))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found if name == "t2" else None)


def test_models_are_registered_as_placeholders(models: registry.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, t2="nowhere.at.all:Model", ordered="collections:OrderedDict")
    plugin.add_components(ModuleType("lm_eval.models"))
    assert dict(models.items()) == {"t2": "nowhere.at.all:Model", "ordered": "collections:OrderedDict"}
    assert models.get("ordered").__name__ == "OrderedDict"


def test_what_is_there_already_stays(models: registry.Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    models.register("t2", target="mine:Own")
    declare(monkeypatch, t2="nowhere:Model", more="nowhere:Other")
    plugin.add_components(ModuleType("lm_eval.models"))
    assert dict(models.items()) == {"t2": "mine:Own", "more": "nowhere:Other"}
    assert caplog.messages == []


def test_stands_down_where_lm_eval_reads_entry_points(models: registry.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, t2="nowhere:Model")
    monkeypatch.setattr(registry, "load_plugins", lambda group, registry: [], raising=False)
    plugin.add_components(ModuleType("lm_eval.models"))
    assert dict(models.items()) == {}


def test_a_frozen_registry_is_logged_and_left_alone(
    models: registry.Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    declare(monkeypatch, t2="nowhere:Model")
    models.freeze()
    plugin.add_components(ModuleType("lm_eval.models"))
    assert dict(models.items()) == {}
    assert "could not register lm_eval.models 't2'" in caplog.text


def test_a_bare_checkout_declares_nothing(models: registry.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    plugin.add_components(ModuleType("lm_eval.models"))
    assert dict(models.items()) == {}


def test_every_registry_named_exists_in_this_lm_eval() -> None:
    names = [name for pairs in plugin.COMPONENTS.values() for _, name in pairs]
    assert [name for name in names if not isinstance(getattr(registry, name), registry.Registry)] == []
