"""The acceptance rule on cases worked out by hand, at its edges, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from llmcourse.speculative.arguments import check_shapes
from llmcourse.speculative.verify import residual, verify_drafts

NEARLY_1 = 1 - 2**-53


def step(p, q, drafts, uniform, num_drafts=None, **settings) -> list[list[int]]:
    drafts = torch.tensor(drafts)
    counts = None if num_drafts is None else torch.tensor(num_drafts)
    p, q, uniform = (torch.tensor(values, dtype=torch.float64) for values in (p, q, uniform))
    return verify_drafts(p, q, drafts, uniform, counts, **settings).emitted(drafts)


P = [[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]]
Q = [[[0.2, 0.6, 0.2]]]


@pytest.mark.parametrize(
    ("draft", "uniform", "emitted"),
    [
        (0, [NEARLY_1, 0.0], [0, 0]),  # p > q: stands whatever the number; the bonus is p's at 0.0
        (0, [0.5, 0.25], [0, 1]),  # 0.1 ≤ 0.25 < 0.3
        (0, [0.5, 0.99], [0, 2]),
        (2, [NEARLY_1, 0.0], [2, 0]),  # p = q
        (1, [0.49, 0.5], [1, 2]),  # p / q = 1/2
        (1, [0.51, 0.99], [0]),  # falls: p − q = (0.3, −0.3, 0), all to token 0
    ],
)
def test_one_draft(draft, uniform, emitted):
    assert step(P, Q, [[draft]], [uniform]) == [emitted]


def test_the_residual():
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]])
    q = torch.tensor([[0.2, 0.6, 0.0, 0.2], [0.25, 0.25, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]])
    expected = torch.tensor([[0.6, 0.0, 0.4, 0.0], [0.25, 0.25, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(residual(p, q), expected)


def test_a_draft_that_falls_though_p_is_below_q_everywhere_is_replaced_from_p():
    """Sums off 1 by a rounding error: nothing is left over, and no token of probability 0 may come out."""
    p = [[[0.0, 0.5 - 1e-6, 0.5 - 1e-6], [1.0, 0.0, 0.0]]]
    q = [[[0.0, 0.5, 0.5]]]
    assert step(p, q, [[1]], [[NEARLY_1, 0.1]]) == [[1]]
    assert step(p, q, [[1]], [[NEARLY_1, 0.9]]) == [[2]]


def test_a_token_that_the_target_rules_out_never_stands():
    assert step([[[0.0, 1.0], [0.5, 0.5]]], [[[1.0, 0.0]]], [[0]], [[0.0, 0.0]]) == [[1]]


def test_what_comes_after_a_fallen_draft_is_dropped_though_it_would_stand():
    p = [[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]
    q = [[[1.0, 0.0], [1.0, 0.0]]]
    assert step(p, q, [[0, 0]], [[0.0, 0.0, 0.0]]) == [[1]]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_the_limit(seed):
    """With all mass of p on one token, whatever q and the numbers: drafts stand while they are that token."""
    generator = torch.Generator().manual_seed(seed)
    batch, gamma, vocab_size = 500, 4, 3
    best = torch.randint(vocab_size, (batch, gamma + 1), generator=generator)
    p = torch.nn.functional.one_hot(best, vocab_size).float()
    q = torch.rand(batch, gamma, vocab_size, generator=generator).softmax(-1)
    drafts = torch.randint(vocab_size, (batch, gamma), generator=generator)
    uniform = torch.rand(batch, gamma + 1, generator=generator)
    verdict = verify_drafts(p, q, drafts, uniform)
    for emitted, wanted in zip(verdict.emitted(drafts), best.tolist(), strict=True):
        assert emitted == wanted[: len(emitted)]
    alike = (drafts == best[:, :-1]).int().cumprod(1).sum(1)
    assert torch.equal(verdict.num_accepted, alike)


def test_rows_do_not_depend_on_what_they_are_batched_with():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(6, 4, 5, generator=generator).softmax(-1)
    q = torch.rand(6, 3, 5, generator=generator).softmax(-1)
    drafts = torch.randint(5, (6, 3), generator=generator)
    uniform = torch.rand(6, 4, generator=generator)
    counts = torch.tensor([0, 1, 2, 3, 3, 3])
    together = verify_drafts(p, q, drafts, uniform, counts).emitted(drafts)
    for row, count in enumerate(counts.tolist()):
        one, columns = slice(row, row + 1), [*range(count), 3]  # its own drafts, and the last number
        own = drafts[one, :count]
        alone = verify_drafts(p[one, : count + 1], q[one, :count], own, uniform[one][:, columns])
        assert alone.emitted(own) == [together[row]]


def test_arguments_are_left_as_they_were():
    tensors = torch.tensor(P), torch.tensor(Q), torch.tensor([[1]]), torch.tensor([[0.9, 0.9]])
    before = [tensor.clone() for tensor in tensors]
    verify_drafts(*tensors)
    assert all(map(torch.equal, tensors, before))


GOOD = {"p": P, "q": Q, "drafts": [[0]], "uniform": [[0.5, 0.5]]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"q": [[[0.2, 0.5, 0.2]]]},
            r"q's sum at \[0, 0\] must be 1 within 0.001, got 0.9; take the softmax",
        ),
        ({"p": [[P[0][0], [0.5, 0.5, 0.5]]]}, r"p's sum at \[0, 1\] must be 1 within 0.001, got 1.5"),
        (
            {"p": [[[1.5, -0.5, 0.0], P[0][1]]]},
            r"p's probabilities at \[0, 0\] must be at least 0, got -0.5; pass",
        ),
        ({"p": [[[float("nan"), 0.5, 0.5], P[0][1]]]}, "p's probabilities at .* got nan"),
        (
            {"drafts": [[3]]},
            r"drafts at \[0, 0\] must be in \[0, 2\], got 3; use a drafter with the target's own",
        ),
        ({"drafts": [[-1]]}, r"drafts at \[0, 0\] must be in \[0, 2\], got -1"),
        ({"q": [[[0.0, 0.8, 0.2]]]}, r"q of a drafted token at \[0, 0\] must be above 0, got 0; pass the"),
        (
            {"uniform": [[1.0, 0.5]]},
            r"uniform at \[0, 0\] must be in \[0, 1\), got 1; draw it with torch.rand",
        ),
        ({"uniform": [[0.5, -0.1]]}, r"uniform at \[0, 1\] must be in \[0, 1\), got -0.1"),
        ({"num_drafts": [2]}, r"num_drafts at \[0\] must be in \[0, 1\], got 2; count its drafts"),
        ({"num_drafts": [-1]}, r"num_drafts at \[0\] must be in \[0, 1\], got -1"),
    ],
)
def test_values_out_of_range_are_refused(wrong, message):
    assert step(**GOOD)
    with pytest.raises(ValueError, match=message):
        step(**GOOD | wrong)


def test_what_lies_past_a_rows_drafts_is_not_looked_at():
    nan = float("nan")
    p, q = [[P[0][1], [nan] * 3]], [[[nan] * 3]]
    assert step(p, q, [[99]], [[0.5, 0.25]], [0]) == [[1]]


def test_trusted_values_are_not_looked_at():
    assert step(**GOOD | {"q": [[[0.2, 0.5, 0.2]]]}, trusted=True) == [[0, 2]]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            ((2, 4), (2, 3, 5), (2, 3), (2, 4), (2,)),
            r"p must be of shape \(B, G \+ 1, V\), none of them 0, got",
        ),
        (((0, 4, 5), (0, 3, 5), (0, 3), (0, 4), (0,)), r"p must be of shape .* got \(0, 4, 5\)"),
        (
            ((2, 4, 5), (2, 3, 6), (2, 3), (2, 4), (2,)),
            "q must be over the 5 tokens of p, got 6; draft and target",
        ),
        (
            ((2, 4, 5), (2, 4, 5), (2, 3), (2, 4), (2,)),
            r"q must be of shape \(2, 3, 5\) as p is .* \(2, 4, 5\)",
        ),
        (((2, 4, 5), (2, 3, 5), (2, 4), (2, 4), (2,)), r"drafts must be of shape \(2, 3\)"),
        (((2, 4, 5), (2, 3, 5), (2, 3), (2, 3), (2,)), r"uniform must be of shape \(2, 4\)"),
        (((2, 4, 5), (2, 3, 5), (2, 3), (2, 4), (3,)), r"num_drafts must be of shape \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    check_shapes(*map(torch.zeros, ((2, 4, 5), (2, 3, 5), (2, 3), (2, 4), (2,))))
    with pytest.raises(ValueError, match=message):
        check_shapes(*map(torch.zeros, shapes))
