"""The share of replies from which an answer could be extracted, beside lm-eval's own metrics.

A callable in a task's `metric_list` is computed once per filter and leaves the other metrics as they are; a `process_results`
would have replaced them.
"""

from collections.abc import Sequence

from .answers import arc_letter, extract_number

_KINDS = {"number": extract_number, "letter": arc_letter}


def extracted(references: Sequence[str], predictions: Sequence[str], kind: str) -> float:
    """Return 1.0 if the filtered reply holds an answer, else 0.0; lm-eval takes the mean and its standard error.

    Args:
        references: unused; lm-eval passes the target.
        predictions: one reply after the filter; a regex filter that found nothing gives ``[invalid]``.
        kind: ``number`` or ``letter``.
    """
    return float(_KINDS[kind](predictions[0]) is not None)
