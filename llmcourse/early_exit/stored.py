"""Exit heads as files: what `add_ons` must know of them, and how they are made of what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmcourse import add_ons
from llmcourse.decoding.errors import require_integer
from llmcourse.early_exit.heads import ExitHead, ExitHeads
from llmcourse.model import Decoder


@dataclass(frozen=True)
class ExitsConfig:
    """The backbone's shape: there is an exit after each of its layers but the last.

    Raises:
        ValueError: a number that is no integer, or too small.
    """

    num_layers: int
    hidden_size: int

    def __post_init__(self):
        require_integer(2, "num_layers", self.num_layers, "one layer has nothing to skip")
        require_integer(1, "hidden_size", self.hidden_size, "use the backbone's")


def _shapes(config: ExitsConfig, backbone: Decoder) -> add_ons.Shapes:
    with torch.device("meta"):
        head = ExitHead(config.hidden_size, backbone.config.rms_norm_eps).state_dict()
    return {
        f"heads.{index}.{name}": tuple(tensor.shape)
        for index in range(config.num_layers - 1)
        for name, tensor in head.items()
    }


EXIT_HEADS = add_ons.Kind("exits", "exit heads", ExitsConfig, ("num_layers", "hidden_size"), _shapes)


def save_heads(heads: ExitHeads, folder: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Writes heads for their backbone; see `add_ons.save`."""
    sizes = heads.backbone.config
    config = ExitsConfig(sizes.num_layers, sizes.hidden_size)
    add_ons.save(EXIT_HEADS, config, heads.state_dict(), heads.backbone, folder, notes)


def load_heads(source: str | Path, backbone: Decoder) -> ExitHeads:
    """Trained heads of a model, on its device and in its dtype, in evaluation mode.

    Args:
        source: an embedded model that has heads (`"base"`), or a folder that `save_heads` wrote.

    Raises:
        TypeError, FileNotFoundError, CheckpointError: as `add_ons.load`.
    """
    _, tensors = add_ons.load(EXIT_HEADS, source, backbone)
    heads = ExitHeads(backbone)
    heads.load_state_dict(tensors)
    return heads.eval().requires_grad_(False)
