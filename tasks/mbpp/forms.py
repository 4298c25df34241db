"""The chat form of MBPP: the task and its asserts are shown, the answer is a function in a code block."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ...harness.sandbox import Sandbox
from .scoring import job, plus_job

# ```code in a line```, lest its end open a block; or a fence with what stands behind it, and the block up to the next fence or the end.
_BLOCK = re.compile(r"```(?:[^`\n]*```|([^`\n]*)\n(.*?)(?:```|\Z))", re.DOTALL)
_PYTHON = re.compile(r"\s*(?:py|$)", re.IGNORECASE)


def chat_prompt(doc: Mapping[str, Any]) -> str:
    """Return the user's message for one document of MBPP (text, test_list) or MBPP+ (prompt, test_list)."""
    tests = "\n".join(doc["test_list"])
    text = doc.get("text") or doc["prompt"]
    return f"{text}\nYour code should pass these tests:\n{tests}\nReply with the Python code only, in a ```python block."


def extract_code(reply: str) -> str:
    """Return the first code block that is marked as Python or not at all, else the first; a reply without one is taken as code."""
    blocks = [match.groups() for match in _BLOCK.finditer(reply.replace("\r\n", "\n")) if match[2] is not None]
    python = [code for tag, code in blocks if _PYTHON.match(tag)]
    return textwrap.dedent([*python, *(code for _, code in blocks), reply][0])


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
