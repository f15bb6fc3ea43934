"""What is drawn is judged by the rule, at a temperature."""

import torch

from llmcourse.speculative.engine.settling import verify_sampled
from llmcourse.speculative.verify import verify_drafts


def test_sampled_verification_is_the_rule_at_a_temperature():
    torch.manual_seed(0)
    logits, q = torch.randn(50, 3, 6), torch.randn(50, 2, 6).softmax(-1)
    drafts, uniform = torch.randint(0, 6, (50, 2)), torch.rand(50, 3, dtype=torch.float64)
    found = verify_sampled(logits, q, drafts, uniform, torch.tensor([1 / 0.5]))
    wanted = verify_drafts((logits / 0.5).softmax(-1), q, drafts, uniform)
    assert torch.equal(found.num_accepted, wanted.num_accepted)
    assert torch.equal(found.next_tokens, wanted.next_tokens)
