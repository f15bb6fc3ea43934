"""What a pass may settle, place by place."""

import pytest
import torch

from llmcourse.blockwise.refinement import most_confident, require_refinement, settled_after


@pytest.mark.parametrize(
    ("size", "passes", "expected"), [(8, 1, [8]), (8, 4, [2, 4, 6, 8]), (5, 3, [2, 4, 5]), (3, 3, [1, 2, 3])]
)
def test_every_pass_settles_its_share_and_the_last_one_all(size, passes, expected):
    assert [settled_after(size, number, passes) for number in range(1, passes + 1)] == expected


def test_the_first_place_and_the_surest_of_the_rest():
    confidence = torch.tensor([[-9.0, -1.0, -3.0, -2.0], [-0.1, -5.0, -5.0, -4.0]])
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert most_confident(confidence, nothing, 1).tolist() == [[True, False, False, False]] * 2
    two = most_confident(confidence, nothing, 2)
    assert two.tolist() == [[True, True, False, False], [True, False, False, True]]
    assert most_confident(confidence, nothing, 3)[1].tolist() == [True, True, False, True], "first of equals"


def test_what_is_settled_stays():
    confidence = torch.tensor([[-1.0, -9.0, -1.0, -2.0]])
    settled = torch.tensor([[True, True, False, False]])
    assert most_confident(confidence, settled, 3).tolist() == [[True, True, True, False]]
    assert confidence[0, 0] == -1, "the caller's numbers are not written to"


def test_other_ways_are_refused():
    with pytest.raises(ValueError, match="refinement must be 'unmask' or 'remask', got 'all'"):
        require_refinement("all")
