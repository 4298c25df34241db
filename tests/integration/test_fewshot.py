"""Few-shot adaptation through the command line, on a tiny model with a task whose right α is known; the real default model where it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
import torch
from lm_eval._cli import HarnessCLI
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from transformers import GenerationConfig

from t2.adapters.mixture import Mixture
from t2.harness.cli import main
from t2.harness.errors import T2Error
from t2.harness.fewshot import adapt as adapt_module
from t2.harness.fewshot import command
from t2.harness.fewshot import evaluate as evaluate_module
from t2.harness.fewshot import generate as generate_module
from t2.harness.fewshot.adapt import adapt
from t2.harness.fewshot.documents import doc_hash, draw, load_tasks, prepare, train_sets
from t2.harness.fewshot.evaluate import Judge
from t2.harness.fewshot.generate import generate
from t2.harness.fewshot.mixture_file import read_mixture
from t2.harness.fewshot.options import AdaptOptions
from t2.harness.model import T2LM

from .. import tiny

RIGHT = {"code": 0.6, "math": 0.4}
QUESTIONS = [f"What is {a} and {b}?" for a in ("one", "two", "six", "ten") for b in ("red", "hot", "wet", "old", "new", "low")]
GENERATE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {files}}}
{splits}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{q}}}}\\nA:"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 5, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
KILLED = """
import os, sys
from functools import partial
import lm_eval.tasks
lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
from t2.harness.cli import main
from t2.harness.fewshot.journal import Journal
save, calls = Journal.save, []
def dying(self):
    save(self)
    calls.append(1)
    if len(calls) == 15:
        os.kill(os.getpid(), 9)
Journal.save = dying
main(sys.argv[1:])
"""
CHOOSE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {files}}}
{splits}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{q}}}}\\nA:"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: ["yes", "no", "perhaps"]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: acc_norm, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, two experts, and tasks whose answers are those of the mixture RIGHT: with a train split, and without one."""
    root = tmp_path_factory.mktemp("world")
    before = dict(os.environ)
    os.environ |= {"T2_CACHE": str(root / "cache"), "HF_DATASETS_CACHE": str(root / "datasets"), "TQDM_DISABLE": "1"}
    base = tiny.save(root / "tiny-model")
    tiny.save_experts(root / "experts", base, ("math", "code"))
    lm = T2LM(str(base), strategy="mix:" + "+".join(f"{n}={a}" for n, a in RIGHT.items()), experts=str(root / "experts"), batch_size=8)
    options = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    asked = [Instance("generate_until", {}, (f"Q: {q}\nA:", dict(options)), 0, ("t", i, 1)) for i, q in enumerate(QUESTIONS)]
    answers = lm.generate_until(asked, disable_tqdm=True)
    choices = [Instance("loglikelihood", {}, (i.args[0], f" {c}"), 0, ("t", 0, 1)) for i in asked for c in ("yes", "no", "perhaps")]
    scores = [score for score, _ in lm.loglikelihood(choices, disable_tqdm=True)]
    golds = [max(range(3), key=lambda c, i=i: scores[3 * i + c]) for i in range(len(QUESTIONS))]
    docs = [{"q": q, "a": a, "gold": g} for q, a, g in zip(QUESTIONS, answers, golds, strict=True)]
    for split, part in (("train", docs[:14]), ("test", docs[14:]), ("all", docs)):
        (root / f"{split}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in part))
    (root / "tasks").mkdir()
    both, alone = f"{{train: {root}/train.jsonl, test: {root}/test.jsonl}}", f"{{test: {root}/all.jsonl}}"
    for name, text, files, splits in (
        ("tiny_train", GENERATE, both, "training_split: train"),
        ("tiny_alone", GENERATE, alone, ""),
        ("tiny_choose", CHOOSE, both, "training_split: train"),
        ("tiny_dev", GENERATE, both, "fewshot_split: train"),
    ):
        (root / "tasks" / f"{name}.yaml").write_text(text.format(name=name, files=files, splits=splits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        patch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))  # lm-eval's index takes seconds to build
        yield SimpleNamespace(root=root, base=str(base), experts=str(root / "experts"), tasks=str(root / "tasks"), docs=docs, lm=lm)
    os.environ.clear()
    os.environ |= before


def options(world, output, task="tiny_train", **more):
    args = {"pretrained": world.base, "experts": world.experts}
    given = {"shots": 6, "iterations": 8, "population": 8} | more
    return AdaptOptions(task=task, output=output, model_args=args, include_path=world.tasks, **given)


def arguments(world, *more):
    model_args = f"pretrained={world.base},experts={world.experts}"
    search = ("--shots", "6", "--iterations", "8", "--population", "8")
    return ["--include_path", world.tasks, "--model_args", model_args, *search, *more]


def test_the_right_mixture_is_found_and_lm_eval_uses_it(world, tmp_path):
    made = read_mixture(adapt(options(world, tmp_path / "found.json")))
    scores = made.data["scores"]
    assert scores["confirmed"]["right"] == scores["best"]["right"] >= 5 > scores["base"]["right"]
    assert abs(made.data["alpha"]["code"] - RIGHT["code"]) <= 0.15
    assert abs(sum(made.data["alpha"].values()) - 1) < 1e-9
    assert {d["split"] for d in made.data["documents"]} == {"train"} and len(made.data["documents"]) == 6
    assert all(d["sha256"] == doc_hash(world.docs[d["id"]]) for d in made.data["documents"])
    assert made.data["configuration"]["chosen"] == "beforehand" and made.data["searches"]["normalised"]["trace"]
    assert made.data["cost"]["seconds"] > 0 and made.data["cost"]["tokens_out"] > 0
    assert not (tmp_path / "found.json.search").exists()
    found = evaluate(world, f"mixture={made.path}", "tiny_train")
    base = evaluate(world, f"pretrained={world.base},strategy=base", "tiny_train")
    assert found["results"]["tiny_train"]["exact_match,none"] > base["results"]["tiny_train"]["exact_match,none"] + 0.3
    facts = found["t2"]
    assert facts["mixture"]["sha256"] == made.sha256 and facts["mixture"]["task"] == "tiny_train"
    assert facts["contaminated"] == {} and base["t2"]["mixture"] is None
    assert facts["strategy"] == f"mix:{made.mixture}"


def test_a_mixture_that_is_worse_when_evaluated_again_is_not_taken(world, tmp_path, monkeypatch, caplog):
    evaluated = adapt_module._Adaptation._evaluate

    def by_rounding(self, form, mixtures):
        outcome = evaluated(self, form, mixtures)
        right = {"base": 2, "confirmed": 1}[next(iter(mixtures))]
        return replace(outcome, correct=tuple(i < right for i in range(len(outcome.correct))))

    monkeypatch.setattr(adapt_module._Adaptation, "_evaluate", by_rounding)
    made = read_mixture(adapt(options(world, tmp_path / "found.json")))
    assert made.data["alpha"] == {} and made.mixture == Mixture.base()
    assert made.data["searches"]["normalised"]["alpha"] and made.data["scores"]["best"]["right"] >= 5
    assert "That is less than the base model alone (2). It is kept." in caplog.text
    assert "base; 2 of 6 few-shot documents right, the base model 2; " in command._summary(made)


@pytest.mark.parametrize("content", [b'{"t2_mix', b"[]"])
def test_a_damaged_file_in_the_searchs_place_is_told_with_the_cure(world, tmp_path, content):
    (tmp_path / "found.json").write_bytes(content)
    with pytest.raises(T2Error, match=r"found.json is there already, and is no whole mixture file .*another --output"):
        adapt(options(world, tmp_path / "found.json"))


def evaluate(world, model_args, task, **more):
    manager = TaskManager(include_path=world.tasks, include_defaults=False)
    return lm_eval.simple_evaluate(
        model="t2", model_args=model_args, tasks=[task], task_manager=manager, batch_size=8, bootstrap_iters=0, **more
    )


def test_one_pass_gives_lm_evals_answers_and_the_likelihoods_of_a_second_pass(world, monkeypatch):
    lm = T2LM(world.base, strategy="expert:math", experts=world.experts, batch_size=24)
    stops = {"until": ["\n", "e"], "max_gen_toks": 12}
    asked = [Instance("generate_until", {}, (q, dict(stops)), 0, ("t", i, 1)) for i, q in enumerate(QUESTIONS)]
    expected = lm.generate_until(asked, disable_tqdm=True)
    lm.apply_mixture(Mixture.single("math"))
    made, ask = [], lm._model_generate
    monkeypatch.setattr(lm, "_model_generate", lambda **k: made.append((k["context"], k["attention_mask"], ask(**k))) or made[-1][2])
    replies = generate(lm, asked, batch_size=24)
    assert [r.text for r in replies] == expected
    ((context, mask, answered),) = made
    ids = answered.sequences
    start = context.shape[1]
    mask = torch.cat([mask, torch.ones_like(ids[:, start:])], 1)
    with torch.no_grad():
        second = lm.model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits.log_softmax(-1)
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].args[0]))
    for row, i in enumerate(order):
        count = replies[i].tokens
        total = sum(float(second[row, start - 1 + t, ids[row, start + t]]) for t in range(count))
        assert total == pytest.approx(replies[i].log_likelihood, abs=1e-3)
        said = lm.tok_decode(ids[row, start : start + count])
        shorter = lm.tok_decode(ids[row, start : start + count - 1])
        if replies[i].text != lm.tok_decode(ids[row, start:]):  # the count ends with the stop sequence
            assert ("e" in said or "\n" in said) and not ("e" in shorter or "\n" in shorter)
    assert len({r.tokens for r in replies}) > 1


@pytest.mark.parametrize(
    ("mixed", "until", "all_end"),
    [(False, ["\n", "e"], False), (True, ["\n", "e"], False), (False, ["\n", "e", "\ufffd"], True)],
)
def test_rows_that_have_ended_leave_the_batch(world, monkeypatch, mixed, until, all_end):
    lm = T2LM(world.base, strategy="expert:math", experts=world.experts)
    lm.apply_mixture(Mixture.single("math"))
    mixtures = [Mixture.single(("math", "code")[i % 2]) for i in range(len(QUESTIONS))] if mixed else None
    stops = {"until": until, "max_gen_toks": 40}
    asked = [Instance("generate_until", {}, (q, dict(stops)), 0, ("t", i, 1)) for i, q in enumerate(QUESTIONS)]
    rows, ask = [], lm._model_generate
    monkeypatch.setattr(lm, "_model_generate", lambda **k: rows.append(len(k["context"])) or ask(**k))
    monkeypatch.setattr(generate_module, "STEPS", 100)
    expected = generate(lm, asked, 24, mixtures)
    assert rows == [24]
    monkeypatch.setattr(generate_module, "STEPS", 3)
    found = generate(lm, asked, 24, mixtures)
    assert [(r.text, r.tokens) for r in found] == [(r.text, r.tokens) for r in expected]
    assert [r.log_likelihood for r in found] == pytest.approx([r.log_likelihood for r in expected], abs=1e-3)
    later = rows[1:]
    assert later[0] == 24 and later == sorted(later, reverse=True) and (later[-1] < 20 or all_end)
    assert len(later) == -(-max(r.tokens for r in found) // 3) and (max(r.tokens for r in found) < 40) == all_end
    for option in ({"do_sample": True, "temperature": 1.0}, {"repetition_penalty": 1.1}):
        rows.clear()
        generate(lm, [Instance("generate_until", {}, (i.args[0], stops | option), 0, ("t", 0, 1)) for i in asked], 24, mixtures)
        assert rows == [24], option
    for name, value in (("min_new_tokens", 2), ("cache_implementation", "static")):  # a checkpoint's own
        with monkeypatch.context() as patch:
            patch.setattr(lm.model.generation_config, name, value)
            assert not generate_module._rows_can_leave(lm, {"do_sample": False, "temperature": 0.0})
    assert generate_module._rows_can_leave(lm, {"do_sample": False, "temperature": 0.0})


def test_a_thought_with_a_stop_sequence_in_it_goes_on(world, monkeypatch):
    lm = T2LM(world.base, strategy="base")
    options = {"until": ["e"], "max_gen_toks": 40, "do_sample": False}
    asked = [Instance("generate_until", {}, (q, dict(options)), 0, ("t", i, 1)) for i, q in enumerate(QUESTIONS)]
    monkeypatch.setattr(lm, "think_end_token", "</think>")
    monkeypatch.setattr(generate_module, "STEPS", 3)
    tokens, reply = [], generate_module._reply
    monkeypatch.setattr(generate_module, "_reply", lambda lm, said, *more: tokens.append(said) or reply(lm, said, *more))
    generate(lm, asked, 24)
    assert any("e" in lm.tok_decode(said[:20]) and len(said) == 40 for said in tokens)


def test_rows_of_a_cache_that_cannot_be_selected_from_stay():
    from transformers import AutoConfig

    def model(family, **sizes):
        config = AutoConfig.for_model(family, num_hidden_layers=2, **sizes)
        return SimpleNamespace(model=SimpleNamespace(config=config, generation_config=GenerationConfig()))

    greedy = {"do_sample": False, "temperature": 0.0}
    assert generate_module._rows_can_leave(model("llama"), greedy) and generate_module._rows_can_leave(model("gemma2"), greedy)
    assert not generate_module._rows_can_leave(model("lfm2", layer_types=["conv", "full_attention"]), greedy)


def test_multiple_choice(world, tmp_path):
    made = read_mixture(adapt(options(world, tmp_path / "m.json", "tiny_choose", shots=10)))
    assert made.data["scores"]["confirmed"]["right"] >= 9 and made.data["configuration"]["metric"] == "acc,none"
    likelihood = made.data["scores"]["confirmed"]["mean_log_likelihood"]
    assert likelihood is not None and likelihood < 0


def test_eval_leaves_the_documents_of_the_search_out_and_a_plain_run_is_marked(world, tmp_path):
    mixtures, out = tmp_path / "mixtures", tmp_path / "out"
    more = ["--strategy", "fewshot", "--tasks", "tiny_alone", "--mixtures", str(mixtures), "--output_path", str(out), "--log_samples"]
    assert main(["eval", *arguments(world), *more]) == 0
    made = read_mixture(mixtures / "tiny_alone.json")
    seen = {d["id"] for d in made.data["documents"]}
    assert {d["split"] for d in made.data["documents"]} == {"evaluated"} and len(seen) == 6
    (results,) = out.rglob("results_*.json")
    assert json.loads(results.read_text())["t2"]["contaminated"] == {}
    samples = [json.loads(line) for path in out.rglob("samples_*.jsonl") for line in path.read_text().splitlines()]
    assert {s["doc_id"] for s in samples} == set(range(24)) - seen
    plain = evaluate(world, f"mixture={made.path}", "tiny_alone", limit=20)
    assert plain["t2"]["contaminated"] == {"tiny_alone": sorted(i for i in seen if i < 20)}


def test_no_document_of_a_search_is_an_example_in_its_own_prompt(world):
    tasks = load_tasks("tiny_train", world.tasks, num_fewshot=13)  # of 14
    documents = draw(tasks, 8, 0)
    (part,) = prepare(tasks, documents)
    assert {document.source for document in documents} == {"train"}
    for instance, document in zip(part.instances, documents, strict=True):
        assert instance.args[0].count("Q: ") == 14 and instance.args[0].count(f"Q: {document.doc['q']}") == 1


def test_the_examples_of_prompts_are_no_documents_of_a_search(world):
    drawn = {shots: draw(load_tasks("tiny_dev", world.tasks, num_fewshot=shots), 4, 0) for shots in (None, 5)}
    assert {shots: {document.source for document in found} for shots, found in drawn.items()} == {None: {"train"}, 5: {"evaluated"}}


def test_a_reply_that_leaves_no_room_for_its_prompt_is_told(world):
    request = Instance("generate_until", {}, ("Q", {"until": [], "max_gen_toks": world.lm.max_length}), 0, ("t", 0, 1))
    with pytest.raises(T2Error, match=r"max_gen_toks=4096 leaves no room for a prompt in the 4096 tokens"):
        generate(world.lm, [request], 1)


def test_a_wrong_task_is_told_before_the_first_is_searched(world, tmp_path, capsys):
    more = ["--strategy", "fewshot", "--tasks", "tiny_alone,tiny_trian", "--mixtures", str(tmp_path / "mixtures")]
    assert main(["eval", *arguments(world), *more]) == 2
    assert "Unknown task 'tiny_trian'. Did you mean 'tiny_train'?" in capsys.readouterr().err
    assert not (tmp_path / "mixtures").exists()


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        (["-f", "2"], {"num_fewshot": 2}),
        (["--gen_kwargs", 'until=["Q:","x"],max_gen_toks=3'], {"gen_kwargs": {"until": ["Q:", "x"], "max_gen_toks": 3}}),
        (["--apply_chat_template", "--fewshot_as_multiturn", "false"], {"apply_chat_template": True, "fewshot_as_multiturn": False}),
        (["--seed", "1,2,3,4"], {"fewshot_seed": 4}),
        (["--model_args", "dtype=float32", "revision=x", "--apply_chat_template"], {"model_args": {"dtype": "float32", "revision": "x"}}),
        (["-a", '{"chat_template_args": {"x": [1, 2]}}'], {"model_args": {"chat_template_args": {"x": [1, 2]}}}),
        (["--gen_kwargs", "max_gen_toks=3", "temperature=0"], {"gen_kwargs": {"max_gen_toks": 3, "temperature": 0}}),
        (["--apply_chat_template", "tool_use"], {"apply_chat_template": True}),
        (["--tasks", "tiny_train", "tiny_choose,tiny_alone"], {"task": ["tiny_train", "tiny_choose", "tiny_alone"]}),
    ],
)
def test_a_search_has_the_settings_of_its_evaluation(world, tmp_path, monkeypatch, mixture_file, more, asked):
    searched, evaluated = [], []
    (tmp_path / "m.json").write_bytes(mixture_file)
    monkeypatch.setattr(command, "adapt", lambda options: searched.append(options) or tmp_path / "m.json")
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: evaluated.append(sys.argv))
    assert main(["eval", *arguments(world), "--strategy", "fewshot", "--tasks", "tiny_train", *more]) == 0
    assert len(searched) == len(evaluated) == len(asked.get("task", "1"))
    own = {name: value for name, value in asked.items() if name not in ("task", "model_args")}
    assert {name: getattr(searched[0], name) for name in own} == own
    assert [options.task for options in searched] == asked.get("task", ["tiny_train"])
    assert searched[0].model_args == {"pretrained": world.base, "experts": world.experts} | asked.get("model_args", {})
    assert all(json.dumps({"mixture": f"{tmp_path}/m.json"}) in words for words in evaluated)
    for words in evaluated:
        with command._command_line(words[2:]):
            read = HarnessCLI().parse_args()
        assert read.model_args == searched[0].model_args | {"mixture": f"{tmp_path}/m.json"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["-E", '{"tiny_train": [0]}'], "--samples does not go with a few-shot search"),
        (["-C", "x.yaml"], "--config does not go with a few-shot search"),
        (["--log_samples"], "lm_eval: Specify --output_path"),
        (["--fewshot_as_multiturn"], "`apply_chat_template` must be set"),
        (["--nonsense", "1"], "unrecognized arguments: --nonsense 1"),
        (["--gen_kwargs", "num_beams=2"], "generates with num_beams=2"),
        (["--cache_requests", "true"], "--cache_requests does not go with a few-shot search"),
        (["--model_args", "{x}"], "lm_eval: Invalid JSON: {x}"),
    ],
)
def test_options_that_the_evaluation_refuses_are_told_before_the_search(world, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.setattr(adapt_module, "_load", lambda model, options: pytest.fail("a model was loaded"))
    words = ["eval", *arguments(world), "--strategy", "fewshot", "--tasks", "tiny_train", "--mixtures", str(tmp_path), *more]
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    assert status == 2 and says in capsys.readouterr().err


def test_the_report_shows_the_mark(world, tmp_path, capsys):
    made = adapt(options(world, tmp_path / "m.json", "tiny_alone", iterations=1))
    found = evaluate(world, f"mixture={made}", "tiny_alone")
    found.pop("samples")
    (tmp_path / "results_1.json").write_text(json.dumps(found, default=str))
    assert main(["report", str(tmp_path / "results_1.json")]) == 0
    shown = capsys.readouterr().out
    assert "tiny_alone: contaminated" in shown
    assert "tiny_alone: " + ", ".join(map(str, found["t2"]["contaminated"]["tiny_alone"])) in shown


def test_a_killed_search_resumes_to_the_same_file(world, tmp_path):
    whole = read_mixture(adapt(options(world, tmp_path / "whole.json", resolution=0.001)))
    command = ["adapt", "--task", "tiny_train", "--resolution", "0.001", "-o", str(tmp_path / "m.json")]
    run = subprocess.run([sys.executable, "-c", KILLED, *command, *arguments(world)], capture_output=True, text=True, timeout=400)
    assert run.returncode == -signal.SIGKILL, run.stderr[-2000:]
    journal = tmp_path / "m.json.search"
    assert not (tmp_path / "m.json").exists()
    kept = json.loads(journal.read_text())
    before = len(kept["outcomes"]["normalised"])
    assert 10 < before < whole.data["searches"]["normalised"]["evaluated"]
    resumed = read_mixture(adapt(options(world, tmp_path / "m.json", resolution=0.001)))
    for field in ("alpha", "scores", "searches", "documents", "configuration"):
        assert resumed.data[field] == whole.data[field], field
    assert resumed.data["cost"]["seconds"] > kept["seconds"]
    assert not journal.exists() and [p.name for p in tmp_path.glob(".*")] == []


def test_a_search_that_could_not_be_written_is_kept_and_other_prompts_begin_anew(world, tmp_path, monkeypatch, caplog):
    def full(path, data):
        raise T2Error(f"{path} cannot be written")

    monkeypatch.setattr(adapt_module, "write_json", full)
    with pytest.raises(T2Error, match="cannot be written"):
        adapt(options(world, tmp_path / "m.json", iterations=2))
    kept = json.loads((tmp_path / "m.json.search").read_text())["outcomes"]["normalised"]
    monkeypatch.undo()
    evaluated, outcomes = [], Judge.outcomes
    monkeypatch.setattr(Judge, "outcomes", lambda self, mixtures, *how: outcomes(self, [evaluated.append(m) or m for m in mixtures], *how))
    with monkeypatch.context() as patch:
        patch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
        made = read_mixture(adapt(options(world, tmp_path / "m.json", iterations=2)))
        assert made.data["searches"]["normalised"]["evaluated"] == len(kept) - 1 and len(evaluated) == 1  # but for the confirmation
        assert not (tmp_path / "m.json.search").exists() and "begun anew" not in caplog.text

        patch.setattr(adapt_module, "write_json", full)
        with pytest.raises(T2Error, match="cannot be written"):
            adapt(options(world, tmp_path / "n.json", iterations=2))
        other = tmp_path / "tasks"
        shutil.copytree(world.tasks, other)
        task = other / "tiny_train.yaml"
        patch.setattr(adapt_module, "load_tasks", lambda name, path, *more: load_tasks(name, str(other), *more))
        task.write_text(task.read_text().replace("Q: ", "Question: "))
        with caplog.at_level("WARNING", logger="t2"), pytest.raises(T2Error, match="cannot be written"):
            adapt(options(world, tmp_path / "n.json", iterations=2))
        assert "n.json.search is of other settings, weights, documents or versions: begun anew" in caplog.text
        assert (tmp_path / "n.json.search.old").is_file()


def test_a_journal_with_half_an_outcome_is_begun_anew(world, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(adapt_module._Adaptation, "_content", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adapt(options(world, tmp_path / "m.json", iterations=1))
    kept = json.loads((tmp_path / "m.json.search").read_text())
    del next(iter(kept["outcomes"]["normalised"].values()))["tokens"]
    (tmp_path / "m.json.search").write_text(json.dumps(kept))
    assert read_mixture(adapt(options(world, tmp_path / "m.json", iterations=1))).data["scores"]
    assert "m.json.search cannot be read ('tokens'): begun anew" in caplog.text


def test_a_search_that_ended_meanwhile_is_not_overwritten(world, tmp_path, monkeypatch, mixture_file):
    content = adapt_module._Adaptation._content

    def late(self, *given):
        (tmp_path / "m.json").write_bytes(mixture_file)
        return content(self, *given)

    monkeypatch.setattr(adapt_module._Adaptation, "_content", late)
    with pytest.raises(T2Error, match=r"m.json is there already, made with another seed. .*delete it"):
        adapt(options(world, tmp_path / "m.json", iterations=1, seed=2))
    assert (tmp_path / "m.json").read_bytes() == mixture_file and (tmp_path / "m.json.search").is_file()
    (tmp_path / "m.json").unlink()
    adapt(options(world, tmp_path / "m.json", iterations=1))  # the same search twice
    assert (tmp_path / "m.json").read_bytes() == mixture_file and not (tmp_path / "m.json.search").exists()


@pytest.mark.parametrize("field", ["scores", "cost", "searches", "evaluated_documents"])
def test_a_finished_file_without_a_field_is_told(world, tmp_path, mixture_file, field):
    found = json.loads(mixture_file)
    (tmp_path / "m.json").write_text(json.dumps({name: value for name, value in found.items() if name != field}))
    with pytest.raises(T2Error, match=f"m.json is there already, without {field}: it was changed. .*delete it"):
        adapt(options(world, tmp_path / "m.json", iterations=1))


def test_experts_that_learned_from_the_split_of_the_documents_are_told(world, tmp_path, caplog):
    tiny.save_expert(tmp_path / "own", 3, Path(world.base), data={"task": "tiny_train", "dataset": "lm-eval's tiny_train"})
    args = {"pretrained": world.base, "experts": f"{world.experts}:{tmp_path / 'own'}"}
    for source, names in (("train", ["own"]), ("evaluated", [])):
        caplog.clear()
        asked = replace(options(world, tmp_path / f"{source}.json", iterations=1, source=source), model_args=args)
        assert read_mixture(adapt(asked)).data["experts_trained_on"] == names
        told = [r.message for r in caplog.records if "learned from" in r.message]
        assert len(told) == len(names) and all("train split that own learned from" in line for line in told)


def test_data_sets_go_by_the_names_that_cards_have():
    def task(name, path, subset, samples=None, **metadata):
        config = SimpleNamespace(task=name, dataset_path=path, dataset_name=subset, metadata=metadata)
        return SimpleNamespace(config=config, fewshot_cfg=SimpleNamespace(samples=samples))

    place = [{"dataset": "math", "split": "train", "subject": "Algebra"}]
    assert train_sets(task("arc_easy", "allenai/ai2_arc", "ARC-Easy")) == {"lm-eval's arc_easy", "arc_easy"}
    assert train_sets(task("math500", "HuggingFaceH4/MATH-500", None, place)) == {"lm-eval's math500", "math500", "math"}
    assert train_sets(task("mbpp_chat", None, None, t2_train="mbpp")) == {"lm-eval's mbpp_chat", "mbpp"}


def test_answers_of_nan_are_wrong_and_sampled_ones_do_not_differ_by_chance(world, monkeypatch):
    tasks = load_tasks("tiny_train", world.tasks, gen_kwargs="do_sample=true,temperature=5.0")
    documents = draw(tasks, 6, 0)
    judge = Judge(world.lm, prepare(tasks, documents), batch_size=3)
    replies, ask = [], world.lm.replies
    monkeypatch.setattr(world.lm, "replies", lambda *args: replies.append(ask(*args)) or replies[-1])
    list(judge.outcomes([Mixture.base(), Mixture.base()]))
    assert replies[0] == replies[1] and len({reply.text for reply in replies[0]}) > 1
    nan = [
        replace(reply, text=document.doc["a"], log_likelihood=float("nan")) for reply, document in zip(replies[0], documents, strict=True)
    ]
    for answers, right in ((nan, 0), ([replace(reply, log_likelihood=-1.0) for reply in nan], 6)):
        monkeypatch.setattr(world.lm, "replies", lambda *_, answers=answers: answers)
        (outcome,) = judge.outcomes([Mixture.base()])
        assert outcome.right == right and json.dumps(outcome.as_dict(), allow_nan=False)


def test_mixtures_in_one_batch_get_the_outcomes_that_they_get_alone(world, tmp_path, monkeypatch):
    tasks = load_tasks("tiny_train", world.tasks)
    documents = draw(tasks, 6, 0)
    mixtures = [Mixture.of({"math": a / 10, "code": 1 - a / 10}) for a in range(1, 10)] + [Mixture.base()]
    alone = list(Judge(world.lm, prepare(tasks, documents), batch_size=24).outcomes(mixtures))
    assert len({outcome.right for outcome in alone}) > 1
    expected = read_mixture(adapt(options(world, tmp_path / "alone.json")))
    batches, ask = [], world.lm.bank.row_by_row
    monkeypatch.setattr(world.lm.bank, "row_by_row", lambda rows: batches.append(len(rows)) or ask(rows))
    monkeypatch.setattr(evaluate_module, "_is_wide", lambda device: True)  # as on a GPU
    judge = Judge(world.lm, prepare(tasks, documents), batch_size=25)
    together = list(judge.outcomes(mixtures[:9])) + list(judge.outcomes(mixtures[9:], merged=True))
    assert judge.at_once == 4 and batches == [24, 24, 6]  # a last one alone is answered as the others are
    assert [o.correct for o in together] == [o.correct for o in alone] and [o.tokens for o in together] == [o.tokens for o in alone]
    assert [o.log_likelihood for o in together] == pytest.approx([o.log_likelihood for o in alone], abs=1e-3)
    found = read_mixture(adapt(options(world, tmp_path / "together.json")))
    assert (
        found.data["alpha"] == expected.data["alpha"] and found.data["scores"]["best"]["right"] == expected.data["scores"]["best"]["right"]
    )
    assert (found.data["cost"]["mixing"], expected.data["cost"]["mixing"]) == ("row by row", "linear")
    sampled = load_tasks("tiny_train", world.tasks, gen_kwargs="do_sample=true,temperature=5.0")
    assert Judge(world.lm, prepare(sampled, documents), batch_size=25).at_once == 1


def test_other_versions_of_a_question_are_contaminated_and_a_groups_tasks_are_known(world, tmp_path, caplog):
    other = tmp_path / "tasks"
    shutil.copytree(world.tasks, other)
    (tmp_path / "plus.jsonl").write_text("".join(json.dumps(doc | {"more": 1}) + "\n" for doc in world.docs))
    text = GENERATE.format(name="tiny_plus", files=f"{{test: {tmp_path}/plus.jsonl}}", splits="")
    (other / "tiny_plus.yaml").write_text(text)
    (other / "tiny_both.yaml").write_text("group: tiny_both\ntask: [tiny_alone, tiny_plus]\n")
    there = SimpleNamespace(**{**vars(world), "tasks": str(other)})
    made = read_mixture(adapt(options(there, tmp_path / "m.json", "tiny_alone", iterations=1)))
    seen = sorted(d["id"] for d in made.data["documents"])
    assert evaluate(there, f"mixture={made.path}", "tiny_plus")["t2"]["contaminated"] == {"tiny_plus": seen}
    text = CHOOSE.format(
        name="tiny_same", files=f"{{train: {world.root}/train.jsonl, test: {world.root}/test.jsonl}}", splits="training_split: train"
    )
    (other / "tiny_same.yaml").write_text(text.replace('"Q: {{q}}\\nA:"', '"{{gold}}"'))  # as winogrande, whose text is the answer's place
    same = read_mixture(adapt(options(there, tmp_path / "s.json", "tiny_same", iterations=1)))
    assert evaluate(there, f"mixture={same.path}", "tiny_same")["t2"]["contaminated"] == {}
    one = read_mixture(adapt(options(there, tmp_path / "g.json", "tiny_both", shots=1, iterations=1)))
    with caplog.at_level("WARNING", logger="t2"):
        caplog.clear()
        evaluate(there, f"mixture={one.path}", "tiny_both", limit=1)
    assert "was found on task" not in caplog.text


def test_the_file_tells_that_memory_did_not_suffice_for_linear_mixing(world, tmp_path, monkeypatch):
    monkeypatch.setattr("t2.adapters.bank.free_memory", lambda device: 1000)
    assert read_mixture(adapt(options(world, tmp_path / "m.json", iterations=1))).data["cost"]["mixing"] == "by products"


def test_a_finished_search_is_not_repeated_and_not_overwritten(world, tmp_path):
    path = adapt(options(world, tmp_path / "m.json", iterations=1))
    before = path.read_bytes()
    assert adapt(options(world, path, iterations=1)).read_bytes() == before
    made = json.loads(before)
    path.write_text(json.dumps(made | {"settings": made["settings"] | {"model": "t2-vllm"}}))
    with pytest.raises(T2Error, match=r"made with another model\. Choose"):
        adapt(options(world, path, iterations=1))
    path.write_bytes(before)
    with pytest.raises(T2Error, match=r"made with another iterations, seed\. Choose another --output \(of `t2 eval`: --mixtures\)"):
        adapt(options(world, path, iterations=2, seed=1))


def test_a_finished_search_over_other_experts_is_not_taken(world, tmp_path):
    experts = tmp_path / "experts"
    shutil.copytree(world.experts, experts)
    there = SimpleNamespace(**{**vars(world), "experts": str(experts)})
    path = adapt(options(there, tmp_path / "m.json", iterations=1))
    before = path.read_bytes()
    assert adapt(options(there, path, iterations=1)).read_bytes() == before
    shutil.copytree(experts / "code", experts / "law")
    with pytest.raises(T2Error, match=r"made when 'law' was another expert, or was not there\. Choose another --output"):
        adapt(options(there, path, iterations=1))
    shutil.rmtree(experts / "law")
    shutil.rmtree(experts / "code")
    tiny.save_expert(experts / "code", 77, Path(world.base))
    with pytest.raises(T2Error, match="made when 'code' was another expert"):
        adapt(options(there, path, iterations=1))


def test_forms_are_chosen_on_documents_held_out_for_it(world, tmp_path):
    forms = ("normalised", "free", "normalised-by-layer", "free-by-layer")
    made = read_mixture(adapt(options(world, tmp_path / "m.json", "tiny_alone", forms=forms, select=4, iterations=3)))
    configuration = made.data["configuration"]
    assert set(configuration["choice"]) == set(made.data["searches"]) == set(forms)
    chosen = max(configuration["choice"].values(), key=lambda c: c["right"])["right"]
    assert configuration["choice"][configuration["form"]]["right"] == chosen and "held out" in configuration["chosen"]
    assert len(made.data["documents"]) == 10  # both are seen, both are left out
    assert all(len(alpha) == 2 for alpha in made.data["searches"]["free-by-layer"]["alpha"].values())
    per_layer = read_mixture(adapt(options(world, tmp_path / "l.json", forms=("normalised-by-layer",), iterations=2)))
    assert per_layer.mixture.layers and "by layer" in str(per_layer.mixture)
    found = evaluate(world, f"mixture={per_layer.path}", "tiny_train")
    assert found["t2"]["passes"]["tiny_train"]["chosen"] == {str(per_layer.mixture): 10}


def test_no_signal_keeps_the_base(world, tmp_path, caplog):
    (world.root / "never.jsonl").write_text("".join(json.dumps({"q": q, "a": "never"}) + "\n" for q in QUESTIONS))
    text = GENERATE.format(name="tiny_never", files=f"{{test: {world.root}/never.jsonl}}", splits="")
    (world.root / "tasks" / "tiny_never.yaml").write_text(text)
    with caplog.at_level("WARNING", logger="t2"):
        made = read_mixture(adapt(options(world, tmp_path / "m.json", "tiny_never")))
    assert made.mixture.is_base and not made.data["signal"] and made.data["alpha"] == {}
    assert "No signal" in caplog.text and "base weights are kept" in caplog.text
    assert evaluate(world, f"mixture={made.path}", "tiny_never", limit=3)["t2"]["strategy"] == "base"


def test_documents_are_drawn_from_the_best_split_and_nested(world):
    tasks = load_tasks("tiny_train", world.tasks)
    ten, three = draw(tasks, 10, 0), draw(tasks, 3, 0)
    assert ten[:3] == three and {d.source for d in ten} == {"train"} and draw(tasks, 3, 1) != three
    assert {d.source for d in draw(tasks, 3, 0, "evaluated")} == {"evaluated"}
    assert {d.source for d in draw(load_tasks("tiny_alone", world.tasks), 3, 0)} == {"evaluated"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--task", "tiny_tran"], "Unknown task 'tiny_tran'. Did you mean 'tiny_train'?"),
        (["--task", "tiny_train", "--shots", "14"], "only 14 in its train split"),
        (["--task", "tiny_train", "--shots", "0"], "--shots must be at least 1; got 0"),
        (["--task", "tiny_train", "--source", "validation"], "offers no such documents"),
        (["--task", "tiny_train", "--form", "normal"], "Unknown form 'normal'"),
        (["--task", "tiny_train", "--form", "free,normalised"], "need --select"),
        (["--task", "tiny_train", "--optimizer", "adam"], "Unknown optimizer 'adam'"),
        (["--task", "tiny_train", "--range", "1", "0"], "the smaller one first"),
        (["--task", "tiny_train", "--search_seed", "-1"], "seed of a search must be from 0"),
        (["--task", "tiny_train", "--resolution", "1e-320"], "must be 1 / n for a whole n"),
        (["--task", "tiny_train", "--metric", "acc"], "has no metric 'acc'"),
        (["--task", "tiny_train", "--metric", "exact_match,strict"], "has no filter 'strict'"),
        (["--task", "tiny_train", "-o", "/proc/no/m.json"], "cannot be written"),
    ],
)
def test_bad_input_ends_with_one_message(world, tmp_path, monkeypatch, capsys, more, says):
    monkeypatch.chdir(tmp_path)
    assert main(["adapt", *arguments(world), *more]) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_is_not_there_and_a_shortened_option_are_told(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("t2.harness.vllm_import.distribution", lambda: None)
    monkeypatch.delitem(sys.modules, "t2.harness.vllm_model", raising=False)
    output = tmp_path / "m.json"
    assert main(["adapt", *arguments(world), "--task", "tiny_train", "--model", "t2-vllm", "-o", str(output)]) == 2
    assert "vLLM is not installed. on a CUDA machine" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["adapt", *arguments(world), "--task", "tiny_train", "--popul", "4", "-o", str(output)])
    assert "unrecognized arguments: --popul 4" in capsys.readouterr().err and not output.exists()


def test_experts_of_another_base_are_refused(world, tmp_path, capsys):
    other = tiny.save(tmp_path / "other", seed=2)
    tiny.save_expert(tmp_path / "law", 9, other)
    args = f"pretrained={world.base},experts={world.experts}:{tmp_path / 'law'}"
    assert main(["adapt", *arguments(world), "--task", "tiny_train", "-o", str(tmp_path / "m.json"), "--model_args", args]) == 2
    assert "Expert 'law' was trained on a base model with fingerprint" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def damaged(text):
    def damage(path):
        path.write_text(text)

    return damage


def changed(**fields):
    def damage(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damaged('{"t2_mix'), "cannot be read as JSON"),
        (damaged("[]"), "is no mixture file"),
        (changed(t2_mixture=99), "format 99"),
        (changed(alpha={"math": float("nan")}), "no usable α"),
        (changed(alpha={"math": [0.1, 0.2], "code": 0.1}), "no usable α"),
        (changed(alpha={"math": None}), "no usable α (The α of 'math' must be a number"),
        (changed(alpha={"math": []}), "no usable α (The α of 'math' must be a number"),
        (changed(alpha={"math": [0.1], "code": [0.1]}), "has α for 1 layers; the expert 'code' adapts 2"),
        (changed(documents=None), "'documents' is missing"),
        (changed(base={"fingerprint": "0" * 16, "name": "other"}), "fingerprint 0000000000000000 (other)"),
        (changed(experts={"math": {"sha256": "0" * 64}, "code": {"sha256": "0" * 64}}), "whose weights have sha256 0000"),
        (changed(experts={"math": "0" * 64}), "expert 'math' must have a sha256, by name"),
        (changed(alpha={"law": 1.0}), "there is no expert 'law'"),
        (Path.unlink, "there is no such file"),
    ],
)
def test_a_mixture_file_that_does_not_fit_is_refused(world, tmp_path, mixture_file, damage, says):
    path = tmp_path / "m.json"
    path.write_bytes(mixture_file)
    damage(path)
    with pytest.raises(T2Error) as caught:
        T2LM(world.base, mixture=str(path), experts=world.experts)
    assert says in str(caught.value)


@pytest.fixture(scope="module")
def mixture_file(world, tmp_path_factory):
    return adapt(options(world, tmp_path_factory.mktemp("m") / "m.json", iterations=1)).read_bytes()


def test_a_mixture_of_an_expert_whose_form_has_changed_is_refused(world, tmp_path, mixture_file):
    path, experts = tmp_path / "m.json", tmp_path / "experts"
    for name in ("math", "code"):
        shutil.copytree(f"{world.experts}/{name}", experts / name)
        (experts / name / "card.json").unlink()
    config = experts / "math" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"svf_form": "renormalised"}))
    path.write_bytes(mixture_file)
    changed(alpha={"math": 1.0})(path)
    with pytest.raises(T2Error, match="an expert 'math' of the form scale; the one here has the form renormalised"):
        T2LM(world.base, mixture=str(path), experts=str(experts))
    data = json.loads(path.read_text())
    for expert in data["experts"].values():
        del expert["svf_form"]  # as in files from before it was told
    path.write_text(json.dumps(data))
    assert str(T2LM(world.base, mixture=str(path), experts=str(experts)).strategy) == "expert:math"
    path = tmp_path / "same.json"
    path.write_text(json.dumps(json.loads(mixture_file) | {"experts": data["experts"]}))
    assert adapt(options(world, path, iterations=1)) == path


def test_a_mixture_and_a_strategy_exclude_each_other(world, tmp_path, mixture_file):
    (tmp_path / "m.json").write_bytes(mixture_file)
    with pytest.raises(T2Error, match="leave one out"):
        T2LM(world.base, mixture=str(tmp_path / "m.json"), strategy="base")
    with pytest.raises(T2Error, match="needs mixture=FILE"):
        T2LM(world.base, strategy="fewshot")
    assert str(T2LM(mixture=str(tmp_path / "m.json"), strategy="fewshot").strategy).startswith("mix:")  # base and experts from the file


def test_another_task_is_answered_with_a_warning(world, tmp_path, mixture_file, caplog):
    (tmp_path / "m.json").write_bytes(mixture_file)
    with caplog.at_level("WARNING", logger="t2"):
        found = evaluate(world, f"mixture={tmp_path / 'm.json'}", "tiny_choose", limit=2)
    assert "found on task tiny_train; here it answers tiny_choose" in caplog.text
    assert found["t2"]["mixture"]["task"] == "tiny_train"
