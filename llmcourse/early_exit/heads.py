"""Exit heads: from the hidden state after n layers to the next token, through the model's own vocabulary.

    h = RMSNorm_n(x_n);   logits_n = W_lm (h + M_n h),   M_n = 0 at first

Belrose et al. 2023 ("tuned lens") put a learnt affine map before the model's last norm and head,
which are kept, and start it at the identity: so an untrained head reads the layer as the last one is read. So
it is here, but for one choice: the norm is the head's own, starts as a copy of the model's, and comes first.
What M sees is then of one scale at every layer and token; nothing is normalised after it, so that it learns
how sure to be, too, which exit rules read; and I + M folds into W_lm (`folded`), so that a model of the first
layers with a trained exit is a decoder like any other. A head costs C² + C numbers: W_lm is shared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require, require_integer
from llmcourse.kernels.blas import Linear, lay_out
from llmcourse.kernels.quantized_linear import QuantizedLinear
from llmcourse.model import Decoder, RMSNorm
from llmcourse.speculative.arguments import check_place
from llmcourse.speculative.early_layers import first_layers
from llmcourse.speculative.model_drafter import require_decoder


class ExitHead(nn.Module):
    """From a layer's output to what the model's `lm_head` reads: a norm, and a residual linear map."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.norm = RMSNorm(size, eps)
        self.residual = Linear(size, size, bias=False)
        nn.init.zeros_(self.residual.weight)

    def forward(self, x: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape C"]:
        h = self.norm(x)
        return h + self.residual(h)


class ExitHeads(nn.Module):
    """A head after every layer of a decoder but its last, untrained when made.

    The backbone is known, but no part of this module: it is neither saved, moved nor trained with it.

    Args:
        backbone: of at least two layers.

    Attributes:
        layers: after how many layers there is an exit, `1 … layers of the backbone − 1`.

    Raises:
        TypeError: no decoder.
        ValueError: a decoder of one layer.
    """

    def __init__(self, backbone: Decoder):
        super().__init__()
        require_decoder("backbone", backbone)
        count, config = backbone.config.num_layers, backbone.config
        require(count > 1, "backbone", "of at least two layers", count, "one layer has nothing to skip")
        self._backbone = (backbone,)  # in a tuple, which PyTorch does not look into
        self.layers = tuple(range(1, count))
        self.heads = nn.ModuleList(ExitHead(config.hidden_size, config.rms_norm_eps) for _ in self.layers)
        self.heads.to(backbone.device, backbone.dtype).train(backbone.training)
        for head in self.heads:
            head.norm.weight.data.copy_(backbone.model.norm.weight)

    @property
    def backbone(self) -> Decoder:
        return self._backbone[0]

    @property
    def device(self) -> torch.device:
        return self.heads[0].norm.weight.device

    def head(self, layer: int) -> ExitHead:
        """The head after so many layers.

        Raises:
            ValueError: there is none.
        """
        most, remedy = self.layers[-1], "after the last layer the model itself speaks"
        require_integer(1, "an exit", layer, "an exit lies after one layer or more")
        require(layer <= most, "an exit", f"at most {most}", layer, remedy)
        return self.heads[layer - 1]

    def forward(self, layer: int, x: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape V"]:
        """The logits of the exit after so many layers, whose output x is."""
        return self.backbone.lm_head(self.head(layer)(x))

    def states(self, token_ids: Int[Tensor, "B T"]) -> Iterator[tuple[int, Float[Tensor, "B T C"]]]:
        """The number and the output of every layer over a whole text; the last one's is not normalised."""
        x, context = self.backbone.begin(token_ids)
        for index, layer in enumerate(self.backbone.model.layers):
            x = layer(x, index, context)
            yield index + 1, x

    def logits(self, token_ids: Int[Tensor, "B T"]) -> Iterator[Float[Tensor, "B T V"]]:
        """What every exit says over a text, and at the end what the model itself says."""
        for number, x in self.states(token_ids):
            if number in self.layers:
                yield self(number, x)
            else:
                yield self.backbone.lm_head(self.backbone.model.norm(x))

    @torch.no_grad()
    def folded(self, layer: int) -> Decoder:
        """The first layers and their exit as a decoder: its layers are the backbone's, its head is its own.

        W_lm (h + M h) = (W_lm + W_lm M) h: up to rounding the same logits, by a matrix of (V, C) of its own
        (16 MB for `base`). Later training of the head does not reach it.
        """
        head, full = self.head(layer), self.backbone.lm_head
        dtype = self.backbone.dtype
        wide = torch.promote_types(dtype, torch.float32)
        w = full.dequantized() if isinstance(full, QuantizedLinear) else full.weight
        w, m = w.to(wide), head.residual.weight.to(wide)
        lm_head = Linear(full.in_features, full.out_features, bias=False, device="meta")
        lm_head.weight = nn.Parameter(lay_out((w + w @ m).to(dtype)), requires_grad=False)
        norm = copy.deepcopy(head.norm).requires_grad_(False)
        return first_layers(self.backbone, layer, norm=norm, lm_head=lm_head)


def check_exits(heads: ExitHeads, exits: Sequence[int] | None) -> tuple[int, ...]:
    """The exits that are asked, in order: all of them for None.

    Raises:
        TypeError: `heads` are none, or `exits` no sequence.
        ValueError: heads on another device or in another dtype than their backbone; no exit, one that is not
            there, or one named twice.
    """
    if not isinstance(heads, ExitHeads):
        remedy = "load them with load_heads, or make untrained ones as ExitHeads(model)"
        raise TypeError(f"heads must be ExitHeads, got {type(heads).__name__}; {remedy}")
    check_place(heads, heads.backbone)
    if exits is None:
        return heads.layers
    if not isinstance(exits, Sequence):
        raise TypeError(f"exits must be a list of numbers of layers, got {exits!r:.40}; pass one as [layer]")
    require(len(exits) > 0, "exits", "at least one", "none", "leave it out for all of them")
    for layer in exits:
        heads.head(layer)
    require(len(set(exits)) == len(exits), "exits", "named once each", list(exits), "drop the others")
    return tuple(sorted(exits))
