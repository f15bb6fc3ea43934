"""The short way for two certain sides against the rule itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.speculative.distributions import point_masses
from llmcourse.speculative.verify import verify_certain, verify_drafts

VOCAB_SIZE = 3  # few tokens, so that drafts often stand


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_equals_the_rule_for_point_masses(batch, num_columns, seed):
    """Ragged rows included; what is padding must not stand, even where it is the target's choice."""
    generator = torch.Generator().manual_seed(seed)
    best = torch.randint(VOCAB_SIZE, (batch, num_columns + 1), generator=generator)
    fallen = torch.rand(batch, num_columns, generator=generator) < 0.2
    drafts = (best[:, :-1] + fallen) % VOCAB_SIZE
    num_drafts = torch.randint(num_columns + 1, (batch,), generator=generator)
    uniform = torch.rand(batch, num_columns + 1, generator=generator)
    p, q = point_masses(best, VOCAB_SIZE), point_masses(drafts, VOCAB_SIZE)
    wanted = verify_drafts(p, q, drafts, uniform, num_drafts)
    found = verify_certain(best, drafts, num_drafts)
    assert torch.equal(found.num_accepted, wanted.num_accepted)
    assert torch.equal(found.next_tokens, wanted.next_tokens)


def test_by_hand():
    best = torch.tensor([[1, 2, 0], [1, 2, 0], [1, 2, 0]])
    drafts = torch.tensor([[1, 2], [1, 1], [1, 2]])
    verdict = verify_certain(best, drafts, torch.tensor([2, 2, 1]))
    assert verdict.num_accepted.tolist() == [2, 1, 1]
    assert verdict.next_tokens.tolist() == [0, 2, 2]  # a bonus, a correction, a bonus for the shorter one
