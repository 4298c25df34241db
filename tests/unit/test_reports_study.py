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
    return {**made, "documents": len(outcomes), **(card if run else {"method": "base"}), **more}


def test_the_table_has_score_interval_normalised_score_and_test():
    better = "1" * 10  # 8 won, none lost: p = 2 / 2^8
    lines = study_tables([row(), row("arc-lora", better), row("arc-svf", method="svf", objective="reinforce")]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert lines[0] == "**arc** (exact_match, 10 documents)"
    assert cells[4][:5] == ["base model", "", "", "20.00 [5.67, 50.98]", "1.00"]
    assert cells[5] == [
        "LoRA, ntp", "1", "921,600", "100.00 [72.25, 100.00]", "5.00", "0.016", "20.0 → 25.0", "960", "100", "191", "3.00",
    ]  # fmt: skip
    assert cells[6][0] == "SVF, reinforce" and cells[6][4:6] == ["1.00", "1"]


def test_a_base_score_of_zero_has_no_normalised_scores():
    table = study_tables([row(outcomes="0000"), row("arc-lora", "0001")])
    assert "n/a" in table


def test_rows_that_cannot_be_compared_are_refused():
    with pytest.raises(ReportError, match="no row of the base model"):
        study_tables([row("arc-lora")])
    with pytest.raises(ReportError, match="arc-lora, seed 1: scored on other documents"):
        study_tables([row(), row("arc-lora", "01")])
    with pytest.raises(ReportError, match="other documents"):
        study_tables([row(), row("arc-lora", task_hash="b")])
