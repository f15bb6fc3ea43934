"""Formats on one axis: points, what they make of numbers, and what is refused."""

import math

import numpy as np
import pytest

from llmcourse.figures.format_points import MOST, code_points, plot_code_points
from llmcourse.quantization.formats import FORMATS

INT4 = range(-7, 8)


def test_points_are_scaled_to_the_largest_magnitude():
    points = code_points("int4", INT4)
    assert points.points[0] == -1 and points.points[-1] == 1 and len(points.points) == 15
    assert math.isnan(points.snr_db) and points.near_zero == 1 / 15
    assert code_points("scaled", [30 * q for q in INT4]).points == points.points


def test_what_is_no_number_or_repeats_does_not_count():
    assert code_points("f", [0.0, -0.0, 1.0, math.inf, math.nan, -1.0]).points == (-1, 0, 1)


def test_numbers_become_the_nearest_points():
    numbers = np.random.default_rng(0).uniform(-1, 1, 2000)
    points = np.array([-1, -0.3, 0.1, 1])
    nearest = points[np.abs(numbers[:, None] - points).argmin(1)]  # every distance
    expected = 10 * math.log10((numbers**2).sum() / ((numbers - nearest) ** 2).sum())
    assert code_points("odd", points.tolist(), numbers).snr_db == pytest.approx(expected, abs=1e-9)
    assert code_points("exact", points.tolist(), points).snr_db == math.inf


def test_points_where_the_numbers_are_lose_less():
    normal = np.random.default_rng(1).normal(size=(500, 64))
    numbers = normal / np.abs(normal).max(1, keepdims=True)
    nf4 = FORMATS["nf4"].points
    assert code_points("nf4", nf4, numbers).snr_db > code_points("int4", INT4, numbers).snr_db + 0.5


def test_a_row_for_each_format_and_a_stroke_for_each_point():
    numbers = np.linspace(-1, 1, 101)
    formats = {"int4": INT4} | {name: format.points for name, format in FORMATS.items()}
    picture = plot_code_points(formats, numbers=numbers)
    rows, histogram = picture.axes
    assert [label.get_text() for label in rows.get_yticklabels()] == list(formats)
    for collection, (name, codes) in zip(rows.collections, formats.items(), strict=True):
        drawn = [segment[0][0] for segment in collection.get_segments()]
        assert drawn == list(code_points(name, codes).points)
    assert sum(histogram.patches[0].get_data().values) == len(numbers)
    assert "int4 SNR" in picture.alt and "15 values, 7% up to ⅛" in picture.alt
    picture.png(1.0)


def test_words_stay_inside():
    picture = plot_code_points({"MXFP4 (e2m1)": INT4}, numbers=np.linspace(-1, 1, 9))
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    texts = [*picture.axes[0].texts, *picture.axes[1].texts, *picture.axes[0].get_yticklabels()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert all(picture.bbox.x0 <= box.x0 and box.x1 <= picture.bbox.x1 for box in boxes)


def test_what_is_no_format_is_refused():
    with pytest.raises(ValueError, match=r"codes of flat must be two or more numbers, got \[1.0\]"):
        plot_code_points({"flat": [1.0, 1.0]})
    for count in (0, MOST + 1):
        with pytest.raises(ValueError, match=f"formats must be 1 to {MOST}, got {count}"):
            plot_code_points({str(n): INT4 for n in range(count)})
    assert plot_code_points({"int4": INT4}).axes[0].lines  # without numbers there is one panel
