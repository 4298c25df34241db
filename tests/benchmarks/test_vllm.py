"""`t2-vllm` against `t2`, lm-eval's `vllm` and plain recombination, on the default model in float32: `make bench-vllm`.

One engine and one transformers model in one process. Prompts are the first test documents of lm-eval's tasks `math500`, `humaneval` and
`arc_challenge_chat`, as `lm_eval --tasks …` asks them.
"""

import time
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager, get_task_dict

from t2.adapters.mixture import Mixture
from t2.harness.fetch import load_rows
from t2.harness.model import T2LM

from .conftest import Hold

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3000)]

TASKS = {"math500": 22, "humaneval": 21, "arc_challenge_chat": 21}
PROMPTS, TOKENS, LONG, BATCHES = 64, 32, 128, (16, 32, 64)
MIXTURE = "math=0.4+code=0.3+reasoning=0.3"
SAME, CLOSE, FASTER, OVERHEAD, SWAP = 63, 1e-3, 1.8, 1.03, 0.5


@pytest.fixture(scope="module")
def models() -> Iterator[tuple]:
    from t2.harness.vllm_model import T2VLLM

    ours = T2VLLM(strategy="prompt", dtype="float32", max_model_len=2048)
    theirs = T2LM(strategy="prompt", dtype="float32", device="cpu", batch_size=PROMPTS)
    yield ours, theirs
    ours.model.llm_engine.engine_core.shutdown()


@cache
def contexts() -> list[str]:
    found = []
    for name, count in TASKS.items():
        task = get_task_dict([name], TaskManager())[name]
        task.build_all_requests(limit=count, rank=0, world_size=1)
        found += [instance.args[0] for instance in task.instances[:count]]
    assert len(found) == PROMPTS
    return found


def asked(tokens: int) -> list[Instance]:
    options = {"until": ["\n\n\n"], "max_gen_toks": tokens, "do_sample": False}
    return [Instance("generate_until", {}, (context, options), 0, ("t", i, 1)) for i, context in enumerate(contexts())]


def plain(lm, kind: str, requests: list[Instance]) -> list:
    """What lm-eval's own class answers, with the weights in force."""
    return getattr(lm.host, kind)(lm, requests, disable_tqdm=True)


def seconds(act) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


@pytest.mark.parametrize("name", ["base", "math", "code", "reasoning", MIXTURE])
def test_answers_equal_those_of_t2(benchmark, models, name: str) -> None:
    mixture = Mixture.base() if name == "base" else Mixture.parse(name)
    for lm in models:
        lm.bank.apply(mixture)
    texts, expected = benchmark.pedantic(lambda: [plain(lm, "generate_until", asked(TOKENS)) for lm in models])
    same = sum(a == b for a, b in zip(texts, expected, strict=True))
    pairs = [
        Instance("loglikelihood", {}, (context, text or " "), 0, ("t", i, 1))
        for i, (context, text) in enumerate(zip(contexts(), expected, strict=True))
    ]
    scores = [[score for score, _ in plain(lm, "loglikelihood", pairs)] for lm in models]
    worst = max(abs(a - b) for a, b in zip(*scores, strict=True))
    print(f"\n{name}: {same} of {PROMPTS} answers equal; log-likelihoods differ by {worst:.1e} at most")
    for lm in models:
        lm.bank.apply(Mixture.base())
    assert same >= SAME and worst <= CLOSE


def test_more_tokens_a_second_than_t2(benchmark, models, hold: Hold) -> None:
    """Replies of `LONG` tokens each to GSM8K's questions, so that generation is what is measured; both models are warm."""
    ours, theirs = models
    options = {"until": [], "max_gen_toks": LONG, "do_sample": False}
    rows = load_rows("gsm8k", "test")[:PROMPTS]
    questions = [Instance("generate_until", {}, (row["question"], options), 0, ("t", i, 1)) for i, row in enumerate(rows)]
    for lm in models:
        lm.bank.apply(Mixture.single("math"))
        plain(lm, "generate_until", asked(2)[:8])

    def rate(lm) -> float:
        """New tokens a second."""
        texts: list[str] = []
        spent = seconds(lambda: texts.extend(plain(lm, "generate_until", questions)))
        return sum(ours.count_tokens(texts)) / spent

    fast = benchmark.pedantic(lambda: rate(ours))
    slow = {}
    for theirs.batch_size_per_gpu in BATCHES:
        slow[theirs.batch_size_per_gpu] = rate(theirs)
    best = max(slow, key=slow.__getitem__)
    shown = ", ".join(f"{value:.0f} (batch {size})" for size, value in slow.items())
    print(f"\n{PROMPTS} prompts, {LONG} new tokens each: t2-vllm {fast:.0f} tokens/s, t2 {shown}")
    for lm in models:
        lm.bank.apply(Mixture.base())
    hold(f"seconds a token, t2-vllm / t2 at its best batch size ({best})", slow[best] / fast, 1 / FASTER)


def test_the_base_strategy_costs_what_lm_evals_vllm_does(benchmark, models, hold: Hold) -> None:
    ours, _ = models
    strategy = ours.strategy
    ours.two_pass_setup(type(strategy)("fixed"))
    best = {"t2-vllm": float("inf"), "vllm": float("inf")}
    ways = {
        "t2-vllm": lambda: ours.generate_until(asked(16), disable_tqdm=True),
        "vllm": lambda: plain(ours, "generate_until", asked(16)),
    }

    def rounds() -> None:
        for i in range(6):
            for name in sorted(ways, reverse=bool(i % 2)):  # each is first as often as the other
                ours.model.reset_prefix_cache()
                best[name] = min(best[name], seconds(ways[name]))

    benchmark.pedantic(rounds)
    ours.two_pass_setup(strategy)
    hold(f"t2-vllm strategy=base / vllm ({best['t2-vllm']:.2f} s / {best['vllm']:.2f} s)", best["t2-vllm"] / best["vllm"], OVERHEAD)


def test_a_swap_costs_less_than_recombination(benchmark, models, hold: Hold) -> None:
    """Every swap is to a mixture that was not there before."""
    ours, theirs = models
    layers = dict(theirs.model.named_modules())
    svd = {}
    for name in theirs.bank._base:
        basis, weight = theirs.bank._basis(name), layers[name].weight.data
        q, sigma, projection = basis.vectors, basis.sigma, basis.project(weight)
        svd[name] = (q, sigma, projection / sigma.unsqueeze(1)) if basis.left else (projection / sigma, sigma, q.T.contiguous())
    swaps, plainly = [], []

    @torch.inference_mode()
    def recombine(mixture: Mixture) -> None:
        for name, (u, sigma, vt) in svd.items():
            layers[name].weight.data = u @ torch.diag(sigma * theirs.bank.scale(mixture, name)) @ vt

    def rounds() -> None:
        for i in range(5):
            mixture = Mixture.of({"math": 0.1 * i + 0.05, "code": 0.4, "reasoning": 0.5 - 0.1 * i})
            swaps.append(seconds(lambda m=mixture: ours.bank.apply(m)))
            plainly.append(seconds(lambda m=mixture: recombine(m)))

    benchmark.pedantic(rounds)
    restored = seconds(lambda: ours.bank.apply(Mixture.base()))
    for name, weight in theirs.bank._base.items():
        layers[name].weight.data = weight
    swaps.sort(), plainly.sort()
    print(f"\n{len(svd)} matrices: swap {swaps[2]:.2f} s, the base back {restored:.2f} s, U·diag·V alone {plainly[2]:.2f} s (medians of 5)")
    hold(f"swap / U·diag·V of all matrices ({swaps[2]:.2f} s / {plainly[2]:.2f} s)", swaps[2] / plainly[2], SWAP)
