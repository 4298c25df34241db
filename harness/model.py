"""lm-eval's model `t2`: Hugging Face models that adapt their weights to each prompt (docs/model.md)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from importlib.metadata import version
from os import PathLike
from typing import Any

import torch
from lm_eval.models import huggingface
from tqdm import tqdm

from ..adapters.bank import ExpertBank
from ..adapters.classifier import with_classifier
from ..adapters.dispatch_forms import Decision, Form, Setup, make_form
from ..adapters.dispatch_prompt import OTHERS, Category, categories
from ..adapters.dispatch_prompt import VERSION as PROMPT_VERSION
from ..adapters.errors import AdapterError
from ..adapters.mixture import Mixture
from ..adapters.output_head import read_contiguous_rows
from ..adapters.probe import FOLDER as PROBE_FOLDER
from ..adapters.probe import WEIGHTS as PROBE_WEIGHTS
from . import plain_errors, results
from .cache_key import model_fingerprint
from .dispatch_args import CHOOSERS, dispatch_plan, folder_for
from .fewshot.mixture_file import MixtureFile, read_mixture
from .strategy import ModelArgumentError, Strategy, check_model_args, check_names, parse_experts, parse_strategy
from .two_pass import TwoPass

log = logging.getLogger("t2")

HFLM: Any = huggingface.HFLM  # lm-eval's `register_model` hides the class from type checkers

OWN = ("pretrained", "strategy", "experts", "mixture", "classifier", "probe",
       "dispatch", "calibrate", "votes", "mix", "mix_step", "abstain")  # fmt: skip
# What changes the weights beside the experts: these were trained on the plain base model
_OTHER_WEIGHTS = ("peft", "delta", "tp_plan")


class T2LM(TwoPass, HFLM):
    """lm-eval's `hf` model with two passes.

    Args:
        pretrained: as for `hf`; None for the default model, fetched if need be.
        strategy: ``base``, ``expert:<name>``, ``mix:<name>=<alpha>+…``, ``cls`` or ``prompt``; None is ``prompt``, or `mixture`.
        experts: folders of one's own experts instead of the shipped ones, see `parse_experts`.
        mixture: a file that `t2 adapt` wrote; `strategy` is then None or ``fewshot``.
        classifier: folder of the classifier expert, for ``cls``; None: the one among the experts, else the shipped one.
        probe: folder of the probe, for ``dispatch=probe``; None: the one beside the experts, else the shipped one.
        dispatch, calibrate, votes, mix, mix_step, abstain: of pass 1, see `dispatch_plan`.
        device: as for `hf`; None for the accelerator if there is one, else the CPU.
        kwargs: what `hf` takes, and `strategy.PASSED_ON`.

    Raises:
        ModelArgumentError: an argument, strategy, form or expert that is unknown or does not fit.
        FetchError: the default model is not there and cannot be got.
    """

    def __init__(
        self,
        pretrained: Any = None,
        *,
        strategy: str | None = None,
        experts: str | PathLike[str] | Sequence[str] | Mapping[str, Any] | None = None,
        mixture: str | PathLike[str] | None = None,
        classifier: str | PathLike[str] | None = None,
        probe: str | PathLike[str] | None = None,
        dispatch: str = "score",
        calibrate: bool | str | None = None,
        votes: int | str | None = None,
        mix: str = "hard",
        mix_step: float | str | None = None,
        abstain: float | str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        plain_errors.install()
        check_model_args(HFLM, OWN, kwargs)
        self.mixture_file, plan = _plan(strategy, mixture)
        if self.mixture_file is not None:
            experts = self.mixture_file.data.get("experts_argument") if experts is None else experts
            pretrained = self.mixture_file.data["base"].get("pretrained") if pretrained is None else pretrained
        self.dispatch_plan = dispatch_plan(dispatch, calibrate, votes, mix, mix_step, abstain)
        self.calibrate = plan.kind != "cls" if self.dispatch_plan.calibrate is None else self.dispatch_plan.calibrate
        if plan.kind == "cls" and self.dispatch_plan.form not in CHOOSERS:
            raise ModelArgumentError(f"strategy=cls asks a classifier expert, by dispatch={' or '.join(CHOOSERS)}; got {dispatch}.")
        self._classifier = folder_for("classifier", classifier, plan.kind == "cls", "strategy=cls")
        self._probe = folder_for("probe", probe, self.dispatch_plan.form == "probe", "dispatch=probe")
        paths = parse_experts(experts)
        check_names(plan, paths)
        if not plan.is_base and (others := [name for name in _OTHER_WEIGHTS if kwargs.get(name)]):
            raise ModelArgumentError(f"{others[0]} cannot be combined with strategy={plan}; use strategy=base, or leave it out.")
        if pretrained is None:
            from .fetch import default_model

            pretrained = default_model()
        results.install()
        if isinstance(pretrained, PathLike):
            pretrained = str(pretrained)
        super().__init__(pretrained=pretrained, device=device or _default_device(), **kwargs)  # type: ignore[call-arg]
        read_contiguous_rows(self.model)
        self._lengths: dict[int, int] = {}
        self._largest_batch: int | None = None
        self._form: Form | None = None
        self._fingerprint: str | None = None
        self.bank: ExpertBank | None = None
        self._options: tuple[Category, ...] = ()
        if paths is not None or not plan.is_base:
            plan = self._load_bank(plan, paths)
        if self.mixture_file is not None:
            self.mixture_file.check(self.fingerprint, self.bank.experts if self.bank else {})
        self.two_pass_setup(plan, self.dispatch_plan.votes)

    def _load_bank(self, plan: Strategy, paths: Mapping[str, Any] | None) -> Strategy:
        """Load the experts; return the strategy that they allow."""
        base = str(getattr(self.model, "name_or_path", "") or self.pretrained)
        if self.backend != "causal" and not plan.is_base:
            raise ModelArgumentError(f"{base} is not a decoder-only model, the only kind that experts are for; use strategy=base.")
        try:
            self.bank = ExpertBank.load(self.model, base, paths)
            self.bank.check(plan.mixture)
            if plan.kind == "cls":
                self.bank, name = with_classifier(self.model, self.bank, self._classifier)
                plan = replace(plan, first=Mixture.single(name))
            experts = {name: self.bank.experts[name] for name in self.bank.answering if name not in plan.first.experts}
            self._options = categories(experts)
            self._prepare([*(plan.mixture.experts or experts), *plan.first.experts])
            if plan.kind != "fixed" and (experts or plan.kind == "cls"):
                self._form = self._make_form(plan, experts, paths)
        except AdapterError as error:
            raise ModelArgumentError(f"strategy={plan}: {error}") from error
        if plan.kind == "prompt" and not experts:
            log.warning(
                "No expert fits %s: strategy=prompt acts as strategy=base. Train experts for it (docs/training.md) and name their folder "
                "with experts=<folder>.",
                base,
            )
            return Strategy("fixed")
        return plan

    def _make_form(self, plan: Strategy, experts: Mapping[str, Any], paths: Mapping[str, Any] | None) -> Form:
        beside = [path.parent / PROBE_FOLDER for path in (paths or {}).values()]
        probe = self._probe or next((folder for folder in beside if (folder / PROBE_WEIGHTS).is_file()), None)
        setup = Setup(self.model, self.tokenizer, experts, self.max_length, self.calibrate, plan.kind == "cls", probe)
        return make_form(self.dispatch_plan.form, setup)

    def _prepare(self, names: Sequence[str]) -> None:
        """Compute the bases of these experts' matrices, or read them from disk, before any pass is timed."""
        assert self.bank is not None  # noqa: S101 - called once it is loaded
        if not names:
            return
        everyone = Mixture.of(dict.fromkeys(names, 1.0))
        layers = sorted({layer for name in names for layer in self.bank.experts[name].vectors})
        for layer in tqdm(layers, desc="Preparing the experts' matrices", delay=2, disable=self.rank != 0):
            self.bank.scale(everyone, layer)

    # ---- what TwoPass asks for

    def apply_mixture(self, mixture: Mixture) -> bool:
        """See `TwoPass`."""
        return self.bank.apply(mixture) if self.bank is not None else False

    def dispatch(self, contexts: Sequence[str]) -> list[Decision]:
        """See `TwoPass`."""
        assert self._form is not None  # noqa: S101 - only strategies with a pass 1 come here, and they have one
        size = None if str(self.batch_size).startswith("auto") else int(self.batch_size)
        half = self.mixed_precision_dtype
        with torch.autocast(device_type=self.device.type, dtype=half, enabled=half is not None):
            found = self._form.decide(contexts, size, progress=self.rank == 0)
        self._check_decisions(found, len(contexts))
        return [self.dispatch_plan.settle(decision) for decision in found]

    def _check_decisions(self, found: Sequence[Decision], asked: int) -> None:
        """A form may be the user's own; what it says is checked before any weights follow it."""
        assert self.bank is not None  # noqa: S101 - as above
        known = {*self.bank.names, OTHERS}
        if len(found) != asked:
            raise ModelArgumentError(f"dispatch={self.dispatch_plan.form} decided {len(found)} of {asked} prompts; it has to decide each.")
        if wrong := {name for d in found for name in (d.category, *(d.scores or ())) if name not in known}:
            raise ModelArgumentError(f"dispatch={self.dispatch_plan.form} named {', '.join(sorted(map(repr, wrong)))}, which no expert is.")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See `TwoPass`; what lm-eval has just tokenised is not tokenised again."""
        unseen = list(dict.fromkeys(text for text in texts if text and hash(text) not in self._lengths))
        encoded = self.tokenizer(unseen, add_special_tokens=False)["input_ids"] if unseen else []
        known = self._lengths | {hash(text): len(ids) for text, ids in zip(unseen, encoded, strict=True)}
        self._lengths.clear()
        return [min(known[hash(text)], self.max_length) if text else 0 for text in texts]

    def run_facts(self) -> dict[str, Any]:
        """See `TwoPass`."""
        passes = self.strategy.kind != "fixed"
        used = {
            name: expert.sha256
            for name, expert in sorted(self.bank.experts.items() if self.bank else ())
            if not expert.is_classifier or name in {*self.strategy.mixture.experts, *self.strategy.first.experts}
        }
        probe = getattr(self._form, "probe", None)
        return {
            "dispatch": str(self.dispatch_plan) if passes else None,
            "calibrate": self.calibrate if passes and self.dispatch_plan.form == "score" else None,
            "probe": getattr(probe, "sha256", None) if passes else None,
            "experts": used,
            "parameters": {name: self.bank.experts[name].parameters for name in used} if self.bank else {},
            "base": self.fingerprint,
            "mixture": self.mixture_file.facts() if self.mixture_file else None,
            "contaminated": {},
        }

    def cache_facts(self) -> dict[str, Any]:
        """See `TwoPass`."""
        run = {key: value for key, value in self.run_facts().items() if key not in ("mixture", "contaminated", "parameters")}
        if self.strategy.kind == "fixed":
            wanted = set(self.strategy.mixture.experts)
            run["experts"] = {name: sha for name, sha in run["experts"].items() if name in wanted}
        return {
            **run,
            "strategy": [self.strategy.kind, *self.strategy.mixture.weights, *self.strategy.mixture.layers],
            "first": self.strategy.first.weights,
            "prompt": [PROMPT_VERSION, *map(astuple, self._options)] if self.strategy.kind != "fixed" else None,
            "class": type(self).__name__,
            "dtype": str(self.model.dtype),
            "attention": getattr(self.model.config, "_attn_implementation", None),
            "tokenizer": [type(self.tokenizer).__name__, len(self.tokenizer), self.tokenizer.name_or_path],
            "lengths": [self.max_length, self.truncation],
            "tokens": [self.add_bos_token, self.prefix_token_id, self.think_end_token],
            "arithmetic": [str(self.softmax_dtype), str(self.mixed_precision_dtype)],
            "transformers": version("transformers"),
        }

    @property
    def fingerprint(self) -> str:
        """Of the base weights, see `model_fingerprint`."""
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self.model)
        return self._fingerprint

    # ---- lm-eval's methods

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Tokenise as `hf` does, and remember the length for the counts of `timing`."""
        encoded = super().tok_encode(string, *args, **kwargs)
        if isinstance(string, str):
            self._lengths[hash(string)] = len(encoded)  # not the string itself: a big benchmark's would fill memory
        return encoded

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        # hf tries once per call of generate_until; with a call per mixture the same search would run again and again
        if requests is not None:
            return super()._detect_batch_size(requests, pos)
        if (found := self._largest_batch) is None:
            found = self._largest_batch = super()._detect_batch_size()
        return found

    def get_model_info(self) -> dict[str, Any]:
        """Return what `hf` tells of a model, and the strategy."""
        return {**super().get_model_info(), "strategy": str(self.strategy)}


def _plan(strategy: str | None, mixture: str | PathLike[str] | None) -> tuple[MixtureFile | None, Strategy]:
    """Return the mixture file, if one is named, and the strategy."""
    fewshot = str(strategy).strip().lower() == "fewshot"
    if mixture is not None and (strategy is None or fewshot):
        found = read_mixture(str(mixture))
        return found, Strategy("fixed", found.mixture)
    if mixture is not None:
        raise ModelArgumentError(f"mixture={mixture} and strategy={strategy} are two ways to say which weights answer; leave one out.")
    if fewshot:
        raise ModelArgumentError(
            "strategy=fewshot needs mixture=FILE, which `t2 adapt --task TASK` writes; `t2 eval --strategy fewshot --tasks TASK` does both."
        )
    return None, parse_strategy("prompt" if strategy is None else strategy)


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
