"""Timelines as drawn: a box for each stretch, names where there is room, nothing outside the page."""

import itertools

import pytest
from matplotlib import colors
from matplotlib.collections import Collection
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from llmcourse.figures import style as look
from llmcourse.figures.timeline import timeline
from llmcourse.figures.timeline_plot import LOOKS, plot_timelines
from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.clock import simulate
from llmcourse.serving.lecture_grid import lecture_trace
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching
from llmcourse.serving.scheduler import Scheduler
from llmcourse.serving.workload import LogNormal, make_requests, poisson
from tests.figures.test_style import lightness


def lecture():
    policies = {"traditional": TraditionalBatching(), "continuous": ContinuousBatching()}
    return [timeline(name, lecture_trace(policy), 4, 8.0) for name, policy in policies.items()]


def crowd(slots=8, per_s=20.0):
    requests = make_requests(20, poisson(per_s), LogNormal(60), LogNormal(60, longest=200))
    served = Scheduler(BlockPool(2000), ChunkedPrefill(64), max_running=slots)
    trace = simulate(requests, served, lambda schedule: 0.01)
    return timeline("chunked", trace, slots, note="pieces of prompts fill a step up to 64 tokens")


def boxes(picture):
    """How many of each kind; those of one kind may share a path."""
    found = [artist for artist in picture.artists if isinstance(artist, Collection)]
    begun = {artist.get_label(): [path.codes for path in artist.get_paths()] for artist in found}
    return {
        kind: sum((c == Path.MOVETO).sum() for c in codes) for kind, codes in begun.items() if kind in LOOKS
    }


def test_every_cell_of_the_lecture_is_a_box_and_has_its_name():
    picture = plot_timelines(lecture(), "The lecture's grid")
    cells = boxes(picture)
    assert cells["prompt"] == 4 + 7 and cells["end"] == 4 + 4
    assert cells["token"] == 26 + 32 - 11 - 8 and cells["wasted"] == 3  # what is empty hangs together
    texts = {text.get_text() for text in picture.texts}
    assert {f"T{step}" for step in range(1, 9)} <= texts and "empty while others wait" in texts
    assert "idle" not in texts
    assert picture.alt.startswith("The lecture's grid. traditional: slots used 81% · TTFT")
    assert len([artist for artist in picture.patches + picture.artists if isinstance(artist, PathPatch)]) == 3


def test_kinds_differ_in_grey_print_or_by_hatching():
    plain = {kind: settings["facecolor"] for kind, settings in LOOKS.items() if "hatch" not in settings}
    steps = [abs(lightness(a) - lightness(b)) for a, b in itertools.combinations(plain.values(), 2)]
    assert min(steps) > 10
    assert len({settings.get("hatch") for settings in LOOKS.values()}) == 3


def test_thin_steps_are_joined():
    shown = crowd()
    picture = plot_timelines([shown])
    assert boxes(picture)["token"] < sum(box.kind == "token" for box in shown.boxes) / 3
    assert any("▾ requests come" in text.get_text() for text in picture.texts)
    assert any(text.get_text().endswith(" s") for text in picture.texts)  # seconds, not steps


@pytest.mark.parametrize(
    "shown", [lecture(), [crowd()], [crowd(2)], [crowd(32)]], ids=["lecture", "8", "2", "32"]
)
def test_words_stay_inside_the_page_and_off_each_other(shown):
    picture = plot_timelines(shown, "Policies", "on one axis of time")
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in picture.texts if text.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= picture.bbox.x1 and box.y0 >= 0 for box in extents)
    overlapping = [a.overlaps(b) for a, b in itertools.combinations(extents, 2)]
    assert not any(overlapping)


@pytest.mark.parametrize("slots", [1, 8, 12, 15, 16, 24, 32])
def test_what_is_named_can_be_read(slots):
    """Digits of names are at least seven pixels high; where there is no room, there are none."""
    picture = plot_timelines([crowd(slots)])
    names = [artist for artist in picture.patches + picture.artists if isinstance(artist, PathPatch)]
    assert bool(names) == (slots <= 15)
    if names:
        slot_numbers = next(n for n in names if n.get_facecolor() == colors.to_rgba(look.MUTED))
        points = slot_numbers.get_path()
        digits = points.vertices[points.codes != Path.CLOSEPOLY]
        one = digits[digits[:, 1] > digits[:, 1].max() - 0.15]  # the first row's number
        assert 100 * (one[:, 1].max() - one[:, 1].min()) >= 6.9


def test_marks_of_arrivals_do_not_overlap():
    picture = plot_timelines([crowd(per_s=200.0)])
    (marks,) = [artist for artist in picture.artists if isinstance(artist, Line2D)]
    places = marks.get_xdata()
    assert 1 < len(places) < 19 and min(b - a for a, b in itertools.pairwise(places)) >= 0.06


def test_how_a_policy_fills_a_step_is_noted():
    texts = [text.get_text() for text in plot_timelines([crowd()]).texts]
    assert "pieces of prompts fill a step up to 64 tokens" in texts


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="timelines must be at least 1, got 0"):
        plot_timelines([])
