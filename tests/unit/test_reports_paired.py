"""Comparisons on the same documents, from logged samples."""

import json
import math
import re
from pathlib import Path

import pytest
from scipy.stats import binomtest

from t2.reports.blocks import DASH
from t2.reports.cli import Options, collect, report
from t2.reports.paired import _agresti_min

from ..result_files import acc, log, result, sample, share, t2_section, write


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name, right, task="arc", metric="acc", **more):
    """Write an hf run named `name` (base if "base") and its samples: `right` has a score per document."""
    mean = sum(right) / len(right)
    spread = math.sqrt(sum((x - mean) ** 2 for x in right) / (len(right) - 1) / len(right))
    args = {"pretrained": "m"} if name == "base" else {"pretrained": "m", "peft": name}
    data = result({task: {f"{metric},none": {"value": mean, "stderr": spread, "n": len(right)}}}, args=args, **more)
    log(f"{name}/results_1.json", task, [sample(doc, **{metric: float(value)}) for doc, value in enumerate(right)])
    return write(f"{name}/results_1.json", data)


def rows(text, title="Leaderboard"):
    body = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in body.splitlines() if row.startswith("|")][2:]
    return {line[0].removesuffix(" (base)"): line[1:] for line in lines}


def test_gain_over_the_base_row_is_the_exact_mcnemar_test_of_the_documents():
    base = [1] * 20 + [0] * 80
    better = [1] * 18 + [0, 0] + [1] * 15 + [0] * 65  # 15 won, 2 lost
    text = report([run("base", base), run("p", better)])
    (found,) = collect(["base", "p"], Options()).gains
    assert (found.outcome.n, found.outcome.wins, found.outcome.losses) == (100, 15, 2)
    assert found.outcome.p == pytest.approx(binomtest(2, 17).pvalue, abs=1e-12)
    assert found.outcome.difference == pytest.approx(0.13)
    line = rows(text, "Differences from the base row")["hf m + p"]
    assert line[:3] == ["hf m", "arc", "100"]
    assert line[3].startswith("+13.00 [") and line[4:7] == ["15", "2", f"{found.outcome.p:.3g}"]


def test_pairing_sees_what_overlapping_intervals_hide():
    base = [1, 0] * 50
    better = [1, 0] * 44 + [1, 1] * 6  # 50 against 56 of 100: intervals overlap widely, yet 6 to 0 is p = 0.03
    found = rows(report([run("base", base), run("p", better)]))["hf m + p"][0]
    assert found.startswith("**56.00** ± ")
    low, high = (float(x) for x in found.split("[")[1].split("]")[0].split(", "))
    assert low < 50 < high


def test_holm_takes_bold_away_where_many_rows_are_tried():
    base, better = [1, 0] * 50, [1, 0] * 44 + [1, 1] * 6
    paths = [run("base", base), run("p", better)]
    assert "**56.00**" in report(paths)
    others = [run(f"q{i}", [0, 1] * 50) for i in range(3)]  # differ on all documents
    text = report([*paths, *others])
    assert "**" not in text.split("## Leaderboard")[1].split("Scores are")[0], "0.03 is more than 0.05 / 4"


def test_equal_best_rows_are_not_bold():
    same = [1] * 60 + [0] * 40
    text = report([run("base", [1] * 20 + [0] * 80), run("p", same), run("q", same)])
    assert "**" not in text.split("## Leaderboard")[1].split("Scores are")[0]


def test_without_samples_nothing_is_bold_and_that_is_said():
    base, better = run("base", [0] * 100), run("p", [1] * 100)
    assert "**100.00**" in report([base, better])
    Path("p/samples_arc.jsonl").unlink()
    text = report([base, better])
    assert "**100.00**" not in text
    assert "Nothing is bold in arc, as some rows have no usable samples there (<code>--log_samples</code>)." in text


def test_other_documents_are_told_by_their_ids_and_not_compared():
    base = run("base", [0] * 50)
    other = run("p", [1] * 50)
    lines = [sample(doc, acc=1.0) for doc in [*range(3, 50), 70, 71, 72]]
    log("p/results_1.json", "arc", lines)
    text = report([base, other])
    assert "arc: documents 0, 1, 2 only in hf m, documents 70, 71, 72 only in hf m + p" in text
    assert "**100" not in text and "## Differences" not in text
    assert "arc of hf m + p is not normalised, it is not comparable with hf m" in text


def test_same_ids_with_other_content_are_other_documents():
    base, other = run("base", [1, 0] * 10), run("p", [1] * 20)
    lines = [sample(doc, acc=1.0) | ({"doc_hash": "f" * 64} if doc in (4, 9) else {}) for doc in range(20)]
    log("p/results_1.json", "arc", lines)
    assert "documents 4, 9 differ in content between hf m and hf m + p" in report([base, other])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "samples_arc.jsonl, line 11: JSON cut short"),
        (lambda text: "garbage\n" + text, "line 1: not JSON"),
        (lambda text: text + "[1]\n", "line 21: not a logged sample of lm-eval"),
        (lambda text: text.replace('"acc": 1.0', '"acc": NaN', 1), "acc of document 0 is nan, not a finite number"),
        (lambda text: text.replace('"acc": 1.0', '"acc": "yes"', 1), "acc of document 0 is 'yes', not a finite number"),
        (lambda text: text.replace('"acc": 1.0', f'"acc": {"9" * 400}', 1), "not a finite number"),
        (lambda text: text.replace('"doc_id": 3', '"doc_id": "x"', 1), "doc_id 'x' is not a whole number"),
        (lambda text: text.replace('"doc_id": 3,', '"doc_id": 2,', 1), "document 2 occurs twice"),
        (lambda text: text.replace('"filter": "none"', '"filter": "other"'), "no sample has the metric acc,none"),
        (lambda text: "", "no sample has the metric"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "its 19 logged samples average 0.526316, the result file says 0.5"),
    ],
)
def test_samples_that_cannot_be_used_are_named_and_the_report_goes_on(change, said):
    paths = [run("base", [1, 0] * 10), run("p", [1, 0] * 10)]
    file = Path("p/samples_arc.jsonl")
    file.write_text(change(file.read_text()))
    text = report(paths)
    assert "No paired test of arc for hf m + p" in text
    assert said in text.replace("\\", "")
    assert rows(text)["hf m + p"][0].startswith("50.00")


def test_every_cut_of_the_samples_is_survived():
    paths = [run("base", [1, 0] * 10), run("p", [1, 0] * 10)]
    file = Path("p/samples_arc.jsonl")
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 401):
        file.write_bytes(whole[:length])
        assert rows(report(paths))["hf m + p"][0].startswith("50.00")


def test_scores_that_are_fractions_are_tested_by_permutation():
    base = [0.5, 0.25] * 20
    paths = [run("base", base, metric="f1"), run("p", [x + 0.25 for x in base], metric="f1")]
    (found,) = collect(paths, Options()).gains
    assert found.outcome.p == pytest.approx(2 / 10_000), "no draw of signs is as good; McNemar's test would say 2 / 2 ** 40"
    assert found.outcome.difference == pytest.approx(0.25)
    assert found.outcome.interval is None, "all differ by as much: no spread, which is no certainty"
    text = report(paths)
    assert "**62.50**" in text and re.search(r"\| +\+25\.00 \|", text)


def test_a_group_is_compared_on_all_documents_of_its_tasks():
    def group(name, a, b, args):
        both = {"acc,none": share(a + b, 40)}
        data = result({"x": {"acc,none": share(a, 20)}, "y": {"acc,none": share(b, 20)}}, args=args, groups={"g": (["x", "y"], both)})
        for task, right in (("x", a), ("y", b)):
            log(f"{name}/results_1.json", task, [sample(doc, acc=float(doc < right)) for doc in range(20)])
        return write(f"{name}/results_1.json", data)

    paths = [group("base", 2, 4, {"pretrained": "m"}), group("p", 12, 9, {"pretrained": "m", "peft": "p"})]
    (found,) = collect(paths, Options()).gains
    assert (found.outcome.n, found.outcome.wins, found.outcome.losses) == (40, 15, 0)
    # 10 and 5 of 20 documents won: 2.5 more and 2.5 less than the mean of both
    assert found.outcome.clustered == pytest.approx(math.sqrt(2 * (2.5**2 + 2.5**2)) / 40)
    assert rows(report(paths), "Differences from the base row")["hf m + p"][4] == "12.50"


def test_samples_of_dated_files_belong_to_their_own_run():
    """Two runs in one folder, as lm-eval writes them: each result file is paired with the samples of its own date."""
    date = "2026-01-01T00-00-0{}.5"
    for i, right in enumerate((5, 15)):
        args = {"pretrained": "m"} if i == 0 else {"pretrained": "m", "peft": "p"}
        write(f"r/results_{date.format(i)}.json", result(acc(right, 20), args=args, date=100.0 + i))
        lines = [json.dumps(sample(doc, acc=float(doc < right))) for doc in range(20)]
        write(f"r/samples_arc_{date.format(i)}.jsonl", "\n".join(lines) + "\n")
    (found,) = collect(["r"], Options()).gains
    assert (found.outcome.wins, found.outcome.losses) == (10, 0)


@pytest.mark.parametrize("contaminated", [{"arc": [0, 7]}, [0, 7], {"arc": True}, True, {"arc": 0}, "0 7"])
def test_contaminated_scores_are_marked_and_never_bold(contaminated):
    base = run("base", [0] * 50)
    data = result(acc(50, 50), model="t2", args={"pretrained": "m"}, t2=t2_section("mix:math=1.5", contaminated=contaminated))
    log("t/results_1.json", "arc", [sample(doc, acc=1.0) for doc in range(50)])
    text = report([base, write("t/results_1.json", data)])
    assert "100.00 ± 0.00 [92.87, 100.00] (n/a) ‡ contaminated" in text and "**100.00**" not in text
    assert "arc: contaminated, documents that the few-shot search used are scored: t2 mix:math=1.5 m (" in text
    if contaminated == {"arc": [0, 7]}:
        assert "t2 mix:math=1.5 m (0, 7)" in text


@pytest.mark.parametrize("clean", [None, {}, [], {"arc": []}, False])
def test_a_clean_score_is_not_marked(clean):
    data = result(acc(50, 50), model="t2", t2=t2_section("mix:math=1.5", contaminated=clean))
    assert "contaminated" not in report([write("t/results_1.json", data)])


def test_dispatch_is_counted_by_true_domain():
    def t2(category):
        return {"mixture": category, "category": category}

    data = result({"arc_easy": {"acc,none": share(6, 12)}, "gsm8k": {"exact_match,none": share(5, 10)}}, model="t2", t2=t2_section())
    path = write("t/results_1.json", data)
    lines = [sample(doc, t2=t2("reasoning" if doc < 9 else "others"), acc=float(doc < 6)) for doc in range(12)]
    log(path, "arc_easy", lines)
    log(path, "gsm8k", [sample(doc, t2=t2("math" if doc < 7 else "reasoning"), exact_match=float(doc < 5)) for doc in range(10)])
    content = collect([path], Options())
    assert content.confusions == {"t2 prompt (score)": {"math": {"math": 7, "reasoning": 3}, "reasoning": {"reasoning": 9, "others": 3}}}
    body = report([path]).split("## Dispatch")[1]
    assert [cell.strip() for cell in body.splitlines()[4].strip("|").split("|")] == [
        "t2 prompt (score)", "math", "10", "70.0% (7)", "30.0% (3)", DASH,
    ]  # fmt: skip


def test_the_interval_of_a_difference_is_agresti_and_mins():
    # Agresti and Min 2005: half a document added to each cell of the 2 x 2 table.
    wins, losses, n = 7, 2, 40
    p12, p21 = (wins + 0.5) / (n + 2), (losses + 0.5) / (n + 2)
    spread = math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    low, high = _agresti_min(wins, losses, n)
    assert (low + high) / 2 == pytest.approx(p12 - p21)
    assert (high - low) / 2 == pytest.approx(1.959963984540054 * spread)
    assert _agresti_min(0, 0, 16)[1] > 0.1, "16 documents without a difference are no proof of none"


@pytest.mark.parametrize("task", ["../../etc/x", "a/b", "x" * 300, "nul\x00", ""])
def test_a_tasks_name_that_is_no_file_name_has_no_samples(task):
    data = result({task: {"acc,none": share(1, 2)}}, args={"pretrained": "m"})
    assert "50.00" in report([write("r/results_1.json", data)])


def test_contaminated_documents_prove_no_gain_and_enter_no_mean():
    base = {"pretrained": "m", "strategy": "base"}
    for name, args, right, more in (
        ("base", base, 10, {"strategy": "base"}),
        ("mix", {"pretrained": "m"}, 40, {"strategy": "mix:math=1.5", "contaminated": {"arc": [0]}}),
    ):
        scores = {"arc": {"acc,none": share(right, 50)}, "other": {"acc,none": share(20, 50)}, "third": {"acc,none": share(20, 50)}}
        write(f"{name}/results_1.json", result(scores, model="t2", args=args, t2=t2_section(**more)))
        for task, n in (("arc", right), ("other", 20), ("third", 20)):
            log(f"{name}/results_1.json", task, [sample(doc, acc=float(doc < n)) for doc in range(50)])
    content = collect(["base", "mix"], Options())
    assert [gain.column.task for gain in content.gains] == ["other", "third"]
    mixture = next(i for i, row in enumerate(content.board.rows) if "mix" in row.label)
    assert content.board.average(mixture) == (0.4, 2) and content.board.mean_normalised(mixture) == (1.0, 2)
    assert content.board.average(1 - mixture) == (pytest.approx((0.2 + 0.4 + 0.4) / 3), 3)
