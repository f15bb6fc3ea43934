"""γ drafts by the target's own first layers, into its own cache: what they give is where verification begins.

    pass i of γ + 1:  x_k of the token at position p + i, kept for the window;  token i + 1, but of the last

The last pass reads the last draft, for verification alone, and needs no head. Every pass is over one token:
what these layers have read of a text is always what the others have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.engine.step import (
    KernelSettings,
    KernelStep,
    StepState,
    reference_layers,
    reference_step,
)
from llmcourse.decoding.engine.window import Window
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.tokens import Choice, choose


class SharedDrafting:
    """As `Drafting`, whose attributes and methods it has.

    Args:
        state: of the first layers: text, positions and cache are the target's.
        window: over γ + 1 tokens, beginning behind these layers.
        backend, settings: as in `DecodeEngine`.
    """

    on_host = False

    def __init__(
        self,
        state: StepState,
        window: Window,
        *,
        backend: Backend = "auto",
        settings: KernelSettings | None = None,
    ):
        batch, num_tokens = window.tokens.shape
        self.state, self._gamma = state, num_tokens - 1
        self.backend = resolve(backend, state.text.device, state.model.dtype)
        self.kept: Float[Tensor, "B G V"] = state.logits.new_zeros(batch, self._gamma, state.logits.shape[1])
        self._slots = window.hidden.view(batch, num_tokens, -1).unbind(1)  # (B, C) each
        self._step: KernelStep | None = None
        if self.backend == "triton":
            self._step = KernelStep(state, settings or KernelSettings())

    def start(self, prompts: Sequence[Sequence[int]], first: Sequence[int]) -> None:
        """Nothing to prepare: the texts lie on the device."""

    def extend(self, gained: Sequence[Sequence[int]]) -> None:
        """Nothing to take in."""

    @torch.no_grad()
    def draft(self, choice: Choice) -> None:
        """Writes γ drafts behind each row's text; its position moves on to the last, which is read, too."""
        state = self.state
        for index, slot in enumerate(self._slots):
            more = index < self._gamma
            self._read(slot, head=more)
            if more:
                keep = self.kept[:, index] if choice.sampled else None
                choose(state.logits, state.text, state.positions, choice, keep=keep, backend=self.backend)

    def _read(self, slot: Float[Tensor, "B C"], head: bool) -> None:
        """One token of each row, to the slot and, with a head, to the logits."""
        state, step = self.state, self._step
        if step is None:
            slot.copy_(reference_step(state) if head else reference_layers(state))
            return
        alone = slot.is_contiguous()  # of one row: the last layer writes where it is wanted
        if alone:
            step.hidden = slot
        (step if head else step.layers)(state)
        if not alone:
            slot.copy_(step.hidden)
