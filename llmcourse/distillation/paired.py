"""Kinds of training compared seed by seed: what one gains over another, and how sure that is.

    d_s = value of a kind − value of the baseline, both of seed s;      mean d ± s_d / √n

A seed decides first weights and the order of the text, so what was lucky for one kind was so for the other,
and their difference knows nothing of it (a paired comparison; Student 1908). n runs are few: with three, an
error is itself known to a half, and two standard errors are no proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmcourse.decoding.errors import require
from llmcourse.decoding.estimate import Estimate

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Paired:
    """A kind of training beside the baseline, for one student on one domain.

    Attributes:
        value, baseline: means over the seeds that both have, and their standard errors.
        difference: of the first over the second, seed by seed.
    """

    student: str
    domain: str
    kind: str
    num_seeds: int
    value: Estimate
    baseline: Estimate
    difference: Estimate

    @property
    def errors(self) -> float:
        """How many standard errors the difference is away from 0; its sign is that of the difference."""
        mean, error = self.difference.mean, self.difference.error
        if error:
            return mean / error
        return math.copysign(math.inf, mean) if mean else 0.0

    def __str__(self) -> str:
        return (
            f"{self.student}, {self.domain}, {self.kind}: {self.value} against {self.baseline}, "
            f"{self.difference.mean:+.4f} ± {self.difference.error:.4f} over {self.num_seeds} seeds"
        )


def paired(runs: Sequence[Run], quantity: str, *, baseline: str = "scratch") -> list[Paired]:
    """Every kind beside the baseline, in the order in which they come.

    Args:
        runs: a mapping for each student, domain, kind and seed, with these four, `steps`, and the quantity.
            Of two for the same the last one counts.
        quantity: "nats", "acceptance" and so on.
        baseline: a kind.

    Raises:
        ValueError: no run of the baseline, runs of different lengths, or fewer than two seeds that a kind
            shares with the baseline.
    """
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for run in runs:
        place = run["student"], run["domain"], run["kind"]
        values.setdefault(place, {})[run["seed"]] = run[quantity]
    lengths = sorted({run["steps"] for run in runs})
    require(len(lengths) <= 1, "runs", "of one number of steps", lengths, "choose those of one study")
    kinds = ", ".join(dict.fromkeys(kind for _, _, kind in values)) or "none"
    known = any(kind == baseline for _, _, kind in values)
    require(known, "baseline", f"a kind that was run: {kinds}", repr(baseline), "run it, or name another")
    return [
        _beside(place, found, values.get((*place[:2], baseline), {}))
        for place, found in values.items()
        if place[2] != baseline
    ]


def _beside(place: tuple[str, str, str], found: Mapping[int, float], base: Mapping[int, float]) -> Paired:
    seeds = sorted(found.keys() & base.keys())
    remedy = "train more of them: one has no spread"
    require(len(seeds) >= 2, f"seeds of {' '.join(place)}", "at least 2 of the baseline's", seeds, remedy)
    ours, theirs = (
        torch.tensor([side[seed] for seed in seeds], dtype=torch.float64) for side in (found, base)
    )
    estimates = (Estimate.of(values) for values in (ours, theirs, ours - theirs))
    return Paired(*place, len(seeds), *estimates)
