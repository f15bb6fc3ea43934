"""Paged attention keeps its contract: over drawn batches of decoding requests and chunks of prompts.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too.
"""

import itertools
import re

import pytest
import torch

from llmcourse.kernels.decode_attention import SplitParts
from llmcourse.kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
    store,
    store_reference,
)
from tests.kernels.contract import DEVICE, DTYPES, check, random, seeded  # noqa: F401

SIZE, BLOCKS = 16, 40
# H, Hkv, D, and of each request its keys and how many of them are new
BATCHES = {
    "one that decodes": (4, 2, 32, [(40, 1)]),
    "all that decode": (8, 2, 16, [(1, 1), (16, 1), (17, 1), (100, 1)]),
    "a whole prompt": (2, 2, 24, [(33, 33)]),
    "chunks among decoding": (6, 2, 32, [(50, 1), (70, 30), (5, 5), (48, 1)]),
    "one head for all": (5, 1, 16, [(20, 3), (90, 64)]),
    "a row not used": (4, 4, 16, [(12, 1), (0, 0), (31, 2)]),
}


def drawn(batch: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The arguments, with NaN in every slot of the pool that holds no key of a request."""
    num_heads, num_kv_heads, size, requests = BATCHES[batch]
    blocks = torch.randperm(BLOCKS, device=DEVICE).int()
    tables = torch.full((len(requests), 8), 10**6, dtype=torch.int32, device=DEVICE)
    keys = torch.full((BLOCKS, num_kv_heads, SIZE, size), torch.nan, dtype=dtype, device=DEVICE)
    values = keys.clone()
    for row, (length, _) in enumerate(requests):
        used, blocks = blocks.split([-(-length // SIZE), len(blocks) - -(-length // SIZE)])
        tables[row, : len(used)] = used
        for at in range(length):
            block = used[at // SIZE]
            keys[block, :, at % SIZE] = random(num_kv_heads, size, dtype=dtype)
            values[block, :, at % SIZE] = random(num_kv_heads, size, dtype=dtype)
    new = torch.tensor([0, *itertools.accumulate(new for _, new in requests)], device=DEVICE)
    return {
        "q": random(int(new[-1]), num_heads, size, dtype=dtype),
        "keys": keys,
        "values": values,
        "tables": tables,
        "starts": new.int(),
        "lengths": torch.tensor([length for length, _ in requests], device=DEVICE).int(),
    }


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("dtype", "splits"), list(itertools.product(DTYPES, (None, 4))))
def test_paged_attention(batch, dtype, splits):
    given = drawn(batch, dtype)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    truth = paged_attention_reference(**wide)
    theirs = paged_attention_reference(**given)
    num_heads, _, size, requests = BATCHES[batch]
    workspace = None
    if splits:
        workspace = SplitParts(len(given["q"]) + 3, num_heads, size, splits, DEVICE)
        for memory in (workspace.peaks, workspace.weights, workspace.mixed):
            memory.fill_(torch.nan)
    for spare in (0, 40):  # a grid for longer chunks than there are
        out = torch.full_like(given["q"], torch.nan)
        paged_attention(
            **given,
            most_new=max(new for _, new in requests) + spare,
            workspace=workspace,
            out=out,
            backend="triton",
            block=16,
        )
        check(out, truth, theirs)


def test_the_check_sees_a_mask_that_is_off_by_one():
    given = drawn("chunks among decoding", torch.float32)
    truth = paged_attention_reference(
        **{k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    )
    theirs = paged_attention_reference(**given)
    given["lengths"][1] -= 1
    out = paged_attention(**given, most_new=30, backend="triton")
    with pytest.raises(AssertionError):
        check(out, truth, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_store_writes_its_slots_and_no_others(dtype):
    new = random(5, 3, 24, dtype=dtype)
    slots = torch.tensor([17, -1, 0, 63, 33], device=DEVICE)
    found, expected = (torch.full((4, 3, 16, 24), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
    store(new, found, slots, backend="triton")
    store_reference(new, expected, slots)
    assert torch.equal(found, expected)
    assert (found != 7).sum() == 4 * 3 * 24
    store(new[:0], found, slots[:0], backend="triton")
    assert torch.equal(found, expected)


def refused(message: str, **changes) -> None:
    given = drawn("chunks among decoding", torch.float32) | {"most_new": 30} | changes
    for backend in ("reference", "triton"):
        with pytest.raises(ValueError, match=re.escape(message)):
            paged_attention(**given, backend=backend)


def test_what_does_not_fit_is_refused_by_name():
    given = drawn("chunks among decoding", torch.float32)
    q, keys, tables = given["q"], given["keys"], given["tables"]
    refused("q must have 3 dimensions, (T, H, D)", q=q[0])
    refused("q must have a multiple of 2 heads of size 32", q=q[:, :5].contiguous())
    refused("q must be in one of float16, bfloat16, float32, float64, got torch.int64", q=q.long())
    refused("q must have a head size in [1, 256], got 320", q=torch.ones(2, 4, 320, device=DEVICE))
    refused("q must have a multiple of 0 heads of size 32", keys=keys[:, :0].contiguous())
    refused("tables must be of at least one request, got 0; leave an empty", tables=tables[:0])
    refused("values must have shape", values=keys[:10])
    refused("keys must be contiguous", keys=keys.transpose(1, 2).contiguous().transpose(1, 2))
    refused("tables must be in torch.int32", tables=tables.long())
    refused("starts must have shape (5,)", starts=given["starts"][:-1])
    refused("most_new must be at least 1, got 0", most_new=0)
    refused("block must be a power of 2 of at least 16, got 24", block=24)
    refused("workspace must hold (37, 6, 32)", workspace=SplitParts(36, 6, 32, 2, DEVICE))
    refused("out must be memory of its own, got that of q", q=q, out=q)
    if DEVICE.type == "cpu":
        refused("most_new must be at least 30, got 29", most_new=29)
        refused("starts must rise from 0", starts=given["starts"].flip(0))
        refused("lengths must include the new tokens", lengths=given["lengths"] // 40)
        refused("tables must name blocks in [0, 39]", tables=tables + 40)
        refused(
            "tables must name blocks in [0, 39] for all 50 keys of request 0",
            tables=tables[:, :2].contiguous(),
        )
        with pytest.raises(ValueError, match="slots must be below 640, got 640"):
            store(keys[0, :, :5].transpose(0, 1).contiguous(), keys, torch.tensor([0, 1, 2, 3, 640]))
