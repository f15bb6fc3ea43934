"""Labels keep apart, and points that coincide share one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcourse.figures.labels import GAP, Label, clusters, overlaps, place

PAGE = (0.0, 0.0, 600.0, 400.0)


def boxes_of(labels, centres):
    halves = np.array([[label.width, label.height] for label in labels]) / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def test_the_shared_area_of_boxes():
    assert overlaps([(0, 0, 10, 10)], [(5, 5, 20, 20), (8, -5, 9, 5), (20, 20, 30, 30)]).tolist() == [30.0]
    assert overlaps([(0, 0, 10, 10)], [(10, 0, 20, 10)]).tolist() == [0.0]  # side by side
    assert overlaps([(0, 0, 1, 1), (2, 2, 3, 3)], []).tolist() == [0.0, 0.0]


def test_points_that_hang_together_are_one_cluster():
    points = [(50.0, 0.0), (0.0, 0.0), (56.0, 0.0), (7.0, 0.0), (14.0, 0.0)]
    assert clusters(points, 8.0) == [[1, 3, 4], [0, 2]]
    assert clusters(points, 6.5) == [[1], [3], [4], [0, 2]]
    assert clusters([(0.0, 0.0), (0.0, 30.0)], 8.0) == [[0], [1]]  # one above the other
    assert clusters([], 8.0) == []


def test_a_lone_label_stands_where_it_was_wanted():
    above, below = Label((300, 200), 40, 12), Label((300, 200), 40, 12, up=False)
    assert place([above], [], PAGE).tolist() == [[300, 200 + 6 + GAP]]
    assert place([below], [], PAGE).tolist() == [[300, 200 - 6 - GAP]]
    assert place([], [], PAGE).shape == (0, 2)


def test_an_obstacle_and_the_edge_are_avoided():
    label = Label((300, 200), 40, 12)
    wall = (280.0, 205.0, 320.0, 240.0)
    (box,) = boxes_of([label], place([label], [wall], PAGE))
    assert overlaps([box], [wall]) == 0
    corner = Label((598, 398), 40, 12)
    (box,) = boxes_of([corner], place([corner], [], PAGE))
    assert overlaps([box], [PAGE]) == pytest.approx(40 * 12)


def test_where_all_is_taken_least_is_covered():
    label = Label((300, 200), 40, 12)
    crowd = [(0.0, 0.0, 600.0, 209.0), (0.0, 222.0, 600.0, 400.0)]  # a slit, one pixel too low
    assert place([label], crowd, PAGE).tolist() == [[300, 200 + 6 + GAP]]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=8, unique=True),
    st.booleans(),
)
def test_labels_of_scattered_points_never_overlap(places, up):
    labels = [Label((100 * x, 100 * y), 50, 14, up) for x, y in places]
    boxes = boxes_of(labels, place(labels, [], PAGE))
    for index, box in enumerate(boxes):
        assert overlaps([box], np.delete(boxes, index, axis=0)) == 0
        assert overlaps([box], [PAGE]) == pytest.approx(50 * 14)
