"""The map with its curves: a curve for each rule, and the circle on the rule that is shown."""

import pytest
import torch

from llmcourse.early_exit import Curve, EntropyRule, Readings, curve, heat_of
from llmcourse.figures.exit_line import ExitLinePlot

ENTROPY = torch.tensor([[2.0, 1.0, 3.0], [1.0, 0.1, 2.5], [0.5, 0.1, 2.0]])
FAVOURITES = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 2, 4]])
READINGS = Readings((1, 2, 3), ENTROPY, torch.exp(-ENTROPY), FAVOURITES, torch.tensor([1, 2, 4]))
LABELS = ["␣a", "床", "⏎"]


def curves() -> dict[str, Curve]:
    return {signal: curve(READINGS, signal) for signal in ("entropy", "confidence", "patience")}


def test_the_circle_is_on_the_curve_of_its_rule():
    data = heat_of(READINGS, (5, 6, 7), EntropyRule(1.5))
    plot = ExitLinePlot(data, LABELS, curves())
    picture = plot.update(data, "Leaves early")
    drawn = {line.get_label(): line.get_xydata() for line in plot.panel.lines}
    here = plot._here.get_xydata()[0].tolist()
    assert here == [data.mean_layers, data.agreement] and here in drawn["entropy"].tolist()
    assert set(curves()) <= set(drawn) and len(drawn["patience"]) == 2
    for name, one in curves().items():
        points = sorted(zip(one.mean_layers.tolist(), one.agreement.tolist(), strict=True))
        assert drawn[name].tolist() == [list(point) for point in points]
    assert picture.alt.startswith("Leaves early: 3 tokens, 3 exits; leaves after")
    picture.png(1.0)


def test_the_circle_follows_the_rule():
    data = heat_of(READINGS, (5, 6, 7), EntropyRule(1.5))
    plot = ExitLinePlot(data, LABELS, curves())
    plot.update(data, "T")
    plot.update(heat_of(READINGS, (5, 6, 7), EntropyRule(0)), "T")
    assert plot._here.get_xydata()[0].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [(LABELS[:2], 3, "labels must be 3, one a token, got 2"), (LABELS, 0, "curves must be 1 to 3, got 0")],
)
def test_what_does_not_fit_is_refused(labels, count, message):
    given = dict(list(curves().items())[:count])
    with pytest.raises(ValueError, match=message):
        ExitLinePlot(heat_of(READINGS, (5, 6, 7), EntropyRule(1.5)), labels, given)
