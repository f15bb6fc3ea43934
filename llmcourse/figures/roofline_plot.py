"""The roofline as a figure: predicted points lie on the roof, measured ones below it.

Filled points are bound by arithmetic, hollow ones by memory; numbers are those of the course's
tables. What a run lost is its distance from the roof.
"""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.labels import Label, Rows, clusters, place
from llmcourse.figures.roofline_data import Roofline, ceiling_name, ceilings, rate, short

SIGNS = (("○", "●"), ("□", "■"))  # bound by memory, by arithmetic
LABEL_SIZE = 11.0  # points
CLUSTER_PIXELS = 8.0


class RooflinePlot:
    """The figure, made once and then redrawn with other points: fast enough to follow a slider."""

    def __init__(self):
        with look.style():
            self.figure = look.Picture(look.WIDTH, 5.1)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            self.axes = self.figure.add_axes((0.07, 0.10, 0.49, 0.74))
            self._make_marks()
            self._make_key()
        self._roof: list = []  # what depends on the machine alone
        self._obstacles: list[tuple[float, ...]] = []  # boxes of pixels that labels keep free
        self._labels: list = []

    def _make_marks(self) -> None:
        self.axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOP/byte")
        self.axes.minorticks_off()
        self.axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.9g}"))
        self.axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: rate(y).removesuffix("FLOP/s")))
        self.axes.text(-0.01, 1.035, "FLOP/s", transform=self.axes.transAxes, ha="right", color=look.MUTED)
        look.fix_label(self.axes)
        self._marks = []
        for index, size in enumerate((9.0, 5.5)):  # where two series coincide, both can be seen
            style = {"linestyle": "none", "marker": look.MARKERS[index], "color": look.SERIES[index]}
            style |= {"markersize": size, "zorder": 4 + index}
            hollow = self.axes.plot([], [], markerfacecolor=look.PAPER, **style)[0]
            self._marks.append((hollow, self.axes.plot([], [], **style)[0]))
        style = {"linestyle": "none", "marker": look.MARKERS[2], "color": look.SERIES[2]}
        self._runs = self.axes.plot([], [], markersize=7, markeredgecolor=look.INK, zorder=6, **style)[0]
        self._leaders = LineCollection([], colors=look.MUTED, linewidths=0.7, zorder=3)
        self.axes.add_collection(self._leaders, autolim=False)

    def _make_key(self) -> None:
        """Columns of text: one object a column, since each one costs time to draw."""
        style = {"size": 9, "va": "top", "linespacing": 1.75}
        self._names = self.figure.text(0.585, 0.80, "", **style)
        style |= {"ha": "right", "multialignment": "right"}
        self._columns = [self.figure.text(x, 0.80, "", **style) for x in (0.852, 0.892, 0.955, 0.995)]
        self._heads = [
            self.figure.text(x, 0.855, "", ha="right", va="top", size=9.5, weight="bold", color=color)
            for x, color in zip((0.892, 0.995), look.SERIES, strict=False)
        ]
        self._legend = self.figure.text(0.585, 0.10, "", size=9.5, color=look.MUTED, linespacing=1.5)

    def update(self, data: Roofline, title: str = "", subtitle: str = "") -> look.Picture:
        """Shows other data."""
        title = title or f"The roofline of {data.machine}"
        with look.style():
            self.subtitle.set_text(readable(subtitle or f"ridge {data.ridge:.1f} FLOP/byte in {data.dtype}"))
            names = [(name, [(p.number, p.name) for p in points]) for name, points in data.series]
            roof = (data.machine, data.bytes_per_s, data.peaks, data.dtype, data.limits)
            still_key = repr((title, roof, names, bool(data.measured)))
            if still_key != self.figure.still_key:
                self.title.set_text(readable(title))
                self._draw_roof(data)
                self._name_rows(data)
                self.figure.still_key = still_key
            self._move_marks(data)
            self._move_labels(data)
            self._fill_key(data)
        marks = [mark for pair in self._marks for mark in pair]
        moving = [self.subtitle, self._leaders, *marks, self._runs]
        self.figure.moving = [*moving, *self._labels, *self._columns]
        self.figure.alt = f"{title}: {data.summary}"
        return self.figure

    def _draw_roof(self, data: Roofline) -> None:
        for artist in self._roof:
            artist.remove()
        (left, right), (low, high) = data.limits
        self.axes.set(xlim=(left, right), ylim=(low, high))
        self.axes.set_position(
            (0.07, 0.10, 0.49 if data.series else 0.89, 0.74)
        )  # the key, where there is one
        self._roof, self._obstacles = [], []
        corners = ([left, data.ridge, right], [left * data.bytes_per_s, data.peak, data.peak])
        self._roof += self.axes.plot(*corners, color=look.INK, linewidth=1.8, zorder=2)
        intensities = np.geomspace(left, right, 120)
        pixels = self._pixels([(x, min(data.peak, x * data.bytes_per_s)) for x in intensities])
        self._obstacles += [(x - 3, y - 2, x + 3, y + 2) for x, y in pixels]
        for formats in ceilings(data.peaks):
            self._draw_ceiling(data, formats)
        dotted = {"color": look.MUTED, "linewidth": 0.9, "linestyle": (0, (2, 2)), "zorder": 1}
        self._roof += self.axes.plot([data.ridge] * 2, [low, data.peak], **dotted)
        side = "right" if data.ridge > (left * right) ** 0.5 else "left"
        words = f" memory {data.bytes_per_s / 1e9:,.4g} GB/s \n ridge {data.ridge:.1f} "
        self._write(words, data.ridge, low * 1.15, ha=side, ma=side, va="bottom")

    def _draw_ceiling(self, data: Roofline, formats: dict[str, float]) -> None:
        (left, right), _ = data.limits
        peak, chosen = max(formats.values()), data.dtype in formats
        start = peak / data.bytes_per_s
        dashed = {"color": look.MUTED, "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 1}
        if not chosen:
            self._roof += self.axes.plot([max(start, left), right], [peak, peak], **dashed)
        color = look.INK if chosen else look.MUTED
        if start > 60 * left:  # there is room to the left of the slope
            self._write(f"{ceiling_name(formats)} ", start, peak, ha="right", va="center", color=color)
        else:
            self._write(ceiling_name(formats), right, peak * 0.93, ha="right", va="top", color=color)

    def _write(self, text: str, x: float, y: float, **style) -> None:
        paper = {"facecolor": look.PAPER, "edgecolor": "none", "pad": 0.5}
        style = {"color": look.MUTED, "size": 9.5, "bbox": paper, "zorder": 1.5} | style
        self._roof.append(self.axes.text(x, y, text, **style))
        self._obstacles.append(_text_box(text, self._pixels([(x, y)])[0], style))

    def _pixels(self, points: Rows) -> np.ndarray:
        return self.axes.transData.transform(points) if len(points) else np.empty((0, 2))

    def _move_marks(self, data: Roofline) -> None:
        for index, (hollow, filled) in enumerate(self._marks):
            points = data.series[index][1] if index < len(data.series) else ()
            for marks, bound in ((hollow, "memory"), (filled, "compute")):
                shown = [p for p in points if p.bound == bound and p.intensity > 0]
                marks.set_data([p.intensity for p in shown], [p.flops_per_s for p in shown])
        self._runs.set_data([m.intensity for m in data.measured], [m.flops_per_s for m in data.measured])

    def _move_labels(self, data: Roofline) -> None:
        """Numbers, together where their points are, and names of runs, out of each other's way."""
        wanted = []  # text, colour, size, label
        marks = []
        for index, (_, points) in enumerate(data.series):
            shown = [p for p in points if p.intensity > 0]
            pixels = self._pixels([(p.intensity, p.flops_per_s) for p in shown])
            marks += [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
            for group in clusters(pixels, CLUSTER_PIXELS):
                text = "".join(shown[i].number for i in group)
                wanted.append(_label(text, pixels[group].mean(0), look.SERIES[index], LABEL_SIZE, index == 0))
        runs = self._pixels([(m.intensity, m.flops_per_s) for m in data.measured])
        marks += [(x - 5, y - 5, x + 5, y + 5) for x, y in runs]
        for run, pixel in zip(data.measured, runs, strict=True):
            wanted.append(_label(readable(run.name), pixel, look.INK, 9.0, False))
        bounds = self.axes.get_window_extent().extents
        self._write_labels(wanted, place([w[-1] for w in wanted], [*self._obstacles, *marks], bounds))

    def _write_labels(self, wanted: list, centres: np.ndarray) -> None:
        while len(self._labels) < len(wanted):
            self._labels.append(self.axes.text(0, 0, "", ha="center", va="center", zorder=7))
        back = self.axes.transData.inverted().transform
        for text in self._labels[len(wanted) :]:
            text.set_text("")
        leaders = []
        for text, centre, (words, color, size, label) in zip(self._labels, centres, wanted, strict=False):
            text.set(text=words, color=color, size=size, position=back(centre))
            half = np.array([label.width, label.height]) / 2
            nearest = np.clip(label.point, centre - half, centre + half)
            if np.hypot(*(nearest - label.point)) > 14:
                leaders.append([back(nearest), back(label.point)])
        self._leaders.set_segments(leaders)

    def _name_rows(self, data: Roofline) -> None:
        rows = data.series[0][1] if data.series else ()
        self._names.set_text("\n".join(f"{p.number}  {p.name}" for p in rows))
        for index, head in enumerate(self._heads):
            head.set_text(data.series[index][0] if index < len(data.series) else "")
        words = "FLOP/byte, and share of the layer's time.\nFilled: bound by arithmetic; hollow: by memory."
        words += "\n▲ measured" if data.measured else ""
        self._legend.set_text(words if rows else "")

    def _fill_key(self, data: Roofline) -> None:
        columns = []
        for index, (_, points) in enumerate(data.series):
            columns.append([f"{SIGNS[index][p.bound == 'compute']} {short(p.intensity)}" for p in points])
            columns.append([f"{p.share:.0%}" for p in points])
        for column, text in enumerate(self._columns):
            text.set_text("\n".join(columns[column]) if column < len(columns) else "")


def _label(text: str, pixel: np.ndarray, color: str, size: float, up: bool) -> tuple[str, str, float, Label]:
    return text, color, size, Label(tuple(pixel), *_text_size(text, size), up)


def _text_size(text: str, size: float) -> tuple[float, float]:
    """About the pixels that a text takes: a circled number is as wide as high, a Latin letter half that.

    Measuring would take as long as drawing.
    """
    letter, lines = size * look.PIXELS_PER_INCH / 72, text.split("\n")
    widest = max(sum(1.0 if ch >= "①" else 0.6 for ch in line) for line in lines)
    return letter * widest, letter * (1 + 1.2 * (len(lines) - 1))


def _text_box(text: str, pixel: np.ndarray, style: dict) -> tuple[float, float, float, float]:
    """Where a text lies that stands at `pixel`, aligned as `style` says."""
    width, height = _text_size(text, style["size"])
    left = pixel[0] - {"left": 0.0, "right": width}[style["ha"]]
    bottom = pixel[1] - {"bottom": 0.0, "center": height / 2, "top": height}[style["va"]]
    return left, bottom, left + width, bottom + height


def plot_roofline(data: Roofline, title: str = "", subtitle: str = "") -> look.Picture:
    """The figure once; arguments as `RooflinePlot.update`."""
    return RooflinePlot().update(data, title, subtitle)
