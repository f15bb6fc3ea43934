"""Recorded low-bit layers: speed-ups, limits and peers are those of the rows, and missing rows are said."""

import pytest

from llmcourse.figures.low_bit_bars import ROWS, SHAPES, LowBitSpeed, names_of, plot_low_bit, speeds_of
from llmcourse.figures.recorded import all_of

NAMES = names_of("int4")


def row(name, ratio_peer=2.5, ratio_limit=0.625, **changes):
    found = {"name": name, "value": 2600.0, "unit": "GB/s", "device": "NVIDIA H200", "date": "2026-11-30"}
    found |= {"limit": 4160.0, "limit_name": "copy bandwidth", "ratio_limit": ratio_limit}
    return found | {"peer": "bf16", "peer_value": 1040.0, "ratio_peer": ratio_peer} | changes


def test_names_are_those_of_the_benchmarks():
    assert len(NAMES) == len(SHAPES) * len(ROWS) and "linear_int4_n14336_k4096_m16" in NAMES
    assert names_of("int8", [(64, 32)], [2]) == ["linear_int8_n64_k32_m2"]
    assert names_of("int4", [(64, 32)], [2], "tinygemm") == ["linear_int4_n64_k32_m2_vs_tinygemm"]


def test_limit_and_peer_are_speed_ups_over_16_bits_too():
    name = "linear_int4_n14336_k4096_m16"
    rows = [row(name), row(f"{name}_vs_tinygemm", 5.0, None), row("linear_int8_n8_k8_m1"), row("decode_x")]
    assert speeds_of(rows, "int4") == [LowBitSpeed(14336, 4096, 16, 2.5, 4.0, 0.5)]
    assert speeds_of(rows, "int8") == [LowBitSpeed(8, 8, 1, 2.5, 4.0, None)]
    assert speeds_of([row(name, None)], "int4") == []
    assert speeds_of([row("linear_llm_int8_n8_k8_m1", 2.0, None)], "llm_int8")[0].limit is None


def test_bars_limits_and_peers_stand_where_they_were_measured():
    rows = [row(name, 3.0 - 0.1 * at) for at, name in enumerate(NAMES)]
    rows.append(row(f"{NAMES[0]}_vs_tinygemm", 1.5, None))
    picture = plot_low_bit(rows[::-1], "int4", "int4", NAMES)
    assert len(picture.axes) == len(SHAPES)
    for column, shape in enumerate(reversed(SHAPES)):  # in the order of the rows
        axes = picture.axes[column]
        assert axes.texts[-1].get_text() == f"{shape[0]:,} × {shape[1]:,}"
        expected = [one["ratio_peer"] for one in rows if f"n{shape[0]}_k{shape[1]}_" in one["name"]][:5]
        assert [bar.get_height() for bar in axes.patches] == expected
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "16", "32", "64"]
    last = picture.axes[-1]
    diamonds = [line.get_ydata()[0] for line in last.lines if line.get_marker() == "D"]
    limits = [line.get_ydata()[0] for line in last.lines if len(line.get_ydata()) == 2][:-1]
    assert diamonds == [2.0] and limits == pytest.approx(
        [value / 0.625 for value in (3.0, 2.9, 2.8, 2.7, 2.6)]
    )
    assert "4096 × 4096 at 1 rows 3.00 times, limit 4.80, tinygemm 2.00" in picture.alt
    picture.png(1.0)


def test_a_limit_far_away_is_not_drawn():
    picture = plot_low_bit([row(NAMES[0], 2.0, 0.01)], "int4", "int4")
    assert picture.axes[0].get_ylim()[1] < 5
    assert [len(line.get_xdata()) for line in picture.axes[0].lines] == [2]  # the line at 1


def test_missing_rows_are_said():
    picture = plot_low_bit([row(NAMES[0])], "int4", "int4", NAMES)
    assert any(
        "Not recorded yet: linear_int4_n4096_k4096_m4 and 13 more" in t.get_text() for t in picture.texts
    )
    assert (
        "Not recorded yet: linear_int4_n4096_k4096_m1 and 14 more" in plot_low_bit([], "int4", "T", NAMES).alt
    )


def test_what_is_recorded_by_now_is_drawn():
    for kind in ("int4", "int8"):
        names = names_of(kind)
        plot_low_bit(all_of([*names, *names_of(kind, peer="tinygemm")]), kind, "Recorded", names).png(1.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match="rows must be of one device, got A100, NVIDIA H200; draw them apart"
    ):
        plot_low_bit([row(NAMES[0]), row(NAMES[1], device="A100")], "int4", "T")
    shapes = names_of("int4", [(8 * n, 8) for n in range(1, 5)], [1])
    with pytest.raises(ValueError, match="rows must be of 1 to 3 shapes, got 4"):
        plot_low_bit([row(name) for name in shapes], "int4", "T")
