"""What exit heads learn from: the text, or the model's own last layer; and LayerSkip, which trains that too.

Backbone frozen, over all exits n and positions:

    next     mean −ln p_n(token)                    cross-entropy with the text
    last     mean KL(p_L ‖ p_n)                     with the last layer (Belrose et al. 2023)

LayerSkip (Elhoushi et al. 2024) trains backbone and exits together. Layer l of L, counted from 0, is skipped
for a whole sequence with chance p_l = D(l) p_max, D(l) = 2^(l / (L−1)) − 1 (section 4.1.1); the loss
is the weighted cross-entropy of all exits, the last layer included:

    e(l) = s · l (l+1) / 2 for l < L−1;   e(L−1) = L−1 + s · (L−2)(L−1) / 2
    weights C(t, l) e(l), made to sum to 1

(section 4.1.2), with the rotational curriculum C: at step t every R-th exit is trained, another one each
time. There all exits share the model's head, the last layer takes its turn like the others, and e(0) is 0;
here each exit has a head of its own, which starts as the model's, the last layer is trained at every step,
and e(0) is e(1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.early_exit.heads import ExitHeads

OBJECTIVES = ("last", "next")


class ExitLoss(nn.Module):
    """The mean over all exits; the backbone is read and left alone.

    Logits of one exit at a time are held: they are computed anew for their gradients.

    Args:
        objective: "last" or "next".
    """

    def __init__(self, heads: ExitHeads, objective: str):
        super().__init__()
        require(objective in OBJECTIVES, "objective", "'last' or 'next'", repr(objective), "choose one")
        self.heads, self.objective = heads, objective

    def forward(self, rows: Int[Tensor, "B length"]) -> Float[Tensor, ""]:
        with torch.no_grad():
            *states, last = (x.flatten(0, 1) for _, x in self.heads.states(rows[:, :-1]))
            backbone = self.heads.backbone
            wanted = backbone.lm_head(backbone.model.norm(last)).float().log_softmax(-1)
        tokens, losses = rows[:, 1:].flatten(), []
        for layer, x in enumerate(states, start=1):
            losses.append(checkpoint(self._of_exit, layer, x, wanted, tokens, use_reentrant=False))
        return torch.stack(losses).mean()

    def _of_exit(self, layer: int, x: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
        found = self.heads(layer, x).float()
        if self.objective == "next":
            return F.cross_entropy(found, tokens)
        return F.kl_div(found.log_softmax(-1), wanted, reduction="batchmean", log_target=True)


class LayerSkip(nn.Module):
    """Backbone and exits, trained together under layer dropout.

    Args:
        heads: with their backbone, whose weights become part of this module.
        dropout: p_max, the chance that the last layer is skipped, in [0, 1).
        scale: s, how much earlier exits weigh, in [0, 1].
        rotation: R: one of so many exits is trained at a step.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, heads: ExitHeads, dropout: int | float, scale: int | float = 0.5, rotation: int = 2):
        super().__init__()
        remedy = "use 0.1; 0 skips nothing"
        require_number(lambda p: 0 <= p < 1, "layer_dropout", "in [0, 1)", dropout, remedy)
        require_number(lambda s: 0 <= s <= 1, "scale", "in [0, 1]", scale, "use 0.5")
        require_integer(1, "rotation", rotation, "use 1 to train all exits at every step")
        self.heads, self.backbone = heads, heads.backbone
        self.dropout, self.scale, self.rotation = dropout, scale, rotation
        self.register_buffer("step", torch.zeros((), dtype=torch.long))  # kept in checkpoints

    def forward(self, rows: Int[Tensor, "B length"]) -> Float[Tensor, ""]:
        step = int(self.step)
        count = len(self.backbone.model.layers)
        weights = exit_weights(count, self.scale, self.rotation, step)
        kept = layers_kept(len(rows), skip_chances(count, self.dropout), step).to(rows.device)
        x, context = self.backbone.begin(rows[:, :-1])
        total = x.new_zeros((), dtype=torch.float32)
        for number, layer in enumerate(self.backbone.model.layers):
            x = torch.where(kept[number][:, None, None], layer(x, number, context), x)
            if weights[number] > 0:
                logits = self._logits(number + 1, x)
                loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
                total = total + weights[number] * loss
        self.step += 1
        return total

    def _logits(self, layers: int, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        if layers in self.heads.layers:
            return self.heads(layers, x)
        return self.backbone.lm_head(self.backbone.model.norm(x))


def skip_chances(num_layers: int, most: int | float) -> list[float]:
    """p_l: rising from 0 at the first layer to `most` at the last."""
    return [most * (2 ** (layer / max(1, num_layers - 1)) - 1) for layer in range(num_layers)]


def exit_weights(num_layers: int, scale: int | float, rotation: int, step: int) -> list[float]:
    """C(t, l) e(l) of every layer, made to sum to 1; the last layer is trained at every step."""
    last = num_layers - 1
    raw = [scale * layer * (layer + 1) / 2 for layer in range(last)]
    raw.append(last + scale * (last - 1) * last / 2)
    # Of the first exit, e(0) = 0: there it is the model's embedding that is read; it weighs as the next here.
    raw[0] = raw[1] if num_layers > 2 else scale
    on = [layer == last or (layer - step) % rotation == 0 for layer in range(num_layers)]
    total = sum(weight for weight, is_on in zip(raw, on, strict=True) if is_on)
    return [weight / total if is_on else 0.0 for weight, is_on in zip(raw, on, strict=True)]


def layers_kept(batch: int, chances: list[float], step: int) -> Bool[Tensor, "L B"]:
    """Which layers run for which sequences: drawn anew at every step, the same ones for the same step."""
    drawn = torch.rand(len(chances), batch, generator=torch.Generator().manual_seed(step))
    return drawn >= torch.tensor(chances)[:, None]
