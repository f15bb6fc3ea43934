"""Every control of a view moved, there and back, by keys and clicks.

After each move the page must show what the pure function says of the controls as they now stand. What it
shows must be something else than before, and the very same again once all controls are back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tests.browser.view_page import Control, ViewOnPage

if TYPE_CHECKING:
    from playwright.sync_api import Locator

# What changes no picture by itself: {(class of the view, name of the control): why}.
QUIET = {
    ("SamplingExplorer", "or"): "the list of candidates names the token that Take appends",
}
# What shows only while another slider stands at its end: {(class of the view, control): (slider, key)}.
PENALTIES = ("presence (logits)", "frequency (logits)", "repetition (×)")
NEEDS = {("SamplingExplorer", penalty): ("top-p (mass)", "End") for penalty in PENALTIES}  # no token is cut
STEPS = (1, 3, 12, 40)  # a control whose first step changes nothing is moved further
CLICKED = ("widget-button", "widget-play")
MOST_OPTIONS = 8  # of a list that are tried
Way = tuple[Callable[[], None], Callable[[], None]]  # there, and back


class Mover:
    """Moves one view's controls, each once; what sleeps is moved as soon as another move wakes it.

    Args:
        view: on the page.
        kind: the view's class.
    """

    def __init__(self, view: ViewOnPage, kind: str):
        self.view, self.kind = view, kind
        self.sleeping: dict[int, Control] = {}
        self.moved: list[str] = []
        self.reads, self.shown = self._look("at first")

    def move_all(self) -> list[str]:
        """The names of all controls, in the order in which they were moved.

        Raises:
            AssertionError: a control does not do what it must, or nothing wakes it.
        """
        controls = self.view.controls()
        self.sleeping = {control.number: control for control in controls if control.disabled}
        for control in controls:
            if control.disabled or not self._can_move(control):
                continue
            if self.view.controls()[control.number].disabled:  # put to sleep by another move
                self.sleeping[control.number] = control
            else:
                self.move(control)
        self._wake_by_clicks(controls)
        names = ", ".join(control.name for control in self.sleeping.values())
        assert not names, f"{self.kind}: nothing wakes {names}"
        return self.moved

    def move(self, control: Control) -> None:
        """Moves a control until the page changes, and back; what is clicked has no way back of its own."""
        where = f"{self.kind}, {control.name!r}"
        self._prepare(control)
        reads, before, changed = self.reads, self.shown, False
        for there, back in self._ways(control):
            there()
            self._look(where)
            changed = changed or self.shown != before
            self._move_woken()
            back()
            self._look(f"{where}, back")
            if changed and not self._search_on(control):
                break
        assert changed or (self.kind, control.name) in QUIET, f"{where}: moved, and nothing changes"
        same = self.reads == reads and control.kind not in CLICKED
        assert self.shown == before or not same, f"{where}: moved back, and something else is shown"
        self.moved.append(control.name)

    def _prepare(self, control: Control) -> None:
        """Takes another slider to its end, where it must be for this control to show."""
        name, key = NEEDS.get((self.kind, control.name), ("", ""))
        if name:
            number = next(one.number for one in self.view.controls() if one.name == name)
            _press(self.view.control(number).locator(".noUi-handle"), key, 1)
            self._look(f"{self.kind}, {name!r} to its end")

    def _can_move(self, control: Control) -> bool:
        """Not a list of one entry, which tells what it is and cannot be moved."""
        if control.kind != "widget-dropdown":
            return True
        return self.view.control(control.number).locator("option").count() > 1

    def _search_on(self, control: Control) -> bool:
        """Whether another choice of a list may wake what sleeps; buttons are woken by other buttons."""
        asleep = [one for one in self.sleeping.values() if one.kind != "widget-button"]
        return control.kind == "widget-dropdown" and bool(asleep)

    def _look(self, where: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """Keeps what the controls read, but for presets, which any other move leaves, and what is shown."""
        try:
            self.shown = self.view.settled()
            controls = self.view.controls()
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from None
        self.reads = [(one.name, one.reads) for one in controls if one.name != "preset"]
        return self.reads, self.shown

    def _move_woken(self) -> None:
        now = self.view.controls()
        for number in [number for number in self.sleeping if not now[number].disabled]:
            if number in self.sleeping and not self.view.controls()[number].disabled:
                self.move(self.sleeping.pop(number))

    def _wake_by_clicks(self, controls: list[Control]) -> None:
        """Clicks buttons again, now that all others have been moved: a player may rest at its first step."""
        for control in controls:
            awake = control.kind == "widget-button" and control.number not in self.sleeping
            if not (self.sleeping and awake) or self.view.controls()[control.number].disabled:
                continue
            for there, _ in self._ways(control):
                there()
                self._look(f"{self.kind}, {control.name!r} again")
                self._move_woken()

    def _ways(self, control: Control) -> Iterator[Way]:
        element = self.view.control(control.number)
        if control.kind == "widget-slider":
            return self._along(element.locator(".noUi-handle"), "ArrowRight", "ArrowLeft")
        if control.kind == "widget-dropdown":
            return self._down(element.locator("select"))
        if control.kind == "widget-text":
            return self._along(element.locator("input"), "ArrowUp", "ArrowDown")
        if control.kind == "widget-textarea":
            return self._write(element.locator("textarea"))
        return self._play(element) if control.kind == "widget-play" else self._click(element)

    def _along(self, field: Locator, up: str, down: str) -> Iterator[Way]:
        at, most = (field.get_attribute(f"aria-value{name}") for name in ("now", "max"))
        if at is not None and at == most:
            up, down = down, up
        for steps in STEPS:
            yield lambda n=steps: _press(field, up, n), lambda n=steps: _press(field, down, n)

    def _down(self, field: Locator) -> Iterator[Way]:
        """Space opens the list first: JupyterLab takes the arrow keys of a closed one for its own."""
        at, count = field.evaluate("select => [select.selectedIndex, select.options.length]")
        others = [*range(at + 1, count), *range(at - 1, -1, -1)]
        for other in others[:MOST_OPTIONS]:
            prompt = self._prompt()
            yield (
                lambda to=other: _choose(field, to),
                lambda p=prompt: (_choose(field, at), self._rewrite(p)),
            )

    def _prompt(self) -> str | None:
        """What stands in the view's prompt, if it has one: an example writes it anew."""
        area = self.view.root.locator("textarea")
        return area.input_value() if area.count() else None

    def _rewrite(self, prompt: str | None) -> None:
        area = self.view.root.locator("textarea")
        if prompt is not None and area.input_value() != prompt:
            area.fill(prompt)
            area.press("Tab")

    def _write(self, field: Locator) -> Iterator[Way]:
        before = field.input_value()

        def more() -> None:
            field.press("Control+End")
            field.press_sequentially(" and then")
            field.press("Tab")

        yield more, lambda: self._rewrite(before)

    def _click(self, element: Locator) -> Iterator[Way]:
        def once() -> None:
            before = self.view.shown()
            element.click()
            self.view.wait_for_other(before)

        yield once, lambda: None

    def _play(self, element: Locator) -> Iterator[Way]:
        def a_while() -> None:
            toggle, before = element.locator("button").first, self.view.shown()
            toggle.click()
            self.view.wait_for_other(before)
            toggle.click()

        yield a_while, lambda: None


def _press(field: Locator, key: str, times: int) -> None:
    field.focus()
    for _ in range(times):
        field.press(key)


def _choose(field: Locator, index: int) -> None:
    """Opens a list, goes to an entry and takes it, all by the keyboard."""
    steps = index - field.evaluate("select => select.selectedIndex")
    field.focus()
    field.press("Space")
    for _ in range(abs(steps)):
        field.press("ArrowDown" if steps > 0 else "ArrowUp")
    field.press("Enter")
