"""Activations as a strip of tokens and channels, with the columns that keep 16 bits, and what that saves.

Above the strip stands each channel's largest magnitude against the threshold; below it, over all thresholds,
the error of the layer's product and the share of values in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.outlier_split import LayerInput, Split

SHADES = LinearSegmentedColormap.from_list("magnitude", [look.PAPER, "#9fc0dc", look.SERIES[0], "#061a2e"])
MOST_LABELS, LETTERS = 24, 10  # tokens that are named beside their rows, and letters of each
HEAD, MAXIMA, GAP, PANEL, FOOT = 0.98, 0.85, 0.66, 1.05, 0.52  # inches
ROW, LEAST_STRIP = 0.145, 0.9  # so high that names do not touch
LEFT, RIGHT = 0.105, 0.985
LAST = 1.5  # where ∞ is drawn: so many times the largest finite threshold


class OutlierPlot:
    """The figure of one layer's input, made once and then redrawn for other thresholds.

    Args:
        layer: what it was given.
        every: `splits` of it, with rising thresholds, the last of which is ∞.
        labels: how each token is written beside its row.

    Raises:
        ValueError: not one label for each token, or thresholds of which the last is not ∞.
    """

    def __init__(self, layer: LayerInput, every: Sequence[Split], labels: Sequence[str]):
        tokens, channels = layer.x.shape
        if len(labels) != tokens:
            raise ValueError(f"labels must be {tokens}, one a token, got {len(labels)}; label every token")
        if len(every) < 2 or not math.isinf(every[-1].threshold):
            raise ValueError("every must end with a threshold of ∞, all in int8; take outlier_split.splits")
        self.layer, self.every = layer, list(every)
        self.maxima = layer.maxima.double().numpy()
        strip = max(LEAST_STRIP, ROW * min(tokens, MOST_LABELS))
        height = HEAD + MAXIMA + strip + GAP + PANEL + FOOT
        with look.style():
            self.figure = look.Picture(look.WIDTH, height)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            below = FOOT + PANEL + GAP  # the strip's lower edge
            self.tops = self._place(LEFT, below + strip + 0.05, RIGHT - LEFT, MAXIMA)
            self.strip = self._place(LEFT, below, RIGHT - LEFT, strip)
            self.errors = self._place(LEFT, FOOT, 0.375, PANEL)
            self.shares = self._place(LEFT + 0.505, FOOT, 0.375, PANEL)
            self._make_tops(channels)
            self._make_strip(labels)
            errors, shares = [one.error for one in every], [one.share for one in every]
            self._rings = [self._make_curve(self.errors, "error of the product", errors)]
            self._rings.append(self._make_curve(self.shares, "values in 16 bits", shares))
            note = {"transform": self.errors.transAxes, "size": 9.5, "color": look.MUTED, "ha": "right"}
            self.errors.text(1, 1.06, "dashed: all in int8", **note)
        marks = [self._stems, self._limit, self._limit_name, self._columns]
        self.figure.moving = [*marks, *self._rings, self.title, self.subtitle]
        self.figure.still_key = "layer"

    def _place(self, left: float, bottom: float, width: float, height: float):
        """Axes, with inches from below."""
        whole = self.figure.get_figheight()
        return self.figure.add_axes((left, bottom / whole, width, height / whole))

    def _make_tops(self, channels: int) -> None:
        axes = self.tops
        highest = max(self.maxima.max(), 1e-6)
        axes.set(xlim=(-0.5, channels - 0.5), ylim=(0, 1.12 * highest))
        stems = [[(at, 0), (at, value)] for at, value in enumerate(self.maxima)]
        width = 0.8 * axes.get_position().width * look.WIDTH * 72 / channels
        axes.add_collection(LineCollection(stems, colors=look.KEPT, linewidths=width), autolim=False)
        self._stems = LineCollection([], colors=look.ACCENT, linewidths=max(width, 1.8))
        axes.add_collection(self._stems, autolim=False)
        self._limit = axes.axhline(0, color=look.INK, linewidth=1.1, linestyle=(0, (4, 2)))
        style = {"transform": axes.get_yaxis_transform(), "size": 9.5, "ha": "right", "va": "bottom"}
        self._limit_name = axes.text(1.0, 0, "", **style)
        look.bare(axes, "bottom")
        axes.tick_params(labelbottom=False, labelsize=9.5)
        axes.yaxis.set_major_locator(FixedLocator([0, _rounded(highest)]))
        _name(axes, "largest magnitude of each channel")

    def _make_strip(self, labels: Sequence[str]) -> None:
        axes, cells = self.strip, self.layer.x.abs().double().numpy()
        norm = PowerNorm(0.5, 0, max(cells.max(), 1e-6))
        axes.imshow(cells, cmap=SHADES, norm=norm, aspect="auto", interpolation="nearest")
        shown = range(len(labels)) if len(labels) <= MOST_LABELS else ()
        names = [look.token(labels[at], LETTERS) for at in shown]
        axes.set_yticks(shown, names, size=7.5)
        axes.tick_params(axis="x", labelsize=9.5)
        self._columns = LineCollection([], colors=look.ACCENT, linewidths=2.4, clip_on=False)
        self._columns.set_transform(axes.get_xaxis_transform())
        axes.add_collection(self._columns, autolim=False)
        axes.set_xlabel("channel; a row is a token, the darker the larger")
        look.fix_label(axes)

    def _make_curve(self, axes, name: str, values: Sequence[float]):
        places = [_x(one.threshold, self.every) for one in self.every]
        axes.plot(places, values, color=look.SERIES[0], marker="o", markersize=3, linewidth=1.5)
        axes.axhline(values[-1], color=look.MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        axes.set(xscale="log", xlabel="threshold")
        known = {0.5: "0.5", 1: "1", 2: "2", 4: "4", 6: "6", 10: "10", 20: "20", 48: "48", math.inf: "∞"}
        shown = [one.threshold for one in self.every if one.threshold in known]
        axes.set_xticks([_x(t, self.every) for t in shown], [known[t] for t in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, 1.15 * max(*values, 1e-9))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: look.percent(y) if y else "0%"))
        axes.tick_params(labelsize=9.5)
        axes.grid(axis="y", color="#eceff2", linewidth=0.8)
        _name(axes, name)
        look.fix_label(axes)
        ring = {"markersize": 10, "markeredgewidth": 2.2, "markerfacecolor": "none", "linestyle": "none"}
        return axes.plot([], [], "o", markeredgecolor=look.ACCENT, zorder=5, clip_on=False, **ring)[0]

    def update(self, shown: Split, title: str) -> look.Picture:
        """Shows another threshold, whether or not it is one of the curves'."""
        at = np.flatnonzero(shown.columns.numpy())
        with look.style():
            self.title.set_text(readable(title))
            self.subtitle.set_text(in_words(shown, self.every[-1]))
            self._stems.set_segments([[(c, 0), (c, self.maxima[c])] for c in at])
            self._columns.set_segments([[(c, 1.0), (c, 1.035)] for c in at])
            seen = bool(shown.threshold <= self.tops.get_ylim()[1])
            self._limit.set_visible(seen)
            self._limit_name.set_visible(seen)
            if seen:
                self._limit.set_ydata([shown.threshold] * 2)
                self._limit_name.set_text(f"threshold {shown.threshold:g}")
                self._limit_name.set_y(shown.threshold)
            place = _x(shown.threshold, self.every)
            for ring, value in zip(self._rings, (shown.error, shown.share), strict=True):
                ring.set_data([place], [value])
        size = f"{self.layer.x.shape[0]} tokens, {self.layer.x.shape[1]} channels"
        self.figure.alt = f"{title}: {size}; {in_words(shown, self.every[-1])}."
        return self.figure


def _name(axes, name: str) -> None:
    axes.text(0, 1.06, name, transform=axes.transAxes, weight="bold", size=10)


def in_words(shown: Split, whole: Split) -> str:
    """The threshold's columns, and its error beside that without decomposition."""
    if not shown.count:
        return f"no column in 16 bits · error {look.percent(whole.error)} with int8 for each token"
    columns = f"{shown.count} column{'s' if shown.count > 1 else ''} ({shown.share:.1%} of the values)"
    error, without = look.percent(shown.error), look.percent(whole.error)
    return f"{columns} in 16 bits · error {error}, with all columns in int8 {without}"


def _x(threshold: float, every: Sequence[Split]) -> float:
    return threshold if math.isfinite(threshold) else LAST * every[-2].threshold


def _rounded(value: float) -> float:
    """A number of one digit, not above the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / power) * power
