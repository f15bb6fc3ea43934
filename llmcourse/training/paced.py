"""Trainings that end by their steps or by the clock, whichever comes first, the rates falling to zero.

The clock starts after passes that are thrown away, for the first ones may compile. Where a checkpoint is
kept, a run that was interrupted goes on as if it had never stopped, and the clock with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.timing import synchronize
from llmcourse.training.checkpoint import Checkpoint
from llmcourse.training.interrupts import Interrupts
from llmcourse.training.step_graph import recorded_update

CHECK_EVERY = 25  # steps: looking at the loss makes the host wait, and so keeps it close to the device
WARM_UP = 0.05  # of a training
MAX_NORM = 1.0
LEAST_STEPS = round(1 / WARM_UP)  # that the clock may leave: fewer end before the rate has risen


@dataclass(frozen=True)
class Pace:
    """How long a training lasts.

    Attributes:
        steps: at most so many; a run that ends by them is the same every time.
        seconds: at most so long; inf for no limit.

    Raises:
        ValueError: a number out of its range.
    """

    steps: int
    seconds: int | float = math.inf

    def __post_init__(self):
        require_integer(1, "steps", self.steps, "train for one step or more")
        require_number(lambda s: s > 0, "seconds", "above 0", self.seconds, "use inf for no limit")

    def progress(self, step: int, elapsed_s: int | float) -> float:
        """How much is done: in [0, 1), or at least 1 when it is time to stop."""
        return max(step / self.steps, elapsed_s / self.seconds)


class Trained(NamedTuple):
    """What a training came to.

    Attributes:
        steps: that were made.
        loss: the mean of the last ones; NaN where a run that goes on had ended already.
        seconds: without the passes before the clock.
    """

    steps: int
    loss: float
    seconds: float


def share_of_rate(progress: float) -> float:
    """Linear up to the peak, then linear to zero."""
    return min((progress + 1e-3) / WARM_UP, (1 - progress) / (1 - WARM_UP))


def train(
    name: str,
    loss_of: Callable[..., Tensor],
    batches: Iterable[Sequence[Any]],
    optimizers: Sequence[torch.optim.Optimizer],
    pace: Pace,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    *,
    turns: int = 1,
    read_without_gradients: bool = True,
    recorded: bool = False,
) -> Trained:
    """Steps over batches until the pace says so.

    Args:
        loss_of: of what a batch holds.
        batches: endless; the same ones at every start, of which those that were seen are passed over.
        optimizers: with the peak rates set.
        checkpoint: where to go on; None starts anew, and keeps nothing.
        turns: so many batches in a row are compiled apart, and those behind them as they were.
        read_without_gradients: what is compiled is read so before long, too, which is compiled apart.
        recorded: replay one step as a CUDA graph (`step_graph`); `loss_of` is not called again.

    Raises:
        ValueError: the clock left fewer than `LEAST_STEPS` steps; a checkpoint is damaged, or of another run.
        FloatingPointError: the loss, or a weight that would be kept, is no longer finite.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was completed, and is in the checkpoint.
    """
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, before_s = checkpoint.load(optimizers) if checkpoint else (0, 0.0)
    if pace.progress(step, before_s) >= 1:
        _require_enough(name, step, pace)  # starting again makes a run that was too short no longer
        return Trained(step, math.nan, before_s)
    batches = islice(batches, step, None)
    first = list(islice(batches, turns))
    for batch in first:
        warm_up(loss_of, batch, optimizers, device, read_without_gradients)
    update = lambda batch: _update(loss_of, batch, optimizers, device)  # noqa: E731
    if recorded:
        update = recorded_update(update, first[0], optimizers, device)
    run = _Run(name, update, optimizers, peaks, pace, checkpoint)
    trained = run.to_the_end(chain(first, batches), step, before_s)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return trained


@dataclass
class _Run:
    """What is compiled and ready to go: what every step needs, and the loop over steps."""

    name: str
    update: Callable[[Sequence[Any]], Tensor]
    optimizers: Sequence[torch.optim.Optimizer]
    peaks: list[list[float]]
    pace: Pace
    checkpoint: Checkpoint | None

    def to_the_end(self, batches: Iterable[Sequence[Any]], step: int, before_s: float) -> Trained:
        """From that step and so many seconds on; the clock starts here."""
        started, recent = time.monotonic() - before_s, []
        done = self.pace.progress(step, before_s)
        bar = tqdm(total=self.pace.steps, initial=step, desc=self.name, mininterval=5, leave=False)
        with bar, Interrupts() as interrupts:
            for batch in batches:
                _set_rates(self.optimizers, self.peaks, share_of_rate(done))
                recent, step = [*recent[1 - CHECK_EVERY :], self.update(batch)], step + 1
                bar.update()
                seconds, interrupted = time.monotonic() - started, interrupts.pending
                done = self.pace.progress(step, seconds)
                stop = done >= 1 or interrupted
                if stop or step % CHECK_EVERY == 0:
                    bar.set_postfix(loss=f"{_mean(self.name, step, recent):.3f}")
                if self.checkpoint:
                    self.checkpoint.save_when_due(self.optimizers, step, seconds, at_once=stop)
                if interrupted:
                    raise KeyboardInterrupt
                if stop:
                    break
        _require_enough(self.name, step, self.pace)
        loss = _mean(self.name, step, recent)  # which is waited for
        return Trained(step, loss, time.monotonic() - started)


def _require_enough(name: str, step: int, pace: Pace) -> None:
    least = min(LEAST_STEPS, pace.steps)
    what, remedy = f"steps of {name} in {pace.seconds:.0f} s", "give more time"
    require(step >= least, what, f"at least {least}", step, remedy)


def _update(loss_of: Callable[..., Tensor], batch: Sequence[Any], optimizers, device) -> Tensor:
    """One step; returns the loss, on the device. Gradients stay for whoever looks, until the next step."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    with autocast(device):
        loss = loss_of(*batch)
    loss.backward()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], MAX_NORM)
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on a GPU. Nothing is cached: a recording must cast every weight anew."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


def warm_up(
    loss_of: Callable[..., Tensor],
    batch: Sequence[Any],
    optimizers: Sequence[torch.optim.Optimizer],
    device: torch.device,
    without_gradients: bool = True,
) -> None:
    """One pass without gradients, if asked, and one with them, both thrown away: all is compiled here.

    Weights, and what is drawn at random later, stay as they are.
    """
    with torch.random.fork_rng(devices=random_devices(device)):
        with autocast(device):
            if without_gradients:
                with torch.no_grad():
                    loss_of(*batch)
            loss = loss_of(*batch)
        loss.backward()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    synchronize(device)


def random_devices(device: torch.device) -> list[torch.device]:
    """The devices beside the CPU whose random state must be kept: `torch.manual_seed` reseeds them too."""
    return [device] if device.type == "cuda" else []


def _set_rates(optimizers, peaks: list[list[float]], share: float) -> None:
    for optimizer, rates in zip(optimizers, peaks, strict=True):
        for group, peak in zip(optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):  # a recorded step looks there
                group["lr"].fill_(peak * share)
            else:
                group["lr"] = peak * share


def _mean(name: str, step: int, losses: list[Tensor]) -> float:
    value = torch.stack(losses).float().mean().item()
    if not math.isfinite(value):
        raise FloatingPointError(f"{name}, step {step}: the loss is {value}; lower the learning rate")
    return value
