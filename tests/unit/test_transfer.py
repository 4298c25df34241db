"""Experts put on another model by singular-value order."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from t2.adapters.bank import ExpertBank
from t2.adapters.errors import AdapterError
from t2.adapters.experts import load_expert
from t2.adapters.mixture import Mixture
from t2.adapters.svf import compute_basis
from t2.adapters.transfer import by_order, transfer
from t2.harness.cli import main

from .. import tiny

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2_CACHE", str(root / "cache"))
        base, other = tiny.save(root / "a"), tiny.save(root / "b", seed=2)
        tiny.save_experts(root / "experts", base, ("math", "code"))
        yield SimpleNamespace(root=root, base=str(base), other=str(other), experts=root / "experts")


def llama(**sizes):
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**shape, "vocab_size": 258, **sizes}))


def test_number_i_scales_the_i_th_singular_value_of_the_other_model(world, tmp_path):
    expert, model = load_expert(world.experts / "math"), AutoModelForCausalLM.from_pretrained(world.other)
    made = transfer(expert, model, "b", tmp_path)
    assert made.matched == len(expert.vectors) and made.dropped == made.resized == ()
    new = load_expert(made.path)
    assert new.name == "math_transferred" and all(torch.equal(new.vectors[n], z) for n, z in expert.vectors.items())
    layer = dict(model.named_modules())[Q]
    sigma = torch.linalg.svdvals(layer.weight.detach().double())
    bank = ExpertBank.load(model, "b", {"math_transferred": made.path})  # it is of that base now
    bank.apply(Mixture.single("math_transferred"))
    u, _, vt = torch.linalg.svd(bank._base[Q].double(), full_matrices=False)
    expected = u @ torch.diag(sigma * expert.vectors[Q].double()) @ vt
    torch.testing.assert_close(layer.weight.double(), expected, atol=1e-5, rtol=1e-4)


def test_a_classifier_stays_one(world, tmp_path):
    path = tiny.save_expert(tmp_path / "dispatch", 5, world.base, data={"task": "dispatch"})
    model = AutoModelForCausalLM.from_pretrained(world.other)
    assert load_expert(transfer(load_expert(path), model, "b", tmp_path).path).is_classifier
    assert not load_expert(transfer(load_expert(world.experts / "math"), model, "b", tmp_path).path).is_classifier


def test_the_control_has_the_same_numbers_in_another_order_and_a_seed(world, tmp_path):
    expert, model = load_expert(world.experts / "math"), AutoModelForCausalLM.from_pretrained(world.other)
    one, two = (load_expert(transfer(expert, model, "b", tmp_path / str(i), shuffle=7).path) for i in range(2))
    other = load_expert(transfer(expert, model, "b", tmp_path, shuffle=8).path)
    assert one.name == "math_shuffled7" and one.card["transferred"]["rule"] == "shuffled within each matrix, seed 7"
    for name, z in expert.vectors.items():
        assert torch.equal(one.vectors[name], two.vectors[name]) and not torch.equal(one.vectors[name], other.vectors[name])
        assert not torch.equal(one.vectors[name], z) and torch.equal(one.vectors[name].sort().values, z.sort().values)


def test_other_ranks_and_layers_follow_the_stated_rule(world, tmp_path):
    expert = load_expert(world.experts / "math")
    bigger = llama(hidden_size=64, num_hidden_layers=3)
    made = transfer(expert, bigger, "bigger", tmp_path)
    new = load_expert(made.path).vectors
    assert new.keys() == expert.vectors.keys() - {"lm_head"} | ({"lm_head"} & new.keys()) and Q in made.resized
    assert torch.equal(new[Q][:32], expert.vectors[Q]) and torch.equal(new[Q][32:], torch.ones(32))
    assert ExpertBank.load(bigger, "bigger", {"m": made.path}).names == ["m"]
    smaller = transfer(expert, llama(num_hidden_layers=1, hidden_size=16), "smaller", tmp_path / "s")
    assert any("layers.1." in name for name in smaller.dropped)
    assert torch.equal(load_expert(smaller.path).vectors[Q], expert.vectors[Q][:16])
    assert by_order(torch.tensor([2.0, 3.0]), 3).tolist() == [2.0, 3.0, 1.0]


def test_the_bases_are_sorted_from_the_largest_singular_value(world):
    sigma = compute_basis(torch.randn(6, 9)).sigma
    assert torch.equal(sigma, sigma.sort(descending=True).values)


def test_the_command_line(world, tmp_path, capsys):
    words = ["experts", "transfer", "--from", str(world.experts), "--to", world.other, "-o", str(tmp_path / "new")]
    assert main(words) == 0
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["code_transferred", "math_transferred"]
    card = json.loads((tmp_path / "new" / "math_transferred" / "card.json").read_text())
    assert card["transferred"]["sha256"] == load_expert(world.experts / "math").sha256
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words[:5], str(tmp_path / "nothing"), "-o", str(tmp_path / "n")]) == 2 and "cannot be loaded" in capsys.readouterr().err
    assert main(["experts", "transfer", "--from", str(tmp_path), "--to", world.other]) == 2
    assert "No expert in" in capsys.readouterr().err
    assert main([*words[:-1], "/proc/no"]) == 2 and "cannot be written" in capsys.readouterr().err


def test_experts_keep_their_given_names_and_all_targets_are_looked_at_first(world, tmp_path, capsys):
    new = tmp_path / "new"
    named = f"first={world.experts / 'math'}:second={world.experts / 'code'}"
    words = ["experts", "transfer", "--from", named, "--to", world.other, "-o", str(new)]
    (new / "second_transferred").mkdir(parents=True)
    assert main(words) == 2 and "second_transferred is there already" in capsys.readouterr().err
    assert [p.name for p in new.iterdir()] == ["second_transferred"]
    (new / "second_transferred").rmdir()
    assert main(words) == 0
    assert sorted(p.name for p in new.iterdir()) == ["first_transferred", "second_transferred"]
    assert load_expert(new / "first_transferred").card["transferred"]["from"] == "first"
    assert main([*words, "--shuffle", str(10**23 - 1)]) == 2
    assert f"--shuffle {10**23 - 1}: a seed is a whole number of 64 bits" in capsys.readouterr().err


def test_a_model_without_such_matrices_is_refused(world, tmp_path):
    with pytest.raises(AdapterError, match="nothing to transfer"):
        transfer(load_expert(world.experts / "math"), torch.nn.Sequential(torch.nn.Linear(4, 4)), "mlp", tmp_path)
    assert list(tmp_path.iterdir()) == []
