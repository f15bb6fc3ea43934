"""What all views share: a picture for saved notebooks, and one thread at a time."""

import copy
import html
import threading

import pytest
from ipywidgets import Button, IntSlider, Play
from matplotlib.text import Text

from llmcourse.blockwise import BlockDecoder
from llmcourse.figures.style import PIXELS_PER_INCH
from llmcourse.figures.widgets import (
    BatchingTimeline,
    BeamTreeViewer,
    BlockPlayer,
    CandidateTreeViewer,
    CascadeExplorer,
    ContrastViewer,
    ExitExplorer,
    MemoryCalculator,
    OutlierMap,
    QuantizerExplorer,
    RooflineExplorer,
    SamplingExplorer,
    TilePlayer,
    TracePlayer,
)
from llmcourse.speculative.medusa import full
from tests.early_exit.tiny import random_heads
from tests.figures.answered_tasks import task
from tests.speculative.medusa.tiny import tiny_heads

PROMPT = "Once upon a time"


OF_MODELS = (BeamTreeViewer, ContrastViewer, OutlierMap, SamplingExplorer, TracePlayer)
OF_MACHINES = (MemoryCalculator, RooflineExplorer)


OF_HEADS = {
    BlockPlayer: lambda model, tokenizer: BlockPlayer(
        BlockDecoder(copy.deepcopy(model)), tokenizer, PROMPT, block_size=2, passes=1, max_new_tokens=2
    ),
    CandidateTreeViewer: lambda model, tokenizer: CandidateTreeViewer(
        model, tokenizer, tiny_heads(model), PROMPT, trees=full([2]), max_new_tokens=2
    ),
    ExitExplorer: lambda model, tokenizer: ExitExplorer(
        random_heads(model), tokenizer, PROMPT, max_new_tokens=2
    ),
    QuantizerExplorer: lambda model, tokenizer: QuantizerExplorer(model),
}


@pytest.fixture(params=[*OF_MODELS, *OF_MACHINES, *OF_HEADS, TilePlayer, BatchingTimeline, CascadeExplorer])
def view(request, models):
    if request.param in OF_HEADS:
        return OF_HEADS[request.param](*models["base"])
    if request.param is CascadeExplorer:
        return request.param({"code": task()})
    if request.param in OF_MODELS:
        return request.param(models, PROMPT)
    return request.param(machine="A100 80GB") if request.param in OF_MACHINES else request.param()


def test_a_saved_notebook_keeps_a_picture(view):
    data, _ = view._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.widget.model_id
    assert data["image/png"].startswith("iVBORw0KGgo") and data["text/plain"] == view.picture.alt


NARROW = 300  # pixels of a page of 1280 that is looked at four times as large (WCAG 2.2, 1.4.10: 320)


def test_a_view_fits_a_narrow_page(view):
    rows = [child for child in view.widget.children if hasattr(child, "children")]
    assert rows and all((row.layout.flex_flow, row.layout.width) == ("row wrap", "100%") for row in rows)
    for control in (control for row in rows for control in row.children):
        width, most = control.layout.width or "auto", control.layout.max_width or ""
        fits = width == "auto" or width.startswith("min(100%") or most.startswith(("100%", "min(100%"))
        assert fits or float(width.removesuffix("px")) <= NARROW, (control.description, width)
    assert (view._image.layout.max_width, view._image.layout.height) == ("100%", "auto")
    assert view._text.layout.max_width == "min(100%, 880px)" and view._text.layout.overflow == "auto"


def test_a_view_is_used_from_the_keyboard(view):
    """Every control has a name and takes the focus; what plays by itself can be done step by step, too."""
    controls = [control for row in view.widget.children for control in getattr(row, "children", ())]
    assert len(controls) > 1 and all(control.description for control in controls)
    assert all(control.tabbable is not False for control in controls)
    if any(isinstance(control, Play) for control in controls):
        steps = [c for c in controls if isinstance(c, Button) and c.description == "Step"]
        assert steps or [c for c in controls if isinstance(c, IntSlider) and c.description == "step"]


def test_what_is_shown_is_said(view):
    """An image widget has no text alternative of its own: a line beside it has, for screen readers alone."""
    spoken = view._spoken.value
    assert 'role="status"' in spoken and view.picture.alt.split(".")[0][:20] in html.unescape(spoken)
    assert view.widget.children.index(view._spoken) == view.widget.children.index(view._image) + 1


def test_what_a_view_shows_is_not_saved_half_changed(view, monkeypatch):
    """A cell that displays a view waits until an answer to its controls is complete."""
    show, waited, entered = view.show, [], threading.Event()
    other = threading.Thread(target=view._repr_mimebundle_)
    monkeypatch.setattr(type(view.widget), "_repr_mimebundle_", lambda widget: entered.set() or {})

    def show_while_the_other_wants_to(*args):
        other.start()
        waited.append(not entered.wait(0.3))
        show(*args)

    monkeypatch.setattr(view, "show", show_while_the_other_wants_to)
    view.refresh()
    other.join()
    assert waited == [True] and entered.is_set()


@pytest.mark.parametrize("view", [SamplingExplorer, ContrastViewer], indirect=True)
def test_two_threads_append_one_after_the_other(view, monkeypatch):
    before, other = len(view.chosen), threading.Thread(target=view.step.click)
    refresh, lengths = view.refresh, []

    def refresh_while_the_other_wants_to():
        if threading.current_thread() is not other:
            other.start()
            other.join(0.3)
        lengths.append(len(view.chosen))
        refresh()

    monkeypatch.setattr(view, "refresh", refresh_while_the_other_wants_to)
    view.step.click()
    other.join()
    assert lengths == [before + 1, before + 2]


NARROW_OUTPUT = 590  # pixels that JupyterLab leaves for a picture at 1024, its list of files open
LEAST_LETTERS = 8.5  # pixels of a letter's size on the page, for an upright sans-serif
SMALLER = (OutlierMap, CandidateTreeViewer)  # rows of their maps are as many as the tokens, or candidates


def test_words_of_a_picture_can_be_read_beside_the_list_of_files(view):
    pixels_a_point = PIXELS_PER_INCH / 72 * NARROW_OUTPUT / (view.picture.get_figwidth() * PIXELS_PER_INCH)
    texts = [text for text in view.picture.findobj(Text) if text.get_visible() and text.get_text().strip()]
    small = {text.get_text() for text in texts if text.get_size() * pixels_a_point < LEAST_LETTERS}
    assert len(texts) > 5 and (not small or isinstance(view, SMALLER)), small
