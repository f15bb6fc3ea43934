"""Scaled dot-product attention: each query takes a weighted mean of the values.

    Attention(Q, K, V) = softmax(Q Kᵀ / √D) V      (Vaswani et al. 2017, section 3.2.1)

Letters: B batch, T query length, S key length, H query heads, Hkv key/value heads, D head size.
With grouped-query attention (Ainslie et al. 2023) H / Hkv query heads share one key/value head.

The contract of every attention here: softmax in fp32 or wider, the result in the dtype of q; no
mask means causal; a query that may look at no key gets zeros, an empty sum.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Attention(Protocol):
    """What a decoder layer calls; anything with this signature and contract can be passed in."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor: ...


def causal_mask(query_len: int, key_len: int, device: torch.device | str = "cpu") -> Bool[Tensor, "T S"]:
    """Which keys each query may see: the queries are the last `query_len` of the keys.

    Raises:
        ValueError: there are more queries than keys.
    """
    if query_len > key_len:
        raise ValueError(
            f"query_len must be at most key_len = {key_len}, got {query_len}; "
            "give a mask where the queries are not the last of the keys"
        )
    positions = torch.arange(key_len - query_len, key_len, device=device)
    return torch.arange(key_len, device=device) <= positions[:, None]


def attention_reference(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv S D"],
    v: Float[Tensor, "B Hkv S D"],
    mask: Bool[Tensor, "B T S"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """The definition, line by line. It materialises all `B * H * T * S` scores.

    Args:
        mask: True where a query may look at a key; None means causal, the queries being
            the last T of the S keys.

    Raises:
        ValueError: H is no multiple of Hkv, or causal with T > S.
    """
    group = group_size(q, k)
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if mask is None:
        mask = causal_mask(q.shape[2], k.shape[2], q.device)[None]
    hidden = ~mask[:, None]
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    weights = weights.masked_fill(hidden, 0.0)  # a row without keys is 0/0 until here
    return (weights @ v.to(wide)).to(q.dtype)


def sdpa(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B Hkv S D"],
    v: Float[Tensor, "B Hkv S D"],
    mask: Bool[Tensor, "B T S"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """The same function through `torch.nn.functional.scaled_dot_product_attention`.

    PyTorch chooses a fused kernel where it has one, and its fastest take no mask: so none is
    made where causality needs none. Arguments and errors as in `attention_reference`. NaN stays
    in its row of the batch, but the CPU kernel answers a query that is NaN with zeros.
    """
    gqa = group_size(q, k) > 1
    queries, keys = q.shape[2], k.shape[2]
    if mask is None and queries not in (1, keys):  # one query, the last, sees every key
        mask = causal_mask(queries, keys, q.device)[None]
    causal = mask is None and queries > 1
    attn_mask = None if mask is None else mask[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=causal, enable_gqa=gqa)


def group_size(q: Tensor, k: Tensor) -> int:
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"query heads must be a multiple of key/value heads, got {q.shape[1]} and {k.shape[1]}"
        )
    return q.shape[1] // k.shape[1]
