"""Models behind the views: each text is run once, and exactly as without a cache."""

import pytest
import torch

from llmcourse import pretrained
from llmcourse.figures.widgets.models import ModelShelf, NextLogits


def test_logits_are_those_of_the_whole_text(models):
    model, _ = models["base"]
    logits = NextLogits(model)
    # grows, shrinks, turns off in the middle, starts anew
    for text in ([5, 6, 7], [5, 6, 7, 8], [5, 6], [5, 9, 7, 8, 8], [11], list(range(64))):
        expected = model(torch.tensor([text]))[0, -1]
        torch.testing.assert_close(logits(text), expected, atol=1e-5, rtol=1e-5)


def test_each_text_is_run_once(models):
    logits = NextLogits(models["base"][0], room=3)
    for text in ([5], [5, 6], [5], [5, 6]):
        logits(text)
    assert logits.runs == 2
    for text in ([7], [8], [5]):  # [5] was used longest ago, and is forgotten
        logits(text)
    assert logits.runs == 5


def test_names_are_loaded_when_asked_for(tiny_checkpoint, monkeypatch):
    loaded = []
    load = pretrained.load
    monkeypatch.setattr(pretrained, "load", lambda name: loaded.append(name) or load(name))
    shelf = ModelShelf([str(tiny_checkpoint)])
    assert (shelf.names, loaded) == ([str(tiny_checkpoint)], [])
    assert shelf.get(str(tiny_checkpoint)) is shelf.get(str(tiny_checkpoint))
    assert loaded == [str(tiny_checkpoint)]


def test_a_shelf_needs_a_model():
    with pytest.raises(ValueError, match="models must name at least 1 model, got none; give"):
        ModelShelf({})


def test_prompts_that_cannot_be_read_are_refused_in_words(models):
    ready = ModelShelf(models).get("base")
    with pytest.raises(ValueError, match="The prompt is empty: write something"):
        ready.read_prompt("")
    with pytest.raises(ValueError, match=r"has 200 tokens, and base reads at most 64.*: shorten the prompt"):
        ready.read_prompt("z" * 200)
