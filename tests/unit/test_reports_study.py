"""Tables of a study."""

import pytest

from t2.reports.errors import ReportError
from t2.reports.study import study_tables


def row(run=None, outcomes="0101000000", **more):
    card = {
        "method": "lora", "objective": "ntp", "parameters": 921600, "samples": 960, "seconds": 100.4, "cpu_seconds": 190.6,
        "peak_memory_bytes": 3 * 2**30, "validation": {"before": 0.2, "after": 0.25},
    }  # fmt: skip
    made = {"run": run, "seed": None if run is None else 1, "task": "arc", "metric": "exact_match", "outcomes": outcomes, "task_hash": "a"}
    return {**made, "documents": len(outcomes.replace("-", "")), **(card if run else {"method": "base"}), **more}


def cells_of(markdown):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_a_study_without_rows_says_so():
    assert study_tables([]) == "No row of this study has been made yet."


DAMAGED = [
    {"outcomes": None}, {"outcomes": "010x000000"}, {"documents": 0, "outcomes": ""}, {"documents": 9}, {"passes": 5},
    {"passes": {"pass1": 1}}, {"validation": {"before": 0.2}}, {"samples": "many"}, {"task": 5}, {"run": 5},
    {"metric": None}, {"search": {"alpha": []}},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_row_is_named(damage):
    with pytest.raises(ReportError, match=r"seed 1, on .*: this row of a study is damaged \(\w+: .*Delete it"):
        study_tables([row(), row("arc-lora") | damage])


@pytest.mark.parametrize("key", ["task", "metric", "outcomes", "documents", "task_hash", "run", "seed", "method"])
def test_a_row_that_lacks_something_is_named(key):
    with pytest.raises(ReportError, match=f"damaged .KeyError: '{key}'"):
        study_tables([{name: value for name, value in row("arc-lora").items() if name != key}])


def test_names_are_shown_as_they_are():
    hostile = [row(), row(method="a|b"), row("<i>|x", method="*y*", objective=None), row("z", method="*y*", objective=None)]
    table = study_tables(hostile, {"arc": "<i>|x"})
    assert len({line.count("|") for line in table.splitlines()[2:]}) == 1 and "<i>" not in table
    assert "| a&#124;b" in table and "| \\*y\\*" in table and "p against &lt;i&gt;&#124;x" in table
    assert "p against \\*y\\*" in study_tables([row(), hostile[2], row(seed=1, run="w")], {"arc": "<i>|x"})


def test_the_table_has_score_interval_normalised_score_and_test():
    better = "1" * 10  # 8 won, none lost: p = 2 / 2^8
    rows = [row(), row("arc-lora", better), row("arc-svf", method="svf", objective="reinforce")]
    lines = study_tables(rows, {"arc": "arc-svf"}).splitlines()
    cells = cells_of("\n".join(lines))
    assert lines[0] == "**arc** (exact_match, 10 documents)"
    assert cells[4][:5] == ["base model", "", "", "20.00 [5.67, 50.98]", "1.00"]
    assert cells[5] == [
        "LoRA, ntp", "1", "921,600", "100.00 [72.25, 100.00]", "5.00", "0.016", "0.0078", "20.0 → 25.0", "960", "100", "191", "3.00",
    ]  # fmt: skip
    assert cells[6][0] == "SVF, reinforce" and cells[6][4:7] == ["1.00", "1", ""]


def test_other_runs_are_tested_against_the_studys_first_with_the_same_seed():
    svf = [row("arc-svf", "1" * 10, method="svf", seed=0), row("arc-svf", "0" * 10, method="svf", seed=1)]
    others = [row("arc-lora", "0000001111", seed=0), row("arc-lora", "0" * 4 + "1" * 6, seed=1), row("arc-lora", seed=2)]
    first = {"arc": "arc-svf"}
    cells = cells_of(study_tables([row(), *svf, *others], first))
    column = cells[2].index("p against SVF")
    assert [line[column] for line in cells[4:]] == ["", "", "", "0.062", "0.062", ""]  # 6 documents each: p = 2 / 2^6, twice by Holm
    several = [row(), row("more", method="svf", seed=1), *svf, *others]  # runs of one method are told apart, and the first is named
    cells = cells_of(study_tables(several, first))
    column = cells[2].index("p against arc-svf")
    assert [line[column] for line in cells[4:]] == ["", "0.5", "", "", "0.094", "0.094", ""]
    assert [line[1] for line in cells[4:7]] == ["", "more", "arc-svf"]
    for of in ({"arc": "not-made"}, {"other": "arc-svf"}, None):
        assert not any(name.startswith("p against") and name != "p against base" for name in cells_of(study_tables(several, of))[2])


def test_runs_of_one_method_are_told_apart_where_their_seeds_differ_and_the_paper_has_figures_for_the_first_alone():
    svf = {"method": "svf", "objective": "reinforce", "task": "gsm8k_answer"}
    cells = cells_of(study_tables([row(task="gsm8k_answer"), row("math", **svf), row("math-mlp", **{**svf, "seed": 0})]))
    run, paper = cells[2].index("Run"), cells[2].index("† paper")
    assert [(line[run], line[paper]) for line in cells[4:]] == [("", "75.89 (1.00)"), ("math", "79.15 (1.04)"), ("math-mlp", "")]


def test_a_base_score_of_zero_has_no_normalised_scores():
    table = study_tables([row(outcomes="0000"), row("arc-lora", "0001")])
    assert "n/a" in table


def test_rows_that_cannot_be_compared_are_refused():
    with pytest.raises(ReportError, match="arc-lora, seed 1: scored on other documents"):
        study_tables([row(), row("arc-lora", "01")])
    with pytest.raises(ReportError, match="other documents"):
        study_tables([row(), row("arc-lora", task_hash="b")])


def test_a_task_without_its_base_row_keeps_no_other_from_its_table():
    tables = study_tables([row("arc-lora", task="first"), row("arc-svf", task="first"), row(), row("arc-lora")])
    assert tables.startswith(
        "**first**: there is no row of the base model yet, which the scores of 2 others are compared with.\n\n**arc** ("
    )
    assert len(tables.splitlines()) == 8


def test_configurations_of_one_method_are_told_apart():
    cells = cells_of(study_tables([row(), row("arc-lora"), row("mine.yaml")]))
    assert cells[2][:3] == ["Method", "Run", "Seed"] and [line[1] for line in cells[4:]] == ["", "arc-lora", "mine.yaml"]


def test_rows_of_several_versions_of_the_task_are_told():
    note = "Scored by several versions of the task, in the order of the rows: "
    assert study_tables([row(task_version=1.1), row("a", task_version=1.2)]).endswith(f"\n\n{note}1.1, 1.2.")
    assert study_tables([row(), row("a", task_version=1.2)]).endswith(f"{note}not kept, 1.2.")
    assert note not in study_tables([row(task_version=1.1), row("a", task_version=1.1)]) + study_tables([row(), row("a")])


def test_a_table_of_strategies_has_seconds_of_both_passes_and_no_columns_of_training():
    passes = {"pass1": {"seconds": 2.0}, "pass2": {"seconds": 8.0}}
    table = study_tables([row(passes={"pass1": {"seconds": 0.0}, "pass2": {"seconds": 7.0}}), row(method="score", passes=passes)])
    cells = cells_of(table)
    assert cells[2] == ["Method", "Test, % [95%]", "Normalised", "p against base", "Pass 1, s", "Pass 2, s", "Pass 1 / pass 2"]
    assert [line[0] for line in cells[4:]] == ["base model", "score"]
    assert cells[4][-3:] == ["", "7.0", ""] and cells[5][-3:] == ["2.0", "8.0", "0.250"]


def test_documents_that_a_search_has_seen_are_left_out_of_its_comparison_on_both_sides():
    search = {"alpha": {"math": 0.5, "code": [0.1, 0.2]}, "configuration": {"shots": 2, "iterations": 10}, "cost": {"seconds": 61.4}}
    few = row(method="fewshot", outcomes="-111000000", task_hash="of those 9", search=search)
    cells = cells_of(study_tables([row(outcomes="1100000000"), few]))
    header, line = cells[2], cells[5]
    found = dict(zip(header, line, strict=True))
    # 3 of 9 right; the base has 1 of those 9; 2 won, none lost: p = 2 / 2^2
    assert found["Test, % [95%]"].startswith("33.33 [") and found["Normalised"] == "3.00" and found["p against base"] == "0.5"
    assert (found["Parameters"], found["Samples"], found["Seconds"]) == ("3", "2", "61")


def test_the_papers_figures_stand_beside_what_they_are_figures_of():
    def few(shots, iterations):
        return {"search": {"alpha": {}, "configuration": {"shots": shots, "iterations": iterations}, "cost": {"seconds": 1}}}

    def asks(label, **settings):
        return row(method=label, strategy=label, settings=settings)

    rows = [row(), row("r-svf", method="svf", objective="reinforce"), row("r-svf", method="svf", objective="ntp"), row("r-lora"),
            asks("as in the paper", strategy="prompt", model_args={"dispatch": "generate"}), asks("prompt", strategy="prompt"),
            asks("c", strategy="cls"), row(method="f", **few(10, 100)), row(method="f", **few(3, 10)),
            row(method="f", **few(3, 100))]  # fmt: skip
    table = study_tables([{**r, "task": "arc_challenge_text"} for r in rows])
    cells = cells_of(table)
    assert "† the paper's figures: Llama3-8B-Instruct on ARC-Challenge" in table.splitlines()[0]
    column = cells[2].index("† paper")
    assert [line[column] for line in cells[4:]] == [
        "80.63 (1.00)", "", "", "81.06 (1.01)", "81.74 (1.01)", "", "81.37 (1.01)", "82.61 (1.02)", "82.08 (1.02)", "82.18 (1.02)",
    ]  # fmt: skip
    seen = cells_of(study_tables([{**r, "task": "arc_easy_text"} for r in rows[:3]]))
    assert [line[seen[2].index("† paper")] for line in seen[4:]] == ["88.59 (1.00)", "89.56 (1.01)", ""]
