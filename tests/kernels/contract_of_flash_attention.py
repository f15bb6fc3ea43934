"""The contract of every forward of `flash_attention`, and of its gradients: fp64 is the truth.

Run beside `contract.py`. Configurations are drawn with a seed; each may be no further from the truth than
twice what PyTorch's own attention is in this dtype, plus 1e-5. New memory holds NaN here, so that whatever a
kernel leaves unwritten shows. For more of them than the test takes, on a GPU some thousands:

    python -m tests.kernels.contract_of_flash_attention 3000
"""

import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from llmcourse.attention import tiled_attention
from llmcourse.kernels.flash_attention import (
    HEAD_DIMS,
    Scoring,
    flash_attention,
    flash_attention_forward,
    flash_attention_reference,
)
from llmcourse.kernels.tiles import FlashTile
from tests.kernels.contract import DEVICE, DTYPES

DRAWN = 40
LONGEST = 700 if DEVICE.type == "cuda" else 90
# Tensor cores take weights, and gradients of scores, in the dtype of the tensors. PyTorch's kernels for a GPU
# round them too; that for a CPU does not, and errs less by half a unit in the last place.
EXTRA_ROUNDING = 0.0 if DEVICE.type == "cuda" else 0.5
# The forwards under contract: None takes the best for the GPU, whichever that is.
TILES = (None, FlashTile(16, 16), FlashTile(16, 32), FlashTile(32, 16))


@dataclass(frozen=True)
class Config:
    """One drawn call.

    Attributes:
        magnitude: of queries; at 30 softmax is nearly a maximum.
        interleaved: heads lie side by side in a row, as a projection leaves them.
    """

    batch: int
    num_heads: int
    num_kv_heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: torch.dtype
    scoring: Scoring
    tile: FlashTile | None
    magnitude: float
    interleaved: bool
    seed: int


def drawn(seed: int) -> Config:
    dice = random.Random(seed)
    num_kv_heads = dice.choice((1, 2, 3))
    queries, keys = (dice.choice((1, 16, 64, dice.randint(1, LONGEST))) for _ in range(2))
    causal = dice.random() < 0.7
    scoring = Scoring(
        scale=dice.choice((0.05, 0.125, 0.3)),
        causal=causal,
        window=dice.randint(1, keys) if causal and dice.random() < 0.3 else None,
        softcap=dice.choice((2.0, 20.0)) if dice.random() < 0.3 else None,
    )
    return Config(
        batch=dice.choice((1, 2)),
        num_heads=num_kv_heads * dice.choice((1, 1, 2, 4)),
        num_kv_heads=num_kv_heads,
        queries=queries,
        keys=dice.choice((queries, keys)),
        head_dim=dice.choice(HEAD_DIMS),
        dtype=dice.choice(DTYPES),
        scoring=scoring,
        tile=dice.choice(TILES),
        magnitude=dice.choice((1.0, 1.0, 30.0)),
        interleaved=dice.random() < 0.5,
        seed=seed,
    )


def tensors(config: Config) -> list[torch.Tensor]:
    """q, k, v and the gradient of the result."""
    torch.manual_seed(config.seed)
    rows = {config.num_heads: config.queries, config.num_kv_heads: config.keys}
    rows = ((config.num_heads, config.queries), *[(config.num_kv_heads, config.keys)] * 2)
    made = []
    for heads, length in (*rows, rows[0]):
        shape = (config.batch, heads, length, config.head_dim)
        if config.interleaved:
            shape = (config.batch, length, heads, config.head_dim)
        x = torch.randn(shape, dtype=config.dtype, device=DEVICE)
        made.append(x.transpose(1, 2) if config.interleaved else x)
    made[0] *= config.magnitude
    return made


def hidden(config: Config) -> torch.Tensor:
    """Which keys each query does not see, said once more."""
    mask = torch.ones(config.queries, config.keys, dtype=torch.bool, device=DEVICE)
    if config.scoring.causal:
        mask = mask.tril(config.keys - config.queries)
    if config.scoring.window is not None:
        mask &= mask.triu(config.keys - config.queries - config.scoring.window + 1)
    return ~mask


def pytorch(config: Config, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's own attention; for capped scores, which it does not know, its operations one by one."""
    unseen, scoring = hidden(config), config.scoring
    if scoring.softcap is None:
        gqa = config.num_heads > config.num_kv_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=~unseen, scale=scoring.scale, enable_gqa=gqa)
    else:
        k, v = (x.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1) for x in (k, v))
        scores = scoring.softcap * torch.tanh(q @ k.mT * (scoring.scale / scoring.softcap))
        out = scores.masked_fill(unseen, -torch.inf).softmax(-1).masked_fill(unseen, 0.0) @ v
    return out.masked_fill(unseen.all(1)[:, None], 0.0)


def results(attention, inputs: list[torch.Tensor], grad_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What attention gives, and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad_out)


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN."""

    def poison(made):
        return lambda *args, **kind: made(*args, **kind).fill_(torch.nan)

    with (
        mock.patch.object(torch, "empty_like", poison(torch.empty_like)),
        mock.patch.object(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty)),
    ):
        yield


def check(config: Config) -> float:
    """Written throughout, and near enough to the truth: the result, its gradients, the log-sum-exp.

    Returns the largest error as a share of what is allowed.
    """
    *inputs, grad_out = tensors(config)
    wide, scoring, share = [x.double() for x in inputs], config.scoring, 0.0
    truth = results(lambda *x: flash_attention_reference(*x, scoring)[0], wide, grad_out.double())
    theirs = results(lambda *x: pytorch(config, *x), inputs, grad_out)
    options = {name: getattr(scoring, name) for name in ("scale", "causal", "window", "softcap")}
    options |= {"backend": "triton", "tile": config.tile}
    with poisoned():
        ours = results(lambda *x: flash_attention(*x, **options), inputs, grad_out)
        log_sum_exp = flash_attention_forward(*inputs, scoring, config.tile)[1].double() * math.log(2)
    for name, true, they, we in zip(("out", "dq", "dk", "dv"), truth, theirs, ours, strict=True):
        assert we.dtype == config.dtype and torch.isfinite(we).all(), (name, config)
        slack = 1e-5 * (config.magnitude if name == "dk" else 1)  # a sum of queries
        slack += EXTRA_ROUNDING * torch.finfo(config.dtype).eps * true.abs().max()
        allowed = 2 * (they.double() - true).abs().max() + slack
        share = max(share, ((we.double() - true).abs().max() / allowed).item())
        assert share <= 1, (name, config)
    expected = flash_attention_reference(*wide, scoring)[1]
    torch.testing.assert_close(log_sum_exp, expected, atol=2e-4, rtol=1e-5)
    return share


@pytest.mark.parametrize("seed", range(DRAWN))
def test_drawn(seed):
    check(drawn(seed))


PLAIN = Config(1, 2, 1, 33, 33, 32, torch.float32, Scoring(0.2), FlashTile(16, 16), 1.0, False, 0)
EDGES = {
    "one token": {"queries": 1, "keys": 1},
    "one query of many keys": {"queries": 1, "keys": 70},
    "one key": {"queries": 40, "keys": 1},
    "more queries than keys": {"queries": 50, "keys": 20},
    "whole tiles": {"queries": 32, "keys": 64},
    "one row too many": {"queries": 17, "keys": 65},
    "a diagonal that ends one key beyond a tile": {"queries": 32, "keys": 49},
    "a window that ends one query beyond a tile": {
        "scoring": Scoring(0.2, window=2),
        "queries": 70,
        "keys": 70,
    },
    "a window of the own key": {"scoring": Scoring(0.2, window=1)},
    "a window of a tile": {"scoring": Scoring(0.2, window=16), "keys": 64},
    "not causal, more queries than keys": {"scoring": Scoring(0.2, causal=False), "queries": 50, "keys": 20},
    "scores at the cap": {"scoring": Scoring(0.2, softcap=1.0), "magnitude": 30.0},
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("edge", EDGES)
def test_at_the_edges(edge, tile):
    for dtype in DTYPES:
        check(replace(PLAIN, dtype=dtype, tile=tile, **EDGES[edge]))


@pytest.mark.parametrize("size", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_head_size(size, dtype):
    check(replace(PLAIN, head_dim=size, dtype=dtype, tile=None))


def test_it_is_the_tiled_algorithm():
    q, k, v, _ = tensors(PLAIN)
    out, log_sum_exp = flash_attention_forward(q, k, v, Scoring(PLAIN.head_dim**-0.5), PLAIN.tile)
    expected, expected_sum = tiled_attention(q, k, v, query_tile=16, key_tile=16)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(log_sum_exp * math.log(2), expected_sum, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
def test_nan_is_not_hidden_and_stays_in_its_row_of_the_batch(which):
    config = replace(PLAIN, batch=2)
    *inputs, _ = tensors(config)
    expected = flash_attention(*inputs, backend="triton", tile=config.tile)
    inputs[which][0, 0, 3] = torch.nan
    out = flash_attention(*inputs, backend="triton", tile=config.tile)
    assert out[0, 0, 3].isnan().all()
    assert torch.equal(out[1], expected[1])


def test_a_gradient_without_rows_of_its_own_is_copied():
    """That of a sum is one number, which every place shares."""
    *inputs, _ = tensors(PLAIN)
    grads = []
    for backend in ("triton", "reference"):
        leaves = [x.detach().requires_grad_() for x in inputs]
        flash_attention(*leaves, backend=backend).sum().backward()
        grads.append([x.grad for x in leaves])
    torch.testing.assert_close(*grads, atol=1e-5, rtol=0)


def test_a_gradient_of_the_gradient_is_refused():
    *inputs, _ = tensors(PLAIN)
    q, k, v = (x.requires_grad_() for x in inputs)
    out = flash_attention(q, k, v, backend="triton", tile=PLAIN.tile)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_slice_of_a_projection_needs_no_copy():
    """q, k and v side by side in a row of one matrix."""
    rows = torch.randn(2, 20, 4, 32, device=DEVICE).transpose(1, 2)
    q, k, v = rows.split([2, 1, 1], dim=1)
    out = flash_attention(q, k, v, backend="triton")
    expected = flash_attention(q, k, v, backend="reference")
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("spoil", ["a key too few", "1 % too much", "unwritten"])
def test_the_check_sees_a_forward_that_is_wrong(spoil, monkeypatch):
    from llmcourse.kernels import flash_attention_triton as kernels

    def launch(q, k, v, scoring, tile):
        out, log_sum_exp = right(q, k, v, scoring, tile)
        if spoil == "a key too few":
            out[:, :, 1:] = right(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], scoring, tile)[0]
        elif spoil == "1 % too much":
            out[:, :, -1] *= 1.01
        else:
            out[:, :, -1] = torch.nan
        return out, log_sum_exp

    right = kernels.launch_forward
    monkeypatch.setattr(kernels, "launch_forward", launch)
    with pytest.raises(AssertionError, match="out"):
        check(PLAIN)


if __name__ == "__main__":
    shares = {seed: check(drawn(seed)) for seed in range(int(sys.argv[1]))}
    seed = max(shares, key=shares.get)
    print(
        f"{len(shares)} configurations; the nearest to its bound, at {shares[seed]:.2f} of it: {drawn(seed)}"
    )
