"""The trainer on a tiny model: it learns, resumes after kill -9 to the same numbers, and exports an expert that loads."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from t2.adapters.experts import load_expert
from t2.baselines import config as config_module
from t2.baselines import run as run_module
from t2.baselines.config import ConfigError, load_config
from t2.baselines.train import Reinforce
from t2.harness.errors import T2Error

WORDS = ["<pad>", "<end>", "say", "even", "odd", *[str(i) for i in range(10)]]

# run in a subprocess, so that it can be killed; the task is defined there too
SCRIPT = textwrap.dedent(
    """
    import sys
    import t2.tasks.training as training
    from t2.baselines.train import main

    rows = [{"word": w, "id": i} for i in range(40) for w in ("even", "odd")]
    training.load_rows = lambda name, split: rows if split == "train" else 1 / 0
    training.TASKS["parity"] = training.TrainTask(
        "parity",
        lambda doc: f"say {doc['word']}",
        lambda docs, replies: [r[:1].isdigit() and int(r[0]) % 2 == (d["word"] == "odd") for d, r in zip(docs, replies)],
        max_new_tokens=2,
        solution=lambda doc: "4" if doc["word"] == "even" else "7 7",  # of two lengths, so that batches are padded
    )
    main(sys.argv[1], sys.argv[2:])
    """
)
# put before it: the gradient of the ninth step is not finite
POISON = textwrap.dedent(
    """
    import itertools
    import t2.baselines.train as train

    count, plain = itertools.count(1), train.accumulate_gradient

    def poisoned(model, *args):
        stats = plain(model, *args)
        if next(count) == 9:
            next(p for p in model.parameters() if p.grad is not None).grad[0] = float("nan")
        return stats

    train.accumulate_gradient = poisoned
    """
)
# put before it: from the given judgement on, no reply is right
NEVER = textwrap.dedent(
    """
    import t2.tasks.training as training

    count, make = [0], training.TrainTask

    def task(*args, **kwargs):
        name, prompt, correct = args

        def judged(docs, replies):
            count[0] += 1
            return [False] * len(docs) if count[0] > {start} else correct(docs, replies)

        return make(name, prompt, judged, **kwargs)

    training.TrainTask = task
    """
)
NO_MEMORY = textwrap.dedent(
    """
    import t2.baselines.train as train

    def full(*args):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    train.accumulate_gradient = full
    """
)


# put before it: after the third step of training no file can grow beyond 100 bytes, as on a full disk
FULL_DISK = textwrap.dedent(
    """
    import resource, signal
    from t2.baselines.run_folder import RunFolder

    plain = RunFolder.log

    def log(self, event):
        plain(self, event)
        if event["event"] == "train" and event["step"] == 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    RunFolder.log = log
    """
)


TWO_PROCESSES = (
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",  # with ACCELERATE_USE_CPU: two processes without MPI
    "--num_processes=2",
    "--num_machines=1",
    "--dynamo_backend=no",
    "--mixed_precision=no",
    "--main_process_port=0",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def save_tiny(folder, seed=0, **sizes):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=len(WORDS), eos_token_id=1, pad_token_id=0, **sizes,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def run(tiny, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"name: parity\ntask: parity\nmodel: {tiny}\ndtype: float32\ntarget_modules: all-linear\nsteps: 24\nprompts_per_step: 32\n"
        "lr: 5e-2\nmax_grad_norm: 1.0\nkl_coef: 0.01\nbaseline: batch\neval_every: 6\neval_docs: 40\n"
    )

    def start(output, *settings, prelude="", launch=(), **kwargs):
        environment = {**os.environ, "T2_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
        (tmp_path / "script.py").write_text(prelude + SCRIPT)
        command = [sys.executable, *launch, str(tmp_path / "script.py"), str(tmp_path / "c.yaml"), f"output={tmp_path / output}", *settings]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)

    return start


def numbers(path):
    events = [json.loads(line) for line in (path / "parity/metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if not k.startswith("seconds")} for e in events]


@pytest.mark.timeout(240)
def test_learns_and_resumes_to_the_same_numbers_after_kill_and_nan(run, tiny, tmp_path):
    whole = run("whole")
    output, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, output
    expert = tmp_path / "whole/parity/expert/parity"
    assert f"--model_args pretrained={tiny},experts={expert},strategy=expert:parity --apply_chat_template" in output

    events = numbers(tmp_path / "whole")
    first, last = ([e for e in events if e["event"] == "validation"][i] for i in (0, -1))
    assert last["accuracy"] > first["accuracy"] + 0.2
    assert [e["step"] for e in events if e["event"] == "train"] == list(range(1, 25))

    broken = run("broken")
    metrics = tmp_path / "broken/parity/metrics.jsonl"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("train") < 9):
        time.sleep(0.02)
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    done = metrics.read_text().count('"train"')
    assert 9 <= done < 24
    with metrics.open("a") as f:
        f.write('{"event": "train", "half a li')  # as a crash leaves it
    resumed = run("broken")
    output, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, output
    assert numbers(tmp_path / "broken") == events

    poisoned = run("broken-gradient", prelude=POISON)
    output, _ = poisoned.communicate(timeout=200)
    assert poisoned.returncode != 0
    assert "Diverged: The gradient of step 9 is not finite." in output and "Lower lr" in output
    kept = tmp_path / "broken-gradient/parity"
    state = torch.load(kept / "state.pt", weights_only=True)
    assert state["step"] == 8 and all(z.isfinite().all() for z in state["weights"].values())
    assert (kept / "best/adapter_config.json").is_file() and not (kept / "expert").exists()
    healed = run("broken-gradient")
    output, _ = healed.communicate(timeout=200)
    assert healed.returncode == 0, output
    assert numbers(tmp_path / "broken-gradient") == events

    a, b = (load_expert(tmp_path / name / "parity/expert/parity") for name in ("whole", "broken"))
    assert all(torch.equal(a.vectors[k], b.vectors[k]) for k in a.vectors)
    assert a.card["validation"]["after"] == max(e["accuracy"] for e in events if e["event"] == "validation")
    assert a.card["validation"]["before"] == first["accuracy"]
    assert str(tmp_path) not in (a.path / "adapter_config.json").read_text()
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), a.path)

    origin = tmp_path / "whole/parity/origin.yaml"
    origin.write_text(origin.read_text().replace(f"machine: {a.card['machine']}", "machine: another"))  # as if it had been copied
    other = run("whole", stdin=subprocess.DEVNULL)  # nothing left to do: same expert, no new steps
    assert other.wait(timeout=100) == 0
    assert numbers(tmp_path / "whole") == events
    assert load_expert(a.path).card == {**a.card, "machine": "another"}


def finish(process):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def weights(path):
    return load_file(path / "parity/expert/parity/adapter_model.safetensors")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", ["svf", "lora", "dora", "ia3"])
def test_next_token_prediction_learns_and_goes_on_after_a_kill(run, tiny, tmp_path, method):
    settings = (f"method={method}", "objective=ntp", "steps=18", "target_modules=null", f"lr={0.1 if method in ('lora', 'dora') else 0.4}")
    finish(run("whole", *settings))
    events = numbers(tmp_path / "whole")
    losses = [e["loss"] for e in events if e["event"] == "train"]
    assert len(losses) == 18 and losses[-1] < 0.9 * losses[0]
    scores = [e["accuracy"] for e in events if e["event"] == "validation"]
    assert max(scores) > scores[0]

    broken = run("broken", *settings)
    metrics = tmp_path / "broken/parity/metrics.jsonl"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("train") < 8):
        time.sleep(0.02)
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    assert 8 <= metrics.read_text().count('"train"') < 18
    finish(run("broken", *settings))
    assert numbers(tmp_path / "broken") == events
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)
    folder = tmp_path / "whole/parity/expert/parity"
    card = json.loads((folder / "card.json").read_text())
    assert (card["method"], card["objective"], card["samples"]) == (method, "ntp", 18 * 32)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_the_baselines_learn_by_reinforce(run, tiny, tmp_path, method):
    finish(run("whole", f"method={method}", "target_modules=null", "lr=3e-2", "kl_coef=0"))
    scores = [e["accuracy"] for e in numbers(tmp_path / "whole") if e["event"] == "validation"]
    assert max(scores) > scores[0] + 0.2
    folder = tmp_path / "whole/parity/expert/parity"
    card = json.loads((folder / "card.json").read_text())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
    assert card["parameters"] == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n or "ia3_" in n)
    assert card["peak_memory_bytes"] > 1e7 and card["versions"]["torch"] == torch.__version__


@pytest.mark.timeout(240)
def test_several_samples_a_prompt_learn_from_one_another(run, tmp_path):
    settings = ("prompts_per_step=8", "samples_per_prompt=4", "baseline=leave_one_out", "generation_batch_size=6")
    finish(run("whole", *settings))
    events = numbers(tmp_path / "whole")
    scores = [e["accuracy"] for e in events if e["event"] == "validation"]
    assert max(scores) > scores[0] + 0.2
    card = json.loads((tmp_path / "whole/parity/expert/parity/card.json").read_text())
    assert card["samples"] == 24 * 32


@pytest.mark.timeout(240)
@pytest.mark.parametrize("settings", [(), ("objective=ntp",)], ids=["reinforce", "ntp"])
def test_two_processes_do_what_one_does(run, tmp_path, settings):
    settings = ("steps=4", "eval_every=2", "generation_batch_size=8", "tokens_per_pass=64", *settings)
    finish(run("one", *settings))
    finish(run("two", *settings, launch=TWO_PROCESSES))
    for one, two in zip(numbers(tmp_path / "one"), numbers(tmp_path / "two"), strict=True):
        assert one.pop("event") == two.pop("event")
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)
    assert json.loads((tmp_path / "two/parity/expert/parity/card.json").read_text())["processes"] == 2


@pytest.mark.timeout(240)
def test_a_sweep_ships_what_validates_best(run, tmp_path):
    finish(run("sweep", "steps=12", "eval_every=6", "lr=[1.0e-6, 5.0e-2]"))
    card = json.loads((tmp_path / "sweep/parity/expert/parity/card.json").read_text())
    assert set(card["sweep"]["validation"]) == {"lr=1e-06", "lr=0.05"}
    assert card["sweep"]["chosen"] == "lr=0.05" and card["settings"]["lr"] == 0.05
    assert card["validation"]["after"] == max(card["sweep"]["validation"].values())
    assert card["sweep"]["diverged"] == []
    load_expert(tmp_path / "sweep/parity/expert/parity")


@pytest.mark.timeout(240)
def test_a_sweep_passes_over_what_diverges_on_two_processes_too(run, tmp_path):
    sweep = ("steps=10", "eval_every=5", "lr=[4.0e-2, 5.0e-2]")
    finish(run("sweep", *sweep, prelude=POISON, launch=TWO_PROCESSES))
    card = json.loads((tmp_path / "sweep/parity/expert/parity/card.json").read_text())
    assert card["sweep"]["diverged"] == ["lr=0.04"] and [*card["sweep"]["validation"]] == ["lr=0.05"]
    assert card["processes"] == 2


@pytest.mark.timeout(240)
@pytest.mark.parametrize("objective", ["reinforce", "ntp"])
def test_a_step_after_which_the_model_gives_no_numbers_is_not_kept(run, tmp_path, objective):
    kept = tmp_path / "ruined/parity"
    for _ in range(2):  # the same command tells the same
        ruined = run("ruined", "steps=4", "eval_every=1", "lr=1e30", "max_grad_norm=1e9", f"objective={objective}")
        output, _ = ruined.communicate(timeout=200)
        assert ruined.returncode != 0
        assert "Diverged: After step 1 the model's logits are not finite." in output and "Lower lr" in output
        assert next(e["event"] for e in numbers(tmp_path / "ruined")) == "validation"
        if objective == "reinforce":  # `ntp` begins anew
            assert torch.load(kept / "state.pt", weights_only=True)["step"] == 0
        assert (kept / "best/adapter_config.json").is_file() and not (kept / "expert").exists()


@pytest.mark.timeout(240)
def test_a_model_that_is_never_right_is_told_apart_from_a_collapsed_one(run, tmp_path):
    never = run("never", "stall_steps=2", prelude=NEVER.format(start=0))
    output, _ = never.communicate(timeout=200)
    assert never.returncode != 0 and "the base model is too weak" in output and "None of the last 64 replies" in output
    later = run("later", "stall_steps=2", "eval_every=2", prelude=NEVER.format(start=18))
    output, _ = later.communicate(timeout=200)
    assert later.returncode != 0 and "the policy has collapsed" in output and "Lower lr" in output
    assert (tmp_path / "later/parity/best/adapter_config.json").is_file()


@pytest.mark.parametrize(("accuracy", "why"), [(0.0, "too weak"), (0.05, "too weak"), (0.1, "has collapsed"), (0.6, "has collapsed")])
def test_a_base_that_was_right_before_is_not_called_weak(accuracy, why):
    stopped = Reinforce.__new__(Reinforce)
    stopped.config = SimpleNamespace(stall_steps=2)
    stopped.run = SimpleNamespace(best={"step": 0, "accuracy": accuracy}, stopped=lambda why, cure, kind: kind(why + cure))
    stopped.unrewarded = 1
    with pytest.raises(T2Error, match=f"None of the last 64 replies .* {why}"):
        stopped._watch(torch.zeros(32))


@pytest.mark.timeout(240)
def test_patience_ends_a_run_early(run, tmp_path):
    finish(run("whole", "lr=1e-9", "eval_every=2", "patience=2"))
    events = numbers(tmp_path / "whole")
    assert [e["step"] for e in events if e["event"] == "validation"] == [0, 2, 4]
    rates = [e["lr"] for e in events if e["event"] == "train"]
    assert rates[0] == 1e-9 > rates[1] > 0  # what a step was made with, not what the next will be


@pytest.mark.timeout(240)
def test_memory_that_runs_out_names_the_settings_and_the_run_goes_on_with_less(run, tmp_path):
    process = run("whole", "steps=2", prelude=NO_MEMORY)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "Out of memory in step 1" in output and "Lower tokens_per_pass (now 2048)" in output
    finish(run("whole", "steps=2", "tokens_per_pass=64", "generation_batch_size=8"))
    assert [e["step"] for e in numbers(tmp_path / "whole") if e["event"] == "train"] == [1, 2]
    card = json.loads((tmp_path / "whole/parity/expert/parity/card.json").read_text())
    assert card["settings"]["tokens_per_pass"] == 64
    assert "tokens_per_pass: 64" in (tmp_path / "whole/parity/config.yaml").read_text()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("objective", ["reinforce", "ntp"])
def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(run, tmp_path, objective):
    settings = ("steps=6", "eval_every=2", f"objective={objective}")
    finish(run("whole", *settings))
    full = run("full", *settings, prelude=FULL_DISK)
    output, _ = full.communicate(timeout=200)
    assert full.returncode != 0
    assert "TrainingStopped: " in output and "full/parity cannot be written" in output and "Make room; the same command" in output
    finish(run("full", *settings))
    assert numbers(tmp_path / "full") == numbers(tmp_path / "whole")
    whole, mended = weights(tmp_path / "whole"), weights(tmp_path / "full")
    assert all(torch.equal(whole[k], mended[k]) for k in whole)


@pytest.mark.timeout(240)
def test_the_base_model_must_stay_the_same_and_its_generation_settings_do_not_matter(run, tiny, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(tiny, other)
    (other / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 1, "repetition_penalty": 9.0, "top_k": 1, "temperature": 0.1})
    )
    for output, model in (("plain", tiny), ("own", other)):
        finish(run(output, "steps=2", f"model={model}"))
    assert numbers(tmp_path / "own") == numbers(tmp_path / "plain")
    save_tiny(other, seed=1)
    refused = run("own", "steps=2", f"model={other}")
    output, _ = refused.communicate(timeout=200)
    assert refused.returncode != 0 and "holds a run on another base model (fingerprint " in output


@pytest.mark.timeout(240)
def test_a_folder_in_use_is_refused_and_a_wrong_model_leaves_none_behind(run, tmp_path):
    from t2.baselines.run_folder import hold

    with hold(tmp_path / "whole/parity"):
        second = run("whole", "steps=1")
        output, _ = second.communicate(timeout=200)
        assert second.returncode != 0 and "whole/parity is in use by another t2" in output
    wrong = run("whole", "steps=1", f"model={tmp_path / 'nothing'}")
    output, _ = wrong.communicate(timeout=200)
    assert wrong.returncode != 0 and f"T2Error: model {tmp_path / 'nothing'}: this model cannot be loaded" in output
    finish(run("whole", "steps=1"))


def test_the_commit_is_t2_s_own(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for folder in ("baselines", "lib/baselines"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(run_module, "__file__", str(tmp_path / "baselines/run.py"))
    assert run_module._git_commit() == commit
    monkeypatch.setattr(run_module, "__file__", str(tmp_path / "lib/baselines/run.py"))  # t2 installed inside another project
    assert run_module._git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert run_module._git_commit() is None


# --- configuration


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_all_configuration_errors_at_once(tmp_path):
    path = write(tmp_path, "name: ../x\ntask: gsm8k\nstepz: 3\nlr: fast\nbaseline: mean\nsteps: 0\nkl_coef: -1\nseed: 1.5\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, ["eval_every=0", "noequals"])
    for part in (
        "'stepz'. Did you mean 'steps'?",
        "lr must be float; got 'fast'",
        "the first a letter or digit; got '../x'",
        "baseline must be one of none, batch",
        "steps must be positive",
        "kl_coef must not be negative",
        "seed must be int",
        "eval_every must be positive",
        "'noequals' is not key=value",
    ):
        assert part in str(error.value)


def test_overrides_and_scientific_notation(tmp_path):
    loaded = load_config(write(tmp_path, "name: x\ntask: gsm8k\nlr: 2e-3\n"), ["steps=7", "max_new_tokens=null", "kl_coef=0"])
    assert (loaded.lr, loaded.steps, loaded.max_new_tokens, loaded.kl_coef) == (2e-3, 7, None, 0.0)


def test_a_setting_without_a_value_is_not_taken_for_none(tmp_path):
    with pytest.raises(ConfigError, match=r"model= gives no value; model=null means none"):
        load_config(write(tmp_path, "name: x\ntask: gsm8k\nmodel: org/mine\n"), ["model="])


@pytest.mark.parametrize(("text", "message"), [("[1]", "must be a mapping"), ("a: [", "is not YAML"), ("task: gsm8k", "name is required")])
def test_broken_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_missing_file_names_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"Did you mean 'reasoning'\?"):
        load_config("reasonin")


def test_shipped_configurations_are_valid():
    names = {p.stem for p in (config_module.Path(config_module.__file__).parent / "configs").glob("*.yaml")}
    assert names >= {"math", "code", "reasoning"}
    assert {load_config(name).name for name in names} == names


def test_unknown_task_suggests_the_nearest():
    from t2.tasks.training import train_task

    with pytest.raises(T2Error, match=r"Did you mean 'gsm8k'\?"):
        train_task("gsm8")


def test_a_folder_of_another_run_is_refused(tmp_path):
    from t2.baselines.run_folder import RunFolder

    origin = {"versions": {"t2": "1"}, "data_sha256": {"train": "a"}}
    RunFolder(tmp_path, {"lr": 1.0, "steps": 3}, origin)  # not begun, so nothing is there yet
    RunFolder(tmp_path, {"lr": 1.0, "steps": 2}, origin).begin()
    RunFolder(tmp_path, {"lr": 1.0, "steps": 2}, origin).begin()
    with pytest.raises(T2Error, match=r"lr: 1\.0 there, 2\.0 asked"):
        RunFolder(tmp_path, {"lr": 2.0, "steps": 2}, origin)
    with pytest.raises(T2Error, match="a run on other data"):
        RunFolder(tmp_path, {"lr": 1.0, "steps": 2}, {**origin, "data_sha256": {"train": "b"}})
    with pytest.raises(T2Error, match=r"a run of t2 1, whose settings are not this version's \(beta, steps\)"):
        RunFolder(tmp_path, {"lr": 1.0, "beta": 2}, {**origin, "versions": {"t2": "2"}})
