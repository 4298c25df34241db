"""``t2 train``: SVF by REINFORCE on a frozen model, resumable at every step."""

import dataclasses
import math
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ..adapters.svf import SvfConfig, SvfLayer, fingerprint
from ..harness.errors import T2Error
from ..harness.fetch import default_model
from ..tasks.training import Split, TrainTask, split_halves, train_task
from .card import export_expert
from .config import TrainConfig, load_config
from .reinforce import StepStats, accumulate_gradient, advantages
from .rollout import chat_prompts, generate
from .run_folder import RunFolder


class TrainingStopped(T2Error):
    """Training cannot go on (NaN, …); the last good checkpoint is kept and named."""


def main(config: str, overrides: Sequence[str] = ()) -> int:
    """Train as `config` (a YAML file, or a shipped one's name) says; the same command again resumes. Returns the exit status."""
    settings = load_config(config, overrides)
    run = Trainer(settings).train()
    print(f"Expert in {run}. Try it: lm_eval --model t2 --model_args experts={run},strategy=expert:{settings.name} --tasks …")
    return 0


class Trainer:
    """One run: its model, data, optimiser and folder.

    Args:
        config: settings.

    Raises:
        T2Error: unknown task, unreachable data, a folder of another run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.task: TrainTask = train_task(config.task)
        self.split: Split = split_halves(self.task, config.seed)
        self.folder = RunFolder(Path(config.output) / config.name, dataclasses.asdict(config))
        source = config.model or str(default_model())
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        base: Any = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, config.dtype))
        base = base.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        svf = SvfConfig(target_modules=config.target_modules, task_type="CAUSAL_LM")
        self.model = get_peft_model(base, svf)
        layers = {n.removeprefix("base_model.model."): m for n, m in self.model.named_modules() if isinstance(m, SvfLayer)}
        svf.base_fingerprint = fingerprint({n: m.base_weight() for n, m in layers.items()})
        for layer in tqdm(layers.values(), desc="singular vectors", unit="matrix"):
            layer.basis()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.lr, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1)))
        )
        self.step = 0
        self.best: dict[str, Any] = {"step": -1, "accuracy": -1.0}
        self.seconds = 0.0

    @property
    def max_new_tokens(self) -> int:
        """Length at which a reply is cut, in tokens."""
        return self.config.max_new_tokens or self.task.max_new_tokens

    def train(self) -> Path:
        """Run to the last step and export the best checkpoint; return the expert's folder.

        Raises:
            TrainingStopped: the gradient is not finite.
        """
        if not self._resume():
            self._validate()
            self._save()
        bar = tqdm(total=self.config.steps, initial=self.step, desc=f"train {self.config.name}", unit="step")
        while self.step < self.config.steps:
            event = self._train_step()
            self.folder.log(event)
            if self.step % self.config.eval_every == 0 or self.step == self.config.steps:
                self._validate()
            self._save()
            bar.update()
            bar.set_postfix(reward=f"{event['reward']:.3f}", best=f"{self.best['accuracy']:.3f}")
        bar.close()
        return export_expert(self)

    def _train_step(self) -> dict[str, Any]:
        started = time.monotonic()
        config = self.config
        # every step has its own seed, so a resumed run samples what an unbroken one would have
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        docs = [doc for doc in self._docs(self.step) for _ in range(config.samples_per_prompt)]
        prompts = chat_prompts(self.tokenizer, [self.task.prompt(doc) for doc in docs])
        rollouts = generate(self.model, self.tokenizer, prompts, self.max_new_tokens, config.temperature, config.generation_batch_size)
        sampled = time.monotonic()
        correct = torch.tensor(self.task.correct(docs, rollouts.texts), dtype=torch.float32)
        reward = 2 * correct - 1
        judged = time.monotonic()
        advantage = advantages(reward, config.baseline)
        stats = StepStats(0.0, 0.0, 0.0)
        norm = 0.0
        self.optimizer.zero_grad()
        if advantage.any() or config.kl_coef > 0:
            stats = accumulate_gradient(
                self.model, self.model.disable_adapter, rollouts, advantage, config.kl_coef, config.temperature, config.tokens_per_pass
            )
            norm = float(nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm))
            if not math.isfinite(norm):
                raise TrainingStopped(
                    f"The gradient of step {self.step + 1} is not finite. The state before it is kept in {self.folder.path}, and the best "
                    f"adapter so far (step {self.best['step']}) in {self.folder.path / 'best'}. Lower lr, or use dtype=float32."
                )
            self.optimizer.step()
        self.schedule.step()
        self.step += 1
        elapsed = time.monotonic() - started
        self.seconds += elapsed
        return {
            "event": "train",
            "step": self.step,
            "reward": float(reward.mean()),
            "accuracy": float(correct.mean()),
            "kl": stats.kl,
            "logprob": stats.logprob,
            "loss": stats.loss,
            "grad_norm": norm,
            "lr": self.schedule.get_last_lr()[0],
            "reply_tokens": float(rollouts.reply_mask.sum(1).mean()),
            "seconds": elapsed,
            "seconds_rollout": sampled - started,
            "seconds_reward": judged - sampled,
        }

    def _docs(self, step: int) -> list[dict[str, Any]]:
        """Return step's documents: the training half, shuffled anew each epoch, without replacement within one."""
        n, size = len(self.split.train), self.config.prompts_per_step
        picked = []
        for position in range(step * size, (step + 1) * size):
            epoch, index = divmod(position, n)
            picked.append(self.split.train[self._order(epoch)[index]])
        return picked

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.split.train)))
        random.Random(f"{self.config.seed}-{epoch}").shuffle(order)  # noqa: S311 - reproducible order, not a secret
        return order

    def _validate(self) -> None:
        started = time.monotonic()
        docs = self.split.validation[: self.config.eval_docs]
        prompts = chat_prompts(self.tokenizer, [self.task.prompt(doc) for doc in docs])
        replies = generate(self.model, self.tokenizer, prompts, self.max_new_tokens, 0, self.config.generation_batch_size).texts
        correct = self.task.correct(docs, replies)
        accuracy = sum(correct) / len(correct)
        elapsed = time.monotonic() - started
        self.seconds += elapsed
        self.folder.log({"event": "validation", "step": self.step, "accuracy": accuracy, "n": len(docs), "seconds": elapsed})
        if accuracy > self.best["accuracy"]:
            self.best = {"step": self.step, "accuracy": accuracy}
            temporary = self.folder.path / "best.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            self.model.save_pretrained(str(temporary))
            shutil.rmtree(self.folder.path / "best", ignore_errors=True)
            temporary.rename(self.folder.path / "best")

    def _save(self) -> None:
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        self.folder.save_state(
            {
                "step": self.step,
                "z": dict(zip(names, (p.detach().cpu() for p in self.parameters), strict=True)),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "best": self.best,
                "seconds": self.seconds,
            }
        )

    def _resume(self) -> bool:
        state = self.folder.load_state()
        if state is None:
            return False
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, z in state["z"].items():
                parameters[name].copy_(z)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return True
