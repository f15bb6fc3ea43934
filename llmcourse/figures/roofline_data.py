"""What a roofline shows: the ceilings of a machine, the operations of a model, and runs that were timed.

FLOP/s ≤ min(peak, intensity · bandwidth)      (Williams, Waterman and Patterson 2009)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmcourse.hardware.dtypes import dtype_name
from llmcourse.roofline import Limits, Prediction, ridge

MAX_SERIES = 2  # a step above the roof, another below it
LEAST_INTENSITY = 0.1


@dataclass(frozen=True)
class Point:
    """One operation.

    Attributes:
        number: as in the tables, ①, ②, …
        intensity: FLOP/byte, 0 where nothing is computed: there is no place for that on a log scale.
        flops_per_s: that the roof allows.
        bound: "memory" or "compute".
        share: of the time of its series.
    """

    number: str
    name: str
    intensity: int | float
    flops_per_s: int | float
    bound: str
    share: float


@dataclass(frozen=True)
class Measured:
    """A run that was timed: a name to print beside it, its FLOPs per byte, and FLOP/s reached."""

    name: str
    intensity: int | float
    flops_per_s: int | float

    def __post_init__(self):
        if not (self.intensity > 0 and self.flops_per_s > 0):
            raise ValueError(
                f"intensity and flops_per_s must be above 0, got {self.intensity} and {self.flops_per_s}; "
                "what computes nothing has no place on a roofline"
            )


@dataclass(frozen=True)
class Roofline:
    """What the figure shows.

    Attributes:
        machine: its name.
        bytes_per_s: the slope of the roof.
        peaks: FLOP/s of every format, and
        dtype: the one that the points calculate in.
        series: points by the name of a step, such as "prefill".
    """

    machine: str
    bytes_per_s: float
    peaks: tuple[tuple[str, float], ...]
    dtype: str
    series: tuple[tuple[str, tuple[Point, ...]], ...]
    measured: tuple[Measured, ...] = ()

    @property
    def peak(self) -> float:
        return dict(self.peaks)[self.dtype]

    @property
    def ridge(self) -> float:
        return self.peak / self.bytes_per_s

    @property
    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Of the axes, in whole decades of intensity so that they keep still."""
        points = (point for _, points in self.series for point in points)
        farthest = max((p.intensity for p in (*points, *self.measured)), default=1.0)
        right = 1e4
        while right < 1.5 * farthest:
            right *= 10
        slowest = min((m.flops_per_s for m in self.measured), default=math.inf)
        low = min(self.bytes_per_s * LEAST_INTENSITY, slowest) / 2
        return (LEAST_INTENSITY, right), (low, 2.5 * max(peak for _, peak in self.peaks))

    @property
    def summary(self) -> str:
        """The points in words."""
        steps = [f"{name}: {bound_words(points)}." for name, points in self.series]
        runs = [
            f"Measured {m.name}: {rate(m.flops_per_s)} at {short(m.intensity)} FLOP/byte."
            for m in self.measured
        ]
        return " ".join([f"ridge {self.ridge:.1f} FLOP/byte.", *steps, *runs])


def roofline_data(
    machine: Limits,
    steps: Mapping[str, Sequence[Prediction]],
    dtype: str = "bf16",
    *,
    measured: Iterable[Measured] = (),
) -> Roofline:
    """The data of the figure.

    Args:
        machine: a datasheet or measured ceilings.
        steps: what `roofline.predict_all` says of the operations of a layer, by the name of the
            step; at most two, of the same operations, since they share their numbers.
        dtype: that is calculated in.

    Raises:
        ValueError: more steps than can be told apart, steps of different operations, or the machine
            lacks the format.
    """
    if len(steps) > MAX_SERIES:
        raise ValueError(f"steps must be at most {MAX_SERIES}, got {len(steps)}: {', '.join(steps)}")
    if len({tuple(p.name for p in predictions) for predictions in steps.values()}) > 1:
        raise ValueError("steps must have the same operations, got different ones; give both a cache")
    ridge(machine, dtype)  # refuses a format that the machine lacks
    series = tuple((name, _points(predictions)) for name, predictions in steps.items())
    peaks = tuple(sorted(machine.peaks.items(), key=lambda item: item[1]))
    return Roofline(machine.name, machine.bytes_per_s, peaks, dtype_name(dtype), series, tuple(measured))


def _points(predictions: Sequence[Prediction]) -> tuple[Point, ...]:
    whole_s = sum(p.time_s for p in predictions)
    return tuple(
        Point(circled(i), p.name, p.cost.intensity, p.flops_per_s, p.bound, p.time_s / whole_s)
        for i, p in enumerate(predictions, 1)
    )


def circled(number: int) -> str:
    """① for 1; past ⑩, where our fonts end, (11)."""
    return chr(ord("①") + number - 1) if number <= 10 else f"({number})"


def bound_words(points: Sequence[Point]) -> str:
    """Which operations are bound by what, in words, with their shares of the time."""
    parts = []
    for bound, limit in (("compute", "arithmetic"), ("memory", "memory")):
        bounded = [point for point in points if point.bound == bound]
        if bounded:
            names = "all operations" if len(bounded) == len(points) else ", ".join(p.name for p in bounded)
            parts.append(f"bound by {limit} {names} ({sum(p.share for p in bounded):.0%} of the time)")
    return "; ".join(parts)


def ceilings(peaks: Iterable[tuple[str, float]]) -> list[dict[str, float]]:
    """Formats whose peaks cannot be told apart on the page, together, from the lowest up."""
    found: list[dict[str, float]] = []
    for name, peak in sorted(peaks, key=lambda item: item[1]):
        if found and peak < 1.15 * max(found[-1].values()):
            found[-1][name] = peak
        else:
            found.append({name: peak})
    return found


def ceiling_name(formats: Mapping[str, float]) -> str:
    """`bf16, fp16 312 TFLOP/s`, and each with its own where they differ."""
    if len(set(formats.values())) == 1:
        return f"{', '.join(formats)} {rate(max(formats.values()))}"
    return ", ".join(f"{name} {rate(peak)}" for name, peak in formats.items())


def rate(flops_per_s: int | float) -> str:
    """`312 TFLOP/s`, with the prefix that suits the size."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if flops_per_s >= 0.9995 * 10**power:
            return f"{flops_per_s / 10**power:.3g} {prefix}FLOP/s"
    return f"{flops_per_s:,.0f} FLOP/s"


def short(intensity: int | float) -> str:
    """With as many digits as a table has room for; nothing computed is a dash."""
    if intensity == 0:
        return "–"
    digits = 0 if intensity >= 100 else 1 if intensity >= 2 else 2
    return f"{intensity:,.{digits}f}"
