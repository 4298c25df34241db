"""SVF is a PEFT method, so TRL's trainers take it as it is."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from t2.adapters.experts import load_expert
from t2.adapters.svf import SvfConfig

from .. import tiny


def longest_wins(completions, **_):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(("trainer", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)], ids=["grpo", "rloo"])
def test_trl_trains_svf_as_it_is(tmp_path, trainer, config):
    base = tiny.model()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    arguments = config(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
        learning_rate=1e-1, beta=0.1, report_to="none", use_cpu=True, bf16=False, save_strategy="no", logging_steps=1, seed=0,
    )  # fmt: skip
    training = trainer(
        model=base,
        reward_funcs=longest_wins,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["one", "two", "three", "four"]}),
        processing_class=tiny.tokenizer(None),
        peft_config=SvfConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    training.train()
    z = {name: p for name, p in training.model.named_parameters() if p.requires_grad}
    assert z and all(name.endswith("svf_z.default") or "svf_z" in name for name in z)
    assert any((p != 1).any() for p in z.values())
    for name, value in training.model.state_dict().items():
        plain = name.replace("base_model.model.", "").replace("base_layer.", "")
        if plain in before:
            assert torch.equal(value, before[plain])
    training.model.save_pretrained(tmp_path / "expert")
    assert load_expert(tmp_path / "expert").base_fingerprint  # so that it is refused on another base
