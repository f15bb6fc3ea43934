"""The roofline of a mixed step, against the roofline of chapter 2 where both can say the same."""

import pytest

from llmcourse.costs import LLAMA_3_8B, QWEN3_0_6B, Precision, Step
from llmcourse.hardware import datasheet
from llmcourse.roofline import predict_step
from llmcourse.serving.request import Request, RequestState
from llmcourse.serving.schedule import Chunk, Schedule
from llmcourse.serving.step_time import RooflineTime

A100 = datasheet("A100 80GB")


def chunk(start: int, stop: int, samples: bool = True) -> Chunk:
    return Chunk(RequestState(Request("a", [1]), (0, 0)), start, stop, samples)


def schedule(*chunks: Chunk) -> Schedule:
    return Schedule(0, chunks)


@pytest.mark.parametrize("shapes", [LLAMA_3_8B, QWEN3_0_6B])
@pytest.mark.parametrize("precision", [Precision(), Precision(weights="int4", group_size=128)])
@pytest.mark.parametrize(("batch", "context"), [(1, 1), (8, 1024), (300, 77)])
def test_a_decoding_step_takes_what_the_roofline_says(shapes, precision, batch, context):
    expected = predict_step(shapes, Step.decode(batch, context), A100, precision, skip_masked=True).time_s
    steps = schedule(*[chunk(context - 1, context)] * batch)
    assert RooflineTime(shapes, A100, precision)(steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (0, 1024), (512, 700), (100, 101)])
def test_a_piece_of_a_prompt_takes_what_the_roofline_says(start, stop):
    step = Step.chunk(1, stop - start, start, logit_positions=0)
    expected = predict_step(LLAMA_3_8B, step, A100, skip_masked=True).time_s
    measured = RooflineTime(LLAMA_3_8B, A100)(schedule(chunk(start, stop, samples=False)))
    assert measured == pytest.approx(expected, rel=1e-12)


def test_rows_of_different_lengths_read_what_each_holds():
    time = RooflineTime(LLAMA_3_8B, A100)
    mixed = time(schedule(chunk(99, 100), chunk(299, 300)))
    assert mixed == pytest.approx(time(schedule(*[chunk(199, 200)] * 2)), rel=1e-12)


def test_decoding_beside_a_piece_of_a_prompt_costs_less_than_apart():
    time = RooflineTime(LLAMA_3_8B, A100)
    piece, token = chunk(0, 64), chunk(99, 100)
    assert time(schedule(piece, token)) < 0.6 * (time(schedule(piece)) + time(schedule(token)))


def test_the_overhead_is_that_of_a_step():
    steps = schedule(chunk(0, 5))
    apart = RooflineTime(QWEN3_0_6B, A100, overhead_s=0.25)(steps) - RooflineTime(QWEN3_0_6B, A100)(steps)
    assert apart == pytest.approx(0.25)


@pytest.mark.parametrize("overhead_s", [-1.0, float("nan"), float("inf")])
def test_an_overhead_is_a_time(overhead_s):
    with pytest.raises(ValueError, match="overhead_s must be at least 0 and finite, got"):
        RooflineTime(QWEN3_0_6B, A100, overhead_s=overhead_s)


def test_a_format_that_the_machine_lacks_is_refused():
    with pytest.raises(ValueError, match="fp8"):
        RooflineTime(QWEN3_0_6B, A100, Precision(activations="fp8"))
