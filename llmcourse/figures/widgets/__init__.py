"""Views to play with: thin ipywidgets over pure functions and the figures of this package.

models              models by name, loaded when first asked; logits after any text, run once
view                what all views share: controls, messages, the picture left in a saved notebook
sampling_explorer   temperature, truncation and penalties on the next token, step by step
beam_tree_viewer    beam search, a step at a time
contrast_viewer     expert, amateur and their difference
"""

from llmcourse.figures.widgets.beam_tree_viewer import BeamTreeViewer
from llmcourse.figures.widgets.contrast_viewer import ContrastViewer
from llmcourse.figures.widgets.sampling_explorer import SamplingExplorer

__all__ = ["BeamTreeViewer", "ContrastViewer", "SamplingExplorer"]
