"""Heads by least squares: the minimum is one, and a layer that is the last one already is left alone."""

import pytest
import torch

from llmcourse.early_exit import ExitHeads, fit_heads
from tests.speculative.tiny import tiny_decoder

BATCHES = torch.randint(40, (6, 4, 16), generator=torch.Generator().manual_seed(2))


def misses(heads: ExitHeads) -> list[float]:
    """Mean squared distance of every head's output from the last layer's."""
    *early, last = (x for _, x in heads.states(BATCHES.flatten(0, 1)))
    wanted = heads.backbone.model.norm(last)
    return [(heads.head(n)(x) - wanted).square().mean().item() for n, x in enumerate(early, start=1)]


def test_nothing_near_the_fit_is_better():
    heads = ExitHeads(tiny_decoder(num_layers=3).double()).requires_grad_(False)
    before = misses(heads)
    assert fit_heads(heads, BATCHES, ridge=1e-9) == BATCHES.numel()
    fitted = misses(heads)
    assert all(b < 0.9 * a for a, b in zip(before, fitted, strict=True))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        weight = heads.head(1).residual.weight
        step = 0.01 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight += step
        assert misses(heads)[0] > fitted[0]
        weight -= step


def test_layers_that_add_nothing_need_no_map():
    model = tiny_decoder(num_layers=3)
    for layer in model.model.layers[1:]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    heads = ExitHeads(model).requires_grad_(False)
    fit_heads(heads, BATCHES)
    assert all(head.residual.weight.abs().max() < 1e-5 for head in heads.heads)


def test_no_text_and_no_ridge_are_refused():
    heads = ExitHeads(tiny_decoder(num_layers=2))
    with pytest.raises(ValueError, match="batches must be of at least one token, got none"):
        fit_heads(heads, [])
    with pytest.raises(ValueError, match="ridge must be above 0 and finite, got 0"):
        fit_heads(heads, BATCHES, 0)
    for ridge in (float("inf"), float("nan"), 10**400):
        with pytest.raises(ValueError, match="ridge must be above 0 and finite, got"):
            fit_heads(heads, BATCHES, ridge)
