"""Memory and time against length: rows find their curve, and the full memory its place on it."""

import pytest

from llmcourse.figures.against_length import LengthRow, curve_of, full_at, plot_against_length, would_be

LENGTHS = (1024, 2048, 4096, 8192)
NAIVE = [LengthRow("naive", s, 1e-9 * s**2, 64 * s**2) for s in LENGTHS]
FULL = [LengthRow("naive", 16384), LengthRow("naive", 32768)]
FLASH = [LengthRow("flash", s, 1e-10 * s**2, 1000 * s) for s in (*LENGTHS, 16384, 32768)]


def test_rows_in_any_order_are_a_curve():
    curve = curve_of([*FLASH, *reversed(NAIVE), *FULL], "naive", "peak_bytes")
    assert curve.x == LENGTHS and curve.exponent() == pytest.approx(2)
    assert curve_of(NAIVE[:1], "naive", "time_s") is None and curve_of(NAIVE, "flash", "time_s") is None


def test_the_full_memory_lies_where_the_curve_goes_on():
    rows = [*NAIVE, *FULL, *FLASH]
    assert full_at(rows, "naive") == 16384 and full_at(rows, "flash") is None
    length, peak = would_be(rows, "naive", "peak_bytes")
    assert length == 16384 and peak == pytest.approx(64 * 16384**2)
    assert would_be(rows, "flash", "peak_bytes") is None and would_be(FULL, "naive", "time_s") is None


def test_both_panels_show_every_row_and_the_cross():
    picture = plot_against_length([*NAIVE, *FULL, *FLASH], "Attention", memory_bytes=10**10)
    for axes, measure in zip(picture.axes, ("peak_bytes", "time_s"), strict=True):
        curves = {len(line.get_xdata()): line for line in axes.lines if line.get_marker() in "os"}
        assert list(curves[6].get_ydata()) == [getattr(row, measure) for row in FLASH]
        (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
        assert list(cross.get_xdata()) == [16384]
        low, high = axes.get_ylim()
        assert low < cross.get_ydata()[0] < high
    assert "memory of the device: 10.0 GB" in [text.get_text() for text in picture.axes[0].texts]
    assert {"● S^2.0", "■ S^1.0"} <= {text.get_text() for text in picture.axes[0].texts}
    assert "out of memory at 16,384 tokens" in picture.alt and picture.alt.count("out of memory") == 1
    picture.png(1.0)


def test_one_measure_alone_is_drawn():
    picture = plot_against_length([LengthRow("naive", s, time_s=s / 1e6) for s in LENGTHS], "Time alone")
    assert not picture.axes[0].lines and len(picture.axes[1].lines) == 1
    assert not any("out of memory" in text.get_text() for text in picture.texts)
    picture.png(1.0)


def test_what_has_no_logarithm_is_refused():
    with pytest.raises(ValueError, match="time_s must be above 0 and finite, got 0; None says out of memory"):
        LengthRow("naive", 1024, 0)
    with pytest.raises(ValueError, match="length must be above 0 and finite, got 0"):
        LengthRow("naive", 0)
    with pytest.raises(ValueError, match="rows must be of 1 to 4 names, got 0"):
        plot_against_length([], "Nothing")


def test_the_slopes_of_four_names_and_the_title_of_a_panel_find_room():
    names = ("naive", "tiles, in Python", "fused, PyTorch", "flash_attention")
    rows = [LengthRow(name, length, 1e-3 * length, 1e3 * length) for name in names for length in (64, 128)]
    picture = plot_against_length(rows, "Attention")
    for axes in picture.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert len(boxes) == 1 + len(names)
        assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
