"""A linear layer whose weights are packed codes of 4 or 8 bits, unpacked on their way to the multiplier.

    y = x Wᵀ + b,   W[n, k] = S[n, g] (q[n, k] − Z[n, g]),   g = ⌊k / group_size⌋

Decoding a text is bound by reading W. In codes it is half or a quarter of the bytes, if what makes numbers of
codes costs less than the reading that it saves (Frantar et al. 2024, Marlin, section 3). How codes lie in
words, `packed_words` says. Those of 2 and 3 bits lie in four, and those of 5 to 7 in eight: they are as fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_apart, check_dims, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.packed_tiles import (
    ALIGNED_BYTES,
    BLOCK,
    MOST_FUSED_ROWS,
    MOST_KERNEL_ROWS,
    AnyPackedTile,
    PackedRing,
    packed_ring,
    packed_rule,
)
from llmcourse.kernels.packed_words import code_width, packed_words, unpacked_codes
from llmcourse.kernels.quantized_linear import QuantizedLinear, same_columns, stacked_biases
from llmcourse.kernels.split_rings import Needs, SplitMemory
from llmcourse.kernels.tiles import SPARE_BYTES

BITS = (2, 3, 4, 5, 6, 7, 8)
DEQUANTIZED_AT_ONCE = 2**27  # numbers of W that a product of many rows writes out


class PackedLinear(QuantizedLinear):
    """Takes the place of `nn.Linear`; made by `of`, from the codes of any method.

    Attributes:
        words: `(N, ⌈K / codes a word⌉)`, int32.
        scales: `(groups, N)`, S by groups, since neighbours are multiplied by those of their own rows.
        zeros: `(groups, N)`, Z, int8; None where it is 0 everywhere.
        bits, group_size: of the codes; a group of K columns is a channel.
    """

    def __init__(
        self,
        words: Int[Tensor, "N words"],
        scales: Float[Tensor, "groups N"],
        zeros: Int[Tensor, "groups N"] | None,
        *,
        bits: int,
        group_size: int,
        in_features: int,
        bias: Float[Tensor, " N"] | None = None,
    ):
        super().__init__(in_features, len(words), bias)
        self.bits, self.group_size = bits, group_size
        for name, tensor in (("words", words), ("scales", scales), ("zeros", zeros)):
            self.register_buffer(name, tensor)
        self._memory: dict[Needs, SplitMemory] = {}

    @classmethod
    def of(
        cls,
        codes: Int[Tensor, "N K"],
        scale: Float[Tensor, "N groups"],
        zero_point: Int[Tensor, "N groups"] | None = None,
        *,
        bits: int,
        group_size: int | None = None,
        bias: Float[Tensor, " N"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> PackedLinear:
        """A layer of the fields of a `QuantizedTensor`.

        Args:
            codes: q, int8, in [−2^(bits − 1), 2^(bits − 1) − 1].
            scale, zero_point: S and Z.
            bits: 2 to 8.
            group_size: columns of a group; K if None.
            dtype: of scales and bias, the model's; that of each as it is given if None. Scales of whole
                channels stay in float32 or wider, which costs nothing.

        Raises:
            ValueError: tensors that do not fit each other, codes out of the range of `bits`, or scales that
                are not positive and finite in their dtype.
        """
        group_size = _check(codes, scale, zero_point, bits, group_size, bias)
        groups = scale.shape[1]
        own = dtype or scale.dtype
        kept = torch.promote_types(own, torch.float32) if groups == 1 else own
        scales = scale.T.to(kept).contiguous()
        if not scales.is_meta and not bool((scales.isfinite() & (scales > 0)).all()):
            raise ValueError(
                f"scale must be positive and finite in {kept}, got {scale.min().item():.4g} to "
                f"{scale.max().item():.4g}; take a wider dtype"
            )
        return cls(
            packed_words(codes, code_width(bits)),
            scales,
            None if zero_point is None else zero_point.T.contiguous(),
            bits=bits,
            group_size=group_size,
            in_features=codes.shape[1],
            bias=None if bias is None else bias.detach().to(dtype or bias.dtype),
        )

    @property
    def width(self) -> int:
        """Bits that a code takes."""
        return code_width(self.bits)

    @property
    def codes(self) -> Int[Tensor, "N K"]:
        """q, one a byte."""
        return unpacked_codes(self.words, self.width, self.in_features)

    @property
    def scale(self) -> Float[Tensor, "N groups"]:
        return self.scales.T

    @property
    def own_dtype(self) -> tuple[str, ...]:
        """Scales of whole channels: see `of`."""
        return ("scales",) if len(self.scales) == 1 else ()

    @property
    def zero_point(self) -> Int[Tensor, "N groups"] | None:
        return None if self.zeros is None else self.zeros.T

    def dequantized(self) -> Float[Tensor, "N K"]:
        """S (q − Z), in the dtype of the scales; computed in that or float32, whichever is wider."""
        return self._rows_dequantized(0, self.out_features).to(self.scales.dtype)

    def product(self, x: Float[Tensor, "B K"], backend: Backend = "auto") -> Float[Tensor, "B N"]:
        return self._layer(x, backend=backend, bias=None)

    def layer(
        self,
        x: Float[Tensor, "B K"],
        *,
        norm: Float[Tensor, " K"] | None = None,
        eps: float = 1e-6,
        residual: Float[Tensor, "B N"] | None = None,
        gated: bool = False,
        out: Float[Tensor, "B N"] | None = None,
        backend: Backend = "auto",
        pdl: bool = False,
        tile: AnyPackedTile | None = None,
    ) -> Float[Tensor, "B N"]:
        """RMSNorm, product, bias, SwiGLU and residual, in one kernel for up to 64 rows; as `linear`.

        Args:
            x, norm, residual: contiguous, of one dtype.
            tile: how the kernel cuts the matrix; None takes the measured or the default shape.

        Raises:
            ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
        """
        parts = {"norm": norm, "eps": eps, "residual": residual, "gated": gated}
        return self._layer(x, backend=backend, bias=self.bias, out=out, pdl=pdl, tile=tile, **parts)

    def _layer(
        self,
        x: Tensor,
        *,
        backend: Backend,
        bias: Tensor | None,
        norm: Tensor | None = None,
        eps: float = 1e-6,
        residual: Tensor | None = None,
        gated: bool = False,
        out: Tensor | None = None,
        pdl: bool = False,
        tile: AnyPackedTile | None = None,
    ) -> Tensor:
        num_outputs = self._check_input(x, norm, residual, gated, out)
        kernel = resolve(backend, x.device, x.dtype) == "triton"
        if not kernel or (tile is None and len(x) > MOST_KERNEL_ROWS):
            y = self._by_operations(x, bias, norm, eps, residual, gated, kernel)
            return y if out is None else out.copy_(y)
        if out is None:
            out = x.new_empty(len(x), num_outputs)
        tile = tile or self.best_tile(x, gated)
        if isinstance(tile, PackedRing):
            if obstacle := self._ring_obstacle(x, gated, tile):
                raise ValueError(f"tile must be one that fits, got {tile} {obstacle}; leave it at None")
            from llmcourse.kernels import packed_gluon as kernels
        else:
            from llmcourse.kernels import packed_triton as kernels
        kernels.launch(self, x, norm, eps, bias, residual, gated, out, tile, pdl)
        return out

    def best_tile(self, x: Tensor, gated: bool) -> AnyPackedTile:
        """How a kernel is to cut the matrix for these rows; for many, gate and up are one product in it."""
        fused = gated and len(x) <= MOST_FUSED_ROWS
        shape = (self.out_features // (1 + fused), self.in_features, fused)
        # With zero points a ring is for those who name it: none of the rule's own has been timed yet.
        if len(x) <= MOST_KERNEL_ROWS and self.zeros is None:
            ring = packed_ring(len(x), *shape, self.width, False)
            if not self._ring_obstacle(x, gated, ring):
                return ring
        return packed_rule(self.in_features, self.group_size, x.element_size(), gated)

    def _ring_obstacle(self, x: Tensor, gated: bool, ring: PackedRing) -> str | None:
        """Why the kernel in Gluon cannot run with such a ring, or None."""
        from llmcourse.kernels.capabilities import runs_gluon, shared_bytes

        grouped, zeros = self.group_size < self.in_features, self.zeros is not None
        fused = gated and len(x) <= MOST_FUSED_ROWS
        if len(x) > MOST_KERNEL_ROWS or x.dtype != torch.bfloat16 or self.in_features % BLOCK:
            takes = f"up to {MOST_KERNEL_ROWS} rows, a multiple of {BLOCK} numbers each, in bfloat16"
            return f"for {tuple(x.shape)} numbers in {x.dtype}; it takes {takes}"
        if grouped and (self.group_size != BLOCK or self.scales.dtype != torch.bfloat16):
            found = f"groups of {self.group_size} with scales in {self.scales.dtype}"
            return f"for {found}; it takes {BLOCK} and bfloat16"
        if zeros and not grouped:
            return "for zero points of whole channels; it takes those of groups"
        if zeros and ring.rows * ring.blocks < ALIGNED_BYTES:
            return (
                f"with {ring.rows} · {ring.blocks} zero points in a copy, which takes {ALIGNED_BYTES} or more"
            )
        half = self.out_features // 2 * (1 if zeros else 2) if fused and grouped else 0
        if half % 16:
            return (
                f"for an upper half whose numbers of a group begin {half} bytes behind; copies begin at 16s"
            )
        if not runs_gluon(90):
            return "without a GPU of Hopper or later, or with a Triton that has no Gluon"
        aligned = [x, self.words, *([self.scales] if grouped else []), *([self.zeros] if zeros else [])]
        if any((not t.is_meta and t.data_ptr() % 16) or t.stride(0) * t.element_size() % 16 for t in aligned):
            return "for rows of memory that do not begin at multiples of 16 bytes"
        held, room = ring.shared_bytes(len(x), self.width, fused, zeros), shared_bytes() - SPARE_BYTES
        return f"with {held} bytes for a program, which has room for {room}" if held > room else None

    def memory_of(self, needs: Needs) -> SplitMemory:
        """What programs that share columns leave their sums in; kept, since recordings hold its address."""
        held = self._memory.get(needs)
        if held is None or held.parts.device != self.words.device:
            held = self._memory[needs] = SplitMemory.of([needs], self.words.device)
        return held

    def _by_operations(
        self,
        x: Tensor,
        bias: Tensor | None,
        norm: Tensor | None,
        eps: float,
        residual: Tensor | None,
        gated: bool,
        kernel: bool,
    ) -> Tensor:
        """What the kernel computes, operation by operation; with some rows of W written out at a time."""
        if norm is not None:
            x = F.rms_norm(x, norm.shape, norm, eps)
        step = max(1, DEQUANTIZED_AT_ONCE // self.in_features)
        parts = []
        for begin in range(0, self.out_features, step):
            end = min(begin + step, self.out_features)
            parts.append(F.linear(x, self._weight(begin, end, x.dtype, kernel)))
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if bias is not None:
            y = y.add_(bias)
        if gated:
            gate, up = y.chunk(2, dim=-1)
            y = F.silu(gate).mul_(up)
        return y if residual is None else y.add_(residual)

    def _weight(self, begin: int, end: int, dtype: torch.dtype, kernel: bool) -> Tensor:
        if not kernel:
            return self._rows_dequantized(begin, end).to(dtype)
        from llmcourse.kernels import packed_triton

        return packed_triton.dequantize(self, begin, end, dtype)

    def _rows_dequantized(self, begin: int, end: int) -> Tensor:
        """In the dtype of the scales, or float32 if that is wider."""
        scales = self.scales[:, begin:end].T
        scales = scales.to(torch.promote_types(scales.dtype, torch.float32))
        q = unpacked_codes(self.words[begin:end], self.width, self.in_features)
        q = q.unflatten(1, (-1, self.group_size)).to(scales.dtype)
        if self.zeros is not None:
            q = q.sub_(self.zeros[:, begin:end].T[..., None])
        return q.mul_(scales[..., None]).flatten(1)

    def _check_input(
        self, x: Tensor, norm: Tensor | None, residual: Tensor | None, gated: bool, out: Tensor | None
    ) -> int:
        """The number of outputs, of arguments that fit each other."""
        check_dims("x", x, "B", "K")
        if gated and (self.out_features % 2 or self.bias is not None):
            has = "no bias" if self.bias is None else "a bias"
            raise ValueError(
                f"a gated layer must have an even number of rows and no bias, got {self.out_features} rows "
                f"and {has}; stack gate and up below each other, and add a bias yourself"
            )
        num_outputs = self.out_features // (1 + gated)
        wide, columns = (len(x), num_outputs), self.in_features
        check_tensor("x", x, (len(x), columns), x, "it needs the columns that the layer has")
        check_memory("words", self.words, x, dtype=torch.int32)
        check_tensor("norm", norm, (columns,), x, "pass a weight for each column of x, or None")
        check_memory("bias", self.bias, x)
        check_tensor("residual", residual, wide, x, "pass a number for each output, or None")
        memory = "leave it at None for new memory"
        own = out.dtype if out is not None and out.is_floating_point() else None
        check_tensor("out", out, wide, x, memory, dtype=own, layout=memory)
        check_apart(out, x=x, residual=residual)
        return num_outputs

    @classmethod
    def stacked(cls, parts: Sequence[PackedLinear]) -> PackedLinear:
        same_columns(parts)
        first = parts[0]
        kinds = {(p.bits, p.group_size, p.zeros is None, p.scales.dtype) for p in parts}
        if len(kinds) != 1:
            raise ValueError(
                "parts must agree in bits, group_size, zero points and the dtype of their scales, got "
                f"{', '.join(repr(part) for part in parts)}"
            )
        return cls(
            torch.cat([part.words for part in parts]),
            torch.cat([part.scales for part in parts], dim=1),
            None if first.zeros is None else torch.cat([part.zeros for part in parts], dim=1),
            bits=first.bits,
            group_size=first.group_size,
            in_features=first.in_features,
            bias=stacked_biases(parts),
        )

    def become_rows(self, whole: PackedLinear, begin: int) -> None:
        end = begin + self.out_features
        self.words = whole.words[begin:end]
        self.scales = whole.scales[:, begin:end]
        self.zeros = None if whole.zeros is None else whole.zeros[:, begin:end]
        self.bias = None if whole.bias is None else whole.bias[begin:end]

    def extra_repr(self) -> str:
        zeros = "" if self.zeros is None else ", zero points"
        return f"{super().extra_repr()}, bits={self.bits}, group_size={self.group_size}{zeros}"


def _check(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: int,
    group_size: int | None,
    bias: Tensor | None,
) -> int:
    """The group size, of fields that fit each other."""
    if bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}")
    check_dims("codes", codes, "N", "K")
    rows, columns = codes.shape
    group_size = columns if group_size is None else group_size
    if not isinstance(group_size, int) or not 1 <= group_size <= columns or columns % group_size:
        fitting = ", ".join(str(size) for size in range(1, columns + 1) if columns % size == 0)
        raise ValueError(
            f"group_size must divide the {columns} columns, got {group_size!r}; these do: {fitting}"
        )
    check_memory("codes", codes.contiguous(), codes, dtype=torch.int8)
    if not scale.is_floating_point():
        raise ValueError(f"scale must be in a floating-point dtype, got {scale.dtype}")
    groups = (rows, columns // group_size)
    remedy = "one for each row's groups"
    check_tensor("scale", scale.contiguous(), groups, codes, remedy, dtype=scale.dtype)
    if zero_point is not None:
        check_tensor("zero_point", zero_point.contiguous(), groups, codes, remedy, dtype=torch.int8)
    if bias is not None:
        check_tensor("bias", bias.contiguous(), (rows,), codes, "one for each row", dtype=bias.dtype)
    if codes.numel() and not codes.is_meta:
        low, high = (int(end) for end in codes.aminmax())
        if low < -(2 ** (bits - 1)) or high >= 2 ** (bits - 1):
            raise ValueError(
                f"codes must be in [{-(2 ** (bits - 1))}, {2 ** (bits - 1) - 1}] for {bits} bits, "
                f"got {low} to {high}; quantize to as many bits"
            )
    return group_size
