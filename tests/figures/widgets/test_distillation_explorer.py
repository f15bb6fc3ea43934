"""Soft labels, driven by setting the values that a reader's mouse and keys would set."""

import pytest
import torch

from llmcourse.distillation import Response
from llmcourse.figures.soft_labels import soft_labels
from llmcourse.figures.widgets import distillation_explorer
from llmcourse.figures.widgets.distillation_explorer import DistillationExplorer
from llmcourse.model import Decoder, DecoderConfig
from tests.figures.widgets.described import described

PROMPT = "Once upon a time"


@pytest.fixture
def view(models):
    return DistillationExplorer(models, PROMPT)


def slow(models, prompt, position, response, **changes):
    (teacher, tokenizer), (student, _) = models["base"], models["draft"]
    tokens = tokenizer.encode_prompt(prompt)
    with torch.no_grad():
        p, q = (model(torch.tensor([tokens[:position]]))[0, -1] for model in (teacher, student))
    follows = tokens[position] if position < len(tokens) else None
    return soft_labels(q, p, tokenizer.label, response, follows=follows, **changes)


def alike(one, other):
    assert one.labels == other.labels and one.follows == other.follows
    assert one.push == pytest.approx(other.push, rel=1e-3, abs=1e-6)
    assert one.loss == pytest.approx(other.loss, rel=1e-3, abs=1e-7)


def test_it_starts_behind_the_text_with_the_largest_and_the_smallest(view, models):
    count = len(models["base"][1].encode_prompt(PROMPT))
    assert view.message == "" and view.position.value == view.position.max == count
    alike(view.soft, slow(models, PROMPT, count, Response()))
    assert view.picture.alt.startswith("base teaches draft, after “Once upon a time”: KL(teacher ‖ student)")


def test_every_control_changes_what_is_shown(view, models):
    view.position.value = 3
    alike(view.soft, slow(models, PROMPT, 3, Response()))
    view.temperature.value = 4
    alike(view.soft, slow(models, PROMPT, 3, Response(temperature=4)))
    view.squared.value = False
    alike(view.soft, slow(models, PROMPT, 3, Response(temperature=4), squared=False))
    view.divergence.value = "reverse_kl"
    alike(view.soft, slow(models, PROMPT, 3, Response("reverse_kl", 4), squared=False))
    view.divergence.value = "jensen_shannon"
    view.beta.value = 0.25
    alike(view.soft, slow(models, PROMPT, 3, Response("jensen_shannon", 4, 0.25), squared=False))
    assert "JSD(β = 0.25) at T = 4" in view.picture.alt
    assert view.picture.axes[0].get_xscale() == "linear"
    view.scale.value = True
    assert view.picture.axes[0].get_xscale() == "log"


def test_the_curves_are_of_the_divergence_that_is_chosen(view):
    view.divergence.value = "jensen_shannon"
    drawn = []
    for beta in (0.25, 0.75):
        view.beta.value = beta
        loss, _, ring = view.picture.axes[2].lines
        at = list(loss.get_xdata()).index(1)
        assert loss.get_ydata()[at] == pytest.approx(ring.get_ydata()[0], rel=1e-3)
        drawn.append(list(loss.get_ydata()))
    assert drawn[0] != drawn[1]
    view.divergence.value = "forward_kl"
    assert list(view.picture.axes[2].lines[0].get_ydata()) not in drawn


def test_sliders_never_wait_for_a_model(view, monkeypatch):
    monkeypatch.setattr(distillation_explorer, "read_both", None)  # would fail if it were asked
    monkeypatch.setattr(distillation_explorer, "SoftLabelsPlot", None)
    for _, temperature in view.temperature.options:
        view.temperature.value = temperature
        assert view.soft.response.temperature == temperature
    for position in range(1, view.position.max + 1):
        view.position.value = position
    assert view.message == ""


def test_the_dial_is_in_use_where_it_is_looked_at(view):
    assert view.beta.disabled
    view.divergence.value = "jensen_shannon"
    assert not view.beta.disabled


def test_the_furthest_position_is_found(view):
    apart = []
    for position in range(1, view.position.max + 1):
        view.position.value = position
        apart.append(view.soft.plain_loss)
    view.furthest.click()
    assert view.position.value == apart.index(max(apart)) + 1
    assert view.soft.plain_loss == max(apart)


def test_another_text_or_pair_starts_at_its_end(view, models):
    view.position.value = 1
    view.prompt.value = "Twice upon a time, long ago"
    tokens = models["base"][1].encode_prompt(view.prompt.value)
    assert view.position.value == view.position.max == len(tokens)
    view.student.value = "base"
    assert view.soft.loss == pytest.approx(0, abs=1e-9) and "base teaches base" in view.picture.alt
    view.teacher.value = "draft"
    assert "draft teaches base" in view.picture.alt and view.soft.loss > 0


def test_one_picture_is_drawn_for_a_new_text(view, monkeypatch):
    shown = []
    monkeypatch.setattr(view, "show", lambda *args: shown.append(args))
    view.prompt.value = "One"  # shorter: the slider moves too
    assert len(shown) == 1


@pytest.mark.parametrize(("prompt", "words"), [("", "The prompt is empty"), ("z" * 99, "shorten the prompt")])
def test_a_bad_text_is_explained_not_raised(view, prompt, words):
    view.prompt.value = prompt
    assert words in view.message and view.soft is None and view.furthest.disabled
    view.temperature.value = 2  # nothing to show, and still said
    assert words in view.message
    view.prompt.value = PROMPT
    assert view.message == "" and view.soft is not None and not view.furthest.disabled


def test_a_text_of_which_too_much_would_be_kept(view, monkeypatch):
    monkeypatch.setattr(distillation_explorer, "MOST_TOKENS", 3)
    view.prompt.value = "Twice upon a time"
    assert "at most 3 are looked at: shorten it" in view.message


def test_other_vocabularies_are_explained(models):
    other = Decoder(DecoderConfig(280, 16, 32, 1, 2, 1, 8, 64)).eval()
    view = DistillationExplorer(models | {"other": (other, models["base"][1])}, PROMPT)
    assert "teacher's vocabulary must be of 280 tokens as the student's, got 300" in view.message
    view.student.value = "draft"
    assert view.message == "" and view.soft is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "huge"}, "teacher must be one of base, draft, got 'huge'"),
        ({"student": "huge"}, "student must be one of base, draft, got 'huge'"),
        ({"response": Response(hard_weight=0.5)}, "hard_weight must be 0, got 0.5"),
    ],
)
def test_settings_that_are_none_are_refused(models, settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationExplorer(models, PROMPT, **settings)


def test_it_starts_as_it_is_told(models):
    start = {"position": 2, "response": Response("reverse_kl", 2.5), "squared": False, "log_scale": True}
    view = DistillationExplorer(models, PROMPT, **start)
    alike(view.soft, slow(models, PROMPT, 2, start["response"], squared=False))
    assert ("2.5", 2.5) in view.temperature.options and view.picture.axes[0].get_xscale() == "log"


def test_every_control_has_a_name(view):
    found = described(view)
    assert len(found) == 10 and all(widget.description for widget in found)


@pytest.mark.alone
@pytest.mark.parametrize("slider", ["temperature", "position", "beta"])
def test_a_slider_is_answered_within_100_ms(kernel_seconds, slider):
    inputs = "response=distillation.Response('jensen_shannon')"
    assert kernel_seconds(f"DistillationExplorer(['base', 'draft'], {inputs})", slider) < 0.080
