"""Weights, cache and activations as stacked bars against the memory that there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.roofline import Memory

# Lightness and hatching tell the parts apart, not hue alone.
PARTS = {
    "weights": {"facecolor": look.SERIES[0], "edgecolor": look.PAPER},
    "KV cache": {"facecolor": "#8fbfe0", "edgecolor": look.PAPER},
    "activations": {"facecolor": look.PAPER, "edgecolor": look.SERIES[0], "hatch": "..."},
}

LEFT, ACROSS = 0.24, 0.74  # of the figure: where the bars begin, and the longest that there is room for
LETTER = 6.6 / (ACROSS * look.WIDTH * look.PIXELS_PER_INCH)  # of the axis: a letter of a verdict, size 9
AXIS_STEPS = (1.06, 1.5, 2, 3, 5, *(10**power * step for power in range(1, 9) for step in (1, 2, 5)))


def parts(memory: Memory) -> dict[str, int]:
    """Bytes by part, in the order in which they are drawn."""
    sizes = (memory.weight_bytes, memory.cache_bytes, memory.activation_bytes)
    return dict(zip(PARTS, sizes, strict=True))


def verdict(memory: Memory, free_bytes: int) -> str:
    """`fits, 24.0 GB stay free`, or by how much it does not."""
    left = free_bytes - memory.total_bytes
    return f"fits, {gigabytes(left)} to spare" if left >= 0 else f"does not fit: {gigabytes(-left)} too much"


def gigabytes(num_bytes: int | float) -> str:
    """In GB of 10⁹ bytes, as costs and bandwidths are counted; small sizes in MB, large ones in TB."""
    if num_bytes >= 1e12:
        return f"{num_bytes / 1e12:,.2f} TB"
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def label_place(need: Memory, length: float, limits: Sequence[int], widest: float) -> tuple[float, str]:
    """Where a verdict of that length stands, `(x, alignment)`: across no limit, and on no weights if it can.

    Tried in turn: after the bar, in its end (for a long bar first), and on the other side of the first limit.
    """
    gap, end, limit = 0.008 * widest, need.total_bytes, limits[0]
    after, inside = (end + gap, "left"), (end - gap, "right")
    places = [inside, after] if end > 0.55 * widest else [after, inside]
    tried = [*places, (limit + gap, "left")] if limit > end else [*places, (limit - gap, "right")]
    lefts = {place: place[0] - length if place[1] == "right" else place[0] for place in tried}
    free = [
        place
        for place, left in lefts.items()
        if 0 <= left <= widest - length and not any(left < one < left + length for one in limits)
    ]
    clear = [place for place in free if lefts[place] > need.weight_bytes]
    return (clear or free or places)[0]


class MemoryPlot:
    """The figure, made once for so many bars and then redrawn with others."""

    def __init__(self, rows: int):
        self.height = 1.55 + 0.52 * rows
        with look.style():
            self.figure = look.Picture(look.WIDTH, self.height)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            self.axes = self.figure.add_axes((LEFT, 0.42 / self.height, ACROSS, 1 - 1.55 / self.height))
            self.axes.set(ylim=(rows - 0.5, -0.5), yticks=[])
            self.axes.xaxis.set_major_formatter(FuncFormatter(self._tick))
            self.axes.xaxis.set_major_locator(MaxNLocator(5))
            look.bare(self.axes, "left")
            _draw_key(self.figure, self.height)

    def update(
        self, needs: Mapping[str, Memory], limits: Mapping[str, int], title: str, subtitle: str = ""
    ) -> look.Picture:
        """Shows other data; arguments as `plot_memory`."""
        room = tuple(limits.values())
        for artist in self.figure.moving[1:]:
            artist.remove()
        with look.style():
            widest = _axis_end(max(need.total_bytes for need in needs.values()), max(room))
            self.title.set_text(readable(title))
            self.axes.set_xlim(0, widest)
            self.figure.still_key = (title, widest)
            self.subtitle.set_text(readable(subtitle))
            self.figure.moving = [self.subtitle]
            for row, (name, need) in enumerate(needs.items()):
                self._draw_bar(row, readable(name), need, room, widest)
            for place, (name, limit) in enumerate(limits.items()):
                self._draw_limit(name, limit, widest, place)
        sentences = [_sentence(name, need, room[0]) for name, need in needs.items()]
        self.figure.alt = " ".join([f"{title}:", *sentences])
        return self.figure

    def _tick(self, num_bytes: float, _position: int | None) -> str:
        """In one unit along the axis, that of its end."""
        unit, size = ("TB", 1e12) if self.axes.get_xlim()[1] >= 1e12 else ("GB", 1e9)
        return f"{num_bytes / size:,.4g} {unit}"

    def _draw_bar(self, row: int, name: str, need: Memory, limits: Sequence[int], widest: float) -> None:
        beside = {"transform": self.axes.get_yaxis_transform(), "ha": "right", "va": "center"}
        self.figure.moving.append(self.axes.text(-0.012, row, name, size=10, **beside))
        start, free_bytes = 0, limits[0]
        for part, size in parts(need).items():
            self._draw_piece(row, start, size, linewidth=0.6, **PARTS[part])
            start += size
        fits = start <= free_bytes
        if not fits:
            outline = {"fill": False, "edgecolor": look.ACCENT, "linewidth": 1.8}
            self._draw_piece(row, free_bytes, start - free_bytes, **outline)
        words = f"{gigabytes(start)}, {verdict(need, free_bytes)}"
        x, side = label_place(need, len(words) * LETTER * widest, limits, widest)
        paper = {"facecolor": look.PAPER, "edgecolor": "none", "pad": 1.5}
        style = {
            "ha": side,
            "va": "center",
            "size": 9.5,
            "color": look.INK if fits else look.ACCENT,
            "zorder": 5,
        }
        self.figure.moving.append(self.axes.text(x, row, words, bbox=paper, **style))

    def _draw_piece(self, row: int, start: int, size: int, **style) -> None:
        """As `barh` draws it, which would look for new ends of the axes at each."""
        self.figure.moving.append(
            self.axes.add_artist(Rectangle((start, row - 0.28), size, 0.56, zorder=1, **style))
        )

    def _draw_limit(self, name: str, limit: int, widest: float, place: int) -> None:
        dashes = "-" if place == 0 else (0, (3, 2))
        self.figure.moving.append(
            self.axes.axvline(limit, color=look.INK, linewidth=1.4, zorder=4, linestyle=dashes)
        )
        style = {"ha": "right" if limit > 0.5 * widest else "left", "va": "bottom", "size": 9.5}
        text = readable(f" {name}, {gigabytes(limit)} ")
        beside = self.axes.get_xaxis_transform()
        self.figure.moving.append(self.axes.text(limit, 1.02, text, transform=beside, **style))


def plot_memory(
    needs: Mapping[str, Memory], limits: Mapping[str, int], title: str, subtitle: str = ""
) -> look.Picture:
    """A bar for each need, and a line for each memory; the first of them gives the verdict.

    Args:
        needs: what is asked for, by name.
        limits: bytes of one or more devices, by name.

    Raises:
        ValueError: there is no need or no limit.
    """
    if not needs or not limits:
        raise ValueError(f"needs and limits must not be empty, got {len(needs)} and {len(limits)}")
    return MemoryPlot(len(needs)).update(needs, limits, title, subtitle)


def _axis_end(needed: int, limit: int) -> float:
    """Where the axis ends: it stays while the bars are about as long."""
    return float(limit * next(step for step in AXIS_STEPS if limit * step >= 1.04 * needed))


def _draw_key(picture: look.Picture, height: float) -> None:
    for index, (name, look_of) in enumerate(PARTS.items()):
        x, y = LEFT + 0.15 * index, 1 - 0.80 / height
        picture.add_artist(
            Rectangle((x, y), 0.02, 0.13 / height, transform=picture.transFigure, linewidth=0.6, **look_of)
        )
        picture.text(x + 0.027, y, name, size=9.5, color=look.MUTED)


def _sentence(name: str, need: Memory, free_bytes: int) -> str:
    sizes = ", ".join(f"{part} {gigabytes(size)}" for part, size in parts(need).items())
    return f"{name}: {sizes}; {verdict(need, free_bytes)}."
