"""`t2 regress` on result folders that the tests write in lm-eval 0.4.13's format, through the real command."""

import hashlib
import json
import math
import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from scipy import stats

from t2.harness.cli import main
from t2.reports.markdown import DASH
from t2.reports.regress import command, gate
from t2.reports.regress.gate import judge
from t2.reports.regress.render import junit, markdown, text
from t2.reports.regress.snapshot import Snapshot, TaskScores, dump, read_baseline
from t2.reports.regress.thresholds import TaskRule, Thresholds, read_thresholds
from t2.reports.statistics import minimum_detectable_drop, sign_flip

DATE = "2026-01-02T03-04-05.678901"


def write_run(folder, tasks, groups=None, metric="exact_match", filt="none", docs=None, t2=None, config=None, date=DATE, **data):
    """One run: tasks maps name -> scores; docs maps name -> [(doc_id, content)]."""
    folder.mkdir(parents=True, exist_ok=True)
    results, counts = {}, {}
    for name, scores in tasks.items():
        results[name] = {"alias": name, f"{metric},{filt}": sum(scores) / len(scores), f"{metric}_stderr,{filt}": 0.01}
        counts[name] = {"original": len(scores), "effective": len(scores)}
        lines = []
        for i, score in enumerate(scores):
            doc, content = docs[name][i] if docs else (i, f"{name} {i}")
            digest = hashlib.sha256(content.encode()).hexdigest()
            lines.append(json.dumps({"doc_id": doc, "doc": {"q": content}, "doc_hash": digest, "filter": filt, metric: score}) + "\n")
        (folder / f"samples_{name}_{date}.jsonl").write_text("".join(lines))
    results |= {group: {"alias": group} for group in groups or {}}
    written = {
        "results": results,
        "group_subtasks": groups or {},
        "configs": {name: {"doc_to_text": "{{q}}", "metric_list": [{"metric": metric}]} for name in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {name: {metric: True} for name in tasks},
        "n-samples": counts,
        "config": {"model": "t2", "model_args": {"strategy": "base"}, "batch_size": 16, "model_dtype": "torch.float32", **(config or {})},
        "date": 1_760_000_000.0,
        "pretty_env_info": "PyTorch version: 2.13.0+cpu\nModel name:     Some CPU",
        "transformers_version": "5.19.0",
        "lm_eval_version": "0.4.13",
    } | data
    if t2 is not None:
        written["t2"] = {
            "schema": 1,
            "strategy": "base",
            "dispatch": None,
            "experts": {},
            "base": "ba5e",
            "passes": {},
            "sandbox": None,
        } | t2
    path = folder / f"results_{date}.json"
    path.write_text(json.dumps(written))
    return path


def ones(right, n=64):
    return [1.0] * right + [0.0] * (n - right)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("old"), {"sums": ones(40), "words": ones(30)})
    assert main(["regress", "--update", "--baseline", "base.json", "old"]) == 0
    return tmp_path


def regress(*arguments):
    return main(["regress", "--baseline", "base.json", *map(str, arguments)])


def row(out, task):
    return next(line.split() for line in out.splitlines() if line.startswith(task))


# Verdicts


def test_the_same_run_passes(place, capsys):
    capsys.readouterr()
    assert regress("old") == 0
    out = capsys.readouterr().out
    assert out.startswith("t2 regress: ok, 2 gated\n")
    assert row(out, "sums")[:6] == ["sums", "exact_match,none", "(%)", "64", "62.50", "62.50"]
    assert "This gate sees with 80% power drops of: sums: " in out


def test_a_drop_closes_the_gate(place, capsys):
    write_run(Path("new"), {"sums": ones(31), "words": ones(30)})
    assert regress("new") == 1
    out = capsys.readouterr().out
    assert out.startswith("t2 regress: REGRESSION in sums\n")
    # 9 lost, none won: 0.5 ** 9, doubled by Holm over two tasks.
    assert row(out, "sums")[6] == "-14.06" and row(out, "sums")[-1] == "REGRESSION"
    assert "p = 0.0039 is at most alpha (0.05)" in out
    assert row(out, "words")[-1] == "ok"


def test_a_gain_passes_and_is_told(place, capsys):
    write_run(Path("new"), {"sums": ones(52), "words": ones(30)})
    assert regress("new") == 0
    assert "sums: write the baseline anew with --update" in capsys.readouterr().out
    Path("both.yaml").write_text("direction: both\n")
    assert regress("new", "--thresholds", "both.yaml") == 1, "a rise that is no chance fails where both directions count"
    assert row(capsys.readouterr().out, "sums")[-1] == "RISE"


@pytest.mark.parametrize(("right", "status", "verdict"), [(64, 0, "improvement"), (0, 1, "REGRESSION")])
def test_what_was_seen_needs_no_proof_of_sight(place, capsys, right, status, verdict):
    write_run(Path("new"), {"sums": ones(right), "words": ones(30)})
    Path("t.yaml").write_text("tasks: {sums: {must_see: 0.13}}\n")
    assert regress("old", "--thresholds", "t.yaml") == 0
    capsys.readouterr()
    assert regress("new", "--thresholds", "t.yaml") == status, "its lost or won documents alone would make it blind"
    assert row(capsys.readouterr().out, "sums")[-1] == verdict
    write_run(Path("noisy"), {"sums": ones(40)[::-1], "words": ones(30)})
    assert regress("noisy", "--thresholds", "t.yaml") == 2, "as many documents differ, and nothing was seen"


def test_documents_are_paired_not_counted(place, capsys):
    # The same share right, other documents: nothing dropped, and the gate's sight is worse for the noise.
    write_run(Path("new"), {"sums": ones(40)[::-1], "words": ones(30)})
    assert regress("new") == 0
    shown = row(capsys.readouterr().out, "sums")
    assert shown[6] == "0.00" and shown[9:11] == ["24", "24"], shown


def test_a_drop_within_chance_passes(place, capsys):
    write_run(Path("new"), {"sums": ones(37), "words": ones(30)})
    assert regress("new") == 0, "3 lost of 64: p = 0.125"
    assert "0.25" in row(capsys.readouterr().out, "sums"), "doubled by Holm"


def test_scores_that_are_no_zeros_and_ones(place, capsys):
    rng = random.Random(0)
    old = [rng.random() for _ in range(60)]
    write_run(Path("f_old"), {"sums": old}, metric="f1")
    assert main(["regress", "--update", "--baseline", "base.json", "f_old"]) == 0
    write_run(Path("same"), {"sums": [x + rng.gauss(0, 0.05) for x in old]}, metric="f1")
    write_run(Path("worse"), {"sums": [x + rng.gauss(-0.04, 0.05) for x in old]}, metric="f1")
    assert regress("same") == 0
    assert regress("worse") == 1
    assert "REGRESSION" in capsys.readouterr().out


def seen(n, differ, level=0.05):
    return f"{100 * minimum_detectable_drop(n, differ / n, level, alternative='less'):.1f} points or more"


def test_of_averaged_repeats_the_gate_sees_what_whole_documents_show(place, capsys):
    flipped = [*ones(40)[:-1], 1.0]
    write_run(Path("r1"), {"sums": ones(40)})
    write_run(Path("r2"), {"sums": flipped})
    assert regress("r1", "r2", "--tasks", "sums") == 0
    assert f"drops of: sums: {seen(64, 1)}." in capsys.readouterr().out
    Path("t.yaml").write_text("default: {must_see: 0.05}\n")
    assert regress("r1", "r2", "--tasks", "sums", "--thresholds", "t.yaml") == 2
    assert "64 documents, 1 of which differ, show drops of 0.11" in capsys.readouterr().out
    rng, drop = random.Random(0), minimum_detectable_drop(64, 1 / 64, alternative="less")
    hits = sum(sign_flip([0.5, *(-float(rng.random() < drop) for _ in range(63))], "less") <= 0.05 for _ in range(200))
    assert hits >= 160, "the power that it promises; the spread alone would promise it at 1.9 points"


def test_too_few_documents_for_the_level_see_nothing(place, capsys):
    for name, scores in (("f_old", [0.95, 0.9, 0.92, 0.97]), ("f_new", [0.05, 0.1, 0.02, 0.07])):
        write_run(Path(name), {"sums": scores}, metric="f1")
    assert main(["regress", "--update", "--baseline", "base.json", "f_old"]) == 0
    assert regress("f_new") == 0, "1/16 is the smallest p-value that there is"
    assert "drops of: sums: none (too few documents)." in capsys.readouterr().out
    Path("t.yaml").write_text("default: {must_see: 0.2}\n")
    assert regress("f_new", "--thresholds", "t.yaml") == 2
    assert "4 documents, 4 of which differ, show none (too few documents)" in capsys.readouterr().out


def test_permutations_suffice_for_a_small_alpha_over_many_tasks(place, capsys):
    old = {f"t{i}": [1 - 0.001 * j for j in range(64)] for i in range(12)}
    write_run(Path("f_old"), old, metric="f1")
    write_run(Path("f_new"), {name: [x - 0.9 for x in scores] for name, scores in old.items()}, metric="f1")
    assert main(["regress", "--update", "--baseline", "base.json", "f_old"]) == 0
    Path("t.yaml").write_text("alpha: 0.001\n")
    assert regress("f_new", "--thresholds", "t.yaml") == 1
    out = capsys.readouterr().out
    assert "no document differs" not in out and f"t11: {seen(64, 64, 0.001 / 12)}" in out


@pytest.mark.parametrize(
    ("text", "sees"),
    [("", "none that is known (the differences have no spread)"), ("alpha: 1.0e-7", "none (alpha is too small for 999,999 permutations)")],
)
def test_scores_of_any_size_of_which_nothing_is_known(place, capsys, text, sees):
    scores = [2.0 + i for i in range(64)]
    for name, shift in (("f_old", 0), ("f_new", -1)):
        write_run(Path(name), {"sums": [x + shift for x in scores]}, metric="bleu")
    assert main(["regress", "--update", "--baseline", "base.json", "f_old"]) == 0
    Path("t.yaml").write_text(text)
    assert regress("f_new", "--thresholds", "t.yaml") == (0 if text else 1)
    assert f"drops of: sums: {sees}." in capsys.readouterr().out


def test_lower_is_better(place, capsys):
    write_run(Path("p_old"), {"sums": ones(20)}, metric="err", higher_is_better={"sums": {"err": False}})
    write_run(Path("p_new"), {"sums": ones(32)}, metric="err", higher_is_better={"sums": {"err": False}})
    assert main(["regress", "--update", "--baseline", "base.json", "p_old"]) == 0
    capsys.readouterr()
    assert regress("p_new") == 1
    shown = row(capsys.readouterr().out, "sums")
    assert shown[1:6] == ["err,none", "(lower", "is", "better)", "64"] and shown[8] == "+0.188", shown


def test_groups_pool_their_documents(place, capsys):
    groups = {"mini": ["sums", "words"], "twice": ["words", "sums"]}
    write_run(Path("g_old"), {"sums": ones(40), "words": ones(30)}, groups=groups)
    assert main(["regress", "--update", "--baseline", "base.json", "g_old"]) == 0
    write_run(Path("g_new"), {"sums": ones(37), "words": ones(26)}, groups=groups)
    capsys.readouterr()
    assert regress("g_new") == 0
    out = capsys.readouterr().out
    assert row(out, "mini (2 tasks together)")[-2:] == ["not", "gated"] and "twice" not in out
    Path("t.yaml").write_text("tasks: {mini: {gate: true}, sums: {gate: false}, words: {gate: false}}\n")
    assert regress("g_new", "--thresholds", "t.yaml") == 1, "7 lost of 128, none won: p = 0.0078"
    assert "REGRESSION in mini" in capsys.readouterr().out
    assert regress("g_new", "--thresholds", "t.yaml", "--tasks", "mini") == 1, "a group names its tasks"
    assert "REGRESSION in mini" in capsys.readouterr().out
    assert main(["regress", "--update", "--baseline", "g.json", "--tasks", "mini", "g_old"]) == 0
    assert Path("g.json").read_bytes() == Path("base.json").read_bytes()
    write_run(Path("split"), {"sums": ones(40), "words_a": ones(30)}, groups={"words": ["words_a"]})
    assert regress("split") == 2
    assert "The run lacks words." in capsys.readouterr().out
    Path("t.yaml").write_text("tasks: {mini: {gate: true}, words: {max_drop: 0.1}}\nbenchmarks: {x: {max_change: 2}}\n")
    assert regress("g_new", "--thresholds", "t.yaml", "--tasks", "sums") == 0
    assert "Rules of what was not asked for are left out: mini, words, x." in capsys.readouterr().out
    Path("t.yaml").write_text("tasks: {mini: {seconds_per_token: 1.1}}\n")
    assert regress("g_new", "--thresholds", "t.yaml") == 2
    assert "mini is a group, which seconds_per_token is nothing for" in capsys.readouterr().err


def test_a_group_pools_shares_of_several_metrics(capsys):
    def snapshot(right):
        tasks = {
            name: TaskScores(metric, "none", True, {i: ("", x) for i, x in enumerate(ones(right, 20))}, {})
            for name, metric in (("sums", "exact_match"), ("code", "pass@1"))
        }
        return Snapshot(tasks, {"mini": ("sums", "code")})

    pooled = judge(snapshot(10), snapshot(7), read_group(gate=True)).comparisons[-1]
    assert (pooled.name, pooled.metric, pooled.n, pooled.lost, pooled.gated) == ("mini", "right", 40, 6, True)
    assert pooled.p == pytest.approx(3 * 0.5**6), "Holm over three"


def read_group(gate):
    return Thresholds(tasks={"mini": TaskRule(gate=gate)})


# Thresholds


def test_thresholds(place, capsys):
    write_run(Path("new"), {"sums": ones(31), "words": ones(29)})
    Path("t.yaml").write_text("tasks: {sums: {tolerance: 0.2}}\n")
    assert regress("new", "--thresholds", "t.yaml") == 0
    assert "within the tolerance (0.2)" in capsys.readouterr().out
    Path("t.yaml").write_text("tasks: {sums: {gate: false}, words: {max_drop: 0.01}}\n")
    assert regress("new", "--thresholds", "t.yaml") == 1
    out = capsys.readouterr().out
    assert "REGRESSION in words" in out and "the drop exceeds max_drop (0.01)" in out and row(out, "sums")[-2:] == ["not", "gated"]
    Path("t.yaml").write_text("default: {must_see: 0.01}\n")
    assert regress("old", "--thresholds", "t.yaml") == 2
    assert "must_see asks for drops of 0.01 to be seen with 80% power; 64 documents, 0 of which differ" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [0.05, 0.058])
def test_a_hard_limit_tells_its_own_false_alarms(place, capsys, limit):
    write_run(Path("new"), {"sums": [0.0] * 5 + ones(40, 59), "words": ones(30)})  # 5 lost, 5 won
    Path("t.yaml").write_text(f"tasks: {{sums: {{max_drop: {limit}}}}}\n")
    assert regress("new", "--thresholds", "t.yaml") == 0
    m = range(65)
    # More than 3.2 or 3.7 documents is 4 and more, of m discordant ones.
    tails = [stats.binom.sf(math.ceil((i + 4) / 2) - 1, i, 0.5) for i in m]
    alarm = float(stats.binom.pmf(m, 64, 10 / 64) @ tails)
    assert f"sums: max_drop {limit} on its own fails {alarm:.1%} of unchanged runs" in capsys.readouterr().out


def test_all_errors_of_the_thresholds_at_once(place, capsys):
    Path("t.yaml").write_text(
        "alfa: 0.1\nalpha: 2\npower: .nan\ndirection: up\nallow_unlike: torch\n"
        "tasks: {sums: {tolerence: 1, max_drop: '0.1', gate: 1, seconds_per_token: 0.9}}\nbenchmarks: {x: {max_change: yes}}\n"
    )
    assert regress("old", "--thresholds", "t.yaml") == 2
    said = capsys.readouterr().err
    for part in (
        "t.yaml: 10 to mend", "the file: unknown key 'alfa'. Did you mean 'alpha'?", "alpha: a number above 0 and below 0.5, not 2",
        "power: a number",
        "direction: `drop` or `both`, not 'up'", "allow_unlike: a list", "unknown key 'tolerence'. Did you mean 'tolerance'?",
        "tasks.sums.max_drop: a number above 0, not '0.1'", "tasks.sums.gate: true or false, not 1", "seconds_per_token: a number above 1",
        "benchmarks.x.max_change: a number above 1, not True",
    ):  # fmt: skip
        assert part in said, (part, said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {sum: {gate: true}}", "thresholds: there is no task 'sum'. Did you mean 'sums'?"),
        ("tasks: {sum: {}, x: {}}", "thresholds: 2 to mend:\n- there is no task 'sum'. Did you mean 'sums'? Known: sums, words.\n- there"),
        ("default: {tolerance: 5}", "5 points are 0.05"),
        ("[1, 2]", "the file: `key: value` lines"),
        ("a: [", "not YAML"),
        ("tasks: {sums: {gate: true}, sums: {gate: false}}", "the key 'sums' is there twice"),
        ("tasks: {sums: {metric: exact_mach}}", "Did you mean 'exact_match,none'?"),
        ("benchmarks: {'x*': {max_change: 2}}", "no benchmark of the baseline fits 'x*'"),
        ("alpha: 1e-3", "not '1e-3'. Write it as a plain number: 0.001.\n"),
        ("alpha: ten", "not 'ten'.\n"),
        ("alpha: 1e999999", "not '1e999999'.\n"),
    ],
)
def test_thresholds_that_do_not_fit(place, capsys, text, message):
    Path("t.yaml").write_text(text)
    assert regress("old", "--thresholds", "t.yaml") == 2
    said = capsys.readouterr()
    assert message in said.err + said.out and "Traceback" not in said.err


def test_empty_thresholds_are_the_defaults(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("# nothing\n")
    assert read_thresholds(path) == Thresholds()


def test_the_documented_thresholds_are_the_defaults(tmp_path):
    blocks = (Path(__file__).parents[2] / "docs/regress.md").read_text(encoding="utf-8").split("```yaml\n")
    path = tmp_path / "t.yaml"
    path.write_text(next(block for block in blocks if block.startswith("alpha:")).split("```")[0])
    found = read_thresholds(path)
    assert replace(found, tasks={}, benchmarks={}) == Thresholds()
    assert found.tasks["gsm8k"] == TaskRule(metric="exact_match,strict-match", must_see=0.04)
    assert {field.name for field in fields(TaskRule)} == set(yaml.safe_load(path.read_text())["default"])


# Unlike things


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": {"batch_size": 1}}, "batch size: 16 in the baseline, 1 in the run (sums, words)"),
        ({"config": {"model_dtype": "torch.bfloat16"}}, "dtype: float32 in the baseline, bfloat16 in the run"),
        ({"lm_eval_version": "0.4.14"}, "lm-eval: 0.4.13 in the baseline, 0.4.14 in the run"),
        ({"pretty_env_info": "PyTorch version: 2.14.0\nModel name: Some CPU"}, "torch: 2.13.0+cpu in the baseline, 2.14.0 in the run"),
        ({"t2": {"base": "0ther"}}, "base weights: ba5e in the baseline, 0ther in the run"),
        ({"t2": {"experts": {"math": "ff"}}}, "expert math: aa in the baseline, ff in the run"),
        ({"t2": {"probe": "ff"}}, "probe: not recorded in the baseline, ff in the run"),
        ({"n-shot": {"sums": 5, "words": 0}}, "few-shot: 0 in the baseline, 5 in the run (sums)"),
        ({"configs": {"sums": {"doc_to_text": "Q: {{q}}"}}}, "task's doc_to_text: "),
        ({"task_hashes": {"sums": "abc"}}, "prompts: not recorded in the baseline, abc in the run"),
        ({"chat_template": "x", "chat_template_sha": "123456789"}, "chat template: no in the baseline, yes (12345678) in the run"),
    ],
)
def test_unlike_things_are_refused_by_name(place, capsys, change, says):
    t2 = {"experts": {"math": "aa"}}
    write_run(Path("t_old"), {"sums": ones(40), "words": ones(30)}, t2=t2)
    write_run(
        Path("t_new"),
        {"sums": ones(40), "words": ones(30)},
        **({"t2": t2} | change | ({"t2": t2 | change["t2"]} if "t2" in change else {})),
    )
    assert main(["regress", "--update", "--baseline", "base.json", "t_old"]) == 0
    assert regress("t_old") == 0
    capsys.readouterr()
    assert regress("t_new") == 2
    out = capsys.readouterr().out
    assert says in out and "would compare unlike things" in out
    assert regress("t_new", "--allow-unlike") == 0
    out = capsys.readouterr().out
    assert "UNLIKE THINGS COMPARED" in out.splitlines()[0] and says in out
    name = says.split(":")[0]
    Path("t.yaml").write_text(json.dumps({"allow_unlike": [name]}))
    assert regress("t_new", "--thresholds", "t.yaml") == (2 if "configs" in change else 0)


def test_the_dtype_of_a_run_that_records_none_is_that_of_its_arguments(place, capsys):
    for name, dtype in (("v_old", "float32"), ("v_new", "float16")):
        config = {"model": "vllm", "model_args": {"pretrained": "m", "dtype": dtype}, "model_dtype": None}
        write_run(Path(name), {"sums": ones(40)}, config=config)
    assert main(["regress", "--update", "--baseline", "base.json", "v_old"]) == 0
    assert regress("v_old") == 0
    assert regress("v_new") == 2
    assert "arguments: dtype=float32 in the baseline, dtype=float16 in the run" in capsys.readouterr().out
    write_run(Path("t2"), {"sums": ones(40)}, config={"model_args": {"dtype": "float32"}})
    assert main(["regress", "--update", "--baseline", "base.json", "t2"]) == 0
    assert read_baseline(Path("base.json")).tasks["sums"].settings["dtype"] == "float32"
    assert "arguments" not in read_baseline(Path("base.json")).tasks["sums"].settings, "which is what it came to"


def test_another_direction_of_a_metric_is_refused(place, capsys):
    write_run(Path("new"), {"sums": ones(20), "words": ones(30)}, higher_is_better={"sums": {"exact_match": False}})
    assert regress("new", "--allow-unlike") == 2
    out = capsys.readouterr().out
    assert "sums: of exact_match higher is better by the baseline, lower is better by the run" in out
    assert row(out, "words")[-1] == "ok"


def test_other_documents_are_named(place, capsys):
    docs = {
        "sums": [(i + 1, f"sums {i + 1}") for i in range(64)],
        "words": [(i, f"words {i}{'!' if i in (7, 9) else ''}") for i in range(64)],
    }
    write_run(Path("new"), {"sums": ones(20), "words": ones(30)}, docs=docs)
    assert regress("new") == 2
    out = capsys.readouterr().out
    assert "documents: 1 (0) of sums only in the baseline (sums)" in out
    assert "documents: 1 (64) of sums only in the run (sums)" in out
    assert "documents: 2 (7, 9) of words with other content under the same id" in out
    assert "what could be compared shows a regression in sums" in out
    assert regress("new", "--allow-unlike") == 1
    out = capsys.readouterr().out
    assert row(out, "sums")[3] == "63" and row(out, "words")[3] == "62"
    docs = {name: [(i + 100, f"{name} {i}") for i in range(64)] for name in ("sums", "words")}
    write_run(Path("none"), {"sums": ones(40), "words": ones(30)}, docs=docs)
    assert regress("none", "--allow-unlike") == 2
    assert "sums: baseline and run have no document in common." in capsys.readouterr().out


# Bad input


def test_bad_runs(place, capsys):
    def says(message, *arguments):
        assert regress(*arguments) == 2
        said = capsys.readouterr()
        assert message in said.err + said.out, said
        assert "Traceback" not in said.err

    capsys.readouterr()
    path = write_run(Path("cut"), {"sums": ones(40), "words": ones(30)})
    samples = Path("cut") / f"samples_sums_{DATE}.jsonl"
    whole = samples.read_text()
    samples.write_text(whole[:-30])
    says(f"{samples}, line 64: JSON cut short", "cut")
    samples.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    says("sums has 64 documents, but cut/samples_sums", "cut")
    samples.write_text(whole + whole.splitlines(keepends=True)[3])
    says("document 3 occurs twice", "cut")
    samples.write_text(whole.replace('"exact_match": 1.0', '"exact_match": NaN', 1))
    says("line 1: exact_match of document 0 is nan, not a finite number", "cut")
    samples.unlink()
    says("no logged samples of sums beside it. The gate compares documents: run lm_eval with --log_samples", "cut")
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    says("JSON cut short", "cut")
    path.write_text(text.replace('"exact_match,none": 0.625', '"exact_match,none": NaN'))
    samples.write_text(whole)
    says("exact_match,none of sums is nan", "cut")
    path.write_text(text.replace('"exact_match,none": 0.625', '"exact_match,none": 0.9'))
    says("sums: its exact_match,none (0.9) is not the mean of its documents (0.625)", "cut")
    write_run(Path("other"), {"facts": ones(3)})
    says("no task in common: the baseline has sums, words, the run has facts", "other")
    write_run(Path("part"), {"sums": ones(40)})
    says("The run lacks words. Evaluate them too, or name those to compare with --tasks", "part")
    assert regress("part", "--tasks", "sums") == 0
    capsys.readouterr()
    says("Did you mean 'sums'", "part", "--tasks", "sum")
    says("no such file or folder", "nowhere")
    write_run(Path("f"), {"sums": ones(40), "words": ones(30)}, metric="acc")
    says("sums has no such metric", "f")
    says("not an lm-eval result file", "base.json")


def verdicts(folder, *filtered):
    path = write_run(folder, {"code": ones(1, 2)}, metric="pass@1", t2={"sandbox": "bwrap"})
    file = folder / f"samples_code_{DATE}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    said = [line | {"filtered_resps": one, "note": '"verdict"'} for line, one in zip(lines, filtered, strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in said))
    return path


VERDICT = [json.dumps({"program": "x", "verdict": {"status": "passed", "seconds": 0.1}})]


@pytest.mark.parametrize("reply", [7, ['{"verdict": ' + "[" * 100_000], None, {"a": 1}])
def test_replies_that_hold_no_verdict_have_no_seconds(place, reply):
    verdicts(Path("c_new"), VERDICT, reply)
    assert main(["regress", "--update", "--baseline", "base.json", "c_new"]) == 0
    assert read_baseline(Path("base.json")).tasks["code"].timing == {"seconds_per_program": [0.1]}


@pytest.mark.parametrize("config", [None, [], "x"])
def test_a_run_without_configuration_is_unlike(place, capsys, config):
    path = write_run(Path("new"), {"sums": ones(40), "words": ones(30)})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))
    assert regress("new") == 2
    assert "batch size: 16 in the baseline, not recorded in the run" in capsys.readouterr().out


def test_only_a_regression_is_status_1(place, capsys, monkeypatch):
    path = write_run(Path("new"), {"sums": ones(40), "words": ones(30)})
    path.write_text(path.read_text().replace('"exact_match,none": 0.625', '"exact_match,none": 1' + "0" * 400))
    assert regress("new") == 2
    bench(Path("b.json"), 10**400)
    assert regress("b.json") == 2
    assert "ratio is 1000" in capsys.readouterr().err
    monkeypatch.setattr(command, "judge", lambda *arguments: 1 / 0)
    assert regress("old", "--format", "markdown") == 2
    said = capsys.readouterr()
    assert "ZeroDivisionError: division by zero" in said.out and "Traceback" in said.err
    monkeypatch.setattr(command, "useful", lambda *arguments: 1 / 0)
    assert main(["regress", "--update", "--baseline", "base.json", "old"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-40], "the baseline is not whole JSON"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "has schema 2, this t2 reads 1"),
        (lambda text: text.replace('"t2 regression baseline"', '"x"'), "this is another JSON, not a baseline"),
        (lambda text: text.replace(", 1]", ", NaN]", 1), "tasks.sums.documents.0` of the baseline should be a finite number, not nan"),
        (lambda text: text.replace(", 1]", ", 1" + "0" * 400 + "]", 1), "should be a finite number"),
        (lambda text: text.replace('"higher_is_better": true', '"higher_is_better": 1'), "should be true or false"),
        (lambda text: text.replace('"exact_match"', "null"), "tasks.sums.metric` of the baseline should be text"),
        (
            lambda text: text.replace('"documents": {', '"documents": {"0": ["", 0],', 1),
            "the baseline is not whole JSON ('0' is there twice)",
        ),
        (lambda text: text.replace('"documents": {', '"documents": {"00": ["", 0],', 1), "keyed by document ids, which '00' is not"),
        (lambda text: "[]", "not a baseline"),
        (lambda text: '{"results": {}}', "this is an lm-eval result file, not a baseline"),
        (lambda text: '{"kind": "t2 regression baseline", "schema": 1}', "`tasks` of the baseline should be an object"),
    ],
)
def test_bad_baselines(place, capsys, change, message):
    text = Path("base.json").read_text()
    assert change(text) != text
    Path("base.json").write_text(change(text))
    assert regress("old") == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and "--update" in said


def test_no_baseline_yet(place, capsys):
    Path("base.json").unlink()
    assert regress("old") == 2
    assert "`t2 regress --update --baseline base.json RUN` writes one" in capsys.readouterr().err


# The baseline file


def test_update_is_atomic_repeatable_and_shows_what_is_dropped(place, capsys):
    first = Path("base.json").read_bytes()
    assert main(["regress", "--update", "--baseline", "base.json", "old"]) == 0
    assert Path("base.json").read_bytes() == first
    assert sorted(p.name for p in place.iterdir()) == ["base.json", "old"], "no temporary file stays"
    write_run(Path("new"), {"sums": ones(41)})
    assert main(["regress", "--update", "--baseline", "base.json", "new"]) == 0
    assert "also had words; it is replaced" in capsys.readouterr().err
    changed = [a for a, b in zip(first.decode().splitlines(), Path("base.json").read_text().splitlines(), strict=False) if a != b]
    assert len([line for line in changed if '"40": [' in line]) == 1, "one line a document"


def test_update_writes_nothing_where_it_cannot(place, capsys):
    before = Path("base.json").read_bytes()
    write_run(Path("new"), {"sums": ones(40)})
    (Path("new") / f"samples_sums_{DATE}.jsonl").unlink()
    assert main(["regress", "--update", "--baseline", "base.json", "new"]) == 2
    assert main(["regress", "--update", "--baseline", "base.json", "old", "-o", "x"]) == 2
    assert main(["regress", "--update", "--baseline", "old", "old"]) == 2, "a folder of that name"
    assert Path("base.json").read_bytes() == before
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "file", ["old/results_2026-01-02T03-04-05.678901.json", "t.yaml", "old/samples_sums_2026-01-02T03-04-05.678901.jsonl"]
)
def test_update_replaces_baselines_only(place, capsys, file):
    Path("t.yaml").write_text("alpha: 0.01\n")
    before = Path(file).read_bytes()
    assert main(["regress", "--update", "--baseline", file, "old"]) == 2
    assert f"{file}: this is no baseline, and --update would replace it." in capsys.readouterr().err
    assert Path(file).read_bytes() == before
    whole = Path("base.json").read_bytes()
    for damaged in (b"", b"\n", whole[:200], whole.replace(b'"schema": 1', b'"schema": 2')):
        Path("base.json").write_bytes(damaged)
        assert main(["regress", "--update", "--baseline", "base.json", "old"]) == 0
        assert Path("base.json").read_bytes() == whole


def test_a_verdict_replaces_no_input(place, capsys):
    Path("t.yaml").write_text("alpha: 0.01\n")
    result = f"old/results_{DATE}.json"
    for file in ("base.json", "t.yaml", result):
        before = Path(file).read_bytes()
        assert regress(result, "--thresholds", "t.yaml", "-o", file) == 2
        assert "is one of the inputs" in capsys.readouterr().err and Path(file).read_bytes() == before


def test_a_metric_that_no_document_has_alone_is_left_out_of_a_baseline(place, capsys):
    write_run(Path("new"), {"sums": ones(40), "wiki": [1.0]}, metric="exact_match")
    samples = Path("new") / f"samples_wiki_{DATE}.jsonl"
    samples.write_text(samples.read_text().replace('"exact_match": 1.0', '"exact_match": [-1234.5, 210]'))
    assert main(["regress", "--update", "--baseline", "b.json", "new"]) == 0
    assert "wiki is left out: its exact_match,none is no mean over documents" in capsys.readouterr().err
    assert list(json.loads(Path("b.json").read_text())["tasks"]) == ["sums"]


def test_update_says_why(place, capsys):
    assert main(["regress", "--update", "--baseline", "/proc/nope/b.json", "old"]) == 2
    assert "Choose another --baseline." in capsys.readouterr().err
    path = write_run(Path("new"), {"sums": ones(40), "words": ones(30)})
    path.write_text(path.read_text().replace('"exact_match,none": 0.625', '"exact_match,none": 0.9'))
    assert main(["regress", "--update", "--baseline", "b.json", "--tasks", "sums", "new"]) == 2
    assert "--tasks: sums: its exact_match,none (0.9) is not the mean of its documents (0.625), so it cannot" in capsys.readouterr().err
    assert main(["regress", "--update", "--baseline", "b.json", "--tasks", "sums,wrds", "new"]) == 2
    assert "the run has no task 'wrds'. Did you mean 'words'? Known: sums, words." in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_baseline(place):
    before = Path("base.json").read_bytes()
    write_run(Path("new"), {"sums": ones(400, 4000)})
    command = f"ulimit -f 8; {sys.executable} -m t2.harness.cli regress --update --baseline base.json new"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "cannot be written (File too large)" in done.stderr and "Traceback" not in done.stderr
    assert Path("base.json").read_bytes() == before and not list(place.glob(".*tmp"))


def test_baselines_hold_no_places_and_no_secrets(place):
    args = {
        "pretrained": "/home/me/models/tiny",
        "api_key": "sk-1",
        "more": [{"x-api-key": "sk-1"}],
        "mixture": "/home/me/mix.json",
        "strategy": "expert:/home/me/math",
    }
    write_run(Path("new"), {"sums": ones(41)}, config={"model_args": args})
    assert main(["regress", "--update", "--baseline", "base.json", "new"]) == 0
    text = Path("base.json").read_text()
    assert "/home/me" not in text and "sk-1" not in text
    assert "tiny" in text and "mix.json" in text


def test_the_same_mixture_file_in_another_folder_is_no_difference(place):
    for folder in ("mixtures", "out"):
        args = {"mixture": f"{folder}/m.json", "probe": f"{folder}/probe", "classifier": f"{folder}/c"}
        write_run(Path(folder), {"sums": ones(40)}, t2={"strategy": "mix:math=0.5+base=0.5"}, config={"model_args": args})
    assert main(["regress", "--update", "--baseline", "base.json", "mixtures"]) == 0
    assert regress("out") == 0


def test_round_trip(tmp_path):
    documents = {3: ("", 0.25), 1: ("0" * 16, 1.0), 2: ("f" * 16, -1e-9)}
    task = TaskScores("acc", "none", True, documents, {"dtype": "α\n"}, {"CPU": "x"}, {"seconds_per_token": [0.1, 1 / 3]})
    snapshot = Snapshot({"a|b": task, "c": task}, {"g": ("a|b", "c")}, {"t.py::x[1]: ratio": [1.5]}, {"CPU": "y"})
    path = tmp_path / "b.json"
    path.write_text(dump(snapshot))
    assert read_baseline(path) == snapshot


# Repeats, timing, benchmarks


def timed(seconds1, seconds2, tokens=100):
    cost = {"prompts": 1, "tokens_in": 10, "switches": 0}
    passes = {
        "pass1": cost | {"seconds": seconds1, "tokens_out": 0},
        "pass2": cost | {"seconds": seconds2, "tokens_out": tokens},
        "chosen": {},
    }
    return {"passes": {"sums": passes}}


def test_timing_is_shown_and_gated_on_demand(place, capsys):
    for i, seconds in enumerate([10.0, 10.5, 9.5]):
        write_run(Path(f"o{i}"), {"sums": ones(40)}, t2=timed(1.0, seconds))
        write_run(Path(f"n{i}"), {"sums": ones(40)}, t2=timed(1.6, 2 * seconds))
    assert main(["regress", "--update", "--baseline", "base.json", "o0", "o1", "o2"]) == 0
    assert regress("n0", "n1", "n2") == 0
    out = capsys.readouterr().out
    assert row(out, "sums: seconds_per_token")[2:] == ["0.09992", "0.1998", "3", "/", "3", "x", "2", DASH, DASH, DASH, "not", "gated"]
    Path("t.yaml").write_text("tasks: {sums: {seconds_per_token: 1.5, pass1_per_pass2: 1.2}}\n")
    assert regress("n0", "n1", "n2", "--thresholds", "t.yaml") == 1
    out = capsys.readouterr().out
    assert "REGRESSION in sums: seconds_per_token\n" in out
    assert row(out, "sums: pass1_per_pass2")[-1] == "ok", "0.8 of the share"
    logs = [math.log(x) for x in (0.1, 0.105, 0.095)]
    mean = sum(logs) / 3
    error = math.sqrt(sum((x - mean) ** 2 for x in logs) / 2 / 3)
    sees = math.exp(math.log(1.5) + 0.8416212335729143 * math.hypot(error, error))
    assert f"x {sees:.3g}" in out
    write_run(Path("m"), {"sums": ones(40)}, t2=timed(1.6, 20.0), pretty_env_info="PyTorch version: 2.13.0+cpu\nModel name: Other CPU")
    assert regress("m", "--thresholds", "t.yaml") == 2
    assert "machine: CPU was Some CPU in the baseline, is Other CPU in the run, so seconds cannot be compared" in capsys.readouterr().out
    assert regress("n0", "m", "n1", "--thresholds", "t.yaml") == 2, "all repeats count"
    assert "is Other CPU / Some CPU / Some CPU in the run, so seconds" in capsys.readouterr().out
    assert main(["regress", "--update", "--baseline", "mixed.json", "o0", "m"]) == 0
    assert main(["regress", "--baseline", "mixed.json", "o0", "--thresholds", "t.yaml"]) == 2
    Path("t.yaml").write_text("tasks: {sums: {pass1_per_pass2: 1.2}}\n")
    assert regress("m", "--thresholds", "t.yaml") == 0, "a ratio of two times travels"
    Path("t.yaml").write_text("default: {seconds_per_program: 1.2}\n")
    assert regress("n0", "--thresholds", "t.yaml") == 2
    assert "seconds_per_program is gated, but the baseline has none" in capsys.readouterr().out


def test_sandbox_throughput_comes_from_the_verdicts(place, capsys):
    for folder, seconds in (("c_old", (0.1, 0.3)), ("c_new", (0.3, 0.5))):
        verdicts(Path(folder), *([[json.dumps({"verdict": {"status": "passed", "seconds": one}})]] for one in seconds))
    assert main(["regress", "--update", "--baseline", "base.json", "c_old"]) == 0
    baseline = read_baseline(Path("base.json")).tasks["code"]
    assert baseline.timing == {"seconds_per_program": [pytest.approx(0.2)]} and baseline.settings["sandbox"] == "bwrap"
    Path("t.yaml").write_text("default: {seconds_per_program: 1.9}\n")
    assert regress("c_new", "--thresholds", "t.yaml") == 1
    assert "their noise is not known" in capsys.readouterr().out


def test_repeats_are_averaged_by_document(place, capsys):
    write_run(Path("r1"), {"sums": ones(40), "words": ones(30)}, date="2026-01-02T03-04-06")
    write_run(Path("r2"), {"sums": ones(30), "words": ones(30)}, date="2026-01-02T03-04-07")
    assert regress("r1", "r2") == 1
    out = capsys.readouterr().out
    assert row(out, "sums")[4:7] == ["62.50", "54.69", "-7.81"]
    write_run(Path("r3"), {"sums": ones(30), "words": ones(30)}, config={"batch_size": 1})
    assert regress("r1", "r3") == 2
    assert "taken for repeats of sums, but differ in batch size" in capsys.readouterr().err
    assert regress("r1", "r1") == 0
    assert "is a copy of" in capsys.readouterr().out


def test_unequal_numbers_of_repeats_are_told(place, capsys):
    for i, right in enumerate((40, 41, 39)):
        write_run(Path(f"r{i}"), {"sums": ones(right), "words": ones(30)}, date=f"2026-01-02T03-04-0{i}")
    assert regress("r0", "r1") == 0
    told = "of unequal numbers of repeats: sums (1 / 2), words (1 / 2). Give as many to --update as to the gate."
    out = capsys.readouterr().out
    assert told in out and "with a chance of about 0.05" in out
    assert main(["regress", "--update", "--baseline", "base.json", "r0", "r1"]) == 0
    assert read_baseline(Path("base.json")).tasks["sums"].provenance["repeats"] == "2"
    assert regress("r1", "r2") == 0
    out = capsys.readouterr().out
    assert "unequal" not in out and "with a chance of at most 0.05" in out
    assert regress("r0", "r1", "r2") == 0
    assert "sums (2 / 3)" in capsys.readouterr().out


def test_repeats_may_have_seeds_of_their_own_and_all_are_compared(place, capsys):
    for seed in (1, 2):
        write_run(Path(f"s{seed}"), {"sums": ones(30 + seed), "words": ones(30)}, config={"torch_seed": seed})
    assert main(["regress", "--update", "--baseline", "seeds.json", "s1", "s2"]) == 0
    assert main(["regress", "--baseline", "seeds.json", "s2", "s1"]) == 0
    assert main(["regress", "--baseline", "seeds.json", "s1"]) == 2
    assert "seeds: torch 1 / torch 2 in the baseline, torch 1 in the run" in capsys.readouterr().out


def test_another_cpu_is_told_though_no_seconds_are_known(place, capsys):
    write_run(Path("far"), {"sums": ones(40), "words": ones(30)}, pretty_env_info="PyTorch version: 2.13.0+cpu\nModel name:     Other CPU")
    assert regress("far") == 0
    assert "machine: CPU was Some CPU in the baseline, is Other CPU in the run (sums, words)" in capsys.readouterr().out


def test_of_a_folder_the_newest_counts(place, capsys):
    write_run(Path("mix"), {"sums": ones(10), "words": ones(30)}, date="2026-01-02T03-04-06")
    write_run(Path("mix"), {"sums": ones(40), "words": ones(30)}, date="2026-01-02T03-04-07")
    newer = Path("mix/results_2026-01-02T03-04-07.json")
    newer.write_text(newer.read_text().replace('"date": 1760000000.0', '"date": 1760000009.0'))
    assert regress("mix") == 0
    assert "sums: mix/results_2026-01-02T03-04-07.json is newer than mix/results_2026-01-02T03-04-06.json" in capsys.readouterr().out
    for path in Path("mix").glob("results*"):
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "date"}))
    assert regress("mix") == 0, "then their names say when they were made"
    assert "03-04-07.json is newer than mix/results_2026-01-02T03-04-06.json" in capsys.readouterr().out


def test_what_is_not_of_the_newest_file_is_told(place, capsys):
    write_run(Path("mix"), {"sums": ones(10), "words": ones(30), "facts": ones(9)}, date="2026-01-02T03-04-06")
    write_run(Path("mix"), {"sums": ones(40)}, date="2026-01-02T03-04-07.5")
    newer = Path("mix/results_2026-01-02T03-04-07.5.json")
    newer.write_text(newer.read_text().replace('"date": 1760000000.0', '"date": 1760086400.0'))
    assert regress("mix") == 0
    told = "words: of the older mix/results_2026-01-02T03-04-06.json (2025-10-09 08:53), as mix/results_2026-01-02T03-04-07.5.json "
    assert f"{told}(2025-10-10 08:53) lacks them." in capsys.readouterr().out
    assert regress("mix", "--tasks", "sums") == 0
    assert "of the older" not in capsys.readouterr().out
    assert main(["regress", "--update", "--baseline", "base.json", "mix"]) == 0
    assert "words, facts: of the older mix" in capsys.readouterr().err
    assert regress("old", "--tasks", "sums,words") == 0
    assert "of the older" not in capsys.readouterr().out


def bench(path, ratio, seconds=1.0, cpu="Some CPU", **extra):
    stats = {"median": seconds, "rounds": 3}
    machine = {"cpu": {"brand_raw": cpu}, "python_version": "3.11.7"}
    info = {"ratio": ratio, "note": "text", "more": {"speedup": 1 / ratio}}
    one = {"fullname": "tests/benchmarks/test_x.py::test_switch[4]", "stats": stats, "extra_info": info} | extra
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": [one]}))
    return path


def test_benchmark_files(place, capsys):
    old, new = bench(Path("old.json"), 2.0), bench(Path("new.json"), 2.5, seconds=9.0)
    assert main(["regress", "--update", "--baseline", "base.json", str(old)]) == 0
    assert regress(new) == 2
    out = capsys.readouterr().out
    assert row(out, "test_x.py::test_switch[4]: ratio")[2:4] == ["2", "2.5"]
    assert "Nothing is gated" in out
    Path("t.yaml").write_text('benchmarks: {"test_x.py::test_switch[4]: ratio": {max_change: 1.2}}\n')
    assert regress(new, "--thresholds", "t.yaml") == 1
    assert "REGRESSION in test_x.py::test_switch[4]: ratio" in capsys.readouterr().out
    Path("t.yaml").write_text('benchmarks: {"*: more.speedup": {max_change: 1.2, higher_is_better: true}}\n')
    assert regress(new, "--thresholds", "t.yaml") == 1
    Path("t.yaml").write_text('benchmarks: {"*": {max_change: 1.3}}\n')
    assert regress(bench(Path("same.json"), 2.0), "--thresholds", "t.yaml") == 0
    assert regress("old", "--thresholds", "t.yaml") == 2
    assert "lacks the benchmark figure test_x.py::test_switch[4]: ratio" in capsys.readouterr().out
    assert regress(bench(Path("nan.json"), math.nan)) == 2
    assert "ratio is nan, not a finite number" in capsys.readouterr().err
    Path("cut.json").write_text(old.read_text()[:-9])
    assert regress("cut.json") == 2
    assert "cut.json: " in capsys.readouterr().err


def test_copies_of_a_benchmark_file_are_no_repeats(place, capsys):
    old, new = bench(Path("old.json"), 2.0), bench(Path("new.json"), 2.1)
    Path("copy.json").write_bytes(old.read_bytes())
    assert main(["regress", "--update", "--baseline", "base.json", "old.json", "copy.json", "old.json", str(new)]) == 0
    assert capsys.readouterr().err.count("copy of old.json and was counted once.") == 2
    assert read_baseline(Path("base.json")).benchmarks["test_x.py::test_switch[4]: ratio"] == [2.0, 2.1]


@pytest.mark.parametrize(
    ("figure", "status"),
    [("seconds", 2), ("programs a second", 2), ("pass1_seconds", 2), ("pass 2.Seconds", 2), ("secondary", 0), ("ratio", 0)],
)
def test_seconds_of_benchmarks_stay_on_their_machine(place, capsys, figure, status):
    info = {"extra_info": {figure: 1.0} if figure != "seconds" else {}, "fullname": "t/test_x.py::test_seconds"}
    for name, cpu in (("old.json", "Some CPU"), ("new.json", "Other CPU")):
        bench(Path(name), 1.0, cpu=cpu, **info)
    assert main(["regress", "--update", "--baseline", "base.json", "old.json"]) == 0
    Path("t.yaml").write_text(f'benchmarks: {{"*: {figure}": {{max_change: 1.5}}}}\n')
    assert regress("new.json", "--thresholds", "t.yaml") == status
    assert "CPU was Some CPU in the baseline, is Other CPU in the run" in capsys.readouterr().out
    assert regress("new.json", "old.json", "--thresholds", "t.yaml") == status, "all repeats count"
    assert "CPU was Some CPU in the baseline, is Other CPU / Some CPU in the run" in capsys.readouterr().out


def test_benchmarks_that_share_no_figure_are_no_gate(place, capsys):
    assert main(["regress", "--update", "--baseline", "base.json", str(bench(Path("old.json"), 2.0))]) == 0
    assert regress(bench(Path("other.json"), 2.0, fullname="test_y.py::test_other")) == 2
    out = capsys.readouterr().out
    assert "have no figure in common: the baseline has test_x.py::test_switch[4]: more.speedup, " in out
    assert ", the run has test_y.py::test_other: ratio, " in out
    assert regress("old") == 2
    assert "the run has sums, words." in capsys.readouterr().out


def test_a_file_that_pytest_benchmark_wrote(place, capsys):
    Path("test_real.py").write_text(
        "def test_ratio(benchmark):\n    benchmark.pedantic(sum, ([1],))\n"
        "    benchmark.extra_info.update({'what': 'a / b', 'ratio': 0.5, 'bytes': {'ratio': 0.25, 'what': 'c / d'}})\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "test_real.py", "--benchmark-json=bench.json", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}  # in a worker nothing is timed
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["regress", "--update", "--baseline", "base.json", "bench.json"]) == 0
    names = list(read_baseline(Path("base.json")).benchmarks)
    assert names == [f"test_real.py::test_ratio: {figure}" for figure in ("bytes.ratio", "ratio", "seconds")]
    Path("t.yaml").write_text('benchmarks: {"*ratio": {max_change: 1.25}}\n')
    assert regress("bench.json", "--thresholds", "t.yaml") == 0
    assert "t2 regress: ok, 2 gated" in capsys.readouterr().out


# Output


def test_junit(place, capsys):
    write_run(Path("new"), {"sums": ones(31), "words": ones(30)}, t2=timed(1, 10))
    assert regress("new", "--allow-unlike", "--format", "junit", "-o", "out/j.xml") == 1
    assert "REGRESSION in sums" in capsys.readouterr().err
    suite = ET.fromstring(Path("out/j.xml").read_text())[0]  # noqa: S314 - written here
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "0",
    }
    failed = suite.find("testcase[@name='sums']/failure")
    assert failed is not None and failed.get("message") == "sums: REGRESSION" and "Lost: 9" in (failed.text or "")
    assert regress("new", "--format", "junit") == 2
    root = ET.fromstring(capsys.readouterr().out)  # noqa: S314
    assert "base weights: not recorded in the baseline" in root.find(".//testcase[@name='comparable']/error").get("message")


@pytest.mark.parametrize("kind", ["text", "markdown", "junit"])
def test_a_terminal_without_unicode(place, kind):
    write_run(Path("t_old"), {"sümß": ones(40)}, t2=timed(1, 10))
    assert main(["regress", "--update", "--baseline", "base.json", "t_old"]) == 0
    command = [sys.executable, "-m", "t2.harness.cli", "regress", "--baseline", "base.json", "t_old", "--format", kind]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    if kind == "junit":
        assert "sümß" in [case.get("name") for case in ET.fromstring(done.stdout).iter("testcase")]  # noqa: S314
    else:
        assert "s?m?" in done.stdout


@pytest.mark.parametrize("kind", ["text", "markdown", "junit"])
def test_an_older_verdict_does_not_stay(place, capsys, kind):
    write_run(Path("new"), {"sums": ones(40), "words": ones(30)})
    assert regress("new", "--format", kind, "-o", "gate") == 0
    for samples in Path("new").glob("samples*"):
        samples.unlink()
    assert regress("new", "--format", kind, "-o", "gate") == 2
    assert "no logged samples of" in capsys.readouterr().err
    shown = Path("gate").read_text()
    assert "t2 regress: cannot judge" in shown and "no logged samples of" in shown and "t2 regress: ok" not in shown
    if kind == "junit":
        assert ET.fromstring(shown)[0].get("errors") == "1"  # noqa: S314


def test_values_stay_in_their_line(place, capsys):
    forged = "16\n\nt2 regress: ok, 2 gated\n::notice title=x::forged\u2028\r"
    name = "sums\n::notice::x"
    write_run(Path("new"), {"sums": ones(40), "words": ones(30)}, config={"batch_size": forged})
    assert regress("new") == 2
    assert f"in the baseline, {' '.join(forged.split())} in the run" in capsys.readouterr().out
    scores = TaskScores("acc\nx", "none", True, {i: ("", 1.0) for i in range(64)}, {})
    worse = replace(scores, documents=dict.fromkeys(scores.documents, ("", 0.0)))
    verdict = judge(Snapshot({name: scores}), Snapshot({name: worse}), Thresholds())
    for shown in (text(verdict), markdown(verdict), junit(verdict)):
        assert not any(line.lstrip().startswith(("::", "x,none")) for line in shown.splitlines()), shown


HOSTILE = 'a|b <script>alert(1)</script> "&'


def test_hostile_names_are_escaped(place, capsys):
    baseline = Snapshot({HOSTILE + "\x1b[31m": TaskScores("acc<b>", "none", True, {0: ("", 1.0)}, {"dtype": "x"})})
    run = Snapshot({HOSTILE + "\x1b[31m": TaskScores("acc<b>", "none", True, {0: ("", 0.0)}, {"dtype": "<i>|"})})
    verdict = judge(baseline, run, Thresholds(), allow_unlike=True)
    shown = markdown(verdict)
    assert "<script" not in shown and "<b>" not in shown and "<i>" not in shown and "\x1b" not in shown
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1, lines
    assert "\x1b" not in text(verdict)
    names = [case.get("name") for case in ET.fromstring(junit(verdict)).iter("testcase")]  # noqa: S314
    assert names == ["comparable", HOSTILE + "\ufffd[31m"]


# Statistics of the whole gate


def test_the_whole_gate_keeps_its_false_alarm_rate(monkeypatch):
    # What is only shown costs most of the time.
    monkeypatch.setattr(gate, "paired_bootstrap", lambda gaps: (0.0, 0.0))
    monkeypatch.setattr(gate, "minimum_detectable_drop", lambda *arguments: 0.1)
    rng = random.Random(1)
    runs, n, flips = 2000, 40, 0.15

    def snapshot(scores):
        return Snapshot(
            {f"t{k}": TaskScores("acc", "none", True, {i: ("", x) for i, x in enumerate(values)}, {}) for k, values in enumerate(scores)}
        )

    def failures(drop, thresholds):
        failed = 0
        for _ in range(runs):
            before = [[float(rng.random() < 0.5) for _ in range(n)] for _ in range(3)]
            after = [[1 - x if rng.random() < flips else x for x in values] for values in before]
            if drop:
                after[0] = [0.0 if rng.random() < drop else x for x in after[0]]
            failed += judge(snapshot(before), snapshot(after), thresholds).status == 1
        return failed / runs

    noise = 3 * math.sqrt(0.05 * 0.95 / runs)
    assert failures(0, Thresholds()) <= 0.05 + noise
    assert failures(0, Thresholds(direction="both")) <= 0.05 + noise
    assert failures(0.6, Thresholds()) > 0.5, "and it does see something"
