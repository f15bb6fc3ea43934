"""The expert and amateur viewer agrees with contrastive decoding, and explains what it cannot do."""

import pytest
import torch

from llmcourse.decoding import generate
from llmcourse.decoding.contrastive import ContrastiveLogits
from llmcourse.figures.widgets.contrast_viewer import ContrastViewer
from llmcourse.model import Decoder, DecoderConfig

PROMPT = "Once upon a time"


@pytest.fixture
def viewer(models):
    return ContrastViewer(models, PROMPT)


def test_it_starts_with_the_first_and_the_last_model(viewer):
    assert (viewer.expert.value, viewer.amateur.value) == ("base", "draft")
    assert viewer.picture.alt.startswith("base minus draft, after “Once upon a time”")
    assert viewer.text == PROMPT


def test_stepping_writes_what_contrastive_decoding_writes(viewer, models):
    (base, tokenizer), (draft, _) = models["base"], models["draft"]
    source = ContrastiveLogits(base, draft, alpha=0.3)
    (expected,) = generate(source, [tokenizer.encode(PROMPT)], max_new_tokens=8)
    viewer.alpha.value = 0.3
    for _ in range(8):
        viewer.step.click()
    assert [c.token for c in viewer.chosen] == expected.tokens


def test_the_expert_alone_is_greedy_search(viewer, models):
    base, tokenizer = models["base"]
    (expected,) = generate(base, [tokenizer.encode(PROMPT)], max_new_tokens=6)
    for _ in range(6):
        viewer.step_expert.click()
    assert [c.token for c in viewer.chosen] == expected.tokens
    viewer.undo.click()
    assert [c.token for c in viewer.chosen] == expected.tokens[:-1]
    viewer.restart.click()
    assert viewer.text == PROMPT and viewer.undo.disabled


def test_alpha_decides_what_is_plausible(viewer):
    counts = []
    for alpha in (0.0, 0.5, 1.0):
        viewer.alpha.value = alpha
        counts.append(viewer.state.contrast.num_plausible)
    assert counts[0] == 300 > counts[1] >= counts[2] == 1


def test_the_amateurs_temperature_acts(viewer):
    before = viewer.state.contrast.scores
    viewer.amateur_temperature.value = 0.5
    assert viewer.state.contrast.scores != before


def test_one_model_against_itself_scores_nothing(viewer):
    viewer.amateur.value = "base"
    assert max(abs(score) for score in viewer.state.contrast.scores if score > -torch.inf) < 1e-6


def test_models_of_different_vocabularies_are_explained_not_raised(models):
    _, tokenizer = models["base"]
    torch.manual_seed(0)
    other = Decoder(DecoderConfig(310, 16, 32, 1, 2, 1, 8, 64)).eval().requires_grad_(False)
    viewer = ContrastViewer({"base": models["base"], "other": (other, tokenizer)}, PROMPT)
    assert "must share one vocabulary, got 300 and 310 tokens" in viewer.message
    assert viewer.step.disabled
    viewer.step.click()
    viewer.amateur.value = "base"
    assert viewer.message == "" and not viewer.step.disabled


@pytest.mark.parametrize(("prompt", "words"), [("", "The prompt is empty"), ("z" * 200, "reads at most 64")])
def test_a_bad_prompt_is_explained_not_raised(viewer, prompt, words):
    viewer.prompt.value = prompt
    assert words in viewer.message
    viewer.step.click()
    viewer.prompt.value = PROMPT
    assert viewer.message == ""


def test_the_end_of_a_text_stops_it(viewer):
    viewer.prompt.value = "z" * 60
    for _ in range(5):
        viewer.step_expert.click()
    assert viewer.state.ended and viewer.step.disabled and not viewer.undo.disabled
