"""What a step's kernels read, made of the scheduler's chunks: numbers, and nothing else of the requests.

The tokens of all chunks stand one after the other, first those of chunks of one token (decoding), then the
pieces of prompts, each kind with the longest text first: a long row that began last would keep the chip
waiting at the end. Block tables are kept from step to step, since most of them do not change.

Kernels that are recorded find fixed numbers of rows and tokens. What fills them up keeps nothing: a row that
decodes has no blocks, a token of a prompt belongs to no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.serving.drafted_chunk import DraftedChunk
from llmcourse.serving.other_choices import needs_processors
from llmcourse.serving.request import RequestState
from llmcourse.serving.schedule import Chunk

NOWHERE = -1  # the block of a row, and the place of a token, whose key and value are not kept
LARGEST_SEED = 2**62
COLDEST, HOTTEST = 1e-30, 1e30  # in fp32, logits divided by less overflow, and more is infinite itself


class StepSize(NamedTuple):
    """How much a step has room for.

    Attributes:
        decodes: requests with one new token.
        chunks: requests with more of them.
        tokens: new ones of these chunks together.
        longest: of them, those of one chunk at most.
        blocks: of one request.
        drafts: tokens that are drawn beside those of the requests, one at each draft.
        rows: tokens that are drawn, of requests and at drafts.
    """

    decodes: int
    chunks: int
    tokens: int
    longest: int
    blocks: int
    drafts: int = 0

    @property
    def rows(self) -> int:
        return self.decodes + self.chunks + self.drafts


class StepInputs(NamedTuple):
    """One step, as arrays on the host or, under the same names, as tensors on the device.

    Attributes:
        token_ids: of all chunks; `PENDING` for the one that was drawn last for this slot of the batch.
        batch_slots: of the request of each token.
        positions: in its text.
        slot_mapping: where each token lies in the pool, block · size + place in it.
        block_tables: blocks of each request in order, those that decode first.
        seq_lens: keys of each request, the new ones included.
        cu_seqlens_q: where the new tokens of each chunk begin among those of chunks, and where they end.
        drawn_after: which of the step's tokens each drawn one follows: a row for each request, whose token
            follows the last of its own, and behind these a row for each draft, for the token in its place.
        drawn_slots: of the requests in the batch; the token is kept there for the next step.
        drawn_positions: of the new token in its text.
        temperatures, seeds: of the requests.
    """

    token_ids: Int[Tensor, " T"]
    batch_slots: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    slot_mapping: Int[Tensor, " T"]
    block_tables: Int[Tensor, "R most"]
    seq_lens: Int[Tensor, " R"]
    cu_seqlens_q: Int[Tensor, " C1"]
    drawn_after: Int[Tensor, " N"]
    drawn_slots: Int[Tensor, " N"]
    drawn_positions: Int[Tensor, " N"]
    temperatures: Float[Tensor, " N"]
    seeds: Int[Tensor, " N"]


class StepBuilder:
    """Turns chunks into arrays.

    Temperatures below `COLDEST` become 0, greedy search, and those above `HOTTEST` become that.

    Args:
        max_running: slots of the scheduler's batch.
        most_blocks: of one request.
        block_size: tokens of a block.
    """

    def __init__(self, max_running: int, most_blocks: int, block_size: int):
        self.block_size = block_size
        self.most_blocks = most_blocks
        self.spare_slot = max_running  # whose rows fill up
        self._tables = np.zeros((max_running + 1, most_blocks), np.int32)
        self._tables[max_running] = NOWHERE
        self._temperatures = np.zeros(max_running + 1, np.float32)
        self._seeds = np.zeros(max_running + 1, np.int64)
        self._lists: list[list[int] | None] = [None] * max_running
        self._held = [0] * max_running
        self._others: set[int] = set()  # slots whose requests ask for more than a temperature

    def order(self, chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
        """The chunks of one token, and those of several; the longest text first in each."""
        one = [chunk for chunk in chunks if chunk.stop - chunk.start == 1]
        more = [chunk for chunk in chunks if chunk.stop - chunk.start > 1]
        for kind in (one, more):
            kind.sort(key=lambda chunk: chunk.stop, reverse=True)
        return one, more

    def size(self, one: Sequence[Chunk], more: Sequence[Chunk], drafts: int = 0) -> StepSize:
        """What a step with nothing to fill up has room for."""
        longest = max(chunk.stop for chunk in (*one[:1], *more[:1]))
        new = [chunk.stop - chunk.start for chunk in more]
        blocks = -(-longest // self.block_size)
        return StepSize(len(one), len(more), sum(new), max(new, default=0), blocks, drafts)

    def build(
        self,
        one: Sequence[Chunk],
        more: Sequence[Chunk],
        size: StepSize,
        drafted: Sequence[DraftedChunk] = (),
    ) -> StepInputs:
        """The arrays, filled up to `size`; `order` gave the chunks, `drafted_chunks` those with drafts."""
        slots = self._note((*one, *more))
        rows = np.full(size.decodes + size.chunks, self.spare_slot)
        used = np.r_[: len(one), size.decodes : size.decodes + len(more)]
        rows[used] = slots
        first, last = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        first[used] = [chunk.start for chunk in (*one, *more)]
        last[used] = [chunk.stop for chunk in (*one, *more)]
        starts = np.concatenate(([0], np.cumsum((last - first)[size.decodes :])))
        ids, owners, positions = self._tokens(one, more, size, rows, first, last)
        after = np.concatenate((np.arange(size.decodes), size.decodes + np.maximum(starts[1:] - 1, 0)))
        drawing, drawn, places = self._drawing(rows, one, more, used), rows, last
        if size.drafts:
            drawing, drawn, places, after = self._at_drafts(size, drafted, ids, drawing, rows, last, after)
        return StepInputs(
            token_ids=ids,
            batch_slots=owners,
            positions=positions,
            slot_mapping=self._slot_mapping(owners, positions),
            block_tables=self._tables[rows, : size.blocks],
            seq_lens=last.astype(np.int32),
            cu_seqlens_q=starts.astype(np.int32),
            drawn_after=after,
            drawn_slots=drawing,
            drawn_positions=places,
            temperatures=self._temperatures[drawn],
            seeds=self._seeds[drawn],
        )

    def others(self, drawn: Mapping[int, RequestState]) -> list[tuple[int, RequestState]]:
        """Of the requests that draw a token, by row, those that ask for more than a temperature."""
        if not self._others:
            return []
        return [(row, state) for row, state in drawn.items() if state.slot in self._others]

    def _note(self, chunks: Sequence[Chunk]) -> list[int]:
        """Takes in what is new in the requests' tables and settings; returns their slots in the batch."""
        slots = [chunk.state.slot for chunk in chunks]
        for chunk, slot in zip(chunks, slots, strict=True):
            blocks, held = chunk.state.blocks, self._held[slot]
            if self._lists[slot] is not blocks:  # another request, or one that was preempted and came back
                held = self._take_in(chunk, slot)
            if held < len(blocks):
                self._tables[slot, held : len(blocks)] = blocks[held:]
                self._held[slot] = len(blocks)
        return slots

    def _take_in(self, chunk: Chunk, slot: int) -> int:
        request = chunk.state.request
        self._lists[slot] = chunk.state.blocks
        temperature = request.params.temperature
        self._temperatures[slot] = 0.0 if temperature < COLDEST else min(temperature, HOTTEST)
        self._seeds[slot] = request.seed % LARGEST_SEED
        (self._others.add if needs_processors(request.params) else self._others.discard)(slot)
        return 0

    def _tokens(
        self,
        one: Sequence[Chunk],
        more: Sequence[Chunk],
        size: StepSize,
        rows: np.ndarray,
        first: np.ndarray,
        last: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, slots of the batch and positions of all tokens."""
        ids = np.zeros(size.decodes + size.tokens, np.int64)
        owners = np.full(len(ids), self.spare_slot)
        positions = np.zeros(len(ids), np.int64)
        ids[: len(one)] = [chunk.state.tokens[chunk.start] for chunk in one]
        owners[: size.decodes], positions[: size.decodes] = rows[: size.decodes], first[: size.decodes]
        at = size.decodes
        for chunk, row in zip(more, rows[size.decodes :], strict=False):
            end = at + chunk.stop - chunk.start
            text = chunk.state.tokens[chunk.start : chunk.stop]  # drafts, if any, are put behind it later
            ids[at : at + len(text)] = text
            owners[at:end], positions[at:end] = row, np.arange(chunk.start, chunk.stop)
            at = end
        return ids, owners, positions

    def _at_drafts(
        self,
        size: StepSize,
        drafted: Sequence[DraftedChunk],
        ids: np.ndarray,
        drawing: np.ndarray,
        rows: np.ndarray,
        last: np.ndarray,
        after: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Puts drafts among the ids; the arrays of drawn tokens with a row for each draft behind them."""
        spare, none = np.full(size.drafts, self.spare_slot), np.zeros(size.drafts, np.int64)
        drawing, drawn = np.concatenate((drawing, spare)), np.concatenate((rows, spare))
        places, after = np.concatenate((last, none)), np.concatenate((after, none))
        for state, drafts, length, (*own, end) in drafted:
            at = after[end] - np.arange(len(own), -1, -1)  # of the last token of the text and of the drafts
            ids[at[1:]] = drafts.tokens
            after[own], drawn[own] = at[:-1], state.slot
            places[own] = length + np.arange(len(own))
        return drawing, drawn, places, after

    def _slot_mapping(self, owners: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where tokens of these slots lie in the pool."""
        blocks = self._tables[owners, positions // self.block_size].astype(np.int64)
        places = blocks * self.block_size + positions % self.block_size
        return np.where(owners == self.spare_slot, NOWHERE, places)

    def _drawing(
        self, rows: np.ndarray, one: Sequence[Chunk], more: Sequence[Chunk], used: np.ndarray
    ) -> np.ndarray:
        """Slots of the rows that draw a token; the spare one where a piece of a prompt is not the last."""
        samples = np.zeros(len(rows), bool)
        samples[used] = [chunk.samples for chunk in (*one, *more)]
        return np.where(samples, rows, self.spare_slot)
