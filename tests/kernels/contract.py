"""The contract of every kernel: what its reference computes, within twice that one's own rounding error.

`test_kernels` runs this file and those beside it, `contract_of_*`, in a process of its own, where Triton
interprets its kernels on the CPU, or on a GPU, where there is one. Outputs are poisoned with NaN first, so
that what is not written shows. The interpreter is wrong in bf16, so that fp16 stands in for it there;
programmatic dependent launch is tested where the GPU knows it.
"""

import itertools
from collections.abc import Sequence

import pytest
import torch

from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.engine.step import KernelSettings
from llmcourse.kernels.capabilities import runs_gluon, runs_wgmma, shared_bytes
from llmcourse.kernels.decode_attention import (
    HeadNorm,
    Workspace,
    decode_attention,
    decode_attention_reference,
)
from llmcourse.kernels.launch import takes_part
from llmcourse.kernels.linear import linear, linear_reference
from llmcourse.kernels.tiles import STAGED_HEAD_DIMS, AttentionTile, Ring, Strip, Tile, attention_tile
from llmcourse.model import Decoder, DecoderConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE.type == "cuda" else ())
PDL = (False, True) if takes_part(True) else (False,)
PLACES = ("registers", "shared memory") if runs_gluon(80) else ("registers",)  # of attention's tiles
STRIPS = (Strip(8, 4, True), Strip(8, 4, False)) if runs_gluon(90) else ()
STREAMED = (
    (Strip(8, 4, True), Strip(32, 8, True), Ring(8, 512, 2), Ring(64, 128, 3, 8)) if runs_wgmma() else ()
)
# Several rows may be asked to start early even where nothing can.
LINEAR = [*itertools.product((1,), DTYPES, PDL), *itertools.product((3,), DTYPES, (False, True))]
SHAPES = ((8, 32), (50, 100), (33, 128), (1, 7))  # outputs, inputs: ragged ones too
PARTS = {
    "plain": (False, False, False, False),  # norm, gated, bias, residual
    "norm": (True, False, False, False),
    "gated": (True, True, False, False),
    "bias and residual": (False, False, True, True),
    "all that go together": (True, True, False, True),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, device=DEVICE)


def doubled(parts: dict) -> dict:
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in parts.items()}


def check(ours: torch.Tensor, truth: torch.Tensor, theirs: torch.Tensor) -> None:
    """Written throughout, and no further from the truth than twice what the reference is in this dtype.

    Beside that four roundings of a number near 1; in float32, where sums are not rounded to fewer bits in the
    end and the reference may happen to be right to the last, of the largest number.
    """
    assert torch.isfinite(ours).all()
    largest = truth.abs().max().clamp(min=1) if ours.dtype == torch.float32 else 1
    allowed = 2 * (theirs.double() - truth).abs().max() + 4 * torch.finfo(ours.dtype).eps * largest
    assert (ours.double() - truth).abs().max() <= allowed


def check_linear(
    parts: str, rows: int, outputs: int, inputs: int, dtype: torch.dtype, pdl: bool, tiles: Sequence
) -> None:
    has_norm, gated, has_bias, has_residual = PARTS[parts]
    x = random(rows, inputs, dtype=dtype)
    weight = random(outputs * (1 + gated), inputs, dtype=dtype) / inputs**0.5
    given = {
        "norm": random(inputs, dtype=dtype).abs() if has_norm else None,
        "bias": random(outputs, dtype=dtype) if has_bias else None,
        "residual": random(rows, outputs, dtype=dtype) if has_residual else None,
        "gated": gated,
    }
    truth = linear_reference(x.double(), weight.double(), **doubled(given))
    theirs = linear_reference(x, weight, **given)
    for tile in tiles:
        out = torch.full((rows, outputs), torch.nan, dtype=dtype, device=DEVICE)
        linear(x, weight, out=out, backend="triton", pdl=pdl, tile=tile, **given)
        check(out, truth, theirs)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("rows", "dtype", "pdl"), LINEAR)
def test_linear(parts, rows, dtype, pdl):
    for outputs, inputs in SHAPES:
        strips = STRIPS if rows == 1 else STREAMED
        strips = strips if dtype == torch.bfloat16 and inputs % 8 == 0 else ()
        tiles = (None, Tile(4, 32, 4) if rows == 1 else Tile(16, 16, 4, 2), *strips)
        check_linear(parts, rows, outputs, inputs, dtype, pdl, tiles)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_for_more_rows_than_a_program_takes(dtype):
    x, weight = random(100, 40, dtype=dtype), random(20, 40, dtype=dtype)
    out = torch.full((100, 20), torch.nan, dtype=dtype, device=DEVICE)
    linear(x, weight, out=out, backend="triton", pdl=True)
    check(out, linear_reference(x.double(), weight.double()), linear_reference(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_norm_of_large_numbers_and_gains_stays_finite(rows, dtype):
    """3,000 times a gain of 60 is beyond fp16, in which the normalised numbers are small."""
    x = 3000 * random(rows, 40, dtype=dtype)
    x[1:] /= 2**20  # and rows whose numbers are nearly nothing
    weight, norm = random(20, 40, dtype=dtype) / 40**0.5, 60 * random(40, dtype=dtype).abs()
    truth = linear_reference(x.double(), weight.double(), norm=norm.double())
    check(linear(x, weight, norm=norm, backend="triton"), truth, linear_reference(x, weight, norm=norm))


def test_a_tile_that_only_other_tensors_can_have_is_refused():
    """In fp32 neither strips nor staged attention run, whatever the GPU; nor by the interpreter at all."""
    x, weight = random(1, 32, dtype=torch.float32), random(8, 32, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"tile must be one that fits, got Strip\(rows=8"):
        linear(x, weight, backend="triton", tile=Strip(8, 4, False))
    qkv, cache = random(1, 4 * 64, dtype=torch.float32), random(1, 1, 8, 64, dtype=torch.float32)
    angles, where = random(8, 32, dtype=torch.float32), torch.zeros(1, dtype=torch.long, device=DEVICE)
    with pytest.raises(ValueError, match=r"tile must be one that fits, got AttentionTile\(block=128"):
        decode_attention(
            qkv, cache, cache.clone(), where, angles, angles, backend="triton", tile=AttentionTile(128, 4, 2)
        )
    two = random(2, 32, dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"tile must be one that fits, got Ring\(rows=64.*takes 2 to 16 rows"
    ):
        linear(two, weight, backend="triton", tile=Ring(64, 64, 2))
    reference = linear(x, weight, backend="reference", tile=Strip(8, 4, False))
    assert torch.equal(reference, linear_reference(x, weight))


def test_the_check_sees_a_kernel_that_forgets():
    x, weight = random(1, 32, dtype=torch.float32), random(8, 32, dtype=torch.float32)
    residual = random(1, 8, dtype=torch.float32)
    truth = linear_reference(x.double(), weight.double(), residual=residual.double())
    theirs = linear_reference(x, weight, residual=residual)
    with pytest.raises(AssertionError):
        check(linear(x, weight, backend="triton"), truth, theirs)
    with pytest.raises(AssertionError):
        check(torch.full_like(theirs, torch.nan), truth, theirs)


# H, Hkv, D, slots, and where each row's new token stands
CACHES = {
    "the first token": (4, 2, 16, 64, [0]),
    "one group": (4, 1, 32, 64, [40]),
    "ragged rows": (2, 2, 16, 128, [127, 5]),
    "three, odd sizes": (6, 2, 24, 100, [99, 17, 16]),
    "at a tile's edge": (8, 2, 128, 70, [64]),
    "a group of seven": (7, 1, 64, 140, [127, 129, 0]),
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("has_norm", "dtype", "pdl"), list(itertools.product((False, True), DTYPES, PDL)))
@pytest.mark.parametrize("place", PLACES)
def test_decode_attention(cache, has_norm, dtype, pdl, place):
    heads, kv_heads, size, slots, where = CACHES[cache]
    rows, tile = len(where), AttentionTile(16, 8)
    if place == "shared memory" and dtype.itemsize == 2 and size in STAGED_HEAD_DIMS:
        tile = attention_tile(size, 2, shared_bytes())
    for splits in (1, 4):
        qkv = random(rows, (heads + 2 * kv_heads) * size, dtype=dtype)
        keys, values = (random(rows, kv_heads, slots, size, dtype=dtype) for _ in range(2))
        angles = torch.rand(slots, size // 2, device=DEVICE) * 6
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        gains = [random(size, dtype=dtype).abs() for _ in range(2)]
        norm = HeadNorm(*gains, 1e-6) if has_norm else None
        wide = HeadNorm(*(gain.double() for gain in gains), 1e-6) if has_norm else None
        positions = torch.tensor(where, device=DEVICE)
        expected = [keys.double(), values.double()]
        inputs = [cos.double(), sin.double(), wide]
        truth = decode_attention_reference(qkv.double(), *expected, positions, *inputs)
        theirs = decode_attention_reference(qkv, keys.clone(), values.clone(), positions, cos, sin, norm)
        for row, position in enumerate(where):  # slots that hold no token yet
            keys[row, :, position:], values[row, :, position:] = torch.nan, torch.nan
        workspace = Workspace(rows, heads, kv_heads, size, splits, DEVICE)
        for memory in (workspace.peaks, workspace.weights, workspace.mixed):
            memory.fill_(torch.nan)
        for _ in range(2):  # the workspace is left as it was found
            out = torch.full((rows, heads * size), torch.nan, dtype=dtype, device=DEVICE)
            decode_attention(
                qkv, keys, values, positions, cos, sin, norm,
                workspace=workspace, out=out, backend="triton", pdl=pdl, tile=tile,
            )  # fmt: skip
            check(out, truth, theirs)
            assert not workspace.arrivals.any()
        for row, position in enumerate(where):
            assert torch.equal(values[row, :, position].double(), expected[1][row, :, position])
            gap = (keys[row, :, position].double() - expected[0][row, :, position]).abs().max()
            assert gap <= 8 * torch.finfo(dtype).eps * 4


def test_an_engine_of_kernels_writes_what_one_of_references_does():
    """Two layers, grouped heads with norms; a row alone takes our matrices, two take PyTorch's."""
    config = DecoderConfig(100, 32, 48, 2, 4, 2, 16, 64, qk_norm=True)
    model = Decoder(config).to(DEVICE).requires_grad_(False)
    shapes = [(128, 32, False), (32, 64, False), (48, 32, True), (32, 48, False), (100, 32, False)]
    settings = KernelSettings(tiles={shape: Tile(16, 32, 4) for shape in shapes}, splits=2)
    for prompts in ([[5] * 40], [[1, 2], [9] * 40]):
        written = []
        for backend in ("triton", "reference"):
            engine = DecodeEngine(model, backend=backend, settings=settings)
            engine.start(prompts, 50)
            written.append([engine.decode(4).tolist(), engine.decode(2).tolist()])
        assert written[0] == written[1]
