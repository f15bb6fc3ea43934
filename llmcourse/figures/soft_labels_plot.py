"""Teacher and student at one position, whom the loss pushes up and whom down, and what T² is for.

Each token has a row: ● the teacher's probability, ◆ the student's, and to the right how its logit is pushed.
Below, loss and push over the temperature, with T² and without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from llmcourse.figures import language
from llmcourse.figures import style as look
from llmcourse.figures.distribution import AXIS_STEPS
from llmcourse.figures.fonts import readable
from llmcourse.figures.soft_labels import ROWS, ByTemperature, SoftLabels

DIVERGENCES = {
    "forward_kl": "KL(teacher ‖ student)",
    "reverse_kl": "KL(student ‖ teacher)",
    "jensen_shannon": "JSD(β = {:g})",
}
LEAST = 1e-8  # where a log scale ends: what is below is drawn there
RANGE, RANGE_TICKS = (1e-4, 1e2), (1e-4, 1e-2, 1, 100)  # one for all positions, which can so be compared
TEMPERATURE_RANGE, TEMPERATURE_TICKS = (0.46, 17.5), (0.5, 1, 2, 4, 8, 16)
HEAD, ROW, GAP, PANEL, FOOT = 0.98, 0.225, 0.86, 1.0, 0.48  # inches
TEACHER, STUDENT = look.SERIES[0], look.SERIES[3]
STUDENT_EDGE = "#9c6c14"
UP, DOWN = {"facecolor": look.KEPT, "edgecolor": "none"}, {"facecolor": look.CUT, "edgecolor": look.CUT_EDGE}


class SoftLabelsPlot:
    """The figure, made once and then redrawn with other numbers: fast enough to follow a slider.

    Args:
        rows: at most so many tokens.
        teacher, student: their names.
    """

    def __init__(self, rows: int = ROWS, *, teacher: str = "teacher", student: str = "student"):
        self.rows, self.names = rows, (teacher, student)
        high = ROW * (rows + 1)
        height = HEAD + high + GAP + PANEL + FOOT
        with look.style():
            self.figure = look.Picture(look.WIDTH, height)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            below = FOOT + PANEL + GAP
            self.sides = self._place(0.155, below, 0.42, high)
            self.pushes = self._place(0.635, below, 0.35, high)
            self.losses = self._place(0.075, FOOT, 0.385, PANEL)
            self.moved = self._place(0.565, FOOT, 0.385, PANEL)
            self._make_sides()
            self._make_pushes()
            self._curves = [self._make_curve(self.losses, "loss, nats")]
            self._curves.append(self._make_curve(self.moved, "push upwards in all"))
        axes = (self.sides.xaxis, self.pushes.xaxis)  # their ticks follow the numbers
        sides = (self._links, *self._dots, *self._labels, self._follows, self._follows_name)
        curves = [line for curve in self._curves for line in curve]
        moving = (*axes, *sides, *self._bars, *self._values, *curves)
        self.figure.moving = [*moving, self.title, self.subtitle]
        self.figure.still_key = "frame"

    def _place(self, left: float, bottom: float, width: float, height: float):
        """Axes, with inches from below."""
        whole = self.figure.get_figheight()
        return self.figure.add_axes((left, bottom / whole, width, height / whole))

    def _make_sides(self) -> None:
        axes = self.sides
        axes.set(ylim=(self.rows + 0.6, -0.6), yticks=[])
        look.bare(axes, "left")
        beside = axes.get_yaxis_transform()  # x in axes, y in rows
        place = {"ha": "right", "va": "center", "transform": beside}
        self._labels = [axes.text(-0.04, y, "", **place) for y in range(self.rows + 1)]
        self._links = LineCollection([], colors=look.LINE, linewidths=2.2)
        axes.add_collection(self._links, autolim=False)
        dot = {"linestyle": "none", "clip_on": False, "zorder": 4}
        teacher = axes.plot([], [], "o", color=TEACHER, markersize=8, **dot)[0]
        edge = {"markersize": 5.5, "markeredgecolor": STUDENT_EDGE}  # smaller: both are seen where they agree
        student = axes.plot([], [], "D", color=STUDENT, **edge, **dot)[0]
        self._dots = teacher, student
        mark = {"marker": 9, "color": look.ACCENT, "markersize": 8, "transform": beside, "clip_on": False}
        self._follows = axes.plot([], [], linestyle="none", **mark)[0]
        words = {"size": 9.5, "color": look.ACCENT, "ha": "right", "transform": axes.transAxes}
        self._follows_name = axes.text(1, 1.03, "▸ follows in the text", **words)
        keys = zip("●◆", self.names, (TEACHER, STUDENT_EDGE), (0.0, 0.30), strict=True)
        for sign, name, color, x in keys:
            words = f"{sign} {look.shorten(readable(name), 14)}"
            axes.text(x, 1.03, words, size=10, color=color, weight="bold", transform=axes.transAxes)

    def _make_pushes(self) -> None:
        axes = self.pushes
        axes.set(ylim=(self.rows + 0.6, -0.6), yticks=[])
        axes.axvline(0, color=look.LINE, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed(x)))
        look.bare(axes, "left")
        self._bars = [PolyCollection([], linewidth=0.7, **kind) for kind in (UP, DOWN)]
        self._bars[1].set_hatch(look.CUT_HATCH)
        for bars in self._bars:
            axes.add_collection(bars, autolim=False)
        value = {"size": 9.5, "va": "center", "color": look.MUTED}
        self._values = [axes.text(0, y, "", **value) for y in range(self.rows + 1)]
        axes.text(0, 1.03, "◀ down", size=9.5, color=look.CUT_EDGE, transform=axes.transAxes)
        words = {"ha": "right", "size": 9.5, "color": look.KEPT, "transform": axes.transAxes}
        axes.text(1, 1.03, "up ▶", **words)
        name = {"ha": "center", "weight": "bold", "size": 10, "transform": axes.transAxes}
        axes.text(0.5, 1.03, "push on the logit, −∂L/∂z", **name)

    def _make_curve(self, axes, name: str) -> tuple[Line2D, Line2D, Line2D]:
        axes.set(xscale="log", yscale="log", xlabel="temperature T", ylim=RANGE, xlim=TEMPERATURE_RANGE)
        axes.set_xticks(TEMPERATURE_TICKS, [f"{t:g}" for t in TEMPERATURE_TICKS])
        axes.set_yticks(RANGE_TICKS, [f"{y:g}" for y in RANGE_TICKS])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=9.5)
        axes.grid(axis="y", color="#eceff2", linewidth=0.8)
        axes.text(0, 1.06, name, transform=axes.transAxes, weight="bold", size=10)
        note = {"transform": axes.transAxes, "size": 9.5, "color": look.MUTED, "ha": "right"}
        axes.text(1, 1.06, "dashed: without T²", **note)
        look.fix_label(axes)
        times = axes.plot([], [], color=look.SERIES[0], linewidth=1.7)[0]
        plain = axes.plot([], [], color=look.MUTED, linewidth=1.3, linestyle=(0, (4, 2)))[0]
        ring = {"markersize": 10, "markeredgewidth": 2.2, "markerfacecolor": "none", "linestyle": "none"}
        here = axes.plot([], [], "o", markeredgecolor=look.ACCENT, zorder=5, clip_on=False, **ring)[0]
        return times, plain, here

    def update(
        self,
        data: SoftLabels,
        curve: ByTemperature,
        title: str = "What soft labels ask for",
        *,
        log_scale: bool = False,
    ) -> look.Picture:
        """Shows other data.

        Args:
            curve: of the same position and divergence.
            log_scale: of the probabilities.

        Raises:
            ValueError: more tokens than there are rows for.
        """
        if len(data.token_ids) > self.rows:
            raise ValueError(f"data must have at most {self.rows} tokens, got {len(data.token_ids)}")
        with look.style():
            self.title.set_text(readable(title))
            self.subtitle.set_text(in_words(data))
            self._move_sides(data, log_scale)
            self._move_pushes(data)
            numbers = ((curve.losses, data.plain_loss), (curve.moved, data.moved / data.factor))
            for lines, (plain, here) in zip(self._curves, numbers, strict=True):
                _move_curve(lines, curve.temperatures, plain, here, data)
        self.figure.alt = f"{title}: {in_words(data)}. {_tokens_in_words(data)}."
        return self.figure

    def _move_sides(self, data: SoftLabels, log_scale: bool) -> None:
        sides = (
            _with_others(data, data.teacher, data.others_teacher),
            _with_others(data, data.student, data.others_student),
        )
        labels = [look.token(label, 13) for label in data.labels]
        named = _with_others(data, labels, f"{data.vocab_size - len(data.labels):,} others")
        for place, text in enumerate(self._labels):
            text.set_text(named[place] if place < len(named) else "")
        least = self._scale_sides(max(map(max, sides)), min(map(min, sides)), log_scale)
        drawn = [[max(value, least) for value in side] for side in sides]
        self._links.set_segments([[(p, y), (q, y)] for y, (p, q) in enumerate(zip(*drawn, strict=True))])
        for dots, values in zip(self._dots, drawn, strict=True):
            dots.set_data(values, range(len(values)))
        at = [data.token_ids.index(data.follows)] if data.follows is not None else []
        self._follows.set_data([-0.028] * len(at), at)
        self._follows_name.set_visible(bool(at))

    def _scale_sides(self, most: float, least: float, log_scale: bool) -> float:
        """Sets the axis, and says where it begins."""
        axes = self.sides
        if log_scale:
            least = 10.0 ** math.floor(math.log10(max(least, LEAST)))
            axes.set(xscale="log", xlim=(least, 1.25))
            axes.xaxis.set_major_locator(LogLocator(numticks=6))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.6g}%"))
            return least
        limit = next(step for step in AXIS_STEPS if step >= min(most, 1.0))
        axes.set(xscale="linear", xlim=(-0.01 * limit, 1.04 * limit))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        return 0.0

    def _move_pushes(self, data: SoftLabels) -> None:
        pushes = _with_others(data, data.push, data.others_push)
        limit = _round_up(max(map(abs, pushes)))
        self.pushes.set_xlim(-1.42 * limit, 1.42 * limit)
        for bars, sign in zip(self._bars, (1, -1), strict=True):
            rows = [(y, push) for y, push in enumerate(pushes) if sign * push > 0]
            bars.set_verts([_rectangle(y, push) for y, push in rows])
        for y, text in enumerate(self._values):
            push = pushes[y] if y < len(pushes) else None
            text.set_text("" if push is None else _signed(push, limit))
            if push is not None:
                text.set(x=push + math.copysign(0.03 * limit, push), ha="left" if push >= 0 else "right")


def plot_soft_labels(
    data: SoftLabels,
    curve: ByTemperature,
    title: str = "What soft labels ask for",
    *,
    teacher: str = "teacher",
    student: str = "student",
    log_scale: bool = False,
) -> look.Picture:
    """The figure once; arguments as those of `SoftLabelsPlot` and its `update`."""
    plot = SoftLabelsPlot(len(data.token_ids), teacher=teacher, student=student)
    return plot.update(data, curve, title, log_scale=log_scale)


def _move_curve(
    lines: Sequence[Line2D],
    temperatures: Sequence[float],
    plain: Sequence[float],
    here: float,
    data: SoftLabels,
) -> None:
    squared = [value * t * t for value, t in zip(plain, temperatures, strict=True)]
    low, high = RANGE
    lines[0].set_data(temperatures, squared)
    lines[1].set_data(temperatures, plain)
    lines[2].set_data([data.response.temperature], [min(max(here * data.factor, low), high)])


def loss_name(data: SoftLabels) -> str:
    """`KL(teacher ‖ student)`; at the ends of its dial Jensen–Shannon is one of the others."""
    response = data.response
    return DIVERGENCES[response.divergence].format(response.beta)


def in_words(data: SoftLabels) -> str:
    """The loss and both entropies."""
    t = data.response.temperature
    times = f", times T² {data.loss:.3g}" if data.squared else ", not multiplied by T²"
    entropies = f"entropy {data.teacher_entropy:.2f} and {data.student_entropy:.2f} nats"
    return f"{loss_name(data)} at T = {t:g}: {data.plain_loss:.3g} nats{times} · {entropies}"


def _tokens_in_words(data: SoftLabels, how_many: int = 5) -> str:
    rows = list(zip(data.labels, data.teacher, data.student, data.push, strict=True))[:how_many]
    told = [
        f"{language.own(label)}: teacher {look.percent(p)}, student {look.percent(q)}, push {_signed(push)}"
        for label, p, q, push in rows
    ]
    up, down = map(language.own, data.pushed_most)
    return f"Pushed up most: {up}, down most: {down}. {'; '.join(told)}"


def _with_others(data: SoftLabels, listed: Sequence, others) -> list:
    """The rows, and one more for all other tokens where there are some."""
    return [*listed, *([others] if data.vocab_size > len(listed) else [])]


def _rectangle(y: int, width: float) -> list[tuple[float, float]]:
    return [(0.0, y - 0.33), (width, y - 0.33), (width, y + 0.33), (0.0, y + 0.33)]


def _round_up(value: float) -> float:
    """1, 2 or 5 times a power of ten, not below the value: an axis that keeps still for a while."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _signed(value: float, limit: float | None = None) -> str:
    """`+0.021`: to two digits, or as finely as bars of an axis up to a limit can be told apart."""
    if value == 0:
        return "0"
    digits = f"{value:+.2g}" if limit is None else f"{value:+.{max(0, 2 - math.floor(math.log10(limit)))}f}"
    return digits.replace("-", "−")
