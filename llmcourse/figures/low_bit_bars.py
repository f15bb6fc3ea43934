"""Recorded low-bit linear layers by the number of rows: how many times faster than 16 bits, and why not more.

A bar is the speed-up over the 16-bit layer of the same run. The line over it is where the limit lies, the
memory's bandwidth or the arithmetic; the diamond is what the library gives that one would use otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import FuncFormatter, MaxNLocator

from llmcourse.figures import style as look
from llmcourse.figures.kernel_bars import missing_words, nothing_recorded, origin

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))  # (N, K)
ROWS = (1, 4, 16, 32, 64)  # of layers whose weights alone have few bits
ROWS_W8A8 = (1, 16, 64, 4096, 8192)
MOST_SHAPES = 3
NAME = re.compile(r"linear_(?P<kind>\w+?)_n(?P<n>\d+)_k(?P<k>\d+)_m(?P<m>\d+)(_vs_(?P<peer>\w+))?")


@dataclass(frozen=True)
class LowBitSpeed:
    """One layer at one number of rows.

    Attributes:
        speed_up: over 16 bits.
        limit: the speed-up at which the limit would be reached; None where none was recorded.
        peer: the speed-up of the other low-bit kernel; None where it was not recorded.
    """

    n: int
    k: int
    m: int
    speed_up: float
    limit: float | None
    peer: float | None


def names_of(
    kind: str, shapes: Iterable[tuple[int, int]] = SHAPES, rows: Iterable[int] = ROWS, peer: str = ""
) -> list[str]:
    """What the benchmarks call these layers: `linear_int4_n14336_k4096_m1`, with a peer `…_vs_tinygemm`."""
    rows, behind = tuple(rows), f"_vs_{peer}" if peer else ""
    return [f"linear_{kind}_n{n}_k{k}_m{m}{behind}" for n, k in shapes for m in rows]


def speeds_of(rows: Iterable[Mapping], kind: str) -> list[LowBitSpeed]:
    """From recorded rows, those of one kind that have a 16-bit peer; of other rows none is taken.

    Args:
        rows: of one device, as `recorded.all_of` gives them; the peers' own rows among them.
        kind: such as "int4".
    """
    layers, peers = {}, {}
    for row in rows:
        found = NAME.fullmatch(row["name"])
        if not found or found["kind"] != kind or not row["ratio_peer"]:
            continue
        key = tuple(int(found[letter]) for letter in "nkm")
        (peers if found["peer"] else layers)[key] = row
    speeds = []
    for key, row in layers.items():
        speed_up, share = row["ratio_peer"], row["ratio_limit"]
        other = peers[key]["ratio_peer"] if key in peers else None
        limit = speed_up / share if share else None
        speeds.append(LowBitSpeed(*key, speed_up, limit, speed_up / other if other else None))
    return speeds


def plot_low_bit(
    rows: Sequence[dict], kind: str, title: str, names: Sequence[str] = (), *, peer: str = "tinygemm"
) -> look.Picture:
    """A panel for each shape, a bar for each number of rows.

    Args:
        rows: as for `speeds_of`.
        names: what should have been recorded, to say what is missing.
        peer: of the diamonds.

    Raises:
        ValueError: rows of several devices, or more shapes than fit.
    """
    recorded = {row["name"] for row in rows}
    missing = [name for name in names if name not in recorded]
    speeds = speeds_of(rows, kind)
    if not speeds:
        return nothing_recorded(title, missing)
    if len(devices := {row["device"] for row in rows}) > 1:
        raise ValueError(f"rows must be of one device, got {', '.join(sorted(devices))}; draw them apart")
    shapes = list(dict.fromkeys((one.n, one.k) for one in speeds))
    if len(shapes) > MOST_SHAPES:
        raise ValueError(f"rows must be of 1 to {MOST_SHAPES} shapes, got {len(shapes)}; draw some apart")
    with look.style():
        below = 0.55 + (0.2 if missing else 0.0)
        picture = look.Picture(look.WIDTH, 3.35 + below)
        marks = "times as fast as 16 bits" + " · ▬ limit" * any(one.limit for one in speeds)
        marks += f" · ◆ {peer}" * any(one.peer for one in speeds)
        look.heading(picture, title, look.shorten(f"{origin(rows)} · {marks}", 105))
        share, height = 0.945 / len(shapes), picture.get_figheight()
        highest = max(max(one.speed_up, one.peer or 0) for one in speeds)
        highest = max(highest, *(one.limit for one in speeds if one.limit and one.limit < 2 * highest), 1)
        for column, shape in enumerate(shapes):
            axes = picture.add_axes((0.05 + share * column, below / height, share - 0.03, 2.3 / height))
            here = sorted((one for one in speeds if (one.n, one.k) == shape), key=lambda one: one.m)
            _draw_shape(axes, here, highest)
        if missing:
            style = {"size": 9, "color": look.MUTED, "va": "bottom"}
            picture.text(0.012, 0.013, look.shorten(missing_words(missing), 120), **style)
        picture.alt = f"{title}, {origin(rows)}. " + "; ".join(_told(one, peer) for one in speeds) + "."
    return picture


def _draw_shape(axes, speeds: Sequence[LowBitSpeed], highest: float) -> None:
    top = 1.12 * highest
    for place, one in enumerate(speeds):
        axes.bar(place, one.speed_up, 0.64, color=look.SERIES[0])
        axes.text(place, one.speed_up + 0.015 * top, f"{one.speed_up:.2f}", ha="center", size=9)
        if one.limit and one.limit <= top:
            edge = [place - 0.40, place + 0.40]
            axes.plot(edge, [one.limit] * 2, color=look.INK, linewidth=1.8, zorder=4)
        if one.peer:
            style = {"color": look.SERIES[3], "markeredgecolor": look.INK, "markersize": 6, "zorder": 5}
            axes.plot(place, one.peer, "D", **style)
    axes.axhline(1, color=look.ACCENT, linewidth=1.2, linestyle=(0, (4, 2)), zorder=3)
    axes.set(xlim=(-0.6, len(speeds) - 0.4), ylim=(0, top), xlabel="rows M")
    axes.set_xticks(range(len(speeds)), [f"{one.m:,}" for one in speeds])
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}×"))
    axes.tick_params(labelsize=9)
    axes.text(0, 1.05, f"{speeds[0].n:,} × {speeds[0].k:,}", transform=axes.transAxes, weight="bold")
    look.bare(axes)


def _told(one: LowBitSpeed, peer: str) -> str:
    limit = f", limit {one.limit:.2f}" if one.limit else ""
    other = f", {peer} {one.peer:.2f}" if one.peer else ""
    return f"{one.n} × {one.k} at {one.m} rows {one.speed_up:.2f} times{limit}{other}"
