"""Links between layers, and how alike layers are: CKA against its definition, and the figure's marks."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from llmcourse.distillation import FeatureLoss, FeatureWeights, LayerMap, read_features
from llmcourse.figures.layer_links import STRATEGIES, layer_likeness, layer_links, linear_cka
from llmcourse.figures.layer_links_plot import LayerLinksPlot, mean_likeness, plot_layer_links
from llmcourse.model import Decoder, DecoderConfig

STUDENT = DecoderConfig(50, 16, 32, 2, 2, 1, 8, 64)
TEACHER = DecoderConfig(50, 24, 48, 5, 4, 2, 8, 64)


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_hsic(x, y):
    """The mean over all ordered quadruples of different tokens (Song et al. 2012, equation 4)."""
    k, l = x.double() @ x.double().mT, y.double() @ y.double().mT  # noqa: E741
    every = list(permutations(range(len(x)), 4))
    return sum(k[i, j] * (l[i, j] + l[a, b] - 2 * l[i, a]) for i, j, a, b in every).item() / len(every)


def test_cka_is_its_definition():
    x, y = some(6, 3), some(6, 4, seed=1) + 5
    y[:, 0] += x[:, 0]
    slow = slow_hsic(x, y) / (slow_hsic(x, x) * slow_hsic(y, y)) ** 0.5
    assert linear_cka(x, y) == pytest.approx(slow, rel=1e-6)


def test_cka_knows_no_basis_and_no_scale():
    x = some(40, 8)
    rotation = torch.linalg.qr(some(8, 8, seed=1)).Q
    assert linear_cka(x, 7 * x @ rotation + 3) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, x.double() + 1e7) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, torch.ones(40, 5)) == 0


def test_cka_of_what_has_nothing_in_common_is_about_0_though_tokens_are_few():
    """20 draws of mean 0: off by more than 0.05 about once in 10¹⁰; the biased estimate is 0.8 here."""
    draws = [linear_cka(some(30, 64, seed=n), some(30, 96, seed=100 + n)) for n in range(20)]
    assert abs(sum(draws) / 20) < 0.05
    x, y = (each - each.mean(0) for each in (some(30, 64), some(30, 96, seed=1)))
    biased = (y.mT @ x).norm() ** 2 / ((x.mT @ x).norm() * (y.mT @ y).norm())
    assert biased > 0.5


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return Decoder(STUDENT).eval(), Decoder(TEACHER).eval()


def test_every_layer_meets_every_layer(models):
    student, teacher = models
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    found = layer_likeness(student, teacher, tokens)
    assert found.shape == (2, 5)
    (_, mine), (_, its) = (read_features(m, tokens, [2]) for m in models)
    states = [features[2].hidden[:, 1:].flatten(0, 1) for features in (mine, its)]
    assert found[1, 1].item() == pytest.approx(linear_cka(*states), abs=1e-6)
    assert layer_likeness(teacher, teacher, tokens).diagonal().tolist() == pytest.approx([1] * 5)


def test_likeness_of_too_little_is_refused(models):
    with pytest.raises(ValueError, match="token_ids must be 4 or more, first ones aside, got 3"):
        layer_likeness(*models, torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="x must be of 4 tokens or more, got 3"):
        linear_cka(some(3, 2), some(3, 2))
    other = Decoder(replace(STUDENT, vocab_size=40))
    with pytest.raises(ValueError, match="teacher's vocabulary must be of 40 tokens, got 50"):
        layer_likeness(other, models[1], torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_links_are_those_of_training(strategy):
    links = layer_links(STUDENT, TEACHER, strategy)
    layer_map = getattr(LayerMap, strategy)(2, 5)
    assert links.pairs == layer_map.pairs
    loss = FeatureLoss(STUDENT, TEACHER, layer_map, FeatureWeights())
    assert links.needs_projection
    assert links.projection_parameters == sum(p.numel() for p in loss.parameters())
    assert f"Φ 16 → 24 for each pair, {16 * 24 * len(links.pairs):,} parameters" in links.takes


def test_what_is_compared_says_whether_a_projection_is_needed():
    same = replace(STUDENT, hidden_size=24)
    links = layer_links(same, TEACHER)
    assert (
        not links.needs_projection and links.projection_parameters == 0 and links.takes == "one width: no Φ"
    )
    maps = layer_links(STUDENT, TEACHER, compared="attention")
    assert maps.takes == "not possible: 2 heads and 4; compare value relations"
    with pytest.raises(ValueError, match="student's heads"):
        FeatureLoss(STUDENT, TEACHER, maps.layer_map, FeatureWeights(hidden=0, attention=1))
    assert layer_links(same, replace(TEACHER, num_heads=2), compared="attention").reason == ""
    values = layer_links(STUDENT, TEACHER, compared="values")
    assert values.takes == "no Φ; values of either side cut into 8 heads" and values.relation_heads == 8
    weights = FeatureWeights(hidden=0, values=1, relation_heads=values.relation_heads)
    FeatureLoss(STUDENT, TEACHER, values.layer_map, weights)  # is accepted
    assert layer_links(STUDENT, replace(TEACHER, num_kv_heads=1), compared="values").relation_heads == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "random"}, "strategy must be one of uniform, skip, tail, last, got 'random'"),
        ({"compared": "logits"}, "compared must be one of hidden, attention, values, got 'logits'"),
    ],
)
def test_other_maps_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        layer_links(STUDENT, TEACHER, **settings)
    with pytest.raises(ValueError, match="student_layers must be at most 2, got 5"):
        layer_links(TEACHER, STUDENT, "tail")


def test_frames_and_lines_are_the_pairs():
    likeness = torch.arange(10.0).reshape(2, 5) / 10
    picture = plot_layer_links(STUDENT, TEACHER, likeness, names=("draft", "base"))
    ladder, cells = picture.axes
    frames = [path.get_extents().bounds for path in cells.collections[-1].get_paths()]
    assert frames == [(2.5, 0.5, 1, 1), (4.5, 1.5, 1, 1)]  # 1 from 3, 2 from 5
    (one, two) = ladder.collections[0].get_segments()
    assert one[0][1] == 0.25 and one[1][1] == 0.5 and two[0][1] == 0.75 and two[1][1] == pytest.approx(0.9)
    assert cells.images[0].get_array().tolist() == likeness.double().tolist()
    assert "1 from 3 (CKA 0.20), 2 from 5 (CKA 0.90)" in picture.alt and "CKA 0.55 on average" in picture.alt
    assert mean_likeness(layer_links(STUDENT, TEACHER), likeness) == pytest.approx(0.55)
    words = [text.get_text() for text in ladder.texts]
    assert "width 16" in words and "width 24" in words
    picture.png(1.0)


def test_what_cannot_be_compared_has_no_lines():
    plot = LayerLinksPlot(STUDENT, TEACHER)
    picture = plot.update(layer_links(STUDENT, TEACHER))
    assert len(picture.axes[0].collections[0].get_segments()) == 2 and "CKA" not in picture.alt
    picture = plot.update(layer_links(STUDENT, TEACHER, compared="attention"))
    assert picture.axes[0].collections[0].get_segments() == [] and "not possible" in picture.alt
    picture.png(1.0)


def test_likeness_is_said_to_be_of_hidden_states_and_of_no_pairs_that_cannot_learn():
    plot = LayerLinksPlot(STUDENT, TEACHER, torch.full((2, 5), 0.5))
    values = plot.update(layer_links(STUDENT, TEACHER, compared="values"))
    assert "CKA of hidden states 0.50 on average" in values.alt
    assert "on average" not in plot.update(layer_links(STUDENT, TEACHER, compared="attention")).alt


def test_deep_models_can_be_drawn():
    deep = replace(STUDENT, num_layers=28), replace(TEACHER, num_layers=36)
    plot_layer_links(*deep, torch.zeros(28, 36)).png(1.0)
    with pytest.raises(ValueError, match="layers must be at most 64, got 65"):
        LayerLinksPlot(STUDENT, replace(TEACHER, num_layers=65))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"likeness must be \(2, 5\), layers of both, got \(5, 2\)"):
        LayerLinksPlot(STUDENT, TEACHER, torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"links must be of \(2, 5\) layers"):
        LayerLinksPlot(STUDENT, TEACHER).update(layer_links(STUDENT, STUDENT))
