"""How cases are drawn: from a seed, and so that nothing in them turns on rounding.

Logits have a gap between any two of a row; masses keep their distance from a threshold. What is at the
edge is put there on purpose, in numbers that float32 holds exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_GAP, LARGEST_GAP = 0.1, 0.8
MARGIN = 1e-3  # of a probability mass from a threshold
LONGEST_TEXT, MOST_TEXTS = 256, 256  # that a model is asked about; a student may try any
ATTEMPTS, DRAWS_EACH = 2000, 20


def logits(
    rng: random.Random, rows: int, vocab: int, dtype: torch.dtype = torch.float32, gap: float = LARGEST_GAP
) -> Float[Tensor, "B V"]:
    """Random logits, about half of them negative; `rows` at most `vocab - 1`.

    Rows cannot be mistaken for one another: where one has its peak, the next has its lowest value. The
    first row rises from its first token to its last, at least at these two.
    """
    peaks = [vocab - 1, *rng.sample(range(1, vocab - 1), rows - 1)]
    values = [
        placed(rng, falling(rng, vocab, gap), peak, low)
        for peak, low in zip(peaks, [0, *peaks], strict=False)
    ]
    return torch.tensor(values, dtype=dtype)


def falling(rng: random.Random, count: int, gap: float = LARGEST_GAP) -> list[float]:
    """Numbers around 0, greatest first, no two closer than `LEAST_GAP`."""
    numbers = [0.0]
    for _ in range(count - 1):
        numbers.append(numbers[-1] - rng.uniform(LEAST_GAP, gap))
    return [number - numbers[count // 2] + rng.uniform(0.02, 0.08) for number in numbers]


def placed(rng: random.Random, values: Sequence[float], peak: int, low: int) -> list[float]:
    """Values, given from the greatest to the least, in random order but for these two places."""
    middle = list(values[1:-1])
    rng.shuffle(middle)
    ends = {peak: values[0], low: values[-1]}
    return [ends[place] if place in ends else middle.pop() for place in range(len(values))]


def with_mass(
    rng: random.Random, draw: Callable[[], Tensor], kept: range
) -> tuple[Float[Tensor, "B V"], float]:
    """Logits, and a p far from every cumulative mass of theirs.

    The first row's nucleus has a size in `kept`, and no row's is smaller.

    Raises:
        ValueError: no such p was found for any logits drawn.
    """
    for attempt in range(ATTEMPTS):
        if attempt % DRAWS_EACH == 0:
            logits = draw()
            masses = logits.double().softmax(-1).sort(descending=True).values.cumsum(-1)
        size = rng.choice(kept)
        low, high = masses[0, size - 2].item() if size > 1 else 0.0, masses[0, size - 1].item()
        p = low + rng.uniform(0.1, 0.9) * (high - low)
        if (masses - p).abs().min() > MARGIN and ((masses < p).sum(-1) + 1).min() >= kept.start:
            return logits, p
    raise ValueError(f"draw must leave room for a mass that keeps {kept}; spread the logits")


def texts(rng: random.Random, lengths: Sequence[int], vocab: int) -> list[list[int]]:
    """Token ids, a text of each length."""
    return [[rng.randrange(vocab) for _ in range(length)] for length in lengths]


@dataclass(frozen=True)
class Model:
    """A language model made of random numbers: the whole text decides, the same text says the same.

    Args:
        boosts: length of the text, token, what is added to its logit then: `((7, 3, 20.0),)` makes token 3
            the eighth. So a text ends where a case wants it to.
        spread: the larger, the surer the model.
        tied: whether two tokens are always the likeliest.
    """

    seed: int
    vocab: int
    boosts: tuple[tuple[int, int, float], ...] = ()
    spread: float = LARGEST_GAP
    tied: bool = False

    def __call__(self, tokens: object) -> Float[Tensor, " V"]:
        """The logits after a text.

        Raises:
            TypeError: not a list of ints.
            ValueError: an empty text, one that is far too long, or an id outside the vocabulary.
        """
        return torch.tensor(self.values(tokens), dtype=torch.float32)

    def values(self, tokens: object) -> list[float]:
        """The same as plain numbers, which are not to be changed."""
        if type(tokens) not in (list, tuple) or any(type(token) is not int for token in tokens):
            raise TypeError("logits_of must be given a list of token ids, each an int")
        if not 1 <= len(tokens) <= LONGEST_TEXT:
            raise ValueError(f"logits_of must be given 1 to {LONGEST_TEXT} token ids, got {len(tokens)}")
        if not all(0 <= token < self.vocab for token in tokens):
            raise ValueError(f"logits_of must be given token ids in [0, {self.vocab}), got {tokens[:10]}")
        return _say(self, tuple(tokens))


@lru_cache(maxsize=4096)
def _say(model: Model, tokens: tuple[int, ...]) -> list[float]:
    rng = random.Random(f"{model.seed} {tokens}")
    values = falling(rng, model.vocab, model.spread)
    rng.shuffle(values)
    for length, token, boost in model.boosts:
        values[token] += boost if len(tokens) == length else 0.0
    if model.tied:
        values[values.index(sorted(values)[-2])] = max(values)
    return values


@dataclass(frozen=True)
class BatchModel:
    """The same for several texts at once, which is one forward pass."""

    model: Model

    def __call__(self, texts: object) -> Float[Tensor, "B V"]:
        """The logits after each text.

        Raises:
            TypeError, ValueError: as `Model`; or there is no text, or far too many.
        """
        if type(texts) not in (list, tuple) or not 1 <= len(texts) <= MOST_TEXTS:
            raise TypeError("logits_of must be given a list of texts, each a list of token ids")
        return torch.tensor([self.model.values(tokens) for tokens in texts], dtype=torch.float32)
