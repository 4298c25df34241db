"""The trainer's parts that need no training: batches of next-token prediction, the run's folder, sweeps, settings, and errors."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from t2.baselines import ntp, run_folder
from t2.baselines.config import TrainConfig
from t2.baselines.run_folder import RunFolder

ORIGIN = {"versions": {"t2": "1"}, "data_sha256": {"train": "a"}}


@pytest.mark.parametrize("side", ["left", "right"])
def test_solutions_are_padded_on_the_right_whatever_side_a_rollout_has_set(side):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")
    tokenizer.padding_side = side
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, *ids[1:]]} for ids in ([5, 6, 7], [8, 9])]
    batch = ntp._collator(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert tokenizer.padding_side == side


def test_next_token_prediction_stays_on_one_device_a_process(monkeypatch, tmp_path):
    for name, answer in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    run = SimpleNamespace(
        config=TrainConfig("x", "y", prompts_per_step=8), processes=SimpleNamespace(count=1), folder=SimpleNamespace(path=tmp_path)
    )
    try:
        arguments = ntp._arguments(run, 10)
        assert (arguments.device.type, arguments.n_gpu, arguments.train_batch_size) == ("cuda", 1, 8)
    finally:
        PartialState._reset_state()


def test_a_state_is_read_onto_the_cpu_wherever_it_was_written(monkeypatch, tmp_path):
    folder = RunFolder(tmp_path, {"lr": 1.0}, ORIGIN)
    folder.save_state({"weights": torch.zeros(2)})
    plain, places = torch.load, []

    def load(*args, **options):
        places.append(options.get("map_location"))
        return plain(*args, **options)

    monkeypatch.setattr(run_folder.torch, "load", load)
    assert torch.equal(folder.load_state(first=True)["weights"], torch.zeros(2)) and places == ["cpu"]
