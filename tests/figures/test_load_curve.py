"""Load curves: shares in time, the load that nine in ten bear, and what is drawn of them."""

import itertools
import math
from dataclasses import MISSING, fields

import pytest

from llmcourse.figures.load_curve import LoadCurve, kept_share, plot_load, sweep
from llmcourse.serving.metrics import Metrics


def metrics(share, tokens_per_s=100.0, itl_s=0.01):
    """Of ten requests in five seconds."""
    values = {field.name: 0.5 for field in fields(Metrics) if field.default is MISSING}
    values |= {"duration_s": 5.0, "num_finished": 8, "num_refused": 2, "num_preemptions": 0}
    values |= {"goodput_per_s": 10 * share / 5, "output_tokens_per_s": tokens_per_s, "itl_p99_s": itl_s}
    return Metrics(**values)


def curve(name="a", shares=(1.0, 0.9, 0.5, 0.95)):
    return LoadCurve(name, (1.0, 2.0, 4.0, 8.0), tuple(map(metrics, shares)))


def test_shares_count_those_refused():
    assert kept_share(metrics(0.7)) == pytest.approx(0.7)


def test_the_capacity_ends_at_the_first_rate_that_is_not_borne():
    assert curve().capacity() == 2.0
    assert curve().capacity(0.4) == 8.0
    assert curve(shares=(0.1, 1.0, 1.0, 1.0)).capacity() == 0


def test_a_sweep_serves_every_rate_by_every_policy():
    asked = []
    serve = {name: lambda rate, name=name: asked.append((name, rate)) or metrics(1.0) for name in "ab"}
    curves = sweep(serve, [4, 1])
    assert asked == [("a", 1.0), ("a", 4.0), ("b", 1.0), ("b", 4.0)]
    assert [(one.name, one.per_s) for one in curves] == [("a", (1.0, 4.0)), ("b", (1.0, 4.0))]


def test_both_panels_show_the_curves():
    shown = [curve("traditional"), curve("chunked", (1.0, 1.0, 1.0, 1.0))]
    picture = plot_load(shown, "Load")
    left, right = picture.axes
    drawn = [line for line in left.lines if line.get_marker() in "os"]
    assert [list(line.get_ydata()) for line in drawn] == [
        [kept_share(m) for m in one.metrics] for one in shown
    ]
    assert [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == "--"][1:] == [2.0, 8.0]
    assert list(right.lines[0].get_ydata()) == [0.01] * 4
    assert any("dotted: the last load that keeps it" in text.get_text() for text in left.texts)
    assert "chunked: 90% in time up to 8 requests a second, time between tokens" in picture.alt
    picture.png(1.0)


def test_words_do_not_overlap():
    picture = plot_load(
        [curve("whole prompts"), curve("pieces of 512"), curve("traditional")], "Load", "of 80"
    )
    picture.png(1.0)
    renderer = picture.canvas.get_renderer()
    texts = [*picture.texts, *(text for axes in picture.axes for text in axes.texts)]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x1 <= picture.bbox.x1 for box in boxes)


def test_latencies_that_are_not_there_are_left_out():
    lonely = LoadCurve("single tokens", (1.0, 2.0), (metrics(1.0, itl_s=math.nan),) * 2)
    picture = plot_load([lonely], "Load")
    assert not picture.axes[1].lines and picture.alt.endswith("up to 2 requests a second.")
    picture.png(1.0)


def test_what_is_no_curve_is_refused():
    with pytest.raises(ValueError, match="per_s must be rising rates, one for each of 1 metrics, got"):
        LoadCurve("a", (1.0, 2.0), (metrics(1.0),))
    with pytest.raises(ValueError, match="per_s must be rising rates"):
        LoadCurve("a", (2.0, 1.0), (metrics(1.0),) * 2)
    with pytest.raises(ValueError, match=r"latency must be one of ttft_p50_s, .*, got 'speed'"):
        plot_load([curve()], "Load", latency="speed")
    with pytest.raises(ValueError, match="curves must be 1 to 4, got 0"):
        plot_load([], "Load")
