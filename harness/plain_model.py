"""A model by its name, without lm-eval around it."""

from typing import Any

from .errors import T2Error


def load_model(name: str, option: str, dtype: Any = "auto") -> Any:
    """Return the causal language model called `name`, on the CPU.

    Args:
        name: its folder, or its name on the hub.
        option: what named it (``--to``), for the error.
        dtype: of its weights; ``auto`` is their own.

    Raises:
        T2Error: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise T2Error(f"{option} {name}: this model cannot be loaded ({why}). Give a model's folder or its name on the hub.") from error
