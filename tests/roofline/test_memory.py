"""What fits: against the tensors of real caches and models, and to the last byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse import hardware, roofline
from llmcourse.costs import LLAMA_3_8B, MODELS, QWEN3_0_6B, Precision, weight_bytes
from llmcourse.model import Decoder, DecoderConfig
from tests.costs.strategies import formats, precision_of, shapes_of, sizes

CONFIG = DecoderConfig(100, 24, 40, 3, 4, 2, 8, 64)
GIB = 2**30
EXAMPLES = settings(max_examples=20, deadline=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_takes_what_the_cache_allocates_for_it(dtype):
    cache = Decoder(CONFIG).to(dtype).new_cache(batch_size=3, capacity=10)
    per_token = roofline.kv_bytes_per_token(CONFIG, Precision.uniform(dtype))
    assert 3 * 10 * per_token == cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize(
    ("shapes", "precision", "num_bytes"),
    [
        (LLAMA_3_8B, Precision(), 131_072),
        (LLAMA_3_8B, Precision(cache="int8"), 65_536),
        (LLAMA_3_8B, Precision(cache="int8", cache_group_size=128), 65_536 + 1024),
        (QWEN3_0_6B, Precision(), 114_688),
        (MODELS["Llama-2-7B"], Precision(), 524_288),
    ],
)
def test_bytes_a_token_of_known_models(shapes, precision, num_bytes):
    assert roofline.kv_bytes_per_token(shapes, precision) == num_bytes


def test_what_is_needed_is_weights_and_cache_and_some_activations():
    needed = roofline.memory_needed(LLAMA_3_8B, 4, 1000)
    assert needed.weight_bytes == weight_bytes(LLAMA_3_8B)
    assert needed.cache_bytes == 4 * 1000 * 131_072
    assert 0 < needed.activation_bytes < needed.cache_bytes / 100
    assert needed.total_bytes == needed.weight_bytes + needed.cache_bytes + needed.activation_bytes


def test_the_widest_operation_sets_the_activations():
    """Decoding: the head. A prompt at once: SwiGLU. Unfused, a long prompt: the scores."""
    shapes, length = LLAMA_3_8B, 4096
    decoding = roofline.memory_needed(shapes, 2, length).activation_bytes
    assert decoding == 2 * 2 * (2 * 4096 + 128_256)  # hidden states, residuals and logits of two rows
    prefill = roofline.memory_needed(shapes, 1, length, new_tokens=length).activation_bytes
    assert prefill == 2 * length * (4096 + 3 * 14_336)
    unfused = roofline.memory_needed(shapes, 1, length, new_tokens=length, attention="unfused")
    assert unfused.activation_bytes == 2 * length * (3 * 4096 + 2 * 32 * length)


@EXAMPLES
@given(sizes, formats, st.integers(1, 50), st.integers(0, 10**6))
def test_the_largest_batch_fits_and_one_more_does_not(sizes, formats, context, spare_bytes):
    shapes, precision = shapes_of(sizes), precision_of(formats)
    free_bytes = weight_bytes(shapes, precision) + spare_bytes
    batch = roofline.largest_batch(shapes, context, free_bytes, precision)
    if batch:
        assert roofline.check_fits(shapes, batch, context, free_bytes, precision).total_bytes <= free_bytes
    with pytest.raises(roofline.DoesNotFit):
        roofline.check_fits(shapes, batch + 1, context, free_bytes, precision)


@EXAMPLES
@given(sizes, formats, st.integers(1, 50), st.integers(0, 10**6), st.integers(1, 7))
def test_the_largest_context_fits_and_one_more_does_not(sizes, formats, batch, spare_bytes, new_tokens):
    shapes, precision = shapes_of(sizes), precision_of(formats)
    free_bytes = weight_bytes(shapes, precision) + spare_bytes
    more = {"precision": precision, "new_tokens": new_tokens}
    context = roofline.largest_context(shapes, batch, free_bytes, **more)
    if context:
        assert context >= new_tokens
        roofline.check_fits(shapes, batch, context, free_bytes, **more)
    with pytest.raises(roofline.DoesNotFit):
        roofline.check_fits(shapes, batch, max(context + 1, new_tokens), free_bytes, **more)


def test_what_does_not_fit_is_told_with_need_and_remedy():
    with pytest.raises(roofline.DoesNotFit) as error:
        roofline.check_fits(LLAMA_3_8B, 64, 8192, 24 * GIB)
    assert str(error.value) == (
        "batch 64 with context 8192 needs 84.80 GB (16.06 GB of weights, 68.72 GB of cache, 0.02 GB of "
        "activations), 25.77 GB are free; batch 9 would fit with context 8192 and context 1155 with batch 64"
    )
    roofline.check_fits(LLAMA_3_8B, 9, 8192, 24 * GIB)
    roofline.check_fits(LLAMA_3_8B, 64, 1155, 24 * GIB)


def test_weights_that_do_not_fit_leave_no_remedy_in_batch_or_context():
    with pytest.raises(roofline.DoesNotFit, match="the weights alone are too large: take fewer bits"):
        roofline.check_fits(LLAMA_3_8B, 1, 1, 8 * GIB)
    assert roofline.largest_batch(LLAMA_3_8B, 1, 8 * GIB) == 0
    assert roofline.largest_context(LLAMA_3_8B, 1, 8 * GIB) == 0


def test_a_prompt_too_long_to_be_computed_at_once_is_told_apart():
    free_bytes = weight_bytes(LLAMA_3_8B) + GIB
    with pytest.raises(roofline.DoesNotFit, match="does not fit beside the weights: compute fewer at once"):
        roofline.check_fits(LLAMA_3_8B, 1, 32_000, free_bytes, new_tokens=32_000)
    roofline.check_fits(LLAMA_3_8B, 1, 4000, free_bytes, new_tokens=100)


def test_fewer_bits_make_room():
    int4 = Precision("int4", cache="int8", group_size=128)
    assert roofline.check_fits(LLAMA_3_8B, 1, 8192, 8 * GIB, int4).total_bytes < 8 * GIB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0, "context": 5}, "batch must be an integer of at least 1, got 0; use 1"),
        ({"batch": -2, "context": 5}, "batch must be an integer of at least 1, got -2; use 1"),
        ({"batch": 1, "context": 0}, "context must be an integer of at least 1, got 0; use 1"),
        ({"batch": 1, "context": -5}, "context must be an integer of at least 1, got -5"),
        ({"batch": 1, "context": 5, "new_tokens": 0}, "new_tokens must be an integer of at least 1, got 0"),
        (
            {"batch": 1, "context": 5, "new_tokens": 6},
            "new_tokens must be at most the context of 5, got 6; they are part",
        ),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        roofline.memory_needed(LLAMA_3_8B, **arguments)


@pytest.mark.parametrize(
    "ask",
    [
        lambda free_bytes: roofline.largest_batch(LLAMA_3_8B, 1, free_bytes),
        lambda free_bytes: roofline.largest_context(LLAMA_3_8B, 1, free_bytes),
        lambda free_bytes: roofline.check_fits(LLAMA_3_8B, 1, 1, free_bytes),
    ],
)
def test_negative_memory_is_refused(ask):
    with pytest.raises(
        ValueError, match=r"free_bytes must be at least 0, got -1; hardware\.free_bytes\(\) asks"
    ):
        ask(-1)


@pytest.mark.parametrize("size", [0, -1])
def test_the_largest_of_nothing_is_refused(size):
    with pytest.raises(ValueError, match=f"context must be an integer of at least 1, got {size}"):
        roofline.largest_batch(LLAMA_3_8B, size, 10**12)
    with pytest.raises(ValueError, match=f"batch must be an integer of at least 1, got {size}"):
        roofline.largest_context(LLAMA_3_8B, size, 10**12)


GB = 10**9


@pytest.fixture
def free(monkeypatch):
    """How much is free on each device, all of which are here."""
    known = {"cuda": 4 * GB, "cpu": 100 * GB}
    monkeypatch.setattr(hardware, "present_device", torch.device)
    monkeypatch.setattr(hardware, "free_bytes", lambda device: known[torch.device(device).type])
    return known


def test_weights_that_fit_are_let_through(free):
    assert roofline.check_weights_fit(GB, torch.float32, "cuda") == torch.device("cuda")
    free["cuda"] = None  # not known, not refused
    assert roofline.check_weights_fit(99 * GB, torch.float32, "cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("num_weights", "dtype", "remedy"),
    [
        (GB + 1, torch.float32, "dtype=torch.bfloat16 needs 2.00 GB, device='cpu' has 100.00 GB free"),
        (8 * GB, torch.bfloat16, "device='cpu' has 100.00 GB free"),
        (70 * GB, torch.bfloat16, "take a smaller model, one in fewer bits, or a larger machine"),
    ],
)
def test_weights_too_large_for_a_gpu_are_refused_with_what_fits(free, num_weights, dtype, remedy):
    with pytest.raises(roofline.DoesNotFit) as caught:
        roofline.check_weights_fit(num_weights, dtype, "cuda")
    size = f"{num_weights * dtype.itemsize / GB:,.2f} GB"
    needed = f"{num_weights / 1e6:,.0f} M weights in {str(dtype)[6:]} need {size}"
    assert str(caught.value) == f"{needed}, 4.00 GB are free on cuda; {remedy}"


def test_weights_too_large_for_the_processor_are_refused(free):
    with pytest.raises(
        roofline.DoesNotFit, match=r"100\.00 GB are free on cpu; dtype=torch\.bfloat16 needs 80\.00 GB$"
    ):
        roofline.check_weights_fit(40 * GB, torch.float32, "cpu")
