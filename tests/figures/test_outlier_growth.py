"""Errors as outliers grow: a line for each way to round, with its name at its end."""

import itertools

import pytest

from llmcourse.figures.outlier_growth import plot_outlier_growth
from llmcourse.quantization.outliers import ErrorAtScale

ERRORS = [ErrorAtScale(f, 3e-4 * f, 9e-5 * f, 3e-5, 0.01 * f) for f in (1.0, 4.0, 16.0)]


def test_lines_are_the_errors_in_order_of_the_factor():
    picture = plot_outlier_growth(ERRORS[::-1])
    (axes,) = picture.axes
    for line, way in zip(axes.lines, ("tensor", "token", "mixed"), strict=True):
        assert list(line.get_xdata()) == [1, 4, 16]
        assert list(line.get_ydata()) == [getattr(one, way) for one in ERRORS]
    assert "a scale for each token: 9e-05 at 1 times, 0.0014 at 16 times." in picture.alt
    picture.png(1.0)


def test_names_keep_apart_where_lines_meet():
    far = ErrorAtScale(1.0, 1e-1, 1e-4, 1e-7, 0.5)
    picture = plot_outlier_growth([far, ErrorAtScale(2.0, 1.1e-4, 1e-4, 0.9e-4, 0.5)])
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    names = [text.get_window_extent(renderer) for text in picture.axes[0].texts if len(text.get_text()) > 9]
    boxes = sorted(names[1:], key=lambda box: box.y0)  # without the panel's name
    assert len(boxes) == 3 and all(a.y1 <= b.y0 for a, b in itertools.pairwise(boxes))
    assert all(box.x1 <= picture.bbox.x1 for box in boxes)


def test_one_factor_is_refused():
    with pytest.raises(ValueError, match="errors must be for at least 2 factors, got 1"):
        plot_outlier_growth(ERRORS[:1])
