"""One trainer for all students: from scratch, by response, by features, by both, on their own text.

bf16 on a GPU, compiled there; a batch in one part or several, whose gradients add up; one process or several
(`shards`). A checkpoint holds weights, states of the optimizers and the step, and batches are a function of
the step, so a run that was killed makes the same losses again. A loss that is no longer finite ends the run
with the last checkpoint in place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmcourse.distillation.batches import Batches
from llmcourse.distillation.objective import Objective
from llmcourse.distillation.records import Records
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.shards import (
    Kept,
    ShardedMuon,
    Whole,
    WholeOptimizer,
    any_process,
    mean_over_processes,
    shard,
    whole,
    world,
)
from llmcourse.distillation.teacher import Teacher
from llmcourse.distillation.teacher_cache import checksum
from llmcourse.model import Decoder
from llmcourse.pretrained import fingerprint
from llmcourse.progress import bar
from llmcourse.training.checkpoint import SAVE_EVERY_S, SAVING, load_state, save_state
from llmcourse.training.interrupts import Interrupts
from llmcourse.training.muon import BatchedMuon
from llmcourse.training.optimizer import build_optimizers, schedule, set_rates
from llmcourse.training.paced import CHECK_EVERY, MAX_NORM, autocast, random_devices
from llmcourse.training.tokens import Domain


def distill(
    distillation: Distillation,
    student: Decoder,
    teacher: Decoder | None,
    domains: Sequence[Domain],
    state_path: Path,
    *,
    records: Path | None = None,
    cache: Path | None = None,
    time_limit_s: int | float = math.inf,
    compiled: bool | None = None,
) -> bool:
    """Trains a student in place, from its checkpoint if there is one.

    Args:
        student: in fp32, on the device of the training: with new weights, those of a checkpoint, or a
            fake-quantized one. All its weights are trained.
        teacher: on the same device, in any dtype; None where nothing is learned from one. It stays as it is.
        domains: text, on the device.
        state_path: where checkpoints are kept, every minute, or less often if they take long to write, and
            when interrupted.
        records: a file of JSON lines, one a step: loss, norm of the gradient, share of the peak rate, tokens
            so far, seconds so far.
        cache: a folder of what the teacher said (`teacher_cache`); with `top_k` alone.
        time_limit_s: stop after this long, with a checkpoint.
        compiled: None compiles on a GPU.

    Returns:
        True at the end of the recipe, False when the time limit came first.

    Raises:
        ValueError: teacher and student that do not fit each other or the settings, no text or one that is too
            short, or a checkpoint, a cache or records of another run.
        FloatingPointError: loss, gradient or weights are no longer finite; the step and the part of its batch
            are named, and the last checkpoint is kept.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was completed and a checkpoint written.
    """
    device = student.device
    compiled = device.type == "cuda" if compiled is None else compiled
    rank, count = world()
    distillation.check_models(student, teacher)
    distillation.check_processes(count)
    run = _identity(distillation, student, teacher, domains)
    student.requires_grad_(True).train()
    with torch.random.fork_rng(devices=random_devices(device)):
        torch.manual_seed(distillation.recipe.seed)  # of projections: the same in all processes
        objective = Objective(distillation, student, teacher).to(device)
    layers = distillation.pairs(student, teacher).teacher_layers if distillation.features else ()
    told = Teacher(distillation, teacher, layers, cache, compiled=compiled)
    if compiled:
        objective.compile_parts(by_layer=count > 1)
    if count > 1:
        shard(objective, student)
    optimizers = build_optimizers(objective, distillation.recipe, ShardedMuon if count > 1 else BatchedMuon)
    places = [Whole(objective), *map(WholeOptimizer, optimizers)]
    first = load_state(state_path, places[0], places[1:], run)
    batches = Batches(distillation, domains, student, rank, count)
    kept = Records(records if rank == 0 else None, first)
    saved = _Saved(state_path, run, objective, places)
    training = _Run(distillation, batches, told, objective, optimizers, saved, kept, device)
    try:
        return training.to_the_end(first, time_limit_s)
    finally:
        student.eval()


def _identity(
    distillation: Distillation, student: Decoder, teacher: Decoder | None, domains: Sequence[Domain]
) -> Any:
    """What a checkpoint has to agree with: all settings, one by one, teacher, text, and where it began."""
    weights = None if teacher is None else fingerprint(teacher)
    text = ", ".join(f"{domain.name} {checksum(domain.tokens)}" for domain in domains)
    held = distillation.flat() | {"teacher": weights, "student": fingerprint(student), "text": text}
    return make_dataclass("Run", held)(**held)


@dataclass
class _Saved:
    """Where a run is kept, and what of it."""

    path: Path
    run: Any
    objective: nn.Module
    places: list

    def write(self, step: int) -> bool:
        """Keeps the state, unless weights or states of the optimizers are not finite; whether they were."""
        states = [place.state_dict() for place in self.places]  # by all processes: each has a part
        weights, *others = states
        held = [
            *weights.values(),
            *(v for state in others for s in state["state"].values() for v in s.values()),
        ]
        if not all(torch.isfinite(t).all() for t in held if isinstance(t, Tensor)):
            return False
        if world()[0] == 0:
            kept = [Kept(state) for state in states]
            save_state(self.path, kept[0], kept[1:], step, self.run)
        return True


@dataclass
class _Run:
    """One student's training: what every step needs, and the loop over steps."""

    distillation: Distillation
    batches: Batches
    teacher: Teacher
    objective: Objective
    optimizers: list[torch.optim.Optimizer]
    saved: _Saved
    records: Records
    device: torch.device

    def step(self, index: int) -> Tensor:
        """One update; the loss of each part of the batch, and the norm of the gradient, on the device."""
        losses = []
        parts = self.distillation.accumulation
        for part in self.batches.parts(index):
            told = self.teacher(part)
            with autocast(self.device):
                loss = self.objective(part.rows, part.labels, told, part.own)
            (loss / parts).backward()
            losses.append(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), MAX_NORM)
        set_rates(self.optimizers, index, self.distillation.recipe)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack([*losses, whole(norm.detach())])

    def to_the_end(self, first: int, time_limit_s: float) -> bool:
        started = saved = time.monotonic()
        recipe, before_s = self.distillation.recipe, self.records.seconds
        rank, pending, save_s = world()[0], [], SAVE_EVERY_S
        steps = bar(None, recipe.name, total=recipe.steps, initial=first, unit="step", shown=rank == 0)
        with steps, Interrupts() as interrupts:
            for index in range(first, recipe.steps):
                pending.append((index, self.step(index), before_s + time.monotonic() - started))
                steps.update()
                now, interrupted = time.monotonic(), interrupts.pending
                out_of_time = now - started > time_limit_s
                wishes = (interrupted or out_of_time, now - saved > save_s)
                stop, due = any_process(wishes, self.device)
                last = index == recipe.steps - 1
                if stop or due or last or len(pending) == CHECK_EVERY or self.device.type == "cpu":
                    steps.set_postfix(loss=f"{self._checked(pending):.3f}", refresh=False)
                    pending = []
                if stop or due or last:
                    if not self.saved.write(index + 1):
                        raise self._diverged("weights or optimizer states are not finite", index)
                    saved = time.monotonic()
                    save_s = max(SAVE_EVERY_S, (saved - now) / SAVING)
                if interrupted:
                    raise KeyboardInterrupt
                if stop and not last:
                    return False
        return True

    def _checked(self, pending: list[tuple[int, Tensor, float]]) -> float:
        """Records steps whose losses are finite; the last one's loss."""
        found = mean_over_processes(torch.stack([values for _, values, _ in pending]).float()).tolist()
        recipe, lines = self.distillation.recipe, []
        for (index, _, seconds), (*losses, norm) in zip(pending, found, strict=True):
            for part, loss in enumerate(losses, 1):
                if not math.isfinite(loss):
                    self.records.add(lines)
                    where = f" (batch {index + 1}, part {part} of {len(losses)})"
                    raise self._diverged(f"the loss is {loss}", index, where)
            if not math.isfinite(norm):  # the weights are lost with it, and the next loss would be blamed
                self.records.add(lines)
                where = f" (batch {index + 1})"
                raise self._diverged(f"the norm of the gradient is {norm}", index, where)
            lines.append(
                {
                    "step": index + 1,
                    "loss": sum(losses) / len(losses),
                    "gradient_norm": norm,
                    "rate": schedule(index, recipe),
                    "tokens": (index + 1) * recipe.batch_size * recipe.sequence_length,
                    "seconds": round(seconds, 3),
                }
            )
        self.records.add(lines)
        return lines[-1]["loss"]

    def _diverged(self, what: str, index: int, where: str = "") -> FloatingPointError:
        path = self.saved.path
        kept = f"the last checkpoint is {path}" if path.is_file() else "there is no checkpoint yet"
        return FloatingPointError(
            f"{self.distillation.recipe.name}, step {index + 1}{where}: {what}; {kept}; lower the learning "
            "rates, or the temperature's distance from 1"
        )
