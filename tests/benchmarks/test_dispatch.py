"""Pass 1 in its forms, on the default model: seconds against pass 2, and how often the right expert is chosen.

    python -m pytest -m slow tests/benchmarks/test_dispatch.py -s [-k math500 | -k humaneval | -k arc | -k right]

Prompts are the first test documents of lm-eval's tasks as `lm_eval --tasks …` asks them. Nothing was trained or chosen on them: the probe's
data are train splits (MBPP, GSM8K, MATH, ARC). Pass 2 runs once a task, with the experts that `score` chose, at most `TOKENS` new tokens a
prompt (the tasks allow more: a longer pass 2 makes every ratio smaller). Each form's pass 1 counts with the faster of two rounds.
"""

import time
from collections import Counter
from functools import cache

import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager, get_task_dict

from t2.adapters.dispatch_forms import Decision, Setup, make_form
from t2.harness.model import T2LM

TASKS = {"math500": "math", "humaneval": "code", "arc_challenge_chat": "reasoning"}
PROMPTS, BATCH, TOKENS, VOTES = 64, 16, 256, 10
PROBE_LIMIT = {"math500": 0.04, "humaneval": 0.04, "arc_challenge_chat": 0.2}


@cache
def model() -> T2LM:
    return T2LM(device="cpu", batch_size=BATCH)


@cache
def asked(task: str, prompts: int) -> list[Instance]:
    made = get_task_dict([task], TaskManager())[task]
    made.build_all_requests(limit=prompts, rank=0, world_size=1)
    assert len(made.instances) == prompts
    return made.instances


@cache
def form(name: str):
    lm = model()
    return make_form(name, Setup(lm.model, lm.tokenizer, lm.bank.experts, lm.max_length))


def pass_one(name: str, contexts: list[str]) -> tuple[float, list[Decision]]:
    """Return the seconds of one round, the shared instruction and the calibration included, and its decisions."""
    start = time.perf_counter()
    found = form(name).decide(contexts, BATCH)
    return time.perf_counter() - start, found


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_pass_one_costs_little_of_pass_two(task: str) -> None:
    lm, requests = model(), asked(task, PROMPTS)
    contexts = [request.args[0] for request in requests]
    for name in ("score", "generate", "probe"):
        form(name).decide(contexts[:1])
    seconds: dict[str, float] = {}
    for _ in range(2):
        for name in ("score", "probe"):
            seconds[name] = min(seconds.get(name, 9e9), pass_one(name, contexts)[0])
        seconds["task"] = min(seconds.get("task", 9e9), pass_one("score", contexts[:VOTES])[0])
    seconds["generate"] = pass_one("generate", contexts)[0]
    lm.begin_run()
    for request in requests:
        request.arguments[1]["max_gen_toks"] = min(TOKENS, request.arguments[1]["max_gen_toks"])
    lm.generate_until(requests, disable_tqdm=True)
    cost = lm.costs.task(task)["pass2"]
    print(f"\n{task}: {PROMPTS} prompts, pass 2 {cost['seconds']:.1f} s, {cost['tokens_out']} tokens")
    for name in ("generate", "score", "probe", "task"):
        print(f"| {task} | {name} | {seconds[name]:.2f} | {seconds[name] / cost['seconds']:.4f} |")
    assert seconds["score"] <= seconds["generate"] / 3
    assert seconds["probe"] <= PROBE_LIMIT[task] * cost["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "score", "probe"])
def test_how_often_the_right_expert_is_chosen(name: str) -> None:
    right = 0
    for task, expert in TASKS.items():
        found = Counter(d.category for d in pass_one(name, [request.args[0] for request in asked(task, 100)])[1])
        print(f"\n| {task} → {expert} | {name} |", " | ".join(f"{c} {found[c]}" for c in ("code", "math", "reasoning", "others")))
        right += found[expert]
    print(f"{name}: {right} of 300 right")
    assert right >= 294 or name != "probe"
