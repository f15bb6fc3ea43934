"""A draft before and after: marks are where the rows say, and what is missing is said."""

import math

import pytest

from llmcourse.decoding.estimate import Estimate
from llmcourse.figures.draft_gain import STAGES, Drafted, DraftGain, by_target, draft_gains, plot_draft_gain
from llmcourse.figures.recorded import raw_rows

ABOUT = {"teacher": "base", "student": "draft", "device": "NVIDIA H200", "date": "2026-12-01"}


def row(stage, domain="prose", acceptance=0.4, **changes):
    found = {"stage": stage, "domain": domain, "acceptance": acceptance, "acceptance_error": 0.003}
    return ABOUT | found | changes


def speed(stage, domain="prose", speed_up=1.4, **changes):
    found = {"stage": stage, "domain": domain, "speed_up": speed_up, "predicted": 1.5, "gamma": 4}
    return ABOUT | found | changes


ROWS = [row("before"), row("after", acceptance=0.5), row("before", "code", 0.6, acceptance_error=0.004)]
ROWS += [speed("before"), speed("after", speed_up=1.7), speed("before", "code")]


def test_domains_stages_and_gains_are_those_of_the_rows():
    prose, code = draft_gains(ROWS)
    after = Drafted(Estimate(0.5, 0.003), 1.7, 1.5)
    assert prose == DraftGain("prose", Drafted(Estimate(0.4, 0.003), 1.4, 1.5), after)
    assert prose.gain.mean == pytest.approx(0.1) and prose.gain.error == pytest.approx(0.003 * math.sqrt(2))
    assert code.after is None and code.gain is None
    assert draft_gains([row("before"), row("before", acceptance=0.45)])[0].before.acceptance.mean == 0.45
    assert draft_gains([row("before"), speed("before"), row("before")])[0].before.speed_up == 1.4


def test_the_draft_that_was_trained_last_is_drawn_of_each_target():
    first = [row(stage, divergence="forward_kl") for stage in STAGES]
    last = [row(stage, divergence="jensen_shannon") for stage in STAGES]
    other = [row("before", teacher="target"), row("before", device="A100")]
    assert by_target([*first, *other, *last]) == [last, other[:1], other[1:]]
    assert by_target([*last, *first, *last[:1]]) == [[*last, *last[:1]]], "measured again"


def test_marks_are_where_the_numbers_are():
    picture = plot_draft_gain(ROWS, domains=["prose", "code", "verse"])
    acceptance, speeds = picture.axes
    marks = [(one.get_xdata()[0], one.get_ydata()[0]) for one in acceptance.lines if one.get_marker() == "o"]
    assert marks == [(0.4, 0), (0.5, 0), (0.6, 1)]
    spans = [one.get_xdata() for one in acceptance.lines if one.get_linewidth() == 3]
    assert [list(span) for span in spans] == [
        pytest.approx([x - e, x + e]) for x, e in ((0.4, 0.003), (0.5, 0.003), (0.6, 0.004))
    ]
    marks = [one.get_xdata()[0] for one in speeds.lines if one.get_marker() == "o"]
    assert marks == [1.4, 1.7, 1.4]
    assert [text.get_text() for text in acceptance.texts] == ["+0.100"]
    assert [text.get_text() for text in speeds.texts] == ["× 1.21"]
    assert any("Not recorded yet: code after and 2 more." in text.get_text() for text in picture.texts)
    assert "prose: before 0.4000 ± 0.0030, 1.40 times as fast (predicted 1.50); after 0.5000" in picture.alt
    assert "code: before 0.6000 ± 0.0040, 1.40 times as fast (predicted 1.50); after not rec" in picture.alt
    picture.png(1.0)


def test_acceptance_alone_is_drawn_without_speeds():
    picture = plot_draft_gain([row(stage) for stage in STAGES])
    assert [text.get_text() for text in picture.axes[1].texts] == ["no speed-up is recorded yet"]
    assert "times as fast" not in picture.alt
    picture.png(1.0)


def test_speeds_alone_are_drawn_without_acceptance():
    picture = plot_draft_gain([speed(stage) for stage in STAGES])
    assert "Not recorded yet: prose before and 1 more." in [text.get_text() for text in picture.texts]
    picture.png(1.0)


def test_nothing_recorded_is_said():
    assert "Not recorded yet: prose before and 1 more" in plot_draft_gain([], domains=["prose"]).alt


def test_what_is_recorded_by_now_is_drawn():
    for rows in by_target(raw_rows("distill_draft")):
        plot_draft_gain(rows, domains=["prose", "poetry", "code"]).png(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "later"}, "row 1: not a draft's .*stage must be 'before' or 'after', got 'later'"),
        ({"acceptance": 1.2}, r"acceptance must be in \[0, 1\]"),
        ({"acceptance_error": math.inf}, "with a finite error"),
        ({"acceptance": None}, "row 1: not a draft's"),
    ],
)
def test_rows_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        draft_gains([row("before") | changes])


def test_a_speed_is_above_0():
    with pytest.raises(ValueError, match="speed_up must be above 0 and finite, got 0"):
        draft_gains([speed("before", speed_up=0)])
    with pytest.raises(ValueError, match=r"row 1: not a draft's .*speed_up"):
        draft_gains([ABOUT | {"stage": "before", "domain": "prose"}])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"row 2: not a draft's .*domain"):
        draft_gains([row("before"), {k: v for k, v in row("after").items() if k != "domain"}])
    with pytest.raises(ValueError, match="rows must be of one device, got A100, NVIDIA H200"):
        plot_draft_gain([row("before"), row("after", device="A100")])
    with pytest.raises(ValueError, match="rows must be of one teacher, got base, target"):
        plot_draft_gain([row("before"), row("after", teacher="target")])
    with pytest.raises(ValueError, match="rows must be of at most 8 domains, got 9"):
        plot_draft_gain([row("before", domain) for domain in "abcdefghi"])
