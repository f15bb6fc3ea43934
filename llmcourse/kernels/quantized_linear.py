"""What a linear layer in few bits has in common, whatever its format is: engines run on this alone.

Takes the place of `nn.Linear` in a model. A format says how its rows multiply (`product`), how matrices are
stacked, and may do in one kernel what `layer` does step by step: norm, product, bias, SwiGLU, residual, as
`linear` does for a matrix of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llmcourse.kernels.backend import Backend


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b for a W that is kept in few bits; its tensors are buffers, and never trained.

    Attributes:
        in_features, out_features: K and N.
        bias: `(N,)` or None.
        backend: what the layer multiplies by where it is called as a module, and nobody names another.
    """

    backend: Backend = "auto"

    def __init__(self, in_features: int, out_features: int, bias: Float[Tensor, " N"] | None = None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bias", bias)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), as of a weight."""
        return self.out_features, self.in_features

    @property
    def nbytes(self) -> int:
        """Of all that is read for a product: codes, scales, zero points, bias."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def product(self, x: Float[Tensor, "B K"], backend: Backend = "auto") -> Float[Tensor, "B N"]:
        """x Wᵀ, without the bias, in the dtype of x."""
        raise NotImplementedError

    def dequantized(self) -> Float[Tensor, "N K"]:
        """W as the codes have it."""
        raise NotImplementedError

    @classmethod
    def stacked(cls, parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
        """The rows of all parts below each other, as one layer: q, k and v, or gate and up.

        Raises:
            ValueError: parts of different formats or numbers of columns.
        """
        raise NotImplementedError

    @property
    def own_dtype(self) -> tuple[str, ...]:
        """Buffers whose dtype belongs to the format, and stays when a model is cast to another."""
        return ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        kept = {name: getattr(self, name) for name in self.own_dtype if getattr(self, name) is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self

    def become_rows(self, whole: QuantizedLinear, begin: int) -> None:
        """Its tensors become views of those of a stacked layer, whose rows from `begin` on are its own.

        A format that does nothing here is held twice by an engine, as the layer and as a part of the stack.
        """

    def forward(self, x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        y = self.product(x.reshape(-1, self.in_features), self.backend)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

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
    ) -> Float[Tensor, "B N"]:
        """f(W · RMSNorm(x) + b) + r, as `linear`; here operation by operation.

        Args:
            pdl: launch before the previous kernel has ended (see `launch`), where one kernel does it all.
        """
        if norm is not None:
            x = F.rms_norm(x, norm.shape, norm, eps)
        y = self.product(x, backend)
        if self.bias is not None:
            y = y + self.bias
        if gated:
            gate, up = y.chunk(2, dim=-1)
            y = F.silu(gate) * up
        if residual is not None:
            y = y + residual
        return y if out is None else out.copy_(y)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def same_columns(parts: Sequence[QuantizedLinear]) -> None:
    """Raises ValueError unless the parts can be stacked."""
    kinds = {(type(part), part.in_features, part.bias is None) for part in parts}
    if len(kinds) != 1:
        raise ValueError(
            "parts must be of one format and number of columns, all with or all without a bias, got "
            f"{', '.join(repr(part) for part in parts)}"
        )


def stacked_biases(parts: Sequence[QuantizedLinear]) -> Tensor | None:
    """Of all parts, one behind the other."""
    biases = [part.bias for part in parts if part.bias is not None]
    return torch.cat(biases) if biases else None


class SideBySide(QuantizedLinear):
    """Layers of different formats on one input, which nothing stacks: their outputs one behind the other.

    Args:
        parts: layers in few bits, or `nn.Linear`, of the same number of columns.
    """

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__(parts[0].in_features, sum(part.out_features for part in parts))
        self.parts = nn.ModuleList(parts)

    def product(self, x: Float[Tensor, "B K"], backend: Backend = "auto") -> Float[Tensor, "B N"]:
        return torch.cat([_of_part(part, x, backend) for part in self.parts], dim=1)

    def dequantized(self) -> Float[Tensor, "N K"]:
        parts = [p.dequantized() if isinstance(p, QuantizedLinear) else p.weight for p in self.parts]
        return torch.cat(parts)


def _of_part(part: nn.Module, x: Tensor, backend: Backend) -> Tensor:
    return part.layer(x, backend=backend) if isinstance(part, QuantizedLinear) else part(x)


def fused(parts: Sequence[nn.Module]) -> QuantizedLinear:
    """The parts as one layer, stacked if they are of one format; fusing twice gives the same layer.

    They become views of it where their format can (`become_rows`).
    """
    held = vars(parts[0]).get("_fused")
    if held and held[0] == _memory_of(parts):
        return held[1][0]
    kinds = {type(part) for part in parts}
    try:
        whole = parts[0].stacked(parts) if len(kinds) == 1 else SideBySide(parts)
    except ValueError:
        whole = SideBySide(parts)
    begin = 0
    for part in parts:
        if not isinstance(whole, SideBySide):
            part.become_rows(whole, begin)
        begin += part.out_features
    parts[0]._fused = (_memory_of(parts), (whole,))  # in tuples, so that it is no submodule
    return whole


def _memory_of(parts: Sequence[nn.Module]) -> list[tuple[object, ...]]:
    """What changes when a part moves, or is written to."""
    tensors = [t for part in parts for t in (*part.buffers(), *part.parameters())]
    return [(t.data_ptr(), t.dtype, None if t.is_inference() else t._version) for t in tensors]
