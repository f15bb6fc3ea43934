"""A canvas that keeps the texts it has drawn: most words of a view are the same from one answer to the next.

Matplotlib makes every letter anew each time, which takes longer than all else in a picture of few lines and
many words. Texts, those of ticks and legends too, are painted in the language that is chosen.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from llmcourse.figures import language

MOST_KEPT = 1024  # texts, of some 10 kB each
MARGIN = 2  # pixels around a text, for letters that reach beyond their widths
FINE = 8  # places that are told apart within a pixel, each way

_kept: OrderedDict[tuple, tuple[np.ndarray, int]] = OrderedDict()


class KeepingRenderer(RendererAgg):
    """Draws a horizontal text as an image, which is made once."""

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: FontProperties,
        angle: float,
        ismath: bool | str = False,
        mtext: Text | None = None,
    ) -> None:
        s = language.text(s)
        if angle or ismath or not gc.get_antialiased() or not s.strip():
            super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)
            return
        left, right_by = divmod(round(x * FINE), FINE)
        from_top = y - self.height % 1  # Agg counts whole pixels from the top, Matplotlib from below
        line, down_by = divmod(round(from_top * FINE), FINE)
        key = (s, hash(prop), self.dpi, gc.get_rgb(), gc.get_alpha(), right_by, down_by)
        if key not in _kept:
            _kept[key] = self._drawn(gc, s, prop, (right_by / FINE, down_by / FINE), mtext)
            if len(_kept) > MOST_KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        image, below = _kept[key]
        self.draw_image(gc, left - MARGIN, int(self.height) - line - below, image)

    def get_text_width_height_descent(
        self, s: str, prop: FontProperties, ismath: bool | str
    ) -> tuple[float, float, float]:
        return super().get_text_width_height_descent(language.text(s), prop, ismath)

    def _drawn(
        self,
        gc: GraphicsContextBase,
        s: str,
        prop: FontProperties,
        by: tuple[float, float],
        mtext: Text | None,
    ) -> tuple[np.ndarray, int]:
        """The text on a sheet of its own, and how many pixels of that lie below its base line."""
        width, height, descent = super().get_text_width_height_descent(s, prop, ismath=False)
        below = math.ceil(descent) + MARGIN + 1
        size = math.ceil(width) + 2 * MARGIN + 1, math.ceil(height - descent) + below + MARGIN
        sheet = RendererAgg(*size, self.dpi)
        ink = sheet.new_gc()
        ink.set_foreground(gc.get_rgb(), isRGBA=True)
        ink.set_alpha(gc.get_alpha())
        place = MARGIN + by[0], size[1] - below + by[1]
        RendererAgg.draw_text(sheet, ink, *place, s, prop, 0, False, mtext)
        return np.array(sheet.buffer_rgba())[::-1], below


class KeepingCanvas(FigureCanvasAgg):
    """As Matplotlib's, with that renderer; another language measures all texts anew."""

    def get_renderer(self) -> RendererAgg:
        width, height = self.figure.bbox.size
        key = width, height, self.figure.dpi, language.current()
        if getattr(self, "_drawn_with", None) != key:
            self.renderer, self._drawn_with = KeepingRenderer(width, height, self.figure.dpi), key
        return self.renderer
