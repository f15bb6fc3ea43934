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
    show, waited = view.show, []
    other = threading.Thread(target=view._repr_mimebundle_)

    def show_while_the_other_wants_to(*args):
        other.start()
        other.join(0.3)
        waited.append(other.is_alive())
        show(*args)

    monkeypatch.setattr(view, "show", show_while_the_other_wants_to)
    view.refresh()
    other.join()
    assert waited == [True]


@pytest.mark.parametrize("view", [SamplingExplorer, ContrastViewer], indirect=True)
def test_what_two_threads_append_is_appended_twice(view, monkeypatch):
    before, other = len(view.chosen), threading.Thread(target=view.step.click)
    refresh = view.refresh

    def refresh_while_the_other_wants_to():
        if threading.current_thread() is not other:
            other.start()
            other.join(0.3)
            assert len(view.chosen) == before + 1  # it waits
        refresh()

    monkeypatch.setattr(view, "refresh", refresh_while_the_other_wants_to)
    view.step.click()
    other.join()
    assert len(view.chosen) == before + 2
