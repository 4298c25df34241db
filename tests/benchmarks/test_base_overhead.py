"""`--model t2 --model_args strategy=base` against `--model hf` on 20 GSM8K prompts: the same answers, at most 1.05 times the seconds.

    python -m pytest -m slow tests/benchmarks/test_base_overhead.py -s

Both models run in one process, prompt by prompt in turn, and the one that goes first changes each time, so that what else the machine does
falls on both. Each prompt counts with its fastest of three rounds.
"""

import time

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from pytest_benchmark.fixture import BenchmarkFixture

from t2.harness.fetch import default_model, load_rows
from t2.harness.model import T2LM

from .conftest import Hold

PROMPTS, ROUNDS, TOKENS, LIMIT = 20, 3, 48, 1.05


def measure() -> tuple[dict[str, float], dict[str, list[str]]]:
    """Seconds and answers of both."""
    folder = str(default_model())
    rows = load_rows("gsm8k", "test")[:PROMPTS]
    options = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": TOKENS}
    requests = [
        Instance("generate_until", r, (f"Question: {r['question']}\nAnswer:", options), 0, ("gsm8k", i, 1)) for i, r in enumerate(rows)
    ]
    models = {"hf": HFLM(folder, device="cpu"), "t2": T2LM(folder, strategy="base", device="cpu")}
    answers: dict[str, list[str]] = {name: [""] * PROMPTS for name in models}
    best = {name: [float("inf")] * PROMPTS for name in models}
    for lm in models.values():
        lm.generate_until(requests[:1], disable_tqdm=True)
    for turn in range(ROUNDS):
        for i, request in enumerate(requests):
            for name in ("hf", "t2") if (i + turn) % 2 else ("t2", "hf"):
                start = time.perf_counter()
                answers[name][i] = models[name].generate_until([request], disable_tqdm=True)[0]
                best[name][i] = min(best[name][i], time.perf_counter() - start)
    return {name: sum(times) for name, times in best.items()}, answers


@pytest.mark.slow
def test_base_costs_no_more_than_hf_and_answers_the_same(benchmark: BenchmarkFixture, hold: Hold) -> None:
    seconds, answers = benchmark.pedantic(measure)
    ratio = seconds["t2"] / seconds["hf"]
    print(f"\n{PROMPTS} GSM8K prompts, {TOKENS} new tokens: hf {seconds['hf']:.1f} s, t2 {seconds['t2']:.1f} s, ratio {ratio:.3f}")
    assert answers["t2"] == answers["hf"] and sum(map(bool, answers["hf"])) > PROMPTS // 2
    hold(f"t2 with strategy=base / hf, {PROMPTS} prompts", ratio, LIMIT)
