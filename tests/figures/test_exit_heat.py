"""The map's picture: its cells are the entropies, its line is where the rule leaves."""

import pytest
import torch

from llmcourse.early_exit.heat_map import Heat
from llmcourse.figures.exit_heat import HeatPlot, plot_heat

ENTROPY = torch.tensor([[2.0, 1.0, 3.0], [1.0, 0.1, 2.5], [0.5, 0.1, 2.0]])
FAVOURITES = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 2, 4]])


def small(exits=(2, 1, 3)) -> Heat:
    return Heat((5, 6, 7), (1, 2, 3), ENTROPY, FAVOURITES, exits)


def test_cells_and_line_are_the_data():
    picture = plot_heat(small(), ["a", "床", "\n"])
    axes = picture.axes[0]
    assert axes.images[0].get_array().tolist() == ENTROPY.double().tolist()
    line, hatched = axes.patches
    assert line.get_data().values.tolist() == [1.5, 0.5, 2.5]
    assert hatched.get_data().baseline.tolist() == [1.5, 0.5, 2.5]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "2", "3"]
    assert "leaves after 2.00 of 3 layers on average" in picture.alt and "100.0% of the tokens" in picture.alt
    picture.png(1.0)


def test_a_map_that_leaves_early_shows_what_it_costs():
    assert "66.7% of the tokens" in plot_heat(small((1, 1, 1)), ["a", "b", "c"]).alt


def test_long_texts_have_no_labels():
    wide = Heat((1,) * 90, (1, 2), torch.ones(2, 90), torch.zeros(2, 90).long(), (1,) * 90)
    picture = plot_heat(wide, ["word"] * 90)
    assert picture.axes[0].get_xticklabels() == []
    picture.png(1.0)


def test_labels_for_other_tokens_are_refused():
    with pytest.raises(ValueError, match="labels must be 3, one a token, got 2; label every token"):
        plot_heat(small(), ["a", "b"])


def test_the_line_moves_and_marks_what_differs():
    plot = HeatPlot(small(), ["a", "b", "c"])
    assert plot.update(small((1, 1, 1))).alt.endswith("66.7% of the tokens.")
    assert plot._wrong.get_xydata().tolist() == [[2, 0]]  # the third token's favourite is 3, and 4 in the end
    assert plot._line.get_data().values.tolist() == [0.5, 0.5, 0.5]
    picture = plot.update(small((3, 3, 3)), "All layers")
    assert plot._wrong.get_xydata().tolist() == [] and "All layers" in picture.alt
    assert plot._not_run.get_data().baseline.tolist() == [2.5, 2.5, 2.5]
