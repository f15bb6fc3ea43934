"""Attention over a cache in blocks: for requests of any lengths, each with any number of new tokens.

The keys and values of all requests lie in one pool of blocks, a few tokens each, and a table says which are
a request's and in what order (PagedAttention, Kwon et al. 2023, section 4). The new tokens of all requests
stand one after the other, so a batch may mix requests that decode one token with chunks of prompts.

Of a request with n new tokens and m keys in all, new token i sees keys 0 … m − n + i: attention is causal,
aligned to the end. Its new keys and values are in the pool before (`store`).
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


def store_reference(
    new: Float[Tensor, "T Hkv D"], pool: Float[Tensor, "blocks Hkv size D"], slots: Int[Tensor, " T"]
) -> None:
    """What `store` does: token by token, those that are stored."""
    kept, block_size = slots >= 0, pool.shape[2]
    slots = slots[kept]
    pool[slots // block_size, :, slots % block_size] = new[kept]


def paged_attention_reference(
    q: Float[Tensor, "T H D"],
    keys: Float[Tensor, "blocks Hkv size D"],
    values: Float[Tensor, "blocks Hkv size D"],
    tables: Int[Tensor, "R most"],
    starts: Int[Tensor, " R1"],
    lengths: Int[Tensor, " R"],
    scale: float | None = None,
) -> Float[Tensor, "T H D"]:
    """What `paged_attention` computes, request by request."""
    scoring = Scoring(q.shape[-1] ** -0.5 if scale is None else scale)
    out = torch.zeros_like(q)
    for row, length in enumerate(lengths.tolist()):
        first, end = starts[row].item(), starts[row + 1].item()
        if first == end:
            continue
        blocks = tables[row, : -(-length // keys.shape[2])].long()
        k, v = (pool[blocks].transpose(0, 1).flatten(1, 2)[None, :, :length] for pool in (keys, values))
        mixed, _ = flash_attention_reference(q[None, first:end].transpose(1, 2), k, v, scoring)
        out[first:end] = mixed[0].transpose(0, 1)
    return out


def store(
    new: Float[Tensor, "T Hkv D"],
    pool: Float[Tensor, "blocks Hkv size D"],
    slots: Int[Tensor, " T"],
    *,
    backend: Backend = "auto",
) -> None:
    """Writes keys, or values, of new tokens to their places in the pool.

    Args:
        slots: block · size + place in it, of each token; negative for one that is stored nowhere, such as
            those that fill up a batch of fixed size.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit; on the CPU also a slot beyond the pool,
            which on a GPU nobody looks for.
    """
    check_dims("new", new, "T", "Hkv", "D")
    check_dims("pool", pool, "blocks", "Hkv", "size", "D")
    blocks, num_kv_heads, size, head_dim = pool.shape
    check_tensor("new", new, (len(new), num_kv_heads, head_dim), pool, "take the heads that the pool holds")
    check_tensor("slots", slots, (len(new),), new, "pass one for each token", dtype=torch.long)
    check_memory("pool", pool, new)
    if slots.is_cpu and len(slots) and slots.max() >= blocks * size:
        raise ValueError(f"slots must be below {blocks * size}, got {slots.max()}; take them from the pool")
    if resolve(backend, new.device, new.dtype) == "reference":
        return store_reference(new, pool, slots)
    from llmcourse.kernels import paged_attention_triton

    paged_attention_triton.launch_store(new, pool, slots)


def paged_attention(
    q: Float[Tensor, "T H D"],
    keys: Float[Tensor, "blocks Hkv size D"],
    values: Float[Tensor, "blocks Hkv size D"],
    tables: Int[Tensor, "R most"],
    starts: Int[Tensor, " R1"],
    lengths: Int[Tensor, " R"],
    *,
    most_new: int,
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
        tables: blocks of each request in order; what lies beyond its length is not looked at.
        starts: where the new tokens of each request begin in q, and one more number, where they end. What q
            holds beyond is filling, and its output is not defined.
        lengths: keys of each request, the new ones included; a row that is not used has no new tokens.
        most_new: new tokens of a request, at most: what the grid is made for, with no look at the device.
        scale: of the scores; 1 / √D if None.
        workspace: memory of the splits, which share out the keys of a request; without it there are none.
        out: where the result goes; new memory if None.
        tile: how a program goes through the keys; None takes `tiles.paged_tile`.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit; on the CPU also a table that points
            outside the pool, or lengths that are less than the new tokens.
    """
    _check(q, keys, values, tables, starts, lengths, most_new, workspace, out)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if resolve(backend, q.device, q.dtype) == "reference":
        mixed = paged_attention_reference(q, keys, values, tables, starts, lengths, scale)
        return mixed if out is None else out.copy_(mixed)
    from llmcourse.kernels import paged_attention_triton
    from llmcourse.kernels.capabilities import compiles_for

    out = torch.empty_like(q) if out is None else out
    tile = tile or paged_tile(q.shape[-1], q.element_size(), compiles_for(90))
    scale *= math.log2(math.e)  # the kernel's exponentials are of base 2
    paged_attention_triton.launch(
        q, keys, values, tables, starts, lengths, most_new, scale, workspace, out, tile
    )
    return out


def _check(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    most_new: int,
    workspace: Workspace | None,
    out: Tensor | None,
) -> None:
    check_dims("q", q, "T", "H", "D")
    check_dims("keys", keys, "blocks", "Hkv", "size", "D")
    check_dims("tables", tables, "R", "most")
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    check_dtype("q", q)
    if not 1 <= head_dim <= MOST_HEAD_DIM:
        raise ValueError(
            f"q must have a head size in [1, {MOST_HEAD_DIM}], got {head_dim}; split larger heads"
        )
    if len(tables) == 0:
        raise ValueError("tables must be of at least one request, got 0; leave an empty batch out")
    if min(num_heads, num_kv_heads) == 0 or num_heads % num_kv_heads or keys.shape[3] != head_dim:
        raise ValueError(
            f"q must have a multiple of {num_kv_heads} heads of size {keys.shape[3]} as the pool has, got "
            f"{num_heads} of {head_dim}; is this the cache of another model?"
        )
    check_memory("q", q, q)
    check_memory("keys", keys, q)
    check_tensor("values", values, tuple(keys.shape), q, "take keys and values from one layer of one pool")
    rows = tables.shape[0]
    whole = {"dtype": torch.int32}
    check_memory("tables", tables, q, **whole)
    check_tensor("starts", starts, (rows + 1,), q, "pass one for each request and the end", **whole)
    check_tensor("lengths", lengths, (rows,), q, "pass one for each request", **whole)
    check_tensor("out", out, tuple(q.shape), q, "leave it at None for new memory")
    check_apart(out, q=q, keys=keys, values=values)
    if not is_count(most_new):
        raise ValueError(
            f"most_new must be an integer of at least 1, got {most_new!r}; pass the longest chunk"
        )
    if workspace is not None:
        workspace.check(num_tokens, num_heads, num_kv_heads, head_dim, q.device)
    if tables.is_cpu:
        _check_contents(keys, tables, starts, lengths, most_new, num_tokens)


def _check_contents(
    keys: Tensor, tables: Tensor, starts: Tensor, lengths: Tensor, most_new: int, num_tokens: int
) -> None:
    """On the CPU alone: on a GPU looking at them would hold up every step."""
    new = starts.diff()
    if starts[0] != 0 or starts[-1] > num_tokens or (new < 0).any():
        raise ValueError(
            f"starts must rise from 0 and stay within the {num_tokens} tokens of q, got {starts.tolist()}; "
            "add up the chunks"
        )
    if (new > most_new).any():
        raise ValueError(f"most_new must be at least {new.max()}, got {most_new}; pass the longest chunk")
    if (lengths < new).any():
        raise ValueError(
            f"lengths must include the new tokens, {new.tolist()}, got {lengths.tolist()}; store them first"
        )
    num_blocks, size = keys.shape[0], keys.shape[2]
    for row, length in enumerate(lengths.tolist()):
        used = tables[row, : -(-length // size)]
        if used.numel() * size < length or ((used < 0) | (used >= num_blocks)).any():
            raise ValueError(
                f"tables must name blocks in [0, {num_blocks - 1}] for all {length} keys of request {row}, "
                f"got {used.tolist()}; allocate them first"
            )
