"""lm-eval's model `t2-vllm`: vLLM engines that adapt their weights to each prompt (docs/vllm.md)."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from ..adapters.bank import UNKNOWN, Bank
from ..adapters.dispatch_forms import Form, Setup
from ..adapters.errors import AdapterError
from ..adapters.experts import Expert
from ..adapters.mixture import Mixture
from ..adapters.vllm_worker import COVERED, PATH, write_mixture
from . import plain_errors, vllm_import
from .adaptive import Adaptive
from .cache_key import files_stamp, settings
from .fewshot.reply import Reply
from .half_precision import for_default_model
from .strategy import ModelArgumentError, Strategy, parse_number
from .vllm_engines import Engines, LocalEngine, RayEngines
from .vllm_forms import make_form

plain_errors.install()
vllm_import.check()
vllm_import.prepare()

from lm_eval.models import vllm_causallms  # noqa: E402 - vLLM reads its environment when it is imported
from lm_eval.models.utils import maybe_truncate, postprocess_generated_text  # noqa: E402
from vllm import SamplingParams  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.engine.arg_utils import EngineArgs  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.platforms import current_platform  # noqa: E402  # pyright: ignore[reportMissingImports]

log = logging.getLogger("t2")

VLLM: Any = vllm_causallms.VLLM  # lm-eval's `register_model` hides the class from type checkers


_ANSWERING = ("quantization", "seed", "kv_cache_dtype", "hf_overrides", "generation_config", "override_generation_config")
"""Engine arguments on which answers depend, besides what else is told of the model."""


class EngineBank(Bank):
    """A bank over vLLM engines, whose workers make the weights.

    Args:
        engines: all of them hold the same mixture.
        experts: name → expert.
        budget: bytes of each worker's host memory, see `WorkerBank`.

    Raises:
        AdapterError: see `ExpertBank`.
    """

    def __init__(self, engines: Engines, experts: Mapping[str, Expert], budget: int) -> None:
        super().__init__(experts)
        self._engines, self._budget = engines, budget
        self._linear = engines.ask("t2_experts", json.dumps({name: str(e.path.resolve()) for name, e in experts.items()}), budget)

    def with_experts(self, experts: Mapping[str, Expert]) -> "EngineBank":
        """See `Bank`."""
        return EngineBank(self._engines, experts, self._budget)

    def prepare(self, mixture: Mixture, quiet: bool = False) -> None:
        """See `Bank`."""
        self._engines.ask("t2_prepare", write_mixture(mixture))

    @contextmanager
    def linear_mixing(self) -> Iterator[bool]:
        """See `Bank`; workers mix so wherever the experts' differences fit into their budget."""
        if not self._linear:
            log.warning(
                "The experts' differences do not fit into mixture_cache_gib=%g; every mixture is made by matrix products.",
                self._budget / 2**30,
            )
        yield self._linear

    def _switch(self, mixture: Mixture) -> None:
        if self._engines.failed:
            return  # there is nothing left to change, and what it failed of is the error to show
        self.current = UNKNOWN
        self._engines.ask("t2_apply", write_mixture(mixture))
        self._engines.forget_prefixes()  # vLLM would go on with keys and values of the weights before


class _AsAsked:
    """lm-eval's cache hook, which keeps an answer under the arguments it was asked for.

    lm-eval's `vllm` keeps each under the arguments that it made of those, where no later run looks: what an interrupted run had answered
    would be lost.
    """

    def __init__(self, hook: Any) -> None:
        self._hook, self.dbdict = hook, hook.dbdict
        self._asked: dict[str, Any] = {}

    def take(self, requests: Sequence[Any]) -> None:
        """Take note of requests; a context that is asked in two ways is kept only once all are answered."""
        self._asked = {}
        for arguments in (request.args for request in requests):
            same = self._asked.setdefault(arguments[0], arguments)
            self._asked[arguments[0]] = arguments if same == arguments else None

    def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
        """Keep one answer."""
        if kind == "generate_until":
            arguments = self._asked.get(arguments[0])
        if arguments is not None:
            self._hook.add_partial(kind, arguments, answer)


class T2VLLM(Adaptive, VLLM):
    """lm-eval's `vllm` model with two passes; for its arguments see `Adaptive`, lm-eval's ``VLLM`` and vLLM's ``EngineArgs``.

    Args:
        mixture_cache_gib: host memory of each worker for the weights of mixtures that were applied before; one is kept in any case.
    """

    host = VLLM
    passed_on = frozenset(field.name for field in fields(EngineArgs)) | {"mixture_cache_gib", "device"}
    without_experts = ("lora_local_path", "quantization", "load_format", "kv_transfer_config", "kv_offloading_backend")

    # ---- what Adaptive asks for

    def host_arguments(self, pretrained: Any, given: dict[str, Any]) -> dict[str, Any]:
        """See `Adaptive`."""
        given = dict(given)
        if (device := given.pop("device", None)) not in (None, "cuda:0"):  # lm_eval's command line gives cuda:0 where the user gives none
            log.warning("device=%s: vLLM chooses by itself; CUDA_VISIBLE_DEVICES says among which GPUs.", device)
        self._budget = int(parse_number("mixture_cache_gib", given.pop("mixture_cache_gib", 4), 0, 2**20) * 2**30)
        if (own := given.get("worker_extension_cls")) not in (None, PATH):
            raise ModelArgumentError(f"worker_extension_cls={own}: t2-vllm sets it to {PATH}.")
        if given.get("tokenizer_mode") == "mistral":
            raise ModelArgumentError("tokenizer_mode=mistral has no chat template to ask for; leave it out: transformers' is used.")
        for name in ("tensor_parallel_size", "data_parallel_size"):
            parse_number(name, given.get(name, 1), 1, float("inf"), whole=True)
        _check_heads(str(pretrained), given)
        on_cpu = current_platform.is_cpu()
        dtype = for_default_model() if self.on_default_model and on_cpu and "dtype" not in given else {}
        if given.get("tokenizer_mode", "auto") == "auto":
            given["tokenizer_mode"] = "hf"  # vLLM would take mistral-common's where a repository has one
        return {**vllm_import.defaults(), **dtype, **given, "worker_extension_cls": PATH}

    def host_loaded(self) -> None:
        """See `Adaptive`."""
        self._device = torch.device("cpu")  # what this process waits on: vLLM's calls return when their work is done
        several, lora = self.data_parallel_size > 1, self.lora_request
        self.engines: Engines = RayEngines(self.model_args, self.data_parallel_size, lora) if several else LocalEngine(self.model, lora)
        self._uncovered = sorted(set(self.engines.config("architectures")) - set(COVERED))
        self._fingerprint = self._load_base()  # now, and not when results are written: a base that cannot be read is told before any work

    def _load_base(self) -> str:
        """Have every worker load the base weights as transformers names them, and return their fingerprint."""
        self._released = False
        revision = self.model_args.get("revision")
        if self._uncovered or self.quantised:  # no experts, so the weights are not needed
            return hashlib.sha256(f"{self.base_name} {revision} {self.quantised}".encode()).hexdigest()[:16]
        options = {name: self.model_args[name] for name in ("revision", "trust_remote_code") if self.model_args.get(name)}
        dtype = str(self.engines.config("dtype")).removeprefix("torch.")
        try:
            return self.engines.ask("t2_base", self.base_name, dtype, json.dumps(options))
        except AdapterError as error:
            raise ModelArgumentError(str(error)) from error

    def _load_bank(self, plan: Strategy, paths: Mapping[str, Any] | None) -> Strategy:
        if self._uncovered:
            raise ModelArgumentError(
                f"{self.base_name} is a {', '.join(self._uncovered)}; under t2-vllm experts serve {', '.join(COVERED)}. "
                "Use --model t2, or strategy=base."
            )
        if self._released:
            self._load_base()
        return super()._load_bank(plan, paths)

    def two_pass_setup(self, strategy: Strategy, votes: int | None = None) -> None:
        """See `TwoPass`."""
        super().two_pass_setup(strategy, votes)
        if self.bank is None:
            self.engines.ask("t2_release")
            self._released = True

    def make_bank(self, experts: Mapping[str, Expert]) -> Bank:
        """See `Adaptive`."""
        return EngineBank(self.engines, experts, self._budget)

    def make_form(self, name: str, setup: Setup) -> Form:
        """See `Adaptive`."""
        return make_form(name, setup, self.engines)

    def host_facts(self) -> dict[str, Any]:
        """See `Adaptive`."""
        return {
            "dtype": str(self.engines.config("dtype")),
            "config": [settings(self.engines.config("hf_config")), settings(self._generation_config())],
            "tokenizer": [type(self.tokenizer).__name__, len(self.tokenizer), self.tokenizer.name_or_path],
            "template": getattr(self.tokenizer, "chat_template", None),
            "lengths": [self.max_length, self.max_gen_toks, self.truncation_side],
            "tokens": [self.add_bos_token, self.prefix_token_id, self.think_end_token],
            "engine": {name: self.model_args[name] for name in _ANSWERING if name in self.model_args},
            "lora": getattr(self.lora_request, "lora_path", None),
            "vllm": version(str(vllm_import.distribution())),
        }

    def weights_facts(self) -> list[Any]:
        """See `Adaptive`; the engine's own are out of reach, so of the files: of a folder's, or the hub's commit."""
        commit = getattr(self.engines.config("hf_config"), "_commit_hash", None)
        return [commit, files_stamp(self.base_name), files_stamp(getattr(self.lora_request, "lora_path", None))]

    def _generation_config(self) -> GenerationConfig | None:
        try:
            return GenerationConfig.from_pretrained(self.base_name, revision=self.model_args.get("revision") or "main")
        except OSError:  # a model need not have one
            return None

    def replies(self, requests: Sequence[Any], batch_size: int, mixtures: Sequence[Mixture] | None = None) -> list[Reply]:
        """See `Adaptive`; the engine makes its own batches, of one mixture."""
        assert mixtures is None  # noqa: S101 - asked for on a device where rows can differ, which an engine's weights cannot
        eos = self.tokenizer.decode(self.eot_token_id) or self.tokenizer.eos_token
        rows, params, untils = [], [], []
        for i, (context, options) in enumerate(request.args for request in requests):
            kwargs, until, room = self.modify_gen_kwargs(options, eos=eos, default_max_gen_toks=self.max_gen_toks)
            row, room = maybe_truncate(self.tok_encode(context), room, self.max_length, side=self.truncation_side)
            stop = [s for s in until if s == eos] if self.think_end_token else until  # a thought may hold the task's own
            rows.append(row)
            # where a task samples, each document has a seed: every mixture draws the same numbers
            params.append(SamplingParams(**{"seed": i, **kwargs}, max_tokens=room, stop=stop, logprobs=0))
            untils.append(until)
        answers = [output.outputs[0] for output in self.engines.generate(rows, params)]
        return [
            Reply(postprocess_generated_text(a.text, until, self.think_end_token), float(a.cumulative_logprob), len(a.token_ids))
            for a, until in zip(answers, untils, strict=True)
        ]

    @property
    def device_type(self) -> str:
        """See `Adaptive`."""
        return str(current_platform.device_type)

    def close(self) -> None:
        """See `Adaptive`."""
        self.engines.close()

    @property
    def quantised(self) -> str | None:
        """See `Adaptive`."""
        return self.engines.config("quantization")

    @property
    def base_name(self) -> str:
        """See `Adaptive`."""
        return str(self.model_args["model"])

    @property
    def fingerprint(self) -> str:
        """See `Adaptive`; of a model that experts cannot serve, from its name alone."""
        return self._fingerprint

    # ---- lm-eval's methods

    def set_cache_hook(self, cache_hook: Any) -> None:
        """See `TwoPass`."""
        super().set_cache_hook(cache_hook)
        self.cache_hook = _AsAsked(self.cache_hook)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """See `TwoPass`."""
        if isinstance(self.cache_hook, _AsAsked):
            self.cache_hook.take(requests)
        return super().generate_until(requests, disable_tqdm)

    @staticmethod
    def modify_gen_kwargs(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str], int]:
        """As lm-eval's, but greedy where a task does not say otherwise, as lm-eval's `hf` is: vLLM's own temperature is 1."""
        options, until, room = VLLM.modify_gen_kwargs(*args, **kwargs)
        if not (args[0] if args else kwargs["gen_kwargs"]).get("do_sample"):
            options.setdefault("temperature", 0.0)
        return options, until, room

    def _model_generate(self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None) -> list[Any]:
        if not generate or sampling_params is None:  # lm-eval's way to ask for the log-probabilities of what is given
            sampling_params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(requests)
        return self.engines.generate(requests, params, progress=self.batch_size == "auto")

    def peak_memory(self) -> int | None:
        """Return the most bytes that one worker had in use at once."""
        return max(self.engines.ask_each("t2_peak_memory"))


def _check_heads(pretrained: str, given: Mapping[str, Any]) -> None:
    """See that the attention heads can be dealt out: vLLM says so too, but after a minute, in a page of another program's errors."""
    size = int(given.get("tensor_parallel_size", 1))
    if size == 1:
        return
    options = {name: given[name] for name in ("revision", "trust_remote_code") if given.get(name)}
    heads = AutoConfig.from_pretrained(pretrained, **options).get_text_config().num_attention_heads
    if heads % size:
        fitting = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise ModelArgumentError(
            f"tensor_parallel_size={size} does not divide the {heads} attention heads of {pretrained}; it can be {', '.join(fitting)}."
        )
