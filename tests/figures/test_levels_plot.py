"""The rounded weight's picture: bars count numbers, strokes are levels, the circle is on its curve."""

import itertools

import numpy as np
import pytest
import torch

from llmcourse.figures.levels_plot import LevelsPlot
from llmcourse.figures.rounded_weight import RoundingInputs, round_weight, trade_offs


@pytest.fixture(scope="module")
def weight():
    w = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))
    w[0, 0] = 40.0  # far beyond the axis
    return w


@pytest.fixture
def plot(weight):
    return LevelsPlot(
        weight.numpy(), {symmetric: trade_offs(weight, symmetric) for symmetric in (True, False)}
    )


def shown(plot, weight, **settings):
    inputs = RoundingInputs(**settings)
    rounded = round_weight(weight, inputs)
    return rounded, plot.update(rounded, inputs, "Title")


def test_bars_count_every_number(plot, weight):
    rounded, picture = shown(plot, weight, bits=3, range_method="percentile", percentile=90.0)
    bars = plot.weights.patches[0].get_data().values
    assert np.nansum(bars) == weight.numel() and bars[-1] == 1  # what is beyond counts in the last bin
    assert np.nansum(plot._clipped.get_data().values) == int(rounded.clipped.sum()) > 0
    assert picture.alt.startswith("Title: 3 bits, symmetric, by channel, range by percentile; ‖W − W̃‖²")
    picture.png(1.0)


def test_strokes_are_levels_and_their_ends(plot, weight):
    rounded, _ = shown(plot, weight, bits=3)
    assert [segment[0][0] for segment in plot._levels.get_segments()] == pytest.approx(rounded.levels)
    ends = [segment[0][0] for segment in plot._ends.get_segments()]
    assert ends == pytest.approx([rounded.levels[0], rounded.levels[-1]])
    half = [segment[0][0] for segment in plot._half.get_segments()]
    assert half == pytest.approx([-rounded.step / 2, rounded.step / 2])


def test_levels_off_the_axis_are_left_out(plot, weight):
    rounded, _ = shown(plot, weight, granularity="tensor")
    strokes = [segment[0][0] for segment in plot._levels.get_segments()]
    assert 0 < len(strokes) < 16 == len(rounded.levels) and max(map(abs, strokes)) <= plot.limit


def test_errors_are_counted_within_their_axis(plot, weight):
    rounded, _ = shown(plot, weight, bits=4)
    error = (rounded.restored - weight).double().numpy()
    counts = np.histogram(error.clip(-plot.error_limit, plot.error_limit), plot.fine_edges)[0]
    assert plot._error.get_data().values.tolist() == pytest.approx((counts / counts.max()).tolist())


def test_the_circle_is_on_its_curve_under_min_max_and_above_it_with_clipping(plot, weight):
    for symmetric in (True, False):
        shown(plot, weight, bits=5, symmetric=symmetric, granularity="group of 64")
        here = tuple(plot._here.get_xydata()[0])
        curve = plot._lines["group of 64"].get_xydata().tolist()
        assert list(here) in curve and curve == [
            list(p) for p in trade_offs(weight, symmetric)["group of 64"]
        ]
    better, _ = shown(plot, weight, bits=4, range_method="mse")
    assert better.snr_db > trade_offs(weight, True)["channel"][2][1]
    assert plot._here.get_ydata()[0] == better.snr_db


def test_codes_are_as_often_as_they_are_taken(plot, weight):
    for bits in (2, 8):
        rounded, _ = shown(plot, weight, bits=bits)
        values, edges, _ = plot._codes.get_data()
        assert len(values) == 2**bits and edges[0] == 0 and edges[-1] == 1
        assert values.tolist() == pytest.approx((rounded.usage / rounded.usage.max()).tolist())
        assert plot._entropy.get_text() == f"{rounded.entropy_bits:.2f} of {bits} bits"


def test_a_redraw_moves_what_is_not_painted_once(plot, weight):
    pictures = {shown(plot, weight, bits=bits)[1].png(1.0) for bits in (2, 4, 8)}
    pictures.add(shown(plot, weight, bits=4, symmetric=False)[1].png(1.0))
    assert len(pictures) == 4
    again = LevelsPlot(weight.numpy(), plot.curves)
    assert shown(again, weight, bits=4)[1].png(1.0) == shown(plot, weight, bits=4)[1].png(1.0)


def test_words_do_not_lie_on_one_another(plot, weight):
    _, picture = shown(plot, weight, bits=8, granularity="group of 128", range_method="mse")
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    for axes in picture.axes:
        above = [text for text in axes.texts if text.get_position()[1] > 1]
        boxes = sorted((text.get_window_extent(renderer) for text in above), key=lambda box: box.x0)
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
        assert boxes[-1].x1 <= picture.bbox.x1


def test_zeros_are_refused():
    with pytest.raises(ValueError, match="weight must have a number that is not 0"):
        LevelsPlot(np.zeros((2, 2)), {True: {}, False: {}})
