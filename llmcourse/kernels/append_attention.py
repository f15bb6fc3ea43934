"""Attention of several new tokens a row over its cache: what verifies drafts, or reads a text's last tokens.

As `decode_attention`, for a window of T tokens that ends at position p of each row: split the fused
projection, RMSNorm on the heads where the model has it, RoPE, write keys and values to their slots; the
token at position p − t attends to slots 0 … p − t. The positions lie on the device, so that a recorded
graph serves texts of any length. In a tree (`TreeMask`) the new tokens lie in the same slots, but each stands
at its depth behind the first, and sees of them its ancestors alone.

Old keys are cut into splits as there; the T · H / Hkv queries that share a key/value head are one tile, so
that they are read once for all T tokens, or a few where the registers do not hold them. New keys are attended
to by the first split, which stores them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.kernels.arguments import check_dims
from llmcourse.kernels.backend import Backend, resolve
from llmcourse.kernels.decode_attention import (
    MOST_SPLITS,
    HeadNorm,
    Workspace,
    check_inputs,
    launch_arguments,
    multiprocessors,
    num_splits,
)
from llmcourse.kernels.tiles import MOST_QUERIES, AttentionTile
from llmcourse.kernels.tree_mask import TreeMask

MOST_TOKENS = 64  # of a row
LEAST_KEYS = 256  # of a split, where the queries of a key head take several programs


def append_attention_reference(
    qkv: Float[Tensor, "B_T heads_D"],
    keys: Float[Tensor, "B Hkv S D"],
    values: Float[Tensor, "B Hkv S D"],
    positions: Int[Tensor, " B"],
    cos: Float[Tensor, "S half"],
    sin: Float[Tensor, "S half"],
    norm: HeadNorm | None = None,
    tree: TreeMask | None = None,
) -> Float[Tensor, "B_T H_D"]:
    """What `append_attention` computes, operation by operation."""
    batch, num_kv_heads, _, head_dim = keys.shape
    heads = qkv.view(batch, len(qkv) // batch, -1, head_dim).transpose(1, 2)  # (B, H + 2 Hkv, T, D)
    q, k, v = heads.split([heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=1)
    if norm is not None:
        q, k = (F.rms_norm(x, (head_dim,), w, norm.eps) for x, w in ((q, norm.q), (k, norm.k)))
    num_tokens = heads.shape[2]
    begin, offsets = positions[:, None] + 1 - num_tokens, torch.arange(num_tokens, device=qkv.device)
    slots, stands = begin + offsets, begin + (offsets if tree is None else tree.depths)  # (B, T)
    c, s = cos[stands][:, None], sin[stands][:, None]  # (B, 1, T, D / 2)
    c, s = torch.cat((c, c), -1), torch.cat((-s, s), -1)
    q, k = (x * c + x.roll(head_dim // 2, -1) * s for x in (q, k))
    rows = torch.arange(batch, device=qkv.device)[:, None]
    keys[rows, :, slots], values[rows, :, slots] = k.transpose(1, 2), v.transpose(1, 2)
    extent = int(slots.max()) + 1
    seen = torch.arange(extent, device=qkv.device) <= slots[..., None]  # (B, T, S)
    if tree is not None:
        seen.scatter_(2, slots[:, None].expand(-1, num_tokens, -1), tree.sees.expand(batch, -1, -1))
    mixed = F.scaled_dot_product_attention(
        q,
        keys[:, :, :extent],
        values[:, :, :extent],
        attn_mask=seen[:, None],
        enable_gqa=q.shape[1] > num_kv_heads,
    )
    return mixed.transpose(1, 2).reshape(len(qkv), -1)


def append_attention(
    qkv: Float[Tensor, "B_T heads_D"],
    keys: Float[Tensor, "B Hkv S D"],
    values: Float[Tensor, "B Hkv S D"],
    positions: Int[Tensor, " B"],
    cos: Float[Tensor, "S half"],
    sin: Float[Tensor, "S half"],
    norm: HeadNorm | None = None,
    tree: TreeMask | None = None,
    *,
    workspace: Workspace | None = None,
    out: Float[Tensor, "B_T H_D"] | None = None,
    backend: Backend = "auto",
    pdl: bool = False,
    tile: AttentionTile | None = None,
) -> Float[Tensor, "B_T H_D"]:
    """T tokens a row: rotates and stores their keys, stores their values; each attends to all up to it.

    Args:
        qkv: the fused projection of the T tokens of the first row, then of the second, and so on.
        keys, values: one whole layer of the cache; slots p − T + 1 to p of each row are written.
        positions: p, of the last new token of each row, on the device; each at least T − 1 and below S,
            which on a GPU nobody looks for.
        cos, sin: of the angles of every position.
        tree: which of the T tokens each one sees; None for a chain, where that is all up to it.
        workspace: memory of the splits, for B · T rows; None makes it, which a loop should not.
        out: where the result goes; new memory if None.
        pdl: launch before the previous kernel has ended (see `launch`); without effect before Hopper.
        tile: how a program goes through the cache, in registers (no stages); None takes `append_tile`'s.

    Raises:
        ValueError: shapes, dtypes, devices or memory that do not fit, a tree of another size, more than
            `MOST_TOKENS` tokens a row, or a backend that cannot run; on the CPU also positions past the
            cache.
    """
    num_heads = _num_query_heads(qkv, keys)
    _check_tree(tree, len(qkv) // len(keys), qkv.device)
    check_inputs(num_heads, qkv, keys, values, positions, cos, sin, norm, workspace, out)
    _check_positions(positions, len(qkv) // len(keys) - 1, keys.shape[2] - 1)
    if resolve(backend, qkv.device, qkv.dtype) == "reference":
        mixed = append_attention_reference(qkv, keys, values, positions, cos, sin, norm, tree)
        return mixed if out is None else out.copy_(mixed)
    from llmcourse.kernels.append_attention_triton import launch

    batch, num_kv_heads, capacity, head_dim = keys.shape
    num_tokens = len(qkv) // batch
    tile = tile or append_tile(keys, num_heads, num_tokens)
    if workspace is None:
        splits = append_splits(keys, num_heads, num_tokens, tile)
        workspace = Workspace(len(qkv), num_heads, num_kv_heads, head_dim, splits, qkv.device)
    out = qkv.new_empty(len(qkv), num_heads * head_dim) if out is None else out
    inputs = (qkv, keys, values, positions, cos, sin)
    launch(*launch_arguments(*inputs, norm, workspace, out, tile, capacity), num_tokens, tree, tile, pdl)
    return out


def append_tile(keys: Float[Tensor, "B Hkv S D"], num_heads: int, num_tokens: int) -> AttentionTile:
    """Keys at a time, and warps enough to hold the queries, their rotation and the sums in registers."""
    queries = min(MOST_QUERIES, 1 << (max(16, num_tokens * num_heads // keys.shape[1]) - 1).bit_length())
    row_bytes = keys.shape[3] * keys.element_size()
    if keys.element_size() > 2:
        return AttentionTile(block=32, warps=16 if queries * row_bytes > 2**13 else 8)
    wide = keys.shape[3] > 128 or queries > 32
    return AttentionTile(block=32 if wide else 64, warps=4 if queries * row_bytes <= 2**12 else 8)


def append_splits(
    keys: Float[Tensor, "B Hkv S D"], num_heads: int, num_tokens: int, tile: AttentionTile
) -> int:
    """Of the cache, so that the programs about fill the chip.

    Where the queries of a key head take several programs, each has a multiprocessor to itself, holding as
    many as registers allow, and what its splits leave is long to join: each is to read `LEAST_KEYS`. (A tree
    of 64 tokens behind a short text: one split is the fastest, raw/tree64_nvidia_h200.jsonl in the results.)
    """
    batch, num_kv_heads, capacity, _ = keys.shape
    processors = multiprocessors(keys.device)
    blocks = query_blocks(num_tokens, num_heads, num_kv_heads)
    if blocks == 1:
        return num_splits(batch, num_kv_heads, capacity, tile, processors)
    wanted = min(processors // (batch * blocks * num_kv_heads), capacity // LEAST_KEYS, MOST_SPLITS)
    return 1 << (max(1, wanted).bit_length() - 1)


def query_blocks(num_tokens: int, num_heads: int, num_kv_heads: int) -> int:
    """How many programs share out the queries of a key head, each reading its keys."""
    return -(-num_tokens * num_heads // (num_kv_heads * MOST_QUERIES))


def _check_tree(tree: TreeMask | None, num_tokens: int, device: torch.device) -> None:
    if tree is not None and (len(tree) != num_tokens or tree.sees.device != device):
        raise ValueError(
            f"tree must be of {num_tokens} tokens on {device}, as qkv has for each row, got {len(tree)} on "
            f"{tree.sees.device}; the root counts, too"
        )


def _check_positions(positions: Tensor, first: int, last: int) -> None:
    """On the CPU alone: on a GPU looking at them would hold up every step."""
    if positions.is_cpu and not first <= positions.min() <= positions.max() <= last:
        raise ValueError(
            f"positions must be in [{first}, {last}], where the new tokens fit into the cache, got "
            f"{positions.tolist()}; make a cache with more slots"
        )


def _num_query_heads(qkv: Tensor, keys: Tensor) -> int:
    check_dims("qkv", qkv, "B · T", "(H + 2 Hkv) · D")
    check_dims("keys", keys, "B", "Hkv", "S", "D")
    batch, num_kv_heads, _, head_dim = keys.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    if not len(qkv) or len(qkv) % batch:
        raise ValueError(
            f"qkv must have the same number of tokens for each of the cache's {batch} rows, got {len(qkv)} "
            "tokens; pad the rows that have fewer"
        )
    if qkv.shape[1] % head_dim or num_heads < 1 or num_heads % num_kv_heads or head_dim % 2:
        raise ValueError(
            f"qkv must hold (H + 2 · {num_kv_heads}) · {head_dim} columns, H a multiple of {num_kv_heads} "
            f"and the head size even, got {qkv.shape[1]}; is this the cache of another model?"
        )
    if len(qkv) // batch > MOST_TOKENS:
        raise ValueError(
            f"qkv must have at most {MOST_TOKENS} tokens a row, got {len(qkv) // batch}; pass fewer"
        )
    group = num_heads // num_kv_heads
    if group > MOST_QUERIES:
        raise ValueError(f"qkv must have at most {MOST_QUERIES} query heads for a key head, got {group}")
    return num_heads
