"""The figure of cost against quality: where cascades win over mixing single models, and where they lose.

Above: quality by cost. Below: the same policies, less what mixing single models brings for that cost, with
95 % bands; what lies under its line would have been answered better by throwing dice. The chosen policy is
marked in both, and above also what it promised on the held-out questions.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from llmcourse.figures import style as look
from llmcourse.figures.cascade_curve import ROUNDING, SURE, CostQuality, Tried
from llmcourse.figures.fonts import readable

UNITS = {"FLOPs": (1e9, "GFLOP"), "seconds": (1e-3, "ms")}  # what one of the shown unit is
HEIGHT = 6.0
DASHES = ("-", (0, (4, 1.2)))
MIXING = {"color": look.MUTED, "linewidth": 1.3, "linestyle": (0, (1.2, 1.4)), "zorder": 2}
PAPER = {"facecolor": look.PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8}
MOST = 2  # judges that can be told apart


def shown_cost(cost: int | float, unit: str) -> str:
    """`1.64 GFLOP`, `301 ms`."""
    size, name = UNITS[unit]
    return f"{cost / size:,.3g} {name}"


class CascadePlot:
    """The figure, made once and then redrawn with another chosen policy or other data."""

    def __init__(self):
        with look.style():
            self.figure = look.Picture(look.WIDTH, HEIGHT)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            self.upper = self.figure.add_axes((0.085, 0.450, 0.895, 0.355))
            self.lower = self.figure.add_axes((0.085, 0.085, 0.895, 0.260))
        self._key = []

    def update(
        self, data: CostQuality, chosen: Tried | None = None, title: str = "", subtitle: str = ""
    ) -> look.Picture:
        """Shows other data; arguments as `plot_cascade`."""
        _check(data)
        title = title or "Cost against quality"
        for artist in self.figure.moving[1:]:
            artist.remove()
        with look.style():
            self.subtitle.set_text(readable(subtitle))
            if self.figure.still_key != (title, data):
                self.title.set_text(readable(title))
                self._draw(data)
                self._leave_room(data)
                self.figure.still_key = (title, data)
            self.figure.moving = [self.subtitle]
            if chosen is not None:
                self._mark(chosen, UNITS[data.unit][0])
        self.figure.alt = " ".join([f"{title}.", *sentences(data, chosen)])
        return self.figure

    def _draw(self, data: CostQuality) -> None:
        for axes in (self.upper, self.lower):
            axes.clear()
        size, name = UNITS[data.unit]
        self._draw_quality(data, size)
        self._draw_gain(data, size)
        points = [*data.singles, *(point for _, points in data.curves for point in points)]
        for axes in (self.upper, self.lower):
            axes.set_xlim(0, 1.05 * max(max(p.cost, p.found.cost) for p in points) / size)
            axes.xaxis.set_major_locator(MaxNLocator(7))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.tick_params(labelsize=9)
        self.upper.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
        self.lower.yaxis.set_major_formatter(FuncFormatter(lambda y, _: signed(100 * y)))
        self.lower.set_xlabel(f"{name} for an answer, on average")
        look.fix_label(self.lower)
        self._draw_key(data)

    def _leave_room(self, data: CostQuality) -> None:
        """For what any policy promised: the axes must not depend on which one was chosen first."""
        size = UNITS[data.unit][0]
        promised = [(p.found.cost / size, p.found.quality) for _, curve in data.curves for p in curve]
        self.upper.update_datalim(promised)
        self.upper.autoscale_view(scalex=False)
        self.upper.autoscale(False)

    def _draw_quality(self, data: CostQuality, size: float) -> None:
        axes = self.upper
        corners = [(cost / size, quality) for cost, quality in data.mixing]
        axes.plot(*zip(*corners, strict=True), **MIXING)
        for index, (_, points) in enumerate(data.curves):
            places = [p.cost / size for p in points], [p.quality for p in points]
            axes.plot(*places, **_style(index, len(points)))
        for name, single in zip(data.names, data.singles, strict=True):
            x, error = single.cost / size, SURE * single.quality_error
            bar = {"ecolor": look.INK, "elinewidth": 1.1, "capsize": 3, "zorder": 5}
            axes.errorbar(x, single.quality, error, fmt="D", color=look.INK, markersize=5.5, **bar)
            over = name == data.names[-1]  # the curves end below it
            beside = {
                "xytext": (8, 12 if over else -12),
                "textcoords": "offset points",
                "size": 9.5,
                "zorder": 6,
            }
            axes.annotate(readable(name), (x, single.quality), bbox=PAPER, **beside)
        axes.margins(y=0.1)  # room below for the cheapest one's name
        _head(axes, "right answers", "of the test questions; bars: 95 %")

    def _draw_gain(self, data: CostQuality, size: float) -> None:
        axes = self.lower
        ends = [0.01, -0.01]
        for index, (_, points) in enumerate(data.curves):
            x = [p.cost / size for p in points]
            low, high = ([p.gain + side * SURE * p.gain_error for p in points] for side in (-1, 1))
            ends += low + high
            color = look.SERIES[index]
            face = {"facecolor": color, "alpha": 0.25, "linewidth": 0}
            hatch = {"facecolor": "none", "edgecolor": color, "hatch": "....", "linewidth": 0, "alpha": 0.6}
            axes.fill_between(x, low, high, zorder=1.5, **(hatch if index else face))
            axes.plot(x, [p.gain for p in points], **_style(index, len(points)))
        room = 0.08 * (max(ends) - min(ends))
        axes.set_ylim(min(ends) - room, max(ends) + room)
        axes.axhspan(min(ends) - room, 0, facecolor=look.CUT, alpha=0.55, zorder=0)
        axes.axhline(0, **MIXING)
        style = {"transform": axes.transAxes, "ha": "right", "va": "bottom", "size": 9, "zorder": 6}
        axes.text(0.995, 0.04, "here mixing is better", bbox=PAPER, color=look.INK, **style)
        note = "percentage points against a mixture of single models of the same cost; bands: 95 %"
        _head(axes, "gain over mixing", note)

    def _draw_key(self, data: CostQuality) -> None:
        for text in self._key:
            text.remove()
        words = [
            (f"{'●■'[index]} {judge}", look.SERIES[index]) for index, (judge, _) in enumerate(data.curves)
        ]
        words += [("◆ one model alone", look.INK), ("┄┄ mixing single models", look.MUTED)]
        words += [("★ chosen   ☆ as promised", look.INK)]
        x, self._key = 0.012, []
        for text, color in words:
            style = {"color": color, "size": 9.5, "va": "center"}
            self._key.append(self.figure.text(x, 1 - 0.73 / HEIGHT, readable(text), **style))
            x += 0.027 + 0.0076 * len(text)

    def _mark(self, chosen: Tried, size: float) -> None:
        """The chosen policy in both panels; a thin line leads from what it promised to what it did."""
        x, promised = chosen.cost / size, (chosen.found.cost / size, chosen.found.quality)
        star = {
            "marker": "*",
            "linestyle": "none",
            "markersize": 15,
            "markeredgecolor": look.INK,
            "zorder": 9,
        }
        way = {"color": look.INK, "linewidth": 1.0, "zorder": 8}
        moving = self.figure.moving
        moving += self.upper.plot([promised[0], x], [promised[1], chosen.quality], **way)
        moving += self.upper.plot(*promised, color=look.PAPER, **star | {"markersize": 11})
        moving += self.upper.plot(x, chosen.quality, color=look.SERIES[3], **star)
        ends = [chosen.gain + side * SURE * chosen.gain_error for side in (-1, 1)]
        moving += self.lower.plot([x, x], ends, **way | {"linewidth": 1.6})
        moving += self.lower.plot(x, chosen.gain, color=look.SERIES[3], **star)


def _check(data: CostQuality) -> None:
    if data.unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {data.unit!r}")
    if not 1 <= len(data.curves) <= MOST:
        raise ValueError(f"curves must be 1 to {MOST}, got {len(data.curves)}; draw the others apart")


def _style(index: int, num_points: int) -> dict:
    """A judge's line; about a dozen marks tell it in grey."""
    marks = {"marker": look.MARKERS[index], "markersize": 4.5, "markevery": max(1, num_points // 12)}
    return {"color": look.SERIES[index], "linewidth": 1.6, "linestyle": DASHES[index], "zorder": 4, **marks}


def _head(axes, name: str, note: str) -> None:
    """What a panel shows, and quieter words behind it."""
    above = 1 + 0.09 / (axes.get_position().height * HEIGHT)
    axes.text(0, above, name, transform=axes.transAxes, weight="bold", size=10.5)
    behind = 0.018 + 0.0116 * len(name)
    axes.text(behind, above, note, transform=axes.transAxes, size=8.5, color=look.MUTED)


def plot_cascade(
    data: CostQuality, chosen: Tried | None = None, title: str = "", subtitle: str = ""
) -> look.Picture:
    """The figure once.

    Args:
        data: one or two judges' curves.
        chosen: a policy to mark.

    Raises:
        ValueError: a unit that is not of `UNITS`, or more judges than can be told apart.
    """
    return CascadePlot().update(data, chosen, title, subtitle)


def sentences(data: CostQuality, chosen: Tried | None = None) -> list[str]:
    """What the figure shows, in words."""
    singles = "; ".join(
        f"{name} {single.quality:.1%} right for {shown_cost(single.cost, data.unit)}"
        for name, single in zip(data.names, data.singles, strict=True)
    )
    told = [f"One model alone: {singles}."]
    told += [f"{judge}: {_counts(points)}." for judge, points in data.curves]
    if chosen is not None:
        cost = shown_cost(chosen.cost, data.unit)
        told.append(f"Chosen: {chosen.quality:.1%} right for {cost}, {against_mixing(chosen)}.")
    return told


def _counts(points: Sequence[Tried]) -> str:
    wins, loses = (sum(getattr(point, side) for point in points) for side in ("wins", "loses"))
    even = len(points) - wins - loses
    return f"of {len(points)} policies {wins} better than mixing, {loses} worse, {even} not to be told apart"


def against_mixing(tried: Tried) -> str:
    """`+3.7 ± 2.3 points against mixing: better`."""
    if abs(tried.gain) + tried.gain_error <= 2 * ROUNDING:
        return "the same as mixing"  # one model that no mixture beats
    verdict = "better" if tried.wins else "worse" if tried.loses else "not to be told apart"
    gain, error = signed(100 * tried.gain, ".1f"), 100 * SURE * tried.gain_error
    return f"{gain} ± {error:.1f} points against mixing: {verdict}"


def signed(value: int | float, form: str = ".3g") -> str:
    """`+3.7`, `−2`, `0`; no sign where nothing is left after rounding."""
    text = f"{abs(value):{form}}"
    return text if not float(text) else ("+" if value > 0 else "−") + text
