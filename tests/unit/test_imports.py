"""Imports run one way, and what is quick to import stays quick."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {  # docs/design.md; a package may always import itself
    "adapters": set(),
    "harness": {"adapters"},
    "tasks": {"adapters", "harness"},
    "baselines": {"adapters", "harness", "tasks"},
    "reports": set(),
}
TASKS_MAY_TAKE = {"sandbox", "fetch", "code_eval", "errors"}  # of harness
ROOF = "harness/cli.py"  # may import everything, inside its functions


def own_imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, module below t2, at module level) of every import of ours in a file, relative or absolute, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {node for scope in ast.walk(tree) if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(scope)}
    package = ("t2", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name.removeprefix("t2."), node not in inside) for name in names if name.startswith("t2."))


def sources() -> list[Path]:
    return [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


def test_imports_run_one_way() -> None:
    wrong = []
    for path in sources():
        here = path.relative_to(ROOT)
        for line, name, at_module_level in own_imports(path):
            target, _, rest = name.partition(".")
            if target not in MAY_IMPORT or target == here.parts[0] or (str(here) == ROOF and not at_module_level):
                continue
            if target not in MAY_IMPORT[here.parts[0]]:
                wrong.append(f"{here}:{line} imports t2.{name}")
            elif here.parts[0] == "tasks" and target == "harness" and rest.partition(".")[0] not in TASKS_MAY_TAKE:
                wrong.append(f"{here}:{line} imports t2.{name}: tasks take {sorted(TASKS_MAY_TAKE)} of harness")
    assert wrong == []


def test_the_reader_of_imports_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "tasks" / "math" / "utils.py"
    file.parent.mkdir(parents=True)
    lines = ["import t2.baselines.train", "from ...harness import model", "from . import other", "def f():", " from t2.reports import x"]
    file.write_text("\n".join(lines))
    assert sorted(own_imports(file)) == [
        (1, "baselines.train", True),
        (2, "harness.model", True),
        (3, "tasks.math.other", True),
        (5, "reports.x", False),
    ]


def test_every_folder_of_ours_is_judged() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources()} == set(MAY_IMPORT)


def loaded_by(module: str) -> set[str]:
    """Return the modules that are in memory after an interpreter has imported `module`."""
    code = f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["t2", "t2.harness", "t2.harness.plugin", "t2.harness.cli", "t2.reports", "t2.adapters", "t2.tasks"])
def test_nothing_heavy_comes_with(module: str) -> None:
    heavy = {"torch", "transformers", "peft", "datasets", "lm_eval", "numpy", "evaluate", "vllm", "requests"}
    assert heavy & loaded_by(module) == set()


def test_the_model_costs_less_than_two_seconds_over_lm_evals() -> None:
    code = (
        "import time, lm_eval.models.huggingface; start = time.process_time(); import t2.harness.model; print(time.process_time() - start)"
    )
    seconds = [float(subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120)) for _ in range(2)]
    assert min(seconds) < 2.0
