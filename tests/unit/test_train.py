"""The trainer's parts that need no training: batches of next-token prediction, the run's folder, sweeps, settings, and errors."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Trainer

from t2.adapters.svf import PRESETS
from t2.baselines import ntp, run_folder, train
from t2.baselines.config import ConfigError, TrainConfig, load_config, parse_config
from t2.baselines.processes import Processes
from t2.baselines.run import Run, _adapted, _load
from t2.baselines.run_folder import RunFolder, hold
from t2.harness.errors import T2Error

from .. import tiny

ORIGIN = {"versions": {"t2": "1"}, "data_sha256": {"train": "a"}}


@pytest.mark.parametrize("side", ["left", "right"])
def test_solutions_are_padded_on_the_right_whatever_side_a_rollout_has_set(side):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")
    tokenizer.padding_side = side
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, *ids[1:]]} for ids in ([5, 6, 7], [8, 9])]
    batch = ntp._collator(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert tokenizer.padding_side == side


@pytest.mark.parametrize("keeps", [True, False])
def test_a_step_in_passes_by_length_with_logits_of_solutions_alone_has_the_gradient_of_the_whole_step(keeps, monkeypatch, tmp_path):
    model: Any = tiny.model()
    if not keeps:  # as xLSTM's forward, which takes the argument and makes all logits
        forward = model.forward
        monkeypatch.setattr(model, "forward", lambda *args, logits_to_keep=None, **more: forward(*args, **more))
    lengths, prompts = [3, 12, 5, 4, 2], [1, 9, 2, 3, 1]
    ids = [torch.randint(5, 40, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
    rows = [{"input_ids": r, "attention_mask": [1] * len(r), "labels": [-100] * p + r[p:]} for r, p in zip(ids, prompts, strict=True)]
    config, one = TrainConfig("x", "y", prompts_per_step=len(rows)), SimpleNamespace(count=1)
    run: Any = SimpleNamespace(config=config, processes=one, folder=SimpleNamespace(path=tmp_path))
    try:
        collator = ntp._collator(tiny.tokenizer())
        trainer = ntp._InPasses(14, model=model, args=ntp._arguments(run), train_dataset=rows, data_collator=collator)
        seen = []
        model.register_forward_hook(
            lambda _, args, given, made: seen.append((*given["input_ids"].shape, made.logits.shape[1])), with_kwargs=True
        )
        (batch,), tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
        assert batch["input_ids"].shape == (5, 12) and tokens == sum(lengths) - sum(prompts)
        loss = trainer.training_step(model, batch, tokens)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    # documents, their tokens, and those that have logits: from the first learned on
    assert seen == ([(1, 12, 3), (2, 5, 3), (2, 3, 2)] if keeps else [(1, 12, 12), (2, 5, 5), (2, 3, 3)])
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    whole = model(**collator(rows).to(model.device)).loss
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    for gradient, parameter in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_next_token_prediction_stays_on_one_device_a_process(monkeypatch, tmp_path):
    for name, answer in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    run = SimpleNamespace(
        config=TrainConfig("x", "y", prompts_per_step=8), processes=SimpleNamespace(count=1), folder=SimpleNamespace(path=tmp_path)
    )
    try:
        arguments = ntp._arguments(run)
        assert (arguments.device.type, arguments.n_gpu, arguments.train_batch_size) == ("cuda", 1, 8)
    finally:
        PartialState._reset_state()


def test_next_token_prediction_computes_in_dtype_whatever_accelerate_is_configured_for(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config, one = TrainConfig("x", "y", prompts_per_step=2), SimpleNamespace(count=1)
    run: Any = SimpleNamespace(config=config, processes=one, folder=SimpleNamespace(path=tmp_path))
    try:
        trainer = Trainer(tiny.model(), ntp._arguments(run), train_dataset=[])  # type: ignore[arg-type]
        assert (trainer.args.mixed_precision, trainer.accelerator.mixed_precision) == ("no", "no")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_the_peak_of_a_gpus_memory_is_of_this_run(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    Processes()
    assert reset == [torch.device("cuda")]


def test_documents_that_cannot_be_dealt_out_are_refused_before_anything_runs():
    task: Any = SimpleNamespace(solution=str)
    run: Any = SimpleNamespace(config=TrainConfig("x", "y", prompts_per_step=8), processes=SimpleNamespace(count=3), task=task)
    with pytest.raises(T2Error, match=r"prompts_per_step=8 cannot be dealt out to 3 processes evenly\. Give a multiple of 3"):
        ntp.train_by_next_token(run)


def test_a_state_is_read_onto_the_cpu_wherever_it_was_written(monkeypatch, tmp_path):
    folder = RunFolder(tmp_path, {"lr": 1.0}, ORIGIN)
    folder.save_state({"weights": torch.zeros(2)})
    plain, places = torch.load, []

    def load(*args, **options):
        places.append(options.get("map_location"))
        return plain(*args, **options)

    monkeypatch.setattr(run_folder.torch, "load", load)
    assert torch.equal(folder.load_state(first=True)["weights"], torch.zeros(2)) and places == ["cpu"]


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """Three runs whose training only writes an adapter: the larger lr validates better."""

    def trained(config):
        folder = tmp_path / "made" / str(config.lr)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(str(config.lr).encode())
        (folder / "card.json").write_text(json.dumps({"validation": {"after": config.lr}}))
        return folder

    monkeypatch.setattr(train, "train", trained)
    runs = {f"lr={lr}": TrainConfig("x", "y", lr=lr, output=str(tmp_path)) for lr in (0.1, 0.3, 0.2)}
    return runs, tmp_path / "x", tmp_path / "x/expert/x/adapter_model.safetensors"


def test_a_sweep_leaves_the_folder_of_a_single_run_alone(sweep):
    runs, folder, weights = sweep
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"single")
    RunFolder(folder.parent / "other", {"lr": 1.0}, ORIGIN).begin()
    (folder / "config.yaml").write_bytes((folder.parent / "other/config.yaml").read_bytes())
    with pytest.raises(T2Error, match=r"x holds a single run, whose adapter a sweep would replace\. Give another name="):
        train.sweep(runs)
    assert weights.read_bytes() == b"single"
    (folder / "config.yaml").unlink()
    with hold(folder), pytest.raises(T2Error, match="in use by another t2"):
        train.sweep(runs)
    assert weights.read_bytes() == b"single"


def test_a_single_run_leaves_the_folder_of_a_sweep_alone_and_the_same_sweep_goes_on(sweep):
    runs, folder, weights = sweep
    for _ in range(2):
        assert train.sweep(runs) == weights.parent
        assert weights.read_bytes() == b"0.3"
        with pytest.raises(T2Error, match=r"x holds the best adapter of a sweep, which a single run would replace\. Give another name="):
            RunFolder(folder, {"lr": 1.0}, ORIGIN)
        assert weights.read_bytes() == b"0.3"


def test_target_modules_are_presets():
    for name in (None, *PRESETS):
        assert parse_config({"name": "x", "task": "y", "target_modules": name}, [], "c").target_modules == name
    with pytest.raises(ConfigError, match=r"target_modules must be one of attention, mlp, mlp\+attention, all-linear or null; got 'mpl'"):
        parse_config({"name": "x", "task": "y", "target_modules": "mpl"}, [], "c")


def test_a_list_of_one_value_is_that_value():
    assert load_config("reasoning", ["kl_coef=[0.3]"]).kl_coef == 0.3
    with pytest.raises(ConfigError, match="reasoning is a sweep of 2 runs, where one is asked for"):
        load_config("reasoning", ["kl_coef=[0.3, 0.4]"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_coef": math.nan}, "kl_coef must be float; got nan"),
        ({"wrong_reward": ".nan"}, r"wrong_reward must be float; got '\.nan'"),
        ({"seed": -1}, "seed must be from 0 to 4294967295; got -1"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295; got 4294967296"),
        ({"name": "others"}, "name 'others' means the unadapted weights"),
    ],
)
def test_settings_that_would_end_in_an_error_of_a_librarys(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "task": "y", **settings}, [], "c")


def test_every_seed_has_rollouts(monkeypatch):
    config = TrainConfig("x", "y", seed=2**32 - 1)
    drawn = []
    run = SimpleNamespace(step=7, parameters=[torch.nn.Parameter(torch.ones(1))], config=config)
    run.sample = lambda docs, temperature, seed: drawn.append(torch.manual_seed(seed))
    for number in range(2):
        train.Reinforce(run)._sample(number, [])
    assert len(drawn) == 2


def test_modules_that_a_model_lacks_are_told(caplog):
    base = tiny.model()
    for layer in base.model.layers:
        layer.mlp.gate_up = layer.mlp.gate_proj
        del layer.mlp.gate_proj
    _adapted(base, TrainConfig("x", "y"))
    assert "no gate_proj: svf adapts down_proj, q_proj, up_proj, v_proj alone. target_modules=all-linear takes" in caplog.text
    caplog.clear()
    _adapted(tiny.model(), TrainConfig("x", "y"))
    assert caplog.text == ""


def test_prompts_that_do_not_fit_are_told_once_with_their_number(caplog):
    run: Any = SimpleNamespace(
        config=TrainConfig("x", "y", steps=2, prompts_per_step=3, eval_docs=2),
        split=SimpleNamespace(train=["long " * 9] * 2 + ["short"] * 2, validation=["long " * 9, "short", "long " * 9]),
        prompts=lambda docs: docs,
        max_new_tokens=8,
        model=tiny.model(positions=20),
        tokenizer=tiny.tokenizer(None),
    )
    assert Run._longest_prompt(run) == 12
    told = "3 of 6 prompts are cut on the left to 12 tokens, as in lm-eval: the model reads 20, and a reply has max_new_tokens=8."
    assert [record.getMessage() for record in caplog.records] == [told]
    run.max_new_tokens = run.model.config.max_position_embeddings = 4096
    run.model.config.max_position_embeddings += 4096
    assert Run._longest_prompt(run) == len("long " * 9)
    assert len(caplog.records) == 1


def test_a_quantised_base_is_refused(monkeypatch):
    base = tiny.model()
    base.quantization_method = "fp8"
    monkeypatch.setattr("t2.baselines.run.load_model", lambda *_: base)
    monkeypatch.setattr("t2.baselines.run.load_tokenizer", lambda *_: tiny.tokenizer())
    with pytest.raises(T2Error, match=r"model org/m is quantised \(fp8\), and t2 train takes weights as they were before"):
        _load("org/m", "float32")


def test_the_best_of_a_sweep_over_methods_is_told_with_its_own_command(sweep, monkeypatch, capsys):
    runs, folder, _ = sweep
    monkeypatch.setattr(train, "load_configs", lambda *_: runs)
    monkeypatch.setattr(train, "sweep", lambda _: folder)
    for method, told in (("svf", "--model t2 --model_args experts="), ("lora", "--model hf --model_args pretrained=")):
        folder.mkdir(exist_ok=True)
        (folder / "card.json").write_text(json.dumps({"method": method}))
        train.main("x")
        assert told in capsys.readouterr().out


@pytest.mark.parametrize("method", ["svf", "lora", "dora", "ia3"])
def test_a_model_without_the_target_modules_is_named(method):
    base = torch.nn.Module()
    base.config = tiny.model().config
    base.inner = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(T2Error, match=rf"target_modules=mlp with method={method} cannot be adapted on model some/model: .*not found"):
        _adapted(base, TrainConfig("x", "y", model="some/model", method=method, target_modules="mlp"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory: 8"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_runs_out_before_the_first_step_names_what_to_do(monkeypatch, error):
    def full(config):
        raise error

    monkeypatch.setattr(train, "Run", full)
    with pytest.raises(train.TrainingStopped, match=r"Out of memory while the model was set up.* dtype=bfloat16 \(now float32\)"):
        train.train(TrainConfig("x", "y", dtype="float32"))
    monkeypatch.setattr(train, "Run", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.train(TrainConfig("x", "y"))


def test_the_schedule_is_half_a_cosine_and_takes_up_a_state_of_before():
    parameter = torch.nn.Parameter(torch.zeros(1))
    made = train.Reinforce(SimpleNamespace(config=TrainConfig("x", "y", lr=1.0, steps=7), parameters=[parameter]))
    old = torch.optim.lr_scheduler.LambdaLR(torch.optim.AdamW([parameter], lr=1.0), lambda step: 0.5 * (1 + math.cos(math.pi * step / 7)))
    for step in range(7):
        assert made.schedule.get_last_lr() == old.get_last_lr()
        if step == 3:
            made.schedule.load_state_dict(old.state_dict())
        for schedule in (made.schedule, old):
            schedule.optimizer.step()
            schedule.step()
