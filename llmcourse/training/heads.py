"""Medusa's heads learn what comes after the next token: the backbone kept, or trained with them.

Medusa-1 keeps the backbone:   L₁ = Σ_k λᵏ CE(head k, token k + 1 places behind) / Σ_k λᵏ
Medusa-2 trains it too:        L₂ = CE(backbone, next token) + λ₀ L₁

with λ = 0.8 (Cai et al. 2024, sections 2.2.1 and 2.2.2). The division, ours, leaves a mean of nats per
token. In the second the backbone's rates are a share of the heads', so that it stays near what it was; the
paper also lets the heads warm up alone first, for which Medusa-1 can be run before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcourse.decoding.errors import require_integer, require_number
from llmcourse.model import Decoder
from llmcourse.speculative.medusa.heads import MedusaHeads
from llmcourse.training.optimizer import build_optimizers
from llmcourse.training.recipes import Recipe


@dataclass(frozen=True)
class HeadsRecipe:
    """How heads are trained, beside what a `Recipe` says of steps, batches and rates.

    Attributes:
        num_heads, num_blocks: shapes.
        decay: λ in (0, 1]: later heads, which are right less often, count less.
        joint: train the backbone too.
        heads_weight: λ₀ above 0, of the heads beside the backbone's own loss, if joint.
        backbone_scale: the backbone's rates over the heads', in (0, 1], if joint.

    Raises:
        ValueError: a number out of its range.
    """

    num_heads: int = 4
    num_blocks: int = 1
    decay: float = 0.8
    joint: bool = False
    heads_weight: float = 0.2
    backbone_scale: float = 0.02

    def __post_init__(self):
        for name in ("num_heads", "num_blocks"):
            require_integer(1, name, getattr(self, name), "train one or more")
        for name in ("decay", "backbone_scale"):
            require_number(lambda x: 0 < x <= 1, name, "in (0, 1]", getattr(self, name), "use the default")
        above = lambda x: 0 < x < float("inf")  # noqa: E731
        require_number(above, "heads_weight", "above 0 and finite", self.heads_weight, "use 0.2")


class HeadsLoss(nn.Module):
    """L₁ or L₂ of rows of tokens."""

    def __init__(self, model: Decoder, heads: MedusaHeads, recipe: HeadsRecipe):
        super().__init__()
        self.model, self.heads, self.recipe = model, heads, recipe

    def forward(self, rows: Tensor) -> Tensor:  # (B, T + 1)
        with torch.set_grad_enabled(self.recipe.joint):
            hidden = self.model.hidden_states(rows[:, :-1])  # (B, T, C)
        loss = self.of_heads(hidden, rows)
        if not self.recipe.joint:
            return loss
        return _cross_entropy(self.model.lm_head(hidden), rows[:, 1:]) + self.recipe.heads_weight * loss

    def of_heads(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """L₁, one head at a time; the last k positions of a row have no target for head k."""
        total, weights = torch.zeros((), device=rows.device), 0.0
        for number, head in enumerate(self.heads.heads, 1):
            weight = self.recipe.decay**number
            logits = self.model.lm_head(head(hidden[:, :-number]))
            total = total + weight * _cross_entropy(logits, rows[:, 1 + number :])
            weights += weight
        return total / weights


class Jointly(nn.Module):
    """Heads and backbone as one module: what a joint run trains and keeps in its checkpoints."""

    def __init__(self, heads: MedusaHeads, model: Decoder):
        super().__init__()
        self.heads, self.backbone = heads, model


def heads_optimizers(
    heads: MedusaHeads, model: Decoder, run: Recipe, recipe: HeadsRecipe
) -> list[torch.optim.Optimizer]:
    """Muon for matrices and AdamW for the rest; if joint, the backbone as groups of lower rates."""
    optimizers = build_optimizers(heads, run)
    if recipe.joint:
        for ours, theirs in zip(optimizers, build_optimizers(model, run), strict=True):
            for group in theirs.param_groups:
                rate = recipe.backbone_scale * group["lr"]
                ours.add_param_group({"params": group["params"], "lr": rate})
    return optimizers


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
