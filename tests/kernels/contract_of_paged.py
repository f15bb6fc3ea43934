"""Paged attention keeps its contract: over drawn batches of decoding requests and chunks of prompts.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too.
"""

import itertools
import re

import pytest
import torch

from llmcourse.kernels.decode_attention import HeadNorm, Workspace
from llmcourse.kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
)
from llmcourse.kernels.paged_decode import paged_decode_attention, paged_decode_attention_reference
from llmcourse.kernels.tiles import AttentionTile
from tests.kernels.contract import DEVICE, DTYPES, PDL, check, random, seeded  # noqa: F401

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
        "block_tables": tables,
        "cu_seqlens_q": new.int(),
        "seq_lens": torch.tensor([length for length, _ in requests], device=DEVICE).int(),
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
        num_kv_heads = given["keys"].shape[1]
        workspace = Workspace(len(given["q"]) + 3, num_heads, num_kv_heads, size, splits, DEVICE)
        for memory in (workspace.peaks, workspace.weights, workspace.mixed):
            memory.fill_(torch.nan)
    for spare in (0, 40):  # a grid for longer chunks than there are
        out = torch.full_like(given["q"], torch.nan)
        paged_attention(
            **given,
            max_seqlen_q=max(new for _, new in requests) + spare,
            workspace=workspace,
            out=out,
            backend="triton",
            tile=AttentionTile(16, 4, 2),
        )
        check(out, truth, theirs)
        assert workspace is None or not workspace.arrivals.any()


def test_the_check_sees_a_mask_that_is_off_by_one():
    given = drawn("chunks among decoding", torch.float32)
    truth = paged_attention_reference(
        **{k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    )
    theirs = paged_attention_reference(**given)
    given["seq_lens"][1] -= 1
    out = paged_attention(**given, max_seqlen_q=30, backend="triton")
    with pytest.raises(AssertionError):
        check(out, truth, theirs)


def refused(message: str, **changes) -> None:
    given = drawn("chunks among decoding", torch.float32) | {"max_seqlen_q": 30} | changes
    for backend in ("reference", "triton"):
        with pytest.raises(ValueError, match=re.escape(message)):
            paged_attention(**given, backend=backend)


def test_what_does_not_fit_is_refused_by_name():
    given = drawn("chunks among decoding", torch.float32)
    q, keys, tables = given["q"], given["keys"], given["block_tables"]
    refused("q must have 3 dimensions, (T, H, D)", q=q[0])
    refused("q must have a multiple of 2 heads of size 32", q=q[:, :5].contiguous())
    refused("q must be in one of float16, bfloat16, float32, float64, got torch.int64", q=q.long())
    refused("q must have a head size in [1, 256], got 320", q=torch.ones(2, 4, 320, device=DEVICE))
    refused("q must have a multiple of 0 heads of size 32", keys=keys[:, :0].contiguous())
    refused("block_tables must be of at least one request, got 0; leave an empty", block_tables=tables[:0])
    refused("values must have shape", values=keys[:10])
    refused("keys must be contiguous", keys=keys.transpose(1, 2).contiguous().transpose(1, 2))
    refused("block_tables must be in torch.int32", block_tables=tables.long())
    refused("cu_seqlens_q must have shape (5,)", cu_seqlens_q=given["cu_seqlens_q"][:-1])
    refused("max_seqlen_q must be an integer of at least 1, got 0", max_seqlen_q=0)
    refused("max_seqlen_q must be an integer of at least 1, got True", max_seqlen_q=True)
    refused("max_seqlen_q must be an integer of at least 1, got nan", max_seqlen_q=float("nan"))
    refused("workspace must be for (batch_size", workspace=Workspace(36, 6, 2, 32, 2, DEVICE))
    refused("out must be memory of its own, got that of q", q=q, out=q)
    if DEVICE.type == "cpu":
        refused("max_seqlen_q must be at least 30, got 29", max_seqlen_q=29)
        refused("cu_seqlens_q must rise from 0", cu_seqlens_q=given["cu_seqlens_q"].flip(0))
        refused("seq_lens must include the new tokens", seq_lens=given["seq_lens"] // 40)
        refused("block_tables must name blocks in [0, 39]", block_tables=tables + 40)
        refused(
            "block_tables must name blocks in [0, 39] for all 50 keys of request 0",
            block_tables=tables[:, :2].contiguous(),
        )


def one_token_each(dtype: torch.dtype, norm: bool) -> dict:
    """Rows of several lengths, one of them a filling, with NaN in every slot that holds no key."""
    num_heads, num_kv_heads, size, lengths = 6, 2, 24, (1, 16, 17, 100, 0)
    blocks = torch.randperm(BLOCKS, device=DEVICE).int()
    tables = torch.full((len(lengths), 8), -1, dtype=torch.int32, device=DEVICE)
    keys = torch.full((BLOCKS, num_kv_heads, SIZE, size), torch.nan, dtype=dtype, device=DEVICE)
    values = keys.clone()
    for row, length in enumerate(lengths):
        used, blocks = blocks.split([-(-length // SIZE), len(blocks) - -(-length // SIZE)])
        tables[row, : len(used)] = used
        for at in range(length - 1):
            keys[used[at // SIZE], :, at % SIZE] = random(num_kv_heads, size, dtype=dtype)
            values[used[at // SIZE], :, at % SIZE] = random(num_kv_heads, size, dtype=dtype)
    gains = (random(size, dtype=dtype), random(size, dtype=dtype))
    return {
        "qkv": random(len(lengths), (num_heads + 2 * num_kv_heads) * size, dtype=dtype),
        "keys": keys,
        "values": values,
        "block_tables": tables,
        "positions": torch.tensor([max(length - 1, 0) for length in lengths], device=DEVICE),
        "cos": random(128, size // 2, dtype=dtype),
        "sin": random(128, size // 2, dtype=dtype),
        "norm": HeadNorm(*gains, 1e-6) if norm else None,
    }


@pytest.mark.parametrize("pdl", PDL)
@pytest.mark.parametrize("splits", [None, 3, 8])
@pytest.mark.parametrize(("dtype", "norm"), list(itertools.product(DTYPES, (False, True))))
def test_paged_decode_attention(dtype, norm, splits, pdl):
    given = one_token_each(dtype, norm)

    def copied(kind: torch.dtype) -> dict:
        changed = {k: v.clone().to(kind) if torch.is_tensor(v) and v.is_floating_point() else v
                   for k, v in given.items()}  # fmt: skip
        gains = given["norm"]
        return changed | {"norm": gains and HeadNorm(gains.q.to(kind), gains.k.to(kind), gains.eps)}

    wide, theirs = copied(torch.float64), copied(dtype)
    truth = paged_decode_attention_reference(**wide)[:4]
    low = paged_decode_attention_reference(**theirs)[:4]
    workspace = splits and Workspace(7, 6, 2, 24, splits, DEVICE)
    for _ in range(2):  # the second finds its own key there, and writes it again
        out = torch.full((5, 6 * 24), torch.nan, dtype=dtype, device=DEVICE)
        paged_decode_attention(
            **given, workspace=workspace, out=out, backend="triton", tile=AttentionTile(16, 4), pdl=pdl
        )
        check(out[:4], truth, low)
    assert torch.equal(given["keys"].isnan(), theirs["keys"].isnan()), "nothing else is written"
    assert torch.equal(given["values"].nan_to_num(), theirs["values"].nan_to_num())
    check(given["keys"].nan_to_num(), wide["keys"].nan_to_num(), theirs["keys"].nan_to_num())
    assert workspace is None or not workspace.arrivals.any()


def test_tables_that_point_nowhere_are_refused():
    if DEVICE.type != "cpu":
        return  # there nobody looks for them
    given = one_token_each(torch.float32, False)
    for row, block in ((3, BLOCKS), (3, -1)):
        tables = given["block_tables"].clone()
        tables[row, 2] = block
        with pytest.raises(ValueError, match="up to position 99 of row 3"):
            paged_decode_attention(**(given | {"block_tables": tables}))


def test_rows_that_cannot_decode_are_refused_by_name():
    given = one_token_each(torch.float32, False)
    none = {name: given[name][:0] for name in ("qkv", "block_tables", "positions")}
    for changes, message in (
        (none, "qkv must be of at least one row, got 0; leave an empty batch out"),
        ({"block_tables": given["block_tables"][:, :0]}, "block_tables must have at least one column, got 0"),
        ({"values": given["keys"]}, "keys must be memory of its own, got that of values"),
        ({"out": given["qkv"][:, :144].contiguous()[:4]}, "out must have shape (5, 144), got (4, 144)"),
    ):
        for backend in ("reference", "triton"):
            with pytest.raises(ValueError, match=re.escape(message)):
                paged_decode_attention(**(given | changes), backend=backend)
