"""The contract of `int8_matmul` for many rows on Hopper; no other GPU can, nor can the interpreter.

`test_kernels` runs it there. Results are bit for bit those of exact integers, scaled in the same order.
"""

import random as dice_of

import pytest
import torch

from llmcourse.kernels.int8_matmul import InSixteenBits, int8_matmul
from llmcourse.kernels.int8_tiles import WideTile
from llmcourse.kernels.outlier_columns import OutlierColumns
from tests.kernels.contract import DEVICE, PDL, seeded  # noqa: F401
from tests.kernels.int8_configurations import Given, allowed, whole

TILES = (
    WideTile(),
    WideTile(128, 128, 2, True, 5),
    WideTile(64, 256, 2, True, 3, 1),
    WideTile(128, 128, 2, False, 3, 1, band=2, outliers=128),
)
DRAWN = 60


def given_for(dice: dice_of.Random, rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> Given:
    codes, weight = whole(rows, inputs), whole(outputs, inputs, least=-128)
    scale = torch.rand(rows, device=DEVICE) * 0.05 + 0.001
    weight_scale = torch.rand(outputs, device=DEVICE) * 0.01 + 0.0001
    bias = torch.randn(outputs, device=DEVICE).to(dtype) if dice.random() < 0.3 else None
    sixteen = None
    if dice.random() < 0.7:
        count = min(dice.choice((0, 1, 20, 63, 64, 65, 129, inputs)), inputs)
        flags = torch.zeros(inputs, dtype=torch.int8, device=DEVICE)
        flags[torch.randperm(inputs, device=DEVICE)[:count]] = 1
        codes[:, flags.bool()] = 0
        x = (torch.randn(rows, inputs, device=DEVICE) * 20).to(dtype)
        kept = torch.randn(outputs, count, device=DEVICE).to(dtype) if dice.random() < 0.4 else None
        sixteen = InSixteenBits(x, OutlierColumns.of(flags), kept)
    return Given(codes, scale, weight, weight_scale, bias, sixteen)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_a_drawn_product_is_the_one_of_exact_integers(tile):
    for seed in range(DRAWN):
        dice = dice_of.Random(seed)
        torch.manual_seed(seed)
        rows = dice.choice((1, 63, 64, 65, 128, 200, 1000, 3000))
        outputs = 8 * dice.choice((1, 7, 8, 16, 31, 32, 33, 100, 300))
        inputs = 16 * dice.choice((1, 7, 8, 9, 40, 70))
        dtype = dice.choice((torch.float16, torch.bfloat16))
        given = given_for(dice, rows, outputs, inputs, dtype)
        arguments = (given.codes, given.scale, given.weight, given.weight_scale, dtype)
        more = {"bias": given.bias, "sixteen": given.sixteen, "backend": "triton"}
        y = int8_matmul(*arguments, **more, tile=tile, pdl=PDL[-1])
        truth, what = given.truth(), (seed, rows, outputs, inputs, dtype, given.sixteen is not None)
        assert torch.isfinite(y).all(), what
        assert ((y.double() - truth).abs() <= allowed(given, truth, dtype)).all(), what


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_large_products_are_exact_and_the_same_in_every_launch(tile):
    codes, weight = whole(1500, 4096), whole(2056, 4096)
    scale = 2.0 ** torch.randint(-9, -3, (1500,), device=DEVICE).float()
    weight_scale = 2.0 ** torch.randint(-9, -3, (2056,), device=DEVICE).float()
    truth = (codes.double() @ weight.double().T) * scale.double()[:, None] * weight_scale.double()
    found = [
        int8_matmul(
            codes, scale, weight, weight_scale, torch.bfloat16, backend="triton", tile=tile, pdl=PDL[-1]
        )
        for _ in range(20)
    ]
    assert torch.equal(found[0], truth.float().to(torch.bfloat16))
    assert all(torch.equal(found[0], other) for other in found)
