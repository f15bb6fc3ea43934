"""LayerSkip: backbone and exits are trained together, so that the first layers learn to speak for all.

Layer l of L, counted from 0, is skipped for a whole sequence with chance p_l = D(l) p_max, where
D(l) = 2^(l / (L−1)) − 1 (Elhoushi et al. 2024, section 4.1.1); the loss is the weighted cross-entropy of all
exits, the last layer included:

    e(l) = s · l (l+1) / 2 for l < L−1;   e(L−1) = L−1 + s · (L−2)(L−1) / 2
    weights C(t, l) e(l), made to sum to 1

(section 4.1.2), with the rotational curriculum C: at step t every R-th exit is trained, another one each
time. There all exits share the model's head, the last layer takes its turn like the others, and e(0) is 0;
here each exit has a head of its own, which starts as the model's, the last layer is trained at every step,
and e(0) is e(1).

Self-speculation leaves at one exit, always, and asks how often it says what the last layer says. For that
there is a loss of our own, over the exits n that are wanted, at every step:

    CE(p_L, token) + w · mean_n KL(p_L ‖ p_n)

The last layer learns the text alone: in the second term p_L is a constant, so that it is no easier to follow
than the text makes it; but what the exits ask for reaches the layers before them and the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llmcourse.decoding.errors import require_integer, require_number
from llmcourse.early_exit.heads import ExitHeads, check_exits
from llmcourse.training.exit_loss import check_objective, loss_of_exit


@dataclass(frozen=True)
class JointRecipe:
    """How backbone and exits are trained together.

    Attributes:
        dropout: p_max, the chance that the last layer is skipped, in [0, 1).
        objective: of the exits: "next", the text, as in LayerSkip, or "last", what the last layer says.
        weight: w, what all exits weigh beside the last layer, above 0; None: e(l), by turns.
        scale: s, how much e(l) gives to earlier exits, in [0, 1].
        rotation: R: by turns, one of so many exits is trained at a step.

    Raises:
        ValueError: a number out of its range, or another objective.
    """

    dropout: int | float = 0.1
    objective: str = "next"
    weight: int | float | None = None
    scale: int | float = 0.5
    rotation: int = 2

    def __post_init__(self):
        remedy = "use 0.1; 0 skips nothing"
        require_number(lambda p: 0 <= p < 1, "layer_dropout", "in [0, 1)", self.dropout, remedy)
        check_objective(self.objective)
        if self.weight is not None:
            above = lambda w: 0 < w < float("inf")  # noqa: E731
            remedy = "use 1, or leave it out for the weights of LayerSkip"
            require_number(above, "exit_weight", "above 0 and finite", self.weight, remedy)
        require_number(lambda s: 0 <= s <= 1, "scale", "in [0, 1]", self.scale, "use 0.5")
        require_integer(1, "rotation", self.rotation, "use 1 to train all exits at every step")


class Turn(NamedTuple):
    """What a step has of its own. Numbers are tensors, and truths few: each set of them is compiled once.

    Attributes:
        kept: which layers run for which sequences.
        weights: of every layer's loss, the last one's included.
        on: which of the exits are trained.
    """

    kept: Bool[Tensor, "L B"]
    weights: Float[Tensor, " L"]
    on: tuple[bool, ...]


class LayerSkip(nn.Module):
    """Backbone and exits, trained together; exits that are not named stay what they are.

    Args:
        heads: with their backbone, whose weights become part of this module.
        exits: after how many layers; all for None.

    Raises:
        TypeError, ValueError: as `check_exits`.
    """

    def __init__(self, heads: ExitHeads, recipe: JointRecipe, exits: Sequence[int] | None = None):
        super().__init__()
        self.exits = check_exits(heads, exits)
        self.heads, self.backbone, self.recipe = heads, heads.backbone, recipe
        self.requires_grad_(True)

    @property
    def turns(self) -> int:
        """Steps after which the same exits are trained again."""
        return self.recipe.rotation if self.recipe.weight is None else 1

    def turn(self, step: int, batch: int) -> Turn:
        """What `forward` takes at a step beside its rows: the same for the same step."""
        count, recipe = len(self.backbone.model.layers), self.recipe
        kept = layers_kept(batch, skip_chances(count, recipe.dropout), step)
        if recipe.weight is None:
            weights = exit_weights(count, recipe.scale, recipe.rotation, step, self.exits)
        else:
            each = recipe.weight / len(self.exits)
            weights = [each if layer in self.exits else 0.0 for layer in range(1, count)] + [1.0]
        device = self.heads.device
        on = tuple(weights[layer - 1] > 0 for layer in self.exits)
        return Turn(_sent(kept, device), _sent(torch.tensor(weights), device), on)

    def forward(
        self,
        rows: Int[Tensor, "B length"],
        kept: Bool[Tensor, "L B"],
        weights: Float[Tensor, " L"],
        on: tuple[bool, ...],
    ) -> Float[Tensor, ""]:
        *early, last = self._states(rows[:, :-1], kept)
        tokens = rows[:, 1:].flatten()
        logits = self.backbone.lm_head(self.backbone.model.norm(last))
        log_p = logits.flatten(0, 1).float().log_softmax(-1)
        total = weights[-1] * F.nll_loss(log_p, tokens)
        for layer, is_on in zip(self.exits, on, strict=True):
            if is_on:
                found = self.heads(layer, early[layer - 1]).flatten(0, 1).float()
                loss = loss_of_exit(self.recipe.objective, found, log_p.detach(), tokens)
                total = total + weights[layer - 1] * loss
        return total

    def _states(self, tokens: Int[Tensor, "B T"], kept: Bool[Tensor, "L B"]) -> list[Float[Tensor, "B T C"]]:
        """The output of every layer, which is its input where it is skipped."""
        x, context = self.backbone.begin(tokens)
        states = []
        for number, layer in enumerate(self.backbone.model.layers):
            after = layer(x, number, context)
            x = torch.where(kept[number][:, None, None], after, x) if self.recipe.dropout else after
            states.append(x)
        return states


def skip_chances(num_layers: int, most: int | float) -> list[float]:
    """p_l: rising from 0 at the first layer to `most` at the last."""
    return [most * (2 ** (layer / max(1, num_layers - 1)) - 1) for layer in range(num_layers)]


def exit_weights(
    num_layers: int, scale: int | float, rotation: int, step: int, exits: Sequence[int] | None = None
) -> list[float]:
    """C(t, l) e(l) of every layer, made to sum to 1; the last layer is trained at every step.

    Args:
        exits: that take turns, after how many layers each, in order; all for None.
    """
    last = num_layers - 1
    raw = [scale * layer * (layer + 1) / 2 for layer in range(last)]
    raw.append(last + scale * (last - 1) * last / 2)
    # Of the first exit, e(0) = 0: there it is the model's embedding that is read; it weighs as the next here.
    raw[0] = raw[1] if num_layers > 2 else scale
    turns = range(1, num_layers) if exits is None else exits
    on = {layer for place, layer in enumerate(turns) if (place - step) % rotation == 0} | {num_layers}
    total = sum(raw[layer - 1] for layer in on)
    return [weight / total if layer in on else 0.0 for layer, weight in enumerate(raw, start=1)]


def layers_kept(batch: int, chances: list[float], step: int) -> Bool[Tensor, "L B"]:
    """Which layers run for which sequences: drawn anew at every step, the same ones for the same step."""
    drawn = torch.rand(len(chances), batch, generator=torch.Generator().manual_seed(step))
    return drawn >= torch.tensor(chances)[:, None]


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """To the device; to a GPU from memory that lets the host go on at once."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
