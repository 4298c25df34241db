"""`t2 adapt`: from a task and a few of its documents to a mixture file."""

import gc
import hashlib
import json
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ...adapters.errors import AdapterError
from ...adapters.experts import load_expert, shipped, trained_on
from ...adapters.mixture import Mixture
from ...adapters.search import AlphaSpace, Outcome, Search, SearchResult, make_optimiser
from ...adapters.search.space import Candidate
from ..errors import T2Error
from .documents import Document, draw, load_tasks, prepare, train_sets
from .evaluate import Judge
from .journal import Journal
from .mixture_file import SCHEMA, check_writable, read_mixture, write_json
from .options import FORMS, AdaptOptions

log = logging.getLogger("t2")

_CHOICE = "choice"
"""Among the journal's forms: what the best mixture of each does on the documents held out to choose one."""


def adapt(options: AdaptOptions) -> Path:
    """Search, and write the mixture file; an interrupted search is resumed by the same options.

    Returns:
        The file; left as it is if it holds the result of these very options already.

    Raises:
        T2Error: an option, task, model, expert or file that cannot be used.
    """
    settings = options.settings()
    if options.output.exists():
        _check_finished(options, settings)
        return options.output
    check_writable(options.output)  # told before hours of search
    model = _model_class(options.model)  # before any task, whose imports can bring the distutils that vLLM's do not bear
    tasks = load_tasks(options.task, options.include_path, options.num_fewshot, options.gen_kwargs, options.fewshot_seed)
    documents = draw(tasks, options.shots + options.select, options.seed, options.source)
    lm = _load(model, options)
    try:
        adaptation = _Adaptation(options, settings, tasks, documents, lm)
        found = adaptation.run()
        if options.output.exists():  # another search has ended meanwhile
            _check_finished(options, settings)
        else:
            write_json(options.output, found)
        adaptation.journal.remove()
    finally:
        lm.close()
    del adaptation, lm
    _release_memory()
    return options.output


def _release_memory() -> None:
    """Give the memory of the search's model back to the device: a vLLM engine may be next to want it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check_finished(options: AdaptOptions, settings: dict[str, Any]) -> None:
    from ..strategy import parse_experts

    path, cure = options.output, "Choose another --output (of `t2 eval`: --mixtures), or delete it."
    try:
        found = read_mixture(path).data
        made = found.get("settings")
    except T2Error as error:
        raise T2Error(f"{path} is there already, and is no whole mixture file ({error}). {cure}") from None
    if made != settings:
        old = made if isinstance(made, dict) else {}
        other = [name for name in {**settings, **old} if settings.get(name) != old.get(name)]
        raise T2Error(f"{path} is there already, made with another {', '.join(other)}. {cure}")
    if lacking := [name for name in ("evaluated_documents", "scores", "searches", "cost") if not isinstance(found.get(name), dict)]:
        raise T2Error(f"{path} is there already, without {', '.join(lacking)}: it was changed. {cure}")
    named = parse_experts(options.model_args.get("experts"))
    experts = {name: load_expert(folder) for name, folder in (named or shipped()).items()}
    now = {name: (expert.sha256, expert.svf_form) for name, expert in experts.items() if not expert.is_classifier}
    # older files do not tell the form
    then = {name: (about.get("sha256"), about.get("svf_form", now.get(name, ("", ""))[1])) for name, about in found["experts"].items()}
    # of shipped experts a search has those that fit its model
    if other := [name for name in sorted({*then, *(now if named else ())}) if then.get(name) != now.get(name)]:
        raise T2Error(f"{path} is there already, made when {', '.join(map(repr, other))} was another expert, or was not there. {cure}")
    log.info("%s is there already, made with these settings: nothing to do.", path)


def _model_class(name: str) -> Any:
    if name == "t2-vllm":
        from ..vllm_model import T2VLLM

        return T2VLLM
    from ..model import T2LM

    return T2LM


def _load(model: Any, options: AdaptOptions) -> Any:
    from ..strategy import Strategy

    batch_size = "auto" if options.model == "t2-vllm" else options.batch_size  # an engine makes its own batches
    lm = model(**{**options.model_args, "strategy": "base"}, batch_size=batch_size)
    if lm.bank is None:
        lm._load_bank(Strategy("fixed"), None)  # the shipped experts; it has loaded those that are named
    if lm.bank is None or not lm.bank.answering:
        raise T2Error(f"No expert fits {lm.base_name}: there is nothing to mix. Train experts for it and name their folder with experts=….")
    return lm


class _Adaptation:
    """One run of `adapt` with everything loaded."""

    def __init__(self, options: AdaptOptions, settings: dict[str, Any], tasks: Any, documents: Sequence[Document], lm: Any) -> None:
        self.options, self.settings, self.documents, self.lm = options, settings, documents, lm
        self.shots, self.select = documents[: options.shots], documents[options.shots :]
        prompts = {
            "lm": lm,
            "apply_chat_template": options.apply_chat_template,
            "system_instruction": options.system_instruction,
            "fewshot_as_multiturn": options.fewshot_as_multiturn,
        }
        asked = [prepare(tasks, part, **prompts) for part in (self.shots, self.select)]
        self.judge = Judge(lm, asked[0], options.metric, options.batch_size)
        self.chooser = Judge(lm, asked[1], options.metric, options.batch_size) if self.select else None
        self.mixing = "row by row"
        self.evaluated = {name: len(task.eval_docs) for name, task in tasks.items()}
        self.identity = {
            "fingerprint": lm.fingerprint,
            "experts": {name: lm.bank.experts[name].sha256 for name in lm.bank.answering},
            "documents": [document.as_dict() for document in documents],
            "dtype": lm.host_facts()["dtype"],
            "versions": {name: version(name) for name in ("torch", "transformers", "lm-eval", "t2")} | _engine(lm),
        }
        if other := [name for name in lm.bank.answering if lm.bank.experts[name].svf_form != "scale"]:
            self.identity["renormalised"] = other
        self.trained_on = self._trained_on(tasks)
        requests = [[repr(instance.args) for instance in prepared.instances] for part in asked for prepared in part]
        key = hashlib.sha256(json.dumps([settings, self.identity, requests], sort_keys=True).encode()).hexdigest()
        self.journal = Journal(options.output, key)

    def _trained_on(self, tasks: Any) -> list[str]:
        """Return the experts that were trained on the split that the documents are from, and say so."""
        sets = set[str]().union(*(train_sets(tasks[name]) for name in {d.task for d in self.documents if d.source == "train"}))
        experts = self.lm.bank.experts
        found = [name for name in self.lm.bank.answering if trained_on(experts[name].card, "dataset") in sets]
        if found:
            log.warning(
                "The few-shot documents are from the train split that %s learned from: they may be training documents, on which such an "
                "expert looks better than it is. --source validation, where the task has it, or evaluated draws others.",
                ", ".join(found),
            )
        return found

    def run(self) -> dict[str, Any]:
        """Return the content of the mixture file."""
        with self.lm.bank.linear_mixing() if self.judge.at_once == 1 else nullcontext() as linear:
            if linear is not None:
                self.mixing = "linear" if linear else "by products"
            base = self._known("base", "base") or self._evaluate("base", {"base": Mixture.base()})
            log.info("The base model gets %d of %d few-shot documents right.", base.right, len(self.shots))
            searches = {form: self._search(form, base) for form in self.options.forms}
        form, choice = self._choose(searches)
        space, found = searches[form]
        mixture = Mixture.base() if found.best is None else space.mixture(found.best) or Mixture.base()
        confirmed = self._evaluate(form, {"confirmed": mixture})
        self._tell(space, found, base, confirmed)
        return self._content(form, choice, searches, base, confirmed)

    # ---- evaluating, each candidate once, and kept as soon as its batch is done

    def _known(self, form: str, name: str) -> Outcome | None:
        kept = self.journal.outcomes.get(form, {}).get(name)
        return None if kept is None else Outcome.of(kept)

    def _evaluate(self, form: str, mixtures: dict[str, Mixture]) -> Outcome:
        (outcome,) = self._outcomes(form, mixtures, merged=True)
        return outcome

    def _outcomes(self, form: str, mixtures: dict[str, Mixture], merged: bool = False, judge: Judge | None = None) -> Iterator[Outcome]:
        judge = judge or self.judge
        start, tokens = time.perf_counter(), judge.tokens_out
        for name, outcome in zip(mixtures, judge.outcomes(mixtures.values(), merged), strict=True):
            self.journal.outcomes.setdefault(form, {})[name] = outcome.as_dict()
            now = time.perf_counter()
            self.journal.seconds += now - start
            self.journal.tokens += judge.tokens_out - tokens
            start, tokens = now, judge.tokens_out
            self.journal.save()
            yield outcome

    def _search(self, form: str, base: Outcome) -> tuple[AlphaSpace, SearchResult]:
        options = self.options
        layers = max(expert.depth for expert in self.lm.bank.experts.values()) if "layer" in form else None
        names = tuple(self.lm.bank.answering)
        space = AlphaSpace(names, layers, form.startswith("normalised"), options.low, options.high, options.resolution)

        def evaluate(candidates: list[Candidate]) -> Iterator[Outcome]:
            return self._outcomes(form, {_text(c): space.mixture(c) or Mixture.base() for c in candidates})

        memo = {_candidate(text): Outcome.of(kept) for text, kept in self.journal.outcomes.get(form, {}).items() if text != "confirmed"}
        if memo:
            log.info("%s: %d mixtures are known from an interrupted run.", form, len(memo))
        optimiser = make_optimiser(options.optimizer, space, options.seed, options.population, options.elite_ratio)
        search = Search(space, optimiser, evaluate, base, options.iterations, memo)
        return space, search.run(lambda entry: self._progress(form, entry))

    def _progress(self, form: str, entry: dict[str, Any]) -> None:
        log.info(
            "%s, generation %d: best %d of %d, mean %.2f; %d mixtures evaluated",
            form, entry["generation"], entry["right"], len(self.shots), entry["mean_right"], entry["evaluated"],
        )  # fmt: skip

    def _choose(self, searches: dict[str, tuple[AlphaSpace, SearchResult]]) -> tuple[str, dict[str, Any] | None]:
        """Return the form to use, and what each did on the documents held out for this choice."""
        if self.chooser is None:
            return next(iter(searches)), None
        mixtures = {
            form: (space.mixture(found.best) if found.best else None) or Mixture.base() for form, (space, found) in searches.items()
        }
        left = {form: mixture for form, mixture in mixtures.items() if self._known(_CHOICE, form) is None}
        for _ in self._outcomes(_CHOICE, left, judge=self.chooser):
            pass
        outcomes = {form: Outcome.of(self.journal.outcomes[_CHOICE][form]) for form in mixtures}
        best = max(outcomes, key=lambda form: (outcomes[form].key, -FORMS.index(form)))  # of equal ones the simplest
        log.info("Form %s is taken: right on %d of %d documents held out for the choice.", best, outcomes[best].right, len(self.select))
        return best, {form: {"right": outcome.right, **outcome.as_dict()} for form, outcome in outcomes.items()}

    def _tell(self, space: AlphaSpace, found: SearchResult, base: Outcome, confirmed: Outcome) -> None:
        if not found.signal:
            log.warning(
                "No signal: the base model and all %d mixtures get %d of %d documents right, so these documents say nothing about α. "
                "The base weights are kept. Try more --shots, or a task that the model solves sometimes.",
                found.evaluated, base.right, len(self.shots),
            )  # fmt: skip
        elif found.best is None:
            log.warning("The base model alone gets more right (%d) than any of %d mixtures. It is kept.", base.right, found.evaluated)
        if confirmed.right != found.outcome.right:
            log.warning(
                "Evaluated again with merged weights the best mixture gets %d right, %d in the search: rounding decides some answers.",
                confirmed.right, found.outcome.right,
            )  # fmt: skip
        if confirmed.right < base.right:
            log.warning("That is less than the base model alone (%d). It is kept.", base.right)

    def _content(
        self,
        form: str,
        choice: dict[str, Any] | None,
        searches: dict[str, tuple[AlphaSpace, SearchResult]],
        base: Outcome,
        confirmed: Outcome,
    ) -> dict[str, Any]:
        space, found = searches[form]
        lm, options = self.lm, self.options
        beforehand = "beforehand" if choice is None else f"on {options.select} documents held out for it"
        return {
            "t2_mixture": SCHEMA,
            "task": options.task,
            "alpha": {} if found.best is None or confirmed.right < base.right else space.alphas(found.best),
            "signal": found.signal,
            "base": {
                "name": lm.base_name,
                "pretrained": options.model_args.get("pretrained"),
                "fingerprint": lm.fingerprint,
            },
            "experts": {
                name: {"sha256": sha256, "svf_form": lm.bank.experts[name].svf_form} for name, sha256 in self.identity["experts"].items()
            },
            "experts_trained_on": self.trained_on,
            "experts_argument": options.model_args.get("experts"),
            "configuration": {
                "form": form,
                "chosen": beforehand,
                "choice": choice,
                "metric": str(self.judge.metric),
                **{
                    name: getattr(options, name)
                    for name in ("shots", "optimizer", "iterations", "population", "elite_ratio", "low", "high", "resolution", "seed")
                },
            },
            "documents": self.identity["documents"],
            "evaluated_documents": self.evaluated,
            "scores": {
                "base": _told(base),
                "best": _told(found.outcome),
                "confirmed": _told(confirmed),
            },
            "searches": {
                name: {
                    "alpha": {} if result.best is None else room.alphas(result.best),
                    "ended": result.reason,
                    "evaluated": result.evaluated,
                    "asked": result.asked,
                    "trace": result.trace,
                }
                for name, (room, result) in searches.items()
            },
            "cost": {"seconds": round(self.journal.seconds, 3), "tokens_out": self.journal.tokens, "mixing": self.mixing},
            "machine": {"device": lm.device_type, "dtype": self.identity["dtype"], "python": platform.python_version()}
            | self.identity["versions"],
            "settings": self.settings,
        }


def _engine(lm: Any) -> dict[str, str]:
    """Return vLLM's version where it answers."""
    return {name: found for name, found in lm.host_facts().items() if name == "vllm"}


def _told(outcome: Outcome) -> dict[str, Any]:
    likelihood = outcome.mean_log_likelihood if outcome.tokens else None
    return {"right": outcome.right, "of": len(outcome.correct), "mean_log_likelihood": likelihood}


def _text(candidate: Candidate) -> str:
    return ",".join(map(str, candidate))


def _candidate(text: str) -> Candidate:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise AdapterError(f"The journal of the search holds a candidate {text!r}; delete it and search again.") from None
