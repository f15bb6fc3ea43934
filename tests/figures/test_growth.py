"""Growing costs: exponents of known powers, and curves drawn as what they are."""

import itertools

import pytest

from llmcourse.figures.growth import Curve, plot_growth

X = (16, 32, 64, 128)


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_the_exponent_of_a_power_is_found(power):
    assert Curve("c", X, [3 * x**power for x in X]).exponent() == pytest.approx(power)


def test_the_exponent_of_the_end_alone():
    curve = Curve("flat, then quadratic", (1, 2, 4, 8, 16), (1, 1, 1, 4, 16))
    assert curve.exponent(start=4) == pytest.approx(2)
    assert curve.exponent() < 2
    with pytest.raises(ValueError, match="start must leave 2 points of 'flat, then quadratic', got 9 of 16"):
        curve.exponent(start=9)


def test_predictions_are_dashed_and_share_the_colour_of_their_measurement():
    curves = [
        Curve("measured", X, X, group="cache"),
        Curve("roofline", X, [x / 2 for x in X], "predicted", "cache"),
        Curve("no cache", X, [x * x for x in X]),
    ]
    picture = plot_growth(curves, "Time", "base", x_label="tokens", y_label="seconds")
    first, prediction, other = picture.axes[0].lines
    assert first.get_color() == prediction.get_color() != other.get_color()
    assert prediction.get_linestyle() == "--" and prediction.get_marker() == "None"
    assert first.get_linestyle() == "-" and first.get_marker() != other.get_marker()
    assert "no cache (measured): seconds from 256 at 16 to 1.64e+04 at 128 tokens." in picture.alt
    picture.png(1.0)


def test_names_of_curves_that_end_together_keep_apart():
    curves = [Curve(f"curve {i}", X, [x * (1 + i / 1000) for x in X]) for i in range(4)]
    picture = plot_growth(curves, "Time", x_label="tokens", y_label="seconds")
    renderer = picture.canvas.get_renderer()
    boxes = sorted(
        (text.get_window_extent(renderer) for text in picture.axes[0].texts if "curve" in text.get_text()),
        key=lambda box: -box.y0,
    )
    assert len(boxes) == 4
    for upper, lower in itertools.pairwise(boxes):
        assert lower.y1 <= upper.y0 + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": (1,), "y": (1,)}, "2 or more points, got 1 and 1"),
        ({"y": (1, 2, 3)}, "2 or more points, got 4 and 3"),
        ({"y": (0, 1, 2, 3)}, "above 0 and finite for log axes, got them for 'c'"),
        ({"y": (1, 2, 3, float("nan"))}, "above 0 and finite"),
        ({"kind": "guessed"}, "kind must be one of measured, predicted, got 'guessed'"),
    ],
)
def test_what_cannot_be_a_curve_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Curve(**({"name": "c", "x": X, "y": X} | changes))


def test_no_curves_and_too_many_are_refused():
    with pytest.raises(ValueError, match="1 to 4 groups, got 0"):
        plot_growth([], "t", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="1 to 4 groups, got 5"):
        plot_growth([Curve(str(i), X, X) for i in range(5)], "t", x_label="x", y_label="y")
