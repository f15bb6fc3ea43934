"""How to time: warm up, wait for the device, repeat, and report the median with its spread.

The first calls pay for compilation, allocation and cold caches; a GPU returns before it has done
the work; and one slow repetition says more of the machine than of the code. Hence the three steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one thing, in the order they were taken.

    Raises:
        ValueError: there is no time, or one is negative.
    """

    times_s: tuple[float, ...]

    def __post_init__(self):
        if not self.times_s or min(self.times_s) < 0:
            raise ValueError(f"times_s must be one or more times of at least 0 s, got {self.times_s}")

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    @property
    def spread(self) -> float:
        """The middle half of the times over their median: (Q3 − Q1) / median, 0 for a single run."""
        if len(self.times_s) == 1 or self.median_s == 0:
            return 0.0
        low, _, high = statistics.quantiles(self.times_s, n=4, method="inclusive")
        return (high - low) / self.median_s

    def __str__(self) -> str:
        return f"{self.median_s * 1e3:.3g} ms ± {self.spread / 2:.0%} (median of {len(self.times_s)})"


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done what it was given; the CPU always has."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def measure(
    run: Callable[[], object],
    *,
    device: torch.device | str = "cpu",
    warmup: int = 3,
    repeats: int = 20,
) -> Timing:
    """Times `run()`, device work included.

    Args:
        device: where the work happens; each repetition ends when it is idle.
        warmup: runs that are not counted, at least 0.
        repeats: runs that are, at least 1.

    Raises:
        ValueError: `warmup` or `repeats` is too small.
    """
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, got {warmup}; use 0 to time the first run too")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}; use 1 for a single run")
    for _ in range(warmup):
        run()
    return Timing(tuple(_seconds(run, device) for _ in range(repeats)))


def _seconds(run: Callable[[], object], device: torch.device | str) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start
