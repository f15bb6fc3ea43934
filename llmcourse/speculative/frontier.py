"""The best that thresholds can do on held-out questions: all are tried, but for those that cannot win.

Choosing a list of models and thresholds for a budget is a mixed integer program (FrugalGPT, Chen et al.
2023, section 3, which prunes lists and interpolates). With few models it can be solved exactly: only scores
that occur matter as thresholds, lists of models are few, and the last threshold of a list is searched for
all its values at once, by sums over the questions sorted by score. What remains is cut by bound: a beginning
is given up once a known policy is no dearer than what it has spent, and no worse than if an oracle answered
the rest.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.speculative.ledger import Ledger, Policy


@dataclass(frozen=True)
class Point:
    """A policy with its mean quality and cost on the questions that it was found on."""

    policy: Policy
    quality: float
    cost: float


def pareto_frontier(ledger: Ledger) -> list[Point]:
    """Every policy that no other beats: those with more quality cost more. From the cheapest to the best.

    Of policies with the same quality and cost one stands for all. Single models take part.
    """
    search = _Search(ledger)
    for length in range(1, ledger.num_models + 1):
        for models in itertools.combinations(range(ledger.num_models), length):
            search.explore(models, (), torch.arange(len(ledger.quality)), 0.0, 0.0)
    return search.front.points


def cheapest(points: Sequence[Point], quality: int | float) -> Point:
    """The cheapest policy of at least this quality.

    Args:
        quality: a target in [0, 1].

    Raises:
        ValueError: no points, a target outside [0, 1], or one that no policy reaches.
    """
    _check_points(points)
    require_number(lambda q: 0 <= q <= 1, "quality", "in [0, 1]", quality, "give the share of right answers")
    best = max(point.quality for point in points)
    allowed = f"at most {best:.4g}, the best that was found"
    require(quality <= best, "quality", allowed, quality, "lower it, or add a better model")
    return min((point for point in points if point.quality >= quality), key=lambda point: point.cost)


def best_within(points: Sequence[Point], budget: int | float) -> Point:
    """The policy of highest quality whose mean cost is at most this.

    Raises:
        ValueError: no points, or a budget that the cheapest policy exceeds.
    """
    _check_points(points)
    least = min(point.cost for point in points)
    allowed = f"at least {least:.4g}, the cheapest that was found"
    require_number(lambda b: b >= least, "budget", allowed, budget, "raise it, or add a cheaper model")
    return max((point for point in points if point.cost <= budget), key=lambda point: point.quality)


def _check_points(points: Sequence[Point]) -> None:
    require(len(points) > 0, "points", "at least one", len(points), "take them from pareto_frontier()")


class _Front:
    """Points none of which is beaten, by rising cost and so by rising quality."""

    def __init__(self):
        self.costs: list[float] = []
        self.qualities: list[float] = []
        self.points: list[Point] = []

    def beats(self, quality: float, cost: float) -> bool:
        """Whether a point is at least as good in both."""
        index = bisect_right(self.costs, cost)
        return index > 0 and self.qualities[index - 1] >= quality

    def add(self, point: Point) -> None:
        if self.beats(point.quality, point.cost):
            return
        first = bisect_left(self.costs, point.cost)
        last = bisect_right(self.qualities, point.quality)  # those before are no better, and dearer
        for values, value in (
            (self.costs, point.cost),
            (self.qualities, point.quality),
            (self.points, point),
        ):
            values[first : max(first, last)] = [value]


class _Search:
    def __init__(self, ledger: Ledger):
        self.ledger, self.count = ledger, len(ledger.quality)
        self.front = _Front()

    def explore(
        self,
        models: tuple[int, ...],
        thresholds: tuple[float, ...],
        open_: Int[Tensor, " n"],
        quality: float,
        cost: float,
    ) -> None:
        """Adds what becomes of the open questions from the next model on.

        Args:
            quality, cost: sums over what was kept, and what was paid, before.
        """
        asked = models[len(thresholds) :]
        cost += self.ledger.cost[open_, asked[0]].sum().item()
        if len(asked) == 1:
            self._add(models, thresholds, quality + self.ledger.quality[open_, asked[0]].sum().item(), cost)
            return
        hoped = self.ledger.quality[open_][:, list(asked)].amax(-1).sum().item()
        if self.front.beats((quality + hoped) / self.count, cost / self.count):
            return
        order, cuts = self._cuts(open_, asked[0])
        if len(asked) == 2:
            for index, *sums in self._last_threshold(order, cuts, *asked):
                threshold = self.ledger.scores[order[index - 1], asked[0]].item()
                self._add(models, (*thresholds, threshold), quality + sums[0], cost + sums[1])
            return
        kept = self.ledger.quality[order, asked[0]].cumsum(0)
        for index in cuts.tolist():
            threshold = self.ledger.scores[order[index - 1], asked[0]].item()
            self.explore(
                models, (*thresholds, threshold), order[index:], quality + kept[index - 1].item(), cost
            )

    def _cuts(self, open_: Int[Tensor, " n"], model: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " c"]]:
        """Open questions by falling score, and after how many of them a threshold can cut.

        Keeping none would pay for nothing, and keeping all is a shorter list of models.
        """
        scores, order = self.ledger.scores[open_, model].sort(descending=True, stable=True)
        cuts = (scores[1:] < scores[:-1]).nonzero()[:, 0] + 1
        return open_[order], cuts

    def _last_threshold(
        self, order: Int[Tensor, " n"], cuts: Int[Tensor, " c"], first: int, second: int
    ) -> Iterator[tuple[int, float, float]]:
        """For each cut worth a look, its place, and the quality and cost that it adds."""
        if not len(cuts):
            return
        kept = self.ledger.quality[order, first].cumsum(0)
        passed = self.ledger.quality[order, second].flip(0).cumsum(0).flip(0)
        paid = self.ledger.cost[order, second].flip(0).cumsum(0).flip(0)
        quality, cost = kept[cuts - 1] + passed[cuts], paid[cuts]
        # The more is kept, the less is paid: from the cheapest cut on, only what gains quality counts.
        reached = quality.flip(0).cummax(0).values.flip(0)
        worth = torch.ones_like(cuts, dtype=torch.bool)
        worth[:-1] = quality[:-1] > reached[1:]
        yield from zip(cuts[worth].tolist(), quality[worth].tolist(), cost[worth].tolist(), strict=True)

    def _add(
        self, models: tuple[int, ...], thresholds: tuple[float, ...], quality: float, cost: float
    ) -> None:
        quality, cost = quality / self.count, cost / self.count
        if not self.front.beats(quality, cost):
            self.front.add(Point(Policy(models, thresholds), quality, cost))
