"""What `t2 adapt` is asked for."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...adapters.errors import AdapterError
from ...adapters.search import AlphaSpace, make_optimiser
from ..errors import T2Error
from .documents import FEWSHOT_SEED, Source

FORMS = ("normalised", "free", "normalised-by-layer", "free-by-layer")
"""The four configurations of appendix A.4, simplest first."""


@dataclass(frozen=True)
class AdaptOptions:
    """What `t2 adapt` is asked for.

    Attributes:
        task: lm-eval's task or group.
        output: the mixture file to write.
        shots: few-shot documents.
        forms: of `FORMS`; with several, each is searched, and the one whose α do best on `select` further documents is taken.
        select: documents held out for that choice.
        optimizer, iterations, population, elite_ratio, low, high, resolution: of the search, see `t2.adapters.search`.
        seed: of the draw of documents and of the search.
        source: split of the documents; None for the best that the task offers.
        metric: the 0/1 metric, see `Judge`.
        model: ``t2`` or ``t2-vllm``: who answers while it is searched.
        model_args: of the model.
        batch_size: rows a batch.
        num_fewshot, gen_kwargs, apply_chat_template, system_instruction, fewshot_as_multiturn, include_path: as lm-eval's options: they
            make the prompts, which should be those of the evaluation.
        fewshot_seed: the last number of its ``--seed``, of the examples in the prompts.
    """

    task: str
    output: Path
    shots: int = 10
    forms: tuple[str, ...] = ("normalised",)
    select: int = 0
    optimizer: str = "cem"
    iterations: int = 100
    population: int = 32
    elite_ratio: float = 0.2
    low: float = 0.0
    high: float = 1.0
    resolution: float = 0.01
    seed: int = 0
    source: Source | None = None
    metric: str | None = None
    model: str = "t2"
    model_args: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    num_fewshot: int | None = None
    gen_kwargs: dict[str, Any] | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    fewshot_seed: int | None = FEWSHOT_SEED
    include_path: str | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"--{name} must be at least {least}; got {getattr(self, name)}."
            for name, least in (("shots", 1), ("select", 0), ("iterations", 1), ("population", 2), ("batch_size", 1))
            if getattr(self, name) < least
        ]
        if unknown := [form for form in self.forms if form not in FORMS]:
            wrong.append(f"Unknown form {unknown[0]!r}; it is one of {', '.join(FORMS)}.")
        if len(self.forms) > 1 and not self.select:
            wrong.append("Several --form need --select N: documents held out to choose among them, never the test set.")
        if len(self.forms) == 1 and self.select:
            wrong.append("--select has a use only with several --form: there is nothing to choose.")
        for argument in ("strategy", "mixture", "dispatch"):
            if argument in self.model_args:
                wrong.append(f"The model argument {argument} has no place here: the search itself decides which weights answer.")
        try:  # what the search would find wrong with its numbers is told now
            space = AlphaSpace(
                ("any",), None, any(form.startswith("normalised") for form in self.forms), self.low, self.high, self.resolution
            )
            make_optimiser(self.optimizer, space, self.seed, max(self.population, 2), self.elite_ratio)
        except AdapterError as error:
            wrong.append(str(error))
        if wrong:
            raise T2Error("\n".join(wrong))

    def settings(self) -> dict[str, Any]:
        """Return all of it but the output and the batch size, as JSON values."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("output", "batch_size")}
        for name, before in (("fewshot_seed", FEWSHOT_SEED), ("model", "t2")):  # as in files from before it could be another
            if kept[name] == before:
                del kept[name]
        return json.loads(json.dumps(kept, default=str))
