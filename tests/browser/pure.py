"""What a view must show: its pure function called anew with what its controls say, drawn on a new figure.

Runs in the notebook's kernel, beside the views. Nothing here goes through a view's callbacks or takes what a
view has remembered, so that a callback that does nothing, or shows the last but one input, is found out.
"""

import hashlib
import html
import math
from collections.abc import Callable
from functools import cache, singledispatch

from llmcourse.figures import language, style
from llmcourse.figures.beam_tree import plot_beam_tree
from llmcourse.figures.candidate_trace import candidate_text
from llmcourse.figures.candidate_tree import CandidatePlot
from llmcourse.figures.cascade_plot import CascadePlot, against_mixing, shown_cost
from llmcourse.figures.contrast import plot_contrast
from llmcourse.figures.distribution import DistributionPlot
from llmcourse.figures.exit_line import ExitLinePlot
from llmcourse.figures.filling_plot import FillingPlot
from llmcourse.figures.filling_strip import filling_html
from llmcourse.figures.layer_links import layer_links
from llmcourse.figures.layer_links_plot import LayerLinksPlot
from llmcourse.figures.levels_plot import LevelsPlot
from llmcourse.figures.memory_bars import MemoryPlot
from llmcourse.figures.outlier_plot import OutlierPlot
from llmcourse.figures.outlier_split import split, splits
from llmcourse.figures.roofline_plot import RooflinePlot
from llmcourse.figures.rounded_weight import round_weight, some_rows, trade_offs
from llmcourse.figures.soft_labels import by_temperature, soft_labels
from llmcourse.figures.soft_labels_plot import SoftLabelsPlot
from llmcourse.figures.speculation_plot import SpeculationPlot
from llmcourse.figures.speculation_strip import strip_html, text_so_far
from llmcourse.figures.speculation_trace import SpeculationTrace
from llmcourse.figures.style import Picture
from llmcourse.figures.tiles_plot import TilesPlot
from llmcourse.figures.timeline import timeline
from llmcourse.figures.timeline_plot import plot_timelines
from llmcourse.figures.widgets import batching_timeline as batching
from llmcourse.figures.widgets import beam_tree_viewer as beams
from llmcourse.figures.widgets import block_player as blocks
from llmcourse.figures.widgets import candidate_tree_viewer as medusa
from llmcourse.figures.widgets import cascade_explorer as cascade
from llmcourse.figures.widgets import contrast_viewer as contrast
from llmcourse.figures.widgets import distillation_explorer as soft
from llmcourse.figures.widgets import exit_explorer as exits
from llmcourse.figures.widgets import layer_map_view as layers
from llmcourse.figures.widgets import memory_calculator as memory
from llmcourse.figures.widgets import outlier_map as outliers
from llmcourse.figures.widgets import quantizer_explorer as quantizer
from llmcourse.figures.widgets import roofline_explorer as roofline
from llmcourse.figures.widgets import sampling_explorer as sampling
from llmcourse.figures.widgets import tile_player as tiles
from llmcourse.figures.widgets import trace_player as trace
from llmcourse.figures.widgets.machines import with_scales
from llmcourse.figures.widgets.models import ModelShelf
from llmcourse.figures.widgets.view import SCREEN_SCALE, View, end_of, strip_of
from llmcourse.speculative.theory import acceptance


def answer(view: View) -> dict[str, str]:
    """What a page must show: the SHA-256 of the picture, its words for screen readers, the text below."""
    with style.DRAWING:
        picture, text = says(view)
        png = picture.png(SCREEN_SCALE)
    alt, text = language.text(picture.alt), language.page(text)
    return {"picture": hashlib.sha256(png).hexdigest(), "alt": alt, "text": text}


@cache
def once(function: Callable, *inputs):
    """What a function makes of these inputs, which may take a model seconds; asked again, the same."""
    return function(*inputs)


@singledispatch
def says(view: View) -> tuple[Picture, str]:
    """The picture and the HTML below it that a view's inputs ask for."""
    raise TypeError(f"no pure function is known of {type(view).__name__}; add it to tests/browser/pure.py")


def paragraphs(lines: list[str]) -> str:
    return "".join(f"<p style='margin:4px 0'>{html.escape(line)}</p>" for line in lines)


@says.register
def _(view: sampling.SamplingExplorer):
    ready = view.shelf.get(view.model.value)
    inputs = sampling.SamplingInputs(view.prompt.value, view.params, view.seed.value, view.chosen)
    state = sampling.explore(ready, inputs)
    title = f"{view.model.value}, after “{end_of(state.strip.text)}”"
    plot = DistributionPlot(sampling.ROWS)
    picture = plot.update(state.distribution, title, top_p=inputs.params.top_p, chosen=state.draw)
    return picture, strip_of(state.strip)


@says.register
def _(view: beams.BeamTreeViewer):
    ready, inputs = view.shelf.get(view.model.value), view.inputs
    state = beams.view_beams(ready, beams.search_beams(ready, inputs), view.step.value)
    count = "1 beam: greedy search" if inputs.num_beams == 1 else f"{inputs.num_beams} beams"
    title = f"{view.model.value}, {count}, after “{end_of(inputs.prompt, 20)}”"
    return plot_beam_tree(state.tree, title), beams.ranking_html(state)


@says.register
def _(view: contrast.ContrastViewer):
    names = {"expert": view.expert.value, "amateur": view.amateur.value}
    strengths = view.alpha.value, view.amateur_temperature.value
    inputs = contrast.ContrastInputs(view.prompt.value, *strengths, view.chosen)
    state = contrast.compare(*map(view.shelf.get, names.values()), inputs)
    title = f"{names['expert']} minus {names['amateur']}, after “{end_of(state.strip.text)}”"
    return plot_contrast(state.contrast, title, **names), strip_of(state.strip)


@says.register
def _(view: roofline.RooflineExplorer):
    machine, inputs = view.machines[view.machine.value], view.inputs
    state = roofline.explore_roofline(view.models[view.model.value], machine, inputs)
    title = f"{view.model.value} on {machine.name}"
    limit = "arithmetic" if state.decode.bound == "compute" else "memory"
    sizes = f"{inputs.batch:,} × {inputs.context:,} tokens, {inputs.weights} weights"
    speed = f"decoding at most {state.decode.tokens_per_s:,.0f} tokens/s, bound by {limit}"
    picture = RooflinePlot().update(state.points, title, f"{sizes} · {speed}")
    words = roofline.in_words(state, inputs, machine.memory_bytes)
    picture.alt = f"{title}. {' '.join(words)}"
    return picture, paragraphs(words)


@says.register
def _(view: memory.MemoryCalculator):
    machine, inputs = view.machines[view.machine.value], view.inputs
    state = memory.calculate_memory(view.models[view.model.value], machine, inputs)
    title = f"Will it fit? {view.model.value} on {machine.name}"
    token = f"{state.token_bytes:,} bytes a cached token{with_scales(inputs.cache)}"
    subtitle = f"{inputs.weights} weights, cache {inputs.cache} · {token}"
    picture = MemoryPlot(rows=3).update(state.needs, {machine.name: state.free_bytes}, title, subtitle)
    return picture, paragraphs(memory.in_words(state, inputs))


@says.register
def _(view: tiles.TilePlayer):
    state = tiles.play_tiles(view.qkv, view.inputs)
    return TilesPlot().update(state.walk, state.step, view.inputs.row), f"<p>{html.escape(state.words)}</p>"


@says.register
def _(view: batching.BatchingTimeline):
    inputs = view.inputs
    shown = [
        timeline(
            name,
            batching.serve(name, inputs, view.costs[inputs.cost]),
            inputs.slots,
            inputs.until_s or math.inf,
            batching.note_of(batching.policy_named(name, inputs.token_budget)),
        )
        for name in inputs.names
    ]
    return plot_timelines(tuple(shown), *batching.headline(inputs)), batching.table_html(tuple(shown))


def traced(shelf: ModelShelf, target: str, drafter: str, inputs: trace.TraceInputs) -> SpeculationTrace:
    ready = shelf.get(target)
    return trace.trace_text(ready, trace.make_drafter(drafter, ready, shelf), inputs)


@says.register
def _(view: trace.TracePlayer):
    inputs, at = view.inputs, view.phase.value
    written = once(traced, view.shelf, view.target.value, view.drafter.value, inputs)
    title = f"{view.target.value}, drafts by {view.drafter.value}, after “{end_of(inputs.prompt, 14)}”"
    return SpeculationPlot().update(written, at, title), strip_html(text_so_far(written, at), font=False)


@says.register
def _(view: cascade.CascadeExplorer):
    study, inputs = view.study, view.inputs
    state = cascade.explore_cascade(study, inputs)
    data, tried = study.data, state.tried
    title = f"{view.task.value}: what cascades of {', '.join(view.names)} are worth"
    numbers = f"{tried.quality:.1%} right for {shown_cost(tried.cost, data.unit)}"
    below = f"{inputs.judge}: {numbers}; {against_mixing(tried)}"
    words = [*cascade.in_words(state, study, inputs), f"Answers and times: {study.source}."]
    tables = cascade.stages_html(state, study) + cascade.examples_html(state, study)
    return CascadePlot().update(data, tried, title, below), paragraphs(words) + tables


@says.register
def _(view: medusa.CandidateTreeViewer):
    inputs, step = view.inputs, view.step.value - 1
    tree = view.trees[inputs.tree]
    written = once(medusa.trace_candidates, view.ready, view.heads, tree, inputs)
    title = f"Medusa on {view.ready.name}, {inputs.tree}, after “{end_of(inputs.prompt, 16)}”"
    words = strip_html(candidate_text(written, step), font=False, keys=("accepted", "own"))
    return CandidatePlot(tree).update(written, step, title), words


@says.register
def _(view: blocks.BlockPlayer):
    prompt, at, tokenizer = view.prompt.value, view.step.value, view.ready.tokenizer
    asked = (view.ready, view.model, prompt, view.max_new_tokens, view.refinement.value)
    fillings = once(blocks.fill_text, *asked)
    title = f"{view.ready.name} with adapters, after “{end_of(prompt, 26)}”"
    picture = FillingPlot(view.max_new_tokens).update(fillings, view.dial, at, tokenizer.label, title)
    tokens = tokenizer.encode_prompt(prompt)
    return picture, filling_html(fillings[view.dial], at, prompt, tokens, tokenizer)


@says.register
def _(view: exits.ExitExplorer):
    read = once(exits.read_on, view.ready, view.heads, view.prompt.value, view.max_new_tokens)
    heat = read.heat(view.inputs)
    labels = [view.ready.tokenizer.label(token) for token in read.tokens]
    title = f"{view.ready.name} leaves by {view.inputs.make_rule()}"
    return ExitLinePlot(heat, labels, read.curves).update(heat, title), exits.counts_html(heat)


@says.register
def _(view: quantizer.QuantizerExplorer):
    layer, inputs = view.layer.value, view.inputs
    weight = view.weights[layer]
    sample = some_rows(weight)
    rounded = round_weight(sample, inputs)
    curves = {symmetric: trade_offs(sample, symmetric) for symmetric in (True, False)}
    title = f"{layer} of {view.model_name} in {inputs.bits} bits"
    picture = LevelsPlot(sample.numpy(), curves).update(rounded, inputs, title)
    return picture, quantizer.figures_html(rounded, tuple(weight.shape))


@says.register
def _(view: outliers.OutlierMap):
    ready, layer = view.shelf.get(view.model.value), view.layer.value
    tokens, inputs = once(outliers.read_text, ready, view.prompt.value)
    labels = [ready.tokenizer.label(token) for token in tokens]
    plot = OutlierPlot(inputs[layer], splits(inputs[layer]), labels)
    shown = split(inputs[layer], view.threshold.value)
    picture = plot.update(shown, f"What {layer} of {ready.name} is given")
    return picture, outliers.figures_html(shown, plot.every[-1])


@says.register
def _(view: soft.DistillationExplorer):
    names, position = (view.teacher.value, view.student.value), view.position.value
    both = once(soft.read_both, *map(view.shelf.get, names), view.prompt.value)
    tokenizer = view.shelf.get(names[0]).tokenizer
    logits = both.student[position - 1], both.teacher[position - 1]
    squared = {"squared": view.squared.value, "follows": both.follows(position)}
    data = soft_labels(*logits, tokenizer.label, view.response, **squared)
    title = f"{names[0]} teaches {names[1]}, after “{end_of(tokenizer.decode(list(both.tokens[:position])))}”"
    plot = SoftLabelsPlot(teacher=names[0], student=names[1])
    curve = by_temperature(*logits, view.response)
    picture = plot.update(data, curve, title, log_scale=view.scale.value)
    p, q = (each.softmax(-1) for each in logits[::-1])
    return picture, soft.figures_html(data, acceptance(p, q).item())


@says.register
def _(view: layers.LayerMapView):
    student, teacher = view.student.value, view.teacher.value
    small, large = view.shelf.get(student), view.shelf.get(teacher)
    configs = small.model.config, large.model.config
    links = layer_links(*configs, view.strategy.value, view.compared.value)
    likeness = once(layers.read_likeness, small, large, view.texts[view.text.value])
    title = f"Which layer of {student} learns from which of {teacher}"
    return LayerLinksPlot(*configs, likeness, (student, teacher)).update(links, title), ""
