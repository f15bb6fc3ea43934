"""Speed-ups: what is drawn is what was predicted and measured, and what was never recorded is said."""

import itertools

import pytest

from llmcourse.figures.growth import Curve
from llmcourse.figures.recorded import all_of
from llmcourse.figures.speculation_speed import (
    SETTINGS,
    models,
    plot_draft_lengths,
    plot_recorded,
    setting,
)


def row(name="speculative_code_b1", value=2.4, limit=2.5, **changes):
    found = {"name": name, "value": value, "limit": limit, "device": "NVIDIA H200", "date": "2026-11-29"}
    found |= {"gamma": 4, "alpha": 0.83, "c": 0.111, "v": 1.06, "target": "models/target", "drafter": "draft"}
    return found | changes


def curves():
    gammas = (1, 2, 4)
    code, verse = (1.2, 1.4, 1.3), (0.9, 0.8, 0.5)
    return [
        Curve("code", gammas, code),
        Curve("code, predicted", gammas, (1.3, 1.5, 1.4), "predicted", "code"),
        Curve("verse", gammas, verse),
        Curve("verse, predicted", gammas, (1.0, 1.02, 0.7), "predicted", "verse"),
    ]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def words_apart(picture):
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    every = [*picture.texts, *(text for axes in picture.axes for text in axes.texts)]
    every += [label for axes in picture.axes for label in axes.get_yticklabels()]
    boxes = [text.get_window_extent(renderer) for text in every if text.get_text()]
    inside = all(picture.bbox.x0 <= box.x0 and box.x1 <= picture.bbox.x1 for box in boxes)
    return inside and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_prediction_is_dashed_and_shares_the_colour_of_its_measurement():
    (axes,) = plot_draft_lengths(curves(), "Speed").axes
    code, predicted, verse, _, alone = axes.lines
    assert list(code.get_ydata()) == [1.2, 1.4, 1.3] and list(code.get_xdata()) == [1, 2, 4]
    assert code.get_marker() == "o" and predicted.get_marker() == "None"
    assert (code.get_linestyle(), predicted.get_linestyle()) == ("-", "--")
    assert code.get_color() == predicted.get_color() != verse.get_color()
    assert list(alone.get_ydata()) == [1, 1]
    assert axes.get_ylim()[0] == 0  # speeds are compared by their height
    assert list(axes.get_xticks()) == [1, 2, 4]


def test_lengths_are_told_in_words():
    picture = plot_draft_lengths(curves(), "Speed", "here")
    assert picture.alt.startswith(
        "Speed. code (measured): times as fast 1.20 with 1, 1.40 with 2, 1.30 with 4"
    )
    assert words_apart(picture)


def test_ends_that_are_close_are_named_apart():
    near = [
        Curve(name, (1, 2), (1.1, 1.0 + shift)) for name, shift in zip("abc", (0, 0.001, 0.002), strict=True)
    ]
    assert words_apart(plot_draft_lengths(near, "Near"))


def test_the_line_at_one_is_seen_where_all_is_slower():
    (axes,) = plot_draft_lengths([Curve("verse", (1, 2), (0.5, 0.4))], "Slow").axes
    assert axes.get_ylim()[1] > 1


def test_no_or_too_many_curves_are_refused():
    with pytest.raises(ValueError, match="curves must be of 1 to 4 groups, got 0"):
        plot_draft_lengths([], "None")
    five = [Curve(name, (1, 2), (1, 2)) for name in "abcde"]
    with pytest.raises(ValueError, match="curves must be of 1 to 4 groups, got 5"):
        plot_draft_lengths(five, "Five")


def test_names_are_those_of_the_benchmark():
    assert set(SETTINGS) >= {"speculative_prose_b1", "speculative_verse_b1_sampled", "speculative_code_b32"}
    assert len(SETTINGS) == 8


def test_settings_are_spelled_out():
    assert setting("speculative_prose_b1") == "prose, greedy"
    assert setting("speculative_verse_b1_sampled") == "verse, sampled"
    assert setting("speculative_code_b32") == "code, greedy, batch 32"


def test_models_go_by_their_names():
    assert models([row(), row()]) == "drafts by draft, verified by target"
    assert models([row(), row(target="base")]).endswith("; drafts by draft, verified by base")


def test_bars_and_marks_stand_where_they_were_recorded():
    rows = [row(), row("speculative_verse_b1", 0.9, 1.0, alpha=0.4)]
    picture = plot_recorded(rows, "Recorded")
    (axes,) = picture.axes
    assert [bar.get_width() for bar in axes.patches] == [2.4, 0.9]
    assert [line.get_xdata()[0] for line in axes.lines] == [1, 2.5, 1.0]  # decoding alone, and predictions
    assert [label.get_text() for label in axes.get_yticklabels()] == ["code, greedy", "verse, greedy"]
    assert {"2.40 ×", "96%", "4", "0.83", "0.11", "1.06", "0.90 ×", "90%", "0.40"} <= set(texts(axes))
    said = [text.get_text() for text in picture.texts]
    assert "recorded on NVIDIA H200, 2026-11-29" in said and "drafts by draft, verified by target" in said
    assert "code, greedy: measured 2.40 ×, of │ 96%, γ 4, α 0.83, c 0.11, v 1.06;" in picture.alt


def test_a_prediction_beyond_every_bar_stays_in_the_picture():
    (axes,) = plot_recorded([row(value=1.5, limit=3.0)], "Recorded").axes
    assert axes.get_xlim()[1] > 3.0


def test_a_row_without_a_prediction_has_no_mark():
    picture = plot_recorded([row(), row("speculative_code_b8", value=0.8, limit=None)], "Recorded")
    (axes,) = picture.axes
    assert [line.get_xdata()[0] for line in axes.lines] == [1, 2.5] and "–" in texts(axes)


def test_words_of_all_settings_do_not_overlap():
    assert words_apart(plot_recorded([row(name) for name in SETTINGS], "Recorded", SETTINGS))


def test_devices_are_told_apart():
    rows = [row(), row(device="Intel(R) Xeon(R) Processor @ 2.50GHz")]
    picture = plot_recorded(rows, "Recorded", SETTINGS)
    labels = [label.get_text() for label in picture.axes[0].get_yticklabels()]
    assert labels[0] == "code, greedy, NVIDIA H200" and labels[1].startswith("code, greedy, Intel(R) Xeon")
    assert words_apart(picture)


def test_missing_rows_are_said():
    picture = plot_recorded([row(SETTINGS[0])], "Recorded", SETTINGS)
    assert any("Not recorded yet: speculative_verse_b1 and 6 more" in t.get_text() for t in picture.texts)
    picture = plot_recorded([], "Recorded", SETTINGS)
    assert picture.alt.startswith("Recorded. Not recorded yet: speculative_prose_b1 and 7 more;")
    picture.png(1.0)


def test_what_is_recorded_by_now_is_drawn():
    """Whatever the checkout holds, no row or every row."""
    plot_recorded(all_of(SETTINGS), "Recorded", SETTINGS).png(1.0)
