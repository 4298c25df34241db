"""One REINFORCE step against the reference procedure, written plainly: samples a second and peak memory, on the default model.

    python -m pytest -m slow tests/benchmarks/test_reinforce_step.py -s

64 GSM8K prompts, up to 128 new tokens, KL on, in float32, on the GPU if there is one. The reference procedure takes one sample at a time,
forward and backward. It keeps the whole log-softmax of prompt and reply, for policy and base, and rebuilds each weight as
(U diag(z σ)) Vᵀ, from which autograd goes back to z. Ours takes settings that save memory (FRUGAL). The reference answers one prompt at a
time as well, with the weights rebuilt once; as each prompt costs it the same, T2_BENCH_REFERENCE may limit it to the first so many. Both
halves of the step are printed apart, so that it shows what each adds. Each procedure runs in a process of its own, whose peak of resident
memory is the kernel's, or of a GPU's memory PyTorch's.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, AutoTokenizer

from t2.adapters.memory import peak_memory
from t2.adapters.output_head import read_contiguous_rows
from t2.adapters.svf import SvfConfig, cached_basis
from t2.baselines.config import TrainConfig
from t2.baselines.memory import return_freed_tensors
from t2.baselines.methods import adapter_config
from t2.baselines.reinforce import accumulate_gradient, recomputed_layers
from t2.baselines.rollout import Rollouts, chat_prompts, generate
from t2.harness.fetch import default_model, load_rows
from t2.harness.fetch.data import locate_local
from t2.tasks.training import TASKS

PROMPTS, TOKENS, KL_COEF, MEMORY = int(os.environ.get("T2_BENCH_PROMPTS", "64")), 128, 0.1, 0.5
REFERENCE = int(os.environ.get("T2_BENCH_REFERENCE", str(PROMPTS)))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FASTER, FRUGAL = {
    "cpu": (1.5, {"tokens_per_pass": 256, "generation_batch_size": 4, "gradient_checkpointing": True}),
    "cuda": (4, {"tokens_per_pass": 1024, "generation_batch_size": 16, "gradient_checkpointing": True}),
}[DEVICE.type]


def prompts(tokenizer: Any) -> list[str]:
    return chat_prompts(tokenizer, [TASKS["gsm8k"].prompt(row) for row in load_rows("gsm8k", "train")[:PROMPTS]])


def rewards() -> torch.Tensor:
    """Signs that both procedures share; what is timed does not depend on them."""
    return torch.where(torch.rand(PROMPTS, generator=torch.Generator().manual_seed(0)) < 0.5, 1.0, -1.0)


def ours(tokenizer: Any) -> dict[str, float]:
    """What `t2 train` does in a step, without its files."""
    config = TrainConfig(name="bench", task="gsm8k", dtype="float32", target_modules="all-linear", kl_coef=KL_COEF, **FRUGAL)
    assert not config.gradient_checkpointing or return_freed_tensors()
    base = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval().to(DEVICE)
    read_contiguous_rows(base)
    adapter = adapter_config(config, base.config.num_hidden_layers)
    assert isinstance(adapter, SvfConfig)
    model = get_peft_model(base, adapter).eval()
    for module in model.modules():
        if hasattr(module, "svf_z"):
            module.basis()
    began = now()
    asked, size = sorted(prompts(tokenizer), key=len), config.generation_batch_size
    starts = range(0, len(asked), size)
    rollouts = [generate(model, tokenizer, asked[i : i + size], TOKENS, config.temperature) for i in starts]
    sampled = now()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with recomputed_layers(model, config.gradient_checkpointing):
        for start, part in zip(starts, rollouts, strict=True):
            accumulate_gradient(
                model, model.disable_adapter, part, rewards()[start : start + size], KL_COEF, config.temperature, config.tokens_per_pass,
                config.kl_form, len(asked),
            )  # fmt: skip
    done = now()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {**figures(began, sampled, done, rollouts), "grad_norm": float(gradient.norm())}


class Rebuilt(nn.Module):
    """W from z: (U diag(z σ)) Vᵀ."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        basis = cached_basis(weight)
        projection, sigma = basis.project(weight), basis.sigma
        if basis.left:
            u, vt = basis.vectors, projection / sigma.unsqueeze(1)
        else:
            u, vt = projection / sigma, basis.vectors.T.contiguous()
        self.register_buffer("u", u)
        self.register_buffer("sigma", sigma)
        self.register_buffer("vt", vt)
        self.z = nn.Parameter(torch.ones_like(sigma))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.u @ torch.diag(self.z * self.sigma) @ self.vt


def reference(tokenizer: Any) -> dict[str, float]:
    base, policy = (
        AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval().requires_grad_(False).to(DEVICE) for _ in range(2)
    )
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear) and "layers" in name:
            parametrize.register_parametrization(module, "weight", Rebuilt(module.weight), unsafe=True)
    start = now()
    with parametrize.cached():
        replies = [generate(policy, tokenizer, [prompt], TOKENS, 1.0) for prompt in prompts(tokenizer)[:REFERENCE]]
    sampled = now()
    for reply, reward in zip(replies, rewards().tolist()[:REFERENCE], strict=True):
        length = reply.reply_length
        logp = torch.log_softmax(policy(input_ids=reply.ids, attention_mask=reply.mask, use_cache=False).logits, -1)
        with torch.no_grad():
            ref = torch.log_softmax(base(input_ids=reply.ids, attention_mask=reply.mask, use_cache=False).logits, -1)
        kl = (logp.exp() * (logp - ref)).sum(-1)[:, -length - 1 : -1]
        chosen = logp[:, :-1].gather(2, reply.ids[:, 1:].unsqueeze(2)).squeeze(2)[:, -length:]
        ((-reward * chosen + KL_COEF * kl).sum() / PROMPTS).backward()
    done = now()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return {**figures(start, sampled, done, replies), "grad_norm": float(gradient.norm())}


def now() -> float:
    """Return the seconds of a clock, all work of the GPU done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def figures(start: float, sampled: float, done: float, rollouts: list[Rollouts]) -> dict[str, float]:
    return {
        "rollout": sampled - start,
        "gradient": done - sampled,
        "step": done - start,
        "samples": float(sum(len(r.ids) for r in rollouts)),
        "tokens": float(sum(r.reply_mask.sum() for r in rollouts)),
        "peak": float(peak_memory(DEVICE) or 0),
    }


def measure(which: str) -> dict[str, float]:
    command = [sys.executable, __file__, which]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_a_step_is_faster_and_smaller_than_the_reference_procedure() -> None:
    if locate_local("gsm8k", "train") is None:
        pytest.skip("needs gsm8k/train: set T2_DATA_DIR, or `t2 fetch gsm8k/train` where the hub is reached")
    got = {which: measure(which) for which in ("ours", "reference")}
    for which, f in got.items():
        print(
            f"\n{which}: {f['samples']:.0f} samples, {f['tokens']:.0f} reply tokens, rollout {f['rollout']:.1f} s, gradient "
            f"{f['gradient']:.1f} s, {f['samples'] / f['step']:.3f} samples/s, peak {f['peak'] / 2**30:.2f} GiB on {DEVICE}"
        )
    each = {which: {half: f[half] / f["samples"] for half in ("step", "gradient")} for which, f in got.items()}
    faster = each["reference"]["step"] / each["ours"]["step"]
    gradient = each["reference"]["gradient"] / each["ours"]["gradient"]
    memory = got["ours"]["peak"] / got["reference"]["peak"]
    print(f"samples/s {faster:.2f} times (gradient alone {gradient:.2f}), peak memory {memory:.2f}")
    assert faster >= FASTER
    assert memory <= MEMORY


if __name__ == "__main__":
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    print(json.dumps({"ours": ours, "reference": reference}[sys.argv[1]](tokenizer)))
