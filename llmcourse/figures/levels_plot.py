"""A rounded weight: its histogram over the levels, the error on the same axis, the codes, and what bits buy.

The lower right panel has a curve for each granularity, a mark for each width from 2 to 8 bits under min–max.
Its circle is what is shown, whose range may be another: above its curve, clipping pays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.ticker import FuncFormatter, LogLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.rounded_weight import GRANULARITIES, RoundedWeight, RoundingInputs, in_words

BINS, ERROR_BINS = 81, 161
HEIGHT = 4.9
WIDEST, WIDEST_ERROR = 8.0, 1.6  # root mean squares of the weight: where axes end; the last bin has the rest
SHADES = LinearSegmentedColormap.from_list("granularity", ["#a9c8e2", look.SERIES[0], "#061a2e"])
FINEST = 33  # levels that are still drawn from top to bottom; more are strokes at the edge
BARS = {"facecolor": look.KEPT, "edgecolor": "none"}
CLIPPED = {"facecolor": look.CUT, "edgecolor": look.ACCENT, "hatch": look.CUT_HATCH, "linewidth": 0.8}


class LevelsPlot:
    """The figure of one weight, made once and then redrawn for other settings: fast enough for a slider.

    Args:
        weight: (N, K), as it is rounded.
        curves: of `trade_offs`, for symmetric ranges (True) and asymmetric ones.

    Raises:
        ValueError: a weight that is 0 throughout, which has no axis.
    """

    def __init__(self, weight: np.ndarray, curves: Mapping[bool, Mapping[str, Sequence[tuple]]]):
        rms = float(np.sqrt(np.square(weight, dtype=float).mean()))
        if not rms:
            raise ValueError(
                "weight must have a number that is not 0, got zeros alone; nothing is lost there"
            )
        self.curves = curves
        self.limit = min(WIDEST * rms, 1.04 * float(np.abs(weight).max()))
        self.error_limit = WIDEST_ERROR * rms
        self.edges = np.linspace(-self.limit, self.limit, BINS + 1)
        self.fine_edges = np.linspace(-self.error_limit, self.error_limit, ERROR_BINS + 1)
        with look.style():
            self.figure = look.Picture(look.WIDTH, HEIGHT)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            self.weights = self.figure.add_axes((0.06, 0.465, 0.52, 0.345))
            self.errors = self.figure.add_axes((0.06, 0.10, 0.52, 0.22))
            self.usage = self.figure.add_axes((0.655, 0.615, 0.325, 0.195))
            self.bought = self.figure.add_axes((0.655, 0.10, 0.325, 0.37))
            self._make_weights(weight)
            self._make_errors()
            self._make_usage()
            self._make_bought()
        parts = [self._clipped, self._levels, self._ends, self._error, self._half, self._codes, self._here]
        self.figure.moving = [*parts, self.title, self.subtitle, self._entropy, self._step]

    def _make_weights(self, weight: np.ndarray) -> None:
        axes = self.weights
        counts = _counts(weight, self.edges)
        axes.stairs(_seen(counts), self.edges, fill=True, baseline=0.5, **BARS)
        self._clipped = axes.stairs(_seen(0 * counts), self.edges, fill=True, baseline=0.5, **CLIPPED)
        axes.set(yscale="log", xlim=(-self.limit, self.limit), ylim=(0.5, 2.0 * counts.max()))
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        axes.tick_params(labelsize=9.5)
        self._levels = LineCollection([], colors=look.INK)
        self._levels.set_transform(axes.get_xaxis_transform())
        axes.add_collection(self._levels, autolim=False)
        self._ends = LineCollection([], colors=look.ACCENT, linewidths=1.4)
        self._ends.set_transform(axes.get_xaxis_transform())
        axes.add_collection(self._ends, autolim=False)
        _name(axes, "weights, log scale")
        keys = ((0.727, "│ levels of a typical group", look.INK), (0.84, "│ ends", look.ACCENT))
        for x, words, color in (*keys, (1.0, "▨ clipped", look.ACCENT)):
            axes.text(x, 1.05, words, transform=axes.transAxes, size=9, ha="right", color=color)

    def _make_errors(self) -> None:
        axes = self.errors
        none = np.zeros(ERROR_BINS)
        self._error = axes.stairs(none, self.fine_edges, fill=True, color=look.SERIES[1])
        self._half = LineCollection([], colors=look.INK, linewidths=0.9, linestyles=[(0, (3, 2))])
        self._half.set_transform(axes.get_xaxis_transform())
        axes.add_collection(self._half, autolim=False)
        axes.set(xlim=(-self.error_limit, self.error_limit), ylim=(0, 1.08), yticks=[])
        axes.tick_params(labelsize=9.5)
        _name(axes, "error w̃ − w")
        words = {"transform": axes.transAxes, "size": 9.5, "ha": "right", "color": look.MUTED}
        self._step = axes.text(1, 1.05, "", **words)

    def _make_usage(self) -> None:
        axes = self.usage
        self._codes = axes.stairs([0.0], [0.0, 1.0], fill=True, color=look.SERIES[0])
        axes.set(xlim=(0, 1), ylim=(0, 1.08), yticks=[])
        axes.set_xticks([0, 1], ["least code", "largest"])
        for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
            label.set_ha(side)
        axes.tick_params(labelsize=9.5, pad=1)
        _name(axes, "how often codes are taken")
        words = {"transform": axes.transAxes, "size": 9.5, "va": "top", "color": look.MUTED}
        self._entropy = axes.text(0.01, 0.98, "", **words)

    def _make_bought(self) -> None:
        axes = self.bought
        axes.set(xlim=(1.8, 9), xlabel="bits a weight, scales included")
        highest = max(snr for curves in self.curves.values() for line in curves.values() for _, snr in line)
        axes.set_ylim(-1, 1.12 * max(highest, 10) if math.isfinite(highest) else 60)
        axes.grid(color="#eceff2", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9.5)
        look.fix_label(axes)
        self._lines = {}
        for index, name in enumerate(GRANULARITIES):
            shade = to_hex(SHADES(index / (len(GRANULARITIES) - 1)))
            style = {"color": shade, "marker": "osv^D"[index], "markersize": 4, "linewidth": 1.3}
            self._lines[name] = axes.plot([], [], label=name, **style)[0]
        ring = {"markersize": 11, "markeredgewidth": 2.2, "markerfacecolor": "none", "linestyle": "none"}
        self._here = axes.plot([], [], "o", markeredgecolor=look.ACCENT, zorder=5, **ring)[0]
        place = {"loc": "upper left", "handlelength": 1.6, "borderaxespad": 0.1, "labelspacing": 0.25}
        drawn = [line for name, line in self._lines.items() if any(name in c for c in self.curves.values())]
        axes.legend(handles=drawn[::-1], fontsize=9.5, **place)
        _name(axes, "signal to noise, dB")
        note = {"transform": axes.transAxes, "size": 9.5, "color": look.MUTED, "ha": "right"}
        axes.text(1, 1.05, "lines: min–max", **note)

    def update(self, rounded: RoundedWeight, inputs: RoundingInputs, title: str) -> look.Picture:
        """Shows the weight rounded otherwise."""
        words = in_words(rounded, inputs)
        with look.style():
            self.title.set_text(readable(title))
            self.subtitle.set_text(words)
            self._move_levels(rounded)
            self._move_errors(rounded)
            usage = rounded.usage.numpy()
            self._codes.set_data(usage / usage.max(), np.linspace(0, 1, len(usage) + 1))
            self._entropy.set_text(f"{rounded.entropy_bits:.2f} of {inputs.bits} bits")
            self._here.set_data([rounded.bits_per_weight], [max(min(rounded.snr_db, 99), -0.5)])
            if self.figure.still_key != inputs.symmetric:
                for name, line in self._lines.items():
                    points = self.curves[inputs.symmetric].get(name, [])
                    line.set_data([bits for bits, _ in points], [snr for _, snr in points])
                self.figure.still_key = inputs.symmetric
        kind = "symmetric" if inputs.symmetric else "asymmetric"
        how = f"{inputs.bits} bits, {kind}, by {inputs.granularity}, range by {inputs.range_method}"
        self.figure.alt = f"{title}: {how}; {words}; codes hold {rounded.entropy_bits:.2f} bits."
        return self.figure

    def _move_levels(self, rounded: RoundedWeight) -> None:
        self._clipped.set_data(_seen(_counts(rounded.weight[rounded.clipped].numpy(), self.edges)))
        levels = rounded.levels
        top, width = (1.0, 0.7) if len(levels) <= FINEST else (0.10, 0.4)
        self._levels.set_linewidth(width)
        shown = [x for x in levels if abs(x) <= self.limit]
        self._levels.set_segments([[(x, 0), (x, top)] for x in shown])
        self._ends.set_segments([[(x, 0), (x, 1)] for x in (levels[0], levels[-1]) if abs(x) <= self.limit])

    def _move_errors(self, rounded: RoundedWeight) -> None:
        counts = _counts((rounded.restored - rounded.weight).numpy(), self.fine_edges)
        self._error.set_data(counts / max(1, counts.max()))
        half = rounded.step / 2
        self._half.set_segments([[(x, 0), (x, 1)] for x in (-half, half) if half <= self.error_limit])
        self._step.set_text(f"┆ half a step of the typical group: {half:.3g}")


def _name(axes, name: str) -> None:
    axes.text(0, 1.05, name, transform=axes.transAxes, weight="bold", size=10.5)


def _counts(numbers: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many lie in each bin; what is beyond counts in the last one."""
    return np.histogram(numbers.clip(edges[0], edges[-1]), edges)[0]


def _seen(counts: np.ndarray) -> np.ndarray:
    """Gaps where there is nothing: a log scale has no 0."""
    return np.where(counts > 0, counts, np.nan)
