"""What runs inside vLLM's workers: the base weights under their Hugging Face names, the expert bank over them, and the swap.

vLLM makes `ExpertWorker` a base of its worker class (``worker_extension_cls``), and ``collective_rpc`` calls its methods in every worker.
Arguments and results are text: tensors do not survive the way between processes. What a user can get wrong comes back as ``{"error": …}``.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .bank import ExpertBank
from .dispatch_forms import Setup, make_form, plain
from .errors import AdapterError
from .experts import layer_of, load_expert
from .memory import peak_memory
from .mixture import BASE, Mixture
from .svf import Basis, cached_basis, model_fingerprint
from .svf.apply import adapted_weight, delta_weight

PATH = f"{__name__}.ExpertWorker"
"""For ``worker_extension_cls``."""

COVERED = ("GraniteForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM",
           "Qwen3ForCausalLM")  # fmt: skip
"""Model families whose modules have the same names in transformers and in the checkpoints that vLLM reads; each is tested."""


def answered(method: Callable[..., Any]) -> Callable[..., str]:
    """Return a method of a worker whose result is JSON: ``{"value": …}``, or ``{"error": …}`` for an `AdapterError`.

    A worker with a GPU has one thread for the CPU, enough for vLLM; while the method runs it has one for each core.
    """

    @wraps(method)
    def answer(worker: "ExpertWorker", *args: Any) -> str:
        threads = torch.get_num_threads()
        if worker.device.type != "cpu":
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        try:
            return json.dumps({"value": method(worker, *args)})
        except AdapterError as error:
            return json.dumps({"error": str(error)})
        finally:
            torch.set_num_threads(threads)

    return answer


class WorkerBank(ExpertBank):
    """A bank over weights in host memory, which makes W' on the worker's device and keeps what makes the next switch cheap.

    Where they fit into `budget`, every expert's differences D_k = W'_k - W are kept (float32), and any mixture is Σα·W + Σ_k α_k D_k: no
    matrix product, and for a single expert the very numbers of `adapted_weight`. Else as many whole mixtures are kept as fit.

    Args:
        model, experts: see `ExpertBank`.
        budget: bytes of host memory; one mixture is kept in any case.
        device: where W' is made.

    Attributes:
        linear: whether the differences fit.
    """

    def __init__(self, model: nn.Module, experts: Mapping[str, Any], budget: int, device: torch.device) -> None:
        super().__init__(model, experts)
        own = sum(weight.numel() * weight.element_size() for weight in self._base.values())
        differences = sum(4 * self._base[name].numel() for expert in self.experts.values() for name in expert.vectors)
        self.linear = own + differences <= budget
        self._keep = 1 if self.linear or not own else max(1, budget // own)
        self._device = device
        self._of_expert: dict[tuple[str, str], Tensor] = {}

    def _adapted(self, mixture: Mixture, name: str) -> Tensor:
        weight = self._base[name]
        here = weight.to(self._device)
        if not self.linear:
            return adapted_weight(here, self._basis(name).to(self._device), self.scale(mixture, name).to(self._device)).to(weight.device)
        pairs = mixture.at(layer_of(name))
        mixed = here.float() * math.fsum(alpha for _, alpha in pairs)
        for expert, alpha in pairs:
            if expert != BASE and name in self.experts[expert].vectors:
                mixed.add_(self._difference_of(expert, name).to(self._device), alpha=alpha)
        return mixed.to(weight.dtype).to(weight.device)

    def _basis(self, name: str) -> Basis:
        """Return the basis of a matrix, in host memory; computed on the worker's device, where there is room for it."""
        if name not in self._bases:
            weight = self._base[name]
            try:
                self._bases[name] = cached_basis(weight.to(self._device)).to(weight.device)
            except torch.OutOfMemoryError:  # vLLM takes most of a GPU
                self._bases[name] = cached_basis(weight)
        return self._bases[name]

    def _difference_of(self, expert: str, name: str) -> Tensor:
        """Return W'_k - W ``[m, n]`` of one expert, float32, in host memory."""
        if (expert, name) not in self._of_expert:
            weight, basis = self._base[name].to(self._device), self._basis(name).to(self._device)
            z = self.scale(Mixture.single(expert), name).to(self._device)
            self._of_expert[expert, name] = delta_weight(basis.project(weight), basis, z).to(self._base[name].device)
        return self._of_expert[expert, name]


class ExpertWorker:
    """Methods for a vLLM worker, which has ``model_runner``, ``device`` and ``rank``."""

    model_runner: Any
    device: torch.device
    rank: int
    _t2_model: Any
    _t2_bank: WorkerBank | None

    @answered
    def t2_base(self, model: str, dtype: str, options: str) -> str:
        """Load the base weights a second time, as transformers names them, and return their fingerprint.

        Args:
            model: name or folder.
            dtype: of the engine.
            options: more arguments of ``from_pretrained``, as JSON.
        """
        from transformers import AutoModelForCausalLM

        try:
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), **json.loads(options)).eval()
        except (OSError, ValueError, MemoryError) as error:
            raise AdapterError(
                f"{model} cannot be read by transformers, as experts need it beside the engine ({type(error).__name__}: {error}). "
                "lm-eval's --model vllm does without."
            ) from error
        self._t2_model = loaded.requires_grad_(False)
        self._t2_bank = None
        return model_fingerprint(loaded)

    @answered
    def t2_release(self) -> None:
        """Drop what `t2_base` loaded."""
        self._t2_model = self._t2_bank = None

    @answered
    def t2_experts(self, paths: str, budget: int) -> bool:
        """Load experts and check them against the base; return `WorkerBank.linear`.

        Args:
            paths: name → folder, as JSON.
            budget: see `WorkerBank`.
        """
        experts = {name: load_expert(Path(path)) for name, path in json.loads(paths).items()}
        self._t2_bank = WorkerBank(self._t2_model, experts, budget, self.device)
        return self._t2_bank.linear

    @answered
    def t2_prepare(self, mixture: str) -> None:
        """See `Bank.prepare`."""
        assert self._t2_bank is not None  # noqa: S101 - experts come first
        self._t2_bank.prepare(read_mixture(mixture), quiet=self.rank != 0)

    @answered
    def t2_apply(self, mixture: str) -> None:
        """Give the engine the weights of a mixture; what it had cached of prompts has to be dropped by the caller."""
        assert self._t2_bank is not None  # noqa: S101 - experts come first
        with torch.no_grad():
            weights = self._t2_bank.weights(read_mixture(mixture))
            self._t2_push({f"{name}.weight": weight for name, weight in weights.items()})

    @answered
    def t2_load(self, file: str) -> None:
        """Give the engine the tensors in a safetensors file, under the base model's names."""
        with safe_open(file, framework="pt") as tensors:
            self._t2_push({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118 - it is no dict

    @answered
    def t2_form(self, name: str, setup: str) -> None:
        """Make a form of pass 1 over the base model that is kept beside the engine.

        Args:
            name: see `make_form`.
            setup: fields of `Setup` as JSON, with paths of experts and tokenizer in their places.
        """
        from transformers import AutoTokenizer

        told = json.loads(setup)
        experts = {name: load_expert(Path(path)) for name, path in told.pop("experts").items()}
        tokenizer = AutoTokenizer.from_pretrained(told.pop("tokenizer"))
        probe = told.pop("probe")
        self._t2_form = name, make_form(name, Setup(self._t2_model, tokenizer, experts, probe=Path(probe) if probe else None, **told))

    @answered
    def t2_decide(self, contexts: str, batch_size: int) -> list[dict[str, Any]]:
        """Let the form decide: fields of a `Decision` for each context; the first worker alone does."""
        if self.rank != 0:
            return []
        (name, form), asked = self._t2_form, json.loads(contexts)
        return [asdict(decision) for decision in plain(name, form.decide(asked, batch_size or None), len(asked))]

    @answered
    def t2_peak_memory(self) -> int:
        """Return the most bytes that this worker had in use at once."""
        return peak_memory(self.device) or 0

    def _t2_push(self, weights: Mapping[str, Tensor]) -> None:
        # vLLM warns, at every swap, of each module that is not given new weights: embeddings, norms, the rotary embedding, the head
        quiet = [logging.getLogger(f"vllm.model_executor.model_loader.reload.{name}") for name in ("layerwise", "inplace")]
        levels = [logger.level for logger in quiet]
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        try:
            self.model_runner.reload_weights(weights_iterator=self._t2_layers(weights))
        finally:
            for logger, level in zip(quiet, levels, strict=True):
                logger.setLevel(level)

    def _t2_layers(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors of every decoder layer that some expert adapts: vLLM fuses and packs whole layers."""
        prefixes = sorted({name.rsplit(".", 3)[0] for name in weights})
        for name, tensor in self._t2_model.named_parameters():
            if any(name.startswith(prefix + ".") for prefix in prefixes):
                yield name, weights.get(name, tensor)


def write_mixture(mixture: Mixture) -> str:
    """Return a mixture as JSON."""
    return json.dumps([mixture.weights, mixture.layers])


def read_mixture(text: str) -> Mixture:
    """Read what `write_mixture` wrote."""
    weights, layers = json.loads(text)
    return Mixture(tuple((name, alpha) for name, alpha in weights), tuple(map(tuple, layers)))
