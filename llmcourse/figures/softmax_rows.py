"""The online softmax watched on one row: maximum, sum and result while the scores come block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from llmcourse.attention import online_softmax
from llmcourse.figures import style as look

MOST_LABELS = 10


@dataclass(frozen=True)
class WatchedRow:
    """One row, before the first block and after each.

    Attributes:
        scores: all of them; −inf is one that does not count.
        seen: how many have come, at each state.
        peaks, totals: m and l at each state.
        fades: e^(m before − m now), by which l and o were multiplied on the way to each state; the first
            is 1, and the next 0, since nothing was there.
        results: o / l at each state, one number a column of the values.
        expected: softmax of all the scores, times the values.
    """

    scores: tuple[float, ...]
    seen: tuple[int, ...]
    peaks: tuple[float, ...]
    totals: tuple[float, ...]
    fades: tuple[float, ...]
    results: tuple[tuple[float, ...], ...]
    expected: tuple[float, ...]

    @property
    def num_rescaled(self) -> int:
        """How often a larger score made all that was summed before it smaller."""
        return sum(0 < fade < 1 for fade in self.fades)


def watch_row(scores: Float[Tensor, " S"], values: Float[Tensor, "S D"], block: int = 1) -> WatchedRow:
    """Runs `attention.online_softmax` over a row.

    Raises:
        ValueError: no scores, or a block without any.
    """
    if not len(scores):
        raise ValueError("scores must hold at least 1, got 0; a row without keys has nothing to watch")
    states = list(online_softmax(scores, values, block))
    peaks = [float(state.peak) for state in states]
    weights = scores.softmax(-1).nan_to_num(0.0)  # nothing but −inf: an empty sum
    return WatchedRow(
        scores=tuple(scores.tolist()),
        seen=tuple(min(number * block, len(scores)) for number in range(len(states))),
        peaks=tuple(peaks),
        totals=tuple(float(state.total) for state in states),
        fades=(1.0, *(_fade(before, now) for before, now in pairwise(peaks))),
        results=tuple(tuple(state.result().tolist()) for state in states),
        expected=tuple((weights @ values).tolist()),
    )


def _fade(before: float, now: float) -> float:
    return 1.0 if before == now else math.exp(before - now)


def plot_watched_row(data: WatchedRow, title: str = "Online softmax, watched on one row") -> look.Picture:
    """Three panels on one axis, the scores seen: scores and m; l; o / l with its end dashed."""
    with look.style():
        picture = look.Picture(look.WIDTH, 5.6)
        times = "once" if data.num_rescaled == 1 else f"{data.num_rescaled} times"
        subtitle = f"{len(data.scores)} scores in {len(data.seen) - 1} blocks; a new maximum rescaled {times}"
        look.heading(picture, title, subtitle)
        places = ((0.085, 0.625, 0.90, 0.20), (0.085, 0.365, 0.90, 0.18), (0.085, 0.085, 0.90, 0.20))
        axes = [picture.add_axes(place) for place in places]
        _draw_scores(axes[0], data)
        _draw_totals(axes[1], data)
        _draw_results(axes[2], data)
        for one in axes:
            one.set_xlim(0, 1.01 * len(data.scores))
            one.xaxis.set_major_locator(MaxNLocator(9, integer=True))
            one.yaxis.set_major_locator(MaxNLocator(4))
            edges = data.seen if len(data.seen) <= 40 else ()
            for edge in edges:
                one.axvline(edge, color="#eceff2", linewidth=0.8, zorder=0)
        for one in axes[:2]:
            one.tick_params(labelbottom=False)
        axes[2].set_xlabel("scores seen")
        look.fix_label(axes[2])
        picture.alt = f"{title}: {subtitle}. In the end m = {data.peaks[-1]:.2f}, l = {data.totals[-1]:.2f}."
    return picture


def _name(axes, text: str) -> None:
    axes.text(0, 1.05, text, transform=axes.transAxes, weight="bold", size=10.5, va="bottom")


def _draw_scores(axes, data: WatchedRow) -> None:
    shown = [(at + 0.5, score) for at, score in enumerate(data.scores) if score > -math.inf]
    if shown:
        axes.plot(*zip(*shown, strict=True), "o", color=look.LINE, markersize=4, markeredgecolor=look.MUTED)
    known = [(seen, peak) for seen, peak in zip(data.seen, data.peaks, strict=True) if peak > -math.inf]
    if known:
        color = look.SERIES[0]
        axes.step(*zip(*known, strict=True), where="post", color=color, linewidth=1.8)
        axes.plot(*zip(*known, strict=True), "o", color=color, markersize=4)
    _name(axes, "scores (○) and the running maximum m (line)")


def _draw_totals(axes, data: WatchedRow) -> None:
    """l, and by how much it was rescaled where the maximum rose."""
    axes.plot(data.seen, data.totals, color=look.SERIES[0], marker="o", markersize=4, linewidth=1.6)
    top = 1.5 * max(data.totals) or 1.0
    axes.set_ylim(0, top)
    rescaled = [(data.seen[at], fade) for at, fade in enumerate(data.fades) if 0 < fade < 1]
    for place, (seen, fade) in enumerate(rescaled[:MOST_LABELS]):
        axes.axvline(seen, color=look.ACCENT, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1)
        side = "right" if seen > 0.9 * len(data.scores) else "left"
        y = top * (0.98 if place % 2 else 0.84)  # in turn, since two may be close
        paper = {"facecolor": look.PAPER, "edgecolor": "none", "pad": 0.5}
        style = {"color": look.ACCENT, "size": 9, "ha": side, "va": "top", "bbox": paper}
        axes.text(
            seen + (0.004 if side == "left" else -0.004) * len(data.scores), y, f"× {fade:.2f}", **style
        )
    _name(axes, "running sum l, and what it was multiplied by before a block was added")


def _draw_results(axes, data: WatchedRow) -> None:
    columns = len(data.expected)
    for column in range(min(columns, len(look.SERIES))):
        color, marker = look.SERIES[column], look.MARKERS[column]
        axes.axhline(data.expected[column], color=color, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
        line = [result[column] for result in data.results[1:]]
        axes.plot(data.seen[1:], line, color=color, marker=marker, markersize=4, linewidth=1.6)
    hidden = f", first {len(look.SERIES)} of {columns} numbers" if columns > len(look.SERIES) else ""
    _name(axes, f"result so far o / l (lines) and the definition's (dashed){hidden}")
