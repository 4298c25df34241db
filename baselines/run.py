"""One training run, whatever its objective: frozen model with its adapter, data, folder, validation, best checkpoint."""

import dataclasses
import functools
import logging
import math
import os
import platform
import random
import shutil
import subprocess
import time
from collections.abc import Sequence, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from .. import __version__
from ..adapters.output_head import read_contiguous_rows
from ..adapters.svf import PRESETS, SvfConfig, SvfLayer, model_fingerprint
from ..harness.errors import T2Error
from ..harness.fetch import default_model
from ..harness.fetch.files import replace_folder
from ..harness.half_precision import tell_if_slow
from ..harness.plain_model import load_model, load_tokenizer
from ..tasks.training import Split, TrainTask, split_halves, train_task
from .config import TrainConfig
from .dispatch_task import DISPATCH
from .memory import return_freed_tensors
from .methods import adapter_config
from .processes import Processes, first_only
from .rollout import Rollouts, chat_prompts, chat_template, generate, own_ends, prompt_ids, prompt_room, whole_prompt_ids
from .run_folder import CURE, RunFolder

logger = logging.getLogger("t2.train")

_NOT_FINITE = "the model's logits are not finite."
_SMALLER = "Lower lr, or use dtype=float32."
_PROGRESS = ("step", "best", "stale", "seconds", "cpu_seconds", "peak_memory")


class TrainingStopped(T2Error):
    """Training cannot go on (no memory, no disk, …); the last good checkpoint is kept and named."""


class Diverged(TrainingStopped):
    """These settings lead nowhere: a gradient that is not finite, or no reply that is right."""


class Run:
    """State and services that both objectives share.

    Args:
        config: settings.

    Raises:
        T2Error: unknown task, unreachable data or model, a folder of another run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.processes = Processes()
        self.task: TrainTask = DISPATCH if config.task == "dispatch" else train_task(config.task)
        self.split: Split = split_halves(self.task, config.seed)
        self.folder = RunFolder(
            Path(config.output) / config.name, dataclasses.asdict(config), self.origin() if self.processes.first else None
        )
        # its gradient may be NaN where masked batches are 64, 192, 320, … tokens wide (pytorch#196678)
        torch.backends.cuda.enable_cudnn_sdp(False)
        source = config.model or str(default_model())
        torch.manual_seed(config.seed)  # LoRA starts at random
        base, self.tokenizer = _load(source, config.dtype)
        read_contiguous_rows(base)
        tell_if_slow(self.processes.device, base.dtype)
        self.base_fingerprint = model_fingerprint(base)
        self.model: PeftModel = _adapted(base.to(self.processes.device).eval(), config)  # type: ignore[assignment]
        if config.gradient_checkpointing:
            return_freed_tensors()
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        longest = self._longest_prompt() if self.processes.first else None
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.sampler = self._sampler(source, longest) if config.rollout == "vllm" else None
        self.rollout_difference = 0.0
        self.step = 0
        self.best: dict[str, Any] = {"step": -1, "accuracy": -1.0}
        self.kept: int | None = None  # the step of what is in best/
        self.stale = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._cpu_counted = time.process_time()
        self.peak_memory = 0
        self.folder.begin()

    @property
    def max_new_tokens(self) -> int:
        """Length at which a reply is cut, in tokens."""
        return self.config.max_new_tokens or self.task.max_new_tokens

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or `patience` is over."""
        return self.step >= self.config.steps or (self.config.patience is not None and self.stale >= self.config.patience)

    def origin(self) -> dict[str, Any]:
        """Return what the run's results depend on besides its settings: versions, git commit, machine, data hashes."""
        names = ("torch", "transformers", "peft", "lm-eval")
        return {
            "versions": {"t2": __version__, "python": platform.python_version(), **{name: version(name) for name in names}},
            "git_commit": _git_commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {self.processes.device.type}",
            "data_sha256": self.split.sha256,
        }

    def _longest_prompt(self) -> int:
        """Return the tokens of the longest prompt as it is read; warn of those that do not fit."""
        config, train = self.config, self.split.train
        room = prompt_room(self.model, self.tokenizer, self.max_new_tokens)
        read = [train[i] for i in _order(config.seed, 0, len(train))[: config.steps * config.prompts_per_step]]
        lengths = [len(ids) for ids in whole_prompt_ids(self.tokenizer, self.prompts(read + self.split.validation[: config.eval_docs]))]
        if cut := sum(length > room for length in lengths):
            logger.warning(
                "%d of %d prompts are cut on the left to %d tokens, as in lm-eval: the model reads %d, and a reply has max_new_tokens=%d.",
                cut,
                len(lengths),
                room,
                room + self.max_new_tokens,
                self.max_new_tokens,
            )
        return min(max(lengths), room)

    def _sampler(self, source: str, longest_prompt: int | None) -> Any:
        if self.processes.count > 1:
            raise T2Error("rollout=vllm runs in one process: vLLM's engine makes process groups of its own. Use rollout=transformers.")
        from .rollout_vllm import VllmSampler

        assert longest_prompt is not None  # noqa: S101 - this is the first process
        return VllmSampler(source, self.config, longest_prompt + self.max_new_tokens)

    def docs(self, step: int) -> list[dict[str, Any]]:
        """Return the documents of a step: the training half, shuffled anew each epoch, without replacement within one."""
        train, size = self.split.train, self.config.prompts_per_step
        places = (divmod(position, len(train)) for position in range(step * size, (step + 1) * size))
        return [train[_order(self.config.seed, epoch, len(train))[index]] for epoch, index in places]

    def prompts(self, docs: Sequence[dict[str, Any]]) -> list[str]:
        """Return the documents' prompts, in the chat template."""
        if self.task.context is None:
            return chat_prompts(self.tokenizer, [self.task.prompt(doc) for doc in docs])
        template = chat_template(self.tokenizer)
        return [self.task.context(doc, template) for doc in docs]

    def length(self, doc: dict[str, Any]) -> int:
        """Return the length of a document's prompt in characters: batches of like length have little padding."""
        return len(self.task.prompt(doc))

    def sample(self, docs: Sequence[dict[str, Any]], temperature: float, seed: int) -> Rollouts:
        """Sample one reply to each of `docs` (greedy for `temperature` 0).

        Raises:
            TrainingStopped: the policy's logits are not finite, or vLLM's engine fails, or is not the policy.
        """
        prompts = self.prompts(docs)
        if self.sampler is None:
            if temperature > 0:
                torch.manual_seed(seed)
            try:
                return generate(self.model, self.tokenizer, prompts, self.max_new_tokens, temperature)
            except RuntimeError as error:
                if "probability tensor contains" not in str(error):
                    raise
                raise self.stopped(f"No reply can be sampled in step {self.step + 1}: {_NOT_FINITE}", _SMALLER, Diverged) from error
        try:
            found, difference = self.sampler.generate(self.model, self.tokenizer, prompts, self.max_new_tokens, temperature, seed)
        except T2Error as error:
            raise self.stopped(str(error), "") from error
        self.rollout_difference = max(self.rollout_difference, difference or 0.0)
        return found

    def stopped(self, why: str, cure: str, kind: type[TrainingStopped] = TrainingStopped) -> TrainingStopped:
        """Return the error that ends the run, naming what is kept."""
        best = "" if self.kept is None else f", and the best adapter so far in {self.folder.path / 'best'} (step {self.kept})"
        return kind(f"{why} The state before it is kept in {self.folder.path}{best}. {cure}")

    def validate(self) -> None:
        """Score the adapter as it is, greedily, on the first `eval_docs` of the validation half; `save` keeps it if it is the best.

        Raises:
            T2Error: before the first step, the base model's output is not finite.
        """
        started = time.monotonic()
        if self.step == 0:
            self.check_output()
        docs = sorted(self.split.validation[: self.config.eval_docs], key=self.length)
        size = self.config.generation_batch_size
        chunks = [docs[i : i + size] for i in range(0, len(docs), size)]
        training = self.model.training
        self.model.eval()
        replies = [self.sample(chunk, 0, 0).texts for chunk in self.processes.mine(chunks)]
        self.model.train(training)
        texts = [text for chunk in self.processes.together(replies) for text in chunk]
        correct = self.processes.together([self.task.correct(docs, texts)] if self.processes.first else [])[0]
        accuracy = sum(correct) / len(correct)
        elapsed = time.monotonic() - started
        self.seconds += elapsed
        self.folder_log({"event": "validation", "step": self.step, "accuracy": accuracy, "n": len(docs), "seconds": elapsed})
        self.stale += 1
        if accuracy > self.best["accuracy"]:
            self.best, self.stale = {"step": self.step, "accuracy": accuracy}, 0

    @first_only
    def folder_log(self, event: dict[str, Any]) -> None:
        """Append one event to the metrics."""
        self.folder.log(event)

    @first_only
    def keep_best(self) -> None:
        """Write the adapter as it is to ``best/``."""
        temporary = self.folder.path / "best.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        self.model.save_pretrained(str(temporary))
        replace_folder(temporary, self.folder.path / "best")
        self.kept = self.step

    @first_only
    def save(self, **more: Any) -> None:
        """Store the finished step: adapter, progress, and what the objective adds; then the adapter as the best one, if it is."""
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        weights = dict(zip(names, (p.detach().cpu() for p in self.parameters), strict=True))
        self.peak_memory = max(self.peak_memory, self.processes.peak_memory())
        counted, self._cpu_counted = self._cpu_counted, time.process_time()
        self.cpu_seconds += self._cpu_counted - counted
        progress = {name: getattr(self, name) for name in _PROGRESS}
        self.folder.save_state({**progress, "base_fingerprint": self.base_fingerprint, "weights": weights, **more})
        if self.best["step"] == self.step:
            self.keep_best()

    def resume(self) -> dict[str, Any] | None:
        """Take the last finished step up, and return what the objective stored with it; None at the start of a run.

        Raises:
            T2Error: the run was begun with other weights of the base model.
        """
        state = self.folder.load_state(self.processes.first)
        self.processes.wait()
        if state is None:
            return None
        if missing := [name for name in (*_PROGRESS, "weights") if name not in state]:
            raise T2Error(f"{self.folder.path} holds the state of another version of t2, without {', '.join(missing)}. {CURE}")
        if (began := state.get("base_fingerprint", self.base_fingerprint)) != self.base_fingerprint:
            raise T2Error(
                f"{self.folder.path} holds a run on another base model (fingerprint {began} there, {self.base_fingerprint} here). Give "
                "the model that it was begun with, or another name= or output=, or delete the folder."
            )
        for name in _PROGRESS:
            setattr(self, name, state[name])
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                parameters[name].copy_(value)
        self.kept = self.best["step"]
        if self.best["step"] == self.step:
            self.keep_best()  # a kill may have come between the state and the best adapter
        return state

    def close(self) -> None:
        """Let go of what another run in this process may want: the folder, and vLLM's engine."""
        try:
            if self.sampler is not None:
                self.sampler.close()
        finally:
            self.folder.release()

    @torch.no_grad()
    def check_output(self) -> None:
        """See, before anything of it is kept, that the model's logits after one prompt are numbers.

        Raises:
            Diverged: they are not, after a step.
            T2Error: nor are they before the first.
        """
        prompt = prompt_ids(self.model, self.tokenizer, self.prompts(self.split.validation[:1]), self.max_new_tokens)
        training = self.model.training
        self.model.eval()
        logits = self.model(input_ids=torch.tensor(prompt, device=self.processes.device), logits_to_keep=1).logits
        self.model.train(training)
        if logits[:, -1].isfinite().all():
            return
        if self.step == 0:
            raise T2Error(
                f"model {self.config.model or 'null, the default'} gives logits that are not finite, in {self.config.dtype}: its "
                "checkpoint is damaged, or the type too small. Fetch it again, or give dtype=float32."
            )
        raise self.stopped(f"After step {self.step} {_NOT_FINITE}", _SMALLER, Diverged)

    def checked_norm(self, norm: float) -> float:
        """Return the gradient's norm.

        Raises:
            Diverged: it is not finite.
        """
        if not math.isfinite(norm):
            raise self.stopped(f"The gradient of step {self.step + 1} is not finite.", _SMALLER, Diverged)
        return norm


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> list[int]:
    order = list(range(n))
    random.Random(f"{seed}-{epoch}").shuffle(order)  # noqa: S311 - reproducible order, not a secret
    return order


def _git_commit() -> str | None:
    """Return the commit of t2's own checkout; None for an installed t2, even one that lies in another project's checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD", "--show-prefix"], capture_output=True, text=True, check=False
        ).stdout.split()
    except OSError:  # no git
        return None
    return found[0] if found[1:] == [f"{here.name}/"] else None


def _load(source: str, dtype: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return base model and tokenizer.

    Of the model's own generation settings only the ends of a reply stay: with a repetition penalty, say, replies are not the policy's.
    """
    base, tokenizer = load_model(source, "model", getattr(torch, dtype)), load_tokenizer(source, "model")
    if quantised := getattr(base, "quantization_method", None):
        kind = getattr(quantised, "value", quantised)
        raise T2Error(f"model {source} is quantised ({kind}), and t2 train takes weights as they were before.")
    ends = own_ends(base, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(ends[0])
    base.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return base, tokenizer


def _tell_unmatched(wanted: Set[str], adapted: Sequence[str], config: TrainConfig) -> None:
    """Warn of names of modules that the model has not: PEFT raises only where none of them is there."""
    if missing := sorted(wanted - {name.rpartition(".")[2] for name in adapted}):
        logger.warning(
            "The model has no %s: %s adapts %s alone. target_modules=all-linear takes every linear layer.",
            ", ".join(missing),
            config.method,
            ", ".join(sorted(wanted - set(missing))),
        )


def _adapted(base: Any, config: TrainConfig) -> nn.Module:
    adapter = adapter_config(config, base.config.get_text_config().num_hidden_layers)
    wanted = set(adapter.target_modules) if isinstance(adapter.target_modules, set | list) else set()  # type: ignore[attr-defined]
    try:
        model = get_peft_model(base, adapter)
    except ValueError as error:
        raise T2Error(
            f"target_modules={config.target_modules or 'null'} with method={config.method} cannot be adapted on model "
            f"{config.model or 'null, the default'}: {error} Give target_modules=all-linear, or another of {', '.join(PRESETS)}."
        ) from error
    _tell_unmatched(wanted, model.targeted_module_names, config)
    if isinstance(adapter, SvfConfig):
        layers = [module for module in model.modules() if isinstance(module, SvfLayer)]
        for layer in tqdm(layers, desc="singular vectors", unit="matrix"):
            layer.basis()
    else:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return model.eval()
