"""`--model t2-vllm` against `--model t2`, on tiny models of every family: `make test-vllm`, in vLLM's own environment."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from t2.adapters.experts import load_expert
from t2.adapters.mixture import Mixture
from t2.adapters.probe import Probe, layers_fingerprint, save_probe
from t2.adapters.svf import model_fingerprint
from t2.harness import vllm_import
from t2.harness.errors import T2Error
from t2.harness.fewshot.adapt import adapt
from t2.harness.fewshot.options import AdaptOptions
from t2.harness.model import T2LM

from .. import tiny
from .test_fewshot import QUESTIONS
from .test_model import CHOOSE, GENERATE, WORDS, questions

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LONG = " ".join(WORDS) * 12  # several blocks of vLLM's prefix cache
ENGINE = {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 16, "max_num_batched_tokens": 2048}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 258,
    "max_position_embeddings": 4096,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "initializer_range": 0.3,
}


def save(folder: Path, family: str = "llama", **more) -> Path:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **more})).float().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def save_helpers(root: Path, base: Path, experts: dict[str, Path]) -> None:
    """A classifier, a probe, and a mixture file for the model in `base`."""
    tiny.save_expert(root / "dispatch", 11, base, data={"task": "dispatch"})
    model = AutoModelForCausalLM.from_pretrained(base)
    weight = torch.randn(3, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0))
    save_probe(Probe(("code", "math", "reasoning"), 1, weight, torch.zeros(3), layers_fingerprint(model, 1)), root / "probe", {})
    mixture = {
        "t2_mixture": 1,
        "task": "tiny_generate",
        "alpha": {"math": 0.7, "code": 0.4},
        "base": {"name": "tiny", "fingerprint": model_fingerprint(model)},
        "experts": {name: {"sha256": load_expert(path).sha256} for name, path in experts.items()},
        "documents": [],
        "configuration": {},
    }
    (root / "mixture.json").write_text(json.dumps(mixture))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("vllm")
    before = dict(os.environ)
    os.environ |= {"T2_CACHE": str(root / "cache"), "HF_DATASETS_CACHE": str(root / "datasets"), "HF_HUB_OFFLINE": "1"}
    base = save(root / "tiny-model")
    save_helpers(root, base, tiny.save_experts(root / "experts", base))
    data = root / "docs.jsonl"
    data.write_text("".join(json.dumps({"q": q, "a": "16"}) + "\n" for q in WORDS))
    (root / "tasks").mkdir()
    for name, text in (("generate", GENERATE), ("choose", CHOOSE)):
        (root / "tasks" / f"{name}.yaml").write_text(text.format(data=data))
    manager = TaskManager(include_path=str(root / "tasks"), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        yield SimpleNamespace(root=root, base=str(base), experts=str(root / "experts"), manager=manager, both=None)
    os.environ.clear()
    os.environ |= before


LIVE = []


def close():
    """vLLM has one engine a process: the end of an older one takes the process groups of a newer one away."""
    while LIVE:
        LIVE.pop().model.llm_engine.engine_core.shutdown()
    gc.collect()


def engine(base, experts=None, strategy=None, **args):
    from t2.harness.vllm_model import T2VLLM

    close()
    lm = T2VLLM(str(base), strategy=strategy, experts=experts, **{**ENGINE, **args})
    LIVE.append(lm)
    return lm


@pytest.fixture
def both(world):
    """The same model under both: t2-vllm, t2."""
    if not LIVE or world.both is None or LIVE[0] is not world.both[0]:
        theirs = T2LM(world.base, strategy="prompt", experts=world.experts, dtype="float32", device="cpu")
        world.both = (engine(world.base, world.experts), theirs)
    return world.both


def plain(lm, kind, requests):
    """What lm-eval's own class answers, with the weights in force."""
    return getattr(lm.host, kind)(lm, requests, disable_tqdm=True)


def shown(text):
    """What both show of a reply: lm-eval's `vllm` keeps special tokens, and vLLM leaves out a character that is unfinished at the end."""
    return text.replace("<|im_start|>", "").rstrip("\ufffd")


MIXTURES = [
    Mixture.base(),
    *map(Mixture.single, ("math", "code", "reasoning")),
    Mixture.parse("math=0.5+code=0.3+base=0.2"),
    Mixture.per_layer({"math": [0.2, 0.9], "code": [0.8, 0.4]}),
]


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_answers_are_those_of_t2(both, mixture):
    for lm in both:
        lm.bank.apply(mixture)
    texts, expected = ([shown(text) for text in plain(lm, "generate_until", questions(tokens=24))] for lm in both)
    assert texts == expected and len(set(texts)) > 3
    asked = questions((*WORDS, LONG), "loglikelihood")
    ours_, theirs_ = (plain(lm, "loglikelihood", asked) for lm in both)
    assert [greedy for _, greedy in ours_] == [greedy for _, greedy in theirs_]
    assert max(abs(a - b) for (a, _), (b, _) in zip(ours_, theirs_, strict=True)) < 1e-3
    for lm in both:
        lm.bank.apply(Mixture.base())


def next_token(lm, text):
    """Log-probabilities of the whole vocabulary after `text`, by one decoded position: the request that reads the prefix cache."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=list(range(100)))
    (output,) = lm.engines.generate([lm.tok_encode(text)], [params])
    return {token: p.logprob for token, p in output.outputs[0].logprobs[0].items()}, output.num_cached_tokens


def test_a_swap_leaves_nothing_of_the_weights_before_in_the_prefix_cache(both):
    lm, reference = both
    for mixture in MIXTURES:
        lm.bank.apply(mixture)
        reference.bank.apply(mixture)
        found, cached = next_token(lm, LONG)
        assert cached == 0
        again, cached = next_token(lm, LONG)
        assert cached >= 128  # the cache is on, so this test can fail
        ids = torch.tensor([lm.tok_encode(LONG)])
        with torch.inference_mode():
            expected = reference.model(ids).logits[0, -1].log_softmax(-1)
        for token, value in found.items():
            assert abs(value - expected[token]) < 1e-3 and abs(again[token] - value) < 1e-3
    for each in both:
        each.bank.apply(Mixture.base())


@pytest.fixture
def cold(both):
    """`next_token`, read with an empty prefix cache: a prompt whose beginning was cached is other arithmetic, equal to 1e-5 only."""
    both[0].engines.forget_prefixes()

    def read():
        found, cached = next_token(both[0], LONG)
        assert cached == 0
        return found

    return read


def test_the_base_comes_back_bit_for_bit(both, cold):
    lm, _ = both
    before = cold()
    for mixture in MIXTURES[1:]:
        lm.bank.apply(mixture)
        assert cold() != before
    lm.bank.apply(Mixture.base())
    assert cold() == before


def test_a_swap_that_fails_halfway_is_repaired_by_the_next(both, cold, monkeypatch):
    lm, _ = both
    before = cold()
    with monkeypatch.context() as patch:
        patch.setattr(lm.engines, "forget_prefixes", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lm.bank.apply(Mixture.single("math"))
    assert lm.bank.apply(Mixture.base())
    assert cold() == before


@pytest.mark.parametrize("form", ["score", "generate"])
def test_pass_one_decides_as_t2_does(world, both, form):
    from t2.harness.vllm_forms import EngineAsker

    ours, theirs = both
    setup = replace(theirs._setup(theirs.strategy, theirs.bank.experts, None), max_length=2040)
    a = EngineAsker(form, setup, ours.engines).decide(WORDS)
    b = theirs.make_form(form, setup).decide(WORDS)
    assert [(x.category, x.reply, x.tokens_in, x.tokens_out) for x in a] == [(x.category, x.reply, x.tokens_in, x.tokens_out) for x in b]
    for x, y in zip(a, b, strict=True):
        assert (x.scores is None) == (form == "generate")
        assert all(abs(x.scores[name] - y.scores[name]) < 1e-4 for name in x.scores or ())


def test_names_that_begin_alike_are_scored_as_far_as_they_differ(both):
    from t2.adapters.dispatch import Dispatcher
    from t2.adapters.dispatch_forms import Setup
    from t2.harness.vllm_forms import EngineAsker

    ours, theirs = both
    experts = dict.fromkeys(("mat", "math", "code"))
    a = EngineAsker("score", Setup(None, theirs.tokenizer, experts, 2040), ours.engines).decide(WORDS)
    b = Dispatcher(theirs.model, theirs.tokenizer, experts, max_length=2040).decide(WORDS)
    for x, y in zip(a, b, strict=True):
        assert x.category == y.category and all(abs(x.scores[name] - y.scores[name]) < 1e-4 for name in y.scores)


def test_a_reply_ends_with_its_box_and_not_with_another_brace(both, monkeypatch):
    from t2.harness.vllm_forms import EngineAsker

    ours, theirs = both
    said = [theirs.tok_encode(text, add_special_tokens=False) for text in ("{x} so \\boxed{math}", " never")]
    asked = []

    def generate(rows, params, progress=False):
        asked.append(len(rows))
        outputs = []
        for row, limit in zip(rows, params, strict=True):
            which = int(row[-1] != 0)
            rest = said[0 if len(asked) > 1 else which]
            done = 3 if len(asked) == 1 and not which else len(rest)
            ids = rest[:done] if len(asked) == 1 else rest[3:]
            closed = theirs.tokenizer.decode(ids).endswith("}")
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, stop_reason="}" if closed else None)]))
            assert limit.max_tokens == (64 if len(asked) == 1 else 61)
        return outputs

    asker = EngineAsker("generate", theirs._setup(theirs.strategy, theirs.bank.experts, None), ours.engines)
    monkeypatch.setattr(ours.engines, "generate", generate)
    assert asker._replies([[0], [1]]) == ["{x} so \\boxed{math}", " never"]
    assert asked == [2, 1]


def test_a_form_of_ones_own_runs_beside_the_engine(world, both):
    keywords = Path(__file__).parents[1] / "examples" / "keywords.py"
    ours, theirs = both
    form = ours.make_form(str(keywords), theirs._setup(theirs.strategy, theirs.bank.experts, None))
    found = form.decide(["Write a Python function.", "How many eggs? Solve it.", "Hello"])
    assert [d.category for d in found] == ["code", "math", "others"]


def evaluate(world, model, **args):
    lm = (
        engine(world.base, world.experts, **args)
        if model == "t2-vllm"
        else T2LM(world.base, experts=world.experts, dtype="float32", **args)
    )
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=["tiny_generate", "tiny_choose"],
        task_manager=world.manager,
        bootstrap_iters=0,
        log_samples=True,
    )


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"strategy": "mix:math=0.5+code=0.5"},
        {"dispatch": "task", "votes": 2},
        {"mix": "soft"},
        {"strategy": "base"},
        {"strategy": "cls", "classifier": "dispatch"},
        {"dispatch": "probe", "probe": "probe"},
        {"mixture": "mixture.json"},
    ],
    ids=str,
)
def test_an_evaluation_is_the_same(world, args):
    files = {name: str(world.root / args[name]) for name in ("classifier", "probe", "mixture") if name in args}
    ours, theirs = (evaluate(world, model, **{**args, **files}) for model in ("t2-vllm", "t2"))
    assert ours["results"] == theirs["results"]
    for task in ("tiny_generate", "tiny_choose"):
        for a, b in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert a["t2"]["mixture"] == b["t2"]["mixture"]
            if task == "tiny_generate":
                assert shown(a["resps"][0][0]) == shown(b["resps"][0][0])
        assert ours["t2"]["passes"][task]["chosen"] == theirs["t2"]["passes"][task]["chosen"]
        assert ours["t2"]["passes"][task]["categories"] == theirs["t2"]["passes"][task]["categories"]
        assert ours["t2"]["passes"][task]["pass2"]["tokens_in"] == theirs["t2"]["passes"][task]["pass2"]["tokens_in"]
    for key in ("base", "experts", "strategy", "dispatch", "parameters", "probe", "mixture"):
        assert ours["t2"][key] == theirs["t2"][key]
    assert ours["t2"]["peak_memory"] > 1e8


def test_the_command_line_writes_it_all(world):
    out = world.root / "out"
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "t2-vllm",
        "--tasks",
        "tiny_generate",
        "--include_path",
        str(world.root / "tasks"),
    ]
    arguments = ",".join(f"{key}={value}" for key, value in {"pretrained": world.base, "experts": world.experts, **ENGINE}.items())
    command += ["--include_path", str(world.root / "tasks"), "--model_args", arguments, "--batch_size", "auto", "--limit", "3"]
    command += ["--output_path", str(out), "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.rglob("results_*.json")
    facts = json.loads(results.read_text())["t2"]
    assert facts["strategy"] == "prompt" and facts["passes"]["tiny_generate"]["pass2"]["prompts"] == 3
    (samples,) = out.rglob("samples_*.jsonl")
    assert all("mixture" in json.loads(line)["t2"] for line in samples.read_text().splitlines())


@pytest.mark.parametrize("until", ["\n", "e"])
def test_replies_are_lm_evals_answers_with_the_likelihoods_of_t2(both, until):
    asked, cut = questions(tokens=24, until=until), questions([LONG * 4], tokens=24, until=until)  # its left is cut
    for lm in both:
        lm.bank.apply(MIXTURES[4])
    assert [reply.text for reply in both[0].replies(asked + cut, 4)] == plain(both[0], "generate_until", asked + cut)
    ours, theirs = (lm.replies(asked, 4) for lm in both)
    assert [shown(reply.text) for reply in ours] == [shown(reply.text) for reply in theirs]
    assert [reply.tokens for reply in ours] == [reply.tokens for reply in theirs]
    assert [reply.log_likelihood for reply in ours] == pytest.approx([reply.log_likelihood for reply in theirs], abs=1e-3)
    assert (min(reply.tokens for reply in ours) < 24) == (until == "e")
    for lm in both:
        lm.bank.apply(Mixture.base())


def test_every_mixture_of_a_task_that_samples_draws_the_same_numbers(both):
    asked = questions((WORDS[0],) * 4, tokens=12)
    for request in asked:
        request.args[1].update(do_sample=True, temperature=2.0)
    first, second = (both[0].replies(asked, 4) for _ in range(2))
    assert first == second and len({reply.text for reply in first}) == 4


def test_a_task_that_names_no_temperature_is_greedy_as_under_t2(both):
    asked = questions(tokens=12)
    for request in asked:
        del request.args[1]["do_sample"]
    texts = [[shown(text) for text in plain(lm, "generate_until", asked)] for lm in both]
    assert texts[0] == texts[1] == [shown(reply.text) for reply in both[0].replies(asked, 4)]


def test_an_interrupt_is_an_interrupt(both, monkeypatch):
    lm = both[0]
    with monkeypatch.context() as patch:
        patch.setattr(lm.engines, "failed", False)
        patch.setattr(lm.model, "generate", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        lm.apply_mixture(Mixture.single("math"))
        with pytest.raises(KeyboardInterrupt):
            lm.replies(questions(), 4)
        switches = lm.bank.switches
        lm.apply_mixture(Mixture.base())  # the engine may still be answering: nothing is asked of it
        with pytest.raises(T2Error, match="was interrupted, in an earlier call"):
            lm.replies(questions(), 4)
    lm.bank.current = Mixture.single("math")
    assert not lm.engines.failed and lm.apply_mixture(Mixture.base()) and lm.bank.switches > switches


def test_a_search_in_the_engine_finds_what_t2_finds(world, both, tmp_path):
    theirs = both[1]
    theirs.bank.apply(Mixture.parse("math=0.4+code=0.3+reasoning=0.3"))
    answers = [reply.text for reply in theirs.replies(questions([f"Question: {q}\nAnswer:" for q in QUESTIONS], tokens=1), 8)]
    theirs.bank.apply(Mixture.base())
    docs = [{"q": q, "a": a} for q, a in zip(QUESTIONS, answers, strict=True) if a.isalpha()]
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "tasks").mkdir()
    task = GENERATE.format(data=data).replace("tiny_generate", "known_generate").replace("max_gen_toks: 6", "max_gen_toks: 1")
    (tmp_path / "tasks" / "known.yaml").write_text(task)
    close()
    given = {"task": "known_generate", "shots": 8, "iterations": 4, "population": 8, "resolution": 0.1}
    arguments = {"pretrained": world.base, "experts": world.experts, "dtype": "float32"}
    found = {}
    for model, more in (("t2-vllm", ENGINE), ("t2", {"device": "cpu"})):
        file = tmp_path / f"{model}.json"
        adapt(AdaptOptions(output=file, model=model, model_args=arguments | more, include_path=str(tmp_path / "tasks"), **given))
        found[model] = json.loads(file.read_text())
    ours, reference = found["t2-vllm"], found["t2"]
    assert ours["alpha"] == reference["alpha"] and ours["signal"]
    assert ours["scores"]["best"]["right"] == reference["scores"]["best"]["right"] > reference["scores"]["base"]["right"]
    assert ours["scores"]["best"]["mean_log_likelihood"] == pytest.approx(reference["scores"]["best"]["mean_log_likelihood"], abs=1e-4)
    assert (ours["base"], ours["documents"]) == (reference["base"], reference["documents"])
    assert ours["cost"]["tokens_out"] == reference["cost"]["tokens_out"]
    assert (ours["settings"]["model"], "model" in reference["settings"]) == ("t2-vllm", False)  # files of t2 are as they were
    assert (ours["cost"]["mixing"], reference["cost"]["mixing"]) == ("linear", "linear")
    assert "vllm" in ours["machine"] and "vllm" not in reference["machine"]


def test_few_shot_search_and_evaluation_by_vllm_are_one_command(world, tmp_path):
    arguments = f"pretrained={world.base},experts={world.experts},dtype=float32,max_model_len=1024,gpu_memory_utilization=0.5"
    command = [sys.executable, "-m", "t2.harness.cli", "eval", "--model", "t2-vllm", "--strategy", "fewshot"]
    command += ["--tasks", "tiny_choose,tiny_generate"]  # four engines, one after the other
    command += ["--model_args", arguments, "--include_path", str(world.root / "tasks"), "--shots", "3", "--population", "3"]
    command += ["--iterations", "1", "--mixtures", str(tmp_path), "--output_path", str(tmp_path / "out"), "--batch_size", "auto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    written = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("results_*.json")]
    assert sorted(task for results in written for task in results["results"]) == ["tiny_choose", "tiny_generate"]
    found = next(results for results in written if "tiny_choose" in results["results"])
    mixture = json.loads((tmp_path / "tiny_choose.json").read_text())
    assert found["config"]["model"] == "t2-vllm" and found["t2"]["base"] == mixture["base"]["fingerprint"]
    assert found["n-samples"]["tiny_choose"]["effective"] == len(WORDS) - 3  # without those that the search has seen
    assert len(mixture["documents"]) == 3 and mixture["settings"]["model"] == "t2-vllm"


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "phi3", "granite"])
def test_every_covered_family_is_swapped_as_transformers_has_it(world, family):
    base = save(world.root / family, family)
    tiny.save_expert(world.root / f"{family}-experts" / "math", 1, base)
    experts = str(world.root / f"{family}-experts")
    ours = engine(base, experts, "expert:math")
    theirs = T2LM(str(base), strategy="expert:math", experts=experts, dtype="float32", device="cpu")
    asked = questions(kind="loglikelihood")
    before = plain(ours, "loglikelihood", asked)
    a, b = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    assert max(abs(x - y) for (x, _), (y, _) in zip(a, b, strict=True)) < 1e-3
    assert max(abs(x - y) for (x, _), (y, _) in zip(a, before, strict=True)) > 0.1
    assert plain(ours, "loglikelihood", asked) == before
    assert max(abs(x - y) for (x, _), (y, _) in zip(before, plain(theirs, "loglikelihood", asked), strict=True)) < 1e-3


def test_the_covered_families_are_those_tested():
    from t2.adapters.vllm_worker import COVERED

    families = ("llama", "qwen2", "qwen3", "mistral", "phi3", "granite")
    assert {AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(f))].__name__ for f in families} == set(COVERED)


def test_what_cannot_be_served_is_refused_by_name(world, tmp_path, monkeypatch):
    base = save(tmp_path / "gemma", "gemma2", head_dim=32)
    tiny.save_expert(tmp_path / "experts" / "math", 1, base)
    with pytest.raises(T2Error, match=r"Gemma2ForCausalLM; under t2-vllm experts serve .*LlamaForCausalLM"):
        engine(base, str(tmp_path / "experts"))
    lm = engine(base, strategy="base")
    assert lm.generate_until(questions()) == plain(lm, "generate_until", questions()) and len(lm.run_facts()["base"]) == 16
    with pytest.raises(
        T2Error, match=r"Unknown model argument.*'gpu_memory_utilisation' \(did you mean 'gpu_memory_utilization'"
    ) as caught:
        engine(world.base, gpu_memory_utilisation=0.5)
    assert len(str(caught.value)) < 1000 and str(caught.value).endswith(
        "truncation_side, trust_remote_code, votes, and vLLM's engine arguments."
    )
    with pytest.raises(T2Error, match="worker_extension_cls=x: t2-vllm sets it"):
        engine(world.base, worker_extension_cls="x")
    with pytest.raises(T2Error, match=r"tensor_parallel_size=3 does not divide the 2 attention heads of .*; it can be 1, 2\."):
        engine(world.base, tensor_parallel_size=3)
    with pytest.raises(T2Error, match="mixture_cache_gib=-1 must be a number from 0"):
        engine(world.base, mixture_cache_gib=-1)
    with pytest.raises(T2Error, match="kv_transfer_config cannot be combined with strategy=prompt"):
        engine(world.base, world.experts, kv_transfer_config={"kv_connector": "LMCacheConnectorV1"})

    def unreadable(*_, **__):
        raise OSError("no file named model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", unreadable)
        with pytest.raises(T2Error, match=r"cannot be read by transformers, as experts need it .*OSError: no file named"):
            engine(world.base)
    other = save(tmp_path / "other", hidden_size=128)
    with pytest.raises(T2Error, match="it is for another model"):
        engine(other, world.experts)


def test_an_engine_that_dies_ends_the_run_and_keeps_what_was_answered(world, tmp_path, monkeypatch):
    from lm_eval.api.model import CachingLM

    lm = engine(world.base, world.experts, "expert:math", batch_size=2)
    expected = lm.generate_until(questions())
    lm = CachingLM(lm, str(tmp_path / "cache.db"))
    whole, calls = lm.lm.model.generate, []

    def dying(prompts, *args, **kwargs):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise RuntimeError("the engine is dead")
        return whole(prompts, *args, **kwargs)

    monkeypatch.setattr(lm.lm.model, "generate", dying)
    with pytest.raises(T2Error, match=r"vLLM's engine failed \(RuntimeError: the engine is dead\).*--use_cache"):
        lm.generate_until(questions())
    assert calls == [2, 2, 2]
    calls.clear()
    monkeypatch.setattr(lm.lm.engines, "failed", False)  # as in a new process
    monkeypatch.setattr(lm.lm.model, "generate", lambda prompts, *a, **k: calls.append(len(prompts)) or whole(prompts, *a, **k))
    assert lm.generate_until(questions()) == expected
    assert sum(calls) == 2  # the four that were answered are not asked again


def test_cached_answers_are_kept_apart_by_what_changes_them(both, monkeypatch):
    from t2.harness.cache_key import facts_key

    lm, _ = both
    keys = {facts_key(lm.cache_facts())}
    for attribute, value in (
        ("_max_gen_toks", lm.max_gen_toks + 1),
        ("model_args", {**lm.model_args, "hf_overrides": {"rope_theta": 5.0}}),
        ("lora_request", SimpleNamespace(lora_path="lora")),
        ("_generation_config", lambda: GenerationConfig(repetition_penalty=1.3)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(lm, attribute, value)
            keys.add(facts_key(lm.cache_facts()))
    assert len(keys) == 5


@pytest.mark.slow
@pytest.mark.parametrize("size", ["data_parallel_size", "tensor_parallel_size"])
def test_two_engines_or_two_shards_answer_as_one(world, size):
    """In a process of its own: Ray's and vLLM's workers are started from a clean one."""
    script = world.root / "parallel.py"
    script.write_text(PARALLEL)
    found = {}
    for n in (1, 2):
        arguments = [sys.executable, str(script), json.dumps({"pretrained": world.base, "experts": world.experts, **ENGINE, size: n})]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr[-6000:]
        found[n] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # workers write there too
    assert found[1]["texts"] == found[2]["texts"] and found[1]["chosen"] == found[2]["chosen"] and len(set(found[1]["chosen"])) > 1
    assert max(abs(a - b) for a, b in zip(found[1]["scores"], found[2]["scores"], strict=True)) < 1e-3
    assert found[2]["likelihoods"] == pytest.approx(found[1]["likelihoods"], abs=1e-3)
    assert found[2]["base"] == pytest.approx(found[1]["base"], abs=1e-3)


PARALLEL = """
import json, os, sys

def main():
    from lm_eval.api.instance import Instance
    from t2.harness.vllm_model import T2VLLM

    arguments = json.loads(sys.argv[1])
    if arguments.get("tensor_parallel_size", 1) > 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    lm = T2VLLM(**arguments)
    words = ["What is seven plus nine?", "Name a colour of the sky.", "Write a loop.", "Is water wet?", "Count to three."]
    options = {"until": ["\\n"], "max_gen_toks": 8, "do_sample": False}
    asked = [Instance("generate_until", {}, (word, options), 0, ("t", i, 1)) for i, word in enumerate(words)]
    scored = [Instance("loglikelihood", {}, (word, " yes"), 0, ("t", i, 1)) for i, word in enumerate(words)]
    found = {
        "texts": lm.generate_until(asked),
        "chosen": [lm.decisions[word].category for word in words],
        "scores": [score for score, _ in lm.loglikelihood(scored)],
        "base": [score for score, _ in lm.host.loglikelihood(lm, scored)],
        "memory": lm.peak_memory(),
        "likelihoods": [reply.log_likelihood for reply in lm.replies(asked, 1)],
    }
    lm.close()
    print(json.dumps(found), flush=True)
    os._exit(0)

if __name__ == "__main__":
    main()
"""


def test_many_mixtures_do_not_need_many_matrix_products(world):
    from t2.adapters.experts import find_experts
    from t2.adapters.vllm_worker import WorkerBank

    model = AutoModelForCausalLM.from_pretrained(world.base)
    experts = {name: load_expert(path) for name, path in find_experts(world.experts).items()}
    exact = {m: WorkerBank(model, experts, 0, torch.device("cpu")).weights(m) for m in MIXTURES}
    linear = WorkerBank(model, experts, 2**30, torch.device("cpu"))
    assert linear.linear and not WorkerBank(model, experts, 0, torch.device("cpu")).linear
    for mixture, weights in exact.items():
        for name, weight in linear.weights(mixture).items():
            if mixture.layers or len(mixture.weights) > 1:
                torch.testing.assert_close(weight, weights[name], atol=1e-5, rtol=1e-5)
            else:
                assert torch.equal(weight, weights[name])


@pytest.mark.skipif(vllm_import.distribution() != vllm_import.CPU, reason="a GPU has bfloat16")
@pytest.mark.parametrize(
    ("slowdown", "default", "given", "dtype"),
    [(6.9, True, {}, "float32"), (1.1, True, {}, None), (6.9, True, {"dtype": "auto"}, "auto"), (6.9, False, {}, None)],
)
def test_the_default_model_is_loaded_in_what_is_fast(world, monkeypatch, slowdown, default, given, dtype):
    from t2.harness.vllm_model import T2VLLM

    monkeypatch.setattr("t2.harness.half_precision.slowdown", lambda _: slowdown)
    lm = T2VLLM.__new__(T2VLLM)
    lm.on_default_model = default
    assert lm.host_arguments(world.base, given).get("dtype") == dtype


def test_the_tokenizer_is_transformers_own(world):
    from t2.harness.vllm_model import T2VLLM

    lm = T2VLLM.__new__(T2VLLM)
    lm.on_default_model = False
    assert {lm.host_arguments(world.base, given)["tokenizer_mode"] for given in ({}, {"tokenizer_mode": "auto"})} == {"hf"}
    assert lm.host_arguments(world.base, {"tokenizer_mode": "slow"})["tokenizer_mode"] == "slow"
    with pytest.raises(T2Error, match="tokenizer_mode=mistral has no chat template"):
        lm.host_arguments(world.base, {"tokenizer_mode": "mistral"})
