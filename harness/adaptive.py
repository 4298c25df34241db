"""What lm-eval's model classes of t2 share: model arguments, experts, pass 1, and the facts that results and caches need."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from os import PathLike
from typing import Any, ClassVar

from lm_eval.models.utils import normalize_gen_kwargs

from ..adapters.bank import Bank, load_bank
from ..adapters.classifier import with_classifier
from ..adapters.dispatch_forms import Decision, Form, Setup, plain
from ..adapters.dispatch_prompt import OTHERS, Category, categories
from ..adapters.dispatch_prompt import VERSION as PROMPT_VERSION
from ..adapters.errors import AdapterError
from ..adapters.experts import Expert
from ..adapters.mixture import BASE, Mixture
from ..adapters.probe import FOLDER as PROBE_FOLDER
from ..adapters.probe import WEIGHTS as PROBE_WEIGHTS
from . import plain_errors, results
from .dispatch_args import CHOOSERS, dispatch_plan, folder_for
from .fewshot.mixture_file import MixtureFile, read_mixture
from .fewshot.reply import Reply
from .strategy import ModelArgumentError, Strategy, check_model_args, check_names, parse_experts, parse_strategy
from .two_pass import TwoPass

log = logging.getLogger("t2")

OWN = ("pretrained", "strategy", "experts", "mixture", "classifier", "probe",
       "dispatch", "calibrate", "votes", "mix", "mix_step", "abstain")  # fmt: skip


class Adaptive(TwoPass):
    """Two-pass adaptation with experts, over the lm-eval model class that follows in the bases.

    A class that mixes it in sets `host`, `passed_on` and `without_experts`, and provides what below raises `NotImplementedError`.

    Args:
        pretrained: as for the host; None for the default model, fetched if need be.
        strategy: ``base``, ``expert:<name>``, ``mix:<name>=<alpha>+…``, ``cls`` or ``prompt``; None is ``prompt``, or `mixture`.
        experts: folders of one's own experts instead of the shipped ones, see `parse_experts`.
        mixture: a file that `t2 adapt` wrote; `strategy` is then None or ``fewshot``.
        classifier: folder of the classifier expert, for ``cls``; None: the one among the experts, else the shipped one.
        probe: folder of the probe, for ``dispatch=probe``; None: the one beside the experts, else the shipped one.
        dispatch, calibrate, votes, mix, mix_step, abstain: of pass 1, see `dispatch_plan`.
        kwargs: what the host takes.

    Raises:
        ModelArgumentError: an argument, strategy, form or expert that is unknown or does not fit.
        FetchError: the default model is not there and cannot be got.
    """

    host: ClassVar[Any]
    """lm-eval's class."""
    passed_on: ClassVar[frozenset[str]]
    """Arguments that the host hands on, beside those that it names."""
    without_experts: ClassVar[tuple[str, ...]]
    """Arguments of the host that only the base weights go with: they change these, on which experts were trained, or keep what other
    weights have computed."""

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
        **kwargs: Any,
    ) -> None:
        plain_errors.install()
        check_model_args(self.host, OWN, kwargs, self.passed_on)
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
        if not plan.is_base and (others := [name for name in self.without_experts if kwargs.get(name)]):
            raise ModelArgumentError(f"{others[0]} cannot be combined with strategy={plan}; use strategy=base, or leave it out.")
        self.on_default_model = pretrained is None
        if self.on_default_model:
            from .fetch import default_model

            pretrained = default_model()
        results.install()
        self._lengths: dict[int, int] = {}
        if isinstance(pretrained, PathLike):
            pretrained = str(pretrained)
        super().__init__(pretrained=pretrained, **self.host_arguments(pretrained, kwargs))  # type: ignore[call-arg]
        self.host_loaded()
        self._form: Form | None = None
        self.bank: Bank | None = None
        self._options: tuple[Category, ...] = ()
        if paths is not None or not plan.is_base:
            plan = self._load_bank(plan, paths)
        if self.mixture_file is not None:
            self.mixture_file.check(self.fingerprint, self.bank.experts if self.bank else {})
        self.two_pass_setup(plan, self.dispatch_plan.votes)

    # ---- what the class provides

    def host_arguments(self, pretrained: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Return the host's arguments for what the user gave beside `pretrained`.

        Raises:
            ModelArgumentError: one of them cannot be used.
        """
        return given

    def host_loaded(self) -> None:
        """Do what has to follow the loading of the model."""

    def make_bank(self, experts: Mapping[str, Expert]) -> Bank:
        """Return a bank of `experts` over the loaded model.

        Raises:
            AdapterError: one does not fit.
        """
        raise NotImplementedError

    def make_form(self, name: str, setup: Setup) -> Form:
        """Return a form of pass 1 for the loaded model; ``setup.model`` is None still.

        Raises:
            AdapterError: see `t2.adapters.dispatch_forms.make_form`.
        """
        raise NotImplementedError

    def ask_form(self, form: Form, contexts: Sequence[str]) -> list[Decision]:
        """Let a form of pass 1 decide."""
        size = None if str(self.batch_size).startswith("auto") else int(self.batch_size)  # type: ignore[attr-defined]
        return form.decide(contexts, size, progress=self.rank == 0)  # type: ignore[attr-defined]

    def replies(self, requests: Sequence[Any], batch_size: int, mixtures: Sequence[Mixture] | None = None) -> list[Reply]:
        """Answer requests of kind ``generate_until`` as the host does, and say how likely each answer is: for a few-shot search.

        Args:
            requests: to answer.
            batch_size: rows a batch, where the host does not make batches by itself.
            mixtures: one for each request, see `ExpertBank.row_by_row`; None for the weights in force.
        """
        raise NotImplementedError

    @property
    def device_type(self) -> str:
        """Where answers are computed: ``cpu``, ``cuda:0``, …."""
        return str(self.device)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Stop what another model of this process could not stand beside it; this one answers no more."""

    def host_facts(self) -> dict[str, Any]:
        """Return what answers depend on beside weights, strategy and tokenizer, as JSON values."""
        raise NotImplementedError

    def weights_facts(self) -> Any:
        """Return what tells the loaded base weights from any others, also where `fingerprint` does not, as JSON values."""
        raise NotImplementedError

    @property
    def quantised(self) -> str | None:
        """How the loaded weights are quantised, None if they are not."""
        raise NotImplementedError

    @property
    def base_name(self) -> str:
        """Name of the base model."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Of the base weights, see `model_fingerprint`."""
        raise NotImplementedError

    # ---- loading

    def _load_bank(self, plan: Strategy, paths: Mapping[str, Any] | None) -> Strategy:
        """Load the experts; return the strategy that they allow."""
        if self.quantised:
            raise ModelArgumentError(
                f"{self.base_name} has {self.quantised} weights, whose singular values cannot be scaled: "
                "give an unquantised checkpoint, or strategy=base."
            )
        try:
            self.bank = load_bank(self.make_bank, self.base_name, paths)
            self.bank.check(plan.mixture)
            if plan.kind == "cls":
                self.bank, name = with_classifier(self.bank, self._classifier)
                plan = replace(plan, first=Mixture.single(name))
            experts = {name: self.bank.experts[name] for name in self.bank.answering if name not in plan.first.experts}
            self._options = categories(experts)
            if used := [*(plan.mixture.experts or experts), *plan.first.experts]:
                self.bank.prepare(Mixture.of(dict.fromkeys(used, 1.0)), quiet=self.rank != 0)  # type: ignore[attr-defined]
            if plan.kind != "fixed" and (experts or plan.kind == "cls"):
                self._form = self.make_form(self.dispatch_plan.form, self._setup(plan, experts, paths))
        except AdapterError as error:
            raise ModelArgumentError(f"strategy={plan}: {error}") from error
        if plan.kind == "prompt" and not experts:
            log.warning(
                "No expert fits %s: strategy=prompt acts as strategy=base. Train experts for it (docs/training.md) and name their folder "
                "with experts=<folder>.",
                self.base_name,
            )
            return Strategy("fixed")
        return plan

    def _setup(self, plan: Strategy, experts: Mapping[str, Any], paths: Mapping[str, Any] | None) -> Setup:
        beside = [path.parent / PROBE_FOLDER for path in (paths or {}).values()]
        probe = self._probe or next((folder for folder in beside if (folder / PROBE_WEIGHTS).is_file()), None)
        fixed = (self.tokenizer, experts, self.max_length, self.calibrate, plan.kind == "cls", probe)  # type: ignore[attr-defined]
        return Setup(None, *fixed, self._template_args())

    def _template_args(self) -> dict[str, Any]:
        """Return what lm-eval gives the chat template besides messages, from ``chat_template_args`` and ``enable_thinking``."""
        told = {"enable_thinking": getattr(self, "enable_thinking", None), **(getattr(self, "chat_template_args", None) or {})}
        return {name: value for name, value in told.items() if value is not None}

    # ---- what TwoPass asks for

    def apply_mixture(self, mixture: Mixture) -> bool:
        """See `TwoPass`."""
        return self.bank.apply(mixture) if self.bank is not None else False

    def dispatch(self, contexts: Sequence[str]) -> list[Decision]:
        """See `TwoPass`."""
        assert self._form is not None  # noqa: S101 - only strategies with a pass 1 come here, and they have one
        try:
            found = plain(self.dispatch_plan.form, self.ask_form(self._form, contexts), len(contexts))
        except AdapterError as error:
            raise ModelArgumentError(str(error)) from error
        self._check_names(found)
        return [self.dispatch_plan.settle(decision) for decision in found]

    def _check_names(self, found: Sequence[Decision]) -> None:
        """A form may be the user's own; whom it names is checked before any weights follow it."""
        assert self.bank is not None  # noqa: S101 - as above
        named = {name for d in found for name in (d.category, *(d.scores or ()))} - {OTHERS}
        if wrong := (named | {name for d in found for name in d.alphas or () if name != BASE}) - {*self.bank.names}:
            raise ModelArgumentError(f"dispatch={self.dispatch_plan.form} named {', '.join(sorted(map(repr, wrong)))}, which no expert is.")

    def count_tokens(self, texts: Sequence[str], whole: bool = False) -> list[int]:
        """See `TwoPass`; what lm-eval has just tokenised is not tokenised again."""
        unseen = list(dict.fromkeys(text for text in texts if text and hash(text) not in self._lengths))
        encoded = self.tokenizer(unseen, add_special_tokens=False)["input_ids"] if unseen else []  # type: ignore[attr-defined]
        known = self._lengths | {hash(text): len(ids) for text, ids in zip(unseen, encoded, strict=True)}
        self._lengths.clear()
        most: int = sys.maxsize if whole else self.max_length  # type: ignore[attr-defined]
        return [min(known[hash(text)], most) if text else 0 for text in texts]

    def longest_context(self, options: Mapping[str, Any]) -> int:
        """See `TwoPass`; hosts leave room for the answer, except where an encoder reads and a decoder answers."""
        return self.max_length - (0 if getattr(self, "backend", None) == "seq2seq" else self.longest_answer(options))  # type: ignore[attr-defined]

    def longest_answer(self, options: Mapping[str, Any]) -> int:
        """See `TwoPass`."""
        return normalize_gen_kwargs(dict(options), self.max_gen_toks)["max_gen_toks"]  # type: ignore[attr-defined]

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
            "forms": {name: self.bank.experts[name].svf_form for name in run["experts"]} if self.bank else {},
            "weights": self.weights_facts(),
            "strategy": [self.strategy.kind, *self.strategy.mixture.weights, *self.strategy.mixture.layers],
            "first": self.strategy.first.weights,
            "prompt": [PROMPT_VERSION, *map(astuple, self._options)] if self.strategy.kind != "fixed" else None,
            **({"template": template} if (template := self._template_args()) and self.strategy.kind != "fixed" else {}),
            "calibrate": self.calibrate if self.strategy.kind != "fixed" else None,  # a form of one's own is told it too
            "class": type(self).__name__,
            **self.host_facts(),
        }

    # ---- lm-eval's methods

    def tok_encode(self, string: Any, *args: Any, **kwargs: Any) -> Any:
        """Tokenise as the host does, and remember the length for the counts of `timing`."""
        encoded = super().tok_encode(string, *args, **kwargs)  # type: ignore[misc]
        for text, ids in [(string, encoded)] if isinstance(string, str) else zip(string, encoded, strict=False):
            self._lengths[hash(text)] = len(ids)  # not the string itself: a big benchmark's would fill memory
        return encoded

    def get_model_info(self) -> dict[str, Any]:
        """Return what the host tells of its model, and the strategy."""
        told = getattr(super(), "get_model_info", dict)()  # lm-eval's `vllm` has none
        return {**told, "strategy": str(self.strategy)}


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
