"""Limits: what is bound by what, on which side of the ridge, and where decoding turns."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse import hardware, roofline
from llmcourse.costs import (
    LECTURE_DECODE,
    LECTURE_PREFILL,
    LLAMA_3_8B,
    MODELS,
    Cost,
    Precision,
    Step,
    layer_costs,
    layer_table,
    model_costs,
)
from llmcourse.hardware import Ceilings, Datasheet

A100, H200 = hardware.datasheet("A100 80GB"), hardware.datasheet("H200")
EVEN = Datasheet("even", 2**30, 10.0, {"bf16": 100.0}, "made up: a ridge of 10 FLOP/byte")


def cost(flops: int, traffic_bytes: int) -> Cost:
    return Cost("an operation", flops, 0, traffic_bytes, 0)


def test_the_ridge_of_the_a100_and_how_the_lecture_came_to_another():
    assert round(roofline.ridge(A100), 1) == 153.0
    assert round(roofline.misread_ridge(A100), 2) == 142.51
    assert roofline.misread_ridge(A100) == pytest.approx(312e12 / (2039 * 2**30))


def test_in_the_lectures_prefill_attention_is_bound_by_memory():
    """Below either ridge, in its own count too, while the slide calls all of prefill compute-bound."""
    bounds = {p.name: p.bound for p in roofline.predict_all([row.cost for row in layer_table()], A100)}
    linear = {"QKV projection", "output projection", "gate and up projection", "down projection"}
    assert {name for name, bound in bounds.items() if bound == "compute"} == linear
    attention = layer_table()[2]
    assert attention.lecture_intensity < roofline.misread_ridge(A100) < roofline.ridge(A100)


def test_in_the_lectures_decoding_everything_is_bound_by_memory():
    costs = layer_costs(MODELS["Llama-2-7B"], LECTURE_DECODE)
    assert {p.bound for p in roofline.predict_all(costs, A100)} == {"memory"}


def test_fused_attention_is_bound_by_arithmetic_in_prefill():
    attention = layer_costs(MODELS["Llama-2-7B"], LECTURE_PREFILL, attention="fused")[2]
    assert attention.name == "attention" and roofline.predict(attention, A100).bound == "compute"


@pytest.mark.parametrize(
    ("flops", "traffic_bytes", "time_s", "bound"),
    [
        (1000, 10, 10.0, "compute"),
        (100, 1000, 100.0, "memory"),
        (100, 10, 1.0, "memory"),
        (0, 50, 5.0, "memory"),
    ],
)
def test_the_slower_resource_sets_the_time(flops, traffic_bytes, time_s, bound):
    found = roofline.predict(cost(flops, traffic_bytes), EVEN)
    assert (found.time_s, found.bound) == (time_s, bound)


@given(st.integers(1, 10**12), st.integers(1, 10**12))
@settings(deadline=None)
def test_every_operation_lies_on_the_roof(flops, traffic_bytes):
    found = roofline.predict(cost(flops, traffic_bytes), H200)
    roof = roofline.attainable(H200, found.cost.intensity)
    assert found.flops_per_s == pytest.approx(roof)
    assert (found.bound == "compute") == (found.cost.intensity > roofline.ridge(H200))


def test_the_roof_has_two_parts():
    assert roofline.attainable(EVEN, 3) == 30 and roofline.attainable(EVEN, 30) == 100
    for intensity in (-1, math.nan):
        with pytest.raises(
            ValueError, match=f"intensity must be at least 0 FLOP/byte, got {intensity}; it is"
        ):
            roofline.attainable(EVEN, intensity)


def test_operations_follow_one_another():
    step = Step.decode(4, 100)
    found = roofline.predict_step(LLAMA_3_8B, step, H200)
    parts = [roofline.predict(c, H200) for c in model_costs(LLAMA_3_8B, step)]
    assert found.operations == tuple(parts) and found.machine == "H200"
    assert found.time_s == pytest.approx(sum(part.time_s for part in parts))
    assert found.tokens_per_s == pytest.approx(4 / found.time_s)
    assert found.cost.flops == sum(part.cost.flops for part in parts)


def test_a_step_is_bound_by_what_its_operations_need_longer():
    fast = [roofline.predict(cost(100, 1000), EVEN)] * 2  # 1 s of arithmetic, 100 s of memory
    slow = roofline.predict(cost(30_000, 10), EVEN)  # 300 s of arithmetic
    step = Step.decode(1, 1)
    assert roofline.StepPrediction(step, "even", (*fast, slow)).bound == "compute"
    assert roofline.StepPrediction(step, "even", (*fast, *fast, slow)).bound == "memory"


def test_decoding_one_sequence_is_as_fast_as_its_weights_are_read():
    """Llama-3-8B in bf16: 15.0 GB of weights a token but for the embedding, at 4.8 TB/s."""
    found = roofline.predict_step(LLAMA_3_8B, Step.decode(1, 228), H200)
    assert found.bound == "memory"
    assert found.tokens_per_s == pytest.approx(4.8e12 / 15.01e9, rel=0.01)


def test_prefill_of_a_long_prompt_is_bound_by_arithmetic():
    found = roofline.predict_step(
        LLAMA_3_8B, Step.prefill(1, 8192, logit_positions=1), H200, skip_masked=True
    )
    assert found.tokens_per_s == pytest.approx(8192 / found.time_s)
    linear, attention = 2 * 6.98e9 * 8192, 32 * 4 * 8192**2 / 2 * 4096
    assert found.bound == "compute"
    assert 1 < found.time_s / ((linear + attention) / 989.4e12) < 1.1  # the rest is norms, SwiGLU and RoPE


def test_calculating_in_fewer_bits_needs_hardware_for_it():
    step = Step.prefill(1, 4096)
    in_bf16 = roofline.predict_step(LLAMA_3_8B, step, H200, Precision("int8"))
    in_int8 = roofline.predict_step(LLAMA_3_8B, step, H200, Precision("int8"), compute="int8")
    assert 1.5 < in_bf16.time_s / in_int8.time_s < 2
    with pytest.raises(
        ValueError, match=r"dtype must be one whose peak is known for H200, fp32, .*, got 'int4'"
    ):
        roofline.predict_step(LLAMA_3_8B, step, H200, compute="int4")


def test_measured_ceilings_stand_where_a_datasheet_does():
    measured = Ceilings("here", None, 8e9, 1e10, {"bf16": 1e12}, {})
    assert roofline.ridge(measured) == 100
    assert roofline.predict_step(MODELS["base"], Step.decode(1, 5), measured).machine == "here"


def turns(batch, **settings):
    found = roofline.predict_step(LLAMA_3_8B, Step.decode(batch, settings.get("context", 1)), H200)
    if (name := settings.get("operation")) is not None:
        (chosen,) = [p for p in found.operations if p.name == name]
        return chosen.bound == "compute"
    return found.bound == "compute"


@pytest.mark.parametrize("settings", [{}, {"context": 64}, {"operation": "gate and up projection"}])
def test_decoding_turns_at_the_first_batch_that_arithmetic_binds(settings):
    batch = roofline.turning_batch(LLAMA_3_8B, H200, **settings)
    assert turns(batch, **settings) and not turns(batch - 1, **settings)


def test_linear_layers_turn_near_the_ridge():
    """2·B FLOPs for every weight of two bytes: intensity B, less what the activations add."""
    batch = roofline.turning_batch(LLAMA_3_8B, H200, operation="gate and up projection")
    assert 1 < batch / roofline.ridge(H200) < 1.1


def test_with_a_long_context_no_batch_turns():
    assert roofline.turning_batch(LLAMA_3_8B, H200, context=4096) is None


def test_fewer_bits_turn_at_smaller_batches():
    batches = [roofline.turning_batch(LLAMA_3_8B, H200, Precision(bits)) for bits in ("bf16", "int8", "int4")]
    assert batches == sorted(batches, reverse=True) and batches[0] > 1.7 * batches[1]


def test_unknown_operations_are_refused():
    with pytest.raises(ValueError, match=r"operation must be one of embedding, .*, got 'softmax'; use None"):
        roofline.turning_batch(LLAMA_3_8B, H200, operation="softmax")


@pytest.mark.parametrize("name", ["context", "largest"])
@pytest.mark.parametrize("size", [0, -1])
def test_batches_are_looked_for_among_some_and_with_some_context(name, size):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {size}; use 1"):
        roofline.turning_batch(LLAMA_3_8B, H200, **{name: size})
