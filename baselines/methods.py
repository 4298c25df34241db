"""The adapters that can be trained, as PEFT configurations: SVF and the paper's baselines."""

from collections.abc import Callable
from typing import Any

from peft import IA3Config, LoraConfig, PeftConfig

from ..adapters.svf import PRESETS, SvfConfig
from ..harness.errors import T2Error
from .config import TrainConfig


def _svf(config: TrainConfig, layers: list[int] | None) -> PeftConfig:
    return SvfConfig(
        target_modules=config.target_modules or "mlp+attention",
        layers_to_transform=layers,
        svf_form=config.svf_form,
        task_type="CAUSAL_LM",
    )


def _lora(config: TrainConfig, layers: list[int] | None) -> PeftConfig:
    return LoraConfig(
        target_modules=_modules(config.target_modules or "attention"),
        layers_to_transform=layers,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_dora=config.method == "dora",
        task_type="CAUSAL_LM",
    )


def _ia3(config: TrainConfig, layers: None) -> PeftConfig:
    """Keys, values and the MLP's inner activations are scaled, as in the IA3 paper; other targets scale their output."""
    if config.target_modules is not None:
        return IA3Config(target_modules=_modules(config.target_modules), feedforward_modules=[], task_type="CAUSAL_LM")
    return IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")


def _modules(name: str) -> list[str] | str:
    preset = PRESETS[name]
    return preset if isinstance(preset, str) else list(preset)


_METHODS: dict[str, Callable[[TrainConfig, Any], PeftConfig]] = {"svf": _svf, "lora": _lora, "dora": _lora, "ia3": _ia3}


def adapter_config(config: TrainConfig, depth: int) -> PeftConfig:
    """Return the PEFT configuration of a run's method.

    Args:
        config: settings.
        depth: layers that the model has.

    Raises:
        T2Error: they are fewer than are to be adapted.
    """
    last = config.last_layers
    if last is not None and last > depth:
        raise T2Error(f"last_layers={last}, and the model has {depth} layers. Give {depth} at most, or null for all.")
    return _METHODS[config.method](config, None if last is None else list(range(depth - last, depth)))
