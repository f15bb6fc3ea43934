"""Several machines on one roofline: what each could do at most, and how far apart they are.

FLOP/s ≤ min(peak, intensity · bandwidth)      (Williams, Waterman and Patterson 2009)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmcourse.figures import style as look
from llmcourse.figures.roofline_data import rate

INTENSITY = (0.25, 4096.0)  # FLOP/byte, from left to right
MAX_MACHINES = len(look.SERIES)


@dataclass(frozen=True)
class Roof:
    """One machine: its memory's bytes a second, its FLOP/s, and where the two numbers come from.

    Raises:
        ValueError: a number is not positive.
    """

    name: str
    bytes_per_s: int | float
    flops_per_s: int | float
    source: str = "measured"

    def __post_init__(self):
        if not (self.bytes_per_s > 0 and self.flops_per_s > 0):
            raise ValueError(
                f"bytes_per_s and flops_per_s of {self.name} must be above 0, got {self.bytes_per_s} and "
                f"{self.flops_per_s}; measure them with hardware.measure_ceilings()"
            )

    @property
    def ridge(self) -> float:
        """FLOP/byte from which on arithmetic is the limit."""
        return self.flops_per_s / self.bytes_per_s

    def attainable(self, intensity: int | float | np.ndarray) -> int | float | np.ndarray:
        """FLOP/s at most, for an operation of so many FLOP/byte."""
        return np.minimum(self.flops_per_s, intensity * self.bytes_per_s)


def recorded_roof(device: str, rows: Mapping[str, Mapping[str, dict]]) -> Roof | None:
    """A device's roof from the limits beside its recorded benchmarks, None where they have not both.

    Args:
        rows: of `recorded.latest`.
    """
    kinds = {"GB/s": ("copy", 1e9), "TFLOP/s": ("bf16 matmul", 1e12)}
    best: dict[str, float] = {}
    for found in rows.values():
        row = found.get(device)
        if row is None or row["unit"] not in kinds or not row.get("limit"):
            continue
        word, scale = kinds[row["unit"]]
        if word in (row["limit_name"] or ""):
            best[row["unit"]] = max(best.get(row["unit"], 0.0), row["limit"] * scale)
    if set(best) != set(kinds):
        return None
    return Roof(device, best["GB/s"], best["TFLOP/s"], "recorded, bf16")


def plot_machines(roofs: Sequence[Roof], works: Mapping[str, int | float], title: str) -> look.Picture:
    """Each machine's roof on one pair of axes, and what work of some intensities gets from each.

    Args:
        works: FLOP/byte by name, such as decoding and reading a prompt.

    Raises:
        ValueError: no machine, or more than can be told apart.
    """
    if not 1 <= len(roofs) <= MAX_MACHINES:
        raise ValueError(f"roofs must be 1 to {MAX_MACHINES} machines, got {len(roofs)}; leave some out")
    x = np.geomspace(*INTENSITY, 200)
    with look.style():
        picture = look.Picture(height=4.3)
        look.heading(picture, title, "what a machine can do with each byte that its memory brings")
        axes = picture.add_axes((0.105, 0.13, 0.875, 0.67))
        axes.set(xscale="log", yscale="log", xlim=INTENSITY, xlabel="FLOP per byte")
        low = min(roof.attainable(INTENSITY[0]) for roof in roofs) / 2
        axes.set_ylim(low, 20 * max(roof.flops_per_s for roof in roofs))
        for index, roof in enumerate(roofs):
            color, marker = look.SERIES[index], look.MARKERS[index]
            axes.plot(x, roof.attainable(x), color=color, linewidth=2.4)
            for intensity in works.values():
                axes.plot(intensity, roof.attainable(intensity), marker, color=color, markersize=7)
            gb_per_s = roof.bytes_per_s / 1e9
            speed = f"{gb_per_s:,.0f}" if gb_per_s >= 100 else f"{gb_per_s:.3g}"
            words = f"{roof.name} ({roof.source}): {speed} GB/s, {rate(roof.flops_per_s)}"
            right = INTENSITY[1] / 1.1
            axes.annotate(
                look.readable(words),
                (right, roof.flops_per_s),
                (0, 5),
                textcoords="offset points",
                ha="right",
                color=color,
                weight="bold",
                size=9.5,
            )
        top = axes.get_ylim()[1]
        for name, intensity in works.items():
            axes.axvline(intensity, color=look.LINE, linestyle=(0, (3, 2)), linewidth=1, zorder=0)
            axes.text(intensity * 1.06, top / 1.25, name, va="top", size=9, color=look.MUTED)
        ticks = 10.0 ** np.arange(np.ceil(np.log10(low)), np.log10(top))
        ticks = ticks[ticks < 3 * max(roof.flops_per_s for roof in roofs)]
        axes.set_yticks(ticks, [rate(tick) for tick in ticks], size=8)
        axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
        axes.minorticks_off()
    picture.alt = f"{title}. {_in_words(roofs, works)}"
    return picture


def _in_words(roofs: Sequence[Roof], works: Mapping[str, int | float]) -> str:
    found = []
    for roof in roofs:
        reached = "; ".join(f"{name} {rate(roof.attainable(at))}" for name, at in works.items())
        found.append(f"{roof.name} ({roof.source}), ridge {roof.ridge:.1f} FLOP/byte: {reached}.")
    return " ".join(found)


def ratios(slow: Roof, fast: Roof, works: Mapping[str, int | float]) -> dict[str, float]:
    """How many times as much the faster machine could do, by work."""
    return {name: float(fast.attainable(at) / slow.attainable(at)) for name, at in works.items()}
