"""The map of outliers, driven by setting the values that a reader's mouse and keys would set."""

import math

import pytest

from llmcourse.figures.outlier_split import LayerInput, read_inputs, split
from llmcourse.figures.widgets import outlier_map
from llmcourse.figures.widgets.outlier_map import OutlierMap
from tests.figures.widgets.described import described

PROMPT = "Once upon a time"


@pytest.fixture
def view(models):
    return OutlierMap(models, PROMPT)


def test_it_reads_the_text_and_shows_the_first_layer(view, models):
    model, tokenizer = models["base"]
    given = read_inputs(model, tokenizer.encode_prompt(PROMPT))
    assert view.message == "" and view.layer.value == "layers.0.self_attn.q_proj"
    assert list(view.layer.options) == list(given)
    slow = split(given[view.layer.value], 6)
    assert view.split.columns.equal(slow.columns) and view.split.error == slow.error


def test_the_slider_uses_what_was_read(view, monkeypatch):
    monkeypatch.setattr(outlier_map, "read_text", None)  # would fail if it were asked
    monkeypatch.setattr(outlier_map, "split", None)
    counts, errors = [], []
    for _, threshold in view.threshold.options:
        view.threshold.value = threshold
        counts.append(view.split.count)
        errors.append(view.split.error)
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0
    assert errors[0] < errors[-1] and "no column in 16 bits" in view.picture.alt


def test_a_note_is_there_while_a_text_is_read(view, monkeypatch):
    told, read = [], outlier_map.read_text
    monkeypatch.setattr(outlier_map, "read_text", lambda *a: told.append(view._message.value) or read(*a))
    view.prompt.value = "Once upon"
    assert len(told) == 1 and "Computing" in told[0] and view._message.value == ""


def test_a_threshold_of_ones_own(models):
    view = OutlierMap(models, PROMPT, threshold=1.3)
    assert ("1.3", 1.3) in view.threshold.options
    x = next(iter(view.texts.values()))[1][view.layer.value]
    assert view.split.count == int((x.maxima >= 1.3).sum())


def test_an_outlier_that_was_put_there_is_found(models, monkeypatch):
    def with_outlier(model, tokens):
        found = read_inputs(model, tokens)
        for given in found.values():
            given.x[2, 7] = 80.0
        return found

    monkeypatch.setattr(outlier_map, "read_inputs", with_outlier)
    view = OutlierMap(models, PROMPT)
    assert view.split.columns.nonzero().flatten().tolist() == [7]
    assert "1 column" in view.picture.alt and "outliers from 6 on in 16 bits" in view._text.value
    before = view.split.error
    view.threshold.value = math.inf
    assert view.split.error > 5 * before


def test_another_model_has_other_layers(view):
    view.layer.value = "layers.1.mlp.down_proj"
    view.model.value = "draft"  # has one layer alone
    assert view.layer.value == "layers.0.self_attn.q_proj" and "draft" in view.picture.alt
    view.layer.value = "layers.0.mlp.down_proj"
    view.model.value = "base"
    assert view.layer.value == "layers.0.mlp.down_proj" and "of base" in view.picture.alt


@pytest.mark.parametrize(("prompt", "words"), [("", "The prompt is empty"), ("z" * 99, "shorten the prompt")])
def test_a_bad_text_is_explained_not_raised(view, prompt, words):
    view.prompt.value = prompt
    assert words in view.message and view.split is None
    view.prompt.value = PROMPT
    assert view.message == "" and view.split is not None


def test_a_text_with_more_rows_than_can_be_seen(view, monkeypatch):
    monkeypatch.setattr(outlier_map, "MOST_TOKENS", 3)
    view.prompt.value = "Twice upon a time"
    assert "takes at most 3: shorten it" in view.message


def test_activations_that_are_not_finite_are_explained(models, monkeypatch):
    broken = {"layers.0.self_attn.q_proj": LayerInput(*(2 * [math.nan * read_of(models).x]))}
    monkeypatch.setattr(outlier_map, "read_inputs", lambda model, tokens: broken)
    view = OutlierMap(models, PROMPT)
    assert "must be finite" in view.message and view.split is None


def read_of(models) -> LayerInput:
    model, tokenizer = models["base"]
    return read_inputs(model, tokenizer.encode_prompt(PROMPT))["layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0}, "threshold must be above 0, got 0; use ∞ for no decomposition"),
        ({"model": "huge"}, "model must be one of base, draft, got 'huge'"),
        ({"layer": "layers.9"}, "layer must be one of layers.0.self_attn.q_proj, .* got 'layers.9'"),
    ],
)
def test_settings_that_are_none_are_refused(models, settings, message):
    with pytest.raises(ValueError, match=message):
        OutlierMap(models, PROMPT, **settings)


def test_every_control_has_a_name(view):
    found = described(view)
    assert len(found) == 5 and all(widget.description for widget in found)


@pytest.mark.alone
def test_a_slider_is_answered_within_100_ms(kernel_seconds):
    assert kernel_seconds("OutlierMap(['base'])", "threshold") < 0.080
