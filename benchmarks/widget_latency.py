"""How fast every widget answers each of its controls, beside the 100 ms within which an answer feels instant.

    python benchmarks/widget_latency.py [NAME …] [--values 8] [--rounds 3] [--cpu]

appends a line a widget to benchmarks/results/<device>.jsonl, `widget_latency_<name>`, in answers a second.
An answer is everything between the setting of a control and the new picture and text being set: the pure
function, the drawing, the PNG file. The line tells the median and the worst of all controls, each value at
its fastest of some rounds; and `new_median_ms`, `new_worst_ms` of the first round alone, where a value
that was never asked for may have to run a model. The browser needs about 20 ms more to show it.

On a busy machine `--cpu` counts the time of one core instead of the clock's: an upper bound of what two quiet
ones need.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ipywidgets
import torch
from record import record

from llmcourse import blockwise, early_exit, pretrained, prompts
from llmcourse.decoding import SamplingParams
from llmcourse.figures import cascade_answers, widgets
from llmcourse.figures.widgets.tile_player import TileInputs
from llmcourse.figures.widgets.view import EXAMPLES, View
from llmcourse.speculative import medusa

LIMIT_S = 0.1
CPU = torch.device("cpu")


def family() -> dict[str, pretrained.Pretrained]:
    return {name: pretrained.load(name, device=CPU) for name in pretrained.embedded_names()[::-1]}


def tree_viewer() -> View:
    model, tokenizer = pretrained.load("base", device=CPU)
    trees = {"sparse": medusa.sparse(4, 4), "full, 2 × 2": medusa.full((2, 2))}
    heads = medusa.load_heads("base", model)
    return widgets.CandidateTreeViewer(model, tokenizer, heads, prompts.CODE[0], trees=trees)


def block_player() -> View:
    model, tokenizer = pretrained.load("base", device=CPU)
    return widgets.BlockPlayer(blockwise.load_adapters("base", model), tokenizer, prompts.PROSE[0])


def exit_explorer() -> View:
    model, tokenizer = pretrained.load("base", device=CPU)
    return widgets.ExitExplorer(early_exit.load_heads("base", model), tokenizer, prompts.CODE[0])


# Each as its chapter makes it, with all models of the family where a chapter has them.
VIEWS: dict[str, Callable[[], View]] = {
    "BeamTreeViewer": lambda: widgets.BeamTreeViewer(
        family(), "The old man sat down by the", num_beams=2, max_new_tokens=2
    ),
    "SamplingExplorer": lambda: widgets.SamplingExplorer(family(), params=SamplingParams(top_p=0.3)),
    "ContrastViewer": lambda: widgets.ContrastViewer(family()),
    "RooflineExplorer": lambda: widgets.RooflineExplorer(machine="A100 80GB", model="Llama-3-8B"),
    "MemoryCalculator": lambda: widgets.MemoryCalculator(machine="RTX 4090", model="Llama-3-8B"),
    "TilePlayer": lambda: widgets.TilePlayer(inputs=TileInputs(row=29, step=11)),
    "BatchingTimeline": lambda: widgets.BatchingTimeline(preset="long prompts, short answers"),
    "TracePlayer": lambda: widgets.TracePlayer(family(), "Once upon a time there was"),
    "CascadeExplorer": lambda: widgets.CascadeExplorer(cascade_answers.recorded_tasks(), task="code"),
    "CandidateTreeViewer": tree_viewer,
    "BlockPlayer": block_player,
    "ExitExplorer": exit_explorer,
    "QuantizerExplorer": lambda: widgets.QuantizerExplorer(family()["base"][0]),
    "OutlierMap": lambda: widgets.OutlierMap(family()),
    "DistillationExplorer": lambda: widgets.DistillationExplorer(family()),
    "LayerMapView": lambda: widgets.LayerMapView(family()),
}


@dataclass(frozen=True)
class Answer:
    """How long a control took to be answered at one of its values."""

    control: str
    value: str
    first_s: float  # when it was asked for the first time
    best_s: float  # of all rounds


def controls_of(view: View) -> dict[str, ipywidgets.ValueWidget | ipywidgets.Button]:
    """By what stands beside them, in the order of the page."""
    rows = [child for row in view.widget.children for child in getattr(row, "children", ())]
    kinds = (ipywidgets.ValueWidget, ipywidgets.Button)
    return {widget.description: widget for widget in rows if isinstance(widget, kinds)}


def values_of(control: ipywidgets.Widget, most: int) -> list[object]:
    """Values over the whole range of a control, at most so many; [] for one that has none, as a button."""
    if isinstance(control, ipywidgets.Textarea):
        return list(EXAMPLES[:most])
    if hasattr(control, "options"):
        found = [value for _, value in control._options_full]
    elif isinstance(control, ipywidgets.Play):
        found = list(range(1, most + 1))
    elif hasattr(control, "max"):
        found = _range(control, most)
    else:
        return []
    every = max(len(found) - 1, 1) / max(min(most, len(found)) - 1, 1)
    return [found[round(at * every)] for at in range(min(most, len(found)))]


def _range(control: ipywidgets.Widget, most: int) -> list[object]:
    low, high = control.min, min(control.max, control.min + 1000)
    if isinstance(high, float):
        steps = [low + (high - low) * at / max(most - 1, 1) for at in range(most)]
        return [low + round((one - low) / control.step) * control.step for one in steps]
    return list(range(low, high + 1))


def answers(view: View, *, values: int, rounds: int, clock: Callable[[], float]) -> Iterator[Answer]:
    """Every control over its values, some rounds each; it is then put back to where it stood.

    Buttons are clicked once a value. A control that cannot be used as the others stand is passed over.
    """
    for name, control in controls_of(view).items():
        if control.disabled:
            continue
        button = isinstance(control, ipywidgets.Button)
        wanted = range(values) if button else values_of(control, values)
        started = None if button else control.value
        taken: dict[str, list[float]] = {}
        for _ in range(rounds):
            for value in wanted:
                answered = view.picture, view._image.value
                start = clock()
                if button:
                    control.click()
                else:
                    control.value = value
                time_s = clock() - start
                if (view.picture, view._image.value) != answered or view.message:
                    taken.setdefault(str(value), []).append(time_s)
        if not button:
            control.value = started
        for value, times_s in taken.items():
            yield Answer(name, value, times_s[0], min(times_s[1:] or times_s))


def measure(name: str, *, values: int, rounds: int, cpu: bool) -> dict:
    """Records how fast a widget answers."""
    clock, threads = time.thread_time if cpu else time.perf_counter, torch.get_num_threads()
    torch.set_num_threads(1 if cpu else threads)
    try:
        found = list(answers(VIEWS[name](), values=values, rounds=rounds, clock=clock))
    finally:
        torch.set_num_threads(threads)
    known, new = [one.best_s for one in found], [one.first_s for one in found]
    worst, slowest = max(found, key=lambda one: one.best_s), max(found, key=lambda one: one.first_s)
    quartiles = statistics.quantiles(known, n=4)
    return record(
        f"widget_latency_{name}",
        1 / statistics.median(known),
        "answers/s",
        limit=1 / LIMIT_S,
        limit_name="an answer within 100 ms",
        spread=(quartiles[2] - quartiles[0]) / statistics.median(known),
        device=CPU,
        median_ms=round(1e3 * statistics.median(known), 1),
        worst_ms=round(1e3 * worst.best_s, 1),
        worst_control=f"{worst.control}: {worst.value}",
        new_median_ms=round(1e3 * statistics.median(new), 1),
        new_worst_ms=round(1e3 * slowest.first_s, 1),
        new_worst_control=f"{slowest.control}: {slowest.value}",
        answers=len(found),
        clock="one core" if cpu else "wall",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="widgets; default all")
    parser.add_argument("--values", type=int, default=8, metavar="N", help="of each control (default 8)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="over the values (default 3)")
    parser.add_argument("--cpu", action="store_true", help="time of one core, for a busy machine")
    options = parser.parse_args(arguments)
    for name in set(options.names) - set(VIEWS):
        parser.error(f"NAME must be one of {', '.join(VIEWS)}, got {name!r}")
    for name in options.names or VIEWS:
        measure(name, values=options.values, rounds=options.rounds, cpu=options.cpu)


if __name__ == "__main__":
    main()
