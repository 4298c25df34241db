"""What a model answers to a few-shot document."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: cut at its stop sequence, as lm-eval's `generate_until` returns it.
        log_likelihood: natural logarithm, summed over `tokens`.
        tokens: how many tokens were chosen until the answer ended, the end-of-text token or the stop sequence included.
    """

    text: str
    log_likelihood: float
    tokens: int
