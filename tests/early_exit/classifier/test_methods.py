"""What each method trains, and that each one learns."""

import pytest
import torch
import torch.nn.functional as F

from llmcourse.early_exit.classifier.encoded import exit_logits
from llmcourse.early_exit.classifier.methods import DEEBERT, FULL, HALF_DEPTH, METHODS, PABEE, PAST_FUTURE
from llmcourse.early_exit.classifier.methods.half_depth import first_half
from llmcourse.early_exit.classifier.methods.method import exit_losses, last_exit_loss, weighted_by_depth
from llmcourse.training.classifier.fine_tune import Tuning, fine_tune, start
from tests.early_exit.classifier.tiny import LAYERS, tiny_data, tiny_encoder, tiny_rows

TUNING = Tuning(batch_size=32, lr=5e-3, hidden=0.0)


def test_losses_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [3.0, 0.0]]])
    labels = torch.tensor([0, 1])
    found = exit_losses(logits, labels)
    for place in range(2):
        torch.testing.assert_close(found[place], F.cross_entropy(logits[:, place], labels))
    torch.testing.assert_close(weighted_by_depth(found), (found[0] + 2 * found[1]) / 3)
    torch.testing.assert_close(weighted_by_depth(torch.tensor([3.0, 0.0, 1.0])), torch.tensor(1.0))


def test_the_last_exits_loss_is_of_what_the_last_exit_says():
    classifier, rows = FULL.build(tiny_encoder(), 2).eval(), tiny_rows(4)
    labels = torch.tensor([0, 1, 1, 0])
    expected = F.cross_entropy(classifier(rows)[:, -1], labels)
    torch.testing.assert_close(last_exit_loss(classifier, rows, labels), expected)


def test_half_the_layers_are_the_first_ones():
    encoder, rows = tiny_encoder(scale=5), tiny_rows(3)
    half = first_half(encoder)
    assert half.config.num_layers == LAYERS // 2
    x, context = encoder.start(rows)
    for index in range(LAYERS // 2):
        x = encoder.layer(index, x, context)
    torch.testing.assert_close(half(rows), encoder.norm(x))
    half.layers[0].mlp.up_proj.weight.data.zero_()
    assert encoder.layers[0].mlp.up_proj.weight.abs().sum() > 0  # a copy
    with pytest.raises(ValueError, match="num_layers must be even, got 3"):
        first_half(tiny_encoder(3))


def test_deebert_leaves_the_full_model_as_it_is():
    encoder, data = tiny_encoder(), tiny_data(64)
    full = start(FULL, encoder, 2, seed=0)
    full.poolers[0].dense.weight.data.normal_()
    full.eval()
    classifier = start(DEEBERT, encoder, 2, seed=1, previous=full)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    fine_tune(DEEBERT, classifier, data, 3, name="deebert", tuning=TUNING)
    changed = {n for n, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[n])}
    assert {n.rsplit(".", 1)[0].split(".dense")[0].split(".norm")[0] for n in changed} == {
        f"{kind}.{index}" for kind in ("poolers", "classifiers") for index in range(LAYERS - 1)
    }
    torch.testing.assert_close(exit_logits(classifier, data)[:, -1], exit_logits(full, data)[:, -1])


def test_deebert_needs_the_full_model():
    with pytest.raises(
        ValueError, match="previous must be the classifier of full, got None; train full first"
    ):
        start(DEEBERT, tiny_encoder(), 2, seed=0)


def test_training_leaves_the_pre_trained_encoder_alone():
    encoder = tiny_encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    classifier = start(PABEE, encoder, 2, seed=0)
    fine_tune(PABEE, classifier, tiny_data(64), 2, name="pabee", tuning=TUNING)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(classifier.encoder.embed_tokens.weight, encoder.embed_tokens.weight)
    assert not torch.equal(
        classifier.encoder.layers[0].mlp.up_proj.weight, before["layers.0.mlp.up_proj.weight"]
    )


def test_a_seed_is_a_training():
    weights = []
    for seed in (0, 0, 1):
        classifier = start(HALF_DEPTH, tiny_encoder(), 2, seed=seed)
        fine_tune(HALF_DEPTH, classifier, tiny_data(64), 3, name="half", tuning=TUNING, seed=seed)
        weights.append(classifier.classifiers[0].weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.fixture(scope="module")
def trained():
    encoder, data, found = tiny_encoder(2), tiny_data(800), {}
    for method in METHODS:
        classifier = start(method, encoder, 2, seed=0, previous=found.get(method.after))
        fine_tune(method, classifier, data, 60, name=method.name, tuning=TUNING)
        found[method.name] = classifier
    return found


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_learns(trained, method):
    """Whether a token occurs, on rows that were not trained on: chance is 50 %, and 300 rows know it to 3."""
    data = tiny_data(300, seed=1)
    logits = exit_logits(trained[method.name], data)
    right = (logits.argmax(-1) == data.labels[:, None]).double().mean(0)
    assert right[-1] > 0.8, right
    if method in (PABEE, PAST_FUTURE):  # whose lower layers were asked as well
        assert right[0] > 0.7, right
