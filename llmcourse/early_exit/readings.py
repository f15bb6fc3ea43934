"""What every exit says over given texts: the data that thresholds are chosen on and maps are drawn of.

All layers run over the whole text, so that each exit reads exact hidden states, as with "recompute"; a text
that a model writes while it leaves early by "propagate" departs from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import NonFiniteLogitsError, require
from llmcourse.early_exit.heads import ExitHeads
from llmcourse.early_exit.rules import confidence, entropy


@dataclass(frozen=True)
class Readings:
    """Every exit at every position, the model's own last layer as the last of them.

    Attributes:
        layers: after how many layers each exit lies; the last entry is the whole model.
        entropy: of each exit's distribution, in nats.
        confidence: the probability of its favourite.
        favourites: its likeliest token.
        targets: the token that follows in the text.

    Raises:
        ValueError: no position, no exit, or not as many exits as layers.
    """

    layers: tuple[int, ...]
    entropy: Float[Tensor, "E N"]
    confidence: Float[Tensor, "E N"]
    favourites: Int[Tensor, "E N"]
    targets: Int[Tensor, " N"]

    def __post_init__(self):
        found = self.favourites.shape
        require(
            found[1] > 0, "readings", "of at least one position", "none", "read a text of two tokens or more"
        )
        enough = len(self.layers) == found[0] >= 2
        require(enough, "layers of readings", "one for each exit, at least two", self.layers, "name them all")

    def only(self, exits: Sequence[int]) -> Readings:
        """As if there were these exits alone, and the whole model: for a decoder that asks no others.

        Args:
            exits: some of `layers` but the last.

        Raises:
            ValueError: no exit, or one that was not read.
        """
        known = self.layers[:-1]
        missing = [layer for layer in exits if layer not in known]
        require(not missing, "exits", f"of {list(known)}", missing, "read texts with these heads")
        kept = sorted({self.layers.index(layer) for layer in exits} | {len(self.layers) - 1})
        rows = (values[kept] for values in (self.entropy, self.confidence, self.favourites))
        return Readings(tuple(self.layers[number] for number in kept), *rows, self.targets)

    def agreement(self) -> Float[Tensor, " E"]:
        """How often each exit's favourite is the whole model's: leaving there would change nothing."""
        return (self.favourites == self.favourites[-1]).double().mean(1)

    def accuracy(self) -> Float[Tensor, " E"]:
        """How often each exit's favourite is the text's next token."""
        return (self.favourites == self.targets).double().mean(1)


@torch.no_grad()
def read_texts(heads: ExitHeads, texts: Iterable[Sequence[int] | Int[Tensor, " T"]]) -> Readings:
    """Reads texts, each alone; a text of T tokens has T − 1 positions.

    Raises:
        ValueError: no text of two tokens or more, one longer than the context, or ids outside the vocabulary.
        NonFiniteLogitsError: an exit, or the whole model, says NaN or infinity; no rule would leave there.
    """
    parts = []
    context = heads.backbone.config.max_position_embeddings
    for text in texts:
        ids = torch.as_tensor(text, device=heads.backbone.device).long()
        require(len(ids) <= context, "a text", f"at most {context} tokens", len(ids), "cut it into windows")
        if len(ids) > 1:
            parts.append((*_read(heads, ids[:-1]), ids[1:].cpu()))
    require(len(parts) > 0, "texts", "at least one of two tokens or more", "none", "give more text")
    joined = [torch.cat(pieces, -1) for pieces in zip(*parts, strict=True)]
    return Readings((*heads.layers, heads.backbone.config.num_layers), *joined)


def _read(heads: ExitHeads, ids: Int[Tensor, " T"]) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, confidence and favourites `(E, T)` of one text; one exit's logits are held at a time."""
    rows = []
    for layer, (logits,) in enumerate(heads.logits(ids[None]), start=1):
        if not logits.isfinite().all():
            whole = layer == heads.backbone.config.num_layers
            who = "the whole model" if whole else f"the exit after layer {layer}"
            raise NonFiniteLogitsError(
                f"logits of {who} must be finite, got NaN or infinity; its weights are damaged, or overflow "
                f"in {logits.dtype}"
            )
        rows.append((entropy(logits), confidence(logits), logits.argmax(-1)))
    return tuple(torch.stack(column).cpu() for column in zip(*rows, strict=True))
