"""A contiguous key/value cache: what earlier tokens computed is kept, not computed again.

Slot s of row b holds the key and value of the token at position s of sequence b. A query at
position p may therefore see exactly the slots s <= p, however ragged the batch is: padding
and rejected tokens leave values in slots that no query reaches before they are overwritten.
That is also why rolling back is only a change of `lengths`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KVCache:
    """Keys and values of all layers, `(layers, B, Hkv, capacity, D)`, allocated once.

    Attributes:
        lengths: `(B,)`, tokens held by each row, on the device of the keys.
        extent: the longest of them, and
        ragged: whether they differ; both known to the host, so that no step waits for the device.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (num_layers, batch_size, num_kv_heads, capacity, head_dim)
        names = ("num_layers", "batch_size", "num_kv_heads", "capacity", "head_dim")
        for name, value in zip(names, shape, strict=True):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        try:
            self.keys = torch.zeros(shape, dtype=dtype, device=device)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
        except RuntimeError as error:  # what PyTorch raises when memory runs out, and for other devices
            gigabytes = 2 * math.prod(shape) * dtype.itemsize / 1e9
            raise RuntimeError(
                f"cannot allocate a cache of {gigabytes:,.1f} GB on {device} for batch_size {batch_size} and "
                f"capacity {capacity}; ask for fewer rows (prompts, beams) or fewer tokens"
            ) from error
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.extent = 0
        self.ragged = False

    @property
    def batch_size(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def reserve(self, num_tokens: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T S"] | None]:
        """Makes room for `num_tokens` more in every row, before a forward pass.

        Returns:
            the positions of the new tokens, and which of the slots each of them may see; None
            for the latter where all rows are equally long, so that causality says it all.

        Raises:
            ValueError: the cache would overflow, or `num_tokens` is below 1; nothing is changed.
        """
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        needed = self.extent + num_tokens
        if needed > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens a row, {needed} are needed; "
                "create it with a larger capacity or ask for fewer new tokens"
            )
        positions = self.lengths[:, None] + torch.arange(num_tokens, device=self.lengths.device)
        self.lengths = self.lengths + num_tokens
        self.extent = needed
        if not self.ragged:
            return positions, None
        return positions, torch.arange(self.extent, device=self.lengths.device) <= positions[..., None]

    def write(
        self,
        layer: int,
        k: Float[Tensor, "B Hkv T D"],
        v: Float[Tensor, "B Hkv T D"],
        positions: Int[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B Hkv S D"], Float[Tensor, "B Hkv S D"]]:
        """Stores one layer's new keys and values; returns all that are held, `S = extent`."""
        index = positions[:, None, :, None].expand_as(k)
        self.keys[layer].scatter_(2, index, k)
        self.values[layer].scatter_(2, index, v)
        return self.keys[layer, :, :, : self.extent], self.values[layer, :, :, : self.extent]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Rolls every row back to the given length: later tokens are forgotten.

        Raises:
            ValueError: a length is negative or longer than what the row holds.
        """
        held = self.lengths.tolist()
        if len(lengths) != len(held):
            raise ValueError(f"lengths must have {len(held)} entries, one a row, got {len(lengths)}")
        for row, (new, old) in enumerate(zip(lengths, held, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"lengths[{row}] must be in [0, {old}], got {new}")
        self._set_lengths(list(lengths))

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes a copy of row `rows[i]`: how beam search moves hypotheses.

        There may be more or fewer rows than before: one prompt becomes n beams, finished rows
        leave.

        Raises:
            ValueError: `rows` is empty.
        """
        if len(rows) < 1:
            raise ValueError("rows must name at least one row, got none")
        if len(rows) == self.batch_size:
            held = slice(0, self.extent)  # the rest is empty, and stays where it is
            self.keys[:, :, :, held] = self.keys[:, rows, :, held]
            self.values[:, :, :, held] = self.values[:, rows, :, held]
        else:
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths = self.lengths[rows]
        if self.ragged:  # the longest rows may have left; only then the device is waited for
            self._set_lengths(self.lengths.tolist())

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=self.lengths.device)
        self.extent = max(lengths)
        self.ragged = min(lengths) < self.extent
