"""How an answer is compared with what was expected, and how the first difference is put into words.

Types are compared exactly, before anything is asked of a value: a subclass with an `__eq__` of its own
is no tensor, no list and no number. Nothing here calls a method of an unknown object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from llmcourse.grading.answer import numpy_remedy
from llmcourse.grading.printable import clean

SHOWN_ITEMS = 12  # of a list or of a row, around the place that matters
LONGEST_TEXT = 160
ITEM_WIDTH = 4  # characters, at least, of a number in a tensor
DEEPEST = 4  # lists within lists
FAR = 100.0  # times the expected number: no percentage says more
BITS = 64  # integers past these are described, not written out


@dataclass(frozen=True)
class Difference:
    """Where an answer first departs from the expected one; each text is safe to print.

    Args:
        reason: with the place, `row 0, token 17: got -inf, expected 2.31`; one line.
        got, expected: the same part of both, such as the row; a drawing may have several lines.
        form: whether it is one of type, dtype or shape, so that no values were compared.
        share: of the points, that an answer has earned all the same: it is near.
    """

    reason: str
    got: str = ""
    expected: str = ""
    form: bool = False
    share: float = 0.0


@runtime_checkable
class Comparison(Protocol):
    """Says how a value differs from the expected one, or None where it is right."""

    def __call__(self, got: Any, expected: Any) -> Difference | None: ...


@dataclass(frozen=True)
class Close:
    """For tensors: exact dtype and shape, -inf at the same places, all else within a tolerance.

    |got − expected| ≤ atol + rtol · |expected|, in float64; integers and booleans have to be equal.

    Args:
        axes: what the dimensions are called, last ones last.
    """

    atol: float = 1e-5
    rtol: float = 1e-5
    axes: tuple[str, ...] = ("row", "token")

    def __call__(self, got: Any, expected: Tensor) -> Difference | None:
        form = _form(got, expected)
        if form:
            return Difference(form, show(got), show(expected), form=True)
        if not expected.numel():
            return None
        got = got.detach().cpu()
        order = (got != expected,)
        if expected.dtype.is_floating_point:
            got, expected = got.double(), expected.double()
            near = (got - expected).abs() <= self.atol + self.rtol * expected.abs()
            near &= got.isfinite() & expected.isfinite()  # elsewhere there is no distance
            order = (got.isnan(), got.isneginf() != expected.isneginf(), ~near & (got != expected))
        for wrong in order:
            if wrong.any():
                return self._at(tuple(wrong.nonzero()[0].tolist()), got, expected)
        return None

    def _at(self, place: tuple[int, ...], got: Tensor, expected: Tensor) -> Difference:
        axes = self.axes[-len(place) :] if place else ()
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=False))
        reason = f"got {number(got[place].item())}, expected {number(expected[place].item())}"
        if not place:
            return Difference(reason)
        rows = [_row(tensor[place[:-1]].tolist(), place[-1]) for tensor in (got, expected)]
        return Difference(f"{where}: {reason}", *rows)


@dataclass(frozen=True)
class Exact:
    """For integers, booleans, texts and lists of them: the same type and value throughout.

    Args:
        item: what an element of the list is called.
        inner: what one of a list within it is called, where that is something else.
    """

    item: str = "element"
    inner: str = ""

    def __call__(self, got: Any, expected: Any) -> Difference | None:
        if type(got) is not type(expected):
            shown = repr(got) if type(got) is float else show(got)  # 2.0 is not to look like 2
            return Difference(_kinds(got, expected), shown, show(expected), form=True)
        if not isinstance(expected, list | tuple):
            equal = got == expected or (got != got and expected != expected)
            return None if equal else Difference(f"got {show(got)}, expected {show(expected)}")
        within = Exact(self.inner) if self.inner else self
        for index, (one, other) in enumerate(zip(got, expected, strict=False)):
            if found := within(one, other):
                texts = (_row(got, index), _row(expected, index))
                return Difference(f"{self.item} at index {index}: {found.reason}", *texts, found.form)
        if len(got) != len(expected):
            reason = f"got {len(got)} {self.item}{'s' * (len(got) != 1)}, expected {len(expected)}"
            return Difference(reason, _row(got, len(expected)), _row(expected, len(got)))
        return None


@dataclass(frozen=True)
class Near:
    """For one number, an int or a float: within a share of the expected one; None only where None is right.

    Args:
        rtol: largest distance, as a share of the expected number, at which an answer is right.
        partly: distances and the share of the points that an answer has earned within each,
            nearest first; beyond the last it has none.
        none_says: what None means as an answer, `no batch turns it`, where it may be right.
    """

    rtol: float = 1e-6
    partly: tuple[tuple[float, float], ...] = ()
    none_says: str = ""

    def __call__(self, got: Any, expected: float | int | None) -> Difference | None:
        if got is None and expected is not None and self.none_says:
            return Difference(f"got None: {self.none_says}; expected {_spelled(expected)}")
        if type(got) not in (int, float) and not (got is None and expected is None):
            said = f"got {kind(got)}, expected {'None' if expected is None else 'a number'}{_remedy(got)}"
            return Difference(said, show(got), show(expected), form=True)
        if got is None or expected is None:
            return None if got is expected else Difference(f"got {number(got)}, expected None")
        off = _distance(got, expected)
        if off <= self.rtol:
            return None
        share = next((share for distance, share in self.partly if off <= distance), 0.0)
        told = f", {off:.0%} off" if self.partly and off < FAR else ""
        return Difference(f"got {number(got)}, expected {number(expected)}{told}", share=share)


@dataclass(frozen=True)
class Parts:
    """For a tuple: each part by a comparison of its own, under its name.

    Args:
        of: name and comparison of each part, in order.
    """

    of: Mapping[str, Comparison]

    def __call__(self, got: Any, expected: tuple[Any, ...]) -> Difference | None:
        if type(got) is not tuple or len(got) != len(self.of):
            found = f"a tuple of {len(got)}" if type(got) is tuple else kind(got)
            reason = f"got {found}, expected a tuple ({', '.join(self.of)})"
            return Difference(reason, show(got), show(expected), form=True)
        for (name, comparison), one, other in zip(self.of.items(), got, expected, strict=True):
            if found := comparison(one, other):
                return replace(found, reason=f"{name}: {found.reason}")
        return None


@dataclass(frozen=True)
class Ranking:
    """For a list of (tokens, score), best first: tokens exactly, scores within `atol`.

    Hypotheses whose expected scores are as good as equal may come in any order.
    """

    atol: float = 1e-3

    def __call__(self, got: Any, expected: list[tuple[list[int], float]]) -> Difference | None:
        if form := self._form(got):
            return Difference(form, show(got), show(expected), form=True)
        for rank, ((tokens, score), (own, least)) in enumerate(zip(got, expected, strict=False)):
            tied = [other for other in expected if abs(other[1] - least) <= self.atol]
            texts = (show(got[rank]), show(expected[rank]))
            if tokens not in [other for other, _ in tied]:
                return Difference(f"rank {rank}: tokens {show(tokens)}, expected {show(own)}", *texts)
            if not abs(score - least) <= self.atol:
                reason = f"rank {rank}: score {number(score)}, expected {number(least)}"
                return Difference(reason, *texts)
            if tokens in [other for other, _ in got[:rank]]:
                return Difference(f"rank {rank}: tokens {show(tokens)} for the second time", *texts)
        if len(got) != len(expected):
            reason = f"got a list of length {len(got)}, expected {len(expected)}"
            return Difference(reason, show(got), show(expected))
        return None

    def _form(self, got: Any) -> str:
        if type(got) is not list:
            return f"got {kind(got)}, expected a list of (tokens, score)"
        for rank, pair in enumerate(got):
            if type(pair) is not tuple or len(pair) != 2:
                return f"rank {rank}: got {kind(pair)}, expected a tuple (tokens, score)"
            tokens, score = pair
            if type(tokens) is not list or any(type(token) is not int for token in tokens):
                wrong = tokens if type(tokens) is not list else next(t for t in tokens if type(t) is not int)
                return f"rank {rank}: tokens must be a list of int, got {kind(wrong)}{_remedy(wrong)}"
            if type(score) is not float:
                return f"rank {rank}: the score must be a float, got {kind(score)}{_remedy(score)}"
        return ""


def _spelled(value: float | int) -> str:
    """A number with its thousands apart."""
    return f"{value:,}" if type(value) is int and value.bit_length() <= BITS else number(value)


def _form(got: Any, expected: Tensor) -> str:
    """How a value is no tensor of the expected dtype and shape; empty if it is one."""
    if type(got) is not Tensor:
        return _kinds(got, expected)
    if not _dense(got):
        return "expected a dense tensor"
    if got.dtype != expected.dtype:
        return f"got dtype {dtype(got)}, expected {dtype(expected)}"
    if got.shape != expected.shape:
        return f"got shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    return ""


def _dense(tensor: Tensor) -> bool:
    """Whether there are values at all places, that can be read."""
    odd = tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided
    return not odd and tensor.device.type != "meta"


def _distance(got: float | int, expected: float | int) -> float:
    """How far a number is from the expected one, as a share of that; endless for what is no number."""
    if got == expected:
        return 0.0
    try:
        off = abs(got - expected) / abs(expected)
    except (OverflowError, ZeroDivisionError):  # an integer beyond all floats; nothing is near 0
        return math.inf
    return math.inf if math.isnan(off) else off


def _kinds(got: Any, expected: Any) -> str:
    if type(got) is float and type(expected) is int:
        return f"got {got!r}, a float, expected an int"
    return f"got {kind(got)}, expected {kind(expected)}{_remedy(got)}"


def _remedy(got: Any) -> str:
    if got is None:
        return "; is there a return?"
    if type(got) is Tensor:
        return "; .item() or .tolist() makes plain numbers"
    return numpy_remedy(type(got))


def kind(value: Any) -> str:
    """A value's type in words, `a tensor of shape (2, 3)`; asks nothing of an unknown object."""
    if type(value) is Tensor:
        return f"a tensor of shape {tuple(value.shape)}" if _dense(value) else "a tensor that is not dense"
    if value is None:
        return "None"
    name = clean(type.__dict__["__name__"].__get__(type(value)), 40)
    if numpy_remedy(type(value)):
        return f"a NumPy {name}"
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def show(value: Any, longest: int = LONGEST_TEXT, depth: int = DEEPEST) -> str:
    """A value as one short line of printable characters."""
    if type(value) is Tensor and _dense(value):
        form = f"{dtype(value)} {tuple(value.shape)}"
        items = show(value.detach().tolist(), longest) if value.numel() <= longest // ITEM_WIDTH else ""
        return cut(f"{form} {items}".rstrip(), longest)
    if type(value) in (list, tuple):
        shown = [show(item, longest, depth - 1) for item in value[:SHOWN_ITEMS]] if depth else ["…"]
        more = [f"… {len(value) - SHOWN_ITEMS} more"] if depth and len(value) > SHOWN_ITEMS else []
        comma = "," if type(value) is tuple and len(value) == 1 else ""
        text = ", ".join(shown + more) + comma
        return cut(f"[{text}]" if type(value) is list else f"({text})", longest)
    if type(value) is dict:
        pairs = [f"{show(k, longest, 0)}: {show(v, longest, depth - 1)}" for k, v in _first(value, depth)]
        more = [f"… {len(value) - len(pairs)} more"] if len(value) > len(pairs) else []
        return cut("{" + ", ".join(pairs + more) + "}", longest)
    if type(value) is str:
        return clean(repr(value[:longest]), longest)
    return number(value) if type(value) in (int, float, bool) else kind(value)


def _first(value: dict, depth: int) -> Iterable[tuple[Any, Any]]:
    return islice(value.items(), SHOWN_ITEMS if depth else 0)


def number(value: float | int | None) -> str:
    """A number as a reader wants it: four digits, `-inf`, no thousands of digits."""
    if type(value) is bool or value is None:
        return str(value)
    if type(value) is int:
        return str(value) if value.bit_length() <= BITS else f"an integer of {value.bit_length()} bits"
    if math.isnan(value):
        return "NaN"
    return "+inf" if value == math.inf else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.6g}"


def cut(text: str, longest: int) -> str:
    """A text that is clean already, shortened."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def dtype(tensor: Tensor) -> str:
    """`float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def _row(items: Sequence[Any], place: int) -> str:
    """A list around one place, with the places that are left out marked."""
    first = max(0, min(place - SHOWN_ITEMS // 2, len(items) - SHOWN_ITEMS))
    shown = [show(item, 60) for item in items[first : first + SHOWN_ITEMS]]
    before = [f"… {first} before"] if first else []
    after = [f"… {len(items) - first - len(shown)} more"] if first + len(shown) < len(items) else []
    return cut("[" + ", ".join(before + shown + after) + "]", LONGEST_TEXT)
