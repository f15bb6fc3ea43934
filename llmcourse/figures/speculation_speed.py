"""Speculation against decoding alone: how many times as fast, by theory and by the clock.

Two figures of one comparison. One shows draft lengths on the machine at hand, dashed as predicted; the other
recorded runs, whose prediction comes from the α, c and v that were measured in the same process. A line at 1
is decoding without drafts: what lies below it was made slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import PurePath

from matplotlib.ticker import FuncFormatter, MaxNLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.growth import Curve, groups_of
from llmcourse.figures.kernel_bars import missing_words, nothing_recorded, origin

KINDS = ("prose_b1", "verse_b1", "code_b1")
LARGE_BATCHES = ("code_b8", "code_b32")
SETTINGS = tuple(
    f"speculative_{kind}" for kind in (*KINDS, *(f"{kind}_sampled" for kind in KINDS), *LARGE_BATCHES)
)
ALONE = {"color": look.INK, "linewidth": 1.1, "linestyle": (0, (1.2, 1.4)), "zorder": 3}
DASHED = {"linewidth": 1.5, "linestyle": (0, (4, 2)), "zorder": 2}
COLUMN: dict[str, Callable[[dict], str]] = {
    "measured": lambda row: f"{row['value']:.2f} ×",
    "of │": lambda row: f"{row['value'] / row['limit']:.0%}" if row["limit"] else "–",
    "γ": lambda row: str(row["gamma"]),
    "α": lambda row: f"{row['alpha']:.2f}",
    "c": lambda row: f"{row['c']:.2f}",
    "v": lambda row: f"{row['v']:.2f}",
}
ROW, ABOVE, COLUMNS = 0.34, 1.25, 3.2  # inches: a row, all over the first one, all that columns take
HEAD = -0.88  # of the rows, where the heads of columns stand


def plot_draft_lengths(curves: Sequence[Curve], title: str, subtitle: str = "") -> look.Picture:
    """Speed-up by drafts a step; a measurement and its prediction share a colour if they share a group.

    Raises:
        ValueError: no curves, or more groups than can be told apart.
    """
    groups = groups_of(curves)
    with look.style():
        picture = look.Picture(look.WIDTH, 4.0)
        look.heading(picture, title, subtitle)
        axes = picture.add_axes((0.06, 0.125, 0.66, 0.67))
        for curve in curves:
            _draw(axes, curve, groups.index(curve.group))
        highest = max(y for curve in curves for y in curve.y)
        lengths = sorted({x for curve in curves for x in curve.x})
        axes.set(xlabel="drafts a step, γ", ylim=(0, 1.08 * max(highest, 1)))
        axes.set_xlim(lengths[0] - 0.3, lengths[-1] + 0.15)
        axes.set_xticks(lengths)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        top = axes.get_ylim()[1]
        axes.set_yticks([tick for tick in MaxNLocator(6).tick_values(0, top) if tick <= top])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.grid(axis="y", color="#eceff2", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.axhline(1, **ALONE)
        axes.text(0, 1.03, "times as fast as decoding alone", transform=axes.transAxes, color=look.MUTED)
        _name(axes, curves, groups)
        look.fix_label(axes)
        picture.alt = f"{title}. " + " ".join(map(_sentence, curves))
    return picture


def _draw(axes, curve: Curve, index: int) -> None:
    color = look.SERIES[index]
    if curve.kind == "predicted":
        axes.plot(curve.x, curve.y, color=color, **DASHED)
    else:
        marks = {"marker": look.MARKERS[index], "markersize": 6, "zorder": 4}
        axes.plot(curve.x, curve.y, color=color, linewidth=1.6, **marks)


def _name(axes, curves: Sequence[Curve], groups: Sequence[str]) -> None:
    """Names beside the ends of the lines, and of the line at 1; pushed apart where ends are close."""
    ends = [(1.0, "decoding alone", look.INK)]
    for curve in curves:
        index = groups.index(curve.group)
        sign = "╌╌" if curve.kind == "predicted" else "●■▲◆"[index]
        ends.append((curve.y[-1], f"{sign} {curve.name}", look.SERIES[index]))
    top = axes.get_ylim()[1]
    least = 17 / axes.get_window_extent().height  # of the axes, for one line of text
    last = math.inf
    for y, words, color in sorted(ends, key=lambda end: -end[0]):
        last = min(y / top, last - least)
        style = {"transform": axes.transAxes, "color": color, "va": "center", "size": 10}
        axes.text(1.02, last, readable(words), **style)


def _sentence(curve: Curve) -> str:
    pairs = ", ".join(f"{y:.2f} with {x:g}" for x, y in zip(curve.x, curve.y, strict=True))
    return f"{curve.name} ({curve.kind}): times as fast {pairs} drafts a step."


def setting(name: str) -> str:
    """`speculative_code_b8` as `code, greedy, batch 8`; a single text goes without saying."""
    domain, batch, *sampled = name.removeprefix("speculative_").split("_")
    words = [domain, "sampled" if sampled else "greedy"]
    return ", ".join(words if batch == "b1" else [*words, f"batch {batch[1:]}"])


def models(rows: Sequence[dict]) -> str:
    """`drafts by draft, verified by base`; models that lay in a folder go by its name."""
    pairs = dict.fromkeys((PurePath(row["drafter"]).name, PurePath(row["target"]).name) for row in rows)
    return "; ".join(f"drafts by {drafter}, verified by {target}" for drafter, target in pairs)


def plot_recorded(rows: Sequence[dict], title: str, names: Sequence[str] = ()) -> look.Picture:
    """Bars of recorded speed-ups; | marks what theory predicts, if anything, and columns say from what.

    Args:
        rows: of `benchmarks/speculative.py`, as `recorded.all_of` gives them.
        names: what should have been recorded, to say what is missing.
    """
    missing = [name for name in names if name not in {row["name"] for row in rows}]
    if not rows:
        return nothing_recorded(title, missing)
    labels, note = _labels(rows), 0.25 if missing else 0.0
    height = ABOVE + ROW * len(rows) + 0.45 + note
    with look.style():
        picture = look.Picture(look.WIDTH, height)
        look.heading(picture, title, look.shorten(origin(rows), 105))
        picture.text(
            0.012, 1 - 0.70 / height, readable(models(rows)), size=9.5, color=look.MUTED, va="center"
        )
        left = 0.04 + 0.0084 * max(map(len, labels))
        width = 1 - left - COLUMNS / look.WIDTH
        axes = picture.add_axes((left, (0.45 + note) / height, width, ROW * len(rows) / height))
        _draw_bars(axes, rows, labels)
        _draw_columns(axes, rows)
        if missing:
            style = {"size": 9, "color": look.MUTED, "va": "bottom"}
            picture.text(0.012, 0.05 / height, look.shorten(missing_words(missing), 120), **style)
        told = "; ".join(f"{label}: {_told(row)}" for label, row in zip(labels, rows, strict=True))
        picture.alt = f"{title}, {origin(rows)}, {models(rows)}. {told}."
    return picture


def _labels(rows: Sequence[dict]) -> list[str]:
    several = len({row["device"] for row in rows}) > 1
    return [
        setting(row["name"]) + (f", {look.shorten(row['device'], 16)}" if several else "") for row in rows
    ]


def _draw_bars(axes, rows: Sequence[dict], labels: Sequence[str]) -> None:
    widest = max(max(row["value"], row["limit"] or 0.0, 1.0) for row in rows)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.05 * widest), xlabel="times as fast as decoding alone")
    axes.axvline(1, **ALONE)
    for place, row in enumerate(rows):
        axes.barh(place, row["value"], height=0.62, color=look.SERIES[0])
        if row["limit"]:
            mark = {"color": look.ACCENT, "linewidth": 2, "zorder": 4}
            axes.plot([row["limit"]] * 2, [place - 0.42, place + 0.42], **mark)
    axes.set_yticks(range(len(rows)), [readable(label) for label in labels])
    axes.xaxis.set_major_locator(MaxNLocator(6, prune="upper"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    look.bare(axes, "left")
    look.fix_label(axes)


def _draw_columns(axes, rows: Sequence[dict]) -> None:
    """Behind the bars, right-aligned, with a head for each; the key stands over the bars."""
    wide = axes.get_position().width * look.WIDTH  # inches
    head = {"transform": axes.get_yaxis_transform(), "size": 9, "color": look.MUTED, "va": "center"}
    axes.text(0, HEAD, "│", **head | {"color": look.ACCENT, "weight": "bold"})
    axes.text(0.11 / wide, HEAD, readable("predicted     ┄ decoding alone"), **head)
    for number, (name, told) in enumerate(COLUMN.items(), start=1):
        x = 1 + number * COLUMNS / (len(COLUMN) + 0.3) / wide
        axes.text(x, HEAD, readable(name), ha="right", **head)
        for place, row in enumerate(rows):
            axes.text(x, place, told(row), ha="right", **head | {"color": look.INK})


def _told(row: dict) -> str:
    return ", ".join(f"{name} {told(row)}" for name, told in COLUMN.items())
