"""What a kernel would read or write wrongly is refused by name, whichever backend was to run.

Run beside `contract.py`, in a process where nothing but the operations themselves checks shapes.
"""

import re
from collections.abc import Callable

import pytest
import torch

from llmcourse.kernels.decode_attention import HeadNorm, Workspace, decode_attention
from llmcourse.kernels.flash_attention import flash_attention
from llmcourse.kernels.flash_attention_varlen import flash_attention_varlen
from llmcourse.kernels.linear import linear
from llmcourse.kernels.tokens import Choice, choose, embed
from llmcourse.kv_cache import KVCache
from tests.kernels.contract import DEVICE

HALF = torch.float16


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=DEVICE)


def every_other(*shape: int) -> torch.Tensor:
    """Of this shape, and not contiguous."""
    return ones(*shape[:-1], 2 * shape[-1])[..., ::2]


def whole(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device=DEVICE)


def bounds(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def norm(q: int = 4, k: int = 4, **kind) -> HeadNorm:
    return HeadNorm(ones(q, **kind), ones(k, **kind), 1e-6)


def workspace(*sizes: int) -> Workspace:
    return Workspace(*sizes, 2, DEVICE)


def held(num_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer of a cache of 8 slots as `write` returns it, so many slots long."""
    cache = KVCache(1, 2, 1, 8, 4, device=DEVICE)
    _, _ = cache.reserve(num_slots)
    kv = ones(2, 1, num_slots, 4)
    return cache.write(0, kv, kv, torch.arange(num_slots, device=DEVICE).expand(2, -1))


X = ones(2, 6)
QKV = ones(2, 16)


def linear_of(**given) -> None:
    linear(**{"x": X, "weight": ones(8, 6), **given})


def attention_of(**given) -> None:
    cache = {"keys": ones(2, 1, 8, 4), "values": ones(2, 1, 8, 4), "positions": whole(2)}
    decode_attention(**{"qkv": QKV, **cache, "cos": ones(8, 2), "sin": ones(8, 2), **given})


def flash_attention_of(**given) -> None:
    fitting = {"q": ones(2, 4, 3, 32), "k": ones(2, 2, 5, 32), "v": ones(2, 2, 5, 32)}
    flash_attention(**{**fitting, **given})


def flash_attention_varlen_of(**given) -> None:
    rows = {"q": ones(7, 4, 32), "k": ones(9, 2, 32), "v": ones(9, 2, 32)}
    fitting = rows | {"cu_seqlens_q": bounds(0, 4, 7), "cu_seqlens_k": bounds(0, 6, 9)}
    flash_attention_varlen(**{**fitting, **given})


def embed_of(**given) -> None:
    embed(**{"text": whole(2, 5), "positions": whole(2), "table": ones(9, 6), **given})


def choose_of(**given) -> None:
    fitting = {
        "logits": ones(2, 9),
        "text": whole(2, 5),
        "positions": whole(2),
        "choice": Choice(2, 9, DEVICE),
    }
    choose(**{**fitting, **given})


# Of each operation, whose other arguments fit: what does not, and what the refusal says.
REFUSED: dict[Callable, list[tuple[dict, str]]] = {
    linear_of: [
        ({"x": ones(6)}, "x must have 2 dimensions, (B, K), got shape (6,)"),
        ({"x": ones(2, 5)}, "x must have shape (2, 6), got (2, 5); it needs the columns that weight has"),
        ({"x": every_other(2, 6)}, "x must be contiguous, got strides (12, 2) for (2, 6); call"),
        ({"weight": ones(8)}, "weight must have 2 dimensions, (rows, K), got shape (8,)"),
        ({"weight": ones(6, 8).T}, "weight must be contiguous"),
        ({"weight": ones(8, 6, dtype=HALF)}, "weight must be in torch.float32 on"),
        ({"weight": ones(7, 6), "gated": True}, "an even number of rows and no bias, got 7 rows"),
        ({"gated": True, "bias": ones(4)}, "an even number of rows and no bias, got 8 rows and a bias"),
        ({"weight": ones(8, 6).to("meta")}, f"weight must be in torch.float32 on {X.device}, got torch"),
        ({"norm": ones(5)}, "norm must have shape (6,), got (5,); pass a weight for each column of x"),
        ({"norm": ones(6, dtype=HALF)}, "norm must be in torch.float32"),
        ({"bias": ones(3)}, "bias must have shape (8,), got (3,)"),
        ({"bias": every_other(8)}, "bias must be contiguous"),
        ({"residual": ones(2, 7)}, "residual must have shape (2, 8), got (2, 7)"),
        ({"residual": ones(8, 2).T}, "residual must be contiguous"),
        ({"out": ones(2, 9)}, "out must have shape (2, 8), got (2, 9); leave it at None for new memory"),
        ({"out": ones(4, 8)[::2]}, "out must be contiguous, got strides (16, 1) for (2, 8); leave it"),
        ({"out": whole(2, 8)}, "out must be in torch.float32"),
        ({"out": X[:, :], "weight": ones(6, 6)}, "out must be memory of its own, got that of x"),
        ({"out": QKV[:1, :8], "residual": QKV[:1, :8], "x": ones(1, 6)}, "got that of residual"),
    ],
    attention_of: [
        ({"qkv": ones(1, 16)}, "qkv must have 2 rows as the cache has, got 1"),
        ({"qkv": ones(2, 18)}, "qkv must hold (H + 2 · 1) · 4 columns"),
        ({"qkv": every_other(2, 16)}, "qkv must be contiguous"),
        ({"qkv": ones(2, 4, 4)}, "qkv must have 2 dimensions"),
        ({"keys": ones(2, 8, 4)}, "keys must have 4 dimensions, (B, Hkv, S, D), got shape (2, 8, 4)"),
        ({"keys": held(6)[0], "values": ones(2, 1, 6, 4)}, "keys must be contiguous, got strides (32, 32,"),
        ({"keys": ones(2, 1, 6, 4), "values": held(6)[1]}, "values must be contiguous"),
        ({"keys": held(6)[0]}, "pass a whole layer of the cache, as `cache.keys[layer]`"),
        ({"keys": ones(2, 1, 8, 4, dtype=HALF)}, "keys must be in torch.float32"),
        ({"values": ones(2, 1, 7, 4)}, "values must have shape (2, 1, 8, 4), got (2, 1, 7, 4)"),
        ({"values": ones(2, 1, 8, 4, dtype=HALF)}, "values must be in torch.float32"),
        ({"positions": whole(1)}, "positions must have shape (2,), got (1,)"),
        ({"positions": whole(2).int()}, "positions must be in torch.int64"),
        ({"cos": ones(7, 2)}, "cos must have shape (8, 2), got (7, 2); pass the angles of the 8 slots"),
        ({"sin": ones(7, 2)}, "sin must have shape (8, 2), got (7, 2)"),
        ({"sin": ones(8, 4)}, "sin must have shape (8, 2), got (8, 4)"),
        ({"cos": ones(2, 8).T}, "cos must be contiguous"),
        ({"cos": ones(8, 2, dtype=torch.float64)}, "cos must be in torch.float32"),
        ({"norm": norm(q=3)}, "norm.q must have shape (4,), got (3,)"),
        ({"norm": norm(k=5)}, "norm.k must have shape (4,), got (5,)"),
        ({"norm": norm(dtype=HALF)}, "norm.q must be in torch.float32"),
        ({"workspace": workspace(2, 1, 1, 4)}, "workspace must be for (batch_size, num_heads, num_kv_heads,"),
        ({"workspace": workspace(1, 2, 1, 4)}, "got (1, 2, 1, 4, "),
        ({"workspace": workspace(2, 2, 2, 4)}, "got (2, 2, 2, 4, "),
        ({"workspace": workspace(2, 2, 1, 8)}, "make one for these, or leave it at None"),
        ({"out": ones(2, 12)}, "out must have shape (2, 8), got (2, 12)"),
        ({"out": ones(4, 8)[::2]}, "out must be contiguous"),
        ({"out": ones(2, 8, dtype=HALF)}, "out must be in torch.float32"),
        ({"out": QKV.view(-1)[:16].view(2, 8)}, "out must be memory of its own, got that of qkv"),
    ],
    flash_attention_of: [
        ({"q": ones(4, 3, 32)}, "q must have 4 dimensions, (B, H, T, D), got shape (4, 3, 32)"),
        ({"q": ones(2, 4, 3, 48)}, "head size of (32, 64, 96, 128, 256), got 48; pad q, k and v with zeros"),
        ({"k": ones(2, 5, 32)}, "k must have 4 dimensions, (B, Hkv, S, D), got shape (2, 5, 32)"),
        ({"k": ones(1, 2, 5, 32)}, "k must have shape (2, Hkv, S, 32) as q has, got (1, 2, 5, 32); take"),
        ({"k": ones(2, 2, 5, 64)}, "k must have shape (2, Hkv, S, 32) as q has, got (2, 2, 5, 64); take"),
        ({"v": ones(2, 2, 4, 32)}, "v must have shape (2, 2, 5, 32) as k has, got (2, 2, 4, 32)"),
        ({"v": ones(2, 1, 5, 32)}, "v must have shape (2, 2, 5, 32) as k has, got (2, 1, 5, 32)"),
        ({"q": ones(2, 3, 3, 32)}, "query heads must be a multiple of key/value heads, got 3 and 2"),
        ({"k": ones(2, 0, 5, 32), "v": ones(2, 0, 5, 32)}, "key/value heads, got 4 and 0; split the"),
        ({"q": ones(2, 4, 3, 32, dtype=HALF)}, "k must be in torch.float16 on"),
        ({"v": ones(2, 2, 5, 32, dtype=HALF)}, "v must be in torch.float32 on"),
        ({"v": ones(2, 2, 5, 32).to("meta")}, "v must be in torch.float32 on"),
        ({"q": every_other(2, 4, 3, 32)}, "q must have features side by side, a last stride of 1, got"),
        ({"k": ones(2, 2, 32, 5).mT}, "k must have features side by side, a last stride of 1, got"),
        ({"v": every_other(2, 2, 5, 32)}, "(640, 320, 64, 2); call .contiguous()"),
        ({"q": ones(2, 0, 3, 32)}, "query heads must be a multiple of key/value heads, got 0 and 2"),
        ({"q": whole(2, 4, 3, 32)}, "q must be in one of float16, bfloat16, float32, float64, got"),
        ({"q": ones(0, 4, 3, 32), "k": ones(0, 2, 5, 32)}, "q must hold at least one sequence of at least"),
        ({"q": ones(2, 4, 0, 32)}, "one token, got shape (2, 4, 0, 32); leave an empty batch out"),
        ({"k": ones(2, 2, 0, 32)}, "k must hold at least one sequence of at least one token, got shape (2,"),
        ({"bias": ones(3, 5)}, "bias must have 4 dimensions, (B or 1, H or 1, T or 1, S), got shape (3, 5)"),
        ({"bias": ones(1, 1, 3, 1)}, "bias must have shape (2, 4, 3, 5), in which all but the last may be"),
        ({"bias": ones(1, 2, 3, 5)}, "may be 1, got (1, 2, 3, 5); give every key a number"),
        ({"bias": ones(2, 4, 2, 5)}, "may be 1, got (2, 4, 2, 5); give every key a number"),
        ({"bias": ones(2, 4, 3, 6)}, "may be 1, got (2, 4, 3, 6); give every key a number"),
        ({"bias": ones(1, 1, 3, 5, dtype=torch.bool)}, "bias must hold numbers, got torch.bool; make a mask"),
        ({"bias": ones(1, 1, 3, 5, dtype=HALF)}, "bias must be in one of float32, got torch.float16"),
        ({"bias": ones(1, 1, 3, 5).to("meta")}, "bias must be in torch.float32 on"),
        ({"window": 0}, "[1, 2**31) and go with causal=True, got 0 with causal=True"),
        ({"window": True}, "window must be an integer in [1, 2**31) and go with causal=True, got True"),
        ({"window": 2**31}, "window must be an integer in [1, 2**31) and go with causal=True, got 2147"),
        ({"window": 4, "causal": False}, "go with causal=True, got 4 with"),
        ({"softcap": 0.0}, "softcap must be positive and finite, got 0.0; leave it at None"),
        ({"scale": -1.0}, "scale must be positive and finite, got -1.0; leave it at None"),
        ({"scale": float("nan")}, "scale must be positive and finite, got nan"),
        ({"scale": True}, "scale must be positive and finite, got True"),
        ({"softcap": "50"}, "softcap must be positive and finite, got '50'"),
        ({"window": 1.5}, "window must be an integer in [1, 2**31) and go with causal=True, got 1.5"),
        ({"causal": "no"}, "causal must be True or False, got 'no'"),
        ({"q": [1.0]}, "q must be a tensor, (B, H, T, D), got list; make it one"),
    ],
    flash_attention_varlen_of: [
        ({"q": ones(1, 4, 7, 32)}, "q must have 3 dimensions, (total_q, H, D), got shape (1, 4, 7, 32)"),
        ({"k": ones(1, 2, 9, 32)}, "k must have 3 dimensions, (total_k, Hkv, D), got shape (1, 2, 9, 32)"),
        ({"q": ones(7, 4, 80), "k": ones(9, 2, 80)}, "q must have a head size of (32, 64, 96, 128, 256),"),
        ({"k": ones(9, 2, 64)}, "k must have shape (total_k, Hkv, 32) as q has, got (9, 2, 64); take both"),
        ({"v": ones(8, 2, 32)}, "v must have shape (9, 2, 32) as k has, got (8, 2, 32); pass both alike"),
        ({"q": ones(7, 3, 32)}, "query heads must be a multiple of key/value heads, got 3 and 2"),
        ({"q": every_other(7, 4, 32)}, "q must have features side by side, a last stride of 1, got strides"),
        ({"v": ones(9, 2, 32, dtype=HALF)}, "v must be in torch.float32 on"),
        ({"cu_seqlens_q": bounds(0, 4, 7)[None]}, "cu_seqlens_q must have 1 dimensions, (R + 1), got shape"),
        ({"cu_seqlens_q": bounds(0, 4, 7).long()}, "cu_seqlens_q must be in torch.int32 on"),
        ({"cu_seqlens_k": bounds(0, 6, 9).to("meta")}, "cu_seqlens_k must be in torch.int32 on"),
        ({"cu_seqlens_k": bounds(0, 1, 6, 8, 9)[::2]}, "cu_seqlens_k must be contiguous, got strides (2,)"),
        ({"cu_seqlens_q": bounds(0)}, "cu_seqlens_q must bound at least one sequence, got 1 numbers; leave"),
        ({"cu_seqlens_k": bounds(0, 9)}, "cu_seqlens_k must have shape (3,), got (2,); pass one for each"),
        ({"cu_seqlens_q": bounds(1, 4, 7)}, "cu_seqlens_q must rise from 0 to the 7 rows there are, got [1,"),
        ({"cu_seqlens_q": bounds(0, 8, 7)}, "cu_seqlens_q must rise from 0 to the 7 rows there are, got [0,"),
        ({"cu_seqlens_q": bounds(0, 4, 6)}, "cu_seqlens_q must rise from 0 to the 7 rows there are, got [0,"),
        ({"cu_seqlens_k": bounds(0, 6, 10)}, "cu_seqlens_k must rise from 0 to the 9 rows there are, got"),
        ({"max_seqlen_q": True}, "max_seqlen_q must be an integer, got True; leave it at None to look it up"),
        ({"max_seqlen_q": -1}, "max_seqlen_q must be at least"),
        ({"max_seqlen_k": -1}, "the longest sequence, got -1; leave it at None to look it up"),
        ({"window": 0}, "window must be an integer in [1, 2**31) and go with causal=True, got 0"),
        *[({"max_seqlen_q": 3}, "must be at least 4, the longest sequence, got 3")][: DEVICE.type == "cpu"],
    ],
    embed_of: [
        ({"table": ones(9)}, "table must have 2 dimensions, (V, C), got shape (9,)"),
        ({"table": ones(6, 9).T}, "table must be contiguous"),
        ({"text": whole(10)}, "text must have 2 dimensions, (B, S), got shape (10,)"),
        ({"text": whole(5, 2).T}, "text must be contiguous"),
        ({"text": whole(2, 5).int()}, "text must be in torch.int64"),
        ({"positions": whole(3)}, "positions must have shape (2,), got (3,)"),
        ({"positions": whole(4)[::2]}, "positions must be contiguous"),
        ({"out": ones(2, 7)}, "out must have shape (2, 6), got (2, 7)"),
        ({"out": every_other(2, 6)}, "out must be contiguous"),
        ({"out": ones(2, 6, dtype=HALF)}, "out must be in torch.float32"),
    ],
    choose_of: [
        ({"logits": ones(9)}, "logits must have 2 dimensions, (B, V), got shape (9,)"),
        ({"logits": every_other(2, 9)}, "logits must have the numbers of a row side by side"),
        ({"text": whole(3, 5)}, "text must have shape (2, 5), got (3, 5)"),
        ({"text": whole(5, 2).T}, "text must be contiguous"),
        ({"positions": whole(2).int()}, "positions must be in torch.int64"),
        ({"positions": whole(1)}, "positions must have shape (2,), got (1,)"),
        ({"choice": Choice(1, 9, DEVICE)}, "choice must be for (batch_size, vocab_size, device) (2, 9, "),
        ({"choice": Choice(2, 8, DEVICE)}, "got (2, 8, "),
    ],
}  # fmt: skip
CASES = [(operation, *case) for operation, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(("operation", "changes", "message"), CASES, ids=[case[2][:40] for case in CASES])
def test_what_does_not_fit_is_refused(operation, changes, message, backend):
    with pytest.raises(ValueError, match=re.escape(message)):
        operation(backend=backend, **changes)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("operation", REFUSED)
def test_what_fits_is_not(operation, backend):
    operation(backend=backend)
