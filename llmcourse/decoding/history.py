"""The texts of a batch so far: what penalties, n-gram blocking and beam search look back at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Scope = Literal["all", "generated"]


@dataclass
class History:
    """The token ids of a batch so far: right-padded, rows of unequal length.

    Attributes:
        tokens: a buffer; slots at or past `lengths` are padding and may hold any value.
        lengths: tokens held by each row, its prompt included.
        prompt_lengths: how many of them came with the prompt.
    """

    tokens: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    prompt_lengths: Int[Tensor, " B"]

    @classmethod
    def from_prompts(
        cls, prompts: Sequence[Sequence[int]], room: int = 0, device: torch.device | str = "cpu"
    ) -> History:
        """A history that holds the prompts and keeps `room` slots free for new tokens."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        width = max(len(prompt) for prompt in prompts) + room
        padded = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
        tokens = torch.tensor(padded, dtype=torch.long, device=device)
        return cls(tokens, lengths, lengths.clone())

    def append(self, tokens: Int[Tensor, " B"], active: Bool[Tensor, " B"] | None = None) -> None:
        """Writes one token to the end of each active row (all by default); grows when full."""
        if active is None:
            active = torch.ones_like(self.lengths, dtype=torch.bool)
        if int(self.lengths.max()) == self.tokens.shape[1]:
            more = torch.zeros_like(self.tokens[:, :1]).expand(-1, max(8, self.tokens.shape[1]))
            self.tokens = torch.cat((self.tokens, more), dim=1)
        (rows,) = active.nonzero(as_tuple=True)
        self.tokens[rows, self.lengths[rows]] = tokens[rows]
        self.lengths = self.lengths + active

    def extend(self, tokens: Int[Tensor, "B T"], counts: Sequence[int]) -> None:
        """Writes the first `counts[b]` tokens of row b to its end; the room must be there."""
        taken = torch.tensor(counts, device=tokens.device)
        rows, columns = (torch.arange(tokens.shape[1], device=tokens.device) < taken[:, None]).nonzero(
            as_tuple=True
        )
        self.tokens[rows, self.lengths[rows] + columns] = tokens[rows, columns]
        self.lengths = self.lengths + taken

    def mask(self, scope: Scope = "all") -> Bool[Tensor, "B T"]:
        """Which slots hold real tokens, or only those that were generated."""
        slots = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        held = slots < self.lengths[:, None]
        return held if scope == "all" else held & (slots >= self.prompt_lengths[:, None])

    def counts(self, vocab_size: int, scope: Scope = "all") -> Int[Tensor, "B V"]:
        """How often each token of the vocabulary occurs in each row."""
        mask = self.mask(scope)
        counts = torch.zeros(len(mask), vocab_size, dtype=torch.long, device=mask.device)
        return counts.scatter_add_(1, self.tokens * mask, mask.long())

    def select(self, rows: Int[Tensor, " N"] | Sequence[int]) -> History:
        """A history whose row i is a copy of row `rows[i]`: how beam search moves hypotheses."""
        rows = torch.as_tensor(rows, device=self.tokens.device)
        return History(self.tokens[rows], self.lengths[rows], self.prompt_lengths[rows])

    def row(self, row: int) -> list[int]:
        """The tokens of one row, prompt included."""
        return self.tokens[row, : int(self.lengths[row])].tolist()


def num_equal(some: Sequence[int], others: Sequence[int]) -> int:
    """How many of their first tokens are the same."""
    count = 0
    while count < min(len(some), len(others)) and some[count] == others[count]:
        count += 1
    return count
