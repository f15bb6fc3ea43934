"""The dial from autoregressive to non-autoregressive: block size, passes a block, a text that fills in."""

from __future__ import annotations

from collections.abc import Iterator

from ipywidgets import Play

from llmcourse.blockwise import REFINEMENTS, BlockDecoder, Refinement
from llmcourse.decoding import DecodingError
from llmcourse.figures.block_filling import Dial, Filling, all_dials, fill, fill_all, powers_of_two
from llmcourse.figures.filling_plot import FillingPlot
from llmcourse.figures.filling_strip import filling_html
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.figures.widgets.models import NextLogits, ReadyModel
from llmcourse.tokenizer import Tokenizer

Fillings = dict[Dial, Filling]


def read_room(ready: ReadyModel, prompt: str, max_new_tokens: int) -> list[int]:
    """The prompt's tokens, if the new ones have room behind them.

    Raises:
        ValueError: the prompt is empty, or leaves too little room; the message is for the reader of a view.
    """
    tokens, most = ready.read_prompt(prompt), ready.next_logits.max_length - max_new_tokens
    if len(tokens) > most:
        raise ValueError(
            f"The prompt has {len(tokens):,} tokens, and with {max_new_tokens} new ones {ready.name} reads "
            f"at most {most:,}: shorten the prompt."
        )
    return tokens


def fill_text(
    ready: ReadyModel,
    model: BlockDecoder,
    prompt: str,
    max_new_tokens: int,
    refinement: Refinement,
    *,
    progress: bool = False,
) -> Fillings:
    """A text under every setting of the dial.

    Raises:
        ValueError: as `read_room`.
        DecodingError: broken logits.
    """
    tokens = read_room(ready, prompt, max_new_tokens)
    settings = {"max_new_tokens": max_new_tokens, "refinement": refinement}
    return fill_all(model, tokens, **settings, progress=progress)


class BlockPlayer(v.PromptView):
    """Both dials, and a play control over the passes.

    All settings are written when the first prompt is shown, some seconds for `base`, and remembered: sliders
    never wait for the model. Of a prompt that a control brings, the setting of the dials is written at once
    and the others while the reader looks at it: points come to the right one by one.

    Args:
        model: a backbone with adapters, as `load_adapters` returns it, with its tokenizer.
        prompt, block_size, passes, refinement: what it starts with; sizes and passes are powers of two, or
            the whole length.
        max_new_tokens: how long the text is; all settings together may take 1,000 forward passes.
        name: of the model, for titles.

    Raises:
        TypeError: no block decoder.
        ValueError: a text that costs too much, or no such setting.
    """

    name = "Block player"

    def __init__(
        self,
        model: BlockDecoder,
        tokenizer: Tokenizer,
        prompt: str = v.EXAMPLES[0],
        *,
        block_size: int = 8,
        passes: int = 2,
        refinement: Refinement = "unmask",
        max_new_tokens: int = 32,
        name: str = "base",
    ):
        if not isinstance(model, BlockDecoder):
            raise TypeError(
                f"model must be a BlockDecoder, got {type(model).__name__}; load adapters with load_adapters"
            )
        self.dials = all_dials(max_new_tokens)
        if (block_size, passes) not in self.dials:
            raise ValueError(
                f"block_size and passes must be one of the settings of the dial, {list(self.dials)}, got "
                f"{(block_size, passes)}; use powers of two, or the whole length"
            )
        super().__init__(prompt)
        backbone = model.backbone
        self.model, self.ready = model, ReadyModel(name, backbone, tokenizer, NextLogits(backbone))
        self.max_new_tokens, self._setting = max_new_tokens, False
        self.texts: dict[tuple[str, str], Fillings] = {}
        self.filling: Filling | None = None
        self.plot = FillingPlot(max_new_tokens)
        self._make_dials(block_size, passes, chosen(refinement, dict.fromkeys(REFINEMENTS), "refinement"))
        self._make_steps()
        steps = v.row(self.step, self.play, self.back, self.forward)
        self._assemble(v.row(self.block_size, self.passes, self.refinement), steps)
        self.refresh_setting()

    def _make_dials(self, block_size: int, passes: int, refinement: Refinement) -> None:
        sizes = powers_of_two(self.max_new_tokens)
        what = "tokens that are guessed at once; 1 is autoregressive, the whole length non-autoregressive"
        self.block_size = v.choice_slider("block size", sizes, block_size, what)
        what = "over a block; each settles its share, the surest first"
        self.passes = v.choice_slider("passes a block", powers_of_two(block_size), passes, what)
        self.refinement = v.dropdown("refinement", list(REFINEMENTS), refinement, "200px")
        for control in (self.prompt, self.block_size, self.passes, self.refinement):
            control.observe(lambda _: self.refresh_setting(), "value")

    def _make_steps(self) -> None:
        most = self.max_new_tokens
        self.step = v.int_slider("forward pass", most, 1, most, "how far the text is written")
        self.step.layout.width = "420px"
        self.play = Play(min=0, max=most, interval=600, show_repeat=False, description="play")
        self.back = v.button("Back", "one pass back", "step-backward")
        self.forward = v.button("Step", "one pass on", "step-forward", "primary")
        self.back.on_click(lambda _: self.go(-1))
        self.forward.on_click(lambda _: self.go(1))
        self.step.observe(lambda _: self.refresh(), "value")
        self.play.observe(lambda change: self._follow(change["new"]), "value")

    @property
    def dial(self) -> Dial:
        return self.block_size.value, self.passes.value

    @v.alone
    def go(self, passes: int) -> None:
        """So many passes on, or back; not past either end."""
        self.step.value += passes

    @v.alone
    def refresh_setting(self) -> None:
        """Shows another setting, or another text, at its end."""
        if self._setting:
            return
        self._setting = True  # what follows sets controls, which would each refresh
        try:
            self._offer_passes()
            fillings = self._find_text()
            if fillings is None:
                return
            last = len(fillings[self.dial].states)
            self.step.max = self.play.max = last
            self.step.value, self.play.value = last, 0  # playing begins with an empty text
        finally:
            self._setting = False
        self.refresh()
        if 0 < len(self.texts.get(self._key, ())) < len(self.dials):
            self.idle.plan(self._others(self._key))

    @v.alone
    def refresh(self) -> None:
        """Shows the pass that the controls ask for."""
        if self._setting:
            return
        fillings = self._find_text()
        if fillings is None:
            return
        self.filling, at = fillings[self.dial], self.step.value
        self.back.disabled, self.forward.disabled = at == 1, at == self.step.max
        prompt, tokenizer = self.prompt.value, self.ready.tokenizer
        title = f"{self.ready.name} with adapters, after “{v.end_of(prompt, 26)}”"
        picture = self.plot.update(fillings, self.dial, at, tokenizer.label, title)
        self.show(picture, filling_html(self.filling, at, prompt, tokenizer.encode_prompt(prompt), tokenizer))

    def _follow(self, at: int) -> None:
        """Shows what the play control has come to; at 0, where it rests, nothing."""
        if at and not self._setting:
            self.step.value = at

    def _offer_passes(self) -> None:
        """At most one pass a token of a block: fewer choices for a smaller one."""
        wanted, offered = self.passes.value, powers_of_two(self.block_size.value)
        if tuple(self.passes.options) != tuple((f"{one:,}", one) for one in offered):
            self.passes.options = [(f"{one:,}", one) for one in offered]
            self.passes.value = max(one for one in offered if one <= wanted)

    @property
    def _key(self) -> tuple[str, str]:
        return self.prompt.value, self.refinement.value

    def _find_text(self) -> Fillings | None:
        """The text under the settings written so far, the dials' among them; None where it cannot be.

        The first text, and every one where no event loop runs, is written under all settings.
        """
        known = self.texts.get(self._key, {})
        if self.dial in known:
            return known
        try:
            if self.texts and (known or self.idle.plan(self._others(self._key))):
                with self.busy():
                    known[self.dial] = self._write(self._key, self.dial)
            else:
                known = self._write_all()
        except (ValueError, DecodingError) as error:
            self.idle.drop()
            self.filling = None
            self.complain(str(error))
            return None
        except BaseException:  # interrupted: neither this nor the others are written
            self.idle.drop()
            raise
        self.texts[self._key] = known
        return known

    def _write_all(self) -> Fillings:
        with self.busy(f"Writing this text with {len(self.dials)} settings …"):
            # A bar only for the first: later ones are asked for by controls, which have no output.
            settings = {"max_new_tokens": self.max_new_tokens, "progress": not self.texts}
            return fill_text(self.ready, self.model, self._key[0], refinement=self._key[1], **settings)

    def _write(self, key: tuple[str, str], dial: Dial) -> Filling:
        prompt, refinement = key
        tokens = read_room(self.ready, prompt, self.max_new_tokens)
        limits = {"max_new_tokens": self.max_new_tokens, "refinement": refinement}
        return fill(self.model, tokens, dial, **limits)

    def _complete(self) -> None:
        self.idle.finish()

    def _others(self, key: tuple[str, str]) -> Iterator[None]:
        """Writes what is missing of a text, a setting at a time, and shows each."""
        try:
            for number, dial in enumerate(self.dials):
                known = self.texts.get(key, {})
                if dial not in known:
                    try:
                        known[dial] = self._write(key, dial)
                    except DecodingError:  # is told where it is asked for
                        continue
                    if self._key == key:
                        self.refresh()
                        self.say_busy("Writing the other settings …", number + 1, len(self.dials))
                    yield
        finally:  # interrupted, too
            if self._key == key:
                self._message.value = ""
