"""One token a row through all layers: from `text[b, positions[b]]` to the logits of the next."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.costs import Precision, weight_bytes
from llmcourse.decoding.engine.weights import (
    LayerWeights,
    Layout,
    Matrix,
    fuse_layers,
    head_matrix,
    multiplied,
)
from llmcourse.hardware import dtype_name, free_bytes
from llmcourse.kernels.arguments import check_power_of_2
from llmcourse.kernels.blas import lay_out
from llmcourse.kernels.decode_attention import (
    HeadNorm,
    Place,
    Workspace,
    attend_at,
    best_attention_tile,
    decode_attention,
    num_splits,
)
from llmcourse.kernels.linear import AnyTile, best_linear_tile, linear, linear_reference
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.kernels.split_rings import SplitMemory, SplitRing
from llmcourse.kernels.tiles import AttentionTile, Strip
from llmcourse.kernels.tokens import embed, embed_reference
from llmcourse.kv_cache import KVCache
from llmcourse.model import Decoder
from llmcourse.roofline import check_fits


@dataclass(frozen=True)
class KernelSettings:
    """How the kernels are launched; None and empty take what was measured to be best.

    Attributes:
        pdl: start kernels before their predecessors end, on a Hopper GPU or later; None for one row only.
        tiles: of the matrices for one row, by `(outputs, inputs, gated)`.
        splits: of the cache in attention, a power of 2.
        attention: how a program of attention goes through the cache.
        few_rows: multiply several rows by `linear`'s kernel where it was measured to be faster, or never.

    Raises:
        ValueError: a number that no kernel can be launched with.
    """

    pdl: bool | None = None
    tiles: dict[tuple[int, int, bool], AnyTile] = field(default_factory=dict)
    splits: int | None = None
    attention: AttentionTile | None = None
    few_rows: bool = True

    def __post_init__(self):
        if self.splits is not None:
            check_power_of_2("splits", self.splits)

    def starts_early(self, batch_size: int) -> bool:
        """`pdl` for so many rows."""
        return batch_size == 1 if self.pdl is None else self.pdl


class StepState:
    """Memory of fixed address and shape for a step: text, positions, cache and activations.

    Args:
        layout: of the matrices; `Tensor.contiguous` for kernels, which read rows.
        cache: of this model and these sizes, instead of a new one.
    """

    def __init__(
        self,
        model: Decoder,
        batch_size: int,
        capacity: int,
        layout: Layout = lay_out,
        cache: KVCache | None = None,
    ):
        config, device, dtype = model.config, model.device, model.dtype
        self.model = model
        self.layers: list[LayerWeights] = fuse_layers(model, layout)
        self.eps = config.rms_norm_eps
        self.cache = model.new_cache(batch_size, capacity) if cache is None else cache
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


def check_room(model: Decoder, batch_size: int, capacity: int) -> None:
    """Refuses a cache before anything is allocated; the weights are there already.

    Raises:
        DoesNotFit: the memory that is free does not hold it.
    """
    precision = Precision.uniform(dtype_name(model.dtype))
    free, held = free_bytes(model.device), weight_bytes(model.config, precision)
    check_fits(model.config, batch_size, capacity, free and free + held, precision)


def reference_step(state: StepState) -> Float[Tensor, "B C"]:
    """The definition: fused matrices and a cache of fixed size, otherwise the model's own operations.

    Returns:
        what the last layer gives, before the norm.
    """
    model, x = state.model, reference_layers(state)
    norm = model.model.norm.weight
    state.logits.copy_(multiplied(x, head_matrix(model), norm=norm, eps=state.eps))
    return x


def reference_layers(state: StepState) -> Float[Tensor, "B C"]:
    """`reference_step` without the head: keys, values, and what it returns."""
    model, positions = state.model, state.positions
    x = embed_reference(state.text, positions, model.model.embed_tokens.weight)
    place = Place.of(positions, state.cos, state.sin)
    for index, w in enumerate(state.layers):
        qkv = multiplied(x, w.qkv, norm=w.input_norm, eps=state.eps, bias=w.qkv_bias)
        mixed = attend_at(place, qkv, state.cache.keys[index], state.cache.values[index], w.head_norm)
        x = multiplied(mixed, w.output, bias=w.output_bias, residual=x)
        inner = multiplied(x, w.gate_up, norm=w.mlp_norm, eps=state.eps, gated=True)
        x = multiplied(inner, w.down, residual=x)
    return x


class KernelStep:
    """The same through the kernels; five launches a layer, into memory that is allocated here once.

    Where PyTorch's own product of several rows is faster than `linear`'s kernel it takes the place of that.

    Args:
        num_tokens: of each row; more than one for a `window` alone.
        first_layer: where the pass begins, with what `hidden` holds; 0 begins with the tokens.

    Attributes:
        hidden: `(rows, C)`, what the last layer gives; another tensor may take its place between passes.
    """

    def __init__(self, state: StepState, settings: KernelSettings, num_tokens: int = 1, first_layer: int = 0):
        c, x = state.model.config, state.model.model.embed_tokens.weight
        batch, rows, width = state.batch_size, state.batch_size * num_tokens, c.num_heads * c.head_dim
        self.settings, self.first_layer = settings, first_layer
        self.pdl = settings.starts_early(batch)
        self.hidden = x.new_empty(rows, c.hidden_size)
        self.between = x.new_empty(rows, c.hidden_size)  # after attention, before the MLP
        self.qkv = x.new_empty(rows, width + 2 * c.num_kv_heads * c.head_dim)
        self.mixed = x.new_empty(rows, width)
        self.inner = x.new_empty(rows, c.intermediate_size)
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 8
        self.attention = settings.attention or self._attention_tile(state)
        programs = self._num_programs(state)
        splits = settings.splits or num_splits(
            programs, c.num_kv_heads, state.capacity, self.attention, processors
        )
        self.workspace = Workspace(rows, c.num_heads, c.num_kv_heads, c.head_dim, splits, x.device)
        self.split_memory = self._split_memory(state)

    def __call__(self, state: StepState) -> None:
        self.layers(state)
        model = state.model
        norm = model.model.norm.weight.data
        self._linear(self.hidden, head_matrix(model), self._logits(state), norm=norm, eps=state.eps)

    def layers(self, state: StepState) -> None:
        """All but the head: keys, values, and `hidden`."""
        if self.first_layer == 0:
            self._embed(state)
        for index in range(self.first_layer, len(state.layers)):
            w = state.layers[index]
            self._linear(self.hidden, w.qkv, self.qkv, norm=w.input_norm, eps=state.eps, bias=w.qkv_bias)
            self._attend(state, index, w.head_norm)
            self._linear(self.mixed, w.output, self.between, bias=w.output_bias, residual=self.hidden)
            self._linear(self.between, w.gate_up, self.inner, norm=w.mlp_norm, eps=state.eps, gated=True)
            self._linear(self.inner, w.down, self.hidden, residual=self.between)

    def _embed(self, state: StepState) -> None:
        table = state.model.model.embed_tokens.weight
        embed(state.text, state.positions, table, out=self.hidden, backend="triton", pdl=self.pdl)

    def _attend(self, state: StepState, index: int, norm: HeadNorm | None) -> None:
        decode_attention(
            self.qkv,
            state.cache.keys[index],
            state.cache.values[index],
            state.positions,
            state.cos,
            state.sin,
            norm,
            workspace=self.workspace,
            out=self.mixed,
            backend="triton",
            pdl=self.pdl,
            tile=self.attention,
        )

    def _logits(self, state: StepState) -> Tensor:
        return state.logits

    def _attention_tile(self, state: StepState) -> AttentionTile:
        strips = isinstance(self._tile(self.hidden, state.layers[0].qkv, gated=False), Strip)
        return best_attention_tile(state.cache.keys[0], state.model.config.num_heads, staged=strips)

    def _num_programs(self, state: StepState) -> int:
        """Of attention, for each key head and split."""
        return state.batch_size

    def _linear(self, x: Tensor, weight: Matrix, out: Tensor, **parts) -> None:
        if isinstance(weight, QuantizedLinear):
            multiplied(x, weight, backend="triton", out=out, pdl=self.pdl, **parts)
            return
        tile = self._tile(x, weight, parts.get("gated", False))
        if tile is None:
            out.copy_(linear_reference(x, weight, **parts))
        else:
            given = {"pdl": self.pdl, "tile": tile, "split_memory": self.split_memory}
            linear(x, weight, out=out, backend="triton", **given, **parts)

    def _split_memory(self, state: StepState) -> SplitMemory | None:
        """Of the matrices whose columns are shared by programs: one after the other, they use the same."""
        w, head = state.layers[0], head_matrix(state.model)
        matrices = [
            (self.hidden, w.qkv, False),
            (self.mixed, w.output, False),
            (self.between, w.gate_up, True),
        ]
        needs = []
        for x, weight, gated in [*matrices, (self.inner, w.down, False), (self.hidden, head, False)]:
            tile = self._tile(x, weight, gated)
            if isinstance(tile, SplitRing):
                needs.append(tile.needs(len(x), weight.shape[0] // (1 + gated), gated))
        return SplitMemory.of(needs, self.hidden.device) if needs else None

    def _tile(self, x: Tensor, weight: Matrix, gated: bool) -> AnyTile | None:
        if isinstance(weight, QuantizedLinear):
            return None
        if len(x) == 1:
            chosen = self.settings.tiles.get((weight.shape[0] // (1 + gated), x.shape[1], gated))
            return chosen or best_linear_tile(x, weight, gated, "triton")
        return best_linear_tile(x, weight, gated, "auto") if self.settings.few_rows else None
