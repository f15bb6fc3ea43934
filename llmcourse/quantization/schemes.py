"""Schemes: under the names of the field, what becomes of a layer's weights and of what it is given.

A name says how many bits a weight has and by what method it got them: `int4` is rounding, `int4-gptq` and
`int4-awq` look at text. `w8a8` has inputs of 8 bits too. `-g32` behind a name sets the columns of a group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from llmcourse.decoding.errors import require, require_number
from llmcourse.quantization.quantized_tensor import BITS

Format = Literal["packed", "int8", "mixed", "fp8"]
Method = Literal["round", "gptq", "awq", "smooth"]
Activations = Literal["token", "tensor"]

GROUP_SIZE = 128  # what the kernels of the field are made for
SMALLEST_GROUP = 16
METHODS = {
    "packed": ("round", "gptq", "awq"),
    "int8": ("round", "smooth"),
    "mixed": ("round",),
    "fp8": ("round",),
}


@dataclass(frozen=True)
class Scheme:
    """How the linear layers of a model are quantized.

    Attributes:
        name: as on a command line.
        bits: of a weight.
        format: of the layer: `packed` multiplies 16 bits by codes, `int8` int8 by int8, `mixed` too but for
            outlier columns (LLM.int8()), `fp8` e4m3 by e4m3.
        method: that finds the codes, or changes weights and norms before they are rounded.
        group_size: columns that share a scale; None for a whole row, a channel.
        shrinks: whether half of the group, a quarter and so on may be taken, down to `SMALLEST_GROUP`, where
            the columns of a model's layers ask for it.
        symmetric: no zero points.
        activations: scales of the inputs, found for every token as it comes (`token`), or one for all from
            calibration (`tensor`); None where inputs keep 16 bits.
        threshold: absolute value from which an input makes its column an outlier, in `mixed` alone.

    Raises:
        ValueError: bits, a format, a method or a group size that does not exist, or that do not go together.
    """

    name: str
    bits: int
    format: Format = "packed"
    method: Method = "round"
    group_size: int | None = None
    shrinks: bool = False
    symmetric: bool = True
    activations: Activations | None = None
    threshold: float | None = None

    def __post_init__(self):
        bits = ", ".join(map(str, BITS))
        require(type(self.bits) is int and self.bits in BITS, "bits", f"one of {bits}", self.bits, "try 4")
        formats = ", ".join(METHODS)
        require(self.format in METHODS, "format", f"one of {formats}", repr(self.format), "try 'packed'")
        methods = METHODS[self.format]
        allowed = f"one of {', '.join(methods)} for the format {self.format}"
        require(self.method in methods, "method", allowed, repr(self.method), "try 'round'")
        size, packed = self.group_size, self.format == "packed"
        fits = size is None or (packed and type(size) is int and size >= 1)
        allowed = "at least 1, or None for channels" if packed else f"None for the format {self.format}"
        require(fits, "group_size", allowed, repr(size), "try None")
        require(packed or self.bits == 8, "bits", f"8 for the format {self.format}", self.bits, "use 8")
        inputs = (None,) if packed else ("token",) if self.format == "mixed" else ("token", "tensor")
        allowed = f"one of {', '.join(map(repr, inputs))} for the format {self.format}"
        given = self.activations
        require(given in inputs, "activations", allowed, repr(given), f"use {inputs[0]!r}")
        remedy = "use True: only packed codes have zero points"
        require(packed or self.symmetric, "symmetric", f"True for {self.format}", self.symmetric, remedy)
        if self.format == "mixed":
            require_number(lambda t: t > 0, "threshold", "above 0", self.threshold, "try 6.0")
        else:
            found = self.threshold
            require(found is None, "threshold", f"None for {self.format}", found, "give it to 'mixed' alone")

    @property
    def needs_calibration(self) -> bool:
        """Whether text has to be run through the model first."""
        return self.method != "round" or self.activations == "tensor"

    def fitted(self, columns: Iterable[int]) -> Scheme:
        """The same with a group size for these numbers of columns, if it may shrink; otherwise as it is."""
        columns, size = sorted(set(columns)), self.group_size
        if size is None or not self.shrinks:
            return self
        while size > SMALLEST_GROUP and any(number % size for number in columns):
            size //= 2
        return replace(self, group_size=size)


def _packed(bits: int, method: Method) -> Scheme:
    """8 bits by channels, fewer in groups; with 3 and 2 bits a level lost to symmetry would cost too much."""
    name = f"int{bits}" if method == "round" else f"int{bits}-{method}"
    size = None if bits == 8 else GROUP_SIZE
    return Scheme(name, bits, method=method, group_size=size, shrinks=size is not None, symmetric=bits >= 4)


_ALL = (
    *(_packed(bits, method) for bits in (8, 4, 3, 2) for method in METHODS["packed"]),
    Scheme("w8a8", 8, "int8", activations="token"),
    Scheme("w8a8-static", 8, "int8", activations="tensor"),
    Scheme("smoothquant-w8a8", 8, "int8", "smooth", activations="token"),
    Scheme("llm.int8", 8, "mixed", activations="token", threshold=6.0),  # Dettmers et al. 2022, section 3.2
    Scheme("fp8", 8, "fp8", activations="token"),
)
SCHEMES = {scheme.name: scheme for scheme in _ALL}


def scheme_of(name: str | Scheme) -> Scheme:
    """The scheme of a name, with a group size of its own where the name ends in one: `int4-awq-g32`.

    Raises:
        ValueError: there is none of this name, or it has no groups.
    """
    if isinstance(name, Scheme):
        return name
    group = re.fullmatch(r"(.+)-g(\d+)", name) if isinstance(name, str) else None
    stem = group[1] if group else name
    allowed = f"one of {', '.join(SCHEMES)}"
    require(isinstance(stem, str) and stem in SCHEMES, "scheme", allowed, repr(name), "choose one of them")
    if not group:
        return SCHEMES[stem]
    return replace(SCHEMES[stem], name=name, group_size=int(group[2]), shrinks=False)
