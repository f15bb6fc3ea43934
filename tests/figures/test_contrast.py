"""The contrastive figure, on the lecture's example."""

import math

import pytest
import torch

from llmcourse.figures.contrast import ContrastPlot, contrast, plot_contrast

# 李时珍是湖北人，他出生于__: the amateur knows 湖北 too, only the expert knows 明朝.
WORDS = ["湖北", "明朝", "蕲春", "北京", "唐朝"]
AMATEUR = torch.tensor([0.10, 0.001, 0.15, 0.399, 0.35]).log()
EXPERT = torch.tensor([0.15, 0.10, 0.13, 0.32, 0.30]).log()
EXPERT_STRONG = torch.tensor([0.50, 0.10, 0.20, 0.01, 0.19]).log()


def test_the_lectures_example():
    data = contrast(EXPERT_STRONG, AMATEUR, WORDS.__getitem__, alpha=0.1)
    assert data.label_of(data.expert_choice) == "湖北"
    assert data.label_of(data.contrastive_choice) == "明朝"
    assert data.labels == ("湖北", "蕲春", "唐朝", "明朝", "北京")
    assert data.plausible == (True, True, True, True, False)
    assert data.cut == pytest.approx(0.05)
    assert data.num_plausible == 4
    assert data.scores[3] == pytest.approx(math.log(0.10 / 0.001))
    assert data.expert[0] == pytest.approx(0.5) and data.amateur[0] == pytest.approx(0.1)
    assert data.summary == "expert alone: 湖北 → contrastive: 明朝 · 4 plausible tokens"


def test_both_choices_are_shown_however_few_the_rows():
    expert = torch.linspace(1, 0, 50)
    amateur = torch.zeros(50)
    amateur[40] = -9
    data = contrast(expert, amateur, str, rows=4)
    assert data.token_ids == (0, 1, 2, 40)
    assert data.contrastive_choice == 40


def test_amateur_temperature_flattens_the_amateur():
    data = contrast(EXPERT, AMATEUR, str, amateur_temperature=1e6)
    assert data.amateur == pytest.approx([0.2] * 5, abs=1e-4)
    assert data.contrastive_choice == data.expert_choice


def test_one_choice_for_both():
    assert contrast(EXPERT, EXPERT, WORDS.__getitem__, alpha=1.0).summary.startswith(
        "both choose 北京 · 1 pl"
    )


@pytest.mark.parametrize("ruled_out", [False, True])
def test_it_is_drawn(ruled_out):
    amateur = AMATEUR.clone()
    if ruled_out:
        amateur[1] = -math.inf  # an infinite score must still be drawn
    data = contrast(EXPERT_STRONG, amateur, WORDS.__getitem__)
    plot = ContrastPlot(len(WORDS))
    picture = plot.update(data, expert="base", amateur="draft")
    assert [bar.get_width() for bar in (*plot.expert, *plot.amateur)] == [*data.expert, *data.amateur]
    assert [bar.get_visible() for bar in plot.bars] == list(data.plausible)
    assert [text.get_text() for text in plot.names] == list(data.labels)
    assert "明朝: expert 10.0%" in picture.alt
    picture.png(1.0)


def test_a_redrawn_figure_is_the_same_as_a_new_one():
    plot = ContrastPlot(len(WORDS))
    for expert in (EXPERT_STRONG, EXPERT, EXPERT_STRONG):
        for alpha in (0.1, 0.9, 0.0):
            data = contrast(expert, AMATEUR, WORDS.__getitem__, alpha=alpha)
            names = {"expert": "base", "amateur": "draft"}
            redrawn = plot.update(data, f"alpha {alpha}", **names).png(1.0)
            assert redrawn == plot_contrast(data, f"alpha {alpha}", **names).png(1.0)


def test_another_number_of_tokens_needs_another_figure():
    data = contrast(EXPERT, AMATEUR, WORDS.__getitem__, rows=4)
    with pytest.raises(ValueError, match="data must be of 5 tokens, got 4; make another figure"):
        ContrastPlot(5).update(data, expert="base", amateur="draft")
