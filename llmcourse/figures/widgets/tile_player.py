"""FlashAttention played tile by tile: which blocks are in SRAM, what is known of the rows, bytes moved."""

from __future__ import annotations

import html
from dataclasses import dataclass

import torch
from ipywidgets import Play
from jaxtyping import Float
from torch import Tensor

from llmcourse.figures.tiles import TileWalk, walk_tiles
from llmcourse.figures.tiles_plot import TilesPlot, in_words
from llmcourse.figures.widgets import view as v

LONGEST, HEAD_SIZE = 64, 8
Rows = Float[Tensor, "S D"]


@dataclass(frozen=True)
class TileInputs:
    """Everything that the picture depends on, besides the numbers in Q, K and V.

    Attributes:
        length: tokens, of each a query, a key and a value.
        query_tile, key_tile: rows in SRAM at a time; more than the length are as many as it has.
        causal: whether a query sees no later key.
        row: which query is watched.
        step: how far the walk has come, 0 for its beginning; past its end it is the end.
    """

    length: int = 32
    query_tile: int = 8
    key_tile: int = 8
    causal: bool = True
    row: int = 13
    step: int = 4


@dataclass(frozen=True, eq=False)
class TileState:
    """What follows from the inputs: the whole walk, and how far it is shown."""

    walk: TileWalk
    step: int
    words: str

    @property
    def last_step(self) -> int:
        return len(self.walk.steps) - 1


def random_rows(length: int = LONGEST, head_size: int = HEAD_SIZE, seed: int = 0) -> tuple[Rows, Rows, Rows]:
    """Q, K and V from a normal distribution; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    q, k, values = torch.randn(3, length, head_size, generator=generator)
    return q, k, values


def play_tiles(qkv: tuple[Rows, Rows, Rows], inputs: TileInputs, walk: TileWalk | None = None) -> TileState:
    """The state after some steps.

    Args:
        qkv: at least `inputs.length` rows each, of which the first are taken.
        walk: of the same numbers and sizes, if it was made before.

    Raises:
        ValueError: a size out of its range, or a row that is not there.
    """
    available = min(map(len, qkv))
    if not 1 <= inputs.length <= available:
        raise ValueError(f"length must be in [1, {available}], the rows given, got {inputs.length}")
    sizes = {"query_tile": inputs.query_tile, "key_tile": inputs.key_tile, "causal": inputs.causal}
    walk = walk or walk_tiles(*(x[: inputs.length] for x in qkv), **sizes)
    step = min(inputs.step, len(walk.steps) - 1)
    if not 0 <= inputs.row < inputs.length:
        raise ValueError(f"row must be in [0, {inputs.length - 1}], got {inputs.row}; rows count from 0")
    return TileState(walk, step, in_words(walk, step, inputs.row))


class TilePlayer(v.View):
    """Play, step and slide through `play_tiles`; every walk is made once and then remembered.

    Args:
        qkv: Q, K and V of one head, each (length, head size); None draws 64 rows of 8 numbers.
        inputs: what it starts with.

    Raises:
        ValueError: Q, K and V that are no three tables of one shape.
    """

    name = "Tile player"

    def __init__(self, qkv: tuple[Tensor, Tensor, Tensor] | None = None, *, inputs: TileInputs | None = None):
        super().__init__()
        self.qkv = random_rows() if qkv is None else tuple(qkv)
        shapes = [tuple(x.shape) for x in self.qkv]
        if len(shapes) != 3 or len(set(shapes)) > 1 or len(shapes[0]) != 2 or not all(shapes[0]):
            raise ValueError(f"qkv must be three tables of one shape (length, head size), got {shapes}")
        self.walks: dict[tuple, TileWalk] = {}
        self.state: TileState | None = None
        self.plot = TilesPlot()
        self._make_controls(TileInputs() if inputs is None else inputs)
        steps = v.row(self.step, self.play, self.back, self.forward)
        self._assemble(v.row(self.length, self.query_tile, self.key_tile), v.row(self.row, self.mask), steps)
        self.refresh()

    def _make_controls(self, start: TileInputs) -> None:
        rows = len(self.qkv[0])
        self.length = v.int_slider("length (tokens)", start.length, 1, rows, "queries, and as many keys")
        what = "queries that are in SRAM at a time"
        self.query_tile = v.int_slider("query tile (rows)", start.query_tile, 2, 32, what)
        what = "keys and values that are in SRAM at a time"
        self.key_tile = v.int_slider("key tile (rows)", start.key_tile, 2, 32, what)
        self.mask = v.dropdown("queries see", [("no later key", True), ("every key", False)], start.causal)
        self.row = v.int_slider("watched row", start.row, 0, self.length.value - 1, "which query is watched")
        self.step = v.int_slider("step", start.step, 0, 10_000, "a tile of scores, or of results")
        self.play = Play(min=0, max=10_000, interval=700, show_repeat=False, description="play")
        self.back = v.button("Back", "one step back", "step-backward")
        self.forward = v.button("Step", "one step on", "step-forward", "primary")
        self.back.on_click(lambda _: self.go(-1))
        self.forward.on_click(lambda _: self.go(1))
        for control in (self.length, self.query_tile, self.key_tile, self.mask, self.row, self.step):
            control.observe(lambda _: self.refresh(), "value")
        self.play.observe(lambda change: setattr(self.step, "value", change["new"]), "value")

    @property
    def inputs(self) -> TileInputs:
        sizes = self.length.value, self.query_tile.value, self.key_tile.value
        return TileInputs(*sizes, self.mask.value, self.row.value, self.step.value)

    @v.alone
    def go(self, steps: int) -> None:
        """So many steps on, or back; not past either end."""
        self.step.value += steps

    @v.alone
    def refresh(self) -> None:
        """Computes the state from the controls, and shows it."""
        if self.row.max != self.length.value - 1:
            self.row.max = self.length.value - 1  # may move the row, which refreshes
        inputs = self.inputs
        key = (inputs.length, inputs.query_tile, inputs.key_tile, inputs.causal)
        try:
            state = play_tiles(self.qkv, inputs, self.walks.get(key))
        except ValueError as error:
            self.state = None
            self.complain(str(error))
            return
        self.state, self.walks[key] = state, state.walk
        self.step.max = self.play.max = state.last_step
        self.back.disabled, self.forward.disabled = state.step == 0, state.step == state.last_step
        self.show(self.plot.update(state.walk, state.step, inputs.row), f"<p>{html.escape(state.words)}</p>")
