"""Steps and precisions: what they mean, and what they refuse."""

import math

import pytest
import torch

from llmcourse.costs import BF16, ModelShapes, Precision, Shapes, Step
from llmcourse.costs.shapes import check_at_least
from llmcourse.model import DecoderConfig

SIZES = dict(
    vocab_size=100,
    hidden_size=16,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)


def test_a_decoder_config_has_the_shapes():
    assert isinstance(DecoderConfig(**SIZES, max_position_embeddings=64), Shapes)
    assert not isinstance(SIZES, Shapes)


@pytest.mark.parametrize("size", [0, -4])
@pytest.mark.parametrize("name", SIZES)
def test_impossible_shapes_are_refused(name, size):
    with pytest.raises(
        ValueError, match=f"{name} must be an integer of at least 1, got {size}; use 1 for the s"
    ):
        ModelShapes(**{**SIZES, name: size})


@pytest.mark.parametrize("value", [1.5, 2.0, math.nan, "3", None])
def test_sizes_are_integers(value):
    with pytest.raises(ValueError, match=f"batch must be an integer of at least 1, got {value!r}; use 1 for"):
        check_at_least("batch", value, 1)
    check_at_least("batch", 1, 1)


def test_heads_must_divide():
    with pytest.raises(
        ValueError, match="num_heads must be a multiple of num_kv_heads, got 4 and 3; every key"
    ):
        ModelShapes(**{**SIZES, "num_kv_heads": 3})


def test_the_three_kinds_of_step():
    assert Step.prefill(2, 10) == Step(2, 10, 0, cache=True) and Step.prefill(2, 10).keys == 10
    assert Step.decode(2, 10) == Step.chunk(2, 1, 9) and Step.decode(2, 10).keys == 10
    assert Step.chunk(2, 4, 6).keys == 10


def test_all_logits_are_computed_unless_fewer_are_asked_for():
    assert Step.prefill(1, 10).logits == 10
    assert Step.prefill(1, 10, logit_positions=1).logits == 1
    assert Step.chunk(1, 10, 5, logit_positions=0).logits == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0, "new_tokens": 1}, "batch must be an integer of at least 1, got 0"),
        ({"batch": 1, "new_tokens": -3}, "new_tokens must be an integer of at least 1, got -3"),
        ({"batch": 1, "new_tokens": 1, "past": -1}, "past must be an integer of at least 0, got -1"),
        ({"batch": 1, "new_tokens": 1, "past": 4, "cache": False}, "past must be 0 without a cache, got 4"),
        ({"batch": 1, "new_tokens": 3, "logit_positions": 4}, r"logit_positions must be in \[0, 3\].*got 4"),
        (
            {"batch": 1, "new_tokens": 3, "logit_positions": -1},
            r"logit_positions must be in \[0, 3\].*got -1",
        ),
    ],
)
def test_impossible_steps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Step(**arguments)


@pytest.mark.parametrize("context", [0, -5])
def test_decoding_looks_at_one_key_or_more(context):
    with pytest.raises(ValueError, match=f"context must be an integer of at least 1, got {context}; use 1"):
        Step.decode(1, context)


def test_formats_follow_each_other_unless_named():
    assert Precision("int4", "bf16").cache == "bf16" and Precision("int4", "bf16").head == "int4"
    assert Precision.uniform(torch.float32) == Precision("fp32", "fp32", "fp32", "fp32")
    assert Precision("bfloat16", torch.bfloat16) == BF16


@pytest.mark.parametrize(
    ("precision", "store", "elements", "num_bytes"),
    [
        (BF16, "weights", 10, 20),
        (Precision("int4"), "weights", 10, 5),
        (Precision("int4"), "weights", 11, 6),  # the last half byte is taken
        (Precision("int4"), "parameters", 10, 20),
        (Precision("int4"), "head", 10, 5),
        (Precision("int4", head="bf16"), "head", 10, 20),
        (Precision("int4", group_size=128), "weights", 1024, 512 + 16),
        (Precision("int4", group_size=128), "weights", 1025, 513 + 18),
        (Precision("bf16", group_size=128), "weights", 1024, 2048),  # no scales in full precision
        (Precision("int8", cache="int8", cache_group_size=64), "cache", 128, 128 + 4),
        (Precision("int8", cache="int8", cache_group_size=64), "weights", 128, 128),
        (Precision("int8"), "cache", 128, 256),
    ],
)
def test_bytes_are_bits_and_scales(precision, store, elements, num_bytes):
    assert precision.num_bytes(store, elements) == num_bytes


def test_scales_cap_what_int4_can_win():
    """Groups of 128 with 16-bit scales: 16 / (4 + 16/128) = 3.88 times fewer bytes than bf16."""
    packed = Precision("int4", group_size=128).num_bytes("weights", 2**20)
    assert BF16.num_bytes("weights", 2**20) / packed == pytest.approx(3.879, abs=1e-3)


@pytest.mark.parametrize("size", [0, -128])
@pytest.mark.parametrize("name", ["group_size", "cache_group_size"])
def test_impossible_groups_are_refused(name, size):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {size}; use 1"):
        Precision(**{name: size})


def test_unknown_formats_are_refused():
    with pytest.raises(
        ValueError, match=r"dtype must be one of fp64, fp32, .*, got 'int3'; or give PyTorch's"
    ):
        Precision("int3")
