"""A distillation that takes a second: a vocabulary of 64, one layer, a pattern with noise in it.

`python -m tests.distillation.tiny_run FOLDER [--kill-at STEP]` is one such run, alone or under torchrun.
"""

import math
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from llmcourse.distillation.feature_loss import FeatureWeights
from llmcourse.distillation.losses import Response
from llmcourse.distillation.objective import Objective
from llmcourse.distillation.settings import Distillation
from llmcourse.distillation.train import distill
from llmcourse.model import Decoder
from llmcourse.training.pretrain import init_weights
from llmcourse.training.processes import leave, part_company
from llmcourse.training.recipes import Recipe
from llmcourse.training.tokens import Domain
from tests.training.tiny import tiny_config, tiny_recipe


def pattern(name: str = "pattern", size: int = 4000) -> Domain:
    """Every seventh token follows from the one before it, and one of ten is any."""
    draw = torch.Generator().manual_seed(len(name))
    tokens = torch.arange(size) % 7 * 5 + 3
    noise = torch.rand(size, generator=draw) < 0.1
    return Domain(name, torch.where(noise, torch.randint(64, (size,), generator=draw), tokens).int())


def recipe(**changes) -> Recipe:
    model = tiny_config(vocab_size=64, max_position_embeddings=16)
    sizes = dict(name="tiny", model=model, steps=6, batch_size=4, sequence_length=12, mix={"pattern": 1.0})
    return tiny_recipe(**sizes | dict(matrix_lr=0.01, other_lr=0.01) | changes)


def settings(**changes) -> Distillation:
    own = {name: changes.pop(name) for name in list(changes) if name in Distillation.__dataclass_fields__}
    return Distillation(recipe(**changes), **own)


def everything() -> Distillation:
    """What several processes are compared by: means over rows, however these are cut."""
    response = Response(hard_weight=0.25, temperature=2.0)
    return settings(response=response, features=FeatureWeights(values=1.0, distance="cosine"), accumulation=2)


def student(seed: int = 0, **changes) -> Decoder:
    model = Decoder(recipe(**changes).model)
    init_weights(model, seed)
    return model


def teacher(**changes) -> Decoder:
    """Wider, and sure of what it says."""
    config = tiny_config(vocab_size=64, max_position_embeddings=16, hidden_size=48, num_layers=2, **changes)
    model = Decoder(config)
    init_weights(model, 7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return model.requires_grad_(False).eval()


def run(folder: Path, distillation: Distillation | None = None, *, model: Decoder | None = None, **how):
    """Trains a student; returns it, or None where the time was up first."""
    distillation = distillation or settings()
    model = model or student()
    learned_from = teacher() if distillation.needs_teacher else None
    how = {"records": folder / "tiny.jsonl"} | how
    done = distill(distillation, model, learned_from, [pattern()], folder / "tiny.pt", **how)
    return model if done else None


def killed_at(step: int, number: int = signal.SIGKILL):
    """A signal from the system in the middle of a step, counted from the start of this run."""
    whole, calls = Objective.forward, iter(range(10**9))

    def forward(self, *given):
        if next(calls) == step:
            os.kill(os.getpid(), number)
        return whole(self, *given)

    return mock.patch.object(Objective, "forward", forward)


def saved_every_step():
    """A checkpoint behind each step, however long it takes to write."""
    return mock.patch.multiple("llmcourse.distillation.train", SAVE_EVERY_S=-1.0, SAVING=math.inf)


def main(folder: str, *options: str) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    try:
        if options and options[0] == "--kill-at":
            with killed_at(int(options[1])), saved_every_step():
                run(Path(folder))
        else:
            run(Path(folder), everything())
    finally:
        part_company()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
