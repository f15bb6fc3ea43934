"""One token a row through all layers: from `text[b, positions[b]]` to the logits of the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmcourse.decoding.engine.weights import LayerWeights, Layout, fuse_layers
from llmcourse.kernels.arguments import check_power_of_2, check_warps
from llmcourse.kernels.blas import lay_out
from llmcourse.kernels.decode_attention import (
    Place,
    Workspace,
    attend_at,
    decode_attention,
    num_splits,
)
from llmcourse.kernels.linear import linear, linear_reference
from llmcourse.kernels.tiles import Tile
from llmcourse.kernels.tokens import embed, embed_reference
from llmcourse.model import Decoder


@dataclass(frozen=True)
class KernelSettings:
    """How the kernels are launched; None and empty take what was measured to be best.

    Attributes:
        pdl: start kernels before their predecessors end, on a Hopper GPU or later.
        tiles: of the matrices for one row, by `(outputs, inputs, gated)`.
        splits: of the cache in attention, a power of 2.
        block: keys in one tile of attention, and
        warps: of its programs.
        prefetch_bytes: of a later matrix, that each kernel asks into the L2 while it waits; 0 for none.
            Needs a Hopper GPU or later, as `pdl` does.
        ahead: how many kernels later that matrix is read.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    pdl: bool = True
    tiles: dict[tuple[int, int, bool], Tile] = field(default_factory=dict)
    splits: int | None = None
    block: int = 32
    warps: int | None = None
    prefetch_bytes: int = 0
    ahead: int = 2

    def __post_init__(self):
        if self.splits is not None:
            check_power_of_2("splits", self.splits)
        check_power_of_2("block", self.block, 16)
        check_warps(self.warps)
        if self.prefetch_bytes < 0:
            raise ValueError(f"prefetch_bytes must be at least 0, got {self.prefetch_bytes}; 0 is for none")
        if self.ahead < 1:
            raise ValueError(f"ahead must be at least 1, got {self.ahead}; 1 is the next kernel")


class StepState:
    """Memory of fixed address and shape for a step: text, positions, cache and activations.

    Args:
        layout: of the matrices; `Tensor.contiguous` for kernels, which read rows.
    """

    def __init__(self, model: Decoder, batch_size: int, capacity: int, layout: Layout = lay_out):
        config, device, dtype = model.config, model.device, model.dtype
        self.model = model
        self.layers: list[LayerWeights] = fuse_layers(model, layout)
        self.eps = config.rms_norm_eps
        self.cache = model.new_cache(batch_size, capacity)
        self.text = torch.zeros(batch_size, capacity, dtype=torch.long, device=device)
        self.positions = torch.zeros(batch_size, dtype=torch.long, device=device)
        cos, sin = model.rope(torch.arange(capacity, device=device)[None])
        self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()
        self.logits = torch.zeros(
            batch_size, config.vocab_size, dtype=torch.promote_types(dtype, torch.float32), device=device
        )

    @property
    def batch_size(self) -> int:
        return self.cache.batch_size

    @property
    def capacity(self) -> int:
        return self.cache.capacity


def reference_step(state: StepState) -> None:
    """The definition: fused matrices and a cache of fixed size, otherwise the model's own operations."""
    model, positions = state.model, state.positions
    x = embed_reference(state.text, positions, model.model.embed_tokens.weight)
    place = Place.of(positions, state.cos, state.sin)
    for index, w in enumerate(state.layers):
        qkv = linear_reference(x, w.qkv, norm=w.input_norm, eps=state.eps, bias=w.qkv_bias)
        mixed = attend_at(place, qkv, state.cache.keys[index], state.cache.values[index], w.head_norm)
        x = linear_reference(mixed, w.output, bias=w.output_bias, residual=x)
        inner = linear_reference(x, w.gate_up, norm=w.mlp_norm, eps=state.eps, gated=True)
        x = linear_reference(inner, w.down, residual=x)
    norm = model.model.norm.weight
    state.logits.copy_(linear_reference(x, model.lm_head.weight, norm=norm, eps=state.eps))


class KernelStep:
    """The same through the kernels; five launches a layer, into memory that is allocated here once.

    With two rows or more the matrices are read by PyTorch's own products, which are faster there than
    `linear`'s few-rows kernel (a step of Llama-3-8B's shapes on an H200: two thirds of the time).
    """

    def __init__(self, state: StepState, settings: KernelSettings):
        c, x = state.model.config, state.model.model.embed_tokens.weight
        batch, width = state.batch_size, c.num_heads * c.head_dim
        self.settings = settings
        self.pdl = settings.pdl and batch == 1  # every kernel in the chain must take part
        self.hidden = x.new_empty(batch, c.hidden_size)
        self.between = x.new_empty(batch, c.hidden_size)  # after attention, before the MLP
        self.qkv = x.new_empty(batch, width + 2 * c.num_kv_heads * c.head_dim)
        self.mixed = x.new_empty(batch, width)
        self.inner = x.new_empty(batch, c.intermediate_size)
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 8
        splits = settings.splits or num_splits(
            batch, c.num_kv_heads, state.capacity, settings.block, processors
        )
        self.workspace = Workspace(batch, c.num_heads, c.num_kv_heads, c.head_dim, splits, x.device)
        self.prefetched = weights_ahead(state, settings if batch == 1 else KernelSettings())

    def __call__(self, state: StepState) -> None:
        model, positions, pdl, prefetched = state.model, state.positions, self.pdl, iter(self.prefetched)
        embed(
            state.text, positions, model.model.embed_tokens.weight, out=self.hidden, backend="triton", pdl=pdl
        )
        for index, w in enumerate(state.layers):
            self._linear(
                self.hidden, w.qkv, self.qkv, prefetched, norm=w.input_norm, eps=state.eps, bias=w.qkv_bias
            )
            decode_attention(
                self.qkv,
                state.cache.keys[index],
                state.cache.values[index],
                positions,
                state.cos,
                state.sin,
                w.head_norm,
                workspace=self.workspace,
                out=self.mixed,
                backend="triton",
                pdl=pdl,
                block=self.settings.block,
                warps=self.settings.warps,
                prefetch=next(prefetched),
            )
            self._linear(
                self.mixed, w.output, self.between, prefetched, bias=w.output_bias, residual=self.hidden
            )
            self._linear(
                self.between, w.gate_up, self.inner, prefetched, norm=w.mlp_norm, eps=state.eps, gated=True
            )
            self._linear(self.inner, w.down, self.hidden, prefetched, residual=self.between)
        head, norm = model.lm_head.weight.data, model.model.norm.weight.data
        self._linear(self.hidden, head, state.logits, prefetched, norm=norm, eps=state.eps)

    def _linear(
        self, x: Tensor, weight: Tensor, out: Tensor, prefetched: Iterator[Tensor | None], **parts
    ) -> None:
        if len(x) > 1:
            out.copy_(linear_reference(x, weight, **parts))
            return
        tile = self.settings.tiles.get((out.shape[1], x.shape[1], parts.get("gated", False)))
        linear(
            x, weight, out=out, backend="triton", pdl=self.pdl, tile=tile, prefetch=next(prefetched), **parts
        )


def weights_ahead(state: StepState, settings: KernelSettings) -> list[Tensor | None]:
    """For each launch after the embedding, the beginning of the matrix that is read `ahead` launches later.

    The memory would stand idle while attention, of few bytes and much waiting, holds the chain up, and for
    a moment between any two kernels. The last launches of a step look to the first of the next.
    """
    read: list[Tensor | None] = []
    for w in state.layers:
        read += [w.qkv, None, w.output, w.gate_up, w.down]  # attention reads no weights
    read.append(state.model.lm_head.weight.data)
    if settings.prefetch_bytes == 0:
        return [None] * len(read)
    ahead = settings.ahead
    return [
        None if matrix is None else matrix.view(-1)[: settings.prefetch_bytes // matrix.element_size()]
        for matrix in read[ahead:] + read[:ahead]
    ]
