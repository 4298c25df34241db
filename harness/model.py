"""lm-eval's model `t2`: Hugging Face models that adapt their weights to each prompt (docs/model.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from lm_eval.models import huggingface

from ..adapters import dispatch_forms
from ..adapters.bank import Bank, ExpertBank
from ..adapters.dispatch_forms import Decision, Form, Setup
from ..adapters.experts import Expert
from ..adapters.mixture import Mixture
from ..adapters.output_head import read_contiguous_rows
from ..adapters.svf import model_fingerprint, weights_digest
from .adaptive import Adaptive
from .cache_key import settings
from .fewshot.generate import generate
from .fewshot.reply import Reply
from .half_precision import for_default_model, tell_if_slow
from .strategy import PASSED_ON, ModelArgumentError, Strategy

HFLM: Any = huggingface.HFLM  # lm-eval's `register_model` hides the class from type checkers


class T2LM(Adaptive, HFLM):
    """lm-eval's `hf` model with two passes; for its arguments see `Adaptive` and lm-eval's ``HFLM``.

    Without ``device`` it takes the accelerator if there is one, else the CPU. lm-eval's command line then gives ``cuda:0``, which
    counts as none on a machine without CUDA. Without ``dtype`` a checkpoint's own is taken, as by ``hf``; for the default model on a
    CPU that is several times slower in bfloat16, float32 (`half_precision`).
    """

    host = HFLM
    passed_on = PASSED_ON
    without_experts = ("peft", "delta", "tp_plan")

    # ---- what Adaptive asks for

    def host_arguments(self, pretrained: Any, given: dict[str, Any]) -> dict[str, Any]:
        """See `Adaptive`."""
        device = given.get("device")
        if not device or (str(device) == "cuda:0" and not torch.cuda.is_available()):
            device = _default_device()
        dtype = for_default_model() if self.on_default_model and str(device) == "cpu" and "dtype" not in given else {}
        return {**dtype, **given, "device": device}

    def host_loaded(self) -> None:
        """See `Adaptive`."""
        read_contiguous_rows(self.model)
        tell_if_slow(self.device, self.model.dtype)
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and self.world_size == 1 and accelerator.device.type == "cpu":
            # `hf` deals requests out among GPUs only: on CPUs each process would answer all of them
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self._largest_batch: int | None = None
        self._fingerprint: str | None = None
        self._digest: str | None = None

    def _load_bank(self, plan: Strategy, paths: Mapping[str, Any] | None) -> Strategy:
        if self.backend != "causal" and not plan.is_base:
            raise ModelArgumentError(
                f"{self.base_name} is not a decoder-only model, the only kind that experts are for; use strategy=base."
            )
        return super()._load_bank(plan, paths)

    def make_bank(self, experts: Mapping[str, Expert]) -> Bank:
        """See `Adaptive`."""
        return ExpertBank(self.model, experts)

    def make_form(self, name: str, setup: Setup) -> Form:
        """See `Adaptive`."""
        return dispatch_forms.make_form(name, replace(setup, model=self.model))

    def ask_form(self, form: Form, contexts: Sequence[str]) -> list[Decision]:
        """See `Adaptive`; in the precision of pass 2."""
        half = self.mixed_precision_dtype
        with torch.autocast(device_type=self.device.type, dtype=half, enabled=half is not None):
            return super().ask_form(form, contexts)

    def host_facts(self) -> dict[str, Any]:
        """See `Adaptive`."""
        return {
            "dtype": str(self.model.dtype),
            "attention": getattr(self.model.config, "_attn_implementation", None),
            "config": [settings(self.model.config), settings(getattr(self.model, "generation_config", None))],
            "tokenizer": [type(self.tokenizer).__name__, len(self.tokenizer), self.tokenizer.name_or_path],
            "template": getattr(self.tokenizer, "chat_template", None),
            "lengths": [self.max_length, self.truncation],
            "tokens": [self.add_bos_token, self.prefix_token_id, self.think_end_token],
            "arithmetic": [str(self.softmax_dtype), str(self.mixed_precision_dtype)],
            "transformers": version("transformers"),
        }

    @property
    def quantised(self) -> str | None:
        """See `Adaptive`."""
        method = getattr(self.model, "quantization_method", None)  # transformers' own mark
        return method and str(getattr(method, "value", method))

    @property
    def base_name(self) -> str:
        """See `Adaptive`."""
        return str(getattr(self.model, "name_or_path", "") or self.pretrained)

    @property
    def fingerprint(self) -> str:
        """See `Adaptive`."""
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model)
        return self._fingerprint

    def weights_facts(self) -> str:
        """See `Adaptive`; asked for while the base weights are in force."""
        if self._digest is None:
            self._digest = weights_digest(self.model)
        return self._digest

    def replies(self, requests: Sequence[Any], batch_size: int, mixtures: Sequence[Mixture] | None = None) -> list[Reply]:
        """See `Adaptive`."""
        return generate(self, requests, batch_size, mixtures)

    # ---- lm-eval's methods

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        # hf tries once per call of generate_until; with a call per mixture the same search would run again and again
        if requests is not None:
            return super()._detect_batch_size(requests, pos)
        if (found := self._largest_batch) is None:
            found = self._largest_batch = super()._detect_batch_size()
        return found

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[Any]) -> int:
        # auto:N. With a call per mixture requests can be fewer than N, which hf divides by; and processes have different numbers of them,
        # but compare what each search finds: they search once
        asked = self.batch_schedule
        self.batch_schedule = 1 if self.world_size > 1 else min(asked, len(n_reordered_requests))
        try:
            return super()._batch_scheduler(pos, n_reordered_requests)
        finally:
            self.batch_schedule = asked


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
