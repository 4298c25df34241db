"""Reading the tests without running them: which names come from the candidate, which asserts must have run.

The judge marks every assert that held; the parent, which never runs the tests, knows from their source which marks must be there.
So a test program that ends early without an error (a raised `SystemExit`, a patched function) is told from one that completed.
"""

import ast
import builtins
import symtable
from dataclasses import dataclass

from .marks import MARK, instrument


@dataclass(frozen=True)
class Plan:
    """What the parent expects of a test program.

    Attributes:
        entry_points: Names taken from the candidate, builtin or not.
        names: All names that the tests use and do not define, builtins left out unless they are entry points.
        required: Indices of the asserts on the straight line of the program (not in a branch, a loop or a nested function).
        asserts: Number of asserts.
    """

    entry_points: tuple[str, ...]
    names: tuple[str, ...]
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
    entries = entry_points or (() if any(not hasattr(builtins, n) for n in free) else _first_called(tree))
    names = tuple(sorted(set(entries) | {n for n in free if not hasattr(builtins, n)}))
    if not names:
        raise ValueError("the tests call nothing of the candidate")
    return Plan(entries, names, frozenset(_straight(tree)), len(lines))


def _free_names(top: symtable.SymbolTable) -> set[str]:
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    free = {s.get_name() for s in top.get_symbols() if s.is_referenced()} - bound
    pending = list(top.get_children())
    while pending:
        table = pending.pop()
        pending += table.get_children()
        free |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()} - bound
    return free


def _first_called(tree: ast.Module) -> tuple[str, ...]:
    """The function under test where all names are builtins (`assert sum(10, 15) == 6`): the outermost call, leftmost."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            calls = [n for n in ast.walk(node.test) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
            return (calls[0].func.id,) if calls and isinstance(calls[0].func, ast.Name) else ()
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
