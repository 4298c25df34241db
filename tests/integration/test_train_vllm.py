"""`rollout=vllm`: the engine answers with the policy's weights, is found out if it does not, and a run with it goes on after kill -9."""

import signal
import time

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from t2.baselines.config import TrainConfig
from t2.baselines.methods import adapter_config
from t2.baselines.rollout import generate, prompt_ids
from t2.harness.errors import T2Error

from .test_train import TWO_PROCESSES, numbers, run, save_tiny  # noqa: F401 - `run` is a fixture

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
PROMPTS = ["say even", "say odd", "say 1 2 3 4", "odd"] * 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), head_dim=32)


def config(**more):
    return TrainConfig(name="x", task="parity", dtype="float32", target_modules="all-linear", rollout="vllm", **more)


def policy(tiny, settings):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), adapter_config(settings, 2)).eval()
    shift(model)
    return model


def shift(model, strength=0.5):
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(strength * torch.randn(parameter.shape))


def test_it_samples_the_policy_and_notices_another(tmp_path, monkeypatch):
    from t2.baselines.rollout_vllm import VllmSampler

    tiny = save_tiny(tmp_path, head_dim=32, attention_bias=True)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    for name, parameter in base.named_parameters():
        if name.endswith(".bias"):  # zero until now
            torch.nn.init.normal_(parameter)
    base.save_pretrained(tiny)
    settings = config()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    longest = max(map(len, prompt_ids(base, tokenizer, PROMPTS, 6)))
    sampler = VllmSampler(str(tiny), settings, longest + 6)
    assert sampler._engine.config("max_model_len") == longest + 6
    for method in ("svf", "lora", "ia3"):
        model = policy(tiny, config(method=method, lora_dropout=0.0))
        for _ in range(2):
            found, difference = sampler.generate(model, tokenizer, PROMPTS, 6, 1.0, 3)
            assert difference < 1e-4
            again, _ = sampler.generate(model, tokenizer, PROMPTS, 6, 1.0, 3)
            assert torch.equal(found.ids, again.ids) and len({tuple(row) for row in found.ids.tolist()}) > 6
            greedy, none = sampler.generate(model, tokenizer, PROMPTS, 6, 0, 0)
            expected = generate(model, tokenizer, PROMPTS, 6, 0)
            assert none is None and greedy.texts == expected.texts
            assert torch.equal(greedy.reply_mask, expected.reply_mask[:, : greedy.reply_length])
            shift(model)
    monkeypatch.setattr(sampler, "update", lambda model: None)
    shift(model, 0.02)  # about what a step of training does
    with pytest.raises(T2Error, match=r"differ from the policy's by .* nats on average, more than 0.001"):
        sampler.generate(model, tokenizer, PROMPTS, 6, 1.0, 3)


def test_a_run_learns_and_goes_on_after_kill_9_to_the_same_weights(run, tmp_path):  # noqa: F811
    settings = ("rollout=vllm", "steps=12")
    whole = run("whole", *settings)
    output, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, output
    events = numbers(tmp_path / "whole")
    scores = [e["accuracy"] for e in events if e["event"] == "validation"]
    assert scores[-1] > scores[0] + 0.1
    assert all(0 <= e["logprob_difference"] < 1e-4 for e in events if e["event"] == "train")
    broken = run("broken", *settings)
    metrics = tmp_path / "broken/parity/metrics.jsonl"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("train") < 5):
        time.sleep(0.02)
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    assert 5 <= metrics.read_text().count('"train"') < 12
    resumed = run("broken", *settings)
    output, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, output
    a, b = (load_file(tmp_path / name / "parity/expert/parity/adapter_model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_several_processes_are_refused(run):  # noqa: F811
    process = run("x", "rollout=vllm", launch=TWO_PROCESSES)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0 and "rollout=vllm runs in one process" in output
