"""Keys and values of all requests in one pool of blocks, for every layer of a model.

`BlockPool` counts who uses which block; this is what the blocks hold.
"""

from __future__ import annotations

import math

import torch

from llmcourse.decoding.errors import require_integer, require_number
from llmcourse.hardware import free_bytes
from llmcourse.model import Decoder
from llmcourse.roofline import DoesNotFit


class PagedCache:
    """A pool for one model, on its device and in its dtype.

    Args:
        model: whose keys and values it holds.
        num_blocks: how many blocks; the scheduler's `BlockPool` has as many.
        block_size: tokens that each holds.

    Attributes:
        keys, values: `(layers, blocks, Hkv, size, D)`: a head's part of a block is one piece of memory.

    Raises:
        ValueError: a number below 1.
        DoesNotFit: more memory is needed than is free; nothing is allocated.
    """

    def __init__(self, model: Decoder, num_blocks: int, block_size: int = 16):
        require_integer(1, "num_blocks", num_blocks, "take what `blocks_that_fit` says")
        require_integer(1, "block_size", block_size, "use 16")
        c = model.config
        shape = (c.num_layers, num_blocks, c.num_kv_heads, block_size, c.head_dim)
        needed = num_blocks * bytes_of_block(model, block_size)
        free = None if model.device.type == "meta" else free_bytes(model.device)  # there nothing is held
        if free is not None and needed > free:
            raise DoesNotFit(
                f"num_blocks must leave room for the pool on {model.device}, got {num_blocks}, which need "
                f"{needed / 1e9:,.1f} GB of {free / 1e9:,.1f} GB free; take at most "
                f"{free // bytes_of_block(model, block_size)}"
            )
        self.keys = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.values = torch.zeros_like(self.keys)

    @property
    def num_blocks(self) -> int:
        return self.keys.shape[1]

    @property
    def block_size(self) -> int:
        return self.keys.shape[3]


def bytes_of_block(model: Decoder, block_size: int) -> int:
    """Of the keys and values of one block in all layers."""
    c = model.config
    return 2 * math.prod((c.num_layers, c.num_kv_heads, block_size, c.head_dim)) * model.dtype.itemsize


def blocks_that_fit(model: Decoder, block_size: int = 16, share: float = 0.8) -> int:
    """How many blocks a share of the free memory holds; the rest is for activations and logits.

    Raises:
        ValueError: a block size below 1, a share that is not above 0 and at most 1, or a device that does not
            say what is free.
        DoesNotFit: not even one.
    """
    require_integer(1, "block_size", block_size, "use 16")
    require_number(lambda s: 0 < s <= 1, "share", "above 0 and at most 1", share, "use 0.8")
    free = free_bytes(model.device)
    if free is None:
        raise ValueError(f"{model.device} does not say how much memory is free; choose num_blocks yourself")
    fit = int(free * share) // bytes_of_block(model, block_size)
    if fit < 1:
        raise DoesNotFit(
            f"{free / 1e6:,.1f} MB are free on {model.device}, a block of {block_size} tokens needs "
            f"{bytes_of_block(model, block_size) / 1e6:,.1f} MB; free memory or take a smaller model"
        )
    return fit
