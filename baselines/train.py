"""``t2 train``: an adapter on a frozen model, by REINFORCE or by next-token prediction, resumable."""

import dataclasses
import errno
import gc
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from ..adapters.experts import CARD
from ..harness.errors import T2Error
from .card import export_best, export_expert
from .config import TrainConfig, load_configs
from .ntp import train_by_next_token
from .reinforce import StepStats, accumulate_gradient, advantages, recomputed_layers
from .rollout import Rollouts
from .run import Diverged, Run, TrainingStopped
from .run_folder import CURE, hold

logger = logging.getLogger("t2.train")


def main(config: str, overrides: Sequence[str] = ()) -> Path:
    """Train as `config` (a YAML file, or a shipped one's name) says, and return the adapter's folder; the same command again resumes."""
    runs = load_configs(config, overrides)
    settings = next(iter(runs.values()))
    path = train(settings) if len(runs) == 1 else sweep(runs)
    if os.environ.get("RANK", "0") != "0":  # the first process writes the card, and tells
        return path
    if json.loads((path / CARD).read_text(encoding="utf-8"))["method"] == "svf":  # a sweep may have chosen among methods
        base = f"pretrained={settings.model}," if settings.model else ""
        arguments = f"{base}experts={path},strategy=expert:{settings.name}"
        print(f"Expert in {path}. Try it: lm_eval --model t2 --model_args {arguments} --apply_chat_template --tasks …")
    else:
        base = settings.model or "<default model's folder: t2 doctor>"
        print(f"Adapter in {path}. Try it: lm_eval --model hf --model_args pretrained={base},peft={path} --apply_chat_template --tasks …")
    return path


def run_folders(config: str, overrides: Sequence[str] = ()) -> list[Path]:
    """Return the folder of the run that `main` makes of the same arguments, or those of a sweep's runs."""
    runs = load_configs(config, overrides)
    return [Path(one.output) / one.name if len(runs) == 1 else _sweep_output(one, label) / one.name for label, one in runs.items()]


def train(config: TrainConfig) -> Path:
    """Train, and return the folder of the best checkpoint with its card.

    Raises:
        T2Error: unknown task, unreachable data, a folder of another run.
        TrainingStopped: the gradient or the model's output is not finite, no reply is rewarded, or memory or disk is full.
    """
    try:
        run = Run(config)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise TrainingStopped(
                f"Out of memory while the model was set up, before any step ({str(error)[:200]}). Take a smaller model= or dtype=bfloat16 "
                f"(now {config.dtype}), or end what else takes the memory; the same command goes on from there."
            ) from error
        raise
    try:
        if config.objective == "ntp":
            train_by_next_token(run)
        else:
            Reinforce(run).train()
        path = export_expert(run)
    except (RuntimeError, OSError, MemoryError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(run, error) from error
        if is_disk_full(error):
            raise run.stopped(
                f"{run.folder.path} cannot be written ({error}).", "Make room; the same command goes on from there."
            ) from error
        raise
    finally:
        run.close()
    run.processes.wait()
    return path


def sweep(runs: Mapping[str, TrainConfig]) -> Path:
    """Train every run of a sweep in ``<output>/<name>.sweep/<label>`` and return the adapter that validates best, the first among equals.

    It is copied to ``<output>/<name>/expert/<name>``, with the validation of all runs on its card. A run that diverges is passed over.

    Raises:
        T2Error: as `train`, or ``<output>/<name>`` is the folder of a single run, or of a sweep that is not part of this one, whose
            adapter would be lost, or is in use.
        Diverged: all runs do.
    """
    first = next(iter(runs.values()))
    target = Path(first.output) / first.name
    with hold(target) if os.environ.get("RANK", "0") == "0" else nullcontext():
        if (target / "config.yaml").exists():
            raise T2Error(f"{target} holds a single run, whose adapter a sweep would replace. {CURE}")
        if (card := target / "expert" / first.name / CARD).exists():
            before = json.loads(card.read_text(encoding="utf-8"))["sweep"]
            if others := sorted({*before["validation"], *before.get("diverged", [])} - {*runs}):
                raise T2Error(
                    f"{target} holds the best adapter of another sweep, over {', '.join(others)}, which this would replace. {CURE}"
                )
        return _sweep(runs)


def _sweep(runs: Mapping[str, TrainConfig]) -> Path:
    made: dict[str, Path] = {}
    diverged: dict[str, Diverged] = {}
    for label, config in runs.items():
        try:
            made[label] = train(dataclasses.replace(config, output=str(_sweep_output(config, label))))
        except Diverged as error:
            diverged[label] = error.with_traceback(None)  # which would keep the model in memory
            gc.collect()
            logger.warning("%s is passed over: %s", label, error)
    if not made:
        raise next(iter(diverged.values()))
    return export_best(made, next(iter(runs.values())), sorted(diverged))


def _sweep_output(config: TrainConfig, label: str) -> Path:
    return Path(config.output) / f"{config.name}.sweep" / label


def is_out_of_memory(error: Exception) -> bool:
    """Return whether this is how PyTorch says that a GPU's memory is full, or the CPU's."""
    words = ("not enough memory", "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return any(each in str(error) for each in words) or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def is_disk_full(error: Exception) -> bool:
    """Return whether a file could not be written, as Python, safetensors or PyTorch say it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    return bool(re.search(r"\(os error (?:27|28|30|122)\)|PytorchStreamWriter failed|inline_container\.cc.*unexpected pos", str(error)))


def out_of_memory(run: Run, error: Exception) -> Exception:
    """Return the error that names the settings to lower."""
    settings = f"tokens_per_pass (now {run.config.tokens_per_pass}) or generation_batch_size (now {run.config.generation_batch_size})"
    return run.stopped(
        f"Out of memory in step {run.step + 1} ({str(error)[:200]}).",
        f"Lower {settings}, or set gradient_checkpointing=true: the run goes on with the new value.",
    )


class Reinforce:
    """REINFORCE on the adapter of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config
        self.optimizer = torch.optim.AdamW(run.parameters, lr=self.config.lr, weight_decay=0.0)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, 0, self.config.steps)
        self.unrewarded = 0

    def train(self) -> None:
        """Run to the last step.

        Raises:
            Diverged: the gradient or the model's output is not finite, or no reply has been rewarded for `stall_steps` steps.
        """
        run = self.run
        state = run.resume()
        if state is None:
            run.validate()
            self._save()
        else:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.unrewarded = state["unrewarded"]
        bar = tqdm(
            total=self.config.steps, initial=run.step, desc=f"train {self.config.name}", unit="step", disable=not run.processes.first
        )
        while not run.finished:
            event = self._step()
            run.folder_log(event)
            if run.step % self.config.eval_every == 0 or run.step == self.config.steps:
                run.validate()
            self._save()
            bar.update()
            bar.set_postfix(reward=f"{event['reward']:.3f}", best=f"{run.best['accuracy']:.3f}")
        bar.close()

    def _save(self) -> None:
        self.run.save(optimizer=self.optimizer.state_dict(), schedule=self.schedule.state_dict(), unrewarded=self.unrewarded)

    def _step(self) -> dict[str, Any]:
        started = time.monotonic()
        run, config = self.run, self.config
        run.rollout_difference = 0.0
        docs = [doc for doc in sorted(run.docs(run.step), key=run.length) for _ in range(config.samples_per_prompt)]
        chunks = list(enumerate(range(0, len(docs), config.generation_batch_size)))
        mine = run.processes.mine(chunks)
        rollouts = [self._sample(number, docs[start : start + config.generation_batch_size]) for number, start in mine]
        sampled = time.monotonic()
        judged = [
            self.run.task.correct(docs[start : start + config.generation_batch_size], part.texts)
            for (_, start), part in zip(mine, rollouts, strict=True)
        ]
        correct = torch.tensor([right for part in run.processes.together(judged) for right in part], dtype=torch.float32)
        self._watch(correct)
        reward = torch.where(correct.bool(), 1.0, config.wrong_reward)
        rewarded = time.monotonic()
        advantage = advantages(reward, config.baseline, config.samples_per_prompt)
        parts = [advantage[start : start + config.generation_batch_size] for _, start in mine]
        stats, norm = self._gradient(rollouts, parts, len(docs)) if advantage.any() or config.kl_coef > 0 else (StepStats(0, 0, 0), 0.0)
        if norm > 0:
            self.optimizer.step()
        lr = self.schedule.get_last_lr()[0]
        self.schedule.step()
        run.step += 1
        run.check_output()
        lengths = run.processes.together([part.reply_mask.sum(1).tolist() for part in rollouts])
        elapsed = time.monotonic() - started
        run.seconds += elapsed
        return {
            "event": "train",
            "step": run.step,
            "reward": float(reward.mean()),
            "accuracy": float(correct.mean()),
            "kl": stats.kl,
            "logprob": stats.logprob,
            "loss": stats.loss,
            "grad_norm": norm,
            "lr": lr,
            "reply_tokens": sum(map(sum, lengths)) / len(docs),
            "seconds": elapsed,
            "seconds_rollout": sampled - started,
            "seconds_reward": rewarded - sampled,
            **({"logprob_difference": run.rollout_difference} if run.sampler else {}),
        }

    def _sample(self, number: int, docs: Sequence[dict[str, Any]]) -> Rollouts:
        # every chunk of every step has its own seed: a resumed run samples what an unbroken one would have, and n processes what one would
        seed = ((self.config.seed * 1_000_003 + self.run.step) * 10_007 + number) % 2**63
        return self.run.sample(docs, self.config.temperature, seed)

    def _gradient(self, rollouts: Sequence[Rollouts], parts: Sequence[Tensor], total: int) -> tuple[StepStats, float]:
        run, config = self.run, self.config
        self.optimizer.zero_grad()
        with recomputed_layers(run.model, config.gradient_checkpointing):
            stats = [
                accumulate_gradient(
                    run.model, run.model.disable_adapter, part, advantage, config.kl_coef, config.temperature, config.tokens_per_pass,
                    config.kl_form, total,
                )
                for part, advantage in zip(rollouts, parts, strict=True)
            ]  # fmt: skip
        run.processes.sum_gradients(run.parameters)
        everyone = run.processes.together(stats)
        norm = run.checked_norm(float(nn.utils.clip_grad_norm_(run.parameters, config.max_grad_norm)))
        return StepStats(*(sum(getattr(s, name) for s in everyone) for name in ("loss", "kl", "logprob"))), norm

    def _watch(self, correct: Tensor) -> None:
        """Stop where nothing is learned any more: no reply is right, again and again."""
        self.unrewarded = 0 if correct.any() else self.unrewarded + 1
        if self.unrewarded < self.config.stall_steps:
            return
        best, n = self.run.best, self.unrewarded * len(correct)
        why = f"None of the last {n} replies was right, while the best validation was {best['accuracy']:.1%} (step {best['step']}): "
        if (1 - best["accuracy"]) ** n > 0.01:  # the chance of that for a policy as good as the best
            why += "the base model is too weak for this task."
            cure = "Try an easier form or subset of the task, a larger model, more samples a step, or a lower temperature."
        else:
            why += "the policy has collapsed."
            cure = "Lower lr, or raise kl_coef."
        raise self.run.stopped(why, cure, Diverged)
