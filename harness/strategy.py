"""What a user asks of model `t2`: the strategy, and model arguments that are checked before anything is loaded."""

import difflib
import inspect
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..adapters.errors import AdapterError
from ..adapters.experts import find_experts, shipped
from ..adapters.mixture import Mixture
from .errors import T2Error, nearest

STRATEGIES = ("base", "expert:<name>", "mix:<name>=<alpha>+…", "prompt", "cls")

PASSED_ON = frozenset(
    {
        *("attn_implementation", "experts_implementation", "device_map", "use_safetensors", "variant", "weights_only"),
        *("low_cpu_mem_usage", "max_memory", "offload_state_dict", "offload_buffers"),
        *("cache_dir", "force_download", "local_files_only", "proxies", "token"),
        *("load_in_4bit", "load_in_8bit", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
    }
)
"""Arguments that lm-eval's `hf` model hands on to transformers' ``from_pretrained``: the ones `t2` lets through."""


class ModelArgumentError(T2Error, ValueError):
    """A model argument that is unknown, or has a value that cannot be used."""


@dataclass(frozen=True)
class Strategy:
    """How the weights of pass 2 are found.

    Attributes:
        kind: ``fixed`` (one mixture for all prompts; base and single experts are mixtures too), ``prompt`` (pass 1 chooses, with the
            base weights) or ``cls`` (it does with a classifier expert's).
        mixture: of ``fixed``.
        first: the weights of pass 1.
    """

    kind: Literal["fixed", "prompt", "cls"]
    mixture: Mixture = field(default_factory=Mixture.base)
    first: Mixture = field(default_factory=Mixture.base)

    @property
    def is_base(self) -> bool:
        """True if no expert can ever be applied."""
        return self.kind == "fixed" and self.mixture.is_base

    def __str__(self) -> str:
        if self.kind != "fixed" or self.is_base:
            return "base" if self.kind == "fixed" else self.kind
        names = str(self.mixture)
        return f"mix:{names}" if "=" in names else f"expert:{names}"


def parse_strategy(text: Any) -> Strategy:
    """Read ``base | expert:<name> | mix:<name>=<alpha>+… | prompt | cls``.

    Raises:
        ModelArgumentError: none of these; the nearest one is suggested.
    """
    kind, colon, rest = str(text).strip().partition(":")
    kind, rest = kind.strip().lower(), rest.strip()
    try:
        if kind in ("base", "prompt", "cls") and not colon:
            return Strategy("fixed" if kind == "base" else kind)
        if kind == "expert" and rest and "=" not in rest and "+" not in rest:
            return Strategy("fixed", Mixture.single(rest))
        if kind == "mix" and rest:
            return Strategy("fixed", Mixture.parse(rest))
    except AdapterError as error:
        raise ModelArgumentError(f"strategy={text}: {error}") from None
    if kind in ("expert", "mix"):
        form = STRATEGIES[1 if kind == "expert" else 2]
        raise ModelArgumentError(f"strategy={text} is not of the form {form}, e.g. expert:math or mix:math=0.5+code=0.5.")
    close = difflib.get_close_matches(kind, ["base", "expert", "mix", "prompt", "cls"], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ModelArgumentError(f"Unknown strategy {str(text)!r}.{hint} It is one of: {', '.join(STRATEGIES)}.")


def parse_experts(value: Any) -> dict[str, Path] | None:
    """Read the argument ``experts``: name → folder of one expert, or None for the shipped ones.

    Args:
        value: a folder (an expert, or a folder of experts; ``shipped`` for those inside the package), several joined by ``:``
            (`os.pathsep`) or in a list, each with or without ``name=`` before it, or a mapping name → folder.

    Raises:
        ModelArgumentError: a folder without experts, or two experts of one name.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        parts = [f"{name}={path}" for name, path in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        parts = [str(part) for part in value]
    else:
        text = str(value).strip()
        parts = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else text.split(os.pathsep)
    found: dict[str, Path] = {}
    for part in (p.strip().strip("'\"") for p in parts):
        if not part:
            continue
        name, equals, path = part.partition("=")
        if not equals or os.sep in name:
            name, path = "", part
        try:
            inside = shipped() if path == "shipped" else find_experts(path)
        except AdapterError as error:
            raise ModelArgumentError(f"experts={value}: {error}") from None
        if name and len(inside) > 1:
            raise ModelArgumentError(f"experts={value}: {path} holds {len(inside)} experts, which cannot all be called {name!r}.")
        for own, folder in inside.items():
            if (name or own) in found:
                raise ModelArgumentError(f"experts={value}: {name or own!r} is there twice; name one of them, as in other={folder}.")
            found[name or own] = folder
    if not found:
        raise ModelArgumentError(f"experts={value!r} names no folder.")
    return found


def check_model_args(host: type, own: Sequence[str], extra: Mapping[str, Any], passed_on: Collection[str]) -> None:
    """Check the arguments that go on to lm-eval's class `host`, which would itself pass over an unknown one without a word.

    Args:
        host: lm-eval's model class.
        own: names of the arguments that `t2` adds.
        extra: what the user gave besides those.
        passed_on: names that `host` hands on to whatever it loads its model with.

    Raises:
        ModelArgumentError: listing every unknown argument, each with its nearest match.
    """
    takes = {name for name, p in inspect.signature(host.__init__).parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    known = (takes | set(own) | set(passed_on)) - {"self"}
    if unknown := [name for name in extra if name not in known]:
        hints = []
        for name in unknown:
            close = difflib.get_close_matches(name, known, n=1)
            hints.append(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        several = "s" if len(unknown) > 1 else ""
        shown = sorted(known if len(known) <= 100 else takes | set(own) - {"self"})
        more = "" if len(known) <= 100 else ", and vLLM's engine arguments"
        raise ModelArgumentError(f"Unknown model argument{several} of t2: {', '.join(hints)}. Known: {', '.join(shown)}{more}.")


def check_names(strategy: Strategy, experts: Mapping[str, Path] | None) -> None:
    """Check, before a model is loaded, that the experts a strategy names exist at all.

    Raises:
        ModelArgumentError: an unknown name; the nearest one is suggested.
    """
    known = experts if experts is not None else shipped()
    for name in strategy.mixture.experts:
        if name not in known:
            raise ModelArgumentError(f"strategy={strategy}: there is no expert {name!r}.{nearest(name, known)}")


def parse_flag(name: str, value: Any) -> bool:
    """Read a yes-or-no argument.

    Raises:
        ModelArgumentError: it is neither.
    """
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if (text := str(value).strip().lower()) not in known:
        raise ModelArgumentError(f"{name}={value} must be true or false.")
    return known[text]


def parse_number(name: str, value: Any, least: float, most: float, whole: bool = False) -> float:
    """Read a number from `least` to `most`.

    Raises:
        ModelArgumentError: it is none.
    """
    try:
        number = float(value)
        good = least <= number <= most and not (whole and (not math.isfinite(number) or number != int(number)))
    except (TypeError, ValueError):
        good, number = False, 0.0
    if not good:
        span = f"a whole number, at least {least:g}" if whole else f"a number from {least:g} to {most:g}"
        raise ModelArgumentError(f"{name}={value} must be {span}.")
    return number
