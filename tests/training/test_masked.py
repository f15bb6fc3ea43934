"""What is hidden and what is asked for; trainings that end by steps or by the clock."""

import math
import os
import signal
from unittest import mock

import pytest
import torch

from llmcourse.early_exit.classifier.encoder import MASK, NUM_SPECIAL, START
from llmcourse.training import paced
from llmcourse.training.exit_setting import Setting
from llmcourse.training.fine_tune import Tuning, batches
from llmcourse.training.masked import hide, masked_loss, pair_loss
from llmcourse.training.next_passage import follows_loss
from llmcourse.training.paced import LEAST_STEPS, Pace, random_devices, share_of_rate, train
from tests.early_exit.classifier.tiny import SIZE, VOCAB, tiny_data, tiny_encoder


@pytest.fixture
def rows():
    return torch.randint(NUM_SPECIAL, 2000, (500, 40), generator=torch.Generator().manual_seed(0))


def test_what_is_hidden(rows):
    """Of 3,000 places 80 % are masked and 10 % stay: deviations 22 and 16, five of them allowed."""
    hidden, places = hide(rows, 2000, torch.Generator().manual_seed(1))
    assert places.shape == (500, 6)  # 15 % of 40
    assert all(len(set(row.tolist())) == 6 for row in places)
    asked = torch.zeros_like(rows, dtype=torch.bool).scatter(1, places, True)
    assert torch.equal(hidden[~asked], rows[~asked])
    masked, same = (hidden == MASK)[asked].sum(), (hidden == rows)[asked].sum()
    assert abs(masked - 2400) < 110 and abs(same - 300) < 85
    others = hidden[asked & (hidden != MASK) & (hidden != rows)]
    assert others.min() >= NUM_SPECIAL and others.max() < 2000


def test_special_tokens_are_never_hidden_nor_asked_for(rows):
    """In rows where half of the tokens are special, and in some where all but two are."""
    generator = torch.Generator().manual_seed(2)
    special = torch.rand(rows.shape, generator=generator) < 0.5
    special[:20, 2:] = True
    rows = torch.where(special, torch.randint(NUM_SPECIAL, rows.shape, generator=generator), rows)
    hidden, places = hide(rows, 2000, generator)
    assert torch.equal(hidden[special], rows[special])
    asked = torch.zeros_like(special).scatter(1, places, True)
    assert (asked & ~special).sum(1)[20:].eq(6).all() and (asked | special)[:20, :2].all()
    assert (hidden != rows)[:20, :2].any()


def test_a_special_token_adds_nothing_to_the_loss():
    encoder = tiny_encoder()
    rows = torch.tensor([[START, 9, 10, 11], [START, START, 12, 13]])
    states = encoder(rows)
    with_special = masked_loss(encoder, states, torch.tensor([[1, 0], [2, 1]]), rows)
    torch.testing.assert_close(with_special, masked_loss(encoder, states, torch.tensor([[1], [2]]), rows))


def test_both_objectives_count_the_same():
    encoder, head = tiny_encoder(), torch.nn.Linear(SIZE, 2)
    rows = torch.randint(NUM_SPECIAL, VOCAB, (3, 8), generator=torch.Generator().manual_seed(0))
    hidden, places = hide(rows, VOCAB, torch.Generator().manual_seed(1))
    follows = torch.tensor([True, False, True])
    states = encoder(hidden)
    expected = masked_loss(encoder, states, places, rows) + follows_loss(head, states, follows)
    torch.testing.assert_close(pair_loss(encoder, head, hidden, places, rows, follows), expected)


def test_the_loss_asks_nothing_of_the_device():
    """A device that holds no numbers would refuse."""
    encoder, head = tiny_encoder().to("meta"), torch.nn.Linear(SIZE, 2, device="meta")
    rows = torch.zeros(3, 8, dtype=torch.int64, device="meta")
    follows = torch.zeros(3, dtype=torch.bool, device="meta")
    loss = pair_loss(encoder, head, rows, rows[:, :2], rows, follows)
    loss.backward()
    assert loss.is_meta and encoder.special.weight.grad is not None


def test_other_places_at_every_step(rows):
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(hide(rows, 2000, generator)[1], hide(rows, 2000, generator)[1])


def test_only_what_is_asked_for_counts():
    encoder = tiny_encoder()
    rows = torch.randint(NUM_SPECIAL, VOCAB, (3, 8), generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[1, 4], [2, 3], [0, 7]])
    logits = encoder.token_logits(encoder(rows)).log_softmax(-1)
    expected = -torch.stack([logits[b, p, rows[b, p]] for b in range(3) for p in places[b]]).mean()
    torch.testing.assert_close(masked_loss(encoder, encoder(rows), places, rows), expected)


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


class TestPace:
    def run(self, pace, losses=None, slow_start=None):
        weight = torch.nn.Parameter(torch.ones(2))
        self.rates, self.passes = [], 0
        optimizer = torch.optim.SGD([weight], lr=0.5)
        given = iter(losses or [])

        def loss_of(x):
            self.passes += 1
            if self.passes <= 2:  # before the clock
                if slow_start:
                    slow_start()
                return weight.sum() * x
            self.rates.append(optimizer.param_groups[0]["lr"])
            return weight.sum() * x * next(given, 1.0)

        return train(
            "t", loss_of, iter(lambda: (torch.tensor(0.1),), None), [optimizer], pace, torch.device("cpu")
        )

    def test_it_ends_by_steps_with_a_rate_near_zero(self):
        steps, _, _ = self.run(Pace(40))
        assert steps == 40 and len(self.rates) == 40
        assert max(self.rates) <= 0.5 and self.rates[0] < 0.05 and self.rates[-1] < 0.02
        assert self.rates.index(max(self.rates)) == 2

    def test_it_ends_by_the_clock(self):
        times = iter(range(1000))
        with mock.patch.object(paced.time, "monotonic", lambda: next(times)):
            steps, _, seconds = self.run(Pace(1000, 40.0))
        assert steps == 40 and self.rates[-1] < 0.1 and seconds == 41

    def test_compiling_is_not_on_the_clock(self):
        clock = [0.0]

        def compiling():
            clock[0] += 1000

        def monotonic():
            clock[0] += 1
            return clock[0]

        with mock.patch.object(paced.time, "monotonic", monotonic):
            steps, _, _ = self.run(Pace(1000, 40.0), slow_start=compiling)
        assert steps == 40 and clock[0] > 2000

    def test_a_training_that_ends_before_the_rate_has_risen(self):
        times = iter(range(1000))
        allowed = f"steps of t in 10 s must be at least {LEAST_STEPS}, got 10; give more time"
        with (
            mock.patch.object(paced.time, "monotonic", lambda: next(times)),
            pytest.raises(ValueError, match=allowed),
        ):
            self.run(Pace(1000, 10.0))

    def test_the_pass_before_the_clock_changes_nothing(self):
        """The gradients are gone, and the same numbers are drawn after it."""
        torch.manual_seed(3)
        before = torch.get_rng_state()
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        loss_of = lambda x: torch.nn.functional.dropout(weight * x, 0.5).sum()  # noqa: E731
        paced.warm_up(loss_of, (torch.ones(4),), [optimizer], torch.device("cpu"))
        assert weight.grad is None and torch.equal(torch.get_rng_state(), before)
        assert torch.equal(weight, torch.ones(4))

    def test_the_random_state_that_is_kept(self):
        assert random_devices(torch.device("cuda", 0)) == [torch.device("cuda", 0)]
        assert random_devices(torch.device("cpu")) == []

    def test_rates_stay_in_range(self):
        shares = [share_of_rate(progress / 100) for progress in range(100)]
        assert all(0 < share <= 1.001 for share in shares) and share_of_rate(1.0) == 0

    def test_a_loss_that_is_no_number_ends_it(self):
        with pytest.raises(FloatingPointError, match="t, step 25: the loss is nan; lower the learning rate"):
            self.run(Pace(100), [1.0, math.nan])

    def test_an_interrupt_waits_for_the_step(self):
        before = signal.getsignal(signal.SIGINT)

        def losses():
            yield 1.0
            os.kill(os.getpid(), signal.SIGINT)
            yield 1.0

        with pytest.raises(KeyboardInterrupt):
            self.run(Pace(100), losses())
        assert len(self.rates) == 2 and signal.getsignal(signal.SIGINT) is before

    @pytest.mark.parametrize(("steps", "seconds"), [(0, 1), (3, 0), (3, -1), (3, math.nan)])
    def test_what_is_no_pace(self, steps, seconds):
        with pytest.raises(ValueError, match=r"(steps|seconds) must be"):
            Pace(steps, seconds)


@pytest.mark.parametrize(
    "change",
    [{"num_layers": 0}, {"length": 7}, {"share": 1.0}, {"share": 0.0}, {"steps": 0}, {"tuning_steps": 0}],
)
def test_what_is_no_setting(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        Setting(**change)
