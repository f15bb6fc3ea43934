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


@pytest.fixture(scope="module")
def plot() -> str:
    """Lines, letters, and a map of as many colours as those of the chapters have."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4), dpi=200)
    for slope in range(6):
        left.plot(np.arange(40), slope * np.arange(40), label=f"line {slope}")
    left.legend()
    right.imshow(np.random.default_rng(0).random((24, 24)), cmap="viridis")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return encoded(Image.open(file).convert("RGB"))


def test_a_plot_takes_half_the_bytes_and_looks_the_same(plot):
    before, packed = pixels(plot), smaller(plot)
    after = pixels(packed)
    away = np.abs(before - after).max(axis=-1)
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > COLOURS, "nothing to choose: the test says nothing"
    assert len(packed) < 0.5 * len(plot)
    assert away.max() <= 16  # of 256 steps; a colour of another line is a hundred away
    assert (after[(before == 255).all(axis=-1)] == 255).all()  # white stays white
    assert smaller(packed) == packed  # a second time changes nothing


def test_a_picture_that_is_see_through_stays_as_it_is():
    half = encoded(Image.new("RGBA", (64, 64), (200, 30, 30, 128)))
    assert smaller(half) == half


def test_what_would_grow_stays_as_it_is():
    dot = encoded(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert smaller(dot) == dot
