"""What every model made of every question, and what a cascade would have made of them.

A policy is judged without running a model again: it stops at the first answer whose score reaches the
stage's threshold, and pays for all answers up to there.

    quality = 1/N Σ_i quality of the answer kept for question i;   cost = 1/N Σ_i Σ_{stages asked} cost
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.speculative.arguments import require_tensor


@dataclass(frozen=True)
class Ledger:
    """N questions, M models in order of cost.

    Attributes:
        quality: of each answer, in [0, 1]: 1 for a right one.
        cost: of each answer, at least 0 and finite; in FLOPs, bytes or seconds, as long as it is always the
            same. A model's mean is at least that of the model before it.
        scores: what a judge of that model thinks of the answer, in [0, 1]. The last model's are not looked
            at where it comes last.

    Raises:
        ValueError: no question or no model, shapes that differ, values out of their range, or models that
            are not in order of cost.
    """

    quality: Float[Tensor, "N M"]
    cost: Float[Tensor, "N M"]
    scores: Float[Tensor, "N M"]

    def __post_init__(self):
        for name in ("quality", "cost", "scores"):
            require_tensor(name, getattr(self, name))
        shape = tuple(self.quality.shape)
        good = self.quality.dim() == 2 and min(shape) > 0
        require(good, "quality", "of shape (N, M), none of them 0", shape, "give a row for each question")
        for name, highest in (("quality", 1.0), ("cost", float("inf")), ("scores", 1.0)):
            values = getattr(self, name).double()
            remedy = "give one value for each answer of `quality`"
            require(tuple(values.shape) == shape, name, f"of shape {shape}", tuple(values.shape), remedy)
            _check_range(name, values, highest)
            object.__setattr__(self, name, values)
        check_order("cost", self.cost.mean(0).tolist())

    @property
    def num_models(self) -> int:
        return self.quality.shape[1]

    def judged_by(self, scores: Float[Tensor, "N M"]) -> Ledger:
        """The same answers under other judges."""
        return replace(self, scores=scores)

    def rows(self, chosen: Int[Tensor, " n"]) -> Ledger:
        """Some of the questions, or some of them several times.

        Raises:
            ValueError: a question that is not there, or none.
        """
        require_tensor("chosen", chosen, whole=True)
        last, remedy = len(self.quality) - 1, "count the questions from 0"
        for row in chosen[(chosen < 0) | (chosen > last)].tolist():
            require(False, "chosen", f"in [0, {last}]", row, remedy)
        return Ledger(self.quality[chosen], self.cost[chosen], self.scores[chosen])


@dataclass(frozen=True)
class Policy:
    """Which models are asked, and what score is enough to stop.

    Attributes:
        models: columns of a ledger, in order; those left out are never paid for.
        thresholds: one for each model but the last, in [0, 1]: an answer is kept if its score is at least
            that. 0 keeps everything.

    Raises:
        ValueError: no model, models out of order, or thresholds that do not fit them.
    """

    models: tuple[int, ...]
    thresholds: tuple[int | float, ...] = ()

    def __post_init__(self):
        require_sequence("models", self.models, "name columns of a ledger, as (0, 2)")
        require(len(self.models) > 0, "models", "at least one", self.models, "name the column of one model")
        remedy = "name columns of a ledger from the cheapest on, each once"
        for before, model in zip((-1, *self.models), self.models, strict=False):
            good = isinstance(model, Integral) and not isinstance(model, bool) and model > before
            require(good, "models", "increasing integers of at least 0", self.models, remedy)
        check_thresholds(self.thresholds, len(self.models))


@dataclass(frozen=True)
class Outcome:
    """What became of the questions of a ledger.

    Attributes:
        kept: the column whose answer was kept for each question.
        qualities: of the answer kept for each.
        costs: of all answers up to it.
    """

    kept: Int[Tensor, " N"]
    qualities: Float[Tensor, " N"]
    costs: Float[Tensor, " N"]

    @property
    def quality(self) -> float:
        """The mean over the questions."""
        return self.qualities.mean().item()

    @property
    def cost(self) -> float:
        """The mean over the questions."""
        return self.costs.mean().item()

    def shares(self, num_models: int) -> list[float]:
        """Of the questions, how many each model answered.

        Raises:
            ValueError: fewer models than one, or no integer.
        """
        require_integer(1, "num_models", num_models, "take the ledger's")
        return (self.kept.bincount(minlength=num_models) / len(self.kept)).tolist()


def apply_policy(ledger: Ledger, policy: Policy) -> Outcome:
    """What a cascade by this policy would have answered, and paid.

    Raises:
        ValueError: a model that the ledger does not have.
    """
    last = ledger.num_models - 1
    remedy = "use a policy made for this ledger's models"
    require(policy.models[-1] <= last, "models", f"in [0, {last}]", policy.models, remedy)
    count = len(ledger.quality)
    kept = torch.full((count,), policy.models[-1])
    open_ = torch.ones(count, dtype=torch.bool)
    costs = torch.zeros(count, dtype=torch.float64)
    for model, threshold in zip(policy.models, (*policy.thresholds, 0.0), strict=True):
        costs += ledger.cost[:, model] * open_
        stops = open_ & (ledger.scores[:, model] >= threshold)
        kept[stops] = model
        open_ &= ~stops
    return Outcome(kept, ledger.quality.gather(1, kept[:, None])[:, 0], costs)


def check_order(name: str, costs: Sequence[int | float]) -> None:
    """Raises ValueError unless each model costs at least what the one before it does."""
    shown = ", ".join(f"{cost:.4g}" for cost in costs)
    ordered = all(cheap <= dear for cheap, dear in itertools.pairwise(costs))
    require(ordered, name, "in order, the cheapest model first", shown, "sort the models by cost")


def check_thresholds(thresholds: Sequence[int | float], num_models: int) -> None:
    """Raises ValueError unless there is one in [0, 1] for each model but the last."""
    require_sequence("thresholds", thresholds, "give a tuple, as (0.5,)")
    allowed, remedy = f"{num_models - 1} for {num_models} models", "give one for each model but the last"
    require(len(thresholds) == num_models - 1, "thresholds", allowed, tuple(thresholds), remedy)
    for index, threshold in enumerate(thresholds):
        remedy = "compare with a judge's probability; 0 keeps every answer"
        require_number(lambda t: 0 <= t <= 1, f"thresholds[{index}]", "in [0, 1]", threshold, remedy)


def require_sequence(name: str, values: object, remedy: str) -> None:
    """Raises ValueError for what is neither a list nor a tuple, such as a single number."""
    require(isinstance(values, list | tuple), name, "a tuple", repr(values), remedy)


def _check_range(name: str, values: Tensor, highest: float) -> None:
    good = values.isfinite() & (values >= 0) & (values <= highest)
    if not good.all():
        row, column = (~good).nonzero()[0].tolist()
        allowed = "in [0, 1]" if highest == 1 else "at least 0 and finite"
        value, remedy = values[row, column].item(), "check how that answer was measured"
        require(False, f"{name}[{row}, {column}]", allowed, value, remedy)
