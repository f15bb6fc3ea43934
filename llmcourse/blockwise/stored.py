"""Adapters as files: what `add_ons` must know of them, and how they are made of what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcourse import add_ons
from llmcourse.blockwise.adapters import AdapterConfig, BlockDecoder
from llmcourse.blockwise.low_rank import shapes_of
from llmcourse.model import Decoder


def _shapes(config: AdapterConfig, backbone: Decoder) -> add_ons.Shapes:
    return shapes_of(backbone, config.rank, config.num_masks)


BLOCK_ADAPTERS = add_ons.Kind("blocks", "block adapters", AdapterConfig, (), _shapes)


def save_adapters(model: BlockDecoder, folder: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Writes adapters for their backbone; see `add_ons.save`."""
    add_ons.save(BLOCK_ADAPTERS, model.adapter_config, model.adapters(), model.backbone, folder, notes)


def load_adapters(source: str | Path, backbone: Decoder) -> BlockDecoder:
    """A backbone with the adapters that were trained on it, in evaluation mode.

    Args:
        source: an embedded model that has adapters (`"base"`), or a folder that `save_adapters` wrote.

    Raises:
        TypeError, FileNotFoundError, CheckpointError: as `add_ons.load`.
    """
    config, tensors = add_ons.load(BLOCK_ADAPTERS, source, backbone)
    model = BlockDecoder(backbone, config)
    for name, parameter in model.adapters().items():
        parameter.data.copy_(tensors[name])
    return model.eval().requires_grad_(False)
