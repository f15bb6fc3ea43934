"""A notebook in JupyterLab, as a reader's hands meet it: open, run from the menu, restart, look at cells."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.browser.kernel import Kernel
from tests.browser.server import Server

if TYPE_CHECKING:  # not everybody has it
    from playwright.sync_api import ConsoleMessage, Page

SECONDS_TO_OPEN, SECONDS_TO_RUN, SECONDS_TO_BEGIN = 180, 900, 10
POLLING = 200  # milliseconds between two looks at a condition
HARMLESS = {}  # what the console may say: {part of the text: why it is harmless}

# What is waited for, asked of the page itself. A dialogue says that the kernel has died, or something as bad.
NOTEBOOK = "const panel = window.jupyterapp?.shell?.currentWidget, cells = panel?.content?.widgets ?? [];"
IDLE = "panel?.sessionContext?.kernelDisplayStatus === 'idle'"
CODE = "cells.map(cell => cell.model).filter(cell => cell.type === 'code' && cell.sharedModel.source.trim())"
TYPES = "Array.from({length: cell.outputs.length}, (_, i) => cell.outputs.get(i).type)"
FAILED = f"some(cell => {TYPES}.includes('error'))"
DIALOGUE = "document.querySelector('.jp-Dialog')"
IS_OPEN = f"() => {{ {NOTEBOOK} return {IDLE} && cells.length > 0; }}"
HAS_BEGUN = f"""() => {{
    {NOTEBOOK}
    return {CODE}.some(cell => cell.executionCount || cell.executionState === 'running');
}}"""
ALL_RAN = f"""() => {{
    {NOTEBOOK}
    const code = {CODE};
    return {DIALOGUE} || code.{FAILED} || {IDLE} && code.every(cell => cell.executionCount);
}}"""
ONE_RAN = f"""index => {{
    {NOTEBOOK}
    return {DIALOGUE} || {IDLE} && cells[index].model.executionCount;
}}"""
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets
    .map((widget, index) => ({index, ...widget.model.toJSON()}))
    .filter(cell => cell.cell_type === "code")"""


class CellError(AssertionError):
    """A cell ended with an error."""


@dataclass(frozen=True)
class Cell:
    """A code cell as the page holds it: its place, execution count, source and outputs."""

    index: int
    count: int | None
    source: str
    outputs: list[dict]
    tags: tuple[str, ...]

    @property
    def error(self) -> str:
        """The last error of the cell, `""` if there is none."""
        errors = [f"{o['ename']}: {o['evalue']}" for o in self.outputs if o["output_type"] == "error"]
        return errors[-1] if errors else ""


class LabPage:
    """One notebook in one page; what the console says against it is kept from the first moment on.

    Attributes:
        errors: console errors and uncaught exceptions that are not known to be harmless.
    """

    def __init__(self, page: Page, server: Server):
        self.page, self.server = page, server
        self.errors: list[str] = []
        self._kernel: Kernel | None = None
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._keep(f"uncaught: {error}"))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._keep(f"{message.text} ({message.location.get('url', '')})")

    def _keep(self, text: str) -> None:
        if not any(part in text for part in HARMLESS):
            self.errors.append(text)

    def open(self, notebook: str) -> LabPage:
        """Goes to a notebook, by its path in the course, and waits for its kernel."""
        self.page.goto(self.server.address(notebook))
        return self.wait_idle(SECONDS_TO_OPEN)

    def wait_idle(self, seconds: float) -> LabPage:
        self._wait_for(IS_OPEN, seconds, "a notebook must open, and its kernel answer,")
        return self

    def _wait_for(self, condition: str, seconds: float, what: str, arg=None) -> None:
        """Until a condition of the page holds.

        Raises:
            TimeoutError: it does not, within so many seconds.
            RuntimeError: the page asks something instead, since the kernel died.
        """
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        limits = {"timeout": 1000 * seconds, "polling": POLLING}
        try:
            self.page.wait_for_function(condition, arg=arg, **limits)
        except PlaywrightTimeout:
            raise TimeoutError(f"{what} within {seconds:g} s") from None
        if (dialogue := self.page.locator(".jp-Dialog")).count():
            raise RuntimeError(f"{what} but the page says: {dialogue.first.inner_text()}")

    def menu(self, name: str, item: str) -> None:
        """Chooses an item of the menu bar with the mouse."""
        self.page.get_by_role("menubar").get_by_text(name, exact=True).click()
        label = re.compile(f"^{re.escape(item)}$")  # without its shortcut, which the name of the role holds
        self.page.locator(".lm-Menu-itemLabel", has_text=label).click()

    def cells(self) -> list[Cell]:
        """All code cells, also those too far away for the page to draw."""
        return [
            Cell(
                cell["index"],
                cell["execution_count"],
                cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]),
                cell["outputs"],
                tuple(cell["metadata"].get("tags", ())),
            )
            for cell in self.page.evaluate(CELLS)
        ]

    def run_all(self) -> list[Cell]:
        """Runs every cell from the menu, and waits for the last.

        An idle page sometimes takes the choice and does nothing; then it is made again.

        Raises:
            CellError: a cell raised, and the rest did not run.
            TimeoutError: it took longer than a quarter of an hour.
        """
        self.menu("Edit", "Clear Outputs of All Cells")
        for _ in range(4):
            self.menu("Run", "Run All Cells")
            try:
                self._wait_for(HAS_BEGUN, SECONDS_TO_BEGIN, "a cell must begin")
            except TimeoutError:
                continue
            self._wait_for(ALL_RAN, SECONDS_TO_RUN, "all cells must end")
            cells = self.cells()
            for cell in cells:
                if cell.error:
                    raise CellError(f"cell {cell.index}: {cell.error}")
            return cells
        raise TimeoutError("Run All Cells had no effect, four times")

    def show(self, index: int) -> None:
        """Scrolls to a cell and selects it, as a click beside it does."""
        self.page.evaluate(
            """async index => {
                const notebook = jupyterapp.shell.currentWidget.content;
                notebook.deselectAll();
                notebook.mode = "command";
                notebook.activeCellIndex = index;
                await notebook.scrollToItem(index, "start");
            }""",
            index,
        )
        self.page.locator(f".jp-Cell[data-windowed-list-index='{index}']").wait_for(state="visible")

    def run_cell(self, index: int) -> Cell:
        """Selects a cell, empties and runs it from the menu, and waits for its end; its error is its own."""
        self.show(index)
        self.menu("Edit", "Clear Cell Output")  # its count too, so that the new one is seen
        self.menu("Run", "Run Selected Cell")
        self._wait_for(ONE_RAN, SECONDS_TO_RUN, f"cell {index} must end", index)
        return next(cell for cell in self.cells() if cell.index == index)

    def write(self, index: int, source: str) -> None:
        """Writes over a cell's source by the keyboard."""
        self.show(index)
        editor = self.page.locator(f".jp-Cell[data-windowed-list-index='{index}'] .cm-content")
        editor.click()
        editor.press("Control+a")
        self.page.keyboard.insert_text(source)

    def restart(self) -> None:
        """Kernel › Restart Kernel…, and yes."""
        self.menu("Kernel", "Restart Kernel…")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")
        self.close_kernel()
        self.wait_idle(SECONDS_TO_OPEN)

    @property
    def kernel(self) -> Kernel:
        """A client of this page's kernel."""
        if self._kernel is None:
            session = "jupyterapp.shell.currentWidget.sessionContext.session"
            self._kernel = Kernel(self.server.runtime, self.page.evaluate(f"{session}.kernel.id"))
        return self._kernel

    def close_kernel(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def shut_down(self) -> None:
        """Ends the kernel, so that its memory is free for the next chapter."""
        self.close_kernel()
        self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
