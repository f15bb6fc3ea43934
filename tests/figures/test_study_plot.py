"""Recorded students: marks are means, lines their errors, and what is missing is said."""

import random

import pytest
from scipy import stats

from llmcourse.distillation.recorded import KINDS, OverSeeds, gain, over_seeds, reliability, study_rows
from llmcourse.figures import study_plot
from llmcourse.figures.recorded import raw_rows
from llmcourse.figures.study_plot import MARKS, MEASURES, plot_gains, plot_study
from llmcourse.figures.temperature import plot_calibration

DOMAINS = ("prose", "code")
BETTER = dict(zip(KINDS, (0.0, 0.10, 0.03, 0.12, 0.05), strict=True))


def line(student, kind, seed, domain, **changes):
    nats = (3.4 if domain == "prose" else 2.0) + (0.6 if student == "draft" else 0.3)
    nats += 0.02 * seed - BETTER[kind] - 0.005 * seed * (kind == "both")
    found = {"student": student, "parameters": 2 if student == "draft" else 4, "kind": kind, "seed": seed}
    found |= {"tokens": 10, "teacher": "base", "domain": domain, "nats": nats, "kl": 0.3, "acceptance": 0.6}
    found |= {"teacher_nats": 3.4 if domain == "prose" else 2.0, "agreement": 0.5 + BETTER[kind]}
    bins = {"bins": [[9, 0.5, 0.4]], "teacher_bins": [[9, 0.5, 0.5]]}
    return found | {"calibration_error": 0.02 + 0.001 * seed} | bins | changes


@pytest.fixture
def rows():
    students = ("small", "draft")
    return study_rows(line(s, k, n, d) for s in students for k in KINDS for n in range(3) for d in DOMAINS)


def marks(axes):
    """Large marks by colour and place."""
    large = [one for one in axes.lines if one.get_markersize() == 6.5 and len(one.get_xdata()) == 1]
    return sorted((one.get_xdata()[0], one.get_ydata()[0], one.get_color()) for one in large)


def test_marks_are_means_over_seeds(rows):
    picture = plot_study(rows, num_seeds=3)
    assert len(picture.axes) == len(MEASURES) * len(DOMAINS)
    for at, measure in enumerate(MEASURES):
        for column, domain in enumerate(DOMAINS):
            found = marks(picture.axes[len(DOMAINS) * at + column])
            expected = [
                over_seeds(rows, s, k, domain, measure).mean for s in ("draft", "small") for k in KINDS
            ]
            assert [y for _, y, _ in found] == pytest.approx(expected)
            assert [color for *_, color in found] == [MARKS[kind][2] for kind in KINDS] * 2
    names = [label.get_text() for label in picture.axes[-1].get_xticklabels()]
    assert names == ["draft", "small"]  # the smallest first
    assert not any("Not recorded" in text.get_text() for text in picture.texts)
    assert "draft on prose: from scratch: validation loss, nats 4.0200 ± 0.0115" in picture.alt
    picture.png(1.0)


def test_lines_are_standard_errors_and_the_teacher_is_dashed(rows):
    axes = plot_study(rows).axes[0]
    spans = [
        one.get_ydata() for one in axes.lines if one.get_linewidth() == 1.6 and len(one.get_xdata()) == 2
    ]
    found = over_seeds(rows, "draft", "scratch", "prose")
    assert list(spans[0]) == pytest.approx([found.mean - found.error, found.mean + found.error])
    assert [one.get_ydata()[0] for one in axes.lines if one.get_linewidth() == 1.1] == [3.4]


def test_device_and_date_are_told_where_they_are_known(rows):
    known = {"device": "Some GPU", "date": "2026-11-30"}
    dated = study_rows(line("draft", kind, n, "prose", **known) for kind in KINDS for n in range(2))
    for plot in (plot_study, plot_gains):
        picture = plot(dated)
        assert "recorded on Some GPU, 2026-11-30" in picture.alt
        assert any("recorded on Some GPU, 2026-11-30" in text.get_text() for text in picture.texts)
        assert "recorded on" not in plot(rows).alt


def test_one_seed_has_no_line():
    rows = study_rows([line("draft", kind, 0, "prose") for kind in KINDS])
    picture = plot_study(rows, measures=["nats"])
    assert not [one for one in picture.axes[0].lines if one.get_linewidth() == 1.6]
    assert "(one seed)" in picture.alt
    assert "(one seed)" in plot_gains(rows).alt


def test_what_is_missing_is_said_and_not_drawn(rows):
    some = [row for row in rows if (row.student, row.kind) != ("small", "on_policy")]
    picture = plot_study(some, num_seeds=3)
    assert any("small on-policy on prose and 1 more" in text.get_text() for text in picture.texts)
    assert len(marks(picture.axes[0])) == 9
    picture = plot_study(rows, domains=["prose", "code", "verse"])
    assert any("draft from scratch on verse and 9 more" in text.get_text() for text in picture.texts)
    picture.png(1.0)
    assert (
        "Not recorded yet: draft from scratch on code and 4 more"
        in plot_study([], students=["draft"], domains=["code"]).alt
    )


def test_gains_are_paired_and_span_an_interval(rows):
    picture = plot_gains(rows, num_seeds=3)
    for axes, domain in zip(picture.axes, DOMAINS, strict=True):
        kinds = [kind for kind in KINDS if kind != "scratch"]
        expected = [gain(rows, s, k, domain) for s in ("draft", "small") for k in kinds]
        assert [y for _, y, _ in marks(axes)] == pytest.approx([one.mean for one in expected])
    both = gain(rows, "draft", "both", "prose")
    spans = [one.get_ydata() for one in picture.axes[0].lines if one.get_linewidth() == 1.6]
    interval = stats.t.interval(0.95, 2, both.mean, both.error)
    assert list(interval) in [pytest.approx(s, rel=1e-3) for s in spans]
    assert f"draft both on prose {both}, {both.errors_from_zero:.1f} standard errors" in picture.alt
    assert picture.axes[0].get_ylim()[0] < 0
    picture.png(1.0)


def test_one_of_twenty_gains_that_are_none_seems_to_be_one():
    """Three seeds of noise, 2,000 times: six standard deviations; three standard errors would be too few."""
    draw = random.Random(0)
    noise = [OverSeeds(tuple(draw.gauss(0, 1) for _ in range(3))) for _ in range(2000)]

    def false(span) -> float:
        return sum(abs(one.mean) > span(one) * one.error for one in noise) / len(noise)

    bound = 6 * (0.05 * 0.95 / len(noise)) ** 0.5
    assert abs(false(study_plot._span) - 0.05) < bound < false(lambda _: 3) - 0.05


def test_without_twins_there_is_no_gain(rows):
    alone = [row for row in rows if row.kind != "scratch"]
    assert "from scratch on" in plot_gains(alone).alt and plot_gains(alone).axes == []
    agreement = plot_gains(rows, measure="agreement")
    assert [y for _, y, _ in marks(agreement.axes[0])][:4] == pytest.approx([0.10, 0.03, 0.12, 0.05])


def test_a_reliability_diagram_can_be_drawn_of_rows(rows):
    curves = reliability(rows, "draft", "prose", ("scratch", "response", "both"))
    picture = plot_calibration(curves)
    assert "teacher 0.0%, from scratch 10.0%, response 10.0%, both 10.0%" in picture.alt


def test_what_is_recorded_by_now_is_drawn():
    rows = study_rows(raw_rows("distill_study"))
    plot_study(rows, students=["draft"], domains=DOMAINS).png(1.0)
    plot_gains(rows, students=["draft"], domains=DOMAINS).png(1.0)


def test_what_does_not_fit_is_refused(rows):
    with pytest.raises(ValueError, match="measure must be one of nats"):
        plot_study(rows, measures=["luck"])
    with pytest.raises(ValueError, match="domains must be at most 4, got 5"):
        plot_study(rows, domains=list("abc"))
    many = study_rows(line("draft", "scratch", 0, "prose") | {"student": name} for name in "abcde")
    with pytest.raises(ValueError, match="students must be at most 4, got 5"):
        plot_gains(many)
