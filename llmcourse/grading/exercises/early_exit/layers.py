"""Layers of which one is the first that is sure: what each exit says, drawn for a case of 04.entropy_exit."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse.grading.exercises.early_exit import drawn as exits

MARGIN = 0.02  # nats between an entropy and the threshold
NEAREST = 1e-4  # where a case is about what is near to it
WIDEST = 80.0  # between two logits of a row: no p is 0 in float32 but where a case is about that
FAR = 200.0  # there


@dataclass(frozen=True)
class Exits:
    """What each exit says, a fresh copy each time."""

    said: tuple[tuple[float, ...], ...]

    def __call__(self, n: object) -> Float[Tensor, " V"]:
        """The logits after layer n, which is its name for students too.

        Raises:
            TypeError: the number is no int.
            ValueError: there is no such layer.
        """
        if type(n) is not int:
            raise TypeError("exit_logits must be given the number of a layer, an int")
        if not 1 <= n <= len(self.said):
            raise ValueError(f"exit_logits must be given a layer in [1, {len(self.said)}], got {n}")
        return torch.tensor(self.said[n - 1], dtype=torch.float32)


@dataclass(frozen=True)
class Plan:
    """What the layers of a case are to be.

    Args:
        leaves: the number of the first layer that is sure; 0: none is.
        threshold: None to draw one.
        share: of the threshold, between which the entropy of the sure layer lies.
        margin: nats that every entropy is away from the threshold, at least.
        more: the least and the most tokens that there are besides a favourite for each layer.
        row: draws logits, from a vocabulary, a favourite and an entropy.
        changed: makes other rows of those that were drawn, given the plan.
    """

    leaves: int
    layers: int
    threshold: float | None = None
    share: tuple[float, float] = (0.75, 0.9)
    margin: float = MARGIN
    more: tuple[int, int] = (2, 3)
    row: Callable[..., Tensor] = exits.of_entropy
    changed: Callable[..., list[list[float]]] = lambda rng, rows, plan: rows

    def arguments(self, rng: random.Random) -> dict[str, Any]:
        """Of a call; no entropy is near the threshold, but where that is 0."""
        while True:
            threshold = round(rng.uniform(0.5, 0.8), 2) if self.threshold is None else self.threshold
            rows = self.changed(rng, self._said(rng, threshold or 0.6), self)
            off = [abs(exits.entropy(row) - threshold) for row in rows]
            if not threshold or min(off) > self.margin:
                model = Exits(tuple(map(tuple, rows)))
                return {"exit_logits": model, "num_layers": self.layers, "threshold": threshold}

    def _said(self, rng: random.Random, threshold: float) -> list[list[float]]:
        """Logits of which each layer has another favourite."""
        vocab = self.layers + rng.randint(*self.more)
        favourites, rows = rng.sample(range(vocab), self.layers), []
        while len(rows) < self.layers:
            nats = self._entropy(rng, len(rows) + 1, threshold, vocab)
            row = self.row(rng, vocab, favourites[len(rows)], nats).tolist()
            rows += [row] if max(row) - min(row) < WIDEST else []
        return rows

    def _entropy(self, rng: random.Random, number: int, threshold: float, vocab: int) -> float:
        """Of a layer, from 1. Those behind the exit are surer and less sure in turn; the first of all
        knows next to nothing.
        """
        behind = number - self.leaves
        if number == self.leaves:
            return rng.uniform(*self.share) * threshold
        if self.leaves and behind > 0 and behind % 2 == 0:
            return (rng.uniform(0.4, 0.6) if behind == 2 else rng.uniform(0.2, 0.3)) * threshold
        if number == 1:
            return min(1.1 * threshold, 0.9) * math.log(vocab)
        return rng.uniform(1.2, 1.9) * threshold


def just_below(rng: random.Random, plan: Plan) -> Plan:
    """A threshold of one digit, and an entropy that is it as soon as it is rounded."""
    threshold = rng.choice((0.5, 0.6, 0.7, 0.8))
    share = 1 - 4e-4 / threshold, 1 - 2e-4 / threshold
    return replace(plan, threshold=threshold, share=share, margin=NEAREST)


def with_a_certain_one(rng: random.Random, rows: list[list[float]], plan: Plan) -> list[list[float]]:
    """One answer is all that a layer allows; it is not the last layer."""
    row = rows[rng.randrange(1, plan.layers - 1)]
    peak = row.index(max(row))
    row[:] = [3.0 if token == peak else -math.inf for token in range(len(row))]
    return rows


def with_few_possible(rng: random.Random, rows: list[list[float]], plan: Plan) -> list[list[float]]:
    """Two or three answers are possible at the exit, with logits far below 0; elsewhere all but one."""
    for row in rows:
        row[row.index(min(row))] = -math.inf
    row = rows[plan.leaves - 1]
    favourite, count, nats = row.index(max(row)), rng.choice((2, 3)), rng.uniform(0.35, 0.45)
    others = rng.sample([token for token in range(len(row)) if token != favourite], count - 1)
    possible = (exits.of_entropy(rng, count, 0, nats) - rng.uniform(45.0, 55.0)).tolist()
    row[:] = [-math.inf] * len(row)
    for token, logit in zip((favourite, *others), possible, strict=True):
        row[token] = logit
    return rows


def with_a_far_one(rng: random.Random, rows: list[list[float]], plan: Plan) -> list[list[float]]:
    """The least likely answer of the exit is so far below that its p is 0 in float32."""
    row = rows[plan.leaves - 1]
    row[row.index(min(row))] = max(row) - FAR
    return rows


def with_a_tie(rng: random.Random, rows: list[list[float]], plan: Plan) -> list[list[float]]:
    """Two answers are as likely at the exit."""
    vocab = len(rows[0])
    equal = rng.sample(range(vocab), 2)
    rows[plan.leaves - 1] = [6.0 if token in equal else -9.0 - token for token in range(vocab)]
    return rows
