"""Right answers to lab 5 by other roads: the package's own code where there is a counterpart."""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F

from llmcourse.quantization import outliers
from llmcourse.quantization.affine import quantization_error, quantize
from llmcourse.quantization.grid import code_range, nearest_codes, scale_and_zero_point, values
from llmcourse.quantization.packing import pack_bytes, unpack_bytes

TOP_BITS = 0x88  # of both halves of a byte: what the package's codes differ in, which are stored plus 8


def affine(x, low, high, bits):
    """The package's nearest codes, for a zero point from fractions, which round nothing."""
    scale = (high - low) / (2**bits - 1)
    exact = code_range(bits)[0] - Fraction(low) / Fraction(scale)
    zero_point = torch.tensor(round(exact))
    codes = nearest_codes(x, torch.tensor(scale), zero_point, bits)
    restored = values(codes, torch.tensor(scale), zero_point, torch.float32)
    return codes, scale, zero_point.item(), restored


def per_channel(w, bits):
    found = quantize(w, bits=bits, granularity="channel", narrow_range=True)
    return found.codes, found.scale, quantization_error(w, found.dequantized())


def clip_range(w, bits, shares):
    """The best so far of each row, from the package's grids."""
    best, errors = torch.zeros(len(w)), torch.full((len(w),), torch.inf)
    for share in shares:
        ends = share * w.abs().amax(1)
        scale, _ = scale_and_zero_point(-ends, ends, bits, narrow_range=True)
        codes = nearest_codes(w, scale[:, None], None, bits, narrow_range=True)
        error = (w - values(codes, scale[:, None], None)).square().sum(1)
        best, errors = torch.where(error < errors, scale, best), torch.minimum(error, errors)
    return best, errors


def pack_int4(codes):
    even = F.pad(codes, (0, codes.shape[1] % 2))
    return pack_bytes(even, 4) ^ TOP_BITS


def unpack_int4(packed, columns):
    return unpack_bytes(packed ^ TOP_BITS, 4, columns)


def gptq_column(w, inverse, column, scales, bits):
    """What is best for the columns that are left, with this one fixed: a system of equations in H itself."""
    codes = nearest_codes(w[:, column].float(), scales.float(), None, bits, narrow_range=True)
    left = [k for k in range(len(inverse)) if inverse[k, k] != 0 and k != column]
    free = sorted([*left, column])
    hessian = torch.zeros_like(inverse)
    hessian[[[k] for k in free], free] = torch.linalg.inv(inverse[free][:, free])
    moved, after = w.clone(), torch.zeros_like(inverse)
    moved[:, column] = scales * codes
    if left:
        inner = hessian[left][:, left]
        error = w[:, column] - moved[:, column]
        moved[:, left] += torch.outer(error, torch.linalg.solve(inner, hessian[left, column]))
        after[[[k] for k in left], left] = torch.linalg.inv(inner)
    return codes, moved, after


def gptq(w, hessian, scales, bits):
    """An inverse for each step, of what is left of H."""
    columns = []
    for column in range(w.shape[1]):
        inverse = torch.zeros_like(hessian)
        inverse[column:, column:] = torch.linalg.inv(hessian[column:, column:])
        codes, w, _ = gptq_column(w, inverse, column, scales, bits)
        columns.append(codes)
    return torch.stack(columns, 1)


def llm_int8(x, w, threshold):
    """What the package's codes stand for, multiplied as floats."""
    columns = outliers.outlier_columns(x, threshold)
    restored = quantize(w, granularity="channel", narrow_range=True).dequantized()
    rest = outliers.rounded(x.index_fill(1, columns, 0.0), 8, "token")
    return F.linear(rest, restored) + F.linear(x[:, columns], w[:, columns]), columns


def int8_matmul(x, w, x_scales, w_scales, tile):
    """Every product by itself, in int32."""
    sums = (x.int()[:, None] * w.int()[None]).sum(-1)
    return (sums.double() * x_scales.double()[:, None] * w_scales.double()).float()


ROADS = {
    "05.affine": affine,
    "05.per_channel": per_channel,
    "05.clip_range": clip_range,
    "05.pack_int4": pack_int4,
    "05.unpack_int4": unpack_int4,
    "05.gptq_column": gptq_column,
    "05.gptq": gptq,
    "05.llm_int8": llm_int8,
    "05.triton_int8": int8_matmul,
}
