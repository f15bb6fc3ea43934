"""Rounding a real weight: bits, symmetry, what shares a scale and where ranges end, and what each costs."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from llmcourse.figures.levels_plot import LevelsPlot
from llmcourse.figures.rounded_weight import (
    CLIPPING,
    RoundedWeight,
    RoundingInputs,
    fitting,
    linear_weights,
    round_weight,
    some_rows,
    trade_offs,
)
from llmcourse.figures.style import Picture
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.quantization.quantized_tensor import BITS

CELL = "padding:1px 18px 1px 0"


class QuantizerExplorer(v.View):
    """Controls over `round_weight`; of a large weight some rows are looked at, so that sliders never wait.

    Args:
        model: of which every linear layer can be chosen, or {name: matrix}.
        layer: the name that it starts with; None for the first.
        inputs: what it starts with.
        name: of the model, for titles.

    Raises:
        TypeError: neither a model nor named matrices.
        ValueError: no linear layer, no such layer, or settings that are none, or none for the layer.
    """

    name = "Quantizer explorer"

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        *,
        layer: str | None = None,
        inputs: RoundingInputs | None = None,
        name: str = "base",
    ):
        super().__init__()
        self.model_name, self.weights = name, linear_weights(model)
        self.plots: dict[str, LevelsPlot] = {}
        self.samples: dict[str, Tensor] = {}
        self.rounded: RoundedWeight | None = None
        self._make_controls(
            chosen(layer, self.weights, "layer"), RoundingInputs() if inputs is None else inputs
        )
        how = v.row(self.bits, self.symmetric, self.granularity)
        self._assemble(v.row(self.layer), how, v.row(self.range_method, self.percentile))
        self.refresh()

    def _make_controls(self, layer: str, start: RoundingInputs) -> None:
        self.layer = v.dropdown("weight of", list(self.weights), layer, "330px")
        what = "of a code; each one more halves the step, which is 6 dB"
        self.bits = v.int_slider("bits", start.bits, BITS[0], BITS[-1], what)
        kinds = [("symmetric, Z = 0", True), ("asymmetric", False)]
        self.symmetric = v.dropdown("codes", kinds, start.symmetric, "210px")
        self.offered = fitting(self.weights[layer].shape[1])
        granularity = chosen(start.granularity, dict.fromkeys(self.offered), "granularity")
        self.granularity = v.dropdown("a scale for each", self.offered, granularity, "240px")
        methods = {method: words for words, method in CLIPPING.items()}
        chosen(start.range_method, methods, "range_method")
        self.range_method = v.dropdown("clip by", [*CLIPPING.items()], start.range_method, "240px")
        what = "how much of each group its range holds; the rest is clipped"
        least = min(90.0, float(start.percentile))
        self.percentile = v.float_slider("percentile", float(start.percentile), least, 100.0, 0.1, what)
        controls = (self.layer, self.bits, self.symmetric, self.granularity)
        for control in (*controls, self.range_method, self.percentile):
            control.observe(self._moved, "value")

    @property
    def inputs(self) -> RoundingInputs:
        how = self.bits.value, self.symmetric.value, self.granularity.value
        return RoundingInputs(*how, self.range_method.value, round(self.percentile.value, 3))

    @v.alone
    def refresh(self) -> None:
        """Rounds the chosen weight as the controls say, and shows it."""
        layer, inputs = self.layer.value, self.inputs
        self.percentile.disabled = inputs.range_method != "percentile"
        try:
            self.rounded = round_weight(self._sample(layer), inputs)
            if layer not in self.plots:
                with self.busy():
                    self._make_plot(layer)
        except ValueError as error:
            self.rounded = None
            self.complain(f"{layer}: {error}")
            return
        self.show(
            self._picture(layer, self.rounded, inputs),
            figures_html(self.rounded, tuple(self.weights[layer].shape)),
        )

    @v.alone
    def _moved(self, _) -> None:
        """Answers a control, and draws the layers beside this one while the reader looks."""
        self._offer()
        self.refresh()
        if self.rounded is not None:
            self.idle.plan(self._ahead())

    def _offer(self) -> None:
        """Groups that cut the rows evenly; for a chosen one that does not, the largest, or channels."""
        offered, before = fitting(self.weights[self.layer.value].shape[1]), self.granularity.value
        if offered == self.offered:
            return
        self.offered = offered
        self.granularity.unobserve(self._moved, "value")  # two changes that are answered once
        self.granularity.options = v.told(offered)
        self.granularity.value = before if before in offered else offered[:3][-1]
        self.granularity.observe(self._moved, "value")

    def _ahead(self) -> Iterator[None]:
        layers, inputs = list(self.weights), self.inputs
        at = layers.index(self.layer.value)
        for layer in (*layers[at + 1 : at + 2], *layers[max(at - 1, 0) : at]):
            if layer not in self.plots:
                try:
                    rounded = round_weight(self._sample(layer), inputs)
                    self._make_plot(layer)
                except ValueError:  # is told when it is asked for
                    continue
                yield
                self._picture(layer, rounded, inputs).png(v.SCREEN_SCALE)  # keeps what stays the same
                yield

    def _sample(self, layer: str) -> Tensor:
        if layer not in self.samples:
            self.samples[layer] = some_rows(self.weights[layer])
        return self.samples[layer]

    def _make_plot(self, layer: str) -> None:
        sample = self._sample(layer)
        curves = {symmetric: trade_offs(sample, symmetric) for symmetric in (True, False)}
        self.plots[layer] = LevelsPlot(sample.numpy(), curves)

    def _picture(self, layer: str, rounded: RoundedWeight, inputs: RoundingInputs) -> Picture:
        title = f"{layer} of {self.model_name} in {inputs.bits} bits"
        return self.plots[layer].update(rounded, inputs, title)


def figures_html(rounded: RoundedWeight, shape: tuple[int, int]) -> str:
    """What the setting costs and keeps, and of which rows that is told."""
    held = rounded.bits_per_weight
    rows = {
        "rounded": f"{len(rounded.weight):,} of {shape[0]:,} rows of {shape[1]:,}",
        "‖W − W̃‖²": f"{rounded.error:.4g}",
        "signal to noise": f"{rounded.snr_db:.1f} dB",
        "bits a weight, scales included": f"{held:.4g}: {16 / held:.2f} times fewer than 16",
        "clipped": f"{rounded.share_clipped:.2%}",
        "information in the codes": f"{rounded.entropy_bits:.2f} bits",
    }
    lines = [
        f"<tr><th scope='row' style='{CELL};text-align:left'>{html.escape(name)}</th>"
        f"<td style='{CELL}'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    ]
    return f"<table style='border-spacing:0;line-height:1.5;margin:6px 0'>{''.join(lines)}</table>"
