"""Values on the wire between tests and candidate: tagged JSON of exact plain types, in length-prefixed frames.

Runs inside the jails as a top-level module, and in the tests as part of the package; the standard library only. Nothing that arrives
is ever unpickled, evaluated or called: whatever the candidate sends, the judge gets None, bool, int, float, complex, str, bytes,
builtin containers, a few exact types of the standard library, or an opaque handle. A subclass, whatever its `__eq__` claims, is a handle.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

MAX_DEPTH = 200
MAX_NODES = 2_000_000
# json reads and writes ints in decimal, which is quadratic and limited to 4300 digits; larger ones travel in hexadecimal.
_DECIMAL_BITS = 1000
_BUILTIN_TYPES: dict[str, type] = {
    t.__name__: t
    for t in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, object, type, Exception)
} | {"NoneType": type(None)}
# Exact library types, looked up in sys.modules so that a worker never imports what the candidate has not.
_LIBRARY = {
    ("collections", "Counter"): "pairs",
    ("collections", "OrderedDict"): "pairs",
    ("collections", "defaultdict"): "pairs",
    ("collections", "deque"): "deque",
    ("decimal", "Decimal"): "text",
    ("fractions", "Fraction"): "text",
    ("array", "array"): "array",
    ("datetime", "date"): "iso",
    ("datetime", "datetime"): "iso",
    ("datetime", "time"): "iso",
    ("datetime", "timedelta"): "delta",
}
_SEQUENCES = {list: "l", tuple: "t", set: "s", frozenset: "f", type({}.keys()): "k"}
_ITEMS = type({}.items())


class CodecError(Exception):
    """The value is too deep or too large to travel, or what arrived is not in this encoding."""


class UnsupportedType(CodecError):
    """A value of this type cannot travel from the tests to the candidate."""


def encode(value: Any, opaque: Callable[[Any], int]) -> Any:
    """Return `value` as JSON-able data; `opaque` gives the handle number of anything that is not plain.

    Raises:
        CodecError: Nested deeper than MAX_DEPTH (a cycle is), or more than MAX_NODES values.
        UnsupportedType: Where `opaque` raises it.
    """
    budget = [MAX_NODES]

    def walk(v: Any, depth: int) -> Any:
        budget[0] -= 1
        if depth > MAX_DEPTH or budget[0] < 0:
            raise CodecError(f"value nested deeper than {MAX_DEPTH} or larger than {MAX_NODES} items")
        t = type(v)
        if v is None or t is bool or t is str or t is float:
            return v
        if t is int:
            return v if v.bit_length() <= _DECIMAL_BITS else ["i", hex(v)]
        if t in _SEQUENCES:
            return [_SEQUENCES[t], [walk(x, depth + 1) for x in v]]
        if t is dict or t is _ITEMS:
            return ["d" if t is dict else "n", [[walk(k, depth + 1), walk(x, depth + 1)] for k, x in (v.items() if t is dict else v)]]
        if t is bytes or t is bytearray:
            return ["b" if t is bytes else "y", v.hex()]
        if t is complex:
            return ["c", v.real, v.imag]
        if t is range:
            return ["r", *(walk(x, depth + 1) for x in (v.start, v.stop, v.step))]
        if t is type and _BUILTIN_TYPES.get(v.__name__) is v:
            return ["ty", v.__name__]
        if _is_namedtuple(t):
            return ["t", [walk(x, depth + 1) for x in tuple.__iter__(v)]]
        module, name = getattr(t, "__module__", None), getattr(t, "__name__", None)
        form = _LIBRARY.get((module, name)) if type(module) is str and type(name) is str else None
        if form and getattr(sys.modules.get(str(module)), str(name), None) is t:
            return ["x", module, name, _library_data(form, v, depth, walk)]
        return ["h", opaque(v)]

    return walk(value, 0)


def _is_namedtuple(t: type) -> bool:
    """A namedtuple compares as the tuple it is; any other subclass might not."""
    return t.__bases__ == (tuple,) and "_fields" in t.__dict__ and not {"__eq__", "__ne__", "__hash__"} & set(t.__dict__)


def _library_data(form: str, v: Any, depth: int, walk: Callable[[Any, int], Any]) -> Any:
    if form == "pairs":
        return [[walk(k, depth + 1), walk(x, depth + 1)] for k, x in v.items()]
    if form == "deque":
        return [[walk(x, depth + 1) for x in v], v.maxlen]
    if form == "array":
        return [v.typecode, [walk(x, depth + 1) for x in v.tolist()]]
    if form == "delta":
        return [v.days, v.seconds, v.microseconds]
    return v.isoformat() if form == "iso" else str(v)


def decode(node: Any, handle: Callable[[int], Any]) -> Any:
    """Rebuild the value of `encode`; `handle` turns a handle number into an object.

    Raises:
        CodecError: Anything that `encode` cannot have written, unhashable keys and absurd depth included.
    """
    try:
        return _decode(node, handle, 0)
    except CodecError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, ArithmeticError) as error:
        raise CodecError(f"malformed value ({type(error).__name__})") from None


def _decode(n: Any, handle: Callable[[int], Any], depth: int) -> Any:
    if type(n) is not list:
        if n is None or type(n) in (bool, str, float, int):
            return n
        raise CodecError("malformed value")
    if depth > MAX_DEPTH + 8:
        raise CodecError("value nested too deep")

    def items(nodes: Iterable[Any]) -> list[Any]:
        return [_decode(x, handle, depth + 1) for x in nodes]

    def pairs(nodes: Iterable[Any]) -> list[tuple[Any, Any]]:
        return [(_decode(k, handle, depth + 1), _decode(v, handle, depth + 1)) for k, v in nodes]

    tag = n[0]
    match tag:
        case "l":
            return items(n[1])
        case "t":
            return tuple(items(n[1]))
        case "d":
            return dict(pairs(n[1]))
        case "n":
            return dict(pairs(n[1])).items()
        case "s":
            return set(items(n[1]))
        case "f":
            return frozenset(items(n[1]))
        case "k":
            return dict.fromkeys(items(n[1])).keys()
        case "i":
            return int(n[1], 16)
        case "b":
            return bytes.fromhex(n[1])
        case "y":
            return bytearray.fromhex(n[1])
        case "c":
            return complex(float(n[1]), float(n[2]))
        case "r":
            return range(*(int(x) for x in items(n[1:4])))
        case "ty":
            return _BUILTIN_TYPES[n[1]]
        case "h":
            return handle(int(n[1]))
        case "x":
            return _decode_library(n[1], n[2], n[3], items, pairs)
    raise CodecError("unknown tag")


def _decode_library(module: str, name: str, data: Any, items: Callable[..., Any], pairs: Callable[..., Any]) -> Any:
    form = _LIBRARY[module, name]  # an unknown pair is a KeyError, so nothing but these modules is ever imported
    cls = getattr(__import__(module), name)
    if form == "pairs":
        return cls(None, pairs(data)) if name == "defaultdict" else cls(dict(pairs(data))) if name == "Counter" else cls(pairs(data))
    if form == "deque":
        return cls(items(data[0]), None if data[1] is None else int(data[1]))
    if form == "array":
        return cls(str(data[0]), items(data[1]))
    if form == "delta":
        return cls(*(int(x) for x in data[:3]))
    return cls.fromisoformat(data) if form == "iso" else cls(str(data))


def has_mutable(node: Any) -> bool:
    """Whether encoded data holds a container that a callee could change in place."""
    return (
        type(node) is list
        and bool(node)
        and (node[0] in ("l", "d", "s", "y", "x") or any(has_mutable(x) for x in node[1:] if type(x) is list))
    )


class Channel:
    """Frames of JSON over two descriptors: 4 bytes of length, big endian, then UTF-8."""

    def __init__(self, read_fd: int, write_fd: int, max_bytes: int) -> None:
        self.read_fd, self.write_fd, self.max_bytes = read_fd, write_fd, max_bytes

    def send(self, message: Any) -> None:
        """Write one frame.

        Raises:
            CodecError: The frame is over the limit.
            OSError: The other side is gone.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > self.max_bytes:
            raise CodecError(f"message of {len(data)} bytes is over the limit of {self.max_bytes}")
        view = memoryview(len(data).to_bytes(4, "big") + data)
        while view:
            view = view[os.write(self.write_fd, view) :]

    def receive(self) -> Any:
        """Read one frame.

        Raises:
            EOFError: The other side is gone.
            CodecError: What arrives is not a frame.
        """
        size = int.from_bytes(self._exactly(4), "big")
        if size > self.max_bytes:
            raise CodecError(f"message of {size} bytes is over the limit of {self.max_bytes}")
        try:
            return json.loads(self._exactly(size))
        except (ValueError, RecursionError):
            raise CodecError("message is not JSON") from None

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.read_fd, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
