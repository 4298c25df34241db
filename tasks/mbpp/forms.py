"""The chat form of MBPP: the task and its asserts are shown, the answer is a function in a code block."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...harness.sandbox import Sandbox
from .scoring import job, plus_job

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def chat_prompt(doc: Mapping[str, Any]) -> str:
    """Return the user's message for one document of MBPP (text, test_list) or MBPP+ (prompt, test_list)."""
    tests = "\n".join(doc["test_list"])
    text = doc.get("text") or doc["prompt"]
    return f"{text}\nYour code should pass these tests:\n{tests}\nReply with the Python code only, in a ```python block."


def extract_code(reply: str) -> str:
    """Return the first code block of a reply; a reply without one is taken as code."""
    match = _FENCE.search(reply)
    return match.group(1) if match else reply


def programs(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the programs of the replies: the filter of the task ``mbpp_chat``."""
    return [[extract_code(reply) for reply in replies] for replies in resps]


def correct(docs: Sequence[Mapping[str, Any]], replies: Sequence[str]) -> list[bool]:
    """Judge replies in the sandbox: True where all asserts of the document pass (for MBPP+, EvalPlus's).

    Raises:
        SandboxUnavailable: the sandbox cannot run here.
    """
    jobs = [(plus_job if "test" in doc else job)(extract_code(reply), doc) for doc, reply in zip(docs, replies, strict=True)]
    return [verdict.passed for verdict in Sandbox().judge_many(jobs)]
