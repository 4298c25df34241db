"""The rows of a study: each is trained, scored by lm-eval on its full test set, and kept; what is made is not made again."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..adapters.dispatch_probe import SHIPPED as SHIPPED_PROBE
from ..adapters.errors import AdapterError
from ..adapters.experts import CARD, load_expert, shipped
from ..adapters.files import write_whole
from ..adapters.probe import load_probe
from ..harness import vllm_import
from ..harness.errors import T2Error
from ..harness.fewshot.documents import known_tasks
from ..harness.strategy import parse_experts
from .config import load_config
from .run_folder import hold
from .study import Row, Study, overrides, rows

logger = logging.getLogger("t2.study")

_broken_off = threading.Event()
"""Set where a study ends before its time: what runs is ended, and nothing is begun."""

_FROM_CARD = ("method", "objective", "parameters", "samples", "best_step", "validation", "seconds", "cpu_seconds", "peak_memory_bytes",
              "machine", "versions", "git_commit", "base_fingerprint")  # fmt: skip


def run_study(study: Study, jobs: int = 1) -> list[dict[str, Any]]:
    """Train and score what is missing, and return all rows.

    Each row is written to ``<folder>/rows/<row>.json`` once it is whole; the same call goes on after a kill. A row that is published beside
    the study's YAML, in a folder of its name, counts as made if it was made with the same settings.

    Args:
        study: what to make.
        jobs: adapters or strategies whose rows are made at a time, in processes that share the machine, and its GPU if there is one.

    Raises:
        T2Error: trainings or evaluations failed, told when all other rows are made; their logs are named. A row was made with other
            settings, or is to be made by vLLM, which cannot be used here, or of what is no task. Another process makes this study.
        KeyboardInterrupt: the study is broken off; processes that run are ended.
    """
    found = {row: made(study, row) for row in rows(study)}
    if missing := [row for row in found if found[row] is None]:
        _check_tasks(row.task for row in missing)
        if study.lm == "t2-vllm" and (trouble := vllm_import.trouble()):
            raise T2Error(f"{missing[0].label}: lm is t2-vllm. {trouble[0]}: {trouble[1]}")
        together: dict[Any, list[Row]] = {}  # the rows of one adapter
        for row in sorted(missing, key=lambda row: not row.is_base):  # the base's first: no table without it
            together.setdefault(row if row.run is None else (row.run, row.seed), []).append(row)
        failed: list[str] = []
        _broken_off.clear()
        with hold(study.folder) as lock, ThreadPoolExecutor(jobs) as pool:
            os.set_inheritable(lock.fileno(), True)  # held, after a kill -9 too, until what was begun has ended
            started = [pool.submit(_make, study, rows) for rows in together.values()]
            try:
                for making in started:
                    rows_made, errors = making.result()
                    found |= rows_made
                    failed += errors
            except BaseException:
                _broken_off.set()
                pool.shutdown(cancel_futures=True)
                raise
        if failed:
            raise T2Error("\n".join(failed))
    return [row for row in found.values() if row is not None]


def _check_tasks(names: Iterable[str]) -> None:
    """See, before anything is trained, that lm-eval knows each task, and scores it under its own name."""
    wanted = list(dict.fromkeys(names))
    tasks = set(known_tasks(wanted).all_subtasks)
    if groups := [name for name in wanted if name not in tasks]:
        raise T2Error(f"{groups[0]!r} is a group of tasks. A study's table is of one task: name the group's members.")


def made(study: Study, row: Row) -> dict[str, Any] | None:
    """Return a row that was made already, or is published; None if there is none yet.

    Raises:
        T2Error: it was made with other settings than the study has now, or is no row at all.
    """
    file = study.folder / "rows" / f"{row.label}.json"
    published = Path(__file__).parent / "studies" / study.name / file.name
    for path in (file, published):
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                settings = found["settings"]
            except (ValueError, KeyError, TypeError) as error:
                raise T2Error(
                    f"{path} is not a row of a study ({type(error).__name__}: {error}). Delete it, and it is made again."
                ) from error
            other = _another(study, row, found)
            if settings == _settings(study, row) and other is None:
                return found
            if path == file:
                what = "with other settings than" if other is None else f"with another {other} than"
                raise T2Error(f"{file} was made {what} study {study.name!r} has now. Move it away, or rename the study.")
    return None


def _another(study: Study, row: Row, found: Mapping[str, Any]) -> str | None:
    """Name what the strategy takes from a folder and what is not what the row was made with; None if there is nothing such."""
    options, hashes = _options(study, row), found.get("experts") or {}
    named = options.get("model_args", {})
    with contextlib.suppress(T2Error, AdapterError):  # gone since: nothing says that it was another
        experts = {name: load_expert(folder) for name, folder in (parse_experts(named.get("experts")) or {}).items()}
        answering = {name: expert.sha256 for name, expert in experts.items() if not expert.is_classifier}
        then = hashes if answering and options["strategy"] != "cls" else answering  # a classifier need not lie among them
        for name in sorted({*answering, *then}) if hashes else ():
            if hashes.get(name) != answering.get(name):
                return f"expert {name!r}"
    with contextlib.suppress(T2Error, AdapterError):
        classifier = named.get("classifier") and load_expert(Path(named["classifier"]))
        if classifier and hashes and classifier.sha256 not in hashes.values():
            return "classifier"
    with contextlib.suppress(T2Error, AdapterError):
        if named.get("probe") and found.get("probe") and load_probe(Path(named["probe"])).sha256 != found["probe"]:
            return "probe"
    return None


def _make(study: Study, rows: Sequence[Row]) -> tuple[dict[Row, dict[str, Any]], list[str]]:
    """Train the adapter that `rows` share, if any, and score each row; return the rows that were made, and why others were not."""
    found: dict[Row, dict[str, Any]] = {}
    failed: list[str] = []
    try:
        adapter = None if rows[0].run is None else _train(study, rows[0])
        for row in rows:
            logger.info("%s", row.label)
            try:
                found[row] = {**_card(row, adapter), **_score(study, row, adapter), "settings": _settings(study, row)}
            except T2Error as error:
                failed.append(str(error))
            else:
                _write(study, row, found[row])
    except T2Error as error:
        failed.append(str(error))
    for why in failed:
        logger.warning("%s", why)
    return found, failed


def _write(study: Study, row: Row, found: Mapping[str, Any]) -> None:
    file = study.folder / "rows" / f"{row.label}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, (json.dumps(found, indent=1) + "\n").encode())


def _settings(study: Study, row: Row) -> dict[str, Any]:
    """Return everything that a row's numbers depend on, but for code and machine, as JSON values."""
    scored = {"lm": study.lm, "limit": study.limit, "batch_size": _batch_size(study, row)}
    if row.run is None or row.seed is None:
        options = _options(study, row)
        strategy = {**options, **_shipped(options)} if row.strategy else {}
        return {**scored, **{key: study.settings.get(key) for key in ("model", "dtype")}, **strategy}
    config = dataclasses.asdict(load_config(row.run, overrides(study, row.seed)))
    return {**scored, **{key: value for key, value in config.items() if key not in ("output", "description")}}


def _options(study: Study, row: Row) -> dict[str, Any]:
    """Return the options of `t2 eval` of a strategy's row; none for other rows."""
    return {key: value for key, value in study.strategies[row.strategy].items() if key != "tasks"} if row.strategy else {}


def _batch_size(study: Study, row: Row) -> int | str:
    if study.lm == "t2-vllm":
        return "auto"
    sizes = study.batch_size
    return sizes if isinstance(sizes, int) else sizes.get(row.task) or sizes["default"]


def _shipped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hashes of the experts, and of the probe, that are used where none are named: new ones make rows of their own."""
    probe = {"shipped_probe": load_probe(SHIPPED_PROBE).sha256} if options.get("model_args", {}).get("dispatch") == "probe" else {}
    return {"shipped_experts": {name: load_expert(path).sha256 for name, path in shipped().items()}, **probe}


def _train(study: Study, row: Row) -> Path:
    assert row.run is not None and row.seed is not None  # noqa: S101 - only trained rows come here
    settings = overrides(study, row.seed)
    config = load_config(row.run, settings)
    _call(study, row, "train", ["-m", "t2.harness.cli", "train", row.run, *settings])
    return Path(config.output) / config.name / "expert" / config.name


def _score(study: Study, row: Row, adapter: Path | None) -> dict[str, Any]:
    folder, merged = study.folder / "results" / row.label, study.folder / "merged" / row.label
    command = _command(study, row, _weights(study, row, adapter, merged), folder)
    shutil.rmtree(folder, ignore_errors=True)  # what an evaluation that was never finished, or one of other settings, has left
    _call(study, row, "score", ["-m", "t2.harness.cli" if command[0] == "t2" else command[0], *command[1:]])
    shutil.rmtree(merged, ignore_errors=True)  # as large as the model
    wrote = [*folder.rglob("results_*.json")], [*folder.rglob(f"samples_{row.task}_*.jsonl")]
    if [len(files) for files in wrote] != [1, 1]:
        raise T2Error(
            f"{row.label}: lm-eval left no results in {folder}, for want of disk space perhaps. {_log(study, row, 'score')} tells."
        )
    results = json.loads(wrote[0][0].read_text(encoding="utf-8"))
    metric = _metric(results, row.task)
    keys = _reported(results, row.task)
    samples = [json.loads(line) for line in wrote[1][0].read_text(encoding="utf-8").split("\n") if line]  # replies may hold U+2028
    if part := next((s for s in samples if f"{metric},{s['filter']}" == keys[metric] and s[metric] not in (0, 1)), None):
        raise T2Error(
            f"{row.label}: {metric} of document {part['doc_id']} is {part[metric]!r}. A study compares tasks whose documents are right or "
            "wrong, 1 or 0: score this one by lm_eval and `t2 report`."
        )
    right = {s["doc_id"]: str(int(s[metric])) for s in samples if f"{metric},{s['filter']}" == keys[metric]}
    counts = results["n-samples"][row.task]
    if len(right) != counts["effective"]:
        raise T2Error(
            f"{row.label}: {wrote[1][0]} has {len(right)} documents, where {counts['effective']} were scored. Run the study again."
        )
    total = min(study.limit, counts["original"]) if study.limit else counts["original"]
    score = results["results"][row.task]
    return {
        "run": row.run,
        "seed": row.seed,
        "strategy": row.strategy,
        "task": row.task,
        "metric": metric,
        "score": score[keys[metric]],
        "extracted": score[keys["extracted"]] if "extracted" in keys else None,
        "documents": len(right),
        "task_hash": results.get("task_hashes", {}).get(row.task),
        "task_version": results.get("versions", {}).get(row.task),
        "outcomes": "".join(right.get(i, "-") for i in range(total)),  # for paired tests; - is one that the few-shot search has seen
        "passes": results.get("t2", {}).get("passes", {}).get(row.task),
        **_search(study, row),
        "experts": results.get("t2", {}).get("experts"),  # name → sha256
        "probe": results.get("t2", {}).get("probe"),  # sha256
        "scored_on": _machine(results),
        "command": command,
    }


def _machine(results: Mapping[str, Any]) -> dict[str, str]:
    """Return GPU, or CPU where there is none, and versions, as lm-eval tells them."""
    lines = {"GPU": r"GPU models and configuration:\s*GPU \d+: (.+)", "CPU": r"Model name: +(.+)", "torch": r"PyTorch version: (.+)"}
    env = results.get("pretty_env_info") or ""
    found = {name: match.group(1).strip() for name, pattern in lines.items() if (match := re.search(pattern, env))}
    if "GPU" in found:
        found.pop("CPU", None)
    return {**found, "transformers": str(results.get("transformers_version"))}


def _weights(study: Study, row: Row, adapter: Path | None, merged: Path) -> dict[str, Any]:
    """Return the model arguments that put an adapter in force; for vLLM one of PEFT's own is merged into its model, in `merged`."""
    if adapter is None:
        return {"strategy": "base"}
    if json.loads((adapter / CARD).read_text(encoding="utf-8"))["method"] == "svf":
        return {"strategy": f"expert:{adapter.name}", "experts": adapter}
    if study.lm == "t2":
        return {"strategy": "base", "peft": adapter}
    model = study.settings.get("model")
    _call(study, row, "merge", ["-m", "t2.baselines.merge", str(adapter), str(merged), *([model] if model else [])])
    return {"strategy": "base", "pretrained": merged}


def _command(study: Study, row: Row, weights: Mapping[str, Any], folder: Path) -> list[str]:
    options = _options(study, row)
    arguments = {argument: value for key, argument in (("model", "pretrained"), ("dtype", "dtype")) if (value := study.settings.get(key))}
    if row.strategy:
        command = ["t2", "eval", "--mixtures", str(study.folder / "mixtures" / row.label)]
        arguments = {**options.pop("model_args", {}), **arguments}
    else:
        command, arguments = ["lm_eval"], {**arguments, **weights}
    joined = ",".join(f"{k}={v}" for k, v in arguments.items())
    command += ["--model", study.lm, *(["--model_args", joined] if joined else [])]
    command += ["--tasks", row.task, "--apply_chat_template", "--log_samples"]
    options = {**options, "batch_size": _batch_size(study, row), "output_path": folder}
    if study.limit:
        options["limit"] = study.limit
    return command + [word for key, value in options.items() for word in (f"--{key}", str(value))]


def _search(study: Study, row: Row) -> dict[str, Any]:
    """Return what a few-shot row's search has found and cost; nothing for other rows."""
    files = list((study.folder / "mixtures" / row.label).glob("*.json"))
    if not files:
        return {}
    found = json.loads(files[0].read_text(encoding="utf-8"))
    kept = ("alpha", "signal", "configuration", "documents", "scores", "cost")
    evaluated = sum(search["evaluated"] for search in found["searches"].values())
    return {"search": {**{key: found[key] for key in kept}, "evaluated": evaluated}}


def _reported(results: Mapping[str, Any], task: str) -> dict[str, str]:
    """Return metric → its key in lm-eval's results, of several filters the first."""
    keys = [key for key in results["results"][task] if "," in key and not key.partition(",")[0].endswith("_stderr")]
    return {key.partition(",")[0]: key for key in reversed(keys)}


def _metric(results: Mapping[str, Any], task: str) -> str:
    """Return the task's first metric, the one that is compared.

    Raises:
        T2Error: it reports none.
    """
    keys = _reported(results, task)
    listed = [str(m["metric"]) for m in results["configs"][task].get("metric_list") or []]  # of a function's lm-eval keeps the source
    found = next((m for m in [*listed, *reversed(keys)] if m in keys and m != "extracted"), None)
    if found is None:
        raise T2Error(f"{task} reports no metric: score it by lm_eval and `t2 report`.")
    return found


def _card(row: Row, adapter: Path | None) -> dict[str, Any]:
    if adapter is None:
        return {"method": row.strategy or "base"}
    card = json.loads((adapter / CARD).read_text(encoding="utf-8"))
    return {key: card[key] for key in _FROM_CARD}


def _log(study: Study, row: Row, what: str) -> Path:
    return study.folder / "logs" / f"{row.label}-{what}.log"


def _call(study: Study, row: Row, what: str, arguments: list[str]) -> None:
    """Run Python in a process of its own, which gives all its memory back, with a log of its own; it ends when the study is broken off."""
    if _broken_off.is_set():
        raise T2Error(f"{row.label}: {what} was not begun.")
    log = _log(study, row, what)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *arguments]
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "close_fds": False}  # the lock goes along
    with log.open("a", encoding="utf-8") as out, subprocess.Popen(command, stdout=out, stderr=out, **how) as process:
        while process.poll() is None:
            if _broken_off.wait(0.1):
                process.terminate()
                process.wait()
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise T2Error(f"{row.label}: {what} ended with status {process.returncode} ({' '.join(last)[:300]}). Its log: {log}")
