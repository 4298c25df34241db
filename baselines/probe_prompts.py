"""Labelled prompts for a probe or a classifier expert: train-split documents in the forms in which lm-eval's tasks ask them."""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..harness.fetch import load_rows
from ..tasks.arc import forms as arc
from ..tasks.mbpp import forms as mbpp

Doc = Mapping[str, Any]


def _first_tests(doc: Doc) -> str:
    return "\n".join(doc["test_list"][:3])


def _mbpp(doc: Doc) -> str:
    task = f"You are an expert Python programmer, and here is your task: {doc['text']}"
    return f"{task} Your code should pass these tests:\n\n{_first_tests(doc)}\n[BEGIN]\n"


def _mbpp_instruct(doc: Doc) -> str:
    task = f"You are an expert Python programmer, and here is your task:\n{doc['text']}"
    return f"{task}\nYour code should pass these tests:\n{_first_tests(doc)}"


def _function(doc: Doc) -> str:
    """Return an MBPP document as HumanEval asks: a signature with a docstring, to be gone on with."""
    test = doc["test_list"][0].removeprefix("assert ").strip()
    name = re.match(r"\w+", test)
    signatures = [line for line in re.findall(r"^def .*:", doc["code"], re.MULTILINE) if name and f"def {name[0]}" in line]
    signature = signatures[-1] if signatures else f"def {name[0] if name else 'solve'}(values):"
    call, _, value = test.partition("==")
    return f'from typing import List\n\n\n{signature}\n    """ {doc["text"]}\n    >>> {call.strip()}\n    {value.strip()}\n    """\n'


def _function_instruct(doc: Doc) -> str:
    code = _function(doc)
    return f"Write a solution to the following problem and make sure that it passes the tests:\n```python\n{code}\n```\n"


def _options(doc: Doc) -> str:
    listed = [f"{letter}. {text}" for letter, text in zip("ABCD", doc["choices"]["text"], strict=False)]
    lines = [
        "Given the following question and four candidate answers (A, B, C and D), choose the best answer.",
        f"Question: {doc['question'].strip()}",
        *listed,
        'Your response should end with "The best answer is [the_answer_letter]" where the [the_answer_letter] is one of A, B, C or D.',
    ]
    return r"\n".join(lines)  # a backslash and an n, as lm-eval's arc_challenge_chat has it


def _math(doc: Doc) -> str:
    return f"Problem: {doc['problem']}\n\nSolve the problem step by step and put the final answer in \\boxed{{}}.\n\nSolution:"


FORMS: dict[str, dict[str, tuple[Callable[[Doc], str], ...]]] = {
    "code": {"mbpp": (lambda d: d["text"], _mbpp, _mbpp_instruct, mbpp.chat_prompt, _function, _function_instruct)},
    "math": {
        "gsm8k": (lambda d: d["question"], lambda d: f"Question: {d['question']}\nAnswer:"),
        "math": (lambda d: d["problem"], _math),
    },
    "reasoning": {
        "arc_easy": (lambda d: d["question"], lambda d: f"Question: {d['question']}\nAnswer:", _options, arc.text_prompt),
        "arc_challenge": (lambda d: d["question"], lambda d: f"Question: {d['question']}\nAnswer:", _options, arc.text_prompt),
    },
}
"""Expert → data set → its forms. Only train splits are read."""


def labelled_prompts(per_category: int, seed: int) -> Iterator[tuple[str, str, int]]:
    """Yield (category, prompt, document number), `per_category` of each, the forms in turn.

    Documents are drawn without repetition as far as they go (MBPP has 374); a document that comes again comes in another form, under the
    same number, so that a split by document keeps its forms together.

    Raises:
        FetchError: a train split cannot be had.
    """
    draw = random.Random(seed)  # noqa: S311 - a reproducible choice, not a secret
    number = 0
    for category, datasets in FORMS.items():
        docs = []
        for dataset, forms in datasets.items():
            rows = list(load_rows(dataset, "train"))
            some = draw.sample(rows, min(len(rows), -(-per_category // len(datasets))))
            docs += [(row, forms, number + i) for i, row in enumerate(some)]
            number += len(some)
        draw.shuffle(docs)
        for i in range(per_category):
            row, forms, place = docs[i % len(docs)]
            yield category, forms[(i + i // len(docs)) % len(forms)](row), place
