"""The comparison of strategies: a table of scores, gaps allowed, and its drawing."""

import pytest

from llmcourse.figures.diversity import Score, plot_scores, score_table

SCORES = [
    Score("greedy", "prose", "repetition", 0.8),
    Score("greedy", "code", "repetition", 0.5),
    Score("top-p", "prose", "repetition", 0.1),
    Score("top-p", "prose", "distinct-2", 0.9),
]


def test_scores_find_their_place():
    table = score_table(SCORES)
    assert table.strategies == ("greedy", "top-p")
    assert table.domains == ("prose", "code")
    assert table.metrics == ("repetition", "distinct-2")
    assert table.values["repetition"] == {"greedy": {"prose": 0.8, "code": 0.5}, "top-p": {"prose": 0.1}}


def test_every_score_is_a_mark():
    picture = plot_scores(score_table(SCORES), references={"repetition": {"code": 0.05}})
    marks = [
        (float(line.get_xdata()[0]), int(line.get_ydata()[0]), line.get_marker())
        for axes in picture.axes
        for line in axes.lines
        if line.get_marker() != "None"
    ]
    assert marks == [(0.8, 0, "o"), (0.5, 0, "s"), (0.1, 1, "o"), (0.9, 1, "o")]
    assert "repetition: from 0.1 (top-p) to 0.65 (greedy)" in picture.alt
    assert any(text.get_text() == "dotted: human text" for text in picture.texts)
    picture.png(1.0)


def test_no_scores_and_too_many_kinds_are_refused():
    with pytest.raises(ValueError, match="scores must hold at least 1 score, got 0"):
        score_table([])
    with pytest.raises(ValueError, match="scores must differ, got greedy, prose, repetition twice"):
        score_table([SCORES[0], SCORES[0]])
    with pytest.raises(ValueError, match="at most 4 domains, got 5"):
        score_table([Score("greedy", domain, "repetition", 0.0) for domain in "abcde"])
