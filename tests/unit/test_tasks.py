"""The task definitions on rows made here: lm-eval's prompts and numbers, few-shot sources, bad rows."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

import t2.tasks
from t2.harness.errors import T2Error
from t2.harness.fetch import FetchError
from t2.harness.fewshot.documents import draw, pools
from t2.tasks.arc.scoring import process_results as score_arc_text
from t2.tasks.data import dataset_dict, load, subject_rows
from t2.tasks.gsm8k.worked import WORKED
from t2.tasks.humaneval.scoring import process_results as score_humaneval
from t2.tasks.math.scoring import process_results as score_math
from t2.tasks.training import TASKS as TRAINING

OURS = Path(t2.tasks.__file__).parent
THEIRS = Path(lm_eval.__file__).parent / "tasks"
MINE = ("math", "gsm8k", "arc")
# What may differ from lm-eval: where rows come from. (A tag of ours would replace lm-eval's tag of that name, with all its other tasks.)
DATA_KEYS = {"custom_dataset", "dataset_kwargs", "training_split", "validation_split", "fewshot_split", "fewshot_config", "tag"}
SUBJECTS = {
    "Algebra": 3,
    "Counting & Probability": 1,
    "Geometry": 2,
    "Intermediate Algebra": 1,
    "Number Theory": 1,
    "Prealgebra": 1,
    "Precalculus": 1,
}
SHARED = {
    "gsm8k": ("gsm8k/gsm8k.yaml", "gsm8k/gsm8k.yaml"),
    "arc_easy": ("arc/arc_easy.yaml", "arc/arc_easy.yaml"),
    "arc_challenge": ("arc/arc_challenge.yaml", "arc/arc_challenge.yaml"),
    "arc_challenge_chat": ("arc/arc_challenge_chat.yaml", "arc/arc_challenge_chat.yaml"),
}


def gsm8k_rows(n: int, start: int) -> list[dict]:
    return [
        {"question": f"Ana has {i} beads and finds {{2}} more. How many?", "answer": f"{i}+2=<<{i}+2={i + 2}>>{i + 2}\n#### {i + 2}"}
        for i in range(start, start + n)
    ]


def arc_rows(n: int, start: int) -> list[dict]:
    texts = ["A red stone.", "the Moon", 'an "odd" choice', "water"]
    return [
        {
            "id": f"q{i}",
            "question": f" Which thing is number {i}? ",
            "choices": {"text": texts[: 4 - i % 2], "label": list("ABCD")[: 4 - i % 2]},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(start, start + n)
    ]


def math_rows(split: str) -> list[dict]:
    return [
        {
            "problem": f"{split}: what is $\\frac{{{n}}}{{2}}$ in {kind}?",
            "level": "Level 1",
            "type": kind,
            "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$.",
            "answer": f"\\frac{{{n}}}{{2}}",
        }
        for kind, count in SUBJECTS.items()
        for n in range(1, 2 * count, 2)
    ]


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with made-up rows of every set, and nothing else to fall back on."""
    folder = tmp_path / "data"
    write(folder / "gsm8k/train.jsonl", gsm8k_rows(30, 100))
    write(folder / "gsm8k/test.jsonl", gsm8k_rows(4, 1))
    for split in ("train", "test"):
        write(folder / f"math/{split}.jsonl", math_rows(split))
    write(folder / "math/math500.jsonl", math_rows("test"))
    for name in ("ARC-Easy", "ARC-Challenge"):
        for number, part in enumerate(("Train", "Dev", "Test")):
            write(folder / f"arc/{name}/{name}-{part}.jsonl", arc_rows(6, 10 * number))
    monkeypatch.setenv("T2_DATA_DIR", str(folder))
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


def our_yaml(name: str) -> Path:
    [path] = [p for p in OURS.glob("*/*.yaml") if p.stem == name]
    return path


def ours(name: str) -> ConfigurableTask:
    config = load_yaml(our_yaml(name))
    return ConfigurableTask(config=config)


def theirs(name: str, data: str) -> ConfigurableTask:
    """lm-eval's own definition, on the rows that ours reads."""
    config = load_yaml(THEIRS / SHARED[name][1])
    config.pop("tag", None)
    splits = ("train", "test") if data == "gsm8k" else ("train", "validation", "test")
    config["custom_dataset"] = lambda **_: dataset_dict(data, splits)
    return ConfigurableTask(config=config)


class Canned(LM):
    """Answers each generation request with the reply that `reply` makes of its document, and prefers the first option."""

    def __init__(self, reply) -> None:
        super().__init__()
        self.reply = reply

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        return [self.reply(request.doc) for request in requests]

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def evaluated(reply, tasks: list) -> dict:
    """What `simple_evaluate` does, less its report on the environment, which lists every installed package and takes seconds."""
    loaded = TaskManager(include_path=str(OURS), include_defaults=False).load(tasks)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(1234)
    results = evaluate(Canned(reply), loaded, bootstrap_iters=0)
    assert results is not None
    return results


def template(messages: list[dict], add_generation_prompt: bool = True) -> str:
    return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + ("<assistant>" if add_generation_prompt else "")


@pytest.mark.parametrize("name", SHARED)
def test_definition_is_lm_evals_but_for_the_data(name: str) -> None:
    mine, upstream = load_yaml(OURS / SHARED[name][0], resolve_func=False), load_yaml(THEIRS / SHARED[name][1], resolve_func=False)
    assert mine["metadata"].pop("t2_domain") in ("math", "reasoning")  # for the confusion matrix of pass 1
    assert {k: v for k, v in mine.items() if k not in DATA_KEYS | {"metric_list"}} == {
        k: v for k, v in upstream.items() if k not in DATA_KEYS | {"metric_list"}
    }
    assert [m for m in mine["metric_list"] if "extracted" not in m["metric"]] == upstream["metric_list"]


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_are_lm_evals(name: str, shots: int, chat: bool, data_dir: Path) -> None:
    mine, upstream = ours(name), theirs(name, name.removesuffix("_chat"))
    assert len(mine.eval_docs) == len(upstream.eval_docs) > 3
    for task in (mine, upstream):
        task.set_fewshot_seed(1234)
    for doc in mine.eval_docs:
        prompts = [
            task.fewshot_context(
                doc, shots, apply_chat_template=chat, fewshot_as_multiturn=chat, chat_template=template, gen_prefix=task.doc_to_prefix(doc)
            )
            for task in (mine, upstream)
        ]
        assert prompts[0] == prompts[1]
        assert mine.doc_to_target(doc) == upstream.doc_to_target(doc)
        requests = [task.construct_requests(doc, "c", metadata=("t", 0, 1)) for task in (mine, upstream)]
        first, second = [r if isinstance(r, list) else [r] for r in requests]
        assert [r.args for r in first] == [r.args for r in second]


REPLIES = ["#### 3", "The answer is 4.", "", "none", "I get #### 6", "4, no 5"]


@pytest.mark.parametrize("name", SHARED)
def test_scores_are_lm_evals(name: str, data_dir: Path) -> None:
    letters = [" B", "(A).", "", "the Moon", "C", "A"]

    def reply(doc: dict) -> str:
        key = int(re.search(r"\d+", doc["question"])[0])
        return (REPLIES if name == "gsm8k" else letters)[key % 6]

    results = []
    for task in (ours(name), theirs(name, name.removesuffix("_chat"))):
        scored = evaluated(reply, [task])
        results.append(scored["results"][name])
    added = {key: value for key, value in results[0].items() if key not in results[1]}
    assert {key: value for key, value in results[0].items() if key in results[1]} == results[1]
    assert all(key.startswith("extracted") for key in added)
    if name == "gsm8k":  # rows 1 to 4 get replies 1 to 4: 4., nothing, none, #### 6
        assert added["extracted,flexible-extract"] == 0.5
        assert added["extracted,strict-match"] == 0.25
        assert results[0]["exact_match,flexible-extract"] == 0.25
        assert "extracted_stderr,strict-match" in added
    elif name == "arc_challenge_chat":  # rows 20 to 25 get all six
        assert added["extracted,remove_whitespace"] == pytest.approx(4 / 6)
    else:
        assert added == {}


@pytest.mark.parametrize(("name", "trained"), [("gsm8k_answer", "gsm8k_answer"), ("arc_easy_text", "arc_easy")])
def test_a_form_that_is_trained_is_asked_and_scored_as_it_was_trained(name: str, trained: str, data_dir: Path) -> None:
    mine, training = ours(name), TRAINING[trained]
    docs = list(mine.eval_docs)
    assert mine.config.num_fewshot in (0, None)
    assert [mine.fewshot_context(doc, 0) for doc in docs] == [training.prompt(doc) for doc in docs]
    endless = ["It is 3.", "a red stone\n\nQuestion: 5", "", "the Moon", "6\n\nProblem: 7", "none"]
    replies = {doc["question"]: endless[i % 6] for i, doc in enumerate(docs)}
    until = mine.config.generation_kwargs["until"]
    scored = evaluated(lambda doc: postprocess_generated_text(replies[doc["question"]], until, None), [mine])["results"][name]
    right = training.correct(docs, [replies[doc["question"]] for doc in docs])
    assert 0 < sum(right) < len(docs)
    assert next(v for k, v in scored.items() if k.startswith("exact_match,")) == sum(right) / len(docs)


def test_math_is_trained_as_it_is_asked(data_dir: Path) -> None:
    mine = ours("math_geometry")
    docs = list(mine.eval_docs)
    assert docs and [mine.fewshot_context(doc, 0) for doc in docs] == [TRAINING["math"].prompt(doc) for doc in docs]


def test_gsm8k_without_a_train_split_uses_our_worked_examples_and_says_so(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data_dir / "gsm8k/train.jsonl").unlink()
    task = ours("gsm8k")
    task.set_fewshot_seed(1234)
    doc = task.eval_docs[0]
    with caplog.at_level(logging.WARNING):
        prompt = task.fewshot_context(doc, 5)
    shown = [row["question"] for row in WORKED if row["question"] in prompt]
    assert len(shown) == 5
    assert prompt.endswith(f"Question: {doc['question']}\nAnswer:")
    assert "worked examples" in caplog.text
    assert "train split" in caplog.text
    assert "worked examples" in task.dump_config()["fewshot_config"]["samples"][0]["used"]
    with pytest.raises(T2Error, match="20 few-shot examples asked for, but only 8"):
        task.fewshot_context(doc, 20)


def test_worked_examples_are_right() -> None:
    for row in WORKED:
        steps = re.findall(r"<<([0-9*/+-]+)=(\d+)>>(\d+)", row["answer"])
        assert steps
        for sum_, result, shown in steps:
            assert eval(sum_) == int(result) == int(shown)  # noqa: S307 - digits and + - * / only
        assert row["answer"].endswith(f"#### {steps[-1][1]}")


@pytest.mark.parametrize(("name", "file"), [("math_geometry", "math/train.jsonl"), ("arc_easy", "arc/ARC-Easy/ARC-Easy-Train.jsonl")])
def test_other_tasks_need_their_train_split_for_shots_only(name: str, file: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir / file).unlink()
    task = ours(name)
    doc = task.eval_docs[0]
    assert task.fewshot_context(doc, 0)
    with pytest.raises(T2Error, match=r"T2_DATA_DIR.*--num_fewshot 0"):
        task.fewshot_context(doc, 2)


@pytest.mark.parametrize(("name", "file"), [("gsm8k", "gsm8k/train.jsonl"), ("math_geometry", "math/train.jsonl")])
def test_a_search_without_a_train_split_draws_from_what_is_scored(name: str, file: str, data_dir: Path, caplog) -> None:
    task = ours(name)
    rows = subject_rows(name.partition("_")[0], "train", "Geometry" if name == "math_geometry" else None)
    assert list(pools(task)["train"]) == rows and draw({name: task}, 1, 0)[0].source == "train"
    (data_dir / file).unlink()
    task = ours(name)
    assert set(pools(task)) == {"evaluated"}  # never the worked examples that stand in the prompt
    assert draw({name: task}, 1, 0)[0].source == "evaluated"
    assert f"{name}: no documents from its train split" in caplog.text


def test_tasks_scored_by_evalplus_do_not_draw_from_mbpps_train_split() -> None:
    for name in ("mbpp_plus", "mbpp_plus_instruct", "mbpp_t2"):
        assert load_yaml(OURS / "mbpp" / f"{name}.yaml", resolve_func=False)["metadata"].keys() == {"t2_domain", "version"}


@pytest.mark.parametrize("name", ["mbpp", "mbpp_chat", "mbpp_instruct"])
def test_a_search_on_mbpp_draws_from_its_train_split(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = load_yaml(OURS / "mbpp" / f"{name}.yaml", resolve_func=False)["metadata"]
    rows = [{"task_id": i, "text": f"Add {i}."} for i in range(601, 605)]
    monkeypatch.setattr("t2.harness.fewshot.documents.load_rows", lambda data, split: {("mbpp", "train"): rows}[data, split])
    config = SimpleNamespace(
        task=name, test_split="test", validation_split=None, training_split=None, metadata=metadata,
        dataset_path="google-research-datasets/mbpp",
    )  # fmt: skip
    task = SimpleNamespace(
        config=config, has_test_docs=lambda: True, has_training_docs=lambda: False, has_validation_docs=lambda: False,
        fewshot_cfg=SimpleNamespace(split=None, samples=len), eval_docs=[{"task_id": 11, "text": "Add 11."}],
        doc_to_text=lambda doc: doc["text"], OUTPUT_TYPE="generate_until",
    )  # fmt: skip
    found = draw({name: task}, 3, 0)
    assert {document.source for document in found} == {"train"} and all(document.doc in rows for document in found)


def test_missing_test_split_lists_what_was_tried(data_dir: Path) -> None:
    (data_dir / "gsm8k/test.jsonl").unlink()
    with pytest.raises(FetchError, match="T2_DATA_DIR"):
        ours("gsm8k")


def test_math_group_weighs_subjects_by_size(data_dir: Path) -> None:
    def reply(doc: dict) -> str:
        return {"Algebra": rf"\boxed{{{doc['answer']}}}", "Geometry": "The answer is 100.", "Prealgebra": ""}.get(
            doc["type"], "I cannot tell."
        )

    scored = evaluated(reply, ["math"])
    assert scored["results"]["math_algebra"]["math_verify,none"] == 1.0
    assert scored["results"]["math_geometry"]["math_verify,none"] == 0.0
    assert scored["results"]["math_geometry"]["extracted,none"] == 1.0
    assert scored["results"]["math_prealgebra"]["extracted,none"] == 0.0
    assert scored["groups"]["math"]["math_verify,none"] == pytest.approx(3 / 10)
    assert scored["groups"]["math"]["extracted,none"] == pytest.approx(5 / 10)
    assert {scored["n-samples"][name]["original"] for name in ("math_algebra", "math_geometry")} == {3, 2}


def test_math_prompt_and_shots_of_its_own_subject(data_dir: Path) -> None:
    task = ours("math_algebra")
    task.set_fewshot_seed(0)
    doc = task.eval_docs[0]
    prompt = task.fewshot_context(doc, 2)
    assert prompt.count("Problem: train: ") == 2
    assert "Geometry" not in prompt
    assert prompt.count("It is $\\boxed{") == 2
    assert prompt.endswith("\n\nSolution:")
    assert "test: what is $\\frac{1}{2}$" in prompt
    assert task.doc_to_target(doc) == "\\frac{1}{2}"


def test_scores_of_empty_and_wordy_replies() -> None:
    doc = {"answer": "5"}
    assert score_math(doc, [""]) == {"math_verify": 0.0, "extracted": 0.0}
    assert score_math(doc, ["I cannot tell."]) == {"math_verify": 0.0, "extracted": 0.0}
    assert score_math(doc, ["It is 6."]) == {"math_verify": 0.0, "extracted": 1.0}
    assert score_math(doc, ["It is 5."]) == {"math_verify": 1.0, "extracted": 1.0}
    arc = arc_rows(1, 0)[0]
    assert score_arc_text(arc, [""]) == {"exact_match": 0.0, "extracted": 0.0}
    assert score_arc_text(arc, ["a red stone"]) == {"exact_match": 1.0, "extracted": 1.0}
    assert score_arc_text(arc, ["The Moon!"]) == {"exact_match": 0.0, "extracted": 1.0}
    assert score_arc_text(arc, ["A"]) == {"exact_match": 0.0, "extracted": 0.0}


def test_a_blank_reply_to_humaneval_is_no_program() -> None:
    prompt = 'def f(x):\n    """Return x."""\n'
    for reply, extracted in (("", 0.0), ("\n    ", 0.0), ("    return 2 * x\n", 1.0)):
        logged = json.dumps({"program": prompt + reply, "verdict": {"status": "failed"}})
        assert score_humaneval({"prompt": prompt}, [[logged]]) == {"pass@1": 0.0, "extracted": extracted}


@pytest.mark.parametrize(
    ("file", "row", "name", "message"),
    [
        ("gsm8k/test.jsonl", {"question": "q", "answer": "no mark"}, "gsm8k", "no reference answer in row 0"),
        ("gsm8k/test.jsonl", {"question": "q", "answer": "#### many"}, "gsm8k", "no reference answer in row 0"),
        ("gsm8k/test.jsonl", {"question": "q"}, "gsm8k", "line 1"),
        ("gsm8k/test.jsonl", {"question": 3, "answer": "#### 1"}, "gsm8k", "line 1"),
        (
            "math/test.jsonl",
            {"problem": "p", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{ }", "answer": " "},
            "math",
            "no reference answer",
        ),
        (
            "arc/ARC-Easy/ARC-Easy-Test.jsonl",
            {"id": "x", "question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "C"},
            "arc_easy",
            "answerKey",
        ),
    ],
)
def test_malformed_rows_are_refused(file: str, row: dict, name: str, message: str, data_dir: Path) -> None:
    write(data_dir / file, [row])
    with pytest.raises(T2Error, match=message):
        dataset_dict(name)


def test_a_subject_without_rows_is_an_error(data_dir: Path) -> None:
    write(data_dir / "math/test.jsonl", [row for row in math_rows("test") if row["type"] != "Geometry"])
    with pytest.raises(T2Error, match="no rows of type 'Geometry'"):
        ours("math_geometry")


def test_loader_ignores_metadata_and_model_arguments(data_dir: Path) -> None:
    loaded = load(
        t2_dataset="math", t2_subject="Geometry", version=1.0, config_source="x", pretrained="m", name="n", split="s", dtype="float32"
    )
    assert isinstance(loaded, DatasetDict)
    assert set(loaded) == {"test"}
    assert isinstance(loaded["test"], Dataset)
    assert set(loaded["test"]["type"]) == {"Geometry"}


@pytest.mark.parametrize("path", [p for folder in MINE for p in sorted((OURS / folder).glob("*.yaml"))], ids=lambda p: p.stem)
def test_every_task_has_a_version_and_no_tag(path: Path) -> None:
    config = load_yaml(path)
    assert isinstance(config["metadata"]["version"], float)
    assert "tag" not in config
    assert path.stem == config.get("group", config["task"])
    if "group" not in config:
        assert config["custom_dataset"] is load
        assert config["test_split"] == "test"
