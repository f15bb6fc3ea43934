"""Heads as files: what `add_ons` must know of them, and how they are made of what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmcourse import add_ons
from llmcourse.decoding.errors import require
from llmcourse.model import Decoder
from llmcourse.speculative.medusa.heads import HeadsConfig, MedusaHeads, check_fits, shapes_of

MOST_BLOCKS = 2048  # a damaged count must not have a million built


def _shapes(config: HeadsConfig, backbone: Decoder) -> add_ons.Shapes:
    found = f"{config.num_heads} × {config.num_blocks}"
    few, remedy = config.num_heads * config.num_blocks <= MOST_BLOCKS, "train fewer heads"
    require(few, "num_heads × num_blocks", f"at most {MOST_BLOCKS}", found, remedy)
    return shapes_of(config)


MEDUSA_HEADS = add_ons.Kind("medusa", "Medusa heads", HeadsConfig, ("hidden_size", "vocab_size"), _shapes)


def save_heads(
    heads: MedusaHeads, model: Decoder, folder: str | Path, notes: dict[str, Any] | None = None
) -> None:
    """Writes heads for a backbone; see `add_ons.save`.

    Raises:
        TypeError, ValueError: heads that do not fit the backbone; and as `add_ons.save`.
    """
    check_fits(heads, model)
    add_ons.save(MEDUSA_HEADS, heads.config, heads.state_dict(), model, folder, notes)


def load_heads(source: str | Path, model: Decoder) -> MedusaHeads:
    """The heads of a backbone, on its device and in its dtype, in evaluation mode.

    Args:
        source: an embedded model that has heads (`"base"`), or a folder that `save_heads` wrote.

    Raises:
        TypeError, FileNotFoundError, CheckpointError: as `add_ons.load`.
    """
    config, tensors = add_ons.load(MEDUSA_HEADS, source, model)
    with torch.device("meta"):
        heads = MedusaHeads(config)
    heads.load_state_dict(tensors, assign=True)
    return heads.eval().requires_grad_(False)
