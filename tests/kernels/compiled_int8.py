"""Kernels that multiply in 8 bits, compiled for GPUs that are not here; as `compiled.py`, beside it."""

from unittest import mock

import torch

from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.int8_matmul import InSixteenBits, int8_matmul
from llmcourse.kernels.int8_tiles import WideTile
from llmcourse.kernels.mixed_linear import MixedLinear
from llmcourse.kernels.outlier_columns import OutlierColumns
from llmcourse.kernels.quantize_rows import quantize_rows
from tests.kernels.compiled import Compiled, recorded


def compiled_int8(num_rows: int, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """W8A8 and LLM.int8() as layers with norm and bias, and FP8's codes where the GPU has them."""
    with recorded(capability) as found, torch.device("meta"):
        outputs, inputs = 14336, 4096
        codes, scale = torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs)
        x, norm = torch.empty(num_rows, inputs, dtype=dtype), torch.empty(inputs, dtype=dtype)
        kept = {"columns": torch.arange(20), "kept": torch.empty(outputs, 20, dtype=dtype)}
        with mock.patch("llmcourse.kernels.mixed_linear._check_fixed"):  # which looks at the numbers
            layers = [Int8Linear(codes, scale, torch.empty(outputs, dtype=dtype), input_scale=torch.empty(1))]
            layers += [MixedLinear(codes, scale), MixedLinear(codes, scale, **kept)]
        for layer in layers:
            layer.layer(x, norm=norm, backend="triton", pdl=True)
        layers[1].product(x, "triton")
        if capability >= 89:
            quantize_rows(x, codes=torch.float8_e4m3fn, backend="triton", pdl=True)
    return found


def compiled_wide_int8(turns: bool) -> list[Compiled]:
    """Products of many rows of codes by groups of warps that share a tile, or take turns; both of 16 bits."""
    tile = WideTile(128, 128, 2, True, 5, 2, outliers=256) if turns else WideTile(64, 256, 3, False, 3, 1)
    with recorded(90) as found, torch.device("meta"):
        codes, weight = torch.empty(1000, 4112, dtype=torch.int8), torch.empty(1032, 4112, dtype=torch.int8)
        scale, weight_scale = torch.empty(1000), torch.empty(1032)
        x = torch.empty(1000, 4112, dtype=torch.float16)
        outliers = OutlierColumns.of(torch.empty(4112, dtype=torch.int8))
        for sixteen in (None, InSixteenBits(x, outliers)):
            given = {"sixteen": sixteen, "backend": "triton", "pdl": True, "tile": tile}
            int8_matmul(codes, scale, weight, weight_scale, torch.float16, **given)
    return found
