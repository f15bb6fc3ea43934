"""The worked example's picture: codes where the slide has them, windows one apart, errors in steps."""

import pytest
from matplotlib.colors import to_hex

from llmcourse.figures import style as look
from llmcourse.figures.number_lines import plot_number_lines
from llmcourse.quantization.lecture_example import NUMBERS, worked_example

EXAMPLES = [worked_example(152), worked_example(153)]


@pytest.fixture(scope="module")
def picture():
    return plot_number_lines(EXAMPLES)


def taken(axes) -> list[str]:
    """The codes in dark cells, from top to bottom."""
    return [text.get_text() for text in axes.texts if to_hex(text.get_color()) == look.PAPER]


def test_dark_cells_are_the_codes_of_both_ends(picture):
    _, low, high, _ = picture.axes
    assert taken(low) == ["−127", "−128"] and taken(high) == ["127", "127"]


def test_a_dark_cell_stands_over_its_multiple(picture):
    _, low, high, _ = picture.axes
    for axes, end in ((low, 0), (high, -1)):
        dark = [p for p in axes.patches if to_hex(p.get_facecolor()) == look.SERIES[0]]
        centres = [patch.get_x() + 0.5 for patch in dark]
        assert centres == [float(one.restored[end] / one.scale) for one in EXAMPLES]
    assert len([p for p in high.patches if p.get_hatch()]) == 3 + 2  # multiples from 280 and from 281 on


def test_bars_are_errors_in_steps(picture):
    bars = [bar.get_height() for bar in picture.axes[-1].patches]
    errors = [float(e / one.scale) for one in EXAMPLES for e in one.errors]
    assert bars == pytest.approx(errors)
    assert abs(bars[5]) > 0.5 > abs(bars[-1])  # 13.6 is clamped under 152 alone


def test_the_line_has_all_numbers(picture):
    (line,) = picture.axes[0].lines
    assert list(line.get_xdata()) == pytest.approx([float(x / EXAMPLES[0].scale) for x in NUMBERS])


def test_words_have_the_slides_codes(picture):
    assert "Z = 152: codes −127, −103, −78, 78, 103, 127; back 1.22, 2.38, 3.60, 11.18, 12.40, 13.57" in (
        picture.alt
    )
    assert "worst error 0.033, 1 clamped" in picture.alt and "worst error 0.017, none clamped" in picture.alt
    picture.png(1.0)


@pytest.mark.parametrize("count", [0, 4])
def test_other_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"examples must be 1 to 3, got {count}"):
        plot_number_lines([worked_example(150 + n) for n in range(count)])
