"""`humaneval` and `mbpp`: every reference solution passes, prompts are lm-eval's byte for byte, and lm-eval scores them in our sandbox."""

import importlib.util
import json
from collections.abc import Callable
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

from t2.harness.errors import T2Error
from t2.harness.fetch import FetchError, load_rows
from t2.harness.sandbox import Job, Sandbox, SandboxUnavailable, core
from t2.tasks.humaneval import scoring as humaneval
from t2.tasks.mbpp import scoring as mbpp

OURS = Path(__file__).resolve().parents[2] / "tasks"
THEIRS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"  # type: ignore[union-attr, arg-type]
NAMES = ["humaneval", "humaneval_instruct", "mbpp", "mbpp_instruct"]

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
        "task_id": i,
        "text": f"Write a function to add {i} to a number & <tag> {{{{ 1 }}}}.",
        "code": f"def add(x):\r\n  return x + {i}",
        "test_list": [f"assert add({x}) == {x + i}" for x in (1, 2, 3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for i in range(3)
]
DOCS = {"humaneval": HUMANEVAL_DOCS, "mbpp": MBPP_DOCS}


def rows(name: str, split: str) -> list[dict[str, Any]]:
    try:
        return load_rows(name, split)
    except FetchError as error:
        pytest.skip(f"needs the {split} split of {name}: set T2_DATA_DIR or run t2 fetch ({error})")


def made(name: str) -> Callable[..., DatasetDict]:
    return lambda **_: DatasetDict({"test": Dataset.from_list(DOCS[name.split("_")[0]])})


def failing(jobs: list[tuple[str, Job]]) -> list[str]:
    verdicts = Sandbox().judge_many([job for _, job in jobs])
    return [f"{label}: {verdict}" for (label, _), verdict in zip(jobs, verdicts, strict=True) if not verdict.passed]


def test_all_reference_solutions_of_humaneval_pass() -> None:
    docs = rows("humaneval", "test")
    assert len(docs) == 164
    assert failing([(d["task_id"], humaneval._job(d["prompt"] + d["canonical_solution"], d)) for d in docs]) == []


def test_reference_solutions_of_mbpp_pass() -> None:
    docs = rows("mbpp", "test")
    # Beside a spread: set-up code and objects (367), names of builtins (126, 228, 479), library types (14 s. a. Counter), imported names.
    special = [d for d in docs if d.get("test_setup_code") or d["task_id"] in (126, 139, 228, 479)]
    chosen = {d["task_id"]: d for d in [*docs[::16], *special]}
    assert len(chosen) >= 30 and 367 in chosen
    assert failing([(str(i), mbpp.job(d["code"], d)) for i, d in chosen.items()]) == []


def test_wrong_completions_of_humaneval_do_not_pass() -> None:
    docs = rows("humaneval", "test")[::12]
    bodies = ["    return None\n", "    import os; os._exit(0)\n", "", "    return ("]
    jobs = [humaneval._job(d["prompt"] + body, d) for d in docs for body in bodies]
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
    assert ("similar_elements" in prompts[0][0]) == name.startswith("mbpp")


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_lm_evals_own(name: str) -> None:
    mine = load_yaml(OURS / name.split("_")[0] / f"{name}.yaml", resolve_func=False)
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
    ):
        assert mine.get(key) == upstream.get(key), key
    assert mine["metadata"]["version"] == (1.1 if name == "mbpp_instruct" else upstream["metadata"]["version"])
    assert [f["name"] for f in mine["filter_list"]] == [f["name"] for f in upstream.get("filter_list", [{"name": "none"}])]
    assert "unsafe_code" not in mine


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


def test_instruct_forms_take_the_code_block() -> None:
    scores = evaluate("humaneval_instruct", lambda p: f"    return {3 + ('Return 4' in p) + 2 * ('Return 5' in p)} * x\n```\nThat's it.")[
        "results"
    ]
    assert scores["humaneval_instruct"]["pass@1,create_test"] == 1.0
    replies = iter(["def add(x):\n  return x\n```\ntext", "no code", "```python\ndef add(x):\n  return x + 2\n```"])
    scores = evaluate("mbpp_instruct", lambda p: next(replies))["results"]["mbpp_instruct"]
    assert scores["pass_at_1,extract_code"] == pytest.approx(2 / 3)
    assert scores["extracted,extract_code"] == pytest.approx(2 / 3)


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
