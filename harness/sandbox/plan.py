"""Reading the tests without running them: which names come from the candidate, which asserts must have run.

The judge marks every assert that held; the parent, which never runs the tests, knows from their source which marks must be there.
So a test program that ends early without an error (a raised `SystemExit`, a patched function) is told from one that completed.
"""

import ast
import builtins
import symtable
import sys
from collections import Counter
from dataclasses import dataclass

from .marks import MARK, instrument


@dataclass(frozen=True)
class Plan:
    """What the parent expects of a test program.

    Attributes:
        entry_points: Names taken from the candidate, builtin or not.
        names: All names that the tests use and do not define, builtins left out unless they are entry points.
        modules: Those of them that can only be modules (`math.isclose`, `np.allclose`): never the candidate's, whatever it calls so.
        required: Indices of the asserts on the straight line of the program (not in a branch, a loop or a nested function).
        asserts: Number of asserts.
    """

    entry_points: tuple[str, ...]
    names: tuple[str, ...]
    modules: tuple[str, ...]
    required: frozenset[int]
    asserts: int


def plan_tests(tests: str, entry_points: tuple[str, ...]) -> Plan:
    """Read a test program without running it.

    Raises:
        ValueError: It does not parse, asserts nothing, or takes nothing from the candidate.
    """
    try:
        tree, lines = instrument(tests)
        table = symtable.symtable(tests, "<tests>", "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"the tests do not parse: {error}") from None
    if not lines:
        raise ValueError("the tests contain no assert")
    free = _free_names(table)
    wanted = {n for n in free if not hasattr(builtins, n)} - set(entry_points)
    # Without entry points `Solution.add(1, 2)` may be a class of the candidate; a module of the standard library is not.
    modules = {n for n in wanted & _only_read(tree) if entry_points or n in sys.stdlib_module_names}
    entries = entry_points or (() if wanted - modules else _first_called(tree, free))
    names = wanted | set(entries)
    if not names - modules:
        raise ValueError("the tests call nothing of the candidate")
    return Plan(entries, tuple(sorted(names)), tuple(sorted(modules)), frozenset(_straight(tree)), len(lines))


def _free_names(top: symtable.SymbolTable) -> set[str]:
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    free = {s.get_name() for s in top.get_symbols() if s.is_referenced()} - bound
    pending = list(top.get_children())
    while pending:
        table = pending.pop()
        pending += table.get_children()
        free |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()} - bound
    return free


def _only_read(tree: ast.Module) -> set[str]:
    """Names that stand nowhere but before a dot."""
    uses = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name))
    dotted = Counter(n.value.id for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name))
    return {name for name, count in dotted.items() if count == uses[name]}


def _first_called(tree: ast.Module, free: set[str]) -> tuple[str, ...]:
    """The function under test where all names are builtins (`assert sum(10, 15) == 6`): the outermost call, leftmost.

    None where the assert calls a parameter: that of a `check(candidate)` which the tests do not call.
    """
    parameters = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            called = [n.func.id for n in ast.walk(node.test) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
            return tuple(called[:1]) if free.issuperset(called[:1]) and parameters.isdisjoint(called) else ()
    return ()


def _straight(tree: ast.Module) -> list[int]:
    """Marks in the module's own body and in that of functions which it calls as a statement (`check(f)`)."""
    called = {name for name, _ in map(_called, tree.body)}
    bodies = [tree.body] + [s.body for s in tree.body if isinstance(s, ast.FunctionDef) and s.name in called]
    calls = [_called(s) for body in bodies for s in body]
    return [args[0].value for name, args in calls if name == MARK and isinstance(args[0], ast.Constant) and isinstance(args[0].value, int)]


def _called(statement: ast.stmt) -> tuple[str | None, list[ast.expr]]:
    """Name and arguments of a statement that is a plain call."""
    if isinstance(statement, ast.Expr) and isinstance(call := statement.value, ast.Call) and isinstance(call.func, ast.Name):
        return call.func.id, call.args
    return None, []
