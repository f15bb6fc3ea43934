"""A model behind the scheduler: runs its steps over a paged cache, on the CPU or on a GPU.

On a GPU most steps are CUDA graphs, and those with much of prompts are launched kernel by kernel. Tokens are
drawn on the device and stay there for the next step, which can thus be launched before the host has seen
them (`launch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral

import torch
from torch import Tensor

from llmcourse.decoding.errors import NonFiniteLogitsError, require, require_integer, require_number
from llmcourse.kernels.backend import Backend
from llmcourse.kernels.choose_rows import BROKEN
from llmcourse.model import Decoder
from llmcourse.progress import bar
from llmcourse.serving.drafted_chunk import DraftedChunk, drafted_chunks, judge
from llmcourse.serving.other_choices import choose_one, needs_processors
from llmcourse.serving.paged_cache import PagedCache
from llmcourse.serving.paged_decoder import PagedDecoder
from llmcourse.serving.request import PENDING, Request, RequestState
from llmcourse.serving.schedule import Chunk, Sampled, Schedule
from llmcourse.serving.scheduler import NeverFits
from llmcourse.serving.speculation import standing
from llmcourse.serving.step_graphs import StepGraphs
from llmcourse.serving.step_inputs import StepBuilder, StepInputs, StepSize
from llmcourse.serving.transfer import Transfer


class PagedRunner:
    """Computes steps, and draws the next tokens of those that reach their last token.

    Args:
        model: on its device, in its dtype.
        cache: the pool; the scheduler's has as many blocks, of the same size.
        max_running: slots of the scheduler's batch.
        max_length: of a text, prompt and answer; the model's context if None.
        backend: "triton" for the kernels, "reference" for PyTorch's operations, "auto" for what runs here.
        graph: record steps as CUDA graphs, on a GPU.
        pdl: start kernels before those that feed them end, on a Hopper GPU or later.

    Raises:
        ValueError: numbers out of range, a cache of another model, or a backend that cannot run.
    """

    def __init__(
        self,
        model: Decoder,
        cache: PagedCache,
        *,
        max_running: int = 256,
        max_length: int | None = None,
        backend: Backend = "auto",
        graph: bool = True,
        pdl: bool = True,
    ):
        context = model.config.max_position_embeddings
        max_length = context if max_length is None else max_length
        require_integer(1, "max_running", max_running, "use as many as the scheduler has slots")
        require_integer(1, "max_length", max_length, f"use {context}, the context of the model")
        allowed = f"at most {context}, the context of the model"
        require(max_length <= context, "max_length", allowed, max_length, "leave it at None")
        most_blocks = -(-max_length // cache.block_size)
        self.model, self.cache = model, cache
        self.max_running, self.max_length = max_running, max_length
        self._builder = StepBuilder(max_running, most_blocks, cache.block_size)
        self._decoder = PagedDecoder(
            model, cache, max_running=max_running, max_length=max_length, backend=backend, pdl=pdl
        )
        recorded = graph and model.device.type == "cuda" and self._decoder.backend == "triton"
        self._graphs = StepGraphs(self._decoder, self._builder) if recorded else None
        self._before: _Drawn | None = None  # the last step, whose tokens may not be on the host yet

    def check_scheduler(self, num_blocks: int, block_size: int, max_running: int) -> None:
        """As `runner.BoundedRunner`."""
        size, blocks, slots = self.cache.block_size, self.cache.num_blocks, self.max_running
        as_cached, remedy = f"{size} as in the cache", "make the BlockPool of that size"
        require(block_size == size, "block_size", as_cached, block_size, remedy)
        at_most, remedy = f"at most {blocks}, those of the cache", "make the cache larger"
        require(num_blocks <= blocks, "num_blocks", at_most, num_blocks, remedy)
        at_most, remedy = f"at most {slots}, the runner's", "give both as many"
        require(max_running <= slots, "max_running", at_most, max_running, remedy)

    def check_request(self, request: Request) -> None:
        """As `runner.BoundedRunner`: all its tokens are in the vocabulary, text and drafts fit the context.

        Raises:
            NeverFits: it is longer than `max_length`.
        """
        vocab_size = self.model.config.vocab_size
        highest, allowed = max(request.prompt), f"token ids in [0, {vocab_size - 1}]"
        require(highest < vocab_size, "prompt", allowed, highest, "encode with the model's own tokenizer")
        if request.speculation is not None:
            drafted, allowed = request.speculation.vocab_size, f"over the {vocab_size} tokens of the model"
            remedy = "draft and target must share one tokenizer"
            require(drafted == vocab_size, "speculation", allowed, drafted, remedy)
            longest, allowed = request.speculation.longest, f"below the context of {self.max_length}"
            remedy = "a step cannot bring more than a whole text"
            shorter = lambda count: count < self.max_length  # noqa: E731
            require_number(shorter, "draft_length", allowed, longest, remedy, kind=Integral)
        if request.max_length > self.max_length:
            raise NeverFits(
                f"request {request.id!r} must fit into {self.max_length} tokens, got a prompt of "
                f"{len(request.prompt)} and max_tokens {request.max_tokens}; shorten the prompt or lower "
                "max_tokens"
            )

    @torch.no_grad()
    def record(self, chunk_tokens: int = 0, *, drafts: int = 0, progress: bool = False) -> None:
        """Records graphs ahead; otherwise each is when it is first needed, which takes a moment.

        Args:
            chunk_tokens: of prompts in one step, at most: the token budget of chunked prefill, or 0 for steps
                that only decode.
            drafts: that a request may have in one step, at most; 0 where none speculates. About twice as much
                is recorded then, but otherwise all wait when the first request speculates.
            progress: shows how far it has come.

        Raises:
            ValueError: fewer than 0 drafts.
        """
        require_integer(0, "drafts", drafts, "use 0 where no request speculates")
        if self._graphs is not None:
            sizes = self._graphs.sizes(chunk_tokens, drafts)
            with self._device():
                for size in bar(sizes, "recording", unit="graph", shown=progress):
                    self._graphs.record(size)

    def run(self, schedule: Schedule) -> Sampled:
        """As `runner.Runner`."""
        return self.launch(schedule)()

    def launch(self, schedule: Schedule) -> Callable[[], Sampled]:
        """As `runner.OverlappingRunner`."""
        with torch.no_grad(), self._device():
            return self._launch(schedule)

    def _device(self) -> AbstractContextManager:
        """On a machine of several GPUs streams, events and graphs are those of the current one."""
        device = self.model.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _launch(self, schedule: Schedule) -> Callable[[], Sampled]:
        one, more = self._builder.order(schedule.chunks)
        if not one and not more:
            return dict
        graph = self._graphs and self._graphs.graph_for(one, more, schedule.num_drafts)
        size = graph.size if graph else self._builder.size(one, more, schedule.num_drafts)
        drafted = self._drafted(more, schedule, size)
        inputs = self._builder.build(one, more, size, drafted)
        if graph:
            logits, tokens = graph(inputs)
        else:
            on_device = StepInputs(*Transfer(inputs, self.model.device).send(inputs))
            logits, tokens = self._decoder.step(on_device, size)
        rows = [*range(len(one)), *range(size.decodes, size.decodes + len(more))]
        drawn = {row: chunk.state for row, chunk in zip(rows, (*one, *more), strict=True) if chunk.samples}
        for chunk in drafted:
            del drawn[chunk.rows[-1]]
        settled = self._choose_otherwise(drawn, logits, tokens) | self._judge(drafted, logits)
        self._before = _Drawn(drawn, tokens, settled, drafted)
        return self._before.wait

    def _drafted(self, more: list[Chunk], schedule: Schedule, size: StepSize) -> list[DraftedChunk]:
        if not schedule.num_drafts:
            return []
        return drafted_chunks(more, schedule.drafts, size.decodes, size.decodes + size.chunks)

    def _judge(self, drafted: list[DraftedChunk], logits: Tensor) -> dict[str, list[int] | Exception]:
        """What requests gain for which the drawn tokens do not say it."""
        return {
            chunk.state.id: judge(chunk, logits)
            for chunk in drafted
            if chunk.drawn or needs_processors(chunk.state.request.params)
        }

    def _choose_otherwise(
        self, drawn: Mapping[int, RequestState], logits: Tensor, tokens: Tensor
    ) -> dict[str, Exception]:
        """Replaces the tokens of requests with other settings; returns the errors of those that failed."""
        failed: dict[str, Exception] = {}
        for row, state in self._builder.others(drawn):
            choice = choose_one(state.request, self._known(state), logits[row : row + 1])
            if isinstance(choice, Exception):
                failed[state.id], choice = choice, 0  # a token like any other, for a step already under way
            tokens[row] = choice
            self._decoder.last_tokens[state.slot] = choice
        return failed

    def _known(self, state: RequestState) -> list[int]:
        """The tokens of a request; one that the step before draws is waited for."""
        if state.tokens[-1] != PENDING:
            return state.tokens
        before = self._before.wait()[state.id]
        return [*state.tokens[:-1], 0 if isinstance(before, Exception) else before]


class _Drawn:
    """The tokens of a step, on their way to the host."""

    def __init__(
        self,
        drawn: Mapping[int, RequestState],
        tokens: Tensor,
        settled: Sampled,
        drafted: Sequence[DraftedChunk] = (),
    ):
        self._ids = {row: state.id for row, state in drawn.items()}
        self._settled = settled
        self._drafted = [chunk for chunk in drafted if chunk.state.id not in settled]
        self._arrived = None
        self._tokens = tokens
        if tokens.is_cuda:
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> dict[str, int | Sequence[int] | Exception]:
        """By request id, once the device has come so far."""
        if self._arrived is not None:
            self._arrived.synchronize()
        tokens = self._tokens.tolist()
        drawn = {name: _token_or_error(tokens[row], name) for row, name in self._ids.items()}
        for chunk in self._drafted:
            drawn[chunk.state.id] = _gained([tokens[row] for row in chunk.rows], chunk)
        return drawn | self._settled


def _gained(drawn: list[int], chunk: DraftedChunk) -> list[int] | Exception:
    *stood, own = standing(drawn, chunk.drafts.tokens)
    own = _token_or_error(own, chunk.state.id)
    return own if isinstance(own, Exception) else [*stood, own]


def _token_or_error(token: int, request_id: str) -> int | Exception:
    if token != BROKEN:
        return token
    return NonFiniteLogitsError(
        f"the logits of request {request_id!r} hold NaN or infinity; check the model's weights and number "
        "format, or use temperature=0 where it is near 0"
    )
