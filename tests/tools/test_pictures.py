"""Pictures of saved notebooks are smaller, and look the same."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from tools.pictures import COLOURS, smaller


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(int)


def drawn(**how) -> Image.Image:
    """Lines, letters, and a map of as many colours as those of the chapters, as Matplotlib writes them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4), dpi=200)
    for slope in range(6):
        left.plot(np.arange(40), slope * np.arange(40), label=f"line {slope}")
    left.legend()
    right.imshow(np.random.default_rng(0).random((24, 24)), cmap="viridis")
    file = io.BytesIO()
    figure.savefig(file, format="png", **how)
    plt.close(figure)
    return Image.open(file)


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_a_plot_takes_half_the_bytes_and_looks_the_same(mode):
    picture = drawn()
    assert picture.mode == "RGBA", "what notebooks hold has an alpha channel, opaque throughout"
    plot = encoded(picture.convert(mode))
    before, packed = pixels(plot), smaller(plot)
    after = pixels(packed)
    away = np.abs(before - after).max(axis=-1)
    colours, number = np.unique(before.reshape(-1, 3), axis=0, return_inverse=True)
    assert len(colours) > COLOURS, "nothing to choose: the test says nothing"
    assert len(packed) < 0.5 * len(plot)
    assert away.max() <= 16  # of 256 steps; a colour of another line is a hundred away
    assert (after[(before == 255).all(axis=-1)] == 255).all()  # white stays white
    pairs = np.unique(np.column_stack((number.ravel(), after.reshape(-1, 3))), axis=0)
    assert len(pairs) == len(colours)  # a colour becomes one other, and not dots of two
    assert smaller(packed) == packed  # a second time changes nothing


def test_a_picture_that_is_see_through_stays_as_it_is():
    behind = encoded(drawn(transparent=True))
    assert smaller(behind) == behind


def test_what_would_grow_stays_as_it_is():
    dot = encoded(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert smaller(dot) == dot
