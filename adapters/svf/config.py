"""`SvfConfig`: what PEFT needs to know of an SVF adapter."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from peft import PeftConfig

SvfForm = Literal["scale", "renormalised"]

ATTENTION = ("q_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
PRESETS: dict[str, tuple[str, ...] | str] = {
    "attention": ATTENTION,
    "mlp": MLP,
    "mlp+attention": MLP + ATTENTION,
    "all-linear": "all-linear",
}
"""Names for sets of target modules, as in table 4 of the paper; ``all-linear`` is PEFT's own keyword."""


@dataclass
class SvfConfig(PeftConfig):
    """Configuration of an SVF adapter: one vector z ``[min(m, n)]`` per adapted matrix (section 3.1 of the paper).

    Attributes:
        target_modules: list of module name endings, a regular expression, or one of `PRESETS`
            (``attention``, ``mlp``, ``mlp+attention``, ``all-linear``). Default: ``mlp+attention``, the best row of table 4.
        exclude_modules: names or expression of modules left alone.
        layers_to_transform: indices of the layers to adapt; all by default (the paper adapts half of the layers of its largest models).
        layers_pattern: name of the layer list where it is not found by itself.
        svf_form: ``scale``: z multiplies σ (the paper). ``renormalised``: the stored number is the reference code's raw p,
            z = sigmoid(p) · Σσ / Σ(σ sigmoid(p)).
        base_fingerprint: `t2.adapters.svf.fingerprint` of the adapted matrices that z was trained on. Where set, injecting into
            other weights is refused. Filled in where a new adapter is made, by any trainer.

    Raises:
        ValueError: an unknown `svf_form`.
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Module names, a regex, or a preset."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules left alone."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indices of the layers to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layer list."})
    svf_form: SvfForm = field(default="scale", metadata={"help": "scale (the paper) or renormalised (its reference code)."})
    base_fingerprint: str | None = field(default=None, metadata={"help": "Fingerprint of the adapted base matrices."})

    def __post_init__(self) -> None:
        """Resolve presets and check the form."""
        from peft import PeftType

        super().__post_init__()
        self.peft_type = PeftType("SVF")
        if self.svf_form not in get_args(SvfForm):
            raise ValueError(f"svf_form must be one of {', '.join(get_args(SvfForm))}; got {self.svf_form!r}.")
        targets = self.target_modules or "mlp+attention"
        resolved = PRESETS.get(targets, targets) if isinstance(targets, str) else targets
        self.target_modules = resolved if isinstance(resolved, str) else set(resolved)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if self.layers_to_transform is not None and isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ValueError("layers_to_transform goes with a list of target_modules, not with a regular expression.")
