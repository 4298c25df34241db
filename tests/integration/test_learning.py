"""Proof that SVF-REINFORCE learns: a small model that is right about half of the time is lifted to 85% and more, whatever the seed.

The stand-in: a Llama of two layers, pretrained by next-token prediction on ``a ? b =`` followed by ``plus`` or ``minus`` and the result
modulo ten. It masters both, and mostly takes ``plus`` for an even a, ``minus`` for an odd one. The task rewards the sum alone.
"""

import json
import random
import time

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from t2.baselines.config import TrainConfig
from t2.baselines.train import train
from t2.tasks import training

WORDS = ["<pad>", "<end>", "?", "=", "plus", "minus", *map(str, range(10))]
DIGIT = WORDS.index("0")
PAIRS = [(a, b) for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=len(WORDS), eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = random.Random(0)
    for _ in range(1500):
        rows = []
        for a, b in generator.choices(PAIRS, k=128):
            plus = generator.random() < (0.3 if a % 2 else 0.7)
            y = (a + b if plus else a - b) % 10
            rows.append([DIGIT + a, 2, DIGIT + b, 3, 4 if plus else 5, DIGIT + y, 1])
        ids = torch.tensor(rows)
        labels = ids.clone()
        labels[:, :4] = -100
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.mark.timeout(600)
def test_a_model_that_is_half_right_is_lifted_whatever_the_seed(pretrained, tmp_path, monkeypatch):
    monkeypatch.setenv("T2_CACHE", str(tmp_path / "cache"))
    rows = [{"a": a, "b": b} for a, b in PAIRS] * 4
    task = training.TrainTask(
        "sums",
        lambda doc: f"{doc['a']} ? {doc['b']} =",
        lambda docs, replies: [reply.endswith(str((d["a"] + d["b"]) % 10)) for d, reply in zip(docs, replies, strict=True)],
        max_new_tokens=3,
        rows=lambda: rows,
    )
    monkeypatch.setitem(training.TASKS, "sums", task)
    torch.backends.cuda.enable_cudnn_sdp(True)  # its gradient may not be finite (pytorch#196678)
    started, scores = time.monotonic(), []
    for seed in (0, 1, 2):
        config = TrainConfig(
            name=f"sum{seed}", task="sums", model=str(pretrained), dtype="float32", target_modules="all-linear", steps=120,
            prompts_per_step=256, generation_batch_size=256, lr=2e-2, max_grad_norm=1.0, baseline="batch", eval_every=20, eval_docs=200,
            seed=seed, output=str(tmp_path),
        )  # fmt: skip
        card = (train(config) / "card.json").read_text()
        validation = json.loads(card)["validation"]
        scores.append((validation["before"], validation["after"]))
    print(scores, f"{time.monotonic() - started:.0f} s")
    assert all(0.4 <= before <= 0.7 for before, _ in scores)
    assert all(after >= 0.85 for _, after in scores)
    assert time.monotonic() - started < 240
    assert not torch.backends.cuda.cudnn_sdp_enabled()
