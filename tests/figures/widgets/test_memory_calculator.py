"""The memory calculator says what the roofline's memory says, and explains what cannot be."""

import pytest

from llmcourse import roofline
from llmcourse.costs import LLAMA_2_7B, LLAMA_3_8B, Precision
from llmcourse.figures.widgets.memory_calculator import (
    MemoryCalculator,
    MemoryInputs,
    calculate_memory,
    in_words,
    rows_of,
)
from llmcourse.hardware import Ceilings, datasheet
from tests.figures.widgets.described import described

A100 = datasheet("A100 80GB")
SHEETS = {name: datasheet(name) for name in ("A100 80GB", "T4", "RTX 4090")}


@pytest.fixture
def calculator():
    return MemoryCalculator(SHEETS, model="Llama-3-8B")


def test_it_shows_what_is_asked_and_what_would_fit(calculator):
    state, free_bytes = calculator.state, A100.memory_bytes
    assert state.asked == roofline.memory_needed(LLAMA_3_8B, 8, 8192)
    assert state.batch == roofline.largest_batch(LLAMA_3_8B, 8192, free_bytes)
    assert state.context == roofline.largest_context(LLAMA_3_8B, 8, free_bytes)
    assert list(state.needs) == [
        "asked: 8 × 8,192",
        f"most rows: {state.batch} × 8,192",
        f"longest: 8 × {state.context:,}",
    ]
    assert all(need.total_bytes <= free_bytes for need in state.needs.values())
    assert calculator.picture.alt.startswith("Will it fit? Llama-3-8B on A100 80GB")


def test_the_sum_is_told_in_words(calculator):
    assert (
        "16.1 GB of weights + 8 × 8,192 × 131,072 bytes of cache (8.6 GB) + 2.2 MB" in calculator._text.value
    )
    assert f"At most {calculator.state.batch} rows of 8,192 tokens, or 8 rows of " in calculator._text.value
    assert "Leave a tenth" in calculator._text.value


@pytest.mark.parametrize(
    ("control", "value", "smaller"),
    [
        ("weights", "int4", True),
        ("cache", "int8", True),
        ("model", "Llama-2-7B", False),  # every query head has a cache of its own
        ("batch", 16, False),
        ("context", 4096, True),
        ("new_tokens", 4096, False),
    ],
)
def test_each_control_acts(calculator, control, value, smaller):
    before, picture = calculator.state.asked.total_bytes, bytes(calculator._image.value)
    getattr(calculator, control).value = value
    assert (calculator.state.asked.total_bytes < before) is smaller
    assert calculator._image.value != picture


def test_formats_are_those_chosen(calculator):
    calculator.weights.value, calculator.cache.value = "int4", "int8"
    numbers = Precision("int4", "bf16", "int8", group_size=128, cache_group_size=128)
    assert calculator.state.asked == roofline.memory_needed(LLAMA_3_8B, 8, 8192, numbers)
    assert calculator.state.token_bytes == roofline.kv_bytes_per_token(LLAMA_3_8B, numbers)


def test_a_cached_token_of_few_bits_has_scales(calculator):
    assert "scales" not in calculator._text.value
    calculator.cache.value = "int8"
    assert calculator.state.token_bytes == 66_560  # 65,536, and a scale of 2 bytes for 128 of them
    assert "8 × 8,192 × 66,560 bytes of cache, with scales (4.4 GB)" in calculator._text.value


def test_one_row_is_singular(calculator):
    assert [rows_of(batch) for batch in (0, 1, 2, 1024)] == ["no row", "1 row", "2 rows", "1,024 rows"]
    calculator.batch.value, calculator.context.value = 1, 2**19
    assert "At most 1 row of 524,288 tokens, or 1 row of " in calculator._text.value


def test_a_prompt_in_one_piece_is_no_longer_than_the_context(calculator):
    calculator.new_tokens.value = 2**17
    assert calculator.state.asked == roofline.memory_needed(LLAMA_3_8B, 8, 8192, new_tokens=8192)


def test_what_does_not_fit_leaves_its_bar_out():
    inputs = MemoryInputs(64, 8192)
    state = calculate_memory(LLAMA_2_7B, datasheet("RTX 4090"), inputs)
    assert state.batch == 2 and 0 < state.context < 1024
    words = in_words(state, inputs)
    assert "does not fit:" in words[0] and words[1].startswith(
        "At most 2 rows of 8,192 tokens, or 64 rows of "
    )
    long = MemoryInputs(8, 2**20)
    state = calculate_memory(LLAMA_2_7B, datasheet("RTX 4090"), long)
    assert state.batch == 0 and list(state.needs)[1].startswith("longest: 8 × ")
    assert "no row of 1,048,576 tokens" in in_words(state, long)[1]


def test_weights_that_are_too_large_are_said(calculator):
    calculator.machine.value = "T4"
    calculator.weights.value = "fp32"
    assert list(calculator.state.needs) == ["asked: 8 × 8,192"]
    assert "The weights alone are too large: take fewer bits" in calculator._text.value


def test_an_unknown_memory_is_explained_not_raised():
    cpu = Ceilings("a CPU", None, 15e9, 17e9, {"fp32": 65.8e9}, {})
    calculator = MemoryCalculator({"here": cpu, **SHEETS}, model="base")
    assert "the system does not tell that of a CPU" in calculator.message and calculator.state is None
    calculator.machine.value = "A100 80GB"
    assert calculator.message == "" and calculator.state is not None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="machine must be one of A100 80GB, T4, RTX 4090, got 'H20'"):
        MemoryCalculator(SHEETS, machine="H20")


def test_every_control_has_a_name(calculator):
    found = described(calculator)
    assert len(found) == 7 and all(widget.description for widget in found)


@pytest.mark.alone
def test_a_slider_is_answered_within_100_ms(kernel_seconds):
    assert kernel_seconds("MemoryCalculator(machine='A100 80GB', model='Llama-3-8B')", "batch") < 0.080
