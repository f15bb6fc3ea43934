"""What all views share: how they look, what they say when something is wrong, what a saved notebook keeps."""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ipywidgets
from ipywidgets import (
    HTML,
    Box,
    Button,
    Dropdown,
    FloatSlider,
    Image,
    IntSlider,
    Layout,
    SelectionSlider,
    Textarea,
    VBox,
)

from llmcourse.figures import language
from llmcourse.figures.fonts import chinese, web_font
from llmcourse.figures.style import DRAWING, PIXELS_PER_INCH, Picture, shorten
from llmcourse.figures.text_strip import TextStrip, strip_html, text_strip
from llmcourse.figures.widgets.models import ReadyModel
from llmcourse.figures.widgets.page_code import BUSY_CLASS, FORMER_CLASS, VIEW_CLASS, styles
from llmcourse.figures.widgets.rest import COLLECTOR, Idle

EXAMPLES = (
    "I am sleepy. I start a pot of",
    "Once upon a time there was",
    "《春晓》孟浩然\n",
    "《静夜思》李白\n床前明月光，",
    "def read_lines(path):\n    ",
)
SCREEN_SCALE = 1.5  # pixels for each one of the page: sharp, and drawn within 100 ms


@dataclass(frozen=True)
class Chosen:
    """A token that was appended, and the probability that the model alone gave it."""

    token: int
    log_prob: float


def visible(text: str) -> str:
    """A text on one line, line breaks as signs."""
    return text.replace("\n", "⏎")


def end_of(text: str, length: int = 34) -> str:
    """The last characters of a text on one line, for a title."""
    line = visible(text)
    cut = shorten(line[::-1], length)
    return line if cut == line[::-1] else "…" + cut[-2::-1]


def written(ready: ReadyModel, prompt: str, chosen: Sequence[Chosen]) -> TextStrip:
    """The text so far, piece by piece, each piece with its probability."""
    tokens, log_probs = [c.token for c in chosen], [c.log_prob for c in chosen]
    return text_strip(ready.tokenizer, tokens, log_probs, prompt)


def float_slider(name: str, value: float, low: float, high: float, step: float, tooltip: str) -> FloatSlider:
    sizes = {"value": value, "min": low, "max": high, "step": step, "readout_format": ".2f"}
    return FloatSlider(description=name, tooltip=tooltip, style=NAME_STYLE, layout=_slider_layout(), **sizes)


def int_slider(name: str, value: int, low: int, high: int, tooltip: str) -> IntSlider:
    sizes = {"value": value, "min": low, "max": high}
    return IntSlider(description=name, tooltip=tooltip, style=NAME_STYLE, layout=_slider_layout(), **sizes)


NAME_STYLE = {"description_width": "116px"}


def _slider_layout() -> Layout:
    return Layout(width="286px", max_width="100%", margin="1px 2px")


def button(name: str, tooltip: str, icon: str = "", style: str = "") -> Button:
    layout = Layout(width="auto", min_width="74px")
    return Button(description=name, tooltip=tooltip, icon=icon, button_style=style, layout=layout)


def dropdown(name: str, options: Sequence, value, width: str = "220px") -> Dropdown:
    """A list to choose from, shown in the language that is chosen; its values are as given."""
    style = {"description_width": "initial"}
    shown, layout = told(options), Layout(width=width, max_width="100%")  # narrower on a narrow page
    return Dropdown(description=name, options=shown, value=value, style=style, layout=layout)


def told(options: Sequence) -> Sequence:
    """Options as they are shown in the language that is chosen, with the values that they have."""
    if language.current() == "en":
        return options
    pairs = [one if isinstance(one, tuple) else (one, one) for one in options]
    return [(language.text(str(label)), value) for label, value in pairs]


def size_slider(name: str, value: int, low: int, high: int, tooltip: str) -> SelectionSlider:
    """A slider over the powers of two from `low` to `high`, and the given value where it is none."""
    sizes = [2**power for power in range(low.bit_length() - 1, high.bit_length())]
    return choice_slider(name, sizes, value, tooltip)


def choice_slider(name: str, values: Sequence, value: int | float, tooltip: str) -> SelectionSlider:
    """A slider over the given numbers, and the value where it is none of them."""
    options = [(f"{one:,}".replace("inf", "∞"), one) for one in sorted({*values, value})]
    settings = {"options": options, "value": value, "tooltip": tooltip}
    return SelectionSlider(description=name, style=NAME_STYLE, layout=_slider_layout(), **settings)


def row(*widgets: ipywidgets.Widget) -> Box:
    """Side by side, wrapping where the page is narrow; sliders take the room that is left, to be dragged."""
    for slider in (each for each in widgets if isinstance(each, (FloatSlider, IntSlider, SelectionSlider))):
        slider.layout.flex, slider.layout.max_width = f"1 1 {slider.layout.width}", "min(100%, 440px)"
    layout = Layout(display="flex", flex_flow="row wrap", align_items="center", width="100%", grid_gap="4px")
    return Box(list(widgets), layout=layout)


def _in_language(root: ipywidgets.Widget) -> str:
    """Puts what controls say into the language that is chosen, and returns it as one text."""
    words = "".join(map(_in_language, getattr(root, "children", ())))
    for trait in ("description", "tooltip", "placeholder"):
        if isinstance(english := getattr(root, trait, None), str) and root.has_trait(trait):
            if (chosen := language.text(english)) != english:
                setattr(root, trait, chosen)
            words += chosen
    return words + "".join(label for label in getattr(root, "_options_labels", ()))


def alone(method: Callable) -> Callable:
    """A method that no other thread enters, of any view, from reading the controls to showing the picture.

    Controls answer on a thread of their own while cells run on the main one. Two at a time would
    mix the state of one with the picture of the other. Nor does Python look for garbage meanwhile.
    """

    @functools.wraps(method)
    def entered(*args, **kwargs):
        with DRAWING, COLLECTOR.waiting():
            return method(*args, **kwargs)

    return entered


class View:
    """Controls, a picture and some text below it.

    A subclass makes its controls, calls `_assemble` and then, whenever something changes, `show`
    or `complain`, in methods that run `alone`. A saved notebook keeps the present picture beside
    the live view, for pages that cannot run widgets.

    Attributes:
        widget: the ipywidgets root, to display or to embed elsewhere.
        picture: the figure as it is now.
        message: what is wrong with the input, `""` if nothing is.
        idle: what is done while a reader rests.
    """

    name = "view"

    def __init__(self):
        self.picture = Picture(alt=self.name)
        self.message = ""
        self._image = Image(format="png", layout=Layout(max_width="100%", height="auto", margin="0"))
        self.idle = Idle()
        self._message, self._spoken, self._text = (
            HTML(),
            HTML(),
            HTML(layout=Layout(max_width="min(100%, 880px)", overflow="auto")),
        )
        self._fonts, self._characters = HTML(styles()), frozenset()
        self.widget = VBox(layout=Layout(width="100%"))
        self.widget.add_class(VIEW_CLASS)

    def _assemble(self, *rows: ipywidgets.Widget) -> None:
        """The given rows, the message, the picture and the text, from top to bottom."""
        self._bring_characters("".join(map(_in_language, rows)))
        shown = (self._message, self._image, self._spoken, self._text, self._fonts)
        self.widget.children = [*rows, *shown]

    def _bring_characters(self, text: str) -> None:
        """Sends the browser what it lacks to write a text, once for each character."""
        new = chinese(text) - self._characters
        if new:
            self._characters |= new
            self._fonts.value += f"<style>{web_font(new)}</style>"

    def show(self, picture: Picture, text: str = "", words: str = "") -> None:
        """Shows a picture, with its text alternative for screen readers, and HTML below it.

        Args:
            words: other text that controls show.
        """
        text = language.page(text)
        self._bring_characters(text + words)
        self.picture, self.message = picture, ""
        self._image.layout.width = f"{picture.get_size_inches()[0] * PIXELS_PER_INCH:.0f}px"
        self._image.value = picture.png(SCREEN_SCALE)
        hidden = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"
        self._spoken.value = (
            f'<div role="status" style="{hidden}">{html.escape(language.text(picture.alt))}</div>'
        )
        self._message.value = ""
        self._text.value = text
        for part in (self._image, self._text):
            part.remove_class(FORMER_CLASS)

    def complain(self, message: str) -> None:
        """Says what is wrong and what to do; the last picture stays, greyed out, so that nothing jumps."""
        self.message = message
        for part in (self._image, self._text):
            part.add_class(FORMER_CLASS)
        self._spoken.value = ""
        style = "border-left:4px solid #c8481a;background:#fdf1ec;color:#1d2733;padding:6px 12px"
        self._message.value = f'<div role="alert" style="{style}">{html.escape(message)}</div>'

    def note(self, text: str) -> None:
        """A remark that is no error."""
        text = language.text(text)
        style = "border-left:4px solid #3f7fb5;background:#eef4fa;color:#1d2733;padding:6px 12px"
        self._message.value = f'<div role="status" style="{style}">{html.escape(text)}</div>'

    def _complete(self) -> None:
        """Does what a picture lacks that was shown before all of it was there."""

    @contextmanager
    def busy(self, what: str = "Computing …") -> Iterator[None]:
        """Says what is done, from a fifth of a second on, for as long as it is; an interrupt ends it, too."""
        self.say_busy(what)
        try:
            yield
        finally:
            self._message.value = ""

    def say_busy(self, what: str, done: int = 0, total: int = 0) -> None:
        """The same until something else is said.

        With a total it has a bar, is there at once, and a screen reader does not tell every step of it.
        """
        text, begin = html.escape(language.text(what)), 'role="status"'
        bar = ""
        if total:
            begin, bar = (
                'style="animation:none;opacity:1"',
                f'<progress value="{done}" max="{total}"></progress>',
            )
        self._message.value = f'<div {begin} class="{BUSY_CLASS}">{text}{bar}</div>'

    @alone
    def _repr_mimebundle_(self, include=None, exclude=None):
        self._complete()
        live, still = self.widget._repr_mimebundle_(), self.picture.png()
        alt = self.message or language.text(self.picture.alt)
        bundle = {**live, "image/png": base64.b64encode(still).decode("ascii"), "text/plain": alt}
        return bundle, {
            "image/png": {"alt": alt, "width": int(self.picture.get_figwidth() * PIXELS_PER_INCH)}
        }


class PromptView(View):
    """A view of what a model does with a text: a prompt box and examples stand above the controls."""

    def __init__(self, prompt: str):
        super().__init__()
        examples = [("choose an example …", "")] + [(shorten(visible(e), 30), e) for e in EXAMPLES]
        layout = Layout(width="min(100%, 560px)", height="58px")
        self.prompt = Textarea(prompt, description="prompt", continuous_update=False, layout=layout)
        self.prompt.style.description_width = "56px"
        self.examples = dropdown("or", examples, "", "260px")
        self.examples.observe(self._use_example, "value")
        self._bring_characters("".join(EXAMPLES))

    def _assemble(self, *rows: ipywidgets.Widget) -> None:
        super()._assemble(row(self.prompt, self.examples), *rows)

    def _use_example(self, change) -> None:
        if change["new"]:
            self.prompt.value = change["new"]

    def show(self, picture: Picture, text: str = "", words: str = "") -> None:
        super().show(picture, text, self.prompt.value + words)


def strip_of(strip: TextStrip) -> str:
    """The text so far as HTML, its legend only once there is something to explain.

    The view itself brings the characters.
    """
    return strip_html(strip, legend=bool(strip.pieces), font=False)
