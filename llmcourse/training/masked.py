"""Masked language modelling: a part of the tokens is hidden, and the encoder fills them in from both sides.

Of every row 15 % of the tokens are asked for; of those 80 % are replaced by the mask, 10 % by a random token,
and 10 % stay as they are (Devlin et al. 2019, section 3.1). The number is the same in every row, so that all
shapes are fixed; which tokens they are is drawn anew at every step, on the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.early_exit.classifier.encoder import MASK, NUM_SPECIAL, Encoder

ASKED, MASKED, REPLACED = 0.15, 0.8, 0.1


def hide(
    rows: Int[Tensor, "B T"], vocab_size: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B M"]]:
    """The rows with some tokens hidden, and the places that are asked for.

    Args:
        generator: on the device of the rows.
    """
    draw = torch.rand(rows.shape, generator=generator, device=rows.device)
    places = draw.topk(max(1, round(ASKED * rows.shape[1])), dim=1).indices
    kind = torch.rand(places.shape, generator=generator, device=rows.device)
    size = (NUM_SPECIAL, vocab_size)
    others = torch.randint(*size, places.shape, generator=generator, device=rows.device)
    shown = torch.where(kind < MASKED, MASK, rows.gather(1, places))
    shown = torch.where((kind >= MASKED) & (kind < MASKED + REPLACED), others, shown)
    return rows.scatter(1, places, shown), places


def masked_loss(
    encoder: Encoder, hidden: Int[Tensor, "B T"], places: Int[Tensor, "B M"], rows: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the tokens that are asked for."""
    states = encoder(hidden)
    chosen = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
    logits = encoder.token_logits(chosen).float()
    return F.cross_entropy(logits.flatten(0, 1), rows.gather(1, places).flatten())
