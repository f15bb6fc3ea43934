"""What the cases about blocks are drawn from: a model of gaps, whose places are as sure as a case wants."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.exercises.inputs import LONGEST_TEXT

WHOLE, LEAST, MOST = 10_000, 3300, 7000  # parts of a probability, and between which a confidence lies
PLACES = 33  # of a block, at most
# Between two confidences: they differ in two digits, or in none of three. No two are the same.
WIDE, CLOSE = 110, 3
SECOND = 0.8  # what a near second choice has of the most that it could


@dataclass(frozen=True)
class Filler:
    """A model that fills gaps, of random numbers: text and block decide, no two places are as confident.

    Args:
        step: between two confidences at least, in parts of `WHOLE`.
    """

    seed: int
    vocab: int
    step: int = WIDE

    def __call__(self, text: object, block: object) -> Float[Tensor, "N V"]:
        """The logits at each place of a block.

        Raises:
            TypeError: what are no lists of ints.
            ValueError: an empty text or block, one that is far too long, or an id that is no token nor, in
                the block, the mask.
        """
        self._check(text, "text", self.vocab, LONGEST_TEXT)
        self._check(block, "block", self.vocab + 1, PLACES)
        return torch.tensor(_guesses(self, tuple(text), tuple(block)), dtype=torch.float32)

    def _check(self, tokens: object, name: str, end: int, longest: int) -> None:
        if type(tokens) not in (list, tuple) or any(type(token) is not int for token in tokens):
            raise TypeError(f"logits_of must be given a {name} that is a list of token ids, each an int")
        if not 1 <= len(tokens) <= longest:
            raise ValueError(f"logits_of must be given a {name} of 1 to {longest} ids, got {len(tokens)}")
        if not all(0 <= token < end for token in tokens):
            raise ValueError(f"logits_of must be given a {name} of ids in [0, {end}), got {tokens[:10]}")


@lru_cache(maxsize=4096)
def _guesses(model: Filler, text: tuple[int, ...], block: tuple[int, ...]) -> list[list[float]]:
    rng = random.Random(f"{model.seed} {text} {block}")
    rows = []
    low = LEAST if model.step == WIDE else rng.randrange(LEAST, MOST - PLACES * model.step)
    for part in rng.sample(range(low, low + PLACES * model.step, model.step), len(block)):
        favourite, confidence = rng.randrange(model.vocab), part / WHOLE
        rest = iter(_rest(rng, confidence, model.vocab - 1))
        shift = rng.uniform(-3.0, 3.0)  # which says nothing: a softmax does not see it
        row = [confidence if token == favourite else next(rest) for token in range(model.vocab)]
        rows.append([math.log(p) + shift for p in row])
    return rows


def _rest(rng: random.Random, confidence: float, count: int) -> list[float]:
    """What the other tokens have, all less than the likeliest: much alike, or most of it one's.

    So places are surer than others that have less entropy, or a longer lead over the second choice.
    """
    nearest = SECOND * min(confidence, 1 - confidence)
    second = rng.choice([(1 - confidence) / count, nearest])
    shares = [rng.uniform(0.7, 1.3) for _ in range(count - 1)]
    rest = [(1 - confidence - second) * share / sum(shares) for share in shares]
    rest.insert(rng.randrange(count), second)
    return rest
