"""The training loop: next-token prediction in bf16, on one GPU or several, resumable.

A checkpoint holds weights, optimizer states and the step. Batches are a function of the step
(see `tokens`), so a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from llmcourse.model import Decoder
from llmcourse.training.optimizer import build_optimizers, set_rates
from llmcourse.training.recipes import Recipe
from llmcourse.training.tokens import Domain, batch

SAVE_EVERY_S = 60.0


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


def save_state(path: Path, model: Decoder, optimizers: list, step: int, recipe: Recipe) -> None:
    """Writes a checkpoint beside the old one and renames it, so that none is ever half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "recipe": repr(asdict(recipe)),
    }
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def load_state(path: Path, model: Decoder, optimizers: list, recipe: Recipe) -> int:
    """Restores a checkpoint; returns the step to go on from, 0 when there is none.

    Raises:
        ValueError: the checkpoint is of another recipe.
    """
    if not path.is_file():
        return 0
    state = torch.load(path, map_location=model.device, weights_only=True)
    if state["recipe"] != repr(asdict(recipe)):
        raise ValueError(f"{path} was made with another recipe; remove it, or use another output folder")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


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
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if recipe.batch_size % world:
        raise ValueError(f"batch_size must be a multiple of the {world} processes, got {recipe.batch_size}")
    model = Decoder(recipe.model).to(device)
    init_weights(model, recipe.seed)
    optimizers = build_optimizers(model, recipe)
    first = load_state(state_path, model, optimizers, recipe)
    loss_of = NextTokenLoss(model)
    if world > 1:
        device_ids = [device.index] if device.type == "cuda" else None
        loss_of = DistributedDataParallel(loss_of, device_ids=device_ids)
    if compile_model:
        loss_of = torch.compile(loss_of)
    run = _Run(recipe, domains, model, optimizers, loss_of, state_path, device, rank, world)
    return run.to_the_end(first, time_limit_s)


@dataclass
class _Run:
    """One model's training: what every step needs, and the loop over steps."""

    recipe: Recipe
    domains: Sequence[Domain]
    model: Decoder
    optimizers: list[torch.optim.Optimizer]
    loss_of: nn.Module
    state_path: Path
    device: torch.device
    rank: int
    world: int

    def step(self, index: int) -> Tensor:
        """One forward and backward pass and one update; returns the loss, on the device."""
        r = self.recipe
        weights = [r.weight(domain.name) for domain in self.domains]
        where = {"seed": r.seed, "rank": self.rank, "world": self.world}
        rows = batch(self.domains, weights, index, r.batch_size, r.sequence_length + 1, **where)
        set_rates(self.optimizers, index, r)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss_of(rows.to(self.device))
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def save(self, step: int) -> None:
        if self.rank == 0:
            save_state(self.state_path, self.model, self.optimizers, step, self.recipe)

    def to_the_end(self, first: int, time_limit_s: float) -> Decoder | None:
        started = saved = time.monotonic()
        total = self.recipe.steps
        bar = tqdm(total=total, initial=first, desc=self.recipe.name, disable=self.rank > 0, mininterval=5)
        with bar, _Interrupts() as interrupts:
            for index in range(first, total):
                loss = self.step(index)
                bar.update()
                if index % 50 == 0 or index == total - 1:
                    self._check(loss.item(), index, bar)
                now = time.monotonic()
                stop = self._any_process(interrupts.pending or now - started > time_limit_s)
                if stop or now - saved > SAVE_EVERY_S:
                    self.save(index + 1)
                    saved = now
                if interrupts.pending:
                    raise KeyboardInterrupt
                if stop:
                    return None
        self.save(total)
        return self.model

    def _check(self, loss: float, step: int, bar: tqdm) -> None:
        if loss != loss or loss == float("inf"):
            raise FloatingPointError(
                f"the loss of {self.recipe.name} is {loss} at step {step}; "
                f"the last checkpoint is {self.state_path}; lower matrix_lr or other_lr"
            )
        bar.set_postfix(loss=f"{loss:.3f}")

    def _any_process(self, stop: bool) -> bool:
        """Whether any process wants to stop; all of them must leave at the same step."""
        if self.world == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


class _Interrupts:
    """Holds SIGINT and SIGTERM back until a step is complete, so that what is saved is whole."""

    def __init__(self):
        self.pending = False

    def __enter__(self) -> _Interrupts:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame) -> None:
        self.pending = True

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
