"""One row of the online softmax: each state is what the definition says of the scores so far."""

import math

import pytest
import torch

from llmcourse.figures import style as look
from llmcourse.figures.softmax_rows import plot_watched_row, watch_row


def row(length=10, columns=3):
    generator = torch.Generator().manual_seed(2)
    return 2 * torch.randn(length, generator=generator), torch.randn(length, columns, generator=generator)


@pytest.mark.parametrize("block", [1, 4, 10, 99])
def test_each_state_is_the_softmax_of_what_was_seen(block):
    scores, values = row()
    data = watch_row(scores, values, block)
    assert data.seen[0] == 0 and data.seen[-1] == 10 and len(data.seen) == 1 + math.ceil(10 / block)
    for at, seen in list(enumerate(data.seen))[1:]:
        some = scores[:seen]
        assert data.peaks[at] == pytest.approx(float(some.max()))
        assert data.totals[at] == pytest.approx(float((some - some.max()).exp().sum()), rel=1e-5)
        assert data.results[at] == pytest.approx((some.softmax(-1) @ values[:seen]).tolist(), abs=1e-5)
    assert data.results[-1] == pytest.approx(list(data.expected), abs=1e-5)


def test_only_a_new_maximum_rescales():
    scores = torch.tensor([0.0, 1.0, 0.5, 3.0])
    data = watch_row(scores, torch.ones(4, 1))
    assert data.fades == pytest.approx((1.0, 0.0, math.exp(-1), 1.0, math.exp(-2)))
    assert data.num_rescaled == 2
    assert watch_row(scores.flip(0), torch.ones(4, 1)).num_rescaled == 0


@pytest.mark.parametrize("scores", [[-math.inf, 1.0, -math.inf, 2.0], [-math.inf] * 4])
def test_hidden_scores_weigh_nothing(scores):
    data = watch_row(torch.tensor(scores), torch.ones(4, 2))
    assert data.results[-1] == pytest.approx(data.expected)
    assert all(not math.isnan(fade) for fade in data.fades)
    plot_watched_row(data).png(1.0)


def test_lines_are_the_states():
    data = watch_row(*row(), 2)
    picture = plot_watched_row(data)
    scores, totals, results = picture.axes
    assert list(scores.lines[0].get_ydata()) == pytest.approx(list(data.scores))
    assert list(totals.lines[0].get_ydata()) == list(data.totals)
    solid = [line for line in results.lines if line.get_marker() in look.MARKERS]
    assert [line.get_ydata()[-1] for line in solid] == pytest.approx(list(data.expected), abs=1e-5)
    labels = [text.get_text() for text in totals.texts if text.get_text().startswith("×")]
    assert labels == [f"× {fade:.2f}" for fade in data.fades if 0 < fade < 1]
    assert "10 scores in 5 blocks" in picture.alt
    picture.png(1.0)


def test_rows_without_scores_are_refused():
    with pytest.raises(ValueError, match="scores must hold at least 1, got 0"):
        watch_row(torch.zeros(0), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        watch_row(*row(), 0)
