"""`decode_attention` over a cache in blocks: one new token a row, from the projection to the mixed values.

It does in one kernel what `rotate_and_store` and `paged_attention` do in two, since every program can turn
the queries of its own heads: in a step in which all requests decode, a kernel a layer is a tenth of all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_apart, check_dims, check_tensor
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.decode_attention import HeadNorm, Workspace, launch_arguments
from llmcourse.kernels.rotary import check_projection, rotate_and_store_reference
from llmcourse.kernels.tiles import AttentionTile, paged_tile


def paged_decode_attention_reference(
    qkv: Float[Tensor, "B heads_D"],
    keys: Float[Tensor, "blocks Hkv size D"],
    values: Float[Tensor, "blocks Hkv size D"],
    block_tables: Int[Tensor, "B most"],
    positions: Int[Tensor, " B"],
    cos: Float[Tensor, "S half"],
    sin: Float[Tensor, "S half"],
    norm: HeadNorm | None = None,
) -> Float[Tensor, "B H_D"]:
    """What `paged_decode_attention` computes, step by step; rows without a block give zeros."""
    size, rows = keys.shape[2], torch.arange(len(qkv), device=qkv.device)
    block = block_tables[rows, positions // size].long()
    slot_mapping = torch.where(block < 0, -1, block * size + positions % size)
    q = rotate_and_store_reference(qkv, keys, values, positions, slot_mapping, cos, sin, norm)  # (B, H, D)
    end = int(positions.max()) + 1
    blocks = block_tables[:, : -(-end // size)].clamp(0, len(keys) - 1).long()
    seen = torch.arange(blocks.shape[1] * size, device=q.device) <= positions[:, None]
    seen &= (block >= 0)[:, None]  # (B, S)
    # What is not seen may be anything, and no weight of 0 makes a number of what is none.
    k, v = (
        pool[blocks].transpose(1, 2).flatten(2, 3).masked_fill(~seen[:, None, :, None], 0.0)
        for pool in (keys, values)
    )  # (B, Hkv, S, D)
    mixed = F.scaled_dot_product_attention(
        q[:, :, None], k, v, attn_mask=seen[:, None, None], enable_gqa=q.shape[1] > k.shape[1]
    )
    return mixed.flatten(1).masked_fill((block < 0)[:, None], 0.0)


def paged_decode_attention(
    qkv: Float[Tensor, "B heads_D"],
    keys: Float[Tensor, "blocks Hkv size D"],
    values: Float[Tensor, "blocks Hkv size D"],
    block_tables: Int[Tensor, "B most"],
    positions: Int[Tensor, " B"],
    cos: Float[Tensor, "S half"],
    sin: Float[Tensor, "S half"],
    norm: HeadNorm | None = None,
    *,
    workspace: Workspace | None = None,
    out: Float[Tensor, "B H_D"] | None = None,
    backend: Backend = "auto",
    pdl: bool = False,
    tile: AttentionTile | None = None,
) -> Float[Tensor, "B H_D"]:
    """One token a row: rotates and stores its key, stores its value, attends to all up to it.

    Args:
        qkv: the fused projection, H heads of q, then Hkv of k, then Hkv of v.
        keys, values: one layer of the pool.
        block_tables: blocks of each row in order, the one of its new token included; a row of negative
            numbers fills up the batch, and its output is not defined.
        positions: of the new tokens, each below S.
        cos, sin: of the angles of every position.
        workspace: memory of the splits, which share out the keys of a row; without it there are none.
        out: where the result goes; new memory if None.
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.
        tile: how a program goes through the keys; None takes `tiles.paged_tile`.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, or a backend that cannot run; on the
            CPU also positions for which there are no angles, or tables that point outside the pool.
    """
    num_heads = _check(qkv, keys, values, block_tables, positions, cos, sin, norm, workspace, out)
    if resolve(backend, qkv.device, qkv.dtype) == "reference":
        mixed = paged_decode_attention_reference(qkv, keys, values, block_tables, positions, cos, sin, norm)
        return mixed if out is None else out.copy_(mixed)
    from llmcourse.kernels.capabilities import compiles_for
    from llmcourse.kernels.paged_decode_triton import launch

    head_dim = keys.shape[3]
    out = qkv.new_empty(len(qkv), num_heads * head_dim) if out is None else out
    if workspace is None:
        workspace = Workspace(len(qkv), num_heads, keys.shape[1], head_dim, 1, qkv.device)
    tile = tile or paged_tile(head_dim, qkv.element_size(), compiles_for(90))
    inputs = (qkv, keys, values, positions, cos, sin, norm)
    launch(*launch_arguments(*inputs, workspace, out, tile, block_tables.shape[1]), tile, pdl, block_tables)
    return out


def _check(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: HeadNorm | None,
    workspace: Workspace | None,
    out: Tensor | None,
) -> int:
    """The number of query heads, of arguments that fit each other."""
    num_heads = check_projection(qkv, keys, values, positions, cos, sin, norm)
    num_blocks, num_kv_heads, size, head_dim = keys.shape
    if len(qkv) == 0:
        raise ValueError("qkv must be of at least one row, got 0; leave an empty batch out")
    check_dims("block_tables", block_tables, "B", "most")
    if block_tables.shape[1] == 0:
        raise ValueError(
            "block_tables must have at least one column, got 0; a row without a block has -1 there"
        )
    rows = "pass one row for each token"
    check_tensor(
        "block_tables", block_tables, (len(qkv), block_tables.shape[1]), qkv, rows, dtype=torch.int32
    )
    if workspace is not None:
        workspace.check(len(qkv), num_heads, num_kv_heads, head_dim, qkv.device)
    memory = "leave it at None for new memory"
    check_tensor("out", out, (len(qkv), num_heads * head_dim), qkv, memory, layout=memory)
    check_apart(out, qkv=qkv, keys=keys, values=values)
    if block_tables.is_cpu:
        _check_tables(block_tables, positions, num_blocks, size)
    return num_heads


def _check_tables(block_tables: Tensor, positions: Tensor, num_blocks: int, size: int) -> None:
    """On the CPU alone, as all that asks for contents."""
    for row, position in enumerate(positions.tolist()):
        used = block_tables[row, : position // size + 1]
        if (used < 0).all():
            continue
        if len(used) * size <= position or ((used < 0) | (used >= num_blocks)).any():
            raise ValueError(
                f"block_tables must name blocks in [0, {num_blocks - 1}] up to position {position} of row "
                f"{row}, got {used.tolist()}; allocate them first"
            )
