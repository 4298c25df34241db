"""Half precision without instructions for it: measured, and told or avoided where it matters."""

import pytest
import torch

from t2.harness import half_precision


@pytest.mark.parametrize(
    ("times", "device", "dtype", "told"),
    [
        (6.94, "cpu", torch.bfloat16, True),
        (6.94, "cpu", torch.float16, True),
        (1.9, "cpu", torch.bfloat16, False),
        (6.94, "cpu", torch.float32, False),
        (6.94, "cuda", torch.bfloat16, False),
    ],
)
def test_a_slow_half_is_told_with_the_cure(monkeypatch, caplog, times, device, dtype, told):
    monkeypatch.setattr(half_precision, "slowdown", lambda _: times)
    half_precision.tell_if_slow(torch.device(device), dtype)
    name = str(dtype).removeprefix("torch.")
    message = f"This CPU takes 6.9 times as long for a matrix product in {name} as in float32: dtype=float32 is faster."
    assert caplog.messages == [message] * told


@pytest.mark.parametrize(("times", "given"), [(6.94, {"dtype": "float32"}), (1.9, {})])
def test_the_default_model_is_loaded_in_what_is_fast(monkeypatch, caplog, times, given):
    monkeypatch.setattr(half_precision, "slowdown", lambda _: times)
    with caplog.at_level("INFO", logger="t2"):
        assert half_precision.for_default_model() == given
    message = "The default model is loaded in float32: in bfloat16 this CPU takes 6.9 times as long for a matrix product."
    assert caplog.messages == [message] * bool(given)


def test_the_slowdown_is_that_of_the_products(monkeypatch):
    half_precision.slowdown.cache_clear()
    now = [0.0]
    seconds = {torch.float32: 0.5, torch.bfloat16: 2.0}

    def linear(tokens, weight):
        now[0] += seconds[tokens.dtype]

    monkeypatch.setattr(half_precision.F, "linear", linear)
    monkeypatch.setattr(half_precision.time, "perf_counter", lambda: now[0])
    assert half_precision.slowdown(torch.bfloat16) == 4.0
    monkeypatch.undo()
    half_precision.slowdown.cache_clear()
    assert 0 < half_precision.slowdown(torch.bfloat16) < float("inf")
