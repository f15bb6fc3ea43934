"""A view as the page shows it, beside what the kernel says that it must show."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.browser.lab_page import LabPage

if TYPE_CHECKING:
    from playwright.sync_api import Locator

SECONDS = 60  # a busy machine answers a move in some 5
CONTROLS = ", ".join(
    [
        *(f".{kind}" for kind in ("widget-slider", "widget-dropdown", "widget-text", "widget-textarea")),
        ".widget-button:not(.widget-play *)",
        ".widget-play",
    ]
)
SHOWN = """async view => {
    const image = view.querySelector(":scope > img.widget-image");
    const [message, spoken, text] = [image.previousElementSibling, image.nextElementSibling,
                                     image.nextElementSibling.nextElementSibling];
    const alert = message.querySelector("[role=alert]");
    if (alert) return {complaint: alert.textContent};
    const bytes = await (await fetch(image.src)).arrayBuffer();
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const words = part => part.querySelector(".widget-html-content").textContent;
    return {picture: Array.from(hash, byte => byte.toString(16).padStart(2, "0")).join(""),
            alt: words(spoken), text: words(text)};
}"""
READS = """(view, controls) => Array.from(view.querySelectorAll(controls), control => {
    const field = control.querySelector("select, input, textarea, .widget-readout");
    const name = control.matches("button") ? control : control.querySelector(".widget-label");
    return {name: name ? name.textContent.trim() : "",
            reads: !field ? "" : field.matches("select") ? field.selectedOptions[0]?.textContent ?? ""
                   : (field.value ?? field.textContent)};
})"""
TOO_WIDE = """view => Array.from(view.querySelectorAll("p, img, select, button"))
    .filter(part => part.getBoundingClientRect().right > view.getBoundingClientRect().right + 4)  // a margin
    .map(part => part.textContent || part.localName)"""
WORDS = "html => new DOMParser().parseFromString(html, 'text/html').body.textContent"


@dataclass(frozen=True)
class Control:
    """A control on the page, its number in the view and what the kernel says of it."""

    number: int
    kind: str
    name: str
    disabled: bool
    reads: str


class ViewOnPage:
    """The view of one cell.

    Args:
        lab: its page.
        count: the execution count of its cell.
        index: the cell's place in the notebook.
    """

    def __init__(self, lab: LabPage, count: int, index: int):
        self.lab, self.count, self.index = lab, count, index
        lab.show(index)
        self.root = lab.page.locator(f".jp-Cell[data-windowed-list-index='{index}'] .llmcourse-view")
        self.root.wait_for(state="visible")

    def control(self, number: int) -> Locator:
        """A control's element, counted from the top."""
        return self.root.locator(CONTROLS).nth(number)

    def too_wide(self) -> list[str]:
        """Lines, pictures and controls that do not end with the view; tables may be wider, as they scroll."""
        return self.root.evaluate(TOO_WIDE)

    def controls(self) -> list[Control]:
        """All controls, once page and kernel agree on what they read.

        Raises:
            AssertionError: they never do.
        """
        until = time.monotonic() + SECONDS
        while True:
            known = self.lab.kernel.ask(f"inside.controls({self.count})")
            page = self.root.evaluate(READS, CONTROLS)
            mine = [(one["name"], _plain(one["reads"])) for one in page]
            told = [(one["name"] if "play" not in one["kind"] else "", _plain(one["reads"])) for one in known]
            if mine == told:
                return [Control(number, **one) for number, one in enumerate(known)]
            assert time.monotonic() < until, f"controls read {mine} on the page, {told} in the kernel"
            time.sleep(0.1)

    def shown(self) -> dict[str, str]:
        """The picture's SHA-256, its words and the text below, or the complaint, as they are on the page."""
        for _ in range(50):
            try:
                return self.root.evaluate(SHOWN)
            except Exception:  # the picture was exchanged while it was read
                time.sleep(0.05)
        return self.root.evaluate(SHOWN)

    def wait_for_other(self, than: dict[str, str]) -> None:
        """After a click, which no control's reading tells of: until something else is shown, or for long."""
        until = time.monotonic() + SECONDS
        while self.shown() == than and time.monotonic() < until:
            time.sleep(0.1)

    def settled(self) -> dict[str, str]:
        """What the page shows, once that is what the pure function says of the controls as they stand.

        Raises:
            AssertionError: it never is.
        """
        self.controls()
        until = time.monotonic() + SECONDS
        while True:
            told = self.lab.kernel.ask(f"inside.answer({self.count})")
            if "text" in told:
                told["text"] = self.lab.page.evaluate(WORDS, told["text"])
            for _ in range(20):
                shown = self.shown()
                if shown == told:
                    return shown
                time.sleep(0.1)
            different = {name: (shown.get(name), told.get(name)) for name in {*shown, *told}}
            different = {name: pair for name, pair in different.items() if pair[0] != pair[1]}
            assert time.monotonic() < until, f"on the page, and by the pure function: {different}"


def _plain(text: str) -> str:
    return text.replace("\u2212", "-").replace("\u00a0", " ").replace("\r", "")
