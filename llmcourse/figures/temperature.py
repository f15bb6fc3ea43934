"""What temperature does: one distribution at several temperatures, and whether its promises hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from llmcourse.decoding.metrics import CalibrationBin, expected_calibration_error
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable


@dataclass(frozen=True)
class TemperatureFamily:
    """The likeliest tokens of one distribution, at several temperatures."""

    temperatures: tuple[float, ...]
    labels: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]  # [temperature][token]
    others: tuple[float, ...]  # the probability of all tokens that are not listed
    entropies: tuple[float, ...]  # nats, over the whole vocabulary


def temperature_family(
    logits: Float[Tensor, " V"],
    temperatures: Sequence[float],
    label: Callable[[int], str],
    rows: int = 10,
) -> TemperatureFamily:
    """softmax(logits / T) for every T; T = 0 is the limit, all probability on the likeliest token."""
    top = logits.sort(descending=True, stable=True).indices[:rows]
    tables = [_tempered(logits, temperature) for temperature in temperatures]
    return TemperatureFamily(
        temperatures=tuple(float(t) for t in temperatures),
        labels=tuple(label(token) for token in top.tolist()),
        probabilities=tuple(tuple(p[top].tolist()) for p in tables),
        others=tuple(max(0.0, 1 - p[top].sum().item()) for p in tables),
        entropies=tuple(torch.special.entr(p).sum().item() for p in tables),
    )


def _tempered(logits: Float[Tensor, " V"], temperature: float) -> Float[Tensor, " V"]:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be in [0, inf), got {temperature}; use 0 for greedy search")
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    return (logits.double() / temperature).softmax(-1)


def plot_temperatures(data: TemperatureFamily, title: str = "One distribution, several temperatures"):
    """A column of bars for each temperature; tokens share their row."""
    rows, columns = len(data.labels), len(data.temperatures)
    with look.style():
        height = 1.45 + 0.25 * (rows + 1)
        picture = look.Picture(look.WIDTH, height)
        flattest, sharpest = data.temperatures[-1], data.temperatures[0]
        look.heading(picture, title, "Low temperatures sharpen, high ones flatten; the order never changes.")
        left, width, gap = 0.155, 0.84 / columns, 0.03
        for column, temperature in enumerate(data.temperatures):
            place = (left + column * width, 0.42 / height, width - gap, 1 - 1.5 / height)
            axes = picture.add_axes(place)
            _temperature_column(axes, data, column)
            name = f"T = {temperature:g}"
            axes.set_title(f"{name}\n", size=11)
            nats = f"{data.entropies[column]:.2f} nats"
            axes.text(0, 1.02, nats, transform=axes.transAxes, size=9.5, color=look.MUTED)
            if column == 0:
                labels = [*(look.token(label, 13) for label in data.labels), "all others"]
                axes.set_yticks(range(rows + 1), labels)
                axes.text(
                    -0.04, 1.02, "entropy", transform=axes.transAxes, size=9.5, color=look.MUTED, ha="right"
                )
        entropies = f"{data.entropies[0]:.2f} to {data.entropies[-1]:.2f} nats"
        picture.alt = f"{title}: entropy {entropies} from temperature {sharpest:g} to {flattest:g}."
    return picture


def _temperature_column(axes, data: TemperatureFamily, column: int) -> None:
    values = [*data.probabilities[column], data.others[column]]
    colors = [look.KEPT] * len(data.labels) + [look.LINE]
    axes.barh(range(len(values)), values, height=0.7, color=colors)
    for row, value in enumerate(values):
        inside = value > 0.7
        place, side = (value - 0.02, "right") if inside else (value + 0.02, "left")
        color = look.PAPER if inside and row < len(data.labels) else look.MUTED
        name = f"{value:.1%}" if value >= 0.0005 else ""  # a column of zeros says nothing
        axes.text(place, row, name, size=8.5, va="center", ha=side, color=color)
    axes.set(xlim=(0, 1.0), ylim=(len(values) - 0.4, -0.6), yticks=[], xticks=[0, 0.5, 1])
    axes.set_xticklabels(["0", "50%", ""])
    look.bare(axes, "left")


def plot_calibration(
    curves: Mapping[str, Sequence[CalibrationBin]],
    title: str = "Does a promised probability come true?",
):
    """Probability promised against frequency observed, one line for each entry; on the diagonal they agree.

    Bars are 95 % intervals of the observed frequency (Wilson 1927).

    Args:
        curves: bins of `llmcourse.decoding.metrics.calibration` by the name to print beside the
            line; at most four.

    Raises:
        ValueError: more curves than can be told apart.
    """
    if not 1 <= len(curves) <= len(look.SERIES):
        raise ValueError(f"curves must hold 1 to {len(look.SERIES)} entries, got {len(curves)}")
    with look.style():
        picture = look.Picture(6.6, 5.4)
        look.heading(picture, title, "Below the diagonal the model promises too much.", left=0.02)
        axes = picture.add_axes((0.115, 0.105, 0.70, 0.745))
        axes.plot([0, 1], [0, 1], color=look.LINE, linewidth=1.2, zorder=0)
        for index, (name, bins) in enumerate(curves.items()):
            _calibration_curve(axes, name, bins, index)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="probability promised", ylabel="frequency observed")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
            axis.set_major_locator(MaxNLocator(5))
        errors = [f"{name} {expected_calibration_error(bins):.1%}" for name, bins in curves.items()]
        picture.alt = f"{title} Expected calibration error: {', '.join(errors)}."
    return picture


def _calibration_curve(axes, name: str, bins: Sequence[CalibrationBin], index: int) -> None:
    color, marker = look.SERIES[index], look.MARKERS[index]
    x, y = [b.confidence for b in bins], [b.frequency for b in bins]
    spans = [wilson_interval(b.frequency, b.count) for b in bins]
    below = [max(0.0, f - low) for f, (low, _) in zip(y, spans, strict=True)]
    above = [max(0.0, high - f) for f, (_, high) in zip(y, spans, strict=True)]
    axes.errorbar(x, y, yerr=(below, above), fmt="none", ecolor=color, elinewidth=1, alpha=0.6)
    axes.plot(x, y, color=color, marker=marker, markersize=5.5, linewidth=1.6)
    y = 0.97 - 0.12 * index
    error = f"{readable(name)}\nECE {expected_calibration_error(bins):.1%}"
    axes.text(1.075, y + 0.022, error, color=color, size=10, va="top", transform=axes.transAxes)
    axes.plot(1.04, y, color=color, marker=marker, transform=axes.transAxes, clip_on=False)


def wilson_interval(frequency: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Where the true rate lies with 95 % confidence, given the rate seen in `count` trials."""
    spread = z * math.sqrt(frequency * (1 - frequency) / count + z * z / (4 * count * count))
    middle, scale = frequency + z * z / (2 * count), 1 + z * z / count
    return (middle - spread) / scale, (middle + spread) / scale
