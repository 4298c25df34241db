"""The two passes as a mixin over an lm-eval model class: dispatch each distinct context, then answer group by group.

Which weights answer a request depends on its context alone (under ``dispatch=task`` also on its task), so decisions are kept by context:
that is enough to dispatch each once, to find the answers' mixtures again for the logged samples, and to store them beside cached answers.
"""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..adapters.dispatch_forms import Decision
from ..adapters.memory import begin_peak, peak_memory
from ..adapters.mixture import Mixture
from . import task_vote
from .cache_key import open_table, table_entry
from .errors import T2Error
from .strategy import Strategy
from .timing import SCHEMA, Costs, Share, Stopwatch, T2Results, shares

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook

log = logging.getLogger("t2")


class TwoPass:
    """Two-pass adaptation for the lm-eval model class that follows in the bases; `Adaptive` is one with experts, for ``HFLM`` say.

    The class that mixes it in calls `two_pass_setup` once its model is loaded, and provides the methods that raise `NotImplementedError`
    here. Weights are the base's whenever no call is running, also after an error or Ctrl-C.
    """

    # ---- what the host class provides

    def apply_mixture(self, mixture: Mixture) -> bool:
        """Give the model the weights of `mixture`; return True if they had to be changed."""
        raise NotImplementedError

    def dispatch(self, contexts: Sequence[str]) -> list[Decision]:
        """Pass 1 for distinct contexts; the model has the strategy's weights of pass 1."""
        raise NotImplementedError

    def count_tokens(self, texts: Sequence[str], whole: bool = False) -> list[int]:
        """Return the number of tokens of each text that the model reads; called right after a pass, outside what is timed.

        Args:
            texts: contexts, continuations, answers.
            whole: they are read in windows, so also what is longer than the model's context counts.
        """
        raise NotImplementedError

    def longest_answer(self, options: Mapping[str, Any]) -> int:
        """Return how many tokens an answer under a request's options has at most."""
        raise NotImplementedError

    def longest_context(self, options: Mapping[str, Any]) -> int:
        """Return how many tokens of a context are read at most, before an answer under a request's options."""
        raise NotImplementedError

    def run_facts(self) -> dict[str, Any]:
        """Return the fields of `T2Results` that say what answered: ``experts``, ``parameters``, ``base``, ``dispatch`` and so on."""
        raise NotImplementedError

    def cache_facts(self) -> dict[str, Any]:
        """Return everything besides a request that an answer depends on, as JSON values: answers are cached under its hash."""
        raise NotImplementedError

    def peak_memory(self) -> int | None:
        """Return the most bytes that were in use at once, see `T2Results`."""
        return peak_memory(self.device)  # type: ignore[attr-defined]

    # ---- lm-eval's methods

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Answer `requests`, each with the weights that its context calls for; see lm-eval's `LM`."""
        return self._answer("generate_until", super().generate_until, requests, disable_tqdm)  # type: ignore[misc]

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations, each with the weights that its context calls for (none given: the base's)."""
        return self._answer("loglikelihood", super().loglikelihood, requests, disable_tqdm)  # type: ignore[misc]

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Score whole texts. Where pass 1 chooses, the base weights do: there is no prompt, only the text that is scored."""
        return self._answer("loglikelihood_rolling", super().loglikelihood_rolling, requests, disable_tqdm)  # type: ignore[misc]

    def set_cache_hook(self, cache_hook: "CacheHook") -> None:
        """Use lm-eval's answer cache (``--use_cache``), in a table of its own for each model, experts, strategy and dtype.

        Raises:
            T2Error: there are several processes.
        """
        if getattr(cache_hook, "dbdict", None) is not None and self.world_size > 1:  # type: ignore[attr-defined]
            raise T2Error(
                f"--use_cache does not go with {self.world_size} processes: "  # type: ignore[attr-defined]
                "each has a cache of its own, and one that finds all its answers there would leave the others waiting for it for ever. "
                "Leave --use_cache out, or start one process, without `accelerate launch`."
            )
        super().set_cache_hook(cache_hook)  # type: ignore[misc]
        self._open_table()

    def _open_table(self) -> None:
        """Have lm-eval's answer cache, if there is one, look where this model's answers are; this run's, where its first prompts decide."""
        store = getattr(getattr(self, "cache_hook", None), "dbdict", None)
        if store is not None:
            open_table(store, self.cache_facts() | ({"votes of": [*self._documents, _contents(self._tasks)]} if self.votes else {}))

    # ---- one evaluation, called by `results.py`

    def two_pass_setup(self, strategy: Strategy, votes: int | None = None) -> None:
        """Take up a strategy; everything that was remembered is forgotten.

        Args:
            strategy: how weights are found.
            votes: how many prompts decide for their whole task (``dispatch=task``); None: every prompt for itself.
        """
        self.strategy, self.votes = strategy, votes
        self.begin_run()

    def begin_run(self, tasks: Mapping[str, Any] | None = None, selection: Any = None) -> None:
        """Forget the decisions and costs of an earlier evaluation.

        Args:
            tasks: name → lm-eval's task, whose requests are made later; None where they are not known.
            selection: what says which of their documents are asked, as JSON values: lm-eval's ``limit`` and ``samples``.
        """
        self.costs = Costs()
        self._tasks = tasks or {}
        self._documents = [sorted(self._tasks), selection]
        self.decisions: dict[str, Decision] = {}
        self.settled: dict[str, Decision] = {}
        self._counted: set[tuple[str, Any, str]] = set()
        begin_peak(self.device)  # type: ignore[attr-defined]
        self._open_table()

    def end_run(self) -> T2Results | None:
        """Return what this evaluation is to report; every process calls it, the first one gets the answer, with all decisions joined."""
        parts = self.gather_object((self.costs.tasks, self.decisions), dst=0)  # type: ignore[attr-defined]
        if self.rank != 0 or parts is None:  # type: ignore[attr-defined]
            return None
        for _, decisions in parts:
            self.decisions.update(decisions)
        return T2Results(
            schema=SCHEMA,
            strategy=str(self.strategy),
            **self.run_facts(),
            passes=Costs.merged([costs for costs, _ in parts]).tasks,
            confusion=None,
            sandbox=None,
            peak_memory=self.peak_memory(),
        )

    def sample_facts(self, arguments: Sequence[Sequence[Any]], task: str) -> dict[str, Any]:
        """Return what the logged sample of a document says about its weights.

        Args:
            arguments: of the document's requests.
            task: that it is of.

        Returns:
            ``mixture`` (a list where the document's requests had different ones; None where it is not known), and, where pass 1 ran, what
            it found for the first request: ``category`` and ``scores`` or ``reply``, and whether it abstained.
        """
        texts = [str(args[0]) if len(args) > 1 else "" for args in arguments]
        if self.strategy.kind == "fixed":
            return {"mixture": str(self.strategy.mixture)}
        known = [self._known(self._place(text, task)) if text else _NO_PROMPT for text in texts]
        names = [None if k is None else str(k.mixture) for k in known]
        facts: dict[str, Any] = {"mixture": names[0] if len(set(names)) == 1 else names}
        first = known[0] if known else None
        if first is not None and first is not _NO_PROMPT:
            facts["category"] = first.category
            if first.scores is not None:
                facts["scores"] = {name: round(p, 4) for name, p in first.scores.items()}
            if first.reply is not None:
                facts["reply"] = first.reply
            if first.abstained:
                facts["abstained"] = True
        return facts

    # ---- the passes

    def _answer(self, kind: str, ask: Callable[..., list[Any]], requests: "list[Instance]", disable_tqdm: bool) -> list[Any]:
        if not requests:
            return ask(requests, disable_tqdm=disable_tqdm)
        try:
            mixtures = self._choose(kind, requests)
            groups: dict[Mixture, list[int]] = {}
            for i, mixture in enumerate(mixtures):
                groups.setdefault(mixture, []).append(i)
            answers: list[Any] = [None] * len(requests)
            order = self._same_order(groups)
            for mixture in order:
                members = groups.get(mixture, [])
                if len(order) > 1:
                    log.info("Pass 2: %d of %d %s requests with the weights of %s", len(members), len(requests), kind, mixture)
                # a process without requests for this mixture repeats one: lm-eval's classes wait for each other inside such a call
                found = self._ask(kind, ask, mixture, [requests[i] for i in members] or requests[:1], bool(members), disable_tqdm)
                for i, answer in zip(members, found, strict=False):
                    answers[i] = answer
        finally:
            with Stopwatch(self.device).running() as watch:  # type: ignore[attr-defined]
                switched = self.apply_mixture(Mixture.base())
        if switched:
            last = self.costs.task(_task(requests[-1]))["pass2"]
            last["seconds"] += watch.seconds
            last["switches"] += 1
        return answers

    def _choose(self, kind: str, requests: "list[Instance]") -> list[Mixture]:
        """Return each request's mixture, running pass 1 for the contexts that are new."""
        if self.strategy.kind == "fixed":
            mixtures = [self.strategy.mixture] * len(requests)
        elif kind == "loglikelihood_rolling":
            mixtures = [Mixture.base()] * len(requests)
        else:
            prompts = [(_task(r), str(r.args[0])) for r in requests]
            places = [self._place(context, task) if context else None for task, context in prompts]
            distinct = {place: prompt for place, prompt in reversed(list(zip(places, prompts, strict=True))) if place}
            self._pass_one({place: distinct[place] for place in dict.fromkeys(places) if place and self._known(place) is None})
            decided = [self.decisions[place] if place else _NO_PROMPT for place in places]
            mixtures = [d.mixture for d in decided]
            self._label(kind, requests, decided)
        for i, (request, mixture) in enumerate(zip(requests, mixtures, strict=True)):
            task, doc = _task(request), request.doc_id if request.doc_id is not None else (kind, i)
            if (task, doc, str(mixture)) not in self._counted:
                self._counted.add((task, doc, str(mixture)))
                self.costs.choose(task, str(mixture))
        return mixtures

    def _label(self, kind: str, requests: "list[Instance]", decided: list[Decision]) -> None:
        """Count each document's category once, for the confusion matrix."""
        for i, (request, decision) in enumerate(zip(requests, decided, strict=True)):
            doc = request.doc_id if request.doc_id is not None else (kind, i)
            if decision is not _NO_PROMPT and (_task(request), doc, "") not in self._counted:
                self._counted.add((_task(request), doc, ""))
                self.costs.label(_task(request), decision.category, decision.readable)

    def _place(self, context: str, task: str) -> str:
        """Return the key under which the decision about a context is kept: where tasks decide, each task has its own."""
        return f"{task}\n{context}" if self.votes else context

    def _pass_one(self, new: dict[str, tuple[str, str]]) -> None:
        """Decide about new prompts: place → task and context."""
        store = getattr(self.cache_hook, "dbdict", None)  # type: ignore[attr-defined]
        prompts = list(new.values())
        found = self._by_task(prompts, {} if store is None else store) if self.votes else self._label_prompts(prompts)
        for place, decision in zip(new, found, strict=True):
            self.decisions[place] = decision
            if store is not None:
                store[table_entry(place)] = task_vote.to_json(decision)

    def _by_task(self, prompts: list[tuple[str, str]], store: Any) -> list[Decision]:
        """Let the first prompts of each new task decide for all of it; every process comes here and gets the same."""
        tasks = dict.fromkeys(task for task, _ in prompts)
        voters = {task: self._voters(task, prompts) for task in tasks if task not in self.settled}
        for task, contexts in voters.items():
            if (kept := task_vote.recalled(store.get(table_entry(f"task {task}")), contexts)) is not None:
                self.settled[task] = kept
        asked = [(task, context) for task, contexts in voters.items() if task not in self.settled for context in contexts]
        own = dict(zip(asked, self._label_prompts(asked), strict=True))
        votes = task_vote.pooled({task: [decision]} for (task, _), decision in own.items())
        everyone: list[Any] = [(self.settled, votes)]
        if self.world_size > 1:  # type: ignore[attr-defined]
            everyone = [None] * self.world_size  # type: ignore[attr-defined]
            torch.distributed.all_gather_object(everyone, (self.settled, votes))
        for settled, _ in reversed(everyone):
            self.settled.update(settled)
        for task, cast in task_vote.pooled(votes for _, votes in everyone).items():
            if task not in self.settled:
                self.settled[task] = task_vote.verdict(cast)
                log.info("Pass 1: %d prompts of %s decided for %s", len(cast), task, self.settled[task].mixture)
        for task, contexts in voters.items():
            store[table_entry(f"task {task}")] = task_vote.to_keep(self.settled[task], contexts)
        return [task_vote.follow(own.get((task, context)), self.settled[task]) for task, context in prompts]

    def _voters(self, task: str, prompts: list[tuple[str, str]]) -> list[str]:
        """Return the contexts that decide for a task: its first ones, also where `prompts` is only what an answer cache left to ask."""
        instances = (self._tasks[task].instances if task in self._tasks else None) or []
        contexts = [str(i.args[0]) for i in instances if i.request_type != "loglikelihood_rolling"]
        contexts = contexts or [context for name, context in prompts if name == task]
        return list(dict.fromkeys(filter(None, contexts)))[: math.ceil((self.votes or 1) / self.world_size)]  # type: ignore[attr-defined]

    def _label_prompts(self, prompts: list[tuple[str, str]]) -> list[Decision]:
        """Run pass 1 for tasks and contexts, and count what it cost."""
        if not prompts:
            return []
        with Stopwatch(self.device).running() as watch:  # type: ignore[attr-defined]
            switched = self.apply_mixture(self.strategy.first)
            found = self.dispatch([context for _, context in prompts])
        told = [Share(task, d.tokens_in, d.tokens_out, d.tokens_in + d.tokens_out) for (task, _), d in zip(prompts, found, strict=True)]
        self.costs.add("pass1", watch.seconds, int(switched), told)
        if unread := sum(not d.readable for d in found):
            log.warning("Pass 1: %d of %d replies named no category and count as others.", unread, len(found))
        return found

    def _known(self, place: str) -> Decision | None:
        """Return the decision that is kept at `place`, from this run or from the answer cache."""
        if place not in self.decisions:
            store = getattr(self.cache_hook, "dbdict", None)  # type: ignore[attr-defined]
            if store is None or (kept := store.get(table_entry(place))) is None:
                return None
            self.decisions[place] = task_vote.from_json(kept)
        return self.decisions[place]

    def _ask(
        self, kind: str, ask: Callable[..., list[Any]], mixture: Mixture, requests: "list[Instance]", count: bool, disable_tqdm: bool
    ) -> list[Any]:
        """Answer requests of one mixture in one call of lm-eval's class, and count what it cost."""
        with Stopwatch(self.device).running() as watch:  # type: ignore[attr-defined]
            switched = self.apply_mixture(mixture)
            answers = ask(requests, disable_tqdm=disable_tqdm)
        if count:
            generated = kind == "generate_until"
            own = _without_padding(requests)
            asked = [requests[i] for i in own]
            texts = ["".join(map(str, r.args[: 1 if generated else 2])) for r in asked]
            read = self.count_tokens(texts, whole=kind == "loglikelihood_rolling")
            said = [0] * len(own)
            if generated:
                read = [min(tokens, self.longest_context(r.args[-1])) for tokens, r in zip(read, asked, strict=True)]
                longest = [self.longest_answer(r.args[-1]) for r in asked]  # bytes that are no text count as several once they are text
                said = [min(*pair) for pair in zip(self.count_tokens([answers[i] for i in own]), longest, strict=True)]
            self.costs.add("pass2", watch.seconds, int(switched), shares([_task(r) for r in asked], read, said, generated))
        return answers

    def _same_order(self, groups: dict[Mixture, list[int]]) -> list[Mixture]:
        """Return the mixtures in the order in which every process goes through them: the base weights, which are in force, first."""
        found = set(groups)
        if self.world_size > 1:  # type: ignore[attr-defined]
            everyone: list[Any] = [None] * self.world_size  # type: ignore[attr-defined]
            torch.distributed.all_gather_object(everyone, list(groups))
            found = set().union(*everyone)
        return sorted(found, key=lambda m: (not m.is_base, str(m)))


_NO_PROMPT = Decision("others", 0)


def _without_padding(requests: "Sequence[Instance]") -> list[int]:
    """Return the places of the requests that are asked for themselves: lm-eval repeats the last one until all processes have as many."""
    times: Counter[int] = Counter()
    found = []
    for i, request in enumerate(requests):
        times[id(request)] += 1
        if times[id(request)] <= (request.repeats or 1):
            found.append(i)
    return found


def _contents(tasks: Mapping[str, Any]) -> dict[str, str]:
    """Return task → hash of the documents that it is scored on, in their order."""
    told = {name: json.dumps(list(task.eval_docs), default=str) for name, task in sorted(tasks.items())}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in told.items()}


def _task(request: "Instance") -> str:
    return request.task_name or "?"
