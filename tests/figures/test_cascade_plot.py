"""The cascade's figure: what is drawn of which policy, in words too, and that nothing lies on another."""

import itertools

import pytest

from llmcourse.figures.cascade_curve import CostQuality, Tried
from llmcourse.figures.cascade_plot import CascadePlot, against_mixing, plot_cascade, shown_cost, signed
from llmcourse.speculative import Point, Policy


def tried(quality, cost, gain=0.0, error=0.01, promised=(0.5, 2e9)):
    return Tried(Point(Policy((0, 1), (0.5,)), *promised), quality, cost, 0.02, gain, error)


SINGLES = (tried(0.3, 1e9, 0.0, 0.0), tried(0.6, 4e9, 0.0, 0.0))
BETTER = (SINGLES[0], tried(0.5, 2e9, 0.1), tried(0.65, 4.4e9, 0.05))
WORSE = (SINGLES[0], tried(0.35, 2.2e9, -0.07), tried(0.59, 3.9e9, -0.01))


def data(unit="FLOPs", curves=(("trained", BETTER), ("calibrated", WORSE))):
    return CostQuality(("small", "large"), unit, SINGLES, ((1e9, 0.3), (4e9, 0.6)), curves, 30, 40)


def lines(axes):
    """By marker, the points of each line."""
    return {line.get_marker(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_both_panels_show_every_policy():
    picture = plot_cascade(data(), title="A task")
    upper, lower = picture.axes
    for marker, points in (("o", BETTER), ("s", WORSE)):
        assert lines(upper)[marker] == [(p.cost / 1e9, p.quality) for p in points]
        assert lines(lower)[marker] == [(p.cost / 1e9, p.gain) for p in points]
    assert [tuple(line.get_ydata()) for line in upper.lines if line.get_marker() == "D"] == [(0.3,), (0.6,)]
    mixing = next(line for line in upper.lines if line.get_marker() == "None")
    assert list(zip(*mixing.get_data(), strict=True)) == [(1.0, 0.3), (4.0, 0.6)]
    assert lower.get_xlabel() == "GFLOP for an answer, on average" and lower.get_xlim() == upper.get_xlim()
    picture.png(1.0)


def test_bands_are_as_wide_as_chance():
    _, lower = plot_cascade(data()).axes
    for band, points in zip(lower.collections, (BETTER, WORSE), strict=True):
        heights = band.get_paths()[0].vertices[:, 1]
        assert max(heights) == pytest.approx(max(p.gain + 1.96 * p.gain_error for p in points))
        assert min(heights) == pytest.approx(min(p.gain - 1.96 * p.gain_error for p in points))
    filled, dotted = lower.collections
    assert filled.get_hatch() is None and dotted.get_hatch()  # told apart in grey


def test_where_mixing_is_better_is_tinted_and_said():
    _, lower = plot_cascade(data()).axes
    (tint,) = lower.patches
    assert tint.get_y() + tint.get_height() == 0 and tint.get_y() == lower.get_ylim()[0]
    assert "here mixing is better" in [text.get_text() for text in lower.texts]


def test_the_chosen_policy_is_marked_beside_what_it_promised():
    chosen = tried(0.55, 3e9, 0.05, 0.01, promised=(0.58, 2.8e9))
    picture = plot_cascade(data(), chosen, "A task")
    upper, lower = picture.axes
    stars = [line for line in upper.lines if line.get_marker() == "*"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in stars] == [(2.8, 0.58), (3.0, 0.55)]
    assert [line.get_ydata()[0] for line in lower.lines if line.get_marker() == "*"] == [0.05]
    assert picture.alt.endswith("Chosen: 55.0% right for 3 GFLOP, +5.0 ± 2.0 points against mixing: better.")


def test_the_alternative_says_losses_as_plainly_as_wins():
    alt = plot_cascade(data(), title="A task").alt
    assert alt.startswith(
        "A task. One model alone: small 30.0% right for 1 GFLOP; large 60.0% right for 4 GFLOP."
    )
    assert "trained: of 3 policies 2 better than mixing, 0 worse, 1 not to be told apart." in alt
    assert "calibrated: of 3 policies 0 better than mixing, 1 worse, 2 not to be told apart." in alt


def test_another_policy_is_drawn_on_what_was_painted_before():
    plot = CascadePlot()
    first = plot.update(data(), BETTER[1], "A task").png(1.0)
    key, static = plot.figure.still_key, len(plot.upper.lines)
    second = plot.update(data(), BETTER[2], "A task").png(1.0)
    assert plot.figure.still_key == key and len(plot.upper.lines) == static and first != second
    assert second == plot_cascade(data(), BETTER[2], "A task").png(1.0)
    other = plot.update(data("seconds"), None, "A task")
    assert other.png(1.0) == plot_cascade(data("seconds"), None, "A task").png(1.0)


def test_words_do_not_overlap():
    curves = (("trained classifier", BETTER), ("calibrated confidence", WORSE))
    picture = plot_cascade(data(curves=curves), BETTER[1], "code: what cascades are worth", "chosen")
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    texts = [*picture.texts, *(text for axes in picture.axes for text in axes.texts)]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x1 <= picture.bbox.x1 for box in boxes)


def test_numbers_for_readers():
    assert [shown_cost(cost, "FLOPs") for cost in (1.2249e8, 4e9)] == ["0.122 GFLOP", "4 GFLOP"]
    assert shown_cost(0.3011, "seconds") == "301 ms"
    assert [signed(value, ".1f") for value in (3.71, -3.71, 0.04, -0.04)] == ["+3.7", "−3.7", "0.0", "0.0"]
    assert against_mixing(WORSE[1]) == "−7.0 ± 2.0 points against mixing: worse"
    assert against_mixing(WORSE[2]) == "−1.0 ± 2.0 points against mixing: not to be told apart"
    assert against_mixing(SINGLES[0]) == "the same as mixing"


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="unit must be one of FLOPs, seconds, got 'euros'"):
        plot_cascade(data("euros"))
    for curves in ((), (("a", BETTER),) * 3):
        with pytest.raises(ValueError, match=f"curves must be 1 to 2, got {len(curves)}"):
            plot_cascade(data(curves=curves))
