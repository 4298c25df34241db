"""Next-token prediction on the official solutions, prompt tokens masked, by transformers' Trainer (the paper's baselines)."""

import copy
import time
from contextlib import nullcontext
from typing import Any

import torch
from lm_eval.models.utils import resolve_max_length
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..harness.errors import T2Error
from .reinforce import passes
from .rollout import prompt_ids, reply_end
from .run import Run
from .run_folder import CURE


def train_by_next_token(run: Run) -> None:
    """Train the adapter of `run` to its last step, from the last validation on if the run was begun before.

    A step reads `prompts_per_step` documents. The state between validations is not kept: a killed run repeats at most `eval_every` steps.

    Raises:
        T2Error: the task has no solutions to learn from, or the processes cannot share a step's documents.
        TrainingStopped: a gradient or the model's output is not finite.
    """
    solution = run.task.solution
    if solution is None:
        raise T2Error(f"Task {run.config.task!r} has no official solutions, which objective ntp learns from. Take objective=reinforce.")
    size, count = run.config.prompts_per_step, run.processes.count
    if size % count:
        raise T2Error(f"prompts_per_step={size} cannot be dealt out to {count} processes evenly. Give a multiple of {count}.")
    state = run.resume()
    if state is None:
        run.validate()
        run.keep_best()
    if run.finished:
        return
    docs = [doc for step in range(run.config.steps) for doc in run.docs(step)]  # every step whole, in the order of REINFORCE
    end = reply_end(run.model, run.tokenizer)
    prompts = prompt_ids(run.model, run.tokenizer, run.prompts(docs), run.max_new_tokens)
    limit = resolve_max_length(run.model.config, run.tokenizer)  # type: ignore[arg-type]
    rows = [_row(run.tokenizer, prompt, solution(doc), end, limit) for prompt, doc in zip(prompts, docs, strict=True)]
    trainer = _InPasses(
        run.config.tokens_per_pass,
        model=run.model,
        args=_arguments(run),
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=_collator(run.tokenizer),
        callbacks=[_Progress(run)],
    )
    trainer.remove_callback(PrinterCallback)
    if not run.processes.first:
        trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=_checkpoint(run, state["checkpoint"]) if state else None)


def _checkpoint(run: Run, name: str) -> str:
    path = run.folder.path / "checkpoints" / name
    if not path.is_dir():
        raise T2Error(f"{path}, from where the run would go on, is gone. {CURE}")
    return str(path)


def _row(tokenizer: Any, prompt: list[int], solution: str, end: int, limit: int) -> dict[str, list[int]]:
    """Return ids, `limit` at most, and labels that are -100 on the prompt; the token `end` is learned too.

    A long prompt gives way on its left, as beside a reply; a solution that fills the model alone loses its end.
    """
    reply = [*tokenizer(solution, add_special_tokens=False)["input_ids"], end][: limit - 1]
    start = prompt[-(limit - len(reply)) :]
    return {"input_ids": start + reply, "attention_mask": [1] * len(start + reply), "labels": [-100] * len(start) + reply}


def _collator(tokenizer: Any) -> DataCollatorForSeq2Seq:
    """Pad on the right, whatever side a rollout has given the tokenizer: a run that goes on pads as an unbroken one does."""
    own = copy.copy(tokenizer)
    own.padding_side = "right"
    return DataCollatorForSeq2Seq(own, padding="longest")


class _InPasses(Trainer):
    """Takes a step's documents in passes of `tokens_per_pass` tokens, sorted by length: a long one widens its own pass alone.

    Logits are made from the pass's first learned token on; prompts need none.
    """

    def __init__(self, tokens_per_pass: int, **options: Any) -> None:
        super().__init__(compute_loss_func=_loss, **options)
        self.tokens_per_pass = tokens_per_pass

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Add up gradient and loss of a process's share of a step; the processes' gradients are averaged at its last pass."""
        lengths = inputs["attention_mask"].sum(1).cpu()  # read again and again
        firsts = (inputs["labels"] != -100).int().argmax(1).cpu()
        groups = list(passes(torch.zeros_like(lengths), lengths, self.tokens_per_pass))
        losses = []
        for index in groups:
            first, width = max(int(firsts[index].min()), 1), int(lengths[index].max())
            part = {name: values[index, :width] for name, values in inputs.items()}
            part["labels"] = part["labels"][:, first:].contiguous()
            part["logits_to_keep"] = torch.arange(first - 1, width - 1)
            with nullcontext() if index is groups[-1] else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()


def _loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    """Return a pass's part of the mean over all tokens that the step learns, for any model: some give the mean over a pass.

    Args:
        outputs: with the logits ``[b, T, V]`` that predict `labels`, or those of whole rows where a model knows no `logits_to_keep`.
        labels: ``[b, T]``, to the rows' end, -100 where nothing is learned.
        num_items_in_batch: tokens that the step learns.
    """
    logits, wanted = outputs["logits"], labels.shape[1]
    if logits.shape[1] != wanted:
        logits = logits[:, -wanted - 1 : -1].contiguous()
    return ForCausalLMLoss(logits, labels, logits.shape[-1], num_items_in_batch, shift_labels=labels)


def _arguments(run: Run) -> TrainingArguments:
    config = run.config
    arguments = TrainingArguments(
        output_dir=str(run.folder.path / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=config.prompts_per_step // run.processes.count,
        optim="adamw_torch",
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=config.eval_every,
        save_total_limit=2,  # the one before is needed until `state.pt` names the new one
        remove_unused_columns=False,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    # one device a process: on several, DataParallel would make the batch larger, and documents would come again
    arguments._n_gpu = min(arguments.n_gpu, 1)
    arguments.mixed_precision = "no"  # `accelerate launch` would have it from the user's saved configuration; `dtype` says it
    return arguments


class _Progress(TrainerCallback):
    """Writes the run's metrics, validates where the Trainer saves, and names the checkpoint that is whole."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.began = time.monotonic()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop before a gradient that is not finite reaches the weights."""
        gradients = [p.grad for p in self.run.parameters if p.grad is not None]
        self.run.checked_norm(float(torch.nn.utils.get_total_norm(gradients)))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the model before anything of it is saved; validate and save at the last step too."""
        self.run.step = state.global_step
        self.run.check_output()
        control.should_save |= state.global_step == self.run.config.steps

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **kwargs: Any) -> None:
        """Log a step."""
        if "loss" not in logs:  # the summary at the end
            return
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        self.run.seconds += seconds
        shown = {key: logs[name] for key, name in (("loss", "loss"), ("grad_norm", "grad_norm"), ("lr", "learning_rate"))}
        self.run.folder_log({"event": "train", "step": state.global_step, **shown, "seconds": seconds})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Validate, then say that the Trainer's checkpoint is whole."""
        self.run.validate()
        self.run.save(checkpoint=f"checkpoint-{state.global_step}")
        control.should_training_stop |= self.run.finished
        self.began = time.monotonic()
