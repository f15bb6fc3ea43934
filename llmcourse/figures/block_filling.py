"""One text under every setting of the dial from autoregressive to non-autoregressive, pass by pass.

Block sizes go in powers of two from 1 to the whole length, and so do the passes over a block. All of them are
written ahead, so that a slider need not wait: for a text of 32 tokens 21 settings, some 320 forward passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from llmcourse.blockwise import BlockDecoder, BlockPass, Refinement, stream
from llmcourse.decoding.errors import require, require_integer
from llmcourse.decoding.metrics import distinct_n
from llmcourse.decoding.reread import reread
from llmcourse.figures.speculation_trace import added_words
from llmcourse.progress import bar
from llmcourse.tokenizer import Tokenizer

MOST_PASSES = 1000  # of the backbone, for one text under all settings: seconds, not minutes
Dial = tuple[int, int]  # block size, and passes over a block


@dataclass(frozen=True)
class TextState:
    """The new text after a pass.

    Attributes:
        tokens: None where a place is open.
        confidence: of each token when it was chosen, in [0, 1]; None where a place is open.
        new: the places that this pass wrote.
        block: number of the block that it worked on, from 0.
        number: of the pass over this block, from 1.
    """

    tokens: tuple[int | None, ...]
    confidence: tuple[float | None, ...]
    new: tuple[int, ...]
    block: int
    number: int


@dataclass(frozen=True)
class Filling:
    """A text that was written with one setting of the dial.

    Attributes:
        block_size, passes: the setting.
        states: after each pass.
        nats_per_token: mean −ln p of the text under the backbone, each token given all before it.
    """

    block_size: int
    passes: int
    states: tuple[TextState, ...]
    nats_per_token: float

    @property
    def length(self) -> int:
        """New tokens."""
        return len(self.states[0].tokens)

    @property
    def tokens_per_pass(self) -> float:
        return self.length / len(self.states)

    @property
    def distinct_2(self) -> float:
        """Share of different pairs of tokens in the text: where it is low, so may the loss be."""
        return distinct_n([self.states[-1].tokens], 2)

    @property
    def kind(self) -> str:
        """Which part of the dial it stands on."""
        if self.block_size == 1:
            return "autoregressive"
        return "non-autoregressive" if self.block_size == self.length else "semi-autoregressive"

    def check(self, at: int) -> TextState:
        """The state after a pass, counted from 1.

        Raises:
            ValueError: there is no such pass.
        """
        count = len(self.states)
        if not 1 <= at <= count:
            raise ValueError(f"at must be in [1, {count}], got {at}; {count} is the last pass")
        return self.states[at - 1]


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, … below a number, and the number itself."""
    return (*(2**power for power in range((most - 1).bit_length())), most)


def all_dials(length: int) -> tuple[Dial, ...]:
    """The settings for a text of so many tokens.

    Raises:
        ValueError: no integer of at least 2, or more passes in all than `MOST_PASSES`.
    """
    require_integer(2, "max_new_tokens", length, "one token alone has no dial; use 32")
    require(length <= MOST_PASSES, "max_new_tokens", f"at most {MOST_PASSES}", length, "use 32")
    dials = tuple((size, passes) for size in powers_of_two(length) for passes in powers_of_two(size))
    cost = sum(num_passes(length, *dial) for dial in dials)
    allowed = f"such that all {len(dials)} settings take at most {MOST_PASSES:,} forward passes"
    require(cost <= MOST_PASSES, "max_new_tokens", allowed, f"{length}, which takes {cost:,}", "use 32")
    return dials


def num_passes(length: int, block_size: int, passes: int) -> int:
    """Forward passes of the backbone for a text: a shorter last block takes at most one a token."""
    whole, rest = divmod(length, block_size)
    return whole * min(passes, block_size) + min(passes, rest)


def fill(
    model: BlockDecoder,
    prompt: Sequence[int],
    dial: Dial,
    *,
    max_new_tokens: int = 32,
    refinement: Refinement = "unmask",
) -> Filling:
    """Writes a text, greedily, with one setting.

    No token ends it: the far end of the dial has written a place before it knows of an end, and texts of one
    length can be compared.

    Args:
        prompt: its tokens.

    Raises:
        ValueError: as `blockwise.stream`.
        DecodingError: broken logits.
    """
    block_size, passes = dial
    dials = {"block_size": block_size, "passes": passes, "refinement": refinement}
    run = stream(model, [prompt], **dials, max_new_tokens=max_new_tokens, eos_token_ids=())
    state = TextState((None,) * max_new_tokens, (None,) * max_new_tokens, (), 0, 0)
    states: list[TextState] = []
    while True:
        try:
            state = _after(state, next(run))
        except StopIteration as end:
            (generation,) = end.value
            break
        states.append(state)
    read = reread(model.backbone, [generation.prompt], [generation.tokens])
    return Filling(block_size, passes, tuple(states), -read.log_probability)


def fill_all(
    model: BlockDecoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 32,
    refinement: Refinement = "unmask",
    progress: bool = False,
) -> dict[Dial, Filling]:
    """Writes a text with every setting, with a bar if asked; else as `fill` and `all_dials`."""
    limits = {"max_new_tokens": max_new_tokens, "refinement": refinement}
    dials = bar(all_dials(max_new_tokens), "writing", unit="setting", shown=progress)
    return {dial: fill(model, prompt, dial, **limits) for dial in dials}


def _after(state: TextState, step: BlockPass) -> TextState:
    """The whole text after a pass over one of its blocks."""
    before, after = step.start, step.start + len(step.tokens[0])
    tokens = (*state.tokens[:before], *step.tokens[0], *state.tokens[after:])
    confidence = (*state.confidence[:before], *step.confidence[0], *state.confidence[after:])
    # A place that was settled, forgotten and guessed again counts as new where its token changed
    pairs = enumerate(zip(state.tokens, tokens, strict=True))
    new = tuple(place for place, (old, token) in pairs if token is not None and token != old)
    return TextState(tokens, confidence, new, step.block, step.number)


def words_of(state: TextState, prompt: Sequence[int], tokenizer: Tokenizer) -> tuple[str | None, ...]:
    """What each place adds to the text, None where it is open.

    A token that leaves a character unfinished adds nothing where the tokens behind it complete it; where a
    place behind it is open still, it shows as bytes.
    """
    words: list[str | None] = [None] * len(state.tokens)
    at = 0
    for known, run in itertools.groupby(state.tokens, lambda token: token is not None):
        tokens = list(run)
        if known:
            words[at : at + len(tokens)] = _words(tokens, prompt, tokenizer)
        at += len(tokens)
    return tuple(words)


def _words(tokens: Sequence[int], prompt: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    shown, waiting = [], 0  # tokens at the end that have added nothing
    for word in added_words(prompt, tokens, tokenizer.decode, tokenizer.label):
        shown.append(word.label if word.special else word.text)
        waiting = 0 if shown[-1] else waiting + 1
    for place in range(len(shown) - waiting, len(shown)):
        shown[place] = tokenizer.label(tokens[place])
    return shown
