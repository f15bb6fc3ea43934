"""How to time: warm up, wait for the device, repeat, and report the median with its spread.

The first calls pay for compilation, allocation and cold caches; a GPU returns before it has done
the work; and one slow repetition says more of the machine than of the code. Hence the three steps.
A fourth is the caller's: inputs that stay in the cache are faster than any memory, so hand out
copies in turn (`Rotation`) where the real work would find its inputs in memory.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmcourse.progress import bar

PATIENCE_S = 1.0  # what takes longer shows a bar


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one thing, in the order they were taken.

    Raises:
        ValueError: there is no time, or one is negative or no finite number.
    """

    times_s: tuple[float, ...]

    def __post_init__(self):
        if not self.times_s or not all(0 <= time_s < math.inf for time_s in self.times_s):
            raise ValueError(
                f"times_s must be one or more times of at least 0 s, got {self.times_s}; measure() takes them"
            )

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
    progress: str = "",
) -> Timing:
    """Times `run()`, device work included.

    On CUDA the GPU's own clock is read, by events around each repetition, and the repetitions follow
    one another without waiting for the host: what is timed is the work, not its launch, as long as
    the work is the longer. Elsewhere each repetition ends when the device is idle.

    Args:
        device: where the work happens.
        warmup: runs that are not counted, at least 0.
        repeats: runs that are, at least 1.
        progress: what a bar of all runs is called that takes longer than a moment, `""` for none. It is
            moved between runs, never within one.

    Raises:
        ValueError: `warmup` or `repeats` is too small.
    """
    _check_counts(warmup, repeats)
    count = warmup + repeats
    with bar(None, progress, total=count, unit="run", shown=bool(progress), after_s=PATIENCE_S) as shown:
        for _ in range(warmup):
            run()
            shown.update()
        if torch.device(device).type == "cuda":
            return Timing(_event_seconds(run, device, repeats))
        times_s = []
        for _ in range(repeats):
            times_s.append(_seconds(run, device))
            shown.update()
    return Timing(tuple(times_s))


def measure_in_turns(
    runs: Mapping[Hashable, Callable[[], object]],
    *,
    device: torch.device | str = "cpu",
    warmup: int = 1,
    repeats: int = 20,
    progress: str = "",
) -> dict[Hashable, Timing]:
    """Times several things to be compared, one repetition of each after the other.

    What slows the machine down for a while then slows all of them, and hardly moves their ratios.

    Args:
        runs: by name.
        warmup, repeats: rounds that are not counted, and that are; as in `measure`.
        progress: as in `measure`, of all rounds.

    Raises:
        ValueError: `warmup` or `repeats` is too small.
    """
    _check_counts(warmup, repeats)
    times_s: dict[Hashable, tuple[float, ...]] = dict.fromkeys(runs, ())
    rounds = range(warmup + repeats)
    for number in bar(rounds, progress, unit="round", shown=bool(progress), after_s=PATIENCE_S):
        for name, run in runs.items():
            taken = measure(run, device=device, warmup=0, repeats=1)
            times_s[name] += taken.times_s if number >= warmup else ()
    return {name: Timing(found) for name, found in times_s.items()}


def _check_counts(warmup: int, repeats: int) -> None:
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, got {warmup}; use 0 to time the first run too")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}; use 1 for a single run")


def _event_seconds(run: Callable[[], object], device: torch.device | str, repeats: int) -> tuple[float, ...]:
    """Events lie in the device's stream, so that they are reached when the work before them is done."""
    with torch.cuda.device(device):
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
        synchronize(device)
        for start, end in events:
            start.record()
            run()
            end.record()
        synchronize(device)
    return tuple(start.elapsed_time(end) / 1e3 for start, end in events)


def _seconds(run: Callable[[], object], device: torch.device | str) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


class Rotation:
    """Copies of an operation's inputs, handed out in turn, that together outgrow the cache.

        inputs = Rotation(x, weight)
        measure(lambda: F.linear(*inputs()), device="cuda")

    Between two uses of a copy twice the cache has been read in others.

    Args:
        tensors: the inputs; the first copy is these themselves.
        cache_bytes: to outgrow; that of the tensors' device if None.

    Raises:
        ValueError: there are no tensors, they hold nothing, or `cache_bytes` is negative.
    """

    def __init__(self, *tensors: Tensor, cache_bytes: int | None = None):
        size_bytes = sum(tensor.nbytes for tensor in tensors)
        if size_bytes == 0:
            raise ValueError("tensors must hold at least one byte, got none; give the inputs to rotate")
        if cache_bytes is None:
            cache_bytes = last_level_cache_bytes(tensors[0].device)
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes must be at least 0, got {cache_bytes}; use 0 for a single copy")
        others = math.ceil(2 * cache_bytes / size_bytes)
        self.copies = (tensors, *(tuple(tensor.clone() for tensor in tensors) for _ in range(others)))
        self._turns = itertools.cycle(self.copies)

    def __len__(self) -> int:
        return len(self.copies)

    def __call__(self) -> tuple[Tensor, ...]:
        """The next copy."""
        return next(self._turns)


def last_level_cache_bytes(device: torch.device | str) -> int:
    """The L2 of a GPU; the largest cache of a CPU, 64 MiB where the system does not tell it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")  # "32K" and the like, on Linux
    return max((int(file.read_text().strip().removesuffix("K")) * 1024 for file in files), default=64 * 2**20)
