"""Trainings that end by steps or by the clock: their rates, their clock, and what ends them early."""

import math
import os
import signal
from unittest import mock

import pytest
import torch

from llmcourse.training import paced
from llmcourse.training.paced import CHECK_EVERY, LEAST_STEPS, Pace, random_devices, share_of_rate, train


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

    @pytest.mark.parametrize("large", [7, 8])
    def test_the_loss_is_the_mean_of_the_last_ones(self, large):
        """Of 25, among which the eighth of 32 is and the seventh is not."""
        _, loss, _ = self.run(Pace(7 + CHECK_EVERY), [1000.0] * large + [1.0] * 25)
        assert (abs(loss) > 1) == (large == 8)

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
