"""pass@k: the estimator against enumeration, and the metric against hand counts in the real sandbox."""

import itertools
from pathlib import Path

import pytest

from t2.harness.code_eval import METRIC, code_eval, estimate_pass_at_k, judge_predictions, pass_at_k
from t2.harness.errors import T2Error
from t2.harness.sandbox import Job, Limits, Sandbox, UnusableTests, Verdict
from t2.harness.sandbox.codec import MAX_DEPTH, CodecError, decode, encode
from t2.harness.sandbox.plan import plan_tests

RIGHT, WRONG = "def add(a, b): return a + b", "def add(a, b): return a * b"


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in range(1, 7) for c in range(n + 1) for k in range(1, n + 1)])
def test_estimator_is_the_share_of_draws_with_a_right_one(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert estimate_pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_estimator_is_exact_for_many_samples() -> None:
    assert estimate_pass_at_k(10_000, 1, 100) == pytest.approx(0.01, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0), (0, 0, 1)])
def test_estimator_refuses_what_has_no_meaning(n: int, c: int, k: int) -> None:
    with pytest.raises(T2Error, match="needs 1 <= k <= n"):
        estimate_pass_at_k(n, c, k)


def test_metric_has_code_evals_shape() -> None:
    tests = ["assert add(2, 3) == 5", "assert add(1, 1) == 2"]
    predictions = [[RIGHT, WRONG, WRONG], [RIGHT, RIGHT, "def add(a, b) return"]]
    assert pass_at_k(tests, predictions, k=[1, 2, 5]) == pytest.approx({"pass@1": (1 / 3 + 2 / 3) / 2, "pass@2": (2 / 3 + 1) / 2})
    assert pass_at_k(tests[:1], [[WRONG]], k=1) == {"pass@1": 0.0}


def test_verdicts_keep_the_shape_of_the_candidates() -> None:
    jobs = [[Job(RIGHT, "assert add(2, 3) == 5")], [], [Job(WRONG, "assert add(2, 3) == 5"), Job("x = ", "assert add(2, 3) == 5")]]
    assert [[v.status for v in group] for group in judge_predictions(jobs)] == [["passed"], [], ["failed", "syntax_error"]]


def test_metric_refuses_unequal_or_empty_lists_and_bad_tests() -> None:
    with pytest.raises(T2Error, match="as many predictions as references"):
        pass_at_k(["assert add(1, 1) == 2"], [])
    with pytest.raises(T2Error, match="at least one"):
        pass_at_k([], [])
    with pytest.raises(T2Error, match="document 1 has none"):
        pass_at_k(["assert add(1, 1) == 2"] * 2, [[RIGHT], ()])
    with pytest.raises(UnusableTests, match="do not parse"):
        pass_at_k(["assert add(1, 1"], [[RIGHT]])


def test_a_check_that_is_never_called_is_an_error_not_a_score() -> None:
    """HumanEval's `test` as it is published: its call is made of another field."""
    for held in ("candidate(1) == 2", "abs(candidate(1) - 2) < 0.1", "isclose(1, 1)"):
        with pytest.raises(UnusableTests, match="call nothing of the candidate"):
            code_eval([f"from math import isclose\ndef check(candidate):\n    assert {held}\n"], [["def f(x): return x + 1"]], k=[1])


def test_a_module_is_no_function_of_the_candidate() -> None:
    scores, results = code_eval(["assert sorted([2, 1]) == [1, 2]"], [["import math as sorted", "def sorted(x): return x[::-1]"]], k=[1])
    assert scores == {"pass@1": 0.5}
    assert results[0][0][1]["verdict"]["reason"] == "missing_name"


def test_plan_tells_straight_asserts_from_others_and_names_from_builtins() -> None:
    plan = plan_tests(
        "import math\ndef check(g):\n    assert g(1) == math.pi\n    for i in []:\n        assert poly(i)\ncheck(find)\nassert len([1])", ()
    )
    assert plan.required == {0, 2} and plan.asserts == 3
    assert plan.names == ("find", "poly")
    assert plan_tests("assert max(sum(1, 2), 3) == 3", ()).names == ("max",)
    assert plan_tests("assert max(sum(1, 2), 3) == 3", ("sum",)).names == ("sum",)


@pytest.mark.parametrize(
    ("tests", "entry", "names", "modules"),
    [
        ("assert math.isclose(f(2), np.pi)", ("f",), ("f", "math", "np"), ("math", "np")),
        ("assert math.isclose(f(2), np.pi)", (), ("f", "math", "np"), ("math",)),
        ("assert math.isclose(sum(1, 2), 3)", (), ("math", "sum"), ("math",)),
        ("assert copy([1]) == copy.x", (), ("copy",), ()),
        ("assert queue.get() == 1", ("queue",), ("queue",), ()),
        ("assert Solution.add(1, 2) == 3", (), ("Solution",), ()),
    ],
)
def test_plan_tells_modules_from_what_the_candidate_defines(
    tests: str, entry: tuple[str, ...], names: tuple[str, ...], modules: tuple[str, ...]
) -> None:
    plan = plan_tests(tests, entry)
    assert (plan.names, plan.modules) == (names, modules)


def test_tests_of_a_module_alone_test_no_candidate() -> None:
    with pytest.raises(ValueError, match="call nothing of the candidate"):
        plan_tests("assert math.isclose(1, 1)", ())


@pytest.mark.parametrize(
    "node",
    [["l"], ["l", 1], ["d", [[["l", []], 1]]], ["s", [["l", []]]], ["i", "x"], ["i", 3], ["b", "zz"], ["h", "1"], ["h", 10**9],
     ["n", [1]], ["n", [[["l", []], 1]]],
     ["ty", "eval"], ["r", "a"], ["c", "a", 1], ["x"], ["x", "os", "system", "true"], ["x", "collections", "Counter", 5],
     ["x", "decimal", "Decimal", "no"], ["?"], [], {}, {"a": 1}, [["l"]]],
    ids=repr,
)  # fmt: skip
def test_nothing_but_the_encoding_is_decoded(node: object) -> None:
    with pytest.raises(CodecError):
        decode(node, [].__getitem__)


def test_depth_and_size_are_bounded() -> None:
    deep: list[object] = []
    for _ in range(MAX_DEPTH + 20):
        deep = [deep]
    with pytest.raises(CodecError, match="deeper"):
        encode(deep, lambda v: 0)
    node: list[object] = ["l", []]
    for _ in range(MAX_DEPTH + 20):
        node = ["l", [node]]
    with pytest.raises(CodecError, match="deep"):
        decode(node, lambda n: None)


def test_metric_is_code_evals_for_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    metric = evaluate.load(METRIC, cache_dir=str(tmp_path))
    assert type(metric).__name__ == "SandboxedCodeEval"
    leaves = f"import pathlib\npathlib.Path({str(tmp_path / 'here')!r}).touch()\n"
    references = ["assert add(2, 3) == 5", "def check(f):\n    assert f(1, 1) == 2\ncheck(add)"]
    predictions = [[RIGHT, WRONG, leaves + RIGHT], [WRONG, RIGHT, "import sys\nprint('passed')\nsys.exit(0)"]]
    pair = metric.compute(references=references, predictions=predictions, k=[1, 2, 10], num_workers=2, timeout=2.5)
    assert pair is not None
    scores, results = pair
    passed = [[one["passed"] for _, one in results[task]] for task in (0, 1)]
    assert passed[0][:2] == [True, False] and passed[1] == [False, True, False]
    counts = [sum(group) for group in passed]
    assert scores == pytest.approx({f"pass@{k}": sum(estimate_pass_at_k(3, c, k) for c in counts) / 2 for k in (1, 2)})
    assert not (tmp_path / "here").exists()
    for task, group in results.items():
        for i, (number, one) in enumerate(group):
            assert (number, one["completion_id"], one["task_id"]) == (i, i, task)
            assert one["result"].startswith("passed" if one["passed"] else "failed: ")
            assert one["verdict"]["status"] == ("passed" if one["passed"] else "failed")


def test_timeout_is_cpu_seconds_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def judge_many(self: Sandbox, jobs: list[Job], *rest: object) -> list[Verdict]:
        limits.append(self.limits.cpu_seconds)
        return [Verdict("timeout", limit="cpu") for _ in jobs]

    monkeypatch.setattr(Sandbox, "judge_many", judge_many)
    for timeout in (None, 3.0, 0.2):
        assert code_eval(["assert f()"], [["def f(): pass"]], timeout=timeout)[1][0][0][1]["result"] == "timed out"
    assert limits == [Limits().cpu_seconds, 3, 1]
    with pytest.raises(T2Error, match="must be positive"):
        code_eval(["assert f()"], [["def f(): pass"]], timeout=0)


def test_metric_in_a_task_of_lm_eval() -> None:
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    config = {
        "task": "made",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list([{"q": "add", "test": "assert add(2, 3) == 5"}])}),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{test}}",
        "metric_list": [{"metric": pass_at_k, "aggregation": "mean", "higher_is_better": True, "k": [1, 2]}],
    }
    task = ConfigurableTask(config=config)
    doc = next(iter(task.test_docs()))
    assert task.process_results(doc, [[RIGHT, WRONG]]) == {"pass@1": 0.5, "pass@2": 1.0}
    for reply, score in ((RIGHT, 1.0), (WRONG, 0.0), ("", 0.0)):  # what lm-eval's take_first leaves, its default filter
        assert task.process_results(doc, [reply]) == {"pass@1": score}
