"""What steps compute, and what a reader of one answer feels of it.

A whole prompt in one step makes it long, and every answer that runs meanwhile waits for its next token: a
stall. Pieces of prompts keep all steps short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.collections import PolyCollection
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.serving.clock import Trace

PROMPT, ANSWER = "#123f66", "#8fbfe0"
LEAST = 0.6  # tokens, where the log scale begins


@dataclass(frozen=True)
class StepTokens:
    """One step: when, and how many tokens of prompts and of answers."""

    start_s: float
    end_s: float
    prompt: int
    answer: int


def step_tokens(trace: Trace) -> list[StepTokens]:
    """The steps of a trace."""
    steps = []
    for step in trace.steps:
        answer = sum(cell.num_tokens for cell in step.cells if cell.decodes)
        steps.append(StepTokens(step.start_s, step.end_s, step.num_tokens - answer, answer))
    return steps


def gaps_of(trace: Trace, request_id: str) -> list[tuple[float, float]]:
    """Of one answer, from the second token on: when it came, and the seconds since the one before.

    Raises:
        ValueError: the trace has no such request.
    """
    for timeline in trace.timelines:
        if timeline.request.id == request_id:
            return [(after, after - before) for before, after in pairwise(timeline.token_s)]
    names = ", ".join(timeline.request.id for timeline in trace.timelines[:8])
    raise ValueError(f"request_id must be one of the trace's, {names}, …, got {request_id!r}")


def longest_wait(traces: Mapping[str, Trace]) -> str:
    """The id of the request with the longest gap between two tokens, under any policy.

    Raises:
        ValueError: no answer has two tokens.
    """
    waits = [
        (max(gap for _, gap in found), timeline.request.id)
        for trace in traces.values()
        for timeline in trace.timelines
        if (found := gaps_of(trace, timeline.request.id))
    ]
    if not waits:
        raise ValueError("traces must have an answer of two tokens, got none; let answers be longer")
    return max(waits)[1]


def plot_step_tokens(
    traces: Mapping[str, Trace],
    watched: str | None = None,
    title: str = "A whole prompt stalls every answer",
    until_s: int | float = math.inf,
) -> look.Picture:
    """A panel of tokens for each policy, and below them the gaps between the tokens of one answer.

    Args:
        traces: by policy, of the same requests.
        watched: the id of the request whose gaps are shown; None for the one that waits longest.
        until_s: what is later is left out.

    Raises:
        ValueError: more policies than can be told apart, or no such request.
    """
    if not 1 <= len(traces) <= len(look.SERIES):
        raise ValueError(f"traces must be 1 to {len(look.SERIES)}, got {len(traces)}")
    whose = f"longest gap between tokens of request {watched}"
    if watched is None:
        watched = longest_wait(traces)
        whose = f"longest gap of all, that of request {watched}"
    gaps = {name: gaps_of(trace, watched) for name, trace in traces.items()}
    steps = {name: step_tokens(trace) for name, trace in traces.items()}
    end_s = min(until_s, max(trace.end_s for trace in traces.values()))
    worst = {
        name: max((gap for at, gap in found if at <= end_s), default=0.0) for name, found in gaps.items()
    }
    with look.style():
        height = 2.9 + 1.15 * len(traces)
        picture = look.Picture(look.WIDTH, height)
        subtitle = " · ".join(f"{name}: {look.seconds(gap)}" for name, gap in worst.items() if gap)
        look.heading(picture, title, f"{whose}: {subtitle or 'it has one token'}")
        largest = max(step.prompt + step.answer for one in steps.values() for step in one)
        for place, (name, one) in enumerate(steps.items()):
            bottom = height - 1.80 - 1.15 * place
            axes = picture.add_axes((0.085, bottom / height, 0.90, 0.74 / height))
            _draw_steps(axes, one, end_s, largest)
            mark = {"color": look.SERIES[place], "weight": "bold", "size": 10.5, "va": "bottom"}
            axes.text(0, 1.06, f"{'●■▲◆'[place]} {readable(name)}", transform=axes.transAxes, **mark)
        _draw_key(picture, height)
        _draw_gaps(picture.add_axes((0.085, 0.47 / height, 0.90, 1.05 / height)), gaps, end_s, watched)
        told = "; ".join(f"{name} {look.seconds(gap) if gap else '–'}" for name, gap in worst.items())
        picture.alt = f"{title}. Longest gap between tokens of request {watched}: {told}."
    return picture


def _draw_steps(axes, steps: list[StepTokens], end_s: int | float, largest: int) -> None:
    """Answers below, prompts on top of them; as wide as the step is long."""
    for color, label in ((ANSWER, "answer"), (PROMPT, "prompt")):
        boxes = []
        for step in steps:
            whole = step.answer + step.prompt
            low, high = (LEAST, step.answer) if label == "answer" else (max(step.answer, LEAST), whole)
            if high > low and step.start_s < end_s:
                left, right = step.start_s, min(step.end_s, end_s)
                boxes.append([(left, low), (right, low), (right, high), (left, high)])
        axes.add_collection(PolyCollection(boxes, facecolors=color, linewidths=0, label=label), autolim=False)
    axes.set(xlim=(0, end_s), yscale="log", ylim=(LEAST, 1.6 * largest), xticks=[])
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
    axes.tick_params(labelsize=9)
    most = max((step.prompt + step.answer for step in steps if step.start_s < end_s), default=0)
    words = f"largest step: {most:,} tokens"
    axes.text(1, 1.06, words, transform=axes.transAxes, ha="right", va="bottom", size=9, color=look.MUTED)


def _draw_gaps(axes, gaps: Mapping[str, list[tuple[float, float]]], end_s: int | float, watched: str) -> None:
    top = max((gap for found in gaps.values() for at, gap in found if at <= end_s), default=1.0)
    for index, found in enumerate(gaps.values()):
        shown = [(at, gap) for at, gap in found if at <= end_s]
        if shown:
            start = (shown[0][0] - shown[0][1], shown[0][1])  # each gap from one token to the next
            style = {"color": look.SERIES[index], "linewidth": 1.6, "label": list(gaps)[index]}
            axes.step(*zip(start, *shown, strict=True), where="pre", **style)
            stalls = [(at, gap) for at, gap in shown if gap > 2 * min(gap for _, gap in shown)]
            marks = {"color": look.SERIES[index], "marker": look.MARKERS[index], "markersize": 4}
            axes.plot([at for at, _ in stalls], [gap for _, gap in stalls], linestyle="none", **marks)
    axes.set(xlim=(0, end_s), ylim=(0, 1.15 * top), xlabel="time")
    for axis, most in ((axes.xaxis, 9), (axes.yaxis, 4)):
        axis.set_major_locator(MaxNLocator(most))
        axis.set_major_formatter(FuncFormatter(lambda time_s, _: look.seconds(time_s) if time_s else "0"))
    axes.tick_params(labelsize=9)
    words = f"time between two tokens of request {watched}; a mark: over twice its shortest"
    axes.text(0, 1.06, readable(words), transform=axes.transAxes, weight="bold", size=10.5, va="bottom")


def _draw_key(picture: look.Picture, height: int | float) -> None:
    y = 1 - 0.74 / height
    for place, (name, color) in enumerate(
        (("tokens of answers", ANSWER), ("tokens of prompts, from there to the top; on a log scale", PROMPT))
    ):
        x = 0.085 + 0.19 * place
        box = [(x, y), (x + 0.02, y), (x + 0.02, y + 0.12 / height), (x, y + 0.12 / height)]
        picture.add_artist(PolyCollection([box], facecolors=color, transform=picture.transFigure))
        picture.text(x + 0.027, y, name, size=9, color=look.MUTED)
