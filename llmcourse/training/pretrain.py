"""The training loop: next-token prediction in bf16, on one GPU or several, resumable.

A checkpoint holds weights, optimizer states and the step. Batches are a function of the step
(see `tokens`), so a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from llmcourse.model import Decoder
from llmcourse.training.checkpoint import SAVE_EVERY_S, load_state, save_state
from llmcourse.training.interrupts import Interrupts
from llmcourse.training.optimizer import build_optimizers, set_rates
from llmcourse.training.recipes import Recipe
from llmcourse.training.tokens import Domain, batch

CHECK_EVERY = 50  # steps: looking at the loss makes the host wait for the GPU


class NextTokenLoss(nn.Module):
    """Mean cross-entropy of every token given those before it."""

    def __init__(self, model: Decoder):
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor) -> Tensor:  # (B, T + 1)
        logits = self.model(rows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def init_weights(model: Decoder, seed: int) -> None:
    """Normal with deviation 0.02; projections back into the residual stream start smaller,
    by one over the root of twice the number of layers (Radford et al. 2019, section 2.3)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        deviation = 0.02
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= (2 * model.config.num_layers) ** 0.5
        values = torch.empty(parameter.shape).normal_(0, deviation, generator=generator)
        parameter.data.copy_(values)


def update(
    loss_of: Callable[[Tensor], Tensor], rows: Tensor, optimizers: Sequence[torch.optim.Optimizer]
) -> Tensor:
    """One forward and backward pass in bf16 (on a CPU as it is) and one update; the loss, on the device."""
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
        loss = loss_of(rows)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def pretrain(
    recipe: Recipe,
    domains: Sequence[Domain],
    state_path: Path,
    *,
    device: torch.device,
    compile_model: bool = True,
    time_limit_s: float = float("inf"),
) -> Decoder | None:
    """Trains a model to the end of its recipe, from its checkpoint if there is one.

    Args:
        state_path: where checkpoints are kept, every minute and when interrupted.
        time_limit_s: stop after this long, with a checkpoint.

    Returns:
        the trained model, or None when the time limit came first.

    Raises:
        FloatingPointError: loss or weights are no longer finite; the last checkpoint, which is,
            is kept.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was completed and a checkpoint written.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if recipe.batch_size % world:
        raise ValueError(f"batch_size must be a multiple of the {world} processes, got {recipe.batch_size}")
    model = Decoder(recipe.model).to(device)
    init_weights(model, recipe.seed)
    optimizers, loss_of = build_optimizers(model, recipe), NextTokenLoss(model)
    first = load_state(state_path, model, optimizers, recipe)
    if world > 1:
        device_ids = [device.index] if device.type == "cuda" else None
        loss_of = DistributedDataParallel(loss_of, device_ids=device_ids)
    if compile_model:
        loss_of = torch.compile(loss_of)
    run = _Run(recipe, domains, model, optimizers, loss_of, state_path, device, rank, world)
    return model if run.to_the_end(first, time_limit_s) else None


@dataclass
class _Run:
    """One model's training: what every step needs, and the loop over steps."""

    recipe: Recipe
    domains: Sequence[Domain]
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    loss_of: nn.Module
    state_path: Path
    device: torch.device
    rank: int
    world: int

    def step(self, index: int) -> Tensor:
        """`update` on the rows of a step, at its rates."""
        r = self.recipe
        weights = [r.weight(domain.name) for domain in self.domains]
        where = {"seed": r.seed, "rank": self.rank, "world": self.world}
        rows = batch(self.domains, weights, index, r.batch_size, r.sequence_length + 1, **where)
        set_rates(self.optimizers, index, r)
        return update(self.loss_of, rows.to(self.device), self.optimizers)

    def to_the_end(self, first: int, time_limit_s: float) -> bool:
        started = saved = time.monotonic()
        total = self.recipe.steps
        bar = tqdm(total=total, initial=first, desc=self.recipe.name, disable=self.rank > 0, mininterval=5)
        with bar, Interrupts() as interrupts:
            for index in range(first, total):
                loss = self.step(index)
                bar.update()
                now, interrupted = time.monotonic(), interrupts.pending
                out_of_time = now - started > time_limit_s
                stop, due = self._any_process(interrupted or out_of_time, now - saved > SAVE_EVERY_S)
                if stop or due or index % CHECK_EVERY == 0 or index == total - 1:
                    bar.set_postfix(loss=f"{self._checked(loss, index):.3f}")
                if stop or due:
                    self.save(index + 1)
                    saved = now
                if interrupted:
                    raise KeyboardInterrupt
                if stop:
                    return False
        self.save(total)
        return True

    def save(self, step: int) -> None:
        """Writes a checkpoint, unless what it would hold is no longer finite."""
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        held = [*self.model.parameters(), *(v for state in states for v in state.values())]
        if not all(torch.isfinite(t).all() for t in held if torch.is_tensor(t)):
            raise self._diverged("weights or optimizer states are not finite", step - 1)
        if self.rank == 0:
            save_state(self.state_path, self.model, self.optimizers, step, self.recipe)

    def _checked(self, loss: Tensor, step: int) -> float:
        """The mean loss over all processes, if it is finite."""
        if self.world > 1:
            loss = loss.clone()
            dist.all_reduce(loss)
            loss /= self.world
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", step)
        return value

    def _diverged(self, what: str, step: int) -> FloatingPointError:
        there_is = self.state_path.is_file()
        kept = f"the last checkpoint is {self.state_path}" if there_is else "there is no checkpoint yet"
        return FloatingPointError(
            f"{self.recipe.name}, step {step}: {what}; {kept}; lower matrix_lr or other_lr in the recipe"
        )

    def _any_process(self, *wishes: bool) -> tuple[bool, ...]:
        """For each wish whether any process has it: all of them must leave, or save, at the same step."""
        if self.world == 1:
            return wishes
        flags = torch.tensor([float(wish) for wish in wishes], device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return tuple(flag > 0 for flag in flags.tolist())
