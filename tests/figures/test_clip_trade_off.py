"""Rounding against clipping: both errors by a slow count, and the least of their sum."""

import pytest
import torch

from llmcourse.figures.clip_trade_off import ClipTradeOff, clip_trade_off, plot_clip_trade_off
from llmcourse.quantization.affine import quantization_error, quantize


@pytest.fixture(scope="module")
def weight():
    return torch.randn(12, 256, generator=torch.Generator().manual_seed(0))


def test_both_errors_add_up_to_that_of_the_range(weight):
    found = clip_trade_off(weight, 3, (0.4, 1.0))
    whole = quantize(weight, bits=3, granularity="channel")
    error = quantization_error(weight, whole.dequantized()) / weight.double().square().sum().item()
    assert found.total[1] == pytest.approx(error) and found.clipping[1] == 0
    step, rounding, clipping = None, 0.0, 0.0
    for row in weight.double():  # number by number
        end = 0.4 * row.abs().max().item()
        step = end / 3.5
        for x in row.tolist():
            lost = (step * min(max(round(x / step), -4), 3) - x) ** 2
            rounding, clipping = (rounding, clipping + lost) if abs(x) > end else (rounding + lost, clipping)
    power = weight.double().square().sum().item()
    assert found.rounding[0] == pytest.approx(rounding / power, rel=1e-4)
    assert found.clipping[0] == pytest.approx(clipping / power, rel=1e-4)


def test_fewer_bits_want_shorter_ranges(weight):
    best = [one.ratios[one.best] for one in (clip_trade_off(weight, bits) for bits in (2, 4, 8))]
    assert best == sorted(best) and best[0] < best[-1]


def test_the_search_finds_about_the_same(weight):
    searched = quantize(weight, bits=4, granularity="channel", range_method="mse")
    error = quantization_error(weight, searched.dequantized()) / weight.double().square().sum().item()
    found = clip_trade_off(weight, 4)
    assert 0.8 * found.total[found.best] < error < 1.01 * found.total[found.best]  # one ratio for all rows


def test_lines_and_circle_are_the_data(weight):
    each = [clip_trade_off(weight, bits) for bits in (2, 4)]
    picture = plot_clip_trade_off(each)
    for axes, one in zip(picture.axes, each, strict=True):
        total, rounding, _, ring = axes.lines
        assert tuple(total.get_ydata()) == one.total and tuple(rounding.get_ydata()) == one.rounding
        assert ring.get_xydata().tolist() == [[one.ratios[one.best], min(one.total)]]
    assert f"2 bits: least error {min(each[0].total):.1%} with" in picture.alt
    picture.png(1.0)


def test_small_shares_are_percentages_like_all_others(weight):
    picture = plot_clip_trade_off([clip_trade_off(weight, 8)])
    picture.png(1.0)
    low, high = picture.axes[0].get_ylim()
    axis = picture.axes[0].yaxis
    labels = {y: axis.get_major_formatter()(y, 0) for y in axis.get_majorticklocs() if low <= y <= high}
    assert min(labels) < 1e-4 and all(
        float(words.rstrip("%")) == pytest.approx(100 * y) for y, words in labels.items()
    )
    assert not any("e" in words for words in labels.values())


@pytest.mark.parametrize("count", [0, 4])
def test_other_counts_are_refused(count):
    one = ClipTradeOff(4, (0.5, 1.0), (0.1, 0.2), (0.3, 0.0))
    with pytest.raises(ValueError, match=f"trade_offs must be 1 to 3, got {count}"):
        plot_clip_trade_off([one] * count)


def test_zeros_are_refused():
    with pytest.raises(ValueError, match="weight must have a number that is not 0"):
        clip_trade_off(torch.zeros(2, 4), 4)
