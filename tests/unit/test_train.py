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

from t2.adapters.errors import AdapterError
from t2.adapters.svf import PRESETS
from t2.baselines import ntp, run_folder, train
from t2.baselines.config import ConfigError, TrainConfig, load_config, parse_config
from t2.baselines.processes import Processes
from t2.baselines.run import Run, _adapted, _load
from t2.baselines.run_folder import RunFolder, hold
from t2.harness import cli
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


@pytest.mark.parametrize(
    ("limit", "kept", "learned"),
    [(9, [1, 2, 3, 4], "solu\0"), (7, [3, 4], "solu\0"), (6, [4], "solu\0"), (4, [4], "sol"), (2, [4], "s")],
)
def test_a_long_solution_takes_the_prompts_room_and_never_more_than_the_model_reads(limit, kept, learned):
    tokenizer = tiny.tokenizer(None)
    reply = [257 if letter == "\0" else tokenizer.convert_tokens_to_ids(letter) for letter in learned]
    row = ntp._row(tokenizer, [1, 2, 3, 4], "solu", 257, limit)
    assert row == {"input_ids": kept + reply, "attention_mask": [1] * len(kept + reply), "labels": [-100] * len(kept) + reply}


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


def test_a_sweep_leaves_another_sweeps_best_alone_and_a_larger_one_takes_its_place(sweep):
    runs, _, weights = sweep
    some = {label: runs[label] for label in ("lr=0.1", "lr=0.2")}
    train.sweep(some)
    with pytest.raises(T2Error, match=r"x holds the best adapter of another sweep, over lr=0\.2, which this would replace\. Give another"):
        train.sweep({label: runs[label] for label in ("lr=0.1", "lr=0.3")})
    assert weights.read_bytes() == b"0.2"
    train.sweep(runs)
    assert weights.read_bytes() == b"0.3"


def test_what_a_killed_process_was_writing_is_cleared_away_but_not_in_a_folder_in_use(tmp_path):
    (tmp_path / "best").mkdir()
    whole = tmp_path / "state.pt"
    whole.write_bytes(b"whole")
    (tmp_path / ".tmp-best.old7").mkdir()
    (tmp_path / ".tmp-best.old7/adapter_config.json").write_bytes(b"{")
    (tmp_path / ".tmp-state.pt.7").write_bytes(b"ha")
    with hold(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "best", "state.pt"]
        (tmp_path / ".tmp-state.pt.8").write_bytes(b"being written")
        with pytest.raises(T2Error, match="in use by another t2"):
            hold(tmp_path)
        assert (tmp_path / ".tmp-state.pt.8").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", b"lr: [", r"(?s)config\.yaml cannot be read \(.*Give another name= or output=, or delete the folder"),
        ("config.yaml", b"lr", r"config\.yaml must be a mapping; it is str"),
        ("origin.yaml", b"at: 2024-02-30", r"origin\.yaml cannot be read \(day is out of range"),
        ("state.pt", b"", r"state\.pt cannot be read \(EOFError"),
        ("state.pt", b"no archive", r"state\.pt cannot be read \(UnpicklingError"),
        ("state.pt", None, r"state\.pt cannot be read \("),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, name, content, message):
    folder = RunFolder(tmp_path, {"lr": 1.0}, ORIGIN)
    folder.begin()
    folder.save_state({"weights": torch.zeros(999)})
    folder.release()
    content = (tmp_path / name).read_bytes()[:-999] if content is None else content
    (tmp_path / name).write_bytes(content)
    with pytest.raises(T2Error, match=message):
        RunFolder(tmp_path, {"lr": 1.0}, ORIGIN).load_state(first=True)


def test_a_state_of_another_version_and_a_checkpoint_that_is_gone_are_named(tmp_path):
    run: Any = SimpleNamespace(folder=RunFolder(tmp_path, {"lr": 1.0}, ORIGIN), processes=Processes())
    run.folder.save_state({"step": 1, "weights": {}})
    with pytest.raises(
        T2Error, match=r"holds the state of another version of t2, without best, stale, seconds, cpu_seconds, peak_memory\."
    ):
        Run.resume(run)
    with pytest.raises(T2Error, match=r"checkpoints/checkpoint-4, from where the run would go on, is gone\. Give another name="):
        ntp._checkpoint(run, "checkpoint-4")


def test_a_stopped_run_and_each_of_a_sweep_have_a_curve(monkeypatch, tmp_path, capsys):
    arguments = ["reasoning", "lr=[0.1, 0.2]", f"output={tmp_path}"]
    folders = [tmp_path / f"reasoning.sweep/lr={lr}/reasoning" for lr in (0.1, 0.2)]
    assert train.run_folders(arguments[0], arguments[1:]) == folders
    assert train.run_folders("reasoning", [f"output={tmp_path}"]) == [tmp_path / "reasoning"]
    folders[0].mkdir(parents=True)
    RunFolder(folders[0], {"lr": 0.1}, ORIGIN).log({"event": "validation", "step": 0, "accuracy": 0.5, "n": 8})

    def stopped(config, overrides):
        raise train.TrainingStopped("No memory.")

    monkeypatch.setattr(train, "main", stopped)
    assert cli.main(["train", *arguments]) == 2 and capsys.readouterr().err == "t2: No memory.\n"
    assert (folders[0] / "curve.png").read_bytes().startswith(b"\x89PNG") and not folders[1].exists()


@pytest.mark.parametrize("method", ["svf", "lora", "dora"])
def test_the_last_layers_can_be_adapted_alone(method):
    model = _adapted(tiny.model(), TrainConfig("x", "y", method=method, last_layers=1))
    trained = {name.partition("layers.")[2][0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"1"}
    reached = []
    for layer in model.get_base_model().model.layers:
        layer.register_forward_hook(lambda _, __, output: reached.append(output.requires_grad))
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert reached == [False, True]  # nothing of the first layer is kept for a backward pass
    with pytest.raises(T2Error, match=r"last_layers=3, and the model has 2 layers\. Give 2 at most"):
        _adapted(tiny.model(), TrainConfig("x", "y", method=method, last_layers=3))


@pytest.mark.parametrize("method", ["svf", "lora"])
def test_a_damaged_base_is_named_before_anything_is_trained(method, tmp_path):
    base = tiny.model()
    base.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises((T2Error, AdapterError), match="checkpoint is damaged"):
        run: Any = SimpleNamespace(
            config=TrainConfig("x", "y", method=method, dtype="float32"),
            model=_adapted(base, TrainConfig("x", "y", method=method)),
            tokenizer=tiny.tokenizer(None),
            split=SimpleNamespace(validation=["a prompt"]),
            prompts=lambda docs: docs,
            processes=Processes(),
            max_new_tokens=8,
            step=0,
        )
        Run.check_output(run)


def test_a_tokenizer_without_padding_and_end_of_text_pads_with_the_models_end(monkeypatch):
    base, plain = tiny.model(), tiny.tokenizer()
    plain.pad_token = plain.eos_token = None
    monkeypatch.setattr("t2.baselines.run.load_model", lambda *_: base)
    monkeypatch.setattr("t2.baselines.run.load_tokenizer", lambda *_: plain)
    base, tokenizer = _load("x", "float32")
    assert tokenizer.pad_token_id == base.generation_config.pad_token_id == 257


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
        ({"lr": math.inf, "kl_coef": math.inf}, "lr must be finite; got inf; kl_coef must be finite; got inf"),
        ({"temperature": math.inf}, "temperature must be finite; got inf"),
        ({"last_layers": 0}, "last_layers must be positive; got 0"),
        ({"last_layers": 1, "method": "ia3"}, "last_layers goes with svf, lora and dora"),
        ({"last_layers": 1, "method": "lora", "target_modules": "all-linear"}, "last_layers goes with target_modules attention, mlp or"),
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


def test_no_clip_is_a_clip_at_infinity():
    assert load_config("reasoning", ["max_grad_norm=.inf"]).max_grad_norm == math.inf


def test_dates_that_are_none_and_empty_lists_are_told_with_the_other_errors(tmp_path):
    with pytest.raises(ConfigError) as told:
        load_config("reasoning", ["name=2024-02-30", "lr=[]", "eval_docs=[8, 9]", "stepz=1"])
    for part in ("'name=2024-02-30' is not YAML", "lr is an empty list", "eval_docs cannot be swept", "unknown key 'stepz'"):
        assert part in str(told.value)
    (tmp_path / "c.yaml").write_text("name: 2024-02-30")
    with pytest.raises(ConfigError, match=r"c\.yaml is not YAML: day is out of range"):
        load_config(tmp_path / "c.yaml")


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
