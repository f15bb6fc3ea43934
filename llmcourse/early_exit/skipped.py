"""Keys and values of layers that a token skipped: later tokens attend to them all the same.

A token that leaves after layer n has none in the layers above. Two ways out:

propagate   Its hidden state is handed up as it is, x_l = x_n for every l > n, and each skipped layer makes
            key and value of it: two small products instead of a layer (Schuster et al. 2022, "CALM", section
            3.3.1, "state propagation"). Lossy: what the layers would have added to x is missing in their keys
            and values, for all tokens to come. Nothing is ever caught up with.
recompute   Nothing is written. x_n is kept, and the first later token that goes on to layer n + 1 takes all
            that were left behind along with it (Chen et al. 2023, "EE-LLM", "KV recomputation"). Exact: every
            key and value that is read is what a full pass would have written. The layers do run in the end,
            but for several tokens at a time, which read the weights once.

Both keep the token that the exit chose, so that either text may differ from the full model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.kv_cache import KVCache
from llmcourse.model import Context, Decoder, Rope

Skipped = Literal["propagate", "recompute"]
SKIPPED = ("propagate", "recompute")


def require_skipped(value: object) -> None:
    """Refuses what names neither way."""
    require(value in SKIPPED, "skipped", "'propagate' or 'recompute'", repr(value), "choose one")


@dataclass(frozen=True)
class _SomeRows:
    """A cache as it looks to some of its rows: their layers write and read theirs alone."""

    cache: KVCache
    rows: Int[Tensor, " N"]

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        held = (self.cache.keys[layer], self.cache.values[layer])  # each (B, Hkv, S, D)
        for stored, new in zip(held, (k, v), strict=True):
            stored[self.rows[:, None], :, positions] = new.transpose(1, 2)
        return tuple(stored[self.rows, :, : self.cache.extent] for stored in held)


class LayerRunner:
    """Runs one new token a row through the layers, one layer at a time, each for the rows that want it.

    Between tokens the cache holds, in layer l, the tokens of row b before `_held[l][b]`. No row wants a layer
    without the ones below: so the tokens that a layer lacks are the last ones, and all are in the same state.

    Args:
        cache: holds the prompts, read by all layers.
        lengths: of the prompts.

    Attributes:
        layers_run: of each row at the last token, those that were caught up with included.
    """

    def __init__(self, model: Decoder, cache: KVCache, lengths: Sequence[int], skipped: Skipped):
        require_skipped(skipped)
        self.model, self.cache, self.skipped = model, cache, skipped
        self._held = [list(lengths) for _ in model.model.layers]
        self._at = [length - 1 for length in lengths]
        self._states: Tensor | None = None  # (B, capacity, C): each token as it left its last layer
        if skipped == "recompute":
            shape = (cache.batch_size, cache.capacity, model.config.hidden_size)
            self._states = torch.zeros(shape, dtype=model.dtype, device=model.device)

    def begin(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B 1 C"]:
        """Takes one more token for each row; what the first layer is given of them."""
        x, self._context = self.model.begin(tokens[:, None], self.cache)
        self._at = [at + 1 for at in self._at]
        self.layers_run = [0] * len(tokens)
        return x

    def run(self, layer: int, rows: Sequence[int], x: Float[Tensor, "N 1 C"]) -> Float[Tensor, "N 1 C"]:
        """Layer number `layer`, from 0, for these rows, whose new tokens come as x."""
        lacking = [self._at[row] + 1 - self._held[layer][row] for row in rows]
        for row, count in zip(rows, lacking, strict=True):
            self._held[layer][row] = self._at[row] + 1
            self.layers_run[row] += count
        if max(lacking) == 1:
            return self.model.model.layers[layer](x, layer, self._of_rows(rows))
        return self._catch_up(layer, rows, lacking, x)

    def leave(self, layers: int, rows: Sequence[int], x: Float[Tensor, "N 1 C"]) -> None:
        """These rows need no layer after the first `layers`, whose output x is."""
        if self._states is not None:
            index = torch.tensor(rows, device=x.device)
            self._states[index, self._context.positions[index, 0]] = x[:, 0]
            return
        context = self._of_rows(rows)
        for number in range(layers, len(self._held)):
            layer = self.model.model.layers[number]
            k, v = layer.self_attn.keys_values(layer.input_layernorm(x), context.rope)
            context.cache.write(number, k, v, context.positions)
            for row in rows:
                self._held[number][row] = self._at[row] + 1

    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        """Row i becomes a copy of row `rows[i]`."""
        self.cache.reorder(rows)
        if self._states is not None:
            self._states = self._states[rows]
        chosen = rows.tolist()
        self._at = [self._at[row] for row in chosen]
        self._held = [[held[row] for row in chosen] for held in self._held]

    def _of_rows(self, rows: Sequence[int]) -> Context:
        """What a layer needs to know of the new tokens of these rows."""
        whole = self._context
        if len(rows) == self.cache.batch_size:
            return whole
        index = torch.tensor(rows, device=self.cache.device)
        mask = None if whole.mask is None else whole.mask[index]
        rope = Rope(whole.rope.cos[index], whole.rope.sin[index])
        cache = _SomeRows(self.cache, index)
        return Context(rope, whole.positions[index], mask, cache, whole.attention)

    def _catch_up(
        self, layer: int, rows: Sequence[int], lacking: Sequence[int], x: Float[Tensor, "N 1 C"]
    ) -> Float[Tensor, "N 1 C"]:
        """The layer for the new tokens and for all that were left behind below it.

        Rows that lack fewer tokens than others repeat their first one, which writes the same twice.
        """
        index = torch.tensor(rows, device=x.device)
        last = self._context.positions[index]  # (N, 1)
        self._states[index, last[:, 0]] = x[:, 0]
        back = torch.arange(max(lacking) - 1, -1, -1, device=x.device)  # tokens before the new one
        few = torch.tensor(lacking, device=x.device)[:, None] - 1
        positions = last - torch.minimum(back, few)  # (N, T)
        mask = torch.arange(self.cache.extent, device=x.device) <= positions[..., None]
        rope, cache = Rope.of_pairs(*self.model.rope(positions)), _SomeRows(self.cache, index)
        context = Context(rope, positions, mask, cache, self._context.attention)
        states = self._states[index[:, None], positions]
        states = self.model.model.layers[layer](states, layer, context)
        self._states[index[:, None], positions] = states
        return states[:, -1:]
