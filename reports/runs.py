"""What was run, on what, by which command: the report's part that lets someone else run it again."""

import shlex
from collections.abc import Sequence

from .blocks import DASH, Bullets, Item, Table, Text, code, strong
from .load import Run, leaves
from .metrics import EXTRACTED
from .rows import Row

_SEEDS = "random 0, numpy 1234, torch 1234, fewshot 1234"  # lm-eval's own


def runs_table(rows: Sequence[Row], bases: Sequence[Row | None]) -> Table:
    """Return one line a row: what was run, when, how, and what it took."""
    header = (
        "Method", "Model", "Arguments", "Date (UTC)", "Limit", "Few-shot", "Chat template", "lm-eval", "Parameters", "Trained",
        "Wall time (s)", "Peak memory (MiB)",
    )  # fmt: skip
    lines = []
    for row, base in zip(rows, bases, strict=True):
        run = row.first
        shots = sorted({task.n_shot for name in row.source if (task := row.task(name)) and task.n_shot is not None})
        seconds = [each.seconds for each in row.runs]
        days = sorted(each.day for each in row.runs)
        trained, memory = row.trainable(base), row.peak_memory
        lines.append([
            row.label,
            run.model,
            ", ".join(f"{key}={value}" for key, value in run.args.items()) or "none",
            days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
            run.settings["limit"],
            "/".join(shots) or DASH,
            run.settings["chat template"],
            " / ".join(sorted({each.info.get("lm-eval", "") for each in row.runs} - {""})) or DASH,
            f"{int(run.info['parameters']):,}" if run.info.get("parameters", "").isdecimal() else DASH,
            DASH if trained is None else f"{trained:,}",
            DASH if None in seconds else f"{sum(s or 0 for s in seconds):.1f}",
            DASH if memory is None else f"{memory / 2**20:,.0f}",
        ])  # fmt: skip
    return Table(header, lines, left=8)


def provenance(rows: Sequence[Row]) -> Bullets:
    """Return hashes, versions, machine, seeds, command, experts and sandbox of every file of every row."""
    items = []
    for row in rows:
        lines: dict[Text, None] = {}
        for run in row.runs:
            found = run.raw.found
            lines[f"{found.path.as_posix()}, sha256 {run.raw.sha256[:16]}, {run.day}"] = None
            lines |= dict.fromkeys(("command, put together from the file's settings: ", code(command)) for command in commands(run))
            lines[", ".join(f"{key} {value}" for key, value in run.info.items())] = None
            names = ("seeds", "system instruction", "few-shot as multi-turn", "gen_kwargs")
            lines[", ".join(f"{name} {run.settings[name]}" for name in names if run.settings[name] not in ("no", "none"))] = None
            lines[_t2(run)] = None
            lines[_failures(run)] = None
            lines[_contamination(run)] = None
        items.append(Item(strong(row.label), [line for line in lines if line]))
    return Bullets(items)


def commands(run: Run) -> list[str]:
    """Return the `lm_eval` calls that make such a file, one for each number of few-shot examples that its tasks were asked with.

    Secrets are `***`; what the file does not tell is left to its default.
    """
    mixed = {name for name in run.groups if len(_shots(run, name)) > 1}
    covered = {member for name in run.groups if name not in mixed for member in run.groups[name]}
    by_shots: dict[str | None, list[str]] = {}
    for name in run.tasks:
        if name not in mixed and name not in covered:
            by_shots.setdefault(next(iter(_shots(run, name)), None), []).append(name)
    return [_command(run, names, shots) for shots, names in by_shots.items()]


def _shots(run: Run, name: str) -> set[str]:
    """Return the numbers of few-shot examples of a task, or of a group's tasks."""
    found = [run.tasks[task].n_shot for task in leaves(name, run.groups) if task in run.tasks]
    return {shots for shots in found if shots is not None}


def _command(run: Run, tasks: Sequence[str], shots: str | None) -> str:
    words = ["lm_eval", "--model", run.model]
    if run.args:
        words += ["--model_args", ",".join(f"{name}={value}" for name, value in run.args.items())]
    words += ["--tasks", ",".join(tasks)]
    if shots is not None:
        words += ["--num_fewshot", shots]
    if run.settings["limit"] != "none":
        words += ["--limit", run.settings["limit"]]
    for option, name in (("--batch_size", "batch size"), ("--device", "device")):
        if name in run.info:
            words += [option, run.info[name]]
    if run.settings["gen_kwargs"] != "none":
        words += ["--gen_kwargs", run.settings["gen_kwargs"]]
    if run.settings["chat template"] != "no":
        words.append("--apply_chat_template")
        if run.settings["few-shot as multi-turn"] == "no":
            words += ["--fewshot_as_multiturn", "false"]
    if run.settings["seeds"] not in (_SEEDS, "unknown"):
        words += ["--seed", ",".join(part.split(" ")[-1] for part in run.settings["seeds"].split(", "))]
    return shlex.join(words)


def _t2(run: Run) -> str:
    if not run.t2:
        return ""
    experts = ", ".join(f"{name} {sha[:16]}" for name, sha in run.t2.experts.items()) or "none"
    calibrated = "" if run.t2.calibrate is None else f"calibrate {run.t2.calibrate}, "
    probe = f"probe {run.t2.probe[:16]}, " if run.t2.probe else ""
    how = f"strategy {run.t2.strategy}, dispatch {run.t2.dispatch or DASH}, {calibrated}{probe}base {run.t2.base[:16] or DASH}"
    return f"{how}, experts {experts}, sandbox {run.t2.sandbox or DASH}"


def _failures(run: Run) -> str:
    rates = {name: next((s.value for s in task.scores if s.metric == EXTRACTED), None) for name, task in run.tasks.items()}
    known = [f"{name} {1 - rate:.1%}" for name, rate in rates.items() if rate is not None and 0 <= rate <= 1]
    return f"no answer could be extracted: {', '.join(known)}" if known else ""


def _contamination(run: Run) -> str:
    marks = run.t2.contaminated if run.t2 else {}
    told = "; ".join(f"{'any task' if task == '*' else task}: {', '.join(ids)}" for task, ids in marks.items())
    return f"contaminated, the few-shot search used documents that are scored: {told}" if told else ""
