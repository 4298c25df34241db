"""The few-shot documents of an lm-eval task: from its train or validation split where it has one, else from the one that is evaluated."""

import copy
import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import T2Error, nearest
from ..fetch import FetchError, load_rows
from ..fetch.catalog import DATASETS

log = logging.getLogger(__name__)

Source = Literal["train", "validation", "evaluated"]
SOURCES: tuple[Source, ...] = ("train", "validation", "evaluated")

FEWSHOT_SEED = 1234
"""lm-eval's default."""

_NUMBERED = {
    "openai/openai_humaneval": "HumanEval",
    "evalplus/humanevalplus": "HumanEval",
    "google-research-datasets/mbpp": "MBPP",
    "evalplus/mbppplus": "MBPP",
}
"""``dataset_path`` → benchmark, of data sets that revised a benchmark's questions and kept their numbers (``task_id``)."""


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        task: lm-eval's task (of a group, the member).
        source: where it is from; ``evaluated`` is the split that the task's score is computed on.
        index: its place in that split, as lm-eval counts it (``doc_id``).
        doc: its fields.
        sha256: as lm-eval hashes it (``doc_hash`` of the logged samples).
        question_sha256: of the task's text for it alone, by which other splits and data sets ask the same; see `question_hash`.
        question_id: of its question in whatever words, by which other tasks and versions of a benchmark ask it; see `question_id`.
    """

    task: str
    source: Source
    index: int
    doc: Mapping[str, Any]
    sha256: str
    question_sha256: str
    question_id: str

    def as_dict(self) -> dict[str, Any]:
        """For the mixture file: without the content."""
        return {
            "task": self.task, "split": self.source, "id": self.index,
            "sha256": self.sha256, "question_sha256": self.question_sha256, "question_id": self.question_id,
        }  # fmt: skip


def known_tasks(names: Sequence[str], include_path: str | None = None) -> Any:
    """Return lm-eval's `TaskManager`, which knows every task of `names`.

    Raises:
        T2Error: it does not.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            close = nearest(name, manager.all_tasks).partition(" Known:")[0]
            raise T2Error(f"Unknown task {name!r}.{close} `lm_eval ls tasks` lists them.")
    return manager


def load_tasks(
    name: str,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: Any = None,
    fewshot_seed: int | None = FEWSHOT_SEED,
) -> dict[str, Any]:
    """Load a task, or the tasks of a group, set up as lm-eval's `simple_evaluate` does with the same options.

    Raises:
        T2Error: no such task, it cannot be loaded, it is of a kind that has no right answers, or it searches with beams.
    """
    from lm_eval.utils import simple_parse_args_string

    manager = known_tasks([name], include_path)
    try:
        tasks = manager.load([name])["tasks"]
    except T2Error:
        raise
    except Exception as error:  # lm-eval's loaders raise whatever their libraries do
        raise T2Error(f"lm-eval's task {name!r} cannot be loaded ({type(error).__name__}: {error}).") from error
    options = simple_parse_args_string(gen_kwargs) if isinstance(gen_kwargs, str) else gen_kwargs
    for task_name, task in tasks.items():
        if task.OUTPUT_TYPE not in ("generate_until", "multiple_choice"):
            raise T2Error(f"Task {task_name!r} scores {task.OUTPUT_TYPE}: it has no right answers to count. Few-shot search needs them.")
        if (task.config.repeats or 1) != 1:
            raise T2Error(f"Task {task_name!r} draws {task.config.repeats} replies a document; adapt on its form with one reply.")
        if options and task.OUTPUT_TYPE == "generate_until":
            task.set_config(key="generation_kwargs", value=options, update=True)
        if (beams := (task.config.generation_kwargs or {}).get("num_beams") or 1) != 1:
            raise T2Error(
                f"Task {task_name!r} generates with num_beams={beams}; few-shot search reads the log-likelihood of each token as it is "
                "chosen, which beams revise. Leave num_beams out of --gen_kwargs, or set it to 1."
            )
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=fewshot_seed)
    return tasks


def doc_hash(doc: Mapping[str, Any]) -> str:
    """Return the sha256 that lm-eval logs for a document as ``doc_hash``."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False))


def question_hash(task: Any, doc: Mapping[str, Any]) -> str:
    """Return the sha256 of what `task` asks about a document, without examples; "" for multiple choice, where many tasks ask the same."""
    text = task.doc_to_text(doc) if task.OUTPUT_TYPE == "generate_until" else None
    return hashlib.sha256(text.encode()).hexdigest() if isinstance(text, str) and text.strip() else ""


def question_id(task: Any, doc: Mapping[str, Any]) -> str:
    """Return ``HumanEval/12`` or ``MBPP/604``, the same for each task and version of these benchmarks; "" for others."""
    benchmark, number = _NUMBERED.get(task.config.dataset_path or ""), str(doc.get("task_id", "")).rpartition("/")[2]
    return f"{benchmark}/{number}" if benchmark and number else ""


def marks(task: Any, doc: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return all by which a document is known again: `doc_hash`, `question_hash`, `question_id`; "" is none."""
    return doc_hash(doc), question_hash(task, doc), question_id(task, doc)


def pools(task: Any) -> dict[Source, Sequence[Mapping[str, Any]]]:
    """Return the documents that a task offers, by source, best source first; loads none that it does not offer."""
    config, found = task.config, dict[Source, Any]()
    evaluated = config.test_split if task.has_test_docs() else config.validation_split
    if task.has_training_docs() and config.training_split != evaluated:
        found["train"] = task.training_docs()
    elif (place := _place(task)) is not None:
        name, split, subject = place["dataset"], place["split"], place.get("subject")
        try:
            found[split] = [dict(row) for row in load_rows(name, split) if subject is None or row["type"] == subject]
        except FetchError as error:
            log.warning("%s: no documents from its %s split. %s", task.config.task, split, error)
    if "validation" not in found and task.has_validation_docs() and config.validation_split != evaluated:
        found["validation"] = task.validation_docs()
    fewshot = task.fewshot_cfg.split
    if not found and fewshot not in (None, evaluated) and not config.num_fewshot:  # else they are the examples, with their answers
        found["train"] = task.fewshot_docs()
    found["evaluated"] = task.eval_docs
    return found


def train_sets(task: Any) -> set[str]:
    """Return the names under which an expert's card has the data set that a task's train documents are of."""
    config, place = task.config, _place(task)
    hub = [d.name for d in DATASETS.values() if d.hub.repo == config.dataset_path and config.dataset_name in d.hub.configs]
    return {f"lm-eval's {config.task}", *hub, *([place["dataset"]] if place else [])}


def _place(task: Any) -> dict[str, Any] | None:
    """Return data set, split and subject of the documents that one of t2's own tasks offers besides those that it is scored on.

    Its metadata name a data set (``t2_train``), or its sampler's placeholder does, from which few-shot examples come (`t2.tasks.fewshot`).
    """
    if name := (task.config.metadata or {}).get("t2_train"):
        return {"dataset": name, "split": "train"}
    samples = getattr(task.fewshot_cfg, "samples", None)
    first = samples[0] if isinstance(samples, list) and samples else None
    if isinstance(first, Mapping) and "dataset" in first and first.get("split") in ("train", "validation"):
        return dict(first)
    return None


def draw(tasks: Mapping[str, Any], count: int, seed: int, source: Source | None = None) -> list[Document]:
    """Draw `count` documents without replacement, over all of a group's tasks.

    Args:
        tasks: name → task.
        count: how many.
        seed: of the draw; the first documents of a larger draw are those of a smaller one.
        source: where from; None for the best that every task offers.

    Raises:
        T2Error: no such source here, or not more documents than `count`.
    """
    offers = {name: pools(task) for name, task in tasks.items()}
    if source is not None and (lacking := [name for name, offer in offers.items() if source not in offer]):
        has = ", ".join(offers[lacking[0]])
        raise T2Error(f"--source {source}: task {lacking[0]!r} offers no such documents; it has: {has}.")
    chosen: Source = source or next(s for s in SOURCES if all(s in offer for offer in offers.values()))
    places = [(name, index) for name, offer in offers.items() for index in range(len(offer[chosen]))]
    if count >= len(places):
        raise T2Error(
            f"{count} documents are to be drawn, but {', '.join(tasks)} {'has' if len(tasks) == 1 else 'have'} only {len(places)} in its "
            f"{chosen} split: lower --shots (and --select), or take another --source."
        )
    random.Random(seed).shuffle(places)  # noqa: S311 - a reproducible draw, not a secret
    drawn = []
    for name, index in places[:count]:
        doc = dict(offers[name][chosen][index])
        drawn.append(Document(name, chosen, index, doc, *marks(tasks[name], doc)))
    return drawn


@dataclass
class Prepared:
    """Requests of some documents of one task, as lm-eval would send them.

    Attributes:
        task: lm-eval's task, whose filters and metrics judge.
        instances: requests; `doc_id` counts the given documents.
        places: for each document its place among all that were given to `prepare`.
    """

    task: Any
    instances: list[Any]
    places: list[int]


def _leave_asked_one_out(task: Any) -> None:
    """Have lm-eval take no document for an example of itself: it sees to that only where examples are of the split that is scored."""
    shots = task.config.num_fewshot or 0
    if shots and len(task.sampler.fewshot_docs()) > shots:
        task.fewshot_cfg = copy.copy(task.fewshot_cfg)
        task.fewshot_cfg.split = task.config.test_split


def prepare(
    tasks: Mapping[str, Any],
    documents: Sequence[Document],
    lm: Any = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    fewshot_as_multiturn: bool = True,
) -> list[Prepared]:
    """Make the requests of `documents`, with lm-eval's own prompt building.

    Args:
        tasks: as `load_tasks` returned them.
        documents: of these tasks.
        lm: the model, for its chat template.
        apply_chat_template: as lm-eval's option.
        system_instruction: as lm-eval's option.
        fewshot_as_multiturn: as lm-eval's option.
    """
    prepared = []
    for name, task in tasks.items():
        places = [i for i, document in enumerate(documents) if document.task == name]
        if not places:
            continue
        docs = [dict(documents[i].doc) for i in places]
        part = copy.copy(task)
        part.has_test_docs, part.test_docs = lambda: True, lambda docs=docs: docs
        if documents[places[0]].source != "evaluated":
            _leave_asked_one_out(part)
        part.build_all_requests(
            system_instruction=system_instruction,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            chat_template=lm.apply_chat_template if apply_chat_template else None,
            tokenizer_name=lm.tokenizer_name if apply_chat_template else "",
        )
        prepared.append(Prepared(task, list(part.instances), places))
    return prepared
