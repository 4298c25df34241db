"""The trainer on a tiny model: it learns, resumes after kill -9 to the same numbers, and exports an expert that loads."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from t2.adapters.experts import load_expert
from t2.baselines import config as config_module
from t2.baselines.config import ConfigError, load_config
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
    )
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=len(WORDS), eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def run(tiny, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"name: parity\ntask: parity\nmodel: {tiny}\ndtype: float32\ntarget_modules: all-linear\nsteps: 24\nprompts_per_step: 32\n"
        "lr: 5e-2\nmax_grad_norm: 1.0\nkl_coef: 0.01\nbaseline: batch\neval_every: 6\neval_docs: 40\n"
    )

    def start(output, prelude="", **kwargs):
        environment = {**os.environ, "T2_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", prelude + SCRIPT, str(tmp_path / "c.yaml"), f"output={tmp_path / output}"]
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

    poisoned = run("broken-gradient", POISON)
    output, _ = poisoned.communicate(timeout=200)
    assert poisoned.returncode != 0
    assert "TrainingStopped: The gradient of step 9 is not finite." in output and "Lower lr" in output
    kept = tmp_path / "broken-gradient/parity"
    state = torch.load(kept / "state.pt", weights_only=True)
    assert state["step"] == 8 and all(z.isfinite().all() for z in state["z"].values())
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

    other = run("whole", stdin=subprocess.DEVNULL)  # nothing left to do: same expert, no new steps
    assert other.wait(timeout=100) == 0
    assert numbers(tmp_path / "whole") == events


# --- configuration


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_all_configuration_errors_at_once(tmp_path):
    path = write(tmp_path, "name: x\ntask: gsm8k\nstepz: 3\nlr: fast\nbaseline: mean\nsteps: 0\nkl_coef: -1\nseed: 1.5\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, ["eval_every=0", "noequals"])
    for part in (
        "'stepz'. Did you mean 'steps'?",
        "lr must be float; got 'fast'",
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

    RunFolder(tmp_path, {"lr": 1.0, "steps": 2})
    RunFolder(tmp_path, {"lr": 1.0, "steps": 2})
    with pytest.raises(T2Error, match=r"lr: 1\.0 there, 2\.0 asked"):
        RunFolder(tmp_path, {"lr": 2.0, "steps": 2})
