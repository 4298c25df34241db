"""``python -m t2.baselines.merge ADAPTER FOLDER [MODEL]``: a PEFT adapter merged into its base model, which any engine loads."""

import sys
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..harness.fetch import default_model


def merge(adapter: str, folder: str, model: str | None = None) -> None:
    """Write the merged model and its tokenizer to `folder`, in float32.

    Args:
        adapter: folder of the adapter.
        folder: to write.
        model: the adapter's base; None for the default model.
    """
    source = model or str(default_model())
    base: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


if __name__ == "__main__":
    merge(*sys.argv[1:])
