"""The beam-tree viewer: searches are run once, steps are shown one at a time."""

import pytest

from llmcourse.decoding.beam import beam_search
from llmcourse.figures.widgets import beam_tree_viewer
from llmcourse.figures.widgets.beam_tree_viewer import BeamTreeViewer

PROMPT = "Once upon a time"


@pytest.fixture
def viewer(models):
    return BeamTreeViewer(models, PROMPT, num_beams=3, max_new_tokens=5)


def test_it_shows_the_search_that_beam_search_makes(viewer, models):
    model, tokenizer = models["base"]
    options = {"num_beams": 3, "max_new_tokens": 5, "num_return": 3}
    expected = beam_search(model, tokenizer.encode(PROMPT), **options)
    assert viewer.state.search == expected
    assert viewer.state.tree.best_tokens == tuple(expected.hypotheses[0].tokens)
    assert [r.score for r in viewer.state.ranking] == [h.score for h in expected.hypotheses]


def test_steps_use_the_search_that_was_run(viewer, monkeypatch):
    monkeypatch.setattr(beam_tree_viewer, "search_beams", None)  # would fail if it were asked
    pictures = set()
    for step in (1, 2, 5):
        viewer.step.value = step
        assert viewer.state.tree.last_step == step - 1
        pictures.add(bytes(viewer._image.value))
    viewer.play.value = 4
    assert viewer.step.value == 4 and len(pictures) == 3


@pytest.mark.parametrize("beams", [1, 6])
def test_the_beam_slider_acts(viewer, beams):
    viewer.beams.value = beams
    viewer.step.value = 2
    assert sum(box.fate == "kept" for box in viewer.state.tree.boxes if box.step == 1) == beams


def test_the_length_penalty_slider_acts(viewer):
    scores = {}
    for penalty in (0.0, 2.0):
        viewer.length_penalty.value = penalty
        best = viewer.state.search.hypotheses[0]
        scores[penalty] = best.score / (best.log_prob / len(best.tokens) ** penalty)
    assert list(scores.values()) == pytest.approx([1, 1])
    assert len(viewer.searches) == 3


def test_the_ranking_is_escaped(viewer):
    viewer.state = viewer.state.__class__(
        viewer.state.search,
        viewer.state.tree,
        viewer.state.num_steps,
        (beam_tree_viewer.Ranking("<b>\n", -1.0, -0.5, True),),
    )
    table = beam_tree_viewer.ranking_html(viewer.state)
    assert "&lt;b&gt;⏎" in table and "<b>" not in table and "end token" in table


@pytest.mark.parametrize(("prompt", "words"), [("", "The prompt is empty"), ("z" * 200, "reads at most 64")])
def test_a_bad_prompt_is_explained_not_raised(viewer, prompt, words):
    viewer.prompt.value = prompt
    assert words in viewer.message
    viewer.beams.value = 2
    viewer.prompt.value = PROMPT
    assert viewer.message == "" and viewer.state.tree.boxes


def test_searches_that_end_early_show_their_end(models):
    _, tokenizer = models["base"]
    prompt = "z" * 62  # leaves room for two tokens
    viewer = BeamTreeViewer(models, prompt, num_beams=2, max_new_tokens=8)
    assert viewer.state.num_steps == 64 - len(tokenizer.encode(prompt))
    viewer.step.value = 7
    assert viewer.state.tree.last_step == viewer.state.num_steps - 1


def test_a_saved_notebook_keeps_a_picture(viewer):
    data, _ = viewer._repr_mimebundle_()
    assert data["text/plain"].startswith("base, 3 beams, after “Once upon a time”, step 5")
    assert len(data["image/png"]) > 5000
