"""γ drafts of a smaller model, without the host: one pass after the other, each token chosen on the device.

The first pass reads two tokens of the text, not one: after a step in which all drafts stood the drafter has
yet to read the last of them, and the same launches have to serve every step. Where it has read that token
before, its key and value are written anew, which costs nothing beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.engine.step import KernelSettings, KernelStep, StepState, reference_step
from llmcourse.decoding.engine.window import Window
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.tokens import Choice, choose


class Drafting:
    """Memory of fixed address for γ drafts a row.

    Args:
        state: the drafter's, whose text and positions are the target's: drafts are written behind the text.
        gamma: γ, drafts a step.
        backend, settings: as in `DecodeEngine`.

    Attributes:
        kept: `(B, γ, V)`, the logits that each draft was drawn from; not written where drafts are greedy.
    """

    on_host = False  # so that a graph can hold a whole step

    def __init__(
        self,
        state: StepState,
        gamma: int,
        *,
        backend: Backend = "auto",
        settings: KernelSettings | None = None,
    ):
        batch, vocab_size = state.logits.shape
        self.state = state
        self.backend = resolve(backend, state.text.device, state.model.dtype)
        self.kept: Float[Tensor, "B G V"] = state.logits.new_zeros(batch, gamma, vocab_size)
        self.catch_up = Window(state, 2, backend=self.backend, settings=settings)
        self._step: Callable[[StepState], object] = reference_step
        if self.backend == "triton":
            self._step = KernelStep(state, settings or KernelSettings())

    def start(self, prompts: Sequence[Sequence[int]], first: Sequence[int]) -> None:
        """Nothing to prepare: the texts lie on the device."""

    def extend(self, gained: Sequence[Sequence[int]]) -> None:
        """Nothing to take in."""

    @torch.no_grad()
    def draft(self, choice: Choice) -> None:
        """Writes γ drafts behind each row's text; its position moves on to the last, and was at least 1."""
        state = self.state
        self.catch_up.read()
        logits = self.catch_up.logits[:, -1]
        for index in range(self.kept.shape[1]):
            if index:
                self._step(state)
                logits = state.logits
            keep = self.kept[:, index] if choice.sampled else None
            choose(logits, state.text, state.positions, choice, keep=keep, backend=self.backend)
