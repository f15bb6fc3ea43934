"""The contract of drafts in and out of the model.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too.
"""

import pytest
import torch

from llmcourse.kernels.drafts import (
    accept_greedy,
    embed_window,
    embed_window_reference,
    settle,
    settle_greedy,
    settle_greedy_reference,
)
from llmcourse.kernels.tokens import Choice
from llmcourse.speculative.distributions import most_probable, point_masses
from llmcourse.speculative.verify import verify_drafts
from tests.kernels.contract import DEVICE, PDL, seeded  # noqa: F401

VOCAB = 5_000  # two chunks


def texts(batch: int, length: int, size: int = VOCAB) -> torch.Tensor:
    return torch.randint(0, size, (batch, length), device=DEVICE)


def at(*positions: int) -> torch.Tensor:
    return torch.tensor(positions, device=DEVICE)


@pytest.mark.parametrize("pdl", PDL)
@pytest.mark.parametrize("num_tokens", [1, 2, 4])
def test_embed_window(num_tokens, pdl):
    text, table = texts(3, 12), torch.randn(VOCAB, 1_100, device=DEVICE)
    positions = at(5, num_tokens - 1, 9)
    noted = []
    for backend in ("reference", "triton"):
        tokens = torch.full((3, num_tokens), -1, device=DEVICE)
        out = torch.full((3 * num_tokens, 1_100), torch.nan, device=DEVICE)
        embed_window(
            text,
            positions,
            table,
            tokens,
            out=out,
            backend=backend,
            pdl=backend == "triton" and pdl,
        )
        noted.append((tokens, out))
    for ours, theirs in zip(*noted, strict=True):
        assert torch.equal(ours, theirs)
    assert noted[0][0][1].tolist() == text[1, :num_tokens].tolist()


def test_greedy_acceptance_is_the_rule_between_certain_sides():
    logits = torch.randn(200, 4, 3)  # so few tokens that guesses often stand
    drafts = torch.randint(0, 3, (200, 3))
    num_accepted, next_tokens = accept_greedy(logits, drafts)
    wanted = verify_drafts(most_probable(logits), point_masses(drafts, 3), drafts, torch.rand(200, 4))
    assert torch.equal(num_accepted, wanted.num_accepted)
    assert torch.equal(next_tokens, wanted.next_tokens)
    assert set(num_accepted.tolist()) == {0, 1, 2, 3}


def test_what_stands_is_text_and_no_row_leaves_its_memory():
    text = torch.tensor([[9, 1, 2, 3, 0, 0, 0], [9, 9, 9, 4, 5, 6, 0], [8, 1, 2, 3, 0, 0, 0]])
    positions, report = torch.tensor([3, 5, 3]), torch.zeros(3, 5, dtype=torch.long)
    settle(torch.tensor([3, 3, 0]), torch.tensor([7, 7, 7]), text, positions, 5, report)
    assert report.tolist() == [[4, 1, 2, 3, 7], [4, 4, 5, 6, 7], [1, 7, 2, 3, 0]]
    assert positions.tolist() == [4, 5, 1], "the second has reached the end"
    assert text[0, :5].tolist() == [9, 1, 2, 3, 7] and text[2, :2].tolist() == [8, 7]


def settled(backend: str, logits: torch.Tensor, text: torch.Tensor, positions: torch.Tensor, choice: Choice):
    text, positions = text.clone(), positions.clone()
    report = torch.full((len(text), logits.shape[1] + 1), -1, device=DEVICE)
    settle_greedy(logits, text, positions, 20, report, choice, backend=backend)
    return text, positions, report


@pytest.mark.parametrize("gamma", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [3, VOCAB])
def test_settle_greedy(gamma, size):
    """Drafts that stand to different lengths, one row at the end of its memory; the memory serves again."""
    batch = 8
    choice = Choice(batch * (gamma + 1), size, DEVICE)
    found = set()
    for _ in range(3):
        text, logits = texts(batch, 30, size), torch.randn(batch, gamma + 1, size, device=DEVICE)
        positions = at(gamma, 7 + gamma, 9 + gamma, 20 + gamma, 12, 13, 14, 20)
        for row in range(batch):  # so many of the first drafts are right
            for t in range(min(row, gamma)):
                text[row, positions[row] - gamma + 1 + t] = logits[row, t].argmax()
        wanted = settled("reference", logits, text, positions, choice)
        ours = settled("triton", logits, text, positions, choice)
        for a, b in zip(ours, wanted, strict=True):
            assert torch.equal(a, b)
        assert not choice.arrivals.any()
        found |= set(ours[2][:, 0].tolist())
    assert found >= {1, gamma + 1}


def test_logits_that_are_nan_still_choose_a_token():
    logits = torch.full((1, 3, VOCAB), torch.nan, device=DEVICE)
    _, _, report = settled("triton", logits, texts(1, 30), at(12), Choice(3, VOCAB, DEVICE))
    assert 0 <= report[0, 1] < VOCAB


def test_what_does_not_fit_is_refused():
    logits, text, positions = torch.zeros(2, 3, 5, device=DEVICE), texts(2, 9, 5), at(4, 5)
    report, choice = torch.zeros(2, 4, dtype=torch.long, device=DEVICE), Choice(6, 5, DEVICE)
    for change, message in (
        ({"report": report[:, :3]}, r"report must have shape \(2, 4\)"),
        ({"positions": positions[:1]}, r"positions must have shape \(2,\)"),
        ({"logits": logits[0]}, "logits must have 3 dimensions"),
        ({"choice": Choice(2, 5, DEVICE), "backend": "triton"}, "choice must be for"),
    ):
        given = {
            "logits": logits,
            "text": text,
            "positions": positions,
            "last": 8,
            "report": report,
            "choice": choice,
        }
        with pytest.raises(ValueError, match=message):
            settle_greedy(**given | change)
    table = torch.zeros(5, 4, device=DEVICE)
    tokens = torch.zeros(2, 3, dtype=torch.long, device=DEVICE)
    with pytest.raises(ValueError, match=r"positions must have shape \(2,\)"):
        embed_window(text, positions[:1], table, tokens)
    assert torch.equal(
        embed_window(text, positions, table, tokens),
        embed_window_reference(text, positions, table, tokens),
    )
    settle_greedy_reference(logits, text, positions, 8, report)
