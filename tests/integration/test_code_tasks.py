"""`humaneval` and `mbpp`: every reference solution passes, prompts are lm-eval's byte for byte, and lm-eval scores them in our sandbox."""

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model  # noqa: F401 (fills lm-eval's registries as a run does)
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from t2.adapters.experts import CARD, shipped
from t2.adapters.mixture import Mixture
from t2.harness.errors import T2Error
from t2.harness.fetch import FetchError, load_rows
from t2.harness.fewshot.documents import marks
from t2.harness.fewshot.mixture_file import MixtureFile, contaminated
from t2.harness.sandbox import Job, Sandbox, SandboxUnavailable, Verdict, core
from t2.tasks.humaneval import scoring as humaneval
from t2.tasks.mbpp import scoring as mbpp
from t2.tasks.mbpp import split as mbpp_split
from t2.tasks.references import FAILING
from t2.tasks.samples import FORMS
from t2.tasks.training import TASKS, split_halves

OURS = Path(__file__).resolve().parents[2] / "tasks"
THEIRS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"  # type: ignore[union-attr, arg-type]
NAMES = [
    "humaneval", "humaneval_instruct", "humaneval_plus", "humaneval_64", "humaneval_64_instruct",
    "mbpp", "mbpp_instruct", "mbpp_plus", "mbpp_plus_instruct",
]  # fmt: skip
OWN_VERSIONS = {"mbpp_instruct": 1.1, "mbpp_plus": 1.2, "mbpp_plus_instruct": 1.1}

HUMANEVAL_DOCS = [
    {
        "task_id": f"made/{i}",
        "prompt": f'def triple(x: int) -> int:\n    """ Return {i + 3} times x\r\n    >>> triple(1) {{braces}} é "quotes"\n    """\n',
        "canonical_solution": f"    return {i + 3} * x\n",
        "test": f"def check(candidate):\n    assert candidate(2) == {2 * (i + 3)}\n    assert candidate(0) == 0\n",
        "entry_point": "triple",
    }
    for i in range(3)
]
MBPP_DOCS = [
    {
        "task_id": 11 + i,
        "text": f"Write a function to add {i} to a number & <tag> {{{{ 1 }}}}.",
        "code": f"def add(x):\r\n  return x + {i}",
        "test_list": [f"assert add({x}) == {x + i}" for x in (1, 2, 3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for i in range(3)
]
LOOP = "for i, (inp, exp) in enumerate(zip(inputs, results)):"
_CHECK = """import numpy as np

def assertion(out, exp, atol):
    assert out == exp

def check(candidate):
    inputs = [[2], [0], [-7]]
    results = [RESULTS]
    LOOP
        assertion(candidate(*inp), exp, 0)
"""
HUMANEVAL_PLUS_DOCS = [
    doc | {"test": _CHECK.replace("RESULTS", f"{2 * (i + 3)}, 0, {-7 * (i + 3)}").replace("LOOP", LOOP)}
    for i, doc in enumerate(HUMANEVAL_DOCS)
]
MBPP_PLUS_DOCS = [
    {
        "task_id": doc["task_id"],
        "prompt": doc["text"],
        "code": doc["code"],
        "test_list": doc["test_list"],
        "test": f"inputs = [[1], [-5]]\nresults = [{1 + i}, {i - 5}]\n{LOOP}\n    assertion(add(*inp), exp, 0)",
    }
    for i, doc in enumerate(MBPP_DOCS)
]
DOCS = {"humaneval": HUMANEVAL_DOCS, "mbpp": MBPP_DOCS, "humaneval_plus": HUMANEVAL_PLUS_DOCS, "mbpp_plus": MBPP_PLUS_DOCS}


def rows(name: str, split: str) -> list[dict[str, Any]]:
    try:
        return load_rows(name, split)
    except FetchError as error:
        pytest.skip(f"needs the {split} split of {name}: set T2_DATA_DIR or run t2 fetch ({error})")


def made(name: str) -> Callable[..., DatasetDict]:
    plus = "_plus" * ("_plus" in name or name == "mbpp_t2")
    return lambda **_: DatasetDict({"test": Dataset.from_list(DOCS[name.split("_")[0] + plus])})


def failing(jobs: list[tuple[str, Job]]) -> list[str]:
    verdicts = Sandbox().judge_many([job for _, job in jobs])
    return [f"{label}: {verdict}" for (label, _), verdict in zip(jobs, verdicts, strict=True) if not verdict.passed]


def test_all_reference_solutions_of_humaneval_pass() -> None:
    docs = rows("humaneval", "test")
    assert len(docs) == 164
    assert failing([(d["task_id"], humaneval.job(d["prompt"] + d["canonical_solution"], d)) for d in docs]) == []


def test_reference_solutions_of_mbpp_pass() -> None:
    docs = rows("mbpp", "test")
    # Beside a spread: set-up code and objects (367), names of builtins (126, 228, 479), library types (14 s. a. Counter), imported names.
    special = [d for d in docs if d.get("test_setup_code") or d["task_id"] in (126, 139, 228, 479)]
    chosen = {d["task_id"]: d for d in [*docs[::16], *special]}
    assert len(chosen) >= 30 and 367 in chosen
    assert failing([(str(i), mbpp.job(d["code"], d)) for i, d in chosen.items()]) == []


def test_reference_solutions_of_mbpp_plus_pass_by_every_kind_of_oracle() -> None:
    docs = {d["task_id"]: d for d in rows("mbpp_plus", "test")}
    assert len(docs) == 378
    # Sets (7), not None (737), a reference function (88, 630), floats (82), atol 1e-4 (312), a spread.
    chosen = [7, 737, 88, 630, 82, 312, *list(docs)[5::50]]
    assert failing([(str(i), mbpp.plus_job(docs[i]["code"], docs[i])) for i in chosen]) == []
    broken = docs[88] | {"code": "def freq_count(list1):\n    list1.clear()\n    return {}"}
    assert not Sandbox().judge_many([replace(mbpp.plus_job(broken["code"], docs[88]), reference=None)])[0].passed


def test_no_row_that_an_mbpp_task_scores_is_trained_on() -> None:
    trained = {doc["task_id"] for doc in rows("mbpp", "train") if TASKS["mbpp"].keep(doc)}
    assert len(trained) == 250
    for dataset in ("mbpp", "mbpp_plus"):  # the test documents of mbpp_t2 are of the latter
        assert not trained & {doc["task_id"] for doc in rows(dataset, "test")}
    assert {doc["task_id"] for doc in rows("mbpp", "train")} & {doc["task_id"] for doc in rows("mbpp_plus", "test")} == mbpp_split.IN_PLUS


def test_the_shipped_code_expert_has_seen_what_the_docs_say() -> None:
    plus = {doc["task_id"] for doc in rows("mbpp_plus", "test")}
    t2_test = {doc["task_id"] for doc in mbpp_split.rows()["test"]}
    rows("mbpp", "train")
    seen = split_halves(replace(TASKS["mbpp"], keep=lambda doc: len(doc["code"]) <= 400), 0)
    card = json.loads((shipped()["code"] / CARD).read_text())
    assert card["data"]["sha256"] == seen.sha256 and card["settings"]["eval_docs"] == 128
    parts = [{doc["task_id"] for doc in part} for part in (seen.train, seen.validation[:128])]
    assert [len(part & plus) for part in parts] == [56, 34]
    assert [len(part & t2_test) for part in parts] == [43, 20]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "count"), [("mbpp", "test", 500), ("mbpp", "validation", 90), ("mbpp", "train", 374), ("mbpp_plus", "test", 378)]
)
def test_every_reference_solution_passes_but_those_listed(name: str, split: str, count: int) -> None:
    docs = rows(name, split)
    assert len(docs) == count
    job = mbpp.plus_job if name == "mbpp_plus" else mbpp.job
    assert failing([(str(d["task_id"]), job(d["code"], d)) for d in docs if d["task_id"] not in FAILING[name]]) == []


def test_a_row_whose_reference_is_known_to_fail_is_judged_without_one() -> None:
    doc = HUMANEVAL_PLUS_DOCS[0]
    assert humaneval.plus_job("", doc).reference == doc["prompt"] + doc["canonical_solution"]
    assert humaneval.plus_job("", doc | {"task_id": "HumanEval/32"}).reference is None
    assert humaneval.job("", HUMANEVAL_DOCS[0] | {"task_id": "HumanEval/32"}).reference is not None
    assert mbpp.job("", MBPP_DOCS[0]).reference == MBPP_DOCS[0]["code"]
    assert mbpp.plus_job("", MBPP_PLUS_DOCS[0] | {"task_id": 255}).reference is None


def test_wrong_completions_of_humaneval_do_not_pass() -> None:
    docs = rows("humaneval", "test")[::12]
    bodies = ["    return None\n", "    import os; os._exit(0)\n", "", "    return ("]
    jobs = [humaneval.job(d["prompt"] + body, d) for d in docs for body in bodies]
    assert [v.status for v in Sandbox().judge_many(jobs) if v.passed] == []


def ours(name: str) -> ConfigurableTask:
    return ConfigurableTask(config=load_yaml(OURS / name.split("_")[0] / f"{name}.yaml") | {"custom_dataset": made(name)})


def theirs(name: str) -> ConfigurableTask:
    """lm-eval's task of this name on made-up documents, without its Python file (that loads a metric from a hub and runs code)."""
    config = load_yaml(THEIRS / name.split("_")[0] / f"{name}.yaml", resolve_func=False)
    config |= {"custom_dataset": made(name), "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}]}
    config.pop("filter_list", None)
    if "fewshot_config" in config:
        source = (THEIRS / "mbpp" / "utils.py").read_text()
        body = source[source.index("def list_fewshot_samples") :]
        space: dict[str, Any] = {}
        exec(body, space)  # noqa: S102 (a function of the installed lm-eval that returns a literal)
        config["fewshot_config"] = config["fewshot_config"] | {"samples": space["list_fewshot_samples"]()}
    return ConfigurableTask(config=config)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_are_lm_evals_own(name: str, chat: bool) -> None:
    prompts = []
    for task in (ours(name), theirs(name)):
        shots = task.config.num_fewshot or 0
        template = (lambda messages, add_generation_prompt=True: json.dumps([messages, add_generation_prompt])) if chat else None
        options: dict[str, Any] = {"apply_chat_template": chat, "fewshot_as_multiturn": chat, "chat_template": template}
        prompts.append(
            [
                task.fewshot_context(d, shots, gen_prefix=task.doc_to_prefix(d), **options) + f"|{task.doc_to_target(d)}"
                for d in task.test_docs()
            ]
        )
    assert prompts[0] == prompts[1]
    assert ("similar_elements" in prompts[0][0]) == (name in ("mbpp", "mbpp_instruct", "mbpp_plus"))


def test_no_document_of_mbpp_plus_is_its_own_shot() -> None:
    task, shots = ours("mbpp_plus"), {2: "similar_elements", 3: "is_not_prime", 4: "heap_queue_largest"}
    for number in (*shots, 6):
        prompt = task.fewshot_context(MBPP_PLUS_DOCS[0] | {"task_id": number}, 3)
        assert [shot for shot, name in shots.items() if f"def {name}(" in prompt] == [shot for shot in shots if shot != number]


@pytest.mark.parametrize("asked", FORMS)
@pytest.mark.parametrize("seen", FORMS)
def test_a_question_is_known_again_in_every_task_of_its_benchmark(seen: str, asked: str) -> None:
    shot = dict(zip(("sha256", "question_sha256", "question_id"), marks(ours(seen), ours(seen).eval_docs[1]), strict=True))
    mixture = MixtureFile(Path("m.json"), {"documents": [shot]}, Mixture.base(), "")
    same = seen.split("_")[0] == asked.split("_")[0]
    assert contaminated(mixture, {asked: ours(asked)}, None, None) == ({asked: [1]} if same else {})


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_lm_evals_own(name: str) -> None:
    mine = load_yaml(OURS / name.split("_")[0] / f"{name}.yaml", resolve_func=False)
    assert {"custom_dataset", "process_results"} <= set(mine)
    upstream = load_yaml(THEIRS / name.split("_")[0] / f"{name}.yaml", resolve_func=False)
    for key in (
        "doc_to_text",
        "doc_to_target",
        "generation_kwargs",
        "repeats",
        "num_fewshot",
        "gen_prefix",
        "target_delimiter",
        "output_type",
        "dataset_path",
        "dataset_name",
    ):
        assert mine.get(key) == upstream.get(key), key
    assert mine["metadata"]["version"] == OWN_VERSIONS.get(name, upstream["metadata"]["version"])
    assert [f["name"] for f in mine["filter_list"]] == [f["name"] for f in upstream.get("filter_list", [{"name": "none"}])]
    assert "unsafe_code" not in mine
    if ks := next((metric["k"] for metric in upstream["metric_list"] if "k" in metric), None):
        assert [metric["metric"] for metric in mine["metric_list"]] == [*(f"pass@{k}" for k in ks), "extracted"]


def test_no_task_of_ours_is_unsafe() -> None:
    names = [path.stem for path in OURS.glob("*/*.yaml") if path.parent.name in ("humaneval", "mbpp")]
    assert sorted(names) == sorted([*NAMES, "humaneval_chat", "mbpp_64", "mbpp_chat", "mbpp_t2"]) == sorted(FORMS)
    assert [name for name in names if "unsafe_code" in load_yaml(OURS / name.split("_")[0] / f"{name}.yaml", resolve_func=False)] == []


class Scripted(LM):
    """Answers each prompt by a function of it."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        super().__init__()
        self.reply = reply

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self.reply(request.args[0]) for request in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def evaluate(name: str, reply: Callable[[str], str]) -> dict[str, Any]:
    manager = TaskManager(include_defaults=False)  # lm-eval would read its 15,000 YAML files for each call
    return simple_evaluate(Scripted(reply), tasks=[ours(name)], task_manager=manager, log_samples=True, bootstrap_iters=0)  # type: ignore[return-value]


def test_humaneval_in_lm_eval() -> None:
    replies = {"Return 3 ": "    return 3 * x\n", "Return 4 ": "    return 3 * x\n", "Return 5 ": "    return (x\n"}
    results = evaluate("humaneval", lambda prompt: next(r for k, r in replies.items() if k in prompt))
    scores = results["results"]["humaneval"]
    assert scores["pass@1,create_test"] == pytest.approx(1 / 3)
    assert scores["extracted,create_test"] == pytest.approx(2 / 3)
    logged = [json.loads(sample["filtered_resps"][0][0]) for sample in results["samples"]["humaneval"]]
    assert [one["verdict"]["status"] for one in logged] == ["passed", "failed", "syntax_error"]
    assert logged[0]["program"].endswith("    return 3 * x\n")
    json.dumps(results["samples"])  # as --log_samples writes it


def test_mbpp_in_lm_eval() -> None:
    replies = iter(["def add(x):\n  return x\n", "I cannot do that.", "import sys\ndef add(x):\n  print('passed')\n  sys.exit(0)"])
    results = evaluate("mbpp", lambda prompt: next(replies))
    assert results["results"]["mbpp"]["pass_at_1,none"] == pytest.approx(1 / 3)
    assert results["results"]["mbpp"]["extracted,none"] == pytest.approx(2 / 3)


def test_plus_tasks_judge_by_the_plus_tests() -> None:
    # Right for 2 and 0 (HumanEval's tests) and for 1, 2 and 3 (MBPP's), not for what EvalPlus adds.
    wrong = "    return -1 if x < 0 else 3 * x\n"
    scores = evaluate("humaneval_plus", lambda p: wrong if "Return 3 " in p else f"    return {4 + ('Return 5' in p)} * x\n")["results"]
    assert scores["humaneval_plus"]["pass@1,create_test"] == pytest.approx(2 / 3)
    for name in ("mbpp_plus", "mbpp_t2"):
        replies = iter(["def add(x):\n  return abs(x)", "def add(x):\n  return x + 1", "def add(x):\n  return x + 2"])
        assert evaluate(name, lambda p, replies=replies: next(replies))["results"][name]["pass_at_1,none"] == pytest.approx(2 / 3)


def test_64_samples_are_scored_by_the_unbiased_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(self: Sandbox, jobs: list[Job], *rest: Any) -> list[Verdict]:  # 192 jails would take a quarter of a minute
        return [Verdict("passed" if "right" in job.code else "failed") for job in jobs]

    monkeypatch.setattr(Sandbox, "judge_many", judged)
    right = {0: 0, 1: 3, 2: 64}
    for name, metric, score in (("humaneval_64", "pass@{}", "create_test"), ("mbpp_64", "pass_at_{}", "none")):
        made_replies = iter(f"    {'right' if i < right[doc] else 'wrong'}" for doc in range(3) for i in range(64))
        found = evaluate(name, lambda p, made_replies=made_replies: next(made_replies))["results"][name]
        for k in (2, 8, 16, 32, 64):
            expected = (0 + (1 - comb(61, k) / comb(64, k)) + 1) / 3
            assert found[f"{metric.format(k)},{score}"] == pytest.approx(expected)
        assert not any("1," in key for key in found if key.startswith("pass"))


def test_instruct_forms_take_the_code_block() -> None:
    scores = evaluate("humaneval_instruct", lambda p: f"    return {3 + ('Return 4' in p) + 2 * ('Return 5' in p)} * x\n```\nThat's it.")[
        "results"
    ]
    assert scores["humaneval_instruct"]["pass@1,create_test"] == 1.0
    scores = evaluate(
        "humaneval_instruct", lambda p: "```python\ndef triple(x):\n    return 3 * x\n```" if "Return 3" in p else "    pass"
    )["results"]
    assert scores["humaneval_instruct"]["extracted,create_test"] == pytest.approx(2 / 3)  # the first closes the block that was opened
    replies = iter(["def add(x):\n  return x\n```\ntext", "no code", "```python\ndef add(x):\n  return x + 2\n```"])
    scores = evaluate("mbpp_instruct", lambda p: next(replies))["results"]["mbpp_instruct"]
    assert scores["pass_at_1,extract_code"] == pytest.approx(2 / 3)
    assert scores["extracted,extract_code"] == pytest.approx(2 / 3)


def test_humaneval_chat_takes_the_whole_function_and_the_prompts_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = [{**doc, "prompt": "from typing import List\n\n\n" + doc["prompt"]} for doc in HUMANEVAL_DOCS]
    monkeypatch.setitem(DOCS, "humaneval", typed)
    assert (
        ours("humaneval_chat").fewshot_context(typed[0], 0).endswith('"""\n```\nReply with the whole function only, in a ```python block.')
    )
    whole = "Sure:\n```python\ndef triple(x: int) -> List[int]:\n    return {} * x\n```\nIt triples."
    made = iter([whole.format(3), whole.format(9), "I cannot."])
    scores = evaluate("humaneval_chat", lambda p: next(made))["results"]["humaneval_chat"]
    assert scores["pass@1,create_test"] == pytest.approx(1 / 3) and scores["extracted,create_test"] == pytest.approx(2 / 3)


def test_humaneval_chat_keeps_a_future_import_first() -> None:
    doc = HUMANEVAL_DOCS[0] | {"prompt": "from typing import List\n\n\n" + HUMANEVAL_DOCS[0]["prompt"]}
    future = "# typed\n\nfrom __future__ import annotations\nfrom __future__ import generator_stop\n"
    code = "import math\ndef triple(x: List[Later]) -> int:\n    return 3 * x"
    (programs,) = humaneval.whole_functions([[f"```python\n{future}{code}\n```", f"```python\n{code}\n```"]], [doc])
    assert [program.rstrip("\n") for program in programs] == [f"{head}from typing import List\n\n\n{code}" for head in (future, "")]
    assert Sandbox().judge_many([humaneval.job(programs[0], doc)])[0].passed


@pytest.mark.parametrize("reply", ["\n```" + "a" * 200_000, "```a" * 50_000, "`" * 200_000], ids=["word", "fences", "ticks"])
def test_a_code_block_is_found_in_linear_time(reply: str) -> None:
    began = time.monotonic()
    mbpp.block([[reply]], [MBPP_DOCS[0]])
    assert time.monotonic() - began < 5


def test_mbpp_chat_is_asked_and_scored_as_it_is_trained() -> None:
    training, mine = TASKS["mbpp"], ours("mbpp_chat")
    assert [mine.fewshot_context(doc, 0) for doc in MBPP_DOCS] == [training.prompt(doc) for doc in MBPP_DOCS]
    replies = ["Here:\n```python\ndef add(x):\n  return x\n```\ntext", "no code", "def add(x):\n  return x"]
    made = iter(replies)
    scores = evaluate("mbpp_chat", lambda p: next(made))["results"]["mbpp_chat"]
    assert scores["pass_at_1,extract_code"] == pytest.approx(sum(training.correct(MBPP_DOCS, replies)) / 3) == pytest.approx(1 / 3)


def test_a_broken_sandbox_ends_the_run_before_generation_and_after(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(prompt: str) -> str:
        raise AssertionError("generated")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(core, "_jails", {})
    config = load_yaml(OURS / "humaneval" / "humaneval.yaml")
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        ConfigurableTask(config=config)
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        evaluate("humaneval", lambda prompt: "    return 3 * x\n")


def test_moved_few_shot_examples_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(mbpp.importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(T2Error, match="--num_fewshot 0"):
        mbpp.few_shot()
