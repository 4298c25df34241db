"""Marking the asserts of a test program; used by the parent to count them and by the judge to run them."""

import ast

MARK = "__t2_held__"


class _Marker(ast.NodeTransformer):
    """Put `__t2_held__(i)` behind assert i, and note where each stands."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int]] = []

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        """Keep the assert; the mark behind it runs only where it held."""
        call = ast.Call(ast.Name(MARK, ast.Load()), [ast.Constant(len(self.lines))], [])
        self.lines.append((node.lineno, node.end_lineno or node.lineno))
        return [node, ast.copy_location(ast.Expr(call), node)]


def instrument(tests: str) -> tuple[ast.Module, list[tuple[int, int]]]:
    """Return the tests with marks, and the first and last line of each assert in source order."""
    marker = _Marker()
    tree = marker.visit(ast.parse(tests))
    return ast.fix_missing_locations(tree), marker.lines
