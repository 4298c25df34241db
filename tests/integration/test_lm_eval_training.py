"""lm-eval's own tasks as training tasks: prompt, stop sequences, filter and metric are the task's; what cannot be trained on says why."""

import functools
import json

import lm_eval.tasks
import pytest

from t2.baselines.dispatch_task import DISPATCH
from t2.baselines.rollout import chat_template
from t2.harness.errors import T2Error
from t2.tasks.dispatch.items import OPTIONS
from t2.tasks.training import split_halves, train_task

from .. import tiny

TASK = {
    "output_type": "generate_until", "doc_to_text": "{{q}} =", "doc_to_target": "{{a}}", "test_split": "test",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 7},
    "filter_list": [{"name": "first", "filter": [{"function": "regex", "regex_pattern": "(-?\\d+)"}, {"function": "take_first"}]}],
    "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    rows = [{"q": f"{a} + {b}", "a": str(a + b)} for a in range(4) for b in range(5)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def add(name, **more):
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(file), "test": str(file)}}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **data, **TASK, **more}))

    add("t2_sums", training_split="train")
    add("t2_endless", training_split="train", generation_kwargs={"until": [""], "max_gen_toks": 7})
    add("t2_untrained")
    add("t2_leaky", training_split="test")
    add("t2_answers", training_split="train", doc_to_target="{{[a, 'or ' + a]}}", generation_kwargs={"until": "\n\n", "max_gen_toks": 7})
    add("t2_graded", training_split="train", metric_list=[{"metric": "bleu"}])
    choice = {"output_type": "multiple_choice", "doc_to_choice": ["0", "1"], "filter_list": None, "generation_kwargs": None}
    add("t2_choice", training_split="train", **choice, metric_list=[{"metric": "acc"}])
    (tmp_path / "t2_group.yaml").write_text(json.dumps({"group": "t2_group", "task": ["t2_sums"]}))
    few = functools.partial(lm_eval.tasks.TaskManager, include_path=str(tmp_path), include_defaults=False)  # the index of all takes seconds
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)


def test_a_task_of_lm_eval_is_trained_on_as_it_is_scored(tasks):
    task = train_task("t2_sums")
    split = split_halves(task, 0)
    assert (len(split.train), len(split.validation)) == (10, 10)
    doc = {"q": "2 + 3", "a": "5"}
    assert task.prompt(doc) == "2 + 3 ="
    assert (task.solution(doc), task.max_new_tokens) == ("5", 7)
    assert task.correct([doc] * 4, ["5", "it is 5\n6", "6\n5", "five"]) == [True, True, False, False]


def test_a_task_of_ones_own_is_named_by_its_file_which_lm_eval_needs_not_know(tasks, tmp_path, tmp_path_factory):
    own = tmp_path_factory.mktemp("own") / "law.yaml"
    config = {**json.loads((tmp_path / "t2_sums.yaml").read_text()), "task": "law", "doc_to_text": "ASK"}
    own.write_text(json.dumps(config).replace('"ASK"', "!function ask.ask"))
    own.with_name("ask.py").write_text("def ask(doc):\n    return f'What is {doc[\"q\"]}?'\n")
    task = train_task(str(own))
    doc = {"q": "2 + 3", "a": "5"}
    assert (task.prompt(doc), task.dataset, len(split_halves(task, 0).train)) == ("What is 2 + 3?", "lm-eval's law", 10)
    assert task.correct([doc] * 2, ["it is 5", "6"]) == [True, False]


@pytest.mark.parametrize("template", [tiny.CHATML, None], ids=["chat", "plain"])
@pytest.mark.parametrize("more", [{}, {"description": "Add.\n\n"}, {"gen_prefix": "It is:"}, {"description": "{{q}} ", "gen_prefix": "b"}])
def test_what_is_trained_on_is_asked_as_it_is_scored(tasks, tmp_path, template, more):
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({**json.loads((tmp_path / "t2_sums.yaml").read_text()), "task": "own", **more}))
    task, doc = train_task(str(file)), {"q": "0 + 0", "a": "0"}
    scored = lm_eval.tasks.TaskManager().load(str(file))["tasks"]["own"]
    render = chat_template(tiny.tokenizer(template))
    lm_eval_s = {"apply_chat_template": template is not None, "fewshot_as_multiturn": True, "chat_template": render}
    scored.build_all_requests(limit=1, rank=0, world_size=1, **lm_eval_s)
    asked = scored.instances[0].args[0]
    assert task.context is not None and task.context(doc, render) == asked
    for part in (value for value in more.values() if "{" not in value):
        assert part.strip() in asked
    assert task.solution(doc) == (" 0" if "gen_prefix" in more else "0")


@pytest.mark.parametrize(
    ("more", "length"),
    [
        ({"max_new_tokens": 9}, 9),
        ({"max_tokens": 9}, 9),
        ({"max_completion_tokens": 9}, 9),
        ({"max_tokens": 9, "max_gen_toks": 8}, 8),
        ({}, 256),
    ],
)
def test_the_length_of_a_reply_is_read_as_lm_eval_reads_it(tasks, tmp_path, more, length):
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({**json.loads((tmp_path / "t2_sums.yaml").read_text()), "generation_kwargs": {"until": ["."], **more}}))
    assert train_task(str(file)).max_new_tokens == length


def test_of_several_answers_the_first_is_learned_and_one_stop_sequence_is_one(tasks):
    task = train_task("t2_answers")
    doc = {"q": "2 + 3", "a": "5"}
    assert task.solution(doc) == "5"
    assert task.correct([doc] * 2, ["\nit is 5\n\n6", "6\n5"]) == [True, False]


def test_an_empty_stop_sequence_stops_nothing(tasks):
    assert train_task("t2_endless").correct([{"q": "2 + 3", "a": "5"}] * 2, ["it is\n5", "6"]) == [True, False]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t2_untrained", "has no training split, and t2 never trains on its test split"),
        ("t2_leaky", "names its split 'test' as training split, and scores it too: t2 never trains on what is scored"),
        ("t2_choice", "scores multiple_choice, not generated text"),
        ("t2_group", "'t2_group' is a group of lm-eval's: name one of its tasks"),
        ("t2_sumz", r"Did you mean 't2_sums'\? It is one of arc_easy, .*, dispatch, a task that `lm_eval ls tasks` lists, or the YAML"),
        ("law.yaml", r"Unknown training task 'law\.yaml'\..* It is one of"),
    ],
)
def test_what_cannot_be_trained_on_says_why(tasks, name, message):
    with pytest.raises(T2Error, match=message):
        train_task(name)


def test_a_metric_that_is_no_share_of_right_answers_is_refused(tasks):
    with pytest.raises(T2Error, match="a reward needs 0 or 1"):
        train_task("t2_graded").correct([{"q": "2 + 3", "a": "5"}], ["5 and more words than one"])


def test_dispatch_has_as_many_documents_of_each_label_and_accepts_its_own_solutions(monkeypatch):
    asked = []

    def prompts(per_category, seed):
        asked.append(per_category)
        return [(label, f"{label} {i}", i) for label in ("code", "math", "reasoning") for i in range(3)]

    monkeypatch.setattr("t2.baselines.dispatch_task.labelled_prompts", prompts)
    docs = DISPATCH.rows()
    assert asked == [374]  # so many has the smallest train split: no document comes twice, in training and in validation
    assert {label: sum(doc["label"] == label for doc in docs) for label in ("code", "math", "reasoning")} == dict.fromkeys(
        ("code", "math", "reasoning"), 3
    )
    assert DISPATCH.correct(docs, [DISPATCH.solution(doc) for doc in docs]) == [True] * 9
    wrong = {"code": "math", "math": "reasoning", "reasoning": "code"}
    assert DISPATCH.correct(docs, [f"\\boxed{{{wrong[doc['label']]}}}" for doc in docs]) == [False] * 9
    assert all(option.name in DISPATCH.prompt(docs[0]) for option in OPTIONS) and "code 0" in DISPATCH.prompt(docs[0])
