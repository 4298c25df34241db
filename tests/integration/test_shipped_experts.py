"""The shipped experts on the real default model: PEFT's way and t2's way give the same greedy answers, and differ from the base."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from t2.adapters.experts import load_expert, shipped
from t2.harness.fetch.model import model_folder, problem
from t2.harness.model import T2LM
from t2.tasks.arc.forms import text_prompt

QUESTIONS = [
    "Question: A farmer has 12 hens and buys 30 more. How many hens has he?\nAnswer:",
    "Write a Python function that returns the larger of two numbers.\n",
    text_prompt({"question": "What do plants need to grow?", "choices": {"text": ["plastic", "sunlight", "iron"]}}),
    "The capital of France is",
]


@pytest.fixture(scope="module")
def model():
    if problem(model_folder()):
        pytest.skip("the default model is not in the cache: run t2 fetch")
    return str(model_folder())


def asked():
    options = {"until": ["Question:"], "do_sample": False, "max_gen_toks": 16}
    return [Instance("generate_until", {}, (q, dict(options)), i, ("t", i, 1)) for i, q in enumerate(QUESTIONS)]


def test_the_experts_that_ship():
    assert set(shipped()) == {"math", "code", "reasoning", "dispatch"}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_peft_and_t2_answer_alike(model, name):
    by_peft = HFLM(model, peft=str(shipped()[name]), device="cpu", batch_size=2, dtype="bfloat16")
    expected = by_peft.generate_until(asked(), disable_tqdm=True)
    lm = T2LM(strategy=f"expert:{name}", device="cpu", batch_size=2, dtype="bfloat16")
    assert lm.generate_until(asked(), disable_tqdm=True) == expected
    ids = torch.arange(40, 60).unsqueeze(0)
    with torch.no_grad():
        base = lm.model(ids).logits
        adapted = by_peft.model(ids).logits
        trained = load_expert(shipped()[name]).card["best_step"] > 0
        assert torch.equal(base, adapted) != trained


@pytest.mark.parametrize("name", sorted(shipped()))
def test_cards_say_what_the_trainer_did(name):
    card = load_expert(shipped()[name]).card
    assert card["seed"] == 0
    assert card["data"]["split"].startswith("train")
    assert 0 <= card["best_step"] <= card["steps"]
    assert card["validation"]["after"] >= card["validation"]["before"]
    assert set(card["data"]["sha256"]) == {"train", "validation"}
    curve = (shipped()[name] / "curve.jsonl").read_text().splitlines()
    assert sum('"train"' in line for line in curve) == card["steps"]
