"""A draft before and after: marks are where the rows say, and what is missing is said."""

import math

import pytest

from llmcourse.decoding.estimate import Estimate
from llmcourse.figures.draft_gain import STAGES, Drafted, DraftGain, draft_gains, plot_draft_gain
from llmcourse.figures.recorded import raw_rows


def row(stage, domain="prose", acceptance=0.4, **changes):
    found = {"drafter": "draft", "target": "base", "stage": stage, "domain": domain, "error": 0.003}
    found |= {"acceptance": acceptance, "speed_up": 1.4, "predicted": 1.5, "gamma": 4}
    return found | {"device": "NVIDIA H200", "date": "2026-12-01"} | changes


ROWS = [row("before"), row("after", acceptance=0.5, speed_up=1.7), row("before", "code", 0.6, error=0.004)]


def test_domains_stages_and_gains_are_those_of_the_rows():
    prose, code = draft_gains(ROWS)
    after = Drafted(Estimate(0.5, 0.003), 1.7, 1.5)
    assert prose == DraftGain("prose", Drafted(Estimate(0.4, 0.003), 1.4, 1.5), after)
    assert prose.gain.mean == pytest.approx(0.1) and prose.gain.error == pytest.approx(0.003 * math.sqrt(2))
    assert code.after is None and code.gain is None
    assert draft_gains([row("before"), row("before", acceptance=0.45)])[0].before.acceptance.mean == 0.45


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
    rows = [row(stage, speed_up=None, predicted=None) for stage in STAGES]
    picture = plot_draft_gain(rows)
    assert [text.get_text() for text in picture.axes[1].texts] == ["no speed-up is recorded yet"]
    assert "times as fast" not in picture.alt
    picture.png(1.0)


def test_nothing_recorded_is_said():
    assert "Not recorded yet: prose before and 1 more" in plot_draft_gain([], domains=["prose"]).alt


def test_what_is_recorded_by_now_is_drawn():
    plot_draft_gain(raw_rows("distill_draft"), domains=["prose", "verse", "code"]).png(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "later"}, "row 1: not a draft's .*stage must be 'before' or 'after', got 'later'"),
        ({"acceptance": 1.2}, r"acceptance must be in \[0, 1\]"),
        ({"error": math.inf}, "with a finite error"),
        ({"speed_up": 0}, "speed_up must be above 0 and finite, got 0"),
        ({"acceptance": None}, "row 1: not a draft's"),
    ],
)
def test_rows_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        draft_gains([row("before") | changes])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"row 2: not a draft's .*domain"):
        draft_gains([row("before"), {k: v for k, v in row("after").items() if k != "domain"}])
    with pytest.raises(ValueError, match="rows must be of one device, got A100, NVIDIA H200"):
        plot_draft_gain([row("before"), row("after", device="A100")])
    with pytest.raises(ValueError, match="rows must be of at most 8 domains, got 9"):
        plot_draft_gain([row("before", domain) for domain in "abcdefghi"])
