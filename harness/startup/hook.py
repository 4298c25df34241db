"""The start-up hook: waits, at the cost of a dictionary look-up per import, for `lm_eval` or `peft`, then calls `t2.harness.plugin`.

The build back end installs this file as the top-level module ``_t2_startup``, imported by ``t2_startup.pth`` in every interpreter. Hence:

- it imports nothing but `sys` until it acts, and never `t2` before that (a user's own ``t2.py`` must stay theirs);
- it never raises and never prints, also when the rest of t2 is gone, half removed or broken.

How it acts on a module: it asks the other finders for the real spec and hangs a one-shot ``exec_module`` on that spec's own loader, so the
loader's type, source and resources stay what they were, and looking for a module (`importlib.util.find_spec`) triggers nothing. The finder
itself stays on `sys.meta_path`, since a process may drop lm_eval and import it again.

In an editable install it also finds the package ``t2`` in the checkout (`ROOT`): setuptools' own finder adds 10 ms to every start for that.
"""

import sys

TYPE_CHECKING = False  # what type checkers look for, without the 10 ms of importing `typing`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

ROOT: str | None = None  # the build back end writes the checkout's folder here for an editable install
AFTER = {  # module -> the function of t2.harness.plugin that is called with it, once it has been executed
    "lm_eval.models": "add_components",
    "lm_eval.filters": "add_components",
    "lm_eval.api.metrics": "add_components",
    "lm_eval.tasks._index": "add_tasks",
    "peft": "add_svf",
}


class Finder:
    """A `sys.meta_path` finder that finds nothing by itself, except ``t2`` in an editable install."""

    def __init__(self, root: str | None) -> None:
        self.root = root
        self._asking: set[tuple[int, str]] = set()  # (thread, module) whose real spec is being looked for: other hooks may call back

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None) -> "ModuleSpec | None":
        """Return the real spec with the hook on its loader; None, so that the search goes on, for every other module and on any failure."""
        action = AFTER.get(name)
        try:
            if action is not None:
                return self._hooked(name, path, target, action)
            if name == "t2" and self.root is not None:
                return _checkout(self.root)
        except Exception:  # whatever another finder raised it raises again, in its own right, when Python asks it
            return None
        return None

    def _hooked(self, name: str, path: "Sequence[str] | None", target: "ModuleType | None", action: str) -> "ModuleSpec | None":
        from _thread import get_ident

        key = (get_ident(), name)
        if key in self._asking:
            return None
        self._asking.add(key)
        try:
            for finder in sys.meta_path:
                find = None if finder is self else getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find is not None else None
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        _call_after(spec.loader, name, action)
                    return spec
        finally:
            self._asking.discard(key)
        return None


def _call_after(loader: "Any", name: str, action: str) -> None:
    """Let `loader` call the plug-in once, after it has executed module `name` (a zip's loader serves many modules)."""
    execute = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        execute(module)
        if module.__name__ == name:
            if loader.__dict__.get("exec_module") is exec_module:
                del loader.exec_module
            _act(action, module)

    loader.exec_module = exec_module


def _act(action: str, module: "ModuleType") -> None:
    try:
        from t2.harness import plugin  # pyright: ignore[reportMissingImports] (as a top-level module it has no relative name)

        getattr(plugin, action)(module)
    except Exception as error:  # t2 is gone or half removed: lm_eval and peft must work as if it had never been there
        import logging

        logging.getLogger("t2").debug("t2 stands aside after %s was imported: %r", module.__name__, error)


def _checkout(root: str) -> "ModuleSpec | None":
    """Return the spec of the package t2 in the checkout; None where that is gone, or `sys.path` has another t2, a user's own."""
    from _frozen_importlib_external import PathFinder, spec_from_file_location

    found = PathFinder.find_spec("t2")
    if found is not None and found.origin is not None:  # a folder that merely is called t2 has no origin
        return None
    import os

    init = os.path.join(root, "__init__.py")
    return spec_from_file_location("t2", init, submodule_search_locations=[root]) if os.path.isfile(init) else None


def install() -> None:
    """Put the finder first on `sys.meta_path`, once."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder(ROOT))
