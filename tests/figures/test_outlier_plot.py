"""The strip of activations: marks are at the outlier columns, circles on the curves."""

import itertools
import math

import numpy as np
import pytest
import torch

from llmcourse.figures.outlier_plot import MOST_LABELS, OutlierPlot
from llmcourse.figures.outlier_split import LayerInput, split, splits


@pytest.fixture(scope="module")
def layer():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 30, generator=generator), torch.randn(8, 30, generator=generator)
    x[3, 7], x[4, 21] = -18.0, 9.0
    return LayerInput(x, w)


@pytest.fixture
def plot(layer):
    return OutlierPlot(layer, splits(layer), ["a", "b", "春", "d", "\n"])


def at(collection) -> list[float]:
    return [segment[0][0] for segment in collection.get_segments()]


def test_the_strip_is_the_magnitudes(plot, layer):
    cells = plot.strip.images[0].get_array()
    assert np.allclose(cells, layer.x.abs()) and plot.strip.get_yticklabels()[2].get_text() == "春"
    stems = plot.tops.collections[0].get_segments()
    assert [stem[1][1] for stem in stems] == pytest.approx(layer.maxima.tolist())


@pytest.mark.parametrize(("threshold", "columns"), [(6, [7, 21]), (10, [7]), (48, [])])
def test_marks_are_at_the_columns_that_keep_16_bits(plot, layer, threshold, columns):
    shown = split(layer, threshold)
    picture = plot.update(shown, "Title")
    assert at(plot._stems) == columns == at(plot._columns)
    for ring, value in zip(plot._rings, (shown.error, shown.share), strict=True):
        assert ring.get_xydata().tolist() == [[threshold, value]]
    assert plot._limit.get_visible() is (threshold < 20)
    told = {0: "no column in 16 bits", 1: "1 column (3.3%", 2: "2 columns (6.7%"}[len(columns)]
    assert told in picture.alt
    picture.png(1.0)


def test_the_curves_go_through_every_threshold(plot, layer):
    every = splits(layer)
    assert plot.errors.lines[0].get_ydata().tolist() == [one.error for one in every]
    assert plot.shares.lines[0].get_ydata().tolist() == [one.share for one in every]
    plot.update(every[-1], "Title")
    places = plot.errors.lines[0].get_xdata()
    assert plot._rings[0].get_xdata() == [places[-1]] and places[-1] > places[-2]


def test_many_tokens_have_no_labels(layer):
    long = LayerInput(layer.x.repeat(10, 1), layer.weight)
    plot = OutlierPlot(long, splits(long), ["word"] * 50)
    assert plot.strip.get_yticklabels() == []
    plot.update(split(long, 6), "Title").png(1.0)


def test_names_of_rows_do_not_touch(layer):
    long = LayerInput(layer.x.repeat(5, 1)[:MOST_LABELS], layer.weight)
    plot = OutlierPlot(long, splits(long), ["␣jumping", "春"] * (MOST_LABELS // 2))
    plot.update(split(long, 6), "Title").png(1.0)
    boxes = [label.get_window_extent() for label in plot.strip.get_yticklabels()]
    assert len(boxes) == MOST_LABELS
    gaps = [(above.y0 - below.y1) / above.height for above, below in itertools.pairwise(boxes)]
    assert min(gaps) > 0.25  # the sign of a space hangs below its box


def test_a_layer_of_zeros_can_be_drawn():
    zeros = LayerInput(torch.zeros(2, 4), torch.ones(3, 4))
    OutlierPlot(zeros, splits(zeros), ["a", "b"]).update(split(zeros, 6), "Title").png(1.0)


def test_what_does_not_fit_is_refused(layer):
    with pytest.raises(ValueError, match="labels must be 5, one a token, got 1; label every token"):
        OutlierPlot(layer, splits(layer), ["a"])
    with pytest.raises(ValueError, match="every must end with a threshold of ∞"):
        OutlierPlot(layer, splits(layer, (1, 2)), ["a"] * 5)
    OutlierPlot(layer, splits(layer, (1, math.inf)), ["a"] * 5)
