"""Rollouts by a vLLM engine beside the policy (`rollout=vllm`), which gets its weights and has to agree with its log-probabilities."""

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..adapters.svf import SvfLayer
from ..adapters.vllm_worker import COVERED, PATH
from ..harness import vllm_import
from ..harness.errors import T2Error
from .config import TrainConfig
from .reinforce import reply_logits
from .rollout import Rollouts, end_ids, prompt_ids

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Mean absolute difference of a token's log-probability between both engines, in nats, up to which they count as the same policy."""
CHECKED = 4
"""Replies of a batch whose log-probabilities are compared."""


class VllmSampler:
    """A vLLM engine that answers with the policy's weights.

    Args:
        source: folder or name of the base model.
        config: settings of the run.
        length: tokens of the longest prompt with its reply; for more the engine keeps no memory.

    Raises:
        T2Error: vLLM is not there, its engine does not start, or it does not cover this model's family.
    """

    def __init__(self, source: str, config: TrainConfig, length: int) -> None:
        vllm_import.check()
        vllm_import.prepare()
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        from ..harness.vllm_engines import LocalEngine

        share = config.vllm_gpu_memory_utilization
        options = {"dtype": config.dtype, "seed": config.seed, "gpu_memory_utilization": share, "max_model_len": length}
        try:
            llm = LLM(model=source, worker_extension_cls=PATH, **vllm_import.defaults(), **options)
        except Exception as error:  # of whatever kind its libraries raise
            raise T2Error(
                f"vLLM's engine for the rollouts did not start ({type(error).__name__}: {str(error)[:500]}). Where memory is short: "
                f"vllm_gpu_memory_utilization={share:g} is the engine's share of the GPU, the policy needs the rest; rollout=transformers "
                "needs no engine. T2_TRACEBACK=1 shows where it failed."
            ) from error
        self._engine = LocalEngine(llm)
        if not set(self._engine.config("architectures")) <= set(COVERED):
            named = ", ".join(self._engine.config("architectures"))
            raise T2Error(f"rollout=vllm serves {', '.join(COVERED)}; {source} is a {named}. Use rollout=transformers.")
        self._engine.ask("t2_base", source, config.dtype, json.dumps({}))
        self._tolerance = TOLERANCE[config.dtype]
        self._held: tuple[Tensor, ...] | None = None

    def close(self) -> None:
        """End the engine: a second one in this process would be ended with it."""
        self._engine.close()

    def update(self, model: nn.Module) -> None:
        """Give the engine the weights of `model`, a PEFT model, if its trained numbers have changed."""
        now = tuple(p.detach() for p in model.parameters() if p.requires_grad)
        if self._held is not None and all(torch.equal(a, b) for a, b in zip(self._held, now, strict=True)):
            return
        with tempfile.TemporaryDirectory(prefix="t2-rollout-") as folder:
            file = str(Path(folder) / "weights.safetensors")
            save_file(merged_weights(model), file)
            self._engine.ask("t2_load", file)
        self._engine.forget_prefixes()
        self._held = tuple(p.clone() for p in now)

    def generate(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int, temperature: float, seed: int
    ) -> tuple[Rollouts, float | None]:
        """Sample one reply a prompt from the whole distribution (greedy for `temperature` 0), with the weights of `model`.

        Returns:
            the replies, and the mean difference of the log-probabilities of their tokens between this engine and `model`; None for greedy
            replies, from which nothing is learned.

        Raises:
            T2Error: the engine fails, or the difference is more than `TOLERANCE`.
        """
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        self.update(model)
        ends = end_ids(model, tokenizer)
        rows = prompt_ids(model, tokenizer, prompts, max_new_tokens)
        same = {"temperature": temperature, "max_tokens": max_new_tokens, "stop_token_ids": ends, "logprobs": 0, "detokenize": False}
        params = [SamplingParams(**same, seed=(seed * 4096 + i) % 2**63) for i in range(len(rows))]
        outputs = [output.outputs[0] for output in self._engine.generate(rows, params)]
        replies = [list(output.token_ids) for output in outputs]
        rollouts = as_rollouts(rows, replies, int(tokenizer.pad_token_id), tokenizer)  # type: ignore[arg-type]
        rollouts = rollouts.to(next(model.parameters()).device)
        if temperature == 0:
            return rollouts, None
        said = [[each[token].logprob for token, each in zip(o.token_ids, o.logprobs, strict=True)] for o in outputs[:CHECKED]]
        return rollouts, self._difference(model, rollouts, said)

    @torch.no_grad()
    def _difference(self, model: nn.Module, rollouts: Rollouts, said: Sequence[Sequence[float]]) -> float:
        apart: list[float] = []
        for i, row in enumerate(said):  # one at a time: logits are large
            part = rollouts.rows(torch.tensor([i]))
            logits = reply_logits(model, part)[0].float()
            found = logits.gather(1, part.ids[0, -part.reply_length :].unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
            apart += [abs(a - b) for a, b in zip(row, found.tolist(), strict=True)]
        difference = sum(apart) / len(apart)
        if not difference <= self._tolerance:
            raise T2Error(
                f"vLLM's log-probabilities of the sampled tokens differ from the policy's by {difference:.2g} nats on average, more than "
                f"{self._tolerance:g}: it would train on another policy's replies. Use dtype=float32, or rollout=transformers."
            )
        return difference


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what each layer that a PEFT model adapts has instead of its own, on the CPU.

    Returns:
        the base model's name of the module, with ``.weight`` → W' ``[m, n]``, and with ``.bias``, where that differs too (IA3 scales it).
    """
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        name = name.removeprefix("base_model.model.")
        if isinstance(module, SvfLayer):
            found[f"{name}.weight"] = module.adapted(module.active_adapters)
        else:
            twin: Any = copy.deepcopy(module)  # merging and unmerging the layer itself would leave rounding errors
            twin.merge()
            merged, bias = twin.get_base_layer(), getattr(module.get_base_layer(), "bias", None)
            found[f"{name}.weight"] = merged.weight
            if bias is not None and not torch.equal(merged.bias, bias):
                found[f"{name}.bias"] = merged.bias
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def as_rollouts(prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], pad: int, tokenizer: Any) -> Rollouts:
    """Return token ids of prompts and replies as `Rollouts`: prompts padded on the left, replies on the right."""
    before, after = max(map(len, prompts)), max(map(len, replies))
    ids = [[pad] * (before - len(p)) + list(p) + list(r) + [pad] * (after - len(r)) for p, r in zip(prompts, replies, strict=True)]
    mask = [[0] * (before - len(p)) + [1] * (len(p) + len(r)) + [0] * (after - len(r)) for p, r in zip(prompts, replies, strict=True)]
    texts = tokenizer.batch_decode([list(reply) for reply in replies], skip_special_tokens=True)
    mask_ = torch.tensor(mask)
    return Rollouts(torch.tensor(ids), mask_, mask_[:, before:].float(), list(texts))
