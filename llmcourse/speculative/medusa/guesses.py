"""What all heads say at once: their first blocks are one product, and so is lm_head of all of them.

`MedusaHeads` goes through one by one, and is what this must equal. For one text each product is bound by
reading its matrix: the heads' weights once, and lm_head's once for all K heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llmcourse.decoding.engine.step import KernelSettings
from llmcourse.decoding.engine.weights import Matrix, head_matrix, multiplied
from llmcourse.decoding.engine.window import MOST_WINDOW_ROWS
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import lay_out
from llmcourse.kernels.linear import linear
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.kernels.silu_residual import silu_residual
from llmcourse.model import Decoder
from llmcourse.speculative.medusa.heads import MedusaHeads


class Guesses:
    """The heads side by side.

    Their weights are copied: what heads learn afterwards does not reach it.

    Args:
        model: the backbone, for its lm_head.
        num_heads: K; only the first so many.
        backend: as in `DecodeEngine`. Kernels give logits in fp32, as in a step of the backbone.
        settings: whether kernels start early.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Decoder,
        heads: MedusaHeads,
        num_heads: int,
        *,
        backend: Backend = "auto",
        settings: KernelSettings | None = None,
    ):
        self._model, self._settings = model, settings or KernelSettings()
        self._backend = resolve(backend, model.device, model.dtype)
        # The first block of each head, then the second, …
        first, *later = zip(*heads.heads[:num_heads], strict=True)
        layout = torch.Tensor.contiguous if self._backend == "triton" else lay_out
        self._weight = layout(torch.cat([block.linear.weight for block in first]))  # (K · C, C)
        self._bias = torch.cat([block.linear.bias for block in first])
        self._later = [_side_by_side([block.linear for block in level]) for level in later]

    def pdl(self, batch_size: int) -> bool:
        """Whether kernels for so many texts start before their predecessors end."""
        return self._settings.starts_early(batch_size)

    def logits(self, hidden: Float[Tensor, "B C"]) -> Float[Tensor, "B K V"]:
        """What each head says.

        Args:
            hidden: the backbone's, after its final norm.
        """
        pdl = self.pdl(len(hidden))
        y = self._product(hidden, self._weight, self._bias, pdl=pdl)  # (B, K · C)
        x = silu_residual(hidden, y, backend=self._backend, pdl=pdl)
        x = x.view(len(hidden), -1, hidden.shape[1])  # (B, K, C)
        for weights, biases in self._later:
            y = torch.baddbmm(biases, x.transpose(0, 1), weights)  # (K, B, C)
            x = x + F.silu(y).transpose(0, 1)
        rows = x.reshape(-1, hidden.shape[1])
        return self._product(rows, head_matrix(self._model), pdl=pdl, wide=True).view(*x.shape[:2], -1)

    def _product(
        self, x: Tensor, weight: Matrix, bias: Tensor | None = None, *, pdl: bool, wide: bool = False
    ) -> Tensor:
        """Our kernel while the rows are few, as in a pass over a `Window`, and as in a batch beyond."""
        if self._backend == "reference":
            return multiplied(x, weight, bias=bias)
        out = x.new_empty(len(x), weight.shape[0], dtype=torch.float32 if wide else x.dtype)
        if isinstance(weight, QuantizedLinear):
            return multiplied(x, weight, backend="triton", out=out, pdl=pdl)
        backend = "triton" if len(x) <= MOST_WINDOW_ROWS else "auto"
        return linear(x, weight, bias=bias, out=out, backend=backend, pdl=pdl)


def _side_by_side(layers: Sequence[nn.Linear]) -> tuple[Float[Tensor, "K C C"], Float[Tensor, "K 1 C"]]:
    """Weights, transposed for a product from the left, and biases."""
    weights = torch.stack([layer.weight.T for layer in layers])
    return weights, torch.stack([layer.bias for layer in layers])[:, None]
