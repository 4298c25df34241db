"""Typed configuration of a training run: one YAML per experiment, ``key=value`` overrides, all errors at once."""

import dataclasses
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ..harness.errors import T2Error, nearest


class ConfigError(T2Error):
    """A training configuration that cannot be used; the message lists every error in it."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one SVF-REINFORCE run; defaults are the paper's (appendix A) unless said otherwise.

    Attributes:
        name: of the expert; also the folder of the run under `output`.
        task: a training task (`t2.tasks.training.TASKS`).
        description: one line for the expert's card.
        model: Hugging Face name or folder; None is the default model.
        dtype: of the frozen weights; z and its optimiser are float32 always.
        target_modules: `t2.adapters.svf.PRESETS` name.
        steps: optimiser steps.
        prompts_per_step, samples_per_prompt: their product is the batch (the paper's is 256).
        lr: of AdamW, cosine decay to 0 over `steps`; weight decay is 0, for 0 is no neutral value of z.
        max_grad_norm: gradient clip.
        kl_coef: λ of equation 1; the KL is KL(π_W' ‖ π_W), exact over the vocabulary, summed over a reply's tokens.
        baseline: ``none`` (the paper) or ``batch``: the batch's mean reward is subtracted.
        temperature: of the rollouts.
        max_new_tokens: of a reply; None takes the task's.
        seed: of split, order and sampling.
        eval_every: steps between validations.
        eval_docs: first so many documents of the validation half.
        generation_batch_size: prompts that are answered at a time, in rollouts and validations.
        tokens_per_pass: token budget of one forward-backward pass (prompt and reply, with padding).
        output: folder of runs.
    """

    name: str
    task: str
    description: str = ""
    model: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    target_modules: str = "mlp+attention"
    steps: int = 100
    prompts_per_step: int = 256
    samples_per_prompt: int = 1
    lr: float = 2e-3
    max_grad_norm: float = 1e-3
    kl_coef: float = 0.0
    baseline: Literal["none", "batch"] = "none"
    temperature: float = 1.0
    max_new_tokens: int | None = None
    seed: int = 0
    eval_every: int = 5
    eval_docs: int = 256
    generation_batch_size: int = 64
    tokens_per_pass: int = 4096
    output: str = "runs"


_POSITIVE = ("steps", "prompts_per_step", "samples_per_prompt", "lr", "max_grad_norm", "temperature", "eval_every", "eval_docs",
             "generation_batch_size", "tokens_per_pass")  # fmt: skip


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply ``key=value`` overrides, whose values are YAML too.

    Raises:
        ConfigError: file missing or not a mapping, unknown keys (nearest named), wrong types or values: all of them in one message.
    """
    path = Path(path)
    if not path.is_file():
        shipped = {p.stem: p for p in (Path(__file__).parent / "configs").glob("*.yaml")}
        if path.name not in shipped:
            raise ConfigError(f"No such configuration: {path}. Give a YAML file or a shipped one.{nearest(path.name, shipped)}")
        path = shipped[path.name]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a mapping of settings; it is {type(values).__name__}.")
    errors: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            errors.append(f"{override!r} is not key=value")
            continue
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            errors.append(f"the value of {override!r} is not YAML")
    return parse_config(values, errors, str(path))


def parse_config(values: dict[Any, Any], errors: list[str], source: str) -> TrainConfig:
    """Check `values` against `TrainConfig`; `errors` found before are reported along.

    Raises:
        ConfigError: see `load_config`.
    """
    hints = get_type_hints(TrainConfig)
    clean: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            errors.append(f"unknown key {key!r}.{nearest(str(key), hints)}")
            continue
        try:
            clean[key] = _coerce(value, hints[key])
        except (TypeError, ValueError):
            errors.append(f"{key} must be {_describe(hints[key])}; got {value!r}")
    required = [f.name for f in dataclasses.fields(TrainConfig) if f.default is dataclasses.MISSING]
    errors += [f"{name} is required" for name in required if name not in values]
    errors += [f"{key} must be positive; got {clean[key]}" for key in _POSITIVE if key in clean and not clean[key] > 0]
    if clean.get("kl_coef", 0) < 0:
        errors.append(f"kl_coef must not be negative; got {clean['kl_coef']}")
    if errors:
        raise ConfigError(f"{source}: " + "; ".join(errors))
    return TrainConfig(**clean)


def _coerce(value: Any, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _coerce(value, next(a for a in get_args(hint) if a is not type(None)))
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError
        return value
    if hint is float and (isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))):
        return float(value)  # YAML 1.1 reads 2e-3 as text
    if not isinstance(value, hint) or isinstance(value, bool):
        raise TypeError
    return value


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else a.__name__ for a in get_args(hint))
    return hint.__name__
