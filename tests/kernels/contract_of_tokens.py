"""The contract of `tokens`: looked up and chosen as the references do, and drawn as the softmax says.

Run beside `contract.py`. The interpreter takes some 10 ms for a program however many numbers it holds, and
the sampler draws one token by a program for every chunk, too few to see a small bias. So its noise is a
function of its own, of which one program gives a million values: their distribution is tested here, and then
that every draw is the likeliest token under exactly that noise.
"""

import math

import pytest
import torch
import triton
import triton.language as tl
from scipy.stats import chi2, norm

from llmcourse.kernels.tokens import CHUNK, Choice, choose, choose_reference, embed, embed_reference
from llmcourse.kernels.tokens_triton import gumbel, random_stream
from tests.kernels.contract import DEVICE, PDL, random, seeded  # noqa: F401


@pytest.mark.parametrize("pdl", PDL)
def test_tokens_are_chosen_appended_and_looked_up(pdl):
    text = torch.randint(0, 9000, (3, 20), device=DEVICE)
    positions = torch.tensor([3, 0, 18], device=DEVICE)
    logits, table = random(3, 9000, dtype=torch.float32), random(9000, 40, dtype=torch.float32)
    choice, text_2, positions_2 = Choice(3, 9000, DEVICE), text.clone(), positions.clone()
    choose(logits, text, positions, choice, backend="triton")
    choose_reference(logits, text_2, positions_2, choice)
    assert torch.equal(text, text_2) and torch.equal(positions, positions_2) and not choice.arrivals.any()
    rows = embed(text, positions, table, backend="triton", pdl=pdl)
    assert torch.equal(rows, embed_reference(text, positions, table))


ALL, NAN, INF = slice(None), float("nan"), float("inf")
# What a broken model or an overflow leaves among 9,000 logits of three chunks, by where it stands
BROKEN = {
    "all NaN": [(ALL, NAN)],
    "NaN in the last chunk": [(8500, NAN), (3, 9.0)],
    "NaN twice": [(8000, NAN), (5000, NAN), (3, 9.0)],
    "NaN for the last token alone": [(ALL, -INF), (8999, NAN)],
    "nothing allowed": [(ALL, -INF)],
    "infinity twice": [(4100, INF), (4090, INF)],
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_choice_is_a_token_whatever_the_logits(broken, temperature):
    """NaN counts as infinite: a token outside of the vocabulary would be looked up outside of the table."""
    logits = random(1, 9000, dtype=torch.float32)
    for where, value in BROKEN[broken]:
        logits[:, where] = value
    text, positions = (torch.zeros(shape, dtype=torch.long, device=DEVICE) for shape in ((1, 3), 1))
    choose(logits, text, positions, Choice(1, 9000, DEVICE, temperature=temperature), backend="triton")
    assert text[0, 1] == logits.argmax() and positions.tolist() == [1]


@triton.jit
def _noise_kernel(
    noise_ptr, rows_ptr, positions_ptr, tokens_ptr, seed, TOKENS: tl.constexpr, BLOCK: tl.constexpr
):
    which = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    columns = tl.arange(0, TOKENS)[None, :]
    row, position = tl.load(rows_ptr + which), tl.load(positions_ptr + which)
    noise = gumbel(random_stream(seed, row, position), tl.load(tokens_ptr + columns))
    tl.store(noise_ptr + which * TOKENS + columns, noise)


def noise_of(seed: int, rows: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What the sampler adds to the logits of these tokens, `(len(rows), len(tokens))`, both powers of 2."""
    noise = torch.full((len(rows), len(tokens)), torch.nan, device=DEVICE)
    block = max(1, 8192 // len(tokens)) if DEVICE.type == "cuda" else len(rows)  # a GPU has few registers
    _noise_kernel[(triton.cdiv(len(rows), block),)](
        noise, rows, positions, tokens.int(), seed, TOKENS=len(tokens), BLOCK=min(block, len(rows))
    )
    return noise


def counted(start: int, end: int) -> torch.Tensor:
    return torch.arange(start, end, device=DEVICE)


def test_the_noise_draws_from_the_distribution_that_was_asked_for():
    """Chi-square of 65,536 draws; an honest sampler fails once in a million, one of 10 % odds bias must.

    The tokens stand at the same places of two chunks, so that noise repeated in every chunk shows.
    """
    p = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.08, 0.04, 0.02, 0.01], device=DEVICE)
    p = torch.cat((0.6 * p, 0.4 * p))
    tokens = torch.cat((counted(0, 8), counted(CHUNK, CHUNK + 8)))
    rows = counted(0, 65536)
    noise = noise_of(3, rows, torch.full_like(rows, 11), tokens)

    def statistic(bias: torch.Tensor) -> float:
        drawn = (p.log() + bias + noise).argmax(1)
        counts, expected = torch.bincount(drawn, minlength=16).double(), p.double() * len(rows)
        return ((counts - expected).square() / expected).sum().item()

    assert statistic(torch.zeros(16, device=DEVICE)) < chi2.isf(1e-6, 15) < statistic(0.1 * (tokens % 2 == 0))


def test_unlikely_tokens_are_drawn_as_often_as_they_should_be():
    """They are chosen by the smallest exponentials, E = exp(−noise): below p with probability 1 − exp(−p).

    Of 4 million numbers: an honest count is off by five of its own deviations once in a million. Below 10⁻⁵
    they must not all lie on a grid of 2⁻²⁴, the steps of fp32 below 1, which would draw a token of
    probability 10⁻⁸ not at all, and one of 10⁻⁷ half as often.
    """
    rows, tokens = counted(0, 512), counted(0, 2048)
    noise = [noise_of(7, rows, torch.full_like(rows, position), tokens) for position in range(4)]
    exponentials = (-torch.stack(noise).double()).exp()
    for p in (1e-3, 1e-5):
        wanted = exponentials.numel() * -math.expm1(-p)
        assert abs((exponentials < p).sum().item() - wanted) < 5 * wanted**0.5
    steps = exponentials[exponentials < 1e-5] * 2**24
    assert ((steps - steps.round()).abs() > 0.05).double().mean() > 0.5


def test_the_noise_of_another_seed_row_position_or_chunk_is_another():
    """Correlation of 65,536 pairs; an honest sampler fails once in a million, 3 % in common must."""
    rows, tokens = counted(0, 4096), counted(0, 16)
    given = {"seed": 1, "rows": rows, "positions": torch.zeros_like(rows), "tokens": tokens}
    noise = noise_of(**given).double()
    limit = norm.isf(0.25e-6 / 2) / noise.numel() ** 0.5

    def correlation(other: torch.Tensor) -> float:
        return torch.corrcoef(torch.stack((noise.flatten(), other.flatten()))).abs()[0, 1].item()

    changes = {"seed": 2, "rows": rows + 1, "positions": torch.ones_like(rows), "tokens": tokens + CHUNK}
    for name, value in changes.items():
        other = noise_of(**{**given, name: value}).double()
        assert correlation(other) < limit < correlation(other + 0.03 * noise), name


def test_a_draw_is_the_likeliest_token_under_its_noise():
    """Of three chunks, at any position; each chunk's best is compared too: a bias shows in every one."""
    logits, temperature, seed = random(4, 9000, dtype=torch.float32), 0.7, 5
    text = torch.zeros(4, 9, dtype=torch.long, device=DEVICE)
    positions = torch.tensor([0, 0, 3, 7], device=DEVICE)
    noise = noise_of(seed, counted(0, 4), positions.clone(), counted(0, 16384))[:, :9000]
    noisy = logits / temperature + noise
    choice = Choice(4, 9000, DEVICE, temperature=temperature, seed=seed)
    choose(logits, text, positions, choice, backend="triton")
    assert positions.tolist() == [1, 1, 4, 8]
    assert torch.equal(text.gather(1, positions[:, None])[:, 0], noisy.argmax(1))

    def peaks(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([chunk.amax(1) for chunk in values.split(CHUNK, dim=1)], dim=1)

    torch.testing.assert_close(choice.peaks, peaks(noisy))
    biased = noisy + 0.1 * (counted(0, 9000) % 2 == 0)
    assert not torch.allclose(choice.peaks, peaks(biased))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_draws_repeat_with_the_seed_and_change_with_seed_position_and_row(backend):
    """Over two chunks of equal logits, where two independent draws agree once in 8,192 times."""
    logits = torch.zeros(2, 2 * CHUNK, device=DEVICE)

    def drawn(seed: int, position: int) -> list[int]:
        text = torch.zeros(2, 9, dtype=torch.long, device=DEVICE)
        positions = torch.full((2,), position, device=DEVICE)
        choice = Choice(2, 2 * CHUNK, DEVICE, temperature=1.0, seed=seed)
        choose(logits, text, positions, choice, backend=backend)
        return text[:, position + 1].tolist()

    first, another_seed, another_position = drawn(1, 0), drawn(2, 0), drawn(1, 7)
    assert drawn(1, 0) == first
    assert len({*first, *another_seed, *another_position}) == 6
