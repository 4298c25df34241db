"""The report from result files that the tests write in lm-eval 0.4.13's format."""

import copy
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from t2.reports import load
from t2.reports.blocks import DASH
from t2.reports.cli import Options, collect, main, report
from t2.reports.errors import ReportError
from t2.reports.files import Found
from t2.reports.metrics import parse_choices
from t2.reports.regress.collect import collect as gated

from ..result_files import acc, cost, paper_like, result, share, t2_section, write, write_logged


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def section(text, title):
    body = text.split(f"## {title}\n", 1)[1]
    return body.split("\n## ", 1)[0]


def line(text, label, title="Leaderboard"):
    rows = [row for row in section(text, title).splitlines() if row.startswith("|")]
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.split("|")[1].strip().startswith(label)]
    assert len(found) == 1, f"{label!r} in {rows}"
    return found[0]


def test_golden(here):
    text = report(paper_like())
    golden = Path(__file__).with_name("test_reports_golden.md")
    if os.environ.get("T2_UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_leaderboard_of_paper_like_runs(here):
    text = report(paper_like())
    assert line(text, "hf Small (base)")[1:] == [
        "10.00 ± 2.13 [6.57, 14.94] (1.00)", "80.0", "10.00 ± 6.88 [2.79, 30.10] (1.00)", "10.00", "1.00",
    ]  # fmt: skip
    t2 = line(text, "t2 prompt (score)")
    assert t2[1].startswith("**45.00** ± ") and t2[1].endswith("(4.50)"), "a paired test tells it from the others, so bold"
    assert "**" not in t2[3], "3 of 20 against 2 of 20 proves nothing"
    assert t2[2] == "99.0"
    assert t2[-1] == "3.00", "mean of 4.5 and 1.5"
    assert "hf Small + lora_math" in text, "underscores inside words need no escape"


def test_two_pass_table_sums_groups(here):
    text = section(report(paper_like()), "Time of the two passes")
    rows = [[c.strip() for c in r.strip("|").split("|")] for r in text.splitlines() if r.startswith("| t2")]
    assert rows[0][1:] == ["math", "math 85%, base 15%", "2.50", "20.00", "12.5%", "200 + 200", "10,000 + 13,000", "4,000", "200.0", "2"]
    assert rows[1][1:6] == ["humaneval", "code 100%", "0.50", "5.00", "10.0%"]


def test_subtasks_are_collapsed_and_not_on_the_board(here):
    text = report(paper_like())
    assert "math_algebra" not in section(text, "Leaderboard")
    body = text.split("<summary>Subtasks of groups</summary>")[1].split("</details>")[0]
    algebra = next(row.split("|") for row in body.splitlines() if row.startswith("| math_algebra"))
    assert [cell.strip() for cell in algebra[2:4]] == ["math_verify, %, n = 100", "15.00 ± 3.59 [9.31, 23.28] (1.00)"]
    assert algebra[5].strip().startswith("**50.00** ± 5.03")


def test_same_input_same_bytes(here):
    paths = paper_like()
    assert report(paths) == report(paths)


# --- which metric


@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        (["acc,none", "acc_norm,none"], "acc_norm"),
        (["exact_match,strict-match", "exact_match,flexible-extract"], "exact_match / flexible-extract"),
        (["exact_match,none", "math_verify,none", "extracted,none"], "math_verify"),
        (["extracted,none", "pass_at_1,none"], "pass_at_1"),
        (["my_metric,none", "other,none"], "my_metric"),
    ],
)
def test_primary_metric(here, metrics, chosen):
    path = write("results_1.json", result({"task": {metric: share(1 + i, 10) for i, metric in enumerate(metrics)}}))
    heading = section(report([path]), "Leaderboard").split("|")[2].strip()
    assert heading.startswith(f"task ({chosen}") and heading.endswith("n = 10)")


def test_metric_is_one_that_all_rows_have(here):
    a = write("a/results_1.json", result({"arc": {"acc,none": share(5, 10), "acc_norm,none": share(9, 10)}}, args={"pretrained": "a"}))
    b = write("b/results_1.json", result({"arc": {"acc,none": share(6, 10)}}, args={"pretrained": "b"}))
    text = report([a, b])
    assert line(text, "hf a")[1].startswith("50.00")
    assert line(text, "hf b")[1].startswith("60.00")


def test_metric_option(here):
    path = write("results_1.json", result({"arc": {"acc,none": share(5, 10), "acc_norm,none": share(9, 10)}}))
    assert line(report([path], metrics=["arc=acc"]), "hf")[1].startswith("50.00")
    with pytest.raises(ReportError, match=r"Did you mean 'acc,none'|Known: .*acc_norm,none"):
        report([path], metrics=["arc=akk"])
    with pytest.raises(ReportError, match="Did you mean 'arc'"):
        report([path], metrics=["arcs=acc"])
    with pytest.raises(ReportError, match="TASK=METRIC"):
        report([path], metrics=["arc"])


def test_filters_without_a_rank_are_taken_in_the_files_order(here):
    names = [f"maj@{n}" for n in range(8)]
    for first in names:
        order = [first, *(name for name in names if name != first)]
        path = write("results_1.json", result({"task": {f"acc,{name}": share(5, 10) for name in order}}))
        (run,), _ = load.load_all([Found(Path(path), named=True)])
        assert parse_choices(["task=acc"], {"task": [run.tasks["task"]]}) == {"task": ("acc", first)}


def test_a_metric_alone_means_the_same_filter_to_the_report_and_to_the_gate(here):
    metrics = ["math_verify,none", "exact_match,strict-match", "exact_match,flexible-extract"]
    path = write_logged("results_1.json", result({"task": {metric: share(5, 10) for metric in metrics}}))
    heading = section(report([path], metrics=["task=exact_match"]), "Leaderboard").split("|")[2].strip()
    assert heading.startswith("task (exact_match / flexible-extract")
    assert gated([path], lambda task: "exact_match").tasks["task"].filter == "flexible-extract"


@pytest.mark.parametrize("told", [{"wiki": {"word_perplexity": False}}, {}], ids=["told", "by name"])
def test_lower_is_better_is_neither_percent_nor_normalised(here, told):
    paths = []
    for name, value in (("a", 20.0), ("b", 10.0)):
        data = result({"wiki": {"word_perplexity,none": {"value": value, "stderr": 0.1, "n": 50}}}, args={"pretrained": "m", "x": name})
        data["higher_is_better"] = told
        paths.append(write(f"{name}/results_1.json", data))
    text = report(paths, names=[f"{paths[0]}=first", f"{paths[1]}=second"])
    assert "word_perplexity ↓" in text
    assert line(text, "first")[1] == "20 ± 0.1 [19.8, 20.2]"
    assert line(text, "second")[1] == "10 ± 0.1 [9.804, 10.2]"


def test_a_share_by_name_that_is_in_percent_already_is_shown_as_it_is(here):
    tasks = {"squad": {"f1,none": {"value": 50.12, "stderr": 0.1, "n": 50}}} | acc(40)
    text = report([write("results_1.json", result(tasks, args={"pretrained": "m"}))])
    assert line(text, "hf m")[1].startswith("50.12 ± 0.1") and "squad (f1, n = 50)" in text
    assert line(text, "hf m")[-1].startswith("40.00 ")


def test_what_is_lower_is_better_by_name_is_lm_evals_list():
    registry = pytest.importorskip("lm_eval.api.registry")
    pytest.importorskip("lm_eval.api.metrics")
    known = registry.HIGHER_IS_BETTER_REGISTRY
    assert {name for name in known if registry.is_higher_better(name) is False} == load._LOWER_IS_BETTER


# --- the base row


def test_strategy_base_wins_over_hf_and_fingerprints_keep_models_apart(here):
    hf = write("hf/results_1.json", result(acc(20), args={"pretrained": "/cache/Small"}))
    t2base = write("t2b/results_1.json", result(acc(25), model="t2", t2=t2_section("base")))
    t2 = write("t2p/results_1.json", result(acc(50), model="t2", t2=t2_section()))
    other = write("t2q/results_1.json", result(acc(50), model="t2", args={"pretrained": "big"}, t2=t2_section(base="0ther")))
    text = report([hf, t2base, t2, other])
    assert line(text, "t2 base (base)")[1].endswith("(1.00)")
    rows = [r for r in section(text, "Leaderboard").splitlines() if r.startswith("| t2 prompt (score)  ")]
    assert len(rows) == 1 and "(2.00)" in rows[0]
    assert not line(text, "t2 prompt (score) big")[1].endswith(")")
    assert "no base row of the same model is beside them: t2 prompt (score) big" in text


def test_default_model_of_t2_is_matched_by_its_number_of_parameters(here):
    hf = write("hf/results_1.json", result(acc(20), args={"pretrained": "/cache/Small"}))
    bigger = write("big/results_1.json", result(acc(80), args={"pretrained": "/cache/Big"}, model_num_parameters=7))
    t2 = write("t2/results_1.json", result(acc(50), model="t2", t2=t2_section()))
    assert line(report([bigger, hf, t2]), "t2")[1].endswith("(2.50)")


def test_adapter_is_no_base(here):
    lora = write("l/results_1.json", result(acc(20), args={"pretrained": "m", "peft": "p"}))
    text = report([lora])
    assert "Nothing is normalised" in text
    assert line(text, "hf m + p")[1] == "20.00 ± 4.02 [13.34, 28.88]"


@pytest.mark.parametrize("model", ["hf", "t2"])
def test_a_t2_run_with_an_adapter_is_no_base(here, model):
    t2 = t2_section("base") if model == "t2" else None
    base = write("a/results_1.json", result(acc(20), model=model, args={"pretrained": "org/m"}, t2=t2))
    args = {"pretrained": "org/m", "strategy": "base", "peft": "out/lora"}
    lora = write("b/results_1.json", result(acc(50), model="t2", args=args, t2=t2_section("base", base="of the adapted weights")))
    assert line(report([base, lora]), "t2 base m + lora")[1].endswith("(2.50)")


def test_base_option(here):
    a = write("a/results_1.json", result(acc(20), model="gpt-like", args={"model": "one"}))
    b = write("b/results_1.json", result(acc(10), model="gpt-like", args={"model": "two"}))
    assert line(report([a, b], base="TWO"), "gpt-like one")[1].endswith("(2.00)")
    assert "Nothing is normalised" in report([a, b])
    with pytest.raises(ReportError, match="several rows: gpt-like one; gpt-like two"):
        report([a, b], base="gpt")
    with pytest.raises(ReportError, match="Did you mean 'gpt-like two'"):
        report([a, b], base="gpt-like twoo")
    with pytest.raises(ReportError, match="no row has this label"):
        report([a, b], base="")


def test_zero_base_gives_no_ratio_and_says_so(here):
    base = write("a/results_1.json", result(acc(0), args={"pretrained": "m"}))
    lora = write("b/results_1.json", result(acc(10), args={"pretrained": "m", "peft": "p"}))
    text = report([base, lora])
    assert "arc is not normalised: the base row hf m scores 0 or less there." in text
    assert line(text, "hf m + p")[1] == "10.00 ± 3.02 [5.52, 17.44] (n/a)"
    assert "inf" not in section(text, "Leaderboard").lower()


def test_a_base_on_other_documents_gives_no_ratio(here):
    base = write("a/results_1.json", result(acc(20, 100), args={"pretrained": "m"}))
    lora = write("b/results_1.json", result(acc(3, 10), args={"pretrained": "m", "peft": "p"}, limit=10.0))
    text = report([base, lora])
    assert not line(text, "hf m + p")[1].endswith(")")
    assert "not comparable with hf m: documents scored: 100 (hf m); 10 (hf m + p)" in text


# --- rows that cannot be compared


def change(data, path, value):
    *above, last = path
    for key in above:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["n-shot", "arc"], 5, "arc: few-shot examples: 0 (hf a); 5 (hf b)"),
        (["versions", "arc"], 2.0, "arc: task version: 1 (hf a); 2 (hf b)"),
        (["configs", "arc", "doc_to_text"], "Q: {{q}}", "definition differs in doc_to_text"),
        (["configs", "arc", "generation_kwargs"], {"until": ["x"]}, "definition differs in generation_kwargs"),
        (["chat_template"], "{{ messages }}", "chat template: no (hf a); yes (hf b)"),
        (["system_instruction"], "Be good", "system instruction: no (hf a); yes (hf b)"),
        (["config", "gen_kwargs"], "temperature=1", "gen_kwargs: "),
    ],
)
def test_unlike_rows_are_said_and_never_ranked(here, path, value, said):
    a = result(acc(10), args={"pretrained": "a"})
    b = result(acc(90), args={"pretrained": "b"})
    plain = [write_logged("a/results_1.json", a), write_logged("b/results_1.json", b)]
    before = report(plain)
    assert "[!WARNING]" not in before and "**90.00**" in before
    change(b, path, value)
    after = report([plain[0], write("b/results_1.json", b)])
    assert "[!WARNING]" in after and said in after
    assert "**90.00**" not in after


def test_task_hashes_show_other_prompts(here):
    paths = []
    for name in "ab":
        data = result(acc(10), args={"pretrained": name})
        data["task_hashes"]["arc"] = name * 64
        paths.append(write(f"{name}/results_1.json", data))
    assert "arc: the prompts that were sent differ" in report(paths)


def test_process_sandbox_is_loud_even_alone(here):
    path = write("results_1.json", result({"humaneval": {"pass@1,none": share(1, 4)}}, model="t2", t2=t2_section(sandbox="process")))
    text = report([path])
    assert "[!WARNING]" in text and "could be forged" in text


def test_versions_and_dtype_are_a_softer_note(here):
    a = write("a/results_1.json", result(acc(10), args={"pretrained": "a"}, model_dtype="torch.bfloat16"))
    b = write("b/results_1.json", result(acc(90), args={"pretrained": "b"}, model_dtype="torch.float32"))
    text = report([a, b])
    assert "[!WARNING]" not in text and "> [!NOTE]" in text
    assert "dtype: bfloat16 (hf a); float32 (hf b)" in text


@pytest.mark.parametrize("told", ["GPU 0: NVIDIA H200", "\nGPU 0: NVIDIA H200\nGPU 1: NVIDIA H200\n"], ids=["one", "two"])
def test_the_gpu_is_named(here, told):
    """PyTorch's collect_env puts one GPU in the line of its heading, several in lines of their own."""
    data = result(acc(10))
    write("a.json", {**data, "pretty_env_info": data["pretty_env_info"].replace("Could not collect", told)})
    assert "GPU NVIDIA H200" in report(["a.json"])


# --- folders, several files, labels


def test_files_of_one_configuration_make_one_row(here):
    write("r/x/results_1.json", result(acc(10), args={"pretrained": "m"}))
    write("r/x/results_2.json", result({"gsm8k": {"exact_match,none": share(30, 100)}}, args={"pretrained": "m"}, device="cuda:0"))
    row = line(report(["r"]), "hf m")
    assert [cell.split(" ")[0] for cell in row[1:4]] == ["10.00", "30.00", "20.00"]


def test_newest_of_a_folder_counts_and_that_is_said(here):
    write("r/x/results_1.json", result(acc(10), args={"pretrained": "m"}, date=100.0))
    write("r/x/results_2.json", result(acc(40), args={"pretrained": "m"}, date=200.0))
    text = report(["r"])
    assert line(text, "hf m")[1].startswith("40.00")
    assert "older result for arc; r/x/results_2.json counts" in text.replace("\\_", "_")


def test_a_later_smoke_run_does_not_hide_the_full_run(here):
    write("r/x/results_1.json", result(acc(10), args={"pretrained": "m"}, date=100.0))
    smoke = result(acc(4, 4), args={"pretrained": "m"}, date=200.0)  # as --samples does: limit stays None
    write("r/x/results_2.json", smoke)
    text = report(["r"])
    assert line(text, "hf m, documents=100")[1].startswith("10.00")
    assert "100.00 ± 0.00 [51.01, 100.00]" in text


@pytest.mark.parametrize(("hashes", "count"), [(("a", "b"), 2), (("a", "a"), 1), (("a", None), 1), ((None, None), 1)])
def test_a_run_on_as_many_other_documents_gets_a_row_of_its_own(here, hashes, count):
    for i, each in enumerate(hashes):
        data = result(acc(10 + i), args={"pretrained": "m"}, date=i + 1.0, batch_size=i + 1)
        write(f"r/results_{i}.json", data | {"task_hashes": {"arc": each * 64} if each else {}})
    rows = [row for row in section(report(["r"]), "Leaderboard").splitlines() if row.startswith("| hf m")]
    assert len(rows) == count


def test_named_repeats_are_all_shown(here):
    paths = [write(f"{i}/results_1.json", result(acc(10 + i), args={"pretrained": "m"}, date=float(i + 1))) for i in range(3)]
    text = report(paths)
    rows = [row.split("|")[2].strip()[:5] for row in section(text, "Leaderboard").splitlines() if row.startswith("| hf m")]
    assert rows == ["10.00", "11.00", "12.00"]
    assert "hf m #2" in text and "hf m #3" in text


def test_the_same_file_and_copies_count_once(here):
    path = write("a/results_1.json", result(acc(10), args={"pretrained": "m"}))
    copied = write("b/results_1.json", result(acc(10), args={"pretrained": "m"}))
    text = report([path, "a", "./a/../a/results_1.json", copied])
    assert sum(r.startswith("| hf m") for r in section(text, "Leaderboard").splitlines()) == 1
    assert "is a copy of" in text


def test_alike_labels_are_told_apart_by_what_differs(here):
    a = write("a/results_1.json", result(acc(10), args={"pretrained": "m", "dtype": "float32"}))
    b = write("b/results_1.json", result(acc(10), args={"pretrained": "m", "dtype": "bfloat16"}, date=5.0))
    text = report([a, b])
    assert "hf m, dtype=float32" in text and "hf m, dtype=bfloat16" in text


@pytest.mark.parametrize(
    ("setting", "values", "shown", "told"),
    [
        ("calibrate", (True, False), ("yes", "no"), "calibrate True, base"),
        ("probe", ("ab" * 32, None), ("abababab", "none"), "probe abababababababab, base"),
    ],
)
def test_dispatch_settings_of_t2_make_rows(here, setting, values, shown, told):
    for value in values:
        write(f"r/{value}/results_1.json", result(acc(10), model="t2", t2=t2_section(**{setting: value})))
    text = report(["r"])
    assert all(line(text, f"t2 prompt (score), {setting}={each}") for each in shown)
    assert text.count(told) == 1


def test_names(here):
    a = write("run=1/a/results_1.json", result(acc(10), args={"pretrained": "m"}))
    b = write("run=1/b/results_1.json", result(acc(20), args={"pretrained": "n"}))
    text = report(["run=1"], names=[f"{a}=\u03b1=0.5 | first", "run=1/b=second"])
    assert line(text, "\u03b1=0.5 &#124; first")[1].startswith("10.00")
    assert line(text, "second")[1].startswith("20.00")
    with pytest.raises(ReportError, match="differ in model, pretrained"):
        report(["run=1"], names=[f"{a}=same", f"{b}=same"])
    with pytest.raises(ReportError, match="PATH=LABEL"):
        report([a], names=["nowhere=x"])
    with pytest.raises(ReportError, match="label is empty"):
        report([a], names=[f"{a}="])
    with pytest.raises(ReportError, match="no run given has this path"):
        report([a], names=[f"{b}=x"])


def test_a_label_of_the_users_is_no_other_rows_too(here):
    a = write("a/results_1.json", result(acc(10), args={"pretrained": "m"}))
    b = write("b/results_1.json", result(acc(20), args={"pretrained": "n"}))
    content = collect([a, b], Options(names=[f"{a}=hf n"]))
    assert [row.label for row in content.board.rows] == ["hf n", "hf n #2"]


def test_tasks_missing_in_some_runs(here):
    a = write("a/results_1.json", result(acc(10) | {"gsm8k": {"exact_match,none": share(30, 100)}}, args={"pretrained": "a"}))
    b = write("b/results_1.json", result(acc(20), args={"pretrained": "b"}))
    assert line(report([a, b]), "hf b")[2:] == [DASH, "20.00 (1 of 2 tasks)"]


def test_a_group_without_a_score_leaves_its_tasks_on_the_board(here):
    path = write("results_1.json", result(acc(10), groups={"suite": (["arc"], {})}))
    assert "arc (acc" in section(report([path]), "Leaderboard")


def test_a_group_that_holds_itself_does_not_hang(here):
    scores = {"acc,none": share(1, 2)}
    path = write("results_1.json", result(acc(10), groups={"g": (["h"], scores), "h": (["g", "arc"], scores)}))
    assert report([path]).startswith("# Evaluation report")


def test_old_format_without_filters_and_counts(here):
    config = {"model": "hf-causal", "model_args": "pretrained=m"}
    old = {"results": {"arc": {"acc": 0.5, "acc_stderr": 0.05}}, "versions": {"arc": 0}, "config": config}
    text = report([write("results_1.json", old)])
    assert line(text, "hf-causal m")[1] == "50.00 ± 5.00 [40.20, 59.80]"


def test_nan_scores(here):
    base = result(acc(50), args={"pretrained": "m"})
    lora = result(acc(50), args={"pretrained": "m", "peft": "p"})
    lora["results"]["arc"]["acc,none"] = math.nan
    paths = [write("a/results_1.json", base), write("b/results_1.json", lora)]
    text = report(paths)
    assert line(text, "hf m + p")[1] == "not a number"
    assert "the score of arc is not a number in b/results_1.json" in text.replace("\\_", "_")
    base["results"]["arc"]["acc,none"] = math.nan
    lora["results"]["arc"]["acc,none"] = 0.5
    text = report([write("a/results_1.json", base), write("b/results_1.json", lora)])
    assert "the base row hf m has no score there" in text
    assert not line(text, "hf m + p")[1].endswith(")")


# --- bad input


GOOD = result(acc(100), model="t2", t2=t2_section(passes={"arc": {"pass1": cost(1), "pass2": cost(2), "chosen": {"math": 3}}}))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("results_1.json", "", "file is empty"),
        ("results_1.json", "hello", "not JSON"),
        ("results_1.json", "[1]", "a JSON list"),
        ("results_1.json", "{}", "without `results`"),
        ("results_1.json", '{"results": null}', "without `results`"),
        ("results_1.json", '{"results": {}}', "holds no score"),
        ("results_1.json", '{"results": {"arc": {"alias": "arc"}}}', "holds no score"),
        ("results_1.json", '{"results": {"arc": {"bypass,none": 999}}}', "--predict_only"),
        ("results_1.json", "[" * 100_000, "JSON"),
        ("samples_arc.jsonl", '{"doc_id": 0}\n{"doc_id": 1}\n', "logged samples"),
        ("samples_arc.jsonl", '{"doc_id": 0}', "logged samples"),
    ],
)
def test_bad_files_are_named_with_the_cure(here, name, content, said):
    path = write(name, content)
    with pytest.raises(ReportError, match=said) as error:
        report([path])
    assert name in str(error.value)


def test_bytes_that_are_no_text(here):
    Path("results_1.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ReportError, match=r"results_1\.json: not JSON"):
        report(["."])


def test_every_cut_of_a_file_is_an_error_that_names_it(here):
    whole = json.dumps(GOOD, indent=1)
    for length in range(1, len(whole) - 1, 97):
        path = write("results_1.json", whole[:length])
        with pytest.raises(ReportError, match=r"results_1\.json: JSON cut short .* run that evaluation again"):
            report([path])


def test_paths_that_hold_nothing(here):
    Path("empty").mkdir()
    with pytest.raises(ReportError, match="no lm-eval result file in this folder"):
        report(["empty"])
    write("empty/m/samples_arc_2026.jsonl", "{}")
    with pytest.raises(ReportError, match="holds samples_"):
        report(["empty"])
    with pytest.raises(ReportError, match="no such file"):
        report(["nowhere"])
    with pytest.raises(ReportError, match="No runs given"):
        report([])


def test_a_search_passes_by_other_files(here):
    write("r/x_2026-01-01T00-00-00.5.json", result(acc(10)))  # as `--output_path r/x.json` writes
    write("r/other_2026-01-01T00-00-00.json", {"some": "thing"})
    write("r/config.json", "{broken")
    write("r/results_0.json", {"results": {"arc": {"bypass,none": 999}}})
    text = report(["r"])
    assert line(text, "hf")[1].startswith("10.00")
    assert "it was made with --predict_only, which scores nothing. Left out." in text.replace("\\_", "_")


def test_a_search_goes_through_links_to_each_folder_once(here):
    write("r/near/results_1.json", result(acc(10), args={"pretrained": "m"}))
    write("far/results_1.json", result(acc(20), args={"pretrained": "n"}))
    write("far/curve.jsonl", '{"event": "validation", "step": 0, "accuracy": 0.1}\n')
    for name, target in (("link", "../far"), ("again", "../far"), ("loop", ".")):
        Path("r", name).symlink_to(target)
    content = collect(["r"], Options())
    assert [row.label for row in content.board.rows] == ["hf n", "hf m"]
    assert list(content.curves) == ["r/again"] and not content.notes


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["t2"], [1], "not an object"),
        (["t2", "schema"], 2, "Upgrade t2"),
        (["t2", "passes"], [], "`t2.passes` should be an object"),
        (["t2", "passes", "arc"], 3, "`t2.passes.arc` should be an object"),
        (["t2", "passes", "arc", "pass1", "seconds"], -1, "`t2.passes.arc.pass1.seconds` should be a number ≥ 0"),
        (["t2", "passes", "arc", "pass2", "tokens_in"], "many", "`t2.passes.arc.pass2.tokens_in`"),
        (["t2", "passes", "arc", "pass2", "seconds"], math.nan, "should be a number"),
        (["t2", "passes", "arc", "chosen"], {"math": None}, "`t2.passes.arc.chosen.math`"),
    ],
)
def test_malformed_t2_section(here, path, value, said):
    data = copy.deepcopy(GOOD)
    change(data, path, value)
    with pytest.raises(ReportError, match=said):
        report([write("results_1.json", data)])


def nodes(data, path=()):
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from nodes(value, (*path, key))


def test_any_wrong_value_anywhere_is_survived_or_a_clear_error(here):
    """Every node of a result file replaced by every kind of JSON value: a report, or a ReportError that names the file."""
    other = write("other/results_1.json", result(acc(10), args={"pretrained": "m"}))
    reports = errors = 0
    for path in list(nodes(GOOD))[1:]:
        for value in (None, -1, 1e300, 1e400, 10**400, math.nan, "x", [], {"x": {"y": 1}}):
            data = copy.deepcopy(GOOD)
            change(data, path, value)
            file = write("results_1.json", data)
            try:
                text = report([file, other])
            except ReportError as error:
                assert "results_1.json" in str(error), (path, value)
                errors += 1
            else:
                table = [row.split("|", 2)[2] for row in section(text, "Leaderboard").splitlines() if row.startswith("|")]
                assert not re.search(r"\b(nan|inf)\b", " ".join(table)), (path, value)
                reports += 1
    assert reports > 300 and errors > 30


# --- the command


def test_output_is_written_whole_and_replaces_the_old(here, capsys):
    path = write("results_1.json", result(acc(10)))
    Path("out.md").write_text("# Evaluation report\n\nold")
    Path("link.md").symlink_to("out.md")
    assert main([path, "--output", "link.md"]) == 0
    assert Path("link.md").is_symlink()
    assert Path("out.md").read_text(encoding="utf-8") == report([path])
    assert main([path, "-o", "new/dir/"]) == 0
    assert Path("new/dir/report.md").exists()
    assert capsys.readouterr().out == ""
    assert main([path]) == 0
    assert capsys.readouterr().out == report([path])
    assert not list(here.rglob("*.tmp"))


def test_output_that_cannot_be_written(here):
    path = write("results_1.json", result(acc(10)))
    Path("file").write_text("x")
    with pytest.raises(ReportError, match="cannot be written"):
        main([path, "--output", "file/report.md"])
    assert Path("file").read_text() == "x"
    Path("loop").symlink_to("loop")
    with pytest.raises(ReportError, match=r"loop/report\.md: cannot be written"):
        main([path, "--output", "loop/report.md"])


def test_a_failed_report_leaves_the_old_one(here):
    Path("out.md").write_text("old")
    with pytest.raises(ReportError):
        main([write("results_1.json", "{"), "--output", "out.md"])
    assert Path("out.md").read_text() == "old"


def test_import_is_light():
    code = "import sys, t2.reports.cli; print([m for m in ('torch', 'lm_eval', 'transformers', 'numpy') if m in sys.modules], end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]"
    code = "import sys, t2.reports.cli; print(sorted({m.split('.')[1] for m in sys.modules if m.startswith('t2.')}), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout in ("['reports']", "['harness', 'reports']"), "the start-up hook may be loaded, nothing else of ours"


def test_t2_on_vllm_is_a_row_of_its_own_wherever_it_was_computed(here):
    for name, model, args in (("a", "t2", {}), ("b", "t2-vllm", {"tensor_parallel_size": 2})):
        write(f"r/{name}/results_1.json", result(acc(10), model=model, args={"pretrained": "m", **args}, t2=t2_section()))
    text = report(["r/a", "r/b"])
    assert line(text, "t2 prompt (score) m") and line(text, "t2-vllm prompt (score) m")
    assert "tensor_parallel_size=" not in section(text, "Leaderboard")


def searched(task, alpha, right, folder="mixtures", shots=10, date=1.0):
    """A run by a mixture file, as `t2 eval --strategy fewshot` makes one of each task."""
    mixture = {"sha256": task, "task": task, "alpha": alpha, "shots": shots}
    strategy = "mix:" + "+".join(f"{name}={value}" for name, value in alpha.items()) if alpha else "base"
    args = {"mixture": f"{folder}/{task}.json"}
    data = result({task: {"acc,none": share(right, 100)}}, model="t2", args=args, t2=t2_section(strategy, mixture=mixture), date=date)
    return write(f"{folder}-{shots}-{task}/results_1.json", data)


def test_a_few_shot_search_is_one_method_over_its_tasks(here):
    files = [searched("arc", {"math": 0.5}, 20), searched("gsm8k", {}, 30), searched("arc", {"math": 0.1}, 25, folder="again")]
    content = collect(files, Options())
    assert [row.label for row in content.board.rows] == ["t2 fewshot (10 shots), mixture=mixtures", "t2 fewshot (10 shots), mixture=again"]
    assert [[cell and cell.score.value for cell in column.cells] for column in content.board.columns] == [[0.2, 0.25], [0.3, None]]
    assert content.board.average(0) == (0.25, 2) and content.board.bases == [None, None]  # a search that keeps the base is no base row
    named = collect(files, Options(names=["mixtures-10-arc=C", "mixtures-10-gsm8k=C"]))
    assert [row.label for row in named.board.rows] == ["C", "t2 fewshot (10 shots)"]
    with pytest.raises(ReportError, match="differ in mixture"):
        collect(files, Options(names=[f"{path}=C" for path in files]))


def test_files_of_one_configuration_in_two_dtypes_are_two_rows(here):
    half = write("a/results_1.json", result(acc(10), model="t2", t2=t2_section(), model_dtype="torch.bfloat16"))
    other = {"gsm8k": {"acc,none": share(20, 100)}}
    single = write("b/results_1.json", result(other, model="t2", t2=t2_section(), model_dtype="torch.float32"))
    rows = collect([half, single], Options()).board.rows
    assert [row.label for row in rows] == ["t2 prompt (score), dtype=bfloat16", "t2 prompt (score), dtype=float32"]
