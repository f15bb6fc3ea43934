"""Speculation as an option of a request: what serving asks of whoever drafts, and how drafts are judged.

A request that speculates computes, in one step, its last token and a few guesses of what follows, its drafts.
The step gives the model's own choice at each of them, so several tokens may be gained at once (Leviathan et
al. 2023; chapter 4 has the rule, the drafters and the theory). Two ways to judge them:

certain   The drafter was sure, as lookup is, or the answer is greedy. The token at each position is drawn as
          it always is, from the seed and the position alone, and a draft stands if it is that very token. It
          stands with probability p(draft), as the acceptance rule says where q is certain, and the answer is
          token by token that of the same request without speculation: in exact arithmetic, and in the tests'
          fp32. In 16 bits a pass over several tokens rounds otherwise than one over one; where two tokens are
          equal but for that, greedy or by the draw, the other may be taken, and the answer is another one.
drawn     The drafter drew from q. The acceptance rule decides (`Speculator.verify`), and the answer is one
          of the same distribution. Which one depends on how many drafts a step has room for, and so on what
          else is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.decoding.history import num_equal
from llmcourse.decoding.params import SamplingParams

Proposed = tuple[Sequence[int], Tensor | None]


class Drafts(NamedTuple):
    """What is proposed for one request in one step; often nothing.

    Attributes:
        tokens: after the last one of its text.
        q: what each was drawn from, a row for each; None if they are certain.
    """

    tokens: tuple[int, ...] = ()
    q: Float[Tensor, "G V"] | None = None


@runtime_checkable
class Speculator(Protocol):
    """Drafts for one request, from its first step to its last."""

    def draft(self, text: Sequence[int], most: int) -> Proposed:
        """Proposes how a text goes on.

        What became of the last proposal is seen from the text. It may not have grown, as a step may be lost.

        Args:
            text: prompt and answer so far, not to be changed; the text of the last call with 0 or more tokens
                appended.
            most: tokens to propose, at least 1.

        Returns:
            At most so many token ids, and `(G, V)` what each was drawn from, or None if they are certain.
        """
        ...

    def verify(
        self,
        p: Float[Tensor, "T V"],  # T = G + 1
        q: Float[Tensor, "G V"],
        drafts: Sequence[int],
        uniform: Float[Tensor, " T"],
    ) -> list[int]:
        """The drafts that stand, and one token of the target's after them; only asked for where q is given.

        Args:
            p: the target's distributions before each draft and after the last, all settings applied.
            uniform: independent numbers in [0, 1), independent of those that the drafts were drawn with.
        """
        ...


@runtime_checkable
class Speculation(Protocol):
    """How a request wants to be drafted for: `Request(…, speculation=…)`.

    Attributes:
        vocab_size: of the drafts, which must be the model's.
        longest: drafts of one step, at most; the model's context must be longer.
    """

    vocab_size: int
    longest: int

    def begin(self, prompt: Sequence[int], max_tokens: int, params: SamplingParams, seed: int) -> Speculator:
        """For one request; what costs time waits for the first `draft`."""
        ...


def propose(speculator: Speculator, text: Sequence[int], most: int, vocab_size: int) -> Drafts:
    """At most so many drafts, checked.

    Raises:
        ValueError: more than asked for, a token outside the vocabulary, or a q of another shape.
        Exception: whatever the drafter raises.
    """
    tokens, q = speculator.draft(text, most)
    allowed = f"at most {most} tokens"
    require(len(tokens) <= most, "drafts", allowed, len(tokens), "propose no more than is asked for")
    for token in tokens:
        inside = isinstance(token, Integral) and 0 <= token < vocab_size
        remedy = "use a drafter with the target's own tokenizer"
        require(inside, "drafts", f"token ids in [0, {vocab_size - 1}]", token, remedy)
    if q is not None:
        shape = (len(tokens), vocab_size)
        require(
            tuple(q.shape) == shape, "q", f"of shape {shape}", tuple(q.shape), "give a row for each draft"
        )
    return Drafts(tuple(map(int, tokens)), q)


def standing(drawn: Sequence[int], drafts: Sequence[int]) -> list[int]:
    """What a text gains from certain drafts: the drawn tokens up to the first that was not drafted.

    Args:
        drawn: the target's own token at each draft, and after the last.
    """
    return list(drawn[: num_equal(drawn, drafts) + 1])


def check_emitted(emitted: Sequence[int], drafts: Sequence[int], vocab_size: int) -> None:
    """Raises ValueError unless a verdict is the first few drafts and one token more."""
    *stood, own = emitted or (None,)
    good = tuple(stood) == tuple(drafts[: len(stood)]) and isinstance(own, Integral) and 0 <= own < vocab_size
    allowed = "the first few drafts and one token of the vocabulary after them"
    require(good, "what verify returns", allowed, list(emitted), "use the acceptance rule")
