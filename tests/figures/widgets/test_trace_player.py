"""The trace player, driven by setting the values that a reader's mouse and keys would set."""

import asyncio

import pytest
import torch

from llmcourse.decoding import SamplingParams
from llmcourse.figures.speculation_strip import text_so_far
from llmcourse.figures.widgets import trace_player
from llmcourse.figures.widgets.models import ModelShelf
from llmcourse.figures.widgets.trace_player import (
    EARLY_LAYERS,
    LOOKUP,
    TraceInputs,
    TracePlayer,
    first_correction,
    make_drafter,
    neighbours,
    trace_text,
)
from llmcourse.speculative import ModelDrafter, generate
from tests.figures.widgets.described import described

PROMPT = "Once upon a time"


@pytest.fixture
def player(models):
    return TracePlayer(models, PROMPT, max_new_tokens=10)


def test_it_starts_at_the_first_correction(player):
    assert player.message == "" and player.inputs == TraceInputs(PROMPT, max_new_tokens=10)
    assert (player.target.value, player.drafter.value) == ("base", "draft")
    phase = player.trace.phases[player.phase.value]
    assert phase.kind == "target" and player.trace.steps[phase.step].fallen
    assert player.phase.value == first_correction(player.trace)
    assert player.phase.max == player.play.max == len(player.trace.phases) - 1
    assert player.picture.alt.startswith("base, drafts by draft, after “")


def test_the_text_is_that_of_the_loop(player, models):
    model, tokenizer = models["base"]
    written = generate(
        model,
        [tokenizer.encode_prompt(PROMPT)],
        drafter=ModelDrafter(models["draft"][0]),
        draft_length=4,
        max_new_tokens=10,
        params=SamplingParams(),
        generator=torch.Generator().manual_seed(0),
    )
    gained = [word.token for step in player.trace.steps for word in step.gained]
    assert gained == written[0].tokens


def test_a_trace_is_a_function_of_its_inputs(models):
    shelf = ModelShelf(models)
    target, inputs = shelf.get("base"), TraceInputs(PROMPT, gamma=3, seed=5, max_new_tokens=8)
    first, second = (trace_text(target, make_drafter("draft", target, shelf), inputs) for _ in range(2))
    assert first == second and max(len(step.drafts) for step in first.steps) == 3
    other = trace_text(target, make_drafter(LOOKUP, target, shelf), inputs)
    assert other != first


def test_phases_use_the_trace_that_was_made(player, monkeypatch):
    monkeypatch.setattr(trace_player, "trace_text", None)  # would fail if it were asked
    pictures = set()
    for phase in (0, 1, 5, 6):
        player.phase.value = phase
        assert f"phase {phase + 1} of" in player.picture.alt
        pictures.add(bytes(player._image.value))
    player.play.value = 4
    assert player.phase.value == 4 and len(pictures) == 4 and len(player.traces) == 1


def test_buttons_move_the_phase_and_stop_at_the_ends(player):
    player.phase.value = 1
    player.back.click()
    player.back.click()
    assert player.phase.value == 0 and player.back.disabled
    player.forward.click()
    assert player.phase.value == 1 and not player.back.disabled
    player.phase.value = player.phase.max
    player.forward.click()
    assert player.phase.value == player.phase.max and player.forward.disabled


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("gamma", 2),
        ("temperature", 0.3),
        ("seed", 7),
        ("drafter", LOOKUP),
        ("drafter", EARLY_LAYERS),
        ("drafter", "base"),
        ("target", "draft"),
        ("prompt", "There was"),
    ],
)
def test_each_control_makes_another_trace(player, control, value):
    before = player.trace
    getattr(player, control).value = value
    assert player.message == "" and len(player.traces) == 2 and player.trace != before


def test_the_same_model_on_both_sides_stands_always(player):
    player.drafter.value = "base"
    assert player.trace.phases[-1].counts.acceptance == 1
    player.gamma.value = 8
    assert max(len(step.drafts) for step in player.trace.steps) == 8


def test_without_temperature_the_text_is_greedy(player, models):
    player.temperature.value = 0
    model, tokenizer = models["base"]
    tokens, expected = tokenizer.encode_prompt(PROMPT), []
    for _ in range(10):
        expected.append(int(model(torch.tensor([tokens + expected]))[0, -1].argmax()))
    assert [word.token for step in player.trace.steps for word in step.gained] == expected


def test_a_shorter_trace_takes_the_phase_along(player):
    player.phase.value = player.phase.max
    player.drafter.value = LOOKUP
    last = len(player.trace.phases) - 1
    assert player.phase.value <= player.phase.max == last
    assert f"of {last + 1}" in player.picture.alt and player.message == ""


def test_the_text_stands_below_in_three_colours(player):
    words = repr(text_so_far(player.trace, player.phase.value))
    assert "[-" in words and "{+" in words
    assert "<del" in player._text.value and "rejected draft" in player._text.value


@pytest.mark.parametrize(("prompt", "words"), [("", "The prompt is empty"), ("z" * 200, "reads at most 64")])
def test_a_bad_prompt_is_explained_not_raised(player, prompt, words):
    player.prompt.value = prompt
    assert words in player.message and player.trace is None
    player.phase.value = 0
    player.prompt.value = PROMPT
    assert player.message == "" and player.trace


def test_a_target_of_one_layer_cannot_draft_by_its_first_half(player):
    player.target.value = "draft"
    player.drafter.value = EARLY_LAYERS
    assert "num_layers must be" in player.message


def test_where_nothing_falls_it_starts_at_the_end(models):
    player = TracePlayer(models, PROMPT, drafter="base", max_new_tokens=6)
    assert player.phase.value == player.phase.max == first_correction(player.trace)


def test_every_control_has_a_name(player):
    found = described(player)
    assert len(found) >= 9 and all(widget.description for widget in found)


@pytest.mark.alone
@pytest.mark.parametrize("gamma", [1, 8])
def test_a_slider_is_answered_within_100_ms(kernel_seconds, gamma):
    """With one draft a step most phases have bars, with eight most have many boxes."""
    assert kernel_seconds(f"TracePlayer(gamma={gamma})", "phase") < 0.080


def test_what_a_slider_asks_for_next_is_written_while_a_reader_looks(player, monkeypatch):
    async def move():
        player.gamma.value = 3
        while player.idle.planned:
            await asyncio.sleep(0.01)

    asyncio.run(move())
    ahead = neighbours(player.inputs)
    assert {(near.gamma, near.temperature, near.seed) for near in ahead} == {
        (4, 1.0, 0),
        (2, 1.0, 0),
        (3, 1.1, 0),
        (3, 0.9, 0),
        (3, 1.0, 1),
    }
    target = player.shelf.get("base")
    for near in ahead:
        drafter = make_drafter("draft", target, player.shelf)
        made, expected = player.traces["base", "draft", near], trace_text(target, drafter, near)
        assert made.text() == expected.text() and made.phases == expected.phases
    monkeypatch.setattr(trace_player, "trace_text", None)  # would fail if it were asked
    player.seed.value = 1
    assert player.message == "" and player.trace is player.traces["base", "draft", ahead[-1]]


def test_sliders_have_no_neighbours_beyond_their_ends():
    lowest = neighbours(TraceInputs(PROMPT, gamma=1, temperature=0.0))
    assert {(near.gamma, near.temperature) for near in lowest} == {(2, 0.0), (1, 0.1), (1, 0.0)}
