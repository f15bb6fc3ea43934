"""The contract of what surrounds paged attention: rotation and store, norm, SwiGLU, choice of each row.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too.
"""

import itertools
import re

import pytest
import torch
import triton
import triton.language as tl
from scipy.stats import chi2

from llmcourse.kernels.choose_rows import BROKEN, choose_rows, choose_rows_reference
from llmcourse.kernels.choose_rows_triton import CHUNK, request_stream
from llmcourse.kernels.decode_attention import HeadNorm
from llmcourse.kernels.rms_norm import rms_norm, rms_norm_reference
from llmcourse.kernels.rotary import rotate_and_store, rotate_and_store_reference
from llmcourse.kernels.swiglu import swiglu, swiglu_reference
from llmcourse.kernels.tokens_triton import gumbel
from tests.kernels.contract import DEVICE, DTYPES, PDL, check, random, seeded  # noqa: F401

SHAPES = {"one head": (1, 1, 2), "GQA, no power of two": (6, 3, 24), "Qwen3-0.6B": (16, 8, 128)}
BLOCKS, SIZE, ANGLES = 5, 4, 50


def projection(shape: str, dtype: torch.dtype, norm: bool) -> dict:
    num_heads, num_kv_heads, size = SHAPES[shape]
    gains = (random(size, dtype=dtype), random(size, dtype=dtype))
    return {
        "qkv": random(6, (num_heads + 2 * num_kv_heads) * size, dtype=dtype),
        "positions": torch.tensor([0, 49, 3, 3, 17, 8], device=DEVICE),
        "slot_mapping": torch.tensor([19, 0, -1, 7, 8, 5], device=DEVICE),
        "cos": random(ANGLES, size // 2, dtype=dtype),
        "sin": random(ANGLES, size // 2, dtype=dtype),
        "norm": HeadNorm(*gains, 1e-6) if norm else None,
    }


def wide(given: dict) -> dict:
    norm = given["norm"]
    doubled = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in given.items()}
    return doubled | {"norm": norm and HeadNorm(norm.q.double(), norm.k.double(), norm.eps)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "norm"), list(itertools.product(DTYPES, (False, True))))
def test_rotate_and_store(shape, dtype, norm):
    given = projection(shape, dtype, norm)
    _, num_kv_heads, size = SHAPES[shape]

    def pools(kind: torch.dtype) -> list[torch.Tensor]:
        pool = (BLOCKS, num_kv_heads, SIZE, size)
        return [torch.full(pool, 7.0, dtype=kind, device=DEVICE) for _ in range(2)]

    found, theirs, truth = pools(dtype), pools(dtype), pools(torch.float64)
    q = rotate_and_store(keys=found[0], values=found[1], **given, backend="triton")
    q_theirs = rotate_and_store_reference(keys=theirs[0], values=theirs[1], **given)
    q_truth = rotate_and_store_reference(keys=truth[0], values=truth[1], **wide(given))
    check(q, q_truth, q_theirs)
    check(found[0], truth[0], theirs[0])
    assert torch.equal(found[1], theirs[1]), "values are copied"
    assert torch.equal(found[0] == 7, theirs[0] == 7), "five tokens are stored, one nowhere"


@pytest.mark.parametrize("pdl", PDL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 50), (2, 4096)])
def test_swiglu(dtype, shape, pdl):
    x = 4 * random(*shape, dtype=dtype)
    check(swiglu(x, backend="triton", pdl=pdl), swiglu_reference(x.double()), swiglu_reference(x))


@pytest.mark.parametrize("pdl", PDL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 50), (2, 4096)])
def test_rms_norm(dtype, shape, pdl):
    x, weight = 4 * random(*shape, dtype=dtype), random(shape[1], dtype=dtype)
    truth = rms_norm_reference(x.double(), weight.double(), 1e-6)
    check(rms_norm(x, weight, 1e-6, backend="triton", pdl=pdl), truth, rms_norm_reference(x, weight, 1e-6))


def test_what_does_not_fit_is_refused():
    given = projection("GQA, no power of two", torch.float32, False)
    pool = torch.zeros(BLOCKS, 3, SIZE, 24, device=DEVICE)
    for change, message in (
        ({"qkv": given["qkv"][:, :-24]}, "qkv must hold (H + 2 · 3) · 24 columns"),
        ({"slot_mapping": given["slot_mapping"][:2]}, "slot_mapping must have shape (6,), got (2,)"),
        ({"positions": given["positions"].int()}, "positions must be in torch.int64"),
        ({"cos": given["cos"][:, :2]}, "cos must have shape (50, 12)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            rotate_and_store(keys=pool, values=pool.clone(), **(given | change))
    for keys, values, message in (
        (pool[:, :0], pool[:, :0], "keys must have heads, slots and features, got shape"),
        (pool, pool, "keys must be memory of its own, got that of values; take a part of the pool for each"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            rotate_and_store(keys=keys, values=values, **given)
    if DEVICE.type == "cpu":
        for change, message in (
            (
                {"slot_mapping": given["slot_mapping"] + 1},
                "slot_mapping must be below 20, got 20; take slots from the pool",
            ),
            ({"positions": given["positions"] + 1}, "positions must be in [0, 49]"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                rotate_and_store(keys=pool, values=pool.clone(), **(given | change))
    with pytest.raises(ValueError, match="gate_up must have an even number of columns, got 3"):
        swiglu(torch.zeros(2, 3, device=DEVICE))


def settings(temperatures: list[float], seeds: list[int], positions: list[int]) -> dict:
    return {
        "temperatures": torch.tensor(temperatures, device=DEVICE),
        "seeds": torch.tensor(seeds, device=DEVICE),
        "positions": torch.tensor(positions, device=DEVICE),
    }


def test_rows_of_temperature_0_take_the_likeliest_and_the_rest_draw_as_if_alone():
    logits = random(4, 20000, dtype=torch.float32)
    given = settings([0.0, 1.0, 0.7, 0.0], [1, 2, 3, 4], [5, 6, 7, 8])
    tokens = choose_rows(logits, **given, backend="triton")
    assert tokens[[0, 3]].tolist() == logits[[0, 3]].argmax(1).tolist()
    for row in range(4):
        alone = {name: value[row : row + 1] for name, value in given.items()}
        assert choose_rows(logits[row : row + 1], **alone, backend="triton") == tokens[row]
    greedy = {**given, "temperatures": torch.zeros(4, device=DEVICE)}
    assert choose_rows_reference(logits, **greedy).tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("where", "value"),
    [
        (slice(None), torch.nan),
        (18500, torch.nan),
        (19999, torch.nan),
        (3, torch.inf),
        (slice(None), -torch.inf),
    ],
)
def test_a_broken_row_has_no_token_and_the_others_have_theirs(backend, temperature, where, value):
    logits = random(3, 20000, dtype=torch.float32)
    given = settings([temperature] * 3, [1] * 3, [2] * 3)
    whole = choose_rows(logits, **given, backend=backend).tolist()
    logits[1, where] = value
    assert choose_rows(logits, **given, backend=backend).tolist() == [whole[0], BROKEN, whole[2]]


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_tokens_that_are_ruled_out_break_nothing(backend):
    logits = torch.full((2, 20000), -torch.inf, device=DEVICE)
    logits[:, 18500] = -70.0
    assert (
        choose_rows(logits, **settings([0.0, 1.0], [1, 1], [2, 2]), backend=backend).tolist() == [18500] * 2
    )


@triton.jit
def _noise_kernel(out_ptr, seeds_ptr, positions_ptr, tokens_ptr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    which = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    column = tl.arange(0, TOKENS)[None, :]
    stream = request_stream(tl.load(seeds_ptr + which), tl.load(positions_ptr + which))
    noise = gumbel(stream, tl.load(tokens_ptr + column))
    tl.store(out_ptr + which * TOKENS + column, noise)


def noise_of(seeds: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    out = torch.full((len(seeds), len(tokens)), torch.nan, device=DEVICE)
    block = 512 if DEVICE.type == "cuda" else len(seeds)
    grid = (len(seeds) // block,)
    _noise_kernel[grid](out, seeds, positions, tokens.int(), TOKENS=len(tokens), BLOCK=block)
    return out


def test_the_noise_draws_from_the_softmax_at_every_position():
    """Chi-square of 65,536 draws; an honest sampler fails once in a million, one of 10 % odds bias must."""
    p = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.08, 0.04, 0.02, 0.01], device=DEVICE)
    p = torch.cat((0.6 * p, 0.4 * p))
    tokens = torch.cat((torch.arange(8), torch.arange(CHUNK, CHUNK + 8))).to(DEVICE)
    positions = torch.arange(65536, device=DEVICE)
    noise = noise_of(positions // 4096, positions, tokens)

    def statistic(bias: torch.Tensor) -> float:
        counts = torch.bincount((p.log() + bias + noise).argmax(1), minlength=16).double()
        expected = p.double() * len(positions)
        return ((counts - expected).square() / expected).sum().item()

    assert statistic(torch.zeros(16, device=DEVICE)) < chi2.isf(1e-6, 15) < statistic(0.1 * (tokens % 2 == 0))


def test_the_noise_of_neighbouring_positions_and_seeds_has_nothing_in_common():
    """Correlation of 65,536 pairs; an honest sampler fails once in a million, 3 % in common must."""
    seeds, positions = torch.arange(4096, device=DEVICE), torch.arange(4096, device=DEVICE) % 7
    tokens = torch.arange(16, device=DEVICE)
    noise = noise_of(seeds, positions, tokens).double()

    def correlation(other: torch.Tensor) -> float:
        return torch.corrcoef(torch.stack((noise.flatten(), other.flatten()))).abs()[0, 1].item()

    for change in ((1, 0, 0), (0, 1, 0), (0, 0, CHUNK)):
        other = noise_of(seeds + change[0], positions + change[1], tokens + change[2]).double()
        assert correlation(other) < 0.0202 < correlation(other + 0.03 * noise), change
