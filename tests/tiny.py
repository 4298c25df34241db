"""A whole model in a folder, small enough for any test: a byte-level tokenizer, a random Llama, experts that visibly change it."""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from t2.adapters.experts import write_card
from t2.adapters.svf import SvfConfig, SvfLayer, fingerprint

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token per byte, and ChatML's two."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    fast.chat_template = template
    return fast


def model(seed: int = 1, dtype: torch.dtype = torch.float32, positions: int = 4096):
    """A random Llama of two layers over that vocabulary, drawn wide enough for its answers to depend on its input."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=258,
        max_position_embeddings=positions,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def save(folder: Path, template: str | None = CHATML, seed: int = 1, dtype: torch.dtype = torch.float32, positions: int = 4096) -> Path:
    """Write model and tokenizer to `folder`."""
    model(seed, dtype, positions).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def save_expert(folder: Path, seed: int, base: Path, strength: float = 0.5, **card: Any) -> Path:
    """Write an expert for the model in `base`: z = 1 + noise on every linear matrix."""
    config = SvfConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    config.base_fingerprint = fingerprint(
        {n.removeprefix("base_model.model."): m.base_weight() for n, m in peft.named_modules() if isinstance(m, SvfLayer)}
    )
    generator = torch.Generator().manual_seed(seed)
    for p in peft.parameters():
        if p.requires_grad:
            p.data += strength * torch.randn(p.shape, generator=generator)
    peft.save_pretrained(folder)
    write_card(folder, {"name": folder.name, **card})
    return folder


def save_experts(folder: Path, base: Path, names: tuple[str, ...] = ("math", "code", "reasoning")) -> dict[str, Path]:
    """Write an expert of each name."""
    return {name: save_expert(folder / name, i + 1, base) for i, name in enumerate(names)}
