"""The mover against a player in a few lines, without a browser."""

import pytest

from tests.browser.moves import Mover
from tests.browser.view_page import Control

LAST = 5
KINDS = {"Step": "widget-button", "": "widget-play", "Back": "widget-button"}


class Player:
    """Five steps; its play control rests at the first, where Back sleeps, after Step has been moved."""

    def __init__(self, broken=""):
        self.at, self.broken = 2, broken

    def controls(self):
        asleep = {"Step": self.at == LAST, "Back": self.at == 1 or self.broken == "Back"}
        return [
            Control(number, kind, name, asleep.get(name, False), "")
            for number, (name, kind) in enumerate(KINDS.items())
        ]

    def control(self, number):
        return Clicked(self, number)

    def play(self):
        self.at = 1

    def back(self):
        self.at -= 1

    def step(self):
        self.at += self.broken != "Step"

    def settled(self):
        return {"picture": str(self.at)}

    shown = settled

    def wait_for_other(self, than):
        pass


class Clicked:
    """A control's element; one that sleeps must not be clicked."""

    def __init__(self, player, number):
        self.player, self.number, self.first = player, number, self

    def click(self):
        assert not self.player.controls()[self.number].disabled
        (self.player.step, self.player.play, self.player.back)[self.number]()

    def locator(self, what):
        return self


def test_a_player_that_rests_at_its_first_step_is_moved_to_the_end():
    assert sorted(Mover(Player(), "Player").move_all()) == ["", "Back", "Step"]


def test_a_button_that_nothing_wakes_is_found():
    with pytest.raises(AssertionError, match="Player: nothing wakes Back"):
        Mover(Player(broken="Back"), "Player").move_all()


def test_a_step_that_does_nothing_is_found():
    with pytest.raises(AssertionError, match="'Step': moved, and nothing changes"):
        Mover(Player(broken="Step"), "Player").move_all()
