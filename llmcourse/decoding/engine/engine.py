"""The decode loop that a machine can keep up with: one engine for every decoder, on a GPU or on the CPU.

The ordinary model reads the prompts into the cache. Then every token is one step over memory that never
moves: choose from the logits, look the token up, run all layers. On a GPU the step is a CUDA graph of
Triton kernels, and choosing is part of it, so that many steps can be queued without waiting for any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.engine.graphs import recorded
from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import (
    KernelSettings,
    KernelStep,
    StepState,
    check_room,
    reference_step,
)
from llmcourse.decoding.source import check_prompts
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.blas import lay_out
from llmcourse.kernels.tokens import Choice, choose
from llmcourse.model import Decoder


class DecodeEngine:
    """A decoder behind static memory: `start` and `step` as any `LogitsSource`, or `decode` for many tokens.

    Args:
        model: whose projections become views of fused matrices (see `weights.fuse_layers`).
        backend: "triton" for the kernels, "reference" for PyTorch's operations, "auto" for what runs here.
        settings: of the kernels; None takes what was measured to be best.
        graph: record the kernels as a CUDA graph; off, every step launches them anew.

    Raises:
        ValueError: a backend that cannot run.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        backend: Backend = "auto",
        settings: KernelSettings | None = None,
        graph: bool = True,
    ):
        self.model = model
        self.backend = resolve(backend, model.device, model.dtype)
        self.settings = settings or KernelSettings()
        self.graph = graph and self.backend == "triton" and model.device.type == "cuda"
        self.vocab_size = model.config.vocab_size
        self.max_length = model.config.max_position_embeddings
        self.eos_token_ids = model.config.eos_token_ids
        self.extent = 0  # tokens of the longest row
        self._state: StepState | None = None
        self._step: Callable[[StepState], object] = reference_step
        self._recordings: dict[object, Callable[[], None]] = {}
        self._choices: dict[bool, Choice] = {}  # greedy, and drawn

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Float[Tensor, "B V"]:
        """Reads the prompts; arguments and result as in `LogitsSource.start`.

        Memory and recordings are kept from the last start where batch and capacity still fit.

        Raises:
            TypeError, ValueError: prompts that `check_prompts` refuses, or a capacity that does not hold
                them or outgrows the model's context.
            DoesNotFit: the memory that is free does not hold such a cache.
        """
        check_prompts(prompts, self)
        lengths = [len(prompt) for prompt in prompts]
        if not max(lengths) <= capacity <= self.max_length:
            raise ValueError(
                f"capacity must be in [{max(lengths)}, {self.max_length}], from the longest prompt to the "
                f"model's context, got {capacity}; add up the prompt and what may follow"
            )
        state = self._prepare(len(prompts), capacity)
        prefill(state, prompts)
        self.extent = max(lengths)
        return state.logits.clone()

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Appends one token to each row; returns the logits after it.

        Raises:
            ValueError: another number of tokens than rows, or no room for them. Ids outside the vocabulary
                are refused on the CPU alone: on a GPU looking at them would hold up every step.
        """
        self._check_tokens(tokens)
        state = self._reserve(1)
        state.positions += 1
        state.text.scatter_(1, state.positions[:, None], tokens[:, None])
        self._run("forward", self._forward)
        return state.logits.clone()

    @torch.no_grad()
    def decode(self, num_tokens: int, *, temperature: float = 0.0, seed: int = 0) -> Int[Tensor, "B N"]:
        """The next tokens of every row, chosen on the device; end tokens are tokens like others here.

        Args:
            temperature: 0 takes the likeliest, otherwise draws from softmax(logits / temperature).
            seed: of the draws.

        Raises:
            ValueError: more tokens than the capacity has room for.
        """
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}; ask for one token or more")
        choice = self._choice_for(temperature, seed)
        state = self._reserve(num_tokens)

        def choose_and_forward() -> None:
            choose(state.logits, state.text, state.positions, choice, backend=self.backend)
            self._forward()

        for _ in range(num_tokens):
            self._run(("decode", choice.sampled), choose_and_forward)
        last = state.positions[:, None] + torch.arange(1 - num_tokens, 1, device=self.device)
        return state.text.gather(1, last)

    @torch.no_grad()
    def reorder(self, rows: Int[Tensor, " N"]) -> None:
        """Row i becomes a copy of row `rows[i]`; another number of rows needs other memory.

        Raises:
            ValueError: no prompt was read yet, or `rows` names none, or one that is not there (which is
                looked at on the CPU alone).
        """
        old = state = self._started()
        if len(rows) < 1:
            raise ValueError("rows must name at least one row, got none; give the row to keep")
        _check_ids("rows", rows, old.batch_size, "number them as they are now")
        if len(rows) != old.batch_size:
            self._state = None
            state = self._prepare(len(rows), old.capacity)
        held = slice(0, self.extent)
        state.cache.keys[:, :, :, held] = old.cache.keys[:, rows, :, held]
        state.cache.values[:, :, :, held] = old.cache.values[:, rows, :, held]
        for name in ("text", "positions", "logits"):
            getattr(state, name).copy_(getattr(old, name)[rows])

    def _prepare(self, batch_size: int, capacity: int) -> StepState:
        state = self._state
        if state is None or state.batch_size != batch_size or state.capacity < capacity:
            # The old cache, and the recordings that hold on to it, go before the new one is made.
            self._state, self._step, state = None, reference_step, None
            self._recordings.clear()
            self._choices.clear()
            check_room(self.model, batch_size, capacity)
            layout = torch.Tensor.contiguous if self.backend == "triton" else lay_out
            self._state = StepState(self.model, batch_size, capacity, layout)
            kernels = KernelStep(self._state, self.settings) if self.backend == "triton" else None
            self._step = reference_step if kernels is None else kernels
        return self._state

    def _reserve(self, num_tokens: int) -> StepState:
        """Makes room on the host's side of the books; the device keeps its own positions."""
        state, needed = self._started(), self.extent + num_tokens
        if needed > state.capacity:
            raise ValueError(
                f"the engine holds {state.capacity} tokens a row, {needed} are needed; "
                "start it with a larger capacity or ask for fewer tokens"
            )
        self.extent = needed
        return state

    def _started(self) -> StepState:
        if self._state is None:
            raise ValueError("the engine has read no prompt yet; call start first")
        return self._state

    def _check_tokens(self, tokens: Tensor) -> None:
        rows = self._started().batch_size
        if tokens.shape != (rows,):
            raise ValueError(
                f"tokens must have shape ({rows},), one a row, got {tuple(tokens.shape)}; "
                "a row that has ended takes any token"
            )
        _check_ids("tokens", tokens, self.vocab_size, "take them from the model's own tokenizer")

    def _forward(self) -> None:
        self._step(self._state)

    def _run(self, name: object, work: Callable[[], None]) -> None:
        """Does the work: from its recording where graphs are used."""
        if not self.graph:
            work()
            return
        if name not in self._recordings:
            state = self._state
            self._recordings[name] = recorded(work, self.device, [state.text, state.positions, state.logits])
        self._recordings[name]()

    def _choice_for(self, temperature: float, seed: int) -> Choice:
        """One that is greedy and one that draws, each with a recording of its own, serve all requests."""
        batch, sampled = self._started().batch_size, temperature > 0
        if sampled not in self._choices:
            self._choices[sampled] = Choice(batch, self.vocab_size, self.device, temperature=temperature)
        self._choices[sampled].draw_with(temperature, seed)
        return self._choices[sampled]


def _check_ids(name: str, ids: Tensor, end: int, remedy: str) -> None:
    """Refuses ids not in [0, end) on the CPU: on a GPU looking at them would hold up every step."""
    if ids.is_cpu:
        low, high = ids.aminmax()
        if low < 0 or high >= end:
            raise ValueError(f"{name} must be ids in [0, {end - 1}], got {ids.tolist()}; {remedy}")
