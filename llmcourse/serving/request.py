"""One request: what is asked for, which never changes, and how far it has come, which does at every step.

There are no two kinds of work: a request has tokens, of which the first `num_computed` have their keys
and values in the cache. Prefill is a step that computes many of the pending tokens, decoding one that
computes a single one; whoever reaches the last token samples the next.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.decoding.params import SamplingParams
from llmcourse.serving.speculation import Speculation, Speculator

PENDING = -1  # in place of a token that a step in flight samples; no token has this id
GREEDY = SamplingParams(temperature=0.0)
# Preempted, it waits again; "ending" while the step in flight samples the last token it may have; "verifying"
# while the one in flight tells a request with drafts how far it has come.
Status = Literal["waiting", "running", "ending", "verifying", "finished"]
FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Request:
    """What somebody asks for.

    Attributes:
        id: its name, by which it is answered and cancelled; no other unfinished request has it.
        prompt: token ids, at least one; kept as a tuple.
        max_tokens: of the answer, at least 1.
        params: how a token is chosen from its distribution; greedy if not given.
        seed: of its draws. A runner draws the token at position n from the seed and n alone, so that an
            answer does not depend on what else is in the batch, or on being computed twice.
        stop_token_ids: tokens that end the answer; the one that does belongs to it. Kept as a frozenset.
        priority: an integer of at least 0; 0 goes first.
        arrival_s: when it came, in seconds on any clock.
        speculation: who drafts for it, so that a step may bring several tokens; nobody if None. In
            `llmcourse.speculative`, `Speculation` makes one of any drafter. What that holds for the request,
            such as a KV cache of its own, is memory beside the blocks, from the first draft to the end. In
            16 bits the answer may differ where two tokens are as good as equal, see `speculation`.

    Raises:
        ValueError: a value out of its range, when made.
    """

    id: str
    prompt: Sequence[int]
    max_tokens: int = 16
    params: SamplingParams = GREEDY
    seed: int = 0
    stop_token_ids: Collection[int] = frozenset()
    priority: int = 0
    arrival_s: float = 0.0
    speculation: Speculation | None = None

    def __post_init__(self):
        is_name = isinstance(self.id, str) and bool(self.id)
        require(is_name, "id", "a text that is not empty", repr(self.id), 'take "0", "1", …')
        object.__setattr__(self, "prompt", tuple(_tokens("prompt", self.prompt)))
        object.__setattr__(self, "stop_token_ids", frozenset(_tokens("stop_token_ids", self.stop_token_ids)))
        require(len(self.prompt) > 0, "prompt", "at least one token", "none", "begin with the start token")
        is_params = isinstance(self.params, SamplingParams)
        require(is_params, "params", "SamplingParams", repr(self.params), "leave it out for greedy search")
        drafts = self.speculation is None or isinstance(self.speculation, Speculation)
        remedy = "wrap a drafter in llmcourse.speculative.Speculation, or leave it out"
        require(drafts, "speculation", "a Speculation or None", repr(self.speculation), remedy)
        require_integer(1, "max_tokens", self.max_tokens, "use 1 for a single token")
        require_integer(0, "seed", self.seed, "use 0")
        require_integer(0, "priority", self.priority, "use 0 for the most urgent")
        when = "at least 0 and finite"
        require_number(lambda s: 0 <= s < math.inf, "arrival_s", when, self.arrival_s, "use 0 for the start")

    @property
    def max_length(self) -> int:
        """Tokens whose keys and values must be held at the end: those of the very last one never are."""
        return len(self.prompt) + self.max_tokens - 1


def _tokens(name: str, tokens: object) -> Iterable[int]:
    """The ids, if that is what they are."""
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise ValueError(f"{name} must be token ids, got {tokens!r}; encode the text with a tokenizer")
    tokens = list(tokens)
    if set(map(type, tokens)) == {int} and min(tokens) >= 0:
        return tokens  # as nearly always: thousands are looked at in less than a millisecond
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
            raise ValueError(f"{name} must hold integers of at least 0, got {token!r}; pass token ids")
    return map(int, tokens)


@dataclass(eq=False, slots=True)
class RequestState:
    """How far a request has come; only the scheduler changes it, a runner reads it.

    Attributes:
        request, id: what was asked for, and its name.
        rank: its place in line, the smallest first (`urgency.rank`).
        tokens: the prompt and what has been generated; `PENDING` at the end for what steps in flight sample.
        max_length: of its request.
        num_computed: of the tokens, those whose keys and values are in the blocks, or will be when the
            steps in flight are done.
        blocks: its block table: token i lies in slot i mod block_size of blocks[i // block_size].
        slot: its row in the batch while it runs or is ending, None otherwise.
        num_reused: tokens that the last admission found in the cache of prefixes.
        num_preemptions: how often its blocks were taken from it.
        speculator: who drafts for it, if anybody does; None once it is finished.
        asks_from: where steps overlap, the length of the text that is waited for to ask for drafts again.
        pause: tokens from one question to the next: 1 after drafts, more the longer there have been none.
        num_drafted, num_accepted: drafts that were computed for it, and those that are part of its answer.
        error: why it failed, where finish_reason is "error".
    """

    request: Request
    rank: tuple[int, int]
    id: str = field(init=False)
    tokens: list[int] = field(init=False)
    num_prompt: int = field(init=False)
    max_length: int = field(init=False)
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int | None = None
    status: Status = "waiting"
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    num_reused: int = 0
    num_preemptions: int = 0
    speculator: Speculator | None = field(init=False, default=None)
    asks_from: int = 0
    pause: int = 1
    num_drafted: int = 0
    num_accepted: int = 0

    def __post_init__(self):
        self.id = self.request.id
        self.tokens = list(self.request.prompt)
        self.num_prompt = len(self.tokens)
        self.max_length = self.request.max_length
        if (asked := self.request.speculation) is not None:
            wanted = self.request
            self.speculator = asked.begin(wanted.prompt, wanted.max_tokens, wanted.params, wanted.seed)

    @property
    def num_known(self) -> int:
        """Tokens without those that are still `PENDING`."""
        count = len(self.tokens)
        while self.tokens[count - 1] == PENDING:
            count -= 1
        return count

    @property
    def generated(self) -> list[int]:
        """The answer so far."""
        return self.tokens[self.num_prompt : self.num_known]

    @property
    def num_generated(self) -> int:
        return self.num_known - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that are still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.num_computed
