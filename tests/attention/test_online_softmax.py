"""Softmax in one walk is softmax, after every step of the walk."""

import math
from dataclasses import fields

import pytest
import torch

from llmcourse.attention import RunningSoftmax, online_softmax

INF = math.inf


def drawn(length: int, size: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 5 * torch.randn(length, generator=generator, dtype=torch.float64)
    return scores, torch.randn(length, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("length", "block"), [(1, 1), (9, 1), (9, 4), (8, 4), (3, 100)])
def test_every_state_is_the_softmax_of_what_was_seen(length, block):
    scores, values = drawn(length)
    states = list(online_softmax(scores, values, block))
    assert len(states) == 1 + math.ceil(length / block)
    for step, state in enumerate(states[1:], start=1):
        seen = scores[: step * block]
        assert state.peak == seen.max()
        torch.testing.assert_close(state.total, torch.exp(seen - seen.max()).sum(), atol=1e-12, rtol=0)
        torch.testing.assert_close(state.log_sum_exp(), seen.logsumexp(0), atol=1e-12, rtol=0)
        expected = seen.softmax(0) @ values[: step * block]
        torch.testing.assert_close(state.result(), expected, atol=1e-12, rtol=0)


def test_a_walk_by_hand():
    """A larger score, log 4, fades what was summed before it to a quarter."""
    scores, values = torch.tensor([0.0, math.log(4), 0.0]), torch.tensor([[1.0], [2.0], [3.0]])
    states = list(online_softmax(scores, values))
    assert [s.peak.item() for s in states] == pytest.approx([-INF, 0, math.log(4), math.log(4)])
    assert [s.total.item() for s in states] == pytest.approx([0, 1, 1.25, 1.5])
    assert [s.mixed.item() for s in states] == pytest.approx([0, 1, 2.25, 3])
    assert states[-1].result().item() == pytest.approx(2)


def test_before_the_first_score_there_is_nothing():
    (state,) = online_softmax(*drawn(0))
    assert state.result().tolist() == [0, 0, 0]
    assert state.log_sum_exp() == -INF


@pytest.mark.parametrize("hidden", [[0], [0, 1, 2], [4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("block", [1, 2, 5])
def test_a_score_of_minus_infinity_weighs_nothing(hidden, block):
    scores, values = drawn(5)
    scores[hidden] = -INF
    kept = [i for i in range(5) if i not in hidden]
    *_, state = online_softmax(scores, values, block)
    expected = scores[kept].softmax(0) @ values[kept] if kept else torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(state.result(), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(state.log_sum_exp(), scores.logsumexp(0), atol=1e-12, rtol=0)


def test_scores_whose_exponentials_overflow_are_no_trouble():
    scores, values = torch.tensor([1e4, -1e4, 1e4]), torch.tensor([[1.0], [2.0], [3.0]])
    *_, state = online_softmax(scores, values)
    assert state.result().item() == 2 and state.log_sum_exp() == pytest.approx(1e4 + math.log(2))


def test_nan_is_not_hidden():
    scores, values = drawn(4)
    scores[1] = math.nan
    *_, state = online_softmax(scores, values)
    assert state.result().isnan().all()


def test_many_rows_are_as_many_walks():
    scores, values = torch.randn(2, 3, 4, 7), torch.randn(2, 3, 7, 5)
    nothing = RunningSoftmax.before((2, 3, 4), 5, scores)
    state = nothing.join(scores[..., :4], values[..., :4, :]).join(scores[..., 4:], values[..., 4:, :])
    *_, alone = online_softmax(scores[1, 2, 3], values[1, 2])
    for field in fields(RunningSoftmax):
        torch.testing.assert_close(getattr(state, field.name)[1, 2, 3], getattr(alone, field.name))


def test_a_block_without_scores_is_refused():
    with pytest.raises(ValueError, match="block must be at least 1, got 0; 1 takes one score"):
        list(online_softmax(*drawn(3), block=0))
