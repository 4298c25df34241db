"""Typed configuration of a training run: one YAML per experiment, ``key=value`` overrides, all errors at once."""

import dataclasses
import inspect
import itertools
import json
import math
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ..harness.errors import T2Error, nearest


class ConfigError(T2Error):
    """A configuration or a study that cannot be used; the message lists every error in it."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; defaults are the paper's (sections 3 and 4.1, appendix A) unless said otherwise.

    Attributes:
        name: of the expert; also the folder of the run under `output`.
        task: a training task (`t2.tasks.training.TASKS`), one of lm-eval's, or the path of its YAML file.
        description: one line for the expert's card, by which pass 1 knows what the expert is for.
        model: Hugging Face name or folder; None is the default model.
        dtype: of the frozen weights; z and its optimiser are float32 always.
        method: ``svf``, or one of PEFT's: ``lora``, ``dora``, ``ia3``.
        objective: ``reinforce`` (equation 1) or ``ntp``: next-token prediction of the official solutions, prompts masked.
        target_modules: ``attention`` (q_proj, v_proj), ``mlp`` (gate_proj, up_proj, down_proj), ``mlp+attention``, ``all-linear``, or
            None: the method's own (SVF ``mlp+attention``, LoRA and DoRA ``attention``, IA3 keys, values and MLP).
        last_layers: adapt so many layers at the model's end alone, the others need no backward pass (the paper takes half for its 70B model
            and for vision); None: all.
        svf_form: ``scale`` or ``renormalised`` (see `SvfConfig`).
        lora_r, lora_alpha, lora_dropout: of LoRA and DoRA; the dropout acts under ``ntp`` alone: ``reinforce`` trains
            the policy that sampled.
        steps: optimiser steps.
        prompts_per_step, samples_per_prompt: their product is the batch (the paper's is 256).
        lr: of AdamW, cosine decay to 0 over `steps`; weight decay is 0, for 0 is no neutral value of z.
        max_grad_norm: gradient clip.
        kl_coef: λ of equation 1; the KL is summed over a reply's tokens.
        kl_form: ``policy_base``: KL(π_W' ‖ π_W), exact over the vocabulary (the paper); ``base_policy``: KL(π_W ‖ π_W') (its
            reference code); ``k3``: Schulman's estimator of the first from the sampled tokens alone, differentiated as it is, as in GRPO:
            its expected gradient is that of the second.
        baseline: subtracted from the rewards: ``none`` (the paper), ``batch``: the batch's mean, ``leave_one_out``: the mean of the
            same prompt's other samples (RLOO; needs samples_per_prompt > 1).
        wrong_reward: of a wrong reply; a right one gets 1 (the paper's vision tasks: -0.1).
        temperature: of the rollouts.
        max_new_tokens: of a reply; None takes the task's.
        seed: of split, order and sampling.
        eval_every: steps between validations.
        eval_docs: first so many documents of the validation half.
        patience: validations without a new best after which the run ends; None never ends it early.
        stall_steps: steps in a row without a single rewarded reply after which the run stops with an error.
        rollout: what samples replies, in rollouts and validations: ``transformers``, or ``vllm``, an engine beside the policy.
        vllm_gpu_memory_utilization: share of a GPU's memory that this engine takes; on a CPU VLLM_CPU_KVCACHE_SPACE says (in GiB).
        generation_batch_size: prompts that are answered at a time, in rollouts and validations.
        tokens_per_pass: token budget of one forward-backward pass (prompt and reply, with padding).
        gradient_checkpointing: recompute each layer in the backward pass, and give freed memory back at once: less memory, more time.
        output: folder of runs.
    """

    name: str
    task: str
    description: str = ""
    model: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    method: Literal["svf", "lora", "dora", "ia3"] = "svf"
    objective: Literal["reinforce", "ntp"] = "reinforce"
    target_modules: Literal["attention", "mlp", "mlp+attention", "all-linear"] | None = None
    last_layers: int | None = None
    svf_form: Literal["scale", "renormalised"] = "scale"
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    steps: int = 100
    prompts_per_step: int = 256
    samples_per_prompt: int = 1
    lr: float = 2e-3
    max_grad_norm: float = 1e-3
    kl_coef: float = 0.0
    kl_form: Literal["policy_base", "base_policy", "k3"] = "policy_base"
    baseline: Literal["none", "batch", "leave_one_out"] = "none"
    wrong_reward: float = -1.0
    temperature: float = 1.0
    max_new_tokens: int | None = None
    seed: int = 0
    eval_every: int = 5
    eval_docs: int = 256
    patience: int | None = None
    stall_steps: int = 10
    rollout: Literal["transformers", "vllm"] = "transformers"
    vllm_gpu_memory_utilization: float = 0.3
    generation_batch_size: int = 32
    tokens_per_pass: int = 2048
    gradient_checkpointing: bool = False
    output: str = "runs"

    @property
    def batch(self) -> int:
        """Samples of one step: replies, or under ``ntp`` solutions."""
        return self.prompts_per_step * (self.samples_per_prompt if self.objective == "reinforce" else 1)


_POSITIVE = ("steps", "prompts_per_step", "samples_per_prompt", "lr", "max_grad_norm", "temperature", "max_new_tokens", "eval_every",
             "eval_docs", "patience", "stall_steps", "generation_batch_size", "tokens_per_pass", "lora_r", "lora_alpha",
             "last_layers")  # fmt: skip


def settings_help() -> str:
    """Return every setting with its default and its meaning, a paragraph each."""
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}

    def shown(name: str) -> str:
        return name if defaults[name] is dataclasses.MISSING else f"{name}={json.dumps(defaults[name])}".replace('"', "")

    meanings = str(inspect.getdoc(TrainConfig)).partition("Attributes:\n")[2].replace("``", "").replace("None", "null")
    names = r"^ {4}([a-z_0-9]+(?:, [a-z_0-9]+)*):"
    return re.sub(names, lambda found: f"  {', '.join(map(shown, found[1].split(', ')))}:", meanings, flags=re.MULTILINE)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply ``key=value`` overrides, whose values are YAML too; see `load_configs` for the errors.

    Raises:
        ConfigError: also where the file is a sweep.
    """
    configs = load_configs(path, overrides)
    if len(configs) > 1:
        raise ConfigError(f"{path} is a sweep of {len(configs)} runs, where one is asked for.")
    return next(iter(configs.values()))


def read_yaml(path: str | Path, folder: str, what: str) -> tuple[Path, dict[str, Any]]:
    """Return where a YAML file is, and its mapping.

    Args:
        path: the file, or the name of one that is shipped.
        folder: of the shipped ones, beside this module.
        what: it is, in errors.

    Raises:
        ConfigError: there is no such file, or it is no mapping.
    """
    path = Path(path)
    if not path.is_file():
        shipped = {p.stem: p for p in (Path(__file__).parent / folder).glob("*.yaml")}
        if path.name not in shipped:
            raise ConfigError(f"No such {what}: {path}. Give a YAML file or a shipped one.{nearest(path.name, shipped)}")
        path = shipped[path.name]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that is none
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a mapping of settings; it is {type(values).__name__}.")
    return path, values


def load_configs(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, TrainConfig]:
    """Return the runs that a YAML file with ``key=value`` overrides asks for: label → settings.

    A list in place of a value is a sweep: ``kl_coef: [0.0, 0.1]`` makes the runs ``kl_coef=0.0`` and ``kl_coef=0.1``, several lists all
    their combinations. Without one there is a single run, labelled ``""``.

    Raises:
        ConfigError: file missing or not a mapping, unknown keys (nearest named), wrong types or values: all of them in one message.
    """
    path, values = read_yaml(path, "configs", "configuration")
    errors: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            errors.append(f"{override!r} is not key=value")
            continue
        if not value.strip():  # a shell's variable that is not set, most likely
            errors.append(f"{override} gives no value; {key}=null means none")
            continue
        try:
            values[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
            errors.append(f"the value of {override!r} is not YAML")
    swept = {key: value for key, value in values.items() if isinstance(value, list)}
    for key in [key for key, value in swept.items() if not value]:
        errors.append(f"{key} is an empty list")
        del values[key], swept[key]
    errors += [f"{key} cannot be swept" for key in swept if key in ("name", "output", "task", "model", "seed", "eval_docs")]
    runs = {}
    for chosen in itertools.product(*swept.values()):
        label = ",".join(f"{key}={value}" for key, value in zip(swept, chosen, strict=True))
        runs[label] = parse_config({**values, **dict(zip(swept, chosen, strict=True))}, errors, str(path))
    if errors:
        raise ConfigError(f"{path}: " + "; ".join(errors))
    return runs


def parse_config(values: dict[Any, Any], errors: list[str], source: str) -> TrainConfig:
    """Check `values` against `TrainConfig`; `errors` found before are reported along.

    Raises:
        ConfigError: see `load_configs`.
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
    if isinstance(name := clean.get("name", "x"), str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        errors.append(
            f"name becomes a folder and an argument of lm_eval: letters, digits, _ . - only, the first a letter or digit; got {name!r}"
        )
    if clean.get("name") in ("base", "others"):
        errors.append(f"name {clean['name']!r} means the unadapted weights wherever experts are named; give another")
    if not 0 <= clean.get("seed", 0) < 2**32:
        errors.append(f"seed must be from 0 to {2**32 - 1}; got {clean['seed']}")
    errors += [f"{key} must be positive; got {clean[key]}" for key in _POSITIVE if clean.get(key) is not None and not clean[key] > 0]
    endless = [key for key, value in clean.items() if isinstance(value, float) and math.isinf(value) and key != "max_grad_norm"]
    errors += [f"{key} must be finite; got {clean[key]}" for key in endless]
    if clean.get("kl_coef", 0) < 0:
        errors.append(f"kl_coef must not be negative; got {clean['kl_coef']}")
    if clean.get("baseline") == "leave_one_out" and clean.get("samples_per_prompt", 1) < 2:
        errors.append("baseline leave_one_out needs samples_per_prompt of at least 2")
    if clean.get("last_layers") is not None:
        if clean.get("method") == "ia3":
            errors.append("last_layers goes with svf, lora and dora: PEFT's IA3 has all layers")
        elif clean.get("method") in ("lora", "dora") and clean.get("target_modules") == "all-linear":
            errors.append(f"last_layers goes with target_modules attention, mlp or mlp+attention where method is {clean['method']}")
    if not 0 < clean.get("vllm_gpu_memory_utilization", 0.3) < 1:
        errors.append(f"vllm_gpu_memory_utilization must be in (0, 1); got {clean['vllm_gpu_memory_utilization']}")
    if not 0 <= clean.get("lora_dropout", 0) < 1:
        errors.append(f"lora_dropout must be in [0, 1); got {clean['lora_dropout']}")
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
        value = float(value)  # YAML 1.1 reads 2e-3 as text
    if isinstance(value, float) and math.isnan(value):
        raise ValueError
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    return value


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in get_args(hint))
    return hint.__name__
