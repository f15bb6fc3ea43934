"""A drafter without a model: what followed the last few tokens when they were last there is proposed again.

Prompt lookup decoding (Saxena 2023): the longest end of the text that occurs before in it, up to `longest`
tokens, is looked up, and the tokens after that place are the drafts. It costs next to nothing, and stands
often where a text repeats itself or its prompt: code, quotations, summaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.history import History
from llmcourse.decoding.processors import Processor
from llmcourse.decoding.sampling import Randomness
from llmcourse.speculative.arguments import require_tensor
from llmcourse.speculative.drafter import Draft


def look_up(text: Int[Tensor, " S"], num_tokens: int, *, longest: int = 3, shortest: int = 1) -> list[int]:
    """How the text went on after the longest earlier occurrence of its end; the latest of equally long ones.

    Saxena's code takes the earliest; the latest is nearer to what is being written. Where the match reaches
    up to the end, copying goes on with what has just been copied (as in Ziv and Lempel 1977), so that a text
    in a loop is continued in its loop.

    Args:
        text: prompt and output so far.
        num_tokens: how many to propose, at least 0.
        longest, shortest: of the matched end, in tokens.

    Returns:
        So many tokens, or none if nothing matches.

    Raises:
        ValueError: a length out of its range, or a text that is no row of tokens.
    """
    require_tensor("text", text, whole=True)
    require(text.dim() == 1, "text", "of shape (S,)", tuple(text.shape), "look up each row by itself")
    require_integer(0, "num_tokens", num_tokens, "use 0 for none")
    _check_lengths(longest, shortest)
    if num_tokens == 0:
        return []
    tokens = text.tolist()
    length, places = longest_matches(tokens, longest)
    if length < shortest:
        return []
    copied = tokens[places[-1] + 1 :]
    for index in range(num_tokens - len(copied)):
        copied.append(copied[index])
    return copied[:num_tokens]


def longest_matches(tokens: Sequence[int], longest: int) -> tuple[int, Sequence[int]]:
    """How many tokens at the end, at most `longest`, occur earlier, and the places where they do.

    A place is that of the last token of such an occurrence. Each further token back is compared only at the
    places where all tokens after it were the same: few, after the first.
    """
    length, places = 0, range(len(tokens) - 1)
    while length < min(longest, len(tokens) - 1):
        wanted = tokens[-1 - length]
        longer = [place for place in places if place >= length and tokens[place - length] == wanted]
        if not longer:
            break
        length, places = length + 1, longer
    return length, places


@dataclass(frozen=True)
class LookupDrafter:
    """`look_up` in prompt and output of each row; it keeps nothing, so nothing has to be rolled back.

    Attributes:
        vocab_size: the target's.
        longest, shortest: of the end that is looked up, in tokens.

    Raises:
        ValueError: a size out of its range.
    """

    vocab_size: int
    longest: int = 3
    shortest: int = 1

    def __post_init__(self):
        require_integer(1, "vocab_size", self.vocab_size, "take the target's")
        _check_lengths(self.longest, self.shortest)

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        """Nothing to prepare."""

    def draft(
        self,
        history: History,
        num_drafts: Sequence[int],
        processors: Sequence[Processor] = (),
        generator: Randomness | None = None,
    ) -> Draft:
        """At most so many tokens for each row; they are certain, so neither settings nor chance matter."""
        tokens, lengths = history.tokens.cpu(), history.lengths.tolist()
        settings = {"longest": self.longest, "shortest": self.shortest}
        found = [
            look_up(tokens[row, :length], wanted, **settings)
            for row, (length, wanted) in enumerate(zip(lengths, num_drafts, strict=True))
        ]
        width = max(map(len, found))
        padded = [[*row, *[0] * (width - len(row))] for row in found]
        device = history.tokens.device
        counts = torch.tensor([len(row) for row in found], device=device)
        return Draft(torch.tensor(padded, dtype=torch.long, device=device), counts)

    def accept(self, num_accepted: Sequence[int]) -> None:
        """Nothing to forget."""


def _check_lengths(longest: int, shortest: int) -> None:
    require_integer(1, "shortest", shortest, "use 1 to look up even a single token")
    require_integer(shortest, "longest", longest, "use 3, or no less than the shortest")
