"""From the rows of each source to one form: the fields that lm-eval's own tasks read, in a fixed order."""

from collections.abc import Callable, Mapping
from typing import Any

from .catalog import Row

LETTERS = "ABCDEFGH"
# MBPP's splits are ranges of task_id (Austin et al. 2021, section 3); 1-10 are the few-shot prompts.
MBPP_SPLITS = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}


def last_boxed(solution: str) -> str | None:
    r"""Return what the last ``\boxed{…}`` (or ``\fbox{…}``) of a MATH solution holds, braces balanced; None when there is none."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return None
    opening = start + (6 if solution.startswith("\\boxed", start) else 5)
    if solution[opening : opening + 1] != "{":  # \boxed 5
        return solution[opening:].split("$")[0].strip()
    depth = 0
    for position in range(opening, len(solution)):
        depth += (solution[position] == "{") - (solution[position] == "}")
        if depth == 0:
            return solution[opening + 1 : position]
    return None


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw[name]
    if not isinstance(value, str):
        raise TypeError(f"field {name!r} should be text, not {value!r}")
    return value


def _gsm8k(raw: Mapping[str, Any]) -> Row:
    return {"question": _text(raw, "question"), "answer": _text(raw, "answer")}


def _math(raw: Mapping[str, Any]) -> Row:
    """MATH and MATH-500. The latter calls the type `subject` and has the level as a number; the answer is the last box everywhere."""
    level, kind, solution = raw["level"], raw.get("type") or raw.get("subject"), _text(raw, "solution")
    answer = last_boxed(solution)
    if answer is None:
        answer = raw.get("answer")
    if not isinstance(kind, str) or not isinstance(answer, str):
        raise TypeError("no 'type' (or 'subject'), or no 'answer' and no \\boxed{…} in 'solution'")
    level = f"Level {level}" if isinstance(level, int) else _text(raw, "level")
    return {"problem": _text(raw, "problem"), "level": level, "type": kind, "solution": solution, "answer": answer}


def _humaneval(raw: Mapping[str, Any]) -> Row:
    return {name: _text(raw, name) for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")}


def _mbpp(raw: Mapping[str, Any]) -> Row:
    lists = {name: [str(line) for line in raw[name]] for name in ("test_list", "challenge_test_list")}
    if not isinstance(raw["task_id"], int) or isinstance(raw["test_list"], str):
        raise TypeError("'task_id' should be a whole number and 'test_list' a list")
    return {
        "task_id": raw["task_id"],
        "text": _text(raw, "text"),
        "code": _text(raw, "code"),
        "test_list": lists["test_list"],
        "test_setup_code": _text(raw, "test_setup_code"),
        "challenge_test_list": lists["challenge_test_list"],
    }


def _mbpp_plus(raw: Mapping[str, Any]) -> Row:
    if not isinstance(raw["task_id"], int) or isinstance(raw["test_list"], str):
        raise TypeError("'task_id' should be a whole number and 'test_list' a list")
    texts = {name: _text(raw, name) for name in ("prompt", "code")}
    return {"task_id": raw["task_id"], **texts, "test_list": [str(line) for line in raw["test_list"]], "test": _text(raw, "test")}


def _arc(raw: Mapping[str, Any]) -> Row:
    """ARC from the hub (`choices` of two lists) or from its first publication (`question.stem`, a list of choices).

    A few questions label their choices 1 to 4; they become letters everywhere, because one of the sources keeps no labels.
    """
    if isinstance(raw["question"], Mapping):
        question = _text(raw["question"], "stem")
        texts = [_text(choice, "text") for choice in raw["question"]["choices"]]
        labels = [_text(choice, "label") for choice in raw["question"]["choices"]]
    else:
        question = _text(raw, "question")
        texts, labels = [str(text) for text in raw["choices"]["text"]], [str(label) for label in raw["choices"]["label"]]
    if len(texts) != len(labels) or len(labels) > len(LETTERS):
        raise ValueError(f"{len(texts)} choices with {len(labels)} labels; there should be as many of both, at most {len(LETTERS)}")
    answer = _text(raw, "answerKey")
    if answer not in labels:
        raise ValueError(f"answerKey {answer!r} is none of the labels {labels}")
    return arc_row(_text(raw, "id"), question, texts, labels.index(answer))


def arc_row(identity: str, question: str, texts: list[str], gold: int) -> Row:
    """Return an ARC row with letters as labels; `gold` is the index of the right choice."""
    labels = list(LETTERS[: len(texts)])
    return {"id": identity, "question": question, "choices": {"text": texts, "label": labels}, "answerKey": labels[gold]}


_ROW: dict[str, Callable[[Mapping[str, Any]], Row]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "math500": _math,
    "humaneval": _humaneval,
    "humaneval_plus": _humaneval,
    "mbpp": _mbpp,
    "mbpp_plus": _mbpp_plus,
    "arc_easy": _arc,
    "arc_challenge": _arc,
}


def normalise(dataset: str, raw: Any) -> Row:
    """Return one row of `dataset` in t2's form.

    Raises:
        ValueError: a field is missing or of the wrong type; says which.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"should be a JSON object, not {type(raw).__name__}")
    try:
        return _ROW[dataset](raw)
    except KeyError as error:
        raise ValueError(f"field {error} is missing") from error
    except TypeError as error:
        raise ValueError(str(error)) from error
