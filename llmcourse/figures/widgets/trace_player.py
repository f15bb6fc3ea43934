"""Speculative decoding, a phase at a time: drafts, the verdict, and what the target writes itself."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from ipywidgets import BoundedIntText, Layout, Play

from llmcourse.decoding import DecodingError, SamplingParams
from llmcourse.figures.speculation_plot import SpeculationPlot
from llmcourse.figures.speculation_strip import strip_html, text_so_far
from llmcourse.figures.speculation_trace import SpeculationTrace, speculation_trace
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.models import Models, ModelShelf, ReadyModel
from llmcourse.speculative import Drafter, EarlyLayersDrafter, LookupDrafter, ModelDrafter, stream

LOOKUP, EARLY_LAYERS = "lookup in the text", "the target's first layers"
MOST_DRAFTS = 8
HOTTEST = 2.0  # temperature


@dataclass(frozen=True)
class TraceInputs:
    """What a trace depends on, besides the two models.

    Attributes:
        gamma: drafts a step.
        temperature: of both sides; 0 is greedy decoding.
        max_new_tokens: how long the text is.
    """

    prompt: str
    gamma: int = 4
    temperature: int | float = 1.0
    seed: int = 0
    max_new_tokens: int = 24


def trace_text(target: ReadyModel, drafter: Drafter, inputs: TraceInputs) -> SpeculationTrace:
    """Writes the text and takes its steps apart; the same inputs give the same trace.

    Raises:
        ValueError: the prompt is empty or too long, a setting is out of range, or vocabularies differ.
        DecodingError: what a model says cannot be sampled from, or not be verified.
    """
    steps = trace_in_steps(target, drafter, inputs)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def trace_in_steps(
    target: ReadyModel, drafter: Drafter, inputs: TraceInputs
) -> Generator[None, None, SpeculationTrace]:
    """As `trace_text`, which it returns, with a pause after every step."""
    steps = stream(
        target.model,
        [target.read_prompt(inputs.prompt)],
        drafter=drafter,
        draft_length=inputs.gamma,
        tokenizer=target.tokenizer,
        max_new_tokens=inputs.max_new_tokens,
        params=SamplingParams(temperature=inputs.temperature),
        generator=torch.Generator().manual_seed(inputs.seed),
    )
    done = []
    for step in steps:
        done.append(step)
        yield
    tokenizer = target.tokenizer
    return speculation_trace(inputs.prompt, done, tokenizer.decode, tokenizer.label)


def make_drafter(name: str, target: ReadyModel, shelf: ModelShelf) -> Drafter:
    """A drafter by its name: lookup, half of the target's layers, or a model of the shelf."""
    if name == LOOKUP:
        return LookupDrafter(target.model.config.vocab_size)
    if name == EARLY_LAYERS:
        return EarlyLayersDrafter(target.model, target.model.config.num_layers // 2)
    ready = shelf.get(name)
    return ModelDrafter(ready.model, ready.tokenizer)


def first_correction(trace: SpeculationTrace) -> int:
    """The first phase that replaces a draft; where all drafts stood, the last phase."""
    for at, phase in enumerate(trace.phases):
        if phase.kind == "target" and trace.steps[phase.step].fallen:
            return at
    return len(trace.phases) - 1


def neighbours(inputs: TraceInputs) -> list[TraceInputs]:
    """What one step of a slider, or the next seed, would ask for."""
    gammas = [gamma for gamma in (inputs.gamma + 1, inputs.gamma - 1) if 1 <= gamma <= MOST_DRAFTS]
    temperatures = [round(inputs.temperature + by, 3) for by in (0.1, -0.1)]
    return [
        *(replace(inputs, gamma=gamma) for gamma in gammas),
        *(replace(inputs, temperature=one) for one in temperatures if 0 <= one <= HOTTEST),
        replace(inputs, seed=inputs.seed + 1),
    ]


class TracePlayer(v.PromptView):
    """Play, step and slide through `trace_text`; every trace is made once and then remembered.

    Args:
        models: {name: (model, tokenizer)}, names to load when chosen, or None for the embedded ones. The
            first verifies and the last drafts, until others are chosen.
        prompt, target, drafter, gamma, temperature, seed: what it starts with.
        max_new_tokens: how long the text is.
    """

    name = "Trace player"

    def __init__(
        self,
        models: Models = None,
        prompt: str = v.EXAMPLES[0],
        *,
        target: str | None = None,
        drafter: str | None = None,
        gamma: int = 4,
        temperature: int | float = 1.0,
        seed: int = 0,
        max_new_tokens: int = 24,
    ):
        super().__init__(prompt)
        self.shelf, self.max_new_tokens = ModelShelf(models), max_new_tokens
        self.traces: dict[tuple[str, str, TraceInputs], SpeculationTrace] = {}
        self.trace: SpeculationTrace | None = None
        self.plot = SpeculationPlot()
        names = self.shelf.names
        self.target = v.dropdown("target", names, target or names[0])
        self.drafter = v.dropdown("drafter", [*names, LOOKUP, EARLY_LAYERS], drafter or names[-1])
        self._make_settings(gamma, temperature, seed)
        self._make_steps()
        settings = v.row(self.gamma, self.temperature)
        steps = v.row(self.phase, self.play, self.back, self.forward)
        self._assemble(v.row(self.target, self.drafter, self.seed), settings, steps)
        self.refresh()
        if self.trace is not None:
            self.phase.value = first_correction(self.trace)

    def _make_settings(self, gamma: int, temperature: int | float, seed: int) -> None:
        self.gamma = v.int_slider("γ (drafts a step)", gamma, 1, MOST_DRAFTS, "how many tokens are drafted")
        what = "of both sides; 0 is greedy, 1 the models' own"
        self.temperature = v.float_slider("temperature", temperature, 0.0, HOTTEST, 0.1, what)
        self.seed = BoundedIntText(
            seed, min=0, max=2**31 - 1, description="seed", layout=Layout(width="150px")
        )
        self.seed.style.description_width = "40px"
        for control in (self.prompt, self.target, self.drafter, self.gamma, self.temperature, self.seed):
            control.observe(self._moved, "value")

    def _make_steps(self) -> None:
        self.phase = v.int_slider("phase", 0, 0, 10_000, "a draft, a verdict, or a token of the target's own")
        self.phase.layout.width = "420px"  # a text has some fifty phases
        self.play = Play(min=0, max=10_000, interval=900, show_repeat=False, description="play")
        self.back = v.button("Back", "one phase back", "step-backward")
        self.forward = v.button("Step", "one phase on", "step-forward", "primary")
        self.back.on_click(lambda _: self.go(-1))
        self.forward.on_click(lambda _: self.go(1))
        self.phase.observe(lambda _: self.refresh(), "value")
        self.play.observe(lambda change: setattr(self.phase, "value", change["new"]), "value")

    @property
    def inputs(self) -> TraceInputs:
        temperature = round(self.temperature.value, 3)
        return TraceInputs(
            self.prompt.value, self.gamma.value, temperature, self.seed.value, self.max_new_tokens
        )

    @v.alone
    def go(self, phases: int) -> None:
        """So many phases on, or back; not past either end."""
        self.phase.value += phases

    @v.alone
    def refresh(self) -> None:
        """Finds or makes the trace that the controls ask for, and shows its phase."""
        try:
            self.trace = self._find_trace()
        except (ValueError, DecodingError, FileNotFoundError) as error:
            self.trace = None
            self.complain(str(error))
            return
        last = len(self.trace.phases) - 1
        at = min(self.phase.value, last)
        self.phase.max = self.play.max = last  # a shorter trace takes the slider along, which refreshes
        self.back.disabled, self.forward.disabled = at == 0, at == last
        title = (
            f"{self.target.value}, drafts by {self.drafter.value}, after “{v.end_of(self.prompt.value, 14)}”"
        )
        self.show(
            self.plot.update(self.trace, at, title), strip_html(text_so_far(self.trace, at), font=False)
        )

    def _find_trace(self) -> SpeculationTrace:
        key = (self.target.value, self.drafter.value, self.inputs)
        if key not in self.traces:
            target = self.shelf.get(self.target.value)
            drafter = make_drafter(self.drafter.value, target, self.shelf)
            with self.busy():
                self.traces[key] = trace_text(target, drafter, self.inputs)
        return self.traces[key]

    @v.alone
    def _moved(self, _) -> None:
        """Answers a control, and makes the traces of its neighbours while the reader looks."""
        self.refresh()
        if self.trace is not None:
            self.idle.plan(self._ahead())

    def _ahead(self) -> Iterator[None]:
        """Makes what is a step of a slider away, a step of the text at a time."""
        names, inputs = (self.target.value, self.drafter.value), self.inputs
        for near in neighbours(inputs):
            if (*names, near) not in self.traces:
                target = self.shelf.get(names[0])
                drafter = make_drafter(names[1], target, self.shelf)
                try:
                    self.traces[*names, near] = yield from trace_in_steps(target, drafter, near)
                except DecodingError:  # is told when it is asked for
                    continue
