"""The items of `t2_mini`: every answer is held to a second statement of it, and no two items are copies of one another."""

import ast
import itertools
import json
import re
from collections import Counter
from fractions import Fraction
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from t2.harness.errors import T2Error
from t2.tasks.mini import items, scoring

TEXT = {"math": "question", "code": "prompt", "reasoning": "question", "dispatch": "prompt"}
ITEMS = {name: items.rows(name) for name in items.NAMES}
ALL = [pytest.param(name, item, id=item["id"]) for name in items.NAMES for item in ITEMS[name]]

_ALLOWED = (
    ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.Load, ast.Name, ast.Store, ast.Call, ast.keyword, ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Dict,
    ast.ListComp, ast.GeneratorExp, ast.comprehension, ast.Lambda, ast.arguments, ast.arg,
)  # fmt: skip
_METHODS = {"index", "count", "join", "isdigit", "items"}
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def order(*facts: str) -> list[str]:
    """The one order, greatest first, that facts like `A > B` leave open."""
    after: dict[str, set[str]] = {}
    for fact in facts:
        greater, less = fact.split(" > ")
        after.setdefault(less, set()).add(greater)
        after.setdefault(greater, set())
    sorter = TopologicalSorter(after)
    sorter.prepare()
    found: list[str] = []
    while sorter.is_active():
        (one,) = sorter.get_ready()  # two would mean that the facts leave the order open
        found.append(one)
        sorter.done(one)
    return found


_NAMES: dict[str, Any] = {
    "DAYS": _DAYS, "order": order, "max": max, "sorted": sorted, "chr": chr, "ord": ord, "str": str, "int": int, "all": all, "sum": sum,
    "range": range, "product": itertools.product, "permutations": itertools.permutations, "Fraction": Fraction,
}  # fmt: skip


class Exact(ast.NodeTransformer):
    """Whole numbers become fractions, so that 1/6 + 1/3 is a half."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Call(ast.Name("Fraction", ast.Load()), [node], []) if type(node.value) is int else node


def value(expression: str, exact: bool = False) -> Any:
    """The value of an expression of numbers, texts, lists and a few named functions; anything else in it is refused."""
    tree = ast.parse(expression, mode="eval")
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED) or (isinstance(node, ast.Attribute) and node.attr not in _METHODS):
            raise ValueError(f"{ast.dump(node)} in {expression!r}")
        if isinstance(node, ast.Name) and node.id not in bound and node.id not in _NAMES:
            raise ValueError(f"{node.id} in {expression!r}")
    if exact:
        tree = ast.fix_missing_locations(Exact().visit(tree))
    return eval(compile(tree, "<item>", "eval"), {"__builtins__": {}, **_NAMES})  # noqa: S307 - every node was looked at


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(*(found[i:] for i in range(n)), strict=False))


def plain(option: str) -> str:
    """An option as a sentence may have it: without its article, its full stop and its capital."""
    return re.sub(r"^(an?|the|in an?|in the) ", "", option.lower().rstrip("."))


@pytest.mark.parametrize("expression", ["__import__('os')", "open('x')", "''.__class__", "().__class__.__mro__", "exit()", "'a'.format(1)"])
def test_the_reader_of_expressions_refuses_what_could_do_harm(expression: str) -> None:
    with pytest.raises(ValueError):
        value(expression)


def test_an_order_that_the_facts_leave_open_is_refused() -> None:
    assert order("B > C", "A > B") == ["A", "B", "C"]
    with pytest.raises(ValueError):
        order("A > B", "A > C")


def test_there_are_enough_items_of_every_level() -> None:
    assert {name: len(found) for name, found in ITEMS.items()} == {"math": 82, "code": 66, "reasoning": 72, "dispatch": 90}
    for name, found in ITEMS.items():
        levels = Counter(item["level"] for item in found)
        assert sorted(levels) == [1, 2, 3, 4, 5], name
        assert min(levels.values()) >= 10, name
        assert [item["level"] for item in found] == sorted(item["level"] for item in found) or name == "dispatch"
    assert Counter(item["domain"] for item in ITEMS["dispatch"]) == {"code": 30, "math": 30, "reasoning": 30}
    per_domain = Counter((item["domain"], item["level"]) for item in ITEMS["dispatch"])
    assert len({tuple(per_domain[domain, level] for level in range(1, 6)) for domain in ("code", "math", "reasoning")}) == 1
    assert all(len({item["topic"] for item in ITEMS[name]}) >= 5 for name in ("math", "code", "reasoning"))


def test_ids_are_unique_and_files_are_plain_lines_of_json() -> None:
    ids = [item["id"] for found in ITEMS.values() for item in found]
    assert len(set(ids)) == len(ids)
    folder = Path(items.__file__).parent
    for name in items.NAMES:
        text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
        assert text == "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in ITEMS[name])


@pytest.mark.parametrize(("name", "item"), [p for p in ALL if p.values[0] == "math"])
def test_answers_of_word_problems_are_the_value_of_their_expression(name: str, item: dict[str, Any]) -> None:
    assert value(item["expression"], exact=True) == Fraction(item["answer"])
    # every number of the expression is one of the problem's, or one that its words imply (half, five, 60 minutes, 100 percent, 20% more)
    said = {int(n) for n in re.findall(r"\d+", item["question"])}
    implied = {0, 1, 2, 3, 4, 5, 6, 7, 30, 60, 90, 100, 120}
    assert {int(n) for n in re.findall(r"\d+", item["expression"])} <= said | implied
    for reply in (item["answer"], f" {item['expression']} = {item['answer']}.", f"The answer is {item['answer']}", f"{item['answer']}.0"):
        assert scoring.math(item, [reply]) == {"exact_match": 1.0, "extracted": 1.0}, reply
    wrong = str(int(item["answer"]) + 1)
    assert scoring.math(item, [f"{item['answer']} or {wrong}"]) == {"exact_match": 0.0, "extracted": 1.0}


@pytest.mark.parametrize(
    ("reply", "scores"),
    [("", (0, 0)), ("none", (0, 0)), ("1.2.3", (0, 1)), ("$7.00", (1, 1)), ("07", (1, 1)), ("-7", (0, 1)), ("7,", (1, 1))],
)
def test_odd_replies_to_a_word_problem(reply: str, scores: tuple[int, int]) -> None:
    assert tuple(scoring.math({"answer": "7"}, [reply]).values()) == scores


@pytest.mark.parametrize(("name", "item"), [p for p in ALL if p.values[0] == "reasoning"])
def test_keys_of_questions_have_a_second_statement(name: str, item: dict[str, Any]) -> None:
    choices = item["choices"]
    assert len({c.lower() for c in choices}) == 4
    right = choices["ABCD".index(item["key"])]
    assert ("check" in item) != ("why" in item)
    if "check" in item:
        assert str(value(item["check"])) == right
    else:
        assert plain(right) in item["why"].lower()
        assert [c for c in choices if c != right and re.search(rf"\b{re.escape(plain(c))}\b", item["why"].lower())] == []


def test_keys_are_balanced_and_do_not_give_themselves_away() -> None:
    found = ITEMS["reasoning"]
    assert set(Counter(item["key"] for item in found).values()) == {18}
    longest = sum(len(max(item["choices"], key=len)) == len(item["choices"]["ABCD".index(item["key"])]) for item in found)
    assert longest <= len(found) / 2


@pytest.mark.parametrize(("name", "item"), [p for p in ALL if p.values[0] == "code"])
def test_functions_have_a_docstring_a_solution_and_tests_that_call_them(name: str, item: dict[str, Any]) -> None:
    (function,) = ast.parse(item["prompt"] + item["solution"]).body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == item["entry_point"] and ast.get_docstring(function)
    assert len(item["tests"]) >= 3 and len(set(item["tests"])) == len(item["tests"])
    for test in item["tests"]:
        (statement,) = ast.parse(test).body
        assert isinstance(statement, ast.Assert)
        calls = [n for n in ast.walk(statement) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert item["entry_point"] in {n.func.id for n in calls if isinstance(n.func, ast.Name)}
    results = {ast.unparse(test.comparators[0]) for t in item["tests"] if isinstance(test := ast.parse(t).body[0].test, ast.Compare)}  # type: ignore[attr-defined]
    assert len(results) >= 2  # no constant passes


def test_no_two_items_are_near_copies() -> None:
    texts = {item["id"]: item[TEXT[name]].split('"""')[-2 if name == "code" else 0] for name, found in ITEMS.items() for item in found}
    assert len({" ".join(words(text)) for text in texts.values()}) == len(texts)
    three = {key: grams(text, 3) for key, text in texts.items()}
    close = [
        (a, b, len(three[a] & three[b]) / len(three[a] | three[b]))
        for a, b in itertools.combinations(texts, 2)
        if len(three[a] & three[b]) > 0.4 * len(three[a] | three[b])
    ]
    assert close == []


def test_unknown_items_are_refused() -> None:
    with pytest.raises(T2Error, match="Did you mean 'math'"):
        items.rows("maths")
