"""γ drafts that the host looks up in the text: no model, but a round trip, as it has to know the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmcourse.decoding.engine.step import StepState
from llmcourse.kernels.tokens import Choice
from llmcourse.speculative.lookup import LookupDrafter, look_up


class Lookups:
    """`look_up` for each row, and the drafts' way to the device.

    Where less than γ is found, token 0 fills up: to the verdict one certain draft is like another.

    Args:
        state: the target's, behind whose text the drafts are written.
        gamma: γ, drafts a step.
        drafter: how long the matched end of a text has to be.

    Attributes:
        kept: `(B, γ, V)`, logits that leave nothing but the drafts, which are certain.
    """

    on_host = True  # what a step drafts is known only after the one before it

    def __init__(self, state: StepState, gamma: int, drafter: LookupDrafter):
        batch, vocab_size = state.logits.shape
        self.state, self.gamma, self.drafter = state, gamma, drafter
        self.kept = state.logits.new_zeros(batch, gamma, vocab_size)
        self.texts: list[list[int]] = []

    def start(self, prompts: Sequence[Sequence[int]], first: Sequence[int]) -> None:
        """The texts so far: each prompt and the first token behind it."""
        self.texts = [[*prompt, token] for prompt, token in zip(prompts, first, strict=True)]

    def extend(self, gained: Sequence[Sequence[int]]) -> None:
        """What the texts gained in the last step."""
        for text, new in zip(self.texts, gained, strict=True):
            text += new

    @torch.no_grad()
    def draft(self, choice: Choice) -> None:
        """Writes γ drafts behind each row's text; its position moves on to the last."""
        found = [self._look_up(text) for text in self.texts]
        drafts = torch.tensor([row + [0] * (self.gamma - len(row)) for row in found])
        drafts = drafts.to(self.state.text.device)
        slots = self.state.positions[:, None] + torch.arange(1, self.gamma + 1, device=drafts.device)
        self.state.text.scatter_(1, slots, drafts)
        self.state.positions += self.gamma
        if choice.sampled:
            self.kept.fill_(float("-inf")).scatter_(2, drafts[..., None], 0.0)

    def _look_up(self, text: list[int]) -> list[int]:
        lengths = {"longest": self.drafter.longest, "shortest": self.drafter.shortest}
        return look_up(torch.tensor(text), self.gamma, **lengths)
