"""`t2 study`: what it asks for, in which order, and that it goes on where it was stopped."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from t2.adapters.experts import load_expert, shipped
from t2.adapters.probe import load_probe
from t2.baselines import study_rows
from t2.baselines.config import load_config
from t2.baselines.run_folder import hold
from t2.baselines.study import Row, load_study, overrides, rows
from t2.baselines.study_rows import run_study
from t2.harness.cli import main
from t2.harness.errors import T2Error
from t2.harness.fewshot import command


@pytest.fixture(scope="module")
def our_tasks():
    return TaskManager(include_path=str(Path(study_rows.__file__).parents[1] / "tasks"), include_defaults=False)


@pytest.fixture(autouse=True)
def only_our_tasks(our_tasks, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: our_tasks)  # lm-eval's own index takes seconds to build


def write(folder: Path, text: str) -> Path:
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


@pytest.mark.parametrize("study", ["default-5120", "qwen"])
def test_the_shipped_studies_cover_every_method_of_their_tasks_with_two_seeds(study):
    labels = [row.label for row in rows(load_study(study))]
    methods = ("", "-lora", "-ia3", "-dora")
    expected = []
    tasks = {"arc_easy_text": "reasoning", "arc_challenge_text": "reasoning", "dispatch_boxed": "dispatch", "gsm8k_answer": "math",
             "mbpp_chat": "code"}  # fmt: skip
    for task, run in tasks.items():
        expected += [f"base-{task}", *(f"{run}{method}-seed{seed}-{task}" for seed in (0, 1) for method in methods)]
    assert labels == expected


STUDIES = Path(study_rows.__file__).parent / "studies"


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.yaml")))
def test_every_published_row_is_one_of_its_study_and_made_with_its_settings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_study(name)
    published = {path.stem for path in (STUDIES / name).glob("*.json")}
    assert published and {row.label for row in rows(study) if study_rows.made(study, row)} == published


def test_the_shipped_strategies_are_options_that_t2_eval_takes(monkeypatch):
    study = load_study("adaptation")
    found = list(rows(study))
    by_task = {task: [row.strategy for row in found if row.task == task] for task in study.tasks}
    shots = ["fewshot-3-light", "fewshot-3", "fewshot-5", "fewshot-10", "fewshot-20"]
    assert by_task["arc_challenge_text"] == [None, "prompt", "score", "cls", "probe", *shots]  # tables 8 and 10 are of this task alone
    assert by_task["humaneval_chat"] == by_task["math500"] == [None, "prompt", "score", "cls", "probe", "fewshot-10"]

    class Searched(Exception):
        pass

    def adapt(options):
        assert options.task in study.tasks and options.population == 16 and options.apply_chat_template
        raise Searched

    evaluated = []
    monkeypatch.setattr(command, "adapt", adapt)
    monkeypatch.setattr(command, "_lm_eval", evaluated.append)
    for row in found:
        words = study_rows._command(study, row, {}, Path("out"))
        if row.strategy and study.strategies[row.strategy]["strategy"] == "fewshot":
            with pytest.raises(Searched):  # every option can be used, for lm_eval too
                command.eval_command(words[2:])
        elif row.strategy:
            command.eval_command(words[2:])
            asked = evaluated.pop()
            assert asked[asked.index("--batch_size") + 1] == "auto" and "--apply_chat_template" in asked


def test_all_errors_of_a_study_at_once(tmp_path):
    with pytest.raises(T2Error) as caught:
        load_study(write(tmp_path, "runs: [a]\nsede: [0]\n"))
    for part in ("unknown key 'sede'", "'seeds'", "name is required", "runs must map"):
        assert part in str(caught.value)
    with pytest.raises(T2Error, match="runs or strategies are required"):
        load_study(write(tmp_path, "name: x\n"))
    with pytest.raises(T2Error) as caught:
        load_study(write(tmp_path, "name: x\nstrategies: {a: {model_args: dispatch=probe}}\n"))
    for part in ("strategies must map labels to options", "strategies need tasks"):
        assert part in str(caught.value)
    with pytest.raises(T2Error, match=r"tasks of strategy 'few' must be some of \['math500'\]; got \['humaneval'\]"):
        load_study(write(tmp_path, "name: x\nstrategies: {few: {strategy: fewshot, tasks: [humaneval]}}\ntasks: [math500]\n"))
    with pytest.raises(T2Error, match=r"tasks of strategy 'few' must be some of .* got 'math500'"):
        load_study(write(tmp_path, "name: x\nstrategies: {few: {strategy: fewshot, tasks: math500}}\ntasks: [math500]\n"))
    with pytest.raises(T2Error, match="lm is 'vllm'; it can be t2 or t2-vllm"):
        load_study(write(tmp_path, "name: x\nruns: {reasoning: arc_easy_text}\nlm: vllm\n"))
    with pytest.raises(T2Error) as caught:
        load_study(write(tmp_path, "name: x\nruns: {reasoning: arc_easy_text}\nseeds: 0\nlimit: 0\nsettings: null\n"))
    for part in (
        "seeds must be a list of whole numbers; got 0",
        "limit must be a positive whole number; got 0",
        "settings must be a mapping",
    ):
        assert part in str(caught.value)
    with pytest.raises(T2Error, match="is not YAML"):
        load_study(write(tmp_path, "name: [\n"))
    with pytest.raises(T2Error, match="another label"):
        load_study(write(tmp_path, "name: x\nstrategies: {base: {strategy: base}}\ntasks: [arc_easy_text]\n"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("strategies: {a: {strategy: prompt, num_fewshot: 5}}", "strategy 'a': num_fewshot would ask it otherwise than the base model"),
        (
            "strategies: {a: {strategy: prompt, model_args: {dtype: bfloat16}}}\nsettings: {dtype: float32}",
            "strategy 'a': dtype is in settings, as dtype, too; leave one out",
        ),
        (
            "strategies: {a: {strategy: prompt, model_args: {pretrained: x}}}\nsettings: {model: y}",
            "strategy 'a': pretrained is in settings, as model, too",
        ),
        ("strategies: {a: {strategy: prompt}}\nsettings: {dtpye: float32}", "without runs only model and dtype are of use; got 'dtpye'"),
        ("runs: {reasoning: arc_easy_text}\nsettings: {seed: 3}", "settings: seed is the study's own seeds"),
        ("lm: t2-vllm\nruns: {reasoning-lora: arc_easy_text}", "reasoning-lora is merged into the model for t2-vllm.*dtype: float32 or"),
    ],
)
def test_what_would_score_rows_unlike_is_refused(tmp_path, more, message):
    with pytest.raises(T2Error, match=message):
        load_study(write(tmp_path, f"name: x\ntasks: [arc_easy_text]\n{more}\n"))


def test_two_configurations_of_one_name_are_refused(tmp_path):
    for file in ("a", "b"):
        (tmp_path / f"{file}.yaml").write_text("name: same\ntask: arc_easy\n")
    runs = f"{tmp_path}/a.yaml: arc_easy_text, {tmp_path}/b.yaml: arc_easy_text"
    with pytest.raises(T2Error, match=r"a\.yaml and .*b\.yaml have the same name, 'same', and would train in one folder"):
        load_study(write(tmp_path, f"name: x\nruns: {{{runs}}}\n"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("name: 2024", "name must be text; got 2024"),
        ("output: null", "output must be text; got None"),
        ("batch_size: thirty", "batch_size must be a positive whole number; got 'thirty'"),
        ("batch_size: {default: 8, gsm8k_answer: 0}", "batch_size of gsm8k_answer must be a positive whole number; got 0"),
        ("tasks: null", "strategies need tasks, a list of lm-eval's"),
        ("seeds: [0, -1]", "seed must be from 0 to 4294967295; got -1"),
        ("seeds: [0, 0]", "two rows would both be 'reasoning-seed0-arc_easy_text'"),
        ("batch_size: {arc_easy: 8}", r"batch_size: 'arc_easy' is no task of this study\. Did you mean 'arc_easy_text'"),
        ("batch_size: {}", "batch_size: give all tasks one, or a default"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_told_before_anything_runs(tmp_path, more, message):
    with pytest.raises(T2Error, match=message):
        load_study(write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\n{more}\n"))


def test_a_task_may_have_a_batch_size_of_its_own(tmp_path):
    runs = "{math: gsm8k_answer, code: mbpp_chat}"
    study = load_study(write(tmp_path, f"name: x\nruns: {runs}\nseeds: [0]\nbatch_size: {{default: 512, mbpp_chat: 64}}\n"))
    for row in rows(study):
        words, size = study_rows._command(study, row, {}, Path("out")), 64 if row.task == "mbpp_chat" else 512
        assert words[words.index("--batch_size") + 1] == str(size)
        assert study_rows._settings(study, row)["batch_size"] == size


def test_a_run_that_is_named_by_its_file_has_rows_of_plain_names(tmp_path):
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "mine.yaml"
    file.write_text("name: mine\ntask: arc_easy\n")
    study = load_study(write(tmp_path, f"name: x\nruns: {{{file}: arc_easy_text}}\noutput: {tmp_path}\n"))
    row = list(rows(study))[1]
    assert row.run == str(file) and "/" not in row.label and row.label.endswith("own_mine.yaml-seed0-arc_easy_text")


def test_a_wrong_configuration_is_told_before_anything_runs(tmp_path):
    with pytest.raises(T2Error, match="reasonin"):
        load_study(write(tmp_path, "name: x\nruns: {reasonin: arc_easy_text}\n"))
    with pytest.raises(T2Error, match="dtyp"):
        load_study(write(tmp_path, "name: x\nruns: {reasoning: arc_easy_text}\nsettings: {dtyp: float32}\n"))
    with pytest.raises(T2Error, match=r"No such study: defualt.*default"):
        load_study("defualt")


def test_a_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    study = load_study(write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\nseeds: [3]\noutput: {tmp_path}\n"))
    monkeypatch.setattr(study_rows, "_train", lambda study, row: tmp_path)
    monkeypatch.setattr(study_rows, "_card", lambda row, adapter: {"method": "svf" if adapter else "base"})
    scored = []

    def score(study, row, adapter):
        scored.append(row.label)
        if row.label == "reasoning-seed3-arc_easy_text" and len(scored) == 2:
            raise KeyboardInterrupt
        return {"score": 0.5}

    monkeypatch.setattr(study_rows, "_score", score)
    with pytest.raises(KeyboardInterrupt):
        run_study(study)
    made = run_study(study)
    assert [(row["method"], row["score"]) for row in made] == [("base", 0.5), ("svf", 0.5)]
    assert made[0]["settings"] == {"lm": "t2", "limit": None, "batch_size": 32, "model": None, "dtype": None}
    assert made[1]["settings"]["lr"] == 3e-3 and made[1]["settings"]["seed"] == 3 and "output" not in made[1]["settings"]
    assert scored == ["base-arc_easy_text", "reasoning-seed3-arc_easy_text", "reasoning-seed3-arc_easy_text"]


def test_rows_are_made_side_by_side_and_one_that_fails_keeps_no_other_from_being_made(tmp_path, monkeypatch):
    runs = "{reasoning: [arc_easy_text, arc_challenge_text], math: gsm8k_answer, code: [mbpp_chat, humaneval_instruct]}"
    study = load_study(write(tmp_path, f"name: x\nruns: {runs}\nseeds: [3]\noutput: {tmp_path}\n"))
    both, trained = threading.Barrier(2, timeout=20), []

    def train(study, row):
        trained.append(row.run)
        if row.run == "code":
            raise T2Error("code found nothing")
        return tmp_path

    def score(study, row, adapter):
        if row.run is None and row.task.startswith("arc"):
            both.wait()  # broken, were they made one after the other
        if row.run == "math":
            raise T2Error("math has no score")
        return {"score": 0.5}

    monkeypatch.setattr(study_rows, "_train", train)
    monkeypatch.setattr(study_rows, "_card", lambda row, adapter: {})
    monkeypatch.setattr(study_rows, "_score", score)
    monkeypatch.setattr(study_rows, "rows", lambda study: sorted(rows(study), key=lambda row: row.run or ""))
    with pytest.raises(T2Error, match="code found nothing\nmath has no score"):
        run_study(study, jobs=2)
    made = {file.stem for file in (tmp_path / "x" / "rows").glob("*.json")}
    assert made == {row.label for row in rows(study) if row.run not in ("math", "code")} and len(made) == 7
    assert sorted(trained) == ["code", "math", "reasoning"]  # each once, whatever number of tasks score it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_broken_off_ends_what_runs_and_begins_nothing(number, tmp_path, monkeypatch):
    file = write(tmp_path, f"name: x\nruns: {{reasoning: [arc_easy_text, arc_challenge_text]}}\noutput: {tmp_path}\n")
    study, begun = load_study(file), []

    def score(study, row, adapter):
        begun.append(row.label)
        threading.Timer(1, signal.pthread_kill, (threading.main_thread().ident, number)).start()
        study_rows._call(study, row, "score", ["-c", "import time; time.sleep(100)"])

    monkeypatch.setattr(study_rows, "_score", score)
    before = time.monotonic()
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    try:
        assert main(["study", str(file)]) == 130
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert time.monotonic() - before < 50 and begun == ["base-arc_easy_text"]
    with pytest.raises(T2Error, match="train was not begun"):
        study_rows._call(study, next(rows(study)), "train", ["-c", "raise SystemExit('begun')"])


def test_a_study_that_was_killed_is_in_use_until_what_it_began_has_ended(tmp_path):
    file = write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\noutput: {tmp_path}\n")
    begun = tmp_path / "begun"
    child = f"import os, time; open({str(begun)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(100)"
    code = (
        "from t2.baselines import study_rows\nfrom t2.baselines.study import load_study\nstudy_rows._check_tasks = lambda names: None\n"
        f"study_rows._score = lambda study, row, adapter: study_rows._call(study, row, 'score', ['-c', {child!r}])\n"
        f"study_rows.run_study(load_study({str(file)!r}))\n"
    )
    deadline = time.monotonic() + 100
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while not begun.exists() or not begun.read_text().endswith("."):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    with pytest.raises(T2Error, match=r"/x is in use by another t2"):
        hold(tmp_path / "x")
    os.kill(int(begun.read_text()[:-1]), signal.SIGKILL)
    while True:
        try:
            return hold(tmp_path / "x").close()
        except T2Error:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_setting_of_any_letters_reaches_the_training(tmp_path):
    file = write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\noutput: {tmp_path}\nsettings: {{description: 'law 😀'}}\n")
    study = load_study(file)
    assert load_config("reasoning", overrides(study, 0)).description == "law 😀"


def test_a_row_of_other_settings_is_neither_taken_nor_overwritten(tmp_path, monkeypatch):
    text = f"name: x\nruns: {{reasoning: arc_easy_text}}\noutput: {tmp_path}\n"
    monkeypatch.setattr(study_rows, "_train", lambda study, row: tmp_path)
    monkeypatch.setattr(study_rows, "_card", lambda row, adapter: {})
    monkeypatch.setattr(study_rows, "_score", lambda study, row, adapter: {"score": 0.1})
    run_study(load_study(write(tmp_path, text)))
    with pytest.raises(T2Error, match=r"base-arc_easy_text\.json was made with other settings than study 'x' has now"):
        run_study(load_study(write(tmp_path, text + "limit: 3\n")))
    assert json.loads((tmp_path / "x" / "rows" / "base-arc_easy_text.json").read_text())["score"] == 0.1


def test_what_is_no_row_and_a_study_that_is_being_made_are_refused(tmp_path):
    study = load_study(write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\noutput: {tmp_path}\n"))
    with hold(study.folder), pytest.raises(T2Error, match=r"/x is in use by another t2"):
        run_study(study)
    file = tmp_path / "x" / "rows" / "base-arc_easy_text.json"
    file.parent.mkdir()
    for content in ('{"score": 0.', '{"score": 0.1}', "[]"):
        file.write_text(content)
        with pytest.raises(T2Error, match=r"base-arc_easy_text\.json is not a row of a study .* Delete it, and it is made again"):
            run_study(study)


def test_the_tables_so_far_are_shown_without_making_anything(tmp_path, monkeypatch, capsys):
    study = load_study(write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\noutput: {tmp_path}\n"))
    base = next(rows(study))
    row = {"run": None, "seed": None, "task": "arc_easy_text", "metric": "exact_match", "outcomes": "01", "task_hash": "a", "documents": 2}
    (tmp_path / "x" / "rows").mkdir(parents=True)
    file = tmp_path / "x" / "rows" / f"{base.label}.json"
    file.write_text(json.dumps({**row, "method": "base", "settings": study_rows._settings(study, base)}))
    monkeypatch.setattr(study_rows, "_call", lambda *_: pytest.fail("something runs"))
    assert main(["study", str(tmp_path / "study.yaml"), "--made"]) == 0
    shown = capsys.readouterr().out
    assert "base model" in shown and "50.00" in shown and len(shown.strip().splitlines()) == 5


def test_a_published_row_counts_if_its_settings_are_the_same(tmp_path, monkeypatch):
    study = load_study(write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\nseeds: [3]\noutput: {tmp_path}\n"))
    scored = []
    monkeypatch.setattr(study_rows, "__file__", str(tmp_path / "study_rows.py"))
    monkeypatch.setattr(study_rows, "_train", lambda study, row: tmp_path)
    monkeypatch.setattr(study_rows, "_card", lambda row, adapter: {})
    monkeypatch.setattr(study_rows, "_score", lambda study, row, adapter: scored.append(row.label) or {"score": 0.1})
    published = tmp_path / "studies" / "x"
    published.mkdir(parents=True)
    for row in list(rows(study)):
        settings = study_rows._settings(study, row)
        changed = settings if row.run is None else {**settings, "steps": 99}
        (published / f"{row.label}.json").write_text(json.dumps({"score": 0.9, "settings": changed}))
    assert [row["score"] for row in run_study(study)] == [0.9, 0.1]
    assert scored == ["reasoning-seed3-arc_easy_text"]


def test_what_fails_is_named_with_its_log(tmp_path):
    study = load_study(write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\noutput: {tmp_path}\n"))
    row = next(rows(study))
    study_rows._broken_off.clear()
    with pytest.raises(T2Error, match=r"base-arc_easy_text: score ended with status 1 \(.*no such thing.*base-arc_easy_text-score.log"):
        study_rows._call(study, row, "score", ["-c", "raise SystemExit('no such thing')"])


def test_a_row_is_read_from_lm_evals_files(tmp_path, monkeypatch):
    study = load_study(write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\nsettings: {{dtype: bfloat16}}\noutput: {tmp_path}\n"))
    asked = []

    def call(study, row, what, arguments):
        asked.append(arguments)
        folder = Path(arguments[arguments.index("--output_path") + 1]) / "model"
        assert not folder.parent.exists()  # what another evaluation has left is never taken
        folder.mkdir(parents=True)
        results = {
            "results": {"arc_easy_text": {"exact_match,none": 0.5, "exact_match_stderr,none": 0.2, "extracted,none": 0.75}},
            "configs": {"arc_easy_text": {"metric_list": [{"metric": "exact_match"}, {"metric": "extracted"}]}},
            "task_hashes": {"arc_easy_text": "abc"},
            "n-samples": {"arc_easy_text": {"original": 3, "effective": 2}},
            "t2": {"passes": {"arc_easy_text": {"pass1": {"seconds": 1.5}}}},
            "pretty_env_info": "PyTorch version: 2.13.0+cpu\nGPU models and configuration: Could not collect\nModel name:     Some CPU",
            "transformers_version": "5.19.0",
        }
        (folder / "results_2026.json").write_text(json.dumps(results))
        samples = [{"doc_id": 2, "exact_match": 1.0, "filter": "none"}, {"doc_id": 0, "exact_match": 0.0, "filter": "none"}]
        samples += [{"doc_id": 0, "exact_match": 1.0, "filter": "another", "resps": "one\u2028reply"}]
        text = "\n".join(json.dumps(sample, ensure_ascii=False) for sample in samples)
        (folder / "samples_arc_easy_text_2026.jsonl").write_text(text, encoding="utf-8")

    monkeypatch.setattr(study_rows, "_call", call)
    base, trained = list(rows(study))[:2]
    (study.folder / "results" / base.label / "of_another_model").mkdir(parents=True)
    found = study_rows._score(study, base, None)
    assert (found["score"], found["extracted"], found["documents"], found["outcomes"]) == (0.5, 0.75, 2, "0-1")
    assert found["passes"] == {"pass1": {"seconds": 1.5}} and found["command"][0] == "lm_eval"
    assert found["scored_on"] == {"CPU": "Some CPU", "torch": "2.13.0+cpu", "transformers": "5.19.0"}
    gpu = "PyTorch version: 2.11.0\nGPU models and configuration: GPU 0: NVIDIA H200\nModel name: Some CPU"
    assert study_rows._machine({"pretty_env_info": gpu})["GPU"] == "NVIDIA H200"
    assert "CPU" not in study_rows._machine({"pretty_env_info": gpu})
    assert asked[0][asked[0].index("--model_args") + 1] == "dtype=bfloat16,strategy=base"
    wanted = {"svf": "dtype=bfloat16,strategy=expert:reasoning,experts={}", "lora": "dtype=bfloat16,strategy=base,peft={}"}
    for method, arguments in wanted.items():
        adapter = tmp_path / method / "reasoning"
        adapter.mkdir(parents=True)
        (adapter / "card.json").write_text(json.dumps({"method": method}))
        monkeypatch.setattr(Row, "label", property(lambda self, name=method: name))
        study_rows._score(study, trained, adapter)
        assert asked[-1][asked[-1].index("--model_args") + 1] == arguments.format(adapter)


def test_an_evaluation_that_left_less_than_it_scored_makes_no_row(tmp_path, monkeypatch):
    study = load_study(write(tmp_path, f"name: x\nruns: {{reasoning: arc_easy_text}}\noutput: {tmp_path}\n"))
    base = next(rows(study))
    monkeypatch.setattr(study_rows, "_call", lambda *_: None)
    with pytest.raises(T2Error, match=r"lm-eval left no results in .*base-arc_easy_text-score\.log tells"):
        study_rows._score(study, base, None)

    score = 1.0

    def call(*_):
        folder = study.folder / "results" / base.label / "model"
        folder.mkdir(parents=True)
        results = {
            "results": {"arc_easy_text": {"exact_match,none": 0.5}},
            "configs": {"arc_easy_text": {"metric_list": [{"metric": "exact_match"}]}},
            "n-samples": {"arc_easy_text": {"original": 3, "effective": 3}},
        }
        (folder / "results_2026.json").write_text(json.dumps(results))
        (folder / "samples_arc_easy_text_2026.jsonl").write_text(json.dumps({"doc_id": 0, "exact_match": score, "filter": "none"}))

    monkeypatch.setattr(study_rows, "_call", call)
    with pytest.raises(T2Error, match="has 1 documents, where 3 were scored"):
        study_rows._score(study, base, None)
    score = 0.5
    with pytest.raises(T2Error, match=r"exact_match of document 0 is 0\.5\. A study compares tasks whose documents are right or wrong"):
        study_rows._score(study, base, None)


def test_vllm_scores_the_base_svf_as_it_is_and_other_adapters_merged(tmp_path, monkeypatch):
    text = f"name: x\nlm: t2-vllm\nruns: {{reasoning: arc_easy_text}}\nsettings: {{model: org/model}}\noutput: {tmp_path}\n"
    study = load_study(write(tmp_path, text))
    row = list(rows(study))[1]
    called = []
    monkeypatch.setattr(study_rows, "_call", lambda study, row, what, arguments: called.append((what, arguments)))
    found = {}
    for method in ("svf", "lora"):
        adapter = tmp_path / method / "reasoning"
        adapter.mkdir(parents=True)
        (adapter / "card.json").write_text(json.dumps({"method": method}))
        found[method] = study_rows._weights(study, row, adapter, tmp_path / "merged")
    assert found["svf"] == {"strategy": "expert:reasoning", "experts": adapter.parents[1] / "svf" / "reasoning"}
    assert found["lora"] == {"strategy": "base", "pretrained": tmp_path / "merged"}
    assert called == [("merge", ["-m", "t2.baselines.merge", str(adapter), str(tmp_path / "merged"), "org/model"])]
    command = study_rows._command(study, row, found["lora"], Path("out"))
    assert command[:5] == ["lm_eval", "--model", "t2-vllm", "--model_args", f"pretrained={tmp_path / 'merged'},strategy=base"]
    assert command[command.index("--batch_size") + 1] == "auto"


def test_a_task_that_a_study_cannot_score_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    for task, why in (("arc_esy_text", "Unknown task 'arc_esy_text'"), ("math", "'math' is a group of tasks")):
        study = load_study(write(tmp_path, f"name: x\nruns: {{reasoning: {task}}}\noutput: {tmp_path}\n"))
        monkeypatch.setattr(study_rows, "_call", lambda *_: pytest.fail("something runs"))
        with pytest.raises(T2Error, match=why):
            run_study(study)
        assert not (tmp_path / "x").exists()


def test_a_row_of_another_expert_is_not_taken(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    shutil.copytree(shipped()["reasoning"], folder)
    text = f"name: x\nstrategies: {{own: {{strategy: expert:mine, model_args: {{experts: {folder}}}}}}}\ntasks: [arc_easy_text]\n"
    study = load_study(write(tmp_path, text + f"output: {tmp_path}\n"))
    own = list(rows(study))[1]
    file = study.folder / "rows" / f"{own.label}.json"
    file.parent.mkdir(parents=True)
    row = {"experts": {"mine": load_expert(folder).sha256}, "settings": study_rows._settings(study, own)}
    file.write_text(json.dumps(row))
    assert study_rows.made(study, own) == row
    shutil.rmtree(folder)
    assert study_rows.made(study, own) == row  # tables can be printed where the expert is not
    shutil.copytree(shipped()["math"], folder)
    with pytest.raises(T2Error, match="made with another expert 'mine' than study 'x' has now"):
        study_rows.made(study, own)
    published = tmp_path / "studies" / "x" / file.name
    published.parent.mkdir(parents=True)
    file.rename(published)
    monkeypatch.setattr(study_rows, "__file__", str(tmp_path / "study_rows.py"))
    assert study_rows.made(study, own) is None  # made again


def test_a_row_of_another_probe_or_of_fewer_experts_is_not_taken(tmp_path):
    experts, probe = tmp_path / "experts", tmp_path / "probe"
    for name in ("math", "code"):
        shutil.copytree(shipped()[name], experts / name)
    shutil.copytree(study_rows.SHIPPED_PROBE, probe)
    named = f"{{experts: {experts}, dispatch: probe, probe: {probe}}}"
    text = f"name: x\nstrategies: {{own: {{strategy: prompt, model_args: {named}}}}}\ntasks: [arc_easy_text]\noutput: {tmp_path}\n"
    study = load_study(write(tmp_path, text))
    own = list(rows(study))[1]
    file = study.folder / "rows" / f"{own.label}.json"
    file.parent.mkdir(parents=True)
    hashes = {name: load_expert(experts / name).sha256 for name in ("code", "math")}
    row = {"experts": hashes, "probe": load_probe(probe).sha256, "settings": study_rows._settings(study, own)}
    for other, what in (({"probe": "0" * 64}, "probe"), ({"experts": {"code": hashes["code"]}}, "expert 'math'"),
                        ({"experts": {**hashes, "law": "0" * 64}}, "expert 'law'")):  # fmt: skip
        file.write_text(json.dumps(row | other))
        with pytest.raises(T2Error, match=f"made with another {what} than study 'x' has now"):
            study_rows.made(study, own)
    file.write_text(json.dumps(row))
    assert study_rows.made(study, own) == row


def test_a_metric_is_one_that_was_reported():
    def results(metric_list, *keys):
        return {"results": {"t": dict.fromkeys(("alias", *keys), 0.5)}, "configs": {"t": metric_list}}

    functions = {"metric_list": [{"metric": "def pass_at_k(…): …"}]}
    assert study_rows._metric(results(functions, "pass@1,create_test", "pass@1_stderr,create_test"), "t") == "pass@1"
    assert study_rows._metric(results({}, "extracted,none", "acc,none", "f1,none"), "t") == "acc"
    assert study_rows._metric(results({"metric_list": [{"metric": "f1"}]}, "acc,none", "f1,none"), "t") == "f1"
    with pytest.raises(T2Error, match="t reports no metric"):
        study_rows._metric(results(functions), "t")


def test_a_study_that_needs_vllm_says_so_before_anything_is_trained(tmp_path, monkeypatch):
    study = load_study(write(tmp_path, f"name: x\nlm: t2-vllm\nruns: {{reasoning: arc_easy_text}}\noutput: {tmp_path}\n"))
    monkeypatch.setattr(study_rows.vllm_import, "trouble", lambda: ("vLLM is not installed", "pip install it"))
    with pytest.raises(T2Error, match=r"base-arc_easy_text: lm is t2-vllm\. vLLM is not installed: pip install it"):
        run_study(study)
    assert not (tmp_path / "x").exists()


def test_an_adapter_can_be_scored_on_tasks_that_it_was_not_trained_on(tmp_path):
    text = "name: x\nruns: {reasoning: [arc_easy_text, arc_challenge_text], reasoning-ia3: arc_easy_text}\nseeds: [0]\n"
    assert [row.label for row in rows(load_study(write(tmp_path, text)))] == [
        "base-arc_easy_text", "reasoning-seed0-arc_easy_text", "reasoning-ia3-seed0-arc_easy_text",
        "base-arc_challenge_text", "reasoning-seed0-arc_challenge_text",
    ]  # fmt: skip


def test_strategies_are_scored_by_t2_eval(tmp_path):
    text = """
        name: x
        tasks: [humaneval]
        strategies:
          probe: {strategy: prompt, model_args: {dispatch: probe}}
          few: {strategy: fewshot, shots: 3, tasks: [humaneval]}
        settings: {dtype: float32, model: org/model}
        limit: 5
    """
    study = load_study(write(tmp_path, text))
    base, probe, few = rows(study)
    assert [row.label for row in (base, probe, few)] == ["base-humaneval", "probe-humaneval", "few-humaneval"]
    assert study_rows._settings(study, few) == {
        "lm": "t2", "limit": 5, "batch_size": 32, "model": "org/model", "dtype": "float32", "strategy": "fewshot", "shots": 3,
        "shipped_experts": {name: load_expert(path).sha256 for name, path in shipped().items()},
    }  # fmt: skip
    assert study_rows._command(study, probe, {}, Path("out")) == [
        "t2", "eval", "--mixtures", "runs/x/mixtures/probe-humaneval", "--model", "t2",
        "--model_args", "dispatch=probe,pretrained=org/model,dtype=float32", "--tasks", "humaneval", "--apply_chat_template",
        "--log_samples", "--strategy", "prompt", "--batch_size", "32", "--output_path", "out", "--limit", "5",
    ]  # fmt: skip
    weights = (shipped()["math"].parent / "probe" / "probe.safetensors").read_bytes()
    assert study_rows._settings(study, probe)["shipped_probe"] == hashlib.sha256(weights).hexdigest()
    words = study_rows._command(study, few, {}, Path("out"))
    assert words[words.index("--shots") + 1] == "3" and words.count("--tasks") == 1
    assert study.strategies["probe"]["model_args"] == {"dispatch": "probe"}  # the settings of a row are those of the file


def test_a_few_shot_row_keeps_what_its_search_found(tmp_path):
    study = load_study(write(tmp_path, f"name: x\nstrategies: {{few: {{strategy: fewshot}}}}\ntasks: [humaneval]\noutput: {tmp_path}\n"))
    base, few = rows(study)
    found = {"alpha": {"math": 1}, "signal": True, "configuration": {}, "documents": [], "scores": {}, "cost": {}}
    folder = tmp_path / "x" / "mixtures" / few.label
    folder.mkdir(parents=True)
    searches = {"normalised": {"evaluated": 36, "trace": "much"}, "free": {"evaluated": 4, "trace": "much"}}
    (folder / "humaneval.json").write_text(json.dumps({**found, "searches": searches}))
    assert study_rows._search(study, few) == {"search": {**found, "evaluated": 40}}
    assert study_rows._search(study, base) == {}
