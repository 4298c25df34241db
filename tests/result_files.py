"""Result files and logged samples in lm-eval 0.4.13's format, written by the tests."""

import hashlib
import json
import math
from pathlib import Path


def share(k, n):
    return {"value": k / n, "stderr": math.sqrt((k / n) * (1 - k / n) / (n - 1)) if n > 1 else "N/A", "n": n}


def result(tasks, model="hf", args=None, groups=None, t2=None, date=1_760_000_000.0, **config):
    """A result file: tasks maps name -> {metric,filter: share(...)}; groups maps name -> (members, {metric: share})."""
    data = {
        "results": {},
        "group_subtasks": {},
        "configs": {},
        "versions": {},
        "n-shot": {},
        "higher_is_better": {},
        "n-samples": {},
        "config": {
            "model": model, "model_args": args or {}, "model_num_parameters": 134515008, "batch_size": 1, "device": "cpu", "limit": None,
            "gen_kwargs": {}, "random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234, **config,
        },
        "date": date,
        "pretty_env_info": "PyTorch version: 2.13.0+cpu\nGPU models and configuration: Could not collect\nModel name:     Some CPU",
        "transformers_version": "5.19.0",
        "lm_eval_version": "0.4.13",
        "task_hashes": {},
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": "12.5",
    }  # fmt: skip

    def add(name, metrics, leaf):
        row = {"name": name, "alias": name}
        for key, score in metrics.items():
            metric, _, filt = key.partition(",")
            row |= {"sample_len": score["n"], key: score["value"], f"{metric}_stderr,{filt}": score["stderr"]}
            data["higher_is_better"].setdefault(name, {})[metric] = True
        data["results"][name] = row
        data["versions"][name] = 1.0 if leaf else "1.0"
        data["n-shot"][name] = 0
        if leaf:
            data["n-samples"][name] = {"original": row.get("sample_len", 0), "effective": row.get("sample_len", 0)}
            data["configs"][name] = {"task": name, "doc_to_text": "{{q}}", "generation_kwargs": {"until": ["\n"]}}

    for name, metrics in tasks.items():
        add(name, metrics, leaf=True)
    for name, (members, metrics) in (groups or {}).items():
        add(name, metrics, leaf=False)
        data["group_subtasks"][name] = members
    if t2:
        data["t2"] = t2
    return data


def t2_section(strategy="prompt", passes=None, **more):
    section = {"schema": 1, "strategy": strategy, "dispatch": "score", "experts": {"math": "ab" * 32}, "base": "ba5e" * 8}
    return section | {"passes": passes or {}, "sandbox": None} | more


def cost(seconds, prompts=10, tokens_in=100, tokens_out=0, switches=0):
    return {"seconds": seconds, "prompts": prompts, "tokens_in": tokens_in, "tokens_out": tokens_out, "switches": switches}


def acc(k, n=100, **task):
    return {"arc": {"acc,none": share(k, n)}} | task


def write(path, data):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return str(path)


def sample(doc, filt="none", t2=None, **metrics):
    """A line of `--log_samples`, as lm-eval 0.4.13 writes it."""
    return {
        "doc_id": doc, "doc": {"q": f"question {doc}"}, "target": "x", "arguments": {"gen_args_0": {"arg_0": f"question {doc}"}},
        "resps": [["reply"]], "filtered_resps": ["reply"], "filter": filt, "metrics": list(metrics),
        "doc_hash": hashlib.sha256(str(doc).encode()).hexdigest(), "prompt_hash": "", "target_hash": "", **metrics,
        **({"t2": t2} if t2 else {}),
    }  # fmt: skip


def log(path, task, samples):
    return write(Path(path).with_name(f"samples_{task}.jsonl"), "".join(json.dumps(each) + "\n" for each in samples))


def write_logged(path, data):
    """Write a result file with samples beside it, whose first documents are right, as many as the scores say."""
    for task in data["configs"]:
        row, lines = data["results"][task], []
        for key in row:
            metric, _, filt = key.partition(",")
            if filt and not metric.endswith("_stderr"):
                right = round(row[key] * row["sample_len"])
                lines += [sample(doc, filt, **{metric: float(doc < right)}) for doc in range(row["sample_len"])]
        log(path, task, lines)
    return write(path, data)


def paper_like():
    """Write, into the current folder, an hf base, an hf adapter and a t2 run on math (two subtasks) and humaneval; return their paths."""

    def tasks(a, b, extracted, human):
        return {
            "math_algebra": {"math_verify,none": share(a, 100), "extracted,none": share(extracted, 100)},
            "math_geometry": {"math_verify,none": share(b, 100), "extracted,none": share(extracted, 100)},
            "humaneval": {"pass@1,create_test": share(human, 20)},
        }

    def math_group(a, b, extracted):
        both = {"math_verify,none": share(a + b, 200), "extracted,none": share(2 * extracted, 200)}
        return {"math": (["math_algebra", "math_geometry"], both)}

    passes = {
        "math_algebra": {"pass1": cost(1.5, 100, 5000), "pass2": cost(10, 100, 6000, 2000, 1), "chosen": {"math": 90, "base": 10}},
        "math_geometry": {"pass1": cost(1.0, 100, 5000), "pass2": cost(10, 100, 7000, 2000, 1), "chosen": {"math": 80, "base": 20}},
        "humaneval": {"pass1": cost(0.5, 20, 900), "pass2": cost(5, 20, 1000, 700, 1), "chosen": {"code": 20}},
    }
    base = result(tasks(15, 5, 80, 2), args={"pretrained": "org/Small"}, groups=math_group(15, 5, 80))
    lora = result(tasks(16, 4, 85, 2), args={"pretrained": "org/Small", "peft": "runs/lora_math"}, groups=math_group(16, 4, 85))
    section = t2_section(passes=passes, sandbox="bwrap")
    adaptive = result(tasks(50, 40, 99, 3), model="t2", groups=math_group(50, 40, 99), t2=section, date=1_760_003_600.0)
    for data in (base, lora, adaptive):
        data["n-samples"]["humaneval"]["original"] = 164
    return [write_logged(f"{name}/results_x.json", data) for name, data in (("base", base), ("lora", lora), ("t2", adaptive))]
