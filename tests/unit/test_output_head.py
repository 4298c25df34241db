"""The output head of a model that answers a batch."""

import torch

from t2.adapters.output_head import read_contiguous_rows

from .. import tiny


def test_the_head_reads_contiguous_rows_and_says_the_same():
    seen: list[bool] = []
    logits = []
    for mended in (False, True):
        model = tiny.model()
        if mended:
            read_contiguous_rows(model)
        model.get_output_embeddings().register_forward_pre_hook(lambda head, args: seen.append(args[0].is_contiguous()))
        with torch.no_grad():
            logits.append(model(torch.arange(12).view(3, 4), logits_to_keep=2).logits)
    assert seen == [False, True]  # where the first is True, transformers does it by itself, and the hook can go
    assert torch.allclose(*logits, atol=1e-6)
