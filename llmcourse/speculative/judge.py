"""Judges: how probably is this answer right, from what can be seen of it.

    P(right | x) = σ(w · (x − μ)/s + b)

Logistic regression on standardised features. With all of them it is the trained classifier that a cascade
asks before it believes a model (FrugalGPT, Chen et al. 2023, section 3, where a DistilBERT reads the answer
instead); with the confidence alone it is a calibrated threshold (Platt 1999, section 2), the baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.speculative.arguments import require_tensor

MAX_STEPS = 100
TOLERANCE = 1e-10  # of the gradient, for each example


@runtime_checkable
class Judge(Protocol):
    """Scores answers, each in [0, 1]; what is at least a threshold is kept."""

    def scores(self, features: Float[Tensor, "N F"]) -> Float[Tensor, " N"]: ...


@dataclass(frozen=True)
class LogisticJudge:
    """σ(w · (x − μ)/s + b) of some columns of the features.

    Attributes:
        columns: of the features, in the order of the weights.
        num_features: how many features there are in all.
    """

    columns: tuple[int, ...]
    num_features: int
    mean: Float[Tensor, " C"]
    scale: Float[Tensor, " C"]
    weight: Float[Tensor, " C"]
    bias: float

    def scores(self, features: Float[Tensor, "N F"]) -> Float[Tensor, " N"]:
        """P(right) of each answer.

        Raises:
            ValueError: other features than it was trained on, or one that is no finite number.
        """
        _check_features(features)
        allowed = f"{self.num_features} numbers for each answer"
        remedy = "use the judge of this model and task"
        require(features.shape[1] == self.num_features, "features", allowed, features.shape[1], remedy)
        standard = (features[:, list(self.columns)].double() - self.mean) / self.scale
        return torch.sigmoid(standard @ self.weight + self.bias)


def fit_judge(
    features: Float[Tensor, "N F"],
    right: Bool[Tensor, " N"],
    *,
    columns: Sequence[int] | None = None,
    penalty: int | float = 1.0,
) -> LogisticJudge:
    """The weights that make what was seen likeliest, large ones penalised: Newton's method, no chance in it.

        minimise  −Σ_i [t_i log p_i + (1 − t_i) log(1 − p_i)] + penalty/2 · |w|²

    The targets t are not 1 and 0 but (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2), for n₊ right and n₋ wrong answers
    (Platt 1999, section 2.2): a few examples are no proof, and where all are right the bias stays finite.

    Args:
        right: whether each answer was right.
        columns: the features that it looks at; None for all, `(CONFIDENCE,)` for the baseline.
        penalty: above 0, in units of examples.

    Raises:
        ValueError: no examples, shapes that do not fit, features that are no finite numbers, a column that
            is none, or a penalty out of its range.
    """
    _check_features(features)
    count, num_features = features.shape
    require_tensor("right", right)
    expected, given = (count,), tuple(right.shape)
    require(
        given == expected, "right", f"of shape {expected}", given, "say of each answer whether it is right"
    )
    require(right.dtype == torch.bool, "right", "of booleans", right.dtype, "compare, do not score")
    require_number(lambda p: 0 < p < float("inf"), "penalty", "above 0 and finite", penalty, "use 1.0")
    if columns is not None:
        require(isinstance(columns, Iterable), "columns", "a list", repr(columns), "pass one as [column]")
    chosen = tuple(range(num_features) if columns is None else columns)
    _check_columns(chosen, num_features)
    chosen = tuple(map(int, chosen))
    x = features[:, list(chosen)].double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)  # a constant says nothing, and must not be divided by 0
    weight = _newton((x - mean) / scale, _targets(right), float(penalty))
    return LogisticJudge(chosen, num_features, mean, scale, weight[:-1], weight[-1].item())


def _targets(right: Bool[Tensor, " N"]) -> Float[Tensor, " N"]:
    num_right = int(right.sum())
    high, low = (num_right + 1) / (num_right + 2), 1 / (len(right) - num_right + 2)
    return low + (high - low) * right.double()


def _newton(x: Float[Tensor, "N C"], target: Float[Tensor, " N"], penalty: float) -> Float[Tensor, " C1"]:
    """Weights and, last, the bias; a step that does not improve is halved until it does."""
    x = F.pad(x, (0, 1), value=1.0)
    ridge = torch.full((x.shape[1],), penalty, dtype=x.dtype)
    ridge[-1] = 0.0  # the bias is free

    def loss(weight: Tensor) -> Tensor:
        fit = F.binary_cross_entropy_with_logits(x @ weight, target, reduction="sum")
        return fit + (ridge * weight**2).sum() / 2

    weight = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(MAX_STEPS):
        p = torch.sigmoid(x @ weight)
        gradient = x.T @ (p - target) + ridge * weight
        if gradient.abs().max() <= TOLERANCE * len(x):
            break
        curvature = (x.T * (p * (1 - p))) @ x + torch.diag(ridge)
        step, singular = torch.linalg.solve_ex(curvature, gradient)
        remedy = "use 1.0, or leave out columns that say the same"
        require(not singular, "penalty", "large enough to tell weights apart", penalty, remedy)
        length, here = 1.0, loss(weight)
        while loss(weight - length * step) > here and length > 1e-6:
            length /= 2
        weight = weight - length * step
    return weight


def _check_features(features: Float[Tensor, "N F"]) -> None:
    require_tensor("features", features)
    shape = tuple(features.shape)
    good = features.dim() == 2 and min(shape) > 0
    require(good, "features", "of shape (N, F), none of them 0", shape, "stack one row for each answer")
    if not features.isfinite().all():
        row, column = (~features.isfinite()).nonzero()[0].tolist()
        value, remedy = features[row, column].item(), "check the logits that they come from"
        require(False, f"features[{row}, {column}]", "finite", value, remedy)


def _check_columns(columns: tuple[int, ...], num_features: int) -> None:
    require_integer(1, "number of columns", len(columns), "let the judge look at one feature or more")
    for column in columns:
        allowed, inside = f"in [0, {num_features - 1}]", lambda number: 0 <= number < num_features
        require_number(inside, "columns", allowed, column, "count them from 0", kind=Integral)
