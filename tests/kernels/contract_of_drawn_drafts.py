"""The contract of the verdict over drafts that were drawn.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too. As in `contract_of_tokens` the
kernels' chance is a function of its own: its numbers are read out, and the verdict has to be exactly that
of the rule under them.
"""

import pytest
import torch
import triton
import triton.language as tl
from scipy.stats import chi2, norm

from llmcourse.kernels.drafts import settle
from llmcourse.kernels.drawn_drafts import VerdictMemory, accept_drawn, settle_drawn
from llmcourse.kernels.drawn_drafts_triton import ACCEPTANCE, NEXT_TOKEN
from llmcourse.kernels.tokens import CHUNK, Choice, choose
from llmcourse.kernels.tokens_triton import gumbel, random_stream
from llmcourse.speculative.verify import residual, verify_drafts
from tests.kernels.contract import DEVICE, seeded  # noqa: F401

VOCAB = 2 * CHUNK + 900  # three chunks: no power of two
LAST, SEED, TEMPERATURE = 40, 5, 0.7


@triton.jit
def _chance_kernel(
    uniform_ptr, noise_ptr, positions_ptr, seed, accept, correct, V: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + row)
    stream = random_stream(seed, row, position)
    tl.store(uniform_ptr + row, tl.rand(stream, accept))
    tokens = tl.arange(0, BLOCK)
    tl.store(noise_ptr + row * V + tokens, gumbel(stream, correct + tokens), mask=tokens < V)


def chance(
    positions: torch.Tensor, size: int, accept: int = ACCEPTANCE, correct: int = NEXT_TOKEN
) -> tuple[torch.Tensor, torch.Tensor]:
    """What decides on a draft behind these positions, (B,), and the noise of the token there, (B, V)."""
    uniform = torch.full((len(positions),), torch.nan, device=DEVICE)
    noise = torch.full((len(positions), size), torch.nan, device=DEVICE)
    block = triton.next_power_of_2(size)
    _chance_kernel[(len(positions),)](uniform, noise, positions, SEED, accept, correct, V=size, BLOCK=block)
    return uniform, noise


def drawn_rows(gamma: int, size: int, batch: int, apart: float):
    """Logits of both sides, the texts with drafts drawn from the drafter's, and where they stand."""
    logits = 2 * torch.randn(batch, gamma + 1, size, device=DEVICE)
    draft_logits = logits[:, :-1] + apart * torch.randn(batch, gamma, size, device=DEVICE)
    logits[1:, :, size // 3], draft_logits[1:, :, size // 2] = float("-inf"), float("-inf")
    text = torch.randint(0, size, (batch, LAST + gamma + 2), device=DEVICE)
    positions = torch.arange(batch, device=DEVICE) + gamma + 2
    positions[-1] = LAST + gamma  # a row that has ended
    # A row whose drafts are certain, as those that are looked up: whole chunks of nothing but −inf.
    sure = logits[0].argmax(-1)
    logits[0].scatter_(1, sure[:, None], 30.0)
    draft_logits[0].fill_(float("-inf")).scatter_(1, sure[:-1, None], 0.0)
    drafts = (draft_logits / TEMPERATURE).softmax(-1).flatten(0, 1).multinomial(1).view(batch, gamma)
    text.scatter_(1, positions[:, None] + torch.arange(1 - gamma, 1, device=DEVICE), drafts)
    return logits, draft_logits, text, positions


def verdict(backend, logits, draft_logits, text, positions, choice, memory):
    text, positions = text.clone(), positions.clone()
    room = torch.full((len(text) + 1, logits.shape[1] + 1), -1, device=DEVICE)
    given = (text, positions, LAST, room[:-1], choice, memory)
    settle_drawn(logits, draft_logits, *given, backend=backend)
    assert (room[-1] == -1).all(), "no row is written beyond its end"
    return text, positions, room[:-1]


def under_known_chance(logits, draft_logits, text, positions):
    """The rule with the numbers that the kernels draw."""
    text, positions = text.clone(), positions.clone()
    gamma, size = draft_logits.shape[1:]
    slots = positions[:, None] + torch.arange(1 - gamma, 1, device=DEVICE)
    p, q = ((side.double() / TEMPERATURE).softmax(-1) for side in (logits, draft_logits))
    found = [chance(positions - gamma + t, size) for t in range(gamma + 1)]
    uniform = torch.stack([numbers for numbers, _ in found[:-1]], 1)
    noise = torch.stack([numbers for _, numbers in found], 1)  # (B, T, V)
    given = (p, q, text.gather(1, slots), uniform)
    num_accepted, _ = accept_drawn(*given, noise[:, 0])
    rows = torch.arange(len(text), device=DEVICE)
    report = torch.empty(len(text), gamma + 2, dtype=torch.long, device=DEVICE)
    settle(*accept_drawn(*given, noise[rows, num_accepted]), text, positions, LAST, report)
    return text, positions, report


@pytest.mark.parametrize("gamma", [1, 2, 4, 7])
@pytest.mark.parametrize("size", [7, VOCAB])
def test_the_verdict_is_that_of_the_rule_under_the_kernels_chance(gamma, size):
    """Zeros on either side, a row at its end, drafts that stand to different lengths; memory serves again."""
    batch, found = 4, set()
    choice = Choice(batch, size, DEVICE, temperature=TEMPERATURE, seed=SEED)
    memory = VerdictMemory(batch, gamma + 1, size, DEVICE)
    for apart in (0.02, 2.0):
        given = drawn_rows(gamma, size, batch, apart)
        ours = verdict("triton", *given, choice, memory)
        for a, b in zip(ours, under_known_chance(*given), strict=True):
            assert torch.equal(a, b)
        assert not choice.arrivals.any() and not memory.arrivals.any()
        found |= set(ours[2][:, 0].tolist())
    assert {1, gamma + 1} <= found


def test_acceptance_is_the_rule():
    p, q = torch.rand(300, 4, 6).softmax(-1), torch.rand(300, 3, 6).softmax(-1)
    q[:100] = p[:100, :3]  # all of these stand
    drafts, uniform = torch.randint(0, 6, (300, 3)), torch.rand(300, 4)
    num_accepted, _ = accept_drawn(p, q, drafts, uniform[:, :-1], torch.zeros(300, 6))
    wanted = verify_drafts(p, q, drafts, uniform)
    assert torch.equal(num_accepted, wanted.num_accepted)
    assert set(num_accepted.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("stands", [False, True])
def test_the_token_after_drafts_is_drawn_from_what_is_left(stands):
    """Chi-square of 100,000 draws; an honest rule fails once in a million, one that draws from p must."""
    num, size = 100_000, 6
    p, q = torch.randn(2, size).softmax(-1), torch.randn(1, size).softmax(-1)
    drafts = torch.full((num, 1), int((q[0] - p[0]).argmax()))
    sides = (side[None].expand(num, -1, -1) for side in (p, q))
    uniform = torch.full((num, 1), 0.0 if stands else 0.999999)
    noise = torch.empty(num, size).exponential_().log().neg()
    num_accepted, tokens = accept_drawn(*sides, drafts, uniform, noise)
    assert set(num_accepted.tolist()) == {int(stands)}
    left = p[1:] if stands else residual(p[:1], q)

    def statistic(law: torch.Tensor) -> float:
        possible = law > 0
        counts, expected = torch.bincount(tokens, minlength=size)[possible], num * law[possible]
        return ((counts - expected).square() / expected).sum().item() if counts.sum() == num else float("inf")

    limit = chi2.isf(1e-6, size - 1)
    assert statistic(left[0].double()) < limit < statistic(q[0].double())
    if not stands:
        assert statistic(p[0].double()) > limit


def test_where_rounding_leaves_nothing_the_token_is_drawn_from_p():
    p = torch.tensor([[[0.2, 0.8]] * 2])
    found = accept_drawn(p, p[:, :1], torch.tensor([[1]]), torch.tensor([[1.0]]), torch.tensor([[0.0, 0.0]]))
    assert [one.tolist() for one in found] == [[0], [1]]


def test_the_chance_of_verdicts_is_not_that_of_drafts():
    """Correlation of 65,536 pairs; honest noise fails once in a million, 3 % in common must."""
    size = 2048
    positions = torch.arange(32, device=DEVICE) + 3
    uniform, noise = chance(positions, size)
    _, of_drafts = chance(positions, size, correct=0)
    limit = norm.isf(0.5e-6) / noise.numel() ** 0.5

    def correlation(one: torch.Tensor) -> float:
        return torch.corrcoef(torch.stack((one, of_drafts)).flatten(1).double()).abs()[0, 1].item()

    assert correlation(noise) < limit < correlation(noise + 0.03 * of_drafts)
    assert len({*uniform.tolist()}) == 32
    assert 2**29 < ACCEPTANCE < NEXT_TOKEN <= 2**30, "no vocabulary is so large, nor passes 2^31 from there"


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_verdicts_repeat_with_the_seed_and_change_with_it(backend):
    given = drawn_rows(3, 4096, 4, 3.0)
    memory = VerdictMemory(4, 4, 4096, DEVICE)

    def with_seed(seed: int) -> list:
        choice = Choice(4, 4096, DEVICE, temperature=TEMPERATURE, seed=seed)
        return verdict(backend, *given, choice, memory)[2].tolist()

    assert with_seed(1) == with_seed(1) != with_seed(2)


@pytest.mark.parametrize("broken", ["target", "drafter", "nothing allowed"])
def test_what_is_broken_leaves_a_token_of_the_vocabulary(broken):
    logits, draft_logits, text, positions = drawn_rows(2, VOCAB, 2, 0.5)
    side = draft_logits if broken == "drafter" else logits
    side.fill_(float("-inf") if broken == "nothing allowed" else torch.nan)
    choice = Choice(2, VOCAB, DEVICE, temperature=TEMPERATURE, seed=SEED)
    memory = VerdictMemory(2, 3, VOCAB, DEVICE)
    begin = positions - 2
    text, _, report = verdict("triton", logits, draft_logits, text, positions, choice, memory)
    assert 0 <= text.min() <= text.max() < VOCAB
    assert report[:, 0].tolist() == [1, 1], "no draft stands on NaN"
    assert not choice.arrivals.any() and not memory.arrivals.any()
    if broken == "drafter":  # then the token is the target's own
        _, noise = chance(begin, VOCAB)
        assert torch.equal(report[:, 1], ((logits[:, 0] / TEMPERATURE).log_softmax(-1) + noise).argmax(-1))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_logits_are_kept_where_drafts_are_drawn(backend):
    """In memory whose rows lie apart, as those of one draft among others."""
    logits = torch.randn(3, VOCAB, device=DEVICE)
    text, positions = (
        torch.zeros(3, 9, dtype=torch.long, device=DEVICE),
        torch.tensor([0, 3, 7], device=DEVICE),
    )
    kept = torch.full((3, 2, VOCAB), torch.nan, device=DEVICE)
    choice = Choice(3, VOCAB, DEVICE, temperature=TEMPERATURE)
    choose(logits, text, positions, choice, keep=kept[:, 1], backend=backend)
    assert torch.equal(kept[:, 1], logits) and kept[:, 0].isnan().all()


def test_what_does_not_fit_is_refused():
    logits = torch.zeros(2, 3, 5, device=DEVICE)
    text, report = (torch.zeros(2, width, dtype=torch.long, device=DEVICE) for width in (9, 4))
    positions = torch.tensor([4, 5], device=DEVICE)
    choice, memory = Choice(2, 5, DEVICE, temperature=1.0), VerdictMemory(2, 3, 5, DEVICE)
    for change, message in (
        ({"draft_logits": logits}, r"draft_logits must have shape \(2, 2, 5\)"),
        ({"report": report[:, :3]}, r"report must have shape \(2, 4\)"),
        ({"positions": positions[:1]}, r"positions must have shape \(2,\)"),
        ({"choice": Choice(2, 5, DEVICE)}, "choice must have a temperature above 0"),
        ({"choice": Choice(6, 5, DEVICE, temperature=1.0), "backend": "triton"}, "choice must be for"),
        ({"memory": VerdictMemory(2, 2, 5, DEVICE), "backend": "triton"}, "memory must be for"),
    ):
        given = {
            "logits": logits,
            "draft_logits": logits[:, :2].contiguous(),
            "text": text,
            "positions": positions,
            "last": 8,
            "report": report,
            "choice": choice,
            "memory": memory,
        }
        with pytest.raises(ValueError, match=message):
            settle_drawn(**given | change)
    positions = torch.tensor([1, 1], device=DEVICE)
    for keep in (logits[:, 0, :4], torch.zeros(5, 2).T, logits[:, 0].double()):
        with pytest.raises(ValueError, match="keep must"):
            choose(logits[:, 0], text, positions, Choice(2, 5, DEVICE), keep=keep)
