"""The tree's picture: boxes where the tree has nodes, lines from their parents, the branch that stood."""

import numpy as np
import pytest

from llmcourse.figures.candidate_trace import CandidateStep, CandidateTrace, TracedNode
from llmcourse.figures.candidate_tree import (
    LEFT,
    ROOT_WIDTH,
    THICKEST,
    CandidatePlot,
    counted,
    plot_candidates,
    rows_of,
)
from llmcourse.figures.speculation_trace import TracedToken
from llmcourse.speculative.medusa import MedusaTree, full, sparse

TREE = MedusaTree([(0,), (1,), (0, 0), (0, 1), (1, 0)])
WORDS = ("␣a", "⏎", "床", "$", "␣b")


def word(text):
    return TracedToken(1, text, text)


def trace(own="␣c", stands=(0, 3)):
    q, p = (0.9, 0.1, 0.5, 0.3, 0.0), (0.8, 0.0, 0.004, 0.61, 0.2)
    nodes = tuple(TracedNode(WORDS[n], p[n], q[n], n in stands) for n in range(5))
    accepted = tuple(word(WORDS[n]) for n in stands)
    first = CandidateStep("␣x", (), (), word("␣y"))
    second = CandidateStep("␣y", nodes, accepted, word(own) if own else None)
    gained = len(second.gained)
    return CandidateTrace("x", TREE, (first, second), (None, float(gained)))


@pytest.mark.parametrize("tree", [TREE, sparse(4, 4), full([3, 2, 2])])
def test_every_node_has_a_place_of_its_own(tree):
    rows = rows_of(tree)
    places = [(len(choice), row) for choice, row in zip(tree.choices, rows, strict=True)]
    assert len(set(places)) == len(tree) and max(rows) + 1 == len(tree.tree.paths)
    for node, parent in enumerate(tree.tree.parents):
        assert parent == -1 or rows[node] >= rows[parent]  # children lie beside their parent or below
        if tree.choices[node][-1] == 0 and parent != -1:
            assert rows[node] == rows[parent]


def test_lines_run_from_parent_to_child_as_thick_as_the_head_is_sure():
    plot = CandidatePlot(TREE)
    plot.update(trace(), 1)
    segments, widths = plot._lines.get_segments(), plot._lines.get_linewidths()
    for node, parent in enumerate(TREE.tree.parents):
        left, middle = plot._place(node)
        assert segments[node][-1] == pytest.approx((left, middle))
        x, y = (LEFT + ROOT_WIDTH, None) if parent == -1 else plot._place(parent)
        assert segments[node][0][0] == pytest.approx(x + (0 if parent == -1 else plot.box[0]))
        assert y is None or segments[node][0][1] == pytest.approx(y)
    assert max(widths) == pytest.approx(0.4 + (THICKEST - 0.4) * 0.9) and min(widths) == pytest.approx(0.4)


def test_the_branch_that_stood_is_set_apart_and_gained():
    plot = CandidatePlot(TREE)
    picture = plot.update(trace(), 1, "T")
    assert len(plot._stood.get_paths()) == 2 and len(plot._plain.get_paths()) == 3
    bold = [node for node, label in enumerate(plot._labels) if label.get_fontweight() == "bold"]
    assert bold == [0, 3]
    assert [text.get_text() for text in plot._gains] == ["␣a", "$", "␣c"]
    assert len(plot._gain_boxes.get_paths()) == 2 and len(plot._own_box.get_paths()) == 1
    assert "a branch of 2 stands, then the backbone writes “␣c”" in picture.alt
    assert "Accepted: ␣a, head 90.0%, backbone 80.0%; $, head 30.0%, backbone 61.0%" in picture.alt
    picture.png(1.0)


def test_boxes_say_what_the_backbone_found():
    plot = CandidatePlot(TREE)
    plot.update(trace(), 1)
    assert [text.get_text() for text in plot._numbers] == ["80%", "", "", "61%", "20%"]
    blue = 1 - plot._plain.get_facecolors()[:, 0]  # of nodes 1, 2 and 4
    assert np.argmax(blue) == 2 and blue[0] == 0


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_what_is_counted_ends_before_the_figure_does(depth):
    tree = full([2] * 3 + [1] * (depth - 3)) if depth > 3 else full([2] * depth)
    nodes = tuple(TracedNode("a", 0.5, 0.5, False) for _ in range(len(tree)))
    step = CandidateStep("x", nodes, (), word("y"))
    plot = CandidatePlot(tree)
    picture = plot.update(CandidateTrace("x", tree, (step, step), (None, 1.33)), 1)
    picture.png(1.0)
    assert "1.33 a pass" in plot._counts.get_text()
    assert plot._counts.get_window_extent().x1 <= picture.bbox.x1


def test_the_first_step_has_no_tree():
    plot = CandidatePlot(TREE)
    plot.update(trace(), 1)
    picture = plot.update(trace(), 0)
    assert not plot._lines.get_segments() and not plot._stood.get_paths() and not plot._plain.get_paths()
    assert {text.get_text() for text in (*plot._labels, *plot._numbers)} == {""}
    assert "The heads have not spoken yet." in picture.alt
    picture.png(1.0)


def test_a_text_that_ends_on_its_branch():
    plot = CandidatePlot(TREE)
    alt = plot.update(trace(own=None), 1).alt
    assert "and the text ends on it" in alt and len(plot._own_box.get_paths()) == 0


def test_none_stands_and_counts():
    alt = plot_candidates(trace(stands=()), 1).alt
    assert "none stands" in alt and "Accepted" not in alt
    assert counted(trace(), 0) == ("1 token", "in 1 pass")
    assert counted(trace(), 1) == ("4 tokens", "in 2 passes", "3.00 a pass after the first")


@pytest.mark.parametrize("tree", [full([41]), full([2] * 5 + [1]), MedusaTree([])])
def test_what_cannot_be_read_is_refused(tree):
    with pytest.raises(
        ValueError, match=r"tree must be of 1 to 40 branches, at most 5 deep, .* show another"
    ):
        CandidatePlot(tree)


def test_another_tree_and_another_step_are_refused():
    with pytest.raises(ValueError, match="trace must be of this figure's tree, got one of 5 nodes"):
        CandidatePlot(sparse(2, 3)).update(trace(), 1)
    with pytest.raises(ValueError, match=r"at must be in \[0, 1\], got 2"):
        plot_candidates(trace(), 2)
