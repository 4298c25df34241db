"""From one cached mixture to another, on the default model: at most three times a memory copy of the same bytes.

    python -m pytest -m slow tests/benchmarks/test_switching.py

Two mixtures of the shipped experts, which the bank keeps. After all the switching the model's logits are those of before, bit for bit.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from t2.adapters.bank import ExpertBank
from t2.adapters.mixture import Mixture
from t2.harness.fetch import default_model

LIMIT = 3.0


@pytest.mark.slow
def test_switching_costs_no_more_than_three_copies(compare: Callable[..., None]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()
    bank = ExpertBank.load(model, "the default model")
    mixtures = [Mixture.single("reasoning"), Mixture.of({"math": 0.5, "code": 0.5})]
    assert len(bank.names) >= 2
    ids = torch.arange(100, 120).unsqueeze(0)

    def logits(mixture: Mixture) -> torch.Tensor:
        bank.apply(mixture)
        with torch.inference_mode():
            return model(ids).logits

    first = [logits(mixture) for mixture in mixtures]
    assert not torch.equal(*first)
    adapted = [module.weight.data for name, module in model.named_modules() if name in bank.experts["math"].vectors]
    copies = [torch.empty_like(weight) for weight in adapted]
    megabytes = sum(w.numel() * w.element_size() for w in adapted) / 1e6
    following = cycle(mixtures)

    def copy() -> None:
        for there, weight in zip(copies, adapted, strict=True):
            there.copy_(weight)

    what = f"switching {len(adapted)} cached matrices / copying their {megabytes:.0f} MB"
    compare(what, lambda: bank.apply(next(following)), copy, LIMIT, rounds=20)
    assert bank.switches >= 20
    assert [torch.equal(logits(mixture), before) for mixture, before in zip(mixtures, first, strict=True)] == [True, True]
    bank.apply(Mixture.base())
