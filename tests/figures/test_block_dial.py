"""The dial's plot: what is drawn is what was measured, and what cannot be told apart is refused."""

import pytest

from llmcourse.blockwise.quality import Quality
from llmcourse.figures.block_dial import MEASURES, plot_dial


def quality(domain="code", block_size=1, passes=1, form=0.5):
    rate = block_size / passes
    loss = 1.0 + 0.5 * rate
    return Quality(domain, block_size, passes, "unmask", loss, 0.4, form, rate)


SETTINGS = [(1, 1), (4, 1), (16, 1), (4, 2), (16, 2)]
QUALITIES = [quality("code", *s) for s in SETTINGS] + [quality("prose", *s, form=None) for s in SETTINGS]


def test_every_measured_point_is_drawn_once():
    picture = plot_dial(QUALITIES, "The dial")
    panels = picture.axes
    assert len(panels) == len(MEASURES)
    points = [[tuple(p) for line in panel.lines for p in line.get_xydata()] for panel in panels]
    assert sorted(points[0]) == sorted((q.tokens_per_pass, q.nats_per_token) for q in QUALITIES)
    assert len(points[1]) == 10 and len(points[2]) == 5, "prose has no form"
    assert [len(panel.lines) for panel in panels] == [4, 4, 2]


def test_the_ends_are_told_in_words():
    alt = plot_dial(QUALITIES, "The dial").alt
    assert "code: 1.50 nats per token at 1 tokens of a pass and 9.00 nats per token at 16" in alt


@pytest.mark.parametrize(
    ("message", "qualities"),
    [
        ("one or more settings", []),
        ("each once, got 2 of 1 kinds", [quality(), quality()]),
        ("domains must be at most 4, got 5", [quality(f"d{n}") for n in range(5)]),
        ("numbers of passes must be at most 4, got 5", [quality("a", 8, n) for n in range(1, 6)]),
    ],
)
def test_what_cannot_be_drawn_is_refused(message, qualities):
    with pytest.raises(ValueError, match=message):
        plot_dial(qualities, "The dial")
