"""Layers and their teachers: the maps of the papers, depths that do not divide, maps that point nowhere."""

import pytest

from llmcourse.distillation import LayerMap


def test_the_maps_of_the_papers():
    assert LayerMap.uniform(4, 12).pairs == ((1, 3), (2, 6), (3, 9), (4, 12))
    assert LayerMap.skip(6, 12).pairs == ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10))
    assert LayerMap.tail(6, 12).pairs == ((1, 7), (2, 8), (3, 9), (4, 10), (5, 11))
    assert LayerMap.last(4, 12).pairs == ((4, 12),)


def test_what_does_not_come_out_even_is_rounded_up():
    """Not down, by which the first layers of a deeper student would have none to learn from."""
    assert LayerMap.uniform(4, 6).pairs == ((1, 2), (2, 3), (3, 5), (4, 6))
    assert LayerMap.uniform(6, 4).pairs == ((1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (6, 4))
    assert LayerMap.skip(4, 6).pairs == ((1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize("student", range(1, 9))
@pytest.mark.parametrize("teacher", range(1, 9))
def test_depths_that_do_not_divide(student, teacher):
    """Every map stays inside both, goes up, and the uniform one ends where both end."""
    makers = [LayerMap.uniform, LayerMap.last] + [LayerMap.skip] * (student > 1)
    makers += [LayerMap.tail] * (1 < student <= teacher)
    for maker in makers:
        made = maker(student, teacher)
        made.check(student, teacher)
        its = [layer for _, layer in made.pairs]
        assert its == sorted(its) and made.student_layers == tuple(layer for layer, _ in made.pairs)
    uniform = LayerMap.uniform(student, teacher)
    assert uniform.pairs[-1] == (student, teacher) and len(uniform.pairs) == student
    assert len(uniform.teacher_layers) == min(student, teacher)


def test_pairs_from_a_file_are_pairs():
    assert LayerMap([[2, 4], [1, 4]]).pairs == ((1, 4), (2, 4))
    assert LayerMap([[2, 4], [1, 4]]).teacher_layers == (4,)


@pytest.mark.parametrize("pairs", [((1, 2, 3),), ((True, 2),), [[]]])
def test_what_are_no_pairs_is_refused(pairs):
    with pytest.raises(TypeError, match=r"pairs must be of layers \(student's, teacher's\), got"):
        LayerMap(pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((), "layer map must be of at least one pair, got none"),
        (((0, 1),), "student's layer must be an integer of at least 1, got 0; layers are counted from 1"),
        (((1, -1),), "teacher's layer must be an integer of at least 1, got -1"),
        (((1, 2), (1, 3)), "student's layers must be each there once, got 1 twice; give it one teacher"),
    ],
)
def test_maps_that_are_none_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        LayerMap(pairs)


@pytest.mark.parametrize(
    ("pair", "whose"),
    [
        ((3, 4), r"student's layer must be in \[1, 2\], got 3"),
        ((2, 5), r"teacher's layer must be in \[1, 4\], got 5"),
    ],
)
def test_a_map_that_points_nowhere_is_refused(pair, whose):
    with pytest.raises(ValueError, match=whose + r"; the pair \(\d, \d\) points nowhere"):
        LayerMap(((1, 1), pair)).check(2, 4)


def test_depths_that_a_map_cannot_be_made_for_are_refused():
    with pytest.raises(ValueError, match="student_layers must be at most 4, got 6; take uniform"):
        LayerMap.tail(6, 4)
    with pytest.raises(ValueError, match="student_layers must be an integer of at least 2, got 1"):
        LayerMap.skip(1, 4)
    with pytest.raises(ValueError, match="teacher_layers must be an integer of at least 1, got 0"):
        LayerMap.uniform(1, 0)
