"""A model by its name, without lm-eval around it."""

from collections.abc import Callable
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

    return _loaded(lambda: AutoModelForCausalLM.from_pretrained(name, dtype=dtype), name, option, "model")


def load_tokenizer(name: str, option: str) -> Any:
    """Return the tokenizer of the model called `name`.

    Raises:
        T2Error: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return _loaded(lambda: AutoTokenizer.from_pretrained(name), name, option, "model's tokenizer")


def _loaded(load: Callable[[], Any], name: str, option: str, what: str) -> Any:
    try:
        return load()
    except (OSError, ValueError, ImportError) as error:
        why = str(error).splitlines()[0]
        raise T2Error(f"{option} {name}: this {what} cannot be loaded ({why}). Give a model's folder or its name on the hub.") from error
