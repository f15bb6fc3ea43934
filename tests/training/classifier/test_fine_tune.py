"""What a fine-tuning is shown, how long it is, and that it is the same every time."""

import torch

from llmcourse.early_exit.classifier.encoder import MASK, Encoder
from llmcourse.early_exit.classifier.methods import FULL
from llmcourse.training.classifier.fine_tune import Tuning, batches, fine_tune, start
from tests.early_exit.classifier.tiny import tiny_data, tiny_encoder


def test_fine_tuning_sees_every_text_once_an_epoch_and_hides_some_tokens():
    data = tiny_data(64, length=20)
    drawn = batches(data, Tuning(batch_size=16, hidden=0.25), torch.Generator().manual_seed(0))
    epoch = [next(drawn) for _ in range(4)]
    hidden = torch.cat([tokens for tokens, _ in epoch]) == MASK
    assert 0.15 < hidden.float().mean() < 0.35 and not hidden[:, 0].any()
    assert sum(int(labels.sum()) for _, labels in epoch) == 32
    plain = batches(data, Tuning(batch_size=16, hidden=0.0), torch.Generator().manual_seed(0))
    seen = {tuple(row.tolist()) for _ in range(4) for row in next(plain)[0]}
    assert seen == {tuple(row.tolist()) for row in data.tokens}


def tuned(steps: int, tuning: Tuning | None = None, seed: int = 0, encoder: Encoder | None = None):
    """A classifier, and how many steps it got."""
    classifier = start(FULL, encoder or tiny_encoder(), 2, 0)
    trained = fine_tune(FULL, classifier, tiny_data(40), steps, name="t", tuning=tuning, seed=seed)
    return classifier, trained.steps


def test_it_is_the_same_every_time_whatever_was_drawn_before_and_leaves_that_alone():
    encoder = tiny_encoder()
    torch.manual_seed(1)
    first, _ = tuned(3, encoder=encoder)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, _ = tuned(3, encoder=encoder)
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = tuned(3, seed=1, encoder=encoder)
    weights = [torch.cat([p.flatten() for p in one.parameters()]) for one in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not first.training  # its answers are drawn from nothing
    assert all(weight.grad is None for weight in first.parameters())


def test_there_are_at_most_so_many_epochs():
    """Of 40 texts, 16 a step, two and a half steps an epoch."""
    assert tuned(99, Tuning(batch_size=16, epochs=4))[1] == 10
    assert tuned(9, Tuning(batch_size=16, epochs=4))[1] == 9
    assert tuned(9, Tuning(batch_size=64, epochs=1))[1] == 1
