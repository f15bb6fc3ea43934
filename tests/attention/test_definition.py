"""One contract for every attention: the definition, written out here once more with loops."""

import math

import pytest
import torch

from llmcourse.attention import attention_reference, causal_mask, sdpa

ATTENTIONS = {"reference": attention_reference, "sdpa": sdpa}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
# The result is rounded to the dtype; fp32 also differs by the order of summation.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# (B, H, Hkv, T, S, D): one token, a square, a decode step, a chunk, sizes that no tile divides
SHAPES = [
    (1, 1, 1, 1, 1, 2),
    (2, 4, 4, 16, 16, 8),
    (3, 4, 2, 1, 17, 16),
    (2, 6, 1, 5, 23, 10),
    (1, 4, 2, 17, 33, 64),
    (2, 3, 3, 7, 7, 12),
]


@pytest.fixture(params=ATTENTIONS.values(), ids=ATTENTIONS)
def attention(request):
    return request.param


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def tensors(shape, dtype=torch.float32, device="cpu", seed=0):
    batch, heads, kv_heads, queries, keys, size = shape
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, queries, size), (batch, kv_heads, keys, size), (batch, kv_heads, keys, size)]
    return [torch.randn(s, generator=generator).to(device, dtype) for s in shapes]


def random_mask(shape, device="cpu", seed=0):
    batch, _, _, queries, keys, _ = shape
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, queries, keys, generator=generator) < 0.6).to(device)


def with_loops(q, k, v, mask):
    """softmax(q·k / √D) v for one query after another, over the keys it sees, in fp64."""
    batch, heads, queries, size = q.shape
    group = heads // k.shape[1]
    q, k, v = q.double().cpu(), k.double().cpu(), v.double().cpu()
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(queries):
                seen = [s for s in range(k.shape[2]) if mask[b, t, s]]
                if seen:
                    scores = k[b, h // group, seen] @ q[b, h, t] / math.sqrt(size)
                    out[b, h, t] = scores.softmax(0) @ v[b, h // group, seen]
    return out


def expanded_causal(shape):
    batch, _, _, queries, keys, _ = shape
    return torch.tensor([[s - t <= keys - queries for s in range(keys)] for t in range(queries)]).expand(
        batch, queries, keys
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestContract:
    def test_causal(self, attention, device, shape, dtype):
        q, k, v = tensors(shape, dtype, device)
        out = attention(q, k, v)
        assert out.dtype == dtype and out.shape == q.shape and out.device == q.device
        expected = with_loops(q, k, v, expanded_causal(shape))
        torch.testing.assert_close(out.double().cpu(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    def test_masked(self, attention, device, shape, dtype):
        q, k, v = tensors(shape, dtype, device)
        mask = random_mask(shape, device)
        mask[:, 0] = False  # a query that may look at nothing gets zeros
        out = attention(q, k, v, mask)
        expected = with_loops(q, k, v, mask)
        torch.testing.assert_close(out.double().cpu(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert (out[:, :, 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_reference_rounds_only_its_result(dtype):
    """A truth that kernels are measured against must not have their errors."""
    shape = (2, 4, 2, 40, 90, 16)
    q, k, v = tensors(shape, dtype)
    expected = with_loops(q, k, v, expanded_causal(shape))
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(attention_reference(q, k, v).double(), expected, atol=1e-5, rtol=ulp)


def test_no_mask_is_the_causal_mask(attention):
    shape = (2, 4, 2, 5, 9, 8)
    q, k, v = tensors(shape, torch.float64)
    mask = causal_mask(5, 9).expand(2, 5, 9)
    torch.testing.assert_close(attention(q, k, v), attention(q, k, v, mask), atol=1e-12, rtol=0)


def test_what_is_masked_does_not_matter(attention):
    """Stale slots of a cache may hold anything finite."""
    shape = (2, 4, 2, 5, 9, 8)
    q, k, v = tensors(shape)
    mask = random_mask(shape)
    mask[:, :, 4] = False
    before = attention(q, k, v, mask)
    k[:, :, 4], v[:, :, 4] = 1e4, -1e4
    torch.testing.assert_close(attention(q, k, v, mask), before, atol=1e-6, rtol=0)


def test_large_scores_do_not_overflow(attention):
    q, k, v = tensors((1, 2, 1, 4, 4, 8))
    out = attention(q * 1e3, k * 1e3, v)
    assert out.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
def test_nan_stays_in_its_row_of_the_batch(attention, which, masked):
    shape = (2, 2, 1, 4, 4, 8)
    mask = causal_mask(4, 4).expand(2, 4, 4) if masked else None
    inputs = tensors(shape)
    expected = attention(*inputs, mask)
    inputs[which][0, 0, 2] = math.nan
    torch.testing.assert_close(attention(*inputs, mask)[1], expected[1])


@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
def test_the_reference_does_not_hide_nan(which):
    inputs = tensors((1, 2, 1, 4, 4, 8))
    inputs[which][0, 0, 2] = math.nan
    assert attention_reference(*inputs)[0, 0, 2].isnan().all()


def test_gradients_agree():
    grads = []
    for attention in ATTENTIONS.values():
        q, k, v = (x.requires_grad_() for x in tensors((2, 4, 2, 5, 9, 8), torch.float64))
        attention(q, k, v).square().sum().backward()
        grads.append([x.grad for x in (q, k, v)])
    torch.testing.assert_close(*grads, atol=1e-10, rtol=0)


def test_more_queries_than_keys_are_refused(attention):
    q, k, v = tensors((1, 2, 2, 5, 3, 8))
    with pytest.raises(ValueError, match="query_len must be at most key_len = 3, got 5; give a mask"):
        attention(q, k, v)


def test_more_queries_than_keys_are_fine_with_a_mask(attention):
    shape = (1, 2, 2, 5, 3, 8)
    q, k, v = tensors(shape, torch.float64)
    mask = random_mask(shape)
    torch.testing.assert_close(attention(q, k, v, mask), with_loops(q, k, v, mask), atol=1e-12, rtol=0)


def test_heads_that_do_not_divide_are_refused(attention):
    q, k, v = tensors((1, 3, 2, 4, 4, 8))
    with pytest.raises(ValueError, match="query heads must be a multiple of key/value heads, got 3 and 2"):
        attention(q, k, v)


class TestCausalMask:
    def test_square(self):
        assert causal_mask(3, 3).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]

    def test_queries_are_the_last_keys(self):
        assert causal_mask(2, 4).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]

    def test_one_query_sees_all(self):
        assert causal_mask(1, 5).all()

    def test_refused(self):
        with pytest.raises(ValueError, match="query_len must be at most key_len = 2, got 3"):
            causal_mask(3, 2)
