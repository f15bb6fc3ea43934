"""Beam search a step at a time: what was considered, what went on, and which text wins."""

from __future__ import annotations

import html
from dataclasses import dataclass

from ipywidgets import Play

from llmcourse.decoding import DecodingError
from llmcourse.decoding.beam import BeamSearch, beam_search
from llmcourse.figures.beam_tree import BeamTree, beam_tree, plot_beam_tree
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.models import Models, ModelShelf, ReadyModel


@dataclass(frozen=True)
class BeamInputs:
    """What a search depends on, besides the model."""

    prompt: str
    num_beams: int = 3
    length_penalty: float = 1.0
    max_new_tokens: int = 8


@dataclass(frozen=True)
class Ranking:
    """A finished text of the search, for the table below the tree."""

    text: str
    log_prob: float
    score: float
    finished: bool


@dataclass(frozen=True)
class BeamState:
    """A search, its tree up to one step, and the texts it ends with, best first."""

    search: BeamSearch
    tree: BeamTree
    num_steps: int
    ranking: tuple[Ranking, ...]


def search_beams(ready: ReadyModel, inputs: BeamInputs) -> BeamSearch:
    """Runs the search.

    Raises:
        ValueError: the prompt is empty or too long, or a setting is out of range.
        DecodingError: the model's logits cannot be searched.
    """
    return beam_search(
        ready.model,
        ready.read_prompt(inputs.prompt),
        num_beams=inputs.num_beams,
        max_new_tokens=inputs.max_new_tokens,
        length_penalty=inputs.length_penalty,
        num_return=inputs.num_beams,
    )


def view_beams(ready: ReadyModel, search: BeamSearch, step: int) -> BeamState:
    """The state after `step` steps, counted from 1; past the end of the search it is the end."""
    num_steps = 1 + max(node.step for node in search.nodes)
    ranking = tuple(
        Ranking(ready.tokenizer.decode(h.tokens), h.log_prob, h.score, h.finished) for h in search.hypotheses
    )
    tree = beam_tree(search, ready.tokenizer.label, min(step, num_steps) - 1)
    return BeamState(search, tree, num_steps, ranking)


def ranking_html(state: BeamState) -> str:
    """The texts that the search ends with, as a table."""
    head = "<tr><th>rank</th><th>text</th><th>log-probability</th><th>score</th><th>ended by</th></tr>"
    rows = "".join(_row_html(place, one) for place, one in enumerate(state.ranking, 1))
    caption = "<caption style='text-align:left'>Where the search ends</caption>"
    return f"<table style='border-spacing:14px 2px;line-height:1.5'>{caption}{head}{rows}</table>"


def _row_html(place: int, one: Ranking) -> str:
    text = html.escape(v.visible(one.text))
    end = "end token" if one.finished else "length"
    own = f"<td translate=\"no\" style='text-align:left;white-space:pre-wrap'>{text}</td>"
    cells = f"{own}<td>{one.log_prob:.2f}</td>"
    return f"<tr><td>{place}</td>{cells}<td>{one.score:.3f}</td><td>{end}</td></tr>"


class BeamTreeViewer(v.PromptView):
    """Sliders over a beam search; every search is run once and then remembered.

    Args:
        models: {name: (model, tokenizer)}, names to load when chosen, or None for the embedded ones.
        prompt, model, num_beams, length_penalty: what it starts with.
        max_new_tokens: how long the search is.
    """

    name = "Beam tree"

    def __init__(
        self,
        models: Models = None,
        prompt: str = v.EXAMPLES[0],
        *,
        model: str | None = None,
        num_beams: int = 3,
        length_penalty: float = 1.0,
        max_new_tokens: int = 8,
    ):
        super().__init__(prompt)
        self.shelf, self.max_new_tokens = ModelShelf(models), max_new_tokens
        self.searches: dict[tuple[str, BeamInputs], BeamSearch] = {}
        self.state: BeamState | None = None
        self.model = v.dropdown("model", self.shelf.names, model or self.shelf.names[0])
        self.beams = v.int_slider("beams", num_beams, 1, 6, "how many beginnings go on at each step")
        self.step = v.int_slider("step", max_new_tokens, 1, max_new_tokens, "how far the search is shown")
        what = "0 compares sums of log-probabilities, 1 their means"
        self.length_penalty = v.float_slider("length penalty", length_penalty, 0.0, 2.0, 0.1, what)
        self.play = Play(min=1, max=max_new_tokens, interval=900, show_repeat=False, description="play")
        self._assemble(v.row(self.model, self.beams, self.length_penalty), v.row(self.step, self.play))
        for control in (self.prompt, self.model, self.beams, self.length_penalty, self.step):
            control.observe(lambda _: self.refresh(), "value")
        self.play.observe(lambda change: setattr(self.step, "value", change["new"]), "value")
        self.refresh()

    @property
    def inputs(self) -> BeamInputs:
        beams, penalty = self.beams.value, self.length_penalty.value
        return BeamInputs(self.prompt.value, beams, round(penalty, 3), self.max_new_tokens)

    @v.alone
    def refresh(self) -> None:
        """Finds or runs the search that the controls ask for, and shows it."""
        try:
            ready, key = self.shelf.get(self.model.value), (self.model.value, self.inputs)
            if key not in self.searches:
                with self.busy():
                    self.searches[key] = search_beams(ready, self.inputs)
            self.state = view_beams(ready, self.searches[key], self.step.value)
        except (ValueError, DecodingError, FileNotFoundError) as error:
            self.state = None
            self.complain(str(error))
            return
        beams = "1 beam: greedy search" if self.beams.value == 1 else f"{self.beams.value} beams"
        title = f"{self.model.value}, {beams}, after “{v.end_of(self.prompt.value, 20)}”"
        self.show(plot_beam_tree(self.state.tree, title), ranking_html(self.state))
