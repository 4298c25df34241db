"""`t2 report -o DIR`: Markdown, page and plots, the same bytes for the same runs; the paper's rows."""

import json
import os
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from t2.reports import pictures
from t2.reports.cli import Options, collect, main, report
from t2.reports.errors import ReportError
from t2.reports.paper import paper_rows, two_pass_seconds
from t2.reports.passes import T2Info, trainable
from t2.reports.plots import alphas, confusion, curves, parameters, passes, spectrum
from t2.reports.plots.canvas import drawn, save
from t2.reports.statistics import normal, wilson

from ..result_files import acc, cost, log, paper_like, result, sample, share, t2_section, write


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything():
    """Write runs that have numbers for every plot; return the arguments."""
    names = {"math": 1000, "reasoning": 2000}
    passes = {"arc_easy": {"pass1": cost(1), "pass2": cost(4), "chosen": {"math": 5}}}
    for name, strategy, right in (("base", "base", 10), ("prompt", "prompt", 30), ("mix", "mix:math=0.3+reasoning=0.7", 50)):
        path = f"runs/{name}/results_1.json"
        t2 = t2_section(strategy, passes=passes, experts=dict.fromkeys(names, "ab" * 32), parameters=names, peak_memory=2**30)
        write(path, result({"arc_easy": {"acc,none": share(right, 100)}}, model="t2", t2=t2))
        facts = {"category": "math"} if name == "prompt" else None
        log(path, "arc_easy", [sample(doc, t2=facts, acc=float(doc < right)) for doc in range(100)])
    events = [{"event": "validation", "step": step, "accuracy": 0.1 * step} for step in range(3)]
    write("runs/expert/curve.jsonl", "".join(json.dumps(event) + "\n" for event in events))
    return ["runs"]


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_a_folder_gets_markdown_page_and_plots_the_same_bytes_each_time(capsys):
    arguments = everything()
    assert main([*arguments, "-o", "out"]) == 0
    # In another process, whose hashes and addresses are others.
    command = [sys.executable, "-m", "t2.harness.cli", "report", *arguments, "-o", "again/"]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, check=True, timeout=300)
    first = files("out")
    plots = [f"plots/{name}.{kind}" for name in pictures.NAMES for kind in ("png", "svg")]
    assert sorted(first) == sorted(["report.md", "report.html", *plots])
    assert first == files("again")
    markdown = first["report.md"].decode()
    assert all(f"](plots/{name}.png)" in markdown for name in pictures.NAMES)
    assert first["report.html"].decode().count('src="data:image/svg+xml;base64,') == len(pictures.NAMES)
    for name in pictures.NAMES:
        assert first[f"plots/{name}.png"].startswith(b"\x89PNG") and min(struct.unpack(">II", first[f"plots/{name}.png"][16:24])) > 100
        assert ElementTree.fromstring(first[f"plots/{name}.svg"]).tag.endswith("svg")  # noqa: S314 - we wrote it
        assert b"Date" not in first[f"plots/{name}.svg"] and b"Software" not in first[f"plots/{name}.png"][:200]


def test_one_file_by_its_ending(capsys):
    arguments = everything()
    assert main([*arguments, "-o", "one.html"]) == 0
    assert main([*arguments, "-o", "one.md"]) == 0
    assert Path("one.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert Path("one.md").read_text(encoding="utf-8") == report(arguments)
    assert "](plots/" not in Path("one.md").read_text(encoding="utf-8"), "nothing is beside it to link to"
    assert not Path("plots").exists()


def test_plots_of_an_earlier_report_do_not_stay():
    arguments = everything()
    main([*arguments, "-o", "out"])
    Path("out/plots/mine.png").write_bytes(b"x")
    main([write("plain/results_1.json", result(acc(10))), "-o", "out"])
    assert [path.name for path in Path("out/plots").iterdir()] == ["mine.png"]


def test_output_that_cannot_be_written():
    arguments = everything()
    Path("file").write_text("x")
    with pytest.raises(ReportError, match="cannot be written"):
        main([*arguments, "-o", "file/out/"])
    Path("out").mkdir()
    Path("out/plots").write_text("x")
    with pytest.raises(ReportError, match=r"plots.*cannot be written"):
        main([*arguments, "-o", "out"])
    assert not Path("out/report.md").exists()


@pytest.mark.parametrize("output", ["runs/base/results_1.json", "runs/base/samples_arc_easy.jsonl", "mine.html", "mine"])
def test_only_a_report_is_replaced(output):
    arguments = everything()
    write("mine.html", "<!doctype html>")
    write("mine/report.md", "# My own")
    before = files(".")
    with pytest.raises(ReportError, match=r"this is no report, and would be replaced"):
        main([*arguments, "-o", output])
    assert files(".") == before


@pytest.mark.parametrize("output", ["new.md", "new.html", "new"])
def test_a_report_is_replaced(output):
    path = write("results_1.json", result(acc(10)))
    assert main([path, "-o", output]) == main([path, "-o", output]) == 0


def test_a_terminal_without_unicode():
    command = [sys.executable, "-m", "t2.harness.cli", "report", *everything()]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "| t2 base" in done.stdout and " ? " in done.stdout


def test_runs_table_tells_trained_parameters_and_memory():
    text = report(everything()).split("## Runs")[1]
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| t2")
    }
    assert cells["t2 base"][10] == "0"
    assert cells["t2 prompt (score)"][10] == "3,000"
    assert {line[12] for line in cells.values()} == {"1,024"}


def trained(content):
    return {row.label: row.trainable(to) for row, to in zip(content.board.rows, content.board.bases, strict=True)}


@pytest.mark.parametrize(("value", "wilsons"), [(14 / 40, True), ((5 / 10 + 9 / 30) / 2, False)])
def test_a_groups_interval_is_wilsons_where_it_is_a_share_of_all_its_documents(value, wilsons):
    members = {"a": {"acc,none": share(5, 10)}, "b": {"acc,none": share(9, 30)}}
    group = {"value": value, "stderr": 0.0936, "n": 40}  # pooled, as lm-eval does
    path = write("g/results_1.json", result(members, groups={"both": (["a", "b"], {"acc,none": group})}))
    (column,) = [column for column in collect([path], Options()).board.columns if column.task == "both"]
    low, high = column.cells[0].interval
    assert (low, high) == (wilson(value, 40) if wilsons else normal(value, 0.0936, 0, 1))


@pytest.mark.parametrize(
    ("sections", "size"),
    [
        ([{"strategy": "mix:base=0.3+math=0.7"}], 100),
        ([{"strategy": "mix:base=0.5"}], 0),
        ([{"strategy": "prompt"}], 150),
        ([{"strategy": "fewshot-3", "mixture": {"math": 1.0}}, {"strategy": "fewshot-3", "mixture": {"math": 0.5, "code": 0.5}}], 150),
    ],
)
def test_trained_parameters_are_of_all_experts_that_a_row_can_use_and_of_no_others(sections, size):
    both = {"experts": {"math": "a" * 64, "code": "b" * 64}, "parameters": {"math": 100, "code": 50}}
    runs = [T2Info(dispatch="score", base="x", passes={}, sandbox=None, **both, **_layers(section)) for section in sections]
    assert trainable(runs) == size
    assert trainable([*runs, T2Info("prompt", "score", {}, "x", {}, None)]) is None  # a file that does not say
    kept = T2Info("base", "score", both["experts"], "x", {}, None, parameters=both["parameters"], search="fewshot-3")
    assert trainable([kept]) == 0


def _layers(section):
    mixture = {name: (alpha,) for name, alpha in section.get("mixture", {}).items()}
    return {"strategy": section["strategy"], "mixture": mixture, "search": "fewshot-3" if mixture else ""}


@pytest.mark.parametrize("model", ["hf", "t2"])
def test_trained_parameters_of_an_adapter_are_what_the_model_has_more(model):
    for name, size, args in (("a", 1000, {}), ("b", 1016, {"peft": "p"})):
        t2 = t2_section("base", base=name) if model == "t2" else None
        write(f"r/{name}/results_1.json", result(acc(10), model, {"pretrained": "m", **args}, t2=t2, model_num_parameters=size))
    assert list(trained(collect(["r"], Options())).values()) == [0, 16]


def test_a_model_that_an_adapter_was_merged_into_is_no_base_with_nothing_trained():
    arguments = everything()
    t2 = t2_section("base", base="0ther")
    write("runs/z/results_1.json", result({"arc_easy": {"acc,none": share(40, 100)}}, "t2", {"pretrained": "merged/dora"}, t2=t2))
    content = collect(arguments, Options())
    sizes = trained(content)
    assert (sizes["t2 base"], sizes["t2 base dora"]) == (0, None)
    drawn = pictures._parameters(content.board)
    assert drawn and "t2 base dora" not in drawn.axes[0].get_legend_handles_labels()[1]


def test_the_command_that_makes_such_a_file():
    args = {"pretrained": "org/m", "api_key": "secret"}
    data = result(acc(10), args=args, gen_kwargs={"temperature": 1}, random_seed=7, numpy_seed=7, torch_seed=7, fewshot_seed=7, limit=10.0)
    data["n-shot"]["arc"] = 5
    data["chat_template"] = "{{ x }}"
    text = report([write("results_1.json", data)])
    assert "secret" not in text
    found = text.split("settings: <code>")[1].split("</code>")[0].replace("\\*", "*")
    assert found == (
        "lm_eval --model hf --model_args 'pretrained=org/m,api_key=***' --tasks arc --num_fewshot 5 --limit 10 --batch_size 1 --device cpu "
        "--gen_kwargs temperature=1 --apply_chat_template --fewshot_as_multiturn false --seed 7,7,7,7"
    )


def test_the_command_asks_each_task_with_its_own_number_of_shots():
    groups = {"same": (["a", "b"], {}), "mixed": (["b", "c"], {})}
    data = result({name: {"acc,none": share(1, 4)} for name in ("a", "b", "c", "d")}, groups=groups)
    data["n-shot"] |= {"a": 4, "b": 4, "c": 0, "d": 0}
    text = report([write("results_1.json", data)])
    found = [part.split("--model hf ")[1].split(" --batch")[0] for part in text.replace("\\", "").split("settings: <code>")[1:]]
    assert sorted(part.split("--tasks ")[1] for part in found) == ["c,d --num_fewshot 0", "same --num_fewshot 4"]


@pytest.mark.parametrize(("seed", "told"), [(None, "0,None,1234,1234<"), ([1, 2], "0,[1,2],1234,1234<")])
def test_the_command_keeps_each_seed_in_its_place(seed, told):
    text = report([write("results_1.json", result(acc(10), numpy_seed=seed))])
    assert "--seed " + told in text.replace("\\", "").replace("'", "")


def test_the_command_says_zero_shots():
    text = report([write("results_1.json", result(acc(10)))])
    assert "--tasks arc --num_fewshot 0 --batch_size 1" in text, "a task's own default may be another number"


def test_damaged_curves_are_told_and_left_out():
    everything()
    whole = '{"event": "validation", "step": 0, "accuracy": 0.1}\n'
    damaged = {
        "cut": (whole + '{"event": "va', ", line 2 is not JSON"),
        "deep": ("[" * 100_000, ", line 1 is not JSON"),
        "long": (whole.replace("0,", f"{10**400},"), ", line 1: `step` is 1000"),
        "nan": (whole.replace("0.1", "NaN"), ", line 1: `accuracy` is nan"),
        "null": (whole + '{"event": "train", "step": 1, "reward": null}', ", line 2: `reward` is None"),
        "text": (whole + '{"event": "train", "step": 1, "reward": "x"}', ", line 2: `reward` is 'x'"),
    }
    for name, (text, _) in damaged.items():
        write(f"runs/{name}/curve.jsonl", text)
    content = collect(["runs"], Options())
    assert list(content.curves) == ["runs/expert"]
    notes = [note for note in content.notes if "curve.jsonl" in note]
    for note, (name, (_, said)) in zip(notes, damaged.items(), strict=True):
        assert note.startswith(f"runs/{name}/curve.jsonl{said}")


def test_curves_alone_are_no_report():
    everything()
    with pytest.raises(ReportError, match="Draw them with `t2 curves`"):
        report(["runs/expert"])


NAMES = ["$x_1$", "$\\undefined{", "a$b", "名前 🙂", "<b>&", "\\frac", "long " * 100, "two\nlines", ""]


def draw(kind):
    point = parameters.Point(100, 50.0, (40.0, 60.0))
    match kind:
        case "alphas":
            return alphas.draw({name: {"math": (0.5,), "$y": (0.1, 0.9)} for name in NAMES})
        case "passes":
            return passes.draw([(name, 1.0, 2.0) for name in NAMES])
        case "confusion":
            return confusion.draw({name: {name: {"$x": 3}} for name in NAMES}, ["$x", *NAMES[:2]])
        case "parameters":
            return parameters.draw([(name, dict.fromkeys(NAMES, point)) for name in NAMES[:3]])
        case "curves":
            return curves.draw({name: [{"event": "validation", "step": 0, "accuracy": 0.5}] for name in NAMES})
    return spectrum.draw({name: {0: [2.0, 1.0], 1: [1.0, 1.0]} for name in NAMES}, "$t$")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["alphas", "passes", "confusion", "parameters", "curves", "spectrum"])
def test_any_name_is_drawn_as_it_is_and_the_same_each_time(kind):
    """Formulas of matplotlib, letters that the font lacks, names longer than the picture."""
    first, second = drawn(draw(kind), "svg"), drawn(draw(kind), "svg")
    assert first == second
    assert drawn(draw(kind), "png") == drawn(draw(kind), "png")


def test_explained_variance_is_drawn_as_the_numbers_say():
    figure = spectrum.draw({"mlp": {3: [2.0, 1.0, 1.0, 0.0], 5: [0.0, 0.0]}}, "model")
    axes = figure.axes[0]
    assert [round(y, 6) for y in axes.lines[0].get_ydata()] == [0, round(400 / 6, 6), round(500 / 6, 6), 100, 100]
    assert list(axes.lines[0].get_xdata()) == [0, 25, 50, 75, 100]
    assert list(axes.lines[1].get_ydata()) == [0, 0, 0]


def test_stacked_bars_add_up_and_mixtures_show_their_means():
    axes = passes.draw([("a", 1.0, 3.0), ("b", 0.0, 0.0)]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [25, 75, 0, 100]
    axes = alphas.draw({"m": {"x": (0.2, 0.4), "y": (-0.5, -0.5)}}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [pytest.approx(0.3), -0.5]


def test_a_picture_is_written_whole_or_not_at_all():
    figure = passes.draw([("a", 1.0, 3.0)])
    with pytest.raises(ReportError, match="Known: png, svg, pdf"):
        save(figure, Path("x.docx"))
    Path("file").write_text("x")
    with pytest.raises(ReportError, match="cannot be written"):
        save(figure, Path("file/x.png"))
    save(figure, Path("new/x.pdf"))
    assert Path("new/x.pdf").read_bytes().startswith(b"%PDF")
    assert [path.name for path in Path("new").iterdir()] == ["x.pdf"]


# --- the paper's figures


def test_paper_rows_are_marked_and_their_ratios_recomputed():
    text = report(paper_like())
    main([*paper_like(), "-o", "r.md", "--paper", "llama3-8b"])
    paper = Path("r.md").read_text(encoding="utf-8")
    rows = [line for line in paper.splitlines() if line.startswith("| † ")]
    assert any(row.startswith("| † Llama3-8B-Instruct, T² few-shot (paper, table 2)") and "62.99 (1.03)" in row for row in rows)
    assert "† Figures printed in the paper (arXiv 2501.06252)" in paper and "†" not in text
    assert next(row for row in rows if "T² prompt (paper, table 3)" in row and "| humaneval" in row).count("19.3%") == 1
    ours = [line for line in text.splitlines() if line.startswith(("| hf", "| t2"))]
    assert [line.split("|")[2].strip() for line in ours] == [
        line.split("|")[2].strip() for line in paper.splitlines() if line.startswith(("| hf", "| t2"))
    ], "our rows do not change beside the paper's"


def test_paper_figures_are_those_of_its_tables():
    rows = {row.label: row.scores for row in paper_rows("mistral", ["gsm8k", "math"])}
    assert rows["† Mistral-7B-Instruct-v0.3, SVF (paper, table 1)"] == {"gsm8k": (49.74, 42.83)}
    assert rows["† Mistral-7B-Instruct-v0.3, T² few-shot (paper, table 2)"] == {"math": (13.39, 13.02)}
    assert rows["† Mistral-7B-Instruct-v0.3, base (paper, tables 1 and 2)"] == {"gsm8k": (42.83, 42.83), "math": (13.02, 13.02)}
    assert two_pass_seconds(["math", "other"]) == [("† T² prompt (paper, table 3)", "math", 42.64, 321.19)]
    assert paper_rows("llama3-8b", ["other"]) == []


@pytest.mark.parametrize(("name", "said"), [("gpt", "none of the paper's models"), ("llama3", "several"), ("", "none of the paper's")])
def test_an_unknown_model_of_the_paper_lists_the_known(name, said):
    with pytest.raises(ReportError, match=f"{said}.*Llama3-8B-Instruct"):
        report_with = Options(paper=name)
        collect(everything(), report_with)
