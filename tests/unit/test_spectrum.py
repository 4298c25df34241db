"""Singular values per layer and module, and the command that draws them."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from t2.adapters.errors import AdapterError
from t2.adapters.spectrum import explained_variance, layer_matrices, singular_values
from t2.adapters.svf.cache import cached_basis
from t2.harness import cli


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes))


def test_every_matrix_of_the_layers_and_no_other(model):
    found = [(kind, layer) for kind, layer, _ in layer_matrices(model)]
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    assert sorted(found) == sorted((kind, n) for kind in [*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] for n in (0, 1))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (8, 8), (1, 5)])
@pytest.mark.parametrize("cached", [False, True])
def test_singular_values_are_torchs(shape, cached, tmp_path):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if cached:
        cached_basis(weight)
    sigma = singular_values(weight)
    assert torch.allclose(sigma, torch.linalg.svdvals(weight.double()), rtol=1e-5, atol=1e-6)
    assert list(tmp_path.rglob("*.safetensors")) == [] or cached, "nothing is stored"


def test_explained_variance_of_known_values():
    assert explained_variance(torch.tensor([2.0, 1.0, 1.0])).tolist() == pytest.approx([4 / 6, 5 / 6, 1])
    assert explained_variance(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("weight", "said"), [(torch.ones(3, 4, dtype=torch.int8), "quantisation"), (torch.full((3, 4), torch.nan), "damaged")]
)
def test_weights_without_singular_values(weight, said):
    with pytest.raises(AdapterError, match=said):
        singular_values(weight)


def test_the_command(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    target = tmp_path / "new" / "spectrum.svg"
    assert cli.main(["experts", "spectrum", "--model", str(tmp_path / "model"), "-o", str(target)]) == 0
    said = capsys.readouterr().out.splitlines()
    line = next(line.split() for line in said if line.startswith("mlp.up_proj"))
    assert line[1:3] == ["2", "16"]
    tops = [float(explained_variance(singular_values(w))[7]) for kind, _, w in layer_matrices(model) if kind == "mlp.up_proj"]
    assert line[4] == f"{sum(tops) / 2:.1%}"
    first = target.read_bytes()
    assert cli.main(["experts", "spectrum", "--model", str(tmp_path / "model"), "-o", str(target)]) == 0
    assert target.read_bytes() == first and b"<svg" in first


def test_what_cannot_be_drawn_is_said_before_a_model_is_loaded(tmp_path, capsys):
    assert cli.main(["experts", "spectrum", "--model", "nowhere", "-o", str(tmp_path / "x.txt")]) == 2
    assert "Known: png, svg, pdf" in capsys.readouterr().err
    assert cli.main(["experts", "spectrum", "--model", str(tmp_path / "nowhere"), "-o", str(tmp_path / "x.svg")]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert not Path(tmp_path / "x.svg").exists()
