"""One interface for everything that proposes drafts: a smaller model, lookup, the target's own first layers.

A step is: `draft`, a pass of the target over the drafts, `verify_drafts`, and `accept`, by which the drafter
learns what became of its last proposal. The texts are in the history, which is appended to in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.decoding.history import History
from llmcourse.decoding.processors import Processor
from llmcourse.decoding.sampling import Randomness
from llmcourse.speculative.distributions import point_masses
from llmcourse.speculative.tree import DraftTree


@dataclass(frozen=True)
class Draft:
    """What is proposed for each row.

    Attributes:
        tokens: the drafts; rows with fewer than others are padded with token 0.
        num_tokens: how many of them are a row's own.
        q: what each was drawn from, or None if all were certain: lookup, or a greedy drafter.
        tree: which draft follows which; None if each follows the one before it. The drafts are its nodes'
            tokens, and a row with fewer has the tree's first nodes.

    Raises:
        ValueError: a tree of more or fewer nodes than there are drafts.
    """

    tokens: Int[Tensor, "B G"]
    num_tokens: Int[Tensor, " B"]
    q: Float[Tensor, "B G V"] | None = None
    tree: DraftTree | None = None

    def __post_init__(self):
        if self.tree is not None:
            allowed, found = f"of {len(self.tree)} columns as its tree has nodes", tuple(self.tokens.shape)
            remedy = "give a token for every node"
            require(found[1:] == (len(self.tree),), "tokens of a draft", allowed, found, remedy)

    def distributions(self, vocab_size: int) -> Float[Tensor, "B G V"]:
        """q as `verify_drafts` takes it: point masses if the drafts were certain.

        Raises:
            ValueError: a certain draft outside the vocabulary.
        """
        if self.q is not None:
            return self.q
        allowed, remedy = f"in [0, {vocab_size - 1}]", "use a drafter with the target's own tokenizer"
        for token in self.tokens.flatten().tolist():
            require(0 <= token < vocab_size, "drafts", allowed, token, remedy)
        return point_masses(self.tokens, vocab_size)


@runtime_checkable
class Drafter(Protocol):
    """Proposes how each text may go on. It serves one batch at a time: `start` begins anew.

    Attributes:
        vocab_size: of its tokens, which must be the target's.
    """

    vocab_size: int

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        """Reads the prompts.

        Args:
            capacity: tokens to make room for in each row: the longest prompt, what may follow it, and drafts.
        """
        ...

    def draft(
        self,
        history: History,
        num_drafts: Sequence[int],
        processors: Sequence[Processor] = (),
        generator: Randomness | None = None,
    ) -> Draft:
        """Proposes at most so many tokens for each row, and may propose fewer; leaves the history as it was.

        Args:
            history: the texts so far, the token after the last accepted draft included.
            num_drafts: the most for each row, at least 0.
            processors: the target's own settings: the more alike both sides, the more drafts stand.
            generator: what to draw with; None for greedy decoding. Whatever is chosen, `q` must be what it
                was drawn from.
        """
        ...

    def accept(self, num_accepted: Sequence[int]) -> None:
        """How many of each row's last drafts stand: the others are forgotten, a cache is rolled back."""
        ...
