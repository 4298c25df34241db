"""The two passes as a mixin over an lm-eval model class: dispatch each distinct context, then answer group by group.

Which weights answer a request depends on its context alone, so decisions are kept by context: that is enough to dispatch each once, to find
the answers' mixtures again for the logged samples, and to store them beside cached answers.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..adapters.dispatch_forms import Decision
from ..adapters.mixture import Mixture
from . import task_vote
from .cache_key import open_table, table_entry
from .strategy import Strategy
from .timing import SCHEMA, Costs, Share, Stopwatch, T2Results, peak_memory, shares

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook

log = logging.getLogger("t2")


class TwoPass:
    """Two-pass adaptation for the lm-eval model class that follows in the bases, e.g. ``class T2LM(TwoPass, HFLM)``.

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

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text; called right after a pass, outside what is timed."""
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
        """Use lm-eval's answer cache (``--use_cache``), in a table of its own for each model, experts, strategy and dtype."""
        if getattr(cache_hook, "dbdict", None) is not None:
            open_table(cache_hook.dbdict, self.cache_facts())
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    # ---- one evaluation, called by `results.py`

    def two_pass_setup(self, strategy: Strategy, votes: int | None = None) -> None:
        """Take up a strategy; everything that was remembered is forgotten.

        Args:
            strategy: how weights are found.
            votes: how many prompts decide for their whole task (``dispatch=task``); None: every prompt for itself.
        """
        self.strategy, self.votes = strategy, votes
        self.begin_run()

    def begin_run(self) -> None:
        """Forget the decisions and costs of an earlier evaluation."""
        self.costs = Costs()
        self.decisions: dict[str, Decision] = {}
        self.settled: dict[str, Decision] = {}
        self._counted: set[tuple[str, Any, str]] = set()

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

    def sample_facts(self, arguments: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Return what the logged sample of a document says about its weights.

        Args:
            arguments: of the document's requests.

        Returns:
            ``mixture`` (a list where the document's requests had different ones; None where it is not known), and, where pass 1 ran, what
            it found for the first request: ``category`` and ``scores`` or ``reply``, and whether it abstained.
        """
        texts = [str(args[0]) if len(args) > 1 else "" for args in arguments]
        if self.strategy.kind == "fixed":
            return {"mixture": str(self.strategy.mixture)}
        known = [self._known(text) if text else _NO_PROMPT for text in texts]
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
            contexts = [str(r.args[0]) for r in requests]
            new = {c: _task(r) for c, r in reversed(list(zip(contexts, requests, strict=True))) if c and self._known(c) is None}
            self._pass_one([c for c in dict.fromkeys(contexts) if c in new], new)
            decided = [self.decisions[c] if c else _NO_PROMPT for c in contexts]
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

    def _pass_one(self, contexts: list[str], tasks: dict[str, str]) -> None:
        store = getattr(self.cache_hook, "dbdict", None)  # type: ignore[attr-defined]
        found = self._by_task(contexts, tasks, store) if self.votes else self._label_contexts(contexts, tasks)
        for context, decision in zip(contexts, found, strict=True):
            self.decisions[context] = decision
            if store is not None:
                store[table_entry(context)] = task_vote.to_json(decision)

    def _by_task(self, contexts: list[str], tasks: dict[str, str], store: Any) -> list[Decision]:
        """Let the first prompts of each new task decide for all of it; every process comes here and gets the same."""
        for task in set(tasks.values()) - set(self.settled):
            if store is not None and (kept := store.get(table_entry(f"task {task}"))) is not None:
                self.settled[task] = task_vote.from_json(kept)
        asked = task_vote.voters(contexts, tasks, self.settled, math.ceil((self.votes or 1) / self.world_size))  # type: ignore[attr-defined]
        own = dict(zip(asked, self._label_contexts(asked, tasks), strict=True))
        votes = task_vote.pooled({tasks[c]: [decision]} for c, decision in own.items())
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
        if store is not None:
            for task in set(tasks.values()):
                store[table_entry(f"task {task}")] = task_vote.to_json(self.settled[task])
        return [task_vote.follow(own.get(c), self.settled[tasks[c]]) for c in contexts]

    def _label_contexts(self, contexts: list[str], tasks: dict[str, str]) -> list[Decision]:
        """Run pass 1 and count what it cost."""
        if not contexts:
            return []
        with Stopwatch(self.device).running() as watch:  # type: ignore[attr-defined]
            switched = self.apply_mixture(self.strategy.first)
            found = self.dispatch(contexts)
        told = [Share(tasks[c], d.tokens_in, d.tokens_out, d.tokens_in + d.tokens_out) for c, d in zip(contexts, found, strict=True)]
        self.costs.add("pass1", watch.seconds, int(switched), told)
        if unread := sum(not d.readable for d in found):
            log.warning("Pass 1: %d of %d replies named no category and count as others.", unread, len(found))
        return found

    def _known(self, context: str) -> Decision | None:
        """Return the decision for a context, from this run or from the answer cache."""
        if context not in self.decisions:
            store = getattr(self.cache_hook, "dbdict", None)  # type: ignore[attr-defined]
            if store is None or (kept := store.get(table_entry(context))) is None:
                return None
            self.decisions[context] = task_vote.from_json(kept)
        return self.decisions[context]

    def _ask(
        self, kind: str, ask: Callable[..., list[Any]], mixture: Mixture, requests: "list[Instance]", count: bool, disable_tqdm: bool
    ) -> list[Any]:
        """Answer requests of one mixture in one call of lm-eval's class, and count what it cost."""
        with Stopwatch(self.device).running() as watch:  # type: ignore[attr-defined]
            switched = self.apply_mixture(mixture)
            answers = ask(requests, disable_tqdm=disable_tqdm)
        if count:
            generated = kind == "generate_until"
            read = self.count_tokens(["".join(map(str, r.args[: 1 if generated else 2])) for r in requests])
            said = self.count_tokens(answers) if generated else [0] * len(requests)
            self.costs.add("pass2", watch.seconds, int(switched), shares([_task(r) for r in requests], read, said, generated))
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


def _task(request: "Instance") -> str:
    return request.task_name or "?"
