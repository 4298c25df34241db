"""The row that scores are normalised by: score / base model's score (paper, section 4)."""

from collections.abc import Iterable, Sequence

from .arguments import short_name
from .compare import differences
from .errors import ReportError
from .metrics import nearest
from .rows import Row

_HF = {"hf", "huggingface", "hf-auto", "hf-multimodal"}
_LOCAL = {"vllm", "vllm-vlm", "sglang"}


def choose_bases(rows: Sequence[Row], name: str | None, tasks: Iterable[str]) -> list[Row | None]:
    """Return for each row the one that it is normalised by, None if there is none.

    Args:
        rows: all rows of the report.
        name: a label (or a part that only one label has); that row is then everyone's base. None: each row gets the base
            row of its own model, without adapter: a t2 run with `strategy=base`, else an `hf` run, else a vLLM or SGLang
            one; of several the one that shares the most comparable tasks.
        tasks: the leaderboard's.

    Raises:
        ReportError: no label or several labels match `name`.
    """
    if name is not None:
        base = _named(rows, name)
        return [base for _ in rows]
    tasks = list(tasks)
    ranked = sorted((row for row in rows if _rank(row) is not None), key=lambda row: _rank(row) or 0)
    bases = [_best(row, [candidate for candidate in ranked if same_model(row, candidate)], tasks) for row in rows]
    # A base that serves no other row would only print 1.00 beside each of its own scores.
    serving = [base for row, base in zip(rows, bases, strict=True) if base is not row]
    return [base if any(base is other for other in serving) else None for base in bases]


def _best(row: Row, candidates: Sequence[Row], tasks: Sequence[str]) -> Row | None:
    def comparable(candidate: Row) -> int:
        shared = [task for task in tasks if row.task(task) and candidate.task(task)]
        return sum(candidate is row or not differences([row, candidate], task) for task in shared)

    return max(candidates, key=comparable, default=None)  # the first of equals: the best rank


def _rank(row: Row) -> int | None:
    run = row.first
    if row.adapters:
        return None
    if run.t2:
        return 0 if run.t2.method == "base" else None
    return 1 if run.model in _HF else 2 if run.model in _LOCAL else None


def same_model(a: Row, b: Row) -> bool:
    """Whether two rows start from the same weights, as far as their files tell.

    t2 files carry a fingerprint, which under an adapter is of the adapted weights. Else names decide (full, or the last part of
    a path). Where a file has none, the number of parameters decides.
    """
    if a is b:
        return True
    one, two = a.first, b.first
    if one.t2 and two.t2 and one.t2.base and two.t2.base and not (a.adapters or b.adapters):
        return one.t2.base == two.t2.base
    names = [row.model or row.first.default for row in (a, b)]
    if names[0] and names[1]:
        return short_name(names[0]).casefold() == short_name(names[1]).casefold()
    if bool(one.t2) == bool(two.t2) and not (names[0] or names[1]):
        return one.model == two.model
    size = one.info.get("parameters")
    return size is not None and size == two.info.get("parameters")


def _named(rows: Sequence[Row], name: str) -> Row:
    exact = [row for row in rows if row.label == name]
    part = [row for row in rows if name.casefold() in row.label.casefold()] if name.strip() else []
    hits = exact or part
    if len(hits) == 1:
        return hits[0]
    labels = [row.label for row in (hits or rows)]
    if hits:
        raise ReportError(
            f"--base {name!r} fits several rows: {'; '.join(labels)}. Give more of the label, or set one by --name PATH=LABEL."
        )
    raise ReportError(f"--base {name!r}: no row has this label.{nearest(name, labels)}")
