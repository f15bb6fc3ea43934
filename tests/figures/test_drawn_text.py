"""Texts that are kept look as those that are drawn anew, wherever they stand."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from llmcourse.figures import drawn_text
from llmcourse.figures import style as look

SEEN = 30  # of 255: less is no difference to an eye


def pixels(canvas, height=3.37, dpi=150, **text):
    """A page whose height is no whole number of pixels, with texts at odd places."""
    with look.style():
        picture = look.Picture(5.0, height)
        canvas(picture)
        look.heading(picture, "A title, 春眠不觉晓", "and “what” lies below: ½ + gjpqy")
        axes = picture.add_axes((0.2, 0.2, 0.7, 0.5))
        axes.set_ylabel("upright")
        for row in range(8):
            size, color = 8 + row / 3, look.SERIES[row % 4]
            picture.text(0.3 + 0.013 * row, 0.3 + 0.0317 * row, f"row {row}", size=size, color=color, **text)
        picture.set_dpi(dpi)
        picture.canvas.draw()
        return np.asarray(picture.canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.parametrize("text", [{}, {"alpha": 0.5}, {"rotation": 30}, {"clip_on": True}])
@pytest.mark.parametrize("height", [3.0, 3.37])
def test_kept_texts_look_as_drawn_ones(text, height):
    drawn = pixels(FigureCanvasAgg, height, **text)
    for _ in range(2):  # made, and found
        assert abs(pixels(drawn_text.KeepingCanvas, height, **text) - drawn).max() < SEEN
    assert (drawn.min(-1) < 128).sum() > 1000


def test_a_shift_by_a_pixel_would_be_seen():
    drawn = pixels(FigureCanvasAgg)
    assert abs(np.roll(drawn, 1, axis=0) - drawn).max() > SEEN


def test_each_text_is_made_once_for_a_place_colour_and_size(monkeypatch):
    monkeypatch.setattr(drawn_text, "_kept", type(drawn_text._kept)())
    pixels(drawn_text.KeepingCanvas)
    count = len(drawn_text._kept)
    pixels(drawn_text.KeepingCanvas)
    assert len(drawn_text._kept) == count
    pixels(drawn_text.KeepingCanvas, dpi=100)
    assert len(drawn_text._kept) > count


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(drawn_text, "MOST_KEPT", 3)
    monkeypatch.setattr(drawn_text, "_kept", type(drawn_text._kept)())
    pixels(drawn_text.KeepingCanvas)
    assert len(drawn_text._kept) == 3
