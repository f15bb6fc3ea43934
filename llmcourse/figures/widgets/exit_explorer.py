"""Early exit on a map of layers and tokens: a threshold moves the line where each token leaves."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from numbers import Integral

from llmcourse.decoding import DecodingError, generate
from llmcourse.decoding.errors import require_number
from llmcourse.early_exit import (
    ConfidenceRule,
    Curve,
    EntropyRule,
    ExitHeads,
    ExitRule,
    PatienceRule,
    Readings,
    curve,
    heat_of,
    read_texts,
)
from llmcourse.early_exit.heat_map import Heat
from llmcourse.early_exit.threshold import SIGNALS, Signal
from llmcourse.figures.exit_heat import MOST_LABELS
from llmcourse.figures.exit_line import ExitLinePlot
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.figures.widgets.models import NextLogits, ReadyModel
from llmcourse.tokenizer import Tokenizer

CELL = "padding:1px 16px 1px 0;text-align:right"


@dataclass(frozen=True)
class ExitInputs:
    """What the line depends on, besides the text.

    Attributes:
        rule: which of the next three is looked at, by its name.
        entropy: in nats: what is narrower leaves.
        confidence: in [0, 1]: what is likelier leaves.
        patience: how often a favourite must be confirmed.
    """

    rule: str = "entropy"
    entropy: int | float = 3.0
    confidence: int | float = 0.6
    patience: int = 1

    def make_rule(self) -> ExitRule:
        """The rule.

        Raises:
            ValueError: no such kind, or a threshold out of its range: also one that another rule looks at,
                for each has a control.
        """
        rules = {
            "entropy": EntropyRule(self.entropy),
            "confidence": ConfidenceRule(self.confidence),
            "patience": PatienceRule(self.patience),
        }
        return rules[chosen(self.rule, rules, "rule")]


@dataclass(frozen=True, eq=False)
class ReadText:
    """A text that every exit has read.

    Attributes:
        tokens: without the last one, after which nothing was read.
        text: with it.
    """

    tokens: tuple[int, ...]
    text: str
    readings: Readings
    curves: dict[Signal, Curve]

    def heat(self, inputs: ExitInputs) -> Heat:
        """The map, and where the rule leaves; raises ValueError for a threshold out of its range."""
        return heat_of(self.readings, self.tokens, inputs.make_rule())


def read_on(ready: ReadyModel, heads: ExitHeads, prompt: str, max_new_tokens: int) -> ReadText:
    """Lets the whole model go on with a text, greedily, and reads all of it with every exit.

    Args:
        max_new_tokens: 0 to read the text alone.

    Raises:
        ValueError: the text is empty, a single token, or too long for a map; the message is for the reader of
            a view.
        DecodingError: broken logits.
    """
    tokens = ready.read_prompt(prompt)
    most = min(MOST_LABELS, ready.next_logits.max_length) - max_new_tokens
    least = 1 if max_new_tokens else 2  # one token is read, and the next one is what is predicted
    if not least <= len(tokens) <= most:
        remedy = "shorten" if len(tokens) > most else "lengthen"
        raise ValueError(
            f"The text has {len(tokens):,} tokens, and the map takes {least} to {most:,} before the "
            f"{max_new_tokens} that {ready.name} writes: {remedy} it."
        )
    if max_new_tokens:
        (generation,) = generate(ready.model, [tokens], max_new_tokens=max_new_tokens)
        tokens = [*tokens, *generation.tokens]
    readings = read_texts(heads, [tokens])
    curves = {signal: curve(readings, signal) for signal in SIGNALS}
    return ReadText(tuple(tokens[:-1]), ready.tokenizer.decode(tokens), readings, curves)


def counts_html(heat: Heat) -> str:
    """How many tokens leave after each layer, and how many of these with what the whole model says."""
    head = ["leave after", *(f"{layer}" for layer in heat.layers)]
    favourites, rows = heat.favourites.tolist(), {"tokens": [], "as the whole model": []}
    for row, layer in enumerate(heat.layers):
        here = [at for at, left in enumerate(heat.exit_layers) if left == layer]
        right = sum(favourites[row][at] == favourites[-1][at] for at in here)
        rows["tokens"].append(str(len(here)))
        rows["as the whole model"].append(str(right) if here else "–")
    lines = [
        "<tr>"
        + "".join(f"<th scope='col' style='{CELL}'>{html.escape(name)}</th>" for name in head)
        + "</tr>"
    ]
    for name, cells in rows.items():
        body = "".join(f"<td style='{CELL}'>{cell}</td>" for cell in cells)
        lines.append(f"<tr><th scope='row' style='{CELL}'>{name}</th>{body}</tr>")
    caption = "<caption style='text-align:left'>Layers, and the tokens that leave after them</caption>"
    return f"<table style='border-spacing:0;line-height:1.5;margin:6px 0'>{caption}{''.join(lines)}</table>"


class ExitExplorer(v.PromptView):
    """A rule and its threshold over `read_on`; a text is read once, and sliders never wait for the model.

    Args:
        heads: trained exits, which know their backbone.
        tokenizer: of the backbone.
        prompt: the text, with which the whole model goes on.
        inputs: the rule that it starts with.
        max_new_tokens: how far it goes on; 0 reads the text alone.
        name: of the model, for titles.

    Raises:
        TypeError: no exit heads, or no tokenizer.
        ValueError: a rule or a threshold that is none, or more new tokens than a map takes.
    """

    name = "Exit explorer"

    def __init__(
        self,
        heads: ExitHeads,
        tokenizer: Tokenizer,
        prompt: str = v.EXAMPLES[0],
        *,
        inputs: ExitInputs | None = None,
        max_new_tokens: int = 24,
        name: str = "base",
    ):
        if not isinstance(heads, ExitHeads):
            raise TypeError(
                f"heads must be ExitHeads, got {type(heads).__name__}; take those of early_exit.load_heads"
            )
        most, remedy = MOST_LABELS - 2, f"a map takes at most {MOST_LABELS} tokens"
        fits = lambda n: 0 <= n <= most  # noqa: E731
        require_number(fits, "max_new_tokens", f"in [0, {most}]", max_new_tokens, remedy, kind=Integral)
        start = ExitInputs() if inputs is None else inputs
        start.make_rule()  # refuses what is no rule
        super().__init__(prompt)
        backbone = heads.backbone
        self.heads, self.ready = heads, ReadyModel(name, backbone, tokenizer, NextLogits(backbone))
        self.max_new_tokens = max_new_tokens
        self.texts: dict[str, ReadText] = {}
        self.plots: dict[str, ExitLinePlot] = {}
        self.heat: Heat | None = None
        self._make_controls(start)
        self._assemble(v.row(self.rule), v.row(self.entropy, self.confidence, self.patience))
        self.refresh()

    def _make_controls(self, start: ExitInputs) -> None:
        self.rule = v.dropdown("leave by", list(SIGNALS), start.rule, "200px")
        most = max(math.ceil(math.log(self.heads.backbone.config.vocab_size)), float(start.entropy))
        what = "nats; a token leaves where its next one's distribution is narrower; 0 never"
        self.entropy = v.float_slider("entropy below", float(start.entropy), 0.0, float(most), 0.05, what)
        what = "a token leaves where its favourite is likelier; 1 never"
        self.confidence = v.float_slider("confidence above", float(start.confidence), 0.0, 1.0, 0.01, what)
        what = "a token leaves once so many further exits have confirmed its favourite"
        exits = len(self.heads.layers)
        self.patience = v.int_slider("patience", start.patience, 1, max(exits, start.patience), what)
        for control in (self.prompt, self.rule, self.entropy, self.confidence, self.patience):
            control.observe(lambda _: self.refresh(), "value")

    @property
    def inputs(self) -> ExitInputs:
        thresholds = round(self.entropy.value, 3), round(self.confidence.value, 3), self.patience.value
        return ExitInputs(self.rule.value, *thresholds)

    @v.alone
    def refresh(self) -> None:
        """Reads the text if it is new, and shows where the rule leaves."""
        inputs, prompt = self.inputs, self.prompt.value
        for signal in SIGNALS:
            getattr(self, signal).disabled = signal != inputs.rule
        try:
            if prompt not in self.texts:
                with self.busy():
                    self.texts[prompt] = read_on(self.ready, self.heads, prompt, self.max_new_tokens)
        except (ValueError, DecodingError) as error:
            self.heat = None
            self.complain(str(error))
            return
        read = self.texts[prompt]
        self.heat = read.heat(inputs)
        if prompt not in self.plots:
            labels = [self.ready.tokenizer.label(token) for token in read.tokens]
            self.plots[prompt] = ExitLinePlot(self.heat, labels, read.curves)
        title = f"{self.ready.name} leaves by {inputs.make_rule()}"
        self.show(self.plots[prompt].update(self.heat, title), counts_html(self.heat), read.text)
