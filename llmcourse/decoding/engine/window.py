"""Several tokens of each row in one pass, the last of them where the row stands: to the logits after each.

They follow one another, or branch: in a tree they lie one behind the other all the same, but each sees its
own ancestors alone.

What verifies drafts: the weights are read once for all T tokens, so that where reading them is what takes
time the pass costs little more than a step of one token. Positions stay where they are: how many of the
tokens become text is decided afterwards, and keys and values of the others are overwritten by what follows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmcourse.decoding.engine.step import KernelSettings, KernelStep, StepState
from llmcourse.decoding.engine.weights import Matrix, head_matrix, multiplied
from llmcourse.kernels.append_attention import (
    append_attention,
    append_attention_reference,
    append_tile,
    query_blocks,
)
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.decode_attention import HeadNorm
from llmcourse.kernels.drafts import embed_window, embed_window_reference
from llmcourse.kernels.linear import AnyTile, best_linear_tile, window_ring
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.kernels.tiles import AttentionTile
from llmcourse.kernels.tree_mask import TreeMask

MOST_WINDOW_ROWS = 16  # B · T, up to which our kernel multiplies any matrix


class Window:
    """Memory of fixed address for T tokens a row, and the pass over them.

    Args:
        state: text, positions and cache; each position must be at least T − 1.
        num_tokens: T.
        tree: which of them each one sees; None for a chain.
        first_layer: where the pass begins. Beyond 0, the layers before have read these tokens already, and
            what they gave lies in `hidden`, which the pass overwrites; `tokens` is not written.
        backend, settings: as in `DecodeEngine`; tiles of `settings` are for B · T rows here.

    Attributes:
        tokens: `(B, T)`, what was read.
        logits: `(B, T, V)`, after each of them.
        hidden: `(B · T, C)`, before the final norm.
    """

    def __init__(
        self,
        state: StepState,
        num_tokens: int,
        tree: TreeMask | None = None,
        *,
        first_layer: int = 0,
        backend: Backend = "auto",
        settings: KernelSettings | None = None,
    ):
        batch, device = state.batch_size, state.text.device
        self.state, self.tree, self.first_layer = state, tree, first_layer
        self.tokens = torch.zeros(batch, num_tokens, dtype=torch.long, device=device)
        shape = (batch, num_tokens, state.logits.shape[1])
        self.logits = torch.zeros(shape, dtype=state.logits.dtype, device=device)
        self._pass: Callable[[StepState], None] = self._reference
        if resolve(backend, device, state.model.dtype) == "triton":
            step = _WindowStep(self, settings or KernelSettings())
            self._pass, self.hidden = step, step.hidden
        else:
            table = state.model.model.embed_tokens.weight
            self.hidden = table.new_zeros(batch * num_tokens, table.shape[1])

    @torch.no_grad()
    def read(self) -> None:
        """Asks nothing of the device in the kernels' pass, which can be recorded."""
        self._pass(self.state)

    def _reference(self, state: StepState) -> None:
        """The definition, as `reference_step` is of a step of one token."""
        model = state.model
        x, table = self.hidden, model.model.embed_tokens.weight  # (B · T, C)
        if self.first_layer == 0:
            x = embed_window_reference(state.text, state.positions, table, self.tokens)
        for index in range(self.first_layer, len(state.layers)):
            w = state.layers[index]
            qkv = multiplied(x, w.qkv, norm=w.input_norm, eps=state.eps, bias=w.qkv_bias)
            layer = (state.cache.keys[index], state.cache.values[index])
            places = (state.positions, state.cos, state.sin)
            mixed = append_attention_reference(qkv, *layer, *places, w.head_norm, self.tree)
            x = multiplied(mixed, w.output, bias=w.output_bias, residual=x)
            inner = multiplied(x, w.gate_up, norm=w.mlp_norm, eps=state.eps, gated=True)
            x = multiplied(inner, w.down, residual=x)
        self.hidden.copy_(x)
        norm = model.model.norm.weight
        logits = multiplied(x, head_matrix(model), norm=norm, eps=state.eps)
        self.logits.copy_(logits.view_as(self.logits))


class _WindowStep(KernelStep):
    """The same launches as for one token, over B · T rows."""

    def __init__(self, window: Window, settings: KernelSettings):
        self.window = window
        super().__init__(window.state, settings, window.tokens.shape[1], window.first_layer)

    def _embed(self, state: StepState) -> None:
        table, settings = state.model.model.embed_tokens.weight, {"backend": "triton", "pdl": self.pdl}
        embed_window(state.text, state.positions, table, self.window.tokens, out=self.hidden, **settings)

    def _attend(self, state: StepState, index: int, norm: HeadNorm | None) -> None:
        append_attention(
            self.qkv,
            state.cache.keys[index],
            state.cache.values[index],
            state.positions,
            state.cos,
            state.sin,
            norm,
            self.window.tree,
            workspace=self.workspace,
            out=self.mixed,
            backend="triton",
            pdl=self.pdl,
            tile=self.attention,
        )

    def _logits(self, state: StepState) -> Tensor:
        return self.window.logits.view(-1, self.window.logits.shape[-1])

    def _attention_tile(self, state: StepState) -> AttentionTile:
        return append_tile(state.cache.keys[0], state.model.config.num_heads, self.window.tokens.shape[1])

    def _num_programs(self, state: StepState) -> int:
        config, num_tokens = state.model.config, self.window.tokens.shape[1]
        return state.batch_size * query_blocks(num_tokens, config.num_heads, config.num_kv_heads)

    def _tile(self, x: Tensor, weight: Matrix, gated: bool) -> AnyTile | None:
        """Ours for any matrix while the rows are few: PyTorch's product has three launches more around it.

        With more rows, where no ring was measured to be faster, the matrices are cut as in a step of as many
        texts, most of them by PyTorch: our kernel would read the weights once for every 64 rows.
        """
        if isinstance(weight, QuantizedLinear):
            return None
        chosen = self.settings.tiles.get((weight.shape[0] // (1 + gated), x.shape[1], gated))
        if chosen or not self.settings.few_rows:
            return chosen
        if len(x) <= MOST_WINDOW_ROWS:
            return best_linear_tile(x, weight, gated, "triton")
        return window_ring(x, weight, gated) or best_linear_tile(x, weight, gated, "auto")
