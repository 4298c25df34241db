"""The start-up hook alone, in real interpreters that read a site folder with the hook, stand-ins for lm_eval and peft, and a small t2."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from t2.harness.startup import hook
from t2.harness.startup.build_backend import LINE

SOURCE = Path(hook.__file__).read_text()
PLUGIN = """
CALLS = []
def add_components(module): CALLS.append((module.__name__, module.READY))
add_tasks = add_svf = add_components
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site folder: the hook, lm_eval and peft stand-ins (READY is their last line), t2 with a plug-in that writes down its calls."""
    return write(
        tmp_path / "site",
        {
            "_t2_startup.py": SOURCE,
            "t2_startup.pth": LINE,
            "lm_eval/__init__.py": "",
            "lm_eval/models/__init__.py": "READY = True\n",
            "lm_eval/tasks/__init__.py": "",
            "lm_eval/tasks/_index.py": "READY = True\n",
            "peft/__init__.py": "READY = True\n",
            "t2/__init__.py": "",
            "t2/harness/__init__.py": "",
            "t2/harness/plugin.py": PLUGIN,
        },
    )


Run = Callable[..., str]


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Run code in a fresh interpreter that reads the site folder; returns what it printed, and fails on any word on stderr."""

    def run(code: str, *, first: Path | None = None) -> str:
        start = f"import site, sys; sys.path.insert(0, {str(first)!r}) if {first is not None} else None; site.addsitedir({str(site)!r})\n"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", start + code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.strip()

    return run


CALLS = "from t2.harness.plugin import CALLS; print(CALLS)"


def test_acts_once_after_the_module_has_been_executed(run: Run) -> None:
    assert run(f"import lm_eval.models, lm_eval.models; import peft; {CALLS}") == "[('lm_eval.models', True), ('peft', True)]"


def test_leaves_no_trace_on_the_loader(run: Run) -> None:
    code = "import lm_eval.models as m; l = m.__spec__.loader; print(type(l).__name__, sorted(vars(l)), l is m.__loader__)"
    assert run(code) == "SourceFileLoader ['name', 'path'] True"


def test_looking_for_a_module_triggers_nothing(run: Run) -> None:
    code = "import importlib.util as u; s = u.find_spec('lm_eval.models'); u.find_spec('peft'); print(s.origin[-18:], 't2' in sys.modules)"
    assert run(code) == "models/__init__.py False"


def test_imports_nothing_of_t2_and_no_heavy_module_before_its_time(run: Run) -> None:
    assert run("before = set(sys.modules); import json, lm_eval; print('_t2_startup' in before, 't2' in sys.modules)") == "True False"
    assert run("print(sorted({'typing', 're', 'pathlib', 'importlib.util', 'logging'} & set(sys.modules)))") == "[]"


def test_reload_and_a_second_import_act_again(run: Run) -> None:
    code = f"import importlib, lm_eval.models as m; importlib.reload(m); del sys.modules['lm_eval.models']; import lm_eval.models; {CALLS}"
    assert run(code) == str([("lm_eval.models", True)] * 3)


def test_a_failing_import_fails_with_its_own_error_and_can_be_tried_again(run: Run, site: Path) -> None:
    write(site, {"peft/__init__.py": "import os\nif not os.environ.get('FIXED'): raise KeyError('own error')\nREADY = True\n"})
    code = f"""
try: import peft
except KeyError as error: print(error, 't2' in sys.modules)
import os; os.environ['FIXED'] = '1'
import peft; {CALLS}"""
    assert run(code).splitlines() == ["'own error' False", "[('peft', True)]"]


def test_a_missing_lm_eval_stays_plainly_missing(run: Run, site: Path) -> None:
    (site / "peft/__init__.py").unlink()
    (site / "peft").rmdir()
    assert run("try: import peft\nexcept ModuleNotFoundError as error: print(error, error.name)") == "No module named 'peft' peft"


OTHER_HOOK = """
import importlib.util, sys
class Other:  # as tracing tools do: ask for the real spec through importlib, then put a loader of their own around the real one
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name != 'lm_eval.models' or self.busy: return None
        self.busy = True
        try: spec = importlib.util.find_spec(name)
        finally: self.busy = False
        spec.loader = Around(spec.loader)
        return spec
class Around:
    def __init__(self, inner): self.inner = inner
    def create_module(self, spec): return self.inner.create_module(spec)
    def exec_module(self, module): self.inner.exec_module(module); print('other', module.READY)
"""


@pytest.mark.parametrize("place", ["0", "1", "len(sys.meta_path)"])
def test_lives_with_another_import_hook(run: Run, place: str) -> None:
    code = f"{OTHER_HOOK}\nsys.meta_path.insert({place}, Other())\nimport lm_eval.models\n{CALLS}"
    lines = run(code).splitlines()
    assert lines[-1] == "[('lm_eval.models', True)]"
    assert lines[:-1] == ([] if place == "len(sys.meta_path)" else ["other True"])


def test_a_finder_that_raises_raises_its_own_error(run: Run) -> None:
    code = """
class Bad:
    def find_spec(self, name, path=None, target=None):
        if name == 'peft': raise OSError('disk')
sys.meta_path.insert(1, Bad())
try: import peft
except OSError as error: print(error)"""
    assert run(code) == "disk"


def test_lazy_loader_works(run: Run) -> None:
    code = f"""
import importlib.util as u
spec = u.find_spec('peft'); spec.loader = u.LazyLoader(spec.loader); module = u.module_from_spec(spec); sys.modules['peft'] = module
spec.loader.exec_module(module); print('t2' in sys.modules); print(module.READY); {CALLS}"""
    assert run(code).splitlines() == ["False", "True", "[('peft', True)]"]


def test_of_a_zip_whose_loader_serves_many_modules_only_the_right_one_counts(run: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("peft/__init__.py", "import helper\nREADY = True\n")
        archive.writestr("helper.py", "READY = None\n")  # served by the very same loader
    code = f"sys.path.insert(0, {str(tmp_path / 'all.zip')!r}); import peft; print(type(peft.__loader__).__name__); {CALLS}"
    assert run(code).splitlines() == ["zipimporter", "[('peft', True)]"]


def test_installs_one_finder_however_often_it_is_asked(run: Run, site: Path) -> None:
    again = f"import _t2_startup; _t2_startup.install(); site.addsitedir({str(site)!r})"
    assert run(f"{again}; print(sum(type(f).__name__ == 'Finder' for f in sys.meta_path))") == "1"


def test_metadata_and_cache_invalidation_work_through_it(run: Run) -> None:
    code = "import importlib, importlib.metadata as m; importlib.invalidate_caches(); print(list(m.distributions(name='not-installed')))"
    assert run(code) == "[]"


BROKEN = {
    "plug-in gone": lambda site: (site / "t2/harness/plugin.py").unlink(),
    "plug-in cut short": lambda site: (site / "t2/harness/plugin.py").write_text("def add_components(module:\n"),
    "plug-in with null bytes": lambda site: (site / "t2/harness/plugin.py").write_bytes(b"\0\0"),
    "plug-in raises": lambda site: (site / "t2/harness/plugin.py").write_text("raise RuntimeError('broken')\n"),
    "plug-in empty": lambda site: (site / "t2/harness/plugin.py").write_text(""),
    "harness gone": lambda site: (site / "t2/harness").rename(site / "elsewhere"),
    "t2 gone": lambda site: (site / "t2").rename(site / "elsewhere"),
    "hook gone": lambda site: (site / "_t2_startup.py").unlink(),
    "hook cut short": lambda site: (site / "_t2_startup.py").write_text(SOURCE[:1500]),
    "hook of another version": lambda site: (site / "_t2_startup.py").write_text("ROOT = None\n"),
    "hook unreadable text": lambda site: (site / "_t2_startup.py").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_half_removed_is_silent(run: Run, site: Path, how: str) -> None:
    BROKEN[how](site)
    assert run("pass") == ""
    assert run("import lm_eval.models, lm_eval.tasks._index, peft; print(lm_eval.models.READY, peft.READY)") == "True True"


@pytest.fixture
def checkout(site: Path, tmp_path: Path) -> Path:
    """The same as an editable install: t2 is not in the site folder but in a checkout of another name."""
    root = tmp_path / "my clone"
    (site / "t2").rename(root)
    text = SOURCE.replace("ROOT: str | None = None", f"ROOT: str | None = {str(root)!a}")
    assert text != SOURCE
    (site / "_t2_startup.py").write_text(text)
    return root


def test_editable_finds_the_checkout(run: Run, checkout: Path) -> None:
    assert run(f"import lm_eval.models; {CALLS}; import t2; print(t2.__path__)").splitlines() == [
        "[('lm_eval.models', True)]",
        str([str(checkout)]),
    ]


def test_editable_is_not_hidden_by_a_folder_called_t2(run: Run, checkout: Path, tmp_path: Path) -> None:
    results = write(tmp_path / "work", {"t2/results.json": "{}"})
    assert run("import t2.harness; print(t2.__file__)", first=results) == str(checkout / "__init__.py")


def test_a_users_own_t2_stays_theirs(run: Run, checkout: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "own", {"t2.py": "WHOSE = 'mine'\n"})
    assert run("import t2; print(t2.WHOSE)", first=own) == "mine"
    assert run("import lm_eval.models; print(lm_eval.models.READY)", first=own) == "True"


def test_editable_whose_checkout_is_gone_is_silent(run: Run, checkout: Path) -> None:
    checkout.rename(checkout.with_name("moved"))
    assert run("import lm_eval.models, peft\ntry: import t2\nexcept ModuleNotFoundError as error: print(error)") == "No module named 't2'"
