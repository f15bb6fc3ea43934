"""What passes between the judge and a worker: values as JSON and raw bytes.

Nothing here can run code: no pickle, no classes by name. `decode` may be given anything at all; it
returns a value of a type on the list or raises `WireError`, in bounded time and memory.

A message is `length of header (4 bytes) | header (JSON) | bytes of the tensors, in order`. In the header
None, bool, int, float and str stand for themselves, a dict is an object, and everything else is an array
that begins with its tag: `["l", …]` list, `["t", …]` tuple, `["x", dtype, shape]` tensor, `["o", name]`
oracle.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llmcourse.grading.answer import Oracle, numpy_remedy

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    )
}
ALLOWED = "None, a bool, int, float, str, list, tuple, dict or tensor"
MAX_NUMBER = 40  # characters of a number: no more are needed for any int64 or float64
MAX_NDIM = 16
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Limits:
    """The largest message.

    Args:
        frame_bytes: of a whole message.
        header_bytes: of its JSON part.
        depth: of containers within each other.
        items: values in all, counted over every container.
    """

    frame_bytes: int = 16 << 20
    header_bytes: int = 4 << 20
    depth: int = 16
    items: int = 200_000


LIMITS = Limits()
# Between the judge and a worker.
REQUEST = Limits(frame_bytes=128 << 20, header_bytes=64 << 20, items=1_000_000, depth=20)
REPLY = Limits(frame_bytes=17 << 20, header_bytes=5 << 20, items=210_000, depth=20)


class WireError(ValueError):
    """A value that cannot be sent, or bytes that are no value.

    Args:
        what: what is wrong with it, as `a generator, must be …`.
        path: where in the value it lies, as `[3]['x']`.
    """

    def __init__(self, what: str, path: str = ""):
        super().__init__(f"at {path}: {what}" if path else what)
        self.what = what
        self.path = path

    def inside(self, step: str) -> WireError:
        """The same, seen from the container one level further out."""
        return type(self)(self.what, step + self.path)


class TooLarge(WireError):
    """More than the limits allow: of bytes, items, depth, or digits of a number."""


def encode(value: Any, limits: Limits = LIMITS, oracles: bool = False) -> bytes:
    """A message that `decode` turns back into an equal value of exactly the same types.

    Args:
        value: of exact types only: an instance of a subclass could answer `==` as it likes, so it is
            refused. A tensor may lie on any device and require gradients; both are forgotten.
        oracles: whether `Oracle` may stand in it.

    Raises:
        WireError: what cannot be sent, and where in the value it lies.
        TooLarge: it passes the limits.
    """
    packer = _Packer(limits, oracles)
    header = json.dumps(packer.pack(value, limits.depth), separators=(",", ":")).encode()
    if len(header) > limits.header_bytes:
        raise TooLarge(f"{len(header):,} bytes outside of tensors, at most {limits.header_bytes:,}")
    message = b"".join((_LENGTH.pack(len(header)), header, *packer.raw))
    if len(message) > limits.frame_bytes:
        raise TooLarge(f"{len(message):,} bytes, at most {limits.frame_bytes:,}")
    return message


def decode(data: bytes, limits: Limits = LIMITS, oracle: Callable[[str], Any] | None = None) -> Any:
    """The value of a message.

    Args:
        data: anything; it is not trusted.
        oracle: what an oracle's name becomes; None refuses oracles.

    Raises:
        WireError: these bytes are no message.
        TooLarge: they pass the limits.
    """
    if len(data) > limits.frame_bytes:
        raise TooLarge(f"{len(data):,} bytes, at most {limits.frame_bytes:,}")
    size = _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else -1
    if not 0 <= size <= len(data) - _LENGTH.size:
        raise WireError("the header's length is not that of a header")
    if size > limits.header_bytes:
        raise TooLarge(f"{size:,} bytes outside of tensors, at most {limits.header_bytes:,}")
    end = _LENGTH.size + size
    unpacker = _Unpacker(memoryview(data)[end:], limits, oracle)
    value = unpacker.unpack(_parse(data[_LENGTH.size : end]), limits.depth)
    if unpacker.raw:
        raise WireError(f"{len(unpacker.raw):,} bytes are left over")
    return value


class _Packer:
    """One encoding: the tensors' bytes so far, and what may still come."""

    def __init__(self, limits: Limits, oracles: bool):
        self.limits = limits
        self.oracles = oracles
        self.raw: list[bytes] = []
        self.items = limits.items
        self.text = limits.header_bytes
        self.room = limits.frame_bytes

    def pack(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self.items -= 1
        if self.items < 0:
            raise TooLarge(f"more than {self.limits.items:,} items")
        if value is None or kind is bool or kind is float:
            return value
        if kind is int:
            return _small(value)
        if kind is str:
            return self._string(value)
        if kind is torch.Tensor:
            return self._tensor(value)
        if kind is Oracle and self.oracles:
            return ["o", self._string(value.name)]
        if kind is list or kind is tuple or kind is dict:
            return self._container(value, kind, depth)
        raise WireError(_refusal(kind))

    def _container(self, value: Any, kind: type, depth: int) -> Any:
        if depth == 0:
            raise TooLarge(f"containers nested more than {self.limits.depth} deep")
        step: Any = None
        try:
            if kind is dict:
                packed = {}
                for step, item in value.items():
                    if type(step) is not str:
                        raise WireError(f"under a key that is {_a(type(step))}, must be a str")
                    packed[self._string(step)] = self.pack(item, depth - 1)
                return packed
            packed = ["l" if kind is list else "t"]
            for step, item in enumerate(value):  # noqa: B007  (the except clause names it)
                packed.append(self.pack(item, depth - 1))
            return packed
        except WireError as error:
            shown = repr(step) if type(step) in (int, str) else "…"
            raise error.inside(f"[{shown:.40}]") from None

    def _string(self, value: str) -> str:
        self.text -= len(value)
        if self.text < 0:
            raise TooLarge(f"text of more than {self.limits.header_bytes:,} characters")
        return _clean(value)

    def _tensor(self, value: torch.Tensor) -> list[Any]:
        name = str(value.dtype).removeprefix("torch.")
        if name not in DTYPES or value.layout != torch.strided or value.is_quantized or value.is_meta:
            what = f"a {name} tensor ({str(value.layout).removeprefix('torch.')}, on {value.device})"
            raise WireError(f"{what}, must be dense, with data and of dtype {', '.join(DTYPES)}")
        shape = list(value.shape)
        _numel(shape, value.element_size(), self.limits)
        self.room -= value.numel() * value.element_size()
        if self.room < 0:
            raise TooLarge(f"tensors of more than {self.limits.frame_bytes:,} bytes")
        self.raw.append(_bytes(value))
        return ["x", name, shape]


class _Unpacker:
    """One decoding: the tensors' bytes that are left, and what may still come."""

    def __init__(self, raw: memoryview, limits: Limits, oracle: Callable[[str], Any] | None):
        self.raw = raw
        self.limits = limits
        self.oracle = oracle
        self.items = limits.items

    def unpack(self, node: Any, depth: int) -> Any:
        self.items -= 1
        if self.items < 0:
            raise TooLarge(f"more than {self.limits.items:,} items")
        if type(node) is str:
            return _clean(node)
        if type(node) is dict:
            self._descend(depth)
            return {_clean(key): self.unpack(item, depth - 1) for key, item in node.items()}
        if type(node) is not list:
            return node
        tag = node[0] if node else None
        if tag == "l" or tag == "t":
            self._descend(depth)
            items = [self.unpack(item, depth - 1) for item in node[1:]]
            return items if tag == "l" else tuple(items)
        if tag == "x" and len(node) == 3:
            return self._tensor(node[1], node[2])
        if tag == "o" and len(node) == 2 and type(node[1]) is str and self.oracle is not None:
            return self.oracle(_clean(node[1]))
        raise WireError("an array without a known tag")

    def _descend(self, depth: int) -> None:
        if depth == 0:
            raise TooLarge(f"containers nested more than {self.limits.depth} deep")

    def _tensor(self, name: Any, shape: Any) -> torch.Tensor:
        if type(name) is not str or name not in DTYPES:
            raise WireError(f"a tensor of unknown dtype {name!r:.40}")
        if type(shape) is not list or not all(type(size) is int and size >= 0 for size in shape):
            raise WireError("a tensor whose shape is no list of sizes")
        dtype = DTYPES[name]
        size = _numel(shape, dtype.itemsize, self.limits) * dtype.itemsize
        if size > len(self.raw):
            raise WireError(f"a {name} tensor of shape {shape} with {len(self.raw):,} bytes, needs {size:,}")
        data, self.raw = bytearray(self.raw[:size]), self.raw[size:]
        if dtype is torch.bool and data.translate(None, b"\0\1"):
            raise WireError("a bool tensor with bytes that are neither 0 nor 1")
        if not size:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).clone().reshape(shape)


def _numel(shape: list[int], itemsize: int, limits: Limits) -> int:
    """Elements of a shape, refused before memory is allocated; empty ones must have sane strides too."""
    if len(shape) > MAX_NDIM:
        raise TooLarge(f"a tensor of {len(shape)} dimensions, at most {MAX_NDIM}")
    if math.prod(max(size, 1) for size in shape) * itemsize > limits.frame_bytes:
        raise TooLarge(f"a tensor of shape {shape}, at most {limits.frame_bytes:,} bytes")
    return math.prod(shape)


def _bytes(value: torch.Tensor) -> bytes:
    try:
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return plain.flatten().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise WireError(f"a tensor whose data cannot be read ({error!s:.80})") from None


def _refusal(kind: type) -> str:
    for base in (bool, int, float, str, list, tuple, dict, torch.Tensor):
        if issubclass(kind, base):
            named = f"{_a(base)} subclass {_name(kind)}, must be a plain {base.__name__}"
            return named + numpy_remedy(kind)
    return f"{_a(kind)}, must be {ALLOWED}{numpy_remedy(kind)}"


def _name(kind: type) -> str:
    module = getattr(kind, "__module__", "")
    library = module.split(".")[0] if type(module) is str else ""
    return f"{library}.{kind.__name__}" if library in ("numpy", "torch") else kind.__name__


def _a(kind: type) -> str:
    return f"{'an' if _name(kind)[:1] in 'aeioAEIO' else 'a'} {_name(kind)}"


def _small(value: int) -> int:
    if not -(2**63) < value < 2**63:
        raise TooLarge("an int outside of ±2**63")
    return value


def _clean(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise WireError("a str with half of a surrogate pair, must be valid Unicode") from None
    return value


def _parse(header: bytes) -> Any:
    try:
        return json.loads(
            header.decode(),
            parse_int=lambda digits: _small(int(_short(digits))),
            parse_float=lambda digits: float(_short(digits)),
            object_pairs_hook=_without_duplicates,
        )
    except WireError:
        raise
    except RecursionError:
        raise TooLarge("a header nested too deep") from None
    except ValueError as error:
        raise WireError(f"a header that is no JSON ({error!s:.80})") from None


def _short(digits: str) -> str:
    if len(digits) > MAX_NUMBER:
        raise TooLarge(f"a number of {len(digits):,} digits")
    return digits


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("a dict with one key twice")
    return found
