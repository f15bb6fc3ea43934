"""A target with a cache and a drafter, both of random parts, and numbers that let so many drafts stand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.grading.exercises.inputs import LONGEST_TEXT
from llmcourse.grading.exercises.speculative import drawn


@dataclass(frozen=True)
class Shares:
    """What a language model gives each token after a text, in parts of 64; the same text gives the same."""

    seed: int
    vocab: int

    def __call__(self, text: Sequence[int]) -> tuple[int, ...]:
        return _shares(self, tuple(text))

    def check(self, tokens: object, what: str) -> None:
        """Refuses what is no text.

        Raises:
            TypeError: not a list of ints.
            ValueError: an empty text, one that is far too long, or an id outside the vocabulary.
        """
        if type(tokens) not in (list, tuple) or any(type(token) is not int for token in tokens):
            raise TypeError(f"{what} must be given a list of token ids, each an int")
        if not 1 <= len(tokens) <= LONGEST_TEXT:
            raise ValueError(f"{what} must be given 1 to {LONGEST_TEXT} token ids, got {len(tokens)}")
        if not all(0 <= token < self.vocab for token in tokens):
            raise ValueError(f"{what} must be given token ids in [0, {self.vocab}), got {tokens[:10]}")


@lru_cache(maxsize=4096)
def _shares(model: Shares, text: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(drawn.shares(random.Random(f"{model.seed} {text}"), model.vocab))


@dataclass(frozen=True)
class Drafter:
    """Proposes tokens that the target doubts: each may stand, and may fall."""

    target: Shares

    def __call__(self, text: object, gamma: object) -> tuple[list[int], Float[Tensor, "G V"]]:
        """So many drafts after a text, and what each was drawn from.

        Raises:
            TypeError, ValueError: as `Shares.check`; or a number of drafts that is no positive int.
        """
        self.target.check(text, "draft")
        if type(gamma) is not int or not 1 <= gamma <= LONGEST_TEXT:
            raise ValueError(f"draft must be asked for 1 to {LONGEST_TEXT} tokens, got {gamma!r}")
        drafts, parts = self.proposed(tuple(text), gamma)
        return drafts, drawn.distributions(parts)

    def proposed(self, text: tuple[int, ...], gamma: int) -> tuple[list[int], list[list[int]]]:
        """The same with q in parts."""
        drafts, parts = [], []
        for _ in range(gamma):
            q, draft = _doubted(self.target, (*text, *drafts))
            drafts.append(draft)
            parts.append(q)
        return drafts, parts


@lru_cache(maxsize=4096)
def _doubted(target: Shares, text: tuple[int, ...]) -> tuple[list[int], int]:
    return drawn.doubted(random.Random(f"{target.seed} q {text}"), target(text))


@dataclass(frozen=True)
class CachedTarget:
    """Reads on from a cache, which is the tokens that it has read.

    Args:
        most: tokens that it reads at once, but for the first time.
        prompt: tokens of the prompt, which are more the first time.
    """

    model: Shares
    most: int
    prompt: int

    def __call__(self, tokens: object, cache: object) -> tuple[Float[Tensor, "T V"], Int[Tensor, " S"]]:
        """What follows each of the tokens, and the cache that holds them too.

        Raises:
            TypeError: tokens that are no list, or a cache that is none.
            ValueError: tokens as `Shares.check`, or too many of them.
        """
        self.model.check(tokens, "target")
        before = [] if cache is None else _read_before(cache)
        most = self.most if before else self.most + self.prompt - 1
        if len(tokens) > most:
            held = f"with {len(before)} in the cache"
            raise ValueError(f"target reads at most {most} tokens at once {held}, got {len(tokens)}")
        text = [*before, *tokens]
        self.model.check(text, "target")
        parts = [self.model(text[:end]) for end in range(len(before) + 1, len(text) + 1)]
        return drawn.distributions(parts), torch.tensor(text)


def _read_before(cache: object) -> list[int]:
    if type(cache) is not Tensor or cache.dtype != torch.int64 or cache.dim() != 1:
        raise TypeError("target must be given a cache that it returned, cache[:n] of one, or None at first")
    return cache.tolist()


def numbers(
    rng: random.Random,
    drafter: Drafter,
    prompt: Sequence[int],
    gamma: int,
    counts: Sequence[int],
    spare: int,
    near: bool = False,
) -> Float[Tensor, "N T"]:
    """Uniform numbers, a row for each step, with which so many drafts stand in each, and one falls.

    Those behind it would stand again by themselves.

    Args:
        spare: rows behind them, for whoever needs more steps; at least 1 in all.
        near: whether they are within some percent of the ratios.
    """
    text, rows = list(prompt), []
    for count in counts:
        drafts, parts = drafter.proposed(tuple(text), gamma)
        row = []
        for place, (draft, q) in enumerate(zip(drafts, parts, strict=True)):
            p = drafter.target((*text, *drafts[:place]))
            ratio = p[draft] / q[draft]
            if near:
                low, high = (1.02, 1.07) if place == count else (0.93, 0.98)
                row.append(drawn.point(rng, low * ratio, high * ratio))
            else:
                row.append((drawn.falls if place == count else drawn.stands)(rng, p[draft], q[draft]))
        row.append(drawn.point(rng, 0.0, 1.0))
        text += drafts[:count]
        left = list(drafter.target(text))
        if count < gamma:
            left = [max(0, mine - theirs) for mine, theirs in zip(left, parts[count], strict=True)]
        text.append(_drawn_token(left, row[-1]))
        rows.append(row)
    rows += [[drawn.point(rng, 0.0, 1.0) for _ in range(gamma + 1)] for _ in range(spare)]
    return torch.tensor(rows, dtype=torch.float32)


def _drawn_token(left: Sequence[int], number: float) -> int:
    running = 0
    for token, part in enumerate(left):
        running += part
        if running > number * sum(left):
            return token
    raise ValueError(f"a token must be left to draw, got {list(left)}")
