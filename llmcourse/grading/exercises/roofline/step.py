"""The two times of a decoding step, from its shapes: bytes over bandwidth, FLOPs over the peak."""

from __future__ import annotations

from collections.abc import Mapping


def step_times(
    model: Mapping[str, int],
    batch: int,
    context: int,
    number_bytes: float | int,
    bytes_per_s: float,
    flops_per_s: float,
) -> tuple[float, float]:
    """Weights, read once, and the cache of every row; two FLOPs a weight and row, and attention's."""
    hidden, width = model["hidden"], model["heads"] * model["head_dim"]
    kv_width = model["kv_heads"] * model["head_dim"]
    layer = hidden * (2 * width + 2 * kv_width) + 3 * hidden * model["mlp"]
    weights = model["layers"] * layer + hidden * model["vocab"]
    cached = batch * context * model["layers"] * 2 * kv_width
    attention_flops = 4 * batch * context * model["layers"] * width
    return (
        number_bytes * (weights + cached) / bytes_per_s,
        (2 * batch * weights + attention_flops) / flops_per_s,
    )
