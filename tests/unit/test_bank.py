"""Experts on disk, mixtures, and switching without drift."""

import copy
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from t2.adapters.bank import ExpertBank
from t2.adapters.errors import AdapterError
from t2.adapters.experts import CARD, CONFIG, WEIGHTS, find_experts, load_expert, shipped, write_card
from t2.adapters.mixture import Mixture
from t2.adapters.svf import PRESETS, SvfConfig, SvfLayer, fingerprint

IDS = torch.arange(14).reshape(2, 7)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))


def tiny(seed=1, hidden=32):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50
    )
    return AutoModelForCausalLM.from_config(config).bfloat16().eval()


def make_expert(folder, seed, targets="mlp+attention", form="scale", base=None):
    config = SvfConfig(target_modules=targets, task_type="CAUSAL_LM", svf_form=form)
    model = get_peft_model(base or tiny(), config)
    layers = {n.removeprefix("base_model.model."): m.base_weight() for n, m in model.named_modules() if isinstance(m, SvfLayer)}
    config.base_fingerprint = fingerprint(layers)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
    model.save_pretrained(folder)
    write_card(folder, {"name": folder.name, "base_model": "tiny"})
    return folder


@pytest.fixture
def experts(tmp_path):
    make_expert(tmp_path / "math", 1)
    make_expert(tmp_path / "code", 2, targets="all-linear")
    make_expert(tmp_path / "raw", 3, form="renormalised")
    return {name: tmp_path / name for name in ("math", "code", "raw")}


def test_1000_random_switches_leave_the_base_bit_for_bit(experts):
    model = tiny()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    pointers = {n: p.data_ptr() for n, p in model.named_parameters()}
    bank = ExpertBank.load(model, "tiny", experts)
    rng = random.Random(0)
    choices = [Mixture.base(), *map(Mixture.single, bank.names), Mixture.parse("math=0.5+code=0.5"), Mixture.parse("raw=0.3+math=0.7")]
    outputs: dict[Mixture, torch.Tensor] = {}
    with torch.no_grad():
        for i in range(1000):
            mixture = rng.choice(choices)
            bank.apply(mixture)
            if i % 50 == 0:
                now = model(IDS).logits
                assert torch.equal(outputs.setdefault(mixture, now), now)
    assert len(outputs) > 3
    bank.apply(Mixture.base())
    after = dict(model.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert {n: p.data_ptr() for n, p in after.items()} == pointers


def test_a_switch_under_autocast_is_seen(experts):
    bank = ExpertBank.load(tiny().float(), "tiny", experts)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = []
        for mixture in (Mixture.base(), Mixture.single("math"), Mixture.base()):
            bank.apply(mixture)
            outputs.append(bank.model(IDS).logits.detach())
    assert not torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ["math", "code", "raw"])
def test_bank_and_peft_give_the_same_logits(experts, name):
    model = tiny()
    bank = ExpertBank.load(model, "tiny", experts)
    assert bank.apply(Mixture.single(name))
    assert not bank.apply(Mixture.single(name))
    peft = PeftModel.from_pretrained(tiny(), experts[name]).eval()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, peft(IDS).logits)
        assert not torch.equal(model(IDS).logits, tiny()(IDS).logits)


def test_mixture_is_the_linear_combination(experts):
    bank = ExpertBank.load(tiny().float(), "tiny", {k: experts[k] for k in ("math", "code")})
    mixture = Mixture.parse("math=0.25+code=0.75")
    q = "model.layers.0.self_attn.q_proj"
    z = {name: bank.experts[name].vectors for name in bank.names}
    assert torch.allclose(bank.scale(mixture, q), 0.25 * z["math"][q] + 0.75 * z["code"][q])
    o = "model.layers.0.self_attn.o_proj"  # only `code` adapts it: `math` counts as z = 1
    assert torch.allclose(bank.scale(mixture, o), 0.25 + 0.75 * z["code"][o])


def test_unknown_expert_suggests_the_nearest_and_changes_nothing(experts):
    model = tiny()
    bank = ExpertBank.load(model, "tiny", experts)
    bank.apply(Mixture.single("math"))
    with pytest.raises(AdapterError, match=r"Unknown expert 'maths'\. Did you mean 'math'\?"):
        bank.apply(Mixture.single("maths"))
    assert str(bank.current) == "math"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("math", "math"),
        ("math=1", "math"),
        ("math=0.5+code=0.5", "code=0.5+math=0.5"),
        ("code=0+math=0.5", "math=0.5"),
        ("a=-1+b=2", "a=-1+b=2"),
    ],
)
def test_mixture_text(text, printed):
    mixture = Mixture.parse(text)
    assert str(mixture) == printed
    assert Mixture.parse(str(mixture)) == mixture


@pytest.mark.parametrize("text", ["", "math=", "math=x", "math=nan", "math=inf", "=1", "math=1+math=2", "math=0", "math++code"])
def test_bad_mixture_text(text):
    with pytest.raises(AdapterError):
        Mixture.parse(text)


# --- hostile experts


def test_another_base_is_refused(experts):
    with pytest.raises(AdapterError, match=r"'math'.* fingerprint [0-9a-f]{16}, but this model's is [0-9a-f]{16}"):
        ExpertBank.load(tiny(seed=2), "other", {"math": experts["math"]})
    with pytest.raises(AdapterError, match=r"whose weight .* takes"):
        ExpertBank.load(tiny(hidden=64), "wider", {"math": experts["math"]})


def test_a_model_without_the_layers_is_refused(experts):
    with pytest.raises(AdapterError, match="which this model does not have"):
        ExpertBank.load(torch.nn.Sequential(torch.nn.Linear(4, 4)), "mlp", {"math": experts["math"]})


def test_a_head_that_is_the_embedding_too_is_refused(tmp_path):
    said = r"adapts '.*lm_head', whose weight is that of the embedding '.*embed_tokens' too.*leave lm_head out of target_modules"
    model = tiny()
    expert = load_expert(make_expert(tmp_path / "math", 1))
    expert = replace(expert, vectors={**expert.vectors, "lm_head": torch.ones(32)}, base_fingerprint=None)
    ExpertBank(model, {"math": expert})
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(AdapterError, match=said):
        ExpertBank(model, {"math": expert})
    with pytest.raises(AdapterError, match=said):
        get_peft_model(model, SvfConfig(target_modules=["lm_head"]))
    assert isinstance(model.lm_head, torch.nn.Linear)


def test_offloaded_weights_are_refused_by_name(experts):
    model = tiny()
    model.model.layers[1].mlp.up_proj.to("meta")
    with pytest.raises(AdapterError, match=r"'math' adapts 'model\.layers\.1\.mlp\.up_proj', whose weight is offloaded.*strategy=base"):
        ExpertBank.load(model, "tiny", experts)
    tuned = get_peft_model(model, SvfConfig(task_type="CAUSAL_LM"))
    with torch.no_grad(), pytest.raises(AdapterError, match=r"A weight of shape \(48, 32\) that an SVF adapter scales is offloaded"):
        tuned(IDS)


def test_shipped_experts_of_another_base_are_left_out():
    assert ExpertBank.load(tiny(), "tiny").names == []


def damage_truncate(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / CARD).unlink()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def damage_tamper(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(data))


def damage_config(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "svf_form": "renormalised"}))


def damage_nan(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    (folder / CARD).unlink()


def damage_shape(folder):
    from safetensors.torch import load_file, save_file

    save_file({k: v.reshape(1, -1) for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    (folder / CARD).unlink()


def damage_type(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "peft_type": "LORA"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "not a whole safetensors file"),
        (damage_tamper, r"sha256 [0-9a-f]{64}, card says [0-9a-f]{64}"),
        (damage_config, "not the file that its card describes"),
        (damage_nan, "NaN or infinite"),
        (damage_shape, "must be a vector"),
        (damage_type, "is a 'LORA' adapter"),
        (lambda f: (f / WEIGHTS).unlink(), "is missing"),
        (lambda f: (f / CONFIG).unlink(), "does not exist"),
        (lambda f: (f / CONFIG).write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / CARD).write_text("[]"), "must hold a JSON object"),
    ],
)
def test_damaged_experts_are_refused_by_name(tmp_path, damage, message):
    folder = make_expert(tmp_path / "math", 1)
    load_expert(folder)
    damage(folder)
    with pytest.raises(AdapterError, match=message) as error:
        load_expert(folder)
    assert str(folder) in str(error.value)


def test_find_experts(experts, tmp_path):
    shutil.copytree(tmp_path / "math", tmp_path / ".math.left-by-a-kill")
    assert set(find_experts(tmp_path)) == {"math", "code", "raw"}
    assert set(find_experts(tmp_path / "math")) == {"math"}
    with pytest.raises(AdapterError, match="No expert in"):
        find_experts(tmp_path / "cache")


def test_the_checkpoint_of_a_training_run_is_no_expert(experts, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "math", run / "best")
    (run / "origin.yaml").write_text("at: 2026-11-27")
    with pytest.raises(AdapterError, match=rf"training run\. Its expert is in {run}/expert"):
        find_experts(run)


def test_presets_name_linear_layers_of_the_tiny_llama():
    names = {n.rpartition(".")[2] for n, m in tiny().named_modules() if isinstance(m, torch.nn.Linear)}
    assert {t for preset in PRESETS.values() if not isinstance(preset, str) for t in preset} <= names


def test_shipped_experts_are_whole_and_small():
    for name, path in shipped().items():
        expert = load_expert(path)
        assert expert.card["name"] == name
        assert expert.card["files"]
        assert expert.parameters < 200_000


def test_copies_are_independent(experts):
    model = tiny()
    other = copy.deepcopy(model)
    ExpertBank.load(model, "tiny", experts).apply(Mixture.single("math"))
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, tiny()(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_mixing_gives_the_weights_of_the_products(experts, dtype):
    model = tiny().to(dtype)
    bank = ExpertBank.load(model, "tiny", experts)
    layers = len(model.model.layers)
    mixtures = [Mixture.parse(text) for text in ("math=0.25+code=0.75", "raw=0.3+math=0.7", "code=0.4", "math=-1+raw=2")]
    mixtures.append(Mixture.per_layer({"math": [0.1] * layers, "code": [0.9 - 0.2 * i for i in range(layers)]}))
    for mixture in mixtures:
        bank.apply(mixture)
        expected = {n: p.detach().clone() for n, p in model.named_parameters()}
        bank.apply(Mixture.base())
        with bank.linear_mixing() as linear:
            assert linear
            bank._kept.clear()
            bank.apply(mixture)
            for name, parameter in model.named_parameters():
                # one step of rounding to the base's dtype where the two ways fall on its two sides
                rounding = {"atol": 1e-2, "rtol": 8e-3} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
                torch.testing.assert_close(parameter, expected[name], **rounding)
        bank.apply(Mixture.base())
    assert torch.equal(model(IDS).logits, tiny().to(dtype)(IDS).logits)


def test_every_row_is_answered_under_its_own_mixture(experts):
    model = tiny().float()
    bank = ExpertBank.load(model, "tiny", experts)
    layers = len(model.model.layers)
    mixtures = [Mixture.parse(text) for text in ("math=0.25+code=0.75", "raw=0.3+base=0.7", "code=0.4", "math=0.4")]
    mixtures += [Mixture.base(), Mixture.per_layer({"math": [0.1] * layers, "code": [0.9 - 0.2 * i for i in range(layers)]})]
    rows = [*mixtures, mixtures[0]]
    ids = torch.arange(7 * len(rows)).reshape(len(rows), 7) % 50
    expected = []
    for row, mixture in zip(ids, rows, strict=True):
        bank.apply(mixture)
        expected.append(model(row[None]).logits[0])
    bank.apply(mixtures[3])  # the weights in force have no say
    alone = model(ids).logits
    forwards = {name: vars(module).get("forward") for name, module in model.named_modules()}
    layer = model.model.layers[0].mlp.gate_proj
    inputs = torch.randn(len(rows), 7, layer.in_features)
    with bank.row_by_row(rows[3:5]):
        only = model(ids[3:5]).logits  # no one of these adapts o_proj, which `code` does
    torch.testing.assert_close(only, torch.stack(expected[3:5]), atol=2e-5, rtol=1e-4)
    with bank.row_by_row(rows):
        assert torch.equal(layer(inputs.flatten(0, 1)), layer(inputs).flatten(0, 1))
        torch.testing.assert_close(model(ids).logits, torch.stack(expected), atol=2e-5, rtol=1e-4)
    assert forwards == {name: vars(module).get("forward") for name, module in model.named_modules()}
    assert torch.equal(model(ids).logits, alone) and (alone[0] - expected[0]).abs().max() > 0.01
    with pytest.raises(AdapterError, match="Unknown expert 'maht'"), bank.row_by_row([Mixture.single("maht")]):
        pass


def test_linear_mixing_without_memory_makes_mixtures_as_ever(experts, monkeypatch, caplog):
    monkeypatch.setattr("t2.adapters.bank.free_memory", lambda device: 1000)
    model = tiny()
    bank = ExpertBank.load(model, "tiny", experts)
    bank.apply(Mixture.parse("math=0.5+code=0.5"))
    expected = model(IDS).logits
    bank.apply(Mixture.base())
    with bank.linear_mixing() as linear:
        assert not linear and "Not enough memory" in caplog.text
        bank.apply(Mixture.parse("math=0.5+code=0.5"))
        assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize(("free", "held"), [(10**12, True), (0, False)])
def test_where_memory_is_short_the_mixture_in_force_makes_room_for_the_next(experts, monkeypatch, free, held):
    wanted = ExpertBank.load(tiny(), "tiny", experts).weights(Mixture.single("code"))
    bank = ExpertBank.load(tiny(), "tiny", experts)
    monkeypatch.setattr("t2.adapters.bank.free_memory", lambda device: free)
    bank.apply(Mixture.single("math"))
    made, seen = bank._adapted, set()

    def adapted(mixture, name):
        seen.add(bool(bank._kept) or any(layer.weight.data_ptr() != bank._base[n].data_ptr() for n, layer in bank._layers.items()))
        return made(mixture, name)

    monkeypatch.setattr(bank, "_adapted", adapted)
    assert bank.apply(Mixture.single("code")) and seen == {held}
    assert all(torch.equal(layer.weight, wanted[name]) for name, layer in bank._layers.items())
    assert bank.apply(Mixture.base())
    assert all(layer.weight.data_ptr() == bank._base[name].data_ptr() for name, layer in bank._layers.items())


def test_alpha_by_layer_scales_each_layer_with_its_own(experts):
    bank = ExpertBank.load(tiny().float(), "tiny", {k: experts[k] for k in ("math", "code")})
    mixture = Mixture.per_layer({"math": [1.0, 0.25], "code": [0.0, 0.75]})
    first, second = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    z = {name: bank.experts[name].vectors for name in bank.names}
    assert torch.allclose(bank.scale(mixture, first), z["math"][first])
    assert torch.allclose(bank.scale(mixture, second), 0.25 * z["math"][second] + 0.75 * z["code"][second])
    with pytest.raises(AdapterError, match="for another model"):
        bank.apply(Mixture.per_layer({"math": [1.0]}))
