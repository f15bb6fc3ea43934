"""A contiguous key/value cache: what earlier tokens computed is kept, not computed again.

Slot s of row b holds the key and value of the token at position s of sequence b. A query at
position p may therefore see exactly the slots s <= p, however ragged the batch is: padding
and rejected tokens leave values in slots that no query reaches before they are overwritten.
That is also why rolling back is only a change of `lengths`.

Tokens that branch, several ways in which a text may go on, are the exception: they lie side by side behind
the text, each sees its own way alone (`visible`), and the way that is kept is moved together (`keep`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from operator import index

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse import hardware
from llmcourse.roofline import DoesNotFit


class KVCache:
    """Keys and values of all layers, `(layers, B, Hkv, capacity, D)`, allocated once.

    A cache that keeps them in another form has other `tensors`, whose first four dimensions are these, and
    overrides that, `allocate`, `token_bytes` and `write`.

    Attributes:
        head_dim, dtype: of the keys and values that are written and returned.
        lengths: `(B,)`, tokens held by each row, on the device of the keys.
        extent: the longest of them, and
        ragged: whether they differ; both known to the host, so that no step waits for the device.

    Raises:
        ValueError: a size below 1, or a dtype that is no floating-point one.
        DoesNotFit: more memory is needed than is free; nothing is allocated.
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
            if index(value) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; a cache has room for one token")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point one, got {dtype}; take the model's")
        needed = batch_size * capacity * self.token_bytes(num_layers, num_kv_heads, head_dim, dtype)
        _check_fits(needed, batch_size, capacity, device)
        try:
            self.allocate(shape, dtype, device)
        except RuntimeError as error:  # memory in pieces, or a system that does not say what is free
            raise DoesNotFit(
                f"cannot allocate a cache of {_gb(needed)} on {device} for batch_size "
                f"{batch_size} and capacity {capacity}; ask for fewer rows (prompts, beams) or fewer tokens"
            ) from error
        self.head_dim, self.dtype = head_dim, dtype
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.extent = 0
        self.ragged = False

    def token_bytes(self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """What one token of one row takes, in all layers."""
        return 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> None:
        """Makes the tensors, which were found to fit."""
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def bytes_per_token(self) -> int:
        """Of one row, in all layers: memory to hold it, and traffic of each later step."""
        c = self
        return c.token_bytes(c.num_layers, c.num_kv_heads, c.head_dim, c.dtype)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that holds keys and values, by the names of its attributes."""
        return {"keys": self.keys, "values": self.values}

    @property
    def _first(self) -> Tensor:
        return next(iter(self.tensors.values()))

    @property
    def num_layers(self) -> int:
        return self._first.shape[0]

    @property
    def batch_size(self) -> int:
        return self._first.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self._first.shape[2]

    @property
    def capacity(self) -> int:
        return self._first.shape[3]

    @property
    def device(self) -> torch.device:
        return self._first.device

    def reserve(self, num_tokens: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T S"] | None]:
        """Makes room for `num_tokens` more in every row, before a forward pass.

        Returns:
            the positions of the new tokens, and which of the slots each of them may see; None
            for the latter where all rows are equally long, so that causality says it all.

        Raises:
            ValueError: the cache would overflow, or `num_tokens` is below 1; nothing is changed.
        """
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}; leave out empty pieces")
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

    def visible(self, sees: Bool[Tensor, "T T"]) -> Bool[Tensor, "B T S"]:
        """A mask for T more tokens: each sees all that its row holds, and of the new ones what `sees` says.

        To be asked for before a forward pass makes room for them; S counts the new slots, too.
        """
        slots = torch.arange(self.extent + len(sees), device=self.lengths.device)
        behind = slots - self.lengths[:, None]  # (B, S)
        new = (behind >= 0) & (behind < len(sees))
        among_new = sees.to(slots.device)[:, behind.clamp(0, len(sees) - 1)].transpose(0, 1)  # (B, T, S)
        return (behind < 0)[:, None] | (among_new & new[:, None])

    def write(
        self,
        layer: int,
        k: Float[Tensor, "B Hkv T D"],
        v: Float[Tensor, "B Hkv T D"],
        positions: Int[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B Hkv S D"], Float[Tensor, "B Hkv S D"]]:
        """Stores one layer's new keys and values; returns all that are held, `S = extent`.

        Raises:
            ValueError: keys or values that are not `(B, Hkv, T, D)`; nothing is written.
        """
        self._check_new(k, v, positions)
        slots = positions[:, None, :, None].expand_as(k)
        self.keys[layer].scatter_(2, slots, k)
        self.values[layer].scatter_(2, slots, v)
        return self.keys[layer, :, :, : self.extent], self.values[layer, :, :, : self.extent]

    def _check_new(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        expected = (self.batch_size, self.num_kv_heads, positions.shape[1], self.head_dim)
        for name, new in (("k", k), ("v", v)):  # a smaller one would be scattered without a word
            if new.shape != expected:
                raise ValueError(
                    f"{name} must have shape {expected}, got {tuple(new.shape)}; "
                    "make the cache with new_cache of the model that writes"
                )

    def truncate(self, lengths: Sequence[int]) -> None:
        """Rolls every row back to the given length: later tokens are forgotten.

        Raises:
            ValueError: a length is negative or longer than what the row holds; nothing is changed.
        """
        held = self.lengths.tolist()
        self._set_lengths(_one_a_row("lengths", lengths, held))

    def rollback(self, n: int | Sequence[int]) -> None:
        """Forgets the last n tokens of every row, or the last `n[b]` of row b: drafts that were rejected.

        Raises:
            ValueError: a count is negative or more than the row holds; nothing is changed.
        """
        held = self.lengths.tolist()
        counts = _one_a_row("n", [n] * len(held) if isinstance(n, int) else n, held)
        self._set_lengths([old - count for old, count in zip(held, counts, strict=True)])

    def keep(self, num_last: int, kept: Sequence[Sequence[int]]) -> None:
        """Of the last `num_last` tokens of each row keeps some, moved together; the others are forgotten.

        A token's key was turned to its position, so those kept must be a way through the branches: the
        first, the second, … behind the text.

        Args:
            kept: for each row, increasing numbers in [0, num_last).

        Raises:
            ValueError: more tokens than a row holds, numbers that do not increase or are out of their
                range, or not one list a row; nothing is changed.
        """
        held = self.lengths.tolist()
        counts = _one_a_row("num_last", [num_last] * len(held), held)
        if len(kept) != len(held):
            raise ValueError(f"kept must have {len(held)} entries, one a row, got {len(kept)}; give all rows")
        for row, numbers in enumerate(kept):
            if any(b <= a for a, b in itertools.pairwise((-1, *numbers, num_last))):
                raise ValueError(
                    f"kept[{row}] must increase within [0, {num_last - 1}], got {list(numbers)}; "
                    "number the last tokens from 0 and give those of one path"
                )
        bases = [length - count for length, count in zip(held, counts, strict=True)]
        width = max(map(len, kept))
        if any(list(numbers) != list(range(len(numbers))) for numbers in kept):
            # Rows that keep fewer move what follows onto itself: slots that are forgotten below.
            padded = [[*numbers, *range(len(numbers), width)] for numbers in kept]
            self._move(torch.tensor(padded), torch.tensor(bases))
        self._set_lengths([base + len(numbers) for base, numbers in zip(bases, kept, strict=True)])

    def _move(self, numbers: Int[Tensor, "B K"], bases: Int[Tensor, " B"]) -> None:
        """Slot `bases[b] + i` of row b takes over what is in slot `bases[b] + numbers[b, i]`."""
        rows = torch.arange(len(bases))[:, None].to(self.device)
        source = (bases[:, None] + numbers).to(self.device)
        target = (bases[:, None] + torch.arange(numbers.shape[1])).to(self.device)
        for held in self.tensors.values():
            held[:, rows, :, target] = held[:, rows, :, source]

    def first_layers(self, num_layers: int) -> KVCache:
        """The same memory as a cache of the first layers alone, which counts what it holds by itself.

        So they may run ahead of the others. Neither side may be reordered afterwards.

        Raises:
            ValueError: more layers than there are, or none.
        """
        if not 1 <= num_layers <= self.num_layers:
            raise ValueError(
                f"num_layers must be in [1, {self.num_layers}], got {num_layers}; the cache has no others"
            )
        part = copy.copy(self)  # `lengths` is replaced when it changes, never written to
        for name, tensor in self.tensors.items():
            setattr(part, name, tensor[:num_layers])
        return part

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes a copy of row `rows[i]`: how beam search moves hypotheses.

        There may be more or fewer rows than before: one prompt becomes n beams, finished rows
        leave.

        Raises:
            ValueError: `rows` is empty, or names a row that is not there (on a GPU this is a device
                assertion: a check would stall every step).
        """
        if len(rows) < 1:
            raise ValueError("rows must name at least one row, got none; give the row to keep")
        try:
            self.lengths = self.lengths[rows]
        except IndexError as error:
            raise ValueError(
                f"rows must be in [0, {self.batch_size - 1}], got {rows.tolist()}; "
                "number them as they are in the cache now"
            ) from error
        if len(rows) == self.batch_size:
            held = slice(0, self.extent)  # the rest is empty, and stays where it is
            for tensor in self.tensors.values():
                tensor[:, :, :, held] = tensor[:, rows, :, held]
        else:
            for name, tensor in self.tensors.items():
                setattr(self, name, tensor[:, rows])
        if self.ragged:  # the longest rows may have left; only then the device is waited for
            self._set_lengths(self.lengths.tolist())

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=self.lengths.device)
        self.extent = max(lengths)
        self.ragged = min(lengths) < self.extent


def _one_a_row(name: str, given: Sequence[int], held: list[int]) -> list[int]:
    """The given numbers, one for each row and none beyond what it holds."""
    numbers = [index(number) for number in given]
    if len(numbers) != len(held):
        raise ValueError(
            f"{name} must have {len(held)} entries, one a row, got {len(numbers)}; give all rows"
        )
    for row, (number, most) in enumerate(zip(numbers, held, strict=True)):
        if not 0 <= number <= most:
            raise ValueError(
                f"{name}[{row}] must be in [0, {most}], got {number}; the row holds {most} tokens, and what "
                "was never written can be neither kept nor taken back"
            )
    return numbers


def _check_fits(needed: int, batch_size: int, capacity: int, device: torch.device | str) -> None:
    """Refuses what would not fit, while it is only a number; tensors on "meta" take no memory."""
    if torch.device(device).type == "meta":
        return
    free = hardware.free_bytes(device)
    if free is None or needed <= free:
        return
    a_token = needed // (batch_size * capacity)
    raise DoesNotFit(
        f"a cache for batch_size {batch_size} and capacity {capacity} needs {_gb(needed)}, {_gb(free)} are "
        f"free on {device}, room for {free // a_token:,} tokens in all; ask for fewer rows (prompts, beams) "
        "or fewer tokens"
    )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
