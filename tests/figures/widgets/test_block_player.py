"""The player of block decoding, driven by setting the values that a reader's mouse and keys would set."""

import asyncio
import copy
from unittest import mock

import pytest

from llmcourse.blockwise import AdapterConfig, BlockDecoder, generate
from llmcourse.figures.block_filling import num_passes
from llmcourse.figures.widgets import block_player
from llmcourse.figures.widgets.block_player import BlockPlayer
from tests.figures.widgets.described import described

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def blocks(models):
    model = BlockDecoder(copy.deepcopy(models["base"][0]), AdapterConfig(rank=2, num_masks=3))
    for number, parameter in enumerate(model.adapters().values()):
        parameter.data.uniform_(-0.5, 0.5 + number / 100)
    return model.requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def written_once():
    """Texts take longer than all else here, and every player of the one model writes the same."""
    write, texts = block_player.fill_text, {}

    def once(ready, model, prompt, *, refinement, max_new_tokens, progress):
        asked = prompt, refinement, max_new_tokens
        if asked not in texts:
            settings = {"refinement": refinement, "max_new_tokens": max_new_tokens, "progress": progress}
            texts[asked] = write(ready, model, prompt, **settings)
        return texts[asked]

    with mock.patch.object(block_player, "fill_text", once):
        yield


@pytest.fixture
def player(blocks, models):
    return BlockPlayer(blocks, models["base"][1], PROMPT, block_size=2, passes=1, max_new_tokens=4)


def test_it_starts_with_the_text_at_its_end(player, blocks, models):
    tokens = models["base"][1].encode_prompt(PROMPT)
    (written,) = generate(blocks, [tokens], block_size=2, passes=1, max_new_tokens=4, eos_token_ids=())
    assert player.message == "" and player.dial == (2, 1)
    assert player.step.value == player.step.max == player.play.max == 2
    assert list(player.filling.states[-1].tokens) == written.tokens
    assert player.picture.alt.startswith("base with adapters, after “Once upon a time”. semi-autoregressive")


def test_dials_use_what_was_written_ahead(player, monkeypatch):
    monkeypatch.setattr(block_player, "fill_text", None)  # would fail if it were asked
    pictures = set()
    for size, passes in ((1, 1), (2, 2), (4, 1), (4, 2), (4, 4)):
        player.block_size.value = size
        player.passes.value = passes
        assert player.dial == (player.filling.block_size, player.filling.passes) == (size, passes)
        assert player.step.value == player.step.max == num_passes(4, size, passes)
        pictures.add(bytes(player._image.value))
    assert len(pictures) == 5 and len(player.texts) == 1


def test_a_smaller_block_offers_fewer_passes(player):
    player.block_size.value, player.passes.value = 4, 4
    assert [value for _, value in player.passes.options] == [1, 2, 4]
    player.block_size.value = 2
    assert [value for _, value in player.passes.options] == [1, 2] and player.passes.value == 2
    player.block_size.value = 4
    assert player.passes.value == 2


def test_play_fills_the_text_in(player):
    player.block_size.value = 1
    assert player._text.value.count("▢") == 1  # that of the key
    open_places = []
    for step in (1, 2, 3, 4):
        player.play.value = step
        assert player.step.value == step and f"Pass {step} writes 1 token" in player.picture.alt
        open_places.append(player._text.value.count("▢") - 1)
    assert open_places == [3, 2, 1, 0]


def test_buttons_move_the_pass_and_stop_at_the_ends(player):
    player.back.click()
    player.back.click()
    assert player.step.value == 1 and player.back.disabled
    player.forward.click()
    player.forward.click()
    assert player.step.value == player.step.max == 2 and player.forward.disabled


def test_another_prompt_and_another_refinement_are_written_once(player):
    player.prompt.value = "There was"
    assert player.message == "" and len(player.texts) == 2 and "“There was”" in player.picture.alt
    player.prompt.value = PROMPT
    assert len(player.texts) == 2
    player.refinement.value = "remask"
    assert player.message == "" and len(player.texts) == 3
    player.refinement.value = "unmask"
    assert player.message == "" and len(player.texts) == 3


def test_a_control_waits_for_one_setting_and_the_others_come_while_a_reader_looks(player):
    every, counts = len(player.dials), []

    async def type_a_prompt():
        player.prompt.value = "There was an old man"
        counts.append(len(player.texts[player._key]))
        player.block_size.value, player.passes.value = 4, 4  # is not written yet
        counts.append(len(player.texts[player._key]))
        shown = set()
        while player.idle.planned:
            await asyncio.sleep(0.01)
            shown.add((len(player.texts[player._key]), player._image.value, player._message.value))
        counts.extend(sorted({count for count, *_ in shown}))
        assert len({picture for _, picture, _ in shown}) > 2  # points come one by one
        assert any('<progress value="' in message for *_, message in shown)

    asyncio.run(type_a_prompt())
    assert counts[0] == 1 and 1 < counts[1] < every and counts[-1] == every
    assert player._message.value == "" and player.dial == (4, 4)
    ready, model = player.ready, player.model
    assert player.texts[player._key] == block_player.fill_all(
        model, ready.tokenizer.encode_prompt(player.prompt.value), max_new_tokens=4
    )


def test_a_newer_prompt_ends_the_work_for_the_older(player):
    async def type_two():
        player.prompt.value = "One"
        older = player._key
        player.prompt.value = "Two"
        while player.idle.planned:
            await asyncio.sleep(0.01)
        return older

    older = asyncio.run(type_two())
    assert len(player.texts[older]) == 1 and len(player.texts[player._key]) == len(player.dials)


def test_what_is_saved_is_complete(player):
    async def type_and_save():
        player.prompt.value = "Three"
        player._repr_mimebundle_()
        assert len(player.texts[player._key]) == len(player.dials)

    asyncio.run(type_and_save())


@pytest.mark.parametrize(
    ("prompt", "words"), [("", "The prompt is empty"), ("z" * 61, "reads at most 60: shorten the prompt")]
)
def test_a_bad_prompt_is_explained_not_raised(player, prompt, words):
    player.prompt.value = prompt
    assert words in player.message and player.filling is None
    player.step.value = 1
    player.prompt.value = PROMPT
    assert player.message == "" and player.filling is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, r"block_size and passes must be one of the settings .* got \(0, 2\)"),
        ({"block_size": 64}, r"got \(64, 2\); use powers of two, or the whole length"),
        ({"block_size": 2, "passes": 4}, r"got \(2, 4\)"),
        ({"refinement": "remask", "passes": 3}, r"got \(8, 3\)"),
        ({"max_new_tokens": 1}, "max_new_tokens must be an integer of at least 2, got 1"),
        ({"max_new_tokens": 500}, "all .* settings take at most 1,000 forward passes, got 500, which takes"),
    ],
)
def test_settings_that_are_none_are_refused(blocks, models, settings, message):
    with pytest.raises(ValueError, match=message):
        BlockPlayer(blocks, models["base"][1], PROMPT, **settings)


def test_every_control_has_a_name(player):
    found = described(player)
    assert len(found) == 7 and all(widget.description for widget in found)


@pytest.mark.alone
@pytest.mark.parametrize("slider", ["step", "block_size"])
def test_a_slider_is_answered_within_100_ms(kernel_seconds, slider):
    model = "BlockDecoder(pretrained.load('base')[0]), pretrained.load('base')[1]"
    assert kernel_seconds(f"BlockPlayer({model}, block_size=1, passes=1, max_new_tokens=8)", slider) < 0.080
