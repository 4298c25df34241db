"""EvalPlus's tests become straight asserts that accept and refuse what the row's own oracle does."""

import ast

import pytest

from t2.harness.sandbox import UnusableTests
from t2.harness.sandbox.plan import plan_tests
from t2.tasks.evalplus import straight_tests

HEAD = """import numpy as np
from math import inf

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    return False

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    %s
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"

"""
PLAIN = HEAD % "pass"
SETS = HEAD % "out = set(out)\n    exp = set(exp)"
FOUND = """import numpy as np
def assertion(out, exp, atol):
    if isinstance(out, bool):
        exact_match = out == exp
    else:
        exact_match = exp == (out is not None)

"""


def row(inputs: str, results: str | None, atol: str = "0", head: str = PLAIN) -> str:
    lines = [f"inputs = {inputs}"]
    if results is None:
        return head + "\n".join([*lines, "for i, inp in enumerate(inputs):", f"    assertion(f(*inp), ref_func(*inp), {atol})"])
    lines.append(f"results = {results}")
    return head + "\n".join([*lines, "for i, (inp, exp) in enumerate(zip(inputs, results)):", f"    assertion(f(*inp), exp, {atol})"])


def holds(test: str, out: object) -> bool:
    """Whether the first assert holds for a function that returns `out`; our own text in our own process: nothing of a model's."""
    space: dict[str, object] = {"f": lambda *args: out}
    tree = ast.parse(straight_tests(test))
    first = next(i for i, n in enumerate(tree.body) if isinstance(n, ast.Assert))
    try:
        exec(compile(ast.Module(tree.body[: first + 1], []), "<tests>", "exec"), space)  # noqa: S102
    except (AssertionError, TypeError):
        return False
    return True


@pytest.mark.parametrize(
    ("result", "atol", "right", "wrong"),
    [
        ("3", "0", [3, 3.0], [3.0000001, 4, None, "3", [3]]),
        ("(1, 2)", "0", [(1, 2)], [[1, 2], (1, 2, 3), (1, 2.0000001)]),
        ("1.5", "0", [1.5, 1.5 + 5e-7], [1.50001, None, "1.5", [1.5], float("nan"), float("inf")]),
        ("[0.1, 0.2]", "0", [[0.1, 0.2 + 5e-7], (0.1, 0.2)], [[0.1], [0.1, 0.2, 0.3], [0.1, 0.2001], 0.1]),
        ("[]", "0", [[]], [[1], [1.0], 0, None]),
        ("[1, 0.5]", "0", [[1, 0.5]], [[1, 0.5000001]]),
        ("[('a', 1.5)]", "1e-4", [[("a", 1.5)]], [[("a", 1.50001)], [("b", 1.5)]]),
        ("[(1, 1.5)]", "1e-4", [[(1, 1.50009)], [[1, 1.5]]], [[(1, 1.5003)], [(1, 1.5, 2)]]),
        ("inf", "1e-4", [float("inf")], [1.0, 1e308, float("-inf"), float("nan")]),
        ("1.0", "1e-4", [1, True, 1.00009], [float("inf"), 2]),
        ("True", "0", [True, 1], [False, None, "True"]),
    ],
)  # fmt: skip
def test_results_are_compared_as_the_row_says(result: str, atol: str, right: list[object], wrong: list[object]) -> None:
    test = row("[[1]]", f"[{result}]", atol)
    assert [out for out in right if not holds(test, out)] == []
    assert [out for out in wrong if holds(test, out)] == []


def test_sets_and_not_none_where_the_row_says_so() -> None:
    as_set = row("[[1]]", "[(4, 5)]", head=SETS)
    assert holds(as_set, [5, 4, 5]) and not holds(as_set, [4]) and not holds(as_set, None)
    for expected, right, wrong in (("True", ["match", 0, True], [None, False]), ("False", [None, False], ["match", True])):
        found = row("[[1]]", f"[{expected}]", head=FOUND)
        assert [holds(found, out) for out in right + wrong] == [True] * len(right) + [False] * len(wrong)


def test_one_assert_a_line_for_each_input_and_no_numpy() -> None:
    program = straight_tests(row("[['é\\n', -1], [{1: [2j]}, set()], [inf, (1 + 2j)]]", "[1, 'exp', None]"))
    asserts = [line for line in program.splitlines() if line.startswith("assert")]
    assert asserts == [
        "assert _holds(f(*['é\\n', -1]), 1, 0)",
        "assert _holds(f(*[{1: [2j]}, set()]), 'exp', 0)",
        "assert _holds(f(*[inf, (1 + 2j)]), None, 0)",
    ]
    assert "numpy" not in program
    plan = plan_tests(program, ("f",))
    assert plan.names == ("f",) and plan.required == {0, 1, 2}


def test_a_reference_function_gets_inputs_of_its_own() -> None:
    test = row("[[[3, 1]]]", None, head=PLAIN + "import collections\ndef ref_func(xs):\n    return collections.Counter(xs)\n")
    space: dict[str, object] = {"f": lambda xs: xs.clear() or {}}
    with pytest.raises(AssertionError):  # a program that empties its argument must not empty the reference's too
        exec(straight_tests(test), space)  # noqa: S102
    space["f"] = lambda xs: dict.fromkeys(xs, 1)
    exec(straight_tests(test), space)  # noqa: S102


def test_humaneval_pluss_check_keeps_its_shape() -> None:
    body = "    inputs = [[1], [2]]\n    results = [2, 3]\n    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
    program = straight_tests(PLAIN + "def check(candidate):\n" + body + "        assertion(candidate(*inp), exp, 0)\n")
    assert plan_tests(program + "check(add)", ("add",)).required == {0, 1}
    exec(program + "check(lambda x: x + 1)", {})  # noqa: S102
    own = "import math\ndef _poly(xs, x):\n    return xs[0] + x\n\n\ndef check(candidate):\n"
    program = straight_tests(own + body + "        assert _poly(*candidate(*inp), inp) <= 0.0001\n")
    assert "assert _poly(*candidate(*[1]), [1]) <= 0.0001" in program and "def _poly" in program


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("x = (", "does not parse"),
        ("assert f(1) == 2", "no loop"),
        (row("[[1], [2]]", "[1]"), "2 inputs, 1 results"),
        (row("[]", "[]"), "no inputs"),
        (row("range(3)", "[1]"), "no list 'inputs'"),
        (row("[[1]]", "[1]").replace("assertion(f", "print(f"), "asserts nothing"),
    ],
)
def test_another_form_is_refused_with_the_reason(test: str, why: str) -> None:
    with pytest.raises(UnusableTests, match=why):
        straight_tests(test)
