"""The one error of this package."""


class ReportError(ValueError):
    """A result file, a folder or an option that no report can be made from; says which, why, and what to do."""


class NoScores(ReportError):
    """A result file that is whole but scores nothing: `--predict_only`, or no task ran.

    Args:
        why: a sentence that names the file.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"{why} Run the evaluation again, or leave this file out.")
