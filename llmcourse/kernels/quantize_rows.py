"""Rows of activations to 8 bits, each with its own scale: amax, division, rounding and store in one pass.

    s = max |x_k| / q_max,   q_k = round(x_k / s)      over the columns k of a row

The scale per token of Dettmers et al. 2022 (LLM.int8(), section 2.1, "absmax", row by row) and of Xiao et al.
2023 (SmoothQuant, section 3). q_max is 127 for int8, and 448 for FP8 (e4m3, whose rounding is its own). A
static scale, known from calibration, needs no maximum. The row may pass an RMSNorm first, in fp32, and some
columns may be left out: they neither count nor keep a code, which LLM.int8() asks for.

A row with Inf or NaN has no scale: it gets NaN and codes of 0, so that what is computed from it is NaN too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from llmcourse.kernels.arguments import check_dims, check_dtype, check_memory, check_tensor
from llmcourse.kernels.backend import Backend, resolve

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # by the dtype of the codes
LEAST_AMAX = 2.0**-100  # of a row: one that is nearly nothing, or nothing, has codes and a scale as well


def quantize_rows_reference(
    x: Float[Tensor, "T K"],
    *,
    norm: Float[Tensor, " K"] | None = None,
    eps: float = 1e-6,
    static: Float[Tensor, " one"] | None = None,
    skipped: Shaped[Tensor, " K"] | None = None,
    codes: torch.dtype = torch.int8,
) -> tuple[Shaped[Tensor, "T K"], Float[Tensor, " T"]]:
    """What `quantize_rows` computes, operation by operation, in fp32."""
    wide, most = x.float(), LARGEST[codes]
    if norm is not None:
        wide = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps) * norm.float()
    if skipped is not None:
        wide = wide.masked_fill(skipped.bool(), 0.0)
    peak = wide.abs().amax(1, keepdim=True) if wide.shape[1] else wide.new_zeros(len(x), 1)
    finite, peak = peak.isfinite(), peak.clamp(min=LEAST_AMAX)
    # Divided as tensors: by a number PyTorch multiplies with its inverse on a GPU, which is rounded twice.
    scale = peak / torch.full_like(peak, most) if static is None else static.expand_as(peak)
    inverse = torch.full_like(peak, most) / peak if static is None else torch.ones_like(static) / static
    found = (wide * inverse).clamp(-most, most).where(finite, 0.0)
    found = found.round().to(codes) if codes == torch.int8 else found.to(codes)
    return found, scale.where(finite, torch.nan)[:, 0]


def quantize_rows(
    x: Float[Tensor, "T K"],
    *,
    norm: Float[Tensor, " K"] | None = None,
    eps: float = 1e-6,
    static: Float[Tensor, " one"] | None = None,
    skipped: Shaped[Tensor, " K"] | None = None,
    codes: torch.dtype = torch.int8,
    backend: Backend = "auto",
    pdl: bool = False,
) -> tuple[Shaped[Tensor, "T K"], Float[Tensor, " T"]]:
    """Codes (T, K), and the scale of each row in fp32.

    Args:
        norm: weights of an RMSNorm on x, with `eps`, whose result is not rounded in between.
        static: one scale for all rows, in fp32, instead of one measured for each. Numbers beyond
            127 · static (448 for FP8) are clamped, which is what a static range means.
        skipped: int8 or bool, not 0 for columns that are left out.
        codes: `torch.int8` or `torch.float8_e4m3fn`.
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run.
    """
    _check(x, norm, static, skipped, codes)
    if resolve(backend, x.device, x.dtype) == "reference":
        return quantize_rows_reference(x, norm=norm, eps=eps, static=static, skipped=skipped, codes=codes)
    from llmcourse.kernels.quantize_rows_triton import launch

    return launch(x, norm, eps, static, skipped, codes, pdl)


def _check(
    x: Tensor, norm: Tensor | None, static: Tensor | None, skipped: Tensor | None, codes: torch.dtype
) -> None:
    check_dims("x", x, "T", "K")
    check_dtype("x", x)
    check_memory("x", x, x)
    if codes not in LARGEST:
        raise ValueError(f"codes must be torch.int8 or torch.float8_e4m3fn, got {codes!r}; take one of these")
    check_tensor("norm", norm, (x.shape[1],), x, "pass a weight for each column of x, or None")
    remedy = "pass one number for all rows, or None to measure each"
    check_tensor("static", static, (1,), x, remedy, dtype=torch.float32)
    if skipped is not None:
        check_dtype("skipped", skipped, (torch.int8, torch.bool))
        remedy = "pass a flag for each column of x, or None"
        check_tensor("skipped", skipped, (x.shape[1],), x, remedy, dtype=skipped.dtype)
