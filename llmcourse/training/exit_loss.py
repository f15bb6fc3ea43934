"""What exit heads learn from, the backbone being frozen: the text, or the model's own last layer.

Over the exits n and all positions:

    next     mean −ln p_n(token)                    cross-entropy with the text
    last     mean KL(p_L ‖ p_n)                     with the last layer (Belrose et al. 2023)

`layer_skip` trains the backbone too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmcourse.decoding.errors import require
from llmcourse.early_exit.heads import ExitHeads, check_exits

OBJECTIVES = ("last", "next")


class ExitLoss(nn.Module):
    """The mean over the exits; the backbone is read and left alone, and so are exits that are not named.

    Logits of one exit at a time are held: they are computed anew for their gradients.

    Args:
        objective: "last" or "next".
        exits: after how many layers; all for None.

    Raises:
        TypeError, ValueError: as `check_exits`, or another objective.
    """

    def __init__(self, heads: ExitHeads, objective: str, exits: Sequence[int] | None = None):
        super().__init__()
        check_objective(objective)
        self.heads, self.objective, self.exits = heads, objective, check_exits(heads, exits)

    def forward(self, rows: Int[Tensor, "B length"]) -> Float[Tensor, ""]:
        with torch.no_grad():
            *states, last = (x.flatten(0, 1) for _, x in self.heads.states(rows[:, :-1]))
            backbone = self.heads.backbone
            wanted = backbone.lm_head(backbone.model.norm(last)).float().log_softmax(-1)
        tokens, losses = rows[:, 1:].flatten(), []
        for layer in self.exits:
            x = states[layer - 1]
            losses.append(checkpoint(self._of_exit, layer, x, wanted, tokens, use_reentrant=False))
        return torch.stack(losses).mean()

    def _of_exit(self, layer: int, x: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
        return loss_of_exit(self.objective, self.heads(layer, x).float(), wanted, tokens)


def check_objective(objective: str) -> None:
    """Raises ValueError for what is none."""
    require(objective in OBJECTIVES, "objective", "'last' or 'next'", repr(objective), "choose one")


def loss_of_exit(
    objective: str, logits: Float[Tensor, "N V"], log_p: Float[Tensor, "N V"], tokens: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """What an exit's logits miss.

    Args:
        log_p: of the last layer.
        tokens: that follow in the text.
    """
    if objective == "next":
        return F.cross_entropy(logits, tokens)
    return F.kl_div(logits.log_softmax(-1), log_p, reduction="batchmean", log_target=True)
