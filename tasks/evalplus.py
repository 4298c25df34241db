"""EvalPlus's test programs as straight asserts that need the standard library only.

A row's `test` has literal `inputs` and `results`, a loop over them and a function `assertion(out, exp, atol)` that uses numpy. The
sandbox's judge has no numpy and knows an assert by its place in the source; so the loop is unrolled, one assert for each input, and
`assertion` is replaced by one of three below, the one that means the same. The text is parsed here, and runs in the judge's jail only.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache

from ..harness.sandbox import UnusableTests

# `out == exp`; where the row gives a tolerance, or expects nothing but floats, also what numpy.allclose(out, exp, rtol=1e-7) accepts.
# Unlike numpy it never stretches one value over a list: numpy finds [1] close to [].
_EQUAL = """\
def _holds(out, exp, atol):
    floats = isinstance(exp, float) or isinstance(exp, (list, tuple)) and all(isinstance(x, float) for x in exp)
    return out == exp or _close(out, exp, atol or 1e-6 * floats)

def _close(out, exp, atol):
    if isinstance(out, (list, tuple)) and isinstance(exp, (list, tuple)):
        return atol != 0 and len(out) == len(exp) and all(_close(a, b, atol) for a, b in zip(out, exp))
    numbers = isinstance(out, (int, float, complex)) and isinstance(exp, (int, float, complex))
    return atol != 0 and numbers and (out == exp or abs(exp) != inf and abs(out - exp) <= atol + 1e-7 * abs(exp))
"""
_EQUAL_SETS = """\
def _holds(out, exp, atol):
    return set(out) == set(exp)
"""
# The published text computes this without asserting it; EvalPlus's own evaluation does assert it.
_FOUND = """\
def _holds(out, exp, atol):
    return out == exp if isinstance(out, bool) else exp == (out is not None)
"""
_REPLACED = ("is_floats", "assertion", "check")


@lru_cache(maxsize=1024)
def straight_tests(test: str) -> str:
    """Return the `test` of a HumanEval+ or MBPP+ row as a program of the standard library with one assert for each input.

    Functions that the row defines itself (`ref_func`, `_poly`) stay as they are. HumanEval+'s asserts stay in `check(candidate)`.

    Raises:
        UnusableTests: The text has another form.
    """
    text = test.replace("\r\n", "\n").encode()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unknown(f"it does not parse: {error}") from None
    cut = _Cutter(text)
    check = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"), None)
    asserts = list(_unrolled((check or tree).body, cut))
    if not asserts:
        raise _unknown("there are no inputs")
    kept = [cut.source(n) for n in tree.body if _kept(n)]
    if check is not None:
        asserts = [f"def check({ast.unparse(check.args)}):", *(f"    {line}" for line in asserts)]
    return "\n".join(["from math import inf, nan", *kept, _oracle(tree), *asserts, ""])


def _unknown(why: str) -> UnusableTests:
    return UnusableTests(f"Tests that are not of EvalPlus's form: {why}.")


def _kept(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import):
        return all(name.name != "numpy" for name in statement.names)
    return isinstance(statement, ast.ImportFrom) or (isinstance(statement, ast.FunctionDef) and statement.name not in _REPLACED)


def _oracle(tree: ast.Module) -> str:
    """The function that means what the row's `assertion` does; nothing is asserted by a row without one but in its own words."""
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "assertion"), None)
    said = ast.unparse(function) if function else ""
    return _EQUAL_SETS if "out = set(out)" in said else _FOUND if "out is not None" in said else _EQUAL


def _unrolled(body: list[ast.stmt], cut: "_Cutter") -> Iterator[str]:
    """Yield the loop's statement as an assert, once for each input."""
    loop = next((n for n in body if isinstance(n, ast.For)), None)
    names = [n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)] if loop else []
    if loop is None or len(loop.body) != 1 or "inp" not in names:
        raise _unknown("there is no loop of one statement over the inputs")
    values = {"inp": _elements(body, "inputs")}
    if any(isinstance(n, ast.Name) and n.id == "exp" for n in ast.walk(loop.body[0])):
        values["exp"] = _elements(body, "results")
        if len(values["exp"]) != len(values["inp"]):
            raise _unknown(f"{len(values['inp'])} inputs, {len(values['exp'])} results")
    statement = loop.body[0]
    called = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(statement, ast.Assert):
        before, claim = "assert ", statement.test
    elif isinstance(called, ast.Call) and isinstance(called.func, ast.Name) and called.func.id == "assertion":
        before, claim = "assert _holds", called
    else:
        raise _unknown("the loop asserts nothing")
    parts = cut.template(claim, values)
    if isinstance(statement, ast.Expr):
        parts[0] = parts[0].removeprefix("assertion")
    for i in range(len(values["inp"])):
        row = {name: cut.source(nodes[i]) for name, nodes in values.items()}
        yield before + "".join(row[part] if odd % 2 else part for odd, part in enumerate(parts))


def _elements(body: list[ast.stmt], name: str) -> list[ast.expr]:
    """The elements of the literal list that is assigned to `name`."""
    for n in body:
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name) and n.targets[0].id == name and isinstance(n.value, ast.List):
            return n.value.elts
    raise _unknown(f"there is no list {name!r}")


class _Cutter:
    """Cuts the source of nodes out of a text; ast's own way reads all lines again for each."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.starts = [0]
        for line in text.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """First byte, and the byte after the last."""
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[end_line - 1] + end_column

    def source(self, node: ast.expr | ast.stmt) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.text[start:end].decode()

    def template(self, node: ast.expr, names: Mapping[str, object]) -> list[str]:
        """The text of a node cut at the given names: text, name, text, …, name, text."""
        found = sorted((self.span(n), n.id) for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in names)
        at, end = self.span(node)
        parts: list[str] = []
        for (first, after), name in found:
            parts += [self.text[at:first].decode(), name]
            at = after
        return [*parts, self.text[at:end].decode()]
