"""`--model t2` through lm-eval itself: a tiny model in every combination, the real default model where it is in the cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from transformers.utils.quantization_config import QuantizationMethod

from t2.harness.cache_key import facts_key, files_stamp
from t2.harness.errors import T2Error
from t2.harness.fetch import cache_dir
from t2.harness.fetch.model import model_folder, problem
from t2.harness.model import T2LM

from .. import tiny
from .test_train import TWO_PROCESSES

CACHE = cache_dir()  # the user's, read before `world` puts up its own
WORDS = [
    "What is seven plus nine?",
    "Name a colour of the sky.",
    "Write a loop.",
    "Is water wet?",
    "Count to three.",
    "How many legs has a dog?",
]
GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{q}}}}\\nAnswer:"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - {{name: one, filter: [{{function: take_first}}]}}
  - {{name: two, filter: [{{function: take_first}}]}}
"""
CHOOSE = """
task: tiny_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: 0
doc_to_choice: ["yes", "no", "perhaps"]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, its experts, two tasks over six questions; the caches are this module's own."""
    root = tmp_path_factory.mktemp("world")
    before = dict(os.environ)
    os.environ |= {"T2_CACHE": str(root / "cache"), "HF_DATASETS_CACHE": str(root / "datasets")}
    base = tiny.save(root / "tiny-model")
    tiny.save_experts(root / "experts", base)
    data = root / "docs.jsonl"
    data.write_text("".join(json.dumps({"q": q, "a": "16"}) + "\n" for q in WORDS))
    (root / "tasks").mkdir()
    for name, text in (("generate", GENERATE), ("choose", CHOOSE)):
        (root / "tasks" / f"{name}.yaml").write_text(text.format(data=data))
    tasks = str(root / "tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of `pip list` and the like in every run
        yield SimpleNamespace(
            root=root,
            base=str(base),
            experts=str(root / "experts"),
            tasks=tasks,
            manager=TaskManager(include_path=tasks, include_defaults=False),
        )
    os.environ.clear()
    os.environ |= before


def questions(texts=tuple(WORDS), kind="generate_until", tokens=8, until="\n"):
    if kind == "generate_until":
        return [
            Instance(kind, {}, (t, {"until": [until], "max_gen_toks": tokens, "do_sample": False}), 0, ("t", i, 1))
            for i, t in enumerate(texts)
        ]
    return [Instance(kind, {}, (t, c), 0, ("t", i, 1)) for i, t in enumerate(texts) for c in (" yes", " no way")]


def load(world, strategy="prompt", **args):
    return T2LM(world.base, strategy=strategy, experts=world.experts, batch_size=args.pop("batch_size", 4), **args)


def evaluate(world, **options):
    args = {"pretrained": world.base, "experts": world.experts} | options.pop("args", {})
    return lm_eval.simple_evaluate(
        model=options.pop("model", "t2"),
        model_args=args,
        tasks=options.pop("tasks", ["tiny_generate", "tiny_choose"]),
        task_manager=world.manager,
        batch_size=4,
        bootstrap_iters=0,
        **options,
    )


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_base_equals_hf(world, kind):
    requests = questions(kind=kind)
    expected = getattr(HFLM(world.base, device="cpu", batch_size=4), kind)(requests)
    assert len(set(map(str, expected))) > 2
    assert getattr(load(world, "base"), kind)(requests) == expected


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_each_prompt_is_answered_by_the_expert_that_was_chosen(world, kind):
    requests = questions(kind=kind)
    lm = load(world, batch_size=1)
    answers = getattr(lm, kind)(requests)
    chosen = {lm.decisions[r.args[0]].category for r in requests}
    assert len(chosen) >= 2, chosen  # else this test proves little
    alone = {c: getattr(load(world, "base" if c == "others" else f"expert:{c}", batch_size=1), kind)(requests) for c in chosen}
    assert len({str(a) for a in alone.values()}) == len(chosen)  # the experts do answer differently
    assert answers == [alone[lm.decisions[r.args[0]].category][i] for i, r in enumerate(requests)]
    assert getattr(lm, kind)(requests) == answers
    assert lm.bank.current.is_base


def test_a_mixture_equals_its_weights_merged_by_peft(world):
    requests = questions()
    merged = HFLM(world.base, peft=f"{world.experts}/math", device="cpu", batch_size=4).generate_until(requests)
    assert load(world, "expert:math").generate_until(requests) == merged
    assert load(world, "mix:math=1").generate_until(requests) == merged != load(world, "mix:math=0.5+code=0.5").generate_until(requests)


def test_results_and_samples_tell_the_mixture(world, monkeypatch):
    monkeypatch.setattr("t2.harness.sandbox.core._used", ["process"])  # by an earlier run in this process
    found = evaluate(world, log_samples=True)
    facts = found["t2"]
    assert {k: facts[k] for k in ("schema", "strategy", "dispatch", "calibrate")} == {
        "schema": 1,
        "strategy": "prompt",
        "dispatch": "score",
        "calibrate": True,
    }
    assert facts["sandbox"] is None  # this run judged no code
    assert sorted(facts["experts"]) == ["code", "math", "reasoning"] and all(len(sha) == 64 for sha in facts["experts"].values())
    assert len(facts["base"]) == 16 and found["config"]["strategy"] == "prompt"
    assert sorted(facts["passes"]) == ["tiny_choose", "tiny_generate"]
    for task, requests in (("tiny_generate", 6), ("tiny_choose", 18)):
        cost, samples = facts["passes"][task], found["samples"][task]
        assert cost["pass1"]["prompts"] == 6 and cost["pass2"]["prompts"] == requests and cost["pass1"]["seconds"] > 0
        told = {s["doc_id"]: s["t2"]["mixture"] for s in samples}
        counts = {m: list(told.values()).count(m) for m in set(told.values())}
        assert cost["chosen"] == counts and sum(counts.values()) == 6
        assert all(s["t2"]["category"] in ("code", "math", "reasoning", "others") and len(s["t2"]["scores"]) == 4 for s in samples)
    assert len(found["samples"]["tiny_generate"]) == 12  # once per filter
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 2},
        {"samples": {"tiny_generate": [1, 4], "tiny_choose": [0, 5]}},
        {"apply_chat_template": True, "limit": 2},
        {"apply_chat_template": True, "num_fewshot": 2, "fewshot_as_multiturn": True, "limit": 2, "system_instruction": "Think."},
        {"num_fewshot": 2, "limit": 2},
        {"log_samples": False, "limit": 2},
        {"args": {"dispatch": "generate"}, "limit": 2},
        {"args": {"strategy": "mix:math=0.5+code=0.5"}, "limit": 2},
        {"args": {"mix": "soft", "abstain": 0.1}, "limit": 2},
        {"args": {"dispatch": "task", "votes": 2}, "limit": 2},
    ],
    ids=["limit", "samples", "chat", "multiturn", "fewshot", "no-samples", "generate", "mix", "soft", "task"],
)
def test_lm_evals_options_work(world, options):
    found = evaluate(world, **options)
    fixed = "strategy" in options.get("args", {})
    for task, requests in (("tiny_generate", 2), ("tiny_choose", 6)):
        cost = found["t2"]["passes"][task]
        assert cost["pass2"]["prompts"] == requests and cost["pass1"]["prompts"] == (0 if fixed else 2)
        assert found["n-samples"][task]["effective"] == 2
        if options.get("log_samples", True):
            assert all(s["t2"]["mixture"] for s in found["samples"][task])
        else:
            assert "samples" not in found
    if "chat" in str(options):  # the whole template never reaches pass 1
        assert cost["pass1"]["tokens_in"] < 300


def test_automatic_batch_size(world, monkeypatch):
    expected = load(world, max_length=1200, batch_size=2).generate_until(questions())
    for size in ("auto", "auto:4"):
        lm = load(world, batch_size=size, max_length=1200, max_batch_size=2)
        assert lm.generate_until(questions()) == expected
        assert len(lm.loglikelihood(questions(kind="loglikelihood"))) == 12
        assert len(lm.loglikelihood(questions(WORDS[:1], "loglikelihood"))) == 2  # fewer than the searches asked for
    monkeypatch.setattr(lm, "_world_size", 2)
    monkeypatch.setattr(lm, "_detect_batch_size", lambda requests, pos: searched.append(pos) or 1)
    lm.batch_sizes, searched = {}, []
    assert [lm._batch_scheduler(pos, WORDS) for pos in range(6)] == [1] * 6
    assert searched == [0] and lm.batch_schedule == 4


def test_all_windows_of_a_long_text_are_counted(world):
    lm = load(world, "base", max_length=64)
    assert len(lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("abcdefgh" * 20,), 0, ("t", 0, 1))])) == 1
    assert lm.costs.task("t")["pass2"]["tokens_in"] == 160
    lm.loglikelihood([Instance("loglikelihood", {}, ("abcdefgh" * 20, " x"), 0, ("u", 0, 1))])
    assert lm.costs.task("u")["pass2"]["tokens_in"] == 64


def test_of_a_context_that_is_cut_what_is_left_is_counted(world):
    lm, read = load(world, "base", max_length=64), []
    lm.model.register_forward_pre_hook(lambda m, a, k: read.append(k["input_ids"].shape[1]), with_kwargs=True)
    for task, options in (("t", {"max_gen_toks": 10}), ("u", {"max_new_tokens": 20})):
        read.clear()
        lm.generate_until([Instance("generate_until", {}, ("abcdefgh" * 20, {"until": ["\n"], **options}), 0, (task, 0, 1))])
        assert lm.costs.task(task)["pass2"]["tokens_in"] == read[0] == 64 - sum(options.values())


def test_a_second_evaluation_starts_from_zero(world):
    lm = load(world)
    runs = [evaluate(world, model=lm, limit=2) for _ in range(2)]
    for task in runs[0]["t2"]["passes"]:
        one, two = (r["t2"]["passes"][task] for r in runs)
        assert one["chosen"] == two["chosen"] and one["pass1"]["prompts"] == two["pass1"]["prompts"] == 2


def test_other_models_results_are_left_alone(world):
    load(world, "base")
    hf = HFLM(world.base, device="cpu", batch_size=4)
    found = evaluate(world, model=hf, limit=1)
    assert "t2" not in found and all("t2" not in s for s in found["samples"]["tiny_generate"])


def test_one_cache_file_serves_every_strategy_without_mixing(world, tmp_path):
    cache = str(tmp_path / "answers")

    def answers(**args):
        found = evaluate(world, args=args, use_cache=cache, tasks=["tiny_generate"])
        return [s["resps"] for s in found["samples"]["tiny_generate"]], found

    base, math = answers(strategy="base")[0], answers(strategy="expert:math")[0]
    prompt, first = answers()
    assert base != math and prompt not in (base, math)
    again, second = answers()
    assert again == prompt and answers(strategy="base")[0] == base and answers(strategy="expert:math")[0] == math
    assert [s["t2"] for s in second["samples"]["tiny_generate"]] == [s["t2"] for s in first["samples"]["tiny_generate"]]
    assert second["t2"]["passes"] == {}  # nothing ran
    other = tiny.save(tmp_path / "other", seed=2)
    assert answers(pretrained=str(other), strategy="base", experts=None)[0] != base


def test_cached_answers_are_kept_apart_by_the_files_beside_the_weights(tmp_path):
    base = tiny.save(tmp_path / "model")

    def key(file=None, change=None):
        if file:
            told = json.loads((base / file).read_text())
            (base / file).write_text(json.dumps(told | change))
        return facts_key(load(SimpleNamespace(base=str(base), experts=None), "base").cache_facts())

    found = [key(), key()]
    assert found[0] == found[1]
    found += [
        key("generation_config.json", {"repetition_penalty": 1.3}),
        key("generation_config.json", {"eos_token_id": 10}),
        key("config.json", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    ]
    (base / "chat_template.jinja").write_text(tiny.CHATML.replace("Be brief", "Be long"))
    assert len({*found, key()}) == 5


def test_cached_answers_are_kept_apart_by_every_number_of_the_weights(world, tmp_path):
    base = tiny.save(tmp_path / "model")

    def told(**args):
        lm = T2LM(str(base), strategy="base", batch_size=4, **args)
        return lm.fingerprint, facts_key(lm.cache_facts())

    adapters = [tiny.save_expert(tmp_path / name, seed, base, strength=0.0004) for seed, name in enumerate("ab")]  # all but the base
    one, two = (told(peft=str(path)) for path in adapters)
    assert one[1] != two[1]
    before = told()
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][7, 1] += 1  # between the numbers that the fingerprint samples
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    after = told()
    assert after[0] == before[0] and after[1] != before[1]


def test_of_files_that_are_not_read_names_sizes_and_times_count(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"one")
    ((name, size, before),) = files_stamp(str(tmp_path))
    os.utime(tmp_path / "model.safetensors", ns=(before, before + 1))
    assert (name, size) == ("model.safetensors", 3) and files_stamp(str(tmp_path)) == [(name, size, before + 1)]
    assert files_stamp("some/model") == files_stamp(None) == []


def test_cached_answers_are_kept_apart_by_the_form_of_an_expert(world, tmp_path):
    shutil.copytree(f"{world.experts}/math", tmp_path / "math")
    (tmp_path / "math" / "card.json").unlink()
    config = tmp_path / "math" / "adapter_config.json"

    def key():
        return facts_key(T2LM(world.base, strategy="expert:math", experts=str(tmp_path / "math"), batch_size=4).cache_facts())

    before = key()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"svf_form": "renormalised"}))
    assert key() != before


def test_unknown_arguments_strategies_and_experts(world):
    for args, says in [
        ({"stratgy": "base"}, "Unknown model argument of t2: 'stratgy' (did you mean 'strategy'?)"),
        ({"strategy": "promt"}, "Did you mean 'prompt'"),
        ({"dispatch": "scores"}, "Did you mean 'score'"),
        ({"strategy": "cls"}, "Train one with `t2 train dispatch`"),
        ({"strategy": "cls", "dispatch": "probe"}, "strategy=cls asks a classifier expert, by dispatch=score or generate; got probe"),
        ({"strategy": "cls", "classifier": f"{world.experts}"}, "holds 3 experts"),
        ({"classifier": world.experts}, "goes with strategy=cls"),
        ({"probe": world.experts}, "goes with dispatch=probe"),
        ({"dispatch": "probe"}, "The probe "),
        ({"dispatch": "probe", "probe": world.experts}, "is not the folder of a probe"),
        ({"strategy": "expert:mth"}, "Did you mean 'math'"),
        ({"strategy": "mix:math=0.5+cod=0.5"}, "Did you mean 'code'"),
        ({"calibrate": "perhaps"}, "must be true or false"),
        ({"experts": world.tasks}, "No expert in"),
        ({"strategy": "expert:math", "peft": "x"}, "peft cannot be combined"),
        ({"max_length": 500}, "leaves no room"),
    ]:
        with pytest.raises(T2Error) as caught:
            evaluate(world, args=args)
        assert says in str(caught.value)


def test_experts_of_another_base_are_refused(world, tmp_path):
    other = tiny.save(tmp_path / "other", seed=2)
    with pytest.raises(T2Error, match="fingerprint"):
        T2LM(str(other), experts=world.experts)


def test_quantised_weights_are_for_the_base_alone(world, monkeypatch):
    create = HFLM._create_model

    def quantised(lm, *args, **kwargs):
        create(lm, *args, **kwargs)
        lm.model.quantization_method = QuantizationMethod.BITS_AND_BYTES  # as transformers marks what it has quantised

    monkeypatch.setattr(HFLM, "_create_model", quantised)
    for args in ({}, {"experts": world.experts}, {"strategy": "expert:math", "experts": world.experts}):
        with pytest.raises(T2Error, match=r"has bitsandbytes weights, whose singular values cannot be scaled: .* or strategy=base"):
            T2LM(world.base, batch_size=4, **args)
    assert T2LM(world.base, strategy="base", batch_size=4).generate_until(questions())


def test_a_model_without_experts_acts_as_the_base_and_says_so(world, caplog):
    with caplog.at_level("WARNING", logger="t2"):
        lm = T2LM(world.base, batch_size=4)
        answers = lm.generate_until(questions())
    assert answers == load(world, "base").generate_until(questions())
    assert [r.getMessage() for r in caplog.records].count(caplog.messages[0]) == 1 and "No expert fits" in caplog.messages[0]
    assert str(lm.strategy) == "base"


def test_more_experts_are_more_categories(world, tmp_path):
    tiny.save_expert(tmp_path / "law", 9, Path(world.base), description="Questions about contracts.")
    lm = T2LM(world.base, experts={"law": tmp_path / "law", "math": f"{world.experts}/math"}, batch_size=4)
    lm.generate_until(questions())
    assert set(next(iter(lm.decisions.values())).scores) == {"math", "law", "others"}


@pytest.fixture(scope="module")
def classifier(world):
    return tiny.save_expert(world.root / "dispatch", 11, Path(world.base), data={"task": "dispatch"})


def test_a_classifier_chooses_and_the_experts_answer(world, classifier):
    from t2.adapters.dispatch import Dispatcher

    lm = load(world, "cls", classifier=str(classifier), batch_size=1)
    answers = lm.generate_until(questions())
    assert lm.bank.current.is_base and "dispatch" in lm.run_facts()["experts"] and lm.run_facts()["calibrate"] is False
    # by hand: the classifier merged into a model of its own, asked in the user's turn
    merged = HFLM(world.base, peft=str(classifier), device="cpu")
    experts = dict.fromkeys(("code", "math", "reasoning"))
    asked = Dispatcher(merged.model, merged.tokenizer, experts, "score", False, lm.max_length, classifier=True).decide(WORDS)
    found = [lm.decisions[text] for text in WORDS]
    assert [d.category for d in found] == [d.category for d in asked]
    for one, two in zip(found, asked, strict=True):
        assert list(one.scores) == ["code", "math", "reasoning", "others"] and one.scores == pytest.approx(two.scores, abs=1e-4)
    base = load(world, "prompt", calibrate=False, batch_size=1).dispatch(WORDS)
    differ = [abs(a.scores[name] - b.scores[name]) for a, b in zip(found, base, strict=True) for name in a.scores]
    assert max(differ) > 0.01  # the classifier does matter
    for i, decision in enumerate(found):
        alone = load(world, "base" if decision.category == "others" else f"expert:{decision.category}", batch_size=1)
        assert alone.generate_until([questions()[i]]) == [answers[i]]


def test_a_classifier_among_the_experts_is_no_category(world, classifier, tmp_path):
    folders = {**{name: f"{world.experts}/{name}" for name in ("math", "code")}, "dispatch": str(classifier)}
    lm = T2LM(world.base, experts=folders, batch_size=4)
    lm.generate_until(questions(WORDS[:2]))
    assert set(lm.decisions[WORDS[0]].scores) == {"math", "code", "others"} and sorted(lm.run_facts()["experts"]) == ["code", "math"]
    found = T2LM(world.base, strategy="cls", experts=folders, batch_size=4)
    assert found.strategy.first.experts == ["dispatch"] and str(found.strategy) == "cls"
    with pytest.raises(T2Error, match="its card says that it was trained on gsm8k"):
        other = tiny.save_expert(tmp_path / "other", 3, Path(world.base), data={"task": "gsm8k"})
        load(world, "cls", classifier=str(other))
    with pytest.raises(T2Error, match=r"does not fit: .*fingerprint.* `t2 train dispatch`"):
        stranger = tiny.save(tmp_path / "stranger", seed=2)
        load(world, "cls", classifier=str(tiny.save_expert(tmp_path / "z", 3, stranger, data={"task": "dispatch"})))


def test_a_soft_mixture_answers_like_the_mixture_of_its_name(world):
    lm = load(world, mix="soft", mix_step=0.5, batch_size=1)
    answers = lm.generate_until(questions())
    for i, text in enumerate(WORDS):
        name = str(lm.decisions[text].mixture)
        strategy = f"mix:{name}" if "=" in name else "base" if name == "base" else f"expert:{name}"
        assert load(world, strategy, batch_size=1).generate_until([questions()[i]]) == [answers[i]], name
    assert any("=" in str(d.mixture) for d in lm.decisions.values())
    assert load(world, abstain=1).generate_until(questions()) == load(world, "base").generate_until(questions())
    assert lm.run_facts()["dispatch"] == "score mix=soft mix_step=0.5"


def test_a_form_of_ones_own_and_the_confusion_matrix_in_the_results(world, tmp_path):
    task = (
        GENERATE.format(data=world.root / "docs.jsonl").replace("tiny_generate", "tiny_math") + "metadata: {version: 1, t2_domain: math}\n"
    )
    (tmp_path / "math.yaml").write_text(task)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    own = str(Path(__file__).parents[1] / "examples" / "keywords.py")
    found = lm_eval.simple_evaluate(
        model="t2",
        model_args={"pretrained": world.base, "experts": world.experts, "dispatch": own},
        tasks=["tiny_math"],
        task_manager=manager,
        batch_size=4,
        bootstrap_iters=0,
    )
    facts = found["t2"]
    assert facts["dispatch"].startswith("keywords@") and facts["confusion"] == {"math": {"math": 1, "others": 5}}
    assert facts["passes"]["tiny_math"]["categories"] == {"math": 1, "others": 5} and facts["passes"]["tiny_math"]["unreadable"] == 0
    assert facts["passes"]["tiny_math"]["chosen"] == {"base": 5, "math": 1}


def test_what_a_form_of_ones_own_says_is_checked(world, tmp_path):
    form = "from t2.adapters.dispatch_forms import Decision, register\n@register('own')\nclass Own:\n"
    form += "    def __init__(self, setup): pass\n    def decide(self, contexts, batch_size=None, progress=False): return {}\n"
    for says, answer in (
        ("named 'law', which no expert is", "[Decision('law', 0) for c in contexts]"),
        ("named 'law', which no expert is", "[Decision('math', 0, alphas={'law': 1.0}) for c in contexts]"),
        ("decided 0 of 6 prompts", "[]"),
        (r"dispatch=.*own.py has to return a list with a Decision for each prompt; it returned None", "None"),
        (r"dispatch=.*own.py gave what is no decision: .*finite", "[Decision('math', 0, alphas={'math': float('nan')}) for c in contexts]"),
        (r"dispatch=.*own.py gave what is no decision: ", "[Decision('math', 0, scores={'math': 'much'}) for c in contexts]"),
    ):
        (tmp_path / "own.py").write_text(form.format(answer))
        with pytest.raises(T2Error, match=says):
            load(world, dispatch=str(tmp_path / "own.py")).generate_until(questions())


def test_numpys_numbers_of_a_form_of_ones_own_go_into_the_answer_cache(world, tmp_path):
    form = "import numpy as np\nfrom t2.adapters.dispatch_forms import Decision, register\n@register('own')\nclass Own:\n"
    form += "    def __init__(self, setup): pass\n    def decide(self, contexts, batch_size=None, progress=False):\n"
    form += "        scores = {'math': np.float32(0.75), 'code': np.float32(0.25)}\n"
    form += "        return [Decision('math', np.int64(3), scores=scores) for c in contexts]\n"
    (tmp_path / "own.py").write_text(form)
    args, cache = {"dispatch": str(tmp_path / "own.py")}, str(tmp_path / "answers")
    runs = [evaluate(world, args=args, use_cache=cache, tasks=["tiny_generate"], limit=2)["samples"]["tiny_generate"] for _ in range(2)]
    assert [s["t2"] for s in runs[0]] == [s["t2"] for s in runs[1]] and runs[1][0]["t2"]["scores"] == {"math": 0.75, "code": 0.25}


def test_cached_answers_of_a_form_of_ones_own_are_kept_apart_by_calibrate(world):
    own = str(Path(__file__).parents[1] / "examples" / "keywords.py")
    calibrated, raw = (load(world, dispatch=own, calibrate=value).cache_facts() for value in (True, False))
    assert facts_key(calibrated) != facts_key(raw)


def test_a_run_of_the_default_model_is_named_after_it(world, tmp_path):
    from lm_eval.loggers import EvaluationTracker

    load(world, "base")
    names = []
    fields = {"t2_mixture": 1, "task": "t", "alpha": {}, "experts": {}, "documents": [], "configuration": {}}
    for name, pretrained in (("other", "c/d"), ("pretrained", None)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**fields, "base": {"name": "x", "pretrained": pretrained}}))
    given = ({}, "", {"strategy": "base"}, f"mixture={tmp_path}/pretrained.json", {"pretrained": "a/b"}, f"mixture={tmp_path}/other.json")
    for source, args in (*(("t2", args) for args in given), ("hf", {})):
        tracker = EvaluationTracker().general_config_tracker
        tracker.log_experiment_args(
            model_source=source, model_args=args, system_instruction=None, chat_template=None, fewshot_as_multiturn=False
        )
        names.append(tracker.model_name)
    assert names[:6] == [model_folder().name] * 4 + ["a/b", "c/d"] and names[6] != model_folder().name


def run_cli(world, *args, out, launch=(), **environment):
    command = ["-m", "lm_eval", "--model", "t2", "--tasks", "tiny_generate,tiny_choose", "--include_path", world.tasks]
    command = [sys.executable, *launch, *command, "--output_path", str(out), "--log_samples", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, **environment})


@pytest.mark.timeout(600)
def test_two_processes_answer_as_one(world, tmp_path):
    found = {}
    for n, launch in ((1, ()), (2, TWO_PROCESSES)):
        args = ("--model_args", f"pretrained={world.base},experts={world.experts}", "--device", "cpu", "--batch_size", "1")
        done = run_cli(world, *args, out=tmp_path / str(n), launch=launch, ACCELERATE_USE_CPU="1", OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr[-3000:]
        (results,) = (tmp_path / str(n)).rglob("results_*.json")
        read = json.loads(results.read_text())
        lines = [json.loads(line) for path in (tmp_path / str(n)).rglob("samples_*.jsonl") for line in path.read_text().splitlines()]
        samples = sorted((str(s["doc"]), str(s["filter"]), len(s["resps"]), str(s["resps"]), str(s["t2"]["mixture"])) for s in lines)
        chosen = {task: cost["chosen"] for task, cost in read["t2"]["passes"].items()}
        asked = {task: cost["pass2"]["prompts"] for task, cost in read["t2"]["passes"].items()}
        found[n] = (samples, chosen, asked, {task: scores["sample_len"] for task, scores in read["results"].items()})
    assert found[1] == found[2]


def test_the_command_line_writes_it_all(world, tmp_path):
    mix = "mix:math=0.5+code=0.5"
    done = run_cli(world, "--limit", "3", "--model_args", f"pretrained={world.base},experts={world.experts},strategy={mix}", out=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = tmp_path.rglob("results_*.json")
    facts = json.loads(results.read_text())["t2"]
    assert facts["strategy"] == "mix:code=0.5+math=0.5" and facts["passes"]["tiny_choose"]["chosen"] == {"code=0.5+math=0.5": 3}
    assert facts["passes"]["tiny_generate"]["pass2"]["prompts"] == 3
    lines = [json.loads(line) for path in tmp_path.rglob("samples_*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == 9 and all(line["t2"] == {"mixture": "code=0.5+math=0.5"} for line in lines)


def test_the_command_line_ends_a_users_error_without_a_traceback(world, tmp_path):
    done = run_cli(world, "--model_args", f"pretrained={world.base},experts={world.experts},stratgy=base", out=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("t2: Unknown model argument of t2: 'stratgy' (did you mean 'strategy'?)")
    assert list(tmp_path.rglob("*.json")) == []


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("T2_CACHE", str(CACHE))
    if problem(model_folder()):
        pytest.skip("the default model is not in the cache: run t2 fetch")
    return str(model_folder())


@pytest.mark.parametrize(
    ("slowdown", "given", "dtype"),
    [
        (1.1, {}, torch.bfloat16),
        (6.9, {}, torch.float32),
        (6.9, {"dtype": "auto"}, torch.bfloat16),
        (6.9, {"pretrained": "default"}, torch.bfloat16),
    ],
)
def test_base_equals_hf_on_the_default_model(real, monkeypatch, slowdown, given, dtype):
    monkeypatch.setattr("t2.harness.half_precision.slowdown", lambda _: slowdown)
    given = {name: real if value == "default" else value for name, value in given.items()}
    asked = questions([f"Question: {q}\nAnswer:" for q in WORDS], tokens=12, until="Question:")
    expected = HFLM(real, device="cpu", batch_size=3, dtype=dtype).generate_until(asked)
    lm = T2LM(strategy="base", batch_size=3, device="cpu", **given)
    assert lm.model.dtype == dtype
    assert lm.generate_until(asked) == expected and sum(map(bool, expected)) >= 4 and lm.pretrained == real
    assert lm.costs.task("t")["pass2"]["tokens_out"] > 6


def test_the_shipped_probe_chooses_on_the_default_model(real):
    asked = {
        "Question: A farmer has 12 hens and buys 30 more. How many hens has he?\nAnswer:": "math",
        'def area(radius: float) -> float:\n    """ Return the area of a circle.\n    >>> area(0)\n    0.0\n    """\n': "code",
        "Question: Which gas do plants take from the air?\nA. oxygen\nB. carbon dioxide\nC. helium\nD. neon\nAnswer:": "reasoning",
    }
    lm = T2LM(dispatch="probe", device="cpu", batch_size=4)
    ran = []
    lm.model.lm_head.register_forward_pre_hook(lambda m, a: ran.append(m))
    found = lm.dispatch(list(asked))
    assert [d.category for d in found] == list(asked.values()) and ran == []
    assert len(lm.run_facts()["probe"]) == 64 and lm.run_facts()["dispatch"] == "probe" and lm.run_facts()["calibrate"] is None


def test_shared_beginning_equals_a_full_forward_pass_on_the_default_model(real):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from t2.adapters.dispatch import Dispatcher

    model, tokenizer = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(real)
    texts = ["Question: What is 12 times 7?\nAnswer:", "Write a Python function that adds two numbers.", "Why is the sky blue?"]
    found = [
        torch.tensor(
            [list(d.scores.values()) for d in Dispatcher(model, tokenizer, dict.fromkeys(("code", "math")), share=share).decide(texts)]
        )
        for share in (True, False)
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    assert found[0].std(0).max() > 0.01
