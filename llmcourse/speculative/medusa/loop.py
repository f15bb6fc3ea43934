"""The Medusa loop: heads propose a tree, one pass of the backbone reads it, a path of it becomes text.

Each step: the heads read the hidden state that gave the text's last token, and fill a tree behind it; the
backbone reads that token and the tree in one pass; the verdict chooses a path and a token after it; the cache
keeps the path. (Cai et al. 2024, section 2.1.) Greedy, it writes what `decoding.generate` writes; sampled,
texts of the same distribution, unless typical acceptance is asked for, which changes it.

Rows of a batch accept different paths, and each draws from its own generator no more than it needs. One that
has ended rides along unused until the last is done.
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
from llmcourse.speculative.arguments import check_place
from llmcourse.speculative.drafter import Draft
from llmcourse.speculative.medusa.candidates import MedusaTree, require_tree
from llmcourse.speculative.medusa.drafting import drawn, ranked
from llmcourse.speculative.medusa.heads import MedusaHeads, check_fits
from llmcourse.speculative.medusa.judged import JudgedTree, judge_tree
from llmcourse.speculative.medusa.reading import TreeTarget, mask_of
from llmcourse.speculative.medusa.steps import MedusaStep
from llmcourse.speculative.medusa.typical import TypicalAcceptance
from llmcourse.speculative.numbers import uniform_by_row
from llmcourse.speculative.tree import chain
from llmcourse.tokenizer import Tokenizer

Stream = Generator[MedusaStep, None, list[Generation]]
Drafting = Literal["ranked", "drawn"]


def stream(
    model: Decoder,
    heads: MedusaHeads,
    prompts: Sequence[Sequence[int]],
    *,
    tree: MedusaTree,
    drafting: Drafting = "ranked",
    typical: TypicalAcceptance | None = None,
    tokenizer: Tokenizer | None = None,
    max_new_tokens: int = 64,
    processors: Sequence[Processor] = (),
    params: SamplingParams | None = None,
    generator: Randomness | None = None,
    eos_token_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
) -> Stream:
    """Decodes a batch, yielding a step for every pass of the backbone; it returns what `generate` returns.

    Arguments are checked at the call, before the first step is asked for. Those not named here are those of
    `decoding.stream`.

    Args:
        model: the backbone, whose text is written.
        heads: trained on it.
        tree: which of the heads' guesses are tried together.
        drafting: "ranked" takes each head's likeliest tokens; "drawn" draws them from the heads, where the
            text is sampled at all.
        typical: accept what is likely enough instead of what the target would have drawn: lossy. None for
            greedy matching where decoding is greedy, and lossless rejection sampling where it samples.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of range, heads that do not fit the backbone, or a tree that does not fit
            the heads.
        DecodingError: at the end, if a row failed. Broken logits fail a row alone.
    """
    check_fits(heads, model)
    check_place(heads, model)
    _check_tree(tree, heads, model)
    require(drafting in ("ranked", "drawn"), "drafting", "'ranked' or 'drawn'", repr(drafting), "choose one")
    if typical is not None and not isinstance(typical, TypicalAcceptance):
        raise TypeError(
            f"typical must be a TypicalAcceptance or None, got {type(typical).__name__}; make one"
        )
    target = TreeTarget(model)
    rows, eos = start_rows(target, prompts, tokenizer, max_new_tokens, eos_token_ids, stop)
    processors, generator = choice(params, processors, generator, len(prompts))
    batch = _Batch(target, heads, tree, drafting if generator is not None else "ranked", rows)
    return _run(batch, typical, processors, generator, eos)


def generate(
    model: Decoder,
    heads: MedusaHeads,
    prompts: Sequence[Sequence[int]],
    *,
    on_error: Literal["raise", "return"] = "raise",
    **settings,
) -> list[Generation]:
    """Decodes a batch to its end; the settings are those of `stream`, and `on_error` is that of decoding."""
    require_on_error(on_error)
    return run_to_end(stream(model, heads, prompts, **settings), on_error)


def _check_tree(tree: object, heads: MedusaHeads, model: Decoder) -> None:
    require_tree(tree)
    tree.check(heads.config)
    most = model.config.max_position_embeddings - 1
    remedy = "a step cannot bring more than a whole text"
    require(tree.depth <= most, "depth of the tree", f"below the context of {most + 1}", tree.depth, remedy)


def _run(
    batch: _Batch,
    typical: TypicalAcceptance | None,
    processors: Sequence[Processor],
    generator: Randomness | None,
    eos_token_ids: frozenset[int],
) -> Stream:
    for index in itertools.count():
        if not any(row.active for row in batch.rows):
            return finish(batch.rows)
        started = perf_counter()
        draft = batch.draft(index, processors, generator)
        drafted = perf_counter()
        raw = batch.read(index, draft)
        judged = judge_tree(raw, draft, batch.rows, index, batch.history, processors, generator, typical)
        verified = perf_counter()
        active = [row.active for row in batch.rows]
        if not any(active):
            continue
        tokens, texts = _push(batch.rows, judged, eos_token_ids)
        batch.settle(index, raw.shape[1], judged, tokens)
        yield MedusaStep(
            index=index,
            tree=batch.tree if index else None,
            drafts=judged.drafts,
            p_drafts=judged.p_drafts,
            paths=judged.paths,
            next_tokens=judged.next_tokens,
            tokens=tokens,
            texts=texts,
            active=active,
            draft_s=drafted - started,
            verify_s=verified - drafted,
            time_s=perf_counter() - started,
        )


class _Batch:
    """What cache, hidden states and history hold of the texts, kept in step with one another.

    Between steps the cache holds each row's text but for its last token, and `hidden` the state that gave
    that token.
    """

    def __init__(
        self, target: TreeTarget, heads: MedusaHeads, tree: MedusaTree, drafting: Drafting, rows: list[Row]
    ):
        self.target, self.heads, self.tree, self.drafting, self.rows = target, heads, tree, drafting, rows
        self.prompts = [row.prompt for row in rows]
        room = max(row.limit for row in rows)
        self.history = History.from_prompts(self.prompts, room, target.device)
        self.capacity = max(len(row.prompt) + row.limit for row in rows) + len(tree) + 1
        self.mask = mask_of(tree.tree, target.device)

    @torch.no_grad()
    def draft(self, index: int, processors: Sequence[Processor], generator: Randomness | None) -> Draft:
        """The tree's tokens for each row; nothing in the first step, or where the tree has no nodes."""
        if index == 0 or not len(self.tree):
            none = self.history.tokens[:, :0]
            return Draft(none, torch.zeros_like(self.history.lengths), None, chain(0))
        logits = self.heads.logits(self.target.model, self.hidden, self.tree.depth)
        if self.drafting == "ranked":
            return ranked(self.tree, logits)
        size = len(self.tree)
        counts = [size if row.active else 0 for row in self.rows]
        points = uniform_by_row(generator, counts, size)
        return drawn(self.tree, logits, self.history, processors, points)

    @torch.no_grad()
    def read(self, index: int, draft: Draft) -> Float[Tensor, "B T V"]:
        """The target's logits after each text and each of its nodes."""
        if index == 0:
            self.read_states = self.target.start_hidden(self.prompts, self.capacity)[:, None]
        else:
            last = self.history.tokens.gather(1, self.history.lengths[:, None] - 1)
            tokens = torch.cat((last, draft.tokens), 1)
            self.read_states = self.target.read_tree(tokens, self.mask)
        return self.target.model.lm_head(self.read_states)

    def settle(self, index: int, width: int, judged: JudgedTree, tokens: list[list[int]]) -> None:
        """Appends what was gained; the cache keeps the paths, and the heads' next states are chosen.

        Of a row that has ended, maybe in the middle of its path, it keeps nothing more: there is no room.
        """
        gained = [len(new) for new in tokens]
        padded = [[*new, *[0] * (max(gained) - len(new))] for new in tokens]
        self.history.extend(torch.tensor(padded, device=self.target.device), gained)
        if index > 0:
            paths = zip(judged.paths, self.rows, strict=True)
            self.target.keep(width, [path if row.active else None for path, row in paths])
        ends = torch.tensor([path[-1] + 1 if path else 0 for path in judged.paths], device=self.target.device)
        self.hidden = self.read_states[torch.arange(len(ends), device=ends.device), ends]


def _push(
    rows: list[Row], judged: JudgedTree, eos_token_ids: frozenset[int]
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
