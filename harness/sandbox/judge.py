"""The judge's process, inside a jail of its own: runs the trusted tests against proxies of the candidate's functions.

It alone holds the report channel; the candidate has no descriptor of it and shares no process and no file with it.
"""

import builtins
import contextlib
import json
import os
import sys
from typing import Any

import codec
import marks


class CandidateLost(BaseException):
    """The candidate's process is gone or does not keep to the protocol; not an Exception, so that tests do not swallow it."""


class RemoteError(Exception):
    """An exception of a type that only the candidate knows."""


class Remote:
    """The candidate's process as seen from the tests."""

    def __init__(self, channel: codec.Channel) -> None:
        self.channel = channel
        self.handles: dict[int, Handle] = {}
        self.named: set[int] = set()  # handles of the names that the tests take, as against objects that calls have returned
        self.lost: str | None = None
        self.unsupported: str | None = None

    def handle(self, number: int) -> "Handle":
        """The one proxy of a remote object, so that identity is equality."""
        return self.handles.setdefault(number, Handle(self, number))

    def opaque(self, value: Any) -> int:
        """The number of a proxy; tests cannot send live objects of their own."""
        if type(value) is Handle:
            return object.__getattribute__(value, "_number")
        raise codec.UnsupportedType(f"the tests pass a {type(value).__name__}, which cannot travel to the candidate")

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one request and return the reply, raising what the candidate raised."""
        if self.lost:
            raise CandidateLost(self.lost)
        try:
            self.channel.send(message)
            reply = self.channel.receive()
        except (EOFError, OSError):
            self.lost = "gone"
            raise CandidateLost(self.lost) from None
        except codec.CodecError as error:
            self.lost = f"protocol: {error}"
            raise CandidateLost(self.lost) from None
        if type(reply) is not dict:
            self.lost = "protocol: reply is not an object"
            raise CandidateLost(self.lost)
        if "error" in reply:
            raise _rebuild(reply["error"], message["op"])
        return reply

    def operate(self, op: str, number: int, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Perform `op` on a remote object and rebuild its value here."""
        message: dict[str, Any] = {"op": op, "handle": number}
        try:
            message["args"] = [codec.encode(a, self.opaque) for a in args]
            if kwargs is not None:
                message["kwargs"] = {k: codec.encode(v, self.opaque) for k, v in kwargs.items()}
        except codec.UnsupportedType as error:
            if number in self.named:  # the tests' doing; elsewhere the candidate has returned something that they do not expect
                self.unsupported = str(error)
            raise TypeError(str(error)) from None
        reply = self.ask(message)
        try:
            value = codec.decode(reply.get("value"), self.handle)
            if "args" in reply:
                for mine, theirs in zip(args, reply["args"], strict=True):
                    _replace(mine, codec.decode(theirs, self.handle))
        except (codec.CodecError, ValueError, TypeError, MemoryError) as error:
            self.lost = f"protocol: {error}"
            raise CandidateLost(self.lost) from None
        return value


class Handle:
    """A live object of the candidate: can be called, read, iterated and passed back, never compared by its own `__eq__`.

    Only operations whose result is plain data or another handle are forwarded; containment, comparison and arithmetic are not,
    because there an object of the candidate would decide about the assert.
    """

    __slots__ = ("_number", "_remote")

    def __init__(self, remote: Remote, number: int) -> None:
        object.__setattr__(self, "_remote", remote)
        object.__setattr__(self, "_number", number)

    def _do(self, op: str, *args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        remote = object.__getattribute__(self, "_remote")
        return remote.operate(op, object.__getattribute__(self, "_number"), args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the remote object."""
        return self._do("call", *args, kwargs=kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._do("getitem", key)

    def __iter__(self) -> Any:
        iterator = self._do("iter")
        if type(iterator) is not Handle:
            raise TypeError("the candidate's object is not iterable")
        return iterator

    def __next__(self) -> Any:
        return self._do("next")

    def __len__(self) -> int:
        return self._do("len")

    def __bool__(self) -> bool:
        return self._do("bool") is True


def _rebuild(error: Any, op: str) -> BaseException:
    """The builtin exception that the candidate raised, or the builtin that its own class derives from."""
    name, text, own = map(str, error) if type(error) is list and len(error) == 3 else ("Exception", "", "Exception")
    cls = getattr(builtins, name, None)
    # `all` and `map` take a StopIteration for the end of their input; only an iterator of the candidate may say so.
    quiet = name in ("StopIteration", "StopAsyncIteration") and op != "next"
    plain = name in ("Exception", "BaseException") and own != name
    if isinstance(cls, type) and issubclass(cls, BaseException) and not quiet and not plain:
        for kind in (c for c in cls.__mro__ if c is cls or c not in (Exception, BaseException, object)):
            with contextlib.suppress(Exception):  # some want more than a text: UnicodeDecodeError comes as a UnicodeError
                return kind(text)
    return RemoteError(f"{own}: {text}")


def _replace(mine: Any, theirs: Any) -> None:
    """Give an argument of the tests the content that the candidate left in its copy, as a call in one process would."""
    if type(mine) is not type(theirs):
        return
    if type(mine) is list or type(mine) is bytearray:
        mine[:] = theirs
    elif hasattr(mine, "clear") and hasattr(mine, "update"):
        mine.clear()
        mine.update(theirs)
    elif hasattr(mine, "clear") and hasattr(mine, "extend"):
        mine.clear()
        mine.extend(theirs)


class Judge:
    """One job: load the candidate, run the tests, report."""

    def __init__(self, job: dict[str, Any], remote: Remote) -> None:
        self.job, self.remote = job, remote
        self.held: set[int] = set()
        self.lines: list[tuple[int, int]] = []

    def run(self) -> dict[str, Any]:
        """Return the report: outcome, detail, failing assert and the asserts that held."""
        try:
            return self._load() or self._test()
        except CandidateLost as error:
            return self._lost(str(error))
        except MemoryError:
            return {"outcome": "memory", "detail": "the values that the program returned do not fit"}

    def _lost(self, why: str) -> dict[str, Any]:
        return {"outcome": "gone"} if why == "gone" else {"outcome": "failed", "reason": "protocol", "detail": why}

    def _load(self) -> dict[str, Any] | None:
        self.space: dict[str, Any] = {"__name__": "tests"}
        try:
            exec(compile(self.job["helpers"], "<helpers>", "exec"), self.space)  # noqa: S102 (trusted source)
        except Exception as error:
            return {"outcome": "unusable", "detail": f"the helpers do not run: {type(error).__name__}: {error}"}
        try:
            reply = self.remote.ask({"op": "load", "source": self.job["candidate"], "names": self.job["names"]})
        except CandidateLost:
            raise
        except BaseException as error:
            return _raised(error, "load", "when the program was loaded")
        if "syntax" in reply:
            return {"outcome": "syntax", "detail": str(reply["syntax"])}
        try:
            defined = dict(reply["names"])
            self._bind(defined)
            missing = [n for n in self.job["entry_points"] if defined.get(n, "m")[0] == "m"]  # a module is no function
        except (codec.CodecError, KeyError, TypeError, ValueError, IndexError):
            return self._lost("protocol: malformed names")
        if missing:
            return {"outcome": "failed", "reason": "missing_name", "detail": f"the program does not define {', '.join(missing)}"}
        return None

    def _bind(self, defined: dict[str, Any]) -> None:
        trusted = set(self.space)
        for name in self.job["names"]:
            if name not in defined or (name in trusted and name not in self.job["entry_points"]):
                continue
            imported = defined[name][0] == "m"
            if not imported and name not in self.job["modules"]:
                value = self.space[name] = codec.decode(defined[name][1], self.remote.handle)
                if type(value) is Handle:
                    self.remote.named.add(self.remote.opaque(value))
            elif name in sys.stdlib_module_names:  # the program has it and the tests use it: the real one, never the candidate's
                module = __import__(name)
                self.space[name] = module if imported else getattr(module, name, module)  # `from datetime import datetime`

    def _test(self) -> dict[str, Any]:
        tree, self.lines = marks.instrument(self.job["tests"])
        self.space[marks.MARK] = self.held.add
        if "random" in self.job["tests"]:
            __import__("random").seed(0)  # the same inputs at every run
        try:
            exec(compile(tree, "<tests>", "exec"), self.space)  # noqa: S102 (trusted source, in its own jail)
        except CandidateLost:
            raise
        except BaseException as error:
            if self.remote.lost:
                return self._lost(self.remote.lost)
            if self.remote.unsupported:
                return {"outcome": "unusable", "detail": self.remote.unsupported}
            return self._failed(error)
        if self.remote.lost:  # swallowed by the tests, still not a pass
            return self._lost(self.remote.lost)
        return {"outcome": "completed", "held": sorted(self.held)}

    def _failed(self, error: BaseException) -> dict[str, Any]:
        line, step = None, error.__traceback__
        while step is not None:  # the innermost line of the tests, without importing traceback at every start
            line = step.tb_lineno if step.tb_frame.f_code.co_filename == "<tests>" else line
            step = step.tb_next
        test = next((i for i, (a, b) in enumerate(self.lines) if line is not None and a <= line <= b), None)
        source = self.job["tests"].splitlines()[line - 1].strip() if line else ""
        if type(error) is AssertionError and not error.args and test is not None:
            return {"outcome": "failed", "reason": "assertion", "test": test, "detail": source}
        reason = "assertion" if isinstance(error, AssertionError) else "exception"
        return _raised(error, reason, f"at {source}" if source else "in the tests") | {"test": test}


def _raised(error: BaseException, reason: str, where: str) -> dict[str, Any]:
    try:
        text = str(error)
    except Exception:  # a number too long to print
        text = ""
    text = text if isinstance(error, RemoteError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return {"outcome": "memory" if isinstance(error, MemoryError) else "failed", "reason": reason, "detail": f"{text[:300]} {where}"}


def main(message_bytes: int) -> None:
    """Read the job from descriptor 0, judge the candidate behind 3 (replies) and 4 (calls), and report on 5."""
    with os.fdopen(0, "rb") as file:
        job = json.loads(file.read())
    os.open(os.devnull, os.O_RDONLY)  # descriptor 0 again

    def report(message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message | {"nonce": job["nonce"]}).encode() + b"\n")
        while data:
            data = data[os.write(5, data) :]

    remote = Remote(codec.Channel(3, 4, message_bytes))
    try:
        remote.channel.receive()
    except (EOFError, codec.CodecError):
        report({"outcome": "no_candidate"})
        os._exit(0)
    report({"outcome": "ready"})
    report(Judge(job, remote).run())
    os._exit(0)
