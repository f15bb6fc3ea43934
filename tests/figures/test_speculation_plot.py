"""The picture of a step shows what the trace says, phase by phase."""

import pytest

from llmcourse.figures import style as look
from llmcourse.figures.speculation_plot import (
    MOST_DRAFTS,
    SpeculationPlot,
    happens,
    in_words,
    plot_speculation,
    told,
)
from llmcourse.figures.speculation_trace import speculation_trace
from tests.figures.hand_made_steps import decode, label, some_steps, step

FLAT = [0.25, 0.25, 0.25, 0.25, 0.0, 0.0, 0.0]
DRAFTED, VERDICT, CORRECTION, BONUS = 3, 5, 6, 10  # phases of the steps made by hand


@pytest.fixture(scope="module")
def trace():
    return speculation_trace("P:", some_steps(), decode, label)


@pytest.fixture(scope="module")
def plot():
    return SpeculationPlot()


def boxes(plot):
    """How many there are of each kind."""
    return {kind: len(found.get_paths()) for kind, found in plot._boxes.items() if found.get_paths()}


def written(texts):
    return [text.get_text() for text in texts if text.get_text()]


def widths(bars):
    return [path.vertices[:, 0].max() for path in bars.get_paths()]


def test_drafts_wait_in_dashed_boxes_until_they_are_judged(plot, trace):
    plot.update(trace, DRAFTED)
    assert boxes(plot) == {"proposed": 3}
    assert written(plot._drafts) == ["<a>", "<a>", "<b>"]
    assert written(plot._numbers) == ["30.0%", "40.0%", "50.0%"]
    assert written(plot._gains) == written(plot._names) == [] and widths(plot._bars["p, the target"]) == []


def test_the_verdict_gives_each_draft_its_box_and_numbers(plot, trace):
    plot.update(trace, VERDICT)
    assert boxes(plot) == {"accepted": 2 + 2, "rejected": 1, "dropped": 1}  # two of them in the text
    assert written(plot._numbers) == [
        "30.0%\n60.0%\n1.00\n✓ stands",
        "40.0%\n20.0%\n0.50\n✓ stands",
        "50.0%\n10.0%\n0.20\n✗ falls",
        "90.0%\n–\n–\ndropped",
    ]
    strike = plot._strikes.get_segments()
    assert len(strike) == 1 and strike[0][:, 0].mean() == pytest.approx(plot._drafts[2].get_position()[0])
    assert written(plot._gains) == ["<a>", "<a>"] and plot._own_name.get_text() == ""


def test_p_and_q_are_bars_of_one_scale_where_the_draft_fell(plot, trace):
    plot.update(trace, VERDICT)
    assert written(plot._names) == ["<b>", "<c>", "<a>", "<d>", "3 others"]
    assert widths(plot._bars["p, the target"]) == pytest.approx([0.2, 0.8, 0.6, 0.4])
    assert widths(plot._bars["q, the drafter"]) == pytest.approx([1.0, 0.2, 0.6, 0.2])
    assert written(plot._values)[0] == "10.0% · 50.0%"
    assert widths(plot._after_bars) == [] and plot._where.get_text() == "Where “<b>” fell: p · q"


def test_the_correction_stands_below_the_draft_that_it_replaces(plot, trace):
    plot.update(trace, CORRECTION)
    assert boxes(plot)["own"] == 1 and written(plot._gains) == ["<a>", "<a>", "<c>"]
    assert plot._gains[2].get_position()[0] == plot._drafts[2].get_position()[0]
    assert plot._own_name.get_text() == "◂ correction"
    assert plot._after_name.get_text() == "Drawn from max(0, p − q) / Σ"
    assert widths(plot._after_bars) == pytest.approx([0, 1, 0, 1 / 3], abs=1e-6)
    assert written(plot._after_values) == ["0", "75.0%", "0", "25.0%", "0"]
    assert list(plot._drawn.get_ydata()) == [1]  # beside c


def test_a_bonus_is_drawn_from_p_alone(plot, trace):
    plot.update(trace, BONUS)
    assert boxes(plot) == {"accepted": 4, "own": 1} and plot._own_name.get_text() == "◂ bonus"
    assert plot._after_name.get_text() == "Drawn from p" and widths(plot._bars["q, the drafter"]) == []
    assert written(plot._values)[:3] == written(plot._after_values)[:3] == ["50.0%", "30.0%", "20.0%"]
    assert list(plot._drawn.get_ydata()) == [0] and len(plot._strikes.get_segments()) == 0


def test_phases_are_told_in_words(trace):
    assert happens(trace, 0) == "The target reads the prompt and writes “<b>”."
    assert happens(trace, DRAFTED) == "Draft 3 of 4: the drafter proposes “<b>”."
    assert happens(trace, VERDICT) == "The target reads all drafts in one pass: 2 of 4 stand, “<b>” falls."
    assert happens(trace, CORRECTION) == "Correction: the target puts “<c>” in place of “<b>”."
    assert happens(trace, 9) == "The target reads all drafts in one pass: all 2 stand."
    assert happens(trace, BONUS).startswith(
        "Bonus: all drafts stand, and the same pass of the target brings “<a>”"
    )


def test_steps_without_drafts_and_ends_among_them_are_told():
    steps = [*some_steps(), step(3, [], 0, 1, FLAT), step(4, [0], 1, 1, FLAT)]
    steps.append(step(5, [0, 1], 2, 0, FLAT, tokens=[0]))
    trace = speculation_trace("", steps, decode, label)
    assert happens(trace, 11) == "Nothing was drafted: the target reads on and writes “<b>”."
    assert happens(trace, 13).endswith("the only one stands.")
    assert happens(trace, 17).endswith("1 of 2 stand, and the text ends among them.")
    plot = SpeculationPlot()
    assert plot.update(trace, 17) and plot._where.get_text() == "The text has ended"
    assert boxes(plot) == {"accepted": 2, "dropped": 1} and written(plot._names) == []


def test_the_text_alternative_says_what_the_picture_shows(trace):
    picture = plot_speculation(trace, CORRECTION, "base")
    assert picture.alt.startswith("base, phase 7 of 11. Correction: the target puts “<c>” in place of “<b>”.")
    words = in_words(trace, CORRECTION)
    assert (
        "<a> with q 40.0%, p 20.0%, stands; <b> with q 50.0%, p 10.0%, falls; <d> with q 90.0%, dropped."
        in words
    )
    assert "Where “<b>” fell: p · q: <b> 10.0% · 50.0%; <c> 40.0% · 10.0%" in words
    assert words.endswith("4 tokens · 3.00 a step after the prompt · α = 2 of 3 = 0.67.")
    before = in_words(trace, DRAFTED)
    assert "<b> with q 50.0%." in before and "p " not in before.split("Drafts:")[1].split(".")[0]


def test_counts_are_told_once_there_are_some(trace):
    assert told(trace.phases[0].counts) == "1 token"
    assert told(trace.phases[VERDICT].counts) == "3 tokens · α = 2 of 3 = 0.67"


def test_redrawing_leaves_nothing_of_the_last_picture(trace):
    plot = SpeculationPlot()
    for at in (CORRECTION, 0, BONUS, DRAFTED):
        plot.update(trace, at).png(1.0)
        assert plot.figure.png(1.0) == plot_speculation(trace, at).png(1.0)


@pytest.mark.parametrize("num_drafts", [1, 4, 8, MOST_DRAFTS])
@pytest.mark.parametrize("name", ["明月几时有", "⏎␣␣␣␣", "international"])
def test_labels_of_any_kind_stay_in_their_boxes_and_on_the_page(num_drafts, name):
    steps = [step(1, [0] * num_drafts, num_drafts - 1, 1, FLAT, FLAT)]
    trace = speculation_trace("", steps, decode, lambda token: name)
    for at in (num_drafts, num_drafts + 1):
        picture = (plot := SpeculationPlot()).update(trace, at, "base, drafts by draft")
        picture.png(1.0)
        renderer = picture.canvas.get_renderer()
        pitch = picture.bbox.width / (max(5, num_drafts + 1) * look.WIDTH / 7.5)
        texts = [t for t in picture.findobj(lambda a: hasattr(a, "get_text")) if t.get_text().strip()]
        page = picture.bbox
        for text in texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= 0 and box.y1 <= page.y1, text
            if text in (*plot._drafts, *plot._gains):
                assert box.width < pitch, text


def test_more_drafts_than_fit_are_refused(trace):
    many = speculation_trace("", [step(1, [0] * 17, 17, 1, FLAT)], decode, label)
    with pytest.raises(ValueError, match="a step may have at most 16 drafts, got 17; draft fewer"):
        plot_speculation(many, 0)
    with pytest.raises(ValueError, match=r"at must be in \[0, 10\], got 11"):
        plot_speculation(trace, 11)


def test_kinds_of_boxes_differ_in_grey_or_in_their_lines(plot, trace):
    """A third of all lightness lies between what the target wrote and what was drafted."""

    def lightness(kind):
        red, green, blue = plot._boxes[kind].get_facecolor()[0][:3]
        return 0.299 * red + 0.587 * green + 0.114 * blue

    assert lightness("own") < min(map(lightness, ("proposed", "accepted", "rejected", "dropped"))) - 0.33
    plot.update(trace, CORRECTION)
    assert len(plot._strikes.get_segments()) == 1
