"""Read lm-eval's result JSON (0.4.x, from any model) into typed records."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .arguments import parse_model_args
from .errors import NoScores
from .files import Found, RawResult, read
from .passes import T2Info, parse_t2

_NOT_METRICS = {"alias", "name", "sample_len", "sample_count"}
# `--predict_only` replaces every metric by `bypass` with the value 999, which is no score.
_BYPASS = "bypass"
# What decides about prompts and scoring in a task's configuration; paths and names of files do not.
_DEFINITION = (
    "description", "doc_to_text", "doc_to_target", "doc_to_choice", "process_docs", "process_results", "output_type",
    "generation_kwargs", "metric_list", "filter_list", "repeats", "target_delimiter", "fewshot_delimiter", "test_split", "gen_prefix",
)  # fmt: skip
# The metrics that lm-eval registers as such, for files that do not say which way is better.
_LOWER_IS_BETTER = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"})
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    Attributes:
        metric: lm-eval's name, e.g. `exact_match`.
        filter: lm-eval's filter, `none` if there is none.
        value: in the metric's own units (proportions are 0 to 1); may be NaN.
        stderr: standard error as lm-eval gives it, None where it says "N/A".
        higher_is_better: False for perplexities and the like.
    """

    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool = True


@dataclass(frozen=True)
class TaskResult:
    """What one run says about one task or group.

    Attributes:
        n: documents scored; None if the file does not say.
        original: documents in the whole split; None for old files.
        definition: field -> value of what decides about prompts and scoring (leaf tasks only).
        task_hash: hash over documents, prompts and targets; only with `--log_samples`.
        domain: what the documents are about, where the task's metadata say so.
    """

    name: str
    scores: tuple[Score, ...]
    n: int | None = None
    original: int | None = None
    n_shot: str | None = None
    version: str | None = None
    task_hash: str | None = None
    definition: dict[str, str] = field(default_factory=dict)
    domain: str | None = None


@dataclass(frozen=True)
class Run:
    """One result file.

    Attributes:
        seconds: wall-clock time of the whole lm_eval call, model loading included; None if not in the file.
        date: start of the evaluation in seconds since 1970, 0.0 if not in the file.
        default: name of t2's default model, where the run used that one.
        settings: whatever else changes scores: seeds, gen_kwargs, chat template and so on, as short strings.
    """

    raw: RawResult
    model: str
    args: dict[str, str]
    tasks: dict[str, TaskResult]
    groups: dict[str, tuple[str, ...]]
    settings: dict[str, str]
    info: dict[str, str]
    date: float
    seconds: float | None
    t2: T2Info | None
    default: str | None = None

    @property
    def day(self) -> str:
        """Start of the evaluation as `YYYY-MM-DD HH:MM` in UTC."""
        try:
            return datetime.fromtimestamp(self.date, UTC).strftime("%Y-%m-%d %H:%M") if self.date else "\u2013"
        except (ValueError, OverflowError, OSError):
            return "\u2013"


def load(raw: RawResult) -> Run:
    """Make a Run of a result file's JSON.

    Raises:
        NoScores: no task has a score.
        ReportError: a malformed `t2` section.
    """
    data, path = raw.data, raw.found.path
    members = _dict(data, "group_subtasks").items()  # files before 0.4.12 list plain tasks too, with no members
    groups = {str(group): tuple(map(str, names)) for group, names in members if isinstance(names, list) and names}
    tasks = {str(name): _task(data, str(name), row) for name, row in data["results"].items() if isinstance(row, dict)}
    if not any(task.scores for task in tasks.values()):
        only = any(f"{_BYPASS}," in key for row in data["results"].values() if isinstance(row, dict) for key in row)
        why = "it was made with --predict_only, which scores nothing" if only else "its `results` holds no score"
        raise NoScores(f"{path}: {why}.")
    config = _dict(data, "config")
    return Run(
        raw=raw,
        model=_text(config.get("model")) or _text(data.get("model_source")) or "unknown model",
        args=parse_model_args(config.get("model_args")),
        tasks=tasks,
        groups=groups,
        settings=_settings(data, config),
        info=_info(data, config),
        date=_number(data.get("date")) or 0.0,
        seconds=_number(data.get("total_evaluation_time_seconds")),
        t2=parse_t2(data["t2"], path) if data.get("t2") is not None else None,
        # Of other models lm-eval writes the adapter's name there, if there is one.
        default=_text(data.get("model_name")) or None if data.get("t2") is not None else None,
    )


def load_all(files: Iterable[Found]) -> tuple[list[Run], list[str]]:
    """Make Runs of all files that are lm-eval's, with a note on each that scores nothing.

    Raises:
        NoScores: of a file that the user named.
        ReportError: as `read` and `load`.
    """
    runs, notes = [], []
    for found in files:
        raw = read(found)
        if raw is None:
            continue
        try:
            runs.append(load(raw))
        except NoScores as error:
            if found.named:
                raise
            # A search also meets runs that were never meant to score; they must not block the report, nor vanish silently.
            notes.append(f"{error.why} Left out.")
    return runs, notes


def leaves(name: str, groups: Mapping[str, tuple[str, ...]], above: tuple[str, ...] = ()) -> list[str]:
    """Return the tasks below a group, each once; itself for a plain task, and for a group that holds itself."""
    if name not in groups or name in above:
        return [name]
    return list(dict.fromkeys(leaf for member in groups[name] for leaf in leaves(member, groups, (*above, name))))


def _task(data: dict[str, Any], name: str, row: dict[str, Any]) -> TaskResult:
    counts = _dict(_dict(data, "n-samples"), name)
    shots, version = _dict(data, "n-shot").get(name), _dict(data, "versions").get(name)
    config = _dict(_dict(data, "configs"), name)
    return TaskResult(
        name=name,
        scores=_scores(row, _dict(_dict(data, "higher_is_better"), name)),
        n=_count(counts.get("effective", row.get("sample_len"))),
        original=_count(counts.get("original")),
        n_shot=None if shots is None else _text(shots),
        version=None if version in (None, "N/A", "Yaml") else _version(version),
        task_hash=_text(_dict(data, "task_hashes").get(name)) or None,
        definition={key: _ADDRESS.sub("", _text(config[key])) for key in _DEFINITION if config.get(key) not in (None, "", [], {})},
        domain=_text(_dict(config, "metadata").get("t2_domain")) or None,
    )


def _scores(row: dict[str, Any], better: dict[str, Any]) -> tuple[Score, ...]:
    scores = []
    for key, value in row.items():
        metric, _, filter_name = str(key).partition(",")  # files before 0.4 have no filter
        if metric in _NOT_METRICS or metric == _BYPASS or metric.endswith("_stderr"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        stderr = _number(row.get(f"{metric}_stderr,{filter_name}" if filter_name else f"{metric}_stderr"))
        if stderr is not None and stderr < 0:
            stderr = None
        number = _number(value) if isinstance(value, int) else value  # one may be too long for a float
        said = better.get(metric)
        higher = said if isinstance(said, bool) else metric not in _LOWER_IS_BETTER
        scores.append(Score(metric, filter_name or "none", math.nan if number is None else number, stderr, higher))
    return tuple(scores)


def _settings(data: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    def named(text: Any, sha: Any) -> str:
        return f"yes ({_text(sha)[:8]})" if text and sha else ("yes" if text else "no")

    limit = _number(config.get("limit"))
    settings = {
        "limit": "none" if limit is None else f"{limit:g}",
        "chat template": named(data.get("chat_template"), data.get("chat_template_sha")),
        "system instruction": named(data.get("system_instruction"), data.get("system_instruction_sha")),
        "few-shot as multi-turn": "yes" if data.get("fewshot_as_multiturn") and data.get("chat_template") else "no",
        "gen_kwargs": ",".join(f"{name}={value}" for name, value in parse_model_args(config.get("gen_kwargs")).items()) or "none",
    }
    seeds = [f"{key} {config[f'{key}_seed']}" for key in ("random", "numpy", "torch", "fewshot") if f"{key}_seed" in config]
    return settings | {"seeds": ", ".join(seeds) or "unknown"}


def _info(data: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """Provenance that does not change what a row is: versions, machine, model hash; empty values left out."""
    env = _text(data.get("pretty_env_info"))

    def line(label: str) -> str:
        match = re.search(rf"^\s*{label}:[ \t]*(.+?)[ \t]*$", env, re.MULTILINE)
        return match.group(1) if match and not re.match(r"Could not collect|N/A|None", match.group(1)) else ""

    info = {
        "lm-eval": _text(data.get("lm_eval_version")),
        "transformers": _text(data.get("transformers_version")),
        "torch": line("PyTorch version"),
        "Python": line("Python version").split(" ")[0],
        "CPU": line("Model name"),
        "GPU": line(r"(?:GPU models and configuration:[ \t]*)?GPU \d+"),  # of one GPU in the same line, of several in lines of their own
        "device": _text(config.get("device")).replace("cuda:0", ""),  # which lm-eval writes where it was told nothing, on a CPU too
        "batch size": _text(config.get("batch_size")),
        "dtype": _text(config.get("model_dtype")).removeprefix("torch."),
        "parameters": _text(config.get("model_num_parameters")),
        "model sha": _text(config.get("model_sha")),
        "git": _text(data.get("git_hash")),
    }
    return {key: value for key, value in info.items() if value}


def _dict(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _version(value: Any) -> str:
    number = _number(value)
    return _text(value) if number is None else f"{number:g}"  # groups say "1.0" where tasks say 1.0


def _count(value: Any) -> int | None:
    """Return a number of documents, None for what can be none."""
    number = _number(value)
    return int(number) if number and 1 <= number < 1e15 else None


def _number(value: Any) -> float | None:
    """Return a finite float of a number or a number's text, else None ("N/A", NaN, booleans)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
