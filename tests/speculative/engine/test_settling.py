"""What becomes of drafts: greedy verification is the rule's limit, and settling keeps to its memory."""

import torch

from llmcourse.speculative.distributions import most_probable, point_masses
from llmcourse.speculative.engine.settling import settle, verify_greedy, verify_sampled
from llmcourse.speculative.verify import Verdict, verify_drafts


def test_greedy_verification_is_the_rule_between_certain_sides():
    torch.manual_seed(0)
    logits = torch.randn(200, 4, 3)  # so few tokens that guesses often stand
    drafts = torch.randint(0, 3, (200, 3))
    found = verify_greedy(logits, drafts)
    wanted = verify_drafts(most_probable(logits), point_masses(drafts, 3), drafts, torch.rand(200, 4))
    assert torch.equal(found.num_accepted, wanted.num_accepted)
    assert torch.equal(found.next_tokens, wanted.next_tokens)
    assert set(found.num_accepted.tolist()) == {0, 1, 2, 3}


def test_sampled_verification_is_the_rule_at_a_temperature():
    torch.manual_seed(0)
    logits, q = torch.randn(50, 3, 6), torch.randn(50, 2, 6).softmax(-1)
    drafts, uniform = torch.randint(0, 6, (50, 2)), torch.rand(50, 3, dtype=torch.float64)
    found = verify_sampled(logits, q, drafts, uniform, torch.tensor([1 / 0.5]))
    wanted = verify_drafts((logits / 0.5).softmax(-1), q, drafts, uniform)
    assert torch.equal(found.num_accepted, wanted.num_accepted)
    assert torch.equal(found.next_tokens, wanted.next_tokens)


def test_what_stands_is_text_and_no_row_leaves_its_memory():
    text = torch.tensor([[9, 1, 2, 3, 0, 0, 0], [9, 9, 9, 4, 5, 6, 0], [8, 1, 2, 3, 0, 0, 0]])
    positions = torch.tensor([0, 2, 0])
    verdict = Verdict(torch.tensor([3, 3, 0]), torch.tensor([7, 7, 7]))
    report = settle(verdict, 3, text, positions, last=5)
    assert report.tolist() == [[4, 1, 2, 3, 7], [4, 4, 5, 6, 7], [1, 7, 2, 3, 0]]
    assert positions.tolist() == [4, 5, 1], "the second has reached the end"
    assert text[0, :5].tolist() == [9, 1, 2, 3, 7] and text[2, :2].tolist() == [8, 7]
