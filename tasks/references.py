"""The reference solutions of HumanEval and MBPP: what the sandbox judges first, and those that fail the tests of their own row."""

# Where a program known to pass does not, the machine is broken and nothing is scored; so rows whose reference never passes have none.
FAILING: dict[str, dict[str | int, str]] = {
    "humaneval": {},
    "humaneval_plus": {
        "HumanEval/32": "the published test unpacks the number that find_zero returns (`_poly(*candidate(*inp), inp)`): always a TypeError"
    },
    "mbpp": {},
    "mbpp_plus": {255: "one input asks for the 1,663,740 ways to take 77 of 5 things with repetition, a gigabyte of tuples"},
}


def reference(dataset: str, task_id: str | int, solution: str) -> str | None:
    """Return a row's solution if it is known to pass the row's tests, else None."""
    return None if task_id in FAILING[dataset] else solution
