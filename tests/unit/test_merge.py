"""An adapter merged into its base model."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from t2.baselines.merge import merge

from .. import tiny


def test_the_merged_model_answers_as_the_model_with_its_adapter(tmp_path):
    tiny.save(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    ids = torch.arange(40).unsqueeze(0)
    with torch.inference_mode():
        before = base(ids).logits
    adapter = get_peft_model(base, LoraConfig(r=4, use_dora=True, target_modules="all-linear", init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    merge(str(tmp_path / "adapter"), str(tmp_path / "merged"), str(tmp_path / "base"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")).eval()
    with torch.inference_mode():
        expected = with_adapter(ids).logits
        assert torch.allclose(merged(ids).logits, expected, atol=1e-3)
    assert (expected - before).abs().max() > 0.1
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tiny.tokenizer())
