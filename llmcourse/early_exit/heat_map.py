"""A text seen from every exit: how unsure each layer is of the next token, and where a rule would leave.

The data of a map of layers and tokens. All layers run over the whole text, so that every cell is known, also
those above the line where the rule leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.early_exit.decoder import asked, require_rule
from llmcourse.early_exit.heads import ExitHeads, check_exits
from llmcourse.early_exit.rules import ExitRule, entropy


@dataclass(frozen=True)
class Heat:
    """Every exit at every position of one text; the whole model is the last exit.

    Attributes:
        tokens: the text; position t predicts token t + 1.
        layers: after how many layers each exit lies.
        entropy: of each exit's distribution, in nats.
        favourites: each exit's likeliest next token.
        exit_layers: after how many layers the rule leaves, at each position.
    """

    tokens: tuple[int, ...]
    layers: tuple[int, ...]
    entropy: Float[Tensor, "E T"]
    favourites: Int[Tensor, "E T"]
    exit_layers: tuple[int, ...]

    @property
    def mean_layers(self) -> float:
        """Layers before a token leaves, over the text."""
        return sum(self.exit_layers) / len(self.exit_layers)

    @property
    def agreement(self) -> float:
        """How often what is chosen where the rule leaves is what the whole model chooses."""
        rows = [self.layers.index(layer) for layer in self.exit_layers]
        chosen = self.favourites[torch.tensor(rows), torch.arange(len(rows))]
        return (chosen == self.favourites[-1]).double().mean().item()


@torch.no_grad()
def heat(
    heads: ExitHeads, token_ids: Sequence[int], rule: ExitRule, exits: Sequence[int] | None = None
) -> Heat:
    """Reads a text once.

    Args:
        exits: after how many layers the rule is asked; None: at every exit.

    Raises:
        TypeError: what are no heads, or no rule.
        ValueError: an exit that is not there, no token, more than the context, or ids outside the vocabulary.
    """
    asked_at = check_exits(heads, exits)
    require_rule(rule)
    context = heads.backbone.config.max_position_embeddings
    allowed, remedy = f"of 1 to {context} tokens", "give a part of the text"
    require(0 < len(token_ids) <= context, "token_ids", allowed, len(token_ids), remedy)
    ids = torch.tensor([list(token_ids)], device=heads.backbone.device)
    count = heads.backbone.config.num_layers
    left, history, rows = [count] * len(token_ids), [], []
    for number, (logits,) in enumerate(heads.logits(ids), start=1):
        rows.append((entropy(logits), logits.argmax(-1)))
        if number in asked_at:
            history.append(logits)  # each position is a row of its own
            for position, goes in enumerate(asked(rule, history)):
                if goes and left[position] == count:
                    left[position] = number
    entropies, favourites = (torch.stack(column).cpu() for column in zip(*rows, strict=True))
    return Heat(tuple(token_ids), (*heads.layers, count), entropies, favourites, tuple(left))
