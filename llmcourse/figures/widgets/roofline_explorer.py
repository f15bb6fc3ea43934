"""One model on one machine: where its operations lie on the roofline, and what that makes of its speed."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from llmcourse.costs import MODELS, Shapes, Step, layer_costs
from llmcourse.costs.operations import ATTENTION_KINDS
from llmcourse.figures.memory_bars import gigabytes, verdict
from llmcourse.figures.roofline_data import Roofline, bound_words, roofline_data
from llmcourse.figures.roofline_plot import RooflinePlot
from llmcourse.figures.style import seconds
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import (
    CACHES,
    WEIGHTS,
    arithmetic,
    check_arithmetic,
    chosen,
    known_machines,
    precision,
)
from llmcourse.roofline import (
    Limits,
    Memory,
    StepPrediction,
    memory_needed,
    predict_all,
    predict_step,
    turning_batch,
)

LINEAR = "gate and up projection"  # the largest of the linear layers


@dataclass(frozen=True)
class RooflineInputs:
    """Everything that the picture depends on, besides the machine and the model.

    Attributes:
        context: tokens of the prompt, and keys that a decoding step looks at.
        weights, cache: formats, of `machines.WEIGHTS` and `machines.CACHES`.
        attention: "fused" or "unfused".
    """

    batch: int = 8
    context: int = 1024
    weights: str = "bf16"
    cache: str = CACHES[0]
    attention: str = "unfused"


@dataclass(frozen=True)
class RooflineState:
    """What follows from the inputs.

    Attributes:
        points: of one layer, in both steps.
        prefill, decode: predictions for the whole model.
        linear_turn, step_turn: the batches from which the linear layers, and the whole decoding
            step, are bound by arithmetic; None where no batch is.
        memory: while decoding.
    """

    points: Roofline
    prefill: StepPrediction
    decode: StepPrediction
    linear_turn: int | None
    step_turn: int | None
    memory: Memory


def explore_roofline(shapes: Shapes, machine: Limits, inputs: RooflineInputs) -> RooflineState:
    """Predicts both steps of a model on a machine.

    Raises:
        ValueError: a size out of its range, or a format that the machine lacks.
    """
    check_arithmetic(machine, inputs.weights)
    numbers = precision(machine, inputs.weights, inputs.cache)
    dtype, batch, context = arithmetic(machine, inputs.weights), inputs.batch, inputs.context
    prefill, decode = Step.prefill(batch, context, logit_positions=1), Step.decode(batch, context)
    kind = {"attention": inputs.attention}
    layers = {
        name: predict_all(layer_costs(shapes, step, numbers, **kind), machine, dtype)
        for name, step in (("prefill", prefill), ("decode", decode))
    }
    turn = {"context": context, **kind}
    return RooflineState(
        points=roofline_data(machine, layers, dtype),
        prefill=predict_step(shapes, prefill, machine, numbers, **kind),
        decode=predict_step(shapes, decode, machine, numbers, **kind),
        linear_turn=turning_batch(shapes, machine, numbers, operation=LINEAR, **turn),
        step_turn=turning_batch(shapes, machine, numbers, **turn),
        memory=memory_needed(shapes, batch, context, numbers),
    )


def in_words(state: RooflineState, inputs: RooflineInputs, memory_bytes: int | None) -> list[str]:
    """What the picture means, a paragraph a step, one for the batch size and one for the memory."""
    prefill, decode = (dict(state.points.series)[name] for name in ("prefill", "decode"))
    batch, context = inputs.batch, inputs.context
    a_row = f" ({state.decode.tokens_per_s / batch:,.1f} a row)" if batch > 1 else ""
    every = f"each of {batch:,} rows" if batch > 1 else "one row"
    words = [
        f"Prefill of {batch:,} × {context:,} tokens: {seconds(state.prefill.time_s)} at best, "
        f"{state.prefill.tokens_per_s:,.0f} tokens/s. In a layer: {bound_words(prefill)}.",
        f"Decoding a token for {every}: {seconds(state.decode.time_s)} at best, "
        f"{state.decode.tokens_per_s:,.0f} tokens/s{a_row}. In a layer: {bound_words(decode)}.",
        _turns(state, context),
    ]
    needed = f"Weights and cache take {gigabytes(state.memory.total_bytes)}"
    fits = f" of {gigabytes(memory_bytes)}: {verdict(state.memory, memory_bytes)}." if memory_bytes else "."
    return [*words, needed + fits]


def _turns(state: RooflineState, context: int) -> str:
    linear = "no batch" if state.linear_turn is None else f"batch {state.linear_turn:,}"
    words = f"While decoding, the linear layers turn compute-bound at {linear}"
    if state.step_turn is not None:
        return f"{words}, the whole step at batch {state.step_turn:,}."
    return f"{words}, the whole step at none: each row brings a cache of {context:,} tokens to read."


class RooflineExplorer(v.View):
    """Controls over `explore_roofline`; everything works from the keyboard.

    Args:
        machines: {name: datasheet or measured ceilings}; None for all datasheets, and this machine
            if it was measured.
        models: {name: shapes}; None for those of `costs.MODELS`.
        machine, model, inputs: what it starts with.

    Raises:
        ValueError: no such machine or model.
    """

    name = "Roofline explorer"

    def __init__(
        self,
        machines: Mapping[str, Limits] | None = None,
        models: Mapping[str, Shapes] | None = None,
        *,
        machine: str | None = None,
        model: str | None = None,
        inputs: RooflineInputs | None = None,
    ):
        super().__init__()
        self.machines = dict(known_machines() if machines is None else machines)
        self.models = dict(MODELS if models is None else models)
        self.state: RooflineState | None = None
        self.plot = RooflinePlot()
        start = RooflineInputs() if inputs is None else inputs
        self._make_controls(
            chosen(machine, self.machines, "machine"), chosen(model, self.models, "model"), start
        )
        choices = v.row(self.machine, self.model, self.weights, self.cache, self.attention)
        self._assemble(choices, v.row(self.batch, self.context))
        self.refresh()

    def _make_controls(self, machine: str, model: str, start: RooflineInputs) -> None:
        self.machine = v.dropdown("machine", list(self.machines), machine, "250px")
        self.model = v.dropdown("model", list(self.models), model, "180px")
        self.weights = v.dropdown("weights", WEIGHTS, start.weights, "130px")
        self.cache = v.dropdown("cache", CACHES, start.cache, "165px")
        self.attention = v.dropdown("attention", ATTENTION_KINDS, start.attention, "170px")
        self.batch = v.size_slider("batch (rows)", start.batch, 1, 1024, "sequences at once")
        what = "tokens of each prompt, and keys that a decoding step looks at"
        self.context = v.size_slider("context (tokens)", start.context, 16, 2**17, what)
        controls = (self.machine, self.model, self.weights, self.cache, self.attention)
        for control in (*controls, self.batch, self.context):
            control.observe(lambda _: self.refresh(), "value")

    @property
    def inputs(self) -> RooflineInputs:
        sizes = self.batch.value, self.context.value
        return RooflineInputs(*sizes, self.weights.value, self.cache.value, self.attention.value)

    @v.alone
    def refresh(self) -> None:
        """Computes the state from the controls, and shows it."""
        machine, inputs = self.machines[self.machine.value], self.inputs
        try:
            self.state = explore_roofline(self.models[self.model.value], machine, inputs)
        except ValueError as error:
            self.state = None
            self.complain(str(error))
            return
        data, decode = self.state.points, self.state.decode
        title = f"{self.model.value} on {machine.name}"
        limit = "arithmetic" if decode.bound == "compute" else "memory"
        sizes = f"{inputs.batch:,} × {inputs.context:,} tokens, {inputs.weights} weights"
        subtitle = f"{sizes} · decoding at most {decode.tokens_per_s:,.0f} tokens/s, bound by {limit}"
        picture = self.plot.update(data, title, subtitle)
        words = in_words(self.state, inputs, machine.memory_bytes)
        picture.alt = f"{title}. {' '.join(words)}"
        self.show(picture, "".join(f"<p style='margin:4px 0'>{html.escape(line)}</p>" for line in words))
