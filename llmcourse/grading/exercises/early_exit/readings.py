"""Held-out readings, thresholds and a budget, drawn for a case of 04.exit_threshold: all exact in float32."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise, repeat
from operator import getitem, neg
from typing import Any

import torch

GRID = 8
TOKENS = (8, 16, 32)  # shares of these are exact in float32 too
MANY = (128, 256)  # and of these, which may differ by less than two digits show
VOCAB, SWAPPED, AGREES = 20, 0.5, 0.3
FINE = 64  # parts of a nat: entropies and thresholds are exact too
ROOM = 0.05  # layers above a budget, in which no mean lies but where a case is about that
Found = list[tuple[float, float]]  # mean layers and agreement at each threshold


def rising(rng: random.Random, entropies: list[list[float]]) -> list[float]:
    """Thresholds, none of them an entropy."""
    return sorted((2 * part + 1) / (2 * FINE) for part in rng.sample(range(6, 2 * FINE), GRID))


def falling(rng: random.Random, entropies: list[list[float]]) -> list[float]:
    return rising(rng, entropies)[::-1]


def shuffled(rng: random.Random, entropies: list[list[float]]) -> list[float]:
    return rng.sample(rising(rng, entropies), GRID)


def side_by_side(rng: random.Random, entropies: list[list[float]]) -> list[float]:
    """A few entropies between one and the next; in any order."""
    first = rng.randrange(6, 2 * FINE - GRID)
    return rng.sample([(2 * part + 1) / (2 * FINE) for part in range(first, first + GRID)], GRID)


def in_threes(rng: random.Random, entropies: list[list[float]]) -> list[float]:
    """No entropy lies between the three that belong together; in any order."""
    lower = rising(rng, entropies)
    return rng.sample([t + part / (16 * FINE) for t in lower for part in range(3)], 3 * GRID)


def entropies_too(rng: random.Random, entropies: list[list[float]]) -> list[float]:
    before = sorted({entropy for token in entropies for entropy in token[:-1]})
    return sorted({*rising(rng, entropies)[:3], *rng.sample(before, GRID - 3)})


def with_0(rng: random.Random, entropies: list[list[float]]) -> list[float]:
    return rng.sample([0.0, *rising(rng, entropies)[1:]], GRID)


def single_one(rng: random.Random, entropies: list[list[float]]) -> list[float]:
    return rising(rng, entropies)[GRID // 2 :][:1]


def between(rng: random.Random, means: list[float]) -> float | None:
    """A budget between two of several means; None where they leave no room for one."""
    place = _place(rng, means)
    return None if place is None else (means[place] + means[place + 1]) / 2


def one_of_them(rng: random.Random, means: list[float]) -> float | None:
    place = _place(rng, means)
    return None if place is None else means[place]


def just_under(rng: random.Random, means: list[float]) -> float | None:
    """Less than a mean by half of what two means differ at least."""
    place = _place(rng, means)
    return None if place is None else means[place + 1] - 1 / (2 * max(TOKENS))


def above_one(rng: random.Random, means: list[float]) -> float | None:
    """Only the least mean keeps to it."""
    return (means[0] + means[1]) / 2 if len(means) > 1 else means[0] + rng.choice((0.25, 0.5))


def above_three(rng: random.Random, means: list[float]) -> float | None:
    return (means[2] + means[3]) / 2 if len(means) >= 4 else None


def below_all(rng: random.Random, means: list[float]) -> float | None:
    return (means[0] + 1) / 2 if means[0] > 1 else None


def unlimited(rng: random.Random, means: list[float]) -> float | None:
    return means[-1] + rng.choice((0.0, 0.5))


def _place(rng: random.Random, means: list[float]) -> int | None:
    return rng.randrange(len(means) // 2, len(means) - 1) if len(means) >= 4 else None


def within(found: Found, budget: float) -> list[tuple[float, float]]:
    """What keeps to the budget, the best first; agreements are negative."""
    return sorted((-agreement, layers) for layers, agreement in found if layers <= budget)


def single(found: Found, budget: float) -> bool:
    """One is best, and is neither the slowest nor the fastest within the budget."""
    able = within(found, budget)
    others = [layers for _, layers in able[1:]]
    return len(able) >= 3 and min(others) < able[0][1] < max(others) and able[0][0] < able[1][0]


def at_the_edge(found: Found, budget: float) -> bool:
    able = within(found, budget)
    return len(able) >= 2 and able[0][1] == budget and able[0][0] < able[1][0]


def equal(found: Found, budget: float) -> bool:
    """Three are best, and do the same."""
    able = within(found, budget)
    return len(able) >= 6 and able[0] == able[2] and able[2][0] < able[3][0]


def several(found: Found, budget: float) -> bool:
    able = within(found, budget)
    return len(able) >= 3 and able[0][0] == able[1][0] and able[0][1] < able[1][1]


def up_and_down(found: Found, budget: float) -> bool:
    """Agreement falls on the way to the best, from the fewest layers as from the most."""
    rising = [agreement for layers, agreement in sorted(found) if layers <= budget]
    best = rising.index(max(rising)) if rising else 0
    ways = rising[:best], rising[:best:-1]
    return all(any(after < before for before, after in pairwise(way)) for way in ways)


def nearly_equal(found: Found, budget: float) -> bool:
    """Another agrees less often, for fewer layers, but by less than two digits show."""
    (agreement, layers), *others = within(found, budget) or [(0.0, 0.0)]
    return any(a != agreement and round(a, 2) == round(agreement, 2) and n < layers for a, n in others)


def one_fits(found: Found, budget: float) -> bool:
    return len(within(found, budget)) == 1


def none_agrees(found: Found, budget: float) -> bool:
    """Several keep to the budget, at different costs, and no answer of theirs is the whole model's."""
    able = within(found, budget)
    return len(able) >= 3 and able[0][0] == able[-1][0] == 0 and able[0][1] < able[-1][1]


def all_layers(found: Found, budget: float) -> bool:
    """Nothing but all layers agrees always."""
    able = within(found, budget)
    return able[0][0] < able[1][0]


@dataclass(frozen=True)
class Plan:
    """What the readings, thresholds and budget of a case are to be.

    Args:
        fits: by what each threshold comes to, and the budget.
        grid: the thresholds, from the entropies.
        budget: from the means, rising.
        late: whether most tokens settle at the last layer alone: then the best agreement is below a half.
        agrees: how often a favourite that is not settled is the whole model's, at least.
        layers: how many there are at least and at most.
        tokens: how many there may be.
        close: whether a mean may lie just above the budget.
        ends: whether the best threshold may be the first or the last of the list.
    """

    fits: Callable[[Found, float], bool] = lambda found, budget: True
    grid: Callable[..., list[float]] = rising
    budget: Callable[..., float | None] = between
    late: bool = False
    agrees: float = AGREES
    layers: tuple[int, int] = (4, 8)
    tokens: tuple[int, ...] = TOKENS
    close: bool = False
    ends: bool = False

    def arguments(self, rng: random.Random) -> dict[str, Any]:
        """Of a call."""
        while True:
            sizes = rng.randint(*self.layers), rng.choice(self.tokens)
            entropies, favourites = readings(rng, *sizes, self.late, self.agrees)
            thresholds = self.grid(rng, entropies)
            surer, agree = steps(entropies), agreements(favourites)
            found = [figures(surer, agree, threshold) for threshold in thresholds]
            budget = self.budget(rng, sorted({layers for layers, _ in found}))
            if budget is not None and self._is_clear(found, budget) and self.fits(found, budget):
                return {
                    "entropies": torch.tensor(entropies, dtype=torch.float32).T.contiguous(),
                    "favourites": torch.tensor(favourites).T.contiguous(),
                    "thresholds": thresholds,
                    "budget": budget,
                }

    def _is_clear(self, found: Found, budget: float) -> bool:
        """Whether nothing but what the case is about can be mistaken here."""
        for layers, _ in found:
            over = layers > budget
            if not self.close and (layers >= budget + ROOM, round(layers, 1) > budget) != (over, over):
                return False
        able = within(found, budget)
        if not able:
            return True
        best = found.index((able[0][1], -able[0][0]))
        at_an_end = best in (0, len(found) - 1)
        return (self.ends or not at_an_end) and (-able[0][0] < 0.5 if self.late else -able[0][0] > 0.5)


def readings(
    rng: random.Random, layers: int, tokens: int, late: bool, agrees: float
) -> tuple[list[list[float]], list[list[int]]]:
    """Entropies and favourites of each token, layer by layer.

    Entropies mostly fall, and favourites mostly become the whole model's, at some layer; some do before, and
    change once more.

    Args:
        late: whether only the last layer is settled.
        agrees: how often one that is not is the last one's all the same, but for chance.
    """
    entropies, favourites, chance, bits = [], [], rng.random, rng.getrandbits
    for _ in range(tokens):
        parts = sorted([2 + below(bits, 2 * FINE - 2) for _ in range(layers)], reverse=True)
        if chance() < SWAPPED:
            one, other = rng.sample(range(layers), 2)
            parts[one], parts[other] = parts[other], parts[one]
        last, settled = below(bits, VOCAB), layers if late else below(bits, layers)
        right = [n >= settled or chance() < agrees for n in range(layers - 1)]
        entropies.append([part / FINE for part in parts])
        favourites.append([*[last if is_last else below(bits, VOCAB) for is_last in right], last])
    return entropies, favourites


def below(bits, count):
    """What `rng.randrange(count)` draws, given `rng.getrandbits`, a third of its time: a case takes tens of
    thousands.
    """
    width = count.bit_length()
    drawn = bits(width)
    while drawn >= count:
        drawn = bits(width)
    return drawn


def steps(entropies: list[list[float]]) -> list[list[float]]:
    """Of each token the lowest entropy up to each layer but the last, negative: they rise."""
    return [list(accumulate(map(neg, token[:-1]), max)) for token in entropies]


def agreements(favourites: list[list[int]]) -> list[list[bool]]:
    """Of each token, at which layers its favourite is the whole model's."""
    return [[favourite == token[-1] for favourite in token] for token in favourites]


def figures(surer: list[list[float]], agree: list[list[bool]], threshold: float) -> tuple[float, float]:
    """Mean layers and agreement at a threshold, from `steps` and `agreements`: a token leaves at the first
    layer that is surer.
    """
    left = list(map(bisect_right, surer, repeat(-threshold)))
    return sum(left) / len(left) + 1, sum(map(getitem, agree, left)) / len(left)
