"""Speed against score of a classifier with exits: a panel for each task, a line for each method.

The two methods without a choice, all layers and half of them, are single marks. A thin dashed line is what a
method's exits reach without a rule, if all texts leave after the same layer: a rule is worth what it has
above that. A dotted line marks the speed at which the methods are compared in the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from llmcourse.early_exit.classifier.methods import METHODS
from llmcourse.early_exit.classifier.recorded import Reached, Recorded, always_at_one, trade_off
from llmcourse.early_exit.classifier.table import SPEED_UP
from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable

SPEED_UPS = torch.linspace(1, 4, 31, dtype=torch.float64).tolist()
MARKS = (  # of each method: letter, marker, colour
    ("▼", "v", look.INK),
    *zip("●■▲◆", look.MARKERS, look.SERIES, strict=True),
)
MOST = 4  # panels that can be read beside each other


def plot_trade_off(recorded: Sequence[Recorded], title: str, subtitle: str = "") -> look.Picture:
    """The figure.

    Args:
        recorded: methods on one to four tasks.

    Raises:
        ValueError: no task, or more than fit.
    """
    tasks = list(dict.fromkeys(one.task for one in recorded))
    if not 1 <= len(tasks) <= MOST:
        raise ValueError(f"tasks must be 1 to {MOST}, got {len(tasks)}; draw the others apart")
    curves = {(one.task, one.method.name): trade_off(one, SPEED_UPS) for one in recorded}
    without = {(one.task, one.method.name): _drawn(always_at_one(one)) for one in recorded}
    with look.style():
        picture = look.Picture(look.WIDTH, 3.7)
        look.heading(picture, title, subtitle)
        share = 0.98 / len(tasks)
        for column, task in enumerate(tasks):
            axes = picture.add_axes((0.055 + share * column, 0.15, share - 0.075, 0.51))
            for index, method in enumerate(METHODS):
                _draw_without(axes, without.get((task, method.name), []), index)
                _draw(axes, curves.get((task, method.name), []), index)
            _finish(axes, task)
        for index, method in enumerate(METHODS):
            letter, _, color = MARKS[index]
            picture.text(0.055 + 0.19 * index, 0.785, f"{letter} {method.title}", color=color, size=9.5)
    picture.alt = f"{title}. " + " ".join(_sentence(task, curves, without) for task in tasks)
    return picture


def _draw(axes, points: list[Reached], index: int) -> None:
    _, marker, color = MARKS[index]
    style = {"color": color, "marker": marker, "markersize": 7 if len(points) == 1 else 4}
    places = [p.speed_up for p in points], [p.score for p in points]
    axes.plot(*places, linewidth=1.4, markevery=max(1, len(points) // 8), **style)


def _drawn(points: list[Reached]) -> list[Reached]:
    """Those at the speeds of the figure."""
    return [point for point in points if point.speed_up <= SPEED_UPS[-1]]


def _draw_without(axes, points: list[Reached], index: int) -> None:
    if len(points) > 1:
        places = [p.speed_up for p in points], [p.score for p in points]
        axes.plot(*places, linewidth=0.9, linestyle=(0, (4, 2)), color=MARKS[index][2], zorder=1)


def _finish(axes, task: str) -> None:
    axes.axvline(SPEED_UP, color=look.MUTED, linewidth=1, linestyle=(0, (1, 1.6)), zorder=1)
    axes.set_xlabel("speed-up in layers")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color="#eceff2", linewidth=0.8)
    axes.text(0, 1.06, readable(task), transform=axes.transAxes, weight="bold", size=10.5)
    axes.text(1, 1.06, "% right", transform=axes.transAxes, size=8.5, color=look.MUTED, ha="right")


def _sentence(task: str, curves: dict[tuple[str, str], list[Reached]], without: dict) -> str:
    """Each method at the point that is nearest to the table's speed, and its exits there without a rule."""
    told = []
    for method in METHODS:
        points, fixed = curves.get((task, method.name), []), without.get((task, method.name), [])
        if points:
            point = min(points, key=_from_the_tables_speed)
            told.append(f"{method.title} {point.score:.1f} % right at {point.speed_up:.2f} times")
        if len(fixed) > 1:
            told[-1] += f" ({min(fixed, key=_from_the_tables_speed).score:.1f} % without a rule)"
    return f"{task}: {', '.join(told)}."


def _from_the_tables_speed(point: Reached) -> float:
    return abs(point.speed_up - SPEED_UP)
