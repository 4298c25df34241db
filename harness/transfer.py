"""The model that experts are transferred to."""

from typing import Any

from .errors import T2Error


def load_target(name: str) -> Any:
    """Return the model called `name`, on the CPU in its own dtype.

    Raises:
        T2Error: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    except (OSError, ValueError) as error:
        raise T2Error(f"--to {name}: this model cannot be loaded ({str(error).splitlines()[0]}).") from None
