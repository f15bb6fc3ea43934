"""Outliers in a model's activations: which columns keep 16 bits at a threshold, and what int8 loses."""

from __future__ import annotations

import html

from llmcourse.figures.outlier_plot import OutlierPlot
from llmcourse.figures.outlier_split import (
    DEFAULT_THRESHOLD,
    THRESHOLDS,
    LayerInput,
    Split,
    read_inputs,
    split,
    splits,
)
from llmcourse.figures.rounded_weight import linear_weights
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.figures.widgets.models import Models, ModelShelf, ReadyModel

MOST_TOKENS = 96  # rows that can still be seen
CELL = "padding:1px 18px 1px 0"


def read_text(ready: ReadyModel, prompt: str) -> tuple[list[int], dict[str, LayerInput]]:
    """The text's tokens, and what they give to each linear layer.

    Raises:
        ValueError: the text is empty or too long; the message is for the reader of a view.
    """
    tokens = ready.read_prompt(prompt)
    if len(tokens) > MOST_TOKENS:
        raise ValueError(
            f"The text has {len(tokens):,} tokens, and the map takes at most {MOST_TOKENS}: shorten it."
        )
    return tokens, read_inputs(ready.model, tokens)


class OutlierMap(v.PromptView):
    """A layer and a threshold over `split`; a text is read once by each model, and sliders never wait for it.

    Args:
        models: {name: (model, tokenizer)}, names for `pretrained.load`, or None for all embedded ones.
        prompt: the text.
        model, layer: names that it starts with; None for the first.
        threshold: that it starts with; ∞ keeps no column in 16 bits.

    Raises:
        ValueError: no such model or layer, or a threshold that is not positive.
    """

    name = "Outlier map"

    def __init__(
        self,
        models: Models = None,
        prompt: str = v.EXAMPLES[0],
        *,
        model: str | None = None,
        layer: str | None = None,
        threshold: int | float = DEFAULT_THRESHOLD,
    ):
        if not threshold > 0:
            raise ValueError(f"threshold must be above 0, got {threshold}; use ∞ for no decomposition")
        super().__init__(prompt)
        self.shelf = ModelShelf(models)
        self.texts: dict[tuple[str, str], tuple[list[int], dict[str, LayerInput]]] = {}
        self.plots: dict[tuple[str, str, str], OutlierPlot] = {}
        self.split: Split | None = None
        first = self.shelf.get(chosen(model, dict.fromkeys(self.shelf.names), "model"))
        self._make_controls(first, layer, threshold)
        self._assemble(v.row(self.model, self.layer, self.threshold))
        self.refresh()

    def _make_controls(self, first: ReadyModel, layer: str | None, threshold: int | float) -> None:
        self.model = v.dropdown("model", self.shelf.names, first.name, "260px")
        names = dict.fromkeys(layer_names(first))
        self.layer = v.dropdown("input of", list(names), chosen(layer, names, "layer"), "290px")
        what = "a column with a magnitude of this or more keeps 16 bits; ∞ none"
        self.threshold = v.choice_slider("threshold", THRESHOLDS, threshold, what)
        for control in (self.prompt, self.model, self.layer, self.threshold):
            control.observe(lambda _: self.refresh(), "value")

    @v.alone
    def refresh(self) -> None:
        """Reads the text if it is new to the model, and shows the layer's outliers."""
        ready, prompt = self.shelf.get(self.model.value), self.prompt.value
        names = tuple(layer_names(ready))
        if names != tuple(self.layer.options):
            wanted = self.layer.value if self.layer.value in names else names[0]
            self.layer.options = names  # takes the value along, which refreshes
            self.layer.value = wanted
        layer, text = self.layer.value, (ready.name, prompt)
        try:
            if text not in self.texts:
                with self.busy():
                    self.texts[text] = read_text(ready, prompt)
            tokens, inputs = self.texts[text]
            if (*text, layer) not in self.plots:
                labels = [ready.tokenizer.label(token) for token in tokens]
                with self.busy():
                    self.plots[(*text, layer)] = OutlierPlot(inputs[layer], splits(inputs[layer]), labels)
        except ValueError as error:
            self.split = None
            self.complain(str(error))
            return
        plot, threshold = self.plots[(*text, layer)], self.threshold.value
        known = {one.threshold: one for one in plot.every}
        self.split = known.get(threshold) or split(inputs[layer], threshold)
        picture = plot.update(self.split, f"What {layer} of {ready.name} is given")
        self.show(picture, figures_html(self.split, plot.every[-1]))


def layer_names(ready: ReadyModel) -> list[str]:
    """All that `read_inputs` keeps, without running anything."""
    return list(linear_weights(ready.model))


def figures_html(shown: Split, whole: Split) -> str:
    """The threshold beside int8 for all columns."""
    columns = [("all columns in int8", whole)]
    if shown.count:
        columns.append((f"outliers from {shown.threshold:g} on in 16 bits", shown))
    rows = {
        "columns in 16 bits": [f"{one.count:,}" for _, one in columns],
        "values in 16 bits": [f"{one.share:.2%}" for _, one in columns],
        "step of int8, median token": [f"{one.step:.3g}" for _, one in columns],
        "error of the product": [f"{one.error:.3%}" for _, one in columns],
    }
    head = "".join(f"<th scope='col' style='{CELL}'>{html.escape(name)}</th>" for name, _ in columns)
    body = "".join(
        f"<tr><th scope='row' style='{CELL};text-align:left'>{name}</th>"
        + "".join(f"<td style='{CELL};text-align:right'>{cell}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows.items()
    )
    table = "border-spacing:0;line-height:1.5;margin:6px 0"
    return f"<table style='{table}'><tr><td></td>{head}</tr>{body}</table>"
