"""Attention over a cache in blocks: for requests of any lengths, each with any number of new tokens.

The keys and values of all requests lie in one pool of blocks, a few tokens each, and a table says which are
a request's and in what order (PagedAttention, Kwon et al. 2023, section 4). The new tokens of all requests
stand one after the other, so a batch may mix requests that decode one token with chunks of prompts.

Of a request with n new tokens and m keys in all, new token i sees keys 0 … m − n + i: attention is causal,
aligned to the end. Its new keys and values are in the pool before (`rotary.rotate_and_store`).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import (
    check_apart,
    check_dims,
    check_dtype,
    check_memory,
    check_tensor,
    is_count,
)
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.decode_attention import Workspace
from llmcourse.kernels.flash_attention import Scoring, flash_attention_reference
from llmcourse.kernels.tiles import AttentionTile, paged_tile

MOST_HEAD_DIM = 256  # a tile of more would not fit


def paged_attention_reference(
    q: Float[Tensor, "T H D"],
    keys: Float[Tensor, "blocks Hkv size D"],
    values: Float[Tensor, "blocks Hkv size D"],
    block_tables: Int[Tensor, "R most"],
    cu_seqlens_q: Int[Tensor, " R1"],
    seq_lens: Int[Tensor, " R"],
    scale: float | None = None,
) -> Float[Tensor, "T H D"]:
    """What `paged_attention` computes, request by request."""
    scoring = Scoring(q.shape[-1] ** -0.5 if scale is None else scale)
    out = torch.zeros_like(q)
    for row, length in enumerate(seq_lens.tolist()):
        first, end = cu_seqlens_q[row].item(), cu_seqlens_q[row + 1].item()
        if first == end:
            continue
        blocks = block_tables[row, : -(-length // keys.shape[2])].long()
        k, v = (pool[blocks].transpose(0, 1).flatten(1, 2)[None, :, :length] for pool in (keys, values))
        mixed, _ = flash_attention_reference(q[None, first:end].transpose(1, 2), k, v, scoring)
        out[first:end] = mixed[0].transpose(0, 1)
    return out


def paged_attention(
    q: Float[Tensor, "T H D"],
    keys: Float[Tensor, "blocks Hkv size D"],
    values: Float[Tensor, "blocks Hkv size D"],
    block_tables: Int[Tensor, "R most"],
    cu_seqlens_q: Int[Tensor, " R1"],
    seq_lens: Int[Tensor, " R"],
    *,
    max_seqlen_q: int,
    scale: float | None = None,
    workspace: Workspace | None = None,
    out: Float[Tensor, "T H D"] | None = None,
    backend: Backend = "auto",
    tile: AttentionTile | None = None,
) -> Float[Tensor, "T H D"]:
    """Attention of the new tokens of R requests over their blocks.

    Args:
        q: queries of all new tokens, request by request.
        keys, values: the pool; `(blocks, Hkv, size, D)`, so that a head's part of a block is one piece.
        block_tables: blocks of each request in order; what lies beyond its length is not looked at.
        cu_seqlens_q: where the new tokens of each request begin in q, and one more number, where they end.
            What q holds beyond is filling, and its output is not defined.
        seq_lens: keys of each request, the new ones included; a row that is not used has no new tokens.
        max_seqlen_q: new tokens of a request, at most: what the grid is made for, with no look at the device.
        scale: of the scores; 1 / √D if None.
        workspace: memory of the splits, which share out the keys of a request; without it there are none.
        out: where the result goes; new memory if None.
        tile: how a program goes through the keys; None takes `tiles.paged_tile`.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit; on the CPU also a table that points
            outside the pool, or seq_lens that are less than the new tokens.
    """
    _check(q, keys, values, block_tables, cu_seqlens_q, seq_lens, max_seqlen_q, workspace, out)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if resolve(backend, q.device, q.dtype) == "reference":
        mixed = paged_attention_reference(q, keys, values, block_tables, cu_seqlens_q, seq_lens, scale)
        return mixed if out is None else out.copy_(mixed)
    from llmcourse.kernels import paged_attention_triton
    from llmcourse.kernels.capabilities import compiles_for

    out = torch.empty_like(q) if out is None else out
    tile = tile or paged_tile(q.shape[-1], q.element_size(), compiles_for(90))
    scale *= math.log2(math.e)  # the kernel's exponentials are of base 2
    paged_attention_triton.launch(
        q, keys, values, block_tables, cu_seqlens_q, seq_lens, max_seqlen_q, scale, workspace, out, tile
    )
    return out


def _check(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    max_seqlen_q: int,
    workspace: Workspace | None,
    out: Tensor | None,
) -> None:
    check_dims("q", q, "T", "H", "D")
    check_dims("keys", keys, "blocks", "Hkv", "size", "D")
    check_dims("block_tables", block_tables, "R", "most")
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    check_dtype("q", q)
    if not 1 <= head_dim <= MOST_HEAD_DIM:
        raise ValueError(
            f"q must have a head size in [1, {MOST_HEAD_DIM}], got {head_dim}; split larger heads"
        )
    if len(block_tables) == 0:
        raise ValueError("block_tables must be of at least one request, got 0; leave an empty batch out")
    if min(num_heads, num_kv_heads) == 0 or num_heads % num_kv_heads or keys.shape[3] != head_dim:
        raise ValueError(
            f"q must have a multiple of {num_kv_heads} heads of size {keys.shape[3]} as the pool has, got "
            f"{num_heads} of {head_dim}; is this the cache of another model?"
        )
    check_memory("q", q, q)
    check_memory("keys", keys, q)
    check_tensor("values", values, tuple(keys.shape), q, "take keys and values from one layer of one pool")
    rows = block_tables.shape[0]
    whole = {"dtype": torch.int32}
    check_memory("block_tables", block_tables, q, **whole)
    check_tensor(
        "cu_seqlens_q", cu_seqlens_q, (rows + 1,), q, "pass one for each request and the end", **whole
    )
    check_tensor("seq_lens", seq_lens, (rows,), q, "pass one for each request", **whole)
    check_tensor("out", out, tuple(q.shape), q, "leave it at None for new memory")
    check_apart(out, q=q, keys=keys, values=values)
    if not is_count(max_seqlen_q):
        raise ValueError(
            f"max_seqlen_q must be an integer of at least 1, got {max_seqlen_q!r}; pass the longest chunk"
        )
    if workspace is not None:
        workspace.check(num_tokens, num_heads, num_kv_heads, head_dim, q.device)
    if block_tables.is_cpu:
        _check_contents(keys, block_tables, cu_seqlens_q, seq_lens, max_seqlen_q, num_tokens)


def _check_contents(
    keys: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    max_seqlen_q: int,
    num_tokens: int,
) -> None:
    """On the CPU alone: on a GPU looking at them would hold up every step."""
    new = cu_seqlens_q.diff()
    if cu_seqlens_q[0] != 0 or cu_seqlens_q[-1] > num_tokens or (new < 0).any():
        raise ValueError(
            f"cu_seqlens_q must rise from 0 and stay within the {num_tokens} tokens of q, got "
            f"{cu_seqlens_q.tolist()}; add up the chunks"
        )
    if (new > max_seqlen_q).any():
        raise ValueError(
            f"max_seqlen_q must be at least {new.max()}, got {max_seqlen_q}; pass the longest chunk"
        )
    if (seq_lens < new).any():
        raise ValueError(
            f"seq_lens must include the new tokens, {new.tolist()}, got {seq_lens.tolist()}; store them first"
        )
    num_blocks, size = keys.shape[0], keys.shape[2]
    for row, length in enumerate(seq_lens.tolist()):
        used = block_tables[row, : -(-length // size)]
        if used.numel() * size < length or ((used < 0) | (used >= num_blocks)).any():
            raise ValueError(
                f"block_tables must name blocks in [0, {num_blocks - 1}] for all {length} keys of request "
                f"{row}, got {used.tolist()}; allocate them first"
            )
