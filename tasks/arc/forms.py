"""The option-text form of ARC: the model writes the text of an option instead of its letter.

A 135M model cannot bind letters to options (it answers A), but does know many answers; so `arc_*_text` and the `reasoning` expert use
this form, and every method compared uses the same one.
"""

import re
import string
from collections.abc import Mapping
from typing import Any

PUNCTUATION = str.maketrans("", "", string.punctuation)


def text_prompt(doc: Mapping[str, Any]) -> str:
    """Return the user's message for one ARC document with the hub's fields (question, choices.text)."""
    options = "\n".join(f"- {text}" for text in doc["choices"]["text"])
    return f"Select the correct option and write only its text.\n\nQuestion: {doc['question']}\nOptions:\n{options}\n\nCorrect option:"


def text_answer(doc: Mapping[str, Any]) -> str:
    """Return the text of the correct option."""
    return doc["choices"]["text"][doc["choices"]["label"].index(doc["answerKey"])]


def normalise(text: str) -> str:
    """Lower the case, drop ASCII punctuation, fold white space: what exact match compares."""
    return re.sub(r"\s+", " ", text.lower().translate(PUNCTUATION)).strip()


def text_correct(doc: Mapping[str, Any], reply: str) -> bool:
    """True if the reply is the correct option, after `normalise`.

    Where another option is then the same (+1 and -1, Rr and rr), case and punctuation count too, but for the "- " that the prompt has
    before an option and small models copy, and for a full stop at the end.
    """
    gold = text_answer(doc)
    if normalise(reply) != normalise(gold):
        return False
    alike = [text for text in doc["choices"]["text"] if normalise(text) == normalise(gold)]
    return len(alike) == 1 or _folded(reply) == _folded(gold)


def _folded(text: str) -> str:
    return " ".join(text.split()).removeprefix("- ").removesuffix(".")


def is_option(doc: Mapping[str, Any], reply: str) -> bool:
    """True if the reply is one of the options, right or wrong: the extraction rate of this form."""
    return normalise(reply) in {normalise(text) for text in doc["choices"]["text"]}
