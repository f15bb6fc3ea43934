"""A text filling in, as a picture: which pass wrote which token, and where the setting lies on the dial.

Passes go down, places to the right. A dark cell is written in that pass, a pale one stood before, and the
tokens of the pass shown are named above their columns. Token by token the dark cells go down a diagonal;
block by block they are stairs; all at once, a line. To the right all settings of the same text: what the
backbone thinks of the text, against tokens of a forward pass. A line there joins those of as many passes a
block, the paler the more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from llmcourse.figures import style as look
from llmcourse.figures.block_filling import Dial, Filling, TextState, powers_of_two
from llmcourse.figures.fonts import readable

HEIGHT, MAP_TOP, MAP_HEIGHT = 4.75, 1.58, 2.72  # inches
MAP_LEFT, MAP_WIDTH = 0.56, 4.95
MOST_LABELS = 40
LETTERS = 10
SHADES, DARKEST, PALEST = colormaps["Blues"], 0.95, 0.35  # of the numbers of passes
NEW, STANDS, NOT_YET = to_rgb("#1b5587"), to_rgb("#c3d9ec"), to_rgb(look.PAPER)


class FillingPlot:
    """The figure, made once and then redrawn for other passes and settings: it follows a slider.

    Args:
        length: new tokens of the text.
    """

    def __init__(self, length: int):
        self.length = length
        with look.style():
            self.figure = look.Picture(look.WIDTH, HEIGHT)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            self._make_map()
            self._make_dial()
        changing = (self._image, self._edges, self._line, *self._labels, *self._points.values(), self._here)
        self.figure.moving = [*changing, self.title, self.subtitle, self._here_name]

    def _make_map(self) -> None:
        place = (MAP_LEFT, HEIGHT - MAP_TOP - MAP_HEIGHT, MAP_WIDTH, MAP_HEIGHT)
        self.map = self.figure.add_axes(_fraction(place))
        count = self.length
        white = np.ones((count, count, 3))
        box = (0, count, count, 0)
        self._image = self.map.imshow(white, aspect="auto", interpolation="nearest", extent=box)
        self.map.set(xlim=(0, count), ylim=(count, 0), ylabel="forward pass", xticks=[])
        passes = sorted({1, *(round(count * part / 8) or 1 for part in range(1, 9))})
        self.map.set_yticks([one - 0.5 for one in passes], [str(one) for one in passes], fontsize=9.5)
        self.map.spines[["top", "right"]].set_visible(True)
        self.map.set_xlabel("place in the new text (dark: settled by this pass)", labelpad=4)
        self._edges = LineCollection([], colors=look.CUT_EDGE, linewidths=0.8)
        self._line = LineCollection([], colors=look.ACCENT, linewidths=1.8)
        for lines in (self._edges, self._line):
            self.map.add_collection(lines, autolim=False)
        name = {"rotation": 90, "ha": "center", "va": "bottom", "size": 9.5, "clip_on": False}
        shown = range(count if count <= MOST_LABELS else 0)
        self._labels = [self.map.text(place + 0.5, -0.02 * count, "", **name) for place in shown]

    def _make_dial(self) -> None:
        left = MAP_LEFT + MAP_WIDTH + 0.60
        place = (left, HEIGHT - MAP_TOP - MAP_HEIGHT, look.WIDTH - left - 0.15, MAP_HEIGHT)
        self.dial = self.figure.add_axes(_fraction(place))
        self.dial.set_xscale("log", base=2)
        self.dial.set(xlim=(0.8, 1.25 * self.length), xlabel="tokens a forward pass", ylabel="")
        self.dial.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        self.dial.xaxis.set_major_locator(LogLocator(2, numticks=12))
        self.dial.xaxis.set_minor_locator(NullLocator())
        self.dial.tick_params(labelsize=9.5)
        self.dial.grid(axis="y", color="#eceff2", linewidth=0.8)
        look.fix_label(self.dial)
        self._points = {passes: self._line_of(passes) for passes in powers_of_two(self.length)}
        here = {"markersize": 10, "markeredgewidth": 2.2, "linestyle": "none", "markerfacecolor": "none"}
        self._here = self.dial.plot([], [], "o", markeredgecolor=look.ACCENT, **here)[0]
        above = {"transform": self.dial.transAxes, "va": "bottom"}
        self.dial.text(0, 1.17, "loss under the backbone", weight="bold", size=10.5, **above)
        told = "nats a token; paler: more passes"
        self.dial.text(0, 1.10, told, size=9.5, color=look.MUTED, **above)
        self._here_name = self.dial.text(0, 1.03, "", size=9.5, color=look.ACCENT, **above)

    def _line_of(self, passes: int):
        """Of the settings with so many passes over a block, still empty."""
        share = passes.bit_length() / self.length.bit_length()
        color = SHADES(DARKEST + (PALEST - DARKEST) * share)
        return self.dial.plot([], [], color=color, marker="o", markersize=4, linewidth=1.2)[0]

    def update(
        self,
        fillings: Mapping[Dial, Filling],
        dial: Dial,
        at: int,
        label: Callable[[int], str],
        title: str = "",
    ) -> look.Picture:
        """Shows another pass, or another setting; arguments and errors as `plot_filling`."""
        filling = _chosen(fillings, dial)
        state = filling.check(at)
        if filling.length != self.length:
            raise ValueError(
                f"fillings must be of {self.length} tokens, got {filling.length}; make another figure"
            )
        title = title or "From autoregressive to non-autoregressive"
        with look.style():
            self.title.set_text(readable(title))
            self.subtitle.set_text(setting_in_words(filling))
            self.figure.still_key = self._scale(fillings)
            self._draw_map(filling, at)
            for place, text in enumerate(self._labels):
                _write(text, state, place, label)
            for passes, line in self._points.items():
                same = [one for one in fillings.values() if one.passes == passes]
                places = sorted((one.tokens_per_pass, one.nats_per_token) for one in same)
                line.set_data([x for x, _ in places], [y for _, y in places])
            self._here.set_data([filling.tokens_per_pass], [filling.nats_per_token])
            self._here_name.set_text(
                f"◯ {filling.nats_per_token:.2f}, different pairs {filling.distinct_2:.2f}"
            )
        self.figure.alt = f"{title}. {in_words(filling, at)}"
        return self.figure

    def _scale(self, fillings: Mapping[Dial, Filling]) -> float:
        """Lets the loss of all settings fit, and returns the highest: the axis is part of what is still."""
        top = max(one.nats_per_token for one in fillings.values())
        self.dial.set_ylim(0, 1.12 * max(top, 0.1))
        return top

    def _draw_map(self, filling: Filling, at: int) -> None:
        count = self.length
        pixels = np.empty((count, count, 3))
        pixels[:] = NOT_YET
        for row, state in enumerate(filling.states[:at]):
            for place, token in enumerate(state.tokens):
                if token is not None:
                    pixels[row, place] = NEW if place in state.new else STANDS
        self._image.set_data(pixels)
        edges = range(filling.block_size, count, filling.block_size) if filling.block_size > 1 else ()
        self._edges.set_segments([[(x, 0), (x, count)] for x in edges])
        # Around the pass that is shown
        box = [(0, at - 1), (count, at - 1), (count, at), (0, at), (0, at - 1)]
        self._line.set_segments([box])


def plot_filling(
    fillings: Mapping[Dial, Filling],
    dial: Dial,
    at: int,
    label: Callable[[int], str],
    title: str = "",
) -> look.Picture:
    """One pass of one setting.

    Args:
        fillings: the same text under all settings, as `fill_all` returns it.
        dial: of them.
        at: the pass, from 1.
        label: a token's text for readers, such as `tokenizer.label`.

    Raises:
        ValueError: no such setting, or no such pass.
    """
    length = _chosen(fillings, dial).length
    return FillingPlot(length).update(fillings, dial, at, label, title)


def setting_in_words(filling: Filling) -> str:
    """The setting and what it came to, in one line."""
    count, size = len(filling.states), filling.block_size
    blocks = "a token at a time" if size == 1 else f"blocks of {size}, {_of(filling.passes, 'pass')} each"
    if size == filling.length:
        blocks = f"the whole text as one block, {_of(filling.passes, 'pass')}"
    return (
        f"{filling.kind}: {blocks} · {_of(count, 'forward pass')}, {rate(filling)} · "
        f"loss {filling.nats_per_token:.2f}"
    )


def rate(filling: Filling) -> str:
    """`3.2 tokens a pass`."""
    number = f"{filling.tokens_per_pass:.3g}"
    return f"{number} {'token' if number == '1' else 'tokens'} a pass"


def in_words(filling: Filling, at: int) -> str:
    """The picture in words: the setting, and what the pass did."""
    state = filling.check(at)
    known = sum(token is not None for token in state.tokens)
    did = f"writes {_of(len(state.new), 'token')} of block {state.block + 1}"
    loss = f"{setting_in_words(filling)}, different pairs {filling.distinct_2:.2f}"
    return f"{loss}. Pass {at} {did}; {known} of {filling.length} stand."


def _of(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('s') else 's'}"


def _write(text, state: TextState, place: int, label: Callable[[int], str]) -> None:
    token, new = state.tokens[place], place in state.new
    text.set_text("▢" if token is None else look.token(label(token), LETTERS))
    text.set(color=look.INK if new else look.MUTED, fontweight="bold" if new else "normal")


def _chosen(fillings: Mapping[Dial, Filling], dial: Dial) -> Filling:
    if dial not in fillings:
        raise ValueError(f"dial must be one of the settings given, got {dial}; they are {sorted(fillings)}")
    return fillings[dial]


def _fraction(inches: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, bottom, width, height = inches
    return left / look.WIDTH, bottom / HEIGHT, width / look.WIDTH, height / HEIGHT
