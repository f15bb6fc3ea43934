"""A decoder over a paged cache: the new tokens of all requests as one row of tokens through every layer.

The matrices do not care whose token it is, and see all of them as one batch; only attention looks up whose
blocks each token may see. So prompts and answers mix freely, and nothing is padded (Yu et al. 2022, Orca,
section 3.2, "selective batching").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.engine.weights import (
    LayerWeights,
    Matrix,
    fuse_layers,
    head_matrix,
    multiplied,
    product_by,
)
from llmcourse.decoding.errors import require
from llmcourse.kernels.arguments import check_kind
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import lay_out, product
from llmcourse.kernels.choose_rows import choose_rows
from llmcourse.kernels.decode_attention import MOST_SPLITS, Workspace
from llmcourse.kernels.paged_attention import paged_attention
from llmcourse.kernels.paged_decode import paged_decode_attention
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.kernels.rms_norm import rms_norm
from llmcourse.kernels.rotary import rotate_and_store
from llmcourse.kernels.swiglu import swiglu
from llmcourse.model import Decoder
from llmcourse.serving.paged_cache import PagedCache
from llmcourse.serving.step_inputs import StepInputs, StepSize

# Of attention for each multiprocessor, so that its loads are always under way, and the longest of requests of
# different lengths is shared out: on an H200, 64 of 100 to 2,000 tokens are 7 % faster with two splits than
# with one. Few of one length would rather have less: 16 of 4,096 are 10 % faster with two than with eight.
PROGRAMS = 8


class PagedDecoder:
    """Runs steps of a model and draws the next tokens.

    Args:
        model: whose projections become views of fused matrices (see `weights.fuse_layers`).
        cache: made for this model.
        max_running: slots of the scheduler's batch.
        max_length: of a text.
        backend: "triton" for the kernels, "reference" for PyTorch's operations, "auto" for what runs here.
        pdl: start our kernels before those that feed them end, on a Hopper GPU or later.

    Attributes:
        last_tokens: `(max_running + 1,)`, what was drawn last for each slot of the batch, and one to spare.

    Raises:
        ValueError: a backend that cannot run, or a cache of another model.
    """

    def __init__(
        self,
        model: Decoder,
        cache: PagedCache,
        *,
        max_running: int,
        max_length: int,
        backend: Backend = "auto",
        pdl: bool = True,
    ):
        c, device = model.config, model.device
        expected, found = (c.num_layers, c.num_kv_heads, c.head_dim), (cache.keys.shape[i] for i in (0, 2, 4))
        found = tuple(found)
        require(found == expected, "cache", f"one of (layers, Hkv, D) {expected}", found, "make it for model")
        check_kind("cache", cache.keys, model.model.norm.weight)
        self.model, self.cache = model, cache
        self.backend = resolve(backend, device, model.dtype)
        self.pdl = pdl
        by_rows = self.backend == "triton"
        self.layers: list[LayerWeights] = fuse_layers(model, torch.Tensor.contiguous if by_rows else lay_out)
        cos, sin = model.rope(torch.arange(max_length, device=device)[None])
        self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()
        self.last_tokens = torch.zeros(max_running + 1, dtype=torch.long, device=device)
        cuda = device.type == "cuda"
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1

    def step(
        self, inputs: StepInputs, size: StepSize, logits: Float[Tensor, "R V"] | None = None
    ) -> tuple[Float[Tensor, "R V"], Int[Tensor, " R"]]:
        """Computes a step; returns logits for each request, in new memory if None, and the tokens drawn.

        In place of a token that is `BROKEN`, 0 stands in `last_tokens`, for a step that is already under way
        to look it up like any other.
        """
        known = self.last_tokens[inputs.batch_slots]
        token_ids = torch.where(inputs.token_ids < 0, known, inputs.token_ids)
        hidden = self._hidden(token_ids, inputs, size)
        x = self._norm(hidden[inputs.drawn_after], self.model.model.norm.weight)
        head = head_matrix(self.model)
        if isinstance(head, QuantizedLinear):
            logits = multiplied(x, head, backend=self.backend, out=logits, pdl=self.pdl)
        else:
            logits = product(x, head) if logits is None else torch.mm(x, head.t(), out=logits)
        settings = (inputs.temperatures, inputs.seeds, inputs.drawn_positions)
        tokens = choose_rows(logits, *settings, backend=self.backend)
        self.last_tokens.index_copy_(0, inputs.drawn_slots, tokens.clamp(min=0))
        return logits, tokens

    def _hidden(
        self, token_ids: Int[Tensor, " T"], inputs: StepInputs, size: StepSize
    ) -> Float[Tensor, "T C"]:
        """All layers; keys and values of the new tokens are in the pool afterwards."""
        x = F.embedding(token_ids, self.model.model.embed_tokens.weight)
        workspace = self._workspace(size.decodes)
        given = {"backend": self.backend, "pdl": self.pdl}
        for index, w in enumerate(self.layers):
            qkv = product_by(self._norm(x, w.input_norm), w.qkv, w.qkv_bias, **given)
            mixed = qkv.new_empty(len(qkv), w.output.shape[1])
            self._decode(qkv, index, inputs, size, workspace, mixed)
            self._prefill(qkv, index, inputs, size, mixed)
            x = _added(x, mixed, w.output, w.output_bias, **given)
            inner = swiglu(product_by(self._norm(x, w.mlp_norm), w.gate_up, **given), **given)
            x = _added(x, inner, w.down, **given)
        return x

    def _norm(self, x: Float[Tensor, "T C"], weight: Float[Tensor, " C"]) -> Float[Tensor, "T C"]:
        return rms_norm(x, weight, self.model.config.rms_norm_eps, backend=self.backend, pdl=self.pdl)

    def _decode(
        self,
        qkv: Float[Tensor, "T heads_D"],
        layer: int,
        inputs: StepInputs,
        size: StepSize,
        workspace: Workspace | None,
        out: Float[Tensor, "T H_D"],
    ) -> None:
        """Attention of the requests with one new token, which are the first."""
        if n := size.decodes:
            paged_decode_attention(
                qkv[:n],
                self.cache.keys[layer],
                self.cache.values[layer],
                inputs.block_tables[:n],
                inputs.positions[:n],
                self.cos,
                self.sin,
                self.layers[layer].head_norm,
                workspace=workspace,
                out=out[:n],
                backend=self.backend,
                pdl=self.pdl,
            )

    def _prefill(
        self,
        qkv: Float[Tensor, "T heads_D"],
        layer: int,
        inputs: StepInputs,
        size: StepSize,
        out: Float[Tensor, "T H_D"],
    ) -> None:
        """Attention of the pieces of prompts, behind them."""
        if size.chunks:
            n, keys, values = size.decodes, self.cache.keys[layer], self.cache.values[layer]
            places, angles = (inputs.positions[n:], inputs.slot_mapping[n:]), (self.cos, self.sin)
            norm = self.layers[layer].head_norm
            q = rotate_and_store(qkv[n:], keys, values, *places, *angles, norm, backend=self.backend)
            paged_attention(
                q,
                keys,
                values,
                inputs.block_tables[n:],
                inputs.cu_seqlens_q,
                inputs.seq_lens[n:],
                max_seqlen_q=size.longest,
                out=out[n:].view(q.shape),
                backend=self.backend,
            )

    def _workspace(self, num_decodes: int) -> Workspace | None:
        """Memory of attention for all layers, with as many splits as keep the chip busy where few decode."""
        if not num_decodes or self.backend == "reference":
            return None
        c = self.model.config
        splits = PROGRAMS * self._processors // (num_decodes * c.num_kv_heads)
        splits, device = max(1, min(splits, MOST_SPLITS)), self.model.device
        return Workspace(num_decodes, c.num_heads, c.num_kv_heads, c.head_dim, splits, device)


def _added(
    x: Float[Tensor, "T C"],
    inner: Float[Tensor, "T K"],
    weight: Matrix,
    bias: Float[Tensor, " C"] | None = None,
    *,
    backend: Backend,
    pdl: bool,
) -> Float[Tensor, "T C"]:
    """x + inner Wᵀ + b; on a GPU in x's own memory, added by the product itself."""
    if isinstance(weight, QuantizedLinear):
        return multiplied(inner, weight, backend=backend, residual=x, pdl=pdl)
    if bias is not None:
        x = x + bias
    return x.addmm_(inner, weight.t()) if x.is_cuda else x + product(inner, weight)
