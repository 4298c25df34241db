"""From a reply to a verdict: the one checker that evaluation tasks and reinforcement-learning rewards share.

`gsm8k_correct` and `arc_letter` follow lm-eval's own filters and metrics to the letter (tests hold them to lm-eval's code), so that a
reward of 1 is a score of 1. `math` is not in lm-eval: `math_answers` says where an answer stands, `math_verifier` when two are equal.
"""

import re

from .arc.forms import PUNCTUATION
from .math_answers import extract_math
from .math_verifier import same_value

__all__ = ["arc_letter", "extract_math", "extract_number", "gsm8k_correct", "math_correct"]

_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")  # lm-eval's gsm8k, filter flexible-extract
_IGNORED = re.compile(r",|\$|(?s:.*#### )")  # its regexes_to_ignore, but the last one, which must come after these


def _plain_number(text: str) -> str:
    """Return what lm-eval's exact_match compares for GSM8K: no commas, no dollar, nothing before ``#### ``, no full stop at the end."""
    return re.sub(r"\.$", "", _IGNORED.sub("", text)).lower()


def extract_number(text: str) -> str | None:
    """Return the last number of a reply as lm-eval's flexible-extract sees it, e.g. ``"It costs $1,250."`` → ``"1250"``; None without one.

    It looks at the last run of digits, dots, commas and dollar signs, so a reply that trails off in ``...`` has no number:
    that is what the score says as well.
    """
    found = [first or second for first, second in _NUMBER.findall(text)]
    number = _plain_number(found[-1].strip()) if found else ""
    return number if any(c.isdigit() for c in number) else None


def gsm8k_correct(completion: str, answer: str) -> bool:
    """True if lm-eval's ``exact_match,flexible-extract`` is 1 for this reply.

    Args:
        completion: the reply, already cut at the task's stop sequences.
        answer: the data set's answer field; its number stands after ``####``.
    """
    number = extract_number(completion)
    return number is not None and number == _plain_number(answer)


def arc_letter(text: str) -> str | None:
    """Return the letter A to E that a reply consists of after dropping case, punctuation and outer space; else None.

    As strict as lm-eval's exact_match in ``arc_*_chat``: ``"(b)."`` is B, ``"B, because …"`` is nothing.
    """
    letter = text.strip().lower().translate(PUNCTUATION)
    return letter.upper() if letter in {"a", "b", "c", "d", "e"} else None


def math_correct(completion: str, gold: str) -> bool:
    """True if the reply's answer equals the reference answer, as text or by math-verify.

    Args:
        completion: the reply; `extract_math` finds its answer.
        gold: the reference answer alone, without a box.

    Raises:
        VerifierError: math-verify cannot run here (an error of the installation, never a score of 0).
    """
    answer = extract_math(completion)
    return answer is not None and same_value(gold, answer)
