"""Speculation as an option of a request that is served: any drafter, for one of many texts that come and go.

    Request("a", prompt, speculation=Speculation(LookupDrafter(vocab_size), draft_length=4))

A server decides at each step how many drafts there is room for, loses steps, takes memory from a request and
computes its text again. So nothing is told to the drafter but the text: what became of its last proposal is
seen from how that goes on.

In exact arithmetic a greedy answer, and any answer with certain drafts, is token by token that of the same
request without speculation, and in fp32 tests hold it to that. But a pass over several tokens rounds
otherwise than one over one. In 16 bits two tokens are sometimes equal but for that, and such a tie may
fall the other way; from there on the answer is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require
from llmcourse.decoding.history import History, num_equal
from llmcourse.decoding.params import SamplingParams
from llmcourse.hardware.machine import present_device
from llmcourse.speculative.draft_length import DraftLength, Tally, as_policy, choose_gamma
from llmcourse.speculative.drafter import Drafter
from llmcourse.speculative.verify import verify_drafts

# Sets the chance of drafts apart from that of tokens and verdicts, which servers draw at the same positions.
DRAFTING = 1


@dataclass(frozen=True)
class Speculation:
    """Who drafts for a request, and how much (for `llmcourse.serving`, whose protocol this is).

    Each request takes memory beside the server's blocks, from its first draft to its end and also while it is
    preempted: 8 bytes a token for its text and, where a model drafts, a KV cache of 2 · layers · Hkv · D
    numbers a token; both for as many tokens as prompt, max_tokens and the longest draft have together.

    Attributes:
        drafter: each request works on a shallow copy of its own, so many may share it, and with it the model
            that it holds, if what its `start` makes is made anew.
        draft_length: γ, or a policy that chooses it for each step. It is clamped to the room that a step has.
        device: on which the drafter reads texts: that of its model.

    Raises:
        ValueError: γ below 1 or no integer, a device that is not here, or no drafter.
    """

    drafter: Drafter
    draft_length: int | DraftLength = 4
    device: torch.device | str = "cpu"

    def __post_init__(self):
        remedy = "wrap a model as ModelDrafter(model)"
        kind = type(self.drafter).__name__
        require(isinstance(self.drafter, Drafter), "drafter", "a Drafter", kind, remedy)
        object.__setattr__(self, "draft_length", as_policy(self.draft_length))
        object.__setattr__(self, "device", present_device(self.device))

    @property
    def vocab_size(self) -> int:
        """Of the drafts, which must be the target's."""
        return self.drafter.vocab_size

    @property
    def longest(self) -> int:
        """Drafts of one step, at most."""
        return self.draft_length.longest

    def begin(
        self, prompt: Sequence[int], max_tokens: int, params: SamplingParams, seed: int
    ) -> SpeculatedText:
        """For one request; the drafter reads the prompt when it is first asked."""
        return SpeculatedText(self, prompt, max_tokens, params, seed)


class SpeculatedText:
    """A drafter at work on one text.

    Args:
        option: drafter and draft length.
        prompt, max_tokens, params, seed: of the request. Drafts are drawn from the seed and the position.
    """

    def __init__(
        self,
        option: Speculation,
        prompt: Sequence[int],
        max_tokens: int,
        params: SamplingParams,
        seed: int,
    ):
        self._drafter, self._policy, self._device = copy(option.drafter), option.draft_length, option.device
        self._prompt, self._max_tokens, self._params, self._seed = prompt, max_tokens, params, seed
        self._processors = params.processors()
        self._tally = Tally()
        self._history: History | None = None  # of the text as far as it was last seen
        self._proposed: list[int] | None = None  # behind it, and not known to have stood or fallen

    def draft(self, text: Sequence[int], most: int) -> tuple[list[int], Tensor | None]:
        """At most so many tokens to follow a text, and `(G, V)`, what they were drawn from, or None.

        Raises:
            ValueError: a policy of one's own that asks for what cannot be.
        """
        if self._history is None:
            self._start()
        self._see(text)
        gamma = choose_gamma(self._policy, self._tally, most + 1)
        generator = None
        if not self._params.greedy:
            generator = torch.Generator().manual_seed(hash((self._seed, len(text), DRAFTING)))
        draft = self._drafter.draft(self._history, [gamma], self._processors, generator)
        count = int(draft.num_tokens[0])
        self._proposed = draft.tokens[0, :count].tolist()
        return self._proposed, None if draft.q is None else draft.q[0, :count]

    def verify(
        self,
        p: Float[Tensor, "T V"],  # T = G + 1
        q: Float[Tensor, "G V"],
        drafts: Sequence[int],
        uniform: Float[Tensor, " T"],
    ) -> list[int]:
        """The drafts that stand and the target's token after them.

        Raises:
            ValueError: as `verify_drafts`.
        """
        tokens = torch.tensor([list(drafts)], dtype=torch.long, device=p.device)
        verdict = verify_drafts(p[None], q[None], tokens, uniform[None].to(p.device))
        return verdict.emitted(tokens)[0]

    def _start(self) -> None:
        room = self._max_tokens + self._policy.longest
        self._drafter.start([self._prompt], len(self._prompt) + room)
        self._history = History.from_prompts([self._prompt], room, self._device)

    def _see(self, text: Sequence[int]) -> None:
        """Takes in how the text went on, and with it what became of the last proposal."""
        new = list(text[int(self._history.lengths[0]) :])
        if self._proposed is not None:
            stood = num_equal(new, self._proposed)
            self._drafter.accept([stood])
            # A step for each token where nothing was proposed; none where the step was lost.
            for _ in new[:1] if self._proposed else new:
                self._tally = self._policy.observe(self._tally, len(self._proposed), stood)
            self._proposed = None
        if new:
            self._history.extend(torch.tensor([new], device=self._device), [len(new)])
