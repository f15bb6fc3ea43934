"""Steps recorded as CUDA graphs: one launch in place of hundreds.

A graph is made for a size, and a step takes the smallest that holds it; what is left over is filled up (see
`step_inputs`). Addresses are baked in, so that inputs are copied to where the graph looks for them; lengths,
tables and all else that changes is read by the kernels from there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.engine.graphs import recorded
from llmcourse.serving.paged_decoder import PagedDecoder
from llmcourse.serving.schedule import Chunk
from llmcourse.serving.step_inputs import StepBuilder, StepInputs, StepSize
from llmcourse.serving.transfer import Transfer

MOST_CHUNKS = 16  # pieces of prompts in a recorded step
CHUNK_TOKENS = (128, 256, 512, 1024, 2048)  # of them together; larger steps keep the GPU busy without a graph
DRAFTS = (16, 128)  # in a step; with more of them speculation has long stopped to pay
DRAFTED_TOKENS = (32, *CHUNK_TOKENS)  # where a step has drafts, which are few


class StepGraph:
    """The step of one size.

    Args:
        logits: where they go; as many rows as the largest step has requests.
        pool: memory that all graphs share, since no two run at once.
    """

    def __init__(
        self,
        decoder: PagedDecoder,
        builder: StepBuilder,
        size: StepSize,
        logits: Float[Tensor, "most V"],
        pool: object,
    ):
        device = decoder.model.device
        filling = builder.build((), (), size)
        self.size = size
        self.logits = logits[: size.rows]
        self._transfer = Transfer(filling, device)
        inputs = StepInputs(*self._transfer.send(filling))

        def step() -> None:
            # Kept of the recording, which is the last.
            _, self.tokens = decoder.step(inputs, size, self.logits)

        self._replay = recorded(step, device, pool=pool)

    def __call__(self, inputs: StepInputs) -> tuple[Float[Tensor, "R V"], Int[Tensor, " R"]]:
        """Logits and tokens, in memory that the next step writes anew."""
        self._transfer.send(inputs)
        self._replay()
        return self.logits, self.tokens


class StepGraphs:
    """A graph for each size, recorded when it is first needed or by `record`."""

    def __init__(self, decoder: PagedDecoder, builder: StepBuilder):
        self._decoder, self._builder = decoder, builder
        self._decodes = _fine_sizes(builder.spare_slot)
        self._coarse_decodes = _coarse_sizes(builder.spare_slot)
        self._graphs: dict[StepSize, StepGraph] = {}
        # A graph keeps what it returns for itself, and logits of every size would be gigabytes.
        self._logits = self._logits_for(builder.spare_slot + MOST_CHUNKS)
        self._pool = torch.cuda.graph_pool_handle()

    def sizes(self, chunk_tokens: int = 0, drafts: int = 0) -> list[StepSize]:
        """All sizes of steps with up to so many tokens of prompts, and so many drafts of one request.

        Of each kind the largest comes first: the first that is recorded takes the memory that the others use.
        """
        ends = _up_to(chunk_tokens, CHUNK_TOKENS) if chunk_tokens else ()
        mixed = [(decodes, tokens) for tokens in reversed(ends) for decodes in reversed(self._coarse_decodes)]
        only = [(decodes, 0) for decodes in reversed(self._decodes)]
        return [self._mixed(*size) for size in (*self._with_drafts(chunk_tokens, drafts), *mixed, *only)]

    def _with_drafts(self, chunk_tokens: int, drafts: int) -> list[tuple[int, int, int]]:
        """Numbers of rows that decode, of other tokens and of drafts."""
        drafting = min(MOST_CHUNKS, self._builder.spare_slot)
        most = min(drafts * drafting, DRAFTS[-1])
        held = max(chunk_tokens, most + drafting)  # the last token of each text is computed with its drafts
        return [
            (decodes, tokens, count)
            for count in reversed(_up_to(most, DRAFTS) if drafts else ())
            for tokens in reversed(_up_to(held, DRAFTED_TOKENS))
            for decodes in reversed(self._coarse_decodes)
        ]

    def record(self, size: StepSize) -> StepGraph:
        """The graph of a size, recorded if there is none."""
        if size not in self._graphs:
            if size.rows > len(self._logits):  # the first with drafts; graphs made before keep what they had
                self._logits = self._logits_for(self._builder.spare_slot + MOST_CHUNKS + DRAFTS[-1])
            self._graphs[size] = StepGraph(self._decoder, self._builder, size, self._logits, self._pool)
        return self._graphs[size]

    def graph_for(self, one: Sequence[Chunk], more: Sequence[Chunk], drafts: int = 0) -> StepGraph | None:
        """One that holds chunks of one token and others; None where these or drafts are too much for any."""
        tokens = sum(chunk.stop - chunk.start for chunk in more)
        if len(more) > MOST_CHUNKS or tokens > CHUNK_TOKENS[-1] or drafts > DRAFTS[-1]:
            return None
        decodes = _at_least(len(one), self._coarse_decodes if more else self._decodes)
        held = _at_least(tokens, DRAFTED_TOKENS if drafts else CHUNK_TOKENS) if more else 0
        return self.record(self._mixed(decodes, held, _at_least(drafts, DRAFTS) if drafts else 0))

    def _mixed(self, decodes: int, tokens: int, drafts: int = 0) -> StepSize:
        chunks = MOST_CHUNKS if tokens else 0
        return StepSize(decodes, chunks, tokens, tokens, self._builder.most_blocks, drafts)

    def _logits_for(self, num_rows: int) -> Float[Tensor, "most V"]:
        model = self._decoder.model
        return model.model.norm.weight.new_empty(num_rows, model.config.vocab_size)


def _at_least(number: int, sizes: Sequence[int]) -> int:
    """The smallest of the sizes, in order, that holds so many."""
    return sizes[bisect_left(sizes, number)]


def _up_to(number: int, sizes: Sequence[int]) -> Sequence[int]:
    """The sizes that smaller numbers need, and this one."""
    return sizes[: bisect_left(sizes, number) + 1]


def _fine_sizes(most: int) -> list[int]:
    """Numbers of rows that decode: at most 16 to spare, since that is all that such a step does."""
    return [*[size for size in (1, 2, 4, *range(8, 65, 8), *range(80, most, 16)) if size < most], most]


def _coarse_sizes(most: int) -> list[int]:
    """The same where pieces of prompts take most of the time."""
    return [*range(0, most, 64), most]
