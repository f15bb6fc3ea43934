"""The contract of what multiplies in 8 bits, against exact integers and fp64; run beside `contract.py`."""

import re

import pytest
import torch

from llmcourse.kernels import int8_matmul_triton, outlier_columns_triton
from llmcourse.kernels.fp8_linear import E4M3
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.int8_matmul import InSixteenBits, int8_matmul, int8_matmul_reference, int8_product
from llmcourse.kernels.int8_tiles import Int8Tile
from llmcourse.kernels.mixed_linear import MixedLinear
from llmcourse.kernels.outlier_columns import (
    OutlierColumns,
    find_outliers,
    find_outliers_reference,
    quantize_mixed,
)
from llmcourse.kernels.outlier_columns_triton import FlagTile
from llmcourse.kernels.quantize_rows import quantize_rows, quantize_rows_reference
from tests.kernels.contract import DEVICE, DTYPES, PDL, random, seeded  # noqa: F401
from tests.kernels.int8_configurations import ON_GPU, allowed, drawn, tensors, whole

DRAWN = 300 if ON_GPU else 400  # on a GPU each kind of call is compiled
HAS_E4M3 = ON_GPU and torch.cuda.get_device_capability() >= (8, 9)  # the interpreter rounds it wrongly
CODES = (torch.int8, E4M3) if HAS_E4M3 else (torch.int8,)


def product_of(config, backend: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What was found, the truth, and how far they may be apart."""
    given = tensors(config)
    arguments = (
        given.codes, given.scale, given.weight, given.weight_scale, config.dtype,
    )  # fmt: skip
    more = {"bias": given.bias, "sixteen": given.sixteen}
    y = int8_matmul(*arguments, **more, backend=backend, pdl=PDL[-1], tile=config.tile)
    truth = given.truth()
    return y, truth, 0 * truth if config.exact else allowed(given, truth, config.dtype)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("part", range(8))
def test_a_drawn_product_is_the_one_of_exact_integers(part, backend):
    for seed in range(part, DRAWN, 8):
        config = drawn(seed)
        y, truth, most = product_of(config, backend)
        assert torch.isfinite(y).all(), config
        assert ((y.double() - truth).abs() <= most).all(), config


def test_the_check_sees_one_code_that_is_off_by_one():
    seeds = [seed for seed in range(200) if drawn(seed).exact][:20]
    for seed in seeds:
        given = tensors(drawn(seed))
        truth = given.truth()
        given.codes[0, 0] += 1 if given.codes[0, 0] < 127 else -1
        given.weight[:, 0] = 3
        arguments = (given.codes, given.scale, given.weight, given.weight_scale, torch.float32)
        assert not torch.equal(int8_matmul(*arguments, backend="triton").double(), truth)


def test_the_largest_sum_of_a_long_row_is_exact():
    inputs = 2**17 - 1 if ON_GPU else 4096
    codes = torch.full((2, inputs), -128, dtype=torch.int8, device=DEVICE)
    one = torch.ones(2, device=DEVICE)
    for backend in ("triton", "reference"):
        y = int8_matmul(codes, one, codes.clone(), one, torch.float32, backend=backend)
        assert torch.equal(y, torch.full_like(y, float(torch.tensor(inputs * 2**14, dtype=torch.float32))))


def test_a_matrix_of_one_column_is_multiplied_rightly():
    """Which the library's product on a CPU is not."""
    codes, weight = whole(3, 1), whole(5, 1)
    assert torch.equal(int8_product(codes, weight).double(), codes.double() @ weight.double().T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("kind", ["dynamic", "static", "norm", "skipped"])
def test_rows_are_quantized_as_the_reference_does(dtype, codes, kind):
    for rows, columns in ((1, 1), (3, 7), (5, 64), (2, 100), (33, 130)):
        x = random(rows, columns, dtype=dtype) * 3
        x[0] = 0
        given = {"codes": codes}
        if kind == "static":
            given["static"] = torch.tensor([0.02], device=DEVICE)
        if kind == "norm":
            given |= {"norm": random(columns, dtype=dtype), "eps": 1e-5}
        if kind == "skipped":
            given["skipped"] = (torch.rand(columns, device=DEVICE) < 0.3).to(torch.int8)
        theirs, their_scale = quantize_rows_reference(x, **given)
        ours, scale = quantize_rows(x, backend="triton", pdl=PDL[-1], **given)
        if kind == "norm":  # sums in another order: a number between two codes may take either
            torch.testing.assert_close(scale, their_scale, rtol=1e-6, atol=0)
            step = 1 if codes == torch.int8 else 0.13 * theirs.float().abs() + 2**-9
            assert ((ours.float() - theirs.float()).abs() <= step).all()
        else:
            assert torch.equal(scale, their_scale)
            assert torch.equal(ours.view(torch.int8), theirs.view(torch.int8))
            if kind == "skipped":
                assert not ours.float()[:, given["skipped"].bool()].any()


def test_rounding_is_to_the_nearest_and_of_two_to_the_even_code():
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.0, -127.0, 0.49999997, 200.0]], device=DEVICE)
    static = torch.ones(1, device=DEVICE)
    for backend in ("triton", "reference"):
        codes, _ = quantize_rows(x, static=static, backend=backend)
        assert codes.tolist() == [[0, 2, 2, 0, -2, 126, 127, -127, 0, 127]]


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("static", [False, True])
def test_a_row_that_is_not_finite_spoils_itself_and_nothing_else(backend, bad, static):
    x = random(4, 40, dtype=torch.float32)
    x[2, 7] = bad
    given = {"static": torch.ones(1, device=DEVICE)} if static else {}
    codes, scale = quantize_rows(x, backend=backend, **given)
    assert scale.isnan().tolist() == [False, False, True, False] and not codes[2].any()
    layer = Int8Linear(whole(8, 40), torch.ones(8, device=DEVICE))
    y = layer.product(x, backend)
    assert y.isnan().any(1).tolist() == [False, False, True, False] and y[2].isnan().all()


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_rows_of_nothing_and_of_nearly_nothing_have_codes(backend):
    x = torch.zeros(3, 16, device=DEVICE)
    x[1, 3], x[2, 5] = 1e-40, 1e-20
    codes, scale = quantize_rows(x, backend=backend)
    assert scale.isfinite().all() and (scale > 0).all()
    assert not codes[:2].any() and codes[2, 5] == 127


def with_outliers(rows: int, columns: int, share: float, dtype: torch.dtype) -> tuple:
    """Numbers below 6 but for one at exactly ±6 in some columns, and which these are."""
    x = random(rows, columns, dtype=dtype).clamp(-5.9, 5.9)
    chosen = torch.rand(columns, device=DEVICE) < share
    row = torch.randint(0, rows, (columns,), device=DEVICE)
    sign = 1 - 2 * torch.randint(0, 2, (columns,), device=DEVICE)
    x[row[chosen], chosen.nonzero()[:, 0]] = (6.0 * sign[chosen]).to(dtype)
    return x, chosen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alone", [2**16, 0], ids=["by one program", "by many"])
def test_outlier_columns_are_found(dtype, alone, monkeypatch):
    monkeypatch.setattr(outlier_columns_triton, "ALONE", alone)
    for rows, columns, share in (
        (1, 1, 1.0), (3, 50, 0.0), (70, 130, 0.02), (64, 300, 0.3), (5, 9, 1.0), (1, 64, 1.0)
    ):  # fmt: skip
        x, chosen = with_outliers(rows, columns, share, dtype)
        ours, theirs = find_outliers(x, backend="triton", pdl=PDL[-1]), find_outliers_reference(x)
        assert torch.equal(ours.flags.bool(), chosen) and torch.equal(ours.flags, theirs.flags)
        assert ours.listed().tolist() == theirs.listed().tolist() == chosen.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("programs", [1, 5, 1000])
def test_outlier_columns_are_found_by_however_many_programs(programs, monkeypatch):
    """Blocks of columns, strips that end in the middle, a row of NaN, and a list in several pieces."""
    for name, value in (("ALONE", 0), ("LISTED", 4), ("JOINED", 8)):
        monkeypatch.setattr(outlier_columns_triton, name, value)
    tile = FlagTile(rows=4, warps=1, programs=programs)
    for rows, columns, share in ((1, 600, 0.1), (37, 512, 0.05), (21, 1000, 0.02)):
        x, chosen = with_outliers(rows, columns, share, torch.float16)
        if rows > 1:
            x[-1] = torch.nan
            chosen &= (x.abs() >= 6).any(0)
        ours = outlier_columns_triton.launch_find(x, 6.0, PDL[-1], tile)
        assert torch.equal(ours.flags.bool(), chosen)
        assert ours.listed().tolist() == chosen.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("alone", [2**16, 0], ids=["by one program", "by many"])
@pytest.mark.parametrize("rows", [1, 9])
def test_infinity_is_an_outlier_nan_is_none_and_any_positive_number_a_threshold(alone, rows, monkeypatch):
    monkeypatch.setattr(outlier_columns_triton, "ALONE", alone)
    x = torch.zeros(rows, 40, device=DEVICE)
    x[-1, 3], x[0, 7], x[-1, 8], x[0, 39] = float("nan"), float("-inf"), 1.0, 0.999
    x[0, 20], x[-1, 20] = -2.0, float("nan") if rows > 1 else -2.0
    for threshold, beyond in ((1, [7, 8, 20]), (float("inf"), [7]), (1e-50, [7, 8, 20, 39])):
        for backend in ("triton", "reference"):
            assert find_outliers(x, threshold, backend=backend).listed().tolist() == beyond


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alone", [2**16, 0], ids=["in one launch", "in three"])
def test_rows_are_quantized_beside_their_outliers(dtype, alone, monkeypatch):
    monkeypatch.setattr(outlier_columns_triton, "ALONE", alone)
    for rows, columns, share in ((1, 1, 1.0), (1, 100, 0.1), (3, 50, 0.0), (7, 130, 0.1), (16, 64, 1.0)):
        x, chosen = with_outliers(rows, columns, share, dtype)
        codes, scale, found = quantize_mixed(x, backend="triton", pdl=PDL[-1])
        theirs, their_scale = quantize_rows_reference(x, skipped=chosen)
        assert torch.equal(codes, theirs) and torch.equal(scale, their_scale)
        assert torch.equal(found.flags.bool(), chosen)
        assert found.listed().tolist() == chosen.nonzero()[:, 0].tolist()
        q, s, listed = quantize_mixed(x, backend="reference")
        assert torch.equal(q, codes) and torch.equal(s, scale) and torch.equal(listed.flags, found.flags)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fixed", [None, "codes", "kept"])
def test_a_mixed_layer_is_its_equation_in_fp64(dtype, fixed):
    for rows, inputs, outputs, share in (
        (1, 40, 24, 0.1),
        (17, 130, 33, 0.02),
        (3, 64, 8, 1.0),
        (2, 9, 5, 0),
    ):
        x = random(rows, inputs, dtype=dtype).clamp(-5.9, 5.9)
        out = (torch.rand(inputs, device=DEVICE) < share).nonzero()[:, 0]
        x[0, out] = 40.0
        weight, codes = random(outputs, inputs, dtype=torch.float32), whole(outputs, inputs)
        scale = torch.rand(outputs, device=DEVICE) * 0.01 + 0.001
        columns = None if fixed is None else out
        kept = weight[:, out].to(dtype) if fixed == "kept" else None
        layer = MixedLinear(codes, scale, columns=columns, kept=kept)
        y = layer.product(x, "triton")

        others = torch.ones(inputs, dtype=torch.bool, device=DEVICE)
        others[out] = False
        rest = x.double()[:, others]
        step = rest.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127 if others.any() else 1.0
        w = codes.double() * scale.double()[:, None]
        w_out = kept.double() if fixed == "kept" else w[:, out]
        q = (rest / step).round() * step
        truth = x.double()[:, out] @ w_out.T + q @ w[:, others].T
        near = (rest / step - 0.5 - (rest / step - 0.5).round()).abs() < 1e-4  # may take either code
        slack = (near.double() * step) @ w[:, others].abs().T
        sizes = x.double().abs()[:, out] @ w_out.abs().T + q.abs() @ w[:, others].abs().T
        most = torch.finfo(dtype).eps * truth.abs() + inputs * 2.0**-22 * sizes + slack + 1e-6
        assert ((y.double() - truth).abs() <= most).all()
        assert ((layer.product(x, "reference").double() - truth).abs() <= most).all()


def test_sixteen_bits_are_worth_it_where_there_are_outliers():
    """The layer's error against x Wᵀ, with and without: the reason for all of it."""
    x = random(16, 128, dtype=torch.float32)
    x[:, 5] *= 60
    w = random(32, 128, dtype=torch.float32)
    scale = w.abs().amax(1) / 127
    codes = (w / scale[:, None]).round().to(torch.int8)
    truth = x.double() @ (codes.double() * scale.double()[:, None]).T
    errors = [
        (layer.product(x, "triton").double() - truth).norm() / truth.norm()
        for layer in (MixedLinear(codes, scale), Int8Linear(codes, scale))
    ]
    assert errors[0] < errors[1] / 5


def test_a_list_that_is_too_long_for_the_fast_kernel_is_no_matter():
    """All columns in 16 bits, which is the product of x and W in 16 bits."""
    x, codes = random(20, 100, dtype=torch.float16), whole(40, 100)
    scale = torch.full((40,), 2.0**-7, device=DEVICE)
    found = OutlierColumns.of(torch.ones(100, device=DEVICE))
    nothing = torch.zeros(20, 100, dtype=torch.int8, device=DEVICE)
    one = torch.ones(20, device=DEVICE)
    sixteen = InSixteenBits(x, found)
    y = int8_matmul(nothing, one, codes, scale, torch.float16, sixteen=sixteen, backend="triton")
    theirs = int8_matmul_reference(nothing, one, codes, scale, torch.float16, sixteen=sixteen)
    torch.testing.assert_close(y, theirs, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("least", "computed"), [(0, True), (20, True), (21, False)])
def test_what_is_for_long_lists_leaves_the_result_of_short_ones_alone(least, computed, monkeypatch):
    """Two programs go through all tiles, or see that there are fewer than 20 columns in 16 bits."""
    monkeypatch.setattr(int8_matmul_triton, "FEW_PROGRAMS", 2)
    x, weight = random(40, 64, dtype=torch.float16), whole(70, 64)
    flags = torch.zeros(64, dtype=torch.int8, device=DEVICE)
    flags[::3][:20] = 1
    sixteen = InSixteenBits(x, OutlierColumns.of(flags))
    codes, scale = quantize_rows(x, skipped=flags)
    weight_scale = torch.rand(70, device=DEVICE) * 0.01
    out = torch.full((40, 70), torch.nan, dtype=torch.float16, device=DEVICE)
    given = (codes, scale, weight, weight_scale, None, sixteen, out, Int8Tile(16, 16, 32, 1, 1), False)
    int8_matmul_triton.launch(*given, least_count=least)
    assert out.isfinite().all() if computed else out.isnan().all()
    if computed:
        truth = int8_matmul_reference(codes, scale, weight, weight_scale, torch.float16, sixteen=sixteen)
        torch.testing.assert_close(out, truth, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [Int8Linear, MixedLinear])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_layer_does_all_that_linear_does(kind, rows):
    x, norm = random(rows, 48, dtype=torch.float16), random(48, dtype=torch.float16).abs()
    bias, residual = random(64, dtype=torch.float16), random(rows, 32, dtype=torch.float16)
    layer = kind(whole(64, 48), torch.rand(64, device=DEVICE) * 0.01, bias)
    out = torch.full((rows, 32), torch.nan, dtype=torch.float16, device=DEVICE)
    given = {"norm": norm, "eps": 1e-5, "residual": residual, "gated": True}
    ours = layer.layer(x, **given, out=out, backend="triton", pdl=PDL[-1])
    assert ours is out and torch.isfinite(out).all()
    torch.testing.assert_close(out, layer.layer(x, **given, backend="reference"), rtol=0.02, atol=0.02)


def ones(*shape: int, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=DEVICE)


def matmul(**given) -> None:
    one = {"scale": ones(3, dtype=torch.float32), "weight_scale": ones(6, dtype=torch.float32)}
    plain = {"codes": ones(3, 8), **one, "weight": ones(6, 8), "dtype": torch.float32}
    int8_matmul(**(plain | given))


def sixteen(**given) -> None:
    found = {"flags": ones(8), "columns": ones(8, dtype=torch.int32), "count": ones(1, dtype=torch.int32)}
    kept = given.pop("kept", None)
    x = given.pop("x", ones(3, 8, dtype=torch.float32))
    matmul(sixteen=InSixteenBits(x, OutlierColumns(**(found | given)), kept))


SCALE = ones(6, dtype=torch.float32)
REFUSED = [
    (matmul, {"scale": SCALE[:4]}, "scale must have shape (3,), got (4,)"),
    (matmul, {"weight_scale": SCALE[:4]}, "weight_scale must have shape (6,), got (4,)"),
    (matmul, {"weight_scale": SCALE.double()}, "weight_scale must be in torch.float32"),
    (matmul, {"weight": ones(6, 9)}, "weight must have shape (6, 8), got (6, 9)"),
    (matmul, {"weight": ones(8, 6).T}, "weight must be contiguous"),
    (matmul, {"codes": ones(3, 8, dtype=torch.float32)}, "codes must be in torch.int8"),
    (matmul, {"codes": ones(8)}, "codes must have 2 dimensions, (T, K)"),
    (matmul, {"dtype": torch.float64}, "dtype must be float16, bfloat16 or float32, got torch.float64"),
    (matmul, {"bias": SCALE.half()}, "bias must be in torch.float32"),
    (matmul, {"backend": "gluon"}, "backend must be 'auto', 'triton' or 'reference', got 'gluon'"),
    (
        matmul,
        {"codes": ones(3, 2**17), "weight": ones(6, 2**17)},
        "codes must have at most 131071 columns, whose sum fits 32 bits, got 131072",
    ),
    (sixteen, {"x": ones(3, 8, dtype=torch.float16)}, "sixteen.x must be in torch.float32"),
    (sixteen, {"columns": ones(8, dtype=torch.int64)}, "sixteen.outliers.columns must be in torch.int32"),
    (sixteen, {"count": ones(2, dtype=torch.int32)}, "sixteen.outliers.count must have shape (1,), got (2,)"),
    (sixteen, {"kept": ones(5, 2, dtype=torch.float32)}, "sixteen.kept must have shape (6, 2), got (5, 2)"),
    (Int8Linear, {"codes": ones(6, 8, dtype=torch.float32), "scale": SCALE}, "codes must be in int8"),
    (
        MixedLinear,
        {"codes": ones(6, 8), "scale": SCALE, "columns": torch.tensor([3]), "kept": ones(6, 2)},
        "kept must have shape (6, 1), got (6, 2)",
    ),
    (quantize_rows, {"x": ones(3, 8)}, "x must be in one of"),
    (quantize_rows, {"x": SCALE[None], "codes": torch.uint8}, "codes must be torch.int8 or torch.float8"),
    (quantize_rows, {"x": SCALE[None], "static": SCALE}, "static must have shape (1,), got (6,)"),
    (quantize_rows, {"x": SCALE[None], "skipped": SCALE}, "skipped must be in one of int8, bool"),
    (quantize_rows, {"x": SCALE[None], "norm": SCALE[:3]}, "norm must have shape (6,), got (3,)"),
]


@pytest.mark.parametrize(("call", "given", "message"), REFUSED)
def test_what_a_kernel_would_read_wrongly_is_refused_by_name(call, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(**given)
