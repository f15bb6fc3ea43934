"""Block decoding: one loop from autoregressive to non-autoregressive, with passes as a second dial.

    for each block of n tokens:   for pass 1 … T:   guess every open place at once, settle the surest

Blocks follow each other in order, tokens inside one are guessed at once: semi-autoregressive (Wang et al.
2018). With blocks of one it is autoregressive decoding of the backbone, token for token and draw for draw;
the whole text as one block is non-autoregressive (Gu et al. 2018). Each token costs T / n passes.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmcourse.blockwise.adapters import BlockDecoder
from llmcourse.blockwise.refinement import Refinement, most_confident, require_refinement, settled_after
from llmcourse.blockwise.source import BlockSource, CachedBlocks
from llmcourse.decoding.errors import require, require_number, require_on_error
from llmcourse.decoding.loop import fail_broken_rows, finish, run_to_end, start_rows
from llmcourse.decoding.processors import widen
from llmcourse.decoding.rows import Generation, Row
from llmcourse.decoding.sampling import Randomness, check_generator, greedy, sample
from llmcourse.decoding.source import CachedLogits
from llmcourse.tokenizer import Tokenizer


@dataclass(frozen=True)
class BlockPass:
    """What one forward pass did to the block being written.

    Attributes:
        index: of the pass in the whole run, from 0.
        block: number of the block, from 0.
        number: of the pass over this block, from 1.
        start: new tokens of each row before this block.
        tokens: the block of each row after the pass, None where a place is open.
        changed: the places of each row that this pass wrote or forgot.
        confidence: the probability of the guess that stands at each place, None where it is open.
        texts: the text that became certain; only the last pass over a block brings any.
        active: the rows that had not ended before this block.
        time_s: of the pass, without what the reader of the stream did in between.
    """

    index: int
    block: int
    number: int
    start: int
    tokens: list[list[int | None]]
    changed: list[list[int]]
    confidence: list[list[float | None]]
    texts: list[str]
    active: list[bool]
    time_s: float


Stream = Generator[BlockPass, None, list[Generation]]


def stream(
    model: BlockDecoder | BlockSource,
    prompts: Sequence[Sequence[int]],
    *,
    block_size: int,
    passes: int = 1,
    refinement: Refinement = "unmask",
    tokenizer: Tokenizer | None = None,
    max_new_tokens: int = 64,
    temperature: int | float = 0,
    generator: Randomness | None = None,
    eos_token_ids: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
) -> Stream:
    """Decodes a batch, yielding a `BlockPass` for every forward pass; it returns what `generate` returns.

    Arguments are checked at the call, before memory is allocated. Those not named here are those of
    `decoding.stream`.

    Args:
        model: backbone and adapters, or a source over them. A source serves one stream at a time.
        block_size: n in [1, max_new_tokens]; the last block is what is left.
        passes: T in [1, block_size]; a shorter last block gets at most one a token.
        max_new_tokens: every prompt must leave room for so many.
        temperature: at least 0; 0 is greedy, and takes no generator.
        generator: draws every guess, one for the batch or one a row.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of range, a prompt that leaves too little room, or a temperature above 0
            without a generator.
        DecodingError: at the end, if a row failed; broken logits fail a row alone.
    """
    source = CachedBlocks(model) if isinstance(model, BlockDecoder) else model
    if not isinstance(source, BlockSource):
        raise TypeError(
            f"model must be a BlockDecoder, got {type(model).__name__}; "
            "load adapters onto a model with load_adapters(folder, model)"
        )
    backbone = CachedLogits(source.model.backbone)
    rows, eos = start_rows(backbone, prompts, tokenizer, max_new_tokens, eos_token_ids, stop)
    _check_room(prompts, max_new_tokens, backbone.max_length)
    _check_dials(block_size, passes, max_new_tokens)
    require_refinement(refinement)
    choose = _Choice(temperature, generator, len(prompts))
    return _run(source, rows, _Dials(block_size, passes, refinement), choose, eos)


def generate(
    model: BlockDecoder | BlockSource,
    prompts: Sequence[Sequence[int]],
    *,
    on_error: Literal["raise", "return"] = "raise",
    **settings,
) -> list[Generation]:
    """Decodes a batch to its end; the settings are those of `stream`, and `on_error` is that of decoding."""
    require_on_error(on_error)
    return run_to_end(stream(model, prompts, **settings), on_error)


def _check_room(prompts: Sequence[Sequence[int]], max_new_tokens: int, context: int) -> None:
    """A block is written as a whole: one that ends beyond the context would be written for nothing."""
    most = context - max_new_tokens
    remedy = f"keep only its last part, or ask for fewer than {max_new_tokens} new tokens"
    for index, prompt in enumerate(prompts):
        allowed = f"at most {most} tokens long, the context of {context} less max_new_tokens"
        require(len(prompt) <= most, f"prompts[{index}]", allowed, len(prompt), remedy)


def _check_dials(block_size: int, passes: int, max_new_tokens: int) -> None:
    whole = "use 1 for autoregressive decoding, max_new_tokens for the whole text at once"
    span = f"an integer in [1, max_new_tokens = {max_new_tokens}]"
    require_number(lambda n: 1 <= n <= max_new_tokens, "block_size", span, block_size, whole, kind=int)
    some = "use 1 to settle a block at once, block_size to settle its tokens one by one"
    span = f"an integer in [1, block_size = {block_size}]"
    require_number(lambda n: 1 <= n <= block_size, "passes", span, passes, some, kind=int)


@dataclass(frozen=True)
class _Dials:
    block_size: int
    passes: int
    refinement: Refinement


class _Choice:
    """A token for every place of a block, and how probable it was."""

    def __init__(self, temperature: int | float, generator: Randomness | None, num_rows: int):
        allowed, remedy = "at least 0 and finite", "use 0 for greedy decoding"
        require_number(lambda t: 0 <= t < math.inf, "temperature", allowed, temperature, remedy)
        if temperature:
            remedy = "pass torch.Generator().manual_seed(0), or temperature=0"
            require(generator is not None, "generator", "given where temperature is above 0", None, remedy)
            check_generator(generator, num_rows)
        self.temperature, self.generator = temperature, generator

    def logits(self, raw: Float[Tensor, "B n V"]) -> Float[Tensor, "B n V"]:
        return widen(raw) / self.temperature if self.temperature else widen(raw)

    def __call__(self, logits: Float[Tensor, "B n V"]) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n"]]:
        """Tokens, and their log-probabilities in nats; places are drawn from left to right."""
        if self.temperature:
            tokens = torch.stack([sample(place, self.generator) for place in logits.unbind(1)], 1)
        else:
            tokens = greedy(logits)
        return tokens, logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


class _Block:
    """A block in the making: guesses, which of them stand, and how probable they were."""

    def __init__(self, masks: Int[Tensor, "B n"]):
        self.masks = masks
        self.tokens = torch.zeros_like(masks)
        self.log_probs = torch.full(masks.shape, -math.inf, device=masks.device)
        self.settled = torch.zeros_like(masks, dtype=torch.bool)

    def input(self) -> Int[Tensor, "B n"]:
        return torch.where(self.settled, self.tokens, self.masks)

    def guess(self, tokens: Tensor, log_probs: Tensor) -> None:
        """Takes new guesses where places are open."""
        self.tokens = torch.where(self.settled, self.tokens, tokens)
        self.log_probs = torch.where(self.settled, self.log_probs.to(log_probs.dtype), log_probs)

    def settle(self, number: int, passes: int, refinement: Refinement) -> None:
        """Which guesses stand after pass `number`: to be seen by the next one, or for good."""
        count = settled_after(self.masks.shape[1], number, passes)
        before = self.settled if refinement == "unmask" else torch.zeros_like(self.settled)
        self.settled = most_confident(self.log_probs, before, count)

    def shown(self, before: Bool[Tensor, "B n"]) -> tuple[list[list], list[list[int]], list[list]]:
        """Tokens, changed places and confidence as `BlockPass` has them."""
        settled, changed = self.settled.tolist(), (self.settled != before).tolist()
        kept = [
            [
                [value if stands else None for value, stands in zip(*row, strict=True)]
                for row in zip(values.tolist(), settled, strict=True)
            ]
            for values in (self.tokens, self.log_probs.exp())
        ]
        return kept[0], [[place for place, new in enumerate(row) if new] for row in changed], kept[1]


def _run(
    source: BlockSource, rows: list[Row], dials: _Dials, choose: _Choice, eos_token_ids: frozenset[int]
) -> Stream:
    prompts, total = [row.prompt for row in rows], rows[0].limit
    source.start(prompts, max(map(len, prompts)) + total)
    index = 0
    for number, start in enumerate(range(0, total, dials.block_size)):
        size = min(dials.block_size, total - start)
        block = _Block(source.model.mask_ids(size).expand(len(rows), -1))
        active, passes = [row.active for row in rows], min(dials.passes, size)
        for turn in range(1, passes + 1):
            started, before = perf_counter(), block.settled
            logits = choose.logits(source.read(block.input()))
            peaks = logits.amax(1)  # NaN and +inf show in any place, -inf only where no place has more
            fail_broken_rows(rows, peaks, peaks, index)
            if not any(row.active for row in rows):
                return finish(rows)
            block.guess(*choose(logits))
            block.settle(turn, passes, dials.refinement)
            texts = _push(rows, block, eos_token_ids) if turn == passes else [""] * len(rows)
            time_s = perf_counter() - started
            yield BlockPass(index, number, turn, start, *block.shown(before), texts, active, time_s)
            index += 1
        if not any(row.active for row in rows):
            break
        source.finish(block.tokens)
    return finish(rows)


def _push(rows: list[Row], block: _Block, eos_token_ids: frozenset[int]) -> list[str]:
    """Hands each active row its block, as far as it goes; the text that became certain."""
    texts = ["" for _ in rows]
    for number, pairs in enumerate(zip(block.tokens.tolist(), block.log_probs.tolist(), strict=True)):
        for token, log_prob in zip(*pairs, strict=True):
            if not rows[number].active:
                break
            texts[number] += rows[number].push(token, log_prob, eos_token_ids)
    return texts
