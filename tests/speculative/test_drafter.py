"""What a drafter hands over, as verification takes it."""

from __future__ import annotations

import pytest
import torch

from llmcourse.speculative import Draft


def test_a_certain_draft_has_point_masses_and_a_drawn_one_its_own():
    tokens, counts = torch.tensor([[1, 0]]), torch.tensor([2])
    assert Draft(tokens, counts).distributions(3).tolist() == [[[0, 1, 0], [1, 0, 0]]]
    q = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    assert Draft(tokens, counts, q).distributions(3) is q


def test_a_step_without_drafts_has_none():
    empty = Draft(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    assert empty.distributions(3).shape == (2, 0, 3)


@pytest.mark.parametrize("token", [3, -1])
def test_a_certain_draft_outside_the_vocabulary_is_refused(token):
    draft = Draft(torch.tensor([[1, token]]), torch.tensor([2]))
    with pytest.raises(
        ValueError, match=rf"drafts must be in \[0, 2\], got {token}; use a drafter with the target's"
    ):
        draft.distributions(3)
