"""Will it fit? Weights, cache and activations of a model against the memory of a machine."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from llmcourse.costs import MODELS, Shapes
from llmcourse.figures.memory_bars import MemoryPlot, gigabytes, verdict
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import (
    CACHES,
    WEIGHTS,
    chosen,
    known_machines,
    precision,
    with_scales,
)
from llmcourse.roofline import (
    Limits,
    Memory,
    kv_bytes_per_token,
    largest_batch,
    largest_context,
    memory_needed,
)


@dataclass(frozen=True)
class MemoryInputs:
    """Everything that the picture depends on, besides the machine and the model.

    Attributes:
        weights, cache: formats, of `machines.WEIGHTS` and `machines.CACHES`.
        new_tokens: of each row that are computed at once: 1 for decoding, the whole context for a
            prompt in one piece. More than the context are as many as it has.
    """

    batch: int = 8
    context: int = 8192
    weights: str = "bf16"
    cache: str = CACHES[0]
    new_tokens: int = 1


@dataclass(frozen=True)
class MemoryState:
    """What follows from the inputs.

    Attributes:
        needs: by what is asked, the inputs first; then what just fits.
        token_bytes: of one token of one row in the cache.
        batch, context: the largest that fit, with the other as asked; 0 where none does.
    """

    needs: dict[str, Memory]
    free_bytes: int
    token_bytes: int
    batch: int
    context: int

    @property
    def asked(self) -> Memory:
        return next(iter(self.needs.values()))


def calculate_memory(shapes: Shapes, machine: Limits, inputs: MemoryInputs) -> MemoryState:
    """What is needed, and the most that would fit.

    Raises:
        ValueError: a size out of its range, or a machine whose memory is not known.
    """
    free_bytes, batch, context = machine.memory_bytes, inputs.batch, inputs.context
    if free_bytes is None:
        raise ValueError(
            f"machine must have a known memory, and the system does not tell that of {machine.name}"
        )
    numbers = precision(machine, inputs.weights, inputs.cache)

    pieces = {"new_tokens": min(inputs.new_tokens, context)}
    needs = {f"asked: {batch:,} × {context:,}": memory_needed(shapes, batch, context, numbers, **pieces)}
    rows = largest_batch(shapes, context, free_bytes, numbers, **pieces)
    length = largest_context(shapes, batch, free_bytes, numbers, **pieces)
    for name, pair in (("most rows", (rows, context)), ("longest", (batch, length))):
        if all(pair):
            needs[f"{name}: {pair[0]:,} × {pair[1]:,}"] = memory_needed(shapes, *pair, numbers, **pieces)
    return MemoryState(needs, free_bytes, kv_bytes_per_token(shapes, numbers), rows, length)


def in_words(state: MemoryState, inputs: MemoryInputs) -> list[str]:
    """What the picture means: the sum, what a token costs, and what would fit."""
    asked, batch, context = state.asked, inputs.batch, inputs.context
    words = [
        f"{gigabytes(asked.weight_bytes)} of weights + {batch:,} × {context:,} × {state.token_bytes:,} bytes "
        f"of cache{with_scales(inputs.cache)} ({gigabytes(asked.cache_bytes)}) + "
        f"{gigabytes(asked.activation_bytes)} of activations = {gigabytes(asked.total_bytes)}: "
        f"{verdict(asked, state.free_bytes)}."
    ]
    if asked.weight_bytes > state.free_bytes:
        return [
            *words,
            "The weights alone are too large: take fewer bits, a smaller model or a larger machine.",
        ]
    fits = f"{rows_of(state.batch)} of {context:,} tokens"
    long = f"{rows_of(batch)} of {state.context:,}" if state.context else f"no token in {rows_of(batch)}"
    return [*words, f"At most {fits}, or {long}. Leave a tenth for the framework and its kernels."]


def rows_of(batch: int) -> str:
    """`8 rows`, `1 row`, `no row`."""
    return f"{batch:,} rows" if batch > 1 else "1 row" if batch else "no row"


class MemoryCalculator(v.View):
    """Controls over `calculate_memory`; everything works from the keyboard.

    Args:
        machines: {name: datasheet or measured ceilings}; None for all datasheets, and this machine
            if it was measured.
        models: {name: shapes}; None for those of `costs.MODELS`.
        machine, model, inputs: what it starts with.

    Raises:
        ValueError: no such machine or model.
    """

    name = "Memory calculator"

    def __init__(
        self,
        machines: Mapping[str, Limits] | None = None,
        models: Mapping[str, Shapes] | None = None,
        *,
        machine: str | None = None,
        model: str | None = None,
        inputs: MemoryInputs | None = None,
    ):
        super().__init__()
        self.machines = dict(known_machines() if machines is None else machines)
        self.models = dict(MODELS if models is None else models)
        self.state: MemoryState | None = None
        self.plot = MemoryPlot(rows=3)
        start = MemoryInputs() if inputs is None else inputs
        self._make_controls(
            chosen(machine, self.machines, "machine"), chosen(model, self.models, "model"), start
        )
        choices = v.row(self.machine, self.model, self.weights, self.cache)
        self._assemble(choices, v.row(self.batch, self.context, self.new_tokens))
        self.refresh()

    def _make_controls(self, machine: str, model: str, start: MemoryInputs) -> None:
        self.machine = v.dropdown("machine", list(self.machines), machine, "250px")
        self.model = v.dropdown("model", list(self.models), model, "180px")
        self.weights = v.dropdown("weights", WEIGHTS, start.weights, "130px")
        self.cache = v.dropdown("cache", CACHES, start.cache, "165px")
        self.batch = v.size_slider("batch (rows)", start.batch, 1, 1024, "sequences at once")
        what = "tokens that each row may hold, prompt and answer"
        self.context = v.size_slider("context (tokens)", start.context, 16, 2**20, what)
        what = "1 is decoding; a prompt that is computed in one piece holds the activations of all its tokens"
        self.new_tokens = v.size_slider("at once (tokens)", start.new_tokens, 1, 2**17, what)
        controls = (self.machine, self.model, self.weights, self.cache)
        for control in (*controls, self.batch, self.context, self.new_tokens):
            control.observe(lambda _: self.refresh(), "value")

    @property
    def inputs(self) -> MemoryInputs:
        formats = self.weights.value, self.cache.value
        return MemoryInputs(self.batch.value, self.context.value, *formats, self.new_tokens.value)

    @v.alone
    def refresh(self) -> None:
        """Computes the state from the controls, and shows it."""
        machine, inputs = self.machines[self.machine.value], self.inputs
        try:
            self.state = calculate_memory(self.models[self.model.value], machine, inputs)
        except ValueError as error:
            self.state = None
            self.complain(str(error))
            return
        title = f"Will it fit? {self.model.value} on {machine.name}"
        token = f"{self.state.token_bytes:,} bytes a cached token{with_scales(inputs.cache)}"
        subtitle = f"{inputs.weights} weights, cache {inputs.cache} · {token}"
        picture = self.plot.update(self.state.needs, {machine.name: self.state.free_bytes}, title, subtitle)
        words = in_words(self.state, inputs)
        self.show(picture, "".join(f"<p style='margin:4px 0'>{html.escape(line)}</p>" for line in words))
