"""``t2 study``: the same tasks by several methods and seeds, each scored by lm-eval on its full test set; goes on where it was stopped."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..harness.errors import T2Error, nearest
from .config import load_config

logger = logging.getLogger("t2.study")

_FROM_CARD = ("method", "objective", "parameters", "samples", "best_step", "validation", "seconds", "cpu_seconds", "peak_memory_bytes",
              "machine", "versions", "git_commit", "base_fingerprint")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: of the study; also its folder under `output`.
        runs: configuration of `t2 train` → lm-eval task whose test set scores it.
        seeds: every run is trained once with each.
        settings: replace those of every configuration.
        batch_size: of lm-eval.
        limit: documents of each test set; None for all.
        output: folder of studies.
    """

    name: str
    runs: dict[str, str]
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    settings: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    limit: int | None = None
    output: str = "runs"

    @property
    def folder(self) -> Path:
        """Where runs, results and rows lie."""
        return Path(self.output) / self.name


@dataclass(frozen=True)
class Row:
    """One line of the table: a trained adapter, or the base model (`run` None), on one task."""

    task: str
    run: str | None = None
    seed: int | None = None

    @property
    def label(self) -> str:
        """Name of the row's files."""
        return f"base-{self.task}" if self.run is None else f"{self.run}-seed{self.seed}"


def load_study(path: str | Path) -> Study:
    """Read a study from a YAML file, or one of t2's own by name.

    Raises:
        T2Error: no such file, unknown or missing keys, an unknown configuration; all errors at once.
    """
    path = Path(path)
    if not path.is_file():
        shipped = {p.stem: p for p in (Path(__file__).parent / "studies").glob("*.yaml")}
        if path.name not in shipped:
            raise T2Error(f"No such study: {path}. Give a YAML file or a shipped one.{nearest(path.name, shipped)}")
        path = shipped[path.name]
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise T2Error(f"{path} must be a mapping of settings; it is {type(values).__name__}.")
    known = {f.name for f in fields(Study)}
    errors = [f"unknown key {key!r}.{nearest(str(key), known)}" for key in values if key not in known]
    errors += [f"{key} is required" for key in ("name", "runs") if not values.get(key)]
    if not isinstance(values.get("runs", {}), dict):
        errors.append("runs must map configurations to lm-eval tasks")
    if errors:
        raise T2Error(f"{path}: " + "; ".join(errors))
    study = Study(**values)
    for run in study.runs:
        load_config(run, _overrides(study, 0))  # every error now, not after hours
    return study


def rows(study: Study) -> Iterator[Row]:
    """Yield the rows, one task's table after the other: the base model, then all runs of one seed after the other."""
    for task in dict.fromkeys(study.runs.values()):
        yield Row(task)
        for seed in study.seeds:
            for run in (run for run, scored_by in study.runs.items() if scored_by == task):
                yield Row(task, run, seed)


def run_study(study: Study) -> list[dict[str, Any]]:
    """Train and score what is missing, and return all rows.

    Each row is written to ``<folder>/rows/<row>.json`` once it is whole; the same call goes on after a kill. A row that is published beside
    the study's YAML, in a folder of its name, counts as made if it was made with the same settings.

    Raises:
        T2Error: a training or an evaluation failed; its log is named.
    """
    found = []
    for row in rows(study):
        file = study.folder / "rows" / f"{row.label}.json"
        if not file.exists() and (published := _published(study, row)):
            found.append(published)
            continue
        if not file.exists():
            logger.info("%s", row.label)
            adapter = None if row.run is None else _train(study, row)
            made = {**_card(adapter), **_score(study, row, adapter), "settings": _settings(study, row)}
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, file)
        found.append(json.loads(file.read_text(encoding="utf-8")))
    return found


def _published(study: Study, row: Row) -> dict[str, Any] | None:
    file = Path(__file__).parent / "studies" / study.name / f"{row.label}.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return found if found["settings"] == _settings(study, row) else None


def _settings(study: Study, row: Row) -> dict[str, Any]:
    """Return everything that a row's numbers depend on, but for code and machine."""
    scored = {"limit": study.limit, "batch_size": study.batch_size}
    if row.run is None or row.seed is None:
        return {**scored, **{key: study.settings.get(key) for key in ("model", "dtype")}}
    config = dataclasses.asdict(load_config(row.run, _overrides(study, row.seed)))
    return {**scored, **{key: value for key, value in config.items() if key not in ("output", "description")}}


def _overrides(study: Study, seed: int) -> list[str]:
    settings = {**study.settings, "seed": seed, "output": str(study.folder / f"seed{seed}")}
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _train(study: Study, row: Row) -> Path:
    assert row.run is not None and row.seed is not None  # noqa: S101 - only trained rows come here
    overrides = _overrides(study, row.seed)
    config = load_config(row.run, overrides)
    _call(study, row, "train", ["-m", "t2.harness.cli", "train", row.run, *overrides])
    return Path(config.output) / config.name / "expert" / config.name


def _score(study: Study, row: Row, adapter: Path | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {"strategy": "base"}
    for key in ("model", "dtype"):
        if value := study.settings.get(key):
            arguments["pretrained" if key == "model" else key] = value
    if adapter is not None:
        svf = json.loads((adapter / "card.json").read_text(encoding="utf-8"))["method"] == "svf"
        arguments |= {"experts": adapter, "strategy": f"expert:{adapter.name}"} if svf else {"peft": adapter}
    command = ["-m", "lm_eval", "--model", "t2", "--model_args", ",".join(f"{k}={v}" for k, v in arguments.items()), "--tasks", row.task,
               "--apply_chat_template", "--batch_size", str(study.batch_size), "--log_samples"]  # fmt: skip
    command += ["--limit", str(study.limit)] if study.limit else []
    folder = study.folder / "results" / row.label
    _call(study, row, "score", [*command, "--output_path", str(folder)])
    results = json.loads(max(folder.rglob("results_*.json")).read_text(encoding="utf-8"))
    metric = _metric(results, row.task)
    samples = max(folder.rglob(f"samples_{row.task}_*.jsonl"))
    outcomes = sorted((s["doc_id"], s[metric]) for s in map(json.loads, samples.read_text(encoding="utf-8").splitlines()))
    score, extracted = results["results"][row.task], _key(results, row.task, "extracted")
    return {
        "run": row.run,
        "seed": row.seed,
        "task": row.task,
        "metric": metric,
        "score": score[_key(results, row.task, metric)],
        "extracted": score[extracted] if extracted else None,
        "documents": len(outcomes),
        "task_hash": results.get("task_hashes", {}).get(row.task),
        "outcomes": "".join(str(int(value)) for _, value in outcomes),  # one digit a document, in order: for paired tests
        "command": ["lm_eval", *command[2:]],
    }


def _metric(results: Mapping[str, Any], task: str) -> str:
    """Return the task's first 0/1 metric, the one that is compared."""
    listed = [m["metric"] for m in results["configs"][task]["metric_list"] if isinstance(m["metric"], str)]
    return next(m for m in listed if m != "extracted")


def _key(results: Mapping[str, Any], task: str, metric: str) -> str | None:
    return next((key for key in results["results"][task] if key.partition(",")[0] == metric), None)


def _card(adapter: Path | None) -> dict[str, Any]:
    if adapter is None:
        return {"method": "base"}
    card = json.loads((adapter / "card.json").read_text(encoding="utf-8"))
    return {key: card[key] for key in _FROM_CARD}


def _call(study: Study, row: Row, what: str, arguments: list[str]) -> None:
    """Run Python in a process of its own, which gives all its memory back, with a log of its own."""
    log = study.folder / "logs" / f"{row.label}-{what}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        done = subprocess.run([sys.executable, *arguments], stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise T2Error(f"{row.label}: {what} ended with status {done.returncode} ({' '.join(last)[:300]}). Its log: {log}")
