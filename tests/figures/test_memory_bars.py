"""Memory as bars: parts that add up, and a verdict in words and colour."""

import pytest

from llmcourse.figures import style as look
from llmcourse.figures.memory_bars import MemoryPlot, gigabytes, parts, plot_memory, verdict
from llmcourse.roofline import Memory

SMALL, LARGE = Memory(16_000_000_000, 4_000_000_000, 1_000_000), Memory(16_000_000_000, 90_000_000_000, 0)
FREE = 80 * 2**30


def test_the_verdict_says_by_how_much():
    assert verdict(SMALL, FREE) == "fits, 65.9 GB to spare"
    assert verdict(LARGE, FREE) == "does not fit: 20.1 GB too much"
    assert verdict(Memory(5, 3, 2), 10) == "fits, 0.0 MB to spare"
    assert verdict(Memory(5, 3, 3), 10).startswith("does not fit")
    sizes = (999_000_000, 999_000_000_000, 17_592_186_044_416)
    assert [gigabytes(size) for size in sizes] == ["999.0 MB", "999.0 GB", "17.59 TB"]


def test_bars_are_stacked_to_the_sum():
    picture = plot_memory({"small": SMALL}, {"A100": FREE}, "Memory")
    bars = [(bar.get_x(), bar.get_width()) for bar in picture.axes[0].patches]
    assert bars == [(0, 16e9), (16e9, 4e9), (20e9, 1e6)]
    assert list(parts(SMALL)) == ["weights", "KV cache", "activations"]
    hatches = {bar.get_hatch() for bar in picture.axes[0].patches}
    assert len(hatches) == 2  # activations do not hang on a hue


def test_what_is_too_much_is_outlined_and_said():
    picture = plot_memory({"small": SMALL, "large": LARGE}, {"A100": FREE, "T4": 2**34}, "Memory")
    (outline,) = [bar for bar in picture.axes[0].patches if not bar.get_fill()]
    assert outline.get_x() == FREE and outline.get_width() == pytest.approx(106e9 - FREE)
    words = {text.get_text(): text.get_color() for text in picture.axes[0].texts}
    assert words["106.0 GB, does not fit: 20.1 GB too much"] == look.ACCENT
    assert words["20.0 GB, fits, 65.9 GB to spare"] == look.INK
    assert " T4, 17.2 GB " in words
    assert "large: weights 16.0 GB, KV cache 90.0 GB, activations 0.0 MB; does not fit" in picture.alt
    picture.png(1.0)


def test_redrawn_bars_are_those_of_a_fresh_figure():
    plot = MemoryPlot(1)
    plot.update({"large": LARGE}, {"A100": FREE, "T4": 2**34}, "Before").png(1.0)
    fresh = plot_memory({"small": SMALL}, {"A100": FREE}, "After").png(1.0)
    assert plot.update({"small": SMALL}, {"A100": FREE}, "After").png(1.0) == fresh


@pytest.mark.parametrize(
    "need",
    [
        Memory(13_500_000_000, 34_300_000_000, 0),  # ends before the line, its verdict would not
        Memory(13_500_000_000, 103_000_000_000, 0),  # ends behind it
        Memory(80_000_000_000, 5_000_000_000, 0),  # ends close to it, nearly all of it weights
        SMALL,
    ],
)
@pytest.mark.parametrize("widest", [117_000_000_000, 90_000_000_000])
def test_no_line_runs_through_a_verdict(need, widest):
    others = {"wide": Memory(widest, 0, 0)}
    picture = plot_memory({"one": need} | others, {"A100": FREE, "two of them": 2 * FREE}, "Memory")
    (text, *_) = [text for text in picture.axes[0].texts if verdict(need, FREE) in text.get_text()]
    box = text.get_window_extent(picture.canvas.get_renderer())
    lines = [picture.axes[0].transData.transform((line, 0))[0] for line in (FREE, 2 * FREE)]
    assert all(not box.x0 < line < box.x1 for line in lines)
    assert box.x1 <= picture.axes[0].get_window_extent().x1


@pytest.mark.parametrize(("factor", "last"), [(1, "120 GB"), (10, "1.2 TB"), (1000, "120 TB")])
def test_the_axis_counts_in_terabytes_where_gigabytes_are_many(factor, last):
    need = Memory(10_000_000_000 * factor, 100_000_000_000 * factor, 0)
    picture = plot_memory({"one": need}, {"machine": FREE * factor}, "Memory")
    picture.png(1.0)
    labels = [text.get_text() for text in picture.axes[0].get_xticklabels()]
    assert last in labels and {label.split()[1] for label in labels} == {last.split()[1]}


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="must not be empty, got 0 and 1"):
        plot_memory({}, {"A100": FREE}, "Memory")
    with pytest.raises(ValueError, match="must not be empty, got 1 and 0"):
        plot_memory({"small": SMALL}, {}, "Memory")
