"""The map of layers, driven by setting the values that a reader's mouse and keys would set."""

import pytest
import torch

from llmcourse.figures.layer_links import COMPARED, STRATEGIES, layer_likeness, layer_links
from llmcourse.figures.widgets import layer_map_view
from llmcourse.figures.widgets.layer_map_view import LayerMapView
from llmcourse.model import Decoder, DecoderConfig
from tests.figures.widgets.described import described

TEXTS = {"prose": "Once upon a time there was a king", "code": "def main():\n    return 0"}


@pytest.fixture
def view(models):
    return LayerMapView(models, texts=TEXTS, teacher="base", student="base")


def test_it_shows_the_pairs_and_how_alike_they_are(models):
    view = LayerMapView(models, texts=TEXTS)
    (teacher, tokenizer), (student, _) = models["base"], models["draft"]
    assert view.message == "" and view.links == layer_links(student.config, teacher.config)
    tokens = tokenizer.encode_prompt(TEXTS["prose"])
    slow = layer_likeness(student, teacher, torch.tensor([tokens]))
    assert view.picture.alt.startswith(
        "Which layer of draft learns from which of base: hidden states, uniform"
    )
    mine, its = view.links.pairs[0]
    assert f"{mine} from {its} (CKA {slow[mine - 1, its - 1]:.2f})" in view.picture.alt


def test_every_control_changes_what_is_shown(view, models):
    config = models["base"][0].config
    for strategy in STRATEGIES:
        view.strategy.value = strategy
        assert view.links.pairs == layer_links(config, config, strategy).pairs
    for compared, words in COMPARED.items():
        view.compared.value = compared
        assert view.links.compared == compared and words in view.picture.alt
    view.strategy.value, view.compared.value = "uniform", "hidden"
    assert "(CKA 1.00)" in view.picture.alt
    view.student.value = "draft"
    before = view.picture.alt
    view.text.value = "code"
    assert view.picture.alt != before


def test_a_map_that_cannot_be_is_explained_not_raised(view):
    view.student.value = "draft"  # has one layer alone
    view.strategy.value = "tail"
    assert "student_layers must be an integer of at least 2, got 1" in view.message and view.links is None
    view.strategy.value = "last"
    assert view.message == "" and view.links is not None


def test_a_pair_is_read_once(view, monkeypatch):
    monkeypatch.setattr(layer_map_view, "read_likeness", None)  # would fail if it were asked
    for strategy in STRATEGIES:
        view.strategy.value = strategy
    assert view.message == ""


def test_other_vocabularies_and_short_texts_are_explained(models):
    other = Decoder(DecoderConfig(280, 16, 32, 1, 2, 1, 8, 64)).eval()
    view = LayerMapView(models | {"other": (other, models["base"][1])}, texts=TEXTS)
    assert "teacher's vocabulary must be of 280 tokens as the student's, got 300" in view.message
    assert "4 or more, first ones aside" in LayerMapView(models, texts={"short": "a"}).message


def test_a_long_text_is_cut_to_the_context(models, monkeypatch):
    read = []

    def likeness(student, teacher, token_ids):
        read.append(token_ids.shape)
        return layer_likeness(student, teacher, token_ids)

    monkeypatch.setattr(layer_map_view, "layer_likeness", likeness)
    assert LayerMapView(models, texts={"long": "word " * 500}).message == ""
    assert read == [(1, 64)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "huge"}, "teacher must be one of base, draft, got 'huge'"),
        ({"student": "huge"}, "student must be one of base, draft, got 'huge'"),
        ({"strategy": "luck"}, "strategy must be one of uniform, skip, tail, last, got 'luck'"),
        ({"compared": "luck"}, "compared must be one of hidden, attention, values, got 'luck'"),
        ({"texts": {}}, "texts must hold at least 1 text, got none"),
    ],
)
def test_settings_that_are_none_are_refused(models, settings, message):
    with pytest.raises(ValueError, match=message):
        LayerMapView(models, **settings)


def test_every_control_has_a_name(view):
    found = described(view)
    assert len(found) == 5 and all(widget.description for widget in found)


@pytest.mark.alone
def test_a_choice_is_answered_within_100_ms(kernel_seconds):
    assert kernel_seconds("LayerMapView(['base', 'draft'])", "strategy") < 0.080
