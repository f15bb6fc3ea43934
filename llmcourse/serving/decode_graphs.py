"""Steps in which every request decodes one token, recorded as CUDA graphs: one launch in place of hundreds.

A graph is made for a number of rows, and a step takes the smallest that holds it. The rows left over read
one key of the first block and keep nothing. Addresses are baked in, so that inputs are copied to where the
graph looks for them; lengths, tables and all else that changes is read by the kernels from there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.serving.paged_decoder import PagedDecoder
from llmcourse.serving.schedule import Chunk
from llmcourse.serving.step_inputs import NOWHERE, Draws, Rows, StepBuilder, StepInputs, arrays_of, on_device


def graph_sizes(max_running: int) -> list[int]:
    """Numbers of rows to record: powers of 2, then multiples of 8, then of 16; at most 12 % to spare."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, max_running + 16, 16)]
    return [*[size for size in sizes if size < max_running], max_running]


class DecodeGraph:
    """The step of a fixed number of rows.

    Args:
        pool: memory that all graphs share, since no two run at once.
    """

    def __init__(self, decoder: PagedDecoder, num_rows: int, most_blocks: int, pool: object):
        device = decoder.model.device
        self.num_rows = num_rows
        self._numbers = torch.zeros(5, num_rows, dtype=torch.long, device=device)
        self._tables = torch.zeros(num_rows, most_blocks, dtype=torch.int32, device=device)
        self._temperatures = torch.zeros(num_rows, dtype=torch.float32, device=device)
        self._numbers[1], self._numbers[3] = len(decoder.last_tokens) - 1, NOWHERE
        self._every = torch.arange(num_rows, device=device)  # kept, as all that the graph reads from
        self._starts = torch.arange(num_rows + 1, dtype=torch.int32, device=device)

        def step() -> tuple[Tensor, Tensor]:
            token_ids, batch_slots, positions, slots, seeds = self._numbers
            lengths = (positions + 1).int()
            draws = Draws(self._every, batch_slots, self._temperatures, seeds, positions + 1)
            rows = Rows(self._tables, self._starts, lengths, 1)
            return decoder.step(StepInputs(token_ids, batch_slots, positions, slots, rows, None, draws))

        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            step()  # compiles the kernels, which a recording must not
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self.logits, self.tokens = step()

    def __call__(self, numbers: np.ndarray, tables: np.ndarray, temperatures: np.ndarray) -> None:
        """Copies the inputs, `(5, rows)`, `(rows, blocks)` and `(rows,)`, and replays the step."""
        device = self._numbers.device
        self._numbers.copy_(on_device(numbers, device))
        self._tables.copy_(on_device(tables, device))
        self._temperatures.copy_(on_device(temperatures, device))
        self._graph.replay()


class DecodeGraphs:
    """A graph for each of `graph_sizes`, recorded when it is first needed or by `record`."""

    def __init__(self, decoder: PagedDecoder, builder: StepBuilder, max_running: int, most_blocks: int):
        self.sizes = graph_sizes(max_running)
        self._decoder, self._builder, self._most_blocks = decoder, builder, most_blocks
        self._graphs: dict[int, DecodeGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, progress: Callable[[Sequence[int]], Sequence[int]] = reversed) -> None:
        """Records all of them, the largest first, whose memory the others then use.

        Args:
            progress: wraps the sizes, to show how far it has come.
        """
        for size in progress(self.sizes):
            self._graph(size)

    def step(self, chunks: Sequence[Chunk]) -> tuple[Float[Tensor, "B V"], Int[Tensor, " B"]]:
        """Logits and tokens of chunks of one token each, in memory that the next step writes anew."""
        graph = self._graph(self.sizes[bisect_left(self.sizes, len(chunks))])
        builder, used, rows = self._builder, len(chunks), graph.num_rows
        tokens = arrays_of(builder, chunks, ())
        slots = np.full(rows, builder.spare_slot)
        slots[:used] = tokens["batch_slots"]
        numbers = np.zeros((5, rows), np.int64)
        numbers[1], numbers[3] = slots, NOWHERE
        for row, name in enumerate(("token_ids", "batch_slots", "positions", "slots")):
            numbers[row, :used] = tokens[name]
        temperatures, numbers[4] = builder.settings(slots)
        graph(numbers, builder.tables(slots, self._most_blocks * builder.block_size), temperatures)
        return graph.logits[:used], graph.tokens[:used]

    def _graph(self, size: int) -> DecodeGraph:
        if size not in self._graphs:
            self._graphs[size] = DecodeGraph(self._decoder, size, self._most_blocks, self._pool)
        return self._graphs[size]
