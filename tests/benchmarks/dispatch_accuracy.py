"""How often pass 1 picks the expert that was trained on a prompt's task, on training prompts as lm-eval's tasks render them.

    python tests/benchmarks/dispatch_accuracy.py [--per-task 60] [--seed 1] [--form score] [--calibrate false] [--pretrained FOLDER]

Prints one Markdown table per form. No test item is read. The settings in `adapters/dispatch*.py` were chosen on seed 0.
"""

import argparse
import random
import time
from collections import Counter

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from t2.adapters.dispatch import Decision, Dispatcher
from t2.adapters.dispatch_prompt import OTHERS
from t2.adapters.svf import model_fingerprint
from t2.harness.fetch import default_model, load_rows


def prompts(per_task: int, seed: int) -> dict[str, tuple[str, list[str]]]:
    """Return task → (the expert that was trained on it or on its like, prompts)."""
    draw = random.Random(seed)

    def some(dataset: str) -> list[dict]:
        rows = load_rows(dataset, "train")
        return draw.sample(rows, min(per_task, len(rows)))

    def mbpp(row: dict) -> str:
        tests = "\n".join(row["test_list"][:3])
        task = f"You are an expert Python programmer, and here is your task: {row['text']}"
        return f"{task} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"

    return {
        "mbpp": ("code", [mbpp(r) for r in some("mbpp")]),
        "gsm8k": ("math", [f"Question: {r['question']}\nAnswer:" for r in some("gsm8k")]),
        "math": ("math", [f"Problem: {r['problem']}\nAnswer:" for r in some("math")]),
        "arc_easy": ("reasoning", [f"Question: {r['question']}\nAnswer:" for r in some("arc_easy")]),
    }


def table(title: str, asked: dict[str, tuple[str, list[str]]], found: dict[str, list[Decision]], options: list[str], seconds: float) -> str:
    """Return a confusion table with the share of right choices, per task and overall; `others` is neither right nor a wrong expert."""
    lines = [f"**{title}**", "", f"| task | right expert | {' | '.join(options)} | right |", f"|---|---|{'---|' * (len(options) + 1)}"]
    right = wrong = total = 0
    for task, (expert, texts) in asked.items():
        counts = Counter(d.category for d in found[task])
        right, total = right + counts[expert], total + len(texts)
        wrong += len(texts) - counts[expert] - counts[OTHERS]
        cells = " | ".join(str(counts[o]) for o in options)
        lines.append(f"| {task} | {expert} | {cells} | {counts[expert] / len(texts):.0%} |")
    unread = sum(not d.readable for ds in found.values() for d in ds)
    shares = f"Right expert {right / total:.1%}, wrong expert {wrong / total:.1%}, base weights {(total - right - wrong) / total:.1%}"
    lines += ["", f"{shares} of {total}; {unread} replies unreadable; {seconds / total:.2f} s a prompt."]
    return "\n".join(lines)


def main() -> None:
    """Measure every form asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-task", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--form", choices=("score", "generate"), action="append")
    parser.add_argument("--calibrate", choices=("true", "false"), action="append")
    parser.add_argument("--pretrained", default=None)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    source = args.pretrained or str(default_model())
    tokenizer = AutoTokenizer.from_pretrained(source)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).to(device).eval()
    name = source.rstrip("/").split("/")[-1]
    print(f"Model {name}, fingerprint {model_fingerprint(model)}, bfloat16, {device}, seed {args.seed}, torch {torch.__version__}\n")
    asked = prompts(args.per_task, args.seed)
    for form in args.form or ("score", "generate"):
        for calibrate in (args.calibrate or ("true", "false")) if form == "score" else ("",):
            chooser = Dispatcher(model, tokenizer, dict.fromkeys(("code", "math", "reasoning")), form, calibrate == "true", 8192)
            texts = [t for _, ts in asked.values() for t in ts]
            start = time.perf_counter()
            decisions = iter(chooser.decide(texts, args.batch_size, progress=True))
            seconds = time.perf_counter() - start
            found = {task: [next(decisions) for _ in ts] for task, (_, ts) in asked.items()}
            title = f"dispatch={form}" + (f", calibrate={calibrate}" if calibrate else "")
            print(table(title, asked, found, chooser.options, seconds), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
