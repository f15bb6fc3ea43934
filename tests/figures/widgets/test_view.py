"""What all views share: one thread at a time."""

import threading

import pytest

from llmcourse.figures.widgets import (
    BeamTreeViewer,
    ContrastViewer,
    MemoryCalculator,
    RooflineExplorer,
    SamplingExplorer,
)

PROMPT = "Once upon a time"


@pytest.fixture(params=[BeamTreeViewer, ContrastViewer, SamplingExplorer, MemoryCalculator, RooflineExplorer])
def view(request, models):
    costs = request.param in (MemoryCalculator, RooflineExplorer)
    return request.param(machine="A100 80GB") if costs else request.param(models, PROMPT)


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
