"""One look for every figure: dark means kept, pale and hatched means cut, orange means look here.

The colours stay apart for colour-blind readers and in grey print: no meaning hangs on hue alone,
lightness or hatching always tells it too. Figures are made without pyplot and keep no global
state; the style is a context, entered when a figure is made and again when it is drawn.

A notebook answers its controls on one thread and runs its cells on another, and matplotlib knows
neither of two threads in one figure nor of two in its settings. So only one thread draws at a time.
"""

from __future__ import annotations

import base64
import struct
import threading
import zlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmcourse.figures import language
from llmcourse.figures.drawn_text import KeepingCanvas
from llmcourse.figures.fonts import FAMILIES, install_fonts, readable

INK = "#1d2733"  # text
MUTED = "#55606c"  # secondary text, 6:1 on white
LINE = "#c9d0d8"  # axes and connecting lines
PAPER = "#ffffff"
KEPT = "#3f7fb5"
CUT = "#f0e2d3"
CUT_EDGE = "#b08a63"
CUT_HATCH = "/////"
ACCENT = "#c8481a"
SERIES = ("#1b5587", "#c8481a", "#2f9c86", "#e3a92b")  # lightness 35, 48, 58 and 73 of 100
MARKERS = ("o", "s", "^", "D")
PIXELS_PER_INCH = 100  # a figure 8.6 inches wide fits a notebook in a window of 1024 pixels
WIDTH = 8.6
DRAWING = threading.RLock()  # held by the one thread that makes, changes or paints a figure

SETTINGS = {
    "font.family": FAMILIES,
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,  # a token may be "$"
    "axes.edgecolor": LINE,
    "axes.facecolor": PAPER,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.facecolor": PAPER,
    "figure.dpi": PIXELS_PER_INCH,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 10,
    "ytick.major.size": 0,
}


@contextmanager
def style() -> Iterator[None]:
    """The course's settings, for the length of a `with` block; the user's own come back after it.

    Another thread's block waits for the end of this one.
    """
    with DRAWING:
        install_fonts()
        with matplotlib.rc_context(SETTINGS):
            yield


class Picture(Figure):
    """A figure that shows itself in a notebook and says in words what it shows.

    Attributes:
        alt: the text alternative, for screen readers and for whoever cannot see the picture.
        moving: artists that change often. The rest is painted once and remembered for as long as
            `still_key` stays equal, which halves the time of a redraw.
    """

    def __init__(self, width: float = WIDTH, height: float = 4.0, alt: str = "", **options):
        super().__init__(figsize=(width, height), dpi=PIXELS_PER_INCH, **options)
        KeepingCanvas(self)
        self.alt = alt
        self.moving: list[Artist] = []
        self.still_key: Hashable = None
        self._still = None  # (key, pixels)

    def png(self, scale: float = 2.0) -> bytes:
        """The picture as a PNG file, `scale` pixels for each one of its size on the page."""
        with style():
            self.set_dpi(PIXELS_PER_INCH * scale)
            try:
                self._paint()
                return write_png(np.asarray(self.canvas.buffer_rgba())[..., :3])
            finally:
                self.set_dpi(PIXELS_PER_INCH)

    def _paint(self) -> None:
        key = (self.dpi, self.still_key, language.current())
        if not self.moving or self._still is None or self._still[0] != key:
            for artist in self.moving:
                artist.set_animated(True)  # leaves them out
            self.canvas.draw()
            self._still = (key, self.canvas.copy_from_bbox(self.bbox))
            for artist in self.moving:
                artist.set_animated(False)
        else:
            self.canvas.restore_region(self._still[1])
        for artist in self.moving:
            artist.draw(self.canvas.get_renderer())

    def _repr_mimebundle_(self, include=None, exclude=None):
        width, height = (round(inches * PIXELS_PER_INCH) for inches in self.get_size_inches())
        alt = language.text(self.alt)
        size = {"width": width, "height": height, "alt": alt}
        picture = base64.b64encode(self.png()).decode("ascii")
        return {"image/png": picture, "text/plain": alt}, {"image/png": size}


def write_png(pixels: np.ndarray) -> bytes:
    """An RGB image `(height, width, 3)` as a PNG file (RFC 2083), its lines unfiltered.

    For flat colours that is twice as fast as a library that looks for the best filter of each
    line, and no larger.
    """
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # a zero before each line: no filter
    lines[:, 1:].reshape(height, width, 3)[...] = pixels  # a view of the lines: copied once
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*part) for part in parts)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def shorten(text: str, length: int) -> str:
    """The text cut off where it would be wider than `length` average letters, with an ellipsis."""
    room = length
    for index, ch in enumerate(text):
        room -= 2 if ord(ch) >= 0x2E80 else 1.5 if ch in "#%&@MWmw+=<>~" else 1
        if room < 0:
            return text[: max(index - 1, 1)] + "…"
    return text


def token(label: str, length: int) -> str:
    """A model's token as a figure writes it: cut off, drawable, and in no language but its own."""
    return language.own(readable(shorten(label, length)))


def percent(p: float) -> str:
    """A probability for readers: tenths of a percent, finer where it is small."""
    if p == 0 or p >= 0.001:
        return f"{p:.1%}"
    return f"{p:.2%}" if p >= 0.0001 else f"{p:.0e}".replace("e-0", "e-")


def seconds(time_s: int | float) -> str:
    """`12.3 ms`, in the unit that suits the size."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if time_s >= size:
            return f"{time_s / size:,.3g} {unit}" if time_s < 1000 * size else f"{time_s / size:,.0f} {unit}"
    return f"{time_s * 1e6:,.3g} µs"


def heading(figure: Figure, title: str, subtitle: str = "", left: float = 0.012) -> tuple:
    """A title and a quieter line below it, at the figure's upper left; returns both texts."""
    height = figure.get_size_inches()[1]
    first = figure.text(left, 1 - 0.10 / height, readable(title), size=13, weight="bold", va="top")
    second = figure.text(left, 1 - 0.38 / height, readable(subtitle), size=10.5, color=MUTED, va="top")
    return first, second


def bare(axes: Axes, *sides: str) -> None:
    """Takes away the named spines, and all ticks where the left or bottom one goes."""
    for side in sides:
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False, bottom="bottom" not in sides)


def fix_label(axes: Axes) -> None:
    """Puts the x label at a fixed place, so that drawing need not first measure the tick labels."""
    below = 0.24 / (axes.get_position().height * axes.figure.get_size_inches()[1])
    axes.xaxis.set_label_coords(0.5, -below)
