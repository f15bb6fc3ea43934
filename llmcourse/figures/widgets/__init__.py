"""Views to play with: thin ipywidgets over pure functions and the figures of this package.

models                 models by name, loaded when first asked; logits after any text, run once
view                   what all views share: controls, messages, the picture left in a saved notebook
page_code              looks, and names of handles for screen readers
rest                   what waits until a reader rests: the search for garbage, likely next answers
sampling_explorer      temperature, truncation and penalties on the next token, step by step
beam_tree_viewer       beam search, a step at a time
contrast_viewer        expert, amateur and their difference
machines               machines and formats to choose from
roofline_explorer      where a model's operations lie on a machine's roofline
memory_calculator      whether weights, cache and activations fit
tile_player            FlashAttention, a tile at a time
batching_timeline      policies on the lecture's grid and under any load
trace_player           speculative decoding: draft, verdict, correction, a phase at a time
candidate_tree_viewer  Medusa: a tree of candidates and the branch that stands, a step at a time
block_player           autoregressive to non-autoregressive: two dials, and the text filling in
exit_explorer          early exit: a threshold moves the line on a map of layers and tokens
cascade_explorer       what cascades are worth, on questions that they were not chosen on
quantizer_explorer     a weight in few bits: levels, clipping, error, and what bits buy
outlier_map            outlier columns of activations by a threshold, and what int8 loses
distillation_explorer  soft labels at one position: temperature, divergence, and whom the loss pushes
layer_map_view         which layer learns from which, and how much they are alike before
"""

from llmcourse.figures.widgets.batching_timeline import BatchingTimeline
from llmcourse.figures.widgets.beam_tree_viewer import BeamTreeViewer
from llmcourse.figures.widgets.block_player import BlockPlayer
from llmcourse.figures.widgets.candidate_tree_viewer import CandidateTreeViewer
from llmcourse.figures.widgets.cascade_explorer import CascadeExplorer
from llmcourse.figures.widgets.contrast_viewer import ContrastViewer
from llmcourse.figures.widgets.distillation_explorer import DistillationExplorer
from llmcourse.figures.widgets.exit_explorer import ExitExplorer
from llmcourse.figures.widgets.layer_map_view import LayerMapView
from llmcourse.figures.widgets.memory_calculator import MemoryCalculator
from llmcourse.figures.widgets.outlier_map import OutlierMap
from llmcourse.figures.widgets.quantizer_explorer import QuantizerExplorer
from llmcourse.figures.widgets.roofline_explorer import RooflineExplorer
from llmcourse.figures.widgets.sampling_explorer import SamplingExplorer
from llmcourse.figures.widgets.tile_player import TilePlayer
from llmcourse.figures.widgets.trace_player import TracePlayer

__all__ = [
    "BatchingTimeline",
    "BeamTreeViewer",
    "BlockPlayer",
    "CandidateTreeViewer",
    "CascadeExplorer",
    "ContrastViewer",
    "DistillationExplorer",
    "ExitExplorer",
    "LayerMapView",
    "MemoryCalculator",
    "OutlierMap",
    "QuantizerExplorer",
    "RooflineExplorer",
    "SamplingExplorer",
    "TilePlayer",
    "TracePlayer",
]
