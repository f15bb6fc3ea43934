"""Choosing a threshold on held-out text: the fewest layers for a quality, the best quality for a budget.

A rule leaves at the first exit whose signal (the entropy, or the negated confidence) is below t. So a token
leaves at exit e for the t between its lowest signal up to e and its lowest up to e − 1, and the curve of mean
layers and agreement over all t is a staircase with a step at each of these numbers: it is computed whole,
without a grid. Mean layers fall as t grows. Agreement need not, so the best point is looked for among all
that keep to the target, and asking for more never costs less. (Schuster et al. 2022, "CALM", section 4,
choose on held-out data too, with a statistical guarantee. It is left out here: the agreement is that of the
data.)

Layers are counted, not seconds, and an exit's own cost is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.decoding.errors import require, require_number
from llmcourse.early_exit.leaving import exit_numbers
from llmcourse.early_exit.readings import Readings
from llmcourse.early_exit.rules import ConfidenceRule, EntropyRule, ExitRule, PatienceRule

Signal = Literal["entropy", "confidence", "patience"]
SIGNALS = ("entropy", "confidence", "patience")


@dataclass(frozen=True)
class Choice:
    """A rule, and what it came to on the text that it was chosen on.

    Attributes:
        mean_layers: layers before a token leaves, in [first exit, layers of the model].
        agreement: how often its favourite there is the whole model's, in [0, 1].
    """

    rule: ExitRule
    mean_layers: float
    agreement: float


@dataclass(frozen=True)
class Curve:
    """All that rules of one kind can come to, from the one that never leaves on: fewer and fewer layers."""

    signal: Signal
    thresholds: Float[Tensor, " P"] | Int[Tensor, " P"]
    mean_layers: Float[Tensor, " P"]
    agreement: Float[Tensor, " P"]

    def choice(self, point: int) -> Choice:
        """One point of it."""
        kind = {"entropy": EntropyRule, "confidence": ConfidenceRule, "patience": PatienceRule}[self.signal]
        threshold = self.thresholds[point].item()
        return Choice(kind(threshold), self.mean_layers[point].item(), self.agreement[point].item())


def curve(readings: Readings, signal: Signal) -> Curve:
    """The curve of a kind of rule.

    Raises:
        ValueError: another kind.
    """
    require(signal in SIGNALS, "signal", "'entropy', 'confidence' or 'patience'", repr(signal), "choose one")
    layers = torch.tensor(readings.layers, dtype=torch.float64)
    agrees = (readings.favourites == readings.favourites[-1]).double()
    if signal == "patience":
        return _patience(readings, layers, agrees)
    low = readings.entropy if signal == "entropy" else -readings.confidence
    values, steps = _staircase(low[:-1].double(), layers, agrees)
    following = torch.cat((values[1:], values[-1:].float().nextafter(torch.tensor(math.inf)).double()))
    thresholds = torch.cat((torch.zeros(1).double(), following))
    if signal == "confidence":
        thresholds = -thresholds
        thresholds[0], thresholds[-1] = 1.0, max(0.0, thresholds[-1].item())
    start = torch.stack((layers[-1], agrees[-1].mean()))[:, None]
    points = torch.cat((start, start + steps.cumsum(1)), 1)
    return Curve(signal, thresholds, points[0], points[1])


def fewest_layers(of: Curve, agreement: int | float) -> Choice:
    """The fewest mean layers at an agreement of at least so much.

    Raises:
        ValueError: an agreement that is no share; 1 is always possible, by never leaving.
    """
    remedy = "it is a share of the tokens; 1 is always possible, by all layers"
    require_number(lambda x: 0 <= x <= 1, "agreement", "in [0, 1]", agreement, remedy)
    able = of.agreement >= agreement - 1e-12  # sums of shares round
    return of.choice(_best(-of.mean_layers, of.agreement, able))


def most_agreement(of: Curve, mean_layers: int | float) -> Choice:
    """The highest agreement at mean layers of at most so many.

    Raises:
        ValueError: fewer than any rule of this kind comes to on this text.
    """
    least = of.mean_layers.min().item()
    remedy = "give a budget in layers a token"
    require_number(lambda x: x == x, "mean_layers", "a number", mean_layers, remedy)
    allowed = f"at least {least:.4g}, the fewest that a rule of {of.signal} comes to on this text"
    able = of.mean_layers <= mean_layers + 1e-12
    require(bool(able.any()), "mean_layers", allowed, mean_layers, "raise it, or add an earlier exit")
    return of.choice(_best(of.agreement, -of.mean_layers, able))


def _staircase(
    low: Float[Tensor, "E N"], layers: Float[Tensor, " L"], agrees: Float[Tensor, "L N"]
) -> tuple[Float[Tensor, " P"], Float[Tensor, "2 P"]]:
    """The values at which tokens move to an earlier exit, rising, and what that adds to both means.

    A token moves to exit e from the next one whose lowest signal so far is lower still: from the last layer,
    if there is none.
    """
    count = low.shape[1]
    lowest, positions = low.cummin(0).values, torch.arange(count)
    values, deltas = [], []
    later = torch.full((count,), len(layers) - 1)  # where a token leaves while t is below all that follows
    for number in range(len(low) - 1, -1, -1):
        before = lowest[number - 1] if number else torch.full((count,), math.inf, dtype=low.dtype)
        moves = lowest[number] < before  # otherwise an earlier exit has the same
        values.append(lowest[number][moves])
        layer = layers[number] - layers[later[moves]]
        agreement = agrees[number, moves] - agrees[later[moves], positions[moves]]
        deltas.append(torch.stack((layer, agreement)) / count)
        later = torch.where(moves, number, later)
    every, delta = torch.cat(values), torch.cat(deltas, 1)
    distinct, group = every.unique(return_inverse=True)
    sums = torch.zeros(2, len(distinct), dtype=torch.float64).index_add_(1, group, delta)
    return distinct, sums


def _patience(readings: Readings, layers: Float[Tensor, " L"], agrees: Float[Tensor, "L N"]) -> Curve:
    """One point for each patience, from one that outlasts the exits down to 1."""
    count = len(layers) - 1
    means = []
    for patience in range(count, 0, -1):
        leaves = exit_numbers(readings, PatienceRule(patience))
        means.append([layers[leaves].mean(), agrees.gather(0, leaves[None]).mean()])
    points = torch.tensor(means, dtype=torch.float64).T
    return Curve("patience", torch.arange(count, 0, -1), points[0], points[1])


def _best(first: Float[Tensor, " P"], second: Float[Tensor, " P"], able: Tensor) -> int:
    """The able point with the largest first number, and among equals the largest second."""
    peak = first.masked_fill(~able, -math.inf)
    tied = peak >= peak.max() - 1e-12
    return int(second.masked_fill(~tied, -math.inf).argmax())
