"""What `rollout=vllm` hands to an engine and takes from it, without one."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from t2.baselines import rollout_vllm
from t2.baselines.config import ConfigError, TrainConfig, load_config
from t2.baselines.methods import adapter_config
from t2.baselines.rollout_vllm import VllmSampler, as_rollouts, merged_weights
from t2.harness.errors import T2Error

from .. import tiny

IDS = torch.arange(20).reshape(2, 10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("method", ["svf", "lora", "dora", "ia3"])
def test_merged_weights_are_the_policy(tmp_path, monkeypatch, method, bias):
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))
    base = tiny.save(tmp_path / "model")
    if bias:  # as Qwen2.5 has
        biased = LlamaForCausalLM(LlamaConfig.from_pretrained(base, attention_bias=True))
        for layer in biased.model.layers:
            torch.nn.init.normal_(layer.self_attn.k_proj.bias)
            torch.nn.init.normal_(layer.self_attn.v_proj.bias)
        biased.save_pretrained(base)
    config = TrainConfig(name="x", task="x", method=method, dtype="float32", lora_dropout=0.0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), adapter_config(config, 2)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape))
        expected, before = model(IDS).logits, {n: p.clone() for n, p in model.named_parameters()}
        merged = merged_weights(model)
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters())  # the policy itself stays as it is
        plain = AutoModelForCausalLM.from_pretrained(base).eval()
        unadapted = plain(IDS).logits
        assert any(name.endswith(".bias") for name in merged) == (bias and method == "ia3")
        missing = plain.load_state_dict(merged, strict=False)
        assert missing.unexpected_keys == []
        torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert (unadapted - expected).abs().max() > 0.1


def test_log_probabilities_are_compared_one_reply_at_a_time(monkeypatch):
    model, prompts, replies = tiny.model(), [[5, 6, 7], [8], [9, 4]], [[1], [2, 3], [4, 5, 6]]
    rollouts = as_rollouts(prompts, replies, 0, tiny.tokenizer())
    said = []
    for prompt, reply in zip(prompts[:2], replies[:2], strict=True):
        logp = torch.log_softmax(model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].detach(), -1)
        said.append([float(logp[t, token]) for t, token in enumerate(reply)])
    shapes, plain = [], rollout_vllm.reply_logits
    monkeypatch.setattr(rollout_vllm, "reply_logits", lambda *args: (shapes.append(len(args[1].ids)), plain(*args))[1])
    sampler = VllmSampler.__new__(VllmSampler)
    sampler._tolerance = 1e-3
    assert sampler._difference(model, rollouts, said) < 1e-5 and shapes == [1, 1]
    said[1][1] += 0.03
    with pytest.raises(T2Error, match=r"differ from the policy's by 0\.01 nats on average, more than 0\.001"):
        sampler._difference(model, rollouts, said)


def test_replies_are_laid_out_as_transformers_does():
    found = as_rollouts([[5, 6, 7], [8]], [[1], [2, 3]], 0, tiny.tokenizer())
    assert found.ids.tolist() == [[5, 6, 7, 1, 0], [0, 0, 8, 2, 3]]
    assert found.mask.tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert found.reply_mask.tolist() == [[1, 0], [1, 1]] and len(found.texts) == 2


def test_settings_of_the_engine_are_checked():
    assert load_config("reasoning", ["rollout=vllm"]).rollout == "vllm"
    with pytest.raises(ConfigError) as caught:
        load_config("reasoning", ["rollout=vlm", "vllm_gpu_memory_utilization=2.0"])
    for part in ("rollout must be one of transformers, vllm", "vllm_gpu_memory_utilization must be in (0, 1); got 2.0"):
        assert part in str(caught.value)
