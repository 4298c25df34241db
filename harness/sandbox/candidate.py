"""The candidate's process, inside its jail: loads the untrusted program and answers calls of the judge.

Nothing here is trusted after the program is loaded: it may replace any of it. What it can send is bounded by what `codec.decode` accepts.
"""

import builtins
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import codec


class _Worker:
    def __init__(self, channel: codec.Channel) -> None:
        self.channel = channel
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.module = types.ModuleType("candidate")  # a real module: dataclasses and typing look their module up

    def opaque(self, value: Any) -> int:
        """Number of a live object; the same object keeps its number (and `objects` keeps it alive)."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]

    def load(self, source: str, names: list[str]) -> dict[str, Any]:
        try:
            code = compile(source, "<candidate>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            return {"syntax": _describe(error)[1]}
        sys.modules["candidate"] = self.module
        exec(code, self.module.__dict__)  # noqa: S102 (this is the jail)
        known = self.module.__dict__
        return {"names": {n: self.kind(known[n]) for n in names if n in known}}

    def kind(self, value: Any) -> Any:
        if type(value) is types.ModuleType:
            return ["m"]
        return ["v", codec.encode(value, self.opaque)]

    def perform(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "load":
            return self.load(request["source"], request["names"])
        target = self.objects[request["handle"]]
        args = [codec.decode(a, self.objects.__getitem__) for a in request.get("args", [])]
        if op != "call":
            return {"value": codec.encode(_OPERATIONS[op](target, *args), self.opaque)}
        kwargs = {k: codec.decode(v, self.objects.__getitem__) for k, v in request["kwargs"].items()}
        watched = any(map(codec.has_mutable, request["args"]))
        before = codec.encode(args, self.opaque) if watched else None
        reply = {"value": codec.encode(target(*args, **kwargs), self.opaque)}
        if watched and (after := codec.encode(args, self.opaque)) != before:
            reply["args"] = after[1]
        return reply

    def serve(self) -> None:
        while True:
            request = self.channel.receive()
            try:
                reply = self.perform(request)
            except BaseException as error:
                reply = {"error": _describe(error)}
            try:
                self.channel.send(reply)
            except (codec.CodecError, MemoryError, RecursionError) as error:
                self.channel.send({"error": _describe(error)})


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "getitem": lambda target, key: target[key],
}


def _describe(error: BaseException) -> list[str]:
    """Name of the nearest builtin class, text, own name."""
    try:
        text = str(error)[:2000]
    except BaseException:
        text = ""
    known = next((c.__name__ for c in type(error).__mro__ if getattr(builtins, c.__name__, None) is c), "Exception")
    return [known, str(text), str(type(error).__name__)]


def main(message_bytes: int) -> None:
    """Serve the judge on descriptors 3 (calls) and 4 (replies) until it goes away."""
    channel = codec.Channel(3, 4, message_bytes)
    channel.send({"hello": 1})
    try:
        _Worker(channel).serve()
    except (EOFError, OSError):
        os._exit(0)
