"""Batching on one timeline: the lecture's grid, and any load on the virtual clock of the same scheduler."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache, partial

from ipywidgets import BoundedFloatText, BoundedIntText, Layout

from llmcourse.costs import LLAMA_3_8B, QWEN3_0_6B
from llmcourse.figures.timeline import Timeline, metrics_table, timeline
from llmcourse.figures.timeline_plot import plot_timelines
from llmcourse.figures.widgets import view as v
from llmcourse.figures.widgets.machines import chosen
from llmcourse.hardware import datasheet
from llmcourse.serving.block_pool import BlockPool
from llmcourse.serving.clock import Cost, Trace, one_second, simulate
from llmcourse.serving.lecture_grid import NUM_SLOTS, NUM_STEPS, lecture_trace
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, Policy, TraditionalBatching
from llmcourse.serving.request import Request
from llmcourse.serving.scheduler import Scheduler
from llmcourse.serving.step_time import RooflineTime
from llmcourse.serving.workload import Arrivals, LogNormal, make_requests

POLICIES = ("traditional", "continuous", "chunked prefill")
CHOICES = ("traditional and continuous", "all three", *POLICIES)
LECTURE, DRAWN = "S1 to S7 of the lecture", "drawn at random"
SECOND = "one second a step"
SIGMA, LONGEST = 0.7, 4  # of the logarithm of lengths, and of the median the longest that is drawn
BLOCK_SIZE = 256  # nothing is shared here, and there are blocks for all: few are quicker


@dataclass(frozen=True)
class BatchingInputs:
    """Everything that the picture depends on, besides the cost models.

    Attributes:
        policies: of `CHOICES`.
        workload: `LECTURE` or `DRAWN`; what follows down to `seed` is of requests that are drawn.
        requests: how many.
        per_s: arrivals a second on average; `math.inf` lets all come at once.
        prompt, answer: tokens, the median; the longest is four times as long.
        slots: requests in a step.
        token_budget: of a step with chunked prefill.
        cost: by its name.
        until_s: where the picture ends; 0 shows everything.
    """

    policies: str = CHOICES[0]
    workload: str = LECTURE
    requests: int = 16
    per_s: int | float = 20
    prompt: int = 1024
    answer: int = 24
    seed: int = 0
    slots: int = NUM_SLOTS
    token_budget: int = 512
    cost: str = SECOND
    until_s: int | float = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the policies that are shown."""
        several = {CHOICES[0]: POLICIES[:2], CHOICES[1]: POLICIES}
        return several.get(self.policies, (self.policies,))


ON_H200 = "H200, Llama-3-8B"
PRESETS = {
    "the lecture's grid": BatchingInputs(until_s=NUM_STEPS),
    "long prompts, short answers": BatchingInputs(CHOICES[1], DRAWN, 12, 20, 1024, 24, 0, 6, 512, ON_H200),
    "a crowd at once": BatchingInputs(CHOICES[0], DRAWN, 24, math.inf, 64, 64, 1, 8, 512, ON_H200),
    "prompts in pieces, step by step": BatchingInputs(CHOICES[1], DRAWN, 8, 0.5, 16, 4, 3, 4, 8, SECOND),
}


@dataclass(frozen=True)
class BatchingState:
    """What follows from the inputs: a timeline for each policy."""

    timelines: tuple[Timeline, ...]


def known_costs() -> dict[str, Cost]:
    """The lecture's clock, and the least time that an H200 takes by its datasheet."""
    h200 = datasheet("H200")
    models = {"Llama-3-8B": LLAMA_3_8B, "Qwen3-0.6B": QWEN3_0_6B}
    return {SECOND: one_second} | {f"H200, {name}": RooflineTime(one, h200) for name, one in models.items()}


def policy_named(name: str, token_budget: int) -> Policy:
    """One of `POLICIES`; the budget is that of chunked prefill."""
    makers = (TraditionalBatching, ContinuousBatching, partial(ChunkedPrefill, token_budget))
    return dict(zip(POLICIES, makers, strict=True))[name]()


def serve(name: str, inputs: BatchingInputs, cost: Cost) -> Trace:
    """What a policy makes of the requests.

    Raises:
        ValueError: a size out of its range, or more slots than the budget has tokens.
    """
    policy = policy_named(name, inputs.token_budget)
    if policy.most_running is not None and inputs.slots > policy.most_running:
        raise ValueError(
            f"slots must be at most {policy.most_running}, the token budget of chunked prefill, got "
            f"{inputs.slots}: every running answer takes a token of it; raise the budget"
        )
    if inputs.workload == LECTURE:
        return lecture_trace(policy, slots=inputs.slots, cost=cost)
    sizes = (inputs.requests, inputs.per_s, inputs.prompt, inputs.answer, inputs.seed)
    requests = drawn_requests(*sizes)
    blocks = sum(-(-request.max_length // BLOCK_SIZE) for request in requests)
    return simulate(
        requests, Scheduler(BlockPool(blocks, BLOCK_SIZE), policy, max_running=inputs.slots), cost
    )


@lru_cache(maxsize=16)
def drawn_requests(
    count: int, per_s: int | float, prompt: int, answer: int, seed: int
) -> tuple[Request, ...]:
    """The same for the same seed, and for every policy; arguments as in `BatchingInputs`.

    Raises:
        ValueError: a size out of its range.
    """
    lengths = [LogNormal(median, SIGMA, LONGEST * median) for median in (prompt, answer)]
    return tuple(make_requests(count, Arrivals(float(per_s)), *lengths, seed=seed))


def note_of(policy: Policy) -> str:
    """How a policy fills a step, as the picture says it."""
    if isinstance(policy, TraditionalBatching):
        return "a batch begins when the one before is done"
    if isinstance(policy, ContinuousBatching):
        return f"whole prompts join a step until it has {policy.token_budget:,} tokens"
    return f"pieces of prompts fill a step up to {policy.token_budget:,} tokens"


def table_html(timelines: tuple[Timeline, ...]) -> str:
    """What the field measures besides the figures in the picture, a row a policy."""
    head, *rows = metrics_table(timelines)
    cells = "".join(f"<th style='text-align:left'>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    style = "border-spacing:12px 2px;line-height:1.5;white-space:nowrap"
    return f"<table style='{style}'><tr>{cells}</tr>{body}</table>"


class BatchingTimeline(v.View):
    """Controls over the scheduler on its virtual clock; every run is remembered.

    Args:
        costs: {name: seconds of a step}; None for `known_costs()`.
        preset: of `PRESETS`, or
        inputs: what it starts with instead.

    Raises:
        ValueError: no such preset or cost.
    """

    name = "Batching timeline"

    def __init__(
        self,
        costs: Mapping[str, Cost] | None = None,
        *,
        preset: str | None = None,
        inputs: BatchingInputs | None = None,
    ):
        super().__init__()
        self.costs = dict(known_costs() if costs is None else costs)
        self.state: BatchingState | None = None
        self.traces: dict[tuple, Trace] = {}
        start = PRESETS[chosen(preset, PRESETS, "preset")] if inputs is None else inputs
        chosen(start.cost, self.costs, "cost")
        self._setting = False
        self._make_choices(chosen(preset, PRESETS, "preset") if inputs is None else None, start)
        self._make_sizes(start)
        self._assemble(
            v.row(self.preset, self.policies, self.cost),
            v.row(self.slots, self.token_budget, self.until_s),
            v.row(self.workload, self.seed),
            v.row(self.requests, self.per_s, self.prompt, self.answer),
        )
        self.refresh()

    def _make_choices(self, preset: str | None, start: BatchingInputs) -> None:
        presets = [("–", None), *((name, name) for name in PRESETS if PRESETS[name].cost in self.costs)]
        self.preset = v.dropdown("preset", presets, preset, "290px")
        self.policies = v.dropdown("policies", CHOICES, start.policies, "270px")
        self.cost = v.dropdown("time", list(self.costs), start.cost, "230px")
        self.workload = v.dropdown("requests", (LECTURE, DRAWN), start.workload, "270px")
        self.preset.observe(self._use_preset, "value")
        for control in (self.policies, self.cost, self.workload):
            control.observe(lambda _: self.refresh(), "value")

    def _make_sizes(self, start: BatchingInputs) -> None:
        self.slots = v.int_slider("slots", start.slots, 1, 32, "requests that run at once")
        what = "tokens of a step, with chunked prefill"
        self.token_budget = v.size_slider("budget (tokens)", start.token_budget, 1, 8192, what)
        self.requests = v.int_slider("how many", start.requests, 1, 64, "requests in all")
        rates = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, math.inf]
        self.per_s = v.choice_slider("arrivals / s", rates, start.per_s, "on average; ∞ is all at once")
        what = "the median; the longest is four times as long"
        self.prompt = v.size_slider("prompt (tokens)", start.prompt, 1, 4096, what)
        self.answer = v.size_slider("answer (tokens)", start.answer, 1, 256, what)
        named = {"style": {"description_width": "initial"}}
        layout = Layout(width="150px")
        self.seed = BoundedIntText(start.seed, min=0, max=999, description="seed", layout=layout, **named)
        what = {"tooltip": "where the picture ends, in seconds; 0 shows everything"}
        named |= {"layout": Layout(width="230px"), "description": "until (s), 0: the end"}
        self.until_s = BoundedFloatText(float(start.until_s), min=0, max=1e6, step=0.1, **what, **named)
        sizes = (self.slots, self.token_budget, self.requests, self.per_s, self.prompt, self.answer)
        for control in (*sizes, self.seed, self.until_s):
            control.observe(lambda _: self.refresh(), "value")

    @property
    def inputs(self) -> BatchingInputs:
        return BatchingInputs(
            **{field.name: getattr(self, field.name).value for field in fields(BatchingInputs)}
        )

    @v.alone
    def _use_preset(self, change) -> None:
        """All controls at once, and one picture."""
        if change["new"] is None:
            return
        self._setting = True
        try:
            for field in fields(BatchingInputs):
                getattr(self, field.name).value = getattr(PRESETS[change["new"]], field.name)
        finally:  # an interrupted cell leaves no view that answers no more
            self._setting = False
        self.refresh()

    def _forget_preset(self, inputs: BatchingInputs) -> None:
        """Shows none where the controls have left it, so that it can be chosen again."""
        if self.preset.value is not None and PRESETS[self.preset.value] != inputs:
            self.preset.value = None

    def _trace(self, name: str, inputs: BatchingInputs) -> Trace:
        drawn = (inputs.requests, inputs.per_s, inputs.prompt, inputs.answer, inputs.seed)
        budget = inputs.token_budget if name == POLICIES[2] else None
        load = (inputs.workload, *(drawn if inputs.workload == DRAWN else ()))
        key = (name, inputs.slots, budget, inputs.cost, load)
        if key not in self.traces:
            with self.busy():
                self.traces[key] = serve(name, inputs, self.costs[inputs.cost])
        return self.traces[key]

    @v.alone
    def refresh(self) -> None:
        """Serves the requests that the controls ask for, and shows who did what when."""
        if self._setting:
            return
        inputs = self.inputs
        self._forget_preset(inputs)
        for control in (self.requests, self.per_s, self.prompt, self.answer, self.seed):
            control.disabled = inputs.workload == LECTURE
        self.token_budget.disabled = POLICIES[2] not in inputs.names
        try:
            traces = {name: self._trace(name, inputs) for name in inputs.names}
            until_s = inputs.until_s or math.inf
            notes = [note_of(policy_named(name, inputs.token_budget)) for name in traces]
            shown = [
                timeline(name, trace, inputs.slots, until_s, note)
                for (name, trace), note in zip(traces.items(), notes, strict=True)
            ]
            self.state = BatchingState(tuple(shown))
        except ValueError as error:
            self.state = None
            self.complain(str(error))
            return
        picture = plot_timelines(self.state.timelines, *headline(inputs))
        self.show(picture, table_html(self.state.timelines))


def headline(inputs: BatchingInputs) -> tuple[str, str]:
    """The picture's title and the line below it."""
    if inputs.workload == LECTURE:
        return "Batching: the lecture's seven requests", f"{inputs.slots} slots · {inputs.cost}"
    rate = "all at once" if math.isinf(inputs.per_s) else f"{inputs.per_s:g} a second"
    sizes = f"prompts of about {inputs.prompt:,} tokens, answers of {inputs.answer:,}"
    few = "1 request" if inputs.requests == 1 else f"{inputs.requests} requests"
    return f"Batching: {few}, {rate}", f"{sizes} · {inputs.slots} slots · {inputs.cost}"
