"""A threshold chosen from readings: the choice that is right, and those that 04.exit_threshold must catch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def exit_threshold(
    entropies: Float[Tensor, "E N"],
    favourites: Int[Tensor, "E N"],
    thresholds: list[float],
    budget: float | int,
) -> tuple[float, float, float]:
    """All thresholds tried on the readings, and the best within the budget."""
    return Choose()(entropies, favourites, thresholds, budget)


def first_sure(entropies: Tensor, threshold: float) -> Tensor:
    """The layer at which each token leaves, from 0."""
    sure = entropies < threshold
    sure[-1] = True
    return sure.int().argmax(0)


def with_the_last(answers: Tensor, favourites: Tensor, left: Tensor) -> float:
    """How often an answer is the whole model's."""
    return (answers == favourites[-1]).double().mean().item()


def best(threshold: float, layers: float, agreement: float, budget: float | int) -> tuple[float, ...]:
    """What is least for the threshold that is asked for."""
    return -agreement, layers, threshold


@dataclass(frozen=True)
class Choose:
    """The choice; the fields are what mutants get wrong.

    Args:
        left: the layer at which each token leaves, from 0.
        agree: how often the answers are the whole model's.
        first: the number of the first layer.
        able: whether so many layers keep to the budget.
        order: the least of it is chosen.
        given: those of the thresholds that are looked at.
    """

    left: Callable = first_sure
    agree: Callable = with_the_last
    first: int = 1
    able: Callable = lambda layers, budget: layers <= budget
    order: Callable = best
    given: Callable = list

    def __call__(self, entropies, favourites, thresholds, budget):
        found = []
        for threshold in self.given(thresholds):
            left = self.left(entropies, threshold)
            answers = favourites.gather(0, left[None])[0]
            layers = left.double().mean().item() + self.first
            found.append((threshold, layers, self.agree(answers, favourites, left)))
        able = [each for each in found if self.able(each[1], budget)]
        if not able:
            raise ValueError("no threshold keeps to the budget")
        return min(able, key=lambda each: self.order(*each, budget))


def _surest_of_all(entropies, threshold):
    """The layer of the lowest entropy, if that is low enough."""
    low = entropies.min(0)
    return torch.where(low.values < threshold, low.indices, len(entropies) - 1)


def _above(entropies, threshold):
    sure = entropies > threshold
    sure[-1] = True
    return sure.int().argmax(0)


def _never_forced(entropies, threshold):
    """The first layer for want of a sure one."""
    return (entropies < threshold).int().argmax(0)


def _at_most(entropies, threshold):
    sure = entropies <= threshold
    sure[-1] = True
    return sure.int().argmax(0)


def _of_the_early_ones(answers, favourites, left):
    early = left < len(favourites) - 1
    return (answers == favourites[-1])[early].double().mean().item() if early.any() else 0.0


def _with_the_next(answers, favourites, left):
    following = favourites.gather(0, (left + 1).clamp(max=len(favourites) - 1)[None])[0]
    return (answers == following).double().mean().item()


def _with_the_last_a_layer_on(answers, favourites, left):
    """The answer is read a row too far down."""
    later = favourites.gather(0, (left + 1).clamp(max=len(favourites) - 1)[None])[0]
    return with_the_last(later, favourites, left)


over = Choose(able=lambda layers, budget: layers >= budget)
unforced = Choose(left=_never_forced)
other_exit = Choose(agree=_with_the_last_a_layer_on)
fewest = Choose(order=lambda threshold, layers, agreement, budget: (layers, threshold))
nearest = Choose(order=lambda threshold, layers, agreement, budget: (-layers, threshold))
from_0 = Choose(first=0)
of_the_early = Choose(agree=_of_the_early_ones)
neighbour = Choose(agree=_with_the_next)
surest = Choose(left=_surest_of_all)
other_way = Choose(left=_above)
or_equal = Choose(left=_at_most)
below_budget = Choose(able=lambda layers, budget: layers < budget)
highest_first = Choose(order=lambda threshold, layers, agreement, budget: (-agreement, -layers, threshold))
highest_of_equals = Choose(
    order=lambda threshold, layers, agreement, budget: (-agreement, layers, -threshold)
)
first_of_equals = Choose(order=lambda threshold, layers, agreement, budget: (-agreement, layers))
last_of_equals = Choose(order=first_of_equals.order, given=lambda thresholds: thresholds[::-1])
rounds_layers = Choose(able=lambda layers, budget: round(layers, 1) <= budget)
nearly = Choose(able=lambda layers, budget: layers < budget + 0.05)
rounds_budget = Choose(able=lambda layers, budget: layers <= round(budget))
rounds_tied_layers = Choose(
    order=lambda threshold, layers, agreement, budget: (-agreement, round(layers, 1), threshold)
)
rounds_agreement = Choose(
    order=lambda threshold, layers, agreement, budget: (-round(agreement, 2), layers, threshold)
)
rounds_to_a_digit = Choose(
    order=lambda threshold, layers, agreement, budget: (-round(agreement, 1), layers, threshold)
)
weighs = Choose(order=lambda threshold, layers, agreement, budget: (0.004 * layers - agreement, threshold))
weighs_more = Choose(
    order=lambda threshold, layers, agreement, budget: (0.01 * layers - agreement, threshold)
)
without_first = Choose(given=lambda thresholds: thresholds[1:])
without_last = Choose(given=lambda thresholds: thresholds[:-1])
without_lowest = Choose(given=lambda thresholds: sorted(thresholds)[1:])
ignores_budget = Choose(able=lambda layers, budget: True)


def _climbs(downwards):
    """From one end of the thresholds that keep to the budget, until the agreement falls."""

    def choose(entropies, favourites, thresholds, budget):
        found = []
        for threshold in sorted(thresholds, reverse=downwards):
            with suppress(ValueError):
                found.append(exit_threshold(entropies, favourites, [threshold], budget))
            if len(found) > 1 and found[-1][2] < found[-2][2]:
                break
        if not found:
            raise ValueError("no threshold keeps to the budget")
        return min(found, key=lambda each: best(*each, budget))

    return choose


climbs_up, climbs_down = _climbs(False), _climbs(True)


def down_to_the_budget(entropies, favourites, thresholds, budget):
    """From the last threshold back to the first that takes too many layers."""
    able = []
    for threshold in reversed(thresholds):
        if first_sure(entropies, threshold).double().mean() + 1 > budget:
            break
        able.append(threshold)
    return exit_threshold(entropies, favourites, able, budget)


def not_0(entropies, favourites, thresholds, budget):
    """Takes a threshold of 0 for none."""
    found = exit_threshold(entropies, favourites, thresholds, budget)
    if not found[0]:
        raise ValueError("no threshold keeps to the budget")
    return found


def above_half(entropies, favourites, thresholds, budget):
    """The best agreement begins at a half."""
    found = exit_threshold(entropies, favourites, thresholds, budget)
    if found[2] <= 0.5:
        raise ValueError("no threshold keeps to the budget")
    return found


def above_0(entropies, favourites, thresholds, budget):
    """The best agreement begins at 0, and is replaced by a higher one."""
    found = exit_threshold(entropies, favourites, thresholds, budget)
    if found[2] <= 0:
        raise ValueError("no threshold keeps to the budget")
    return found


def instead_of_0(entropies, favourites, thresholds, budget):
    """The same, with the first threshold as the best so far."""
    found = exit_threshold(entropies, favourites, thresholds, budget)
    return found if found[2] > 0 else exit_threshold(entropies, favourites, thresholds[:1], len(entropies))


def rounds_result(entropies, favourites, thresholds, budget):
    threshold, layers, agreement = exit_threshold(entropies, favourites, thresholds, budget)
    return threshold, round(layers, 1), round(agreement, 1)


def all_layers_instead(entropies, favourites, thresholds, budget):
    try:
        return exit_threshold(entropies, favourites, thresholds, budget)
    except ValueError:
        return min(thresholds), float(len(entropies)), 1.0


def in_place(entropies, favourites, thresholds, budget):
    found = exit_threshold(entropies, favourites, thresholds, budget)
    entropies[-1] = -math.inf  # so that everything leaves there
    return found


EQUALS = (highest_of_equals, first_of_equals, last_of_equals)
OVER_IT = (rounds_layers, nearly)
AT_THE_EDGE = (below_budget, rounds_budget)
ROUNDED = (rounds_agreement, rounds_to_a_digit)
WEIGHED = (weighs, weighs_more)
HASTY = (climbs_up, climbs_down)
TOLD = (
    *(ignores_budget, fewest, nearest, from_0, of_the_early, neighbour, other_way, unforced, other_exit),
    rounds_result,
)
