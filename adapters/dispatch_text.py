"""The texts of pass 1: which part of a context is the question, and where it goes in the adaptation prompt."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .dispatch_prompt import Category, instruction

_MARK = "@@QUESTION@@"


class ChatFrame:
    """What a tokenizer's chat template puts around the last user turn; nothing where there is no template.

    Found by rendering marked messages, so it holds for any template that shows its messages in order.
    """

    def __init__(self, tokenizer: Any, template_args: Mapping[str, Any] | None = None) -> None:
        self._special = sorted((t for t in tokenizer.all_special_tokens if t), key=len, reverse=True)
        self._opens = self._closes = ""
        if not getattr(tokenizer, "chat_template", None):
            return
        say = lru_cache(None)(lambda *turns: _render(tokenizer, turns, template_args) or "")
        one = say(("user", _MARK)).split(_MARK)
        two = say(("user", "@@A@@"), ("assistant", "@@B@@"), ("user", _MARK)).split("@@B@@")
        if len(one) == 2 and len(two) == 2 and _MARK in two[1]:
            between = two[1].split(_MARK)[0]
            # the end that the text before a first and before a later user turn have in common opens a user turn
            self._opens = _common_end(one[0], between).lstrip()
            self._closes = one[1].strip()

    def question(self, context: str) -> str:
        """Return the last user turn of `context` if it was made with the chat template, else all of it, without special tokens.

        Few-shot examples given as turns of their own are left out; those inside the text, or inside the one user turn, stay.
        """
        text = context
        if self._opens and self._closes and (start := text.rfind(self._opens)) >= 0:
            text = text[start + len(self._opens) :]
            if (end := text.find(self._closes)) >= 0:
                text = text[:end]
        for token in self._special:
            text = text.replace(token, " ")
        return text.strip()


def adaptation_prompt(
    tokenizer: Any, options: Sequence[Category], system_turn: bool = True, template_args: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """Return the prompt's text before and after the question.

    With a chat template the instructions are the system turn and the question the user's; where the template knows no system turn, or
    without `system_turn` (as classifier experts are trained), both are the user's. Without a template they are plain text.
    """
    told = instruction(options)
    if getattr(tokenizer, "chat_template", None):
        one_turn = (("user", f"{told}\n\nQuestion:\n{_MARK}"),)
        for turns in [(("system", told), ("user", _MARK)), one_turn][not system_turn :]:
            text = _render(tokenizer, turns, template_args)
            if text and text.count(_MARK) == 1 and told in text:
                before, after = text.split(_MARK)
                return before, after
    return f"{told}\n\nQuestion:\n", "\n\n"


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of `text` and no others."""
    return tokenizer.encode(text, add_special_tokens=False) if text else []


def encode_after(tokenizer: Any, beginning: str, text: str) -> list[int]:
    """Return the tokens of `text` where it goes on from `beginning`: SentencePiece puts a space before what stands alone.

    Where it is tokenised together with the end of `beginning`, its tokens are those that it has alone.
    """
    start, whole = encode(tokenizer, beginning), encode(tokenizer, beginning + text)
    return whole[len(start) :] if whole[: len(start)] == start else encode(tokenizer, text)


def first_token(tokenizer: Any) -> int | None:
    """Return the token that a tokenizer puts before every text, if any."""
    bare, full = encode(tokenizer, "a"), tokenizer.encode("a")
    return full[0] if full and bare and full[0] != bare[0] else None


def shorten(ids: Sequence[int], limit: int) -> list[int]:
    """Cut the middle out of `ids` where they are more than `limit`: a quarter of the room for the start, the rest for the end."""
    if len(ids) <= limit:
        return list(ids)
    head = limit // 4
    return [*ids[:head], *ids[len(ids) - (limit - head) :]]


def _common_end(one: str, two: str) -> str:
    same = 0
    while same < min(len(one), len(two)) and one[-1 - same] == two[-1 - same]:
        same += 1
    return one[len(one) - same :]


def _render(tokenizer: Any, turns: Sequence[tuple[str, str]], template_args: Mapping[str, Any] | None) -> str | None:
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **(template_args or {}))
    except TemplateError:
        return None
