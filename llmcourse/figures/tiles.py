"""FlashAttention tile by tile: what is in SRAM, what is known of each row, and the bytes moved so far.

Nothing is told that was not computed: `attention.tiled_attention` itself runs, and a memory that listens to
its reads and writes hands out the tiles as they pass. What is known of the rows after each tile is
`attention.RunningSoftmax`, and what an unfused attention moves is counted by `attention.unfused_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.attention import (
    RunningSoftmax,
    SlowMemory,
    attention_reference,
    causal_mask,
    tiled_attention,
    unfused_attention,
)


@dataclass(frozen=True)
class TileStep:
    """What holds after one step: a tile of scores was joined, or a tile of results was written.

    Attributes:
        query_tile: its place from the top; −1 before the first step.
        key_tile: its place from the left; None where the result of the query tile was written.
        rows, keys: of the tile, as ranges.
        seen: m, l and o of these rows; None before the first step.
        fade: e^(m before − m now) of each row, with which l and o were scaled down: 0 where nothing was
            known before, 1 where m stays.
        sram_bytes: of the tiles of q, k and v, the scores, m, l and o that are in SRAM.
        read_bytes, written_bytes: from and to slow memory so far.
    """

    query_tile: int
    key_tile: int | None
    rows: range
    keys: range
    seen: RunningSoftmax | None
    fade: tuple[float, ...]
    sram_bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def traffic_bytes(self) -> int:
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, eq=False)
class TileWalk:
    """The whole way through the scores of one head.

    Attributes:
        queries, keys: how many there are.
        steps: the first is the one before anything is read.
        result: of `tiled_attention`.
        expected: of the definition.
        unfused_read_bytes, unfused_written_bytes: what an unfused attention moves.
    """

    queries: int
    keys: int
    query_tile: int
    key_tile: int
    causal: bool
    steps: tuple[TileStep, ...]
    result: Float[Tensor, "T D"]
    expected: Float[Tensor, "T D"]
    unfused_read_bytes: int
    unfused_written_bytes: int

    @property
    def unfused_bytes(self) -> int:
        return self.unfused_read_bytes + self.unfused_written_bytes

    @property
    def num_tiles(self) -> int:
        """All tiles of the scores, the skipped ones too."""
        return math.ceil(self.queries / self.query_tile) * math.ceil(self.keys / self.key_tile)

    @property
    def num_skipped(self) -> int:
        return self.num_tiles - sum(step.key_tile is not None and step.query_tile >= 0 for step in self.steps)

    def joined(self, step: int) -> list[tuple[int, int]]:
        """The tiles that were joined up to a step, itself included, as (query tile, key tile)."""
        steps = self.steps[1 : step + 1]
        return [(s.query_tile, s.key_tile) for s in steps if s.key_tile is not None]

    def partial(self, step: int, row: int) -> RunningSoftmax | None:
        """What is known of one row after a step; None before its tile began."""
        for past in reversed(self.steps[: step + 1]):
            if past.seen is not None and row in past.rows:
                at = row - past.rows.start
                return RunningSoftmax(past.seen.peak[at], past.seen.total[at], past.seen.mixed[at])
        return None


class _Passed(NamedTuple):
    """A tile on its way from or to slow memory, and the counts after it."""

    writes: bool
    tensor: Tensor
    read_bytes: int
    written_bytes: int


class _Listener(SlowMemory):
    """Counts as its base does, and remembers what passed."""

    def __init__(self):
        super().__init__()
        self.passed: list[_Passed] = []

    def read(self, tensor: Tensor) -> Tensor:
        super().read(tensor)
        self.passed.append(_Passed(False, tensor, self.read_bytes, self.written_bytes))
        return tensor

    def write(self, tensor: Tensor) -> Tensor:
        super().write(tensor)
        self.passed.append(_Passed(True, tensor, self.read_bytes, self.written_bytes))
        return tensor


def walk_tiles(
    q: Float[Tensor, "T D"],
    k: Float[Tensor, "S D"],
    v: Float[Tensor, "S D"],
    *,
    causal: bool = True,
    query_tile: int = 8,
    key_tile: int = 8,
) -> TileWalk:
    """Runs tiled attention on one head, and remembers every step.

    Args:
        causal: a query sees no later key, the queries being the last T of the S keys.
        query_tile, key_tile: rows of q, and of k and v, in SRAM at a time.

    Raises:
        ValueError: no query, more queries than keys, a number that is not finite, or a tile without rows.
    """
    queries, keys = len(q), len(k)
    if not 1 <= queries <= keys:
        raise ValueError(f"q must have 1 to {keys} rows, as many as there are keys at most, got {queries}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity; draw it with torch.randn")
    tiles = {"query_tile": query_tile, "key_tile": key_tile}
    listener, unfused = _Listener(), SlowMemory()
    one_head = [x[None, None] for x in (q, k, v)]
    result, _ = tiled_attention(*one_head, causal=causal, memory=listener, **tiles)
    unfused_attention(*one_head, causal=causal, memory=unfused)
    mask = causal_mask(queries, keys) if causal else torch.ones(queries, keys, dtype=torch.bool)
    expected = attention_reference(*one_head, mask[None])
    start = TileStep(-1, None, range(0), range(0), None, (), 0, 0, 0)
    return TileWalk(
        queries,
        keys,
        query_tile,
        key_tile,
        causal,
        (start, *_steps(listener.passed, mask, (query_tile, key_tile))),
        result[0, 0],
        expected[0, 0],
        unfused.read_bytes,
        unfused.written_bytes,
    )


def _steps(
    passed: Iterable[_Passed], mask: Bool[Tensor, "T S"], tiles: tuple[int, int]
) -> Iterator[TileStep]:
    """Of each tile of queries q passes, then k and v of one tile of keys after another, then result and L."""
    events = iter(passed)
    for row, event in enumerate(events):
        q = _wide(event.tensor)
        rows = range(len(mask))[row * tiles[0] :][: tiles[0]]
        seen = RunningSoftmax.before((len(rows),), q.shape[-1], q)
        for column, event in enumerate(events):
            if event.writes:
                counts = next(events)
                yield TileStep(
                    row, None, rows, range(0), seen, (), 0, counts.read_bytes, counts.written_bytes
                )
                break
            keys = range(mask.shape[1])[column * tiles[1] :][: tiles[1]]
            of_values = next(events)
            k, v = _wide(event.tensor), _wide(of_values.tensor)
            visible = mask[rows.start : rows.stop, keys.start : keys.stop]
            scores = (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(~visible, float("-inf"))
            before, seen = seen, seen.join(scores, v)
            fade = torch.exp(before.peak - seen.peak).nan_to_num(1.0)  # −inf − (−inf): nothing to scale yet
            in_sram = (q, k, v, scores, seen.peak, seen.total, seen.mixed)
            sram_bytes = sum(x.numel() * x.element_size() for x in in_sram)
            counts = of_values.read_bytes, of_values.written_bytes
            yield TileStep(row, column, rows, keys, seen, tuple(fade.tolist()), sram_bytes, *counts)


def _wide(tensor: Float[Tensor, "1 1 tile D"]) -> Float[Tensor, "tile D"]:
    """As tiled_attention computes with it."""
    return tensor[0, 0].to(torch.promote_types(tensor.dtype, torch.float32))
