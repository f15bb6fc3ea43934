"""The viewer of candidate trees, driven by setting the values that a reader's mouse and keys would set."""

import copy
import math

import pytest
import torch

from llmcourse.figures.candidate_trace import candidate_text
from llmcourse.figures.widgets import candidate_tree_viewer
from llmcourse.figures.widgets.candidate_tree_viewer import (
    LOSSLESS,
    TYPICAL,
    CandidateInputs,
    CandidateTreeViewer,
    longest_branch,
)
from llmcourse.speculative.medusa import HeadsConfig, MedusaHeads, MedusaTree, full, sparse
from tests.figures.widgets.described import described
from tests.speculative.medusa.tiny import tiny_heads

PROMPT = "Once upon a time"
TREES = {"wide": full([6]), "sparse": sparse(2, 2)}


@pytest.fixture(scope="module")
def heads(models):
    return tiny_heads(models["base"][0])


@pytest.fixture
def viewer(models, heads):
    return CandidateTreeViewer(*models["base"], heads, PROMPT, trees=TREES, max_new_tokens=6)


def test_it_starts_at_the_longest_branch(viewer):
    assert viewer.message == ""
    assert viewer.inputs == CandidateInputs(PROMPT, "wide", max_new_tokens=6)
    assert viewer.step.value == longest_branch(viewer.trace) + 1
    assert viewer.step.max == viewer.play.max == len(viewer.trace.steps)
    assert viewer.picture.alt.startswith("Medusa on base, wide, after “…ce upon a time”, step")


def test_without_temperature_the_text_is_greedy(viewer, models):
    model, tokenizer = models["base"]
    tokens, expected = tokenizer.encode_prompt(PROMPT), []
    for _ in range(6):
        expected.append(int(model(torch.tensor([tokens + expected]))[0, -1].argmax()))
    assert [word.token for step in viewer.trace.steps for word in step.gained] == expected


def test_steps_use_the_trace_that_was_made(viewer, monkeypatch):
    monkeypatch.setattr(candidate_tree_viewer, "trace_candidates", None)  # would fail if it were asked
    pictures = set()
    for step in (1, 2, 3):
        viewer.step.value = step
        assert f"step {step} of" in viewer.picture.alt
        pictures.add(bytes(viewer._image.value))
    viewer.play.value = 2
    assert viewer.step.value == 2 and len(pictures) == 3 and len(viewer.traces) == 1


def test_buttons_move_the_step_and_stop_at_the_ends(viewer):
    viewer.step.value = 2
    viewer.back.click()
    viewer.back.click()
    assert viewer.step.value == 1 and viewer.back.disabled
    viewer.step.value = viewer.step.max
    viewer.forward.click()
    assert viewer.step.value == viewer.step.max and viewer.forward.disabled


@pytest.mark.parametrize(
    ("control", "value"),
    [("tree", "sparse"), ("temperature", 0.9), ("accepts", TYPICAL), ("prompt", "There was")],
)
def test_each_control_makes_another_trace(viewer, control, value):
    before = viewer.trace
    getattr(viewer, control).value = value
    assert viewer.message == "" and len(viewer.traces) == 2
    assert viewer.trace != before or control == "accepts"


def test_typical_acceptance_takes_more(models, heads):
    """At a high temperature nearly every token passes its bar, and a lossless draw seldom hits a draft."""
    viewer = CandidateTreeViewer(
        *models["base"], heads, PROMPT, trees=full([2]), temperature=2.0, max_new_tokens=10
    )
    lossless = len(viewer.trace.steps)
    viewer.accepts.value = TYPICAL
    assert len(viewer.trace.steps) < lossless


def test_a_trace_is_a_function_of_its_inputs(models, heads):
    given = dict(trees=TREES, temperature=1.0, max_new_tokens=3)
    one, two = (CandidateTreeViewer(*models["base"], heads, PROMPT, **given) for _ in range(2))
    other = CandidateTreeViewer(*models["base"], heads, PROMPT, seed=1, **given)
    assert one.trace == two.trace != other.trace


def test_the_text_stands_below_in_its_colours(viewer):
    viewer.step.value = viewer.step.max
    assert "{+" in repr(candidate_text(viewer.trace))
    assert "accepted draft" in viewer._text.value and "the target's own" in viewer._text.value
    assert "rejected" not in viewer._text.value


def test_one_tree_alone_and_the_usual_one(models, heads):
    alone = CandidateTreeViewer(*models["base"], heads, PROMPT, trees=full([2, 2]), max_new_tokens=4)
    assert list(alone.trees) == ["6 candidates"]
    usual = CandidateTreeViewer(*models["base"], heads, PROMPT, max_new_tokens=4)
    assert list(usual.trees.values()) == [sparse(3, 4)]


@pytest.mark.parametrize(("prompt", "words"), [("", "The prompt is empty"), ("z" * 200, "reads at most 64")])
def test_a_bad_prompt_is_explained_not_raised(viewer, prompt, words):
    viewer.prompt.value = prompt
    assert words in viewer.message and viewer.trace is None
    viewer.prompt.value = PROMPT
    assert viewer.message == "" and viewer.trace


def test_what_does_not_fit_is_refused(models, heads):
    model, tokenizer = models["base"]
    make = lambda *args, **more: CandidateTreeViewer(model, tokenizer, *args, **more)  # noqa: E731
    with pytest.raises(ValueError, match="hidden_size of the heads must be the backbone's 32, got 8"):
        make(MedusaHeads(HeadsConfig(3, 1, 8, 300)))
    with pytest.raises(ValueError, match="heads must be on the backbone's device, in its dtype: cpu,"):
        make(copy.deepcopy(heads).half())
    with pytest.raises(ValueError, match="depth of the tree must be at most 3, the number of heads, got 4"):
        make(heads, trees=full([1, 1, 1, 1]))
    with pytest.raises(ValueError, match="trees must name at least 1 tree"):
        make(heads, trees={})
    with pytest.raises(ValueError, match="tree must be of 1 to 40 branches"):
        make(heads, trees=MedusaTree([(rank,) for rank in range(41)]))
    with pytest.raises(ValueError, match="tree must be one of wide, sparse, got 'deep'"):
        make(heads, trees=TREES, tree="deep")
    for temperature in (5, -0.1, math.nan, 10**400):
        with pytest.raises(ValueError, match=r"temperature must be in \[0, 2\], got"):
            make(heads, temperature=temperature)
    with pytest.raises(ValueError, match="accepts must be one of"):
        make(heads, accepts="all")


def test_every_control_has_a_name(viewer):
    found = described(viewer)
    assert len(found) == 7 and all(widget.description for widget in found)
    assert {LOSSLESS, TYPICAL} == set(viewer.accepts.options)


@pytest.mark.alone
def test_a_slider_is_answered_within_110_ms(kernel_seconds):
    """With 44 candidates, each of which may have another label; small trees take a third of that."""
    heads = "MedusaHeads(HeadsConfig.for_model(pretrained.load('base')[0])).eval().requires_grad_(False)"
    assert kernel_seconds(f"CandidateTreeViewer(*pretrained.load('base'), {heads})", "step") < 0.090
