"""Trainings that end by their steps or by the clock, whichever comes first, the rates falling to zero.

The clock starts after a pass that is thrown away, for the first one may compile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llmcourse.decoding.errors import require, require_integer, require_number
from llmcourse.timing import synchronize
from llmcourse.training.interrupts import Interrupts

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
        loss: the mean of the last ones.
        seconds: without the pass before the clock.
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
    batches: Iterable[Sequence[Tensor]],
    optimizers: Sequence[torch.optim.Optimizer],
    pace: Pace,
    device: torch.device,
) -> Trained:
    """Steps over batches until the pace says so.

    Args:
        loss_of: of what a batch holds.
        batches: endless.
        optimizers: with the peak rates set.

    Raises:
        ValueError: the clock left fewer than `LEAST_STEPS` steps.
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was completed.
    """
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    weights = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    batches = iter(batches)
    first = next(batches)
    warm_up(loss_of, first, optimizers, device)
    started, recent, step, done = time.monotonic(), [], 0, 0.0
    bar = tqdm(total=pace.steps, desc=name, mininterval=5, leave=False)
    with bar, Interrupts() as interrupts:
        for batch in chain([first], batches):
            _set_rates(optimizers, peaks, share_of_rate(done))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(*batch)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, MAX_NORM)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            recent, step = [*recent[1 - CHECK_EVERY :], loss.detach()], step + 1
            bar.update()
            if step % CHECK_EVERY == 0:
                bar.set_postfix(loss=f"{_mean(name, step, recent):.3f}")
            if interrupts.pending:
                raise KeyboardInterrupt
            done = pace.progress(step, time.monotonic() - started)
            if done >= 1:
                break
    enough = step >= min(LEAST_STEPS, pace.steps)
    what, remedy = f"steps of {name} in {pace.seconds:.0f} s", "give more time"
    require(enough, what, f"at least {LEAST_STEPS}", step, remedy)
    return Trained(step, _mean(name, step, recent), time.monotonic() - started)


def warm_up(
    loss_of: Callable[..., Tensor],
    batch: Sequence[Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    device: torch.device,
) -> None:
    """One pass without gradients and one with them, both thrown away: all that is compiled is compiled here.

    Weights, and what is drawn at random later, stay as they are.
    """
    with torch.random.fork_rng(devices=random_devices(device)):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
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
            group["lr"] = peak * share


def _mean(name: str, step: int, losses: list[Tensor]) -> float:
    value = torch.stack(losses).float().mean().item()
    if not math.isfinite(value):
        raise FloatingPointError(f"{name}, step {step}: the loss is {value}; lower the learning rate")
    return value
