"""The speculative loop: draft, verify in one pass, keep what stands and a token of the target's own, repeat.

It writes what `decoding.generate` writes: greedy, the same tokens; sampled, texts of the same distribution,
though not the same ones from a seed, as chance is spent in another way. (Leviathan et al. 2023, algorithm 1;
Chen et al. 2023, algorithm 2.)

Rows of a batch accept different numbers of drafts, and each draws from its own generator no more than it
needs, so that no row depends on the others. One that has ended rides along unused until the last is done.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from time import perf_counter
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.decoding.errors import require, require_on_error
from llmcourse.decoding.history import History
from llmcourse.decoding.loop import choice, finish, run_to_end, start_rows
from llmcourse.decoding.params import SamplingParams
from llmcourse.decoding.processors import Processor
from llmcourse.decoding.rows import Generation, Row
from llmcourse.decoding.sampling import Randomness
from llmcourse.model import Decoder
from llmcourse.speculative.draft_length import DraftLength, Tally, as_policy, choose_gamma
from llmcourse.speculative.drafter import Draft, Drafter
from llmcourse.speculative.judged import Judged, checked, judge
from llmcourse.speculative.steps import SpeculativeStep
from llmcourse.speculative.target import Target, as_target
from llmcourse.speculative.vocabulary import check_sizes, check_tokens
from llmcourse.tokenizer import Tokenizer

Stream = Generator[SpeculativeStep, None, list[Generation]]


def stream(
    target: Decoder | Target,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: Drafter,
    draft_length: int | DraftLength = 4,
    tokenizer: Tokenizer | None = None,
    max_new_tokens: int = 64,
    processors: Sequence[Processor] = (),
    params: SamplingParams | None = None,
    generator: Randomness | None = None,
    eos_token_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
) -> Stream:
    """Decodes a batch, yielding a step for every pass of the target; it returns what `generate` returns.

    Arguments are checked at the call, before the first step is asked for. Those not named here are those of
    `decoding.stream`.

    Args:
        target: the model whose text is written, or another target. It serves one stream at a time, as does
            the drafter.
        drafter: proposes tokens of the same vocabulary. If it has a tokenizer and one is given, all their
            tokens are compared.
        draft_length: γ, or a policy that chooses it for each row and step. Near the end of a row it is
            clamped to what the row may still gain, less the one token that the target adds.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of range, vocabularies that differ, drafts as long as the context.
        DecodingError: at the end, if a row failed. Broken logits, and drafts or distributions of a drafter
            that cannot be, fail a row alone.
    """
    target = as_target(target)
    rows, eos = start_rows(target, prompts, tokenizer, max_new_tokens, eos_token_ids, stop)
    processors, generator = choice(params, processors, generator, len(prompts))
    policy = _as_policy(draft_length, target.max_length)
    _check_drafter(drafter, target, tokenizer)
    return _run(_Batch(target, drafter, policy, rows), processors, generator, eos)


def generate(
    target: Decoder | Target,
    prompts: Sequence[Sequence[int]],
    *,
    on_error: Literal["raise", "return"] = "raise",
    **settings,
) -> list[Generation]:
    """Decodes a batch to its end; the settings are those of `stream`, and `on_error` is that of decoding."""
    require_on_error(on_error)
    return run_to_end(stream(target, prompts, **settings), on_error)


def _as_policy(draft_length: int | DraftLength, context: int) -> DraftLength:
    policy = as_policy(draft_length)
    remedy = "a step cannot bring more than a whole text"
    require(
        policy.longest < context, "draft_length", f"below the context of {context}", policy.longest, remedy
    )
    return policy


def _check_drafter(drafter: object, target: Target, tokenizer: Tokenizer | None) -> None:
    if not isinstance(drafter, Drafter):
        raise TypeError(
            f"drafter must be a Drafter, got {type(drafter).__name__}; wrap a model as ModelDrafter(model)"
        )
    check_sizes(target.vocab_size, drafter.vocab_size)
    theirs = getattr(drafter, "tokenizer", None)
    if tokenizer is not None and theirs is not None and theirs is not tokenizer:
        check_tokens(tokenizer, theirs)


def _run(
    batch: _Batch,
    processors: Sequence[Processor],
    generator: Randomness | None,
    eos_token_ids: frozenset[int],
) -> Stream:
    for index in itertools.count():
        if not any(row.active for row in batch.rows):
            return finish(batch.rows)
        started = perf_counter()
        draft, counts = batch.draft(index, processors, generator)
        drafted = perf_counter()
        raw = batch.read(index, draft)
        judged = judge(raw, draft, counts, batch.rows, index, batch.history, processors, generator)
        verified = perf_counter()
        active = [row.active for row in batch.rows]
        if not any(active):
            continue
        tokens, texts = _push(batch.rows, judged, eos_token_ids)
        batch.settle(index, raw.shape[1], judged, tokens)
        yield SpeculativeStep(
            index=index,
            drafts=judged.drafts,
            p_drafts=judged.p_drafts,
            q_drafts=judged.q_drafts,
            num_accepted=judged.num_accepted,
            next_tokens=judged.next_tokens,
            tokens=tokens,
            texts=texts,
            active=active,
            p=judged.p,
            q=judged.q,
            draft_s=drafted - started,
            verify_s=verified - drafted,
            time_s=perf_counter() - started,
        )


class _Batch:
    """What target, drafter and history hold of the texts, kept in step with one another.

    Between steps both models have read each row's text but for its last token (the drafter may lag behind).
    """

    def __init__(self, target: Target, drafter: Drafter, policy: DraftLength, rows: list[Row]):
        self.target, self.drafter, self.policy, self.rows = target, drafter, policy, rows
        self.prompts = [row.prompt for row in rows]
        room = max(row.limit for row in rows)
        self.history = History.from_prompts(self.prompts, room, target.device)
        self.capacity = max(len(row.prompt) + row.limit for row in rows) + policy.longest
        self.tallies = [Tally()] * len(rows)

    def draft(
        self, index: int, processors: Sequence[Processor], generator: Randomness | None
    ) -> tuple[Draft, list[int]]:
        """What is proposed, and how many for each row; nothing in the first step."""
        asked = [0] * len(self.rows)
        if index == 0:
            self.drafter.start(self.prompts, self.capacity)
            draft = Draft(self.history.tokens[:, :0], torch.zeros_like(self.history.lengths))
        else:
            for number, row in enumerate(self.rows):
                if row.active:
                    room = row.limit - len(row.tokens)
                    asked[number] = choose_gamma(self.policy, self.tallies[number], room)
            draft = self.drafter.draft(self.history, asked, processors, generator)
        return checked(draft, asked, self.target.vocab_size, self.rows, index)

    def read(self, index: int, draft: Draft) -> Float[Tensor, "B T V"]:
        """The target's logits after each text and each of its drafts."""
        if index == 0:
            return self.target.start(self.prompts, self.capacity)[:, None]
        last = self.history.tokens.gather(1, self.history.lengths[:, None] - 1)
        return self.target.read(torch.cat((last, draft.tokens), 1))

    def settle(self, index: int, width: int, judged: Judged, tokens: list[list[int]]) -> None:
        """Appends what was gained, and has both models forget what is not the text."""
        gained = [len(new) for new in tokens]
        padded = [[*new, *[0] * (max(gained) - len(new))] for new in tokens]
        self.history.extend(torch.tensor(padded, device=self.target.device), gained)
        for number, (drafts, stood) in enumerate(zip(judged.drafts, judged.num_accepted, strict=True)):
            if gained[number]:
                self.tallies[number] = self.policy.observe(self.tallies[number], len(drafts), stood)
        if any(width != count for count in gained):
            self.target.rollback([width - count for count in gained])
        if index > 0:
            self.drafter.accept([max(0, count - 1) for count in gained])


def _push(
    rows: list[Row], judged: Judged, eos_token_ids: frozenset[int]
) -> tuple[list[list[int]], list[str]]:
    """Hands each active row its tokens until it ends; what it took, and the text that became certain."""
    tokens: list[list[int]] = [[] for _ in rows]
    texts = ["" for _ in rows]
    for number, row in enumerate(rows):
        for token, log_prob in judged.emitted(number):
            if not row.active:
                break
            texts[number] += row.push(token, log_prob, eos_token_ids)
            tokens[number].append(token)
    return tokens, texts
