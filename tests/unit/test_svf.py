"""SVF against the plain formula W' = U diag(z σ) Vᵀ in float64, and as a PEFT method."""

import copy

import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from t2.adapters.errors import AdapterError
from t2.adapters.svf import Basis, SvfConfig, SvfLayer, cached_basis, compute_basis, fingerprint, register, renormalised_scale
from t2.adapters.svf.apply import MaterialisedLinear, adapted_weight, factored_linear

SHAPES = [(48, 80), (80, 48), (64, 64), (16, 64), (1, 5)]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2_CACHE", str(tmp_path))
    torch.manual_seed(0)


def plain_svf(weight, z):
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return u @ torch.diag(s * z.double()) @ vt


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_materialised_and_factored_are_the_formula(shape):
    weight, z = torch.randn(shape), 1 + 0.3 * torch.randn(min(shape))
    x, bias = torch.randn(2, 3, shape[1]), torch.randn(shape[0])
    expected = plain_svf(weight, z)
    basis = compute_basis(weight)
    assert relative(adapted_weight(weight, basis, z), expected) < 1e-4
    out = x.double() @ expected.T + bias.double()
    assert relative(factored_linear(x, weight, bias, basis, z), out) < 1e-4
    layer = nn.Linear(shape[1], shape[0])
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    model = get_peft_model(nn.Sequential(layer), SvfConfig(target_modules=["0"]))
    tuned = model.base_model.model[0]
    tuned.svf_z["default"].data = z.clone()
    trained = model(x)
    with torch.no_grad():
        kept = model(x)
    for got, want in ((trained, out), (kept, out), (model.merge_and_unload()(x), out)):
        assert relative(got, want) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_every_sample_its_own_expert(shape):
    weight, x = torch.randn(shape), torch.randn(3, 2, shape[1])
    basis = compute_basis(weight)
    z = 1 + 0.2 * torch.randn(3, 1, min(shape))
    mixed = factored_linear(x, weight, None, basis, z)
    for i in range(3):
        assert relative(mixed[i], x[i].double() @ plain_svf(weight, z[i, 0]).T) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_z_of_one_is_the_base_bit_for_bit(shape, dtype):
    weight, x = torch.randn(shape).to(dtype), torch.randn(2, 3, shape[1]).to(dtype)
    basis, one = compute_basis(weight), torch.ones(min(shape))
    assert torch.equal(adapted_weight(weight, basis, one), weight)
    assert torch.equal(factored_linear(x, weight, None, basis, one), nn.functional.linear(x, weight))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("least", [0.8, 0.0], ids=["materialised", "a z of 0"])
def test_the_layers_gradients_are_those_of_autograd(shape, least):
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(2, 3, shape[1])
    basis, z = compute_basis(weight), torch.linspace(least, 1.2, min(shape))
    layer = nn.Linear(shape[1], shape[0])
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    tuned = get_peft_model(nn.Sequential(layer), SvfConfig(target_modules=["0"])).base_model.model[0]
    tuned.svf_z["default"].data = z.clone()
    gradients = []
    for form in ("autograd", "factored", "layer"):
        inputs, scale = x.clone().requires_grad_(), z.clone().requires_grad_()
        if form == "autograd":
            y = nn.functional.linear(inputs, adapted_weight(weight, basis, scale), bias)
        elif form == "factored":
            y = factored_linear(inputs, weight, bias, basis, scale)
        else:
            y = tuned(inputs)
        y.pow(2).sum().backward()
        gradients.append((inputs.grad, tuned.svf_z["default"].grad if form == "layer" else scale.grad))
    for form in gradients[1:]:
        assert all(torch.allclose(got, want, rtol=1e-3, atol=1e-3 * want.abs().max()) for got, want in zip(form, gradients[0], strict=True))


def test_gradients_of_bfloat16_point_where_those_of_float32_do():
    weight, x = torch.randn(64, 96), torch.randn(4, 32, 96)
    basis = compute_basis(weight)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        z = torch.linspace(0.8, 1.2, 64).requires_grad_()
        adapted = adapted_weight(weight, basis, z.detach()).to(dtype)
        MaterialisedLinear.apply(x.to(dtype), z, adapted, basis.vectors, basis.left).float().sin().sum().backward()
        found.append(z.grad)
    assert nn.functional.cosine_similarity(*found, dim=0) > 0.999


def test_sigma_and_order_are_those_of_svd():
    weight = torch.randn(30, 50)
    assert torch.allclose(compute_basis(weight).sigma, torch.linalg.svdvals(weight.double()).float(), rtol=1e-5)


class OnMps(torch.Tensor):
    """Says that it is on Apple's GPU, where there is no float64."""

    device = torch.device("mps", 0)

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_device_without_float64_gets_the_basis_from_the_cpu(shape, monkeypatch):
    moved, weight = [], torch.randn(shape)
    monkeypatch.setattr(Basis, "to", lambda self, device: moved.append(device) or self)
    basis, expected = compute_basis(weight.as_subclass(OnMps)), compute_basis(weight)
    assert torch.equal(basis.vectors, expected.vectors) and torch.equal(basis.sigma, expected.sigma)
    assert moved == [torch.device("mps", 0), torch.device("cpu")]


def test_renormalised_form_keeps_the_sum_of_singular_values():
    weight, p = torch.randn(20, 30), torch.randn(20)
    basis = compute_basis(weight)
    adapted = adapted_weight(weight, basis, renormalised_scale(p, basis.sigma))
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    m = torch.sigmoid(p.double())
    reference = u @ torch.diag(s * m) @ vt * (s.sum() / (s * m).sum())  # the reference code's formula
    assert relative(adapted, reference) < 1e-5
    assert torch.allclose(renormalised_scale(torch.full((20,), 0.1), basis.sigma), torch.ones(20), atol=1e-6)
    assert renormalised_scale(p, torch.zeros(20)).isfinite().all()


@pytest.mark.parametrize("bad", [torch.randn(3), torch.tensor([[1.0, float("nan")]]), torch.tensor([[float("inf"), 1.0]])])
def test_a_damaged_weight_is_refused(bad):
    with pytest.raises(AdapterError, match=r"matrices|damaged"):
        compute_basis(bad)


# --- the disk cache


def test_cache_is_used_and_distrusted(tmp_path, caplog, monkeypatch):
    weight = torch.randn(12, 20)
    first = cached_basis(weight, tmp_path)
    (file,) = tmp_path.glob("*/*.safetensors")
    (tmp_path / "as any other").touch()
    assert file.stat().st_mode == (tmp_path / "as any other").stat().st_mode  # a cache that several people share
    monkeypatch.setattr("t2.adapters.svf.cache.compute_basis", lambda w: pytest.fail("computed although cached"))
    assert torch.equal(cached_basis(weight.clone(), tmp_path).vectors, first.vectors)
    monkeypatch.undo()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damage in (whole[: len(whole) // 2], b"", bytes(flipped)):
        file.write_bytes(damage)
        caplog.clear()
        assert torch.equal(cached_basis(weight, tmp_path).vectors, first.vectors)
        assert "unusable" in caplog.text
        caplog.clear()
        assert torch.equal(cached_basis(weight, tmp_path).vectors, first.vectors)
        assert not caplog.text  # it was rebuilt


def test_cache_of_another_weight_is_not_taken(tmp_path):
    a, b = torch.randn(6, 8), torch.randn(6, 8)
    cached_basis(a, tmp_path)
    basis_b = cached_basis(b, tmp_path)
    by_size = sorted(tmp_path.glob("*/*.safetensors"))
    by_size[0].write_bytes(by_size[1].read_bytes())
    assert torch.equal(cached_basis(b, tmp_path).vectors, basis_b.vectors)
    assert torch.allclose(cached_basis(a, tmp_path).vectors, compute_basis(a).vectors)


def test_unwritable_cache_costs_only_a_warning(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert cached_basis(torch.randn(4, 4), blocked).left
    assert "Could not store" in caplog.text


# --- as a PEFT method


def tiny(kind=LlamaConfig, **changes):
    config = kind(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=50, **changes
    )
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).eval()


def randomise(model):
    for name, p in model.named_parameters():
        if "svf_z" in name:
            p.data = 1 + 0.3 * torch.randn_like(p)


IDS = torch.arange(14).reshape(2, 7)


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_round_trip(kind, dtype, tmp_path):
    base = tiny(kind).to(dtype)
    with torch.no_grad():
        plain = base(IDS).logits
        model = get_peft_model(copy.deepcopy(base), SvfConfig(target_modules="all-linear", task_type="CAUSAL_LM")).eval()
        assert torch.equal(model(IDS).logits, plain)
        randomise(model)
        tuned = model(IDS).logits
        assert not torch.equal(tuned, plain)
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, plain)
        model.save_pretrained(tmp_path / "a")
        again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a").eval()
        assert torch.equal(again(IDS).logits, tuned)
        again.merge_adapter()
        assert torch.equal(again(IDS).logits, tuned)
        again.unmerge_adapter()
        with again.disable_adapter():
            assert torch.equal(again(IDS).logits, plain)
        assert torch.equal(again.merge_and_unload()(IDS).logits, tuned)


def test_two_adapters_switch_exactly(tmp_path):
    base = tiny()
    model = get_peft_model(base, SvfConfig(task_type="CAUSAL_LM"), adapter_name="a").eval()
    model.add_adapter("b", SvfConfig(task_type="CAUSAL_LM"))
    randomise(model)
    with torch.no_grad():
        outputs = {}
        for name in ("a", "b", "a", "b"):
            model.set_adapter(name)
            now = model(IDS).logits
            assert torch.equal(outputs.setdefault(name, now), now)
    assert not torch.equal(outputs["a"], outputs["b"])


def test_changed_data_is_never_served_stale():
    model = get_peft_model(tiny(), SvfConfig(task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        before = model(IDS).logits
        for p in model.parameters():
            if p.requires_grad:
                p.data.mul_(1.5)  # leaves no trace in the parameter's version
        assert not torch.equal(model(IDS).logits, before)


def test_a_cast_model_keeps_z_and_its_gradient_in_float32():
    model = get_peft_model(tiny(), SvfConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    z = model.base_model.model.model.layers[0].self_attn.q_proj.svf_z["default"]
    optimizer = torch.optim.SGD([z], lr=1e-4)
    model(IDS).logits.sum().backward()
    before, gradient = z.detach().clone(), z.grad.clone()
    optimizer.step()
    model.to(torch.bfloat16)  # as TRL does with the very model that it trains, before each generation
    assert z is model.base_model.model.model.layers[0].self_attn.q_proj.svf_z["default"]
    assert torch.equal(z, before - 1e-4 * gradient) and torch.equal(z.grad, gradient)
    assert model(IDS).logits.dtype is torch.bfloat16
    assert model.half().double().get_nb_trainable_parameters()[0] and z.dtype is torch.float32


def test_z_that_was_made_on_the_meta_device_gets_room_on_another():
    with torch.device("meta"):
        layer = get_peft_model(nn.Sequential(nn.Linear(4, 6)), SvfConfig(target_modules=["0"])).base_model.model[0]
    layer.bfloat16().to_empty(device="cpu")
    assert (layer.svf_z["default"].device.type, layer.svf_z["default"].dtype) == ("cpu", torch.float32)


def test_a_model_that_is_cast_while_merged_gets_its_base_back_in_the_new_dtype():
    base = tiny()
    with torch.no_grad():
        plain = copy.deepcopy(base).bfloat16()(IDS).logits
        model = get_peft_model(base, SvfConfig(task_type="CAUSAL_LM")).eval()
        randomise(model)
        model.merge_adapter()
        model.to(torch.bfloat16).unmerge_adapter()
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, plain)


def test_a_weight_that_was_formed_under_autocast_is_as_exact_as_any():
    base = tiny()
    with torch.no_grad():
        models = [get_peft_model(copy.deepcopy(base), SvfConfig(task_type="CAUSAL_LM")).eval() for _ in range(2)]
        for model in models:
            torch.manual_seed(3)
            randomise(model)
        with torch.autocast("cpu", torch.bfloat16):
            models[0](IDS)
        assert torch.equal(*(model(IDS).logits for model in models))
        for module in models[0].modules():
            if isinstance(module, SvfLayer):
                module.get_base_layer().weight.data = module.get_base_layer().weight.data.bfloat16()  # leaves no trace in the version
                assert module.adapted(["default"]).dtype is torch.bfloat16


def test_a_changed_z_is_seen_in_the_middle_of_a_generation_too():
    model = get_peft_model(tiny(), SvfConfig(task_type="CAUSAL_LM")).eval()
    one = IDS[:, :1]
    with torch.no_grad():
        before = model(one).logits
        for p in model.parameters():
            if p.requires_grad:
                p.mul_(1.5)
        changed = model(one).logits
        assert not torch.equal(changed, before)
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data / 1.5
        assert torch.allclose(model(one).logits, before, atol=1e-5)


def test_a_weight_that_holds_no_plain_numbers_is_refused():
    model = tiny()
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"float32, bfloat16 or float16; a Linear has torch\.float8_e4m3fn"):
        get_peft_model(model, SvfConfig(target_modules=["down_proj"]))


@pytest.mark.parametrize(
    ("targets", "per_layer"),
    [("mlp", 32 * 3), ("attention", 32 + 16), ("mlp+attention", 32 * 4 + 16), ("all-linear", 32 * 5 + 16 * 2), (["o_proj"], 32)],
)
def test_targets(targets, per_layer):
    model = get_peft_model(tiny(), SvfConfig(target_modules=targets))
    assert model.get_nb_trainable_parameters()[0] == 3 * per_layer


def test_subset_of_layers():
    model = get_peft_model(tiny(), SvfConfig(target_modules=["q_proj"], layers_to_transform=[0, 2]))
    adapted = [n for n, m in model.named_modules() if isinstance(m, SvfLayer)]
    assert [n.split(".")[4] for n in adapted] == ["0", "2"]


def test_parameter_counts_of_the_paper():
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256
    )
    for targets, count in (("mlp", 393_216), ("attention", 163_840), ("mlp+attention", 557_056)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
            assert get_peft_model(model, SvfConfig(target_modules=targets)).get_nb_trainable_parameters()[0] == count


def test_another_base_is_refused(tmp_path):
    base = tiny()
    layers = {n: m.weight for n, m in base.named_modules() if n.endswith("q_proj")}
    get_peft_model(copy.deepcopy(base), SvfConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).base_fingerprint == fingerprint(layers)
    PeftModel.from_pretrained(copy.deepcopy(base).bfloat16(), tmp_path)  # the same base at another precision is rounded, so:
    torch.manual_seed(7)
    other = tiny()
    other.model.layers[1].self_attn.q_proj.weight.data[0, 0] += 1
    with pytest.raises(AdapterError, match=r"trained on a base model with fingerprint"):
        PeftModel.from_pretrained(other, tmp_path)


def test_a_refused_adapter_leaves_the_model_as_it_was(tmp_path):
    base, other = tiny(), tiny()
    other.model.layers[1].self_attn.q_proj.weight.data[0, 0] += 1
    get_peft_model(other, SvfConfig(target_modules=["q_proj", "v_proj"])).save_pretrained(tmp_path / "wrong")
    get_peft_model(copy.deepcopy(base), SvfConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "right")
    modules = [n for n, _ in base.named_modules()]
    with pytest.raises(AdapterError, match="trained on a base model"):
        PeftModel.from_pretrained(base, tmp_path / "wrong")
    assert [n for n, _ in base.named_modules()] == modules and all(p.requires_grad for p in base.parameters())
    model = PeftModel.from_pretrained(base, tmp_path / "right", is_trainable=True)
    state, trained = list(model.state_dict()), [n for n, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(AdapterError, match="trained on a base model"):
        model.load_adapter(tmp_path / "wrong", "wrong")
    assert list(model.state_dict()) == state and [n for n, p in model.named_parameters() if p.requires_grad] == trained
    assert (list(model.peft_config), model.active_adapters) == (["default"], ["default"])
    model.load_adapter(tmp_path / "right", "again")


def test_fingerprint_is_one_for_all_precisions_of_a_bfloat16_checkpoint():
    weight = torch.randn(64, 64).bfloat16() * torch.logspace(-8, 0, 64).bfloat16()
    prints = {fingerprint({"w": weight.to(dtype)}) for dtype in (torch.bfloat16, torch.float16, torch.float32)}
    assert len(prints) == 1
    assert fingerprint({"w": weight + 0.01}) not in prints
    assert fingerprint({"v": weight}) not in prints


def test_bad_configurations():
    with pytest.raises(ValueError, match="svf_form must be one of"):
        SvfConfig(svf_form="sigmoid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"nn\.Linear"):
        get_peft_model(tiny(), SvfConfig(target_modules=["embed_tokens"]))


def test_registering_twice_is_harmless():
    register()
    register()
    assert PeftType("SVF") is PeftType.SVF
    assert "SVF" in [member.value for member in PeftType]
