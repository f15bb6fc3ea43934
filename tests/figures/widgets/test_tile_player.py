"""The tile player, driven by setting the values that a reader's mouse and keys would set."""

import pytest
import torch

from llmcourse.figures.widgets.tile_player import TileInputs, TilePlayer, play_tiles, random_rows
from tests.figures.widgets.described import described


@pytest.fixture
def player():
    return TilePlayer()


def test_it_starts_in_the_middle_of_a_walk(player):
    assert player.message == "" and player.inputs == TileInputs()
    assert player.state.step == 4 and player.step.max == player.play.max == player.state.last_step == 14
    assert "Queries 8–15 meet keys 8–15" in player._text.value
    assert player.picture.alt.startswith("FlashAttention, tile by tile, step 4 of 14.")


def test_its_end_is_the_definitions_result(player):
    player.step.value = player.step.max
    assert player.forward.disabled and not player.back.disabled
    walk = player.state.walk
    assert len(walk.joined(player.state.step)) == 10
    torch.testing.assert_close(walk.result, walk.expected)
    assert f"Moved so far {walk.steps[-1].traffic_bytes:,} bytes" in player._text.value


@pytest.mark.parametrize(
    ("control", "value"),
    [("length", 20), ("query_tile", 4), ("key_tile", 16), ("mask", False), ("row", 3), ("step", 9)],
)
def test_each_control_acts(player, control, value):
    picture = bytes(player._image.value)
    getattr(player, control).value = value
    assert player._image.value != picture and player.message == ""
    assert value in vars(player.inputs).values()


def test_buttons_and_play_move_the_step(player):
    player.forward.click()
    assert player.state.step == 5
    player.back.click()
    player.back.click()
    assert player.state.step == 3
    player.play.value = 7
    assert player.state.step == 7
    for _ in range(20):
        player.back.click()
    assert player.state.step == 0 and player.back.disabled


def test_a_shorter_text_takes_the_row_and_the_step_along(player):
    player.row.value, player.step.value = 31, 14
    player.length.value = 5
    assert player.message == "" and player.inputs.row == 4
    assert player.state.step == player.step.value == player.step.max == player.state.last_step
    player.length.value = 1
    assert player.message == "" and player.state.walk.num_tiles == 1


def test_a_walk_is_made_once(player):
    player.step.value, player.row.value = 6, 2
    assert len(player.walks) == 1
    player.key_tile.value = 4
    player.key_tile.value = 8
    assert len(player.walks) == 2


def test_sizes_out_of_range_are_explained_not_raised(player, monkeypatch):
    monkeypatch.setattr(TilePlayer, "inputs", property(lambda self: TileInputs(length=999)))
    picture = player._image.value
    player.refresh()
    assert player.message == "length must be in [1, 64], the rows given, got 999"
    assert 'role="alert"' in player._message.value and player._image.value == picture


def test_given_numbers_are_taken():
    qkv = tuple(x.double() for x in random_rows(10, 4, seed=3))
    player = TilePlayer(qkv, inputs=TileInputs(length=10, row=2))
    assert player.length.max == 10 and torch.equal(player.state.walk.expected[0], qkv[2][0])
    with pytest.raises(ValueError, match="three tables of one shape"):
        TilePlayer((qkv[0], qkv[1], qkv[2][:3]))


def test_the_state_is_a_function_of_its_inputs():
    first, second = (play_tiles(random_rows(), TileInputs(step=8)) for _ in range(2))
    assert first.words == second.words and first.step == second.step == 8
    with pytest.raises(ValueError, match=r"row must be in \[0, 31\], got 32; rows count from 0"):
        play_tiles(random_rows(), TileInputs(row=32))


def test_every_control_has_a_name(player):
    found = described(player)
    assert len(found) >= 6 and all(widget.description for widget in found)


@pytest.mark.alone
def test_a_slider_is_answered_within_150_ms(kernel_seconds):
    assert kernel_seconds("TilePlayer()", "length") < 0.130
