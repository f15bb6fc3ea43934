"""Temperature figures: the family of distributions, and the calibration diagram."""

import math

import pytest
import torch
from scipy.stats import binomtest

from llmcourse.decoding.metrics import CalibrationBin
from llmcourse.figures.temperature import (
    plot_calibration,
    plot_temperatures,
    temperature_family,
    wilson_interval,
)

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0])


def test_each_column_is_the_softmax_at_its_temperature():
    data = temperature_family(LOGITS, [0.5, 1.0, 2.0], str, rows=2)
    assert data.labels == ("0", "2")
    for column, temperature in enumerate((0.5, 1, 2)):
        p = [math.exp(x / temperature) for x in LOGITS.tolist()]
        p = [x / sum(p) for x in p]
        assert data.probabilities[column] == pytest.approx((p[0], p[2]))
        assert data.others[column] == pytest.approx(p[1] + p[3])
        assert data.entropies[column] == pytest.approx(-sum(x * math.log(x) for x in p))


def test_temperature_zero_is_greedy():
    data = temperature_family(LOGITS, [0.0], str)
    assert data.probabilities == ((1, 0, 0, 0),)
    assert (data.entropies, data.others) == ((0,), (0,))


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(
        ValueError, match=r"temperature must be in \[0, inf\), got .*; use 0 for greedy search"
    ):
        temperature_family(LOGITS, [temperature], str)


def test_the_family_is_drawn():
    picture = plot_temperatures(temperature_family(LOGITS, [0.0, 0.5, 1.0, 2.0], "月{}".format))
    columns = picture.axes
    assert len(columns) == 4
    assert [bar.get_width() for bar in columns[0].patches] == [1, 0, 0, 0, 0]
    p = (LOGITS / 2).softmax(-1)
    assert f"0.00 to {-(p * p.log()).sum():.2f} nats" in picture.alt
    picture.png(1.0)


@pytest.mark.parametrize(("wins", "count"), [(0, 5), (3, 10), (10, 10), (420, 1000)])
def test_intervals_are_wilsons(wins, count):
    expected = binomtest(wins, count).proportion_ci(0.95, method="wilson")
    found = wilson_interval(wins / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_calibration_curves_run_through_their_bins():
    bins = [CalibrationBin(50, 0.2, 0.1), CalibrationBin(30, 0.7, 0.9)]
    picture = plot_calibration({"T = 1": bins, "T = 0.5": bins[:1]})
    lines = [line for line in picture.axes[0].lines if list(line.get_xdata()) == [0.2, 0.7]]
    assert [list(line.get_ydata()) for line in lines] == [[0.1, 0.9]]
    assert "T = 1 13.8%, T = 0.5 10.0%" in picture.alt
    picture.png(1.0)


@pytest.mark.parametrize("names", ["", "abcde"])
def test_curves_that_cannot_be_told_apart_are_refused(names):
    with pytest.raises(ValueError, match=r"curves must hold 1 to 4 entries, got [05]"):
        plot_calibration({name: [CalibrationBin(1, 0.5, 0.5)] for name in names})
