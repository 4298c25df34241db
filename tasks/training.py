"""Training tasks: the prompt and the verifiable reward of each data set that experts are trained on.

Prompts and answer checks are those of the evaluation tasks, so that what is rewarded is what is scored. Only train splits are read, less
what another task scores (MBPP+ has rows of MBPP's), or of a published split of test rows (`mbpp_t2`) its training and validation rows.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..harness.errors import T2Error, nearest
from ..harness.fetch import load_rows
from .answers import gsm8k_correct, math_correct
from .arc import forms as arc
from .gsm8k.forms import answer_prompt
from .lm_eval_training import LmEvalTask
from .mbpp import forms as mbpp
from .mbpp import split as mbpp_split

Doc = Mapping[str, Any]


@dataclass(frozen=True)
class TrainTask:
    """One data set as a reinforcement-learning task.

    Attributes:
        dataset: name for `t2.harness.fetch.load_rows`, whose ``train`` split is read; with `published` or `rows` a name for the card alone.
        prompt: document → the user's message (the chat template is applied to it).
        correct: documents and replies, paired → True where the reply is right (reward +1, else -1).
        max_new_tokens: length of a reply at which it is cut.
        solution: document → the official solution, in the form that is asked for; None where there is none to learn from.
        keep: documents that are left out of training where it says False.
        published: returns the `train` and `validation` rows of a published split; None cuts the train split in half by the seed.
        rows: returns the train rows where they are not that split.
        context: document and chat template (messages → text; None: there is none) → the whole prompt, where it has more than that message.
    """

    dataset: str
    prompt: Callable[[Doc], str]
    correct: Callable[[Sequence[Doc], Sequence[str]], list[bool]]
    max_new_tokens: int
    solution: Callable[[Doc], str] | None = None
    keep: Callable[[Doc], bool] = lambda doc: True
    published: Callable[[], Mapping[str, list[dict[str, Any]]]] | None = None
    rows: Callable[[], list[dict[str, Any]]] | None = None
    context: Callable[[Doc, Callable[..., str] | None], str] | None = None


def each(check: Callable[[Doc, str], bool], stop: str = "</s>") -> Callable[[Sequence[Doc], Sequence[str]], list[bool]]:
    """Make a check of one reply one of many, each cut where the evaluation task's generation stops."""
    return lambda docs, replies: [check(doc, reply.partition(stop)[0]) for doc, reply in zip(docs, replies, strict=True)]


def _gsm8k_steps(doc: Doc) -> str:
    return f"Solve the problem step by step, and write the final number after ####.\n\nProblem: {doc['question']}"


def _gsm8k_short(doc: Doc) -> bool:
    return len(doc["answer"].splitlines()) <= 3  # a line a step, and the one with the final number


def _gsm8k_correct(doc: Doc, reply: str) -> bool:
    return gsm8k_correct(reply, doc["answer"])


def _gsm8k_number(doc: Doc) -> str:
    return doc["answer"].rpartition("####")[2].strip()


def _gsm8k_solution(doc: Doc) -> str:
    return re.sub(r"<<.*?>>", "", doc["answer"])  # the calculator's annotations


def _math_prompt(doc: Doc) -> str:  # as tasks/math asks it
    return f"Problem: {doc['problem']}\n\nSolve the problem step by step and put the final answer in \\boxed{{}}.\n\nSolution:"


def _math_solution(doc: Doc) -> str:
    return doc["solution"]


def _math_correct(doc: Doc, reply: str) -> bool:
    return math_correct(reply, doc["answer"])


def _block(doc: Doc) -> str:
    return f"```python\n{doc['code'].strip()}\n```"


def _mbpp_kept(doc: Doc) -> bool:
    return len(doc["code"]) <= 400 and doc["task_id"] not in mbpp_split.IN_PLUS


TASKS: dict[str, TrainTask] = {
    "arc_easy": TrainTask("arc_easy", arc.text_prompt, each(arc.text_correct, "Question:"), max_new_tokens=24, solution=arc.text_answer),
    "gsm8k": TrainTask("gsm8k", _gsm8k_steps, each(_gsm8k_correct, "Problem:"), max_new_tokens=256, solution=_gsm8k_solution),
    # for models too small to reason in steps: problems of one or two steps, and replies an order of magnitude cheaper
    "gsm8k_answer": TrainTask(
        "gsm8k", answer_prompt, each(_gsm8k_correct, "Problem:"), max_new_tokens=12, solution=_gsm8k_number, keep=_gsm8k_short
    ),
    "math": TrainTask("math", _math_prompt, each(_math_correct, "Problem:"), max_new_tokens=512, solution=_math_solution),
    "mbpp": TrainTask("mbpp", mbpp.chat_prompt, mbpp.correct, max_new_tokens=160, solution=_block, keep=_mbpp_kept),
    "mbpp_t2": TrainTask("mbpp_plus", mbpp.chat_prompt, mbpp.correct, max_new_tokens=160, solution=_block, published=mbpp_split.rows),
}


def train_task(name: str) -> TrainTask:
    """Return a training task: one of `TASKS`, else the lm-eval task of that name, or of that YAML file.

    Raises:
        T2Error: no such task (the nearest name is suggested), or one that cannot be trained on; says why.
    """
    if name in TASKS:
        return TASKS[name]
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if name not in manager.all_tasks and not (name.endswith(".yaml") and Path(name).is_file()):
        close = nearest(name, [*TASKS, *manager.all_subtasks]).partition(" Known:")[0]
        raise T2Error(
            f"Unknown training task {name!r}.{close} It is one of {', '.join(TASKS)}, dispatch, a task that `lm_eval ls tasks` lists, or "
            "the YAML file of one."
        )
    task = LmEvalTask(name, manager)
    return TrainTask(
        f"lm-eval's {task.name}", task.prompt, task.correct, task.max_new_tokens, task.solution, rows=task.rows, context=task.context
    )


@dataclass(frozen=True)
class Split:
    """The train part, cut into training and validation (equal halves, the paper's appendix A.1, or a published split).

    Attributes:
        train, validation: documents.
        sha256: of the rows of each half in order, for the card.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    sha256: dict[str, str]


def split_halves(task: TrainTask, seed: int) -> Split:
    """Shuffle the train split by `seed` and cut it in half, or take the task's published split.

    Raises:
        FetchError: the train split cannot be had.
        T2Error: it is too small to be cut, or holds what is no JSON.
    """
    if task.published:
        rows = task.published()
        parts = {name: [row for row in rows[name] if task.keep(row)] for name in ("train", "validation")}
    else:
        every = [dict(row) for row in (task.rows() if task.rows else load_rows(task.dataset, "train")) if task.keep(row)]
        random.Random(seed).shuffle(every)  # noqa: S311 - a reproducible split, not a secret
        half = len(every) // 2
        if not half:
            raise T2Error(f"{task.dataset} has {len(every)} documents to train on: at least two are needed, one of them for validation.")
        parts = {"train": every[:half], "validation": every[half:]}
    try:
        hashes = {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in parts.items()}
    except TypeError as error:
        raise T2Error(
            f"{task.dataset} has documents with more than text, numbers and lists ({error}), by whose hash a run knows its data: drop or "
            "convert that column, by the task's process_docs."
        ) from error
    return Split(parts["train"], parts["validation"], hashes)
