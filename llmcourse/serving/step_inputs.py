"""What a step's kernels read, made of the scheduler's chunks: numbers, and nothing else of the requests.

The tokens of all chunks stand one after the other, first those of chunks of one token (decoding), then the
pieces of prompts, each kind with the longest text first: a long row that began last would keep the chip
waiting at the end. Block tables are kept from step to step, since most of them do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.serving.schedule import Chunk

NOWHERE = -1  # the slot of a token whose key and value are not kept
LARGEST_SEED = 2**62


@dataclass(frozen=True)
class Rows:
    """Requests that one launch of paged attention serves, as it takes them.

    Attributes:
        tables: blocks of each request in order.
        starts: where the new tokens of each begin among those of these rows, and where they end.
        lengths: keys of each, the new ones included.
        most_new: new tokens of one of them, at most.
    """

    tables: Int[Tensor, "R most"]
    starts: Int[Tensor, " R1"]
    lengths: Int[Tensor, " R"]
    most_new: int


@dataclass(frozen=True)
class Draws:
    """How the next tokens are chosen, a row for each chunk that is looked at.

    Attributes:
        tokens: which of the step's tokens the next one follows.
        slots: of the requests in the batch; the token is kept there for the next step.
        positions: of the next token in its text.
    """

    tokens: Int[Tensor, " B"]
    slots: Int[Tensor, " B"]
    temperatures: Float[Tensor, " B"]
    seeds: Int[Tensor, " B"]
    positions: Int[Tensor, " B"]


@dataclass(frozen=True)
class StepInputs:
    """One step, on the device of the model.

    Attributes:
        token_ids: of all chunks; `PENDING` for the one that was drawn last for this slot of the batch.
        batch_slots: of the request of each token.
        positions: in its text.
        slots: in the pool, block · size + place.
        decodes: requests with one new token, the first in the step; None without any.
        chunks: those with more, behind them.
    """

    token_ids: Int[Tensor, " T"]
    batch_slots: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    slots: Int[Tensor, " T"]
    decodes: Rows | None
    chunks: Rows | None
    draws: Draws


class StepBuilder:
    """Turns chunks into arrays.

    Args:
        max_running: slots of the scheduler's batch.
        most_blocks: of one request.
        block_size: tokens of a block.
    """

    def __init__(self, max_running: int, most_blocks: int, block_size: int):
        self.block_size = block_size
        self._tables = np.zeros((max_running + 1, most_blocks), np.int32)  # and one for rows that fill up
        self._lists: list[list[int] | None] = [None] * max_running
        self._held = [0] * max_running
        self._temperatures = np.zeros(max_running + 1, np.float32)
        self._seeds = np.zeros(max_running + 1, np.int64)

    @property
    def spare_slot(self) -> int:
        """Behind those of the batch: what fills up a step belongs to it."""
        return len(self._lists)

    def order(self, chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
        """The chunks of one token, and those of several; the longest text first in each."""
        one = [chunk for chunk in chunks if chunk.stop - chunk.start == 1]
        more = [chunk for chunk in chunks if chunk.stop - chunk.start > 1]
        for kind in (one, more):
            kind.sort(key=lambda chunk: chunk.stop, reverse=True)
        return one, more

    def note(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """Takes in what is new in the requests' tables and settings; returns their slots in the batch."""
        slots = [chunk.state.slot for chunk in chunks]
        for chunk, slot in zip(chunks, slots, strict=True):
            blocks, held = chunk.state.blocks, self._held[slot]
            if self._lists[slot] is not blocks:  # another request, or one that was preempted and came back
                self._lists[slot], held = blocks, 0
                request = chunk.state.request
                self._temperatures[slot] = request.params.temperature
                self._seeds[slot] = request.seed % LARGEST_SEED
            if held < len(blocks):
                self._tables[slot, held : len(blocks)] = blocks[held:]
                self._held[slot] = len(blocks)
        return np.array(slots, np.int64)

    def tables(self, slots: np.ndarray, longest: int) -> np.ndarray:
        """Of these slots of the batch, as wide as so many tokens ask for."""
        return self._tables[slots, : -(-longest // self.block_size)]

    def places(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where tokens at these positions lie in the pool."""
        blocks = self._tables[slots, positions // self.block_size].astype(np.int64)
        return blocks * self.block_size + positions % self.block_size

    def settings(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Temperatures and seeds."""
        return self._temperatures[slots], self._seeds[slots]


def arrays_of(builder: StepBuilder, one: Sequence[Chunk], more: Sequence[Chunk]) -> dict[str, np.ndarray]:
    """All tokens of a step: ids, slots of the batch, positions, places in the pool."""
    ids = [chunk.state.tokens[chunk.start] for chunk in one]
    slots, positions = [builder.note(one)], [np.array([chunk.start for chunk in one], np.int64)]
    for chunk, slot in zip(more, builder.note(more), strict=True):
        ids += chunk.state.tokens[chunk.start : chunk.stop]
        slots.append(np.full(chunk.stop - chunk.start, slot))
        positions.append(np.arange(chunk.start, chunk.stop))
    slots, positions = np.concatenate(slots), np.concatenate(positions)
    return {
        "token_ids": np.array(ids, np.int64),
        "batch_slots": slots,
        "positions": positions,
        "slots": builder.places(slots, positions),
    }


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """There, without waiting for it: from memory that the copy may read while the host goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def rows_of(builder: StepBuilder, chunks: Sequence[Chunk], device: torch.device) -> Rows | None:
    """What paged attention needs of these chunks, which `note` has seen."""
    if not chunks:
        return None
    new = np.array([chunk.stop - chunk.start for chunk in chunks], np.int32)
    lengths = np.array([chunk.stop for chunk in chunks], np.int32)
    slots = np.array([chunk.state.slot for chunk in chunks])
    return Rows(
        on_device(builder.tables(slots, int(lengths.max())), device),
        on_device(np.concatenate(([0], new.cumsum(dtype=np.int32))).astype(np.int32), device),
        on_device(lengths, device),
        int(new.max()),
    )


def draws_of(builder: StepBuilder, chunks: Sequence[Chunk], at: np.ndarray, device: torch.device) -> Draws:
    """How the token after each of these chunks is chosen; `at` tells their last tokens in the step."""
    slots = np.array([chunk.state.slot for chunk in chunks], np.int64)
    temperatures, seeds = builder.settings(slots)
    positions = np.array([chunk.stop for chunk in chunks], np.int64)
    return Draws(*(on_device(array, device) for array in (at, slots, temperatures, seeds, positions)))


def step_inputs(
    builder: StepBuilder, one: Sequence[Chunk], more: Sequence[Chunk], device: torch.device
) -> StepInputs:
    """All that a mixed step reads; samples are drawn for the chunks that reach their last token."""
    tokens = arrays_of(builder, one, more)
    chunks = [*one, *more]
    ends = np.cumsum([chunk.stop - chunk.start for chunk in chunks]) - 1
    drawn = np.flatnonzero([chunk.samples for chunk in chunks])
    return StepInputs(
        **{name: on_device(array, device) for name, array in tokens.items()},
        decodes=rows_of(builder, one, device),
        chunks=rows_of(builder, more, device),
        draws=draws_of(builder, [chunks[i] for i in drawn], ends[drawn], device),
    )
