"""The contract of every forward of `flash_attention`, and of its gradients: fp64 is the truth.

Run beside `contract.py`. Configurations are drawn with a seed; each may be no further from the truth than
twice what PyTorch's own attention is in this dtype, plus 1e-5 and what rounding may leave. For more of them
than the test takes, and for a file with a row of each, on a GPU:

    python -m tests.kernels.contract_of_flash_attention 3000 --processes 16 --out FILE
"""

import json
import math
from dataclasses import replace

import pytest
import torch

from llmcourse.attention import tiled_attention
from llmcourse.kernels.flash_arguments import HEAD_DIMS
from llmcourse.kernels.flash_attention import Scoring, flash_attention, flash_attention_forward
from llmcourse.kernels.flash_attention_varlen import flash_attention_varlen
from llmcourse.kernels.tiles import FlashTile
from tests.kernels import flash_run
from tests.kernels.contract import DEVICE, DTYPES
from tests.kernels.flash_configurations import TILES, Bias, Config, check, drawn, tensors

DRAWN = 40


@pytest.mark.parametrize("seed", range(DRAWN))
def test_drawn(seed):
    check(drawn(seed))


def test_all_kinds_are_drawn():
    configs = [drawn(seed) for seed in range(DRAWN)]
    assert {config.dtype for config in configs} == set(DTYPES)
    assert {config.head_dim for config in configs} == set(HEAD_DIMS)
    for kind in ("bias", "sequences"):
        assert 4 <= sum(getattr(config, kind) is not None for config in configs) <= DRAWN // 2
    assert any(0 in lengths for config in configs for lengths in config.sequences or ())
    assert any(config.tile is None for config in configs)
    assert {config.deterministic for config in configs} == {False, True}


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
    "a bias of each score, whose rows are masked here and there": {"bias": Bias((True, True, True))},
    "slopes, one for each head": {"bias": Bias((False, True, False), masks=False), "queries": 18},
    "a mask of padding": {
        "bias": Bias((True, False, False)),
        "batch": 2,
        "queries": 18,
        "scoring": Scoring(0.2, causal=False),
    },
    "a bias for all that is added beyond the cap": {
        "bias": Bias((False, False, True), wide=True),
        "scoring": Scoring(0.2, window=9, softcap=1.0),
        "batch": 2,
        "queries": 18,
    },
    "one sequence, packed": {"sequences": ((33, 33),)},
    "prompts, a chunk and a token": {"sequences": ((17, 17), (5, 40), (1, 30), (16, 16))},
    "sequences without queries, keys or either": {"sequences": ((0, 9), (7, 0), (0, 0), (3, 5), (0, 1))},
    "nothing but empty sequences": {"sequences": ((0, 0), (0, 0))},
    "packed, not causal": {"sequences": ((20, 7), (3, 33)), "scoring": Scoring(0.2, causal=False)},
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


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rows", [(64, 128), (65, 129), (130, 257), (200, 40), (1, 150)], ids=str)
@pytest.mark.parametrize("size", [64, 128])
def test_at_the_edges_of_the_widest_tiles(size, rows, causal):
    scoring = Scoring(0.1, causal=causal)
    for dtype in DTYPES[1:]:
        config = replace(PLAIN, head_dim=size, dtype=dtype, queries=rows[0], keys=rows[1], tile=None)
        check(replace(config, scoring=scoring))


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


def test_only_a_bias_that_asks_for_its_gradient_gets_one(monkeypatch):
    from llmcourse.kernels import flash_bias_triton

    monkeypatch.setattr(flash_bias_triton, "launch_bias_gradient", lambda *_: pytest.fail("was made"))
    q, k, v, bias, _ = tensors(replace(PLAIN, bias=Bias((False, True, False))))
    flash_attention(q.requires_grad_(), k, v, bias=bias, backend="triton").sum().backward()
    assert q.grad.isfinite().all()


def test_padding_that_a_bias_masks_is_the_same_as_none():
    """Sequences of different lengths in a batch with −inf beyond their ends, and packed."""
    lengths = (20, 33, 7)
    q, k, v, _ = tensors(replace(PLAIN, batch=3, scoring=Scoring(0.2, causal=False)))
    bias = torch.zeros(3, 1, 1, 33, device=DEVICE)
    for row, length in enumerate(lengths):
        bias[row, ..., length:] = -torch.inf
    padded = flash_attention(q, k, v, causal=False, bias=bias, backend="triton")
    bounds = torch.tensor([0, 20, 53, 60], dtype=torch.int32, device=DEVICE)
    rows = [torch.cat([x[i, :, :n].transpose(0, 1) for i, n in enumerate(lengths)]) for x in (q, k, v)]
    packed = flash_attention_varlen(*rows, bounds, bounds, causal=False, backend="triton")
    expected = torch.cat([padded[i, :, :n].transpose(0, 1) for i, n in enumerate(lengths)])
    torch.testing.assert_close(packed, expected, atol=2e-6, rtol=0)


def test_lengths_that_are_given_are_not_looked_up(monkeypatch):
    from llmcourse.kernels import flash_attention_varlen as varlen

    q, k, v, _ = tensors(replace(PLAIN, sequences=((20, 20), (13, 13))))
    bounds = torch.tensor([0, 20, 33], dtype=torch.int32, device=DEVICE)
    expected = flash_attention_varlen(q, k, v, bounds, bounds, backend="triton")
    longer = {"max_seqlen_q": 50, "max_seqlen_k": 20}
    if DEVICE.type == "cuda":
        monkeypatch.setattr(varlen, "longest", lambda *_: pytest.fail("looked at the GPU"))
    out = flash_attention_varlen(q, k, v, bounds, bounds, **longer, backend="triton")
    assert torch.equal(out, expected)


def spoiled(result: torch.Tensor, spoil: str) -> torch.Tensor:
    if spoil == "1 % too much":
        result[..., -1, :] *= 1.01
    else:
        result[..., -1, :] = torch.nan
    return result


@pytest.mark.parametrize("spoil", ["a key too few", "1 % too much", "unwritten"])
def test_the_check_sees_a_forward_that_is_wrong(spoil, monkeypatch):
    from llmcourse.kernels import flash_attention_triton as kernels

    def launch(q, k, v, scoring, tile, *rest):
        out, log_sum_exp = right(q, k, v, scoring, tile, *rest)
        if spoil == "a key too few":
            out[:, :, 1:] = right(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], scoring, tile)[0]
            return out, log_sum_exp
        return spoiled(out, spoil), log_sum_exp

    right = kernels.launch_forward
    monkeypatch.setattr(kernels, "launch_forward", launch)
    with pytest.raises(AssertionError, match="out"):
        check(PLAIN)


@pytest.mark.parametrize("spoil", ["1 % too much", "unwritten"])
def test_the_check_sees_a_gradient_of_the_bias_that_is_wrong(spoil, monkeypatch):
    from llmcourse.kernels import flash_bias_triton as kernels

    right = kernels.launch_bias_gradient
    monkeypatch.setattr(kernels, "launch_bias_gradient", lambda *x: spoiled(right(*x), spoil))
    with pytest.raises(AssertionError, match="dbias"):
        check(replace(PLAIN, bias=Bias((True, True, True), masks=False)))


@pytest.mark.parametrize("spoil", ["1 % too much", "unwritten"])
@pytest.mark.parametrize(("grad", "name"), [(0, "dq"), (1, "dk"), (2, "dv")])
def test_the_check_sees_a_row_of_packed_sequences_whose_gradient_is_wrong(grad, name, spoil, monkeypatch):
    from llmcourse.kernels import flash_backward_triton as kernels

    def launch(*given):
        grads = right(*given)
        spoiled(grads[grad], spoil)
        return grads

    right = kernels.launch_backward
    monkeypatch.setattr(kernels, "launch_backward", launch)
    with pytest.raises(AssertionError, match=name):
        check(replace(PLAIN, sequences=((20, 20), (5, 13))))


def test_a_run_says_how_many_kept_their_bounds_and_which_is_the_worst(monkeypatch, tmp_path, capsys):
    """Two seeds, of which the second is planted to be beyond its bounds."""
    found = iter(({"out": 1.5, "dq": 0.25}, {"out": 2.5}))
    monkeypatch.setattr(flash_run, "ratios", lambda config: next(found))
    with pytest.raises(SystemExit) as ended:
        flash_run.main(["2", "--out", str(tmp_path / "rows.jsonl")])
    about, *rows = map(json.loads, (tmp_path / "rows.jsonl").read_text("utf-8").splitlines())
    assert ended.value.code == 1 and about["stage"] == "about" and "device" in about
    assert sorted(row["seed"] for row in rows) == [0, 1]
    assert [row["kept"] for row in rows] == [True, False]
    printed = capsys.readouterr().out
    assert "2 configurations, 1 beyond their bounds" in printed
    assert "worst ratio of errors 2.50 (of 2 allowed), out of seed" in printed


if __name__ == "__main__":
    flash_run.main()
